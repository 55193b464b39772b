/*
 * AMQP 0-9-1, the server's side of publishing with confirms. Every exchange and queue exists; nothing
 * can be consumed. A message is rejected by closing its channel if the code is one that RabbitMQ
 * closes channels with (403, 404, 405, 406), by basic.nack otherwise.
 *
 * A message's frames must follow each other, as every client sends them.
 */
#include "build_config.h"

#include "sink.h"
#include "sink_amqp_wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ACK_SIZE 21u
#define KEY_HEADER "tidegate-key" /* the header in which tidegated sends a message's key */

/* answer.id: channel, how often it was opened, delivery tag. */
#define ID(channel, opened, tag) ((uint64_t)(channel) << 48 | (uint64_t)((opened)&0xff) << 40 | (tag))

enum phase { WANT_HEADER, WANT_START_OK, WANT_TUNE_OK, WANT_OPEN, RUNNING };
enum channel_state { SHUT, OPENED, CLOSING };

struct channel {
	uint64_t tag;   /* of the last message since confirm.select */
	uint64_t acked; /* everything up to this tag is acknowledged */
	uint8_t state;
	uint8_t opened; /* how often */
	bool confirms;
};

struct amqp {
	enum phase phase;
	struct buf body;          /* a body of several frames */
	struct channel *channels; /* [CHANNELS] */
};

/* --- sending ----------------------------------------------------------------------------- */

static uint8_t *
begin(struct conn *conn, uint32_t channel, uint32_t method)
{
	uint8_t *to = put_int(buf_room(&conn->out, 1024), METHOD, 1);

	return put_int(put_int(to, channel, 2), (uint64_t)method, 8); /* size is filled in by end() */
}

static void
end(struct conn *conn, uint8_t *to)
{
	uint8_t *from = conn->out.data + conn->out.len;

	put_int(from + 3, (uint64_t)(to - from) - 7, 4);
	*to++ = FRAME_END;
	conn->out.len += (size_t)(to - from);
	server_dirty(conn->sink, conn);
}

static void
send_bare(struct conn *conn, uint32_t channel, uint32_t method)
{
	end(conn, begin(conn, channel, method));
}

static const char *
reason(const struct conn *conn, const char *otherwise)
{
	const char *text = conn->sink->behaviour.reason;

	return text && strlen(text) <= 255 ? text : otherwise;
}

static void
send_close(struct conn *conn, uint32_t channel, uint32_t code, const char *text)
{
	uint8_t *to = put_int(begin(conn, channel, channel ? CHANNEL_CLOSE : CLOSE), code, 2);

	to = put_text(to, text, 1);
	end(conn, put_int(to, channel ? PUBLISH : 0, 4));
}

/* The client broke the rules: says so, as a server does, and ends. Returns -1. */
static int
bad(struct conn *conn, uint32_t code, const char *what)
{
	const struct amqp *amqp = conn->state;

	if (amqp->phase > WANT_START_OK && conn_may_answer(conn)) {
		conn_settle(conn);
		send_close(conn, 0, code, what);
	}
	return conn_fail(conn, "%s (%u)", what, code);
}

static int
refuse(struct conn *conn, uint32_t code, const char *why)
{
	if (conn_may_answer(conn))
		send_close(conn, 0, code, reason(conn, why));
	conn->sink->connections_refused++;
	sink_log(conn->sink, conn, "info", "session refused: %s (%u)", why, code);
	conn_end(conn, CONN_FLUSH);
	return -1;
}

/* Makes the acknowledgement framed just before, of the channel's last tag, one of several. */
static bool
extend_ack(struct conn *conn, uint32_t channel, uint64_t acked)
{
	uint8_t want[ACK_SIZE], *last = conn->out.data + conn->out.len - ACK_SIZE;

	if (acked == 0 || conn->out.len - conn->out.off < ACK_SIZE)
		return false;
	put_int(put_int(put_int(put_int(want, METHOD, 1), channel, 2), 13, 4), ACK, 4);
	put_int(want + 11, acked, 8);
	if (memcmp(last, want, 19) != 0 || last[20] != FRAME_END)
		return false;
	put_int(last + 11, acked + 1, 8);
	last[19] = 1;
	return true;
}

