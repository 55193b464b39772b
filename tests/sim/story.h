/*
 * Shared by the named stories, which are cmocka tests of one simulated host (sim.h). A failure in here fails
 * the calling test.
 */
#ifndef TG_TESTS_SIM_STORY_H
#define TG_TESTS_SIM_STORY_H

#include "sim.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define assert_between(low, value, high)                                                                       \
	do {                                                                                                   \
		double value_ = (double)(value);                                                               \
		if (value_ < (double)(low) || value_ > (double)(high))                                         \
			fail_msg("%s is %g, not in %g ... %g", #value, value_, (double)(low), (double)(high)); \
	} while (0)

/* Before the tests: SIM_TEST is the filter of their names, and a thousand lanes have two descriptors each. */
void story_prepare(void);

void start_producers(struct sim *sim, unsigned count, uint64_t every_ns, uint32_t burst);
void stop_producers(struct sim *sim);
/* Everything finished, every record delivered, nothing left: the end of the simulation. */
void end_all_delivered(struct sim *sim, uint64_t within_ns);

/* Records that arrived, at any broker, and of them those that arrived more than once. */
uint64_t stored(const struct sim *sim);
uint64_t duplicates(const struct sim *sim);

/* For sim_run_until(): does broker 0 carry messages? */
int is_0_ready(struct sim *sim);
int is_0_left(struct sim *sim);

#endif
