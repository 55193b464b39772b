/*
 * Redis' replies. hiredis's reader takes them apart and calls back for each element; no tree of them is
 * ever built. It buffers one element until that is whole, REDIS_REPLY_MAX bytes at most: it is fed
 * in pieces that stop there, so that what breaks the limit does not depend on how the input is cut.
 * Small pieces also because it moves what is left of its buffer to the front every 1,024 bytes.
 */
#include "redis.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FEED_BYTES 4096u

/* hiredis 1 counts elements in size_t. */
#ifdef REDIS_REPLY_MAP
typedef size_t element_count;
#else
typedef int element_count;
#endif

static const struct redis_error {
	const char *word;
	uint32_t code;
	enum redis_action action;
	const char *meaning;
} errors[] = {
#define X(word, code, action, meaning) { #word, code, REDIS_##action, meaning },
#include "redis_error.def"
#undef X
};
static const struct redis_error other_error = { "", REDIS_CODE_OTHER, REDIS_REJECT, "" };

#define fatal(redis, kind, code, ...)                                       \
	(window_flush(&(redis)->unanswered), (redis)->state = REDIS_CLOSED, \
	    driver_fatal(&(redis)->base, kind, code, __VA_ARGS__))

/* ---- the reader ---- */

static void *
keep(const redisReadTask *task, int type, const char *text, size_t len)
{
	struct redis_session *redis = task->privdata;
	struct redis_reply *reply = &redis->reply;

	reply->type = type;
	reply->len = len;
	size_t kept = len < sizeof(reply->text) ? len : sizeof(reply->text);
	if (kept > 0)
		out_put((uint8_t *)reply->text, text, kept);
	return redis;
}

static int
is_text(const struct redis_reply *reply, const char *text)
{
	return reply->len == strlen(text) && memcmp(reply->text, text, reply->len) == 0;
}

/* The request that the reply at hand answers, or EXPECT_NOTHING. */
static enum redis_expected
expected_now(const struct redis_session *redis)
{
	return redis->expected_head == redis->expected_tail
		   ? EXPECT_NOTHING
		   : (enum redis_expected)redis->expected[redis->expected_head & redis->expected_mask];
}

/* An element of HELLO's reply: [name, value, …], some values being arrays. */
static void *
keep_element(struct redis_session *redis, const redisReadTask *task)
{
	int top = task->parent != NULL && task->parent->parent == NULL;

	if (!top || expected_now(redis) != EXPECT_HELLO)
		return redis;
	if (redis->next_is == TOLD_ROLE)
		redis->replica = is_text(&redis->reply, "replica") || is_text(&redis->reply, "slave");
	else if (redis->next_is == TOLD_MODE)
		redis->mode = is_text(&redis->reply, "cluster")    ? SERVER_CLUSTER
			      : is_text(&redis->reply, "sentinel") ? SERVER_SENTINEL
								   : SERVER_STANDALONE;
	redis->next_is = task->idx % 2 == 1               ? TOLD_NOTHING
			 : is_text(&redis->reply, "role") ? TOLD_ROLE
			 : is_text(&redis->reply, "mode") ? TOLD_MODE
							  : TOLD_NOTHING;
	return redis;
}

static void *
on_string(const redisReadTask *task, char *text, size_t len)
{
	struct redis_session *redis = task->privdata;

	if (task->parent == NULL)
		return keep(task, task->type, text, len);
	keep(task, REDIS_REPLY_ARRAY, text, len);
	return keep_element(redis, task);
}

static void *
on_array(const redisReadTask *task, element_count count)
{
	struct redis_session *redis = task->privdata;

	/* The one array that is asked for. Anything else is refused before its elements come. */
	if (expected_now(redis) != EXPECT_HELLO) {
		redis->wrong = "an array, which nothing that was sent asks for";
		return NULL;
	}
	if (task->parent == NULL)
		redis->reply.elements = 0;
	if ((uint64_t)count > REDIS_ELEMENTS_MAX - redis->reply.elements) {
		redis->wrong = "an array of more than 1024 elements";
		return NULL;
	}
	redis->reply.elements += (uint32_t)count;
	return keep(task, REDIS_REPLY_ARRAY, NULL, 0);
}

