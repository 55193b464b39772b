/*
 * The fate of messages: confirms, returns, and channels the broker closed.
 *
 * RabbitMQ answers a message it will not take by closing the channel and says neither which message
 * that was nor which of those before it are kept; those after it are dropped. Certain is:
 *
 *   - exchange.declare was refused: nothing behind it was looked at; all of it is rejected
 *   - a single message waited: it was the one
 *   - no right to write to the exchange, and it never took a message on this channel: no message
 *     had it; all are rejected
 * Otherwise every message that waited is EV_LOST, and if the cause may be one of them (too large, its
 * routing key not allowed), as many are sent one at a time afterwards, until the one is found.
 */
#include "amqp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>

#define TOPIC_REFUSED "ACCESS_REFUSED - access to topic"
#define TOO_LARGE "PRECONDITION_FAILED - message size "
#define TOO_LARGE_LIMIT "larger than configured max size "

static void
rejected(struct amqp_session *amqp, uint64_t seq, uint32_t code, const char *text)
{
	window_take(&amqp->unanswered, seq);
	driver_nack(&amqp->base, seq, code, text, strlen(text));
}

static struct amqp_pending *
pending_at(struct amqp_channel *channel, uint64_t tag)
{
	return &channel->ring[tag & channel->ring_mask];
}

static void
nacked(struct amqp_session *amqp, const struct amqp_pending *pending)
{
	rejected(amqp, pending->seq, AMQP_CODE_NACK, "the broker could not take the message (basic.nack)");
}

static void
confirm_one(struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_pending *pending, int nack)
{
	if (nack && !pending->returned) {
		pending->held = channel->asking ? HELD_LATER : HELD_NOW;
		return;
	}
	pending->confirmed = 1;
	if (!pending->returned)
		window_ack(&amqp->unanswered, pending->seq);
	if (channel->careful > 0)
		channel->careful--;
}

static void
release_confirmed(struct amqp_channel *channel)
{
	while (channel->oldest != channel->next && pending_at(channel, channel->oldest)->confirmed)
		channel->oldest++;
	if (channel->return_from < channel->oldest)
		channel->return_from = channel->oldest;
}

/*
 * RabbitMQ returns a message and then acknowledges it; Qpid refuses it with basic.nack and then returns it. So what has a
 * basic.nack waits for the answer to a question on the same channel, which comes behind any return.
 */
static int
ask(struct amqp_session *amqp, struct amqp_channel *channel, struct out *out)
{
	uint8_t frame[16];
	uint8_t *at = amqp_begin_method(frame, channel->number, CONFIRM_SELECT);

	at = amqp_end_method(frame, amqp_put_u8(at, 0));
	channel->asking = 1;
	return amqp_send(amqp, out, frame, (size_t)(at - frame));
}

int
amqp_asked(struct amqp_session *amqp, struct amqp_channel *channel, struct out *out)
{
	int more = 0;

	channel->asking = 0;
	for (uint64_t tag = channel->oldest; tag != channel->next; tag++) {
		struct amqp_pending *pending = pending_at(channel, tag);
		if (pending->held == HELD_NOW) {
			pending->held = HELD_NOT;
			pending->confirmed = 1;
			nacked(amqp, pending);
			if (channel->careful > 0)
				channel->careful--;
		} else if (pending->held == HELD_LATER) {
			pending->held = HELD_NOW;
			more = 1;
		}
	}
	release_confirmed(channel);
	return more ? ask(amqp, channel, out) : 0;
}

int
amqp_confirm(struct amqp_session *amqp, struct amqp_channel *channel, uint32_t method,
    struct amqp_reader *arguments, struct out *out)
{
	int nack = method == BASIC_NACK;
	const char *name = nack ? "basic.nack" : "basic.ack";
	uint64_t tag = amqp_take(arguments, 8);
	unsigned multiple = (unsigned)amqp_take(arguments, 1) & 1;
	uint32_t number = channel->number;

	if (arguments->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "%s on channel %u: cut short", name, number);
	if (multiple && tag == 0)
		tag = channel->next - 1; /* all there are */
	if (tag < channel->oldest || tag >= channel->next) {
		if (multiple && tag + 1 == channel->oldest)
			return 0;
		return amqp_fatal(amqp, FATAL_PROTOCOL, 406,
		    "%s on channel %u for delivery tag %llu, which waits for none", name, number,
		    (unsigned long long)tag);
	}
	channel->proven = 1;
	uint64_t at = multiple ? channel->oldest : tag;
	int held = 0;
	for (; at <= tag; at++) {
		struct amqp_pending *pending = pending_at(channel, at);
		if (!pending->confirmed && pending->held == HELD_NOT) {
			confirm_one(amqp, channel, pending, nack);
			held |= pending->held != HELD_NOT;
		} else if (!multiple) {
			return amqp_fatal(amqp, FATAL_PROTOCOL, 406,
			    "%s on channel %u for delivery tag %llu, which has its answer", name, number,
			    (unsigned long long)tag);
		}
	}
	release_confirmed(channel);
	return held && !channel->asking ? ask(amqp, channel, out) : 0;
}

