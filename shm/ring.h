/*
 * The two rings of a lane: records go to the daemon (SQ), completions come back (CQ).
 *
 * Positions are free-running 64-bit byte counts of the SQ; counts are free-running 64-bit
 * numbers of completions. Both are compared by subtraction only and reduced to an offset with
 * the side's own mask.
 *
 *   SQ      sq_head               pos of each record               sq_tail
 *           |  released below     |                                |
 *           v                     v                                v
 *     ......[record][record][record][record][record][record][record]........
 *            done    done    sent    sent    unsent  unsent  unsent
 *                                            ^ sq_sent: nothing at or above was ever sent
 *
 *   CQ      cq_head [completion][completion][completion] cq_tail
 *
 *  Invariants
 *  I1  0 <= sq_tail - sq_head <= sq_bytes                 0 <= cq_tail - cq_head <= cq_entries
 *  I2  [sq_head, sq_tail) holds whole records; the rest of the ring is the producer's to write
 *  I3  sq_tail, cq_head, waiting are written by the client alone; sq_head, sq_sent, cq_tail,
 *      asleep, writable, closed by the daemon alone
 *  I4  published - cq_head <= cq_entries (the producer keeps a completion slot for each record
 *      before it commits it), and the daemon admits a record only while cq_may_admit() says so:
 *        cq_tail + unfinished < cq_head + cq_entries       the CQ cannot overflow
 *        cq_tail + unfinished < floor + cq_entries / 2     see I5
 *      unfinished: records admitted and not completed; floor: the value of cq_tail when the oldest
 *      unreleased record was admitted
 *  I5  a record in [sq_head, sq_tail) is finished exactly when one of the last cq_entries / 2
 *      entries below cq_tail has its position: the release-store of cq_tail is the one commit
 *      point. Half, because a daemon that dies between writing entries and that store leaves
 *      uncommitted ones in the slots ahead of cq_tail, which are those of the oldest entries
 *      behind it; and from floor, because the records behind a slow one go on being finished
 *      while the entries of its finished neighbours are still needed
 *  I6  sq_sent is stored before any byte of the record at sq_sent - 1 is given to a socket
 *
 *  Trust
 *  T1  geometry is copied out and checked at attach, never read again
 *  T2  each end keeps its own cursor privately and only publishes it
 *  T3  a peer's word is loaded once, checked, and then only the local is used
 *  T4  the daemon copies a record's header out once and uses only the copy; topic, key and
 *      headers are copied before they are looked at; a body is only ever passed on
 *  T5  zero is never a valid record: memory that was never written reads as zeros
 *  T6  the kernel keeps I3: neither side can write the memfd of the other (lane.h)
 *
 *  Ordering pairs
 *  A   client store-release sq_tail  -> daemon load-acquire sq_tail   sees the tail: sees the bytes
 *  B   daemon store-release sq_head  -> client load-acquire sq_head   daemon's loads are over
 *  C   client store sq_tail; FENCE; load asleep  ||  daemon store asleep; FENCE; load sq_tail
 *      one of the two loads sees the other's store. With LANE_F_EXPEDITED the daemon raises
 *      both fences at once (membarrier) and the client's is the compiler's alone
 *  D   daemon store-release cq_tail  -> client load-acquire cq_tail   sees the tail: sees entries
 *  E   client store-release cq_head  -> daemon load-acquire cq_head   client's loads are over
 *  F   daemon store cq_tail, sq_head; FENCE; load waiting
 *                                     ||  client store waiting; FENCE; load cq_tail, sq_head
 *      sq_head too, and before the ring: a client that waits for room has perhaps no completion
 *      left to come
 *  G   daemon store cq_tail; store-release sq_head  -> recovery load-acquire sq_head; load cq_tail
 *      never released unfinished. The one store of sq_head serves B and G
 */
#ifndef TG_SHM_RING_H
#define TG_SHM_RING_H

#include "error.h"
#include "lane.h"
#include "order.h"

#include <string.h>

/*
 * A message as it lies in the SQ, 8-aligned:
 *   struct record | topic | key | headers | body | zero to seven bytes
 * headers: any number of { u16 name_len, u16 value_len, name, value }, native byte order.
 */
