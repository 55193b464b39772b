/*
 * Stories of messages over which a broker closes the connection: the fate of their lane, while other lanes
 * notice nothing. check_sim.c has the conditions of all stories.
 */
#include "story.h"

#include <stdlib.h>

#define GOOD 4u
#define GOOD_EVERY SIM_MS(10)
#define GOOD_BURST 4u
#define LATE_MS 250u /* 99 of 100 of the others' messages are answered sooner */

/* A host with `brokers`, and four producers with whom nothing is wrong: numbers 0 to 3. */
static void
begin(struct sim *sim, uint64_t seed, unsigned brokers)
{
	sim_init(sim, seed, brokers);
	sim->pool_config.message_timeout_ms = 10000;
	sim_start(sim);
	assert_true(sim_run_until(sim, sim_all_ready, SIM_S(2)));
	start_producers(sim, GOOD, GOOD_EVERY, GOOD_BURST);
	sim_run_for(sim, SIM_S(1));
}

static struct producer *
bad_producer(struct sim *sim, const char *topic, uint64_t every_ns)
{
	struct producer *p = sim_producer(sim, 0);

	p->topic = topic;
	if (every_ns != 0)
		producer_go(p, every_ns, 1);
	return p;
}

static int
compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* All of its messages were delivered, and 99 of 100 in good time. */
static void
check_unhurt(const struct producer *p)
{
	uint64_t *took = calloc(p->count, sizeof(*took));

	assert_non_null(took);
	for (uint32_t i = 0; i < p->count; i++) {
		assert_int_equal(p->ledger[i].outcome, TG_DELIVERED);
		took[i] = p->ledger[i].finished_ns - p->ledger[i].published_ns;
	}
	qsort(took, p->count, sizeof(*took), compare);
	assert_between(0, took[p->count - 1 - p->count / 100], SIM_MS(LATE_MS));
	free(took);
}

/* Ends it: the others were not hurt, and no breaker has opened. */
static void
end_others_unhurt(struct sim *sim)
{
	stop_producers(sim);
	sim_settle(sim, SIM_S(30));
	for (unsigned i = 0; i < GOOD; i++)
		check_unhurt(sim->producers[i]);
	for (unsigned b = 0; b < sim->pool_config.broker_count; b++)
		assert_int_equal(sim->pool->peers.list[b].count.opened, 0);
	sim_fini(sim);
}

/* How often the links that carry the messages of all lanes have failed. */
static uint64_t
ordinary_failures(const struct sim *sim)
{
	uint64_t sum = 0;

	for (unsigned b = 0; b < sim->pool_config.broker_count; b++)
		for (uint32_t l = 0; l < sim->pool->peers.list[b].link_count; l++)
			sum += sim->pool->peers.list[b].links[l].count.failures;
	return sum;
}

static uint64_t
closes(const struct sim *sim)
{
	uint64_t sum = 0;

	for (unsigned b = 0; b < sim->pool_config.broker_count; b++)
		sum += sim->brokers[b].closed_over;
	return sum;
}

/* Its own messages are over one way or the other, and were not sent without end. */
static void
check_given_up(const struct producer *p, uint32_t most_closes)
{
	for (uint32_t i = 0; i < p->count; i++) {
		const struct entry *e = &p->ledger[i];
		assert_true(e->outcome == TG_REJECTED || e->outcome == TG_EXPIRED || e->outcome == TG_UNKNOWN);
		assert_between(0, e->closed_over, most_closes);
	}
}

/* Two closes show which lane it is; from then on it has a link of its own. */
static void
is_set_apart(unsigned brokers, const char *topic)
{
	struct sim sim;

	begin(&sim, 50 + brokers, brokers);
	struct producer *bad = bad_producer(&sim, topic, SIM_MS(500));
	sim_run_for(&sim, SIM_S(60));
	assert_between(1, ordinary_failures(&sim), 2);
	/* Growing pauses: it is not closed over ten times a second for a minute. */
	assert_between(3, closes(&sim), 60);
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(30));
	check_given_up(bad, 5);
	assert_true(bad->done.outcome[TG_REJECTED] > 0);
	end_others_unhurt(&sim);
}

static void
lane_that_one_broker_closes_over_is_set_apart(void **state)
{
	is_set_apart(1, TOPIC_CLOSES);
}

static void
lane_that_two_brokers_close_over_is_set_apart(void **state)
{
	is_set_apart(2, TOPIC_CLOSES);
}

static void
lane_that_is_closed_over_with_words_is_set_apart(void **state)
{
	is_set_apart(1, TOPIC_WORDS);
}

static void
lane_that_is_closed_over_with_words_is_set_apart_with_two(void **state)
{
	is_set_apart(2, TOPIC_WORDS);
}

