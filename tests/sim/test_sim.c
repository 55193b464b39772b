/*
 * Stories without faults: everything is delivered, idling costs nothing, and no lane oversleeps. check_sim.c
 * has the conditions of all stories.
 */
#include "story.h"

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

/* ---- sleeping sides are woken ---- */
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

/* Publishes; returns whether the daemon still looks at the empty lane a while later, and then lets it sleep. */
static int
is_watched(struct sim *sim, struct producer *p)
{
	assert_int_equal(producer_publish(p, 100, 0), 0);
	sim_run_for(sim, SIM_MS(1) / 2);
	int watched = p->lane->place != LANE_ASLEEP;
	sim_run_for(sim, SIM_MS(10));
	assert_int_equal(p->lane->place, LANE_ASLEEP);
	return watched;
}

static void
a_lane_that_is_watched_in_vain_sleeps_at_once(void **state)
{
	struct sim sim;
	unsigned watches = 0;

	(void)state;
	sim_init(&sim, 1, 1);
	sim.config.spin_us = 1000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *p = sim_producer(&sim, 0);
	while (is_watched(&sim, p))
		watches++;
	assert_in_range(watches, 1, SPIN_CREDITS);
	for (unsigned i = 1; i < 10 * SPIN_RETRY_EVERY; i++)
		watches += is_watched(&sim, p) != 0;
	assert_in_range(watches, 10, 10 + SPIN_CREDITS);
	end_all_delivered(&sim, SIM_S(1));
}

static void
a_lane_whose_publisher_comes_back_soon_is_watched_again(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim.config.spin_us = 1000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *p = sim_producer(&sim, 0);
	while (is_watched(&sim, p))
		;
	for (unsigned i = 0; i < 2 * SPIN_RETRY_EVERY; i++) {
		assert_int_equal(producer_publish(p, 100, 0), 0);
		sim_run_for(&sim, SIM_MS(1) / 4);
	}
	assert_true(is_watched(&sim, p));
	end_all_delivered(&sim, SIM_S(1));
}

/* Even if a ring is lost, the daemon finds its record in the end and reports it. */
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
	assert_int_equal(sim.shard.count.lanes_overslept, 1);
	end_all_delivered(&sim, SIM_S(1));
}

/* The publisher is preempted until its record is done and the lane asleep again; then it rings. */
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
	const struct control *control = &sim->front.control;

	return control->timer.place != 0 && control->timer.at_ns <= sim->shard.now_ns;
}

/* A client that used more than its share of a busy daemon's time does not wait once the daemon is idle. */
static void
held_client_goes_on_when_there_are_no_messages(void **state)
{
	struct sim sim;

	(void)state;
	sim_init(&sim, 1, 1);
	sim.brokers[0].ack_ns = SIM_MS(30);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	assert_int_equal(producer_publish(sim_producer(&sim, 0), 100, 0), 0);
	assert_true(sim_run_until(&sim, is_something_outstanding, SIM_S(1)));
	struct control *control = &sim.front.control;
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
		cmocka_unit_test(everything_is_delivered),
		cmocka_unit_test(nothing_to_do_costs_no_turns),
		cmocka_unit_test(a_publish_that_the_barrier_missed_waits_a_moment),
		cmocka_unit_test(a_lane_that_is_watched_in_vain_sleeps_at_once),
		cmocka_unit_test(a_lane_whose_publisher_comes_back_soon_is_watched_again),
		cmocka_unit_test(a_ring_that_is_lost_costs_time_and_nothing_else),
		cmocka_unit_test(a_late_ring_does_not_use_up_the_next),
		cmocka_unit_test(held_client_goes_on_when_there_are_no_messages),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
