/*
 * Sleeping and waking: one ring per sleep, also across a change of the peer, and no lost wake-up between two
 * processes that play ping-pong with one record.
 *
 * A missing fence shows only when the store of one side meets the store of the other, within the
 * nanoseconds it waits in the store buffer. So one side goes to sleep at once and the other never, each after a
 * random pause. A stream of records would not test it at all. With two processors
 * the mutants of C and F are caught within a fraction of the rounds played here.
 */
#include "stress_fork.h"

static void
one_sleep_is_rung_once(void **state)
{
	uint32_t word = 0;
	struct wake_sleeper s;
	struct wake_ringer r;

	wake_sleeper_init(&s, &word);
	wake_ringer_init(&r, &word);
	for (unsigned i = 0; i < 1000; i++) {
		assert_false(wake_is_dozing(&s));
		assert_false(wake_must_ring(&r));
		wake_doze(&s);
		assert_true(wake_is_dozing(&s));
		assert_true(wake_must_ring(&r));
		assert_false(wake_must_ring(&r));
		wake_doze(&s); /* still the same sleep */
		assert_false(wake_must_ring(&r));
		wake_rise(&s);
		wake_rise(&s); /* whether it slept or not */
	}
}

static void
ring_that_was_missed_is_due_at_the_next_sleep(void **state)
{
	uint32_t word = 0;
	struct wake_sleeper s;
	struct wake_ringer r;

	wake_sleeper_init(&s, &word);
	wake_ringer_init(&r, &word);
	wake_doze(&s);
	wake_rise(&s);
	wake_doze(&s);
	assert_true(wake_must_ring(&r));
	wake_rise(&s);
	wake_doze(&s);
	assert_true(wake_must_ring(&r));
}

/* The ringer lives on and remembers what it rang for. */
static void
sleeper_that_replaces_another_is_rung(void **state)
{
	for (unsigned sleeps = 0; sleeps < 8; sleeps++) {
		for (int died_asleep = 0; died_asleep <= 1; died_asleep++) {
			uint32_t word = 0;
			struct wake_sleeper old, new;
			struct wake_ringer r;

			wake_sleeper_init(&old, &word);
			wake_ringer_init(&r, &word);
			for (unsigned i = 0; i < sleeps; i++) {
				wake_doze(&old);
				assert_true(wake_must_ring(&r));
				wake_rise(&old);
			}
			if (died_asleep) {
				wake_doze(&old);
				assert_true(wake_must_ring(&r));
			}
			wake_sleeper_init(&new, &word);
			assert_false(wake_is_dozing(&new));
			assert_false(wake_must_ring(&r));
			for (unsigned i = 0; i < 10; i++) {
				wake_doze(&new);
				assert_true(wake_must_ring(&r));
				wake_rise(&new);
			}
		}
	}
}

static void
word_may_hold_anything_and_wrap(void **state)
{
	const uint32_t words[] = { 0, 1, 2, UINT32_MAX - 2, UINT32_MAX - 1, UINT32_MAX, 0x80000000u,
		0x7fffffffu };

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		uint32_t word = words[i];
		struct wake_sleeper s;
		struct wake_ringer r;

		wake_ringer_init(&r, &word);
		wake_sleeper_init(&s, &word);
		for (unsigned n = 0; n < 8; n++) {
			assert_false(wake_must_ring(&r));
			wake_doze(&s);
			assert_true(wake_must_ring(&r));
			wake_rise(&s);
		}
	}
}

static void
barrier_is_there_where_it_registers(void **state)
{
	if (wake_register() != 0)
		skip();
	assert_int_equal(wake_barrier(), 0);
}

#define ROUNDS 20000u

static struct stress
pingpong(const char *test)
{
	struct stress s = { .count = ROUNDS, .window = 1, .body_max = 0, .jitter = 200 };

	s.seed = random_seeded(test).state;
	return s;
}

static void
daemon_that_sleeps_at_once_is_woken_with_full_fences(void **state)
{
	struct stress s = pingpong("daemon_that_sleeps_at_once_is_woken_with_full_fences");

	s.client_spins = STRESS_NEVER;
	stress_fork(s, 0);
}

static void
daemon_that_sleeps_at_once_is_woken_with_membarrier(void **state)
{
	struct stress s = pingpong("daemon_that_sleeps_at_once_is_woken_with_membarrier");

	if (wake_register() != 0)
		skip();
	s.client_spins = STRESS_NEVER;
	s.expedited = 1;
	stress_fork(s, 0);
}

static void
client_that_sleeps_at_once_is_woken(void **state)
{
	struct stress s = pingpong("client_that_sleeps_at_once_is_woken");

	s.daemon_spins = STRESS_NEVER;
	stress_fork(s, 0);
}

static void
both_that_sleep_at_once_are_woken(void **state)
{
	for (int expedited = 0; expedited <= 1; expedited++) {
		struct stress s = pingpong("both_that_sleep_at_once_are_woken");

		if (expedited && wake_register() != 0)
			break;
		s.count = ROUNDS / 2;
		s.expedited = expedited;
		stress_fork(s, 0);
	}
}

/* An argument is a pattern of the tests to run. */
int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(one_sleep_is_rung_once),
		cmocka_unit_test(ring_that_was_missed_is_due_at_the_next_sleep),
		cmocka_unit_test(sleeper_that_replaces_another_is_rung),
		cmocka_unit_test(word_may_hold_anything_and_wrap),
		cmocka_unit_test(barrier_is_there_where_it_registers),
		cmocka_unit_test(daemon_that_sleeps_at_once_is_woken_with_full_fences),
		cmocka_unit_test(daemon_that_sleeps_at_once_is_woken_with_membarrier),
		cmocka_unit_test(client_that_sleeps_at_once_is_woken),
		cmocka_unit_test(both_that_sleep_at_once_are_woken),
	};

	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return cmocka_run_group_tests_name("wake", tests, NULL, NULL);
}