/* The lane's other messages arrive. */
static void
good_messages_of_a_blamed_lane_are_delivered(void **state)
{
	struct sim sim;
	uint32_t bad = 0;

	begin(&sim, 60, 2);
	struct producer *p = bad_producer(&sim, TOPIC_GOOD, 0);
	for (unsigned i = 0; i < 200; i++) {
		bad += i % 40 == 20;
		assert_int_equal(producer_publish_to(p, i % 40 == 20 ? TOPIC_CLOSES : TOPIC_GOOD), 0);
		sim_run_for(&sim, SIM_MS(20));
	}
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(60));
	assert_int_equal(p->done.outcome[TG_DELIVERED], p->count - bad);
	assert_int_equal(p->done.outcome[TG_REJECTED], bad);
	end_others_unhurt(&sim);
}

/* A new lane for each message, of one process: known after the first verdict. */
static void
new_lane_does_not_wash_clean(void **state)
{
	struct sim sim;

	begin(&sim, 61, 2);
	for (unsigned i = 0; i < 60; i++) {
		struct producer *p = bad_producer(&sim, TOPIC_CLOSES, 0);
		producer_own(p, 65534, 4000);
		assert_int_equal(producer_publish_to(p, TOPIC_CLOSES), 0);
		sim_run_for(&sim, SIM_MS(500));
	}
	/* Each could cost two, of 60: those of the process begin apart soon. */
	assert_between(1, ordinary_failures(&sim), 10);
	end_others_unhurt(&sim);
}

/* A new process of the same user for each message. */
static void
new_process_does_not_wash_clean(void **state)
{
	struct sim sim;

	begin(&sim, 62, 2);
	for (unsigned i = 0; i < 60; i++) {
		struct producer *p = bad_producer(&sim, TOPIC_CLOSES, 0);
		producer_own(p, 65534, (pid_t)(4000 + i));
		assert_int_equal(producer_publish_to(p, TOPIC_CLOSES), 0);
		sim_run_for(&sim, SIM_MS(500));
	}
	assert_between(1, ordinary_failures(&sim), 20);
	end_others_unhurt(&sim);
}

/* A user with whom nothing is wrong is not blamed for another's. */
static void
other_users_lanes_stay_on_the_ordinary_links(void **state)
{
	struct sim sim;

	begin(&sim, 63, 1);
	bad_producer(&sim, TOPIC_CLOSES, SIM_MS(500));
	sim_run_for(&sim, SIM_S(20));
	for (unsigned i = 0; i < GOOD; i++)
		assert_int_equal(sim.producers[i]->lane->blame.state, BLAME_NONE);
	struct producer *late = sim_producer(&sim, 0);
	assert_int_equal(late->lane->blame.state, BLAME_NONE);
	assert_int_equal(producer_publish_to(late, TOPIC_GOOD), 0);
	sim_run_for(&sim, SIM_MS(500));
	assert_int_equal(late->done.outcome[TG_DELIVERED], 1);
	end_others_unhurt(&sim);
}

/* Several at once, which take turns. */
static void
several_bad_lanes_at_once_cost_the_others_nothing(void **state)
{
	struct sim sim;

	begin(&sim, 64, 2);
	for (unsigned i = 0; i < 6; i++)
		bad_producer(&sim, i % 2 ? TOPIC_CLOSES : TOPIC_WORDS, SIM_MS(300));
	sim_run_for(&sim, SIM_S(60));
	assert_between(1, ordinary_failures(&sim), 2 * 6);
	end_others_unhurt(&sim);
}

/* A broker that dies beside it is still a dead broker: its breaker opens. */
static void
broker_that_crashes_is_not_mistaken_for_one_that_refuses(void **state)
{
	struct sim sim;

	begin(&sim, 65, 2);
	bad_producer(&sim, TOPIC_CLOSES, SIM_MS(500));
	sim_run_for(&sim, SIM_S(5));
	sim_broker_crash(&sim.brokers[1]);
	sim_run_for(&sim, SIM_S(20));
	assert_true(sim.pool->peers.list[1].open);
	assert_false(sim.pool->peers.list[0].open);
	sim_broker_start(&sim.brokers[1]);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(11)));
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(30));
	for (unsigned i = 0; i < GOOD; i++)
		assert_int_equal(sim.producers[i]->done.outcome[TG_DELIVERED], sim.producers[i]->count);
	sim_fini(&sim);
}

/* ---- messages that a broker never answers ---- */

