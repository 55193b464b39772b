/* Attaching a lane: ask for it, check everything that came, map it. */
#include "internal.h"

#include "clock.h"

#include <ck_pr.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void
lane_drop_memory(struct tg_lane *lane)
{
	lane_map_fini(&lane->map);
	fd_close(&lane->answers);
	fd_close(&lane->ring);
}

void
lane_free(struct tg_lane *lane)
{
	if (lane->link != NULL) {
		*lane->link = lane->next;
		if (lane->next != NULL)
			lane->next->link = lane->link;
	}
	lane_drop_memory(lane);
	fd_close(&lane->epoll);
	fd_close(&lane->self);
	fd_close(&lane->retry_timer);
	fd_close(&lane->bell);
	fd_close(&lane->doorbell);
	free(lane->marks);
	free(lane);
}

int
lane_broken(struct tg_lane *lane, const char *what)
{
	lane->fault = -TG_EBROKEN;
	lane->fault_why = what;
	return detail_fail(-TG_EBROKEN, "lane %" PRIu64 ": %s", lane->lane_id, what);
}

void
lane_set_fence(struct tg_lane *lane, uint32_t flags)
{
	ck_pr_store_int(&lane->full_fence, !(lane->client->registered && (flags & LANE_F_EXPEDITED) != 0));
}

int
lane_trouble(struct tg_lane *lane)
{
	if (lane == NULL)
		return detail_fail(-TG_EINVAL, "lane is NULL");
	if (fork_is_child(&lane->mark))
		return detail_fail(-TG_EFORKED, "lane %" PRIu64 ": %s", lane->lane_id, error_text(TG_EFORKED));
	if (ck_pr_load_int(&lane->refused) != 0) {
		lane->fault = ck_pr_load_int(&lane->refused);
		return detail_fail(lane->fault, "lane %" PRIu64 ": tidegated does not take it back: %s",
		    lane->lane_id, error_text(lane->fault));
	}
	if (lane->fault != 0)
		return lane_broken(lane, lane->fault_why);
	if (order_load_relaxed_32(lane->closed_word) != 0)
		return lane_broken(lane, "tidegated has closed it");
	return 0;
}

static int
open_check(const struct tg_client *client, const char *pool, const struct tg_lane_options *options)
{
	struct lane_geometry geo;

	if (client == NULL || pool == NULL)
		return detail_fail(-TG_EINVAL, "tg_lane_open: %s is NULL", client == NULL ? "client" : "pool");
	if (fork_is_child(&client->mark))
		return detail_fail(-TG_EFORKED, "socket %s: %s", client->path, error_text(TG_EFORKED));
	if (pool[0] == '\0' || strlen(pool) >= LANE_POOL_NAME)
		return detail_fail(-TG_EINVAL, "pool \"%.80s\": the name has %zu bytes, 1 to %u are possible",
		    pool, strlen(pool), LANE_POOL_NAME - 1);
	if (lane_geometry_make(&geo, options->ring_bytes, options->completions) != 0)
		return detail_fail(-TG_EINVAL,
		    "ring_bytes = %" PRIu64 ", completions = %u: at most %" PRIu64 " and %u",
		    options->ring_bytes, options->completions, LANE_SQ_MAX, LANE_CQ_MAX);
	return 0;
}

/* The cursors of a new lane: two empty rings. */
static int
cursors_init(struct tg_lane *lane)
{
	const struct lane_map *map = &lane->map;
	uint64_t tail = order_load_relaxed_64(&map->client->sq_tail);
	uint64_t done = order_load_relaxed_64(&map->client->cq_head);

	if (order_load_relaxed_64(&map->daemon->sq_head) != tail || (tail & 7) != 0 ||
	    order_load_relaxed_64(&map->daemon->cq_tail) != done)
		return lane_broken(lane, "a new lane's rings are not empty");
	sq_producer_init(&lane->sq, map, tail);
	lane->start = tail;
	cq_consumer_init(&lane->cq, map, done);
	lane->published = done;
	lane->closed_word = &map->daemon->closed;
	wake_ringer_init(&lane->doorbell_ringer, &map->daemon->asleep);
	wake_sleeper_init(&lane->sleeper, &map->client->waiting);
	lane->writable_seen = order_load_relaxed_32(&map->daemon->writable);
	return 0;
}

/*
 * They differ where client and daemon are in different time namespaces, as after CRIU has restored a
 * container. If the time was set, or the host slept, during the exchange, what is known stays.
 */
