/*
 * Framing of basic.publish: the method, the properties, the body in pieces. Messages that the broker
 * would refuse by closing a channel are refused before a byte is appended, as far as it can be known.
 *
 * The first message to an exchange brings its channel: open, confirm.select and a passive declare go
 * out in front of it, and nothing waits for their answers. An exchange that is missing then closes
 * the channel at the declare, so that it is certain that no message behind it was taken.
 */
#include "amqp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>

#define KEY_NAME "tidegate-key"
#define REPLY_TO "amq.rabbitmq.reply-to"
#define RING_FIRST 64u
#define EXPIRY_MAX_LEN 10u

/* The parts of a message's topic. */
struct target {
	const uint8_t *exchange;
	const uint8_t *key;
	uint32_t exchange_len;
	uint32_t key_len;
};

/* Results of the checks, which framing needs when it writes. */
struct frame {
	struct target target;
	struct siphash id;
	size_t table; /* bytes of the headers table's fields */
	size_t properties;
	size_t head; /* everything before the body's first frame */
	uint32_t flags;
	uint32_t number; /* of the channel */
	uint8_t expiry_len;
	char expiry[EXPIRY_MAX_LEN + 1];
};

static int
read_topic(const struct amqp_settings *settings, const struct message *message, struct target *target,
    struct driver_rejection *rejection)
{
	size_t offset = 0;
	const uint8_t *slash;

	*target =
	    (struct target){ .exchange = message->topic, .key = message->topic, .key_len = message->topic_len };
	if (settings->exchange != NULL) {
		target->exchange = (const uint8_t *)settings->exchange;
		target->exchange_len = (uint32_t)strlen(settings->exchange);
	} else if (message->topic_len > 0 &&
		   (slash = memchr(message->topic, '/', message->topic_len)) != NULL) {
		target->exchange_len = (uint32_t)(slash - message->topic);
		target->key = slash + 1;
		target->key_len = message->topic_len - target->exchange_len - 1;
	}
	if (target->exchange_len > AMQP_SHORT_MAX)
		return driver_reject(rejection, REJECT_TOPIC,
		    "the topic's exchange (up to the first '/') has %u bytes, AMQP allows %u",
		    target->exchange_len, AMQP_SHORT_MAX);
	if (target->key_len > AMQP_SHORT_MAX)
		return driver_reject(rejection, REJECT_TOPIC,
		    "the topic's routing key has %u bytes, AMQP allows %u", target->key_len, AMQP_SHORT_MAX);
	if (target->exchange_len == 0 && target->key_len == 0)
		return driver_reject(
		    rejection, REJECT_TOPIC, "the topic names neither an exchange nor a queue");
	if (target->exchange_len == 0 && target->key_len >= sizeof(REPLY_TO) - 1 &&
	    memcmp(target->key, REPLY_TO, sizeof(REPLY_TO) - 1) == 0)
		return driver_reject(rejection, REJECT_TOPIC,
		    "the topic names one of RabbitMQ's reply queues (" REPLY_TO
		    "): its channel crashes over wrong ones");
	enum utf8_fault fault = utf8_check(message->topic, message->topic_len, "\0", &offset);
	if (fault != UTF8_PLAIN)
		return driver_reject(
		    rejection, REJECT_TOPIC, "the topic %s at byte %zu", utf8_fault_text(fault), offset);
	return 0;
}

/* RabbitMQ reads these as lists of further routing keys and closes the channel on anything else. */
static int
is_reserved(const struct header_view *header)
{
	return (header->name_len == 2 && memcmp(header->name, "CC", 2) == 0) ||
	       (header->name_len == 3 && memcmp(header->name, "BCC", 3) == 0);
}

