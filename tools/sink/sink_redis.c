/*
 * Redis, RESP2, as much as a producer uses: XADD, PUBLISH, WAIT and what connects and probes. Nothing
 * is kept: every stream exists, and WAIT finds as many replicas as it wants.
 *
 * Replies are positional, so whatever is asked behind a message waits for that message's answer:
 * the queue of answers holds them all. A reply that is never to come (no-ack, no-pong, mute) leaves its
 * connection silent for good: later ones would answer the wrong command.
 */
#include "build_config.h"

#include "sink.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define WORDS_MAX 2048u
#define BEFORE_AUTH (64u << 10) /* commands of strangers are no larger */
#define TEXT_MAX 500u

enum reply {
	REPLY_ID = 1, /* XADD */
	REPLY_RECEIVERS,
	REPLY_OK,
	REPLY_PONG,
	REPLY_HELLO,
	REPLY_NUMBER, /* id is the number, code the kind of what it answers */
	REPLY_UNKNOWN,
	REPLY_SYNTAX,
	REPLY_NOAUTH,
	REPLY_WRONGPASS,
	REPLY_REFUSED, /* as told by connack */
};

struct redis {
	uint64_t asked; /* commands that were queued for an answer */
	uint64_t answered;
	uint64_t last_ms; /* of the last entry's id */
	uint64_t last_seq;
	bool silent;
	bool known; /* logged in, or no login is needed */
};

/* Codes as tidegated reports them, and a server's error texts. */
static const struct {
	uint32_t code;
	const char *text;
} errors[] = {
	{ 1, "ERR as told" },
	{ 2, "WRONGTYPE Operation against a key holding the wrong kind of value" },
	{ 3, "NOPERM this user has no permissions to access one of the keys used as arguments" },
	{ 10, "OOM command not allowed when used memory > 'maxmemory'." },
	{ 11, "NOREPLICAS Not enough good replicas to write." },
	{ 12, "BUSY Redis is busy running a script." },
	{ 13, "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to "
	      "disk." },
	{ 20, "READONLY You can't write against a read only replica." },
	{ 21, "LOADING Redis is loading the dataset in memory" },
	{ 22, "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'." },
	{ 23, "CLUSTERDOWN The cluster is down" },
	{ 24, "MOVED 0 127.0.0.1:1" },
	{ 30, "NOAUTH Authentication required." },
	{ 31, "WRONGPASS invalid username-password pair or user is disabled." },
};

static const char *
error_text(uint32_t code)
{
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (errors[i].code == code)
			return errors[i].text;
	return "SINK as told";
}

/* --- replies ----------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void
put(struct conn *conn, const char *format, ...)
{
	uint8_t *to = buf_room(&conn->out, TEXT_MAX);
	va_list args;

	va_start(args, format);
	int n = vsnprintf((char *)to, TEXT_MAX, format, args);
	va_end(args);
	conn->out.len += (size_t)n < TEXT_MAX ? (size_t)n : TEXT_MAX - 1;
}

/* An error, with the words of --reason behind its first one if there are any. */
static void
put_error(struct conn *conn, uint32_t code)
{
	const char *text = error_text(code), *reason = conn->sink->behaviour.reason;

	if (reason)
		put(conn, "-%.*s %.400s\r\n", (int)strcspn(text, " "), text, reason);
	else
		put(conn, "-%s\r\n", text);
}

static void
put_id(struct conn *conn)
{
	struct redis *redis = conn->state;
	uint64_t ms = conn->sink->time_ns / 1000000;
	char id[48];

	if (ms > redis->last_ms) {
		redis->last_ms = ms;
		redis->last_seq = 0;
	} else {
		redis->last_seq++;
	}
	int len = snprintf(id, sizeof(id), "%" PRIu64 "-%" PRIu64, redis->last_ms, redis->last_seq);
	put(conn, "$%d\r\n%s\r\n", len, id);
}

static void
redis_answer(struct conn *conn, const struct answer *answer)
{
	struct redis *redis = conn->state;
	const struct behaviour *behaviour = &conn->sink->behaviour;
	bool told = behaviour->reorder_acks || behaviour->duplicate_acks;
	uint64_t number = answer->id >> 32;

	/* One before it was dropped. */
	if (!told && (uint32_t)number != (uint32_t)redis->answered)
		redis->silent = true;
	redis->answered++;
	if (redis->silent)
		return;
	if (answer->code != 0 && answer->kind <= REPLY_RECEIVERS) {
		put_error(conn, answer->code);
		return;
	}
	switch ((enum reply)answer->kind) {
	case REPLY_ID:
		put_id(conn);
		return;
	case REPLY_RECEIVERS:
		put(conn, ":1\r\n");
		return;
	case REPLY_OK:
		put(conn, "+OK\r\n");
		return;
	case REPLY_PONG:
		put(conn, "+PONG\r\n");
		return;
	case REPLY_HELLO:
		put(conn, "*10\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$"
			  "5\r\nproto\r\n:2\r\n"
			  "$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n");
		return;
	case REPLY_NUMBER:
		put(conn, ":%" PRIu32 "\r\n", (uint32_t)answer->id);
		return;
	case REPLY_UNKNOWN:
		put(conn, "-ERR unknown command\r\n");
		return;
	case REPLY_SYNTAX:
		put(conn, "-ERR wrong number of arguments or syntax error\r\n");
		return;
	case REPLY_NOAUTH:
		put(conn, "-%s\r\n", error_text(30));
		return;
	case REPLY_WRONGPASS:
		put(conn, "-%s\r\n", error_text(31));
		return;
	case REPLY_REFUSED:
		put_error(conn, (uint32_t)answer->id);
		return;
	}
}

