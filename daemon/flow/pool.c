#include "pool.h"

#include "daemon/lane/lane.h"
#include "daemon/base/log.h"
#include "pump.h"
#include "riders.h"
#include "shard.h"
#include "shm/error.h"
#include "daemon/link/tls.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SHOW_MS 10u /* unwritable for this long: more than a full window's pause */
#define SPREAD_EVERY_MS 250u
#define SPREAD_LANES 64u  /* that are moved at a time, at most */
#define CREDIT_PICKS 1024 /* how far a ready broker that cannot write may fall behind its share */

static void on_tick(struct timer *timer);
static const struct link_events link_events;

/* ---- life ---- */

int
pool_init(struct pool *pool, struct shard *shard, const struct config_pool *config, uint32_t index)
{
	int rc;

	memset(pool, 0, sizeof(*pool));
	pool->shard = shard;
	pool->config = config;
	pool->index = index;
	pool->peers = (struct peers){ .shard = shard, .config = config, .events = &link_events };
	pool->tick.fire = on_tick;
	pool->unwritable_ns = shard->now_ns;
	TAILQ_INIT(&pool->waiters);
	TAILQ_INIT(&pool->lanes);
	pool->peers.list = calloc(config->broker_count, sizeof(*pool->peers.list));
	if (pool->peers.list == NULL || timers_reserve(&shard->timers) != 0)
		return -TG_ENOMEM;
	rc = peers_load_tls(&pool->peers);
	if (rc != 0)
		return rc;
	for (; pool->peers.count < config->broker_count; pool->peers.count++) {
		struct broker *broker = &pool->peers.list[pool->peers.count];
		rc = broker_init(broker, &pool->peers, &config->brokers[pool->peers.count]);
		if (rc != 0) {
			broker_fini(broker);
			return rc;
		}
	}
	return 0;
}

void
pool_fini(struct pool *pool)
{
	if (pool->peers.list == NULL)
		return;
	for (uint32_t i = 0; i < pool->peers.count; i++)
		broker_fini(&pool->peers.list[i]);
	while (!TAILQ_EMPTY(&pool->lanes))
		lane_free(TAILQ_FIRST(&pool->lanes));
	timer_stop(&pool->shard->timers, &pool->tick);
	timers_unreserve(&pool->shard->timers);
	free(pool->peers.list);
	tls_context_free(pool->peers.tls);
	pool->peers.list = NULL;
	pool->peers.tls = NULL;
}

void
pool_start(struct pool *pool)
{
	for (uint32_t i = 0; i < pool->peers.count; i++)
		broker_start(&pool->peers.list[i]);
}

void
pool_warm(struct pool *pool)
{
	struct shard *shard = pool->shard;

	for (uint32_t b = 0; b < pool->peers.count; b++)
		for (uint32_t l = 0; l < pool->peers.list[b].link_count; l++)
			timer_set(&shard->timers, &pool->peers.list[b].links[l].timer, shard->now_ns);
}

int
pool_is_warm(const struct pool *pool)
{
	for (uint32_t b = 0; b < pool->peers.count; b++)
		for (uint32_t l = 0; l < pool->peers.list[b].link_count; l++) {
			const struct link *link = &pool->peers.list[b].links[l];
			if (!link_is_ready(link) && link->count.failures == 0)
				return 0;
		}
	return 1;
}

struct lane *
pool_lane(struct pool *pool, uint64_t id)
{
	struct lane *lane;

	TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
		if (lane->id == id)
			return lane;
	return NULL;
}

/* ---- balance ---- */

/* Whether balance lets this broker take part now. */
static int
is_eligible(const struct pool *pool, const struct broker *broker)
{
	if (pool->config->balance == BALANCE_PRIORITY && broker->config->priority != pool->preferred)
		return 0;
	return broker_is_ready(broker);
}

/*
 * Smooth weighted choice: every eligible broker earns its weight each time, the chosen one pays
 * what all have earned. A ready broker that cannot write for a moment keeps its credit and catches
 * up; past CREDIT_PICKS it earns nothing, or it would be owed everything by those that carry its load.
 */
