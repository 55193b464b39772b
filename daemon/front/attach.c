#include "attach.h"

#include "client.h"
#include "front.h"
#include "daemon/base/inject.h"
#include "daemon/base/log.h"
#include "daemon/flow/blame.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"
#include "stray.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* A lane on its way. */
struct attach {
	struct control *control;
	struct world_job job;
	struct client *client; /* NULL: it has hung up */
	struct lane *lane;
	struct lane_header header;
	uint64_t now_ns;
	uint64_t bytes;
	uint64_t took_ns;
	uint32_t serial;
	int returned;    /* LANE_RETURN */
	int old_answers; /* its; -1: none */
	int bell;        /* the client's end */
	int rc;
	int error; /* errno, of -TG_ESYSTEM */
};

/* ---- refusals ---- */

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
	return client_refuse(
	    client, serial, TG_ENOPOOL, "pool \"%s\" does not exist; there are: %s", name, names);
}

/* The largest ring that a lane may have at all. */
static uint32_t
largest_ring(const struct config_limits *limits)
{
	struct lane_geometry geo = { .sq_bytes = LANE_SQ_MAX };

	for (; geo.sq_bytes > LANE_SQ_MIN; geo.sq_bytes /= 2) {
		lane_geometry_make(&geo, geo.sq_bytes, 0);
		if (geo.sq_bytes <= limits->ring_bytes && lane_cost_bytes(&geo) <= limits->memory_bytes)
			break;
	}
	return (uint32_t)geo.sq_bytes;
}

/* Says which would do: a client that leaves the size to us asks for that. */
static int
refuse_ring(struct client *client, uint32_t serial, const struct lane_geometry *geo)
{
	const struct config_limits *limits = &client->shard->config->limits;
	struct frame frame;

	frame_init(&frame, FRAME_ERROR, serial);
	frame.u.error.code = TG_ELIMIT;
	frame.u.error.ring_bytes = largest_ring(limits);
	if (geo->sq_bytes > limits->ring_bytes)
		snprintf(frame.u.error.text, sizeof(frame.u.error.text),
		    "a ring of %llu bytes is too large: limits.ring_bytes is %llu",
		    (unsigned long long)geo->sq_bytes, (unsigned long long)limits->ring_bytes);
	else
		snprintf(frame.u.error.text, sizeof(frame.u.error.text),
		    "a lane of %llu bytes is too large: limits.memory_bytes is %llu",
		    (unsigned long long)lane_cost_bytes(geo), (unsigned long long)limits->memory_bytes);
	client->shard->count.refused++;
	return client_answer(client, &frame, NULL, 0);
}

/*
 * Which configured limit a lane of this geometry would break; 0 and *rc set if one did. returned: it is handed back.
 * It holds records that were accepted, so a limit that is lower than before is not held against it, see account.h.
 */
static int
within_limits(
    struct client *client, const struct frame *request, const struct lane_geometry *geo, int returned, int *rc)
{
	struct account *account = client->account;
	const struct config_limits *limits = &client->shard->config->limits;
	uint32_t serial = request->serial;
	struct account_no no;

	if (!returned && (geo->sq_bytes > limits->ring_bytes || lane_cost_bytes(geo) > limits->memory_bytes))
		*rc = refuse_ring(client, serial, geo);
	else if (!returned && client->lane_count >= limits->lanes_per_client)
		*rc = client_refuse(client, serial, TG_ELIMIT,
		    "process %d has %u lanes open: limits.lanes_per_client is %u", client_pid(client),
		    client->lane_count, limits->lanes_per_client);
	else if (!account_may(account, ACCOUNT_LANES, 1, returned, &no) ||
		 (!returned && !account_may(account, ACCOUNT_ORPHANS, 1, 0, &no)) ||
		 !account_may(account, ACCOUNT_MEMORY, lane_cost_bytes(geo), returned, &no) ||
		 !account_may(account, ACCOUNT_DESCRIPTORS, LANE_DESCRIPTORS, returned, &no))
		*rc = client_refuse_limit(client, serial, &no);
	else
		return 1;
	return 0;
}

