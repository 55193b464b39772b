/*
 * Publishes COUNT messages in batches and asks to hear only of those that were not delivered.
 *
 *     batch POOL TOPIC COUNT
 *
 * A batch costs one wake-up of the daemon at most. TG_QUIET suppresses the completion of a message that was delivered,
 * so a run without trouble reads no completions at all; tg_flush() waits until every message is completed.
 *
 * Build: cc batch.c -o batch $(pkg-config --cflags --libs tidegate)
 */
#include <stdio.h>
#include <stdlib.h>
#include <tidegate.h>

#define BATCH 32

/* Counts the messages that were not delivered. Returns 0 or a negative error. */
static int
collect(struct tg_lane *lane, unsigned long *failed)
{
	struct tg_completion done[BATCH];
	int count;

	while ((count = tg_poll(lane, done, BATCH)) > 0)
		for (int i = 0; i < count; i++) {
			fprintf(stderr, "batch: message %llu: %s, code %u\n", (unsigned long long)done[i].tag,
			    tg_outcome_name(done[i].outcome), done[i].code);
			++*failed;
		}
	return count;
}

static int
run(struct tg_lane *lane, const char *topic, unsigned long count, unsigned long *failed)
{
	struct tg_message messages[BATCH];
	char bodies[BATCH][32];
	unsigned long next = 0;
	int rc;

	while (next < count) {
		size_t size = count - next < BATCH ? count - next : BATCH;
		for (size_t i = 0; i < size; i++) {
			int len = snprintf(bodies[i], sizeof(bodies[i]), "number %lu", next + i);
			messages[i] = (struct tg_message){
				.topic = topic,
				.topic_len = TG_NUL,
				.body = bodies[i],
				.body_len = (size_t)len,
				.tag = next + i,
				.flags = TG_QUIET,
			};
		}
		rc = tg_publish_batch(lane, messages, size, NULL);
		if (rc > 0)
			next += (unsigned long)rc; /* the loop makes those that did not fit again */
		else if (rc == -TG_EAGAIN)
			rc = tg_wait(lane, -1); /* the ring is full: wait for room or for a completion */
		if (rc < 0)
			return rc;
		if ((rc = collect(lane, failed)) < 0)
			return rc;
	}
	if ((rc = tg_flush(lane, -1)) != 0)
		return rc;
	return collect(lane, failed);
}

int
main(int argc, char **argv)
{
	struct tg_client *client = NULL;
	struct tg_lane *lane = NULL;
	unsigned long failed = 0;

	if (argc != 4) {
		fprintf(stderr, "usage: batch POOL TOPIC COUNT\n");
		return 2;
	}
	unsigned long count = strtoul(argv[3], NULL, 10);
	int rc = tg_client_open(&client, NULL);
	if (rc == 0)
		rc = tg_lane_open(client, &lane, argv[1], NULL);
	if (rc == 0)
		rc = run(lane, argv[2], count, &failed);
	if (rc != 0)
		fprintf(stderr, "batch: %s: %s\n", tg_strerror(rc), tg_client_detail(client));
	else
		printf("%lu of %lu delivered\n", count - failed, count);
	if (lane != NULL)
		tg_lane_close(lane, 1000);
	tg_client_close(client);
	return rc != 0 || failed > 0;
}
