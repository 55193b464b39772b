/*
 * Stories of limits on memory, on time, and on the cost of one client for the others. check_sim.c has the
 * conditions of all stories.
 */
#include "story.h"

/* Watermark and window are separate: written bytes make room for more, however late answers come. */
static void
late_answers_do_not_delay_permitted_sends(void **state)
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

/* No broker answers, and all producers publish without end: check_step checks the limits. */
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
		assert_true(slots_made(&sim.producers[i]->lane->slots) <= sim.producers[i]->map.geo.cq_entries);
	}
	assert_int_equal(sim.producers[0]->map.daemon->writable, 0);
	sim_broker_freeze(&sim.brokers[0], 0);
	end_all_delivered(&sim, SIM_S(60));
}

/* A client chooses how many records wait and when each expires, but not the others' share of the loop. */
static void
cost_of_a_waiting_lane_per_tick_is_bounded(void **state)
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

/* The broker hears of what is left of it, which check_publish() holds every message to. */
static void
what_is_past_its_expiry_is_not_sent(void **state)
{
	struct sim sim;
	struct producer *p;

	sim_init(&sim, 22, 1);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	p = sim_producer(&sim, 0);
	sim_broker_block(&sim.brokers[0], 1);
	sim_run_for(&sim, SIM_MS(50));
	producer_publish_for(p, 100, 0, 500);
	producer_publish_for(p, 100, 5000, 500);
	producer_publish_for(p, 100, 500, 5000);
	producer_publish_for(p, 100, 0, 5000);
	sim_run_for(&sim, SIM_MS(540));
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(p->ledger[i].outcome, TG_EXPIRED);
	assert_int_equal(p->ledger[3].outcome, 0);
	sim_broker_block(&sim.brokers[0], 0);
	sim_run_for(&sim, SIM_MS(200));
	assert_int_equal(p->ledger[3].outcome, TG_DELIVERED);
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

/* Before a hand-over the daemon frames nothing for waiting lanes while others are answered. */
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

/* Records of a client that is gone live for limits.orphan_ms at most, sent or not, whatever their own deadlines. */
static void
an_orphans_records_are_given_up(void **state)
{
	enum { SENT = 10, UNSENT = 5 };
	struct sim sim;
	struct producer *p;

	sim_init(&sim, 73, 1);
	sim.config.limits.orphan_ms = 20000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_freeze(&sim.brokers[0], 1);
	p = sim_producer(&sim, 16384);
	for (unsigned i = 0; i < SENT; i++)
		assert_int_equal(producer_publish(p, 100, UINT32_MAX), 0);
	sim_run_for(&sim, SIM_S(10));
	for (unsigned i = 0; i < UNSENT; i++)
		assert_int_equal(producer_publish(p, 100, i % 2 == 0 ? UINT32_MAX : 0), 0);
	sim_run_for(&sim, SIM_S(15)); /* the cap begins with the client's end */
	assert_int_equal(p->unfinished, SENT + UNSENT);
	producer_close(p);
	for (uint32_t i = 0; i < SENT + UNSENT; i++) {
		struct entry *e = &p->ledger[i];
		if (e->deadline_ns > sim.w.now_ns + SIM_S(20))
			e->deadline_ns = sim.w.now_ns + SIM_S(20);
	}
	sim_run_for(&sim, SIM_MS(19900));
	assert_int_equal(p->unfinished, SENT + UNSENT - UNSENT / 2);
	assert_int_equal(sim.shard.lane_count, 1);
	sim_run_for(&sim, SIM_MS(200));
	assert_int_equal(p->done.outcome[TG_UNKNOWN], SENT);
	assert_int_equal(p->done.outcome[TG_EXPIRED], UNSENT);
	assert_int_equal(sim.shard.lane_count, 0);
	sim_fini(&sim);
}

/* A client that corrupts its lanes gets no free memory, whether records are in flight or it keeps them open. */
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
	uint64_t bytes = sim.shard.accounts.used[ACCOUNT_MEMORY];
	assert_true(bytes > 0);
	lane_quarantine(p->lane, "spoiled by the test");
	sim.shard.count.lanes_quarantined = 0; /* honest producers cause none */
	p->unfinished = 0;
	p->closed = 1;
	sim.live_from = sim.producer_count;
	assert_int_equal(sim.shard.accounts.used[ACCOUNT_MEMORY], bytes);
	assert_int_equal(sim.shard.lane_count, 0);
	sim_run_for(&sim, SIM_MS(200));
	assert_int_equal(sim.shard.outstanding, 0);
	assert_int_equal(sim.shard.accounts.used[ACCOUNT_MEMORY], bytes);
	lane_orphan(p->lane); /* its client closes it */
	sim_run_for(&sim, SIM_MS(50));
	assert_int_equal(sim.shard.accounts.used[ACCOUNT_MEMORY], 0);
	producer_free(p);
	sim.producer_count = 0;
	sim_fini(&sim);
}

static int
is_something_outstanding(struct sim *sim)
{
	return sim->shard.outstanding > 0;
}

/* Processes attach and leave while no client publishes: that delayed no message and is charged for a moment
 * only. */
static void
idle_time_is_hardly_charged(void **state)
{
	struct sim sim;
	uint64_t began;

	(void)state;
	sim_init(&sim, 2, 1);
	sim.brokers[0].ack_ns = SIM_MS(300);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(1)));
	struct producer *producer = sim_producer(&sim, 0);
	struct control *control = &sim.front.control;
	sim_settle(&sim, SIM_MS(100));
	for (unsigned i = 0; i < 1000; i++) {
		assert_true(control_may(control));
		began = control_begin(control);
		sim_run_for(&sim, SIM_MS(1));
		control_end(control, began);
	}
	assert_int_equal(producer_publish(producer, 100, 0), 0);
	producer_ring(producer);
	assert_true(sim_run_until(&sim, is_something_outstanding, SIM_S(1)));
	assert_false(control_may(control));
	sim_run_for(&sim, SIM_MS(100));
	assert_int_equal(sim.shard.outstanding, 1);
	assert_true(control_may(control));
	/* An eighth from now on. */
	began = control_begin(control);
	sim_run_for(&sim, SIM_MS(2));
	control_end(control, began);
	assert_false(control_may(control));
	sim_run_for(&sim, SIM_MS(14));
	assert_int_equal(sim.shard.outstanding, 1);
	assert_true(control_may(control));
	end_all_delivered(&sim, SIM_S(1));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(idle_time_is_hardly_charged),
		cmocka_unit_test(late_answers_do_not_delay_permitted_sends),
		cmocka_unit_test(memory_stays_bounded_against_a_dead_end),
		cmocka_unit_test(cost_of_a_waiting_lane_per_tick_is_bounded),
		cmocka_unit_test(deadlines_are_kept),
		cmocka_unit_test(what_is_past_its_expiry_is_not_sent),
		cmocka_unit_test(deadlines_are_kept_while_blocked),
		cmocka_unit_test(a_pause_frames_nothing),
		cmocka_unit_test(an_orphans_records_are_given_up),
		cmocka_unit_test(a_spoiled_lane_counts_until_it_is_freed),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_limits", tests, NULL, NULL);
}
