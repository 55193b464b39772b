/*
 * MQTT 3.1.1 and 5, the server's side of publishing. Subscriptions are refused; sessions are not kept
 * over connections. QoS 2 works inside a connection, a repeated PUBLISH of an unreleased id included.
 */
#include "build_config.h"

#include "sink.h"
#include "sink_mqtt_wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KEY_PROPERTY "tidegate-key" /* the user property in which tidegated sends a message's key */
#define BEFORE_CONNECT (256u << 10) /* packets of strangers are no larger */

struct alias {
	uint8_t *topic;
	uint16_t len;
};

struct mqtt {
	uint8_t version;      /* 0: no CONNECT yet; 4 or 5 */
	uint32_t outstanding; /* QoS > 0 messages the client waits for */
	uint32_t receive_maximum;
	uint32_t aliases_max;
	uint32_t maximum_qos;
	struct alias *aliases; /* [aliases_max + 1], once one is used */
	uint8_t *unreleased;   /* QoS 2: a bit for each packet id that waits for PUBREL */
};

/* --- properties of version 5 ------------------------------------------------------------------- */

struct properties {
	uint32_t topic_alias; /* 0: none */
	size_t pairs;         /* how many of sink->pairs are filled */
	struct record_view key;
};

/* Reads a section of properties. Returns 0, or the reason code of what is wrong. */
static uint32_t
take_properties(struct conn *conn, struct cursor *cursor, uint64_t allowed, struct properties *properties)
{
	struct cursor section = take_section(cursor);
	struct record_view name, value;
	uint64_t seen = 0;
	uint32_t number = 0;

	while (!section.bad && section.at < section.end) {
		uint32_t id = (uint32_t)take_int(&section, 1);
		enum property_type type = property_type(id);
		if (type == NO_PROPERTY || !(allowed & BIT(id)))
			return RC_MALFORMED;
		if (id != P_USER && (seen & BIT(id)))
			return RC_PROTOCOL_ERROR;
		seen |= BIT(id);
		switch (type) {
		case BYTE:
		case TWO:
		case FOUR:
			number = (uint32_t)take_int(&section, type == BYTE ? 1 : type == TWO ? 2 : 4);
			if (type == BYTE && number > 1)
				return RC_PROTOCOL_ERROR;
			break;
		case VARINT: {
			int n = varint(section.at, (size_t)(section.end - section.at), &number);
			if (n <= 0)
				return RC_MALFORMED;
			section.at += n;
			break;
		}
		case STRING:
			take_string(&section);
			break;
		case BINARY:
			take_binary(&section);
			break;
		case PAIR:
			name = take_string(&section);
			value = take_string(&section);
			if (section.bad)
				break;
			if (name.len == sizeof(KEY_PROPERTY) - 1 &&
			    memcmp(name.bytes, KEY_PROPERTY, name.len) == 0 && !properties->key.bytes)
				properties->key = value;
			else
				*sink_pair(conn->sink, properties->pairs++) =
				    (struct record_pair){ name, value };
			break;
		case NO_PROPERTY:
			break;
		}
		if (id == P_TOPIC_ALIAS) {
			if (number == 0 && !section.bad)
				return RC_ALIAS_INVALID;
			properties->topic_alias = number;
		}
	}
	return section.bad || cursor->bad ? RC_MALFORMED : 0;
}

/* --- sending ----------------------------------------------------------------------- */

static void
put_packet(struct conn *conn, uint8_t type, const uint8_t *body, size_t len)
{
	uint8_t *start = buf_room(&conn->out, len + 5), *to = start;

	*to++ = (uint8_t)(type << 4 | (type == PUBREL ? 2 : 0));
	to = put_varint(to, (uint32_t)len);
	if (len > 0)
		memcpy(to, body, len);
	conn->out.len += (size_t)(to + len - start);
	server_dirty(conn->sink, conn);
}

/* A packet that answers no message: after the answers that are due. */
static void
put_in_turn(struct conn *conn, uint8_t type, const uint8_t *body, size_t len)
{
	conn_settle(conn);
	put_packet(conn, type, body, len);
}