static void
amqp_answer(struct conn *conn, const struct answer *answer)
{
	struct amqp *amqp = conn->state;
	uint32_t number = (uint32_t)(answer->id >> 48);
	uint64_t tag = answer->id & ((UINT64_C(1) << 40) - 1);
	struct channel *channel = &amqp->channels[number];

	if (channel->state != OPENED || channel->opened != (uint8_t)(answer->id >> 40))
		return; /* the channel was closed since */
	if (answer->code >= 403 && answer->code <= 406) {
		channel->state = CLOSING;
		send_close(conn, number, answer->code, reason(conn, "refused as told"));
		return;
	}
	if (answer->code == 0 && tag == channel->acked + 1) {
		channel->acked = tag;
		if (extend_ack(conn, number, tag - 1))
			return;
	}
	uint8_t *to = put_int(begin(conn, number, answer->code ? NACK : ACK), tag, 8);
	end(conn, put_int(to, 0, 1));
}

static void
amqp_farewell(struct conn *conn, uint32_t code)
{
	const struct amqp *amqp = conn->state;

	if (amqp->phase > WANT_START_OK)
		send_close(conn, 0, code ? code : 320, reason(conn, "CONNECTION_FORCED - as told"));
}

/* --- connecting -------------------------------------------------------------------------------- */

static void
send_start(struct conn *conn)
{
	uint8_t *to = begin(conn, 0, START), *table, *inner;
	static const char *const able[] = { "publisher_confirms", "basic.nack",
		"authentication_failure_close" };

	table = to = put_int(to, 9, 2);
	to = put_text(to + 4, "capabilities", 1);
	*to++ = 'F';
	inner = to;
	to += 4;
	for (size_t i = 0; i < sizeof(able) / sizeof(able[0]); i++)
		to = put_int(put_text(to, able[i], 1), 't' << 8 | 1, 2);
	put_int(inner, (uint64_t)(to - inner) - 4, 4);
	to = put_text(to, "product", 1);
	*to++ = 'S';
	to = put_text(to, "tidegate-sink", 4);
	put_int(table, (uint64_t)(to - table) - 4, 4);
	end(conn, put_text(put_text(to, "PLAIN EXTERNAL", 4), "en_US", 4));
}

/* The value of the client property "connection_name", for the log. */
static void
note_client(struct conn *conn, struct record_view properties)
{
	static const char name[] = "\x0f"
				   "connection_name"
				   "S";
	const uint8_t *at =
	    properties.len > 0 ? memmem(properties.bytes, properties.len, name, sizeof(name) - 1) : NULL;

	if (!at)
		return;
	struct cursor rest = { at + sizeof(name) - 1, properties.bytes + properties.len, false };
	struct record_view value = take_long(&rest);
	if (!rest.bad)
		conn_set_client(conn, value.bytes, value.len);
}

static bool
may_log_in(const struct behaviour *behaviour, struct record_view mechanism, struct record_view response)
{
	char want[1024];

	if (!behaviour->auth)
		return true;
	int len = snprintf(want, sizeof(want), "%c%s%c%s", 0, behaviour->user, 0, behaviour->password);
	return mechanism.len == 5 && memcmp(mechanism.bytes, "PLAIN", 5) == 0 && (size_t)len == response.len &&
	       memcmp(want, response.bytes, response.len) == 0;
}

