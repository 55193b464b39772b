/*
 * A link's outbound bytes: small pieces are copied into blocks, large bodies are referenced where
 * they lie in a ring, and the whole is written with writev.
 *
 *   [block: frame frame frame] [ref: body in a ring] [block: frame ...]
 *
 * Offsets are free-running 64-bit byte counts of the connection: out_end() is where the next byte
 * goes, out_written() what the socket has taken. A message is SENT when out_written() passes the
 * out_end() it had after framing.
 *
 * Owner: its link; one thread. Memory: bounded by the link's high watermark plus one record.
 * A reference is borrowed: whoever lent it keeps it valid until out_written() has passed it, or
 * out_own() was called, or the out is reset.
 */
#ifndef TG_DAEMON_OUT_H
#define TG_DAEMON_OUT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>

#define OUT_BLOCK (64u << 10) /* a 64 KiB write costs 50 ns for each 64-byte message, a lone one 650 */
#define OUT_REF_MIN 4096u     /* below this, copying is cheaper than one more iovec */

struct out_block;

struct out_piece {
	struct out_block *block; /* NULL: a reference */
	const uint8_t *bytes;
	size_t len;
};

/* Zeroed: empty. */
struct out {
	struct out_piece *pieces; /* a ring of `capacity`, power of two */
	uint32_t first, count, capacity;
	struct out_block *open;  /* where the next small append goes; NULL: a new one */
	struct out_block *spare; /* one empty block kept */
	uint64_t end;
	uint64_t written;
	uint64_t mark; /* out_mark(): roll-back point of a frame being made */
	int failed;    /* an append ran out of memory since the last out_mark() */
};

void out_init(struct out *out);
void out_fini(struct out *out);

/* Forgets everything unwritten and starts counting from 0 again (a new connection). */
void out_reset(struct out *out);

/* Appends a copy. Running out of memory is remembered: out_commit() reports it. */
void out_copy(struct out *out, const void *bytes, size_t len);

/* Appends a reference. */
void out_ref(struct out *out, const void *bytes, size_t len);

/* By reference if len >= OUT_REF_MIN, else copied. */
void out_body(struct out *out, const void *bytes, size_t len);

/*
 * len contiguous bytes to write into now; NULL without memory (remembered). More than OUT_BLOCK, such as a
 * frame with very long headers, get a block of their own.
 */
uint8_t *out_space(struct out *out, size_t len);

/* Takes back the last n bytes of what out_space() gave last, with nothing appended since; not all of them. */
void out_trim(struct out *out, size_t n);

/* out_mark .. out_commit: a frame is whole or not there. Commit returns 0, or -TG_ENOMEM after roll-back. */
void out_mark(struct out *out);
int out_commit(struct out *out);
void out_rollback(struct out *out);

/* A frame of bytes that are all there: mark, copy, commit. */
int out_frame(struct out *out, const void *bytes, size_t len);

/* Turns every reference into a copy, so that rings may be released. Returns 0 or -TG_ENOMEM. */
int out_own(struct out *out);

/* The unwritten bytes as iovecs: returns how many were filled in. */
int out_iovec(const struct out *out, struct iovec *iov, int max);

/* What was appended since out_mark() holds a secret: its blocks are wiped once nothing of them is unwritten. */
void out_secret(struct out *out);

/* The socket took n bytes (n <= out_unwritten(); never between out_mark and out_commit). */
void out_consume(struct out *out, size_t n);

/*
 * Copies len bytes; returns what is behind them. Knowing a bound of len, gcc copies with `rep movs`, whose
 * start alone costs more than all of memcpy() does for a topic or a small body: here it knows none.
 */
static inline uint8_t *
out_put(uint8_t *at, const void *bytes, size_t len)
{
	if (!__builtin_constant_p(len))
		__asm__("" : "+r"(len));
	if (len > 0)
		memcpy(at, bytes, len);
	return at + len;
}

static inline uint64_t
out_unwritten(const struct out *out)
{
	return out->end - out->written;
}

static inline uint64_t
out_end(const struct out *out)
{
	return out->end;
}

static inline uint64_t
out_written(const struct out *out)
{
	return out->written;
}

#endif
