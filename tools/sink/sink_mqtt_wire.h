/*
 * MQTT packets, for the sink.
 *
 *   [type: 4 bits] [flags: 4 bits] [remaining length: 1 to 4 bytes, 7 bits each] [the rest]
 */
#ifndef TG_SINK_MQTT_WIRE_H
#define TG_SINK_MQTT_WIRE_H

#include "sink_wire.h"

#include <string.h>

enum {
	CONNECT = 1,
	CONNACK = 2,
	PUBLISH = 3,
	PUBACK = 4,
	PUBREC = 5,
	PUBREL = 6,
	PUBCOMP = 7,
	SUBSCRIBE = 8,
	SUBACK = 9,
	UNSUBSCRIBE = 10,
	UNSUBACK = 11,
	PINGREQ = 12,
	PINGRESP = 13,
	DISCONNECT = 14,
};

enum {
	RC_UNSPECIFIED = 0x80,
	RC_MALFORMED = 0x81,
	RC_PROTOCOL_ERROR = 0x82,
	RC_VERSION = 0x84,
	RC_PASSWORD = 0x86,
	RC_NOT_AUTHORISED = 0x87,
	RC_TOPIC_INVALID = 0x90,
	RC_ID_NOT_FOUND = 0x92,
	RC_RECEIVE_MAXIMUM = 0x93,
	RC_ALIAS_INVALID = 0x94,
	RC_TOO_LARGE = 0x95,
	RC_QOS = 0x9b,
};

static inline struct record_view
take_binary(struct cursor *cursor)
{
	return take_bytes(cursor, take_int(cursor, 2));
}

/* Returns how many bytes the variable byte integer takes, 0 if more are needed, -1 if it is not one. */
static inline int
varint(const uint8_t *bytes, size_t len, uint32_t *value)
{
	uint32_t n = 0;

	for (int i = 0; i < 4; i++) {
		if ((size_t)i >= len)
			return 0;
		n |= (uint32_t)(bytes[i] & 0x7f) << (7 * i);
		if (!(bytes[i] & 0x80)) {
			*value = n;
			return i + 1;
		}
	}
	return -1;
}

/* The next n bytes as a cursor of their own, n being a variable byte integer in front. */
static inline struct cursor
take_section(struct cursor *cursor)
{
	uint32_t len = 0;
	int n = varint(cursor->at, (size_t)(cursor->end - cursor->at), &len);

	if (n <= 0) {
		cursor->bad = true;
		len = 0;
	} else {
		cursor->at += n;
	}
	struct record_view view = take_bytes(cursor, len);
	return (struct cursor){ view.bytes, view.bytes + view.len, cursor->bad };
}

/* UTF-8 without U+0000 and surrogates, shortest forms only. */
static inline bool
valid_utf8(struct record_view view)
{
	const uint8_t *at = view.bytes, *end = at + view.len;

	while (at < end) {
		uint32_t c = *at++, least = 0;
		int more = 0;
		if (c < 0x80) {
			if (c == 0)
				return false;
			continue;
		}
		if ((c & 0xe0) == 0xc0)
			c &= 0x1f, more = 1, least = 0x80;
		else if ((c & 0xf0) == 0xe0)
			c &= 0x0f, more = 2, least = 0x800;
		else if ((c & 0xf8) == 0xf0)
			c &= 0x07, more = 3, least = 0x10000;
		else
			return false;
		if (end - at < more)
			return false;
		while (more-- > 0) {
			if ((*at & 0xc0) != 0x80)
				return false;
			c = c << 6 | (*at++ & 0x3f);
		}
		if (c < least || c > 0x10ffff || (c >= 0xd800 && c <= 0xdfff))
			return false;
	}
	return true;
}

static inline struct record_view
take_string(struct cursor *cursor)
{
	struct record_view view = take_binary(cursor);

	if (!cursor->bad && !valid_utf8(view))
		cursor->bad = true;
	return view;
}

/* --- properties of version 5 ------------------------------------------------------------------- */

enum property_type { NO_PROPERTY, BYTE, TWO, FOUR, VARINT, STRING, BINARY, PAIR };

enum {
	P_USER = 0x26,
	P_TOPIC_ALIAS = 0x23,
};

static inline enum property_type
property_type(uint32_t id)
{
	static const uint8_t types[0x2b] = {
		[0x01] = BYTE,   /* payload format */
		[0x02] = FOUR,   /* message expiry */
		[0x03] = STRING, /* content type */
		[0x08] = STRING, /* response topic */
		[0x09] = BINARY, /* correlation data */
		[0x0b] = VARINT, /* subscription identifier */
		[0x11] = FOUR,   /* session expiry */
		[0x15] = STRING, /* authentication method */
		[0x16] = BINARY, /* authentication data */
		[0x17] = BYTE,   /* request problem information */
		[0x18] = FOUR,   /* will delay */
		[0x19] = BYTE,   /* request response information */
		[0x1f] = STRING, /* reason */
		[0x21] = TWO,    /* receive maximum */
		[0x22] = TWO,    /* topic alias maximum */
		[0x23] = TWO,    /* topic alias */
		[0x26] = PAIR,   /* user property */
		[0x27] = FOUR,   /* maximum packet size */
	};

	return id < sizeof(types) ? (enum property_type)types[id] : NO_PROPERTY;
}

/* Which of them a packet may carry: a bit for each id. */
#define BIT(id) (UINT64_C(1) << (id))
#define IN_CONNECT                                                                                       \
	(BIT(0x11) | BIT(0x15) | BIT(0x16) | BIT(0x17) | BIT(0x19) | BIT(0x21) | BIT(0x22) | BIT(0x26) | \
	    BIT(0x27))
#define IN_WILL (BIT(0x01) | BIT(0x02) | BIT(0x03) | BIT(0x08) | BIT(0x09) | BIT(0x18) | BIT(0x26))
#define IN_PUBLISH (BIT(0x01) | BIT(0x02) | BIT(0x03) | BIT(0x08) | BIT(0x09) | BIT(0x23) | BIT(0x26))
#define IN_SUBSCRIBE (BIT(0x0b) | BIT(0x26))
#define IN_ANSWER (BIT(0x1f) | BIT(0x26))
#define IN_DISCONNECT (BIT(0x11) | BIT(0x1f) | BIT(0x26))

/* --- sending ----------------------------------------------------------------------- */

static inline uint8_t *
put_string(uint8_t *to, const char *text, size_t len)
{
	to = put_int(to, len, 2);
	memcpy(to, text, len);
	return to + len;
}

static inline uint8_t *
put_varint(uint8_t *to, uint32_t value)
{
	do {
		*to++ = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
		value >>= 7;
	} while (value);
	return to;
}

#endif
