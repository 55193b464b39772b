#include "mqtt_packet.h"

const char *
mqtt_type_name(unsigned type)
{
	static const char *const names[16] = { "reserved type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK",
		"PUBREC", "PUBREL", "PUBCOMP", "SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ",
		"PINGRESP", "DISCONNECT", "AUTH" };

	return names[type & 15];
}

static const struct reason {
	uint8_t code;
	uint8_t fatal;
	uint8_t over;
	const char *text;
} reasons[] = {
#define X(value, words, alone, over_message) \
	{ .code = value, .fatal = alone, .over = over_message, .text = words },
#include "mqtt_reason.def"
#undef X
};

static const struct reason *
reason_find(uint8_t code)
{
	static const struct reason unknown = {
		.fatal = FATAL_CLOSED, .over = FATAL_CLOSED, .text = "unknown reason"
	};

	for (size_t i = 0; i < sizeof(reasons) / sizeof(reasons[0]); i++)
		if (reasons[i].code == code)
			return &reasons[i];
	return &unknown;
}

const char *
mqtt_reason_text(uint8_t code)
{
	return reason_find(code)->text;
}

enum driver_fatal
mqtt_reason_fatal(uint8_t code, int over_message)
{
	const struct reason *reason = reason_find(code);

	return (enum driver_fatal)(over_message ? reason->over : reason->fatal);
}

static const struct reason returns[] = {
	{ .code = 1, .fatal = FATAL_SETTINGS, .text = "unacceptable protocol version" },
	{ .code = 2, .fatal = FATAL_SETTINGS, .text = "identifier rejected" },
	{ .code = 3, .fatal = FATAL_UNUSABLE, .text = "server unavailable" },
	{ .code = 4, .fatal = FATAL_REFUSED, .text = "bad user name or password" },
	{ .code = 5, .fatal = FATAL_REFUSED, .text = "not authorized" },
};

const char *
mqtt_return_text(uint8_t code)
{
	return code >= 1 && code <= 5 ? returns[code - 1].text : "unknown return code";
}

enum driver_fatal
mqtt_return_fatal(uint8_t code)
{
	return code >= 1 && code <= 5 ? (enum driver_fatal)returns[code - 1].fatal : FATAL_PROTOCOL;
}

enum property_kind { KIND_NONE, KIND_BYTE, KIND_U16, KIND_U32, KIND_STRING, KIND_PAIR };

/* In which packets of a server a property may be, by 1 << type. */
#define IN_CONNACK (1u << MQTT_CONNACK)
#define IN_PUBACK (1u << MQTT_PUBACK)
#define IN_DISCONNECT (1u << MQTT_DISCONNECT)

static const struct property {
	uint8_t kind;
	uint16_t packets;
} property_table[] = {
	[PROPERTY_SESSION_EXPIRY] = { KIND_U32, IN_CONNACK },
	[PROPERTY_ASSIGNED_CLIENT_ID] = { KIND_STRING, IN_CONNACK },
	[PROPERTY_SERVER_KEEP_ALIVE] = { KIND_U16, IN_CONNACK },
	[PROPERTY_AUTH_METHOD] = { KIND_STRING, IN_CONNACK },
	[PROPERTY_AUTH_DATA] = { KIND_STRING, IN_CONNACK },
	[PROPERTY_RESPONSE_INFORMATION] = { KIND_STRING, IN_CONNACK },
	[PROPERTY_SERVER_REFERENCE] = { KIND_STRING, IN_CONNACK | IN_DISCONNECT },
	[PROPERTY_REASON_STRING] = { KIND_STRING, IN_CONNACK | IN_PUBACK | IN_DISCONNECT },
	[PROPERTY_RECEIVE_MAXIMUM] = { KIND_U16, IN_CONNACK },
	[PROPERTY_TOPIC_ALIAS_MAXIMUM] = { KIND_U16, IN_CONNACK },
	[PROPERTY_MAXIMUM_QOS] = { KIND_BYTE, IN_CONNACK },
	[PROPERTY_RETAIN_AVAILABLE] = { KIND_BYTE, IN_CONNACK },
	[PROPERTY_USER] = { KIND_PAIR, IN_CONNACK | IN_PUBACK | IN_DISCONNECT },
	[PROPERTY_MAXIMUM_PACKET_SIZE] = { KIND_U32, IN_CONNACK },
	[PROPERTY_WILDCARD_AVAILABLE] = { KIND_BYTE, IN_CONNACK },
	[PROPERTY_SUBSCRIPTION_ID_AVAILABLE] = { KIND_BYTE, IN_CONNACK },
	[PROPERTY_SHARED_AVAILABLE] = { KIND_BYTE, IN_CONNACK },
};