static void *
on_integer(const redisReadTask *task, long long value)
{
	struct redis_session *redis = task->privdata;

	redis->reply.integer = value;
	return keep(task, task->parent == NULL ? REDIS_REPLY_INTEGER : REDIS_REPLY_ARRAY, NULL, 0);
}

static void *
on_nil(const redisReadTask *task)
{
	return keep(task, task->parent == NULL ? REDIS_REPLY_NIL : REDIS_REPLY_ARRAY, NULL, 0);
}

static void
on_free(void *object)
{
}

redisReader *
redis_reader_new(struct redis_session *redis)
{
	static redisReplyObjectFunctions functions = {
		.createString = on_string,
		.createArray = on_array,
		.createInteger = on_integer,
		.createNil = on_nil,
		.freeObject = on_free,
	};
	redisReader *reader = redisReaderCreateWithFunctions(&functions);

	if (reader != NULL)
		reader->privdata = redis;
	return reader;
}

/* ---- the meaning of replies ---- */

static const struct redis_error *
find_error(const struct redis_reply *reply)
{
	size_t kept = reply->len < sizeof(reply->text) ? reply->len : sizeof(reply->text);
	const char *space = kept > 0 ? memchr(reply->text, ' ', kept) : NULL;
	size_t word = space != NULL ? (size_t)(space - reply->text) : kept;

	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (strlen(errors[i].word) == word && memcmp(errors[i].word, reply->text, word) == 0)
			return &errors[i];
	return &other_error;
}

static const char *
clean(const struct redis_reply *reply, char *text, size_t size)
{
	size_t kept = reply->len < sizeof(reply->text) ? reply->len : sizeof(reply->text);

	utf8_clean(text, size, (const uint8_t *)reply->text, kept);
	return text;
}

/* The end, in the server's words and ours. */
static int
fatal_error(struct redis_session *redis, const char *what, const struct redis_error *error)
{
	enum driver_fatal kind = error->action == REDIS_REFUSE ? FATAL_REFUSED : FATAL_UNUSABLE;
	char text[120];

	return fatal(redis, kind, error->code, "%s: %s%s%s%s", what, clean(&redis->reply, text, sizeof(text)),
	    error->meaning[0] != '\0' ? " (" : "", error->meaning, error->meaning[0] != '\0' ? ")" : "");
}

static int
fatal_shape(struct redis_session *redis, const char *what, const char *wants)
{
	static const char *const types[] = { "nothing", "a string", "an array", "an integer", "nil", "a status",
		"an error" };
	int type = redis->reply.type;

	return fatal(redis, FATAL_PROTOCOL, 0, "%s was answered with %s; it must be %s", what,
	    type > 0 && (size_t)type < sizeof(types) / sizeof(types[0]) ? types[type] : "something unknown",
	    wants);
}

static void
set_blocked(struct redis_session *redis, int blocked)
{
	char text[120];

	if (redis->blocked == blocked)
		return;
	redis->blocked = (uint8_t)blocked;
	window_flush(&redis->unanswered);
	if (!blocked) {
		driver_emit(&redis->base, EV_UNBLOCKED, 0);
		return;
	}
	clean(&redis->reply, text, sizeof(text));
	redis->base.events.emit(redis->base.events.owner,
	    &(struct driver_event){ .type = EV_BLOCKED, .text = text, .text_len = strlen(text) });
}

/* The oldest message without a reply has its answer, which a WAIT has no part in. */
static uint64_t
answered(struct redis_session *redis)
{
	window_take(&redis->unanswered, redis->replied);
	return redis->replied++;
}

/*
 * The server has dealt with the oldest message without a reply, and this reply has no meaning here. The server
 * may have kept the message: sent again, the message might be there twice. The next reply may be another
 * message's, so the session ends.
 */
static void
answered_oddly(struct redis_session *redis)
{
	driver_unsure(&redis->base, answered(redis), REDIS_CODE_ODD, 0);
}

/* An error for the oldest message without a reply. */
static int
message_error(struct redis_session *redis, const char *what)
{
	const struct redis_error *error = find_error(&redis->reply);
	char text[sizeof(redis->reply.text)];

	if (error->action == REDIS_REJECT) {
		clean(&redis->reply, text, sizeof(text));
		driver_nack(&redis->base, answered(redis), error->code, text, strlen(text));
		return 0;
	}
	if (error->action == REDIS_HOLD)
		set_blocked(redis, 1);
	driver_emit(&redis->base, EV_AGAIN, answered(redis));
	return error->action == REDIS_HOLD ? 0 : fatal_error(redis, what, error);
}

