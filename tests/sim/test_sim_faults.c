/* Stories of brokers that fail, vanish and lose segments. check_sim.c has the conditions of all stories. */
#include "story.h"

static uint64_t
attempts(const struct sim *sim, unsigned broker)
{
	return sim->pool->peers.list[broker].count.attempts;
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
	assert_true(sim.pool->peers.list[0].open);
	/* By now a step is the cap of 10 s, of which at least half is waited: check_on_resolve holds that. */
	uint64_t before = attempts(&sim, 0);
	sim_run_for(&sim, SIM_S(100));
	assert_between(9, attempts(&sim, 0) - before, 21);
	sim_broker_start(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(11)));
	end_all_delivered(&sim, SIM_S(1));
}

/* Three of four connections have no place, for ever. The fourth is well, which must not make the others retry
 * faster. */
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
	/* The healthy connection stays, and the broker accepts more again. */
	assert_false(sim.pool->peers.list[0].open);
	sim.brokers[0].places = 0;
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(11)));
	end_all_delivered(&sim, SIM_S(1));
}

/* Up 2 s, down 2 s. */
static void
flapping_is_damped_and_harms_no_message(void **state)
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

/* It greets with a goodbye: the session must not be used after that, and the retry waits its back-off. */
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
	/* And the other broker has the load at once: no message waits for the one that is gone. */
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
			double idle = detection_ms(seed, 0, 0, o),
			       trickle = detection_ms(seed, SIM_MS(1000), 1, o);
			double full = detection_ms(seed, SIM_MS(2), 8, o);
			worst[0] = idle > worst[0] ? idle : worst[0];
			worst[1] = trickle > worst[1] ? trickle : worst[1];
			worst[2] = full > worst[2] ? full : worst[2];
		}
	print_message("left after at most: idle %.0f ms, trickle %.0f ms, saturated %.0f ms\n", worst[0],
	    worst[1], worst[2]);
	/* Half a second of the three is for the broker that takes over. */
	for (unsigned i = 0; i < 3; i++)
		assert_between(1500, worst[i], 2550);
}

/* … also when it has just resumed and the first answers arrive during the check. */
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(breaker_probes_alone_and_ever_more_seldom),
		cmocka_unit_test(links_without_a_place_try_ever_more_seldom),
		cmocka_unit_test(flapping_is_damped_and_harms_no_message),
		cmocka_unit_test(restart_of_the_whole_cluster_loses_nothing),
		cmocka_unit_test(never_accepted_connections_carry_nothing),
		cmocka_unit_test(a_broker_may_leave_before_it_is_ready),
		cmocka_unit_test(vanished_is_left_in_three_seconds),
		cmocka_unit_test(a_busy_broker_is_not_slow_for_a_short_pause),
		cmocka_unit_test(a_short_pause_changes_nothing),
		cmocka_unit_test(a_short_cut_ends_no_connection),
		cmocka_unit_test(a_blocked_broker_that_vanishes_is_found),
		cmocka_unit_test(loss_is_no_death),
		cmocka_unit_test(heavy_loss_loses_nothing),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_faults", tests, NULL, NULL);
}
