/* The old daemon's side of an upgrade, and the frames of both. */
#include "build_config.h"

#include "handover.h"

#include "daemon/front/client.h"
#include "keeper.h"
#include "daemon/base/log.h"
#include "daemon/base/world_uv.h"
#include "daemon/flow/pool.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#define READY_MS 10000u /* for the new binary to read its configuration */
#define QUIET_MS 500u   /* for what is in flight to be answered */
#define QUIET_LOOK_MS 1u
#define MAKING_MS 10000u /* and for lanes that are being made */
#define TAKEN_MS 10000

int
handover_send(int fd, const struct handover_frame *frame, const int *fds, unsigned nfds)
{
	return packet_send(fd, frame, handover_size(frame), fds, nfds);
}

int
handover_recv(int fd, struct handover_packet *packet, int fds[HANDOVER_FDS])
{
	const struct handover_frame *frame = &packet->frame;
	ssize_t n = packet_recv(fd, packet, sizeof(*packet), fds);

	if (n < 0)
		return (int)n;
	/* Frames of other versions have other sizes. */
	int known = (size_t)n >= offsetof(struct handover_frame, type) && frame->magic == HANDOVER_MAGIC;
	if (known && frame->version == HANDOVER_VERSION && (size_t)n >= sizeof(*frame) &&
	    (size_t)n == handover_size(frame))
		return 0;
	packet_close_fds(fds);
	return known && frame->version != HANDOVER_VERSION ? -TG_EVERSION : -TG_EPROTOCOL;
}

static struct handover_frame
frame_of(enum handover_type type)
{
	return (struct handover_frame){ .magic = HANDOVER_MAGIC, .version = HANDOVER_VERSION, .type = type };
}

/* ---- giving ---- */

static int
give_listener(int fd, const struct listener *listener)
{
	struct handover_frame frame = frame_of(HANDOVER_LISTENER);

	snprintf(frame.u.listener.path, sizeof(frame.u.listener.path), "%s", listener->path);
	frame.u.listener.owns_path = (uint32_t)listener->owns_path;
	return handover_send(fd, &frame, &listener->fd, 1);
}

static int
give_lane(int fd, const struct lane *lane)
{
	struct handover_frame frame = frame_of(HANDOVER_LANE);
	int fds[] = { lane->ring, lane->answers, lane->bell };

	frame.orphan = lane->client == NULL;
	frame.u.lane.id = lane->id;
	frame.u.lane.nonce = lane->nonce;
	memcpy(frame.u.lane.secret, lane->secret, sizeof(lane->secret));
	frame.u.lane.orphaned_ns = lane->orphaned_ns;
	frame.u.lane.uid = lane->owner.uid;
	frame.u.lane.pid = lane->owner.pid;
	frame.u.lane.kept = (uint32_t)keeper_has(lane);
	frame.u.lane.unready = (uint32_t)lane->unready;
	return handover_send(fd, &frame, fds, lane->bell >= 0 ? 3 : 2);
}

static int
give_clients(int fd, struct front *front)
{
	struct client *client;
	struct lane *lane;
	int rc;

	TAILQ_FOREACH (client, &front->clients, entry) {
		struct handover_frame frame = frame_of(HANDOVER_CLIENT);
		int fds[] = { client->fd, client->doorbell };
		frame.u.client.pid = client->pid;
		frame.u.client.uid = client->uid;
		frame.u.client.gid = client->gid;
		memcpy(frame.u.client.name, client->name, sizeof(client->name));
		if ((rc = handover_send(fd, &frame, fds, 2)) != 0)
			return rc;
		TAILQ_FOREACH (lane, &client->lanes, client_entry)
			if (lane->place != LANE_GONE && (rc = give_lane(fd, lane)) != 0)
				return rc;
	}
	for (uint32_t i = 0; i < front->shard->pool_count; i++)
		TAILQ_FOREACH (lane, &front->shard->pools[i].lanes, pool_entry)
			if (lane->client == NULL && (rc = give_lane(fd, lane)) != 0)
				return rc;
	return 0;
}

