/* Stories with a name, on simulated time. What must hold in all of them is in check_sim.c. */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <cmocka.h>

/* ---- tools ---- */

static void
start_producers(struct sim *sim, unsigned count, uint64_t every_ns, uint32_t burst)
{
	for (unsigned i = 0; i < count; i++)
		producer_go(sim_producer(sim, 0), every_ns, burst);
}

static void
stop_producers(struct sim *sim)
{
	for (uint32_t i = 0; i < sim->producer_count; i++)
		sim->producers[i]->stop_ns = 0;
}

/* Everything finished, every record delivered, nothing left. */
static void
end_all_delivered(struct sim *sim, uint64_t within_ns)
{
	stop_producers(sim);
	sim_settle(sim, within_ns);
	assert_int_equal(sim_done(sim, TG_DELIVERED), sim_published(sim));
	sim_fini(sim);
}

static uint64_t
stored(const struct sim *sim)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < sim->pool_config.broker_count; i++)
		sum += sim->brokers[i].stored;
	return sum;
}

/* Records that arrived more than once. */
static uint64_t
duplicates(const struct sim *sim)
{
	uint64_t firsts = 0;

	for (unsigned i = 0; i < sim->pool_config.broker_count; i++)
		firsts += sim->brokers[i].firsts;
	return stored(sim) - firsts;
}

static uint64_t
attempts(const struct sim *sim, unsigned broker)
{
	return sim->pool->brokers[broker].count.attempts;
}

static int
is_0_ready(struct sim *sim)
{
	return broker_is_ready(&sim->pool->brokers[0]);
}

static int
is_0_left(struct sim *sim)
{
	return !is_0_ready(sim);
}

static int
is_1_left(struct sim *sim)
{
	return !broker_is_ready(&sim->pool->brokers[1]);
}

/* The share of broker 0 of what the brokers take in the next ns, in percent. */
static double
share_of_0(struct sim *sim, uint64_t ns)
{
	uint64_t all = stored(sim), first = sim->brokers[0].stored;

	sim_run_for(sim, ns);
	assert_true(stored(sim) > all + 100);
	return 100.0 * (double)(sim->brokers[0].stored - first) / (double)(stored(sim) - all);
}

#define assert_between(low, value, high)                                                                           \
	do {                                                                                                       \
		double value_ = (double)(value);                                                                   \
		if (value_ < (double)(low) || value_ > (double)(high))                                             \
			fail_msg("%s is %g, not in %g ... %g", #value, value_, (double)(low), (double)(high));     \
	} while (0)

/* ---- all is well ---- */

static void
everything_is_delivered(void **state)
{
	struct sim sim;

	sim_init(&sim, 1, 2);
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(1), 4);
	sim_run_for(&sim, SIM_S(10));
	assert_true(sim_published(&sim) > 100000);
	assert_int_equal(sim.failed, 0);
	end_all_delivered(&sim, SIM_S(1));
}

static void
nothing_to_do_costs_no_turns(void **state)
{
	struct sim sim;

	sim_init(&sim, 1, 2);
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(5));
	stop_producers(&sim);
	sim_run_for(&sim, SIM_S(1));
	uint64_t turns = sim.turns, steps = sim.w.steps;
	sim_run_for(&sim, SIM_S(3600));
	/* A probe a second for each link: its timer and its answer, and what the network does for them. */
	assert_true(sim.turns - turns < 3600 * 2 * 12);
	assert_true(sim.w.steps - steps < 3600 * 2 * 12);
	end_all_delivered(&sim, SIM_S(1));
}

/* ---- balance ---- */

static void
weighted_is_within_a_percent_by_record(void **state)
{
	static const uint32_t weights[] = { 1, 2, 5 };
	struct sim sim;

	sim_init(&sim, 2, 3);
	sim.pool_config.order = ORDER_BY_NONE;
	for (unsigned i = 0; i < 3; i++)
		sim.broker_configs[i].weight = weights[i];
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 4, SIM_MS(1), 4);
	sim_run_for(&sim, SIM_S(7));
	assert_true(stored(&sim) > 100000);
	for (unsigned i = 0; i < 3; i++)
		assert_between(100.0 * weights[i] / 8 - 1, 100.0 * (double)sim.brokers[i].stored / (double)stored(&sim),
		    100.0 * weights[i] / 8 + 1);
	end_all_delivered(&sim, SIM_S(1));
}

/* 10,000 lanes, a thousand at a time for the sake of descriptors and mappings. */
static void
weighted_is_within_a_percent_by_lane(void **state)
{
	enum { LANES = 10000, AT_ONCE = 1000 };
	static const uint32_t weights[] = { 1, 2, 5 };
	struct sim sim;

	sim_init(&sim, 3, 3);
	for (unsigned i = 0; i < 3; i++) {
		sim.broker_configs[i].weight = weights[i];
		sim.brokers[i].ack_ns = SIM_MS(20);
	}
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	for (unsigned n = 0; n < LANES; n += AT_ONCE) {
		for (unsigned i = n; i < n + AT_ONCE; i++)
			assert_int_equal(producer_publish(sim_producer(&sim, LANE_SQ_MIN), 64, 0), 0);
		sim_run_for(&sim, SIM_MS(100));
		for (unsigned i = n; i < n + AT_ONCE; i++) {
			producer_read(sim.producers[i]);
			producer_close(sim.producers[i]);
		}
	}
	assert_int_equal(stored(&sim), LANES);
	for (unsigned i = 0; i < 3; i++)
		assert_between(100.0 * weights[i] / 8 - 1, 100.0 * (double)sim.brokers[i].stored / LANES,
		    100.0 * weights[i] / 8 + 1);
	end_all_delivered(&sim, SIM_S(1));
}