struct record {
	uint32_t size;         /* from here to the next record; a multiple of 8 */
	uint32_t check;        /* record_check(position) */
	uint64_t tag;          /* the producer's own, returned in the completion */
	uint64_t published_ns; /* CLOCK_MONOTONIC_COARSE at publish, as the daemon's time namespace has it */
	uint32_t timeout_ms;   /* from published_ns; 0: the pool's message_timeout_ms */
	uint32_t body_len;
	uint16_t topic_len;
	uint16_t key_len;
	uint16_t headers_len;
	uint16_t flags;     /* enum record_flags */
	uint32_t cancel;    /* the only word written after commit: non-zero asks for TG_CANCELLED */
	uint32_t expiry_ms; /* from published_ns; for how long the message is of use; 0: for ever */
};

_Static_assert(sizeof(struct record) == 48, "lane ABI");
_Static_assert(offsetof(struct record, cancel) == 40, "lane ABI");

enum record_flags {
	RECORD_F_QUIET = 1u << 0,  /* no completion wanted for DELIVERED or SENT; the library swallows it */
	RECORD_F_RETAIN = 1u << 1, /* protocols that know it (MQTT): the broker keeps it for new subscribers */
	RECORD_F_ALL = RECORD_F_QUIET | RECORD_F_RETAIN,
};

/* The answer to one record. */
struct completion {
	uint64_t position;   /* of its record */
	uint64_t tag;        /* its record's */
	uint64_t reference;  /* the broker's own number for it (stream sequence, offset); 0: none */
	uint32_t elapsed_us; /* from published_ns to the answer, at the coarse clock's resolution */
	uint16_t code;       /* the broker's reason code; 0: none */
	uint8_t outcome;     /* enum tg_outcome */
	uint8_t info;        /* low 7 bits: attempts, 127 means 127 or more; top bit: was RECORD_F_QUIET */
};

_Static_assert(sizeof(struct completion) == 32, "lane ABI");

#define COMPLETION_QUIET 0x80u
#define COMPLETION_ATTEMPTS 0x7fu

/* Never equal for two neighbouring positions, so stale bytes of an earlier lap are not a record. */
static inline uint32_t
record_check(uint64_t position)
{
	return (uint32_t)(position >> 3) * UINT32_C(2654435761) ^ UINT32_C(0x74646772);
}

/* Bytes a record takes in the ring. The caller has checked the lengths against the lane's limit. */
static inline uint64_t
record_bytes(uint64_t topic_len, uint64_t key_len, uint64_t headers_len, uint64_t body_len)
{
	return (sizeof(struct record) + topic_len + key_len + headers_len + body_len + 7u) & ~UINT64_C(7);
}

/* ---- SQ, the client's end ---- */

/* Owned by the thread that owns the lane. Zeroed: not attached. */
struct sq_producer {
	uint8_t *data;
	uint64_t mask;
	uint64_t tail;      /* the end of the committed bytes */
	uint64_t head_seen; /* the last good sq_head */
	uint64_t *tail_word;
	const uint64_t *head_word;
};

/* tail: where the next record starts, in a lane that holds no unreleased record. */
static inline void
sq_producer_init(struct sq_producer *sq, const struct lane_map *map, uint64_t tail)
{
	sq->data = map->sq;
	sq->mask = map->geo.sq_bytes - 1;
	sq->tail = tail;
	sq->head_seen = tail;
	sq->tail_word = &map->client->sq_tail;
	sq->head_word = &map->daemon->sq_head;
}

/*
 * Reads sq_head again. Returns the free bytes, or -TG_EBROKEN when the word breaks I1.
 */
static inline int64_t
sq_producer_refresh(struct sq_producer *sq)
{
	uint64_t head = order_load_acquire_64(ORDER_B, sq->head_word);

	if (sq->tail - head > sq->mask + 1 || sq->tail - sq->head_seen < sq->tail - head || (head & 7) != 0)
		return -TG_EBROKEN; /* out of I1, backwards, or between records */
	sq->head_seen = head;
	return (int64_t)(sq->mask + 1 - (sq->tail - head));
}

/*
 * Space for a record of `bytes` (record_bytes()) at the tail; it is the caller's until
 * sq_commit. Returns NULL when there is none (*error: -TG_EAGAIN or -TG_EBROKEN).
 */
static inline struct record *
sq_reserve(struct sq_producer *sq, uint64_t bytes, int *error)
{
	if (bytes > sq->mask + 1 - (sq->tail - sq->head_seen)) {
		int64_t room = sq_producer_refresh(sq);

		if (room < 0 || (uint64_t)room < bytes) {
			*error = room < 0 ? (int)room : -TG_EAGAIN;
			return NULL;
		}
	}
	return (struct record *)(void *)(sq->data + (sq->tail & sq->mask));
}

