/* Framing of MQTT PUBLISH: everything a broker would refuse is refused before a byte is appended. */
#include "mqtt.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>

#define MQTT_KEY_NAME "tidegate-key"
#define MQTT_SLASHES_MAX 200u /* over one more mosquitto closes, in 3.1.1 without a word */

static uint32_t
count_slashes(const struct message *message)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < message->topic_len; i++)
		count += message->topic[i] == '/';
	return count;
}

/* $SYS is the broker's alone (MQTT 5, section 4.7.2): some close over it, some never answer. */
static int
reject_dollar(
    const struct mqtt_session *mqtt, const struct message *message, struct driver_rejection *rejection)
{
	if (message->topic_len >= 4 && memcmp(message->topic, "$SYS", 4) == 0 &&
	    (message->topic_len == 4 || message->topic[4] == '/'))
		return driver_reject(rejection, REJECT_TOPIC, "topics below $SYS are the broker's own");
	if (mqtt->dollar_topics)
		return 0;
	return driver_reject(rejection, REJECT_TOPIC,
	    "topics that begin with $ are the broker's own; dollar_topics = true in the pool's mqtt group passes them "
	    "on, but for $SYS");
}

static int
reject_topic(const struct mqtt_session *mqtt, const struct message *message, struct driver_rejection *rejection)
{
	size_t offset = 0;

	if (message->topic_len == 0)
		return driver_reject(rejection, REJECT_TOPIC, "the topic is empty");
	if (message->topic_len > MQTT_STRING_MAX)
		return driver_reject(rejection, REJECT_TOPIC, "the topic has %u bytes, MQTT allows %u",
		    message->topic_len, MQTT_STRING_MAX);
	enum utf8_fault fault = utf8_check(message->topic, message->topic_len, "#+", &offset);
	if (fault == UTF8_FORBIDDEN)
		return driver_reject(rejection, REJECT_TOPIC,
		    "the topic has a wildcard '%c' at byte %zu; MQTT publishes to plain topics only",
		    message->topic[offset], offset);
	if (fault != UTF8_PLAIN)
		return driver_reject(
		    rejection, REJECT_TOPIC, "the topic %s at byte %zu", utf8_fault_text(fault), offset);
	if (message->topic_len > MQTT_SLASHES_MAX && count_slashes(message) > MQTT_SLASHES_MAX)
		return driver_reject(rejection, REJECT_TOPIC,
		    "the topic has %u slashes; %u are allowed, brokers close the connection over more",
		    count_slashes(message), MQTT_SLASHES_MAX);
	return message->topic[0] == '$' ? reject_dollar(mqtt, message, rejection) : 0;
}

/* The bytes of a message's user properties, or DRIVER_REJECTED. */
static int
measure_users(const struct mqtt_session *mqtt, const struct message *message, size_t *size,
    struct driver_rejection *rejection)
{
	struct header_view header;
	uint32_t at = 0;
	size_t offset = 0;
	enum utf8_fault fault;

	if (mqtt->version == 4) {
		if (message->headers_len == 0)
			return 0;
		return driver_reject(rejection, REJECT_HEADER,
		    mqtt->pinned ? "MQTT 3.1.1 has no headers; set version = 5 in the pool's mqtt group"
				 : "MQTT 3.1.1 has no headers, and the broker speaks no MQTT 5");
	}
	if (message->key_len > 0) {
		if (message->key_len > MQTT_STRING_MAX)
			return driver_reject(rejection, REJECT_KEY, "the key has %u bytes, MQTT allows %u",
			    message->key_len, MQTT_STRING_MAX);
		if ((fault = utf8_check(message->key, message->key_len, "\0", &offset)) != UTF8_PLAIN)
			return driver_reject(
			    rejection, REJECT_KEY, "the key %s at byte %zu", utf8_fault_text(fault), offset);
		*size += 1 + 2 + sizeof(MQTT_KEY_NAME) - 1 + 2 + message->key_len;
	}
	while (message_header_next(message, &at, &header)) {
		if ((fault = utf8_check(header.name, header.name_len, "\0", &offset)) != UTF8_PLAIN)
			return driver_reject(rejection, REJECT_HEADER, "a header's name %s at byte %zu",
			    utf8_fault_text(fault), offset);
		if ((fault = utf8_check(header.value, header.value_len, "\0", &offset)) != UTF8_PLAIN)
			return driver_reject(rejection, REJECT_HEADER, "a header's value %s at byte %zu",
			    utf8_fault_text(fault), offset);
		*size += 1 + 2 + (size_t)header.name_len + 2 + header.value_len;
	}
	return 0;
}