/* One that cannot write for a while gets what it missed, but not without end. */
/* Lanes with a backlog fill the window of a link whenever it opens; a lane that comes anew is not bound to it. */
static void
a_lane_that_comes_anew_is_not_starved_by_a_backlog(void **state)
{
	struct sim sim;
	uint64_t longest_ns = 0;

	sim_init(&sim, 31, 2);
	sim.brokers[0].ack_ns = sim.brokers[1].ack_ns = SIM_MS(100); /* two windows, 20,000 messages a second */
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 6, SIM_MS(2), 10);
	sim_run_for(&sim, SIM_S(2));
	struct producer *anew = sim_producer(&sim, 16384);
	for (unsigned i = 0; i < 20; i++) {
		uint64_t at_ns = sim.w.now_ns;
		assert_int_equal(producer_publish(anew, 100, 0), 0);
		while (anew->unfinished > 0 && sim.w.now_ns < at_ns + SIM_S(25))
			sim_run_for(&sim, NS_PER_MS);
		if (sim.w.now_ns - at_ns > longest_ns)
			longest_ns = sim.w.now_ns - at_ns;
		sim_run_for(&sim, SIM_MS(20));
	}
	print_message("the longest wait was %.0f ms\n", (double)longest_ns / 1e6);
	assert_true(longest_ns < SIM_MS(500));
	end_all_delivered(&sim, SIM_S(20));
}

static void
a_slow_broker_does_not_get_everything_when_it_recovers(void **state)
{
	struct sim sim;

	sim_init(&sim, 4, 2);
	sim.pool_config.order = ORDER_BY_NONE;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 4, SIM_MS(1), 4);
	sim_broker_slow(&sim.brokers[0], SIM_MS(10));
	sim_run_for(&sim, SIM_S(20));
	assert_true(link_is_ready(sim_link(&sim, 0, 0)));
	sim_broker_slow(&sim.brokers[0], 0);
	sim_run_for(&sim, SIM_S(1));
	assert_between(45, share_of_0(&sim, SIM_S(2)), 55);
	end_all_delivered(&sim, SIM_S(5));
}

static void
least_prefers_who_answers_sooner(void **state)
{
	struct sim sim;

	sim_init(&sim, 5, 3);
	sim.pool_config.order = ORDER_BY_NONE;
	sim.pool_config.balance = BALANCE_LEAST;
	sim.brokers[0].ack_ns = SIM_MS(50);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 4, SIM_MS(1), 4);
	assert_between(0, share_of_0(&sim, SIM_S(5)), 12);
	end_all_delivered(&sim, SIM_S(5));
}

static void
slow_start_ramps_the_share(void **state)
{
	struct sim sim;

	sim_init(&sim, 6, 2);
	sim.pool_config.order = ORDER_BY_NONE;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(2), 4);
	sim_run_for(&sim, SIM_S(2));
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_S(1));
	sim_broker_start(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, is_0_ready, SIM_S(10)));
	/* Its weight grows from 0.1 to 1 in 5 s: shares of w / (w + 1). */
	assert_between(9, share_of_0(&sim, SIM_MS(500)), 16);
	sim_run_for(&sim, SIM_S(2));
	assert_between(34, share_of_0(&sim, SIM_MS(500)), 41);
	sim_run_for(&sim, SIM_S(2));
	assert_between(48, share_of_0(&sim, SIM_S(2)), 52);
	end_all_delivered(&sim, SIM_S(5));
}

static void
lanes_come_back_to_a_broker_that_has_recovered(void **state)
{
	struct sim sim;

	sim_init(&sim, 7, 2);
	sim.config.spin_us = 5000;
	sim_start(&sim);
	/* They never sleep, so nothing but the pool moves them. */
	start_producers(&sim, 32, SIM_MS(1), 1);
	sim_run_for(&sim, SIM_S(1));
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_MS(500));
	sim_broker_start(&sim.brokers[0]);
	sim_run_for(&sim, SIM_S(8));
	assert_between(14, sim.pool->brokers[0].bound_count, 18);
	end_all_delivered(&sim, SIM_S(5));
}

static void
priority_fails_back_only_to_proven_links(void **state)
{
	struct sim sim;

	sim_init(&sim, 8, 2);
	sim.pool_config.order = ORDER_BY_NONE;
	sim.pool_config.balance = BALANCE_PRIORITY;
	sim.broker_configs[1].priority = 1;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(2), 4);
	sim_run_for(&sim, SIM_S(2));
	assert_between(100, share_of_0(&sim, SIM_S(1)), 100);
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_MS(50));
	assert_between(0, share_of_0(&sim, SIM_S(1)), 0);
	sim_broker_start(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, is_0_ready, SIM_S(10)));
	assert_between(0, share_of_0(&sim, SIM_MS(4500)), 0);
	sim_run_for(&sim, SIM_S(1));
	assert_between(100, share_of_0(&sim, SIM_S(1)), 100);
	end_all_delivered(&sim, SIM_S(5));
}

/* ---- breaker and back-off ---- */

static void
breaker_probes_alone_and_ever_more_seldom(void **state)
{
	struct sim sim;

	sim_init(&sim, 9, 2);
	sim.pool_config.links = 4;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_S(60));
	assert_true(sim.pool->brokers[0].open);
	/* By now a step is the cap of 10 s, of which at least half is waited: check_on_resolve holds that. */
	uint64_t before = attempts(&sim, 0);
	sim_run_for(&sim, SIM_S(100));
	assert_between(9, attempts(&sim, 0) - before, 21);
	sim_broker_start(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(11)));
	end_all_delivered(&sim, SIM_S(1));
}

