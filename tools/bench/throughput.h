/*
 * Rounds of confirmed messages, by one client after the other. Owner: main; one at a time.
 */
#ifndef TG_BENCH_THROUGHPUT_H
#define TG_BENCH_THROUGHPUT_H

#include "tools/bench/client.h"

#define THROUGHPUT_CLIENTS 8

/* Of one client, over rounds. Times per message in ns. */
struct throughput {
	double per_second[BENCH_ROUNDS_MAX];
	double publishers[BENCH_ROUNDS_MAX];
	double daemon[BENCH_ROUNDS_MAX];
	double broker[BENCH_ROUNDS_MAX];
	double ours[BENCH_ROUNDS_MAX]; /* publishers and daemon together */
	size_t rounds;
};

/*
 * Adds options->rounds rounds to what each client has: fewer, but one, if they take more than
 * options->duration_ms (0: no matter). The text `what` precedes the progress line. Returns 0, or -1 with a
 * message shown.
 */
int throughput_measure(const struct bench_options *options, const struct load_client *const *clients,
    struct throughput *series, size_t count, const char *what);

#endif
