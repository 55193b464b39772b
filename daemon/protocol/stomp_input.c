/*
 * Input from a STOMP broker: CONNECTED, RECEIPT, ERROR, line breaks between frames (which
 * are its heart-beats), and nothing else.
 *
 * The first ERROR that names a message's receipt rejects that message and no other. Whether the connection is
 * over is the broker's to say by closing it (ActiveMQ keeps it open when rights are missing, and closes it when
 * a frame makes no sense). Until it has shown that it goes on, by a receipt for a message that was framed behind
 * the ERROR, no further ERROR rejects anything: Artemis answers each frame behind a bad one with an ERROR of its
 * own ("Connection is not valid") that names an innocent message. Such messages are sent again. An ERROR for a
 * message that was framed behind the first ends the session, so that it is the first on the next connection.
 *
 * An ERROR that names none ends the session: it may be about any of the unanswered messages.
 */
#include "stomp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

#define FIRST_LINE_MAX 100u /* bytes of an ERROR's body that are quoted */

#define fatal(stomp, kind, ...)                                             \
	(window_flush(&(stomp)->unanswered), (stomp)->state = STOMP_CLOSED, \
	    driver_fatal(&(stomp)->base, kind, 0, __VA_ARGS__))

/* ---- which message an answer is for ---- */

/* The stream a well-behaved broker sends: receipts from the oldest on. Returns bytes taken. */
static size_t
receipts_in_order(struct stomp_session *stomp, const uint8_t *bytes, size_t len)
{
	static const char head[] = "RECEIPT\nreceipt-id:";
	const size_t head_len = sizeof(head) - 1;
	struct window *unanswered = &stomp->unanswered;
	size_t at = 0;

	while (!window_is_empty(unanswered) && len - at > head_len + 4 &&
	       memcmp(bytes + at, head, head_len) == 0) {
		size_t end = at + head_len;
		uint64_t seq = 0;
		for (; end < len && bytes[end] >= '0' && bytes[end] <= '9' && end - at < head_len + 18; end++)
			seq = seq * 10 + (uint64_t)(bytes[end] - '0');
		if (len - end < 3 || memcmp(bytes + end, "\n\n", 3) != 0 || seq != unanswered->oldest ||
		    end == at + head_len)
			break;
		at = end + 3;
		if (at < len && bytes[at] == '\n')
			at++;
		if (stomp->errored && seq >= stomp->errored_at)
			stomp->errored = 0;
		window_ack_oldest(unanswered);
	}
	return at;
}

/* ---- the frames ---- */

static int
input_receipt(struct stomp_session *stomp, const struct stomp_head *head)
{
	const uint8_t *id = head->receipt_id.bytes;
	size_t len = head->receipt_id.len;
	uint64_t number;
	char text[40];

	if (id != NULL && len > 1 && id[0] == 'p' && stomp_number(id + 1, len - 1, INT64_MAX, &number) == 0) {
		/* A number out of range answers a probe of the session whose place this one has taken. */
		if (number - stomp->probe_oldest >= stomp->probe_next - stomp->probe_oldest)
			return 0;
		window_flush(&stomp->unanswered);
		stomp->probe_oldest = number + 1; /* those before it are answered with it */
		driver_emit(&stomp->base, EV_ALIVE, 0);
		return 0;
	}
	if (id == NULL)
		return fatal(stomp, FATAL_PROTOCOL, "RECEIPT: it has no receipt-id");
	if (stomp_number(id, len, INT64_MAX, &number) == 0) {
		if (window_ack(&stomp->unanswered, number)) {
			if (stomp->errored && number >= stomp->errored_at)
				stomp->errored = 0;
			return 0;
		}
	}
	stomp_clean(text, sizeof(text), id, len);
	return fatal(stomp, FATAL_PROTOCOL, "RECEIPT: nothing waits for its receipt-id \"%s\"", text);
}

/* "SX,SY": the broker's heart-beat intervals, offered and wanted, in ms. Returns 0, or -1. */
static int
read_beat(const struct stomp_text *beat, uint64_t *wants_ms)
{
	const uint8_t *comma = beat->bytes != NULL ? memchr(beat->bytes, ',', beat->len) : NULL;
	uint64_t can_ms;

	*wants_ms = 0;
	if (beat->bytes == NULL)
		return 0;
	if (comma == NULL)
		return -1;
	size_t first = (size_t)(comma - beat->bytes);
	return stomp_number(beat->bytes, first, UINT32_MAX, &can_ms) |
	       stomp_number(comma + 1, beat->len - first - 1, UINT32_MAX, wants_ms);
}