/* Three of four connections have no place, for ever. The fourth is well, which excuses nobody's haste. */
static void
links_without_a_place_try_ever_more_seldom(void **state)
{
	struct sim sim;

	sim_init(&sim, 29, 2);
	sim.pool_config.links = 4;
	sim.brokers[0].places = 1;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(60));
	assert_true(is_0_ready(&sim));
	/* Each waits 5 to 10 s at a time by now. */
	uint64_t before = attempts(&sim, 0);
	sim_run_for(&sim, SIM_S(100));
	assert_between(3 * 9, attempts(&sim, 0) - before, 3 * 21);
	/* It has not forgotten the one that is well, and has places again. */
	assert_false(sim.pool->brokers[0].open);
	sim.brokers[0].places = 0;
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(11)));
	end_all_delivered(&sim, SIM_S(1));
}

/* Up 2 s, down 2 s. */
static void
flapping_is_damped_and_nobody_sees_it(void **state)
{
	struct sim sim;

	sim_init(&sim, 10, 2);
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(10), 4);
	for (unsigned i = 0; i < 30; i++) {
		sim_run_for(&sim, SIM_S(2));
		sim_broker_crash(&sim.brokers[0]);
		sim_run_for(&sim, SIM_S(2));
		sim_broker_start(&sim.brokers[0]);
	}
	/* Two minutes. Undamped it would be one attempt in at most half a second of the time it is down. */
	assert_between(10, attempts(&sim, 0), 40);
	end_all_delivered(&sim, SIM_S(5));
}

static void
on_crash(void *arg, uint64_t n)
{
	sim_broker_crash(arg);
}

static void
restart_of_the_whole_cluster_loses_nothing(void **state)
{
	struct sim sim;
	uint64_t rate, before;

	sim_init(&sim, 11, 3);
	sim.pool_config.message_timeout_ms = 60000;
	sim_start(&sim);
	start_producers(&sim, 6, SIM_MS(5), 4);
	sim_run_for(&sim, SIM_S(5));
	before = stored(&sim);
	sim_run_for(&sim, SIM_S(1));
	rate = stored(&sim) - before;
	for (unsigned i = 0; i < 3; i++)
		sim_after(&sim.w, SIM_MS(100 * i), on_crash, &sim.brokers[i], 0);
	sim_run_for(&sim, SIM_S(30));
	assert_int_equal(sim.producers[0]->map.daemon->writable, 0);
	for (unsigned i = 0; i < 3; i++)
		sim_broker_start(&sim.brokers[i]);
	sim_run_for(&sim, SIM_S(5));
	assert_int_equal(sim.producers[0]->map.daemon->writable, 1);
	before = stored(&sim);
	sim_run_for(&sim, SIM_S(1));
	assert_true(stored(&sim) - before > rate * 9 / 10);
	end_all_delivered(&sim, SIM_S(5));
}

static void
never_accepted_connections_carry_nothing(void **state)
{
	struct sim sim;

	sim_init(&sim, 12, 2);
	sim.w.hosts[0].port = PORT_HOLDS;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(60));
	assert_int_equal(sim_link(&sim, 0, 0)->count.framed, 0);
	assert_true(sim.w.hosts[0].connects > 3);
	end_all_delivered(&sim, SIM_S(1));
}

/* It greets with a farewell: nothing of the session may be used after that. It is tried again without haste. */
static void
a_broker_may_leave_before_it_is_ready(void **state)
{
	struct sim sim;

	sim_init(&sim, 22, 2);
	sim.brokers[0].leaves_at_once = 1;
	sim_start(&sim);
	start_producers(&sim, 2, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(20));
	assert_int_equal(sim_link(&sim, 0, 0)->count.ready, 0);
	assert_between(3, attempts(&sim, 0), 80);
	end_all_delivered(&sim, SIM_S(1));
}

/* ---- a peer that vanishes ---- */

/* Returns after how many ms broker 0 is left. every_ns: 0: no traffic. */
static double
detection_ms(uint64_t seed, uint64_t every_ns, uint32_t burst, enum config_order order)
{
	struct sim sim;

	sim_init(&sim, seed, 2);
	sim.pool_config.order = order;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	if (every_ns != 0)
		start_producers(&sim, 4, every_ns, burst);
	sim_run_for(&sim, SIM_S(7) + SIM_MS(seed * 37 % 1000));
	uint64_t at = sim.w.now_ns;
	host_set_vanished(&sim.w.hosts[0], 1);
	assert_true(sim_run_until(&sim, is_0_left, SIM_S(20)));
	double ms = (double)(sim.w.now_ns - at) / 1e6;
	/* And the other has the load at once: nothing waits for the one that is gone. */
	uint64_t before = sim.brokers[1].stored;
	if (every_ns != 0) {
		sim_run_for(&sim, SIM_S(2));
		assert_true(sim.brokers[1].stored > before);
	}
	sim_run_for(&sim, SIM_S(10));
	assert_int_equal(sim.failed > 0, 1);
	host_set_vanished(&sim.w.hosts[0], 0);
	end_all_delivered(&sim, SIM_S(30));
	return ms;
}