static int
on_start_ok(struct conn *conn, struct cursor *arguments)
{
	struct amqp *amqp = conn->state;
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct record_view properties = take_long(arguments), mechanism = take_short(arguments);
	struct record_view response = take_long(arguments);

	take_short(arguments);
	if (arguments->bad)
		return bad(conn, 502, "connection.start-ok: malformed");
	note_client(conn, properties);
	if (behaviour->connack)
		return refuse(conn, (uint32_t)behaviour->connack, "as told");
	if (!may_log_in(behaviour, mechanism, response))
		return refuse(conn, 403, "ACCESS_REFUSED - user or password wrong");
	amqp->phase = WANT_TUNE_OK;
	if (conn_may_answer(conn)) {
		uint8_t *to = put_int(put_int(begin(conn, 0, TUNE), CHANNELS - 1, 2), FRAME_MAX, 4);
		end(conn, put_int(to, behaviour->server_keepalive, 2));
	}
	return 0;
}

static int
on_tune_ok(struct conn *conn, struct cursor *arguments)
{
	struct amqp *amqp = conn->state;
	uint64_t channels = take_int(arguments, 2), frame_max = take_int(arguments, 4);
	uint64_t heartbeat = take_int(arguments, 2);

	if (arguments->bad || channels == 0 || channels >= CHANNELS || frame_max == 0 || frame_max > FRAME_MAX)
		return bad(conn, 530, "connection.tune-ok: limits beyond those offered");
	conn_set_keepalive(conn, heartbeat * 2000000000u);
	amqp->phase = WANT_OPEN;
	return 0;
}

static int
on_open(struct conn *conn)
{
	struct amqp *amqp = conn->state;

	amqp->phase = RUNNING;
	if (conn_may_answer(conn))
		end(conn, put_int(begin(conn, 0, OPEN_OK), 0, 1));
	return 0;
}

/* --- channels ---------------------------------------------------------------------------------- */

static int
on_select(struct conn *conn, uint32_t number, struct channel *channel, struct cursor *arguments)
{
	bool nowait = take_int(arguments, 1) & 1;
	bool ping = channel->confirms;

	channel->confirms = true;
	if (ping) {
		conn->counters.pings++;
		conn->sink->counters.pings++;
	}
	if (nowait || !conn_may_answer(conn) || (ping && conn->sink->behaviour.no_pong))
		return 0;
	conn_settle(conn);
	send_bare(conn, number, SELECT_OK);
	return 0;
}

static int
on_channel(struct conn *conn, uint32_t number, uint32_t method, struct cursor *arguments)
{
	struct amqp *amqp = conn->state;
	struct channel *channel = &amqp->channels[number];

	if (method == CHANNEL_OPEN) {
		if (channel->state != SHUT)
			return bad(conn, 504, "channel.open on a channel that is open");
		*channel = (struct channel){ .state = OPENED, .opened = (uint8_t)(channel->opened + 1) };
		if (conn_may_answer(conn))
			end(conn, put_int(begin(conn, number, CHANNEL_OPEN_OK), 0, 4));
		return 0;
	}
	if (method == CHANNEL_CLOSE_OK && channel->state == CLOSING) {
		channel->state = SHUT;
		return 0;
	}
	if (channel->state == CLOSING)
		return 0; /* it is not listened to until close-ok */
	if (channel->state == SHUT)
		return bad(conn, 504, "a method on a channel that is not open");
	switch (method) {
	case CHANNEL_CLOSE:
		channel->state = SHUT;
		if (conn_may_answer(conn))
			send_bare(conn, number, CHANNEL_CLOSE_OK);
		return 0;
	case SELECT:
		return on_select(conn, number, channel, arguments);
	case DECLARE:
		take_int(arguments, 2);
		take_short(arguments);
		take_short(arguments);
		if (!(take_int(arguments, 1) & 16) && conn_may_answer(conn))
			send_bare(conn, number, DECLARE_OK);
		return arguments->bad ? bad(conn, 502, "exchange.declare: malformed") : 0;
	default:
		return bad(conn, 540, "a method this server does not have");
	}
}

