/*
 * Records into the SQ: measure, find room and a completion slot, write, commit, and ring if the
 * daemon sleeps. Nothing here allocates or blocks.
 */
#include "internal.h"

#include "clock.h"

#include <inttypes.h>
#include <limits.h>

#define PUBLISH_CHUNK 64u /* a long batch is shown to the daemon in pieces, so that it starts on it */

_Static_assert((unsigned)TG_QUIET == (unsigned)RECORD_F_QUIET, "flags are passed through");
_Static_assert((unsigned)TG_RETAIN == (unsigned)RECORD_F_RETAIN, "flags are passed through");

/* A message's lengths, checked; every later step uses these. */
struct shape {
	uint64_t bytes; /* of the record */
	uint16_t topic_len;
	uint16_t key_len;
	uint16_t headers_len;
};

static size_t
header_name_len(const struct tg_header *header)
{
	return header->name_len != TG_NUL ? header->name_len : strlen(header->name);
}

static __attribute__((noinline, cold)) int
too_big(const struct tg_lane *lane, const char *what, uint64_t value, uint64_t limit)
{
	return detail_fail(-TG_ETOOBIG,
	    "lane %" PRIu64 ": %s has %" PRIu64 " bytes, at most %" PRIu64 " are possible", lane->lane_id, what,
	    value, limit);
}

static __attribute__((noinline, cold)) int
bad_argument(const struct tg_lane *lane, const char *what)
{
	return detail_fail(-TG_EINVAL, "lane %" PRIu64 ": %s", lane->lane_id, what);
}

static __attribute__((noinline)) int
headers_measure(const struct tg_lane *lane, const struct tg_message *m, struct shape *shape)
{
	size_t total = 0, name_len;

	if (m->headers == NULL)
		return bad_argument(lane, "headers is NULL and header_count is not 0");
	for (size_t i = 0; i < m->header_count; i++) {
		const struct tg_header *h = &m->headers[i];

		if (h->name == NULL || (h->value == NULL && h->value_len != 0))
			return bad_argument(lane, "a header's name or value is NULL");
		name_len = header_name_len(h);
		if (name_len == 0)
			return bad_argument(
			    lane, "a header's name is empty; TG_NUL is the length of a NUL-terminated one");
		/* Each alone first: a sum of lengths from outside may wrap around. */
		if (name_len > UINT16_MAX)
			return too_big(lane, "a header's name", name_len, UINT16_MAX);
		if (h->value_len > UINT16_MAX)
			return too_big(lane, "a header's value", h->value_len, UINT16_MAX);
		total += 2 * sizeof(uint16_t) + name_len + h->value_len;
		if (total > UINT16_MAX)
			return too_big(lane, "the message's headers (with 4 bytes each)", total, UINT16_MAX);
	}
	shape->headers_len = (uint16_t)total;
	return 0;
}

static inline int
shape_measure(const struct tg_lane *lane, const struct tg_message *m, struct shape *shape)
{
	size_t topic_len = m->topic_len == TG_NUL && m->topic != NULL ? strlen(m->topic) : m->topic_len;

	if (UNLIKELY((m->topic == NULL && topic_len != 0) || (m->key == NULL && m->key_len != 0)))
		return bad_argument(lane, "topic or key is NULL and its length is not 0");
	if (UNLIKELY((m->flags & ~(uint32_t)RECORD_F_ALL) != 0))
		return bad_argument(lane, "flags has bits that mean nothing");
	if (UNLIKELY(topic_len > UINT16_MAX))
		return too_big(lane, "the topic", topic_len, UINT16_MAX);
	if (UNLIKELY(m->key_len > UINT16_MAX))
		return too_big(lane, "the key", m->key_len, UINT16_MAX);
	shape->topic_len = (uint16_t)topic_len;
	shape->key_len = (uint16_t)m->key_len;
	shape->headers_len = 0;
	if (UNLIKELY(m->header_count != 0)) {
		int rc = headers_measure(lane, m, shape);

		if (rc < 0)
			return rc;
	}
	if (UNLIKELY(m->body_len > lane->max_record))
		return too_big(lane, "the body", m->body_len, lane->max_record);
	shape->bytes = record_bytes(topic_len, m->key_len, shape->headers_len, m->body_len);
	if (UNLIKELY(shape->bytes > lane->max_record))
		return too_big(lane, "the record (with 48 of its own)", shape->bytes, lane->max_record);
	return 0;
}

static __attribute__((noinline)) int
no_room(struct tg_lane *lane, uint64_t bytes, int error)
{
	if (error != -TG_EAGAIN)
		return lane_broken(lane, "sq_head is not between the last one seen and sq_tail");
	lane->want_bytes = bytes;
	return detail_no_room(
	    lane->lane_id, bytes, lane->sq.mask + 1 - (lane->sq.tail - lane->sq.head_seen), lane->sq.mask + 1);
}

