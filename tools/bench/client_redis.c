/*
 * Publishing through hiredis: XADD (PUBLISH if unconfirmed), pipelined on a blocking connection, with a
 * window of commands under way that is refilled as it empties. The same command as the pool's: MAXLEN ~ 100000,
 * one field.
 */
#include "tools/bench/client.h"

#include <errno.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPEN_TIMEOUT_S 10
#define WORDS 8

struct redis_client {
	redisContext *redis;
	void *body;
	const char *words[WORDS];
	size_t lens[WORDS];
	int word_count;
	int reply; /* the type of a good one */
	uint64_t window;
	uint64_t under_way;
};

static void
close_redis(void *self)
{
	struct redis_client *r = self;

	if (r == NULL)
		return;
	if (r->redis != NULL)
		redisFree(r->redis);
	free(r->body);
	free(r);
}

/* Writes what was appended. */
static int
flush_redis(void *self)
{
	struct redis_client *r = self;
	int done = 0;

	while (!done)
		if (redisBufferWrite(r->redis, &done) != REDIS_OK)
			return client_fail("hiredis: %s", r->redis->errstr);
	return 0;
}

/* Replies that are here already. Returns how many, or -1. */
static int64_t
take(struct redis_client *r)
{
	int64_t taken = 0;
	void *got;

	while (r->under_way > 0) {
		if (redisGetReplyFromReader(r->redis, &got) != REDIS_OK)
			return client_fail("hiredis: %s", r->redis->errstr);
		if (got == NULL)
			break;
		redisReply *reply = got;
		if (reply->type != r->reply) {
			client_fail("hiredis: %s: %s", r->words[0],
			    reply->type == REDIS_REPLY_ERROR ? reply->str : "an answer of another type");
			freeReplyObject(reply);
			return -1;
		}
		freeReplyObject(reply);
		r->under_way--;
		taken++;
	}
	return taken;
}

static int64_t
collect_redis(void *self, int timeout_ms)
{
	struct redis_client *r = self;
	struct pollfd ready = { .fd = r->redis->fd, .events = POLLIN };

	if (flush_redis(r) != 0)
		return -1;
	int64_t taken = take(r);
	if (taken != 0 || r->under_way == 0)
		return taken;
	int n = poll(&ready, 1, timeout_ms);
	if (n <= 0)
		return n == 0 || errno == EINTR ? 0 : client_fail("poll: %s", strerror(errno));
	if (redisBufferRead(r->redis) != REDIS_OK)
		return client_fail("hiredis: %s", r->redis->errstr);
	return take(r);
}

static int64_t
publish_redis(void *self, uint64_t count)
{
	struct redis_client *r = self;
	uint64_t taken = 0;

	while (r->under_way < r->window && taken < count) {
		if (redisAppendCommandArgv(r->redis, r->word_count, r->words, r->lens) != REDIS_OK)
			return client_fail("hiredis: %s", r->redis->errstr);
		r->under_way++;
		taken++;
	}
	return (int64_t)taken;
}

static int
fd_redis(void *self)
{
	struct redis_client *r = self;

	return r->redis->fd;
}

static void
set_command(struct redis_client *r, const struct bench_options *options)
{
	const char *add[] = { "XADD", options->topic, "MAXLEN", "~", "100000", "*", "body", r->body };
	const char *publish[] = { "PUBLISH", options->topic, r->body };
	const char **words = options->unconfirmed ? publish : add;
	int i;

	r->word_count = (int)(options->unconfirmed ? sizeof(publish) : sizeof(add)) / (int)sizeof(*words);
	r->reply = options->unconfirmed ? REDIS_REPLY_INTEGER : REDIS_REPLY_STRING;
	for (i = 0; i < r->word_count; i++) {
		r->words[i] = words[i];
		r->lens[i] = i + 1 < r->word_count ? strlen(words[i]) : (size_t)options->size;
	}
}

static void *
open_redis(const struct bench_options *options)
{
	struct redis_client *r = calloc(1, sizeof(*r));
	struct timeval limit = { .tv_sec = OPEN_TIMEOUT_S };
	int64_t finished;

	if (r == NULL || (r->body = client_body(options->size)) == NULL) {
		client_fail("out of memory");
		goto failed;
	}
	set_command(r, options);
	r->window = client_window(&client_redis, options);
	r->redis = redisConnectWithTimeout(options->broker_host, options->broker_port, limit);
	if (r->redis == NULL || r->redis->err != 0) {
		client_fail("hiredis: connect to %s port %u: %s", options->broker_host, options->broker_port,
		    r->redis != NULL ? r->redis->errstr : "out of memory");
		goto failed;
	}
	/* The same first message there and back as the other clients'. */
	if (publish_redis(r, 1) != 1)
		goto failed;
	finished = collect_redis(r, OPEN_TIMEOUT_S * 1000);
	if (finished == 1)
		return r;
	if (finished == 0)
		client_fail("hiredis: %s port %u: no answer in %d s", options->broker_host,
		    options->broker_port, OPEN_TIMEOUT_S);
failed:
	close_redis(r);
	return NULL;
}

static void
targets_redis(const struct bench_options *options, char text[2][256])
{
	snprintf(text[0], sizeof(text[0]), "%s", options->broker_host);
	snprintf(text[1], sizeof(text[1]), "%u", options->broker_port);
}

const struct load_client client_redis = {
	.name = "hiredis",
	.helper = "tidegate-once-redis",
	.protocol = "redis",
	.window = 100,
	.direct = 1,
	.clear_only = 1, /* Debian's hiredis comes without its TLS */
	.open = open_redis,
	.publish = publish_redis,
	.collect = collect_redis,
	.close = close_redis,
	.fd = fd_redis,
	.flush = flush_redis,
	.targets = targets_redis,
};