static void
vanished_is_left_in_three_seconds(void **state)
{
	double worst[3] = { 0 };

	for (uint64_t seed = 1; seed <= 6; seed++)
		for (unsigned order = 0; order < 2; order++) {
			enum config_order o = order == 0 ? ORDER_BY_LANE : ORDER_BY_NONE;
			double idle = detection_ms(seed, 0, 0, o), trickle = detection_ms(seed, SIM_MS(1000), 1, o);
			double full = detection_ms(seed, SIM_MS(2), 8, o);
			worst[0] = idle > worst[0] ? idle : worst[0];
			worst[1] = trickle > worst[1] ? trickle : worst[1];
			worst[2] = full > worst[2] ? full : worst[2];
		}
	print_message("left after at most: idle %.0f ms, trickle %.0f ms, saturated %.0f ms\n", worst[0], worst[1],
	    worst[2]);
	/* Half a second of the three is for whoever takes over. */
	for (unsigned i = 0; i < 3; i++)
		assert_between(1500, worst[i], 2550);
}

/* … also when it has just gone on and the first answers are there as it is looked at. */
static void
a_busy_broker_is_not_slow_for_a_short_pause(void **state)
{
	for (uint64_t seed = 1; seed <= 40; seed++) {
		struct sim sim;
		sim_init(&sim, seed, 2);
		sim.brokers[0].ack_ns = sim.brokers[1].ack_ns = SIM_MS(30);
		sim_start(&sim);
		start_producers(&sim, 6, SIM_MS(5), 1);
		sim_run_for(&sim, SIM_S(3) + SIM_MS(seed * 53 % 1000));
		for (unsigned i = 0; i < 5; i++) {
			sim_broker_freeze(&sim.brokers[0], 1);
			sim_run_for(&sim, SIM_MS(1470));
			/* Only a few answers at first, as they come through. */
			sim_broker_slow(&sim.brokers[0], SIM_MS(10));
			sim_broker_freeze(&sim.brokers[0], 0);
			sim_run_for(&sim, SIM_MS(100));
			sim_broker_slow(&sim.brokers[0], 0);
			sim_run_for(&sim, SIM_MS(1000));
		}
		assert_int_equal(sim.suspects, 0);
		assert_int_equal(duplicates(&sim), 0);
		end_all_delivered(&sim, SIM_S(5));
	}
}

/* The application stops for 1.5 s: nothing happens at all. */
static void
a_short_pause_changes_nothing(void **state)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct sim sim;
		sim_init(&sim, seed, 2);
		sim_start(&sim);
		start_producers(&sim, 4, seed % 2 == 0 ? SIM_MS(5) : SIM_MS(700), 2);
		sim_run_for(&sim, SIM_S(3) + SIM_MS(seed * 53 % 1000));
		for (unsigned i = 0; i < 5; i++) {
			sim_broker_freeze(&sim.brokers[0], 1);
			sim_run_for(&sim, SIM_MS(1500));
			sim_broker_freeze(&sim.brokers[0], 0);
			sim_run_for(&sim, SIM_MS(2000));
		}
		assert_int_equal(sim.suspects, 0);
		assert_int_equal(sim.failed, 0);
		assert_int_equal(duplicates(&sim), 0);
		end_all_delivered(&sim, SIM_S(5));
	}
}

/* A cut of 1.5 s lasts until TCP tries again, up to 3 s after it began: no connection is given up for it. */
static void
a_short_cut_ends_no_connection(void **state)
{
	uint64_t suspects = 0;

	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct sim sim;
		sim_init(&sim, seed, 1);
		sim_start(&sim);
		start_producers(&sim, 4, seed % 2 == 0 ? SIM_MS(5) : SIM_MS(700), 2);
		sim_run_for(&sim, SIM_S(3) + SIM_MS(seed * 53 % 1000));
		for (unsigned i = 0; i < 5; i++) {
			host_set_vanished(&sim.w.hosts[0], 1);
			sim_run_for(&sim, SIM_MS(1500));
			host_set_vanished(&sim.w.hosts[0], 0);
			sim_run_for(&sim, SIM_MS(5000));
		}
		assert_int_equal(sim.failed, 0);
		assert_int_equal(duplicates(&sim), 0);
		suspects += sim.suspects;
		end_all_delivered(&sim, SIM_S(5));
	}
	print_message("100 cuts of 1.5 s: %llu times suspect, none failed\n", (unsigned long long)suspects);
}

static void
a_blocked_broker_that_vanishes_is_found(void **state)
{
	struct sim sim;

	sim_init(&sim, 13, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_S(60));
	assert_int_equal(sim.failed, 0);
	host_set_vanished(&sim.w.hosts[0], 1);
	sim_run_for(&sim, SIM_S(10));
	assert_true(sim.failed > 0);
	sim_broker_crash(&sim.brokers[0]);
	host_set_vanished(&sim.w.hosts[0], 0);
	sim_broker_start(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(10)));
	sim_fini(&sim);
}

/* ---- slow is not dead ---- */

static void
blocked_for_a_minute(enum config_order order)
{
	struct sim sim;

	sim_init(&sim, 14, 2);
	sim.pool_config.order = order;
	sim.pool_config.message_timeout_ms = 120000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 8, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(5));
	uint64_t before = stored(&sim);
	sim_run_for(&sim, SIM_S(1));
	uint64_t rate = stored(&sim) - before;
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_S(3));
	before = sim.brokers[1].stored;
	sim_run_for(&sim, SIM_S(1));
	assert_between((double)rate * 0.9, sim.brokers[1].stored - before, (double)rate * 1.2);
	sim_run_for(&sim, SIM_S(56));
	assert_int_equal(sim.failed, 0);
	sim_broker_block(&sim.brokers[0], 0);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(3)));
	end_all_delivered(&sim, SIM_S(5));
}

static void
blocked_is_not_dead_and_others_carry_the_load(void **state)
{
	blocked_for_a_minute(ORDER_BY_LANE);
	blocked_for_a_minute(ORDER_BY_NONE);
}

