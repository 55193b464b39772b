/* The frames an AMQP broker sends a publisher. */
#include "amqp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

/* RabbitMQ's channel crashes over some messages, and takes the connection with it. */
static int
is_over_a_message(const struct amqp_session *amqp, uint32_t code, uint32_t method)
{
	return !window_is_empty(&amqp->unanswered) && (method == BASIC_PUBLISH || code == AMQP_CODE_CRASH);
}

/* "the broker closed the connection: words (code): the broker's text". */
static int
input_connection_close(struct amqp_session *amqp, struct amqp_reader *arguments)
{
	uint32_t code = (uint32_t)amqp_take(arguments, 2);
	struct amqp_view text = amqp_take_short(arguments);
	uint32_t method = (uint32_t)amqp_take(arguments, 4);
	char said[170];

	if (arguments->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "connection.close: cut short");
	utf8_clean(said, sizeof(said), text.bytes, text.len);
	return amqp_fatal(amqp, is_over_a_message(amqp, code, method) ? FATAL_MESSAGE : amqp_reply_fatal(code),
	    code, "the broker closed the connection: %s (%u)", said[0] != '\0' ? said : amqp_reply_text(code),
	    code);
}

static int
input_blocked(struct amqp_session *amqp, struct amqp_reader *arguments)
{
	struct amqp_view text = amqp_take_short(arguments);
	char said[170];
	size_t len = utf8_clean(said, sizeof(said), text.bytes, text.len);

	if (arguments->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "connection.blocked: cut short");
	window_flush(&amqp->unanswered);
	amqp->base.events.emit(amqp->base.events.owner,
	    &(struct driver_event){ .type = EV_BLOCKED, .text = said, .text_len = len });
	return 0;
}

static int
unexpected(struct amqp_session *amqp, uint32_t channel, uint32_t method)
{
	return amqp_fatal(amqp, FATAL_PROTOCOL, 503,
	    "the broker sent method %u.%u on channel %u, which it may not send a publisher there", method >> 16,
	    method & 0xffff, channel);
}

static int
input_connection(struct amqp_session *amqp, uint32_t method, struct amqp_reader *arguments)
{
	switch (method) {
	case CONNECTION_BLOCKED:
		return input_blocked(amqp, arguments);
	case CONNECTION_UNBLOCKED:
		window_flush(&amqp->unanswered);
		driver_emit(&amqp->base, EV_UNBLOCKED, 0);
		return 0;
	case CONNECTION_CLOSE_OK:
		return amqp->leaving ? 0 : unexpected(amqp, 0, method);
	default:
		return unexpected(amqp, 0, method);
	}
}

static int
input_probe_channel(struct amqp_session *amqp, uint32_t method, struct amqp_reader *arguments)
{
	char said[150];

	if (method == CHANNEL_CLOSE) {
		uint32_t code = (uint32_t)amqp_take(arguments, 2);
		struct amqp_view text = amqp_take_short(arguments);
		utf8_clean(said, sizeof(said), text.bytes, text.len);
		return amqp_fatal(amqp, FATAL_PROTOCOL, code, "the broker closed channel %u: %s (%u)",
		    AMQP_PROBE_CHANNEL, said, code);
	}
	if (method != CONFIRM_SELECT_OK || amqp->probes == 0)
		return unexpected(amqp, AMQP_PROBE_CHANNEL, method);
	amqp->probes--;
	window_flush(&amqp->unanswered);
	driver_emit(&amqp->base, EV_ALIVE, 0);
	return 0;
}

static int
input_method(struct amqp_session *amqp, uint32_t number, const uint8_t *bytes, size_t len, struct out *out)
{
	struct amqp_reader arguments = { bytes, bytes + len, 0 };
	uint32_t method = (uint32_t)amqp_take(&arguments, 4);

	if (arguments.bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "a method frame of %zu bytes", len);
	if (number == 0 && method == CONNECTION_CLOSE)
		return input_connection_close(amqp, &arguments);
	if (amqp->state != AMQP_UP)
		return amqp_handshake(amqp, number, method, &arguments, out);
	if (number == 0)
		return input_connection(amqp, method, &arguments);
	if (number == AMQP_PROBE_CHANNEL)
		return input_probe_channel(amqp, method, &arguments);
	uint32_t index = number - AMQP_FIRST_CHANNEL;
	if (index >= amqp->channel_count)
		return unexpected(amqp, number, method);
	struct amqp_channel *channel = amqp->channels[index];
	if (method == CHANNEL_OPEN_OK)
		return amqp_channel_opened(amqp, channel);
	/* Between channel.close and open-ok it is the broker's turn to be silent. */
	if (channel->state != CHANNEL_IS_OPEN || channel->open_due || channel->content != CONTENT_NONE)
		return unexpected(amqp, number, method);
	switch (method) {
	case BASIC_ACK:
	case BASIC_NACK:
		return amqp_confirm(amqp, channel, method, &arguments, out);
	case CONFIRM_SELECT_OK:
		return channel->asking ? amqp_asked(amqp, channel, out) : unexpected(amqp, number, method);
	case BASIC_RETURN:
		return amqp_return(amqp, channel, &arguments);
	case CHANNEL_CLOSE:
		return amqp_channel_closed(amqp, channel, &arguments, out);
	default:
		return unexpected(amqp, number, method);
	}
}

