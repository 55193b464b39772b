/* Reading and writing big-endian numbers and runs of bytes, for the sink's binary protocols. */
#ifndef TG_SINK_WIRE_H
#define TG_SINK_WIRE_H

#include "record.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A packet or a part of it, read from the front; `bad` is set by the first read past its end. */
struct cursor {
	const uint8_t *at;
	const uint8_t *end;
	bool bad;
};

/* Of at most 8 bytes; 0 when there are fewer. */
static inline uint64_t
take_int(struct cursor *cursor, unsigned bytes)
{
	uint64_t n = 0;

	if ((size_t)(cursor->end - cursor->at) < bytes) {
		cursor->bad = true;
		return 0;
	}
	while (bytes-- > 0)
		n = n << 8 | *cursor->at++;
	return n;
}

/* Points into what the cursor reads; empty when there are fewer. */
static inline struct record_view
take_bytes(struct cursor *cursor, uint64_t len)
{
	struct record_view view = { cursor->at, 0 };

	if ((uint64_t)(cursor->end - cursor->at) < len) {
		cursor->bad = true;
		return view;
	}
	view.len = (size_t)len;
	cursor->at += len;
	return view;
}

/* Returns where the next goes. */
static inline uint8_t *
put_int(uint8_t *to, uint64_t n, unsigned bytes)
{
	while (bytes-- > 0)
		*to++ = (uint8_t)(n >> (8 * bytes));
	return to;
}

#endif
