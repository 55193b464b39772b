/*
 * The elements of AMQP 0-9-1 frames. Pure functions over bytes.
 *
 *   [type: 1] [channel: 2] [size: 4] [payload: size] [0xce]
 *   method payload: [class: 2] [method: 2] arguments
 *   header payload: [class: 2] [0: 2] [body size: 8] [property flags: 2] properties
 *
 * Integers are big-endian; a short string has one byte of length, a long string and a table four.
 */
#ifndef TG_DAEMON_PROTOCOL_AMQP_WIRE_H
#define TG_DAEMON_PROTOCOL_AMQP_WIRE_H

#include "driver.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define AMQP_FRAME_HEAD 7u
#define AMQP_FRAME_EXTRA 8u /* the head and the end octet */
#define AMQP_FRAME_END 0xceu
#define AMQP_FRAME_MAX 131072u /* the most we propose, and RabbitMQ's default */
#define AMQP_FRAME_LEAST 4096u
#define AMQP_SHORT_MAX 255u

enum amqp_frame_type { FRAME_METHOD = 1, FRAME_HEADER = 2, FRAME_BODY = 3, FRAME_HEARTBEAT = 8 };

/* Class and method in one number. */
#define AMQP_METHOD(class, method) ((uint32_t)(class) << 16 | (method))

enum amqp_method {
	CONNECTION_START = AMQP_METHOD(10, 10),
	CONNECTION_START_OK = AMQP_METHOD(10, 11),
	CONNECTION_SECURE = AMQP_METHOD(10, 20),
	CONNECTION_TUNE = AMQP_METHOD(10, 30),
	CONNECTION_TUNE_OK = AMQP_METHOD(10, 31),
	CONNECTION_OPEN = AMQP_METHOD(10, 40),
	CONNECTION_OPEN_OK = AMQP_METHOD(10, 41),
	CONNECTION_CLOSE = AMQP_METHOD(10, 50),
	CONNECTION_CLOSE_OK = AMQP_METHOD(10, 51),
	CONNECTION_BLOCKED = AMQP_METHOD(10, 60),
	CONNECTION_UNBLOCKED = AMQP_METHOD(10, 61),
	CHANNEL_OPEN = AMQP_METHOD(20, 10),
	CHANNEL_OPEN_OK = AMQP_METHOD(20, 11),
	CHANNEL_CLOSE = AMQP_METHOD(20, 40),
	CHANNEL_CLOSE_OK = AMQP_METHOD(20, 41),
	EXCHANGE_DECLARE = AMQP_METHOD(40, 10),
	BASIC_PUBLISH = AMQP_METHOD(60, 40),
	BASIC_RETURN = AMQP_METHOD(60, 50),
	BASIC_ACK = AMQP_METHOD(60, 80),
	BASIC_NACK = AMQP_METHOD(60, 120),
	CONFIRM_SELECT = AMQP_METHOD(85, 10),
	CONFIRM_SELECT_OK = AMQP_METHOD(85, 11),
};

/* Property flags of class basic, in the order the properties follow. */
enum amqp_property {
	PROPERTY_CONTENT_TYPE = 0x8000,
	PROPERTY_CONTENT_ENCODING = 0x4000,
	PROPERTY_HEADERS = 0x2000,
	PROPERTY_DELIVERY_MODE = 0x1000,
	PROPERTY_PRIORITY = 0x0800,
	PROPERTY_CORRELATION_ID = 0x0400,
	PROPERTY_REPLY_TO = 0x0200,
	PROPERTY_EXPIRATION = 0x0100,
	PROPERTY_MESSAGE_ID = 0x0080,
};

/* RabbitMQ's word for a reply code, "unknown code" for others; and what it means. Static. */
const char *amqp_reply_text(uint32_t code);
enum driver_fatal amqp_reply_fatal(uint32_t code);

static inline uint8_t *
amqp_put_u8(uint8_t *at, uint32_t value)
{
	*at = (uint8_t)value;
	return at + 1;
}

static inline uint8_t *
amqp_put_u16(uint8_t *at, uint32_t value)
{
	uint16_t wire = __builtin_bswap16((uint16_t)value);

	memcpy(at, &wire, sizeof(wire));
	return at + sizeof(wire);
}

static inline uint8_t *
amqp_put_u32(uint8_t *at, uint32_t value)
{
	uint32_t wire = __builtin_bswap32(value);

	memcpy(at, &wire, sizeof(wire));
	return at + sizeof(wire);
}

static inline uint8_t *
amqp_put_u64(uint8_t *at, uint64_t value)
{
	uint64_t wire = __builtin_bswap64(value);

	memcpy(at, &wire, sizeof(wire));
	return at + sizeof(wire);
}

static inline uint8_t *
amqp_put_bytes(uint8_t *at, const void *bytes, size_t len)
{
	if (len > 0)
		memcpy(at, bytes, len);
	return at + len;
}

/* len <= AMQP_SHORT_MAX */
static inline uint8_t *
amqp_put_short(uint8_t *at, const void *bytes, size_t len)
{
	return amqp_put_bytes(amqp_put_u8(at, (uint32_t)len), bytes, len);
}

static inline uint8_t *
amqp_put_long(uint8_t *at, const void *bytes, size_t len)
{
	return amqp_put_bytes(amqp_put_u32(at, (uint32_t)len), bytes, len);
}

static inline uint8_t *
amqp_put_frame_head(uint8_t *at, enum amqp_frame_type type, uint32_t channel, size_t size)
{
	return amqp_put_u32(amqp_put_u16(amqp_put_u8(at, type), channel), (uint32_t)size);
}

/* Begins a method frame whose size is filled in by amqp_end_method(). */
static inline uint8_t *
amqp_begin_method(uint8_t *at, uint32_t channel, enum amqp_method method)
{
	return amqp_put_u32(amqp_put_frame_head(at, FRAME_METHOD, channel, 0), method);
}

static inline uint8_t *
amqp_end_method(uint8_t *begin, uint8_t *at)
{
	amqp_put_u32(begin + 3, (uint32_t)(at - begin - AMQP_FRAME_HEAD));
	return amqp_put_u8(at, AMQP_FRAME_END);
}

/* Bytes read from the front; `bad` is set by the first read past the end, which gives zeros. */
struct amqp_reader {
	const uint8_t *at;
	const uint8_t *end;
	int bad;
};

struct amqp_view {
	const uint8_t *bytes;
	size_t len;
};

static inline uint64_t
amqp_take(struct amqp_reader *reader, unsigned bytes)
{
	uint64_t value = 0;

	if ((size_t)(reader->end - reader->at) < bytes) {
		reader->bad = 1;
		return 0;
	}
	while (bytes-- > 0)
		value = value << 8 | *reader->at++;
	return value;
}

static inline struct amqp_view
amqp_take_bytes(struct amqp_reader *reader, uint64_t len)
{
	struct amqp_view view = { reader->at, 0 };

	if ((uint64_t)(reader->end - reader->at) < len) {
		reader->bad = 1;
		return view;
	}
	view.len = (size_t)len;
	reader->at += len;
	return view;
}

static inline struct amqp_view
amqp_take_short(struct amqp_reader *reader)
{
	return amqp_take_bytes(reader, amqp_take(reader, 1));
}

static inline struct amqp_view
amqp_take_long(struct amqp_reader *reader)
{
	return amqp_take_bytes(reader, amqp_take(reader, 4));
}

/* channel.open and confirm.select (its answer wanted or not) into bytes; returns the end. */
#define AMQP_OPEN_SIZE 32u
uint8_t *amqp_put_open(uint8_t *at, uint32_t channel, int nowait);

#endif