/* The reason string as a property section of its own, or the empty section. */
static uint8_t *
put_reason(const struct conn *conn, uint8_t *to)
{
	const char *reason = conn->sink->behaviour.reason;
	size_t len = reason ? strlen(reason) : 0;

	if (len == 0) {
		*to++ = 0;
		return to;
	}
	to = put_varint(to, (uint32_t)len + 3);
	*to++ = 0x1f;
	return put_string(to, reason, len);
}

static void
mqtt_farewell(struct conn *conn, uint32_t code)
{
	const struct mqtt *mqtt = conn->state;
	uint8_t body[5000], *to = body; /* a reason has at most 4096 bytes */

	if (mqtt->version != 5 || !conn_may_answer(conn))
		return;
	*to++ = (uint8_t)code;
	to = put_reason(conn, to);
	put_in_turn(conn, DISCONNECT, body, (size_t)(to - body));
}

/* Ends a connection for what the client did, with a DISCONNECT where the protocol has one. */
static int
bad(struct conn *conn, uint32_t code, const char *what)
{
	struct mqtt *mqtt = conn->state;

	if (mqtt->version == 5 && conn_may_answer(conn)) {
		const uint8_t body[1] = { (uint8_t)code };
		put_in_turn(conn, DISCONNECT, body, sizeof(body));
	}
	return conn_fail(conn, "%s (0x%02x)", what, code);
}

static void
mqtt_answer(struct conn *conn, const struct answer *answer)
{
	struct mqtt *mqtt = conn->state;
	uint8_t *to = buf_room(&conn->out, 5), body[5000], *end = body;
	bool more = mqtt->version == 5 && answer->code != 0;

	if (answer->kind != PUBREC && mqtt->outstanding > 0)
		mqtt->outstanding--;
	if (!more) {
		to[0] = (uint8_t)(answer->kind << 4);
		to[1] = 2;
		to[2] = (uint8_t)(answer->id >> 8);
		to[3] = (uint8_t)answer->id;
		conn->out.len += 4;
		return;
	}
	if (answer->kind == PUBREC && answer->code >= RC_UNSPECIFIED && mqtt->outstanding > 0)
		mqtt->outstanding--; /* a refused QoS 2 message ends here */
	end = put_int(end, (uint32_t)answer->id, 2);
	*end++ = (uint8_t)answer->code;
	if (conn->sink->behaviour.reason)
		end = put_reason(conn, end);
	put_packet(conn, (uint8_t)answer->kind, body, (size_t)(end - body));
}

/* --- connecting -------------------------------------------------------------------------------- */

static uint8_t *
connack_properties(struct conn *conn, uint8_t *to, bool assigned)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	const struct mqtt *mqtt = conn->state;
	char name[32];

	if (behaviour->receive_maximum) {
		*to++ = 0x21;
		to = put_int(to, (uint32_t)behaviour->receive_maximum, 2);
	}
	if (behaviour->maximum_qos < 2) {
		*to++ = 0x24;
		*to++ = (uint8_t)behaviour->maximum_qos;
	}
	*to++ = 0x27;
	to = put_int(to, (uint32_t)behaviour->max_packet, 4);
	if (mqtt->aliases_max) {
		*to++ = 0x22;
		to = put_int(to, mqtt->aliases_max, 2);
	}
	if (behaviour->server_keepalive) {
		*to++ = 0x13;
		to = put_int(to, (uint32_t)behaviour->server_keepalive, 2);
	}
	if (assigned) {
		*to++ = 0x12;
		int len = snprintf(name, sizeof(name), "sink-%" PRIu64, conn->number);
		to = put_string(to, name, (size_t)len);
		conn_set_client(conn, (const uint8_t *)name, (size_t)len);
	}
	return to;
}