/* ---- returns: a method, a header that has the message's id, and the body again ---- */

int
amqp_return(struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *arguments)
{
	uint32_t code = (uint32_t)amqp_take(arguments, 2);
	struct amqp_view text = amqp_take_short(arguments);
	struct amqp_view exchange = amqp_take_short(arguments);
	struct amqp_view key = amqp_take_short(arguments);
	char said[32], where[44], what[52];

	if (arguments->bad || code == 0)
		return amqp_fatal(
		    amqp, FATAL_PROTOCOL, 502, "basic.return on channel %u: malformed", channel->number);
	utf8_clean(said, sizeof(said), text.bytes, text.len);
	utf8_clean(where, sizeof(where), exchange.bytes, exchange.len);
	utf8_clean(what, sizeof(what), key.bytes, key.len);
	snprintf(channel->return_text, sizeof(channel->return_text), "%s: exchange '%s', routing key '%s'",
	    said, where, what);
	channel->return_code = code;
	channel->content = CONTENT_HEADER;
	return 0;
}

/* The number in sixteen hex digits; others set bad. */
static uint64_t
take_hex(struct amqp_reader *reader)
{
	uint64_t value = 0;

	for (int i = 0; i < 16; i++) {
		unsigned c = (unsigned)amqp_take(reader, 1);
		unsigned digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
		if (digit == 16)
			reader->bad = 1;
		value = value << 4 | (digit & 15);
	}
	return value;
}

/* The message id of a header frame's properties: those before it are skipped. */
static uint32_t
take_id(struct amqp_reader *header)
{
	uint32_t flags = (uint32_t)amqp_take(header, 2);
	struct amqp_view id;

	if (flags & PROPERTY_CONTENT_TYPE)
		amqp_take_short(header);
	if (flags & PROPERTY_CONTENT_ENCODING)
		amqp_take_short(header);
	if (flags & PROPERTY_HEADERS)
		amqp_take_long(header);
	if (flags & PROPERTY_DELIVERY_MODE)
		amqp_take(header, 1);
	if (flags & PROPERTY_PRIORITY)
		amqp_take(header, 1);
	if (flags & PROPERTY_CORRELATION_ID)
		amqp_take_short(header);
	if (flags & PROPERTY_REPLY_TO)
		amqp_take_short(header);
	if (flags & PROPERTY_EXPIRATION)
		amqp_take_short(header);
	if (flags & PROPERTY_MESSAGE_ID)
		id = amqp_take_short(header);
	else
		id = (struct amqp_view){ NULL, 0 };
	if (id.len != MESSAGE_ID_LEN)
		header->bad = 1;
	if (header->bad)
		return 0;
	struct amqp_reader text = { id.bytes, id.bytes + id.len, 0 };
	struct siphash ours = { .word[0] = take_hex(&text) };
	text.bad |= amqp_take(&text, 1) != '-';
	ours.word[1] = take_hex(&text);
	header->bad = text.bad;
	return amqp_id(&ours);
}

int
amqp_return_header(struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *header)
{
	uint32_t number = channel->number;

	amqp_take(header, 4); /* class and weight */
	channel->content_left = amqp_take(header, 8);
	uint32_t id = take_id(header);
	if (header->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502,
		    "basic.return on channel %u: its properties are not those of a message of ours", number);
	channel->content = channel->content_left > 0 ? CONTENT_BODY : CONTENT_NONE;
	/* A channel returns messages in the order in which they were published. */
	for (uint64_t tag = channel->return_from; tag < channel->next; tag++) {
		struct amqp_pending *pending = pending_at(channel, tag);
		if (pending->id != id || pending->confirmed || pending->returned)
			continue;
		channel->return_from = tag + 1;
		pending->returned = 1;
		pending->confirmed = pending->held != HELD_NOT;
		pending->held = HELD_NOT;
		rejected(amqp, pending->seq, channel->return_code, channel->return_text);
		release_confirmed(channel);
		return 0;
	}
	return amqp_fatal(amqp, FATAL_PROTOCOL, 406,
	    "basic.return on channel %u: its message id is of no message that waits", number);
}

int
amqp_return_body(struct amqp_session *amqp, struct amqp_channel *channel, size_t len)
{
	if (len > channel->content_left)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 501,
		    "basic.return on channel %u: its body is %zu bytes longer than its header says",
		    channel->number, (size_t)(len - channel->content_left));
	channel->content_left -= len;
	if (channel->content_left == 0)
		channel->content = CONTENT_NONE;
	return 0;
}