/* The place of the next answer in the connection's order, and a number to go with it. */
static uint64_t
next_id(struct conn *conn, uint32_t number)
{
	struct redis *redis = conn->state;

	return redis->asked++ << 32 | number;
}

static void
reply(struct conn *conn, enum reply kind, uint32_t number)
{
	struct answer answer = { .kind = kind, .id = next_id(conn, number) };

	conn_settle(conn);
	if (conn->answers_head != conn->answers_tail)
		conn_answer(conn, &answer);
	else if (conn_may_answer(conn))
		redis_answer(conn, &answer);
	server_dirty(conn->sink, conn);
}

/* --- commands ---------------------------------------------------------------------------------- */

static bool
is(struct record_view word, const char *text)
{
	return word.len == strlen(text) && strncasecmp((const char *)word.bytes, text, word.len) == 0;
}

static bool
same(struct record_view word, const char *text)
{
	return word.len == strlen(text) && memcmp(word.bytes, text, word.len) == 0;
}

static void
refuse(struct conn *conn, enum reply kind, uint32_t code, const char *why)
{
	conn->sink->connections_refused++;
	sink_log(conn->sink, conn, "info", "session refused: %s", why);
	reply(conn, kind, code);
	conn_end(conn, CONN_FLUSH);
}

/* Returns whether the session may go on. */
static bool
log_in(struct conn *conn, struct record_view user, struct record_view password)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct redis *redis = conn->state;

	if (behaviour->auth && (!same(user, behaviour->user) || !same(password, behaviour->password))) {
		refuse(conn, REPLY_WRONGPASS, 0, "user or password wrong");
		return false;
	}
	redis->known = true;
	return true;
}

static void
on_hello(struct conn *conn, const struct record_view *words, size_t count)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct redis *redis = conn->state;

	if (behaviour->connack) {
		refuse(conn, REPLY_REFUSED, (uint32_t)behaviour->connack, "as told");
		return;
	}
	if (count > 1 && !is(words[1], "2")) {
		reply(conn, REPLY_SYNTAX, 0);
		return;
	}
	for (size_t i = 2; i < count;) {
		if (is(words[i], "AUTH") && count - i >= 3) {
			if (!log_in(conn, words[i + 1], words[i + 2]))
				return;
			i += 3;
		} else if (is(words[i], "SETNAME") && count - i >= 2) {
			conn_set_client(conn, words[i + 1].bytes, words[i + 1].len);
			i += 2;
		} else {
			reply(conn, REPLY_SYNTAX, 0);
			return;
		}
	}
	if (!redis->known && behaviour->auth)
		refuse(conn, REPLY_NOAUTH, 0, "no password");
	else
		reply(conn, REPLY_HELLO, 0);
}

/* XADD key [NOMKSTREAM] [MAXLEN|MINID [=|~] n] * field value …: the last field is the body, "key" the key. */
static void
on_xadd(struct conn *conn, const struct record_view *words, size_t count)
{
	struct record_message message = { .topic = words[1], .qos = 1 };
	struct answer answer = { .kind = REPLY_ID };
	size_t at = 2;

	if (at < count && is(words[at], "NOMKSTREAM"))
		at++;
	if (at < count && (is(words[at], "MAXLEN") || is(words[at], "MINID"))) {
		at++;
		at += at < count && (is(words[at], "~") || is(words[at], "=")) ? 2 : 1;
	}
	if (at >= count || !is(words[at], "*") || count - at < 3 || (count - at) % 2 != 1) {
		reply(conn, REPLY_SYNTAX, 0);
		return;
	}
	for (at++; at + 2 < count; at += 2) {
		if (is(words[at], "key"))
			message.key = words[at + 1];
		else
			*sink_pair(conn->sink, message.header_count++) =
			    (struct record_pair){ words[at], words[at + 1] };
	}
	message.headers = conn->sink->pairs;
	message.body = words[at + 1];
	answer.id = next_id(conn, 0);
	conn_message(conn, &message, &answer);
}

static void
on_publish(struct conn *conn, const struct record_view *words)
{
	struct record_message message = { .topic = words[1], .body = words[2] };
	struct answer answer = { .kind = REPLY_RECEIVERS, .id = next_id(conn, 0) };

	conn_message(conn, &message, &answer);
}

