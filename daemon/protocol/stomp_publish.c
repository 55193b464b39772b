/* Framing of STOMP SEND: everything a broker would refuse is refused before a byte is appended. */
#include "stomp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

/* Headers that are the driver's: the first of a name counts, so a message's own would be lost. */
static const char *const taken[] = { "destination", "content-length", "receipt", "transaction", "persistent",
	"expires", "expiration" };

/* Headers that brokers read as numbers. ActiveMQ closes the connection over what is none, without a word; the
 * most is that of the type it reads. */
static const struct {
	const char *name;
	uint64_t most;
	int negative; /* may be */
} numbers[] = {
	{ "priority", INT32_MAX, 1 },
	{ "timestamp", INT64_MAX, 1 },
	{ "JMSDeliveryMode", INT32_MAX, 1 },
	{ "JMSExpiration", INT64_MAX, 1 },
	{ "JMSPriority", INT32_MAX, 1 },
	{ "JMSTimestamp", INT64_MAX, 1 },
	{ "JMSXDeliveryCount", INT32_MAX, 1 },
	{ "JMSXGroupSeq", INT32_MAX, 1 },
	{ "AMQ_SCHEDULED_DELAY", INT64_MAX, 0 },
	{ "AMQ_SCHEDULED_PERIOD", INT64_MAX, 0 },
	{ "AMQ_SCHEDULED_REPEAT", INT32_MAX, 0 },
};

static int
is_named(const struct header_view *header, const char *name)
{
	return header->name_len == strlen(name) && memcmp(header->name, name, header->name_len) == 0;
}

/* ActiveMQ closes the connection, without a word, over a destination that has no name behind its kind. */
static int
has_name(const uint8_t *bytes, size_t len)
{
	static const char *const kinds[] = { "/queue/", "/topic/", "/remote-temp-queue/",
		"/remote-temp-topic/" };
	size_t at = 0;

	if (len > 0 && bytes[0] == '?')
		return 0;
	for (size_t i = 0; at == 0 && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (len >= strlen(kinds[i]) && memcmp(bytes, kinds[i], strlen(kinds[i])) == 0)
			at = strlen(kinds[i]);
	while (at < len && (bytes[at] == ' ' || bytes[at] == '\t' || bytes[at] == '\r' || bytes[at] == '\n'))
		at++;
	return at < len;
}

/* A number or a destination where a broker wants one. Returns 0 or DRIVER_REJECTED. */
static int
check_value(const struct header_view *header, struct driver_rejection *rejection)
{
	uint64_t value;

	if (is_named(header, "reply-to") && header->value_len > 0 &&
	    !has_name(header->value, header->value_len))
		return driver_reject(rejection, REJECT_HEADER,
		    "the header \"reply-to\" is a destination without a name, over which brokers close the connection");
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (!is_named(header, numbers[i].name))
			continue;
		unsigned sign = numbers[i].negative && header->value_len > 0 && header->value[0] == '-';
		if (stomp_number(header->value + sign, header->value_len - sign, numbers[i].most, &value) == 0)
			return 0;
		unsigned long long most = numbers[i].most;
		return driver_reject(rejection, REJECT_HEADER,
		    "the header \"%s\" is no whole number from %s%llu to %llu, over which brokers close the connection",
		    numbers[i].name, numbers[i].negative ? "-" : "", numbers[i].negative ? most : 0, most);
	}
	return 0;
}

/*
 * Adds to *size what text takes in a header, escaped; *plain stays set if nothing needs an escape. A
 * tabulator, CR and LF may be in it: escapes are there for the latter. Returns a fault.
 */
static enum utf8_fault
measure_text(const uint8_t *bytes, size_t len, size_t *size, int *plain, size_t *offset)
{
	enum utf8_fault fault = utf8_check(bytes, len, ":\\", offset);

	*size += len;
	if (__builtin_expect(fault == UTF8_PLAIN, 1))
		return UTF8_PLAIN;
	for (size_t from = 0;;) {
		if (fault == UTF8_PLAIN)
			return UTF8_PLAIN;
		uint8_t c = bytes[from + *offset];
		if (fault != UTF8_FORBIDDEN &&
		    (fault != UTF8_CONTROL || (c != '\n' && c != '\r' && c != '\t'))) {
			*offset += from;
			return fault;
		}
		if (c != '\t') {
			*size += 1;
			*plain = 0;
		}
		from += *offset + 1;
		/* Stops at the next one, where the fast check would look through all that follows each time. */
		fault = utf8_check_slow(bytes + from, len - from, ":\\", offset);
	}
}

static uint8_t *
put(uint8_t *at, const void *bytes, size_t len)
{
	if (len > 0)
		memcpy(at, bytes, len);
	return at + len;
}

#define put_literal(at, text) put(at, text, sizeof(text) - 1)

