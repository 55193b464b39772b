#include "pool.h"

#include "daemon/config/config_secret.h"
#include "daemon/lane/lane.h"
#include "daemon/base/log.h"
#include "shard.h"
#include "shm/error.h"
#include "daemon/link/tls.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS 20u         /* while lanes wait */
#define SHOW_MS 10u         /* unwritable for this long: more than a full window's pause */
#define SPREAD_EVERY_MS 250u
#define SPREAD_LANES 64u    /* that are moved at a time, at most */
#define CREDIT_PICKS 1024   /* how far a ready broker that cannot write may fall behind its share */

static void on_tick(struct timer *timer);

/* ---- TLS ---- */

static int
load_tls(struct pool *pool)
{
	struct tls_error error = { .why = "out of memory" };

	if (!pool->config->tls.enabled)
		return 0;
	int rc = tls_context_new(&pool->tls, &pool->config->tls, pool->config->driver->alpn, &error);
	if (rc != 0)
		log_event(LOG_LEVEL_ERROR, "tls_load_failed", "pool=%s key=%s cause=%s", pool->config->name,
		    error.key != NULL ? error.key : "-", log_quote((char[320]){ 0 }, 320, error.why, strlen(error.why)));
	return rc;
}

void
pool_renew_tls(struct pool *pool)
{
	struct tls_error error = { .why = "out of memory" };
	int rc = tls_context_reload(pool->tls, &error);

	if (rc > 0)
		log_event(LOG_LEVEL_INFO, "tls_renewed", "pool=%s", pool->config->name);
	else if (rc < 0)
		log_event(LOG_LEVEL_ERROR, "tls_renewal_failed", "pool=%s key=%s cause=%s remedy=\"the old files stay in force\"",
		    pool->config->name, error.key != NULL ? error.key : "-",
		    log_quote((char[320]){ 0 }, 320, error.why, strlen(error.why)));
}

void
pool_renew_secrets(struct pool *pool)
{
	const struct driver *driver = pool->config->driver;

	for (unsigned i = 0; i < driver->secret_count; i++) {
		struct config_secret *secret =
		    (void *)((char *)pool->config->driver_settings + driver->secrets[i]);
		int rc = config_secret_renew(secret);
		if (rc > 0)
			log_event(LOG_LEVEL_INFO, "secret_renewed", "pool=%s key=%s.%s", pool->config->name,
			    driver->name, secret->key);
		else if (rc < 0)
			log_event(LOG_LEVEL_ERROR, "secret_renewal_failed",
			    "pool=%s key=%s.%s cause=%s remedy=\"the old one stays in force\"", pool->config->name,
			    driver->name, secret->key,
			    log_quote((char[700]){ 0 }, 700, secret->failed, strlen(secret->failed)));
	}
}

/* ---- life ---- */