/* "ms-seq" as a reference. Returns 0 if it is no entry's id; *reference is 0 if it does not fit. */
static int
read_id(const struct redis_reply *reply, uint64_t *reference)
{
	uint64_t part[2] = { 0, 0 };
	int digits = 0, which = 0;

	if (reply->len > 41)
		return 0;
	for (size_t i = 0; i < reply->len; i++) {
		if (reply->text[i] == '-' && which == 0 && digits > 0) {
			which = 1;
			digits = 0;
		} else if (reply->text[i] >= '0' && reply->text[i] <= '9' && digits < 20) {
			part[which] = part[which] * 10 + (uint64_t)(reply->text[i] - '0');
			digits++;
		} else {
			return 0;
		}
	}
	*reference = part[0] >> (64 - REDIS_REFERENCE_SEQ_BITS) == 0 && part[1] >> REDIS_REFERENCE_SEQ_BITS == 0
			 ? part[0] << REDIS_REFERENCE_SEQ_BITS | part[1]
			 : 0;
	return which == 1 && digits > 0;
}

static int
on_add(struct redis_session *redis)
{
	static const char none[] = "there is no such stream, and nomkstream is set";
	uint64_t reference;
	char text[120];

	switch (redis->reply.type) {
	case REDIS_REPLY_STRING:
	case REDIS_REPLY_STATUS:
		break;
	case REDIS_REPLY_ERROR:
		return message_error(redis, "XADD");
	case REDIS_REPLY_NIL:
		driver_nack(&redis->base, answered(redis), REDIS_CODE_NO_STREAM, none, sizeof(none) - 1);
		return 0;
	default:
		answered_oddly(redis);
		return fatal_shape(redis, "XADD", "an entry's id");
	}
	if (!read_id(&redis->reply, &reference)) {
		answered_oddly(redis);
		return fatal(redis, FATAL_PROTOCOL, 0, "XADD was answered with \"%s\", which is no entry's id",
		    clean(&redis->reply, text, sizeof(text)));
	}
	if (redis->references != NULL) {
		redis->references[redis->replied++ & redis->unanswered.mask] = reference;
		return 0;
	}
	driver_ack(&redis->base, EV_ACK, answered(redis), TG_DELIVERED, reference);
	return 0;
}

static int
on_publish(struct redis_session *redis)
{
	if (redis->reply.type == REDIS_REPLY_ERROR)
		return message_error(redis, "PUBLISH");
	if (redis->reply.type != REDIS_REPLY_INTEGER) {
		answered_oddly(redis);
		return fatal_shape(redis, "PUBLISH", "an integer");
	}
	window_ack(&redis->unanswered, redis->replied++);
	return 0;
}

/* Everything added before the WAIT is on `replicas` of them. */
static void
settle(struct redis_session *redis, long long replicas)
{
	int enough = replicas >= redis_settings(&redis->base)->wait_replicas;

	for (uint64_t seq = redis->unanswered.oldest; seq != redis->replied; seq++) {
		if (!window_take(&redis->unanswered, seq))
			continue; /* XADD was refused */
		uint64_t reference = redis->references[seq & redis->unanswered.mask];
		if (enough)
			driver_ack(&redis->base, EV_ACK, seq, TG_DELIVERED, reference);
		else
			driver_unsure(&redis->base, seq, REDIS_CODE_NOT_REPLICATED, reference);
	}
}

static int
wait_next(struct redis_session *redis, struct out *out)
{
	redis->waiting = 0;
	return redis_flush(&redis->base, out) == 0
		   ? 0
		   : fatal(redis, FATAL_PROTOCOL, 0, "out of memory for a WAIT");
}