static int
on_method(struct conn *conn, uint32_t number, uint32_t method, struct cursor *arguments)
{
	const struct amqp *amqp = conn->state;

	if (number > 0)
		return amqp->phase == RUNNING ? on_channel(conn, number, method, arguments)
					      : bad(conn, 503, "a channel before connection.open");
	if (amqp->phase == WANT_START_OK && method == START_OK)
		return on_start_ok(conn, arguments);
	if (amqp->phase == WANT_TUNE_OK && method == TUNE_OK)
		return on_tune_ok(conn, arguments);
	if (amqp->phase == WANT_OPEN && method == OPEN)
		return on_open(conn);
	if (method == CLOSE && amqp->phase > WANT_START_OK) {
		conn_settle(conn);
		if (conn_may_answer(conn))
			send_bare(conn, 0, CLOSE_OK);
		conn_end(conn, CONN_FLUSH);
		return 0;
	}
	if (method == CLOSE_OK) {
		conn_end(conn, CONN_FLUSH);
		return 0;
	}
	return bad(conn, 503, "a method that may not come now");
}

/* --- publishing -------------------------------------------------------------------------------- */

/* Headers of text; others end the reading. */
static void
take_headers(struct conn *conn, struct record_view table, struct record_message *message)
{
	struct cursor fields = { table.bytes, table.bytes + table.len, false };

	while (fields.at < fields.end) {
		struct record_pair pair = { .name = take_short(&fields) };
		if (take_int(&fields, 1) != 'S')
			break;
		pair.value = take_long(&fields);
		if (fields.bad)
			break;
		if (pair.name.len == sizeof(KEY_HEADER) - 1 &&
		    memcmp(pair.name.bytes, KEY_HEADER, pair.name.len) == 0)
			message->key = pair.value;
		else
			*sink_pair(conn->sink, message->header_count++) = pair;
	}
	message->headers = conn->sink->pairs;
}

/*
 * The rest of a message whose method is taken: header and body. Returns bytes, 0 while it is not
 * whole, -1 after bad().
 */
static ssize_t
take_content(
    struct conn *conn, uint32_t channel, const uint8_t *bytes, size_t len, struct record_message *message)
{
	struct amqp *amqp = conn->state;
	struct frame frame;
	ssize_t n = take_frame(&frame, bytes, len);

	if (n <= 0)
		return n == 0 ? 0 : bad(conn, 501, "a frame that is none");
	if (frame.type != HEADER || frame.channel != channel)
		return bad(conn, 505, "basic.publish: no header follows");
	take_int(&frame.payload, 4);
	uint64_t size = take_int(&frame.payload, 8), flags = take_int(&frame.payload, 2);
	if (size > conn->sink->behaviour.max_packet)
		return bad(conn, 501, "a body larger than the maximum");
	if (flags & 0x8000)
		take_short(&frame.payload);
	if (flags & 0x4000)
		take_short(&frame.payload);
	struct record_view table = flags & 0x2000 ? take_long(&frame.payload) : (struct record_view){ NULL, 0 };
	if (frame.payload.bad)
		return bad(conn, 502, "basic.publish: its properties are malformed");
	size_t used = (size_t)n;
	amqp->body.len = amqp->body.off = 0;
	for (uint64_t got = 0; got < size;) {
		n = take_frame(&frame, bytes + used, len - used);
		if (n <= 0)
			return n == 0 ? 0 : bad(conn, 501, "a frame that is none");
		size_t piece = (size_t)(frame.payload.end - frame.payload.at);
		if (frame.type != BODY || frame.channel != channel || piece > size - got)
			return bad(conn, 505, "basic.publish: no body of its size follows");
		message->body = (struct record_view){ frame.payload.at, piece };
		if (piece < size) {
			memcpy(buf_room(&amqp->body, piece), frame.payload.at, piece);
			amqp->body.len += piece;
			message->body = (struct record_view){ amqp->body.data, amqp->body.len };
		}
		got += piece;
		used += (size_t)n;
	}
	take_headers(conn, table, message);
	return (ssize_t)used;
}