void
lane_set_clock(struct tg_lane *lane, int64_t ours, int64_t theirs)
{
	uint64_t moved = (uint64_t)frame_clock() - (uint64_t)ours, ahead = (uint64_t)theirs - (uint64_t)ours;

	if (moved + CLOCK_SAME_NS > 2 * CLOCK_SAME_NS)
		return;
	ck_pr_store_64(&lane->clock_ahead, ahead + CLOCK_SAME_NS > 2 * CLOCK_SAME_NS ? ahead : 0);
}

static int
memory_fail(int rc, const struct lane_geometry *geo)
{
	if (rc == -TG_ELIMIT)
		return detail_fail(rc, "this process has no descriptors left for a lane's memory");
	return detail_fail(rc, "a lane's memory of %" PRIu64 " bytes: %s", lane_memfd_bytes(geo),
	    rc == -TG_ESYSTEM ? strerror(errno) : error_text(rc));
}

static int
ring_make(struct tg_lane *lane, const struct lane_geometry *geo)
{
	if ((lane->ring = lane_ring_make(&lane->map, geo)) < 0)
		return memory_fail(lane->ring, geo);
	if ((lane->ring = fd_above_standard(lane->ring)) < 0)
		return memory_fail(-TG_ELIMIT, geo);
	lane->marks = calloc((geo->cq_entries + 63) / 64, sizeof(*lane->marks));
	return lane->marks != NULL ? 0 : memory_fail(-TG_ENOMEM, geo);
}

static void
ring_drop(struct tg_lane *lane)
{
	lane_map_fini(&lane->map);
	fd_close(&lane->ring);
	free(lane->marks);
	lane->marks = NULL;
}

/* Everything in the answer is checked against the memfd itself, and copied out of it once. */
static int
lane_attach(struct tg_lane *lane, const struct frame *answer)
{
	struct lane_header header;
	struct lane_geometry geo;
	int rc;

	lane->lane_id = answer->u.lane.lane_id;
	if (lane->answers < 0 || lane->doorbell < 0 || lane->bell < 0)
		return detail_fail(-TG_EPROTOCOL,
		    "lane %" PRIu64 ": a descriptor is missing in tidegated's answer", lane->lane_id);
	if ((rc = lane_header_read(lane->answers, &header, &geo)) != 0)
		return detail_fail(
		    rc, "lane %" PRIu64 ": its memory is not a lane of ABI %u", lane->lane_id, LANE_ABI);
	if (header.lane_id != lane->lane_id || geo.sq_bytes != answer->u.lane.sq_bytes ||
	    geo.cq_entries != answer->u.lane.cq_entries || geo.sq_bytes != lane->map.geo.sq_bytes ||
	    geo.cq_entries != lane->map.geo.cq_entries)
		return detail_fail(-TG_EBROKEN,
		    "lane %" PRIu64 ": its header says lane %" PRIu64 ", %" PRIu64
		    " bytes and %u completions, the answer %" PRIu64 " and %u",
		    lane->lane_id, header.lane_id, geo.sq_bytes, geo.cq_entries, answer->u.lane.sq_bytes,
		    answer->u.lane.cq_entries);
	if (header.max_record < sizeof(struct record) || header.max_record > geo.sq_bytes)
		return detail_fail(-TG_EBROKEN,
		    "lane %" PRIu64 ": records of %u bytes at most do not go with a ring of %" PRIu64,
		    lane->lane_id, header.max_record, geo.sq_bytes);
	if ((rc = lane_map_answers(&lane->map, lane->answers, LANE_READ, geo.sq_bytes <= LANE_POPULATE_MAX)) !=
	    0)
		return memory_fail(rc, &geo);
	lane->nonce = header.nonce;
	lane->max_record = header.max_record;
	lane_set_fence(lane, header.flags);
	return cursors_init(lane);
}

/* Asks for a lane with a ring of so many bytes. *most: the largest that the daemon would take, if that is why it refuses. */
static int
lane_ask(struct tg_lane *lane, const char *pool, uint64_t ring_bytes, uint32_t completions, uint32_t *most)
{
	struct tg_client *client = lane->client;
	struct frame request, answer;
	struct lane_geometry geo;
	int fds[FRAME_FDS];
	int64_t clock;
	int rc;

	*most = 0;
	lane_geometry_make(&geo, ring_bytes, completions); /* which was checked */
	if ((rc = ring_make(lane, &geo)) != 0)
		return rc;
	frame_init(&request, FRAME_LANE_OPEN, 0);
	request.u.open.sq_bytes = geo.sq_bytes;
	request.u.open.cq_entries = geo.cq_entries;
	memcpy(request.u.open.pool, pool, strlen(pool));
	memcpy(request.u.open.name, client->name, sizeof(client->name));
	clock = frame_clock();
	if ((rc = control_request_fds(client, &request, &lane->ring, 1, &answer, FRAME_LANE_OPENED, fds)) !=
	    0) {
		if (rc == -TG_ELIMIT && answer.type == FRAME_ERROR)
			*most = answer.u.error.ring_bytes;
		return rc;
	}
	lane->answers = fds[FRAME_FD_ANSWERS];
	lane->doorbell = fds[FRAME_FD_DOORBELL];
	lane->bell = fds[FRAME_FD_BELL];
	lane->timeout_ms = answer.u.lane.timeout_ms;
	lane_set_clock(lane, clock, answer.u.lane.clock_ns);
	if ((rc = lane_attach(lane, &answer)) == 0)
		return 0;
	/* The daemon believes that we have it; its answer will be skipped as a late one. */
	frame_init(&request, FRAME_LANE_CLOSE, ++client->serial);
	request.u.lane.lane_id = lane->lane_id;
	(void)frame_send(client->fd, &request, NULL, 0);
	return rc;
}

