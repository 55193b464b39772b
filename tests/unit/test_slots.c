/* The table of slots: entries never move, and memory follows use. */
#include "daemon/lane/slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

struct table {
	struct slots slots;
	struct slot **at; /* where each was put */
	uint64_t head, tail;
};

static void
push(struct table *t)
{
	assert_int_equal(slots_reserve(&t->slots, t->head, t->tail), 0);
	struct slot *slot = slots_at(&t->slots, t->tail);
	slot->position = t->tail;
	t->at[t->tail++] = slot;
}

static void
pop(struct table *t)
{
	struct slot *slot = slots_at(&t->slots, t->head);

	assert_ptr_equal(slot, t->at[t->head]);
	assert_int_equal(slot->position, t->head);
	slot->position = UINT64_MAX; /* another's, if it is */
	t->head++;
}

static void
none_moves_and_none_is_lost(void **state)
{
	enum { SLOTS = 200000 };
	struct table t = { .at = calloc(SLOTS, sizeof(struct slot *)) };
	uint64_t peak = 0, random = 1;

	assert_non_null(t.at);
	while (t.tail < SLOTS) {
		random = random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		/* It fills and empties, by a few slots and by thousands. */
		uint64_t n = random >> 33 & ((random >> 60 & 1) ? 4095 : 63);
		for (uint64_t i = 0; (random >> 61 & 1) && i < n && t.tail < SLOTS; i++)
			push(&t);
		peak = t.tail - t.head > peak ? t.tail - t.head : peak;
		for (uint64_t i = 0; !(random >> 61 & 1) && i < n && t.head < t.tail; i++)
			pop(&t);
		assert_true(slots_made(&t.slots) <= 2 * (peak + 8 * SLOTS_PIECE));
	}
	while (t.head < t.tail)
		pop(&t);
	slots_fini(&t.slots);
	assert_int_equal(slots_made(&t.slots), 0);
	free(t.at);
}

static void
a_steady_flow_takes_little(void **state)
{
	enum { SLOTS = 10000, WAITING = 20 };
	struct table t = { .at = calloc(SLOTS, sizeof(struct slot *)) };

	assert_non_null(t.at);
	while (t.tail < SLOTS) {
		push(&t);
		if (t.tail - t.head > WAITING)
			pop(&t);
	}
	assert_true(t.slots.made <= 2);
	slots_fini(&t.slots);
	free(t.at);
}

/* A lane that has slept goes on in the middle of a piece. */
static void
it_begins_again_anywhere(void **state)
{
	struct slot *at[100];
	struct table t = { .at = at };

	for (t.tail = t.head = 0; t.tail < 100; slots_fini(&t.slots), t.head++) {
		push(&t);
		assert_int_equal(t.slots.made, 1);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(none_moves_and_none_is_lost),
		cmocka_unit_test(a_steady_flow_takes_little),
		cmocka_unit_test(it_begins_again_anywhere),
	};

	return cmocka_run_group_tests_name("slots", tests, NULL, NULL);
}
