/* A lane under load between two processes: every byte of every record, every completion, in order,
 * with both sides falling asleep and being woken all the time. */
#include "stress_fork.h"

static void
run(const char *test, uint64_t window, uint32_t body_max, uint32_t spins, int expedited)
{
	struct stress s = { .count = 60000,
		.window = window,
		.body_max = body_max,
		.client_spins = spins,
		.daemon_spins = spins,
		.expedited = expedited,
		.jitter = 50 };

	s.seed = random_seeded(test).state;
	stress_fork(s, 0);
}

static void
small_records_in_a_stream(void **state)
{
	run("small_records_in_a_stream", 64, 40, 100, 0);
}

static void
records_of_every_size_through_the_smallest_ring(void **state)
{
	run("records_of_every_size_through_the_smallest_ring", 128, 2000, 50, 0);
}

static void
stream_with_membarrier(void **state)
{
	if (wake_register() != 0)
		skip();
	run("stream_with_membarrier", 128, 500, 20, 1);
}

static void
few_in_flight_and_sleep_at_once(void **state)
{
	run("few_in_flight_and_sleep_at_once", 3, 100, 0, 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_records_in_a_stream),
		cmocka_unit_test(records_of_every_size_through_the_smallest_ring),
		cmocka_unit_test(stream_with_membarrier),
		cmocka_unit_test(few_in_flight_and_sleep_at_once),
	};

	return cmocka_run_group_tests_name("stress", tests, NULL, NULL);
}
