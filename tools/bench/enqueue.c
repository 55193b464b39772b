/*
 * The cost of tg_publish for its caller: bursts that fit into the ring, timed from the first call's
 * start to the last one's end. A message just before each burst wakes the daemon, so that no
 * doorbell (a system call of about 8 us) is in the figure; after each the lane is flushed.
 */
#include "build_config.h"

#include "libclient/tidegate.h"
#include "tools/bench/client.h"
#include "tools/bench/group.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_RING (UINT64_C(1) << 20)
#define BURST_RING_PART 2 /* a burst takes at most this part of the ring */
#define RECORD_BYTES 64   /* a record's overhead beside topic and body, at most */
#define FLUSH_MS 10000

enum way { WAY_ONE, WAY_BATCH, WAY_RESERVE, WAYS };

static const char *const way_names[WAYS] = {
	[WAY_ONE] = "tg_publish, one by one",
	[WAY_BATCH] = "tg_publish_batch",
	[WAY_RESERVE] = "tg_reserve and tg_commit",
};
static const char *const way_words[WAYS] = { "publish", "batch", "reserve" };

struct bench_lane {
	struct tg_client *client;
	struct tg_lane *lane;
	void *body;
	struct tg_message *messages;
	uint64_t burst;
};

struct context {
	const struct bench_options *options;
};

static void
close_lane(void *self, const void *context)
{
	struct bench_lane *b = self;

	(void)context;
	if (b == NULL)
		return;
	if (b->lane != NULL)
		tg_lane_close(b->lane, FLUSH_MS);
	tg_client_close(b->client);
	free(b->messages);
	free(b->body);
	free(b);
}

static int
fill_messages(struct bench_lane *b, const struct bench_options *o)
{
	uint64_t record = RECORD_BYTES + strlen(o->topic) + o->size;
	uint64_t room = (o->ring_bytes != 0 ? o->ring_bytes : DEFAULT_RING) / BURST_RING_PART;
	uint64_t i;

	b->burst = room / record < o->count ? room / record : o->count;
	b->burst -= b->burst % o->batch;
	if (b->burst == 0)
		return client_fail(
		    "a ring of %llu bytes has no room for %llu messages of %llu bytes (--ring, --batch)",
		    (unsigned long long)o->ring_bytes, (unsigned long long)o->batch,
		    (unsigned long long)o->size);
	b->messages = calloc((size_t)b->burst, sizeof(*b->messages));
	b->body = client_body(o->size);
	if (b->messages == NULL || b->body == NULL)
		return client_fail("out of memory");
	for (i = 0; i < b->burst; i++)
		b->messages[i] = (struct tg_message){ .topic = o->topic,
			.topic_len = strlen(o->topic),
			.body = b->body,
			.body_len = (size_t)o->size,
			.flags = TG_QUIET };
	return 0;
}

static void *
open_lane(const void *context)
{
	const struct bench_options *o = ((const struct context *)context)->options;
	struct tg_client_options client_options = { .socket = o->socket, .name = "tidegate-bench" };
	struct tg_lane_options lane_options = { .ring_bytes =
						    o->ring_bytes != 0 ? o->ring_bytes : DEFAULT_RING };
	struct bench_lane *b = calloc(1, sizeof(*b));
	int error;

	if (b == NULL) {
		client_fail("out of memory");
		return NULL;
	}
	error = tg_client_open(&b->client, &client_options);
	if (error != 0) {
		b->client = NULL;
		client_fail("%s", tg_client_detail(NULL));
	} else if (tg_lane_open(b->client, &b->lane, o->pool, &lane_options) != 0) {
		client_fail("pool \"%s\": %s", o->pool, tg_client_detail(b->client));
	} else if (fill_messages(b, o) == 0) {
		return b;
	}
	close_lane(b, context);
	return NULL;
}

