/*
 * Random faults: each seed makes a pool, producers and a schedule of faults, runs them, heals everything, and
 * expects every record to finish. The checks of check_sim.c run at every step.
 *
 *   test_sim_random              SIM_SEEDS seeds (default 1000) of SIM_SECONDS (default 120) each
 *   SIM_SEED=n test_sim_random   that one; SIM_TRACE=1 prints every event
 *
 * It ends early, and says so, after SIM_BUDGET seconds of processor time (default 60).
 */
#include "sim.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define LANES_MAX 8u

enum fault {
	FAULT_CRASH,
	FAULT_VANISH,
	FAULT_VANISH_RESTART, /* restarts without memory: half-open connections */
	FAULT_FREEZE,
	FAULT_BLOCK,
	FAULT_MUTE,
	FAULT_SLOW,
	FAULT_LOSS,
	FAULT_HOLD, /* restarts and never accepts */
	FAULT_LOOKUP,
	FAULT_LOOKUP_SLOW,
	FAULT_LEAVE,
	FAULT_LATENCY,
	FAULT_NARROW,
	FAULT_BLINK, /* gone for less than the detection time */
	FAULTS
};

static void
heal_one(struct sim_broker *b, enum fault fault)
{
	struct host *host = b->host;

	switch (fault) {
	case FAULT_VANISH_RESTART:
		sim_broker_crash(b); /* while the network drops everything, so no peer notices */
		host_set_vanished(host, 0);
		sim_broker_start(b);
		break;
	case FAULT_CRASH:
	case FAULT_HOLD:
		sim_broker_start(b);
		break;
	case FAULT_VANISH:
	case FAULT_BLINK:
		sim_trace(b->sim, "broker %u is back", b->index);
		host_set_vanished(host, 0);
		break;
	case FAULT_FREEZE:
		sim_broker_freeze(b, 0);
		break;
	case FAULT_BLOCK:
		sim_broker_block(b, 0);
		break;
	case FAULT_MUTE:
		sim_broker_mute(b, 0);
		break;
	case FAULT_SLOW:
		sim_broker_slow(b, 0);
		break;
	case FAULT_LOSS:
		host->loss = 0;
		break;
	case FAULT_LOOKUP:
		host->lookup_fails = 0;
		break;
	case FAULT_LOOKUP_SLOW:
		host->lookup_ns = NS_PER_MS;
		break;
	case FAULT_LATENCY:
		host->latency_ns = 200 * NS_PER_US;
		host->jitter_ns = 0;
		break;
	case FAULT_NARROW:
		host->bytes_per_s = 0;
		break;
	case FAULT_LEAVE:
	case FAULTS:
		break;
	}
}

static void
on_heal(void *arg, uint64_t fault)
{
	heal_one(arg, (enum fault)fault);
}

static void
inflict(struct sim *sim, struct sim_broker *b, enum fault fault)
{
	struct host *host = b->host;
	uint64_t for_ns = chance_between(&sim->chance, SIM_MS(50), SIM_S(20));

	sim_trace(sim, "fault %d for broker %u, %.3f s", (int)fault, b->index, (double)for_ns / 1e9);
	switch (fault) {
	case FAULT_CRASH:
		sim_broker_crash(b);
		break;
	case FAULT_HOLD:
		sim_broker_crash(b);
		host->port = PORT_HOLDS;
		break;
	case FAULT_BLINK:
		for_ns = chance_between(&sim->chance, SIM_MS(50), SIM_MS(1000));
		host_set_vanished(host, 1);
		break;
	case FAULT_VANISH:
	case FAULT_VANISH_RESTART:
		host_set_vanished(host, 1);
		break;
	case FAULT_FREEZE:
		sim_broker_freeze(b, 1);
		break;
	case FAULT_BLOCK:
		sim_broker_block(b, 1);
		break;
	case FAULT_MUTE:
		sim_broker_mute(b, 1);
		break;
	case FAULT_SLOW:
		sim_broker_slow(b, chance_between(&sim->chance, SIM_MS(1), SIM_MS(1000)));
		break;
	case FAULT_LOSS:
		host->loss = (double)chance_between(&sim->chance, 1, 30) / 100;
		break;
	case FAULT_LOOKUP:
		host->lookup_fails = 1;
		break;
	case FAULT_LOOKUP_SLOW:
		host->lookup_ns = chance_between(&sim->chance, SIM_MS(100), SIM_MS(5000));
		break;
	case FAULT_LEAVE:
		sim_broker_leave(b);
		break;
	case FAULT_LATENCY:
		host->latency_ns = chance_between(&sim->chance, SIM_MS(1), SIM_MS(80));
		host->jitter_ns = chance_between(&sim->chance, 0, SIM_MS(20));
		break;
	case FAULT_NARROW:
		host->bytes_per_s = chance_between(&sim->chance, 2000, 200000);
		break;
	case FAULTS:
		break;
	}
	sim_after(&sim->w, for_ns, on_heal, b, fault);
}

