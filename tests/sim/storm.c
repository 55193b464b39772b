/*
 * A reconnect storm: HOSTS daemons with LINKS links each lose one broker at the same moment; it is
 * back after DOWN_MS, with an accept queue of 511 and a limited rate of accepting. A full queue drops the SYN;
 * the host sends it again after a second and gives up after connect_timeout_ms, as the kernel and link.c do.
 *
 * The back-off, the breaker and the spreading of links are those of broker.c, called as link.c
 * calls them. "Without jitter" is the same code with a random source that always returns 0.
 *
 *   storm [--csv]   prints arrivals, drops and ready links over time for storm_plot.py
 *
 * Exits with 1 if jitter does not spread the arrivals, or a link never becomes ready.
 */
#include "daemon/link/broker.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"
#include "tests/sim/world_sim.h"

#include "daemon/base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOSTS 10000u
#define LINKS 4u
#define BACKLOG 512u /* a queue of 511 takes one more */
#define ACCEPTS_A_MS 4u
#define DOWN_MS 10000u
#define END_MS 60000u
#define BUCKET_MS 50u
#define BUCKETS (END_MS / BUCKET_MS)
#define SYN_AGAIN_MS 1000u
#define CONNECT_MS 2000u

enum stage { STAGE_AWAY, STAGE_SYN, STAGE_QUEUED, STAGE_READY };

struct attempt {
	enum stage stage;
	uint64_t began_ns;
};

struct result {
	uint32_t arrivals[BUCKETS], drops[BUCKETS], ready[BUCKETS];
	uint32_t peak, dropped, ready_links;
	uint64_t done_ms; /* when the last link was ready */
};

struct storm {
	struct world world;
	struct world_ops ops;
	struct chance chance;
	int jitter;
	uint64_t ms;
	struct shard shard;
	struct config_pool config;
	struct pool *pools;
	struct broker *brokers;
	struct attempt *attempts; /* by link id */
	struct link *queue[BACKLOG];
	uint32_t queued;
	struct result *result;
};

static struct storm *
storm_of(struct world *world)
{
	return (struct storm *)(void *)((char *)world - offsetof(struct storm, world));
}

static uint64_t
now_ns(struct world *world)
{
	return storm_of(world)->shard.now_ns;
}

static uint64_t
random_64(struct world *world)
{
	struct storm *storm = storm_of(world);

	return storm->jitter ? chance_next(&storm->chance) : 0;
}

static struct storm *
storm_of_link(const struct link *link)
{
	return storm_of(link->shard->world);
}

static void
fail(struct storm *storm, struct link *link)
{
	storm->attempts[link->id].stage = STAGE_AWAY;
	link->state = LINK_FAILED;
	uint64_t at_ns = broker_link_failed(link->broker, link, FATAL_PROTOCOL);
	link->state = LINK_BACKOFF;
	if (at_ns != 0)
		timer_set(&storm->shard.timers, &link->timer, at_ns);
}

static void
knock(struct storm *storm, struct link *link)
{
	struct attempt *attempt = &storm->attempts[link->id];
	uint32_t bucket = (uint32_t)(storm->ms / BUCKET_MS);
	uint64_t wait_ms = SYN_AGAIN_MS;

	storm->result->arrivals[bucket]++;
	if (storm->ms < DOWN_MS) {
		fail(storm, link);
		return;
	}
	if (storm->queued < BACKLOG) {
		attempt->stage = STAGE_QUEUED;
		storm->queue[storm->queued++] = link;
		wait_ms = CONNECT_MS - (storm->shard.now_ns - attempt->began_ns) / NS_PER_MS;
	} else {
		attempt->stage = STAGE_SYN;
		storm->result->drops[bucket]++;
		storm->result->dropped++;
	}
	timer_set(&storm->shard.timers, &link->timer, storm->shard.now_ns + wait_ms * NS_PER_MS);
}

static void
on_timer(struct timer *timer)
{
	struct link *link = (struct link *)(void *)((char *)timer - offsetof(struct link, timer));
	struct storm *storm = storm_of_link(link);
	struct attempt *attempt = &storm->attempts[link->id];

	if (attempt->stage == STAGE_AWAY) {
		attempt->began_ns = storm->shard.now_ns;
		link->state = LINK_CONNECTING;
		knock(storm, link);
	} else if (storm->shard.now_ns - attempt->began_ns < CONNECT_MS * NS_PER_MS) {
		knock(storm, link);
	} else {
		fail(storm, link);
	}
}

static void
accept_some(struct storm *storm)
{
	uint32_t n = storm->queued < ACCEPTS_A_MS ? storm->queued : ACCEPTS_A_MS;

	for (uint32_t i = 0; i < n; i++) {
		struct link *link = storm->queue[i];
		if (storm->attempts[link->id].stage != STAGE_QUEUED)
			continue; /* it has given up */
		storm->attempts[link->id].stage = STAGE_READY;
		timer_stop(&storm->shard.timers, &link->timer);
		link->state = LINK_READY;
		broker_link_ready(link->broker, link);
		storm->result->done_ms = storm->ms;
		storm->result->ready_links++;
	}
	storm->queued -= n;
	memmove(storm->queue, storm->queue + n, storm->queued * sizeof(struct link *));
}