/* Its size after the id, or 0 when it does not fit into len bytes. */
static size_t
property_size(enum property_kind kind, const uint8_t *bytes, size_t len)
{
	size_t size = 0;

	switch (kind) {
	case KIND_NONE:
		return 0;
	case KIND_BYTE:
		size = 1;
		break;
	case KIND_U16:
		size = 2;
		break;
	case KIND_U32:
		size = 4;
		break;
	case KIND_STRING:
	case KIND_PAIR:
		for (int n = kind == KIND_PAIR ? 2 : 1; n > 0; n--) {
			if (len < size || len - size < 2)
				return 0;
			size += 2 + mqtt_get_u16(bytes + size);
		}
		break;
	}
	return size <= len ? size : 0;
}

/* Keeps what matters. Returns NULL or what is wrong with the value. */
static const char *
property_store(struct mqtt_properties *properties, unsigned id, const uint8_t *value, size_t size)
{
	switch (id) {
	case PROPERTY_REASON_STRING:
		properties->reason = value + 2;
		properties->reason_len = size - 2;
		break;
	case PROPERTY_SERVER_REFERENCE:
		properties->server = value + 2;
		properties->server_len = size - 2;
		break;
	case PROPERTY_SERVER_KEEP_ALIVE:
		properties->keep_alive = mqtt_get_u16(value);
		break;
	case PROPERTY_RECEIVE_MAXIMUM:
		properties->receive_maximum = mqtt_get_u16(value);
		if (properties->receive_maximum == 0)
			return "receive maximum is 0";
		break;
	case PROPERTY_MAXIMUM_PACKET_SIZE:
		properties->maximum_packet = mqtt_get_u32(value);
		if (properties->maximum_packet == 0)
			return "maximum packet size is 0";
		break;
	case PROPERTY_MAXIMUM_QOS:
		properties->maximum_qos = value[0];
		if (value[0] > 1)
			return "maximum QoS is neither 0 nor 1";
		break;
	case PROPERTY_RETAIN_AVAILABLE:
		properties->retain_available = value[0];
		if (value[0] > 1)
			return "retain available is neither 0 nor 1";
		break;
	default:
		break;
	}
	return NULL;
}

const char *
mqtt_properties_read(struct mqtt_properties *properties, enum mqtt_type type, const uint8_t *bytes, size_t len)
{
	uint64_t seen = 0;
	uint32_t section = 0;
	int head = mqtt_length_read(bytes, len, &section);

	*properties = (struct mqtt_properties){
		.receive_maximum = MQTT_IDS, .keep_alive = UINT32_MAX, .maximum_qos = 2, .retain_available = 1
	};
	if (head <= 0)
		return "the length of its properties is malformed";
	if (section != len - (size_t)head)
		return "its properties do not end where the packet ends";
	for (size_t at = (size_t)head; at < len;) {
		unsigned id = bytes[at++];
		if (id >= sizeof(property_table) / sizeof(property_table[0]) ||
		    (property_table[id].packets & 1u << type) == 0)
			return "it has a property that does not belong there";
		size_t size = property_size((enum property_kind)property_table[id].kind, bytes + at, len - at);
		if (size == 0)
			return "a property runs past its end";
		if (id != PROPERTY_USER && (seen & UINT64_C(1) << id) != 0)
			return "it has the same property twice";
		seen |= UINT64_C(1) << id;
		const char *wrong = property_store(properties, id, bytes + at, size);
		if (wrong != NULL)
			return wrong;
		at += size;
	}
	return NULL;
}