static void
connack(struct conn *conn, uint32_t code, bool assigned)
{
	const struct mqtt *mqtt = conn->state;
	uint8_t properties[128], body[5200], *end = properties, *to = body;

	if (!conn_may_answer(conn))
		return;
	*to++ = 0; /* no session is ever kept */
	*to++ = (uint8_t)code;
	if (mqtt->version == 5 && code != 0) {
		to = put_reason(conn, to);
	} else if (mqtt->version == 5) {
		end = connack_properties(conn, properties, assigned);
		to = put_varint(to, (uint32_t)(end - properties));
		memcpy(to, properties, (size_t)(end - properties));
		to += end - properties;
	}
	put_packet(conn, CONNACK, body, (size_t)(to - body));
}

static int
refuse(struct conn *conn, uint32_t code, const char *why)
{
	connack(conn, code, false);
	conn->sink->connections_refused++;
	sink_log(conn->sink, conn, "info", "session refused: %s (0x%02x)", why, code);
	conn_end(conn, CONN_FLUSH);
	return -1;
}

static bool
same(struct record_view view, const char *text)
{
	return view.len == strlen(text) && memcmp(view.bytes, text, view.len) == 0;
}

/* Takes the levels in force now; later changes are for later sessions. */
static void
session_limits(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct mqtt *mqtt = conn->state;

	mqtt->receive_maximum = behaviour->receive_maximum ? (uint32_t)behaviour->receive_maximum : 65535;
	mqtt->aliases_max = (uint32_t)behaviour->topic_aliases;
	mqtt->maximum_qos = mqtt->version == 5 ? (uint32_t)behaviour->maximum_qos : 2;
	conn->reject_closes = mqtt->version == 4;
}

/* Answers an MQTT 5 CONNECT as a broker that speaks 3.1.1 only. */
static int
speak_311_only(struct conn *conn)
{
	struct mqtt *mqtt = conn->state;

	switch (conn->sink->behaviour.mqtt5) {
	case MQTT5_REFUSED:
		mqtt->version = 5;
		return refuse(conn, RC_VERSION, "no MQTT 5, as told");
	case MQTT5_REFUSED_AS_311:
		mqtt->version = 4;
		return refuse(conn, 1, "no MQTT 5, as told");
	case MQTT5_CLOSED:
		conn->sink->connections_refused++;
		conn_end(conn, CONN_FLUSH);
		return 0;
	default:
		mqtt->version = 5; /* its later packets need a session */
		return 0;
	}
}

static int
on_connect(struct conn *conn, struct cursor *packet)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	struct mqtt *mqtt = conn->state;
	struct record_view user = { NULL, 0 }, password = { NULL, 0 };
	struct properties ignored = { 0 };

	struct record_view name = take_binary(packet);
	uint32_t version = (uint32_t)take_int(packet, 1), flags = (uint32_t)take_int(packet, 1);
	uint32_t keepalive = (uint32_t)take_int(packet, 2);
	if (packet->bad || !same(name, "MQTT"))
		return bad(conn, RC_MALFORMED, "CONNECT: not MQTT");
	if (version == 5 && behaviour->mqtt5 != MQTT5_TAKEN)
		return speak_311_only(conn);
	if (version != 4 && version != 5) {
		mqtt->version = version > 5 ? 5 : 4;
		return refuse(conn, version > 5 ? RC_VERSION : 1, "version not 3.1.1 or 5");
	}
	mqtt->version = (uint8_t)version;
	if (flags & 1)
		return bad(conn, RC_MALFORMED, "CONNECT: reserved flag set");
	/* Will QoS 3, will flags without a will, and in 3.1.1 a password without a user. */
	if ((flags & 0x18) == 0x18 || (!(flags & 4) && (flags & 0x38)) ||
	    (version == 4 && (flags & 0xc0) == 0x40))
		return bad(conn, RC_MALFORMED, "CONNECT: flags make no sense");
	if (version == 5 && take_properties(conn, packet, IN_CONNECT, &ignored))
		return bad(conn, RC_MALFORMED, "CONNECT: bad properties");
	struct record_view client = take_string(packet);
	if (flags & 4) {
		if (version == 5 && take_properties(conn, packet, IN_WILL, &ignored))
			return bad(conn, RC_MALFORMED, "CONNECT: bad properties of the will");
		take_string(packet);
		take_binary(packet);
	}
	if (flags & 0x80)
		user = take_string(packet);
	if (flags & 0x40)
		password = take_binary(packet);
	if (packet->bad || packet->at != packet->end)
		return bad(conn, RC_MALFORMED, "CONNECT: fields do not fill the packet");
	conn_set_client(conn, client.bytes, client.len);
	session_limits(conn);
	if (behaviour->connack)
		return refuse(conn, (uint32_t)behaviour->connack, "as told");
	if (version == 4 && client.len == 0 && !(flags & 2))
		return refuse(conn, 2, "no client id and no clean session");
	if (behaviour->auth &&
	    (!(flags & 0x80) || !same(user, behaviour->user) || !same(password, behaviour->password)))
		return refuse(conn, version == 5 ? RC_PASSWORD : 4, "user or password wrong");
	if (version == 5 && behaviour->server_keepalive)
		keepalive = (uint32_t)behaviour->server_keepalive;
	conn_set_keepalive(conn, (uint64_t)keepalive * 1500000000u);
	connack(conn, 0, version == 5 && client.len == 0);
	return 0;
}