/* exchange/key, as the daemon's topics are; the default exchange is not spelled out. */
static struct record_view
topic_of(char topic[512], struct record_view exchange, struct record_view key)
{
	size_t len = 0;

	if (exchange.len > 0) {
		memcpy(topic, exchange.bytes, exchange.len);
		len = exchange.len;
		topic[len++] = '/';
	}
	if (key.len > 0)
		memcpy(topic + len, key.bytes, key.len);
	return (struct record_view){ (const uint8_t *)topic, len + key.len };
}

/* Method, header and body together. As take_content. */
static ssize_t
on_publish(
    struct conn *conn, const struct frame *method, struct cursor arguments, const uint8_t *bytes, size_t len)
{
	struct amqp *amqp = conn->state;
	struct channel *channel = &amqp->channels[method->channel];
	struct record_message message = { .qos = channel->confirms };
	struct answer answer = { .kind = channel->confirms };
	char topic[512];

	take_int(&arguments, 2);
	struct record_view exchange = take_short(&arguments), key = take_short(&arguments);
	if (arguments.bad)
		return bad(conn, 502, "basic.publish: malformed");
	ssize_t n = take_content(conn, method->channel, bytes + method->size, len - method->size, &message);
	if (n <= 0)
		return n;
	if (channel->state == SHUT)
		return bad(conn, 504, "basic.publish on a channel that is not open");
	if (channel->state == OPENED) {
		message.topic = topic_of(topic, exchange, key);
		answer.id = ID(method->channel, channel->opened, ++channel->tag);
		conn_message(conn, &message, &answer);
	}
	return (ssize_t)method->size + n;
}

static ssize_t
on_frame(struct conn *conn, const uint8_t *bytes, size_t len)
{
	const struct amqp *amqp = conn->state;
	struct frame frame;
	ssize_t n = take_frame(&frame, bytes, len);

	if (n < 0)
		return bad(conn, 501, "a frame that is none");
	if (n == 0 || frame.type == HEARTBEAT)
		return n;
	if (frame.type != METHOD)
		return bad(conn, 505, "content without basic.publish");
	uint32_t method = (uint32_t)take_int(&frame.payload, 4);
	if (method == PUBLISH && frame.channel > 0 && amqp->phase == RUNNING)
		return on_publish(conn, &frame, frame.payload, bytes, len);
	return on_method(conn, frame.channel, method, &frame.payload) < 0 ? -1 : n;
}

static ssize_t
amqp_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	struct amqp *amqp = conn->state;
	size_t used = 0;

	if (amqp->phase == WANT_HEADER) {
		if (len < 8)
			return 0;
		if (memcmp(bytes, "AMQP\0\0\x09\x01", 8) != 0)
			return conn_fail(conn, "not AMQP 0-9-1");
		used = 8;
		amqp->phase = WANT_START_OK;
		if (conn_may_answer(conn))
			send_start(conn);
	}
	while (!conn->stop && used < len) {
		ssize_t n = on_frame(conn, bytes + used, len - used);
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		used += (size_t)n;
	}
	return (ssize_t)used;
}

static void
amqp_open(struct conn *conn)
{
	struct amqp *amqp = conn->state;

	amqp->channels = calloc(CHANNELS, sizeof(*amqp->channels));
	if (!amqp->channels) {
		fprintf(stderr, "tidegate-sink: no memory for channels\n");
		exit(1);
	}
}

static void
amqp_close(struct conn *conn)
{
	struct amqp *amqp = conn->state;

	buf_fini(&amqp->body);
	free(amqp->channels);
}

const struct protocol protocol_amqp = {
	.name = "amqp",
	.state_size = sizeof(struct amqp),
	.reject_code = 403,
	.reject_least = 1,
	.open = amqp_open,
	.close = amqp_close,
	.input = amqp_input,
	.answer = amqp_answer,
	.farewell = amqp_farewell,
};
