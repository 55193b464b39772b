/*
 * A bounded histogram of durations with logarithmic buckets.
 *
 * Values below HISTOGRAM_SUB are exact. Above, every power of two is cut into HISTOGRAM_SUB / 2
 * equal buckets, so a reported value is at most 1/64 (1.6 %) above the recorded one:
 *
 *	0 1 2 … 127 | 128 130 … 254 | 256 260 … 508 | 512 …       lower bound of each bucket
 *	 width 1       width 2         width 4        width 8
 *
 * It is flat memory without pointers: it may lie in memory that processes share, each writing its
 * own, and two are added by histogram_merge(). Zeroed: empty. Owner and thread: the caller's.
 */
#ifndef TG_TOOLS_HISTOGRAM_H
#define TG_TOOLS_HISTOGRAM_H

#include <stddef.h>
#include <stdint.h>

#include <jansson.h>

#define HISTOGRAM_SUB_BITS 7u
#define HISTOGRAM_SUB (1u << HISTOGRAM_SUB_BITS)
#define HISTOGRAM_BUCKETS (HISTOGRAM_SUB + (64u - HISTOGRAM_SUB_BITS) * (HISTOGRAM_SUB / 2))

struct histogram {
	uint64_t count;
	uint64_t sum; /* saturates */
	uint64_t min; /* of no meaning while count is 0 */
	uint64_t max;
	uint64_t buckets[HISTOGRAM_BUCKETS];
};

/* The bucket of a value, and the smallest and largest value of a bucket. */
unsigned histogram_bucket(uint64_t value);
uint64_t histogram_lower(unsigned bucket);
uint64_t histogram_upper(unsigned bucket);

void histogram_reset(struct histogram *histogram);
void histogram_add(struct histogram *histogram, uint64_t value);
void histogram_merge(struct histogram *into, const struct histogram *from);

/*
 * The smallest recorded value that at least `percent` of all are at or below, to the bucket's upper
 * bound and never above max. percent is clamped to 0..100; 0 of an empty histogram.
 */
uint64_t histogram_percentile(const struct histogram *histogram, double percent);
double histogram_mean(const struct histogram *histogram);

/*
 * { "count", "min", "mean", "p50", "p90", "p99", "p99.9", "max", "buckets": [[upper, count], …] }:
 * numbers in the unit that went in, buckets only those that are not empty, so that a reader can add
 * the histograms of several runs. Returns a new reference, NULL without memory.
 */
json_t *histogram_json(const struct histogram *histogram);

#endif