static void
blocked_does_not_hold_up_other_keys(void **state)
{
	blocked_for_a_minute(ORDER_BY_KEY);
}

/* Memory runs out, of all times, when the bytes of a broker that has just said so are to be kept. */
static int memory_has_run_out;
int __real_out_own(struct out *out);
int __wrap_out_own(struct out *out);

int
__wrap_out_own(struct out *out)
{
	if (!memory_has_run_out)
		return __real_out_own(out);
	/* What follows ends the session, in which nobody may be at work. */
	assert_false(driver_sim_in_input);
	return -TG_ENOMEM;
}

static void
no_memory_for_what_a_blocked_broker_leaves_ends_the_link(void **state)
{
	struct sim sim;

	sim_init(&sim, 31, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 4, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(1));
	memory_has_run_out = 1;
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_MS(50));
	memory_has_run_out = 0;
	assert_true(sim.failed > 0);
	sim_broker_block(&sim.brokers[0], 0);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(10)));
	end_all_delivered(&sim, SIM_S(5));
}

/* One broker may have it, and the other's rules forbid it: nobody knows what became of it. */
static void
what_may_have_been_sent_is_not_called_rejected(void **state)
{
	struct sim sim;

	sim_init(&sim, 32, 2);
	sim.brokers[1].refuses = 1;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_block(&sim.brokers[1], 1);
	sim_run_for(&sim, SIM_MS(100));
	sim_broker_mute(&sim.brokers[0], 1);
	struct producer *p = sim_producer(&sim, 0);
	assert_int_equal(producer_publish(p, 100, 0), 0);
	sim_run_for(&sim, SIM_MS(500));
	assert_int_equal(sim.brokers[0].stored, 1);
	sim_broker_block(&sim.brokers[1], 0);
	sim_run_for(&sim, SIM_MS(100));
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_S(2));
	assert_int_equal(p->ledger[0].outcome, TG_UNKNOWN);
	assert_int_equal(producer_publish(p, 100, 0), 0);
	sim_run_for(&sim, SIM_S(2));
	assert_int_equal(p->ledger[1].outcome, TG_REJECTED);
	sim_fini(&sim);
}

/* A broker without room for a while: it takes them in order when it has some again. */
static void
what_is_refused_for_now_is_not_overtaken(void **state)
{
	struct sim sim;

	for (uint64_t seed = 0; seed < 20; seed++) {
		sim_init(&sim, 40 + seed, 1);
		sim.w.hosts[0].bytes_per_s = 1000000; /* so that it changes its mind between two records */
		sim_start(&sim);
		assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
		start_producers(&sim, 4, SIM_MS(5), 4);
		sim_run_for(&sim, SIM_MS(300));
		sim.brokers[0].again = 1.0;
		sim_run_for(&sim, SIM_MS(500 + 7 * seed));
		sim.brokers[0].again = 0;
		sim_run_for(&sim, SIM_MS(500));
		for (unsigned i = 0; i < sim.producer_count; i++)
			assert_int_equal(sim.producers[i]->overtaken, 0);
		end_all_delivered(&sim, SIM_S(5));
	}
}

/* A broker without a leader for a while, elected in the middle of what is sent to it. */
static void
who_has_no_leader_takes_nothing_out_of_turn(void **state)
{
	struct sim sim;

	for (uint64_t seed = 0; seed < 120; seed++) {
		sim_init(&sim, 2000 + seed, 1);
		sim.pool_config.breaker.retry_max_ms = 500;
		sim.w.hosts[0].bytes_per_s = 3000000; /* so that it has one between two records */
		sim.brokers[0].ack_ns = SIM_MS(50);
		sim_start(&sim);
		assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
		start_producers(&sim, 4, SIM_MS(20), 4);
		sim_run_for(&sim, SIM_MS(300));
		sim.brokers[0].leaderless = 1;
		sim_run_for(&sim, SIM_S(3) + SIM_MS(37 * seed % 1000));
		assert_true(sim.failed > 0);
		sim.brokers[0].leaderless = 0;
		sim_run_for(&sim, SIM_S(2));
		for (unsigned i = 0; i < sim.producer_count; i++)
			assert_int_equal(sim.producers[i]->overtaken, 0);
		end_all_delivered(&sim, SIM_S(5));
	}
}

static int
is_wide(struct sim *sim)
{
	const struct link *link = sim_link(sim, 0, 0);

	return link->state == LINK_READY && link->window == sim->pool_config.window_messages;
}

/* It begins carefully, and a host with a thousand lanes does not wait for a thousand round trips. */
static void
who_had_no_leader_is_soon_fast_again(void **state)
{
	struct sim sim;

	sim_init(&sim, 43, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 1000, SIM_MS(500), 1);
	sim_run_for(&sim, SIM_S(1));
	sim.brokers[0].leaderless = 1;
	assert_true(sim_run_until(&sim, is_0_left, SIM_S(3)));
	sim.brokers[0].leaderless = 0;
	uint64_t before = stored(&sim);
	assert_false(is_wide(&sim));
	assert_true(sim_run_until(&sim, is_wide, SIM_S(10)));
	assert_between(1, stored(&sim) - before, LINK_CAREFUL_MAX);
	end_all_delivered(&sim, SIM_S(5));
}

/* Reads one message a second: with another broker there, nothing waits for it. */
static void
a_crawling_broker_loses_nothing(void **state)
{
	struct sim sim;

	sim_init(&sim, 15, 1);
	sim.pool_config.message_timeout_ms = 600000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_slow(&sim.brokers[0], SIM_MS(1000));
	for (unsigned i = 0; i < 50; i++)
		producer_publish(sim.producer_count == 0 ? sim_producer(&sim, 0) : sim.producers[0], 1000, 0);
	sim_run_for(&sim, SIM_S(120));
	assert_int_equal(sim.failed, 0);
	assert_int_equal(duplicates(&sim), 0);
	end_all_delivered(&sim, SIM_S(1));
}