/* --- publishing -------------------------------------------------------------------------------- */

/* Puts the alias' topic in place of an empty one, or remembers a new one. */
static int
use_alias(struct conn *conn, uint32_t number, struct record_view *topic)
{
	struct mqtt *mqtt = conn->state;

	if (number == 0)
		return topic->len == 0 ? bad(conn, RC_PROTOCOL_ERROR, "PUBLISH: no topic and no alias") : 0;
	if (number > mqtt->aliases_max)
		return bad(conn, RC_ALIAS_INVALID, "PUBLISH: topic alias above the maximum");
	if (!mqtt->aliases)
		mqtt->aliases = calloc(mqtt->aliases_max + 1, sizeof(*mqtt->aliases));
	struct alias *alias = mqtt->aliases ? &mqtt->aliases[number] : NULL;
	if (alias && topic->len > 0) {
		uint8_t *copy = realloc(alias->topic, topic->len);
		if (copy) {
			memcpy(copy, topic->bytes, topic->len);
			alias->topic = copy;
			alias->len = (uint16_t)topic->len;
			return 0;
		}
		alias = NULL;
	}
	if (!alias) {
		fprintf(stderr, "tidegate-sink: no memory for topic aliases\n");
		exit(1);
	}
	if (!alias->topic)
		return bad(conn, RC_PROTOCOL_ERROR, "PUBLISH: topic alias never set");
	*topic = (struct record_view){ alias->topic, alias->len };
	return 0;
}

/* QoS 2: returns true if the id was seen and is not released yet; marks it. */
static bool
seen_before(struct mqtt *mqtt, uint32_t id)
{
	if (!mqtt->unreleased)
		mqtt->unreleased = calloc(65536 / 8, 1);
	if (!mqtt->unreleased) {
		fprintf(stderr, "tidegate-sink: no memory for packet ids\n");
		exit(1);
	}
	bool seen = mqtt->unreleased[id >> 3] & (1u << (id & 7));
	mqtt->unreleased[id >> 3] |= (uint8_t)(1u << (id & 7));
	return seen;
}