static void
on_fault(void *arg, uint64_t until_ns)
{
	struct sim *sim = arg;

	if (sim->w.now_ns >= until_ns)
		return;
	unsigned broker = (unsigned)chance_between(&sim->chance, 0, sim->pool_config.broker_count - 1);
	enum fault fault = (enum fault)chance_between(&sim->chance, 0, FAULTS - 1);
	inflict(sim, &sim->brokers[broker], fault);
	/* Now and then the same for all of them. */
	if (chance_hit(&sim->chance, 0.1))
		for (unsigned i = 0; i < sim->pool_config.broker_count; i++)
			if (i != broker)
				inflict(sim, &sim->brokers[i], fault);
	sim_after(&sim->w, chance_between(&sim->chance, SIM_MS(10), SIM_S(10)), on_fault, sim, until_ns);
}

static void add_producer(struct sim *sim, uint64_t until_ns);

static void
on_close(void *arg, uint64_t until_ns)
{
	struct producer *p = arg;

	producer_close(p);
	if (p->sim->w.now_ns < until_ns)
		add_producer(p->sim, until_ns);
}

static void
add_producer(struct sim *sim, uint64_t until_ns)
{
	struct chance *c = &sim->chance;
	struct producer *p = sim_producer(sim, UINT64_C(16384) << chance_between(c, 0, 2));

	p->stop_ns = until_ns;
	p->body_high = (uint32_t)chance_between(c, 17, 800);
	p->large = chance_hit(c, 0.3) ? 0.05 : 0;
	p->cancel = chance_hit(c, 0.3) ? 0.1 : 0;
	p->own_timeout = chance_hit(c, 0.3) ? 0.2 : 0;
	if (chance_hit(c, 0.2))
		p->reads_every_ns = chance_between(c, SIM_MS(1), SIM_MS(2000));
	/* From one a few seconds to a few hundred a second. */
	producer_go(p, SIM_MS(5) << chance_between(c, 2, 10), (uint32_t)chance_between(c, 1, 8));
	if (chance_hit(c, 0.4))
		sim_after(&sim->w, chance_between(c, SIM_S(1), SIM_S(60)), on_close, p, until_ns);
}

