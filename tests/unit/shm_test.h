/*
 * Shared by the tests of shm/: cmocka with its prerequisites, a seeded random source that names
 * its seed, a count of open descriptors, and a mapped lane.
 *
 * TIDEGATE_TEST_SEED=N replays a run: every random test prints the seed it used.
 */
#ifndef TG_TESTS_SHM_TEST_H
#define TG_TESTS_SHM_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "shm/error.h"
#include "shm/lane.h"
#include "shm/ring.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* splitmix64: any seed is a good one. */
struct random {
	uint64_t state;
};

static inline uint64_t
random_next(struct random *r)
{
	uint64_t z = r->state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* 0 to limit - 1. */
static inline uint64_t
random_below(struct random *r, uint64_t limit)
{
	return random_next(r) % limit;
}

/* From TIDEGATE_TEST_SEED, or the clock; printed, so that a failure can be run again. */
static inline struct random
random_seeded(const char *test)
{
	const char *given = getenv("TIDEGATE_TEST_SEED");
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	uint64_t seed = given != NULL ? strtoull(given, NULL, 0)
				      : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
	fprintf(stderr, "%s: TIDEGATE_TEST_SEED=%llu\n", test, (unsigned long long)seed);
	return (struct random){ .state = seed };
}

static inline unsigned
count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned count = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		count++;
	closedir(dir);
	return count;
}

/* A fresh lane, mapped once. Zero asks for the smallest. */
struct test_lane {
	int ring, answers;
	struct lane_map map;
};

/* Both parts, for reading and writing: as long as the ring is not sealed for good. */
static inline int
test_lane_map(const struct test_lane *lane, struct lane_map *map)
{
	struct lane_geometry geo = lane->map.geo;
	int rc = lane_map_ring(map, lane->ring, &geo, LANE_WRITE, 1);

	return rc != 0 ? rc : lane_map_answers(map, lane->answers, LANE_WRITE, 1);
}

static inline void
test_lane_init(struct test_lane *lane, uint64_t sq_bytes, uint32_t cq_entries)
{
	struct lane_header header = { .lane_id = 7, .nonce = 9, .pool = "events" };
	struct lane_geometry geo;

	assert_int_equal(lane_geometry_make(&geo, sq_bytes != 0 ? sq_bytes : LANE_SQ_MIN, cq_entries), 0);
	lane->ring = lane_ring_create(&geo);
	lane->answers = lane_answers_create(&geo, &header);
	assert_true(lane->ring >= 0 && lane->answers >= 0);
	lane->map.geo = geo;
	assert_int_equal(test_lane_map(lane, &lane->map), 0);
}

static inline void
test_lane_fini(struct test_lane *lane)
{
	lane_map_fini(&lane->map);
	close(lane->ring);
	close(lane->answers);
}

#endif
