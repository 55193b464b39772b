#include "tools/common/histogram.h"

#include <string.h>

#define HALF (HISTOGRAM_SUB / 2)

unsigned
histogram_bucket(uint64_t value)
{
	unsigned shift;

	if (value < HISTOGRAM_SUB)
		return (unsigned)value;
	/* The top SUB_BITS bits of the value, the highest of which is always set, choose the bucket. */
	shift = 64u - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
	return HISTOGRAM_SUB + (shift - 1) * HALF + (unsigned)(value >> shift) - HALF;
}

uint64_t
histogram_lower(unsigned bucket)
{
	unsigned shift, top;

	if (bucket < HISTOGRAM_SUB)
		return bucket;
	shift = (bucket - HISTOGRAM_SUB) / HALF + 1;
	top = (bucket - HISTOGRAM_SUB) % HALF + HALF;
	return (uint64_t)top << shift;
}

uint64_t
histogram_upper(unsigned bucket)
{
	if (bucket + 1 >= HISTOGRAM_BUCKETS)
		return UINT64_MAX;
	return histogram_lower(bucket + 1) - 1;
}

void
histogram_reset(struct histogram *histogram)
{
	memset(histogram, 0, sizeof(*histogram));
}

static uint64_t
add_saturated(uint64_t a, uint64_t b)
{
	uint64_t sum;

	return __builtin_add_overflow(a, b, &sum) ? UINT64_MAX : sum;
}

void
histogram_add(struct histogram *histogram, uint64_t value)
{
	if (histogram->count == 0 || value < histogram->min)
		histogram->min = value;
	if (value > histogram->max)
		histogram->max = value;
	histogram->count++;
	histogram->sum = add_saturated(histogram->sum, value);
	histogram->buckets[histogram_bucket(value)]++;
}

void
histogram_merge(struct histogram *into, const struct histogram *from)
{
	unsigned i;

	if (from->count == 0)
		return;
	if (into->count == 0 || from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	into->count += from->count;
	into->sum = add_saturated(into->sum, from->sum);
	for (i = 0; i < HISTOGRAM_BUCKETS; i++)
		into->buckets[i] += from->buckets[i];
}

uint64_t
histogram_percentile(const struct histogram *histogram, double percent)
{
	uint64_t want, seen = 0, value;
	double exact;
	unsigned i;

	if (histogram->count == 0)
		return 0;
	if (!(percent > 0))
		return histogram->min;
	if (percent >= 100)
		return histogram->max;
	exact = (double)histogram->count * percent / 100.0;
	want = (uint64_t)exact;
	if ((double)want < exact)
		want++; /* the rank is rounded up: p50 of one value is that value */
	if (want == 0)
		want = 1;
	for (i = 0; i < HISTOGRAM_BUCKETS; i++) {
		seen += histogram->buckets[i];
		if (seen >= want)
			break;
	}
	value = histogram_upper(i < HISTOGRAM_BUCKETS ? i : HISTOGRAM_BUCKETS - 1);
	if (value > histogram->max)
		value = histogram->max;
	return value < histogram->min ? histogram->min : value;
}

double
histogram_mean(const struct histogram *histogram)
{
	return histogram->count == 0 ? 0.0 : (double)histogram->sum / (double)histogram->count;
}

json_t *
histogram_json(const struct histogram *histogram)
{
	json_t *buckets = json_array();
	json_t *object;
	unsigned i;

	if (buckets == NULL)
		return NULL;
	for (i = 0; i < HISTOGRAM_BUCKETS; i++) {
		if (histogram->buckets[i] == 0)
			continue;
		if (json_array_append_new(buckets, json_pack("[I,I]", (json_int_t)histogram_upper(i),
						       (json_int_t)histogram->buckets[i])) != 0) {
			json_decref(buckets);
			return NULL;
		}
	}
	object = json_pack("{s:I,s:I,s:f,s:I,s:I,s:I,s:I,s:I,s:o}", "count", (json_int_t)histogram->count,
	    "min", (json_int_t)histogram->min, "mean", histogram_mean(histogram), "p50",
	    (json_int_t)histogram_percentile(histogram, 50), "p90",
	    (json_int_t)histogram_percentile(histogram, 90), "p99",
	    (json_int_t)histogram_percentile(histogram, 99), "p99.9",
	    (json_int_t)histogram_percentile(histogram, 99.9), "max", (json_int_t)histogram->max, "buckets",
	    buckets);
	return object; /* json_pack takes the buckets' reference, and drops it if it fails */
}