static int
give_link(struct handover *handover, const struct link *link)
{
	struct handover_packet packet;
	struct handover_frame *frame = &packet.frame;
	ssize_t saved = link_save(link, packet.bytes + link->conn.hello_len, LINK_SAVED_MAX);

	if (saved < 0)
		return 0;
	int sock = world_uv_sock_fd(link->conn.sock);
	*frame = frame_of(HANDOVER_LINK);
	snprintf(frame->u.link.pool, sizeof(frame->u.link.pool), "%s", link->broker->peers->config->name);
	snprintf(frame->u.link.broker, sizeof(frame->u.link.broker), "%s", link->broker->config->address.text);
	memcpy(frame->u.link.client_id, link->conn.client_id, sizeof(link->conn.client_id));
	frame->u.link.index = (uint32_t)(link - link->broker->links);
	frame->u.link.random = link->conn.params.random;
	frame->u.link.hello_len = (uint32_t)link->conn.hello_len;
	frame->u.link.saved_len = (uint32_t)saved;
	memcpy(packet.bytes, link->conn.hello, link->conn.hello_len);
	handover->links++;
	return handover_send(handover->fd, frame, &sock, 1);
}

static int
give_links(struct handover *handover)
{
	struct shard *shard = &handover->loop->shard;
	int rc;

	handover->links = 0;
	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (uint32_t b = 0; b < shard->pools[p].peers.count; b++)
			for (uint32_t l = 0; l < shard->pools[p].peers.list[b].link_count; l++)
				if ((rc = give_link(handover, &shard->pools[p].peers.list[b].links[l])) != 0)
					return rc;
	return 0;
}

/* libuv has made it so that it does not: a thousand lanes are more than the socket takes before they are read. */
static int
let_it_wait(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0 ? 0 : -TG_ESYSTEM;
}

static int
give_all(struct handover *handover)
{
	struct handover_frame frame = frame_of(HANDOVER_DONE);
	struct shard *shard = &handover->loop->shard;
	struct handover_packet answer;
	int fds[HANDOVER_FDS];
	int fd = handover->fd, rc;

	shard_turn(shard); /* paused, it frames nothing; it commits the answers that came meanwhile */
	if ((rc = let_it_wait(fd)) != 0 || (rc = give_listener(fd, handover->control)) != 0 ||
	    (rc = give_listener(fd, handover->admin)) != 0 ||
	    (rc = give_clients(fd, &handover->loop->front)) != 0 || (rc = give_links(handover)) != 0 ||
	    (rc = handover_send(fd, &frame, NULL, 0)) != 0)
		return rc;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	if (poll(&p, 1, TAKEN_MS) <= 0)
		return -TG_ETIMEOUT;
	if ((rc = handover_recv(fd, &answer, fds)) != 0)
		return rc;
	if (answer.frame.type != HANDOVER_TAKEN)
		return -TG_EPROTOCOL;
	frame = frame_of(HANDOVER_GO);
	return handover_send(fd, &frame, NULL, 0);
}

/* ---- the course of it ---- */

static void
on_handle_closed(uv_handle_t *handle)
{
	struct handover *handover = handle->data;

	if (--handover->handles == 0) {
		close(handover->fd);
		handover->fd = -1;
	}
}

static void
close_handles(struct handover *handover)
{
	timer_stop(&handover->loop->shard.timers, &handover->timer);
	if (!uv_is_closing((uv_handle_t *)&handover->poll))
		uv_close((uv_handle_t *)&handover->poll, on_handle_closed);
	if (!uv_is_closing((uv_handle_t *)&handover->process))
		uv_close((uv_handle_t *)&handover->process, on_handle_closed);
}