static void
frozen_is_left_soon_and_given_up_after_the_stall_time(void **state)
{
	struct sim sim;

	sim_init(&sim, 16, 2);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 4, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(3));
	uint64_t at = sim.w.now_ns;
	sim_broker_freeze(&sim.brokers[1], 1);
	assert_true(sim_run_until(&sim, is_1_left, SIM_S(3)));
	assert_int_equal(sim_link(&sim, 1, 0)->state, LINK_SUSPECT);
	uint64_t left = sim.w.now_ns;
	sim_run_for(&sim, SIM_MS(9900));
	assert_int_equal(sim.failed, 0);
	sim_run_for(&sim, SIM_MS(400));
	assert_int_equal(sim.failed, 1);
	assert_true(left - at <= SIM_S(3));
	sim_broker_freeze(&sim.brokers[1], 0);
	end_all_delivered(&sim, SIM_S(20));
}

/* ---- loss ---- */

static void
loss_is_no_death(void **state)
{
	struct sim sim;

	sim_init(&sim, 17, 2);
	sim.w.hosts[0].loss = sim.w.hosts[1].loss = 0.1;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(20), 2);
	sim_run_for(&sim, SIM_S(600));
	print_message("10 %% loss each way, 600 s: %llu times suspect, %llu failures\n",
	    (unsigned long long)sim.suspects, (unsigned long long)sim.failed);
	assert_int_equal(sim.failed, 0);
	end_all_delivered(&sim, SIM_S(20));
}

static void
heavy_loss_loses_nothing(void **state)
{
	struct sim sim;

	sim_init(&sim, 18, 2);
	sim.w.hosts[0].loss = sim.w.hosts[1].loss = 0.3;
	sim.pool_config.message_timeout_ms = 600000;
	sim_start(&sim);
	start_producers(&sim, 4, SIM_MS(50), 2);
	sim_run_for(&sim, SIM_S(300));
	end_all_delivered(&sim, SIM_S(120));
}

/* ---- limits ---- */

/* The marks of bytes and of messages are apart: what is sent makes room for more, however late answers come. */
static void
late_answers_do_not_hold_up_what_may_be_sent(void **state)
{
	struct sim sim;

	sim_init(&sim, 30, 1);
	sim.pool_config.window_low = 10;
	sim.brokers[0].ack_ns = SIM_S(1);
	sim.w.hosts[0].bytes_per_s = 20u << 20;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	/* Three times what may be unsent; the network carries it in a seventh of a second. */
	struct producer *producer = sim_producer(&sim, 8u << 20);
	for (unsigned i = 0; i < 300; i++)
		assert_int_equal(producer_publish(producer, 10000, 0), 0);
	producer_ring(producer);
	sim_run_for(&sim, SIM_MS(500));
	assert_int_equal(stored(&sim), 300);
	end_all_delivered(&sim, SIM_S(2));
}

/* Nobody answers, and everybody publishes without end: check_step holds the limits. */
static void
memory_stays_bounded_against_a_dead_end(void **state)
{
	struct sim sim;

	sim_init(&sim, 19, 1);
	sim.pool_config.message_timeout_ms = 600000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_freeze(&sim.brokers[0], 1);
	for (unsigned i = 0; i < 8; i++) {
		struct producer *p = sim_producer(&sim, 1 << 20);
		p->body_low = p->body_high = 1024;
		producer_go(p, SIM_MS(1), 16);
	}
	sim_run_for(&sim, SIM_S(60));
	for (unsigned i = 0; i < 8; i++) {
		assert_true(sim.producers[i]->sleeping);
		assert_true(sim.producers[i]->lane->slot_capacity <= sim.producers[i]->map.geo.cq_entries);
	}
	assert_int_equal(sim.producers[0]->map.daemon->writable, 0);
	sim_broker_freeze(&sim.brokers[0], 0);
	end_all_delivered(&sim, SIM_S(60));
}

/* A client chooses how many records it has waiting and when each expires; the others' share is not its to choose. */
static void
what_a_waiting_lane_costs_at_a_time_is_bounded(void **state)
{
	enum { RECORDS = 12000 };
	struct sim sim;
	struct producer *p;
	uint32_t admitted = 0, left;

	sim_init(&sim, 21, 1);
	sim_start(&sim);
	sim_broker_crash(&sim.brokers[0]);
	p = sim_producer(&sim, 4 << 20);
	for (uint32_t n = 0; n < RECORDS; n++)
		assert_int_equal(producer_publish(p, 8, 1000 + n * 7 % 10), 0);
	producer_ring(p);
	for (unsigned ms = 0; ms < 500; ms++) {
		sim_run_for(&sim, SIM_MS(1));
		assert_true(p->lane->unfinished - admitted <= LANE_SWEEP_SLOTS);
		admitted = p->lane->unfinished;
	}
	assert_int_equal(admitted, RECORDS);
	for (unsigned ms = 0; p->unfinished > 0; ms++) {
		left = p->lane->unfinished;
		sim_run_for(&sim, SIM_MS(1));
		assert_true(left - p->lane->unfinished <= LANE_SWEEP_SLOTS);
		assert_true(ms < 700); /* 10 ms apart, and three looks */
	}
	assert_int_equal(p->done.outcome[TG_EXPIRED], RECORDS);
	sim_fini(&sim);
}