static int
refuse_lane(struct client *client, uint32_t serial, const char *pool, uint64_t bytes, int rc)
{
	int error = errno;
	struct rlimit limit = { .rlim_cur = 0 };

	if (rc == -TG_ELIMIT) {
		getrlimit(RLIMIT_NOFILE, &limit);
		return client_refuse(client, serial, TG_ELIMIT,
		    "lane for pool \"%s\": the daemon has no file descriptors left: its limit (LimitNOFILE=) is %llu",
		    pool, (unsigned long long)limit.rlim_cur);
	}
	if (rc == -TG_ESYSTEM && error == EFBIG && getrlimit(RLIMIT_FSIZE, &limit) == 0)
		return client_refuse(client, serial, TG_ELIMIT,
		    "lane of %llu bytes for pool \"%s\": the daemon's limit of a file's size (RLIMIT_FSIZE, LimitFSIZE=) is %llu",
		    (unsigned long long)bytes, pool, (unsigned long long)limit.rlim_cur);
	if (rc == -TG_ESYSTEM && error == ENOENT)
		return client_refuse(client, serial, TG_ESYSTEM,
		    "lane of %llu bytes for pool \"%s\": the daemon sees no /proc, by which it gives answers for reading alone",
		    (unsigned long long)bytes, pool);
	return client_refuse(client, serial, -rc, "lane of %llu bytes for pool \"%s\": %s%s%s",
	    (unsigned long long)bytes, pool, error_text(rc), rc == -TG_ESYSTEM ? ": " : "",
	    rc == -TG_ESYSTEM ? strerror(error) : "");
}

/* ---- a lane on its way ---- */

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

static void
lane_frame(struct frame *frame, enum frame_type type, uint32_t serial, const struct lane *lane, uint32_t flags)
{
	frame_init(frame, type, serial);
	frame->u.lane.lane_id = lane->id;
	frame->u.lane.sq_bytes = lane->map.geo.sq_bytes;
	frame->u.lane.cq_entries = lane->map.geo.cq_entries;
	frame->u.lane.flags = flags;
	frame->u.lane.timeout_ms = lane->pool->config->message_timeout_ms;
	frame->u.lane.clock_ns = frame_clock();
}

/*
 * Answers with the lane's answers, doorbell and bell. Takes the bell. Without a descriptor for the client it has no
 * lane: one that came back is handed back again.
 */
static int
answer_lane(struct client *client, const struct frame *frame, struct lane *lane, int bell)
{
	int answers = lane_share(lane);
	int fds[] = {
		[FRAME_FD_ANSWERS] = answers, [FRAME_FD_DOORBELL] = client->doorbell, [FRAME_FD_BELL] = bell
	};
	int rc, error = errno;

	if (answers >= 0) {
		rc = client_answer(client, frame, fds, 3);
		close(answers);
		close(bell);
		return rc;
	}
	close(bell);
	lane_orphan(lane);
	errno = error;
	return refuse_lane(
	    client, frame->serial, lane->pool->config->name, lane_memfd_bytes(&lane->map.geo), answers);
}

static int
answer_returned(struct client *client, uint32_t serial, struct lane *lane, int bell)
{
	struct frame frame;

	client->shard->count.lanes_returned++;
	lane_frame(&frame, FRAME_LANE_RETURNED, serial, lane, client->shard->expedited ? LANE_F_EXPEDITED : 0);
	INJECT(returned_answer);
	int rc = answer_lane(client, &frame, lane, bell);
	log_event(LOG_LEVEL_INFO, "lane_returned", "lane=%llu pool=%s pid=%d unreleased=%llu unfinished=%u",
	    (unsigned long long)lane->id, lane->pool->config->name, client_pid(client),
	    (unsigned long long)(lane->sq.tail_seen - lane->sq.head), lane->unfinished);
	return rc;
}

static int
answer_opened(struct client *client, uint32_t serial, struct lane *lane, int bell, uint32_t flags)
{
	struct frame frame;

	lane_frame(&frame, FRAME_LANE_OPENED, serial, lane, flags);
	int rc = answer_lane(client, &frame, lane, bell);
	log_event(LOG_LEVEL_DEBUG, "lane_opened", "lane=%llu pool=%s pid=%d sq_bytes=%llu cq_entries=%u",
	    (unsigned long long)lane->id, lane->pool->config->name, client_pid(client),
	    (unsigned long long)lane->map.geo.sq_bytes, lane->map.geo.cq_entries);
	return rc;
}

static struct attach *
attach_of(struct world_job *job)
{
	return (struct attach *)(void *)((char *)job - offsetof(struct attach, job));
}

