/*
 * The table of a lane's slots: a ring of pieces, made as the lane's records come to need them. However many
 * wait, one more costs a piece at most (and, each time they have doubled, the copying of as many pointers):
 * nobody on the loop waits for a table to be moved.
 *
 *   number:  head .. tail        the slots in use, free-running
 *   piece:   number / SLOTS_PIECE, at pieces[piece & mask]
 *
 * Used by the loop's thread alone.
 */
#ifndef TG_DAEMON_SLOTS_H
#define TG_DAEMON_SLOTS_H

#include <stdint.h>

#define SLOTS_PIECE 32u

struct link;

enum slot_state { SLOT_PENDING, SLOT_INFLIGHT, SLOT_DONE };

struct slot {
	uint64_t position;
	uint64_t tag;
	uint64_t published_ns;
	uint64_t deadline_ns;
	struct link *link; /* INFLIGHT: on which */
	uint32_t size;
	uint32_t body_len;
	uint16_t topic_len;
	uint16_t key_len;
	uint16_t headers_len;
	uint16_t flags;
	uint8_t state;
	uint8_t attempts;
	uint8_t maybe_sent; /* not 0: a byte of it may have reached a broker; 3: before the attempt in flight */
	uint8_t closes : 2; /* links that closed while it was sent and unanswered (blame.h) */
	uint8_t retried : 1; /* sent again because it was late; its link's failure lets it be so once more */
	uint8_t late : 1;    /* INFLIGHT: it has left its link's window */
	uint8_t alone : 2;   /* ... and it was the only one, and the broker lived */
	uint32_t seq;        /* INFLIGHT: the link's number for it, low bits */
};

_Static_assert(sizeof(struct slot) == 64, "one cache line");

struct slots {
	struct slot **pieces; /* NULL: none */
	uint32_t mask;        /* places for pieces - 1 */
	uint32_t made;        /* pieces that have memory */
};

/* Makes room for slot `tail`, those from head on being in use. Returns 0 or -TG_ENOMEM. */
int slots_reserve(struct slots *slots, uint64_t head, uint64_t tail);

/* Gives all memory back; no slot is in use. */
void slots_fini(struct slots *slots);

static inline struct slot *
slots_at(const struct slots *slots, uint64_t number)
{
	return &slots->pieces[number / SLOTS_PIECE & slots->mask][number % SLOTS_PIECE];
}

/* How many there is memory for. */
static inline uint32_t
slots_made(const struct slots *slots)
{
	return slots->made * SLOTS_PIECE;
}

#endif