/* A header or a piece of body: only of a returned message. */
static int
input_content(struct amqp_session *amqp, uint32_t type, uint32_t number, const uint8_t *bytes, size_t len)
{
	uint32_t index = number - AMQP_FIRST_CHANNEL;
	struct amqp_reader header = { bytes, bytes + len, 0 };
	int due = type == FRAME_HEADER ? CONTENT_HEADER : CONTENT_BODY;

	if (amqp->state != AMQP_UP || index >= amqp->channel_count || amqp->channels[index]->content != due)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 505,
		    "the broker sent a content %s on channel %u, where none is due",
		    type == FRAME_HEADER ? "header" : "body", number);
	if (type == FRAME_HEADER)
		return amqp_return_header(amqp, amqp->channels[index], &header);
	return amqp_return_body(amqp, amqp->channels[index], len);
}

/* The broker's is answered with one of ours: it may never see us silent when it counts on it. */
static int
input_heartbeat(struct amqp_session *amqp, uint32_t number, size_t len, struct out *out)
{
	static const uint8_t frame[AMQP_FRAME_EXTRA] = { FRAME_HEARTBEAT, [AMQP_FRAME_HEAD] = AMQP_FRAME_END };

	if (number != 0 || len != 0)
		return amqp_fatal(
		    amqp, FATAL_PROTOCOL, 501, "a heartbeat of %zu bytes on channel %u", len, number);
	return amqp_send(amqp, out, frame, sizeof(frame));
}

/* A broker of another version answers the header with its own. Returns bytes, 0 or a negative TG_E. */
static ssize_t
input_version(struct amqp_session *amqp, const uint8_t *bytes, size_t len)
{
	if (len < 8)
		return 0;
	if (memcmp(bytes, "AMQP", 4) == 0)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 0, "the broker speaks AMQP %u.%u.%u, not 0.9.1",
		    bytes[5], bytes[6], bytes[7]);
	return amqp_fatal(
	    amqp, FATAL_PROTOCOL, 501, "the broker does not speak AMQP: it begins with 0x%02x", bytes[0]);
}

/*
 * One frame. Returns its size, 0 while it is not whole, or a negative TG_E. Its head is judged when
 * it is whole, so that cutting the input elsewhere changes nothing.
 */
static ssize_t
input_frame(struct amqp_session *amqp, const uint8_t *bytes, size_t len, struct out *out)
{
	int rc;

	if (amqp->state == AMQP_STARTING && bytes[0] != FRAME_METHOD)
		return input_version(amqp, bytes, len);
	if (len < AMQP_FRAME_HEAD)
		return 0;
	struct amqp_reader head = { bytes, bytes + AMQP_FRAME_HEAD, 0 };
	uint32_t type = (uint32_t)amqp_take(&head, 1), number = (uint32_t)amqp_take(&head, 2);
	uint32_t size = (uint32_t)amqp_take(&head, 4);
	if (type != FRAME_METHOD && type != FRAME_HEADER && type != FRAME_BODY && type != FRAME_HEARTBEAT)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 501, "a frame of type %u on channel %u", type, number);
	if (size > amqp->frame_max - AMQP_FRAME_EXTRA)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 501,
		    "a frame of %u bytes on channel %u; at most %u are allowed", size, number,
		    amqp->frame_max - AMQP_FRAME_EXTRA);
	if (len < AMQP_FRAME_EXTRA + (size_t)size)
		return 0;
	const uint8_t *payload = bytes + AMQP_FRAME_HEAD;
	if (payload[size] != AMQP_FRAME_END)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 501,
		    "a frame on channel %u ends with 0x%02x, not 0x%02x", number, payload[size],
		    AMQP_FRAME_END);
	if (type == FRAME_METHOD)
		rc = input_method(amqp, number, payload, size, out);
	else if (type == FRAME_HEARTBEAT)
		rc = input_heartbeat(amqp, number, size, out);
	else
		rc = input_content(amqp, type, number, payload, size);
	return rc < 0 ? rc : (ssize_t)(AMQP_FRAME_EXTRA + size);
}

ssize_t
amqp_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	struct amqp_session *amqp = amqp_session(session);
	size_t at = 0;

	if (amqp->state == AMQP_CLOSED)
		return -TG_EPROTOCOL;
	while (at < len) {
		ssize_t n = input_frame(amqp, bytes + at, len - at, out);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	window_flush(&amqp->unanswered);
	return (ssize_t)at;
}