static uint8_t *
put_text(uint8_t *at, const uint8_t *bytes, size_t len, int plain)
{
	if (plain)
		return put(at, bytes, len);
	for (size_t i = 0; i < len; i++) {
		uint8_t c = bytes[i];
		uint8_t letter = c == '\n' ? 'n' : c == '\r' ? 'r' : c == ':' ? 'c' : c == '\\' ? '\\' : 0;
		if (letter != 0) {
			*at++ = '\\';
			*at++ = letter;
		} else {
			*at++ = c;
		}
	}
	return at;
}

/* The decimal digits of n, right-aligned in text[20]; returns where they begin. */
static const char *
digits_of(char text[static 20], uint64_t n)
{
	char *at = text + 20;

	do
		*--at = (char)('0' + n % 10);
	while ((n /= 10) > 0);
	return at;
}

#define DIGITS(n)                                        \
	char n##_text[20];                               \
	const char *n##_digits = digits_of(n##_text, n); \
	size_t n##_len = (size_t)(n##_text + 20 - n##_digits)

/* Results of the checks, which framing needs when it writes. */
struct stomp_send {
	size_t head; /* everything before the body */
	int topic_plain, users_plain;
	int own_type; /* the message has a content-type of its own */
	uint64_t expiry;
};

static int
measure_header(const struct header_view *header, struct stomp_send *send, struct driver_rejection *rejection)
{
	size_t offset = 0;
	enum utf8_fault fault;

	if (header->name_len == 0)
		return driver_reject(
		    rejection, REJECT_HEADER, "a header has no name, which STOMP cannot express");
	for (size_t i = 0; i < sizeof(taken) / sizeof(taken[0]); i++)
		if (is_named(header, taken[i]))
			return driver_reject(rejection, REJECT_HEADER,
			    "a header has the name \"%.40s\", which is STOMP's own", taken[i]);
	if (check_value(header, rejection) != 0)
		return DRIVER_REJECTED;
	send->own_type |= header->name_len == 12 && memcmp(header->name, "content-type", 12) == 0;
	send->head += 2;
	fault = measure_text(header->name, header->name_len, &send->head, &send->users_plain, &offset);
	if (fault != UTF8_PLAIN)
		return driver_reject(
		    rejection, REJECT_HEADER, "a header's name %s at byte %zu", utf8_fault_text(fault), offset);
	fault = measure_text(header->value, header->value_len, &send->head, &send->users_plain, &offset);
	if (fault != UTF8_PLAIN)
		return driver_reject(rejection, REJECT_HEADER, "a header's value %s at byte %zu",
		    utf8_fault_text(fault), offset);
	return 0;
}

/* RabbitMQ ends the connection over a user-id that is not the one it knows. */
static int
is_stranger(const struct stomp_session *stomp, const struct header_view *header)
{
	return is_named(header, "user-id") &&
	       (stomp->login == NULL || header->value_len != strlen(stomp->login) ||
		   memcmp(header->value, stomp->login, header->value_len) != 0);
}

/* Of RabbitMQ's destinations one without a slash is a queue's name; others begin with their kind. */
static int
is_known_to_rabbitmq(const uint8_t *topic, size_t len)
{
	static const char *const kinds[] = { "/queue/", "/topic/", "/exchange/", "/amq/queue/", "/temp-queue/",
		"/reply-queue/" };

	if (memchr(topic, '/', len) == NULL)
		return 1;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (len > strlen(kinds[i]) && memcmp(topic, kinds[i], strlen(kinds[i])) == 0)
			return 1;
	return 0;
}

/* Key and headers. Returns 0 or DRIVER_REJECTED. */
static int
measure_users(const struct stomp_session *stomp, const struct message *message, struct stomp_send *send,
    struct driver_rejection *rejection)
{
	struct header_view header;
	uint32_t at = 0;
	size_t offset = 0;

	if (message->key_len > 0) {
		enum utf8_fault fault =
		    measure_text(message->key, message->key_len, &send->head, &send->users_plain, &offset);
		if (fault != UTF8_PLAIN)
			return driver_reject(
			    rejection, REJECT_KEY, "the key %s at byte %zu", utf8_fault_text(fault), offset);
		send->head += sizeof("\n" STOMP_KEY_NAME ":") - 1;
	}
	while (message_header_next(message, &at, &header)) {
		if (is_stranger(stomp, &header))
			return driver_reject(rejection, REJECT_HEADER,
			    "the header \"user-id\" is not the pool's login, over which brokers close the connection");
		if (measure_header(&header, send, rejection) != 0)
			return DRIVER_REJECTED;
	}
	return 0;
}

static uint8_t *
put_users(uint8_t *at, const struct message *message, const struct stomp_send *send)
{
	struct header_view header;
	uint32_t offset = 0;

	if (message->key_len > 0) {
		at = put_literal(at, "\n" STOMP_KEY_NAME ":");
		at = put_text(at, message->key, message->key_len, send->users_plain);
	}
	while (message_header_next(message, &offset, &header)) {
		*at++ = '\n';
		at = put_text(at, header.name, header.name_len, send->users_plain);
		*at++ = ':';
		at = put_text(at, header.value, header.value_len, send->users_plain);
	}
	return at;
}

