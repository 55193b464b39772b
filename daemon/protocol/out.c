#include "out.h"

#include "shm/error.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define OUT_PIECES 16u /* first capacity of the ring of pieces */

/*
 * Blocks are filled front to back and their pieces leave the ring in that order, so a block is free
 * when the last of its pieces has gone. One that holds a single large piece (out_own(), out_space()) is
 * full from the start and is never the open one.
 */
struct out_block {
	uint32_t pieces; /* in the ring, of this block */
	uint32_t secret; /* wipe before anything else is done with it */
	size_t capacity;
	size_t used;
	uint8_t bytes[];
};

static inline struct out_piece *
piece_at(const struct out *out, uint32_t index)
{
	return &out->pieces[(out->first + index) & (out->capacity - 1)];
}

static struct out_block *
block_new(struct out *out, size_t capacity)
{
	struct out_block *block = out->spare;

	if (capacity == OUT_BLOCK && block != NULL) {
		out->spare = NULL;
		return block;
	}
	block = malloc(sizeof(*block) + capacity);
	if (block == NULL)
		return NULL;
	block->pieces = 0;
	block->secret = 0;
	block->capacity = capacity;
	block->used = 0;
	return block;
}

static void
block_wipe(struct out_block *block)
{
	if (block->secret)
		explicit_bzero(block->bytes, block->used);
	block->secret = 0;
	block->used = 0;
}

/* Nothing of the block is unwritten any more. */
static void
block_done(struct out *out, struct out_block *block)
{
	block_wipe(block);
	if (block == out->open)
		return;
	if (out->spare == NULL && block->capacity == OUT_BLOCK)
		out->spare = block;
	else
		free(block);
}

static void
piece_done(struct out *out, struct out_piece *piece)
{
	struct out_block *block = piece->block;

	if (block != NULL && --block->pieces == 0)
		block_done(out, block);
}

static int
pieces_grow(struct out *out)
{
	uint32_t capacity = out->capacity == 0 ? OUT_PIECES : out->capacity * 2;
	struct out_piece *pieces = malloc(capacity * sizeof(*pieces));

	if (pieces == NULL)
		return -TG_ENOMEM;
	for (uint32_t i = 0; i < out->count; i++)
		pieces[i] = *piece_at(out, i);
	free(out->pieces);
	out->pieces = pieces;
	out->first = 0;
	out->capacity = capacity;
	return 0;
}

/* The block's next len bytes, or, with block NULL, a reference. */
static int
piece_push(struct out *out, struct out_block *block, const uint8_t *ref, size_t len)
{
	const uint8_t *bytes = block != NULL ? block->bytes + block->used : ref;

	if (out->count == out->capacity && pieces_grow(out) != 0)
		return -TG_ENOMEM;
	*piece_at(out, out->count++) = (struct out_piece){ .block = block, .bytes = bytes, .len = len };
	if (block != NULL) {
		block->pieces++;
		block->used += len;
	}
	out->end += len;
	return 0;
}

void
out_init(struct out *out)
{
	memset(out, 0, sizeof(*out));
}

void
out_fini(struct out *out)
{
	out_reset(out);
	free(out->open);
	free(out->spare);
	free(out->pieces);
	memset(out, 0, sizeof(*out));
}

void
out_reset(struct out *out)
{
	for (uint32_t i = 0; i < out->count; i++)
		piece_done(out, piece_at(out, i));
	out->first = 0;
	out->count = 0;
	out->end = 0;
	out->written = 0;
	out->mark = 0;
	out->failed = 0;
}

/* len bytes at the end of the open block, which has room for them. NULL without memory. */
static uint8_t *
append_open(struct out *out, size_t len)
{
	struct out_block *block = out->open;
	uint8_t *bytes = block->bytes + block->used;

	if (out->count > 0) {
		struct out_piece *last = piece_at(out, out->count - 1);
		if (last->block == block) {
			last->len += len;
			block->used += len;
			out->end += len;
			return bytes;
		}
	}
	if (len == 0)
		return bytes; /* a piece is never empty */
	return piece_push(out, block, NULL, len) == 0 ? bytes : NULL;
}

/* A new open block; what is left of the old one stays unused. */
static int
open_next(struct out *out)
{
	struct out_block *old = out->open;
	struct out_block *block = block_new(out, OUT_BLOCK);

	if (block == NULL)
		return -TG_ENOMEM;
	out->open = block;
	if (old != NULL && old->pieces == 0)
		block_done(out, old);
	return 0;
}

/* A block for this piece alone. */
static uint8_t *
append_large(struct out *out, size_t len)
{
	struct out_block *block = block_new(out, len);

	if (block == NULL)
		return NULL;
	if (piece_push(out, block, NULL, len) == 0)
		return block->bytes;
	free(block);
	return NULL;
}