/* Deadlines of what waits and of what is in flight. */
static void
deadlines_are_kept(void **state)
{
	struct sim sim;
	struct producer *p;

	sim_init(&sim, 20, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	p = sim_producer(&sim, 0);
	sim_broker_freeze(&sim.brokers[0], 1);
	producer_publish(p, 100, 5000);
	sim_run_for(&sim, SIM_MS(4000)); /* it is in flight, and its link has been left */
	producer_publish(p, 100, 500);
	sim_run_for(&sim, SIM_MS(540));
	assert_int_equal(p->ledger[1].outcome, TG_EXPIRED);
	sim_run_for(&sim, SIM_MS(700));
	assert_int_equal(p->ledger[0].outcome, TG_UNKNOWN);
	sim_broker_freeze(&sim.brokers[0], 0);
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(5));
	sim_fini(&sim);
}

static void
deadlines_are_kept_while_blocked(void **state)
{
	struct sim sim;
	struct producer *p;

	sim_init(&sim, 21, 2);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	p = sim_producer(&sim, 0);
	for (unsigned i = 0; i < 2; i++) {
		sim.brokers[i].ack_ns = SIM_MS(100000);
		producer_publish(p, 100, 0);
	}
	sim_run_for(&sim, SIM_MS(10));
	sim_broker_block(&sim.brokers[0], 1);
	sim_broker_block(&sim.brokers[1], 1);
	sim_run_for(&sim, SIM_MS(31500));
	assert_int_equal(p->ledger[0].outcome, TG_UNKNOWN);
	assert_int_equal(sim.failed, 0);
	sim_run_for(&sim, SIM_S(100));
	sim_fini(&sim);
}

static int
is_nothing_outstanding(struct sim *sim)
{
	return sim->shard.outstanding == 0;
}

/* For a hand-over: lanes that wait while others are answered get nothing either. */
static void
a_pause_frames_nothing(void **state)
{
	struct sim sim;

	sim_init(&sim, 71, 1);
	sim.pool_config.order = ORDER_BY_NONE;
	sim.pool_config.window_messages = 20;
	sim.pool_config.window_low = 10;
	sim.brokers[0].ack_ns = SIM_MS(30);
	sim_start(&sim);
	start_producers(&sim, 8, SIM_MS(1), 20);
	sim_run_for(&sim, SIM_S(1));
	assert_true(sim.shard.outstanding > 0 && sim.pool->waiting > 0);
	sim.shard.paused = 1;
	assert_true(sim_run_until(&sim, is_nothing_outstanding, SIM_MS(200)));
	sim_run_for(&sim, SIM_MS(100));
	assert_int_equal(sim.shard.outstanding, 0);
	sim.shard.paused = 0;
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(60));
	sim_fini(&sim);
}

/* A client that spoils its lanes while their records are under way gets no memory for nothing. */
static void
a_spoiled_lane_counts_until_it_is_freed(void **state)
{
	struct sim sim;
	struct producer *p;

	sim_init(&sim, 72, 1);
	sim.brokers[0].ack_ns = SIM_MS(100);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	p = sim_producer(&sim, 0);
	producer_publish(p, 100, 0);
	sim_run_for(&sim, SIM_MS(10));
	assert_int_equal(sim.shard.outstanding, 1);
	uint64_t bytes = sim.shard.lane_memory;
	assert_true(bytes > 0);
	lane_quarantine(p->lane, "spoiled by the test");
	sim.shard.count.lanes_quarantined = 0; /* of honest producers there is none */
	p->lane = NULL;
	p->unfinished = 0;
	p->closed = 1;
	sim.live_from = sim.producer_count;
	assert_int_equal(sim.shard.lane_memory, bytes);
	assert_int_equal(sim.shard.lane_count, 0);
	sim_run_for(&sim, SIM_MS(200));
	assert_int_equal(sim.shard.outstanding, 0);
	assert_int_equal(sim.shard.lane_memory, 0);
	producer_free(p);
	sim.producer_count = 0;
	sim_fini(&sim);
}

static int
has_fallen_asleep(struct sim *sim)
{
	return sim->producers[0]->lane->dozing == &sim->shard.doubted;
}

/* wake.h: membarrier can miss a publisher, which then does not know that it has to ring. */
static void
a_publish_that_the_barrier_missed_waits_a_moment(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim_start(&sim);
	sim.shard.expedited = 1;
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *p = sim_producer(&sim, 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(producer_publish(p, 100, 0), 0);
		assert_true(sim_run_until(&sim, has_fallen_asleep, SIM_S(1)));
		p->unheard = 1;
		assert_int_equal(producer_publish(p, 100, 0), 0);
		p->unheard = 0;
		sim_settle(&sim, SIM_MS(WAKE_SECOND_LOOK_MS + 10));
	}
	uint64_t turns = sim.turns;
	sim_run_for(&sim, SIM_MS(100)); /* one look more and no other */
	assert_true(sim.turns - turns < 10);
	end_all_delivered(&sim, SIM_S(1));
}

/* Whatever becomes of a ring, what it was for is found in the end, and told of. */
static void
a_ring_that_is_lost_costs_time_and_nothing_else(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim_start(&sim);
	sim.shard.expedited = 1;
	timer_set(&sim.shard.timers, &sim.shard.round, sim.shard.now_ns + SHARD_ROUND_NS);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *p = sim_producer(&sim, 0);
	assert_int_equal(producer_publish(p, 100, 0), 0);
	sim_run_for(&sim, SIM_MS(500));
	p->unheard = 1;
	assert_int_equal(producer_publish(p, 100, 0), 0);
	p->unheard = 0;
	sim_settle(&sim, 2 * SHARD_ROUND_NS + SIM_MS(10));
	assert_int_equal(sim.shard.count.overslept, 1);
	end_all_delivered(&sim, SIM_S(1));
}

