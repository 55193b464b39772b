#include "sim.h"

#include "wire.h"

#include "daemon/base/log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SPIN_STEP (20 * NS_PER_US) /* a turn of a loop that does not sleep */

void
sim_fail(struct sim *sim, const char *format, ...)
{
	va_list args;

	fprintf(stderr, "sim: seed %llu, at %.6f s: ", (unsigned long long)sim->seed,
	    (double)(sim->w.now_ns - SIM_START_NS) / 1e9);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nsim: again with SIM_SEED=%llu, and SIM_TRACE=1 for what happened\n",
	    (unsigned long long)sim->seed);
	abort();
}

void
sim_trace(struct sim *sim, const char *format, ...)
{
	va_list args;

	if (!sim->trace)
		return;
	fprintf(stderr, "at=%.6f ", (double)(sim->w.now_ns - SIM_START_NS) / 1e9);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

static void
configure(struct sim *sim, unsigned brokers)
{
	sim->settings = sim;
	sim->config = (struct config){
		.spin_us = 50,
		.drain_ms = 10000,
		.limits.orphan_ms = 600000,
		.pools = &sim->pool_config,
		.pool_count = 1,
	};
	/* The defaults of tidegated.conf(5). */
	sim->pool_config = (struct config_pool){
		.name = (char *)(uintptr_t) "sim",
		.driver = &driver_sim,
		.driver_settings = &sim->settings,
		.links = 1,
		.brokers = sim->broker_configs,
		.broker_count = brokers,
		.message_timeout_ms = 30000,
		.high_bytes = 1048576,
		.low_bytes = 262144,
		.window_messages = 1000,
		.window_low = 500,
		.window_bytes = 16777216,
		.health = { .connect_timeout_ms = 2000,
		    .probe_timeout_ms = 500,
		    .idle_ms = 1000,
		    .probe_misses = 3,
		    .ack_timeout_ms = 3000,
		    .stall_timeout_ms = 10000 },
		.breaker = { .failures = 3,
		    .retry_ms = 500,
		    .retry_max_ms = 10000,
		    .slow_start_ms = 5000,
		    .share_cap = 50 },
	};
	for (unsigned i = 0; i < brokers; i++) {
		snprintf(
		    sim->names[i], sizeof(sim->names[i]), "broker-%u:%u", i % SIM_BROKERS, i % SIM_BROKERS + 1);
		sim->broker_configs[i] = (struct config_broker){
			.address = { .text = sim->names[i], .host = sim->names[i], .port = (uint16_t)(i + 1) },
			.weight = 1,
		};
	}
}

void
sim_init(struct sim *sim, uint64_t seed, unsigned brokers)
{
	memset(sim, 0, sizeof(*sim));
	sim->seed = seed;
	sim->trace = getenv("SIM_TRACE") != NULL;
	sim->chance.state = seed * UINT64_C(0x2545f4914f6cdd1d) + 1;
	log_set_level(sim->trace ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	world_sim_init(&sim->w, seed);
	sim->w.watcher = sim;
	sim->w.on_resolve = check_on_resolve;
	sim->w.on_written = driver_sim_written;
	sim->w.clock_of_shard = &sim->shard.now_ns;
	configure(sim, brokers);
	for (unsigned i = 0; i < brokers; i++)
		sim_broker_init(&sim->brokers[i], sim, i);
}

void
sim_start(struct sim *sim)
{
	if (shard_init(&sim->shard, &sim->w.world, &sim->config) != 0 ||
	    front_init(&sim->front, &sim->shard) != 0)
		sim_fail(sim, "out of memory for the shard");
	sim->shard.checking = 1;
	sim->shard.expedited = 0; /* one thread: a fence does, and costs no system call */
	sim->pool = &sim->shard.pools[0];
	for (unsigned i = 0; i < sim->pool->peers.count; i++)
		sim->brokers[i].broker = &sim->pool->peers.list[i];
	sim->client.front = &sim->front;
	sim->client.shard = &sim->shard;
	sim->client.attach = (struct attach *)(void *)sim; /* one is always on its way: it is never laneless */
	TAILQ_INIT(&sim->client.asleep);
	TAILQ_INIT(&sim->client.lanes);
	shard_start(&sim->shard);
}

static int
nothing(struct sim *sim)
{
	return 0;
}

/* As loop.c: a turn, then events, then timers; to the next event at once when there is nothing to do. */
static void
step(struct sim *sim, uint64_t end_ns)
{
	struct shard *shard = &sim->shard;
	int more = shard_turn(shard);

	sim->turns++;
	check_step(sim);
	producers_on_bells(sim);
	uint64_t next = timers_next(&shard->timers), event = sim_next(&sim->w);
	if (event < next)
		next = event;
	if (more && next > sim->w.now_ns + SPIN_STEP)
		next = sim->w.now_ns + SPIN_STEP;
	if (next > end_ns)
		next = end_ns;
	if (next > sim->w.now_ns)
		sim->w.now_ns = next;
	sim_run_due(&sim->w);
	shard->now_ns = sim->w.now_ns;
	timers_run(&shard->timers, shard->now_ns);
}

int
sim_run_until(struct sim *sim, int (*cond)(struct sim *sim), uint64_t ns)
{
	uint64_t end_ns = sim->w.now_ns + ns;

	while (!cond(sim)) {
		if (sim->w.now_ns >= end_ns)
			return 0;
		step(sim, end_ns);
	}
	return 1;
}

void
sim_run_for(struct sim *sim, uint64_t ns)
{
	sim_run_until(sim, nothing, ns);
}

static int
is_settled(struct sim *sim)
{
	for (uint32_t i = sim->live_from; i < sim->producer_count; i++)
		if (sim->producers[i]->unfinished > 0)
			return 0;
	return sim->shard.outstanding == 0;
}

void
sim_settle(struct sim *sim, uint64_t ns)
{
	if (sim_run_until(sim, is_settled, ns)) {
		sim_run_for(sim, NS_PER_MS); /* the last bells */
		for (uint32_t i = sim->live_from; i < sim->producer_count; i++)
			if (sim->producers[i]->sleeping)
				sim_fail(sim, "lane %llu: everything is finished, and its bell has not rung",
				    (unsigned long long)sim->producers[i]->id);
		return;
	}
	for (uint32_t i = 0; i < sim->producer_count; i++) {
		const struct producer *p = sim->producers[i];
		for (uint32_t k = 0; k < p->count; k++)
			if (p->ledger[k].outcome == 0)
				sim_fail(sim,
				    "lane %llu (%s): record %llu, given %u times, %u arrivals, acked %u, deadline %.3f s, "
				    "has no completion",
				    (unsigned long long)p->id, lane_place_word(p->lane->place),
				    (unsigned long long)p->ledger[k].position, p->ledger[k].given,
				    p->ledger[k].arrivals, p->ledger[k].acked,
				    (double)(p->ledger[k].deadline_ns - SIM_START_NS) / 1e9);
	}
	sim_fail(sim, "everything is finished, and %llu messages are outstanding",
	    (unsigned long long)sim->shard.outstanding);
}

void
sim_fini(struct sim *sim)
{
	check_end(sim);
	for (uint32_t i = 0; i < sim->producer_count; i++)
		producer_close(sim->producers[i]);
	shard_turn(&sim->shard);
	if (sim->shard.lane_count != 0)
		sim_fail(sim, "%u lanes are left", sim->shard.lane_count);
	if (sim->shard.timers.count > sim->shard.timers.reserved)
		sim_fail(sim, "%u timers are set, room is for %u", sim->shard.timers.count,
		    sim->shard.timers.reserved);
	shard_fini(&sim->shard);
	world_sim_fini(&sim->w);
	for (unsigned i = 0; i < SIM_BROKERS; i++)
		if (sim->brokers[i].sim != NULL)
			sim_broker_fini(&sim->brokers[i]);
	for (uint32_t i = 0; i < sim->producer_count; i++)
		producer_free(sim->producers[i]);
	free(sim->producers);
}

struct link *
sim_link(struct sim *sim, unsigned broker, unsigned link)
{
	return &sim->pool->peers.list[broker].links[link];
}

int
sim_all_ready(struct sim *sim)
{
	for (uint32_t b = 0; b < sim->pool->peers.count; b++)
		for (uint32_t l = 0; l < sim->pool->peers.list[b].link_count; l++)
			if (!link_is_ready(sim_link(sim, b, l)))
				return 0;
	return 1;
}