static int
lane_request(struct tg_lane *lane, const char *pool, const struct tg_lane_options *options)
{
	uint32_t most;
	int rc = lane_ask(lane, pool, options->ring_bytes, options->completions, &most);

	/* A ring that is left to us is as large as it may be. */
	if (rc == -TG_ELIMIT && options->ring_bytes == 0 && most >= LANE_SQ_MIN &&
	    most < lane->map.geo.sq_bytes) {
		ring_drop(lane);
		rc = lane_ask(lane, pool, most, options->completions, &most);
	}
	return rc;
}

int
tg_lane_open(
    struct tg_client *client, struct tg_lane **out, const char *pool, const struct tg_lane_options *options)
{
	static const struct tg_lane_options defaults;
	struct tg_lane *lane;
	int rc;

	if (out == NULL)
		return detail_fail(-TG_EINVAL, "tg_lane_open: lane is NULL");
	*out = NULL;
	if (options == NULL)
		options = &defaults;
	if ((rc = open_check(client, pool, options)) != 0)
		return rc;
	/* Lanes of different threads must not share a cache line. */
	lane = aligned_alloc(128, (sizeof(*lane) + 127) & ~(size_t)127);
	if (lane == NULL)
		return detail_fail(-TG_ENOMEM, "no memory for a lane (%zu bytes)", sizeof(*lane));
	memset(lane, 0, sizeof(*lane));
	lane->ring = lane->answers = lane->doorbell = lane->bell = lane->epoll = lane->self =
	    lane->retry_timer = -1;
	lane->client = client;
	lane->mark = client->mark;
	lane->spin_ns = options->spin_us == UINT32_MAX         ? 0
			: options->spin_us > UINT32_MAX / 1000 ? UINT32_MAX
							       : options->spin_us * 1000;
	if (options->spin_us == 0)
		lane->spin_ns = LANE_SPIN_US * 1000;
	client_lock(client);
	if ((rc = lane_request(lane, pool, options)) == -TG_ECLOSED) {
		/* It may have been restarted: one attempt more, with the lanes there are handed back. */
		client_lose(client, client_generation(client));
		ring_drop(lane);
		rc = client_mend_held(client) == 0 ? lane_request(lane, pool, options) : -TG_ENODAEMON;
	}
	if (rc != 0) {
		int saved = errno;

		lane_free(lane);
		client_unlock(client);
		errno = saved;
		return rc;
	}
	lane->generation = client_generation(client);
	lane->next = client->lanes;
	if (lane->next != NULL)
		lane->next->link = &lane->next;
	lane->link = &client->lanes;
	client->lanes = lane;
	client_unlock(client);
	*out = lane;
	return 0;
}

int
tg_lane_info(struct tg_lane *lane, struct tg_lane_info *info)
{
	int rc = lane_trouble(lane);
	uint64_t lost_ns, now;

	if (rc < 0)
		return rc;
	if (info == NULL)
		return detail_fail(-TG_EINVAL, "lane %" PRIu64 ": info is NULL", lane->lane_id);
	lane_notice(lane);
	*info = (struct tg_lane_info){
		.lane_id = ck_pr_load_64(&lane->lane_id),
		.ring_bytes = lane->sq.mask + 1,
		.record_bytes = lane->max_record,
		.completions = (uint32_t)(lane->cq.mask + 1),
		.timeout_ms = ck_pr_load_32(&lane->timeout_ms),
	};
	if (client_is_lost(lane->client)) {
		lost_ns = ck_pr_load_64(&lane->client->lost_ns);
		now = clock_now_ns();
		info->away_ms = 1 + (now > lost_ns ? now - lost_ns : 0) / 1000000;
	}
	return 0;
}