/* ---- closed channels ---- */

/* RabbitMQ's limit is known only from its refusals. */
static void
learn_max_body(struct amqp_session *amqp, const char *text)
{
	const char *limit =
	    strncmp(text, TOO_LARGE, strlen(TOO_LARGE)) == 0 ? strstr(text, TOO_LARGE_LIMIT) : NULL;

	if (limit == NULL)
		return;
	uint64_t bytes = strtoull(limit + strlen(TOO_LARGE_LIMIT), NULL, 10);
	if (bytes == 0 || bytes >= amqp->max_body)
		return;
	amqp->max_body = bytes;
	window_flush(&amqp->unanswered);
	driver_emit(&amqp->base, EV_MAX_BODY, bytes);
}

int
amqp_channel_closed(
    struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *arguments, struct out *out)
{
	uint32_t number = channel->number;
	uint32_t code = (uint32_t)amqp_take(arguments, 2);
	struct amqp_view text = amqp_take_short(arguments);
	uint32_t method = (uint32_t)amqp_take(arguments, 4);
	uint8_t frames[16 + AMQP_OPEN_SIZE];

	if (arguments->bad || code == 0)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "channel.close on channel %u: malformed", number);
	if (channel->open_due)
		return amqp_fatal(
		    amqp, FATAL_PROTOCOL, 504, "channel.close on channel %u, which is not open yet", number);
	channel->close_code = code;
	channel->close_method = method;
	utf8_clean(channel->close_text, sizeof(channel->close_text), text.bytes, text.len);
	channel->content = CONTENT_NONE;
	channel->asking = 0;
	learn_max_body(amqp, channel->close_text);
	uint8_t *at = amqp_end_method(frames, amqp_begin_method(frames, number, CHANNEL_CLOSE_OK));
	channel->checked = 0;
	if (channel->oldest == channel->next) {
		channel->state = CHANNEL_IS_CLOSED;
	} else {
		at = amqp_put_open(at, number, 1);
		channel->state = CHANNEL_IS_REOPENING;
		channel->open_due = 1;
	}
	return amqp_send(amqp, out, frames, (size_t)(at - frames));
}

/* Whether the reason holds for every message that waits on the channel, for certain. */
static int
all_are_refused(const struct amqp_channel *channel)
{
	if (channel->close_method == EXCHANGE_DECLARE)
		return 1;
	return channel->close_code == 403 && !channel->proven &&
	       strncmp(channel->close_text, TOPIC_REFUSED, strlen(TOPIC_REFUSED)) != 0;
}

/* Whether it may be the fault of one message: the exchange is there and may be written to. */
static int
one_is_guilty(const struct amqp_channel *channel)
{
	return channel->close_code != 404 &&
	       (channel->close_code != 403 ||
		   strncmp(channel->close_text, TOPIC_REFUSED, strlen(TOPIC_REFUSED)) == 0);
}

/* Whether nothing has been said of it. */
static int
is_waiting(const struct amqp_pending *pending)
{
	return !pending->confirmed && !pending->returned && pending->held == HELD_NOT;
}

int
amqp_channel_opened(struct amqp_session *amqp, struct amqp_channel *channel)
{
	uint32_t waiting = 0;

	if (!channel->open_due)
		return amqp_fatal(
		    amqp, FATAL_PROTOCOL, 503, "channel.open-ok on channel %u, which is open", channel->number);
	channel->open_due = 0;
	if (channel->state != CHANNEL_IS_REOPENING)
		return 0;
	for (uint64_t tag = channel->oldest; tag != channel->next; tag++)
		waiting += is_waiting(pending_at(channel, tag)) ? 1 : 0;
	int refused = all_are_refused(channel);
	if (refused)
		channel->careful = 0;
	else if (waiting > 1)
		channel->careful = one_is_guilty(channel) ? waiting : 0;
	else if (channel->careful > 0)
		channel->careful--;
	refused |= waiting == 1;
	for (uint64_t tag = channel->oldest; tag != channel->next; tag++) {
		struct amqp_pending *pending = pending_at(channel, tag);
		if (pending->held != HELD_NOT)
			nacked(amqp, pending);
		if (!is_waiting(pending))
			continue;
		if (refused) {
			rejected(amqp, pending->seq, channel->close_code, channel->close_text);
		} else {
			window_take(&amqp->unanswered, pending->seq);
			driver_emit(&amqp->base, EV_LOST, pending->seq);
		}
	}
	channel->state = CHANNEL_IS_OPEN;
	channel->proven = 0;
	channel->oldest = channel->next = channel->return_from = 1;
	return 0;
}