/* The old daemon goes on. */
static void
give_up(struct handover *handover, const char *why)
{
	log_event(LOG_LEVEL_ERROR, "upgrade_failed", "pid=%d cause=\"%s\"", (int)handover->process.pid, why);
	if (uv_is_active((uv_handle_t *)&handover->process)) {
		kill(handover->process.pid, SIGKILL);
		waitpid(handover->process.pid, NULL, 0); /* libuv asks no more, once its handle closes */
	}
	handover->loop->shard.paused = 0;
	control_resume(&handover->loop->front.control);
	close_handles(handover);
}

/* A request to stop is meant for the successor, too, which would not learn of it. */
static int
is_told_to_stop(struct handover *handover)
{
	if (!handover->loop->shard.stopping)
		return 0;
	give_up(handover, "the daemon was told to stop");
	return 1;
}

static void
finish(struct handover *handover)
{
	struct shard *shard = &handover->loop->shard;
	int rc = give_all(handover);

	if (rc != 0) {
		give_up(handover, rc == -TG_EAGAIN ? "the new daemon does not read" : error_text(rc));
		return;
	}
	log_event(LOG_LEVEL_INFO, "upgraded", "to_pid=%d lanes=%u clients=%u links=%u outstanding=%llu",
	    (int)handover->process.pid, shard->lane_count, handover->loop->front.client_count, handover->links,
	    (unsigned long long)shard->outstanding);
#ifdef HAVE_SYSTEMD
	sd_notifyf(0, "MAINPID=%d", (int)handover->process.pid);
#endif
	shard_farewell(shard);
	/* Nothing else is closed in good order: it all has a new owner. */
	_exit(0);
}

/* A link that is about to be READY, or has a probe or the like under way, can be handed over in a moment. */
static int
is_settled(const struct link *link)
{
	uint8_t bytes[LINK_SAVED_MAX];

	if (link->state == LINK_READY)
		return link->health.probe_ns == 0 && link_save(link, bytes, sizeof(bytes)) != -TG_EAGAIN;
	return link->state != LINK_HANDSHAKE && link->state != LINK_PROBING;
}

static int
is_quiet(const struct shard *shard)
{
	if (shard->outstanding > 0 || !TAILQ_EMPTY(&shard->flush) || !TAILQ_EMPTY(&shard->dirty))
		return 0;
	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (uint32_t b = 0; b < shard->pools[p].peers.count; b++)
			for (uint32_t l = 0; l < shard->pools[p].peers.list[b].link_count; l++)
				if (!is_settled(&shard->pools[p].peers.list[b].links[l]))
					return 0;
	return 1;
}

static void
on_timer(struct timer *timer)
{
	struct handover *handover =
	    (struct handover *)(void *)((char *)timer - offsetof(struct handover, timer));
	struct shard *shard = &handover->loop->shard;

	if (handover->waiting_ready) {
		give_up(handover, "the new daemon was not ready in 10 s");
		return;
	}
	if (is_told_to_stop(handover))
		return;
	/* Lanes on their way are waited for: their memory would have no owner. */
	if (!TAILQ_EMPTY(&shard->making) && shard->now_ns >= handover->until_ns + MAKING_MS * NS_PER_MS) {
		give_up(handover, "a lane is still being made");
		return;
	}
	if (TAILQ_EMPTY(&shard->making) && (is_quiet(shard) || shard->now_ns >= handover->until_ns)) {
		finish(handover);
		return;
	}
	timer_set(&shard->timers, &handover->timer, shard->now_ns + QUIET_LOOK_MS * NS_PER_MS);
}

