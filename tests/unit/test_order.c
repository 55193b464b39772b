/*
 * The ordering pairs of ring.h between two threads, for ThreadSanitizer: a pair that is missing is
 * a data race on the bytes it should have ordered. x86 itself would never show A, B, D, E or G:
 * its stores stay in order, and its loads.
 *
 * Each ring runs by itself, and each end reads the other's word as seldom as it can: in a whole lane the pairs
 * hide each other's faults (a side that acquires cq_tail has also seen the end of the loads that sq_head
 * promises).
 *
 * G is between a daemon and its successor. Its test has an observer that acquires sq_head alone and reads the
 * completions of all records below it, which must be there, as a recovery does. In reality a process ends
 * between the two, which orders more than any store; so G constrains the compiler and the order of the calls,
 * and this test checks both.
 */
#include "shm_test.h"

#include <pthread.h>
#include <sched.h>

#define ROUNDS 3000u

static struct test_lane lane;

static void
both(void *(*one)(void *), void *(*two)(void *))
{
	pthread_t a, b;
	void *ra, *rb;

	assert_int_equal(pthread_create(&a, NULL, one, NULL), 0);
	assert_int_equal(pthread_create(&b, NULL, two, NULL), 0);
	assert_int_equal(pthread_join(a, &ra), 0);
	assert_int_equal(pthread_join(b, &rb), 0);
	assert_null(ra);
	assert_null(rb);
}

/* A thread's result: NULL, or a description of the failure. */
static void *
wrong(const char *what, uint64_t at)
{
	fprintf(stderr, "%s at %llu\n", what, (unsigned long long)at);
	return &lane;
}

/*
 * Written and read by the word: gcc leaves memcpy of a header uninstrumented, and the sanitizer
 * remembers four accesses for each eight bytes, which single bytes would push out.
 */
#define WORDS 250u
#define BODY (WORDS * 8u)

static void *
sq_writer(void *unused)
{
	struct sq_producer sq;
	uint64_t bytes = record_bytes(0, 0, 0, BODY);

	sq_producer_init(&sq, &lane.map, 0);
	for (uint64_t i = 0; i < ROUNDS;) {
		int error = 0;
		struct record *r = sq_reserve(&sq, bytes, &error);

		if (r == NULL) {
			if (error != -TG_EAGAIN)
				return wrong("sq_head out of bounds", i);
			sched_yield();
			continue;
		}
		*r = (struct record){
			.size = (uint32_t)bytes, .check = record_check(sq.tail), .tag = i, .body_len = BODY
		};
		uint64_t *words = (uint64_t *)(void *)(r + 1);
		for (uint64_t w = 0; w < WORDS; w++)
			words[w] = i * 1000 + w;
		sq_commit(&sq, bytes);
		sq_publish(&sq);
		i++;
	}
	return NULL;
}

static void *
sq_reader(void *unused)
{
	struct sq_consumer sq;

	sq_consumer_init(&sq, &lane.map, 0);
	for (uint64_t i = 0; i < ROUNDS;) {
		struct record copy;
		int rc = sq_consumer_refresh(&sq);

		if (rc < 0)
			return wrong("sq_tail out of bounds", i);
		if (rc == 0)
			sched_yield();
		for (; sq.cursor != sq.tail_seen; i++) {
			if (sq_peek(&sq, &copy) != 0 || copy.tag != i)
				return wrong("wrong record", i);
			const uint64_t *words =
			    (const uint64_t *)(const void *)(sq_at(&sq, sq.cursor) + sizeof(copy));
			for (uint64_t w = 0; w < WORDS; w++)
				if (words[w] != i * 1000 + w)
					return wrong("wrong body", i);
			sq.cursor += copy.size;
		}
		sq_release(&sq, sq.cursor);
	}
	return NULL;
}

static void
sq_pairs_a_and_b(void **state)
{
	test_lane_init(&lane, 0, 0);
	both(sq_writer, sq_reader);
	test_lane_fini(&lane);
}

static void *
cq_writer(void *unused)
{
	struct cq_producer cq;
	uint64_t i = 0;

	cq_producer_init(&cq, &lane.map, 0, 0);
	while (i < ROUNDS * 20) {
		int64_t room = cq_producer_refresh(&cq);

		if (room < 0)
			return wrong("cq_head out of bounds", i);
		if (room == 0)
			sched_yield();
		for (; room > 0; room--, i++) {
			struct completion c = {
				.position = i * 64, .tag = i, .reference = ~i, .outcome = TG_SENT
			};

			cq_push(&cq, &c);
			if ((i & 7) == 0)
				cq_publish(&cq);
		}
		cq_publish(&cq);
	}
	return NULL;
}

static void *
cq_reader(void *unused)
{
	struct cq_consumer cq;

	cq_consumer_init(&cq, &lane.map, 0);
	while (cq.head < ROUNDS * 20) {
		int64_t n = cq_consumer_refresh(&cq);
		uint64_t i = cq.head;

		if (n < 0)
			return wrong("cq_tail out of bounds", i);
		if (n == 0)
			sched_yield();
		for (; n > 0; n--, i++) {
			const struct completion *c = cq_at(&cq, i);

			if (c->tag != i || c->position != i * 64 || c->reference != ~i)
				return wrong("wrong completion", i);
		}
		cq_release(&cq, i);
	}
	return NULL;
}

static void
cq_pairs_d_and_e(void **state)
{
	test_lane_init(&lane, 0, 0);
	both(cq_writer, cq_reader);
	test_lane_fini(&lane);
}

static void *
finisher(void *unused)
{
	struct sq_consumer sq;
	struct cq_producer cq;

	sq_consumer_init(&sq, &lane.map, 0);
	cq_producer_init(&cq, &lane.map, 0, 0);
	for (uint64_t i = 0; i < lane.map.geo.cq_entries; i++) {
		struct completion c = { .position = i * 64, .tag = i, .outcome = TG_DELIVERED };

		cq_push(&cq, &c);
		cq_publish(&cq);
		sq_release(&sq, (i + 1) * 64);
		if (i % 4 == 0)
			sched_yield();
	}
	return NULL;
}

static void *
observer(void *unused)
{
	uint64_t entries = lane.map.geo.cq_entries, seen = 0;

	while (seen < entries) {
		uint64_t released = order_load_acquire_64(ORDER_G, &lane.map.daemon->sq_head) / 64;

		if (released > order_load_relaxed_64(&lane.map.daemon->cq_tail))
			return wrong("released past cq_tail", released);
		for (; seen < released; seen++)
			if (lane.map.cq[seen].position != seen * 64 ||
			    lane.map.cq[seen].outcome != TG_DELIVERED)
				return wrong("released unfinished", seen);
	}
	return NULL;
}

static void
pair_g_nothing_is_released_unfinished(void **state)
{
	for (unsigned run = 0; run < 50; run++) {
		test_lane_init(&lane, 0, 0);
		both(finisher, observer);
		test_lane_fini(&lane);
	}
}

/* An argument is a pattern of the tests to run. */
int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sq_pairs_a_and_b),
		cmocka_unit_test(cq_pairs_d_and_e),
		cmocka_unit_test(pair_g_nothing_is_released_unfinished),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("order", tests, NULL, NULL);
}
