/* Stories with a name, on simulated time. */
#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

static void
everything_is_delivered(void **state)
{
	struct sim sim;

	sim_init(&sim, 1, 2);
	sim_start(&sim);
	for (unsigned i = 0; i < 4; i++)
		producer_go(sim_producer(&sim, 0), SIM_MS(1), 4);
	sim_run_for(&sim, SIM_S(10));
	for (unsigned i = 0; i < 4; i++)
		sim.producers[i]->stop_ns = 0;
	sim_settle(&sim, SIM_S(5));
	assert_true(sim_published(&sim) > 100000);
	assert_int_equal(sim_done(&sim, TG_DELIVERED), sim_published(&sim));
	assert_int_equal(sim.failed, 0);
	sim_fini(&sim);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_is_delivered),
	};

	return cmocka_run_group_tests_name("sim", tests, NULL, NULL);
}
