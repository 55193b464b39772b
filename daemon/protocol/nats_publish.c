/* Framing of PUB and HPUB: everything a server would refuse is refused before a byte is appended. */
#include "nats.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char key_name[] = "Tidegate-Key";
static const char id_name[] = "Nats-Msg-Id";
static const char batch_names[] = "Nats-Batch-";
static const char version[] = "NATS/1.0\r\n";

#define LIT(text) (sizeof(text) - 1)

/* ---- numbers ---- */

static uint32_t
hex_len(uint64_t value)
{
	return value == 0 ? 1 : (67u - (uint32_t)__builtin_clzll(value)) / 4;
}

static uint8_t *
put_hex(uint8_t *at, uint64_t value, uint32_t len)
{
	for (uint32_t i = len; i-- > 0; value >>= 4)
		at[i] = (uint8_t) "0123456789abcdef"[value & 15];
	return at + len;
}

static uint32_t
decimal_len(uint64_t value)
{
	uint32_t len = 1;

	for (; value >= 10; value /= 10)
		len++;
	return len;
}

static uint8_t *
put_decimal(uint8_t *at, uint64_t value)
{
	uint32_t len = decimal_len(value);

	for (uint32_t i = len; i-- > 0; value /= 10)
		at[i] = (uint8_t)('0' + value % 10);
	return at + len;
}

#define put out_put

/* ---- refusals ---- */

/* Subjects whose messages no stream can have, as JetStream lives on them: its interface, and where answers come. */
static int
reject_reserved(const struct message *message, struct driver_rejection *rejection)
{
	static const char *const reserved[] = { "_INBOX.", "$JS." };

	for (size_t i = 0; i < sizeof(reserved) / sizeof(reserved[0]); i++)
		if (message->topic_len >= strlen(reserved[i]) &&
		    memcmp(message->topic, reserved[i], strlen(reserved[i])) == 0)
			return driver_reject(rejection, REJECT_TOPIC,
			    "the subject begins with \"%s\": JetStream stores no message of it", reserved[i]);
	return 0;
}

static int
reject_topic(const struct message *message, struct driver_rejection *rejection)
{
	const uint8_t *topic = message->topic;
	uint32_t len = message->topic_len, token = 0, high = 0, wild = 0;
	size_t offset = 0;

	if (len == 0)
		return driver_reject(rejection, REJECT_TOPIC, "the subject is empty");
	/* One more step for the end, which ends a token as a dot does. */
	for (uint32_t i = 0; i <= len; i++) {
		uint8_t c = i < len ? topic[i] : '.';
		if (c == '.') {
			if (i == token)
				return driver_reject(rejection, REJECT_TOPIC, "the subject has an empty token");
			if (wild && i - token == 1)
				return driver_reject(rejection, REJECT_TOPIC,
				    "the subject has a wildcard; NATS publishes to plain subjects only");
			token = i + 1;
			wild = 0;
			continue;
		}
		if (c <= ' ' || c == 0x7f)
			return driver_reject(rejection, REJECT_TOPIC,
			    "the subject has a blank or control character (0x%02x) at byte %u", c, i);
		wild |= c == '*' || c == '>';
		high |= c;
	}
	enum utf8_fault fault = high >= 0x80 ? utf8_check(topic, len, "\0", &offset) : UTF8_PLAIN;
	if (fault == UTF8_PLAIN)
		return 0;
	return driver_reject(
	    rejection, REJECT_TOPIC, "the subject %s at byte %zu", utf8_fault_text(fault), offset);
}

static int
has_line_end(const uint8_t *bytes, size_t len)
{
	return len > 0 && (memchr(bytes, '\r', len) != NULL || memchr(bytes, '\n', len) != NULL);
}

static int
is_name(const uint8_t *name, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (name[i] <= ' ' || name[i] >= 0x7f || name[i] == ':')
			return 0;
	return len > 0;
}

/* Names are compared as a reader of them may do it, without regard to case. */
static int
begins(const struct header_view *header, const char *name, size_t len)
{
	return header->name_len >= len && strncasecmp((const char *)header->name, name, len) == 0;
}