static const char expiry_names[2][13] = {
	[STOMP_EXPIRES] = "\nexpires:", [STOMP_EXPIRATION] = "\nexpiration:"
};

/*
 * SEND, destination, content-length, receipt, constant headers, content type, expiry, key, headers. With
 * at NULL nothing is written. Returns how many bytes the head has.
 */
static size_t
frame_head(uint8_t *at, const struct stomp_session *stomp, uint64_t seq, const struct message *message,
    struct stomp_send *send)
{
	const struct stomp_settings *settings = stomp->base.settings;
	const char *expiry_name = expiry_names[stomp->expiry];
	size_t expiry_name_len = strlen(expiry_name);
	uint64_t length = message->body_len, expiry = send->expiry;
	DIGITS(seq);
	DIGITS(length);
	DIGITS(expiry);
	size_t type_len =
	    settings->content_type != NULL && !send->own_type ? strlen(settings->content_type) : 0;

	if (at == NULL)
		return sizeof("SEND\ndestination:"
			      "\ncontent-length:"
			      "\nreceipt:"
			      "\n\n") -
		       1 + length_len + seq_len + settings->constant_len +
		       (type_len > 0 ? sizeof("\ncontent-type:") - 1 + type_len : 0) +
		       (expiry > 0 ? expiry_name_len + expiry_len : 0);
	at = put_literal(at, "SEND\ndestination:");
	at = put_text(at, message->topic, message->topic_len, send->topic_plain);
	at = put_literal(at, "\ncontent-length:");
	at = put(at, length_digits, length_len);
	at = put_literal(at, "\nreceipt:");
	at = put(at, seq_digits, seq_len);
	at = put(at, settings->constant, settings->constant_len);
	if (type_len > 0) {
		at = put_literal(at, "\ncontent-type:");
		at = put(at, settings->content_type, type_len);
	}
	if (expiry > 0) {
		at = put(at, expiry_name, expiry_name_len);
		at = put(at, expiry_digits, expiry_len);
	}
	if ((message->key_len | message->headers_len) != 0)
		at = put_users(at, message, send);
	put_literal(at, "\n\n");
	return send->head;
}

/* Head, a small body and the closing zero in one piece; a large body goes by reference. */
static int
frame_append(const struct stomp_session *stomp, uint64_t seq, const struct message *message,
    struct stomp_send *send, struct out *out)
{
	int small = message->body_len < OUT_REF_MIN;
	size_t piece = send->head + (small ? message->body_len + 1 : 0);

	out_mark(out);
	uint8_t *at = out_space(out, piece);
	if (at == NULL)
		return out_commit(out);
	frame_head(at, stomp, seq, message, send);
	if (small)
		*put(at + send->head, message->body, message->body_len) = '\0';
	if (!small) {
		out_ref(out, message->body, message->body_len);
		out_copy(out, "", 1);
	}
	return out_commit(out);
}

int
stomp_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct stomp_session *stomp = stomp_session(session);
	struct stomp_send send = { .topic_plain = 1, .users_plain = 1 };
	size_t offset = 0, topic = 0;

	if (stomp->state != STOMP_UP || window_is_full(&stomp->unanswered))
		return DRIVER_FULL;
	if (message->topic_len == 0)
		return driver_reject(rejection, REJECT_TOPIC, "the topic is empty");
	enum utf8_fault fault =
	    measure_text(message->topic, message->topic_len, &topic, &send.topic_plain, &offset);
	if (fault != UTF8_PLAIN)
		return driver_reject(
		    rejection, REJECT_TOPIC, "the topic %s at byte %zu", utf8_fault_text(fault), offset);
	if (!has_name(message->topic, message->topic_len))
		return driver_reject(rejection, REJECT_TOPIC,
		    "the destination has no name, over which brokers close the connection");
	if (stomp->expiry == STOMP_EXPIRATION && !is_known_to_rabbitmq(message->topic, message->topic_len))
		return driver_reject(rejection, REJECT_TOPIC,
		    "RabbitMQ knows no such destination; /queue/, /topic/, /exchange/ and /amq/queue/ names are possible");
	if ((message->key_len | message->headers_len) != 0 &&
	    measure_users(stomp, message, &send, rejection) != 0)
		return DRIVER_REJECTED;
	if (message->expiry_ms > 0)
		send.expiry = message->expiry_ms + (stomp->expiry == STOMP_EXPIRES ? message->wall_ms : 0);
	send.head += topic + frame_head(NULL, stomp, seq, message, &send);
	int rc = frame_append(stomp, seq, message, &send, out);
	if (rc != 0)
		return rc;
	stomp->unanswered.next = seq + 1;
	return DRIVER_PUBLISHED;
}