/* Results of the checks, which framing needs when it writes. */
struct mqtt_frame {
	size_t properties;
	size_t remaining;
	size_t head; /* everything before the body */
	uint32_t id;
};

static uint8_t *
frame_head(
    uint8_t *at, const struct mqtt_session *mqtt, const struct message *message, const struct mqtt_frame *frame)
{
	*at++ = (uint8_t)(MQTT_PUBLISH << 4 | mqtt->qos << 1 | (message->retain != 0));
	at = mqtt_put_length(at, frame->remaining);
	at = mqtt_put_string(at, message->topic, message->topic_len);
	if (mqtt->qos > 0)
		at = mqtt_put_u16(at, frame->id);
	if (mqtt->version == 4)
		return at;
	at = mqtt_put_length(at, frame->properties);
	if (message->expiry_ms > 0) {
		*at++ = PROPERTY_MESSAGE_EXPIRY;
		at = mqtt_put_u32(at, message->expiry_ms / 1000 + (message->expiry_ms % 1000 != 0));
	}
	if (message->key_len > 0) {
		*at++ = PROPERTY_USER;
		at = mqtt_put_string(at, MQTT_KEY_NAME, sizeof(MQTT_KEY_NAME) - 1);
		at = mqtt_put_string(at, message->key, message->key_len);
	}
	if (message->headers_len > 0) {
		struct header_view header;
		uint32_t offset = 0;
		while (message_header_next(message, &offset, &header)) {
			*at++ = PROPERTY_USER;
			at = mqtt_put_string(at, header.name, header.name_len);
			at = mqtt_put_string(at, header.value, header.value_len);
		}
	}
	return at;
}

/* Head and small body in one piece; a large body follows by reference. */
static int
frame_append(const struct mqtt_session *mqtt, const struct message *message, const struct mqtt_frame *frame,
    struct out *out)
{
	size_t body = message->body_len < OUT_REF_MIN ? message->body_len : 0;

	out_mark(out);
	uint8_t *at = out_space(out, frame->head + body);
	if (at == NULL)
		return out_commit(out);
	at = frame_head(at, mqtt, message, frame);
	mqtt_put_bytes(at, message->body, body);
	if (body < message->body_len)
		out_ref(out, message->body, message->body_len);
	return out_commit(out);
}

int
mqtt_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct mqtt_session *mqtt = mqtt_session(session);
	struct window *unanswered = &mqtt->unanswered;
	struct mqtt_frame frame = { .id = mqtt_id(seq) };

	if (mqtt->state != MQTT_UP || window_outstanding(unanswered) >= mqtt->window ||
	    unanswered->next - unanswered->oldest >= MQTT_IDS)
		return DRIVER_FULL;
	if (reject_topic(mqtt, message, rejection) != 0)
		return DRIVER_REJECTED;
	if ((message->key_len | message->headers_len) != 0 &&
	    measure_users(mqtt, message, &frame.properties, rejection) != 0)
		return DRIVER_REJECTED;
	if (message->retain && !mqtt->retain_available)
		return driver_reject(rejection, 0x9a, "the broker takes no retained messages");
	frame.remaining = 2 + (size_t)message->topic_len + (mqtt->qos > 0 ? 2 : 0);
	if (mqtt->version == 5) {
		if (message->expiry_ms > 0)
			frame.properties += 5;
		frame.remaining += mqtt_length_size(frame.properties) + frame.properties;
	}
	frame.head = frame.remaining;
	frame.remaining += message->body_len;
	frame.head += 1 + mqtt_length_size(frame.remaining);
	if (frame.head + message->body_len > mqtt->max_packet || frame.remaining > MQTT_REMAINING_MAX)
		return driver_reject(rejection, REJECT_BODY,
		    "the message makes a packet of %zu bytes (body %u), the broker allows %u",
		    frame.head + message->body_len, message->body_len, mqtt->max_packet);
	int rc = frame_append(mqtt, message, &frame, out);
	if (rc != 0)
		return rc;
	unanswered->next = seq + 1;
	if (mqtt->qos == 0) {
		unanswered->oldest = unanswered->next;
		return DRIVER_PUBLISHED_NO_ACK;
	}
	return DRIVER_PUBLISHED;
}