int
pool_init(struct pool *pool, struct shard *shard, const struct config_pool *config, uint32_t index)
{
	int rc;

	memset(pool, 0, sizeof(*pool));
	pool->shard = shard;
	pool->config = config;
	pool->index = index;
	pool->tick.fire = on_tick;
	pool->unwritable_ns = shard->now_ns;
	TAILQ_INIT(&pool->waiters);
	TAILQ_INIT(&pool->lanes);
	pool->brokers = calloc(config->broker_count, sizeof(*pool->brokers));
	if (pool->brokers == NULL || timers_reserve(&shard->timers) != 0)
		return -TG_ENOMEM;
	rc = load_tls(pool);
	if (rc != 0)
		return rc;
	for (; pool->broker_count < config->broker_count; pool->broker_count++) {
		struct broker *broker = &pool->brokers[pool->broker_count];
		rc = broker_init(broker, pool, &config->brokers[pool->broker_count], pool->broker_count);
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
	if (pool->brokers == NULL)
		return;
	for (uint32_t i = 0; i < pool->broker_count; i++)
		broker_fini(&pool->brokers[i]);
	while (!TAILQ_EMPTY(&pool->lanes))
		lane_free(TAILQ_FIRST(&pool->lanes));
	timer_stop(&pool->shard->timers, &pool->tick);
	timers_unreserve(&pool->shard->timers);
	free(pool->brokers);
	tls_context_free(pool->tls);
	pool->brokers = NULL;
	pool->tls = NULL;
}

void
pool_start(struct pool *pool)
{
	for (uint32_t i = 0; i < pool->broker_count; i++)
		broker_start(&pool->brokers[i]);
}

void
pool_warm(struct pool *pool)
{
	struct shard *shard = pool->shard;

	for (uint32_t b = 0; b < pool->broker_count; b++)
		for (uint32_t l = 0; l < pool->brokers[b].link_count; l++)
			timer_set(&shard->timers, &pool->brokers[b].links[l].timer, shard->now_ns);
}

int
pool_is_warm(const struct pool *pool)
{
	for (uint32_t b = 0; b < pool->broker_count; b++)
		for (uint32_t l = 0; l < pool->brokers[b].link_count; l++) {
			const struct link *link = &pool->brokers[b].links[l];
			if (!link_is_ready(link) && link->count.failures == 0)
				return 0;
		}
	return 1;
}

int
pool_is_usable(const struct pool *pool)
{
	for (uint32_t i = 0; i < pool->broker_count; i++)
		if (broker_is_ready(&pool->brokers[i]))
			return 1;
	return 0;
}

int
pool_has_other(const struct pool *pool, const struct broker *broker)
{
	for (uint32_t i = 0; i < pool->broker_count; i++)
		if (&pool->brokers[i] != broker && broker_is_ready(&pool->brokers[i]))
			return 1;
	return 0;
}

int
pool_has_room_beside(const struct pool *pool, const struct broker *broker)
{
	for (uint32_t i = 0; i < pool->broker_count; i++)
		if (&pool->brokers[i] != broker && broker_pick_link(&pool->brokers[i]) != NULL)
			return 1;
	return 0;
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

	for (uint32_t i = 0; i < pool->broker_count; i++) {
		struct broker *broker = &pool->brokers[i];
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
	for (uint32_t i = 0; i < pool->broker_count; i++)
		pool->brokers[i].credit += earns[i];
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

	for (uint32_t i = 0; i < pool->broker_count; i++)
		eligible += is_eligible(pool, &pool->brokers[i]) && broker_pick_link(&pool->brokers[i]) != NULL;
	if (eligible == 0)
		return NULL;
	uint32_t first = (uint32_t)world_between(pool->shard->world, 0, eligible - 1);
	uint32_t second = eligible == 1 ? 0 : (uint32_t)world_between(pool->shard->world, 0, eligible - 2);
	if (eligible > 1 && second >= first)
		second++;
	for (uint32_t i = 0, n = 0; i < pool->broker_count; i++) {
		struct link *link = is_eligible(pool, &pool->brokers[i]) ? broker_pick_link(&pool->brokers[i]) : NULL;
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

	for (uint32_t i = 0; i < pool->broker_count; i++) {
		struct broker *broker = &pool->brokers[i];
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

	for (uint32_t i = 0; i < pool->broker_count; i++) {
		const struct broker *broker = &pool->brokers[i];
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

	for (uint32_t i = 0; i < pool->broker_count; i++) {
		bound += pool->brokers[i].bound_count;
		if (is_eligible(pool, &pool->brokers[i]))
			total += broker_weight(&pool->brokers[i], pool->shard->now_ns);
	}
	for (uint32_t i = 0; i < pool->broker_count && total > 0; i++) {
		struct broker *broker = &pool->brokers[i];
		uint64_t weight =
		    is_eligible(pool, broker) ? broker_weight(broker, pool->shard->now_ns) : 0;
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

	if (pool->config->order != ORDER_BY_LANE || pool->broker_count < 2)
		return;
	if (until > pool->spread_until_ns)
		pool->spread_until_ns = until;
	timer_set_earlier(&pool->shard->timers, &pool->tick, pool->shard->now_ns + TICK_MS * NS_PER_MS);
}

void
pool_broker_proven(struct pool *pool)
{
	if (pool->config->balance == BALANCE_PRIORITY)
		choose_group(pool);
	spread_for(pool, 4 * SPREAD_EVERY_MS * NS_PER_MS);
}

/* ---- readiness ---- */

static int
any_writable(const struct pool *pool)
{
	for (uint32_t i = 0; i < pool->broker_count; i++)
		if (broker_pick_link(&pool->brokers[i]) != NULL)
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

void
pool_link_changed(struct pool *pool, struct link *link)
{
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
		spread_for(pool, pool->config->breaker.slow_start_ms * NS_PER_MS + 4 * SPREAD_EVERY_MS * NS_PER_MS);
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
		timer_set_earlier(&shard->timers, &pool->tick, shard->now_ns + TICK_MS * NS_PER_MS);
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

void
pool_lane_waits(struct pool *pool)
{
	timer_set_earlier(&pool->shard->timers, &pool->tick, pool->shard->now_ns + TICK_MS * NS_PER_MS);
}

static void
on_tick(struct timer *timer)
{
	struct pool *pool = (struct pool *)(void *)((char *)timer - offsetof(struct pool, tick));
	uint64_t now = pool->shard->now_ns;
	struct link *link;

	if (pool->waiting > 0) {
		for (uint32_t b = 0; b < pool->broker_count; b++)
			for (uint32_t l = 0; (link = broker_link(&pool->brokers[b], l)) != NULL; l++)
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
		timer_set(&pool->shard->timers, &pool->tick, now + TICK_MS * NS_PER_MS);
}
