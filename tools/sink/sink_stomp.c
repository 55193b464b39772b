/*
 * STOMP 1.2, the server's side of sending. Subscriptions are refused; transactions begin and end and
 * hold nothing.
 *
 * A rejected message's code says how: 1 is an ERROR that names its receipt and leaves the connection
 * open, as ActiveMQ does; any other is one that names nothing, and the end, as RabbitMQ does.
 */
#include "build_config.h"

#include "sink.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REJECT_NAMED = 1, REJECT_UNNAMED = 2 };

#define ANSWER_SEND 1u

#define KEY_HEADER "tidegate-key" /* the header in which tidegated sends a message's key */
#define HEAD_MAX (1u << 20)
#define HEADERS_MAX 1000u

struct stomp {
	bool connected;
	uint8_t *text; /* unescaped names and values of the frame at hand */
	size_t text_len;
	size_t text_size;
};

/* A frame. Views point into the input, or into stomp->text where they had escapes. */
struct frame {
	struct record_view command;
	struct record_view body;
	struct record_view destination, receipt, key, transaction, login, passcode, version, heart_beat;
	bool has_receipt;
	size_t pairs; /* other headers, in sink->pairs */
};

static bool
same(struct record_view view, const char *text)
{
	return view.len == strlen(text) && memcmp(view.bytes, text, view.len) == 0;
}

static bool
number(struct record_view view, uint64_t *value)
{
	uint64_t n = 0;

	if (view.len == 0 || view.len > 18)
		return false;
	for (size_t i = 0; i < view.len; i++) {
		if (view.bytes[i] < '0' || view.bytes[i] > '9')
			return false;
		n = n * 10 + (uint64_t)(view.bytes[i] - '0');
	}
	*value = n;
	return true;
}

/* --- writing ----------------------------------------------------------------------------------- */

static void
put(struct conn *conn, const void *bytes, size_t len)
{
	if (len > 0)
		memcpy(buf_room(&conn->out, len), bytes, len);
	conn->out.len += len;
}

static void
put_text(struct conn *conn, const char *text)
{
	put(conn, text, strlen(text));
}

/* The next frame belongs to no message: it follows the answers that are due. */
static void
in_turn(struct conn *conn)
{
	conn_settle(conn);
	server_dirty(conn->sink, conn);
}

static void
put_escaped(struct conn *conn, struct record_view view)
{
	for (size_t i = 0; i < view.len; i++) {
		uint8_t c = view.bytes[i];
		if (c == '\n')
			put_text(conn, "\\n");
		else if (c == '\r')
			put_text(conn, "\\r");
		else if (c == ':')
			put_text(conn, "\\c");
		else if (c == '\\')
			put_text(conn, "\\\\");
		else
			put(conn, &c, 1);
	}
}

static void
put_receipt(struct conn *conn, struct record_view id)
{
	put_text(conn, "RECEIPT\nreceipt-id:");
	put_escaped(conn, id);
	put(conn, "\n\n", 3);
}

static void
put_error(struct conn *conn, struct record_view id, const char *words)
{
	const char *reason = conn->sink->behaviour.reason ? conn->sink->behaviour.reason : words;

	put_text(conn, "ERROR\ncontent-type:text/plain\n");
	if (id.len > 0) {
		put_text(conn, "receipt-id:");
		put_escaped(conn, id);
		put_text(conn, "\n");
	}
	put_text(conn, "message:");
	put_escaped(conn, (struct record_view){ (const uint8_t *)reason, strlen(reason) });
	put_text(conn, "\n\n");
	put(conn, reason, strlen(reason));
	put(conn, "", 1);
}

static void
stomp_answer(struct conn *conn, const struct answer *answer)
{
	char digits[24];
	int len = snprintf(digits, sizeof(digits), "%" PRIu64, answer->id);
	struct record_view id = { (const uint8_t *)digits, (size_t)len };

	if (answer->code == 0)
		put_receipt(conn, id);
	else
		put_error(conn, id, "rejected");
}

/* Ends a connection for what the client did, with an ERROR. */
static int
bad(struct conn *conn, const char *what)
{
	if (conn_may_answer(conn)) {
		in_turn(conn);
		put_error(conn, (struct record_view){ NULL, 0 }, what);
	}
	return conn_fail(conn, "%s", what);
}

static void
stomp_farewell(struct conn *conn, uint32_t code)
{
	char words[40];

	if (!conn_may_answer(conn))
		return;
	snprintf(words, sizeof(words), "closed with code %" PRIu32, code);
	in_turn(conn);
	put_error(conn, (struct record_view){ NULL, 0 }, words);
}

/* --- reading ----------------------------------------------------------------------------------- */

/* Undoes escapes. Returns false for one that is none. Room was made for the whole head. */
static bool
unescape(struct stomp *stomp, struct record_view *view)
{
	if (memchr(view->bytes, '\\', view->len) == NULL)
		return true;
	uint8_t *to = stomp->text + stomp->text_len, *start = to;
	for (size_t i = 0; i < view->len; i++) {
		uint8_t c = view->bytes[i];
		if (c == '\\') {
			if (++i == view->len)
				return false;
			c = view->bytes[i];
			if (c != 'n' && c != 'r' && c != 'c' && c != '\\')
				return false;
			c = c == 'n' ? '\n' : c == 'r' ? '\r' : c == 'c' ? ':' : c;
		}
		*to++ = c;
	}
	*view = (struct record_view){ start, (size_t)(to - start) };
	stomp->text_len += view->len;
	return true;
}

