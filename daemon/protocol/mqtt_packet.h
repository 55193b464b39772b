/*
 * The elements of MQTT 3.1.1 and 5 packets: lengths, strings, properties, reason codes. Pure
 * functions over bytes.
 *
 *   [type and flags: 1] [remaining length: 1..4] [variable header] [properties (v5)] [payload]
 *   property: [id: 1] [byte | u16 | u32 | u16 length, bytes | two of these]
 *
 * All integers are big-endian; lengths are base 128, least significant seven bits first.
 */
#ifndef TG_DAEMON_PROTOCOL_MQTT_PACKET_H
#define TG_DAEMON_PROTOCOL_MQTT_PACKET_H

#include "driver.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MQTT_REMAINING_MAX 268435455u /* the most four bytes of base 128 can say */
#define MQTT_STRING_MAX 65535u
#define MQTT_IDS 65535u /* packet identifiers: 1..65535 */

enum mqtt_type {
	MQTT_CONNECT = 1,
	MQTT_CONNACK = 2,
	MQTT_PUBLISH = 3,
	MQTT_PUBACK = 4,
	MQTT_PINGREQ = 12,
	MQTT_PINGRESP = 13,
	MQTT_DISCONNECT = 14,
};

enum mqtt_property {
	PROPERTY_MESSAGE_EXPIRY = 0x02,
	PROPERTY_SESSION_EXPIRY = 0x11,
	PROPERTY_ASSIGNED_CLIENT_ID = 0x12,
	PROPERTY_SERVER_KEEP_ALIVE = 0x13,
	PROPERTY_AUTH_METHOD = 0x15,
	PROPERTY_AUTH_DATA = 0x16,
	PROPERTY_RESPONSE_INFORMATION = 0x1a,
	PROPERTY_SERVER_REFERENCE = 0x1c,
	PROPERTY_REASON_STRING = 0x1f,
	PROPERTY_RECEIVE_MAXIMUM = 0x21,
	PROPERTY_TOPIC_ALIAS_MAXIMUM = 0x22,
	PROPERTY_MAXIMUM_QOS = 0x24,
	PROPERTY_RETAIN_AVAILABLE = 0x25,
	PROPERTY_USER = 0x26,
	PROPERTY_MAXIMUM_PACKET_SIZE = 0x27,
	PROPERTY_WILDCARD_AVAILABLE = 0x28,
	PROPERTY_SUBSCRIPTION_ID_AVAILABLE = 0x29,
	PROPERTY_SHARED_AVAILABLE = 0x2a,
};

/* The server's properties that matter to a publisher; set to MQTT's defaults first. */
struct mqtt_properties {
	const uint8_t *reason; /* NULL: none; in the packet */
	size_t reason_len;
	const uint8_t *server; /* server reference; NULL: none; in the packet */
	size_t server_len;
	uint32_t receive_maximum;
	uint32_t maximum_packet; /* 0: not said */
	uint32_t keep_alive;     /* UINT32_MAX: not said */
	uint32_t maximum_qos;
	int retain_available;
};

/* The name of a packet type. Static. */
const char *mqtt_type_name(unsigned type);

/* The words of a v5 reason code; "unknown reason" for others. Static. */
const char *mqtt_reason_text(uint8_t code);
/* The meaning of a session's end with the code; over_message: while a PUBLISH waits for its answer. */
enum driver_fatal mqtt_reason_fatal(uint8_t code, int over_message);

/* The words and meaning of a 3.1.1 CONNACK return code. */
const char *mqtt_return_text(uint8_t code);
enum driver_fatal mqtt_return_fatal(uint8_t code);

/*
 * Reads a property section (its length included, up to the end of the packet) of a packet of type
 * CONNACK, PUBACK or DISCONNECT. Returns NULL, or what is wrong with it (static).
 */
const char *
mqtt_properties_read(struct mqtt_properties *properties, enum mqtt_type type, const uint8_t *bytes, size_t len);

/* Reads a base 128 length. Returns its size 1..4, 0 when more bytes are needed, -1 when it is malformed. */
static inline int
mqtt_length_read(const uint8_t *bytes, size_t len, uint32_t *value)
{
	uint32_t v = 0;

	for (unsigned i = 0; i < 4; i++) {
		if (i >= len)
			return 0;
		v |= (uint32_t)(bytes[i] & 0x7f) << (7 * i);
		if ((bytes[i] & 0x80) == 0) {
			*value = v;
			return (int)i + 1;
		}
	}
	return -1;
}

static inline size_t
mqtt_length_size(size_t value)
{
	return value < 128 ? 1 : value < 16384 ? 2 : value < 2097152 ? 3 : 4;
}

static inline uint8_t *
mqtt_put_length(uint8_t *at, size_t value)
{
	while (value >= 128) {
		*at++ = (uint8_t)(value | 0x80);
		value >>= 7;
	}
	*at++ = (uint8_t)value;
	return at;
}

static inline uint8_t *
mqtt_put_u16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
	return at + 2;
}

static inline uint8_t *
mqtt_put_u32(uint8_t *at, uint32_t value)
{
	return mqtt_put_u16(mqtt_put_u16(at, value >> 16), value);
}

static inline uint8_t *
mqtt_put_bytes(uint8_t *at, const void *bytes, size_t len)
{
	/* Knowing a bound of len, gcc copies with rep movs, whose start costs more than the whole frame. */
	__asm__("" : "+r"(len));
	if (len > 0)
		memcpy(at, bytes, len);
	return at + len;
}

/* len <= MQTT_STRING_MAX */
static inline uint8_t *
mqtt_put_string(uint8_t *at, const void *bytes, size_t len)
{
	return mqtt_put_bytes(mqtt_put_u16(at, (uint32_t)len), bytes, len);
}

static inline uint32_t
mqtt_get_u16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}

static inline uint32_t
mqtt_get_u32(const uint8_t *at)
{
	return mqtt_get_u16(at) << 16 | mqtt_get_u16(at + 2);
}

#endif
