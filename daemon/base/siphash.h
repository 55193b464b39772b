/*
 * SipHash-2-4 with 128 bits of result (J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012) of one
 * 64-bit word: without the key, results that were seen tell nothing about those of other words.
 */
#ifndef TG_DAEMON_SIPHASH_H
#define TG_DAEMON_SIPHASH_H

#include <stdint.h>

struct siphash_key {
	uint64_t word[2];
};

struct siphash {
	uint64_t word[2];
};

static inline uint64_t
siphash_rotate(uint64_t x, unsigned bits)
{
	return x << bits | x >> (64 - bits);
}

static inline void
siphash_round(uint64_t v[4])
{
	v[0] += v[1];
	v[2] += v[3];
	v[1] = siphash_rotate(v[1], 13) ^ v[0];
	v[3] = siphash_rotate(v[3], 16) ^ v[2];
	v[0] = siphash_rotate(v[0], 32);
	v[2] += v[1];
	v[0] += v[3];
	v[1] = siphash_rotate(v[1], 17) ^ v[2];
	v[3] = siphash_rotate(v[3], 21) ^ v[0];
	v[2] = siphash_rotate(v[2], 32);
}

static inline void
siphash_take(uint64_t v[4], uint64_t word)
{
	v[3] ^= word;
	siphash_round(v);
	siphash_round(v);
	v[0] ^= word;
}

static inline uint64_t
siphash_give(uint64_t v[4], unsigned mark, unsigned lane)
{
	v[lane] ^= mark;
	for (int i = 0; i < 4; i++)
		siphash_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* word: eight bytes, the lowest first. */
static inline struct siphash
siphash_of(const struct siphash_key *key, uint64_t word)
{
	uint64_t v[4] = {
		key->word[0] ^ UINT64_C(0x736f6d6570736575),
		key->word[1] ^ UINT64_C(0x646f72616e646f6d) ^ 0xee,
		key->word[0] ^ UINT64_C(0x6c7967656e657261),
		key->word[1] ^ UINT64_C(0x7465646279746573),
	};
	struct siphash result;

	siphash_take(v, word);
	siphash_take(v, UINT64_C(8) << 56); /* the input's length, as the paper has it */
	result.word[0] = siphash_give(v, 0xee, 2);
	result.word[1] = siphash_give(v, 0xdd, 1);
	return result;
}

#endif
