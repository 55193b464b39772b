/* Stories of balance between brokers. check_sim.c has the conditions of all stories. */
#include "story.h"

/* The share of broker 0 of what the brokers take in the next ns, in percent. */
static double
share_of_0(struct sim *sim, uint64_t ns)
{
	uint64_t all = stored(sim), first = sim->brokers[0].stored;

	sim_run_for(sim, ns);
	assert_true(stored(sim) > all + 100);
	return 100.0 * (double)(sim->brokers[0].stored - first) / (double)(stored(sim) - all);
}

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
		assert_between(100.0 * weights[i] / 8 - 1,
		    100.0 * (double)sim.brokers[i].stored / (double)stored(&sim), 100.0 * weights[i] / 8 + 1);
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

/* Lanes with a backlog fill a link's window whenever it opens; a new lane is not bound to that link. */
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

/* A broker that was unwritable for a while gets a bounded share of what it missed. */
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
least_prefers_the_faster_broker(void **state)
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
	/* The lanes never sleep, so only the pool moves them. */
	start_producers(&sim, 32, SIM_MS(1), 1);
	sim_run_for(&sim, SIM_S(1));
	sim_broker_crash(&sim.brokers[0]);
	sim_run_for(&sim, SIM_MS(500));
	sim_broker_start(&sim.brokers[0]);
	sim_run_for(&sim, SIM_S(8));
	assert_between(14, sim.pool->peers.list[0].bound_count, 18);
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(weighted_is_within_a_percent_by_record),
		cmocka_unit_test(weighted_is_within_a_percent_by_lane),
		cmocka_unit_test(a_lane_that_comes_anew_is_not_starved_by_a_backlog),
		cmocka_unit_test(a_slow_broker_does_not_get_everything_when_it_recovers),
		cmocka_unit_test(least_prefers_the_faster_broker),
		cmocka_unit_test(slow_start_ramps_the_share),
		cmocka_unit_test(lanes_come_back_to_a_broker_that_has_recovered),
		cmocka_unit_test(priority_fails_back_only_to_proven_links),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_balance", tests, NULL, NULL);
}