static int
on_wait(struct redis_session *redis, struct out *out)
{
	char text[120];

	if (redis->reply.type == REDIS_REPLY_INTEGER) {
		settle(redis, redis->reply.integer);
		return wait_next(redis, out);
	}
	if (redis->reply.type != REDIS_REPLY_ERROR)
		return fatal_shape(redis, "WAIT", "an integer");
	const struct redis_error *error = find_error(&redis->reply);
	if (error->action == REDIS_UNUSABLE || error->action == REDIS_REFUSE)
		return fatal_error(redis, "WAIT", error);
	/* The entries are there; of the replicas nothing is known. */
	settle(redis, -1);
	if (error->action == REDIS_REJECT) /* the pool's settings ask for what the server will not do */
		return fatal(
		    redis, FATAL_REFUSED, error->code, "WAIT: %s", clean(&redis->reply, text, sizeof(text)));
	set_blocked(redis, 1);
	return wait_next(redis, out);
}

/* An error is an answer too, if not one that says that the broker is of use. */
static int
on_probe(struct redis_session *redis, enum redis_expected kind)
{
	const char *what = kind == EXPECT_PING ? "PING" : "SETRANGE";
	const struct redis_error *error = NULL;

	window_flush(&redis->unanswered);
	if (redis->reply.type == REDIS_REPLY_ERROR)
		error = find_error(&redis->reply);
	else if (kind == EXPECT_PING &&
		 (redis->reply.type != REDIS_REPLY_STATUS || !is_text(&redis->reply, "PONG")))
		return fatal_shape(redis, what, "PONG");
	else if (kind == EXPECT_TRY && redis->reply.type != REDIS_REPLY_INTEGER)
		return fatal_shape(redis, what, "an integer");
	if (error != NULL && (error->action == REDIS_UNUSABLE || error->action == REDIS_REFUSE))
		return fatal_error(redis, what, error);
	redis->probes--;
	if (error != NULL && error->action == REDIS_HOLD)
		set_blocked(redis, 1);
	else if (kind == EXPECT_TRY || redis->try_key_len == 0)
		set_blocked(redis, 0);
	driver_emit(&redis->base, EV_ALIVE, 0);
	return 0;
}

/* ---- connecting ---- */

static int
begins(const struct redis_reply *reply, const char *text)
{
	return reply->type == REDIS_REPLY_ERROR && reply->len >= strlen(text) &&
	       memcmp(reply->text, text, strlen(text)) == 0;
}

static int
on_hello(struct redis_session *redis, struct out *out)
{
	const struct redis_settings *settings = redis_settings(&redis->base);
	int rc;

	if (redis->reply.type == REDIS_REPLY_ARRAY) {
		if (redis->replica && settings->mode == REDIS_STREAM)
			return fatal(redis, FATAL_UNUSABLE, 20,
			    "the server is a replica: what is added to it is refused or lost");
		if (redis->mode == SERVER_SENTINEL)
			return fatal(redis, FATAL_REFUSED, 0,
			    "the server is a Sentinel, which takes no messages; name the primaries and replicas it watches");
		if (redis->mode == SERVER_CLUSTER && settings->mode == REDIS_STREAM)
			return fatal(redis, FATAL_REFUSED, 0,
			    "the server is a node of a Redis Cluster, which takes only its own slots' keys: Redis Cluster is not "
			    "supported with mode = \"stream\"");
		rc = redis_select(redis, out);
	} else if (begins(&redis->reply, "ERR unknown command") ||
		   (settings->password.value != NULL && !begins(&redis->reply, "ERR max number of clients") &&
		       (begins(&redis->reply, "ERR ") || begins(&redis->reply, "NOAUTH ")))) {
		/* Servers repeat the command that they do not know, password and all: their words are not
		 * shown. */
		rc = redis_login(redis, out);
	} else if (redis->reply.type == REDIS_REPLY_ERROR) {
		return fatal_error(redis, "HELLO", find_error(&redis->reply));
	} else {
		return fatal_shape(redis, "HELLO", "an array");
	}
	return rc == 0 ? 0 : fatal(redis, FATAL_UNUSABLE, 0, "out of memory for the handshake");
}