static int
on_publish(struct conn *conn, uint8_t flags, struct cursor *packet)
{
	struct mqtt *mqtt = conn->state;
	struct record_message message = { .qos = (flags >> 1) & 3, .dup = flags & 8, .retain = flags & 1 };
	struct properties properties = { 0 };
	struct answer answer = { 0 };
	uint32_t code;

	if (message.qos == 3 || (message.qos == 0 && message.dup))
		return bad(conn, RC_MALFORMED, "PUBLISH: flags make no sense");
	message.topic = take_string(packet);
	if (packet->bad)
		return bad(conn, RC_MALFORMED, "PUBLISH: bad topic");
	if (memchr(message.topic.bytes, '#', message.topic.len) ||
	    memchr(message.topic.bytes, '+', message.topic.len))
		return bad(conn, RC_TOPIC_INVALID, "PUBLISH: wildcard in a topic");
	if (message.qos > 0) {
		answer.id = take_int(packet, 2);
		answer.kind = message.qos == 1 ? PUBACK : PUBREC;
		if (packet->bad || answer.id == 0)
			return bad(conn, RC_MALFORMED, "PUBLISH: no packet id");
	}
	if (mqtt->version == 5) {
		code = take_properties(conn, packet, IN_PUBLISH, &properties);
		if (code)
			return bad(conn, code, "PUBLISH: bad properties");
		if (use_alias(conn, properties.topic_alias, &message.topic) < 0)
			return -1;
		if (message.qos > mqtt->maximum_qos)
			return bad(conn, RC_QOS, "PUBLISH: QoS above the maximum");
		message.key = properties.key;
		message.headers = conn->sink->pairs;
		message.header_count = properties.pairs;
	} else if (message.topic.len == 0) {
		return bad(conn, RC_MALFORMED, "PUBLISH: no topic");
	}
	message.body = (struct record_view){ packet->at, (size_t)(packet->end - packet->at) };
	if (message.qos == 2 && seen_before(mqtt, (uint32_t)answer.id)) {
		conn_answer(conn, &answer);
		return 0;
	}
	if (message.qos > 0 && ++mqtt->outstanding > mqtt->receive_maximum && mqtt->version == 5)
		return bad(
		    conn, RC_RECEIVE_MAXIMUM, "PUBLISH: more unanswered messages than the receive maximum");
	if (!conn_message(conn, &message, &answer))
		return 0;
	if (message.qos == 2 && answer.code >= RC_UNSPECIFIED)
		mqtt->unreleased[answer.id >> 3] &= (uint8_t) ~(1u << (answer.id & 7));
	return 0;
}

static int
on_pubrel(struct conn *conn, struct cursor *packet)
{
	struct mqtt *mqtt = conn->state;
	struct answer answer = { .kind = PUBCOMP, .id = take_int(packet, 2) };
	struct properties ignored = { 0 };

	if (mqtt->version == 5 && packet->at < packet->end) {
		take_int(packet, 1);
		if (packet->at < packet->end && take_properties(conn, packet, IN_ANSWER, &ignored))
			return bad(conn, RC_MALFORMED, "PUBREL: bad properties");
	}
	if (packet->bad || packet->at != packet->end || answer.id == 0)
		return bad(conn, RC_MALFORMED, "PUBREL: malformed");
	if (mqtt->unreleased && (mqtt->unreleased[answer.id >> 3] & (1u << (answer.id & 7))))
		mqtt->unreleased[answer.id >> 3] &= (uint8_t) ~(1u << (answer.id & 7));
	else if (mqtt->version == 5)
		answer.code = RC_ID_NOT_FOUND;
	conn_answer(conn, &answer);
	return 0;
}

/* Refuses each filter of a SUBSCRIBE, and answers each of an UNSUBSCRIBE with "no such subscription". */
static int
on_subscribe(struct conn *conn, uint8_t type, struct cursor *packet)
{
	const struct mqtt *mqtt = conn->state;
	struct properties ignored = { 0 };
	struct buf body = { 0 };
	uint32_t id = (uint32_t)take_int(packet, 2);
	bool wrong = packet->bad || id == 0;

	put_int(buf_room(&body, 3), id << 8, 3); /* the id and, in version 5, no properties */
	body.len = mqtt->version == 5 ? 3 : 2;
	if (!wrong && mqtt->version == 5)
		wrong = take_properties(conn, packet, IN_SUBSCRIBE, &ignored) != 0;
	wrong = wrong || packet->at == packet->end;
	while (!wrong && packet->at < packet->end) {
		take_string(packet);
		if (type == SUBSCRIBE)
			take_int(packet, 1);
		wrong = packet->bad;
		if (type == SUBSCRIBE)
			*buf_room(&body, 1) = mqtt->version == 5 ? RC_NOT_AUTHORISED : RC_UNSPECIFIED;
		else if (mqtt->version == 5)
			*buf_room(&body, 1) = 0x11;
		if (type == SUBSCRIBE || mqtt->version == 5)
			body.len++;
	}
	if (!wrong && conn_may_answer(conn))
		put_in_turn(conn, type == SUBSCRIBE ? SUBACK : UNSUBACK, body.data, body.len);
	buf_fini(&body);
	return wrong ? bad(conn, RC_MALFORMED,
			   type == SUBSCRIBE ? "SUBSCRIBE: malformed" : "UNSUBSCRIBE: malformed")
		     : 0;
}

