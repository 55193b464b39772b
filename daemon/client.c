#include "client.h"

#include "inject.h"
#include "keeper.h"
#include "log.h"
#include "loop.h"
#include "pool.h"
#include "shard.h"
#include "stray.h"
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

/* The loop watches both descriptors, which are the client's from here on. */
static int
client_start(struct client *client, uv_loop_t *loop)
{
	struct shard *shard = client->shard;

	TAILQ_INIT(&client->asleep);
	TAILQ_INIT(&client->lanes);
	client->control_poll.data = client->doorbell_poll.data = client;
	if (uv_poll_init(loop, &client->control_poll, client->fd) != 0)
		return -TG_ENOMEM;
	client->open_handles = 1;
	TAILQ_INSERT_TAIL(&shard->clients, client, entry);
	shard->client_count++;
	if (uv_poll_init(loop, &client->doorbell_poll, client->doorbell) != 0) {
		client_close(client);
		return 1;
	}
	client->open_handles = 2;
	uv_poll_start(&client->control_poll, UV_READABLE, on_control);
	uv_poll_start(&client->doorbell_poll, UV_READABLE, on_doorbell);
	shard->count.clients++;
	return 0;
}

static int
refuse_client(struct shard *shard, int fd)
{
	struct frame frame;

	frame_init(&frame, FRAME_ERROR, 0);
	frame.u.error.code = TG_ELIMIT;
	snprintf(frame.u.error.text, sizeof(frame.u.error.text),
	    "%u clients are attached: limits.clients allows no more", shard->client_count);
	frame_send(fd, &frame, NULL, 0);
	shard->count.refused++;
	close(fd);
	return -TG_ELIMIT;
}

int
client_new(struct shard *shard, uv_loop_t *loop, int fd)
{
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof(cred);

	if (shard->client_count >= shard->config->limits.clients)
		return refuse_client(shard, fd);
	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	int doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (doorbell < 0) {
		close(fd);
		return -TG_ELIMIT;
	}
	if (client_adopt(shard, loop, fd, doorbell, cred.pid, cred.uid, cred.gid, "") == NULL) {
		close(fd);
		close(doorbell);
		return -TG_ENOMEM;
	}
	return 0;
}