/* The publisher is held up until its record is done and the lane asleep again; then it rings. */
static void
a_late_ring_does_not_use_up_the_next(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *p = sim_producer(&sim, 0);
	p->unheard = 1;
	assert_int_equal(producer_publish(p, 100, 0), 0); /* the lane is new, and awake */
	sim_run_for(&sim, SIM_MS(100));
	assert_int_equal(p->lane->place, LANE_ASLEEP);
	p->unheard = 0;
	producer_ring(p);
	sim_run_for(&sim, SIM_MS(100));
	assert_int_equal(producer_publish(p, 100, 0), 0);
	sim_settle(&sim, SIM_MS(100));
	end_all_delivered(&sim, SIM_S(1));
}

static int
is_something_outstanding(struct sim *sim)
{
	return sim->shard.outstanding > 0;
}

static int
may_go_on(struct sim *sim)
{
	const struct control *control = &sim->shard.control;

	return control->timer.place != 0 && control->timer.at_ns <= sim->shard.now_ns;
}

/* Whoever asked for more than his share of a busy daemon's time need not wait for it when it has become idle. */
static void
who_is_held_goes_on_when_there_are_no_messages(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim.brokers[0].ack_ns = SIM_MS(30);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	assert_int_equal(producer_publish(sim_producer(&sim, 0), 100, 0), 0);
	assert_true(sim_run_until(&sim, is_something_outstanding, SIM_S(1)));
	struct control *control = &sim.shard.control;
	control_charge(control, SIM_S(100)); /* had come by it */
	control_charge(control, SIM_S(100));
	assert_false(control_may(control));
	control_hold_listener(control);
	assert_false(may_go_on(&sim));
	assert_true(sim_run_until(&sim, may_go_on, SIM_S(1)));
	assert_true(control_may(control));
	control_fini(control); /* there is no listener to go on */
	sim_settle(&sim, SIM_MS(100));
	end_all_delivered(&sim, SIM_S(1));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(who_is_held_goes_on_when_there_are_no_messages),
		cmocka_unit_test(a_publish_that_the_barrier_missed_waits_a_moment),
		cmocka_unit_test(a_ring_that_is_lost_costs_time_and_nothing_else),
		cmocka_unit_test(a_late_ring_does_not_use_up_the_next),
		cmocka_unit_test(everything_is_delivered),
		cmocka_unit_test(nothing_to_do_costs_no_turns),
		cmocka_unit_test(weighted_is_within_a_percent_by_record),
		cmocka_unit_test(weighted_is_within_a_percent_by_lane),
		cmocka_unit_test(a_lane_that_comes_anew_is_not_starved_by_a_backlog),
		cmocka_unit_test(a_slow_broker_does_not_get_everything_when_it_recovers),
		cmocka_unit_test(least_prefers_who_answers_sooner),
		cmocka_unit_test(slow_start_ramps_the_share),
		cmocka_unit_test(lanes_come_back_to_a_broker_that_has_recovered),
		cmocka_unit_test(priority_fails_back_only_to_proven_links),
		cmocka_unit_test(breaker_probes_alone_and_ever_more_seldom),
		cmocka_unit_test(links_without_a_place_try_ever_more_seldom),
		cmocka_unit_test(flapping_is_damped_and_nobody_sees_it),
		cmocka_unit_test(restart_of_the_whole_cluster_loses_nothing),
		cmocka_unit_test(never_accepted_connections_carry_nothing),
		cmocka_unit_test(a_broker_may_leave_before_it_is_ready),
		cmocka_unit_test(vanished_is_left_in_three_seconds),
		cmocka_unit_test(a_busy_broker_is_not_slow_for_a_short_pause),
		cmocka_unit_test(a_short_pause_changes_nothing),
		cmocka_unit_test(a_short_cut_ends_no_connection),
		cmocka_unit_test(a_blocked_broker_that_vanishes_is_found),
		cmocka_unit_test(blocked_is_not_dead_and_others_carry_the_load),
		cmocka_unit_test(blocked_does_not_hold_up_other_keys),
		cmocka_unit_test(no_memory_for_what_a_blocked_broker_leaves_ends_the_link),
		cmocka_unit_test(what_is_refused_for_now_is_not_overtaken),
		cmocka_unit_test(who_has_no_leader_takes_nothing_out_of_turn),
		cmocka_unit_test(who_had_no_leader_is_soon_fast_again),
		cmocka_unit_test(what_may_have_been_sent_is_not_called_rejected),
		cmocka_unit_test(a_crawling_broker_loses_nothing),
		cmocka_unit_test(frozen_is_left_soon_and_given_up_after_the_stall_time),
		cmocka_unit_test(loss_is_no_death),
		cmocka_unit_test(heavy_loss_loses_nothing),
		cmocka_unit_test(late_answers_do_not_hold_up_what_may_be_sent),
		cmocka_unit_test(memory_stays_bounded_against_a_dead_end),
		cmocka_unit_test(what_a_waiting_lane_costs_at_a_time_is_bounded),
		cmocka_unit_test(deadlines_are_kept),
		cmocka_unit_test(a_pause_frames_nothing),
		cmocka_unit_test(a_spoiled_lane_counts_until_it_is_freed),
		cmocka_unit_test(deadlines_are_kept_while_blocked),
	};

	/* A thousand lanes have two descriptors each. */
	struct rlimit files;
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (getenv("SIM_TEST") != NULL)
		cmocka_set_test_filter(getenv("SIM_TEST"));
	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