/* Moves the private tail over a finished record; sq_publish makes it visible. */
static inline void
sq_commit(struct sq_producer *sq, uint64_t bytes)
{
	sq->tail += bytes;
}

static inline void
sq_publish(struct sq_producer *sq)
{
	order_store_release_64(ORDER_A, sq->tail_word, sq->tail);
}

/* ---- SQ, the daemon's end ---- */

struct sq_consumer {
	uint8_t *data;
	uint64_t mask;
	uint64_t head;      /* released below this */
	uint64_t cursor;    /* next record to admit */
	uint64_t tail_seen; /* the last good sq_tail */
	uint64_t sent;      /* nothing at or above was ever sent */
	const uint64_t *tail_word;
	uint64_t *head_word;
	uint64_t *sent_word;
};

/*
 * head: 0 in a new lane; in one that was handed back, sq_head as loaded once from it (any value:
 * sq_consumer_refresh refuses a bad one). sq_sent is taken over from the lane.
 */
static inline void
sq_consumer_init(struct sq_consumer *sq, const struct lane_map *map, uint64_t head)
{
	sq->data = map->sq;
	sq->mask = map->geo.sq_bytes - 1;
	sq->head = sq->cursor = sq->tail_seen = head;
	sq->tail_word = &map->client->sq_tail;
	sq->head_word = &map->daemon->sq_head;
	sq->sent_word = &map->daemon->sq_sent;
	sq->sent = order_load_relaxed_64(sq->sent_word);
}

/* Looks for new records. Returns 1 if [cursor, tail_seen) is not empty, 0, or -TG_EBROKEN (I1). */
static inline int
sq_consumer_refresh(struct sq_consumer *sq)
{
	uint64_t tail = order_load_acquire_64(ORDER_A, sq->tail_word);

	if (tail - sq->head > sq->mask + 1 || tail - sq->head < sq->tail_seen - sq->head ||
	    ((tail | sq->head) & 7) != 0)
		return -TG_EBROKEN; /* too far, backwards, or between records */
	sq->tail_seen = tail;
	return tail != sq->cursor;
}

/*
 * Copies out and checks the header of the record at the cursor. Only below tail_seen.
 * Returns 0, or -TG_EBROKEN: there is no valid record.
 */
static inline int
sq_peek(const struct sq_consumer *sq, struct record *copy)
{
	uint64_t avail = sq->tail_seen - sq->cursor;

	if (avail < sizeof(*copy))
		return -TG_EBROKEN;
	memcpy(copy, sq->data + (sq->cursor & sq->mask), sizeof(*copy));
	order_fence_compiler(); /* T4: from here on, only the copy */
	if (copy->size > avail || copy->check != record_check(sq->cursor) ||
	    (uint64_t)copy->size !=
		record_bytes(copy->topic_len, copy->key_len, copy->headers_len, copy->body_len))
		return -TG_EBROKEN;
	return 0;
}

/* The bytes of a record that was admitted at this position. */
static inline const uint8_t *
sq_at(const struct sq_consumer *sq, uint64_t position)
{
	return sq->data + (position & sq->mask);
}

/* The producer's wish, looked at when the record is framed. */
static inline int
sq_is_cancelled(const struct sq_consumer *sq, uint64_t position)
{
	const struct record *r = (const struct record *)(const void *)sq_at(sq, position);

	return order_load_relaxed_32(&r->cancel) != 0;
}

/*
 * When the message's use is over. T4: bounds and lengths come from the copy of the header; this is a number
 * that the broker is told, and is read here again, next to `cancel`, so that no slot has to keep it.
 */
static inline uint32_t
sq_expiry_ms(const struct sq_consumer *sq, uint64_t position)
{
	const struct record *r = (const struct record *)(const void *)sq_at(sq, position);

	return order_load_relaxed_32(&r->expiry_ms);
}

/*
 * I6: before the first byte of the record that ends at `end` goes to a socket. It never moves back:
 * a record that is sent again may lie behind others that were sent.
 */
static inline void
sq_mark_sent(struct sq_consumer *sq, uint64_t end)
{
	if ((int64_t)(end - sq->sent) <= 0)
		return;
	sq->sent = end;
	order_store_relaxed_64(sq->sent_word, end);
}