static void
setup(struct storm *storm, struct config_broker *address)
{
	storm->ops = (struct world_ops){ .now_ns = now_ns, .random = random_64 };
	storm->world.ops = &storm->ops;
	storm->chance.state = 1;
	storm->shard.world = &storm->world;
	storm->shard.now_ns = SIM_START_NS;
	storm->config = (struct config_pool){ .name = (char *)(uintptr_t) "storm",
		.links = LINKS,
		.broker_count = 1,
		.brokers = address,
		.breaker = { .failures = 3,
		    .retry_ms = 500,
		    .retry_max_ms = 10000,
		    .slow_start_ms = 5000,
		    .share_cap = 50 } };
	storm->pools = calloc(HOSTS, sizeof(*storm->pools));
	storm->brokers = calloc(HOSTS, sizeof(*storm->brokers));
	storm->attempts = calloc(HOSTS * LINKS, sizeof(*storm->attempts));
	if (storm->pools == NULL || storm->brokers == NULL || storm->attempts == NULL)
		abort();
	for (uint32_t h = 0; h < HOSTS; h++) {
		struct broker *broker = &storm->brokers[h];
		storm->pools[h] = (struct pool){ .shard = &storm->shard,
			.config = &storm->config,
			.peers = {
			    .shard = &storm->shard, .config = &storm->config, .list = broker, .count = 1 } };
		*broker =
		    (struct broker){ .peers = &storm->pools[h].peers, .config = address, .link_count = LINKS };
		broker->links = calloc(LINKS, sizeof(*broker->links));
		if (broker->links == NULL)
			abort();
		for (uint32_t l = 0; l < LINKS; l++) {
			struct link *link = &broker->links[l];
			link->shard = &storm->shard;
			link->broker = broker;
			link->id = h * LINKS + l;
			link->state = LINK_READY;
			link->timer.fire = on_timer;
			storm->attempts[link->id].stage = STAGE_READY;
			if (timers_reserve(&storm->shard.timers) != 0)
				abort();
		}
	}
}

static void
run(struct result *result, int jitter)
{
	struct config_broker address = { .address = { .text = (char *)(uintptr_t) "broker:1883" },
		.weight = 1 };
	struct storm storm = { .jitter = jitter, .result = result };

	memset(result, 0, sizeof(*result));
	setup(&storm, &address);
	for (uint32_t h = 0; h < HOSTS; h++)
		for (uint32_t l = 0; l < LINKS; l++)
			fail(&storm, &storm.brokers[h].links[l]);
	for (; storm.ms < END_MS; storm.ms++) {
		storm.shard.now_ns = SIM_START_NS + storm.ms * NS_PER_MS;
		while (timers_next(&storm.shard.timers) <= storm.shard.now_ns)
			timers_run(&storm.shard.timers, storm.shard.now_ns);
		if (storm.ms >= DOWN_MS)
			accept_some(&storm);
		result->ready[storm.ms / BUCKET_MS] = result->ready_links;
	}
	for (uint32_t b = 0; b < BUCKETS; b++)
		if (b >= DOWN_MS / BUCKET_MS && result->arrivals[b] > result->peak)
			result->peak = result->arrivals[b];
	for (uint32_t h = 0; h < HOSTS; h++)
		free(storm.brokers[h].links);
	free(storm.brokers);
	free(storm.pools);
	free(storm.attempts);
	timers_fini(&storm.shard.timers);
}

int
main(int argc, char **argv)
{
	static struct result with, without;

	log_set_level(LOG_LEVEL_ERROR);
	run(&with, 1);
	run(&without, 0);
	if (argc > 1 && strcmp(argv[1], "--csv") == 0) {
		printf("ms,arrivals_jitter,drops_jitter,ready_jitter,arrivals_plain,drops_plain,ready_plain\n");
		for (uint32_t b = 0; b < BUCKETS; b++)
			printf("%u,%u,%u,%u,%u,%u,%u\n", b * BUCKET_MS, with.arrivals[b], with.drops[b],
			    with.ready[b], without.arrivals[b], without.drops[b], without.ready[b]);
		return 0;
	}
	printf(
	    "%u links, %u accepts a second: with jitter at most %u arrivals in %u ms, %u dropped, %u ready after %llu ms\n",
	    HOSTS * LINKS, ACCEPTS_A_MS * 1000, with.peak, BUCKET_MS, with.dropped, with.ready_links,
	    (unsigned long long)with.done_ms - DOWN_MS);
	printf("without: at most %u arrivals in %u ms, %u dropped, %u ready after %llu ms\n", without.peak,
	    BUCKET_MS, without.dropped, without.ready_links, (unsigned long long)without.done_ms - DOWN_MS);
	return with.ready_links == HOSTS * LINKS && with.peak * 4 < without.peak ? 0 : 1;
}