/* The bytes of a message's headers table, or DRIVER_REJECTED. */
static int
measure_headers(const struct message *message, size_t *size, struct driver_rejection *rejection)
{
	struct header_view header;
	uint32_t at = 0;
	size_t offset = 0;

	if (message->key_len > 0)
		*size += 1 + sizeof(KEY_NAME) - 1 + 1 + 4 + message->key_len;
	while (message_header_next(message, &at, &header)) {
		if (header.name_len > AMQP_SHORT_MAX)
			return driver_reject(rejection, REJECT_HEADER,
			    "a header's name has %u bytes, AMQP allows %u", header.name_len, AMQP_SHORT_MAX);
		enum utf8_fault fault = utf8_check(header.name, header.name_len, "\0", &offset);
		if (fault != UTF8_PLAIN)
			return driver_reject(rejection, REJECT_HEADER, "a header's name %s at byte %zu",
			    utf8_fault_text(fault), offset);
		if (header.name_len == sizeof(KEY_NAME) - 1 &&
		    memcmp(header.name, KEY_NAME, header.name_len) == 0)
			return driver_reject(rejection, REJECT_HEADER,
			    "a header is named " KEY_NAME ", which holds the message's key");
		if (is_reserved(&header))
			return driver_reject(rejection, REJECT_HEADER,
			    "a header is named %.*s, which RabbitMQ keeps for lists of routing keys",
			    header.name_len, (const char *)header.name);
		*size += 1 + (size_t)header.name_len + 1 + 4 + header.value_len;
	}
	return 0;
}

/* Fills in everything but the channel. Returns 0 or DRIVER_REJECTED. */
static int
measure(const struct amqp_session *amqp, const struct message *message, struct frame *frame,
    struct driver_rejection *rejection)
{
	const struct amqp_settings *settings = amqp->base.settings;

	if (read_topic(settings, message, &frame->target, rejection) != 0)
		return DRIVER_REJECTED;
	if (message->body_len > amqp->max_body)
		return driver_reject(rejection, REJECT_BODY, "the body has %u bytes, the broker allows %llu",
		    message->body_len, (unsigned long long)amqp->max_body);
	frame->flags = PROPERTY_DELIVERY_MODE | PROPERTY_MESSAGE_ID;
	frame->id = message_id(message);
	frame->properties = 1 + 1 + MESSAGE_ID_LEN;
	if (settings->content_type != NULL) {
		frame->flags |= PROPERTY_CONTENT_TYPE;
		frame->properties += 1 + strlen(settings->content_type);
	}
	if ((message->key_len | message->headers_len) != 0) {
		if (measure_headers(message, &frame->table, rejection) != 0)
			return DRIVER_REJECTED;
		frame->flags |= PROPERTY_HEADERS;
		frame->properties += 4 + frame->table;
	}
	if (message->expiry_ms > 0) {
		frame->expiry_len =
		    (uint8_t)snprintf(frame->expiry, sizeof(frame->expiry), "%u", message->expiry_ms);
		frame->flags |= PROPERTY_EXPIRATION;
		frame->properties += 1 + frame->expiry_len;
	}
	size_t header = 14 + frame->properties;
	if (header > amqp->frame_max - AMQP_FRAME_EXTRA)
		return driver_reject(rejection, REJECT_HEADER,
		    "headers and key make a frame of %zu bytes, the broker allows %u",
		    header + AMQP_FRAME_EXTRA, amqp->frame_max);
	frame->head = AMQP_FRAME_EXTRA + 4 + 2 + 1 + frame->target.exchange_len + 1 + frame->target.key_len +
		      1 + AMQP_FRAME_EXTRA + header;
	return 0;
}

/* ---- channels ---- */

static int
is_for(const struct amqp_channel *channel, const struct target *target)
{
	return channel->exchange_len == target->exchange_len &&
	       memcmp(channel->exchange, target->exchange, target->exchange_len) == 0;
}

static int
is_idle(const struct amqp_channel *channel)
{
	return channel->oldest == channel->next && channel->content == CONTENT_NONE;
}

/*
 * The exchange's channel, else a new one, else the one idle for longest; NULL: all are busy. Returns 0
 * or -TG_ENOMEM.
 */
static int
find_channel(struct amqp_session *amqp, const struct target *target, struct amqp_channel **found)
{
	struct amqp_channel *idle = NULL;

	*found = amqp->last;
	if (amqp->last != NULL && is_for(amqp->last, target))
		return 0;
	for (uint32_t i = 0; i < amqp->channel_count; i++) {
		struct amqp_channel *channel = *found = amqp->channels[i];
		if (is_for(channel, target))
			return 0;
		if (is_idle(channel) && (idle == NULL || channel->used < idle->used))
			idle = channel;
	}
	*found = idle;
	if (amqp->channel_count == amqp->channel_max)
		return 0;
	*found = amqp_channel_add(amqp);
	return *found != NULL ? 0 : -TG_ENOMEM;
}