static void
configure(struct sim *sim)
{
	struct config_pool *config = &sim->pool_config;
	struct chance *c = &sim->chance;

	config->links = (uint32_t)chance_between(c, 1, 3);
	config->order = (enum config_order)chance_between(c, 0, 2);
	config->balance = (enum config_balance)chance_between(c, 0, 3);
	if (config->balance == BALANCE_KEY && config->order == ORDER_BY_LANE)
		config->order = ORDER_BY_NONE; /* config.c refuses it */
	config->on_failure = chance_hit(c, 0.3) ? ON_FAILURE_REPORT : ON_FAILURE_RESEND;
	if (chance_hit(c, 0.3)) {
		config->high_bytes = 65536;
		config->low_bytes = 16384;
	}
	if (chance_hit(c, 0.4)) {
		config->window_messages = (uint32_t)chance_between(c, 1, 64);
		config->window_low = config->window_messages / 2;
	}
	if (chance_hit(c, 0.3))
		config->message_timeout_ms = (uint32_t)chance_between(c, 1000, 20000);
	if (chance_hit(c, 0.2))
		config->health.ack_timeout_ms = 1000;
	sim->config.spin_us = (uint32_t)chance_between(c, 0, 50);
	sim->credit = chance_hit(c, 0.2) ? (uint32_t)chance_between(c, 1, 50) : 0;
	for (unsigned i = 0; i < config->broker_count; i++) {
		struct sim_broker *b = &sim->brokers[i];
		sim->broker_configs[i].weight = (uint32_t)chance_between(c, 1, 5);
		sim->broker_configs[i].priority = config->balance == BALANCE_PRIORITY ? i / 2 : 0;
		b->ack_mode = (enum ack_mode)chance_between(c, 0, chance_hit(c, 0.1) ? ACK_NONE : ACK_SHUFFLED);
		b->ack_ns = chance_between(c, 0, SIM_MS(20));
		b->nack = chance_hit(c, 0.2) ? 0.02 : 0;
		b->again = chance_hit(c, 0.2) ? 0.02 : 0;
		b->window = chance_hit(c, 0.2) ? (uint32_t)chance_between(c, 1, 100) : 0;
		b->host->loss = chance_hit(c, 0.2) ? 0.01 : 0;
	}
}

static void
run(uint64_t seed, uint64_t seconds, uint64_t *records, uint64_t *simulated_ns)
{
	struct sim sim;
	struct chance first = { .state = seed };

	sim_init(&sim, seed, (unsigned)chance_between(&first, 1, SIM_BROKERS));
	configure(&sim);
	sim_start(&sim);
	uint64_t until = sim.w.now_ns + SIM_S(seconds);
	unsigned lanes = (unsigned)chance_between(&sim.chance, 1, LANES_MAX);
	for (unsigned i = 0; i < lanes; i++)
		add_producer(&sim, until);
	sim_after(&sim.w, chance_between(&sim.chance, SIM_MS(10), SIM_S(5)), on_fault, &sim, until);
	sim_run_for(&sim, SIM_S(seconds));
	/* The last fault is healed 20 s after it; a closed lane's own schedule is over by then too. */
	sim_run_for(&sim, SIM_S(21));
	for (unsigned i = 0; i < sim.pool_config.broker_count; i++)
		for (unsigned f = 0; f < FAULTS; f++)
			heal_one(&sim.brokers[i], (enum fault)f);
	sim_settle(&sim, SIM_S(60));
	if (!sim_run_until(&sim, sim_all_ready, SIM_S(60)))
		sim_fail(&sim, "all is well, and not every link is ready after 60 s");
	*records += sim_published(&sim);
	*simulated_ns += sim.w.now_ns - SIM_START_NS;
	sim_fini(&sim);
}

static uint64_t
number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text == NULL ? otherwise : strtoull(text, NULL, 10);
}

static double
seconds_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

int
main(void)
{
	uint64_t seeds = number("SIM_SEEDS", 1000), seconds = number("SIM_SECONDS", 120);
	uint64_t first = number("SIM_FIRST", 1), done = 0, records = 0, simulated_ns = 0;
	double from = seconds_now(), budget = (double)number("SIM_BUDGET", 60);

	if (getenv("SIM_SEED") != NULL) {
		first = number("SIM_SEED", 1);
		seeds = 1;
	}
	while (done < seeds && seconds_now() - from < budget)
		run(first + done++, seconds, &records, &simulated_ns);
	double took = seconds_now() - from;
	printf("%" PRIu64 " of %" PRIu64 " seeds from %" PRIu64 ", %" PRIu64 " s of faults each, %" PRIu64
	       " records, %.1f s of processor time: %.2f s for a simulated hour\n",
	    done, seeds, first, seconds, records, took, took * 3600e9 / (double)simulated_ns);
	return 0;
}