/* May the record at this position have reached a broker, from this daemon or one before it? */
static inline int
sq_was_sent(const struct sq_consumer *sq, uint64_t position)
{
	return (int64_t)(position - sq->sent) < 0;
}

/* B and G, by one store, which is weak in the mutant of either: after cq_publish only. */
static inline void
sq_release(struct sq_consumer *sq, uint64_t head)
{
	sq->head = head;
	order_store_release_64(order_is_weak(ORDER_G) ? ORDER_G : ORDER_B, sq->head_word, head);
}

/* ---- CQ, the daemon's end ---- */

struct cq_producer {
	struct completion *entries;
	uint64_t mask;
	uint64_t tail;
	uint64_t head_seen;
	uint64_t *tail_word;
	const uint64_t *head_word;
};

static inline void
cq_producer_init(struct cq_producer *cq, const struct lane_map *map, uint64_t tail, uint64_t head)
{
	cq->entries = map->cq;
	cq->mask = map->geo.cq_entries - 1;
	cq->tail = tail;
	cq->head_seen = head;
	cq->tail_word = &map->daemon->cq_tail;
	cq->head_word = &map->client->cq_head;
}

/* Reads cq_head again. Returns the free entries, or -TG_EBROKEN (I1). */
static inline int64_t
cq_producer_refresh(struct cq_producer *cq)
{
	uint64_t head = order_load_acquire_64(ORDER_E, cq->head_word);

	if (cq->tail - head > cq->mask + 1 || cq->tail - head > cq->tail - cq->head_seen)
		return -TG_EBROKEN;
	cq->head_seen = head;
	return (int64_t)(cq->mask + 1 - (cq->tail - head));
}

/*
 * I4: may one more record be admitted? Looks at the cq_head last refreshed. unfinished: records
 * admitted and not yet pushed. floor: cq->tail as it was when the oldest unreleased record was
 * admitted; cq->tail itself when there is none. For records of a lane that was handed back it is
 * the lowest count at which recovery found a finished one, or cq->tail.
 */
static inline int
cq_may_admit(const struct cq_producer *cq, uint64_t floor, uint64_t unfinished)
{
	uint64_t entries = cq->mask + 1;

	return cq->tail - cq->head_seen + unfinished < entries && cq->tail - floor + unfinished < entries / 2;
}

/* I5: the first of the entries below tail that recovery may believe. tail: cq_tail, loaded once. */
static inline uint64_t
cq_recover_from(const struct cq_producer *cq, uint64_t tail)
{
	uint64_t half = (cq->mask + 1) / 2;

	return tail < half ? 0 : tail - half;
}

/* Writes an entry; the slot was kept for it when its record was admitted (I4). */
static inline void
cq_push(struct cq_producer *cq, const struct completion *completion)
{
	cq->entries[cq->tail & cq->mask] = *completion;
	cq->tail++;
}

/* D: the commit point. */
static inline void
cq_publish(struct cq_producer *cq)
{
	order_store_release_64(ORDER_D, cq->tail_word, cq->tail);
}

/* ---- CQ, the client's end ---- */

struct cq_consumer {
	const struct completion *entries;
	uint64_t mask;
	uint64_t head;
	uint64_t tail_seen;
	const uint64_t *tail_word;
	uint64_t *head_word;
};

static inline void
cq_consumer_init(struct cq_consumer *cq, const struct lane_map *map, uint64_t head)
{
	cq->entries = map->cq;
	cq->mask = map->geo.cq_entries - 1;
	cq->head = cq->tail_seen = head;
	cq->tail_word = &map->daemon->cq_tail;
	cq->head_word = &map->client->cq_head;
}

/* Returns how many completions are there, or -TG_EBROKEN (I1). */
static inline int64_t
cq_consumer_refresh(struct cq_consumer *cq)
{
	uint64_t tail = order_load_acquire_64(ORDER_D, cq->tail_word);

	if (tail - cq->head > cq->mask + 1 || tail - cq->head < cq->tail_seen - cq->head)
		return -TG_EBROKEN;
	cq->tail_seen = tail;
	return (int64_t)(tail - cq->head);
}

static inline const struct completion *
cq_at(const struct cq_consumer *cq, uint64_t count)
{
	return &cq->entries[count & cq->mask];
}

/* Gives consumed entries back. */
static inline void
cq_release(struct cq_consumer *cq, uint64_t head)
{
	cq->head = head;
	order_store_release_64(ORDER_E, cq->head_word, head);
}

#endif