/* Room for one more unconfirmed message. Returns 0 or -TG_ENOMEM. */
static int
reserve(struct amqp_channel *channel)
{
	uint64_t waiting = channel->next - channel->oldest;
	uint32_t size = channel->ring != NULL ? channel->ring_mask + 1 : 0;

	if (waiting < size)
		return 0;
	uint32_t more = size > 0 ? size * 2 : RING_FIRST;
	struct amqp_pending *ring = calloc(more, sizeof(*ring));
	if (ring == NULL)
		return -TG_ENOMEM;
	for (uint64_t tag = channel->oldest; tag != channel->next; tag++)
		ring[tag & (more - 1)] = channel->ring[tag & channel->ring_mask];
	free(channel->ring);
	channel->ring = ring;
	channel->ring_mask = more - 1;
	return 0;
}

/* The frames that must go out in front of a channel's first message. */
static void
append_opening(const struct frame *frame, int opens, int checks, struct out *out)
{
	uint8_t frames[AMQP_OPEN_SIZE + 64 + AMQP_SHORT_MAX], *at = frames, *begin;

	if (opens)
		at = amqp_put_open(at, frame->number, 1);
	if (checks) {
		begin = at;
		at = amqp_put_u16(amqp_begin_method(at, frame->number, EXCHANGE_DECLARE), 0);
		at = amqp_put_short(at, frame->target.exchange, frame->target.exchange_len);
		at = amqp_put_short(at, "", 0);     /* of any type */
		at = amqp_put_u8(at, 1u | 1u << 4); /* passive, no answer if it is there */
		at = amqp_end_method(begin, amqp_put_u32(at, 0));
	}
	out_copy(out, frames, (size_t)(at - frames));
}

/* ---- the frames ---- */

static uint8_t *
put_field(uint8_t *at, const void *name, size_t name_len, const void *value, size_t value_len)
{
	return amqp_put_long(amqp_put_u8(amqp_put_short(at, name, name_len), 'S'), value, value_len);
}

static uint8_t *
put_table(uint8_t *at, const struct message *message, size_t size)
{
	struct header_view header;
	uint32_t offset = 0;

	at = amqp_put_u32(at, (uint32_t)size);
	if (message->key_len > 0)
		at = put_field(at, KEY_NAME, sizeof(KEY_NAME) - 1, message->key, message->key_len);
	while (message_header_next(message, &offset, &header))
		at = put_field(at, header.name, header.name_len, header.value, header.value_len);
	return at;
}

static uint8_t *
put_head(
    uint8_t *at, const struct amqp_settings *settings, const struct message *message, const struct frame *frame)
{
	const struct target *target = &frame->target;
	uint8_t *begin = at;

	at = amqp_put_u16(amqp_begin_method(at, frame->number, BASIC_PUBLISH), 0);
	at = amqp_put_short(at, target->exchange, target->exchange_len);
	at = amqp_put_short(at, target->key, target->key_len);
	at = amqp_end_method(begin, amqp_put_u8(at, settings->mandatory != 0));
	at = amqp_put_frame_head(at, FRAME_HEADER, frame->number, 14 + frame->properties);
	at = amqp_put_u32(at, 60u << 16);
	at = amqp_put_u16(amqp_put_u64(at, message->body_len), frame->flags);
	if (settings->content_type != NULL)
		at = amqp_put_short(at, settings->content_type, strlen(settings->content_type));
	if (frame->flags & PROPERTY_HEADERS)
		at = put_table(at, message, frame->table);
	at = amqp_put_u8(at, settings->persistent ? 2 : 1);
	if (frame->flags & PROPERTY_EXPIRATION)
		at = amqp_put_short(at, frame->expiry, frame->expiry_len);
	at = message_id_put(amqp_put_u8(at, MESSAGE_ID_LEN), &frame->id);
	return amqp_put_u8(at, AMQP_FRAME_END);
}