static int
on_ping(struct conn *conn, const struct cursor *packet)
{
	if (packet->at != packet->end)
		return bad(conn, RC_MALFORMED, "PINGREQ: not empty");
	conn->counters.pings++;
	conn->sink->counters.pings++;
	if (conn_may_answer(conn) && !conn->sink->behaviour.no_pong)
		put_in_turn(conn, PINGRESP, NULL, 0);
	return 0;
}

static int
on_disconnect(struct conn *conn, struct cursor *packet)
{
	const struct mqtt *mqtt = conn->state;
	struct properties ignored = { 0 };

	if (mqtt->version == 5 && packet->at < packet->end) {
		take_int(packet, 1);
		if (packet->at < packet->end && take_properties(conn, packet, IN_DISCONNECT, &ignored))
			return bad(conn, RC_MALFORMED, "DISCONNECT: bad properties");
	}
	if (packet->at != packet->end)
		return bad(conn, RC_MALFORMED, "DISCONNECT: malformed");
	conn_end(conn, CONN_FLUSH);
	return 0;
}

static int
on_packet(struct conn *conn, uint8_t head, struct cursor packet)
{
	const struct mqtt *mqtt = conn->state;
	uint8_t type = head >> 4, flags = head & 15;

	if ((type == CONNECT) != (mqtt->version == 0))
		return bad(conn, RC_PROTOCOL_ERROR,
		    type == CONNECT ? "a second CONNECT" : "the first packet is no CONNECT");
	if (type == PUBLISH)
		return on_publish(conn, flags, &packet);
	if (flags != (type == PUBREL || type == SUBSCRIBE || type == UNSUBSCRIBE ? 2 : 0))
		return bad(conn, RC_MALFORMED, "reserved flags of a packet set");
	switch (type) {
	case CONNECT:
		return on_connect(conn, &packet);
	case PUBREL:
		return on_pubrel(conn, &packet);
	case SUBSCRIBE:
	case UNSUBSCRIBE:
		return on_subscribe(conn, type, &packet);
	case PINGREQ:
		return on_ping(conn, &packet);
	case DISCONNECT:
		return on_disconnect(conn, &packet);
	default:
		return bad(conn, RC_PROTOCOL_ERROR, "a packet that clients do not send");
	}
}

static ssize_t
mqtt_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	const struct mqtt *mqtt = conn->state;
	size_t used = 0;

	while (!conn->stop && len - used >= 2) {
		const uint8_t *at = bytes + used;
		uint32_t remaining;
		int n = varint(at + 1, len - used - 1, &remaining);
		if (n == 0)
			break;
		if (n < 0)
			return bad(conn, RC_MALFORMED, "length of a packet malformed");
		size_t total = 1 + (size_t)n + remaining;
		if (total > conn->sink->behaviour.max_packet || (mqtt->version == 0 && total > BEFORE_CONNECT))
			return bad(conn, RC_TOO_LARGE, "packet larger than the maximum");
		if (total > len - used)
			break;
		if (on_packet(conn, at[0], (struct cursor){ at + 1 + n, at + total, false }) < 0)
			return -1;
		used += total;
	}
	return (ssize_t)used;
}

static void
mqtt_close(struct conn *conn)
{
	struct mqtt *mqtt = conn->state;

	for (uint32_t i = 0; mqtt->aliases && i <= mqtt->aliases_max; i++)
		free(mqtt->aliases[i].topic);
	free(mqtt->aliases);
	free(mqtt->unreleased);
}

const struct protocol protocol_mqtt = {
	.name = "mqtt",
	.state_size = sizeof(struct mqtt),
	.reject_code = RC_NOT_AUTHORISED,
	.reject_least = RC_UNSPECIFIED,
	.close = mqtt_close,
	.input = mqtt_input,
	.answer = mqtt_answer,
	.farewell = mqtt_farewell,
};
