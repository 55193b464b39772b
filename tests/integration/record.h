/*
 * The load programs' records, in files that they map and the tests read: they are complete up to the instant at which a
 * process is killed.
 *
 * A body is "PRODUCER LANE SEQUENCE" in decimal, then, if there is room, a blank and filler that
 * follows from those three numbers, so that a subscriber can tell whether every byte arrived.
 *
 * All numbers are little-endian, as the machine's; tests/integration/load.py reads them.
 */
#ifndef TG_TESTS_RECORD_H
#define TG_TESTS_RECORD_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define RECORD_LANES 64u
#define RECORD_BODY_MIN 48u /* room a body's three numbers may need */

#define RECORD_BUCKETS 1024u /* sixteen for each power of two */
#define RECORD_RESENT 0x80u  /* beside an outcome: its completion told of more than one attempt */

/* The producer's: one at the start of its file, followed by one byte for each message of each lane
 * (message s of lane l at l * count + s): 0, or the outcome its completion gave. */
struct record_producer {
	uint64_t state;     /* 1 attached, 2 publishing, 3 all accepted, 4 all completed */
	uint64_t again;     /* TG_EAGAIN answers */
	uint64_t doubles;   /* second completions of one message */
	uint64_t strangers; /* completions of messages never accepted */
	uint64_t resent;    /* completed after more than one attempt */
	uint64_t outcomes[8];
	uint64_t error; /* the TG_E... that ended it */
	uint64_t elapsed_max_us;
	struct {
		uint64_t accepted; /* stored after tg_publish has returned 0 */
		uint64_t completed;
	} lanes[RECORD_LANES];
	uint64_t phase; /* 0 or 1, written by the test: where the times of now are counted */
	struct {
		uint64_t call[RECORD_BUCKETS];   /* of tg_publish, ns */
		uint64_t answer[RECORD_BUCKETS]; /* from it until tg_poll gave the completion, ns */
	} times[2];
};

/* The subscriber's: one at the start of its file, then `count` arrivals. */
struct record_subscriber {
	uint64_t count;
	uint64_t subscribed; /* SUBACKs: one for each time it was connected */
	uint64_t disconnected;
	uint64_t strangers; /* bodies that are no producer's */
};

struct record_arrival {
	uint32_t producer;
	uint32_t lane;
	uint64_t sequence;
	uint32_t body_len;
	uint8_t intact; /* the filler is what the producer wrote */
	uint8_t duplicate;
	uint8_t retained;
	uint8_t reserved;
};

static inline unsigned
record_bucket(uint64_t ns)
{
	unsigned power = ns < 16 ? 0 : 63u - (unsigned)__builtin_clzll(ns);

	return power == 0 ? (unsigned)ns : (power - 3u) * 16u + (unsigned)(ns >> (power - 4u) & 15u);
}

static inline uint8_t
record_filler(uint32_t producer, uint32_t lane, uint64_t sequence, size_t at)
{
	return (uint8_t)('!' + (producer * 7u + lane * 13u + sequence * 31u + at) % 90u);
}

/* Writes a body of len bytes (or as many as its numbers need) into room; returns its length. */
static inline size_t
record_body(char *room, size_t len, uint32_t producer, uint32_t lane, uint64_t sequence)
{
	char head[RECORD_BODY_MIN];
	int head_len =
	    snprintf(head, sizeof(head), "%u %u %llu ", producer, lane, (unsigned long long)sequence);
	size_t used = (size_t)head_len;
	size_t i;

	if (len < used)
		len = used - 1; /* without the blank */
	for (i = 0; i < len; i++)
		room[i] = i < used ? head[i] : (char)record_filler(producer, lane, sequence, i);
	return len;
}

#endif