/* The message's own lane waits for the answer; the window, other lanes' rate and the link do not. */
static void
unanswered_messages_leave_the_window(unsigned brokers, uint32_t count)
{
	struct sim sim;

	begin(&sim, 70, brokers);
	sim.pool_config.message_timeout_ms = 60000;
	for (unsigned b = 0; b < brokers; b++)
		sim.brokers[b].ack_mode = ACK_SINGLE;
	struct producer *silent = sim_producer(&sim, 0);
	for (uint32_t i = 0; i < count; i++)
		assert_int_equal(producer_publish_to(silent, TOPIC_SILENT), 0);
	sim_run_for(&sim, SIM_S(1));
	uint64_t before = stored(&sim);
	sim_run_for(&sim, SIM_S(30));
	/* Four times four every 10 ms, for half a minute. */
	assert_between(30 * 1500, stored(&sim) - before, 30 * 1900 + (uint64_t)count * 20);
	/* The silent lane's unanswered messages no longer count against the window. */
	uint32_t outstanding = 0;
	for (unsigned b = 0; b < brokers; b++)
		outstanding += link_waited_for(&sim.pool->peers.list[b].links[0]);
	assert_between(0, outstanding, count / 2 + 50);
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(60));
	assert_int_equal(silent->done.outcome[TG_UNKNOWN], count);
	for (unsigned i = 0; i < GOOD; i++)
		check_unhurt(sim.producers[i]);
	assert_int_equal(sim.failed, 0);
	sim_fini(&sim);
}

static void
unanswered_message_leaves_the_window(void **state)
{
	unanswered_messages_leave_the_window(1, 1);
}

static void
unanswered_messages_by_the_hundred_leave_the_window(void **state)
{
	unanswered_messages_leave_the_window(1, 400);
	unanswered_messages_leave_the_window(2, 400);
}

/* Late is not never: the answer that comes after all completes the message, and the link goes on. */
static void
late_answer_is_an_answer(void **state)
{
	struct sim sim;

	sim_init(&sim, 80, 1);
	sim.sums_up = 1;
	sim.brokers[0].ack_mode = ACK_SINGLE;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, GOOD, GOOD_EVERY, GOOD_BURST);
	struct producer *late = sim_producer(&sim, 0);
	for (unsigned i = 0; i < 3; i++) {
		assert_int_equal(producer_publish_to(late, TOPIC_LATE), 0);
		sim_run_for(&sim, SIM_MS(700));
	}
	sim_run_for(&sim, SIM_S(2));
	assert_int_equal(late->done.outcome[TG_DELIVERED], late->count);
	assert_int_equal(ordinary_failures(&sim), 0);
	end_others_unhurt(&sim);
}

/* Messages that are never answered take no share of the window: the lane's other messages go on once there is room. */
static void
unanswered_messages_take_no_share(void **state)
{
	struct sim sim;

	sim_init(&sim, 81, 1);
	sim.pool_config.window_messages = 64;
	sim.pool_config.message_timeout_ms = 60000;
	sim.brokers[0].ack_mode = ACK_SINGLE;
	sim.brokers[0].ack_ns = SIM_MS(10);
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	start_producers(&sim, 40, SIM_MS(40), 4);
	struct producer *p = sim_producer(&sim, 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(producer_publish_to(p, TOPIC_SILENT), 0);
	sim_run_for(&sim, SIM_S(1));
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(producer_publish_to(p, TOPIC_GOOD), 0);
		sim_run_for(&sim, SIM_MS(10));
	}
	stop_producers(&sim);
	sim_run_for(&sim, SIM_S(1));
	assert_int_equal(p->done.outcome[TG_DELIVERED], 200);
	sim_settle(&sim, SIM_S(60));
	sim_fini(&sim);
}

/* Messages of one key stay in order when their lane is set apart over one of another key (check_publish). */
static void
key_keeps_its_order_when_its_lane_is_set_apart(void **state)
{
	struct sim sim;

	sim_init(&sim, 82, 2);
	sim.pool_config.order = ORDER_BY_KEY;
	sim.pool_config.balance = BALANCE_KEY;
	sim.pool_config.links = 2;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	for (unsigned b = 0; b < 2; b++)
		sim.brokers[b].ack_ns = SIM_MS(50);
	struct producer *p = bad_producer(&sim, TOPIC_GOOD, 0);
	p->keys = 16;
	for (unsigned i = 0; i < 200; i++) {
		assert_int_equal(producer_publish_to(p, i == 77 ? TOPIC_CLOSES : TOPIC_GOOD), 0);
		sim_run_for(&sim, SIM_MS(2));
	}
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(60));
	assert_int_equal(p->done.outcome[TG_DELIVERED], p->count - 1);
	sim_fini(&sim);
}