static void
text_room(struct stomp *stomp, size_t size)
{
	stomp->text_len = 0;
	if (stomp->text_size >= size)
		return;
	free(stomp->text);
	stomp->text = malloc(size);
	if (!stomp->text) {
		fprintf(stderr, "tidegate-sink: no memory for headers\n");
		exit(1);
	}
	stomp->text_size = size;
}

/* One header: to its field if it has one and it is empty yet, else to the pairs. */
static void
take_header(struct conn *conn, struct frame *frame, struct record_view name, struct record_view value)
{
	const struct {
		const char *name;
		struct record_view *to;
	} fields[] = {
		{ "destination", &frame->destination },
		{ "receipt", &frame->receipt },
		{ KEY_HEADER, &frame->key },
		{ "transaction", &frame->transaction },
		{ "login", &frame->login },
		{ "passcode", &frame->passcode },
		{ "accept-version", &frame->version },
		{ "heart-beat", &frame->heart_beat },
	};

	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		if (same(name, fields[i].name)) {
			if (fields[i].to->bytes == NULL)
				*fields[i].to = value;
			frame->has_receipt |= i == 1;
			return;
		}
	if (!same(name, "content-length") && !same(name, "persistent"))
		*sink_pair(conn->sink, frame->pairs++) = (struct record_pair){ name, value };
}

/*
 * A whole frame at bytes. Returns its length, 0 if more is needed, -1 after bad().
 */
static ssize_t
read_frame(struct conn *conn, struct frame *frame, const uint8_t *bytes, size_t len)
{
	struct stomp *stomp = conn->state;
	uint64_t most = conn->sink->behaviour.max_packet, length = 0;
	const uint8_t *at = bytes, *all = bytes + len;
	bool has_length = false;

	memset(frame, 0, sizeof(*frame));
	/* The head's end is looked for first: nothing is kept between reads. */
	const uint8_t *end = at;
	for (;;) {
		end = memchr(end, '\n', (size_t)(all - end));
		if (!end || end + 1 == all)
			return len > HEAD_MAX ? bad(conn, "a head of more than 1 MiB") : 0;
		if (end[1] == '\n' || (end[1] == '\r' && end + 2 < all && end[2] == '\n'))
			break;
		end++;
	}
	text_room(stomp, (size_t)(end - bytes) + 1);
	for (size_t lines = 0; at < end + 1; lines++) {
		const uint8_t *eol = memchr(at, '\n', (size_t)(end + 1 - at));
		size_t n = (size_t)(eol - at);
		if (n > 0 && at[n - 1] == '\r')
			n--;
		if (lines == 0) {
			frame->command = (struct record_view){ at, n };
		} else {
			const uint8_t *colon = memchr(at, ':', n);
			if (!colon || lines > HEADERS_MAX)
				return bad(conn, colon ? "too many headers" : "a header without colon");
			struct record_view name = { at, (size_t)(colon - at) };
			struct record_view value = { colon + 1, n - name.len - 1 };
			/* CONNECT has no escapes: older versions must be able to read it. */
			if (stomp->connected && (!unescape(stomp, &name) || !unescape(stomp, &value)))
				return bad(conn, "an escape that is none");
			if (!has_length && same(name, "content-length")) {
				has_length = number(value, &length);
				if (!has_length)
					return bad(conn, "content-length is not a number");
			}
			take_header(conn, frame, name, value);
		}
		at = eol + 1;
	}
	at += *at == '\r' ? 2 : 1;
	if (has_length && length > most)
		return bad(conn, "The maximum frame size was exceeded");
	const uint8_t *zero;
	if (has_length)
		zero = (size_t)(all - at) > length ? at + length : NULL;
	else
		zero = memchr(at, '\0', (size_t)(all - at));
	if (!zero)
		return !has_length && (size_t)(all - at) > most
			   ? bad(conn, "The maximum frame size was exceeded")
			   : 0;
	if (*zero != '\0')
		return bad(conn, "no zero where content-length says");
	frame->body = (struct record_view){ at, (size_t)(zero - at) };
	return zero + 1 - bytes;
}

/* --- frames ------------------------------------------------------------------------------------ */

static int
refuse(struct conn *conn, const char *why)
{
	if (conn_may_answer(conn)) {
		in_turn(conn);
		put_error(conn, (struct record_view){ NULL, 0 }, why);
	}
	conn->sink->connections_refused++;
	sink_log(conn->sink, conn, "info", "session refused: %s", why);
	conn_end(conn, CONN_FLUSH);
	return -1;
}

