#include "shard.h"

#include "check.h"
#include "pump.h"
#include "riders.h"

#include "daemon/base/log.h"
#include "daemon/front/stray.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* GCC's and clang's words for a build with AddressSanitizer or ThreadSanitizer. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define BUILT_WITH_CHECKS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BUILT_WITH_CHECKS 1
#endif
#endif
#ifndef BUILT_WITH_CHECKS
#define BUILT_WITH_CHECKS 0
#endif

#define OWN_DESCRIPTORS \
	160u /* the loop's, the log's, 64 of admins, certificates, look-ups, and some to spare */

/*
 * The barrier that membarrier raises for the publishers can miss one (wake.h): that publisher's store
 * becomes visible a moment later.
 */
static void
look_again(struct timer *timer)
{
	struct shard *shard = (struct shard *)(void *)((char *)timer - offsetof(struct shard, second_look));
	struct lane *lane;

	while ((lane = TAILQ_FIRST(&shard->doubted)) != NULL) {
		if (lane->dozed_ns + SHARD_SECOND_LOOK_NS > shard->now_ns) {
			timer_set(&shard->timers, timer, lane->dozed_ns + SHARD_SECOND_LOOK_NS);
			return;
		}
		lane_doze(lane, NULL);
		if (lane->place == LANE_ASLEEP)
			lane_look(lane);
	}
}

/*
 * Nothing waits for ever, whatever a kernel or a program does to a ring: now and then the sleepers are
 * looked at. One that had work the last time too, and has not been awake since, has overslept.
 */
static void
look_around(struct timer *timer)
{
	struct shard *shard = (struct shard *)(void *)((char *)timer - offsetof(struct shard, round));
	struct lane *lane, *next;

	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (lane = TAILQ_FIRST(&shard->pools[p].lanes); lane != NULL; lane = next) {
			next = TAILQ_NEXT(lane, pool_entry);
			if (lane->place != LANE_ASLEEP || lane->dozing != NULL ||
			    sq_consumer_refresh(&lane->sq) == 0)
				continue;
			if (lane->seen_asleep != lane->doze.count) {
				lane->seen_asleep = lane->doze.count;
				continue;
			}
			shard->count.lanes_overslept++;
			log_limited(&shard->overslept_limit, LOG_LEVEL_WARN, "lane_overslept",
			    "lane=%llu pool=%s pid=%d bytes=%llu", (unsigned long long)lane->id,
			    lane->pool->config->name, (int)lane->owner.pid,
			    (unsigned long long)(lane->sq.tail_seen - lane->sq.cursor));
			lane_look(lane);
		}
	timer_set(&shard->timers, timer, shard->now_ns + SHARD_ROUND_NS);
}

/*
 * The most descriptors that the daemon opens for itself: see account.h. A link has one descriptor, and one more
 * while it is replaced.
 */
static uint64_t
own_descriptors(const struct config *config)
{
	uint64_t links = 0;

	for (uint32_t p = 0; p < config->pool_count; p++)
		links += (uint64_t)config->pools[p].broker_count * config->pools[p].links;
	return 2 * links + OWN_DESCRIPTORS;
}

/*
 * A client that has had its time to say that it uses its lane's new answers is hung up on. One that hung up
 * before, and did not come back for its lane, has ended: its records are delivered.
 */
static void
end_late(struct timer *timer)
{
	struct shard *shard = (struct shard *)(void *)((char *)timer - offsetof(struct shard, late));
	struct client *late = NULL;
	struct lane *lane, *next;
	uint64_t at_ns = TIMER_NEVER;

	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (lane = TAILQ_FIRST(&shard->pools[p].lanes); lane != NULL; lane = next) {
			next = TAILQ_NEXT(lane, pool_entry);
			if (!lane->unready)
				continue;
			if (!lane_is_late(lane)) {
				if (lane->unready_ns + LANE_READY_MS * NS_PER_MS < at_ns)
					at_ns = lane->unready_ns + LANE_READY_MS * NS_PER_MS;
			} else if (lane->client == NULL) {
				lane_forsake(lane);
			} else {
				late = lane->client;
				at_ns = shard->now_ns;
			}
		}
	if (at_ns != TIMER_NEVER)
		timer_set(&shard->timers, timer, at_ns);
	if (late != NULL)
		shard->lane_events.late(late);
}

