/*
 * NATS, the server's side of publishing: core, and JetStream as if one stream took every subject.
 *
 *   INFO →  ← CONNECT [SUB inbox.* sid] PING  PONG →  ← PUB|HPUB subject [reply] …  MSG reply … →
 *
 * One subscription is kept, the inbox of acknowledgements; others are taken and nothing comes of them.
 * A message with a reply subject in the inbox is acknowledged there, one without is not. Nothing is
 * dropped for its Nats-Msg-Id: the record shows what came.
 */
#include "build_config.h"

#include "sink.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_MAX_BYTES 4096u
#define INBOX_MAX 128u
#define NO_RESPONDERS 503u
#define NAMES_SUBJECT "$JS.API.STREAM.NAMES"

enum { ANSWER_NONE, ANSWER_ACK, ANSWER_API };

struct nats {
	bool connected;
	size_t inbox_len;      /* 0: no inbox */
	char inbox[INBOX_MAX]; /* with its last dot */
	char sid[24];
	uint64_t sequence;
};

struct words {
	struct record_view word[6];
	size_t count;
};

static void
put(struct conn *conn, const void *bytes, size_t len)
{
	memcpy(buf_room(&conn->out, len), bytes, len);
	conn->out.len += len;
	server_dirty(conn->sink, conn);
}

static void
put_text(struct conn *conn, const char *text)
{
	put(conn, text, strlen(text));
}

static void
nats_open(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	char info[300];

	if (!conn_may_answer(conn))
		return;
	snprintf(info, sizeof(info),
	    "INFO "
	    "{\"server_id\":\"tidegate-sink\",\"server_name\":\"tidegate-sink\",\"version\":\"2.9.0\","
	    "\"proto\":1,"
	    "\"headers\":true,\"jetstream\":true,%s%s\"max_payload\":%" PRIu64 ",\"client_id\":%" PRIu64
	    "} \r\n",
	    behaviour->auth ? "\"auth_required\":true," : "", conn->sink->tls ? "\"tls_required\":true," : "",
	    (uint64_t)behaviour->max_packet, conn->number);
	put_text(conn, info);
}

/* ---- answers ---- */

/* The head of a message to the inbox. */
static size_t
put_head(const struct nats *nats, char *to, size_t size, const char *verb, const struct answer *answer)
{
	return (size_t)snprintf(to, size, "%s %.*s%.*s %s", verb, (int)nats->inbox_len, nats->inbox,
	    (int)ANSWER_TOKEN_MAX, (const char *)answer->token, nats->sid);
}

/* A description as a JSON string without its quotes; characters that would need escapes are left out. */
static void
plain(char *to, size_t size, const char *from)
{
	size_t len = 0;

	for (; *from && len + 1 < size; from++)
		if (*from >= ' ' && *from != '"' && *from != '\\')
			to[len++] = *from;
	to[len] = '\0';
}

static void
nats_answer(struct conn *conn, const struct answer *answer)
{
	struct nats *nats = conn->state;
	const struct behaviour *behaviour = &conn->sink->behaviour;
	char head[INBOX_MAX + 80], body[300], line[sizeof(head) + sizeof(body) + 32], text[120];

	if (answer->code == NO_RESPONDERS) {
		put_head(nats, head, sizeof(head), "HMSG", answer);
		snprintf(line, sizeof(line), "%s 16 16\r\nNATS/1.0 503\r\n\r\n\r\n", head);
		put_text(conn, line);
		return;
	}
	put_head(nats, head, sizeof(head), "MSG", answer);
	if (answer->kind == ANSWER_API) {
		snprintf(body, sizeof(body),
		    "{\"type\":\"io.nats.jetstream.api.v1.stream_names_response\",\"total\":0,\"streams\":null}");
	} else if (answer->code) {
		plain(text, sizeof(text), behaviour->reason ? behaviour->reason : "rejected as told");
		snprintf(body, sizeof(body),
		    "{\"error\":{\"code\":400,\"err_code\":%u,\"description\":\"%s\"},\"stream\":\"SINK\","
		    "\"seq\":0}",
		    answer->code, text);
	} else {
		snprintf(body, sizeof(body), "{\"stream\":\"SINK\", \"seq\":%" PRIu64 "}", ++nats->sequence);
	}
	int len = snprintf(line, sizeof(line), "%s  %zu\r\n%s\r\n", head, strlen(body), body);
	put(conn, line, (size_t)len);
}

/* ---- commands of clients ---- */

static bool
same(struct record_view view, const char *text)
{
	return view.len == strlen(text) && memcmp(view.bytes, text, view.len) == 0;
}

static int
refuse(struct conn *conn, const char *why)
{
	if (conn_may_answer(conn))
		put_text(conn, "-ERR 'Authorization Violation'\r\n");
	conn->sink->connections_refused++;
	sink_log(conn->sink, conn, "info", "session refused: %s", why);
	conn_end(conn, CONN_FLUSH);
	return -1;
}

static bool
json_is(const json_t *object, const char *key, const char *text)
{
	const char *value = json_string_value(json_object_get(object, key));

	return value && strcmp(value, text) == 0;
}