/* The turn of a lane on the apart link ends, though the broker does not answer what it sent. */
static void
unanswered_message_does_not_keep_the_apart_link(void **state)
{
	struct sim sim;

	begin(&sim, 83, 1);
	sim.pool_config.message_timeout_ms = 60000;
	sim.brokers[0].ack_mode = ACK_SINGLE;
	struct producer *silent = sim_producer(&sim, 0), *other = sim_producer(&sim, 0);
	assert_int_equal(producer_publish_to(silent, TOPIC_CLOSES), 0);
	assert_int_equal(producer_publish_to(other, TOPIC_CLOSES), 0);
	sim_run_for(&sim, SIM_S(10));
	assert_int_equal(silent->lane->blame.state, BLAME_SINGLE);
	assert_int_equal(other->lane->blame.state, BLAME_SINGLE);
	assert_int_equal(producer_publish_to(silent, TOPIC_SILENT), 0);
	sim_run_for(&sim, SIM_S(1));
	assert_int_equal(producer_publish_to(other, TOPIC_GOOD), 0);
	sim_run_for(&sim, SIM_MS(sim.pool_config.health.ack_timeout_ms) + SIM_S(2));
	assert_int_equal(other->done.outcome[TG_DELIVERED], 1);
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(61));
	assert_int_equal(silent->done.outcome[TG_UNKNOWN], 1);
	end_others_unhurt(&sim);
}

/* ... nor does one that younger messages of its lane have overtaken there. */
static void
overtaken_message_does_not_keep_the_apart_link(void **state)
{
	struct sim sim;

	begin(&sim, 84, 1);
	sim.pool_config.message_timeout_ms = 60000;
	sim.brokers[0].ack_mode = ACK_SINGLE;
	struct producer *silent = sim_producer(&sim, 0), *bad = sim_producer(&sim, 0);
	assert_int_equal(producer_publish_to(silent, TOPIC_SILENT), 0);
	sim_run_for(&sim, SIM_MS(20));
	assert_int_equal(producer_publish_to(bad, TOPIC_CLOSES), 0);
	sim_run_for(&sim, SIM_MS(300));
	assert_int_equal(producer_publish_to(silent, TOPIC_GOOD), 0);
	sim_run_for(&sim, SIM_S(12));
	assert_int_equal(bad->done.outcome[TG_REJECTED], 1);
	assert_int_equal(silent->done.outcome[TG_DELIVERED], 1);
	stop_producers(&sim);
	sim_settle(&sim, SIM_S(61));
	end_others_unhurt(&sim);
}

/* A message that no broker answers is tried twice, not every few seconds until its deadline. */
static void
unanswered_message_is_not_sent_without_end(enum config_order order)
{
	struct sim sim;

	sim_init(&sim, 85, 2);
	sim.pool_config.order = order;
	sim.pool_config.message_timeout_ms = 60000;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	struct producer *p = sim_producer(&sim, 0);
	assert_int_equal(producer_publish_to(p, TOPIC_SILENT), 0);
	sim_settle(&sim, SIM_S(61));
	assert_int_equal(p->done.outcome[TG_UNKNOWN], 1);
	assert_between(1, p->ledger[0].arrivals, 3); /* elsewhere, and there once more */
	sim_fini(&sim);
}

static void
unanswered_message_is_sent_three_times_at_most(void **state)
{
	unanswered_message_is_not_sent_without_end(ORDER_BY_LANE);
	unanswered_message_is_not_sent_without_end(ORDER_BY_KEY);
	unanswered_message_is_not_sent_without_end(ORDER_BY_NONE);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lane_that_one_broker_closes_over_is_set_apart),
		cmocka_unit_test(lane_that_two_brokers_close_over_is_set_apart),
		cmocka_unit_test(lane_that_is_closed_over_with_words_is_set_apart),
		cmocka_unit_test(lane_that_is_closed_over_with_words_is_set_apart_with_two),
		cmocka_unit_test(good_messages_of_a_blamed_lane_are_delivered),
		cmocka_unit_test(new_lane_does_not_wash_clean),
		cmocka_unit_test(new_process_does_not_wash_clean),
		cmocka_unit_test(other_users_lanes_stay_on_the_ordinary_links),
		cmocka_unit_test(several_bad_lanes_at_once_cost_the_others_nothing),
		cmocka_unit_test(broker_that_crashes_is_not_mistaken_for_one_that_refuses),
		cmocka_unit_test(unanswered_message_leaves_the_window),
		cmocka_unit_test(unanswered_messages_by_the_hundred_leave_the_window),
		cmocka_unit_test(late_answer_is_an_answer),
		cmocka_unit_test(unanswered_messages_take_no_share),
		cmocka_unit_test(key_keeps_its_order_when_its_lane_is_set_apart),
		cmocka_unit_test(unanswered_message_does_not_keep_the_apart_link),
		cmocka_unit_test(overtaken_message_does_not_keep_the_apart_link),
		cmocka_unit_test(unanswered_message_is_sent_three_times_at_most),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_blame", tests, NULL, NULL);
}
