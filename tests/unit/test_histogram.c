/* Compares the histogram with a sorted array of its input. */
#include "build_config.h"

#include "tools/common/histogram.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t random_state = 88172645463325252u;

static uint64_t
next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

/* Any magnitude is as likely as any other. */
static uint64_t
random_value(void)
{
	return next_random() >> (next_random() % 64);
}

static int
compare(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return a < b ? -1 : a > b;
}

static void
buckets_tile_all_values(void **state)
{
	unsigned bucket;

	(void)state;
	assert_int_equal(histogram_lower(0), 0);
	for (bucket = 0; bucket + 1 < HISTOGRAM_BUCKETS; bucket++) {
		assert_int_equal(histogram_upper(bucket) + 1, histogram_lower(bucket + 1));
		assert_int_equal(histogram_bucket(histogram_lower(bucket)), bucket);
		assert_int_equal(histogram_bucket(histogram_upper(bucket)), bucket);
	}
	assert_true(histogram_upper(HISTOGRAM_BUCKETS - 1) == UINT64_MAX);
	assert_int_equal(histogram_bucket(UINT64_MAX), HISTOGRAM_BUCKETS - 1);
}

static void
a_bucket_is_at_most_a_64th_wide(void **state)
{
	unsigned bucket;

	(void)state;
	for (bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
		assert_true(histogram_upper(bucket) - histogram_lower(bucket) <= histogram_lower(bucket) / 64);
}

static void
percentiles_agree_with_a_sorted_array(void **state)
{
	static const double percents[] = { 1, 10, 25, 50, 75, 90, 99, 99.9, 99.99 };
	static uint64_t values[5000];
	static struct histogram h;
	unsigned run;
	size_t count, i;

	(void)state;
	for (run = 0; run < 50; run++) {
		histogram_reset(&h);
		count = 1 + (size_t)(next_random() % (sizeof(values) / sizeof(values[0])));
		for (i = 0; i < count; i++) {
			values[i] = random_value();
			histogram_add(&h, values[i]);
		}
		qsort(values, count, sizeof(values[0]), compare);
		assert_int_equal(h.count, count);
		assert_true(h.min == values[0] && h.max == values[count - 1]);
		assert_true(histogram_percentile(&h, 0) == values[0]);
		assert_true(histogram_percentile(&h, 100) == values[count - 1]);
		for (i = 0; i < sizeof(percents) / sizeof(percents[0]); i++) {
			double exact = (double)count * percents[i] / 100;
			size_t rank = (size_t)exact + ((double)(size_t)exact < exact);
			uint64_t want = values[rank == 0 ? 0 : rank - 1];
			uint64_t got = histogram_percentile(&h, percents[i]);

			assert_true(got >= want && got - want <= want / 64);
		}
	}
}

static void
an_empty_histogram_says_zero(void **state)
{
	static struct histogram h, other;

	(void)state;
	assert_int_equal(histogram_percentile(&h, 50), 0);
	assert_true(histogram_mean(&h) == 0.0);
	histogram_merge(&h, &other);
	assert_int_equal(h.count, 0);
	histogram_add(&other, 7);
	histogram_merge(&h, &other);
	assert_int_equal(h.min, 7);
	assert_int_equal(h.max, 7);
	assert_int_equal(histogram_percentile(&h, 0.001), 7);
}

static void
merging_equals_adding_all_to_one(void **state)
{
	static struct histogram one, parts[4], sum;
	unsigned i;

	(void)state;
	histogram_reset(&one);
	for (i = 0; i < 20000; i++) {
		uint64_t value = random_value() >> 20; /* the sums must not saturate here */

		histogram_add(&one, value);
		histogram_add(&parts[next_random() % 4], value);
	}
	for (i = 0; i < 4; i++)
		histogram_merge(&sum, &parts[i]);
	assert_memory_equal(&one, &sum, sizeof(one));
}

static void
the_sum_saturates(void **state)
{
	static struct histogram h;

	(void)state;
	histogram_add(&h, UINT64_MAX);
	histogram_add(&h, UINT64_MAX);
	assert_true(h.sum == UINT64_MAX);
	assert_int_equal(h.count, 2);
}

static void
json_carries_enough_to_add_it_up_again(void **state)
{
	static struct histogram h, again;
	json_t *object, *buckets, *pair;
	size_t i;

	(void)state;
	for (i = 0; i < 1000; i++)
		histogram_add(&h, random_value() >> 10);
	object = histogram_json(&h);
	assert_non_null(object);
	assert_int_equal(json_integer_value(json_object_get(object, "count")), 1000);
	assert_true(
	    (uint64_t)json_integer_value(json_object_get(object, "p99.9")) == histogram_percentile(&h, 99.9));
	buckets = json_object_get(object, "buckets");
	json_array_foreach (buckets, i, pair) {
		uint64_t upper = (uint64_t)json_integer_value(json_array_get(pair, 0));
		json_int_t n = json_integer_value(json_array_get(pair, 1));

		assert_true(n > 0);
		while (n-- > 0)
			histogram_add(&again, upper);
	}
	assert_memory_equal(h.buckets, again.buckets, sizeof(h.buckets));
	json_decref(object);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(buckets_tile_all_values),
		cmocka_unit_test(a_bucket_is_at_most_a_64th_wide),
		cmocka_unit_test(percentiles_agree_with_a_sorted_array),
		cmocka_unit_test(an_empty_histogram_says_zero),
		cmocka_unit_test(merging_equals_adding_all_to_one),
		cmocka_unit_test(the_sum_saturates),
		cmocka_unit_test(json_carries_enough_to_add_it_up_again),
	};

	return cmocka_run_group_tests_name("histogram", tests, NULL, NULL);
}
