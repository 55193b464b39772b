/* Input from an MQTT broker: CONNACK, PUBACK, PINGRESP, DISCONNECT and nothing else. */
#include "mqtt.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>

#define fatal(mqtt, kind, code, ...)                                     \
	(window_flush(&(mqtt)->unanswered), (mqtt)->state = MQTT_CLOSED, \
	    driver_fatal(&(mqtt)->base, kind, code, __VA_ARGS__))

/* The message that an answer's packet id names, if it is an unanswered one. */
static uint64_t
seq_of(const struct mqtt_session *mqtt, uint32_t id)
{
	uint32_t oldest_id = mqtt_id(mqtt->unanswered.oldest);

	return mqtt->unanswered.oldest + (id >= oldest_id ? id - oldest_id : id + MQTT_IDS - oldest_id);
}

/* The stream a well-behaved broker sends: successes, short, from the oldest on. Returns bytes taken. */
static size_t
pubacks_in_order(struct mqtt_session *mqtt, const uint8_t *bytes, size_t len)
{
	struct window *unanswered = &mqtt->unanswered;
	uint32_t id = mqtt_id(unanswered->oldest);
	size_t at = 0;

	while (len - at >= 4 && bytes[at] == MQTT_PUBACK << 4 && mqtt_get_u16(bytes + at + 2) == id &&
	       unanswered->early == 0 && !window_is_empty(unanswered)) {
		if (bytes[at + 1] == 2)
			at += 4;
		else if (bytes[at + 1] == 3 && mqtt->version == 5 && len - at >= 5 && bytes[at + 4] < 0x80)
			at += 5;
		else
			break;
		window_ack_oldest(unanswered);
		id = id == MQTT_IDS ? 1 : id + 1;
	}
	if (at > 0)
		mqtt->refused = 0;
	return at;
}