static int
is_called(const struct header_view *header, const char *name, size_t len)
{
	return header->name_len == len && begins(header, name, len);
}

/* Names that are ours to give, and those that would take the answer from a message. */
static int
reject_name(const struct header_view *header, struct driver_rejection *rejection)
{
	if (is_called(header, id_name, LIT(id_name)))
		return driver_reject(rejection, REJECT_HEADER,
		    "a header is named Nats-Msg-Id, which is tidegate's to give: with the id of another message it would have "
		    "that one dropped");
	if (is_called(header, key_name, LIT(key_name)))
		return driver_reject(
		    rejection, REJECT_HEADER, "a header is named Tidegate-Key, which holds the message's key");
	if (begins(header, batch_names, LIT(batch_names)))
		return driver_reject(rejection, REJECT_HEADER,
		    "a header's name begins with Nats-Batch-: messages of a batch are not acknowledged one by one");
	return 0;
}

/* ---- framing ---- */

/* Results of the checks, which framing needs when it writes. */
struct frame {
	struct siphash id;
	uint64_t check, token;
	size_t headers; /* bytes of the header block; 0: none */
	size_t total;   /* with the body */
	size_t head;    /* everything before the body */
};

static size_t
field_size(size_t name_len, size_t value_len)
{
	return name_len + 2 + value_len + 2;
}

static int
measure_headers(const struct nats_session *nats, const struct message *message, struct frame *frame,
    struct driver_rejection *rejection)
{
	struct header_view header;
	uint32_t at = 0;
	size_t size = 0;

	if (message->key_len > 0) {
		if (has_line_end(message->key, message->key_len))
			return driver_reject(
			    rejection, REJECT_KEY, "the key has a line end, which a NATS header cannot have");
		size += field_size(LIT(key_name), message->key_len);
	}
	while (message->headers_len > 0 && message_header_next(message, &at, &header)) {
		if (!is_name(header.name, header.name_len))
			return driver_reject(rejection, REJECT_HEADER,
			    "a header's name is empty or has a character that NATS does not allow there");
		if (has_line_end(header.value, header.value_len))
			return driver_reject(rejection, REJECT_HEADER, "a header's value has a line end");
		if (reject_name(&header, rejection) != 0)
			return DRIVER_REJECTED;
		size += field_size(header.name_len, header.value_len);
	}
	if (size > 0 && !nats->headers)
		return driver_reject(rejection, REJECT_HEADER, "the server takes no headers (nor keys)");
	if (nats->msg_id)
		size += field_size(LIT(id_name), MESSAGE_ID_LEN);
	frame->headers = size > 0 ? LIT(version) + size + 2 : 0;
	return 0;
}

static uint8_t *
put_field(uint8_t *at, const void *name, size_t name_len, const void *value, size_t value_len)
{
	at = put(at, name, name_len);
	at = put(at, ": ", 2);
	at = put(at, value, value_len);
	return put(at, "\r\n", 2);
}

static uint8_t *
put_headers(
    uint8_t *at, const struct nats_session *nats, const struct message *message, const struct frame *frame)
{
	struct header_view header;
	uint32_t offset = 0;

	at = put(at, version, LIT(version));
	if (nats->msg_id) {
		at = put(at, id_name, LIT(id_name));
		at = put(at, ": ", 2);
		at = message_id_put(at, &frame->id);
		at = put(at, "\r\n", 2);
	}
	if (message->key_len > 0)
		at = put_field(at, key_name, LIT(key_name), message->key, message->key_len);
	while (message->headers_len > 0 && message_header_next(message, &offset, &header))
		at = put_field(at, header.name, header.name_len, header.value, header.value_len);
	return put(at, "\r\n", 2);
}