/* AUTH, CLIENT SETNAME, SELECT: "OK", or why not. A name is no condition. */
static int
on_status(struct redis_session *redis, enum redis_expected kind)
{
	const char *what = kind == EXPECT_AUTH ? "AUTH" : kind == EXPECT_NAME ? "CLIENT SETNAME" : "SELECT";
	char text[120];

	if (redis->reply.type == REDIS_REPLY_ERROR) {
		const struct redis_error *error = find_error(&redis->reply);
		if (error->action != REDIS_REJECT)
			return fatal_error(redis, what, error);
		if (kind == EXPECT_NAME)
			return 0;
		return fatal(redis, FATAL_REFUSED, error->code, "%s: %s", what,
		    begins(&redis->reply, "ERR unknown command") ? "the server does not know the command"
								 : clean(&redis->reply, text, sizeof(text)));
	}
	return redis->reply.type == REDIS_REPLY_STATUS ? 0 : fatal_shape(redis, what, "a status");
}

static int
on_reply(struct redis_session *redis, struct out *out)
{
	char text[120];
	int rc;

	if (redis->expected_head == redis->expected_tail)
		return fatal(redis, FATAL_PROTOCOL, 0, "a reply that nothing waits for: %s",
		    redis->reply.type == REDIS_REPLY_ERROR ? clean(&redis->reply, text, sizeof(text))
							   : "no error");
	enum redis_expected kind = redis->expected[redis->expected_head++ & redis->expected_mask];
	switch (kind) {
	case EXPECT_ADD:
		return on_add(redis);
	case EXPECT_PUBLISH:
		return on_publish(redis);
	case EXPECT_WAIT:
		return on_wait(redis, out);
	case EXPECT_PING:
	case EXPECT_TRY:
		return on_probe(redis, kind);
	case EXPECT_QUIT:
		return 0;
	case EXPECT_HELLO:
		rc = on_hello(redis, out);
		break;
	default:
		rc = on_status(redis, kind);
	}
	if (rc == 0 && redis->expected_head == redis->expected_tail) {
		redis->state = REDIS_UP;
		redis->early = redis->begun;
		driver_emit(&redis->base, EV_UP, 0);
	}
	return rc;
}

static int
is_message(enum redis_expected kind)
{
	return kind == EXPECT_ADD || kind == EXPECT_PUBLISH;
}

/* Every whole reply that the reader has. */
static int
take_replies(struct redis_session *redis, struct out *out)
{
	char text[sizeof(redis->reader->errstr)];
	void *whole = NULL;

	for (;;) {
		int rc = redisReaderGetReply(redis->reader, &whole);
		if (rc != REDIS_OK && is_message(expected_now(redis)))
			answered_oddly(redis);
		if (rc != REDIS_OK && redis->wrong != NULL)
			return fatal(redis, FATAL_PROTOCOL, 0, "the server sent %s", redis->wrong);
		if (rc != REDIS_OK) {
			utf8_clean(text, sizeof(text), (const uint8_t *)redis->reader->errstr,
			    strnlen(redis->reader->errstr, sizeof(redis->reader->errstr)));
			return fatal(redis, FATAL_PROTOCOL, 0, "the server sent no RESP: %s", text);
		}
		if (whole == NULL)
			return 0;
		redis->begun = redis->reader->pos != redis->reader->len;
		rc = on_reply(redis, out);
		if (rc != 0)
			return rc;
	}
}

ssize_t
redis_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	struct redis_session *redis = redis_session(session);
	size_t at = 0;

	if (redis->state == REDIS_CLOSED)
		return -TG_EPROTOCOL;
	while (at < len) {
		size_t kept = redis->reader->len - redis->reader->pos;
		size_t piece = len - at < FEED_BYTES ? len - at : FEED_BYTES;
		if (piece > REDIS_REPLY_MAX + 1 - kept)
			piece = REDIS_REPLY_MAX + 1 - kept;
		if (redisReaderFeed(redis->reader, (const char *)bytes + at, piece) != REDIS_OK)
			return fatal(redis, FATAL_PROTOCOL, 0, "out of memory for a reply");
		redis->begun = 1;
		at += piece;
		int rc = take_replies(redis, out);
		if (rc != 0)
			return rc;
		if (redis->reader->len - redis->reader->pos <= REDIS_REPLY_MAX)
			continue;
		if (is_message(expected_now(redis)))
			answered_oddly(redis);
		return fatal(
		    redis, FATAL_PROTOCOL, 0, "a reply has an element of more than %u bytes", REDIS_REPLY_MAX);
	}
	window_flush(&redis->unanswered);
	return (ssize_t)len;
}