int
shard_init(struct shard *shard, struct world *world, const struct config *config)
{
	memset(shard, 0, sizeof(*shard));
	shard->world = world;
	shard->config = config;
	shard->now_ns = world_now(world);
	shard->wall_ms = world->ops->wall_ms(world);
	shard->started_ns = shard->now_ns;
	shard->start_random = world_random(world);
	shard->checking = BUILT_WITH_CHECKS;
	accounts_init(&shard->accounts, &config->limits, own_descriptors(config));
	TAILQ_INIT(&shard->active);
	TAILQ_INIT(&shard->dirty);
	TAILQ_INIT(&shard->dozed);
	TAILQ_INIT(&shard->doubted);
	shard->second_look.fire = look_again;
	shard->round.fire = look_around;
	shard->late.fire = end_late;
	TAILQ_INIT(&shard->graveyard);
	TAILQ_INIT(&shard->making);
	TAILQ_INIT(&shard->flush);
	TAILQ_INIT(&shard->serve);
	shard->expedited = wake_barrier() == 0;
	shard->read_buffer = malloc(DRIVER_INPUT_MAX + SHARD_READ_BYTES);
	shard->copy_buffer = malloc(3 * (size_t)UINT16_MAX);
	shard->pools = calloc(config->pool_count, sizeof(*shard->pools));
	if (shard->read_buffer == NULL || shard->copy_buffer == NULL || shard->pools == NULL ||
	    timers_reserve(&shard->timers) != 0 || timers_reserve(&shard->timers) != 0 ||
	    timers_reserve(&shard->timers) != 0)
		return -TG_ENOMEM;
	int rc = expiry_init(&shard->expiry, shard, lane_expire);
	if (rc != 0)
		return rc;
	for (; shard->pool_count < config->pool_count; shard->pool_count++) {
		struct pool *pool = &shard->pools[shard->pool_count];
		rc = pool_init(pool, shard, &config->pools[shard->pool_count], shard->pool_count);
		if (rc != 0) {
			pool_fini(pool);
			return rc;
		}
	}
	return 0;
}

static void
bury(struct shard *shard)
{
	while (!TAILQ_EMPTY(&shard->graveyard))
		lane_bury(TAILQ_FIRST(&shard->graveyard));
}

void
shard_fini(struct shard *shard)
{
	/* Lanes that are being made are some pool's afterwards. */
	if (shard->world != NULL)
		shard->world->ops->settle(shard->world);
	for (uint32_t i = 0; i < shard->pool_count; i++)
		pool_fini(&shard->pools[i]);
	while (!TAILQ_EMPTY(&shard->graveyard))
		lane_free(TAILQ_FIRST(&shard->graveyard));
	stray_leave(&shard->accounts);
	free(shard->pools);
	free(shard->read_buffer);
	free(shard->copy_buffer);
	timers_fini(&shard->timers);
	shard->pools = NULL;
	shard->pool_count = 0;
	shard->read_buffer = shard->copy_buffer = NULL;
}

void
shard_start(struct shard *shard)
{
	if (shard->expedited)
		timer_set(&shard->timers, &shard->round, shard->now_ns + SHARD_ROUND_NS);
	for (uint32_t i = 0; i < shard->pool_count; i++)
		pool_start(&shard->pools[i]);
}

void
shard_warm(struct shard *shard)
{
	for (uint32_t i = 0; i < shard->pool_count; i++)
		if (!link_kind_can_move(shard->pools[i].config))
			pool_warm(&shard->pools[i]);
}

int
shard_is_warm(const struct shard *shard)
{
	for (uint32_t i = 0; i < shard->pool_count; i++)
		if (!link_kind_can_move(shard->pools[i].config) && !pool_is_warm(&shard->pools[i]))
			return 0;
	return 1;
}