/* I4: a record needs a free completion slot. Those of finished quiet messages can be had back. */
static __attribute__((noinline)) int
slot_find(struct tg_lane *lane, uint64_t bytes)
{
	uint64_t entries = lane->cq.mask + 1;
	int rc = lane_sweep(lane);

	if (rc < 0)
		return rc;
	if (lane->published - lane->cq.head < entries)
		return 0;
	lane->want_bytes = bytes;
	return detail_no_slot(lane->lane_id, lane->published - lane->cq.head, entries);
}

static inline struct record *
room_find(struct tg_lane *lane, uint64_t bytes, int *error)
{
	struct record *r;

	if (UNLIKELY(lane->published - lane->cq.head > lane->cq.mask) && (*error = slot_find(lane, bytes)) < 0)
		return NULL;
	r = sq_reserve(&lane->sq, bytes, error);
	if (UNLIKELY(r == NULL))
		*error = no_room(lane, bytes, *error);
	return r;
}

static __attribute__((noinline)) uint8_t *
headers_write(uint8_t *to, const struct tg_message *m)
{
	for (size_t i = 0; i < m->header_count; i++) {
		const struct tg_header *h = &m->headers[i];
		uint16_t name_len = (uint16_t)header_name_len(h), value_len = (uint16_t)h->value_len;

		memcpy(to, &name_len, sizeof(name_len));
		memcpy(to + sizeof(name_len), &value_len, sizeof(value_len));
		to += sizeof(name_len) + sizeof(value_len);
		memcpy(to, h->name, name_len);
		to += name_len;
		if (value_len != 0)
			memcpy(to, h->value, value_len);
		to += value_len;
	}
	return to;
}

/* Everything but the body. Returns where the body goes. */
static inline uint8_t *
record_write(const struct tg_lane *lane, struct record *r, const struct tg_message *m,
    const struct shape *shape, uint32_t flags, uint64_t position, uint64_t now)
{
	uint8_t *to = (uint8_t *)(r + 1);

	*r = (struct record){
		.size = (uint32_t)shape->bytes,
		.check = record_check(position),
		.tag = m->tag,
		.published_ns = now + ck_pr_load_64(&lane->clock_ahead),
		.timeout_ms = m->timeout_ms,
		.body_len = (uint32_t)m->body_len,
		.topic_len = shape->topic_len,
		.key_len = shape->key_len,
		.headers_len = shape->headers_len,
		.flags = (uint16_t)flags,
		.expiry_ms = m->expiry_ms,
	};
	if (shape->topic_len != 0)
		memcpy(to, m->topic, shape->topic_len);
	to += shape->topic_len;
	if (UNLIKELY(shape->key_len != 0))
		memcpy(to, m->key, shape->key_len);
	to += shape->key_len;
	if (UNLIKELY(m->header_count != 0))
		to = headers_write(to, m);
	return to;
}

/* Pair C: shows the daemon what is committed, and wakes it if it sleeps. */
static inline void
tail_show(struct tg_lane *lane)
{
	sq_publish(&lane->sq);
	if (UNLIKELY(ck_pr_load_int(&lane->full_fence)))
		order_fence_full(ORDER_C);
	else
		order_fence_compiler();
	if (UNLIKELY(wake_must_ring(&lane->doorbell_ringer)))
		bell_ring(lane->doorbell);
}

static inline int
may_publish(struct tg_lane *lane, const struct tg_message *m)
{
	if (UNLIKELY(lane == NULL || fork_is_child(&lane->mark) || lane->fault != 0 ||
		     ck_pr_load_int(&lane->refused) != 0 || order_load_relaxed_32(lane->closed_word) != 0))
		return lane_trouble(lane);
	if (UNLIKELY(m == NULL))
		return bad_argument(lane, "message is NULL");
	if (UNLIKELY(lane->busy))
		return detail_fail(-TG_EBUSY, "lane %" PRIu64 ": %s", lane->lane_id, error_text(TG_EBUSY));
	return 0;
}

/* One record, committed but not shown yet. */
static inline int
record_add(struct tg_lane *lane, const struct tg_message *m, uint32_t flags, uint64_t now, uint64_t *position)
{
	struct shape shape;
	struct record *r;
	uint8_t *body;
	int rc;

	if (UNLIKELY(m->body == NULL && m->body_len != 0))
		return bad_argument(lane, "body is NULL and body_len is not 0");
	if (UNLIKELY((rc = shape_measure(lane, m, &shape)) < 0))
		return rc;
	if (UNLIKELY((r = room_find(lane, shape.bytes, &rc)) == NULL))
		return rc;
	body = record_write(lane, r, m, &shape, flags, lane->sq.tail, now);
	if (LIKELY(m->body_len != 0))
		memcpy(body, m->body, m->body_len);
	if (position != NULL)
		*position = lane->sq.tail;
	sq_commit(&lane->sq, shape.bytes);
	lane->published++;
	return 0;
}

static inline int
publish_one(struct tg_lane *lane, const struct tg_message *m, uint32_t drop_flags, uint64_t *position)
{
	int rc = may_publish(lane, m);
	uint64_t now;

	if (UNLIKELY(rc < 0))
		return rc;
	now = clock_read_ns(CLOCK_MONOTONIC_COARSE);
	rc = record_add(lane, m, m->flags & ~drop_flags, now, position);
	if (LIKELY(rc == 0))
		tail_show(lane);
	if (UNLIKELY(now >= lane->check_ns))
		lane_check_daemon(lane, now);
	return rc;
}

