/*
 * AMQP 0-9-1 frames, for the sink.
 *
 *   [type: 1] [channel: 2] [size: 4] [payload: size] [0xce]
 */
#ifndef TG_SINK_AMQP_WIRE_H
#define TG_SINK_AMQP_WIRE_H

#include "sink_wire.h"

#include <string.h>

enum { METHOD = 1, HEADER = 2, BODY = 3, HEARTBEAT = 8, FRAME_END = 0xce };

#define M(class, method) ((uint32_t)(class) << 16 | (method))
enum {
	START = M(10, 10),
	START_OK = M(10, 11),
	TUNE = M(10, 30),
	TUNE_OK = M(10, 31),
	OPEN = M(10, 40),
	OPEN_OK = M(10, 41),
	CLOSE = M(10, 50),
	CLOSE_OK = M(10, 51),
	CHANNEL_OPEN = M(20, 10),
	CHANNEL_OPEN_OK = M(20, 11),
	CHANNEL_CLOSE = M(20, 40),
	CHANNEL_CLOSE_OK = M(20, 41),
	DECLARE = M(40, 10),
	DECLARE_OK = M(40, 11),
	PUBLISH = M(60, 40),
	ACK = M(60, 80),
	NACK = M(60, 120),
	SELECT = M(85, 10),
	SELECT_OK = M(85, 11),
};

#define FRAME_MAX 131072u
#define FRAME_EXTRA 8u
#define CHANNELS 2048u

struct frame {
	uint32_t type;
	uint32_t channel;
	struct cursor payload;
	size_t size; /* with head and end */
};

static inline struct record_view
take_short(struct cursor *cursor)
{
	return take_bytes(cursor, take_int(cursor, 1));
}

static inline struct record_view
take_long(struct cursor *cursor)
{
	return take_bytes(cursor, take_int(cursor, 4));
}

static inline uint8_t *
put_text(uint8_t *to, const char *text, unsigned length_bytes)
{
	size_t len = strlen(text);

	to = put_int(to, len, length_bytes);
	memcpy(to, text, len);
	return to + len;
}

/* Returns its size, 0 while it is not whole, -1 if it is none. */
static inline ssize_t
take_frame(struct frame *frame, const uint8_t *bytes, size_t len)
{
	struct cursor head = { bytes, bytes + len, false };

	if (len < 7)
		return 0;
	frame->type = (uint32_t)take_int(&head, 1);
	frame->channel = (uint32_t)take_int(&head, 2);
	size_t size = (size_t)take_int(&head, 4);
	if (frame->channel >= CHANNELS || size > FRAME_MAX - FRAME_EXTRA)
		return -1;
	frame->size = size + FRAME_EXTRA;
	if (len < frame->size)
		return 0;
	if (bytes[7 + size] != FRAME_END)
		return -1;
	frame->payload = (struct cursor){ head.at, head.at + size, false };
	return (ssize_t)frame->size;
}

#endif
