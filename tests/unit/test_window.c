/* struct window against a plain table of messages. */
#include "daemon/protocol/window.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define MESSAGES 20000u

enum fate { NOT_SENT, WAITS, SUCCEEDED, REFUSED };

/* The expected state: the answers given, and those that events have reported so far. */
struct model {
	struct session session;
	struct window window;
	uint8_t answered[MESSAGES], reported[MESSAGES]; /* enum fate */
	uint64_t upto; /* everything below was reported by an EV_ACK_UPTO, or before it */
};

static uint64_t seed;

static uint32_t
roll(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 11) % below);
}

static void
on_event(void *owner, const struct driver_event *event)
{
	struct model *model = owner;

	assert_true(event->seq < MESSAGES);
	switch (event->type) {
	case EV_ACK_UPTO:
		assert_int_equal(event->outcome, TG_DELIVERED);
		for (; model->upto <= event->seq; model->upto++)
			if (model->reported[model->upto] == WAITS)
				model->reported[model->upto] = SUCCEEDED;
		break;
	case EV_ACK:
		assert_int_equal(event->outcome, TG_DELIVERED);
		assert_int_equal(model->reported[event->seq], WAITS);
		model->reported[event->seq] = SUCCEEDED;
		break;
	default:
		assert_int_equal(event->type, EV_NACK);
		assert_int_equal(model->reported[event->seq], WAITS);
		model->reported[event->seq] = REFUSED;
	}
}

static struct model *
model_new(uint64_t room)
{
	struct model *model = calloc(1, sizeof(*model));

	assert_non_null(model);
	model->session.events = (struct driver_events){ .emit = on_event, .owner = model };
	assert_int_equal(window_init(&model->window, &model->session, TG_DELIVERED, room), 0);
	return model;
}

static void
model_free(struct model *model)
{
	window_fini(&model->window);
	free(model);
}

static void
publish(struct model *model)
{
	model->answered[model->window.next] = model->reported[model->window.next] = WAITS;
	model->window.next++;
}

/* A broker's answer to any message, also one that has its answer or was never sent. */
static void
answer(struct model *model, uint64_t seq, enum fate fate)
{
	int waits = seq < MESSAGES && model->answered[seq] == WAITS, found;

	if (fate == SUCCEEDED) {
		found = window_ack(&model->window, seq);
	} else {
		found = window_take(&model->window, seq);
		if (found)
			driver_nack(&model->session, seq, 1, NULL, 0);
	}
	assert_int_equal(found, waits);
	if (waits)
		model->answered[seq] = (uint8_t)fate;
}

static void
check(const struct model *model)
{
	uint64_t waiting = 0, oldest = 0;

	while (oldest < model->window.next && model->answered[oldest] != WAITS)
		oldest++;
	for (uint64_t seq = oldest; seq < model->window.next; seq++)
		waiting += model->answered[seq] == WAITS;
	assert_int_equal(model->window.oldest, oldest);
	assert_int_equal(window_outstanding(&model->window), waiting);
	assert_int_equal(window_is_empty(&model->window), waiting == 0);
}

static void
each_answer_is_reported_once_and_as_it_was(void **state)
{
	for (uint64_t round = 1; round <= 20; round++) {
		struct model *model = model_new(64u << (round % 4));
		seed = round * UINT64_C(0x9e3779b97f4a7c15);
		uint32_t disorder = roll(3) == 0 ? 1 : 1 + roll(100);
		while (model->window.next < MESSAGES) {
			struct window *window = &model->window;
			for (uint32_t n = roll(20); n > 0 && window->next < MESSAGES && !window_is_full(window);
			     n--)
				publish(model);
			for (uint32_t n = roll(20); n > 0; n--)
				answer(model, window->oldest + roll(disorder),
				    roll(50) == 0 ? REFUSED : SUCCEEDED);
			if (roll(4) == 0)
				window_flush(window);
			if (roll(16) == 0)
				answer(model, roll(MESSAGES),
				    SUCCEEDED); /* most of them long answered, or never sent */
			if (roll(64) == 0)
				check(model);
		}
		for (uint64_t seq = 0; seq < MESSAGES; seq++)
			answer(model, seq, SUCCEEDED);
		check(model);
		window_flush(&model->window);
		assert_memory_equal(model->reported, model->answered, MESSAGES);
		model_free(model);
	}
}

static void
successes_in_order_are_reported_in_one_event_before_any_other(void **state)
{
	struct model *model = model_new(64);

	for (int i = 0; i < 10; i++)
		publish(model);
	for (uint64_t seq = 0; seq < 4; seq++)
		answer(model, seq, SUCCEEDED);
	assert_int_equal(model->upto, 0);
	answer(model, 4, REFUSED);
	assert_int_equal(model->upto, 4);
	assert_int_equal(model->reported[4], REFUSED);
	answer(model, 5, SUCCEEDED);
	answer(model, 8, SUCCEEDED);
	assert_int_equal(model->upto, 6);
	assert_int_equal(model->reported[8], SUCCEEDED);
	model_free(model);
}

static void
one_unanswered_message_holds_up_none_within_the_room(void **state)
{
	struct model *model = model_new(window_room(10));

	assert_int_equal(model->window.mask + 1, DRIVER_SPAN);
	model_free(model);
	model = model_new(100);
	assert_int_equal(model->window.mask + 1, 128);
	publish(model);
	for (uint64_t seq = 1; seq < 128; seq++) {
		assert_false(window_is_full(&model->window));
		publish(model);
		answer(model, seq, SUCCEEDED);
	}
	assert_true(window_is_full(&model->window));
	assert_int_equal(window_outstanding(&model->window), 1);
	answer(model, 0, SUCCEEDED);
	assert_true(window_is_empty(&model->window));
	publish(model);
	check(model);
	model_free(model);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(each_answer_is_reported_once_and_as_it_was),
		cmocka_unit_test(successes_in_order_are_reported_in_one_event_before_any_other),
		cmocka_unit_test(one_unanswered_message_holds_up_none_within_the_room),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
