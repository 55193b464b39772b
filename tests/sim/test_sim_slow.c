/*
 * Slow is not dead: stories of brokers that are slow, blocked, or cannot take messages for now. check_sim.c has
 * the conditions of all stories.
 */
#include "story.h"

static int
is_1_left(struct sim *sim)
{
	return !broker_is_ready(&sim->pool->peers.list[1]);
}

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

/* A blocked broker may answer older messages after it unblocks: only then can it stall. */
static void
unblocked_broker_has_its_time_to_answer(void **state)
{
	struct sim sim;

	sim_init(&sim, 33, 2);
	sim.w.hosts[0].latency_ns = SIM_MS(20); /* so that something is on its way whenever it is blocked */
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 8, SIM_MS(10), 4);
	sim_run_for(&sim, SIM_S(1));
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_S(40));
	assert_int_equal(sim_link(&sim, 0, 0)->state, LINK_SUSPECT);
	assert_true(sim_link(&sim, 0, 0)->outstanding > 0);
	sim.brokers[0].ack_ns = SIM_MS(800);
	sim_broker_block(&sim.brokers[0], 0);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(5)));
	assert_int_equal(sim.failed, 0);
	/* And no longer than that. */
	sim.brokers[0].ack_ns = 0;
	sim_run_for(&sim, SIM_S(1));
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_S(40));
	sim_broker_mute(&sim.brokers[0], 1);
	sim_broker_block(&sim.brokers[0], 0);
	sim_run_for(&sim, SIM_MS(9900));
	assert_int_equal(sim.failed, 0);
	sim_run_for(&sim, SIM_MS(400));
	assert_int_equal(sim.failed, 1);
	sim_broker_mute(&sim.brokers[0], 0);
	end_all_delivered(&sim, SIM_S(20));
}

/* Memory runs out just when the link has to copy the unsent bytes of a broker that reported itself blocked. */
static int memory_has_run_out;
int __real_out_own(struct out *out);
int __wrap_out_own(struct out *out);

int
__wrap_out_own(struct out *out)
{
	if (!memory_has_run_out)
		return __real_out_own(out);
	/* The next call ends the session, while no function of the driver may be running. */
	assert_false(driver_sim_in_input);
	return -TG_ENOMEM;
}

static void
no_memory_for_a_blocked_brokers_unsent_bytes_ends_the_link(void **state)
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

/* One broker may have stored it, and the other's rules forbid it: its fate is unknown. */
static void
message_perhaps_sent_is_not_called_rejected(void **state)
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

/* A broker without room for a while: when it has room, it gets the messages in order. */
static void
message_refused_for_now_is_not_overtaken(void **state)
{
	struct sim sim;

	for (uint64_t seed = 0; seed < 20; seed++) {
		sim_init(&sim, 40 + seed, 1);
		sim.w.hosts[0].bytes_per_s = 1000000; /* so that it gets room between two records */
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

/* A stream without a leader for a while, which is elected in the middle of a batch. */
static void
stream_without_a_leader_takes_nothing_out_of_turn(void **state)
{
	struct sim sim;

	for (uint64_t seed = 0; seed < 120; seed++) {
		sim_init(&sim, 2000 + seed, 1);
		sim.pool_config.breaker.retry_max_ms = 500;
		sim.w.hosts[0].bytes_per_s = 3000000; /* so that the election falls between two records */
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

/* The link starts carefully, but a host with a thousand lanes does not wait for a thousand round trips. */
static void
stream_with_a_new_leader_is_soon_fast_again(void **state)
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(blocked_is_not_dead_and_others_carry_the_load),
		cmocka_unit_test(blocked_does_not_hold_up_other_keys),
		cmocka_unit_test(unblocked_broker_has_its_time_to_answer),
		cmocka_unit_test(no_memory_for_a_blocked_brokers_unsent_bytes_ends_the_link),
		cmocka_unit_test(message_perhaps_sent_is_not_called_rejected),
		cmocka_unit_test(message_refused_for_now_is_not_overtaken),
		cmocka_unit_test(stream_without_a_leader_takes_nothing_out_of_turn),
		cmocka_unit_test(stream_with_a_new_leader_is_soon_fast_again),
		cmocka_unit_test(a_crawling_broker_loses_nothing),
		cmocka_unit_test(frozen_is_left_soon_and_given_up_after_the_stall_time),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_slow", tests, NULL, NULL);
}
