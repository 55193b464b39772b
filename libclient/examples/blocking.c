/*
 * Publishes one message and waits for its outcome.
 *
 *     blocking POOL TOPIC TEXT
 *
 * Build: cc blocking.c -o blocking $(pkg-config --cflags --libs tidegate)
 */
#include <stdio.h>
#include <string.h>
#include <tidegate.h>

int
main(int argc, char **argv)
{
	struct tg_client *client = NULL;
	struct tg_lane *lane = NULL;
	struct tg_completion done = { .outcome = 0 };
	/* A short-lived publisher asks for the smallest ring, because each page costs time at attach. */
	struct tg_lane_options options = { .ring_bytes = 16384 };

	if (argc != 4) {
		fprintf(stderr, "usage: blocking POOL TOPIC TEXT\n");
		return 2;
	}
	struct tg_message message = {
		.topic = argv[2], .topic_len = TG_NUL, .body = argv[3], .body_len = strlen(argv[3])
	};

	int rc = tg_client_open(&client, NULL);
	if (rc == 0)
		rc = tg_lane_open(client, &lane, argv[1], &options);
	if (rc == 0)
		rc = tg_publish_sync(lane, &message, 5000, &done);
	if (rc != 0) {
		fprintf(stderr, "blocking: %s: %s\n", tg_strerror(rc), tg_client_detail(client));
	} else {
		printf("%s after %u attempt(s)\n", tg_outcome_name(done.outcome), done.attempts);
		if (done.outcome == TG_REJECTED) {
			char why[256];
			tg_reason(lane, why, sizeof(why), NULL);
			printf("code %u: %s\n", done.code, why);
		}
	}
	if (lane != NULL)
		tg_lane_close(lane, 1000);
	tg_client_close(client);
	return rc != 0 || done.outcome != TG_DELIVERED;
}