int
tg_publish(struct tg_lane *lane, const struct tg_message *message, uint64_t *position)
{
	return publish_one(lane, message, 0, position);
}

int
lane_publish_loud(struct tg_lane *lane, const struct tg_message *message, uint64_t *position)
{
	return publish_one(lane, message, RECORD_F_QUIET, position);
}

int
tg_publish_batch(struct tg_lane *lane, const struct tg_message *messages, size_t count, uint64_t *positions)
{
	int rc = may_publish(lane, messages);
	uint64_t now;
	size_t i;

	if (rc < 0)
		return rc;
	if (count > INT_MAX)
		count = INT_MAX;
	now = clock_read_ns(CLOCK_MONOTONIC_COARSE);
	for (i = 0; i < count; i++) {
		rc = record_add(
		    lane, &messages[i], messages[i].flags, now, positions != NULL ? &positions[i] : NULL);
		if (UNLIKELY(rc < 0))
			break;
		if (i % PUBLISH_CHUNK == PUBLISH_CHUNK - 1)
			sq_publish(&lane->sq);
	}
	if (i > 0)
		tail_show(lane);
	if (UNLIKELY(now >= lane->check_ns))
		lane_check_daemon(lane, now);
	return i > 0 ? (int)i : rc; /* 0 if count was */
}

int
tg_reserve(struct tg_lane *lane, const struct tg_message *message, void **body)
{
	struct shape shape;
	struct record *r;
	int rc = may_publish(lane, message);

	if (rc < 0)
		return rc;
	if (body == NULL)
		return bad_argument(lane, "body is NULL");
	if ((rc = shape_measure(lane, message, &shape)) < 0)
		return rc;
	if ((r = room_find(lane, shape.bytes, &rc)) == NULL) {
		lane_notice(lane); /* whose daemon is away has none until another is there */
		return rc;
	}
	*body = record_write(lane, r, message, &shape, message->flags, lane->sq.tail, 0);
	lane->reservation = (struct reservation){
		.record = r,
		.fixed = (uint64_t)shape.topic_len + shape.key_len + shape.headers_len,
		.body_max = message->body_len,
	};
	lane->busy = 1;
	return 0;
}

static int
reservation_check(struct tg_lane *lane)
{
	int rc = lane_trouble(lane);

	if (rc == 0 && !lane->busy)
		return bad_argument(lane, "no reservation is open");
	return rc;
}

int
tg_commit(struct tg_lane *lane, size_t body_len, uint64_t *position)
{
	int rc = reservation_check(lane);
	struct reservation *v;
	uint64_t bytes, now;

	if (rc < 0)
		return rc;
	v = &lane->reservation;
	if (body_len > v->body_max)
		return detail_fail(-TG_EINVAL, "lane %" PRIu64 ": body_len = %zu, %zu were reserved",
		    lane->lane_id, body_len, v->body_max);
	bytes = record_bytes(v->fixed, 0, 0, body_len);
	v->record->size = (uint32_t)bytes;
	v->record->body_len = (uint32_t)body_len;
	now = clock_read_ns(CLOCK_MONOTONIC_COARSE);
	v->record->published_ns = now + ck_pr_load_64(&lane->clock_ahead);
	if (position != NULL)
		*position = lane->sq.tail;
	sq_commit(&lane->sq, bytes);
	lane->published++;
	lane->busy = 0;
	v->record = NULL;
	tail_show(lane);
	if (UNLIKELY(now >= lane->check_ns))
		lane_check_daemon(lane, now);
	return 0;
}

int
tg_abort(struct tg_lane *lane)
{
	int rc;

	if (lane != NULL && !fork_is_child(&lane->mark) && lane->busy) {
		lane->busy = 0; /* whatever became of the lane meanwhile */
		lane->reservation.record = NULL;
		return 0;
	}
	rc = reservation_check(lane);
	return rc;
}

int
tg_cancel(struct tg_lane *lane, uint64_t position)
{
	int rc = lane_trouble(lane);
	struct sq_producer *sq;
	struct record *r;
	uint64_t ago;

	if (rc < 0)
		return rc;
	sq = &lane->sq;
	ago = sq->tail - position;
	if ((position & 7) != 0 || ago < sizeof(*r) || ago > sq->tail - lane->start)
		goto not_found;
	if (sq_producer_refresh(sq) < 0)
		return no_room(lane, 0, -TG_EBROKEN);
	if (ago > sq->tail - sq->head_seen)
		return detail_fail(
		    -TG_ELATE, "lane %" PRIu64 ": message %" PRIu64 " is finished", lane->lane_id, position);
	r = (struct record *)(void *)(sq->data + (position & sq->mask));
	if (r->check != record_check(position) || r->size > ago)
		goto not_found;
	order_store_relaxed_32(&r->cancel, 1);
	lane_notice(lane);
	return 0;
not_found:
	return detail_fail(
	    -TG_ENOTFOUND, "lane %" PRIu64 ": no message at position %" PRIu64, lane->lane_id, position);
}
