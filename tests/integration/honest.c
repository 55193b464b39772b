/*
 * honest: publishes one message at a time and waits for its answer, to measure the service left by other clients.
 *
 *   honest SOCKET POOL MS [THREADS]      prints `round_trips=N us=N longest_us=N p50_us=N p99_us=N`
 *
 * Each thread has a lane of its own. Exit status: 0; 1 when the library gives an error; 2 wrong use.
 */
#include "tests/integration/record.h"
#include "libclient/tidegate.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WARM_UP 100u
#define ANSWER_MS 30000
#define THREADS 64u

struct worker {
	pthread_t thread;
	struct tg_client *client;
	const char *pool;
	unsigned long long limit_us, round_trips, us, longest_us;
	uint64_t times[RECORD_BUCKETS]; /* of the round trips, ns */
	int failed;
};

static unsigned long long
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned long long)t.tv_sec * 1000000u + (unsigned long long)t.tv_nsec / 1000u;
}

/* Within how many microseconds so many of a hundred round trips were over: the upper end of a bucket. */
static unsigned long long
percentile(const uint64_t times[RECORD_BUCKETS], unsigned long long total, unsigned percent)
{
	unsigned long long seen = 0;

	for (unsigned bucket = 0; bucket < RECORD_BUCKETS; bucket++) {
		seen += times[bucket];
		if (times[bucket] > 0 && seen * 100 >= total * percent)
			return (bucket < 16 ? bucket : (17ull + bucket % 16) << (bucket / 16 - 1)) / 1000;
	}
	return 0;
}

static int
fail(struct tg_client *client, const char *what, int error)
{
	fprintf(stderr, "honest: %s: %s (%s)\n", what, tg_strerror(error), tg_client_detail(client));
	return 1;
}

static void *
work(void *arg)
{
	struct worker *w = arg;
	struct tg_message message = {
		.topic = "honest", .topic_len = TG_NUL, .body = "one message and its answer", .body_len = 26
	};
	struct tg_lane *lane = NULL;
	unsigned long long start = 0, last = 0;
	int rc;

	if ((rc = tg_lane_open(w->client, &lane, w->pool, NULL)) != 0) {
		w->failed = fail(w->client, "tg_lane_open", rc);
		return NULL;
	}
	for (unsigned n = 0; n <= WARM_UP || last - start < w->limit_us; n++) {
		struct tg_completion completion;

		if ((rc = tg_publish_sync(lane, &message, ANSWER_MS, &completion)) != 0) {
			w->failed = fail(w->client, "tg_publish_sync", rc);
			break;
		}
		unsigned long long now = now_us();
		if (n < WARM_UP) {
			start = last = now;
			continue;
		}
		w->round_trips++;
		w->longest_us = now - last > w->longest_us ? now - last : w->longest_us;
		w->times[record_bucket((now - last) * 1000)]++;
		last = now;
	}
	w->us = last - start;
	tg_lane_close(lane, ANSWER_MS);
	return NULL;
}

int
main(int argc, char **argv)
{
	static struct worker workers[THREADS];
	struct tg_client_options options = { .name = "honest" };
	struct tg_client *client = NULL;
	static struct worker all;
	int rc;

	unsigned long threads = argc == 5 ? strtoul(argv[4], NULL, 10) : 1;
	if (argc < 4 || argc > 5 || threads < 1 || threads > THREADS) {
		fprintf(stderr, "usage: honest SOCKET POOL MS [THREADS of at most %u]\n", THREADS);
		return 2;
	}
	options.socket = argv[1];
	if ((rc = tg_client_open(&client, &options)) != 0)
		return fail(client, "tg_client_open", rc);
	for (unsigned i = 0; i < threads; i++) {
		workers[i] = (struct worker){
			.client = client, .pool = argv[2], .limit_us = strtoull(argv[3], NULL, 10) * 1000
		};
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
			perror("honest: pthread_create");
			return 1;
		}
	}
	for (unsigned i = 0; i < threads; i++) {
		const struct worker *w = &workers[i];

		pthread_join(w->thread, NULL);
		all.failed |= w->failed;
		all.round_trips += w->round_trips;
		all.us = w->us > all.us ? w->us : all.us;
		all.longest_us = w->longest_us > all.longest_us ? w->longest_us : all.longest_us;
		for (unsigned bucket = 0; bucket < RECORD_BUCKETS; bucket++)
			all.times[bucket] += w->times[bucket];
	}
	tg_client_close(client);
	if (!all.failed)
		printf("round_trips=%llu us=%llu longest_us=%llu p50_us=%llu p99_us=%llu\n", all.round_trips,
		    all.us, all.longest_us, percentile(all.times, all.round_trips, 50),
		    percentile(all.times, all.round_trips, 99));
	return all.failed;
}