static int
input_connected(struct stomp_session *stomp, const struct stomp_head *head)
{
	uint64_t wants_ms;
	char text[40];

	if (head->version.bytes == NULL || head->version.len != 3 ||
	    memcmp(head->version.bytes, "1.2", 3) != 0) {
		stomp_clean(text, sizeof(text), head->version.bytes, head->version.len);
		return fatal(stomp, FATAL_SETTINGS, "the broker speaks STOMP %s, 1.2 was asked for",
		    head->version.bytes != NULL ? text : "1.0");
	}
	if (read_beat(&head->heart_beat, &wants_ms) != 0)
		return fatal(stomp, FATAL_PROTOCOL, "CONNECTED: its heart-beat is not two numbers");
	if (head->server.len >= 8 && memcmp(head->server.bytes, "RabbitMQ", 8) == 0)
		stomp->expiry = STOMP_EXPIRATION;
	stomp->state = STOMP_UP;
	if (wants_ms > 0 && stomp->heartbeat_ms > 0) {
		/* Half of it: silence is measured from what is read, and an answer may be long in coming. */
		uint64_t ms = wants_ms > stomp->heartbeat_ms ? wants_ms : stomp->heartbeat_ms;
		driver_emit(&stomp->base, EV_KEEPALIVE, ms < 2000 ? 1 : ms / 2000);
	}
	driver_emit(&stomp->base, EV_UP, 0);
	return 0;
}

static int
is_refusal(const char *text)
{
	static const char *const words[] = { "access_refused", "access refused", "bad connect", "password",
		"passcode", "credential", "authori", "authenti", "denied", "not allowed", "protocol version" };

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcasestr(text, words[i]) != NULL)
			return 1;
	return 0;
}

/* "name: first line", if the line says more than the name. */
static void
words_of(char text[static 220], const struct stomp_head *head, const uint8_t *line, size_t line_len)
{
	char what[110], said[FIRST_LINE_MAX + 1];

	stomp_clean(what, sizeof(what), head->message.bytes, head->message.len);
	while (line_len > 0 && (line[line_len - 1] == '\r' || line[line_len - 1] == '\n'))
		line_len--;
	utf8_clean(said, sizeof(said), line, line_len);
	if (said[0] == '\0' || strncmp(what, said, strlen(said)) == 0)
		snprintf(text, 220, "%s", what[0] != '\0' ? what : "ERROR without words");
	else if (what[0] == '\0')
		snprintf(text, 220, "%s", said);
	else
		snprintf(text, 220, "%s: %s", what, said);
}

static int
act_on_error(struct stomp_session *stomp, const struct stomp_head *head, const uint8_t *line, size_t line_len)
{
	const uint8_t *id = head->receipt_id.bytes;
	uint64_t seq;
	char text[220];

	words_of(text, head, line, line_len);
	if (stomp->state == STOMP_CONNECTING)
		return fatal(stomp, is_refusal(text) ? FATAL_REFUSED : FATAL_CLOSED,
		    "the broker refused the connection: %s", text);
	if (id != NULL && stomp_number(id, head->receipt_id.len, INT64_MAX, &seq) == 0) {
		if (stomp->errored && seq >= stomp->errored_at)
			return fatal(stomp, FATAL_ANSWERED, "the broker goes on refusing: %s", text);
		if (window_take(&stomp->unanswered, seq)) {
			if (stomp->errored) {
				driver_emit(&stomp->base, EV_AGAIN, seq);
				return 0;
			}
			stomp->errored = 1;
			stomp->errored_at = stomp->unanswered.next;
			driver_nack(&stomp->base, seq, REJECT_DENIED, text, strlen(text));
			return 0;
		}
	}
	if (stomp->errored)
		return fatal(stomp, FATAL_ANSWERED, "the broker goes on refusing: %s", text);
	return fatal(stomp, id == NULL && !window_is_empty(&stomp->unanswered) ? FATAL_MESSAGE : FATAL_CLOSED,
	    "the broker says: %s", text);
}

/* An ERROR is acted on as soon as its first line is there, however long its body is. */
static ssize_t
input_error(
    struct stomp_session *stomp, const struct stomp_head *head, const uint8_t *bytes, size_t len, size_t body)
{
	size_t most = FIRST_LINE_MAX, line_len;