static struct link *
pick_weighted(struct pool *pool)
{
	int64_t earns[CONFIG_BROKERS];
	struct broker *best = NULL;
	struct link *best_link = NULL;
	int64_t best_credit = 0, total = 0;

	for (uint32_t i = 0; i < pool->peers.count; i++) {
		struct broker *broker = &pool->peers.list[i];
		earns[i] = 0;
		if (!is_eligible(pool, broker)) {
			broker->credit = 0;
			continue;
		}
		int64_t weight = (int64_t)broker_weight(broker, pool->shard->now_ns);
		if (broker->credit < weight * CREDIT_PICKS)
			earns[i] = weight;
		total += earns[i];
		if (best == NULL || broker->credit + earns[i] > best_credit) {
			struct link *link = broker_pick_link(broker);
			if (link != NULL) {
				best = broker;
				best_link = link;
				best_credit = broker->credit + earns[i];
			}
		}
	}
	if (best == NULL)
		return NULL; /* no broker was chosen, so none earns credit */
	for (uint32_t i = 0; i < pool->peers.count; i++)
		pool->peers.list[i].credit += earns[i];
	best->credit -= total != 0 ? total : (int64_t)broker_weight(best, pool->shard->now_ns);
	return best_link;
}

static uint64_t
outstanding_bytes(const struct broker *broker)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < broker->link_count; i++)
		sum += broker->links[i].outstanding_bytes;
	return sum;
}

/* Two at random, the one with less outstanding: no herd runs to the momentarily idlest. */
static struct link *
pick_least(struct pool *pool)
{
	struct link *links[2] = { NULL, NULL };
	uint32_t eligible = 0;

	for (uint32_t i = 0; i < pool->peers.count; i++)
		eligible +=
		    is_eligible(pool, &pool->peers.list[i]) && broker_pick_link(&pool->peers.list[i]) != NULL;
	if (eligible == 0)
		return NULL;
	uint32_t first = (uint32_t)world_between(pool->shard->world, 0, eligible - 1);
	uint32_t second = eligible == 1 ? 0 : (uint32_t)world_between(pool->shard->world, 0, eligible - 2);
	if (eligible > 1 && second >= first)
		second++;
	for (uint32_t i = 0, n = 0; i < pool->peers.count; i++) {
		struct link *link =
		    is_eligible(pool, &pool->peers.list[i]) ? broker_pick_link(&pool->peers.list[i]) : NULL;
		if (link == NULL)
			continue;
		if (n == first)
			links[0] = link;
		if (n == second)
			links[1] = link;
		n++;
	}
	return outstanding_bytes(links[0]->broker) <= outstanding_bytes(links[1]->broker) ? links[0] : links[1];
}

/* FNV-1a with a finaliser: the same key goes to the same broker from every host. */
static uint64_t
hash(const uint8_t *bytes, size_t len, uint64_t seed)
{
	uint64_t h = UINT64_C(14695981039346656037) ^ seed;

	for (size_t i = 0; i < len; i++)
		h = (h ^ bytes[i]) * UINT64_C(1099511628211);
	h ^= h >> 33;
	h *= UINT64_C(0xff51afd7ed558ccd);
	return h ^ h >> 33;
}

/* Rendezvous: each ready broker draws for the key, the highest weighted draw has it. */
static struct link *
pick_key(struct pool *pool, const uint8_t *key, uint32_t key_len)
{
	struct broker *best = NULL;
	double best_score = 0;

	for (uint32_t i = 0; i < pool->peers.count; i++) {
		struct broker *broker = &pool->peers.list[i];
		const char *name = broker->config->address.text;
		if (!broker_is_ready(broker))
			continue;
		uint64_t draw = hash(key, key_len, hash((const uint8_t *)name, strlen(name), 0));
		double unit = ((double)(draw >> 11) + 0.5) / 9007199254740992.0;
		double score = -(double)broker->config->weight / log(unit);
		if (best == NULL || score > best_score) {
			best = broker;
			best_score = score;
		}
	}
	if (best == NULL)
		return NULL;
	uint64_t first = hash(key, key_len, 1);
	for (uint32_t i = 0; i < best->link_count; i++) {
		struct link *link = &best->links[(first + i) % best->link_count];
		if (link_is_ready(link))
			return link;
	}
	return NULL;
}