/* A body of one small frame goes with the head in one piece. */
static void
append_small(
    const struct amqp_session *amqp, const struct message *message, const struct frame *frame, struct out *out)
{
	size_t body = message->body_len > 0 ? AMQP_FRAME_EXTRA + message->body_len : 0;
	uint8_t *at = out_space(out, frame->head + body);

	if (at == NULL)
		return;
	at = put_head(at, amqp->base.settings, message, frame);
	if (body > 0) {
		at = amqp_put_frame_head(at, FRAME_BODY, frame->number, message->body_len);
		amqp_put_u8(amqp_put_bytes(at, message->body, message->body_len), AMQP_FRAME_END);
	}
}

static void
append_large(
    const struct amqp_session *amqp, const struct message *message, const struct frame *frame, struct out *out)
{
	uint32_t most = amqp->frame_max - AMQP_FRAME_EXTRA, at = 0;
	uint8_t between[1 + AMQP_FRAME_HEAD] = { AMQP_FRAME_END };
	uint8_t *head = out_space(out, frame->head);

	if (head == NULL)
		return;
	/* The header frame names the size of the whole body. */
	put_head(head, amqp->base.settings, message, frame);
	for (uint32_t n; at < message->body_len; at += n) {
		n = message->body_len - at < most ? message->body_len - at : most;
		amqp_put_frame_head(between + 1, FRAME_BODY, frame->number, n);
		out_copy(out, between + (at == 0), sizeof(between) - (at == 0));
		out_body(out, message->body + at, n);
	}
	out_copy(out, between, 1);
}

static void
append_message(
    const struct amqp_session *amqp, const struct message *message, const struct frame *frame, struct out *out)
{
	if (message->body_len < OUT_REF_MIN && message->body_len <= amqp->frame_max - AMQP_FRAME_EXTRA)
		append_small(amqp, message, frame, out);
	else
		append_large(amqp, message, frame, out);
}

/* The message is framed: the channel is what its frames have made of it. */
static void
note_published(struct amqp_session *amqp, struct amqp_channel *channel, uint64_t seq,
    const struct message *message, const struct frame *frame, int opens)
{
	if (!is_for(channel, &frame->target) || channel->state != CHANNEL_IS_OPEN) {
		channel->exchange_len = (uint8_t)frame->target.exchange_len;
		memcpy(channel->exchange, frame->target.exchange, frame->target.exchange_len);
		channel->proven = 0;
		channel->careful = 0;
	}
	if (opens) {
		channel->oldest = channel->next = channel->return_from = 1;
		channel->open_due = 1;
		channel->state = CHANNEL_IS_OPEN;
	}
	channel->checked = 1;
	channel->used = amqp->before + seq;
	channel->ring[channel->next++ & channel->ring_mask] =
	    (struct amqp_pending){ .seq = seq, .id = amqp_id(&frame->id) };
	amqp->last = channel;
	amqp->unanswered.next = seq + 1;
}

int
amqp_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct amqp_session *amqp = amqp_session(session);
	struct frame frame = { .table = 0 };

	if (amqp->state != AMQP_UP || window_is_full(&amqp->unanswered))
		return DRIVER_FULL;
	if (measure(amqp, message, &frame, rejection) != 0)
		return DRIVER_REJECTED;
	struct amqp_channel *channel;
	if (find_channel(amqp, &frame.target, &channel) != 0)
		return -TG_ENOMEM;
	if (channel == NULL || channel->state == CHANNEL_IS_REOPENING ||
	    (channel->careful > 0 && channel->oldest != channel->next && is_for(channel, &frame.target)))
		return DRIVER_FULL;
	if (reserve(channel) != 0)
		return -TG_ENOMEM;
	int opens = channel->state == CHANNEL_IS_CLOSED;
	int same = !opens && is_for(channel, &frame.target);
	frame.number = channel->number;
	int checks = frame.target.exchange_len > 0 && (!same || !channel->checked);
	out_mark(out);
	if (opens || checks)
		append_opening(&frame, opens, checks, out);
	append_message(amqp, message, &frame, out);
	int rc = out_commit(out);
	if (rc != 0)
		return rc;
	note_published(amqp, channel, seq, message, &frame, opens);
	return DRIVER_PUBLISHED;
}
