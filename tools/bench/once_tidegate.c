/*
 * The shortest life of a publisher: connect, publish one message, see it confirmed, exit. Its only library is
 * tidegate's, so that the measurement does not include loading others.
 *
 *	tidegate-once SOCKET POOL TOPIC SIZE
 */
#include "libclient/tidegate.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RING_MIN (UINT64_C(16) << 10)
#define TIMEOUT_MS 10000

static int
failed(const char *what, const char *why)
{
	fprintf(stderr, "tidegate-once: %s: %s\n", what, why);
	return 1;
}

int
main(int argc, char **argv)
{
	struct tg_client_options client_options = { 0 };
	struct tg_lane_options lane_options = { .ring_bytes = RING_MIN };
	struct tg_message message = { 0 };
	struct tg_completion completion;
	struct tg_client *client;
	struct tg_lane *lane;
	void *body;
	int error;

	if (argc != 5)
		return failed("usage", "tidegate-once SOCKET POOL TOPIC SIZE");
	client_options.socket = argv[1][0] != '\0' ? argv[1] : NULL;
	message.topic = argv[3];
	message.topic_len = TG_NUL;
	message.body_len = (size_t)strtoul(argv[4], NULL, 10);
	message.body = body = calloc(1, message.body_len + 1);
	while (lane_options.ring_bytes / 4 < message.body_len)
		lane_options.ring_bytes *= 2;
	if (body == NULL)
		return failed(argv[4], "out of memory");
	error = tg_client_open(&client, &client_options);
	if (error != 0)
		return failed(argv[1], tg_client_detail(NULL));
	if (tg_lane_open(client, &lane, argv[2], &lane_options) != 0)
		return failed(argv[2], tg_client_detail(client));
	error = tg_publish_sync(lane, &message, TIMEOUT_MS, &completion);
	if (error != 0)
		return failed("publish", tg_strerror(error));
	if (completion.outcome != TG_DELIVERED && completion.outcome != TG_SENT)
		return failed("publish", tg_outcome_name(completion.outcome));
	tg_client_close(client);
	free(body);
	return 0;
}