struct link *
pool_pick(struct pool *pool, const uint8_t *key, uint32_t key_len)
{
	if (pool->config->order == ORDER_BY_KEY)
		return pick_key(pool, key, key_len);
	switch (pool->config->balance) {
	case BALANCE_WEIGHTED:
	case BALANCE_PRIORITY:
		return pick_weighted(pool);
	case BALANCE_LEAST:
		return pick_least(pool);
	case BALANCE_KEY:
		return pick_key(pool, key, key_len);
	}
	abort();
}

/* The group with the best priority that has a proven broker, or, if none is proven, a ready one. */
static void
choose_group(struct pool *pool)
{
	uint32_t proven = UINT32_MAX, ready = UINT32_MAX;
	int current_ready = 0;

	for (uint32_t i = 0; i < pool->peers.count; i++) {
		const struct broker *broker = &pool->peers.list[i];
		uint32_t priority = broker->config->priority;
		if (!broker_is_ready(broker))
			continue;
		current_ready |= priority == pool->preferred;
		if (priority < ready)
			ready = priority;
		if (broker->failures == 0 && priority < proven)
			proven = priority;
	}
	if (current_ready && pool->preferred <= proven)
		return;
	pool->preferred = proven != UINT32_MAX ? proven : ready != UINT32_MAX ? ready : pool->preferred;
}

/* ---- shares ---- */

static void
move_lane(struct lane *lane)
{
	lane->moving = 1;
	if (lane->place == LANE_WAIT_LINK)
		lane_set_place(lane, LANE_ACTIVE);
}

/* Busy lanes stay where they are; after a change some are moved so that the shares come right. */
static void
spread_lanes(struct pool *pool)
{
	uint64_t total = 0, bound = 0;
	uint32_t budget = SPREAD_LANES;

	for (uint32_t i = 0; i < pool->peers.count; i++) {
		bound += pool->peers.list[i].bound_count;
		if (is_eligible(pool, &pool->peers.list[i]))
			total += broker_weight(&pool->peers.list[i], pool->shard->now_ns);
	}
	for (uint32_t i = 0; i < pool->peers.count && total > 0; i++) {
		struct broker *broker = &pool->peers.list[i];
		uint64_t weight = is_eligible(pool, broker) ? broker_weight(broker, pool->shard->now_ns) : 0;
		uint64_t fair = (bound * weight + total - 1) / total;
		uint64_t excess = broker->bound_count > fair ? broker->bound_count - fair : 0;
		for (uint32_t l = 0; l < broker->link_count && excess > 0; l++) {
			struct lane *lane;
			TAILQ_FOREACH (lane, &broker->links[l].bound, bound_entry) {
				if (excess == 0 || budget == 0)
					break;
				excess--;
				budget--;
				if (!lane->moving)
					move_lane(lane);
			}
		}
	}
}

static void
spread_for(struct pool *pool, uint64_t ns)
{
	uint64_t until = pool->shard->now_ns + ns;

	if (pool->config->order != ORDER_BY_LANE || pool->peers.count < 2)
		return;
	if (until > pool->spread_until_ns)
		pool->spread_until_ns = until;
	timer_set_earlier(&pool->shard->timers, &pool->tick, pool->shard->now_ns + POOL_TICK_MS * NS_PER_MS);
}

static void
on_trusted(struct broker *broker)
{
	struct pool *pool = pool_of(broker);

	if (pool->config->balance == BALANCE_PRIORITY)
		choose_group(pool);
	spread_for(pool, 4 * SPREAD_EVERY_MS * NS_PER_MS);
}