static void
on_readable(uv_poll_t *poll, int status, int events)
{
	struct handover *handover = poll->data;
	struct shard *shard = &handover->loop->shard;
	struct handover_packet packet;
	int fds[HANDOVER_FDS];

	shard_refresh_clock(shard);
	int rc = status < 0 ? -TG_ECLOSED : handover_recv(handover->fd, &packet, fds);
	if (rc != 0 || packet.frame.type != HANDOVER_READY) {
		give_up(handover,
		    rc == -TG_EVERSION
			? "the new daemon speaks another version of the lanes or of the hand-over: restart instead"
			: "the new daemon did not become ready; its own log lines say why");
		return;
	}
	handover->waiting_ready = 0;
	uv_poll_stop(poll);
	if (is_told_to_stop(handover))
		return;
	shard->paused = 1;
	handover->until_ns = shard->now_ns + QUIET_MS * NS_PER_MS;
	timer_set(&shard->timers, &handover->timer, shard->now_ns);
}

static void
on_exit_status(uv_process_t *process, int64_t status, int signal)
{
	struct handover *handover = process->data;

	if (!uv_is_closing((uv_handle_t *)&handover->poll))
		give_up(handover, "the new daemon ended before it took over");
}

int
handover_begin(struct handover *handover, const char **why)
{
	struct loop *loop = handover->loop;
	int pair[2];
	char takeover[] = "--takeover=3";
	char *args[] = { (char *)(uintptr_t)handover->start.program, "-c",
		(char *)(uintptr_t)handover->start.config, "--log-level",
		(char *)(uintptr_t)handover->start.log_level, takeover, NULL };
	uv_stdio_container_t stdio[4] = { 0 };
	uv_process_options_t options = { .exit_cb = on_exit_status,
		.file = handover->start.program,
		.args = args,
		.stdio_count = 4,
		.stdio = stdio };

	if (handover->fd >= 0) {
		*why = "an upgrade is under way";
		return -TG_EBUSY;
	}
	if (loop->shard.stopping) {
		*why = "the daemon is draining";
		return -TG_ESTOPPING;
	}
	if (getpid() == 1) {
		/* The kernel kills every process of a PID namespace, the successor too, when its first one ends. */
		*why =
		    "the daemon is process 1 of its container, which ends when this daemon hands over: replace the container";
		return -TG_ESYSTEM;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
		*why = "no socket for the hand-over";
		return -TG_ESYSTEM;
	}
	/* A new one that has stopped to read must not stop the old one. */
	struct timeval limit = { .tv_sec = TAKEN_MS / 1000 };
	setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	for (int i = 0; i < 3; i++)
		stdio[i] = (uv_stdio_container_t){ .flags = UV_INHERIT_FD, .data.fd = i };
	stdio[3] = (uv_stdio_container_t){ .flags = UV_INHERIT_FD, .data.fd = pair[1] };
	handover->process.data = handover->poll.data = handover;
	int rc = uv_spawn(&loop->uv, &handover->process, &options);
	close(pair[1]);
	handover->fd = pair[0];
	handover->handles = 2;
	uv_poll_init(&loop->uv, &handover->poll, handover->fd);
	if (rc != 0) {
		*why = "the new binary cannot be started";
		errno = -rc;
		close_handles(handover);
		return -TG_ESYSTEM;
	}
	uv_poll_start(&handover->poll, UV_READABLE, on_readable);
	handover->waiting_ready = 1;
	timer_set(&loop->shard.timers, &handover->timer, loop->shard.now_ns + READY_MS * NS_PER_MS);
	log_event(LOG_LEVEL_INFO, "upgrading", "program=%s pid=%d", handover->start.program,
	    (int)handover->process.pid);
	return (int)handover->process.pid;
}

int
handover_init(struct handover *handover, struct loop *loop, struct listener *control, struct listener *admin,
    const struct handover_start *start)
{
	memset(handover, 0, sizeof(*handover));
	handover->loop = loop;
	handover->control = control;
	handover->admin = admin;
	handover->start = *start;
	handover->fd = -1;
	handover->timer.fire = on_timer;
	return timers_reserve(&loop->shard.timers);
}

void
handover_fini(struct handover *handover)
{
	if (handover->loop != NULL && handover->fd >= 0)
		give_up(handover, "the daemon ends");
}