	if (head->content_length >= 0 && (uint64_t)head->content_length < most)
		most = (size_t)head->content_length;
	const uint8_t *line = bytes + body;
	size_t there = len - body < most ? len - body : most;
	const uint8_t *zero = head->content_length < 0 ? memchr(line, '\0', there) : NULL;
	const uint8_t *end = memchr(line, '\n', zero != NULL ? (size_t)(zero - line) : there);
	if (end != NULL)
		line_len = (size_t)(end - line);
	else if (zero != NULL)
		line_len = (size_t)(zero - line);
	else if (there == most)
		line_len = most;
	else
		return 0;
	if (act_on_error(stomp, head, line, line_len) != 0)
		return -TG_EPROTOCOL;
	stomp->skip = head->content_length >= 0 ? STOMP_SKIP_LENGTH : STOMP_SKIP_TO_ZERO;
	stomp->skip_left = head->content_length >= 0 ? (uint64_t)head->content_length : 0;
	return (ssize_t)body;
}

/* Whether a command may come now. */
static int
may_come(const struct stomp_session *stomp, enum stomp_command command)
{
	switch (command) {
	case STOMP_CONNECTED:
		return stomp->state == STOMP_CONNECTING;
	case STOMP_RECEIPT:
		return stomp->state == STOMP_UP;
	case STOMP_ERROR:
		return 1;
	default:
		return 0;
	}
}

/* One frame. Returns its size, 0 while it is not whole, or a negative TG_E. */
static ssize_t
input_frame(struct stomp_session *stomp, const uint8_t *bytes, size_t len)
{
	const char *when = stomp->state == STOMP_CONNECTING ? "before CONNECTED" : "send a publisher";
	struct stomp_head head;
	char why[160];

	if (bytes[0] < 'A' || bytes[0] > 'Z')
		return fatal(
		    stomp, FATAL_PROTOCOL, "the broker sent byte 0x%02x where a frame begins", bytes[0]);
	ssize_t body = stomp_head_read(&head, bytes, len, why);
	if (body < 0)
		return fatal(stomp, FATAL_PROTOCOL, "%s", why);
	if (body == 0)
		return 0;
	if (!may_come(stomp, head.command))
		return fatal(stomp, FATAL_PROTOCOL, "the broker sent %s, which it may not %s",
		    stomp_command_word(head.command), when);
	if (head.command == STOMP_ERROR)
		return input_error(stomp, &head, bytes, len, (size_t)body);
	if (head.content_length > 0 || ((size_t)body < len && bytes[body] != '\0'))
		return fatal(stomp, FATAL_PROTOCOL, "%s: it has a body", stomp_command_word(head.command));
	if ((size_t)body == len)
		return 0;
	int rc = head.command == STOMP_CONNECTED ? input_connected(stomp, &head) : input_receipt(stomp, &head);
	return rc != 0 ? rc : body + 1;
}

/* The rest of an ERROR's body. Returns bytes taken (skip is over when it is NONE), or a negative TG_E. */
static ssize_t
input_skip(struct stomp_session *stomp, const uint8_t *bytes, size_t len)
{
	if (stomp->skip == STOMP_SKIP_TO_ZERO) {
		const uint8_t *zero = memchr(bytes, '\0', len);
		if (zero == NULL)
			return (ssize_t)len;
		stomp->skip = STOMP_SKIP_NONE;
		return zero - bytes + 1;
	}
	if (stomp->skip_left > 0) {
		size_t n = len < stomp->skip_left ? len : (size_t)stomp->skip_left;
		stomp->skip_left -= n;
		return (ssize_t)n;
	}
	stomp->skip = STOMP_SKIP_NONE;
	if (bytes[0] != '\0')
		return fatal(stomp, FATAL_PROTOCOL, "ERROR: its body is longer than its content-length");
	return 1;
}

ssize_t
stomp_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	struct stomp_session *stomp = stomp_session(session);
	size_t at = 0;
	ssize_t n;

	if (stomp->state == STOMP_CLOSED)
		return -TG_EPROTOCOL;
	while (at < len) {
		if (stomp->skip != STOMP_SKIP_NONE) {
			n = input_skip(stomp, bytes + at, len - at);
		} else if (bytes[at] == '\n') {
			n = 1;
		} else if (bytes[at] == '\r') {
			if (len - at < 2)
				break;
			if (bytes[at + 1] != '\n')
				return fatal(
				    stomp, FATAL_PROTOCOL, "the broker sent a CR without LF between frames");
			n = 2;
		} else {
			if (stomp->state == STOMP_UP &&
			    (n = (ssize_t)receipts_in_order(stomp, bytes + at, len - at)) > 0) {
				at += (size_t)n;
				continue;
			}
			n = input_frame(stomp, bytes + at, len - at);
		}
		if (n < 0)
			return n;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	window_flush(&stomp->unanswered);
	return (ssize_t)at;
}