static int
input_puback(struct mqtt_session *mqtt, const uint8_t *bytes, size_t len)
{
	struct mqtt_properties properties = { .reason = NULL };
	uint32_t id = mqtt_get_u16(bytes);
	uint8_t code = len > 2 ? bytes[2] : 0;
	uint64_t seq = seq_of(mqtt, id);
	char text[240], said[200];

	if (len > 3) {
		const char *wrong = mqtt_properties_read(&properties, MQTT_PUBACK, bytes + 3, len - 3);
		if (wrong != NULL)
			return fatal(mqtt, FATAL_PROTOCOL, 0x81, "PUBACK for packet id %u: %s", id, wrong);
	}
	int waits =
	    id != 0 && (code < 0x80 ? window_ack(&mqtt->unanswered, seq) : window_take(&mqtt->unanswered, seq));
	if (!waits)
		return fatal(mqtt, FATAL_PROTOCOL, 0x92, "PUBACK for packet id %u, which waits for none", id);
	mqtt->refused = code >= 0x80 ? code : 0;
	if (code < 0x80)
		return 0;
	if (properties.reason_len == 0) {
		const char *words = mqtt_reason_text(code);
		driver_nack(&mqtt->base, seq, code, words, strlen(words));
		return 0;
	}
	utf8_clean(said, sizeof(said), properties.reason, properties.reason_len);
	int n = snprintf(text, sizeof(text), "%s: %s", mqtt_reason_text(code), said);
	driver_nack(&mqtt->base, seq, code, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
	return 0;
}

/* "what: words (code): the broker's text; it names another server". */
static int
fatal_reason(struct mqtt_session *mqtt, enum driver_fatal kind, uint8_t code, const char *what,
    const char *words, const struct mqtt_properties *properties)
{
	char said[100], server[60];

	utf8_clean(said, sizeof(said), properties->reason, properties->reason_len);
	utf8_clean(server, sizeof(server), properties->server, properties->server_len);
	return fatal(mqtt, kind, code, "%s: %s (0x%02x)%s%s%s%s", what, words, code,
	    said[0] != '\0' ? ": " : "", said, server[0] != '\0' ? "; it names " : "", server);
}

static void
say_limits(struct mqtt_session *mqtt, const struct mqtt_properties *properties)
{
	struct session *session = &mqtt->base;

	/* As much as a PUBLISH has beside its body when its topic is one byte and it has no properties. */
	const uint32_t least_head = 1 + 1 + 2 + 1 + 2 + 1;

	driver_emit(session, EV_WINDOW, properties->receive_maximum);
	if (properties->maximum_packet > 0)
		driver_emit(session, EV_MAX_BODY,
		    properties->maximum_packet > least_head ? properties->maximum_packet - least_head : 0);
	if (properties->keep_alive != UINT32_MAX && properties->keep_alive > 0)
		driver_emit(session, EV_KEEPALIVE, properties->keep_alive);
}

static int
input_connack(struct mqtt_session *mqtt, const uint8_t *bytes, size_t len)
{
	struct mqtt_properties properties = {
		.receive_maximum = MQTT_IDS, .keep_alive = UINT32_MAX, .maximum_qos = 2, .retain_available = 1
	};
	uint8_t code = bytes[1];

	if ((bytes[0] & 0xfe) != 0)
		return fatal(
		    mqtt, FATAL_PROTOCOL, 0x81, "CONNACK: its reserved flags are set (0x%02x)", bytes[0]);
	if (mqtt->version == 5 && len == 2) {
		/* The older form: the bytes that follow would be in it, too. */
		if (code != 0 || mqtt->pinned || !mqtt->base.params->replayed)
			return mqtt_version_refused(
			    mqtt, code, code != 0 ? mqtt_return_text(code) : "it answers in MQTT 3.1.1");
		mqtt->version = 4;
	}
	if (mqtt->version == 4) {
		if (code != 0) {
			mqtt_version_answered(mqtt);
			return fatal(mqtt, mqtt_return_fatal(code), code,
			    "the broker refused the connection: %s (%u)", mqtt_return_text(code), code);
		}
	} else {
		const char *wrong = mqtt_properties_read(&properties, MQTT_CONNACK, bytes + 2, len - 2);
		if (wrong != NULL)
			return fatal(mqtt, FATAL_PROTOCOL, 0x81, "CONNACK: %s", wrong);
		if (code == 0x84 || code == 1) /* some give the older code in the newer form */
			return mqtt_version_refused(mqtt, code, mqtt_reason_text(0x84));
		if (code >= 0x80) {
			mqtt_version_answered(mqtt);
			return fatal_reason(mqtt, mqtt_reason_fatal(code, 0), code,
			    "the broker refused the connection", mqtt_reason_text(code), &properties);
		}
		if (code != 0)
			return fatal(
			    mqtt, FATAL_PROTOCOL, code, "CONNACK: reason 0x%02x has no meaning there", code);
	}
	if ((bytes[0] & 1) != 0)
		return fatal(
		    mqtt, FATAL_PROTOCOL, 0x82, "CONNACK: the broker resumes a session that was not asked for");
	if (mqtt_version_accepted(mqtt) != 0)
		return -TG_EPROTOCOL;
	if (properties.maximum_qos < mqtt->qos)
		return fatal(mqtt, FATAL_SETTINGS, 0x9b,
		    "the broker allows QoS 0 only; the pool's mqtt group has qos = %u", mqtt->qos);
	if (properties.receive_maximum < mqtt->window && mqtt->qos > 0)
		mqtt->window = properties.receive_maximum;
	if (properties.maximum_packet > 0 && properties.maximum_packet < mqtt->max_packet)
		mqtt->max_packet = properties.maximum_packet;
	mqtt->retain_available = properties.retain_available != 0;
	mqtt->state = MQTT_UP;
	say_limits(mqtt, &properties);
	driver_emit(&mqtt->base, EV_UP, 0);
	return 0;
}

/* The meaning of a DISCONNECT for the other messages. */
static enum driver_fatal
disconnect_kind(const struct mqtt_session *mqtt, uint8_t code)
{
	/* Nothing answers a message of QoS 0: any of them may be the one. */
	int waits = mqtt->qos > 0 ? !window_is_empty(&mqtt->unanswered) : mqtt->unanswered.next > 0;

	/* HiveMQ refuses a message (PUBACK), then ends the session for the same reason. */
	if (code >= 0x80 && code == mqtt->refused)
		return FATAL_ANSWERED;
	return mqtt_reason_fatal(code, waits);
}

static int
input_disconnect(struct mqtt_session *mqtt, const uint8_t *bytes, size_t len)
{
	struct mqtt_properties properties = { .reason = NULL };
	uint8_t code = len > 0 ? bytes[0] : 0;
	enum driver_fatal kind = disconnect_kind(mqtt, code);

	if (mqtt->version == 4)
		return fatal(mqtt, !window_is_empty(&mqtt->unanswered) ? FATAL_MESSAGE : FATAL_CLOSED, code,
		    "the broker disconnected%s%s", code >= 0x80 ? ": " : "",
		    code >= 0x80 ? mqtt_reason_text(code) : "");
	if (len > 1) {
		const char *wrong = mqtt_properties_read(&properties, MQTT_DISCONNECT, bytes + 1, len - 1);
		if (wrong != NULL)
			return fatal(mqtt, FATAL_PROTOCOL, 0x81, "DISCONNECT: %s", wrong);
	}
	return fatal_reason(mqtt, kind, code, "the broker disconnected", mqtt_reason_text(code), &properties);
}

/* How many bytes a packet of this type may and must have; 0: it may not come now. */
static int
may_come(const struct mqtt_session *mqtt, uint8_t first, uint32_t *least, uint32_t *most)
{
	uint32_t any = DRIVER_INPUT_MAX - 5;

	*least = 0;
	*most = any;
	if (mqtt->state == MQTT_CONNECTING) {
		*least = 2;
		*most = mqtt->version == 4 ? 2 : any;
		return first == MQTT_CONNACK << 4;
	}
	switch (first) {
	case MQTT_PUBACK << 4:
		*least = 2;
		*most = mqtt->version == 4 ? 2 : any;
		return mqtt->qos > 0;
	case MQTT_PINGRESP << 4:
		*most = 0;
		return 1;
	case MQTT_DISCONNECT << 4:
		return 1; /* in 3.1.1 it is the client's alone; mochi sends it all the same */
	default:
		return 0;
	}
}

static int
input_body(struct mqtt_session *mqtt, uint8_t first, const uint8_t *bytes, size_t len)
{
	switch (first >> 4) {
	case MQTT_CONNACK:
		return input_connack(mqtt, bytes, len);
	case MQTT_PUBACK:
		return input_puback(mqtt, bytes, len);
	case MQTT_DISCONNECT:
		return input_disconnect(mqtt, bytes, len);
	default:
		window_flush(&mqtt->unanswered);
		mqtt->refused = 0;
		if (mqtt->probes > 0) {
			mqtt->probes--;
			driver_emit(&mqtt->base, EV_ALIVE, 0);
		}
		return 0;
	}
}

/*
 * One packet. Returns its size, 0 while it is not whole, or a negative TG_E. Whatever can be judged
 * is judged from the first bytes that show it, so that cutting the input elsewhere changes nothing.
 */
static ssize_t
input_packet(struct mqtt_session *mqtt, const uint8_t *bytes, size_t len)
{
	const char *name = mqtt_type_name(bytes[0] >> 4);
	const char *when = mqtt->state == MQTT_CONNECTING ? "before CONNACK" : "send a publisher";
	uint32_t remaining = 0, least, most;

	if (!may_come(mqtt, bytes[0], &least, &most))
		return fatal(mqtt, FATAL_PROTOCOL, 0x82,
		    "the broker sent %s (first byte 0x%02x), which it may not %s", name, bytes[0], when);
	int size = mqtt_length_read(bytes + 1, len - 1, &remaining);
	if (size < 0)
		return fatal(mqtt, FATAL_PROTOCOL, 0x81, "%s: its remaining length is malformed", name);
	if (size == 0)
		return 0;
	if (least == most && remaining != most)
		return fatal(mqtt, FATAL_PROTOCOL, 0x81, "%s: its remaining length is %u; it must be %u", name,
		    remaining, most);
	if (remaining < least || remaining > most)
		return fatal(mqtt, FATAL_PROTOCOL, 0x81,
		    "%s: its remaining length is %u; from %u to %u are allowed", name, remaining, least, most);
	size_t head = 1 + (size_t)size;
	if (len - head < remaining)
		return 0;
	int rc = input_body(mqtt, bytes[0], bytes + head, remaining);
	return rc < 0 ? rc : (ssize_t)(head + remaining);
}

ssize_t
mqtt_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	struct mqtt_session *mqtt = mqtt_session(session);
	size_t at = 0;

	if (mqtt->state == MQTT_CLOSED)
		return -TG_EPROTOCOL;
	while (at < len) {
		if (mqtt->state == MQTT_UP)
			at += pubacks_in_order(mqtt, bytes + at, len - at);
		if (at == len)
			break;
		ssize_t n = input_packet(mqtt, bytes + at, len - at);
		if (n < 0)
			return n;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	window_flush(&mqtt->unanswered);
	return (ssize_t)at;
}
