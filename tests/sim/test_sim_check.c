/* The invariants' checks can fail: each is shown an object that breaks it, and the object whole. */
#include "story.h"

#include "daemon/flow/check.h"

/* A link and a lane in the middle of work: messages are in flight and unanswered. */
static void
at_work(struct sim *sim, struct link **link, struct lane **lane)
{
	sim_init(sim, 77, 1);
	sim->brokers[0].ack_ns = SIM_MS(500);
	sim_start(sim);
	assert_true(sim_run_until(sim, sim_all_ready, SIM_S(2)));
	struct producer *producer = sim_producer(sim, 1u << 20);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(producer_publish(producer, 100, 0), 0);
	producer_ring(producer);
	sim_run_for(sim, SIM_MS(50));
	*link = sim_link(sim, 0, 0);
	*lane = producer->lane;
	assert_int_equal((*link)->outstanding, 20);
	assert_null(link_check(*link));
	assert_null(lane_check(*lane));
	assert_null(pool_check(sim->pool));
}

#define BREAKS(check, object, member, value, words)     \
	do {                                            \
		const typeof(member) was = (member);    \
		(member) = (value);                     \
		const char *broken = check(object);     \
		assert_non_null(broken);                \
		assert_non_null(strstr(broken, words)); \
		(member) = was;                         \
		assert_null(check(object));             \
	} while (0)

static void
a_broken_link_is_found(void **state)
{
	struct sim sim;
	struct link *link;
	struct lane *lane;

	at_work(&sim, &link, &lane);
	BREAKS(link_check, link, link->late, 21, "late than outstanding");
	BREAKS(link_check, link, link->outstanding, 1001, "L3");
	BREAKS(link_check, link, link->window, 0, "window is out of its range");
	BREAKS(link_check, link, link->window, 1001, "window is out of its range");
	BREAKS(link_check, link, link->careful, 1, "L6");
	BREAKS(link_check, link, link->conn.sock, NULL, "without a connection");
	BREAKS(link_check, link, link->conn.session, NULL, "no session");
	BREAKS(link_check, link, link->outstanding, 19, "counts of messages in flight");
	BREAKS(link_check, link, link->late, 1, "counts of messages in flight");
	BREAKS(link_check, link, link->outstanding_bytes, 1, "bytes in flight");
	BREAKS(link_check, link, link->late_bytes, 1, "bytes in flight");
	end_all_delivered(&sim, SIM_S(5));
}

static void
a_broken_lane_is_found(void **state)
{
	struct sim sim;
	struct link *link;
	struct lane *lane;

	at_work(&sim, &link, &lane);
	struct slot *slot = lane_slot(lane, lane->slot_head);
	BREAKS(lane_check, lane, lane->slot_next, lane->slot_tail + 1, "slot_next");
	BREAKS(lane_check, lane, lane->sq.cursor, lane->sq.head - 8, "I1");
	BREAKS(lane_check, lane, lane->cq.tail, lane->cq.head_seen + lane->map.geo.cq_entries + 1, "I1");
	BREAKS(lane_check, lane, lane->unfinished, lane->map.geo.cq_entries + 1, "I4");
	BREAKS(lane_check, lane, lane->unfinished, 21, "do not match its slots");
	BREAKS(lane_check, lane, lane->inflight, 19, "do not match its slots");
	BREAKS(lane_check, lane, lane->refs, 19, "than links refer to");
	BREAKS(lane_check, lane, lane->late, 1, "do not match its slots");
	BREAKS(lane_check, lane, slot->position, slot->position + 4096, "order of the ring");
	BREAKS(lane_check, lane, slot->state, SLOT_PENDING, "behind slot_next");
	BREAKS(lane_check, lane, slot->link, NULL, "in flight nowhere");
	BREAKS(lane_check, lane, lane_slot(lane, lane->slot_tail - 1)->size, 8, "end at the cursor");
	end_all_delivered(&sim, SIM_S(5));
}

static void
references_that_do_not_match_are_found(void **state)
{
	struct sim sim;
	struct link *link;
	struct lane *lane;

	at_work(&sim, &link, &lane);
	BREAKS(pool_check, sim.pool, lane->refs, 21, "L4");
	end_all_delivered(&sim, SIM_S(5));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_broken_link_is_found),
		cmocka_unit_test(a_broken_lane_is_found),
		cmocka_unit_test(references_that_do_not_match_are_found),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