struct client *
client_adopt(struct shard *shard, uv_loop_t *loop, int fd, int doorbell, pid_t pid, uid_t uid, gid_t gid,
    const char *name)
{
	struct client *client = calloc(1, sizeof(*client));

	if (client == NULL)
		return NULL;
	client->shard = shard;
	client->fd = fd;
	client->doorbell = doorbell;
	client->pid = pid;
	client->uid = uid;
	client->gid = gid;
	snprintf(client->name, sizeof(client->name), "%.31s", name);
	if (client_start(client, loop) < 0) {
		free(client);
		return NULL;
	}
	return client;
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
	if (client->to_look > 0)
		TAILQ_REMOVE(&client->shard->looking, client, looking_entry);
	client->to_look = 0;
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

/* The bell: the reading end goes to the client, the writing end is ours alone. */
static int
make_bell(int bell[2])
{
	return pipe2(bell, O_CLOEXEC | O_NONBLOCK) == 0 ? 0 : -TG_ELIMIT;
}

static void
close_bell(int bell[2])
{
	close(bell[0]);
	close(bell[1]);
}

void
client_add_lane(struct client *client, struct lane *lane)
{
	TAILQ_INSERT_TAIL(&client->lanes, lane, client_entry);
	client->lane_count++;
	if (lane->kept)
		return; /* under the name it has */
	lane->owner = (struct lane_owner){ .uid = client->uid, .pid = client->pid };
	keeper_keep(client->shard->keeper, lane);
}

static int
refuse_lane(struct client *client, const struct frame *request, const char *pool, int rc)
{
	return refuse(client, request->serial, -rc, "lane for pool \"%s\": %s%s%s", pool,
	    rc == -TG_ELIMIT ? "no file descriptors left (LimitNOFILE)" : error_text(rc),
	    rc == -TG_ESYSTEM ? ": " : "", rc == -TG_ESYSTEM ? strerror(errno) : "");
}

static void
lane_frame(struct frame *frame, enum frame_type type, uint32_t serial, const struct lane *lane, uint32_t flags)
{
	frame_init(frame, type, serial);
	frame->u.lane.lane_id = lane->id;
	frame->u.lane.sq_bytes = lane->map.geo.sq_bytes;
	frame->u.lane.cq_entries = lane->map.geo.cq_entries;
	frame->u.lane.flags = flags;
}

static int
open_lane(struct client *client, const struct frame *request)
{
	struct shard *shard = client->shard;
	struct pool *pool = shard_pool(shard, request->u.open.pool);
	struct lane_header header = { .lane_id = shard->lane_ids + 1 };
	struct lane_geometry geo;
	struct lane *lane;
	struct frame frame;
	int bell[2], rc;

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
		return refuse_lane(client, request, pool->config->name, memfd);
	if ((rc = make_bell(bell)) != 0) {
		close(memfd);
		return refuse_lane(client, request, pool->config->name, rc);
	}
	if ((rc = lane_new(&lane, &header, pool, client, memfd, &geo, bell[1])) != 0) {
		close_bell(bell);
		close(memfd);
		return refuse_lane(client, request, pool->config->name, rc);
	}
	shard->lane_ids++;
	client_add_lane(client, lane);
	lane_frame(&frame, FRAME_LANE_OPENED, request->serial, lane, header.flags);
	int fds[] = { [FRAME_FD_MEMFD] = memfd, [FRAME_FD_DOORBELL] = client->doorbell, [FRAME_FD_BELL] = bell[0] };
	rc = answer(client, &frame, fds, 3);
	close(bell[0]);
	log_event(LOG_LEVEL_DEBUG, "lane_opened", "lane=%llu pool=%s pid=%d sq_bytes=%llu cq_entries=%u",
	    (unsigned long long)lane->id, pool->config->name, client_pid(client), (unsigned long long)geo.sq_bytes,
	    geo.cq_entries);
	return rc;
}

static int
answer_returned(struct client *client, const struct frame *request, const struct lane *lane, int bell)
{
	struct frame frame;
	int fds[] = { [FRAME_FD_RETURNED_DOORBELL] = client->doorbell, [FRAME_FD_RETURNED_BELL] = bell };

	client->shard->count.lanes_returned++;
	lane_frame(&frame, FRAME_LANE_RETURNED, request->serial, lane, client->shard->expedited ? LANE_F_EXPEDITED : 0);
	INJECT(returned_answer);
	int rc = answer(client, &frame, fds, 2);
	close(bell);
	log_event(LOG_LEVEL_INFO, "lane_returned", "lane=%llu pool=%s pid=%d unreleased=%llu unfinished=%u",
	    (unsigned long long)lane->id, lane->pool->config->name, client_pid(client),
	    (unsigned long long)(lane->sq.tail_seen - lane->sq.head), lane->unfinished);
	return rc;
}

/* One of our own whose client had lost its connection, or gave up waiting for our answer. */
static int
reclaim_lane(struct client *client, const struct frame *request, struct lane *lane)
{
	int bell[2], rc;

	if ((rc = make_bell(bell)) != 0)
		return refuse_lane(client, request, lane->pool->config->name, rc);
	lane_reclaim(lane, client, bell[1]);
	client_add_lane(client, lane);
	return answer_returned(client, request, lane, bell[0]);
}

/* A lane that another daemon served before us. */
static int
return_lane(struct client *client, const struct frame *request, int *handed)
{
	struct shard *shard = client->shard;
	struct lane_header header;
	struct lane_geometry geo;
	struct lane *lane;
	int memfd = *handed;
	int bell[2], rc;

	memcpy(client->name, request->u.open.name, sizeof(client->name));
	if (shard->stopping)
		return refuse(client, request->serial, TG_ESTOPPING, "%s", error_text(TG_ESTOPPING));
	if (memfd < 0)
		return refuse(client, request->serial, TG_EPROTOCOL, "a lane was handed back without its memory");
	if ((rc = lane_header_read(memfd, &header, &geo)) != 0)
		return refuse(client, request->serial, -rc, "a lane was handed back whose memory is none of ABI %u",
		    LANE_ABI);
	struct pool *pool = shard_pool(shard, header.pool);
	if (pool == NULL)
		return refuse_pool(client, request->serial, header.pool);
	struct lane *same = shard_lane_of(shard, header.nonce, memfd);
	if (same != NULL && same->client == NULL)
		return reclaim_lane(client, request, same);
	if (!within_limits(client, request, &geo, &rc))
		return rc;
	if (same != NULL)
		return refuse(client, request->serial, TG_EBUSY, "lane %llu was handed back twice",
		    (unsigned long long)same->id);
	header.lane_id = shard_lane_id(shard, header.lane_id);
	if ((rc = make_bell(bell)) != 0)
		return refuse_lane(client, request, pool->config->name, rc);
	if ((rc = lane_return(&lane, &header, pool, client, memfd, &geo, bell[1])) != 0) {
		close_bell(bell);
		return refuse_lane(client, request, pool->config->name, rc);
	}
	*handed = -1;
	client_add_lane(client, lane);
	return answer_returned(client, request, lane, bell[0]);
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
serve(struct client *client, const struct frame *frame, int fds[FRAME_FDS])
{
	switch (frame->type) {
	case FRAME_LANE_RETURN:
		return return_lane(client, frame, &fds[FRAME_FD_RETURN_MEMFD]);
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
		rc = frame_recv_from(client->fd, &frame, fds, stray_close);
		if (rc == 0) {
			rc = serve(client, &frame, fds);
			for (unsigned f = 0; f < FRAME_FDS; f++)
				if (fds[f] >= 0)
					stray_close(fds[f]);
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
	log_limited(&client->shard->gone_limit, rc == -TG_ECLOSED ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN, "client_gone",
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
	struct client *client = poll->data;
	uint64_t rings;
	struct iovec iov = { .iov_base = &rings, .iov_len = sizeof(rings) };

	loop_refresh_clock(client->shard);
	/* Taken before the lanes are looked at: a ring that comes while we look is not lost. Never blocks,
	 * even if the client has taken O_NONBLOCK off the description it shares with us, and emptied it. */
	if (preadv2(client->doorbell, &iov, 1, -1, RWF_NOWAIT) < 0)
		return;
	client->shard->count.doorbells++;
	if (client->to_look == 0)
		TAILQ_INSERT_TAIL(&client->shard->looking, client, looking_entry);
	client->to_look = client->asleep_count + 1;
	client_look(client);
}

void
client_look(struct client *client)
{
	for (uint32_t looks = 0; looks < LOOKS_A_TURN; looks++) {
		struct lane *lane = TAILQ_FIRST(&client->asleep);
		if (lane == NULL || --client->to_look == 0) {
			client->to_look = 0;
			TAILQ_REMOVE(&client->shard->looking, client, looking_entry);
			return;
		}
		if (lane_look(lane) == 0 && lane->place == LANE_ASLEEP) {
			TAILQ_REMOVE(&client->asleep, lane, place_entry);
			TAILQ_INSERT_TAIL(&client->asleep, lane, place_entry);
		}
	}
}