static int
on_connect(struct conn *conn, struct record_view line)
{
	struct nats *nats = conn->state;
	const struct behaviour *behaviour = &conn->sink->behaviour;
	json_t *options = json_loadb((const char *)line.bytes, line.len, 0, NULL);
	int rc = 0;

	if (!json_is_object(options)) {
		json_decref(options);
		return conn_fail(conn, "CONNECT: no JSON object");
	}
	const json_t *name = json_object_get(options, "name");
	if (json_is_string(name))
		conn_set_client(conn, (const uint8_t *)json_string_value(name), json_string_length(name));
	if (behaviour->connack)
		rc = refuse(conn, "as told");
	else if (behaviour->auth &&
		 (!json_is(options, "user", behaviour->user) || !json_is(options, "pass", behaviour->password)))
		rc = refuse(conn, "user or password wrong");
	json_decref(options);
	nats->connected = true;
	return rc;
}

/* The first subscription to a subject that ends in ".*" is the inbox. */
static void
on_subscribe(struct nats *nats, const struct words *words)
{
	struct record_view subject = words->word[0], sid = words->word[words->count - 1];

	if (nats->inbox_len || subject.len < 3 || subject.len > INBOX_MAX || sid.len >= sizeof(nats->sid) ||
	    memcmp(subject.bytes + subject.len - 2, ".*", 2) != 0)
		return;
	nats->inbox_len = subject.len - 1;
	memcpy(nats->inbox, subject.bytes, nats->inbox_len);
	memcpy(nats->sid, sid.bytes, sid.len);
}

static void
on_ping(struct conn *conn)
{
	conn->counters.pings++;
	conn->sink->counters.pings++;
	if (!conn_may_answer(conn) || conn->sink->behaviour.no_pong)
		return;
	conn_settle(conn);
	put_text(conn, "PONG\r\n");
}

/* ---- publishing ---- */

/* "NATS/1.0\r\nname: value\r\n...\r\n". Returns 0, or -1 if it is not that. */
static int
take_headers(struct sink *sink, struct record_view block, struct record_message *message)
{
	const uint8_t *at = block.bytes, *end = at + block.len;
	size_t count = 0;

	if (block.len < 12 || memcmp(at, "NATS/1.0\r\n", 10) != 0 || memcmp(end - 2, "\r\n", 2) != 0)
		return -1;
	for (at += 10; at < end - 2;) {
		const uint8_t *stop = memchr(at, '\r', (size_t)(end - at));
		if (!stop || stop[1] != '\n')
			return -1;
		const uint8_t *colon = memchr(at, ':', (size_t)(stop - at));
		if (!colon || colon == at)
			return -1;
		const uint8_t *value = colon + 1;
		while (value < stop && *value == ' ')
			value++;
		struct record_pair pair = { { at, (size_t)(colon - at) }, { value, (size_t)(stop - value) } };
		if (same(pair.name, "Tidegate-Key"))
			message->key = pair.value;
		else
			*sink_pair(sink, count++) = pair;
		at = stop + 2;
	}
	message->headers = sink->pairs;
	message->header_count = count;
	return 0;
}

/* The answer a reply subject asks for. Returns -1 if this sink cannot give it. */
static int
reply_to(struct conn *conn, struct record_view reply, struct answer *answer)
{
	const struct nats *nats = conn->state;

	if (nats->inbox_len == 0 || reply.len <= nats->inbox_len ||
	    memcmp(reply.bytes, nats->inbox, nats->inbox_len) != 0)
		return 0; /* no subscription there */
	size_t len = reply.len - nats->inbox_len;
	if (len > ANSWER_TOKEN_MAX)
		return conn_fail(conn, "a reply token of %zu bytes; this sink takes %u", len, ANSWER_TOKEN_MAX);
	memcpy(answer->token, reply.bytes + nats->inbox_len, len);
	answer->kind = ANSWER_ACK;
	return 0;
}

static int
publish(struct conn *conn, const struct words *words, size_t head_words, struct record_view headers,
    struct record_view body)
{
	struct record_message message = { .topic = words->word[0], .body = body };
	struct answer answer = { .kind = ANSWER_NONE };

	if (words->count > head_words && reply_to(conn, words->word[1], &answer) < 0)
		return -1;
	message.qos = answer.kind != ANSWER_NONE;
	if (same(message.topic, NAMES_SUBJECT)) {
		if (answer.kind != ANSWER_NONE) {
			answer.kind = ANSWER_API;
			conn_answer(conn, &answer);
		}
		return 0;
	}
	if (headers.len > 0 && take_headers(conn->sink, headers, &message) < 0)
		return conn_fail(conn, "HPUB: malformed headers");
	if (!conn_message(conn, &message, &answer))
		return 0;
	if (answer.kind != ANSWER_NONE || answer.code == 0 || !conn_may_answer(conn))
		return 0;
	/* Core's way to say no, at once and in its place. */
	conn_settle(conn);
	put_text(conn, "-ERR 'Permissions Violation for Publish to \"");
	put(conn, message.topic.bytes, message.topic.len);
	put_text(conn, "\"'\r\n");
	return 0;
}