/* What takes long. */
static void
run(struct world_job *job)
{
	struct attach *attach = attach_of(job);
	struct world *world = attach->lane->shard->world; /* whose clock anybody may read */
	uint64_t began = world_now(world);

	attach->rc = lane_map_in(attach->lane, &attach->header);
	if (attach->rc == 0 && attach->returned)
		attach->rc = lane_rebuild(attach->lane, attach->now_ns);
	attach->error = errno;
	attach->took_ns = world_now(world) - began;
}

/* It did not come to be. */
static int
fail(struct attach *attach)
{
	struct lane *lane = attach->lane;
	struct client *client = attach->client;
	const char *pool = lane->pool->config->name;

	close(attach->bell);
	close(lane->bell);
	stray_close(lane->ring, lane->account);
	lane_unmake(lane);
	errno = attach->error;
	if (client != NULL && attach->rc == -TG_EBROKEN && !attach->returned)
		return client_refuse(client, attach->serial, TG_EBROKEN,
		    "the ring that came for the lane is not a memfd of its size that is sealed (F_SEAL_FUTURE_WRITE) and has no holes");
	return client != NULL ? refuse_lane(client, attach->serial, pool, attach->bytes, attach->rc) : 0;
}

/* Puts the lane to work and answers. Returns as attach_open. */
static int
finish(struct attach *attach)
{
	struct client *client = attach->client;
	struct lane *lane = attach->lane;

	if (attach->old_answers >= 0)
		stray_close(attach->old_answers, lane->account);
	if (attach->rc != 0)
		return fail(attach);
	lane->client = client;
	blame_begin(lane);
	if (attach->returned)
		lane_resume(lane);
	else
		lane_begin(lane);
	if (client == NULL) {
		close(attach->bell);
		if (attach->returned)
			lane_keep(lane);
		lane_orphan(lane);
		return 0;
	}
	client_add_lane(client, lane);
	if (attach->returned)
		return answer_returned(client, attach->serial, lane, attach->bell);
	return answer_opened(client, attach->serial, lane, attach->bell, attach->header.flags);
}

static void
on_done(struct world_job *job)
{
	struct attach *attach = attach_of(job);
	struct client *client = attach->client;
	uint64_t began = 0;

	control_charge(attach->control, attach->took_ns);
	if (client != NULL) {
		client_set_attach(client, NULL);
		began = control_begin(&client->front->control);
	}
	int rc = finish(attach);
	free(attach);
	if (client == NULL)
		return;
	control_end(&client->front->control, began);
	if (rc != 0)
		client_end(client, rc);
	else
		client_watch(client);
}

void
attach_abandon(struct attach *attach)
{
	attach->client = NULL;
	attach->lane->client = NULL;
}

/*
 * Begins: the lane counts from now on. fds: the ring and, of one that comes back, the old answers; those that
 * were taken are -1. Returns as attach_open.
 */
static int
begin(struct client *client, uint32_t serial, const struct lane_header *header, struct pool *pool,
    const struct lane_geometry *geo, int *fds)
{
	struct shard *shard = client->shard;
	struct attach *attach = calloc(1, sizeof(*attach));
	struct lane *lane;
	int bell[2];
	int rc = -TG_ENOMEM;

	if (attach == NULL)
		return refuse_lane(client, serial, pool->config->name, lane_memfd_bytes(geo), rc);
	if ((rc = make_bell(bell)) != 0)
		goto fail;
	const struct lane_memory memory = { .geo = *geo,
		.ring = fds[FRAME_FD_RING],
		.answers = -1,
		.old_answers = fds[FRAME_FD_OLD_ANSWERS],
		.bell = bell[1] };
	if ((rc = lane_make(&lane, header, pool, client, &memory)) != 0)
		goto fail_bell;
	fds[FRAME_FD_RING] = fds[FRAME_FD_OLD_ANSWERS] = -1;
	lane_own(lane, &(struct lane_owner){
			   .uid = client->uid, .pid = client->pid }); /* who may be gone when it is made */
	*attach = (struct attach){ .job = { .queue = WORLD_JOB_MAKE, .run = run, .done = on_done },
		.control = &client->front->control,
		.client = client,
		.lane = lane,
		.header = *header,
		.now_ns = shard->now_ns,
		.bytes = lane_memfd_bytes(geo),
		.serial = serial,
		.returned = memory.old_answers >= 0,
		.old_answers = memory.old_answers,
		.bell = bell[0] };
	if (attach->returned || lane_memfd_bytes(geo) > LANE_INLINE_BYTES) {
		client_set_attach(client, attach);
		client_watch(client);
		shard->world->ops->work(shard->world, &attach->job);
		return 0;
	}
	run(&attach->job);
	rc = finish(attach);
	free(attach);
	return rc;
fail_bell:
	close_bell(bell);
fail:
	free(attach);
	return refuse_lane(client, serial, pool->config->name, lane_memfd_bytes(geo), rc);
}