/* ---- readiness ---- */

static int
any_writable(const struct pool *pool)
{
	for (uint32_t i = 0; i < pool->peers.count; i++)
		if (broker_pick_link(&pool->peers.list[i]) != NULL)
			return 1;
	return 0;
}

static void
show_writable(struct pool *pool, int writable)
{
	struct lane *lane;

	pool->writable_shown = writable;
	TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
		lane_show_writable(lane, writable);
}

static void
on_changed(struct link *link)
{
	struct pool *pool = pool_of(link->broker);
	struct shard *shard = pool->shard;
	int ready = link_is_ready(link);

	if (link->apart) { /* none of the pool's readiness: it serves those that are bound to it */
		if (link_is_writable(link))
			link_want_serve(link);
		return;
	}
	if (ready != link->counted_ready) {
		link->counted_ready = ready;
		pool->epoch++;
		choose_group(pool);
		spread_for(
		    pool, pool->config->breaker.slow_start_ms * NS_PER_MS + 4 * SPREAD_EVERY_MS * NS_PER_MS);
	}
	if (link_is_writable(link)) {
		pool->writable = 1;
		if (!pool->writable_shown)
			show_writable(pool, 1);
		link_want_serve(link);
		return;
	}
	if (pool->writable && !any_writable(pool)) {
		pool->writable = 0;
		pool->unwritable_ns = shard->now_ns;
		timer_set_earlier(&shard->timers, &pool->tick, shard->now_ns + POOL_TICK_MS * NS_PER_MS);
	}
}

void
pool_serve(struct pool *pool)
{
	uint32_t turns = pool->waiting; /* no lane has more than one */
	struct lane *lane;

	while (turns-- > 0 && pool->writable && (lane = TAILQ_FIRST(&pool->waiters)) != NULL) {
		lane_set_place(lane, LANE_ACTIVE);
		lane_pump(lane, SHARD_QUANTUM);
	}
}

/* ---- the tick ---- */

static void
on_tick(struct timer *timer)
{
	struct pool *pool = (struct pool *)(void *)((char *)timer - offsetof(struct pool, tick));
	uint64_t now = pool->shard->now_ns;
	struct link *link;

	if (pool->waiting > 0) {
		for (uint32_t b = 0; b < pool->peers.count; b++)
			for (uint32_t l = 0; (link = broker_link(&pool->peers.list[b], l)) != NULL; l++)
				if (link->apart && !pool->shard->paused && !TAILQ_EMPTY(&link->waiters))
					link_want_serve(link); /* a lane's pause may be over */
		if (!pool->shard->paused)
			pool_serve(pool);
	}
	if (!pool->writable && pool->writable_shown && now - pool->unwritable_ns >= SHOW_MS * NS_PER_MS)
		show_writable(pool, 0);
	if (now < pool->spread_until_ns && now - pool->spread_ns >= SPREAD_EVERY_MS * NS_PER_MS) {
		pool->spread_ns = now;
		spread_lanes(pool);
	}
	if (pool->waiting > 0 || now < pool->spread_until_ns || (!pool->writable && pool->writable_shown))
		timer_set(&pool->shard->timers, &pool->tick, now + POOL_TICK_MS * NS_PER_MS);
}

static const struct link_events link_events = {
	.answered = lane_answer,
	.given_back = lane_take_back,
	.look_overdue = lane_overdue,
	.late = lane_late,
	.refused = blame_refused,
	.changed = on_changed,
	.closed = blame_closed,
	.apart_ready = blame_ready,
	.turn = blame_turn,
	.failed = broker_link_failed,
	.ready = broker_link_ready,
	.proven = broker_link_proven,
	.forget = broker_forget,
	.trusted = on_trusted,
	.release = riders_release,
	.unbind = riders_unbind,
	.let_go = riders_let_go,
	.pass_over = riders_pass_over,
	.retry_late = riders_retry_late,
};