/* The client's promise in ms: the first number of its heart-beat. */
static uint64_t
promised_ms(const struct frame *frame)
{
	const uint8_t *comma =
	    frame->heart_beat.bytes ? memchr(frame->heart_beat.bytes, ',', frame->heart_beat.len) : NULL;
	uint64_t ms = 0;

	if (!comma ||
	    !number((struct record_view){ frame->heart_beat.bytes, (size_t)(comma - frame->heart_beat.bytes) },
		&ms))
		return 0;
	return ms;
}

static int
on_connect(struct conn *conn, const struct frame *frame)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct stomp *stomp = conn->state;
	char text[100];

	if (!frame->version.bytes || !memmem(frame->version.bytes, frame->version.len, "1.2", 3))
		return refuse(conn, "Supported protocol versions are 1.2");
	if (behaviour->connack)
		return refuse(conn, "as told");
	if (behaviour->auth &&
	    (!same(frame->login, behaviour->user) || !same(frame->passcode, behaviour->password)))
		return refuse(conn, "Access refused: login or passcode wrong");
	stomp->connected = true;
	uint64_t ms = promised_ms(frame),
		 wanted = behaviour->server_keepalive ? behaviour->server_keepalive * 1000 : ms;
	if (ms > 0)
		conn_set_keepalive(conn, (ms > wanted ? ms : wanted) * UINT64_C(2000000));
	snprintf(text, sizeof(text), "sink-%" PRIu64, conn->number);
	conn_set_client(conn, (const uint8_t *)text, strlen(text));
	if (!conn_may_answer(conn))
		return 0;
	in_turn(conn);
	int len = snprintf(text, sizeof(text),
	    "CONNECTED\nserver:tidegate-sink\nheart-beat:0,%" PRIu64 "\nversion:1.2\n\n", wanted);
	put(conn, text, (size_t)len + 1);
	return 0;
}

static int
on_send(struct conn *conn, const struct frame *frame)
{
	struct record_message message = {
		.topic = frame->destination,
		.key = frame->key,
		.body = frame->body,
		.headers = conn->sink->pairs,
		.header_count = frame->pairs,
		.qos = frame->has_receipt,
	};
	struct answer answer = { .kind = 0 };

	if (frame->destination.len == 0)
		return bad(conn, "SEND without destination");
	if (frame->has_receipt && !number(frame->receipt, &answer.id))
		return bad(conn, "SEND with a receipt that is not a number, which is all this server knows");
	if (!conn_message(conn, &message, &answer))
		return 0;
	if (answer.code >= REJECT_UNNAMED && !conn->trails && !conn->last_words) {
		/* Input behind it is ignored, and answers that are not yet due are never sent. */
		if (conn_may_answer(conn)) {
			in_turn(conn);
			put_error(conn, (struct record_view){ NULL, 0 }, "rejected");
		}
		conn_end(conn, CONN_FLUSH);
	} else if (frame->has_receipt) {
		answer.kind = ANSWER_SEND;
		conn_answer(conn, &answer);
	}
	return 0;
}

/* BEGIN, COMMIT, ABORT: tidegated's probe. */
static int
on_transaction(struct conn *conn, const struct frame *frame)
{
	if (frame->transaction.len == 0)
		return bad(conn, "a transaction without name");
	if (!frame->has_receipt)
		return 0;
	conn->counters.pings++;
	conn->sink->counters.pings++;
	if (conn_may_answer(conn) && !conn->sink->behaviour.no_pong) {
		in_turn(conn);
		put_receipt(conn, frame->receipt);
	}
	return 0;
}

static int
on_frame(struct conn *conn, const struct frame *frame)
{
	const struct stomp *stomp = conn->state;
	bool connect = same(frame->command, "CONNECT") || same(frame->command, "STOMP");

	if (connect == stomp->connected)
		return bad(conn, connect ? "a second CONNECT" : "the first frame is no CONNECT");
	if (connect)
		return on_connect(conn, frame);
	if (same(frame->command, "SEND"))
		return on_send(conn, frame);
	if (same(frame->command, "BEGIN") || same(frame->command, "ABORT") || same(frame->command, "COMMIT"))
		return on_transaction(conn, frame);
	if (same(frame->command, "DISCONNECT")) {
		if (frame->has_receipt && conn_may_answer(conn)) {
			in_turn(conn);
			put_receipt(conn, frame->receipt);
		}
		conn_end(conn, CONN_FLUSH);
		return 0;
	}
	return bad(conn, "a command that this server does not know");
}

static ssize_t
stomp_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	size_t used = 0;

	while (!conn->stop && used < len) {
		struct frame frame;
		if (bytes[used] == '\n' || bytes[used] == '\r') {
			used++;
			continue;
		}
		ssize_t n = read_frame(conn, &frame, bytes + used, len - used);
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		if (on_frame(conn, &frame) < 0)
			return -1;
		used += (size_t)n;
	}
	return (ssize_t)used;
}

static void
stomp_close(struct conn *conn)
{
	struct stomp *stomp = conn->state;

	free(stomp->text);
}

const struct protocol protocol_stomp = {
	.name = "stomp",
	.state_size = sizeof(struct stomp),
	.reject_code = REJECT_NAMED,
	.reject_least = REJECT_NAMED,
	.close = stomp_close,
	.input = stomp_input,
	.answer = stomp_answer,
	.farewell = stomp_farewell,
};
