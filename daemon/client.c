#include "client.h"

#include "log.h"
#include "loop.h"
#include "pool.h"
#include "shard.h"
#include "shm/frame.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAMES_A_TURN 8  /* bound of one client's requests in a turn */
#define LOOKS_A_TURN 64u /* lanes looked at for one ring of the doorbell */

static void on_control(uv_poll_t *poll, int status, int events);
static void on_doorbell(uv_poll_t *poll, int status, int events);

int
client_pid(const struct client *client)
{
	return (int)client->pid;
}

/* ---- life ---- */

int
client_new(struct shard *shard, uv_loop_t *loop, int fd)
{
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof(cred);
	struct client *client;
	int rc = -TG_ENOMEM;

	if (shard->client_count >= shard->config->limits.clients) {
		struct frame frame;
		frame_init(&frame, FRAME_ERROR, 0);
		frame.u.error.code = TG_ELIMIT;
		snprintf(frame.u.error.text, sizeof(frame.u.error.text),
		    "%u clients are attached: limits.clients allows no more", shard->client_count);
		frame_send(fd, &frame, NULL, 0);
		shard->count.refused++;
		rc = -TG_ELIMIT;
		goto fail_fd;
	}
	client = calloc(1, sizeof(*client));
	if (client == NULL)
		goto fail_fd;
	client->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (client->doorbell < 0) {
		rc = -TG_ELIMIT;
		goto fail_client;
	}
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	client->shard = shard;
	client->fd = fd;
	client->pid = cred.pid;
	client->uid = cred.uid;
	client->gid = cred.gid;
	TAILQ_INIT(&client->asleep);
	TAILQ_INIT(&client->lanes);
	client->control_poll.data = client->doorbell_poll.data = client;
	if (uv_poll_init(loop, &client->control_poll, fd) != 0)
		goto fail_doorbell;
	client->open_handles = 1;
	if (uv_poll_init(loop, &client->doorbell_poll, client->doorbell) != 0) {
		TAILQ_INSERT_TAIL(&shard->clients, client, entry);
		shard->client_count++;
		client_close(client);
		return -TG_ENOMEM;
	}
	client->open_handles = 2;
	uv_poll_start(&client->control_poll, UV_READABLE, on_control);
	uv_poll_start(&client->doorbell_poll, UV_READABLE, on_doorbell);
	TAILQ_INSERT_TAIL(&shard->clients, client, entry);
	shard->client_count++;
	shard->count.clients++;
	return 0;
fail_doorbell:
	close(client->doorbell);
fail_client:
	free(client);
fail_fd:
	close(fd);
	return rc;
}

static void
on_closed(uv_handle_t *handle)
{
	struct client *client = handle->data;

	if (--client->open_handles > 0)
		return;
	close(client->fd);
	close(client->doorbell);
	free(client);
}

void
client_close(struct client *client)
{
	int handles = client->open_handles;

	if (uv_is_closing((uv_handle_t *)&client->control_poll))
		return;
	while (!TAILQ_EMPTY(&client->lanes))
		lane_orphan(TAILQ_FIRST(&client->lanes));
	TAILQ_REMOVE(&client->shard->clients, client, entry);
	client->shard->client_count--;
	uv_close((uv_handle_t *)&client->control_poll, on_closed);
	if (handles > 1)
		uv_close((uv_handle_t *)&client->doorbell_poll, on_closed);
}

void
client_lane_gone(struct client *client, struct lane *lane)
{
	TAILQ_REMOVE(&client->lanes, lane, client_entry);
	client->lane_count--;
}

/* ---- answers ---- */

/* An answer that does not fit its socket's buffer ends the client: it does not read. */
static int
answer(struct client *client, const struct frame *frame, const int *fds, unsigned nfds)
{
	return frame_send(client->fd, frame, fds, nfds);
}