static bool
read_size(struct record_view word, size_t *size)
{
	*size = 0;
	for (size_t i = 0; i < word.len; i++) {
		if (word.bytes[i] < '0' || word.bytes[i] > '9' || *size > UINT32_MAX)
			return false;
		*size = *size * 10 + (size_t)(word.bytes[i] - '0');
	}
	return word.len > 0;
}

/* PUB subject [reply] size, HPUB subject [reply] headers size. Returns as nats_input's line(). */
static ssize_t
on_publish(struct conn *conn, bool has_headers, const struct words *words, struct record_view rest)
{
	size_t head_words = has_headers ? 3 : 2, headers = 0, size;

	if (words->count < head_words || words->count > head_words + 1 ||
	    !read_size(words->word[words->count - 1], &size) ||
	    (has_headers && (!read_size(words->word[words->count - 2], &headers) || headers > size)))
		return conn_fail(conn, "%s: malformed", has_headers ? "HPUB" : "PUB");
	if (size > conn->sink->behaviour.max_packet) {
		if (conn_may_answer(conn))
			put_text(conn, "-ERR 'Maximum Payload Violation'\r\n");
		return conn_fail(conn, "a message of %zu bytes", size);
	}
	if (rest.len < size + 2)
		return SINK_READ_BYTES + (ssize_t)conn->sink->behaviour.max_packet; /* not whole */
	if (memcmp(rest.bytes + size, "\r\n", 2) != 0)
		return conn_fail(conn, "a message that does not end after %zu bytes", size);
	int rc = publish(conn, words, head_words, (struct record_view){ rest.bytes, headers },
	    (struct record_view){ rest.bytes + headers, size - headers });
	return rc < 0 ? -1 : (ssize_t)size + 2;
}

/* ---- lines ---- */

static void
split(struct record_view line, struct words *words)
{
	const uint8_t *at = line.bytes, *end = at + line.len;

	words->count = 0;
	while (words->count < 6) {
		while (at < end && (*at == ' ' || *at == '\t'))
			at++;
		if (at == end)
			break;
		const uint8_t *start = at;
		while (at < end && *at != ' ' && *at != '\t')
			at++;
		words->word[words->count++] = (struct record_view){ start, (size_t)(at - start) };
	}
}

/* One line without its verb; rest is what follows it. Returns how much of the rest it took, more than
 * there is if it is not whole, or -1 after conn_fail() or conn_end(). */
static ssize_t
on_line(struct conn *conn, struct record_view verb, struct record_view line, struct record_view rest)
{
	struct nats *nats = conn->state;
	struct words words;

	if (same(verb, "CONNECT"))
		return on_connect(conn, line);
	if (!nats->connected && conn->sink->behaviour.auth)
		return refuse(conn, "no CONNECT");
	split(line, &words);
	if (same(verb, "PUB") || same(verb, "HPUB"))
		return on_publish(conn, verb.len == 4, &words, rest);
	if (same(verb, "PING"))
		on_ping(conn);
	else if (same(verb, "SUB") && words.count >= 2 && words.count <= 3)
		on_subscribe(nats, &words);
	else if (!same(verb, "PONG") && !same(verb, "UNSUB")) {
		if (conn_may_answer(conn))
			put_text(conn, "-ERR 'Unknown Protocol Operation'\r\n");
		return conn_fail(conn, "an unknown operation");
	}
	return 0;
}

static ssize_t
nats_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	size_t used = 0;

	while (!conn->stop && used < len) {
		const uint8_t *at = bytes + used;
		size_t left = len - used;
		const uint8_t *end = memchr(at, '\n', left < LINE_MAX_BYTES ? left : LINE_MAX_BYTES);
		if (!end && left < LINE_MAX_BYTES)
			break;
		if (!end)
			return conn_fail(conn, "a line of more than %u bytes", LINE_MAX_BYTES);
		size_t size = (size_t)(end - at) + 1, whole = size - 1, verb = 0;
		if (whole > 0 && at[whole - 1] == '\r')
			whole--;
		while (verb < whole && at[verb] != ' ' && at[verb] != '\t')
			verb++;
		ssize_t more = on_line(conn, (struct record_view){ at, verb },
		    (struct record_view){ at + verb, whole - verb },
		    (struct record_view){ at + size, left - size });
		if (more < 0)
			return -1;
		if ((size_t)more > left - size)
			break;
		used += size + (size_t)more;
	}
	return (ssize_t)used;
}

static void
nats_farewell(struct conn *conn, uint32_t code)
{
	(void)code;
	put_text(conn, "-ERR 'Server Shutdown'\r\n");
}

const struct protocol protocol_nats = {
	.name = "nats",
	.state_size = sizeof(struct nats),
	.reject_code = NO_RESPONDERS,
	.reject_least = 1,
	.tls_later = true,
	.open = nats_open,
	.input = nats_input,
	.answer = nats_answer,
	.farewell = nats_farewell,
};