/* ---- requests ---- */

int
attach_open(struct client *client, const struct frame *request, int *fds)
{
	struct shard *shard = client->shard;
	struct pool *pool = shard_pool(shard, request->u.open.pool);
	struct lane_header header = { .lane_id = shard->lane_ids + 1 };
	struct lane_geometry geo;
	int rc;

	memcpy(client->name, request->u.open.name, sizeof(client->name));
	if (shard->stopping)
		return client_refuse(client, request->serial, TG_ESTOPPING, "%s", error_text(TG_ESTOPPING));
	if (pool == NULL)
		return refuse_pool(client, request->serial, request->u.open.pool);
	if (lane_geometry_make(&geo, request->u.open.sq_bytes, request->u.open.cq_entries) != 0)
		return client_refuse(client, request->serial, TG_EINVAL,
		    "a lane of %llu bytes and %u completions: at most %llu and %u are possible",
		    (unsigned long long)request->u.open.sq_bytes, request->u.open.cq_entries,
		    (unsigned long long)LANE_SQ_MAX, LANE_CQ_MAX);
	if (!within_limits(client, request, &geo, 0, &rc))
		return rc;
	if (fds[FRAME_FD_RING] < 0)
		return client_refuse(
		    client, request->serial, TG_EPROTOCOL, "a lane is to be opened without its ring");
	header.flags = shard->expedited ? LANE_F_EXPEDITED : 0;
	header.nonce = world_random(shard->world);
	world_secret(shard->world, header.secret, sizeof(header.secret));
	snprintf(header.pool, sizeof(header.pool), "%s", pool->config->name);
	shard->lane_ids++;
	return begin(client, request->serial, &header, pool, &geo, fds);
}

/* One of our own whose client had lost its connection, or gave up waiting for our answer. */
static int
reclaim_lane(struct client *client, const struct frame *request, struct lane *lane)
{
	int bell[2], rc;

	if ((rc = make_bell(bell)) != 0)
		return refuse_lane(
		    client, request->serial, lane->pool->config->name, lane_memfd_bytes(&lane->map.geo), rc);
	lane_reclaim(lane, client, bell[1]);
	client_add_lane(client, lane);
	return answer_returned(client, request->serial, lane, bell[0]);
}

/* A lane that another daemon served before us. */
int
attach_return(struct client *client, const struct frame *request, int *fds)
{
	struct shard *shard = client->shard;
	struct lane_header header;
	struct lane_geometry geo;
	int ring = fds[FRAME_FD_RING];
	int rc;

	memcpy(client->name, request->u.open.name, sizeof(client->name));
	if (shard->stopping)
		return client_refuse(client, request->serial, TG_ESTOPPING, "%s", error_text(TG_ESTOPPING));
	if (ring < 0 || fds[FRAME_FD_OLD_ANSWERS] < 0)
		return client_refuse(
		    client, request->serial, TG_EPROTOCOL, "a lane was handed back without its memory");
	if ((rc = lane_header_read(fds[FRAME_FD_OLD_ANSWERS], &header, &geo)) != 0)
		return client_refuse(client, request->serial, -rc,
		    "a lane was handed back whose memory is none of ABI %u", LANE_ABI);
	struct pool *pool = shard_pool(shard, header.pool);
	if (pool == NULL)
		return refuse_pool(client, request->serial, header.pool);
	struct lane *same = shard_lane_of(shard, header.nonce, ring);
	int served = same != NULL && same->place != LANE_GONE; /* and not one on its way */
	if (served && same->client == NULL)
		return reclaim_lane(client, request, same);
	if (!within_limits(client, request, &geo, 1, &rc))
		return rc;
	if (same != NULL)
		return client_refuse(client, request->serial, TG_EBUSY,
		    "lane %llu is being taken back, or was already", (unsigned long long)same->id);
	header.lane_id = shard_lane_id(shard, header.lane_id);
	header.flags = shard->expedited ? LANE_F_EXPEDITED : 0;
	return begin(client, request->serial, &header, pool, &geo, fds);
}