struct pool *
shard_pool(struct shard *shard, const char *name)
{
	for (uint32_t i = 0; i < shard->pool_count; i++)
		if (strcmp(shard->pools[i].config->name, name) == 0)
			return &shard->pools[i];
	return NULL;
}

struct lane *
shard_lane(const struct shard *shard, uint64_t id)
{
	struct lane *lane;

	for (uint32_t i = 0; i < shard->pool_count; i++)
		if ((lane = pool_lane(&shard->pools[i], id)) != NULL)
			return lane;
	TAILQ_FOREACH (lane, &shard->making, place_entry)
		if (lane->id == id)
			return lane;
	return NULL;
}

struct lane *
shard_lane_of(const struct shard *shard, uint64_t nonce, int ring)
{
	struct lane *lane;

	for (uint32_t i = 0; i < shard->pool_count; i++)
		TAILQ_FOREACH (lane, &shard->pools[i].lanes, pool_entry)
			if (lane->nonce == nonce && lane_is_memory(lane, ring))
				return lane;
	TAILQ_FOREACH (lane, &shard->making, place_entry)
		if (lane->nonce == nonce && lane->handed_back && lane_is_memory(lane, ring))
			return lane;
	return NULL;
}

uint64_t
shard_lane_id(struct shard *shard, uint64_t wish)
{
	if (wish == 0 || (wish > shard->lane_ids && wish - shard->lane_ids > SHARD_IDS_APART) ||
	    shard_lane(shard, wish) != NULL)
		wish = shard->lane_ids + 1;
	if (wish > shard->lane_ids)
		shard->lane_ids = wish;
	return wish;
}

/* ---- a turn ---- */

void
shard_refresh_clock(struct shard *shard)
{
	if (!shard->clock_is_stale)
		return;
	shard->now_ns = world_now(shard->world);
	shard->wall_ms = shard->world->ops->wall_ms(shard->world);
	shard->clock_is_stale = 0;
}

/*
 * Those that wait come first: they waited. And first of them those that wait for any link: each of them
 * goes to one link and waits there the next time, while the lanes of a saturated link fill its window
 * whenever it opens, and would keep lanes that have left a dead link out for as long as they like.
 */
static void
serve_waiters(struct shard *shard)
{
	struct link *last = TAILQ_LAST(&shard->serve, link_list);
	struct link *link;

	while (last != NULL && (link = TAILQ_FIRST(&shard->serve)) != NULL) {
		TAILQ_REMOVE(&shard->serve, link, serve_entry);
		link->serving = 0;
		pool_serve(pool_of(link->broker));
		riders_serve(link);
		if (link == last)
			break;
	}
}

/*
 * Drains active lanes, each within its share. One that has had nothing for spin_us, or is not worth the
 * watch (spin.h), leaves the polling. Returns whether any lane has more to give now.
 */
static int
pump_active(struct shard *shard)
{
	uint64_t spin_ns = shard->config->spin_us * NS_PER_US;
	struct lane *lane, *next;
	int more = 0;

	uint32_t budget = shard->active_count;
	for (lane = TAILQ_FIRST(&shard->active); lane != NULL && budget > 0; lane = next, budget--) {
		next = TAILQ_NEXT(lane, place_entry);
		switch (lane_pump(lane, SHARD_QUANTUM)) {
		case LANE_PUMP_MORE:
			spin_moved(&lane->spin);
			more = 1;
			break;
		case LANE_PUMP_MOVED:
			spin_moved(&lane->spin);
			break;
		case LANE_PUMP_IDLE:
			if (lane->client == NULL) {
				if (lane_is_empty(lane) && !lane->awaited)
					lane_finish_orphan(lane);
				else
					lane_rest(lane);
				break;
			}
			if (lane->active_ns == shard->now_ns)
				spin_moved(&lane->spin); /* it had something, and has no more */
			if (!spin_watches(&lane->spin) || shard->now_ns - lane->active_ns >= spin_ns) {
				spin_slept(&lane->spin);
				lane_sleep(lane);
			}
			break;
		}
	}
	return more;
}