uint8_t *
out_space(struct out *out, size_t len)
{
	if (__builtin_expect(!out->failed, 1)) {
		uint8_t *bytes = NULL;
		if (__builtin_expect(out->open != NULL && OUT_BLOCK - out->open->used >= len, 1))
			bytes = append_open(out, len);
		else if (len > OUT_BLOCK)
			bytes = append_large(out, len);
		else if (open_next(out) == 0)
			bytes = append_open(out, len);
		if (__builtin_expect(bytes != NULL, 1))
			return bytes;
		out->failed = 1;
	}
	return NULL;
}

void
out_trim(struct out *out, size_t n)
{
	struct out_piece *last = piece_at(out, out->count - 1);

	assert(last->block != NULL && last->len > n);
	last->len -= n;
	last->block->used -= n;
	out->end -= n;
}

void
out_copy(struct out *out, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	while (len > 0) {
		size_t room = out->open != NULL ? OUT_BLOCK - out->open->used : 0;
		size_t n = room == 0 ? OUT_BLOCK : room;
		if (n > len)
			n = len;
		uint8_t *space = out_space(out, n);
		if (space == NULL)
			return;
		memcpy(space, at, n);
		at += n;
		len -= n;
	}
}

void
out_ref(struct out *out, const void *bytes, size_t len)
{
	if (len == 0 || out->failed)
		return;
	if (piece_push(out, NULL, bytes, len) != 0)
		out->failed = 1;
}

void
out_body(struct out *out, const void *bytes, size_t len)
{
	if (len >= OUT_REF_MIN)
		out_ref(out, bytes, len);
	else
		out_copy(out, bytes, len);
}

void
out_mark(struct out *out)
{
	out->mark = out->end;
	out->failed = 0;
}

int
out_commit(struct out *out)
{
	if (__builtin_expect(!out->failed, 1))
		return 0;
	out_rollback(out);
	return -TG_ENOMEM;
}

void
out_rollback(struct out *out)
{
	assert(out->mark >= out->written && out->mark <= out->end);
	while (out->end > out->mark) {
		struct out_piece *last = piece_at(out, out->count - 1);
		size_t n = out->end - out->mark < last->len ? (size_t)(out->end - out->mark) : last->len;
		struct out_block *block = last->block;

		out->end -= n;
		last->len -= n;
		if (block != NULL) {
			/* Given back before it is counted off, or the wipe would miss it. */
			if (block->secret)
				explicit_bzero(block->bytes + block->used - n, n);
			block->used -= n;
		}
		if (last->len == 0) {
			out->count--;
			piece_done(out, last);
		}
	}
	out->failed = 0;
}

int
out_frame(struct out *out, const void *bytes, size_t len)
{
	out_mark(out);
	out_copy(out, bytes, len);
	return out_commit(out);
}

void
out_secret(struct out *out)
{
	uint64_t end = out->end;

	for (uint32_t i = out->count; i > 0 && end > out->mark; i--) {
		struct out_piece *piece = piece_at(out, i - 1);
		if (piece->block != NULL)
			piece->block->secret = 1;
		end -= piece->len;
	}
}

int
out_own(struct out *out)
{
	for (uint32_t i = 0; i < out->count; i++) {
		struct out_piece *piece = piece_at(out, i);
		if (piece->block != NULL)
			continue;
		/* Of a size of its own even where it fits the spare: that one is for the next frame. */
		struct out_block *block = malloc(sizeof(*block) + piece->len);
		if (block == NULL)
			return -TG_ENOMEM;
		*block = (struct out_block){ .pieces = 1, .capacity = piece->len, .used = piece->len };
		memcpy(block->bytes, piece->bytes, piece->len);
		piece->block = block;
		piece->bytes = block->bytes;
	}
	return 0;
}

int
out_iovec(const struct out *out, struct iovec *iov, int max)
{
	int n = 0;

	for (uint32_t i = 0; i < out->count && n < max; i++) {
		const struct out_piece *piece = piece_at(out, i);
		iov[n].iov_base = (void *)(uintptr_t)piece->bytes;
		iov[n].iov_len = piece->len;
		n++;
	}
	return n;
}

void
out_consume(struct out *out, size_t n)
{
	assert(n <= out_unwritten(out));
	out->written += n;
	while (n > 0) {
		struct out_piece *piece = piece_at(out, 0);
		if (n < piece->len) {
			piece->bytes += n;
			piece->len -= n;
			return;
		}
		n -= piece->len;
		out->first = (out->first + 1) & (out->capacity - 1);
		out->count--;
		piece_done(out, piece);
	}
}