static uint8_t *
put_head(uint8_t *at, const struct nats_session *nats, const struct message *message, const struct frame *frame)
{
	at = frame->headers > 0 ? put(at, "HPUB ", 5) : put(at, "PUB ", 4);
	at = put(at, message->topic, message->topic_len);
	*at++ = ' ';
	if (nats->jetstream) {
		at = put(at, nats->inbox, NATS_INBOX_LEN);
		at = driver_put_hex64(at, frame->check);
		at = put_hex(at, frame->token, hex_len(frame->token));
		*at++ = ' ';
	}
	if (frame->headers > 0) {
		at = put_decimal(at, frame->headers);
		*at++ = ' ';
	}
	at = put_decimal(at, frame->total);
	at = put(at, "\r\n", 2);
	return frame->headers > 0 ? put_headers(at, nats, message, frame) : at;
}

/* The control line's bytes behind its verb, which is what servers limit. */
static size_t
control_size(const struct nats_session *nats, const struct message *message, const struct frame *frame)
{
	return message->topic_len + 1 +
	       (nats->jetstream ? NATS_INBOX_LEN + NATS_CHECK_LEN + hex_len(frame->token) + 1 : 0) +
	       (frame->headers > 0 ? decimal_len(frame->headers) + 1 : 0) + decimal_len(frame->total);
}

/* Head, small body and end in one piece; a large body follows by reference. */
static int
append(
    const struct nats_session *nats, const struct message *message, const struct frame *frame, struct out *out)
{
	size_t body = message->body_len < OUT_REF_MIN ? message->body_len : 0;
	int whole = body == message->body_len;

	out_mark(out);
	uint8_t *at = out_space(out, frame->head + body + (whole ? 2 : 0));
	if (at == NULL)
		return out_commit(out);
	at = put_head(at, nats, message, frame);
	at = put(at, message->body, body);
	if (whole)
		put(at, "\r\n", 2);
	if (!whole) {
		out_ref(out, message->body, message->body_len);
		out_copy(out, "\r\n", 2);
	}
	return out_commit(out);
}

int
nats_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct nats_session *nats = nats_session(session);
	struct frame frame = { .token = nats->first_token + seq };

	if (nats->state != NATS_UP || nats->outstanding >= nats->window ||
	    nats->next - nats->oldest > nats->mask)
		return DRIVER_FULL;
	/* The earlier frames are in order. */
	uint64_t hash = nats_hash(nats, message->topic, message->topic_len);
	const struct nats_subject *subject = &nats->subjects[nats_place(hash)];
	int known = subject->hash == hash && subject->len == message->topic_len && message->topic_len > 0 &&
		    memcmp(subject->text, message->topic, message->topic_len) == 0;
	if (!known && ((nats->jetstream && reject_reserved(message, rejection) != 0) ||
			  reject_topic(message, rejection) != 0))
		return DRIVER_REJECTED;
	if (((message->key_len | message->headers_len) != 0 || nats->msg_id) &&
	    measure_headers(nats, message, &frame, rejection) != 0)
		return DRIVER_REJECTED;
	frame.total = frame.headers + message->body_len;
	if (frame.total > nats->max_payload)
		return driver_reject(rejection, REJECT_BODY,
		    "the message has %zu bytes of headers and body (body %u), the server allows %llu",
		    frame.total, message->body_len, (unsigned long long)nats->max_payload);
	if (nats->jetstream) {
		frame.id = message_id(message);
		frame.check = frame.id.word[1] ^ nats->mixed;
	}
	size_t control = control_size(nats, message, &frame);
	if (control > NATS_CONTROL_MAX) {
		return driver_reject(rejection, REJECT_TOPIC,
		    "the subject has %u bytes, which makes a control line of %zu; servers take %u",
		    message->topic_len, control, NATS_CONTROL_MAX);
	}
	frame.head = (frame.headers > 0 ? 5u : 4u) + control + 2 + frame.headers;
	int rc = append(nats, message, &frame, out);
	if (rc != 0)
		return rc;
	if (!known)
		nats_keep_subject(nats, hash, message);
	nats->pending[seq & nats->mask] = (struct nats_pending){ .word = hash, .check = frame.check };
	nats->next = seq + 1;
	nats->outstanding++;
	return DRIVER_PUBLISHED;
}