static int refuse(struct client *client, uint32_t serial, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int
refuse(struct client *client, uint32_t serial, int code, const char *format, ...)
{
	struct frame frame;
	va_list args;

	frame_init(&frame, FRAME_ERROR, serial);
	frame.u.error.code = code;
	va_start(args, format);
	vsnprintf(frame.u.error.text, sizeof(frame.u.error.text), format, args);
	va_end(args);
	client->shard->count.refused++;
	return answer(client, &frame, NULL, 0);
}

/* ---- lanes ---- */

static int
refuse_pool(struct client *client, uint32_t serial, const char *name)
{
	char names[160] = "";
	size_t at = 0;

	for (uint32_t i = 0; i < client->shard->pool_count && at < sizeof(names) - 1; i++) {
		int n = snprintf(names + at, sizeof(names) - at, "%s\"%s\"", i > 0 ? ", " : "",
		    client->shard->pools[i].config->name);
		at += n > 0 ? (size_t)n : 0;
	}
	return refuse(client, serial, TG_ENOPOOL, "pool \"%s\" does not exist; there are: %s", name, names);
}

/* Which configured limit a lane of this geometry would break; 0 and *rc set if one did. */
static int
within_limits(struct client *client, const struct frame *request, const struct lane_geometry *geo, int *rc)
{
	struct shard *shard = client->shard;
	const struct config_limits *limits = &shard->config->limits;
	uint32_t serial = request->serial;

	if (geo->sq_bytes > limits->ring_bytes)
		*rc = refuse(client, serial, TG_ELIMIT, "a ring of %llu bytes is too large: limits.ring_bytes is %llu",
		    (unsigned long long)geo->sq_bytes, (unsigned long long)limits->ring_bytes);
	else if (shard->lane_count >= limits->lanes)
		*rc = refuse(client, serial, TG_ELIMIT, "%u lanes are open: limits.lanes is %u", shard->lane_count,
		    limits->lanes);
	else if (client->lane_count >= limits->lanes_per_client)
		*rc = refuse(client, serial, TG_ELIMIT,
		    "process %d has %u lanes open: limits.lanes_per_client is %u", client_pid(client),
		    client->lane_count, limits->lanes_per_client);
	else if (shard->lane_memory + lane_memfd_bytes(geo) > limits->memory_bytes)
		*rc = refuse(client, serial, TG_ELIMIT,
		    "all lanes hold %llu bytes, this one would need %llu: limits.memory_bytes is %llu",
		    (unsigned long long)shard->lane_memory, (unsigned long long)lane_memfd_bytes(geo),
		    (unsigned long long)limits->memory_bytes);
	else
		return 1;
	return 0;
}

static int
open_lane(struct client *client, const struct frame *request)
{
	struct shard *shard = client->shard;
	struct pool *pool = shard_pool(shard, request->u.open.pool);
	struct lane_geometry geo;
	struct lane_header header = { .lane_id = shard->lane_ids + 1 };
	struct lane *lane;
	struct frame frame;
	int rc;

	memcpy(client->name, request->u.open.name, sizeof(client->name));
	if (shard->stopping)
		return refuse(client, request->serial, TG_ESTOPPING, "%s", error_text(TG_ESTOPPING));
	if (pool == NULL)
		return refuse_pool(client, request->serial, request->u.open.pool);
	if (lane_geometry_make(&geo, request->u.open.sq_bytes, request->u.open.cq_entries) != 0)
		return refuse(client, request->serial, TG_EINVAL,
		    "a lane of %llu bytes and %u completions: at most %llu and %u are possible",
		    (unsigned long long)request->u.open.sq_bytes, request->u.open.cq_entries,
		    (unsigned long long)LANE_SQ_MAX, LANE_CQ_MAX);
	if (!within_limits(client, request, &geo, &rc))
		return rc;
	header.flags = shard->expedited ? LANE_F_EXPEDITED : 0;
	header.nonce = world_random(shard->world);
	snprintf(header.pool, sizeof(header.pool), "%s", pool->config->name);
	int memfd = lane_memfd_create(&geo, &header);
	if (memfd < 0)
		return refuse(client, request->serial, -memfd, "lane for pool \"%s\": %s%s%s", pool->config->name,
		    error_text(memfd), memfd == -TG_ESYSTEM ? ": " : "", memfd == -TG_ESYSTEM ? strerror(errno) : "");
	int bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = bell < 0 ? -TG_ELIMIT : lane_new(&lane, header.lane_id, pool, client, memfd, &geo, bell);
	if (rc != 0) {
		close(memfd);
		if (bell >= 0)
			close(bell);
		return refuse(client, request->serial, -rc, "lane for pool \"%s\": %s", pool->config->name,
		    bell < 0 ? "no file descriptors left (LimitNOFILE)" : error_text(rc));
	}
	shard->lane_ids++;
	TAILQ_INSERT_TAIL(&client->lanes, lane, client_entry);
	client->lane_count++;
	frame_init(&frame, FRAME_LANE_OPENED, request->serial);
	frame.u.lane.lane_id = lane->id;
	frame.u.lane.sq_bytes = geo.sq_bytes;
	frame.u.lane.cq_entries = geo.cq_entries;
	frame.u.lane.flags = header.flags;
	int fds[FRAME_FDS] = { [FRAME_FD_MEMFD] = memfd, [FRAME_FD_DOORBELL] = client->doorbell, [FRAME_FD_BELL] = bell };
	rc = answer(client, &frame, fds, FRAME_FDS);
	close(memfd);
	log_event(LOG_LEVEL_DEBUG, "lane_opened", "lane=%llu pool=%s pid=%d sq_bytes=%llu cq_entries=%u",
	    (unsigned long long)lane->id, pool->config->name, client_pid(client), (unsigned long long)geo.sq_bytes,
	    geo.cq_entries);
	return rc;
}

static int
close_lane(struct client *client, const struct frame *request)
{
	struct frame frame;
	struct lane *lane;

	TAILQ_FOREACH (lane, &client->lanes, client_entry)
		if (lane->id == request->u.lane.lane_id)
			break;
	if (lane == NULL)
		return refuse(client, request->serial, TG_ENOTFOUND, "lane %llu is not one of process %d",
		    (unsigned long long)request->u.lane.lane_id, client_pid(client));
	frame_init(&frame, FRAME_LANE_CLOSED, request->serial);
	frame.u.lane.lane_id = lane->id;
	lane_orphan(lane);
	return answer(client, &frame, NULL, 0);
}

static int
serve(struct client *client, const struct frame *frame)
{
	switch (frame->type) {
	case FRAME_LANE_OPEN:
		return open_lane(client, frame);
	case FRAME_LANE_CLOSE:
		return close_lane(client, frame);
	default:
		return refuse(client, frame->serial, TG_EPROTOCOL, "frame type %u is not a request this daemon knows",
		    frame->type);
	}
}

/* ---- events ---- */

static void
on_control(uv_poll_t *poll, int status, int events)
{
	struct client *client = poll->data;
	struct frame frame;
	int fds[FRAME_FDS];
	int rc = status < 0 ? -TG_ECLOSED : 0;

	loop_refresh_clock(client->shard);
	for (int i = 0; i < FRAMES_A_TURN && rc == 0; i++) {
		rc = frame_recv(client->fd, &frame, fds);
		if (rc == 0) {
			/* No request carries descriptors. */
			for (unsigned f = 0; f < FRAME_FDS; f++)
				if (fds[f] >= 0)
					close(fds[f]);
			rc = serve(client, &frame);
		} else if (rc == -TG_EAGAIN) {
			return;
		} else if (rc == -TG_EVERSION) {
			refuse(client, frame.serial, TG_EVERSION,
			    "the library speaks ABI %u, this daemon %u: install matching versions", frame.abi, LANE_ABI);
		} else if (rc == -TG_EPROTOCOL) {
			refuse(client, frame.serial, TG_EPROTOCOL, "%s", error_text(rc));
		}
	}
	if (rc == 0)
		return;
	log_event(rc == -TG_ECLOSED ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN, "client_gone",
	    "pid=%d uid=%u lanes=%u cause=%s", client_pid(client), client->uid, client->lane_count,
	    log_quote((char[160]){ 0 }, 160, error_text(rc), strlen(error_text(rc))));
	client_close(client);
}

/*
 * A ring says only that some sleeping lane of this client has a record. They are looked at a few a
 * turn: a client that rings without end costs one read and that much.
 */
static void
on_doorbell(uv_poll_t *poll, int status, int events)
{
	static const uint64_t one = 1;
	struct client *client = poll->data;
	struct lane *lane, *next;
	uint64_t rings;
	uint32_t looks = 0;

	loop_refresh_clock(client->shard);
	/* Taken before the lanes are looked at: a ring that comes while we look is not lost. */
	if (read(client->doorbell, &rings, sizeof(rings)) < 0)
		return;
	client->shard->count.doorbells++;
	struct lane *last = TAILQ_LAST(&client->asleep, lane_list);
	for (lane = TAILQ_FIRST(&client->asleep); lane != NULL; lane = next) {
		int is_last = lane == last;
		next = TAILQ_NEXT(lane, place_entry);
		if (looks++ == LOOKS_A_TURN) {
			/* The rest in the next turn. */
			if (write(client->doorbell, &one, sizeof(one)) < 0)
				log_event(LOG_LEVEL_DEBUG, "doorbell_full", "pid=%d", client_pid(client));
			break;
		}
		if (lane_look(lane) == 0 && lane->place == LANE_ASLEEP) {
			TAILQ_REMOVE(&client->asleep, lane, place_entry);
			TAILQ_INSERT_TAIL(&client->asleep, lane, place_entry);
		}
		if (is_last)
			break;
	}
}