/* One burst. Returns 0, or the library's error. */
static int
burst(struct bench_lane *b, enum way way, uint64_t batch)
{
	uint64_t i;
	void *body;
	int error;

	for (i = 0; i < b->burst; i += way == WAY_BATCH ? batch : 1) {
		switch (way) {
		case WAY_ONE:
			error = tg_publish(b->lane, &b->messages[i], NULL);
			break;
		case WAY_BATCH:
			error = tg_publish_batch(b->lane, &b->messages[i], (size_t)batch, NULL);
			error = error == (int)batch ? 0 : error < 0 ? error : -TG_EAGAIN;
			break;
		default:
			error = tg_reserve(b->lane, &b->messages[i], &body);
			if (error == 0) {
				memcpy(body, b->body, b->messages[i].body_len);
				error = tg_commit(b->lane, b->messages[i].body_len, NULL);
			}
		}
		if (error != 0)
			return error;
	}
	return 0;
}

/* Waits for all of a burst. Its messages are quiet: any completion is a failure. */
static int
settle(struct bench_lane *b)
{
	struct tg_completion completion;
	int error = tg_flush(b->lane, FLUSH_MS);

	if (error != 0)
		return client_fail("waiting for a burst: %s", tg_strerror(error));
	error = tg_poll(b->lane, &completion, 1);
	if (error < 0)
		return client_fail("reading completions: %s", tg_client_detail(b->client));
	return error == 0 ? 0
			  : client_fail("a message was %s (code %u)", tg_outcome_name(completion.outcome),
				completion.code);
}

static int
work(void *self, const void *context, struct group_slot *slot)
{
	const struct bench_options *o = ((const struct context *)context)->options;
	struct bench_lane *b = self;
	double figures[WAYS][BENCH_ROUNDS_MAX];
	struct tg_message first = b->messages[0];
	struct tg_completion completion;
	uint64_t round, start;
	unsigned way;
	int error;

	first.flags = 0;
	for (round = 0; round < o->rounds; round++) {
		for (way = 0; way < WAYS; way++) {
			error = tg_publish_sync(b->lane, &first, FLUSH_MS, &completion);
			if (error != 0)
				return client_fail("the message before a burst: %s", tg_strerror(error));
			if (completion.outcome != TG_DELIVERED && completion.outcome != TG_SENT)
				return client_fail(
				    "the message before a burst was %s", tg_outcome_name(completion.outcome));
			start = clock_now_ns();
			error = burst(b, (enum way)way, o->batch);
			figures[way][round] = (double)(clock_now_ns() - start) / (double)b->burst;
			if (error != 0)
				return client_fail("publishing a burst of %llu: %s",
				    (unsigned long long)b->burst, tg_strerror(error));
			if (settle(b) != 0)
				return -1;
		}
	}
	for (way = 0; way < WAYS; way++)
		slot->figures[way] = bench_median(figures[way], (size_t)o->rounds);
	slot->finished = b->burst;
	return 0;
}

int
bench_enqueue(const struct bench_options *options)
{
	static const struct group_job job = { open_lane, work, close_lane };
	struct context context = { options };
	struct group group;
	char text[UNITS_TEXT];
	json_t *results;
	unsigned way;
	int status = CLI_OK;

	cli_progress("%llu rounds", (unsigned long long)options->rounds);
	if (group_start(&group, 1, &job, &context) != 0)
		return CLI_FAILED;
	if (group_run(&group) != 0) {
		group_fini(&group);
		return CLI_FAILED;
	}
	cli_progress_end();
	if (options->json) {
		results = json_object();
		for (way = 0; way < WAYS; way++)
			json_object_set_new(results, way_words[way], json_real(group.slots[0].figures[way]));
		status = bench_print_json(json_pack("{s:s,s:I,s:I,s:I,s:I,s:o}", "bench", "enqueue", "size",
		    (json_int_t)options->size, "batch", (json_int_t)options->batch, "burst",
		    (json_int_t)group.slots[0].finished, "rounds", (json_int_t)options->rounds, "ns", results));
	} else {
		printf("one message of %llu bytes, medians of %llu bursts of %llu (batches of %llu)\n",
		    (unsigned long long)options->size, (unsigned long long)options->rounds,
		    (unsigned long long)group.slots[0].finished, (unsigned long long)options->batch);
		for (way = 0; way < WAYS; way++)
			printf("  %-28s %10s\n", way_names[way],
			    units_ns(text, sizeof(text), group.slots[0].figures[way]));
	}
	group_fini(&group);
	return status;
}
