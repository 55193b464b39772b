/*
 * honest: one message and its answer, one after the other, for a while: what the others leave a client.
 *
 *   honest SOCKET POOL MS      prints `round_trips=N us=N longest_us=N`
 *
 * Exit status: 0; 1 when the library gives an error; 2 wrong use.
 */
#include "libclient/tidegate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WARM_UP 100u
#define ANSWER_MS 30000

static unsigned long long
now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned long long)t.tv_sec * 1000000u + (unsigned long long)t.tv_nsec / 1000u;
}

static int
fail(struct tg_client *client, const char *what, int error)
{
	fprintf(stderr, "honest: %s: %s (%s)\n", what, tg_strerror(error), tg_client_detail(client));
	return 1;
}

int
main(int argc, char **argv)
{
	struct tg_client_options options = { .name = "honest" };
	struct tg_message message = { .topic = "honest", .body = "one message and its answer", .body_len = 26 };
	struct tg_client *client = NULL;
	struct tg_lane *lane = NULL;
	unsigned long long round_trips = 0, start = 0, longest = 0, last = 0;
	int rc;

	if (argc != 4) {
		fprintf(stderr, "usage: honest SOCKET POOL MS\n");
		return 2;
	}
	unsigned long long limit = strtoull(argv[3], NULL, 10) * 1000;
	options.socket = argv[1];
	if ((rc = tg_client_open(&client, &options)) != 0)
		return fail(client, "tg_client_open", rc);
	if ((rc = tg_lane_open(client, &lane, argv[2], NULL)) != 0)
		return fail(client, "tg_lane_open", rc);
	for (unsigned n = 0;; n++) {
		struct tg_completion completion;

		if ((rc = tg_publish_sync(lane, &message, ANSWER_MS, &completion)) != 0)
			return fail(client, "tg_publish_sync", rc);
		if (n < WARM_UP) {
			start = last = now_us();
			continue;
		}
		unsigned long long now = now_us();
		round_trips++;
		longest = now - last > longest ? now - last : longest;
		last = now;
		if (now - start >= limit)
			break;
	}
	printf("round_trips=%llu us=%llu longest_us=%llu\n", round_trips, last - start, longest);
	tg_lane_close(lane, ANSWER_MS);
	tg_client_close(client);
	return 0;
}