/* Pair C, the daemon's side: the lanes have said that they sleep; after the fence each is looked at once more. */
static void
settle_dozed(struct shard *shard)
{
	struct lane *lane;
	uint64_t now_ns = 0;

	if (TAILQ_EMPTY(&shard->dozed))
		return;
	if (shard->expedited) {
		wake_barrier();
		now_ns = world_now(shard->world); /* the turn's may be long past */
	} else {
		order_fence_full(ORDER_C);
	}
	while ((lane = TAILQ_FIRST(&shard->dozed)) != NULL) {
		lane_doze(lane, NULL);
		lane_look(lane);
		if (lane->place != LANE_ASLEEP || !shard->expedited)
			continue;
		lane_doze(lane, &shard->doubted);
		lane->dozed_ns = now_ns;
		if (shard->second_look.place == 0)
			timer_set(&shard->timers, &shard->second_look, now_ns + SHARD_SECOND_LOOK_NS);
	}
}

static void
flush_links(struct shard *shard)
{
	struct link *link;

	while ((link = TAILQ_FIRST(&shard->flush)) != NULL) {
		TAILQ_REMOVE(&shard->flush, link, flush_entry);
		link->conn.flushing = 0;
		link_flush(link);
	}
}

/* Commit all, one fence for all (pair F), then ring who sleeps. */
static void
commit_lanes(struct shard *shard)
{
	struct lane *lane;

	if (TAILQ_EMPTY(&shard->dirty))
		return;
	TAILQ_FOREACH (lane, &shard->dirty, dirty_entry)
		lane_commit(lane);
	order_fence_full(ORDER_F);
	while ((lane = TAILQ_FIRST(&shard->dirty)) != NULL) {
		TAILQ_REMOVE(&shard->dirty, lane, dirty_entry);
		lane_ring(lane);
		lane_finish_orphan(lane);
	}
}

int
shard_turn(struct shard *shard)
{
	shard->count.turns++;
	int more = 0;
	if (!shard->paused) {
		if (shard->events.turn != NULL)
			shard->events.turn(shard->events.owner);
		serve_waiters(shard);
		more = pump_active(shard);
	}
	flush_links(shard);
	commit_lanes(shard);
	settle_dozed(shard);
	bury(shard);
	more |= shard->events.turned != NULL && shard->events.turned(shard->events.owner);
	if (shard->checking)
		shard_check(shard);
	return more || shard->active_count > 0 || !TAILQ_EMPTY(&shard->serve) || !TAILQ_EMPTY(&shard->dirty) ||
	       !TAILQ_EMPTY(&shard->flush);
}

/* ---- the end ---- */

int
shard_is_empty(const struct shard *shard)
{
	struct lane *lane;

	if (!TAILQ_EMPTY(&shard->making))
		return 0; /* one that comes back may hold something */
	if (!TAILQ_EMPTY(&shard->dirty))
		return 0; /* completions that the end of the turn has yet to commit: their clients would never see them */
	for (uint32_t i = 0; i < shard->pool_count; i++)
		TAILQ_FOREACH (lane, &shard->pools[i].lanes, pool_entry)
			if (!lane_is_empty(lane))
				return 0;
	return 1;
}

void
shard_farewell(struct shard *shard)
{
	struct link *link;

	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (uint32_t b = 0; b < shard->pools[p].peers.count; b++)
			for (uint32_t l = 0; (link = broker_link(&shard->pools[p].peers.list[b], l)) != NULL;
			     l++)
				link_farewell(link);
}

void
shard_drain_links(struct shard *shard)
{
	struct link *link;

	for (uint32_t p = 0; p < shard->pool_count; p++)
		for (uint32_t b = 0; b < shard->pools[p].peers.count; b++)
			for (uint32_t l = 0; (link = broker_link(&shard->pools[p].peers.list[b], l)) != NULL;
			     l++)
				link_drain(link);
	flush_links(shard);
}