static void
on_ping(struct conn *conn)
{
	struct redis *redis = conn->state;

	conn->counters.pings++;
	conn->sink->counters.pings++;
	if (conn->sink->behaviour.no_pong)
		redis->asked++; /* its place stays empty */
	else
		reply(conn, REPLY_PONG, 0);
}

static uint32_t
number(struct record_view word)
{
	uint32_t n = 0;

	for (size_t i = 0; i < word.len && word.bytes[i] >= '0' && word.bytes[i] <= '9' && n < 100000000; i++)
		n = n * 10 + (uint32_t)(word.bytes[i] - '0');
	return n;
}

static void
on_command(struct conn *conn, const struct record_view *words, size_t count)
{
	struct redis *redis = conn->state;

	if (is(words[0], "HELLO")) {
		on_hello(conn, words, count);
	} else if (is(words[0], "AUTH") && (count == 2 || count == 3)) {
		static const struct record_view nobody = { (const uint8_t *)"default", 7 };
		if (log_in(conn, count == 3 ? words[1] : nobody, words[count - 1]))
			reply(conn, REPLY_OK, 0);
	} else if (is(words[0], "QUIT")) {
		reply(conn, REPLY_OK, 0);
		conn_end(conn, CONN_FLUSH);
	} else if (conn->sink->behaviour.auth && !redis->known) {
		reply(conn, REPLY_NOAUTH, 0);
	} else if (is(words[0], "XADD") && count >= 5) {
		on_xadd(conn, words, count);
	} else if (is(words[0], "PUBLISH") && count == 3) {
		on_publish(conn, words);
	} else if (is(words[0], "PING") && count == 1) {
		on_ping(conn);
	} else if (is(words[0], "WAIT") && count == 3) {
		reply(conn, REPLY_NUMBER, number(words[1]));
	} else if (is(words[0], "SETRANGE") && count == 4) {
		reply(conn, REPLY_NUMBER, 0);
	} else if ((is(words[0], "SELECT") && count == 2) || (is(words[0], "CLIENT") && count >= 2)) {
		if (count == 3 && is(words[1], "SETNAME"))
			conn_set_client(conn, words[2].bytes, words[2].len);
		reply(conn, REPLY_OK, 0);
	} else {
		reply(conn, REPLY_UNKNOWN, 0);
	}
}

/* --- parsing ----------------------------------------------------------------------------------- */

/* "*12\r\n": returns the bytes it takes, 0 if more are needed, -1 if it is something else. */
static ssize_t
take_count(const uint8_t *bytes, size_t len, uint8_t sign, uint64_t *value)
{
	uint64_t n = 0;
	size_t at = 1;

	if (len == 0)
		return 0;
	if (bytes[0] != sign)
		return -1;
	for (; at < len && bytes[at] >= '0' && bytes[at] <= '9' && at < 12; at++)
		n = n * 10 + (uint64_t)(bytes[at] - '0');
	if (at == len || (at + 1 == len && at > 1 && bytes[at] == '\r'))
		return 0;
	if (at == 1 || bytes[at] != '\r' || bytes[at + 1] != '\n')
		return -1;
	*value = n;
	return (ssize_t)at + 2;
}

/* One command. Returns the bytes it took, 0 if it is not whole, -1 after conn_fail(). */
static ssize_t
take_command(struct conn *conn, const uint8_t *bytes, size_t len)
{
	const struct redis *redis = conn->state;
	uint64_t most = conn->sink->behaviour.max_packet, count, size;
	struct record_view words[WORDS_MAX];

	if (!redis->known && conn->sink->behaviour.auth && most > BEFORE_AUTH)
		most = BEFORE_AUTH;
	ssize_t n = take_count(bytes, len, '*', &count);
	if (n == 0)
		return 0;
	if (n < 0 || count == 0 || count > WORDS_MAX)
		return conn_fail(conn, "no RESP command of 1 to %u words", WORDS_MAX);
	size_t at = (size_t)n;
	for (size_t i = 0; i < count; i++) {
		n = take_count(bytes + at, len - at, '$', &size);
		if (n == 0)
			return 0;
		if (n < 0)
			return conn_fail(conn, "a word of a command is no bulk string");
		at += (size_t)n;
		if (size > most || at + size + 2 > most)
			return conn_fail(conn, "command larger than %" PRIu64 " bytes", most);
		if (len - at < size + 2)
			return 0;
		words[i] = (struct record_view){ bytes + at, size };
		at += size + 2;
	}
	on_command(conn, words, count);
	return (ssize_t)at;
}

static ssize_t
redis_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	size_t used = 0;

	while (!conn->stop && used < len) {
		ssize_t n = take_command(conn, bytes + used, len - used);
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		used += (size_t)n;
	}
	return (ssize_t)used;
}

const struct protocol protocol_redis = {
	.name = "redis",
	.state_size = sizeof(struct redis),
	.reject_code = 3,
	.reject_least = 1,
	.input = redis_input,
	.answer = redis_answer,
};
