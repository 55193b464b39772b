/* Publishing through the tidegated of this host. */
#include "build_config.h"

#include "libclient/tidegate.h"
#include "tools/bench/client.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_MAX 256
#define OPEN_TIMEOUT_MS 10000

struct tidegate_client {
	struct tg_client *client;
	struct tg_lane *lane;
	void *body;
	uint64_t batch;
	struct tg_message messages[BATCH_MAX];
};

static void
close_tidegate(void *self)
{
	struct tidegate_client *t = self;

	if (t == NULL)
		return;
	if (t->lane != NULL)
		tg_lane_close(t->lane, 0);
	tg_client_close(t->client);
	free(t->body);
	free(t);
}

/* Adds up finished messages; any other outcome is reported as a failure. */
static int64_t
count_finished(struct tidegate_client *t, const struct tg_completion *completions, int count)
{
	char reason[256] = "";
	int i;

	for (i = 0; i < count; i++) {
		const struct tg_completion *c = &completions[i];

		if (c->outcome == TG_DELIVERED || c->outcome == TG_SENT)
			continue;
		if (c->outcome == TG_REJECTED)
			tg_reason(t->lane, reason, sizeof(reason), NULL);
		return client_fail("a message was %s (code %" PRIu32 ")%s%s", tg_outcome_name(c->outcome),
		    c->code, reason[0] != '\0' ? ": " : "", reason);
	}
	return count;
}

static int64_t
collect_tidegate(void *self, int timeout_ms)
{
	struct tidegate_client *t = self;
	struct tg_completion completions[BATCH_MAX];
	int count, error;

	count = tg_poll(t->lane, completions, BATCH_MAX);
	if (count == 0 && timeout_ms != 0) {
		error = tg_wait(t->lane, timeout_ms);
		if (error != 0 && error != -TG_ETIMEOUT && !(error == -TG_ESYSTEM && errno == EINTR))
			return client_fail("waiting: %s", tg_client_detail(t->client));
		count = tg_poll(t->lane, completions, BATCH_MAX);
	}
	if (count < 0)
		return client_fail("reading completions: %s", tg_client_detail(t->client));
	return count_finished(t, completions, count);
}

static int64_t
publish_tidegate(void *self, uint64_t count)
{
	struct tidegate_client *t = self;
	int taken;

	if (count > t->batch)
		count = t->batch;
	if (count == 1) {
		taken = tg_publish(t->lane, &t->messages[0], NULL);
		if (taken == 0)
			return 1;
	} else {
		taken = tg_publish_batch(t->lane, t->messages, (size_t)count, NULL);
	}
	if (taken == -TG_EAGAIN)
		return 0;
	if (taken < 0)
		return client_fail("publishing: %s", tg_client_detail(t->client));
	return taken;
}

static int
fd_tidegate(void *self)
{
	struct tidegate_client *t = self;

	return tg_fd(t->lane);
}

static void *
open_tidegate(const struct bench_options *options)
{
	struct tg_client_options client_options = { .socket = options->socket, .name = "tidegate-bench" };
	struct tg_lane_options lane_options = { .ring_bytes = options->ring_bytes,
		.spin_us = (uint32_t)options->spin_us };
	struct tidegate_client *t = calloc(1, sizeof(*t));
	struct tg_completion completion;
	int error;
	size_t i;

	if (t == NULL || (t->body = client_body(options->size)) == NULL) {
		client_fail("out of memory");
		goto failed;
	}
	error = tg_client_open(&t->client, &client_options);
	if (error != 0) {
		client_fail("%s", tg_client_detail(NULL));
		t->client = NULL;
		goto failed;
	}
	if (tg_lane_open(t->client, &t->lane, options->pool, &lane_options) != 0) {
		client_fail("pool \"%s\": %s", options->pool, tg_client_detail(t->client));
		goto failed;
	}
	t->batch = options->batch < BATCH_MAX ? options->batch : BATCH_MAX;
	for (i = 0; i < BATCH_MAX; i++)
		t->messages[i] = (struct tg_message){ .topic = options->topic,
			.topic_len = strlen(options->topic),
			.body = t->body,
			.body_len = (size_t)options->size };
	/* One message and its answer warm both sides up before the measurement. */
	error = tg_publish_sync(t->lane, &t->messages[0], OPEN_TIMEOUT_MS, &completion);
	if (error != 0)
		client_fail("pool \"%s\": the first message: %s", options->pool, tg_strerror(error));
	else if (count_finished(t, &completion, 1) == 1)
		return t;
failed:
	close_tidegate(t);
	return NULL;
}

static void
targets_tidegate(const struct bench_options *options, char text[2][256])
{
	snprintf(text[0], sizeof(text[0]), "%s", options->socket != NULL ? options->socket : "");
	snprintf(text[1], sizeof(text[1]), "%s", options->pool);
}

const struct load_client client_tidegate = {
	.name = "tidegate",
	.helper = "tidegate-once",
	.open = open_tidegate,
	.publish = publish_tidegate,
	.collect = collect_tidegate,
	.close = close_tidegate,
	.fd = fd_tidegate,
	.targets = targets_tidegate,
};
