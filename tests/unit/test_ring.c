/*
 * Compares SQ and CQ with a plain queue under random operations, and runs both against a hostile peer. The two
 * ends use two mappings of the same lane, as in production.
 */
#include "shm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>

/* Two views of one lane, and a page that faults directly behind each. */
struct two {
	struct test_lane lane;
	struct lane_map other; /* the daemon's view */
	struct sq_producer sp;
	struct sq_consumer sc;
	struct cq_producer cp;
	struct cq_consumer cc;
};

static void
two_init(struct two *t, uint64_t sq_bytes, uint64_t start)
{
	test_lane_init(&t->lane, sq_bytes, 0);
	assert_int_equal(test_lane_map(&t->lane, &t->other), 0);
	t->lane.map.client->sq_tail = start;
	t->lane.map.daemon->sq_head = start;
	t->lane.map.daemon->sq_sent = start;
	sq_producer_init(&t->sp, &t->lane.map, start);
	sq_consumer_init(&t->sc, &t->other, start);
	cq_producer_init(&t->cp, &t->other, 0, 0);
	cq_consumer_init(&t->cc, &t->lane.map, 0);
}

static void
two_fini(struct two *t)
{
	lane_map_fini(&t->other);
	test_lane_fini(&t->lane);
}

/* A record with a body made from its tag; lens as given. Returns its bytes, or 0 if there is no room. */
static uint64_t
put(struct two *t, uint64_t tag, uint16_t topic, uint16_t key, uint16_t headers, uint32_t body)
{
	uint64_t bytes = record_bytes(topic, key, headers, body);
	int error = 0;
	struct record *r = sq_reserve(&t->sp, bytes, &error);

	if (r == NULL) {
		assert_int_equal(error, -TG_EAGAIN);
		return 0;
	}
	assert_true((uint8_t *)r >= t->lane.map.sq);
	assert_true((uint8_t *)r + bytes <= t->lane.map.sq + 2 * t->lane.map.geo.sq_bytes);
	memset(r, 0, sizeof(*r));
	r->size = (uint32_t)bytes;
	r->check = record_check(t->sp.tail);
	r->tag = tag;
	r->topic_len = topic;
	r->key_len = key;
	r->headers_len = headers;
	r->body_len = body;
	for (uint64_t i = sizeof(*r); i < bytes; i++)
		((uint8_t *)r)[i] = (uint8_t)(tag * 31 + i);
	sq_commit(&t->sp, bytes);
	return bytes;
}

static void
verify(const struct two *t, uint64_t position, const struct record *copy, uint64_t tag)
{
	const uint8_t *p = sq_at(&t->sc, position);

	assert_int_equal(copy->tag, tag);
	for (uint64_t i = sizeof(*copy); i < copy->size; i++)
		if (p[i] != (uint8_t)(tag * 31 + i))
			fail_msg(
			    "record %llu differs at byte %llu", (unsigned long long)tag, (unsigned long long)i);
}

/* The plain queue. done: finished (in any order); count: its completion's number. */
struct model_record {
	uint64_t position, bytes, tag, floor, count;
	int published, admitted, done;
};

#define MODEL_MAX 4096u
struct model {
	struct model_record q[MODEL_MAX];           /* ring, by tag */
	uint64_t oldest, admitted, published, next; /* tags */
	uint64_t unfinished;
	struct completion cq[MODEL_MAX];
	uint64_t cq_pushed, cq_published, cq_read;
};

static void
check_invariants(const struct two *t, const struct model *m)
{
	const struct lane_map *map = &t->lane.map;
	uint64_t bytes = map->geo.sq_bytes, entries = map->geo.cq_entries;
	uint64_t used = 0;

	/* I1 */
	assert_true(map->client->sq_tail - map->daemon->sq_head <= bytes);
	assert_true(map->daemon->cq_tail - map->client->cq_head <= entries);
	/* I2 */
	for (uint64_t tag = m->oldest; tag < m->published; tag++)
		used += m->q[tag % MODEL_MAX].bytes;
	assert_int_equal(used, map->client->sq_tail - map->daemon->sq_head);
	/* I4 */
	assert_true(m->cq_pushed + m->unfinished - map->client->cq_head <= entries);
	/* I5: the result of a recovery if the daemon died here, unpublished stores included. */
	uint64_t tail = map->daemon->cq_tail;
	uint64_t found[MODEL_MAX / 64 + 1] = { 0 };
	for (uint64_t c = cq_recover_from(&t->cp, tail); c < tail; c++) {
		uint64_t position = t->other.cq[c & t->cp.mask].position;

		for (uint64_t tag = m->oldest; tag < m->published; tag++)
			if (m->q[tag % MODEL_MAX].position == position)
				found[(tag - m->oldest) / 64] |= UINT64_C(1) << ((tag - m->oldest) % 64);
	}
	for (uint64_t tag = m->oldest; tag < m->published; tag++) {
		const struct model_record *r = &m->q[tag % MODEL_MAX];
		int is_found = (int)(found[(tag - m->oldest) / 64] >> ((tag - m->oldest) % 64) & 1);

		if (is_found != (r->done && r->count < m->cq_published))
			fail_msg("record %llu: recovery says %s", (unsigned long long)tag,
			    is_found ? "finished, it is not" : "unfinished, it is finished");
	}
}

static void
step_publish(struct two *t, struct model *m, struct random *r)
{
	uint64_t many = 1 + random_below(r, 8);

	while (many-- > 0 && m->next - m->oldest < MODEL_MAX - 1) {
		struct model_record *rec = &m->q[m->next % MODEL_MAX];
		uint32_t body = (uint32_t)random_below(r, random_below(r, 8) == 0 ? 4000 : 64);
		uint64_t room = t->sp.mask + 1 - (t->sp.tail - t->lane.map.daemon->sq_head);
		uint64_t want = record_bytes(5, m->next % 3, 0, body);

		rec->position = t->sp.tail;
		rec->tag = m->next;
		rec->published = rec->admitted = rec->done = 0;
		rec->bytes = put(t, m->next, 5, (uint16_t)(m->next % 3), 0, body);
		assert_true((rec->bytes != 0) == (want <= room));
		if (rec->bytes == 0)
			break;
		m->next++;
	}
	if (random_below(r, 4) != 0) {
		sq_publish(&t->sp);
		m->published = m->next;
	}
}

static void
step_admit(struct two *t, struct model *m, struct random *r)
{
	uint64_t many = 1 + random_below(r, 16);

	assert_int_equal(sq_consumer_refresh(&t->sc), m->admitted != m->published);
	assert_true(cq_producer_refresh(&t->cp) >= 0);
	while (many-- > 0 && t->sc.cursor != t->sc.tail_seen) {
		struct model_record *rec = &m->q[m->admitted % MODEL_MAX];
		uint64_t floor = m->admitted == m->oldest ? t->cp.tail : m->q[m->oldest % MODEL_MAX].floor;
		struct record copy;

		if (!cq_may_admit(&t->cp, floor, m->unfinished))
			break;
		assert_int_equal(sq_peek(&t->sc, &copy), 0);
		verify(t, t->sc.cursor, &copy, m->admitted);
		assert_int_equal(rec->position, t->sc.cursor);
		t->sc.cursor += copy.size;
		rec->admitted = 1;
		rec->floor = t->cp.tail;
		m->admitted++;
		m->unfinished++;
		if (random_below(r, 2) == 0)
			sq_mark_sent(&t->sc, t->sc.cursor);
	}
}

/* Finishes one record, often the second oldest, so that the oldest stays unfinished for long. */
static void
step_finish(struct two *t, struct model *m, struct random *r)
{
	for (uint64_t many = 1 + random_below(r, 8); many > 0 && m->unfinished > 0; many--) {
		uint64_t window = m->admitted - m->oldest;
		uint64_t tag = m->oldest + (random_below(r, 16) == 0 ? 0 : random_below(r, window));

		while (m->q[tag % MODEL_MAX].done)
			tag = tag + 1 < m->admitted ? tag + 1 : m->oldest;
		struct model_record *rec = &m->q[tag % MODEL_MAX];
		struct completion c = { .position = rec->position, .tag = tag, .outcome = TG_DELIVERED };
		rec->done = 1;
		rec->count = t->cp.tail;
		m->cq[m->cq_pushed++ % MODEL_MAX] = c;
		m->unfinished--;
		cq_push(&t->cp, &c);
	}
	if (random_below(r, 3) != 0)
		return;
	cq_publish(&t->cp);
	m->cq_published = m->cq_pushed;
	if (random_below(r, 2) != 0)
		return;
	while (m->oldest < m->admitted && m->q[m->oldest % MODEL_MAX].done) {
		t->sc.head = m->q[m->oldest % MODEL_MAX].position + m->q[m->oldest % MODEL_MAX].bytes;
		m->oldest++;
	}
	sq_release(&t->sc, t->sc.head);
}

static void
step_read(struct two *t, struct model *m, struct random *r)
{
	int64_t n = cq_consumer_refresh(&t->cc);

	assert_int_equal(n, m->cq_published - m->cq_read);
	for (uint64_t many = random_below(r, (uint64_t)n + 1); many > 0; many--) {
		assert_memory_equal(
		    cq_at(&t->cc, m->cq_read), &m->cq[m->cq_read % MODEL_MAX], sizeof(struct completion));
		m->cq_read++;
	}
	cq_release(&t->cc, m->cq_read);
}

static void
rings_behave_like_a_plain_queue(void **state)
{
	struct random r = random_seeded("rings_behave_like_a_plain_queue");

	for (unsigned run = 0; run < 12; run++) {
		/* Runs start anywhere, two of them just below the end of all numbers. */
		uint64_t start =
		    (run < 2 ? UINT64_MAX - random_below(&r, 1 << 20) : random_next(&r)) & ~UINT64_C(7);
		struct model *m = calloc(1, sizeof(*m));
		struct two t;

		assert_non_null(m);
		two_init(&t, 0, start);
		for (unsigned i = 0; i < 6000; i++) {
			switch (random_below(&r, 4)) {
			case 0:
				step_publish(&t, m, &r);
				break;
			case 1:
				step_admit(&t, m, &r);
				break;
			case 2:
				step_finish(&t, m, &r);
				break;
			default:
				step_read(&t, m, &r);
			}
			check_invariants(&t, m);
		}
		assert_true(m->oldest > 1000); /* it did go round */
		two_fini(&t);
		free(m);
	}
}

static void
record_is_whole_at_every_offset(void **state)
{
	struct two t;
	struct record copy;

	for (uint32_t body = 0; body < 40; body += 8) {
		two_init(&t, 0, 0);
		uint64_t bytes = t.lane.map.geo.sq_bytes;
		for (uint64_t offset = 0; offset < bytes; offset += 8) {
			uint64_t at = bytes * 3 + offset;

			sq_producer_init(&t.sp, &t.lane.map, at);
			t.lane.map.daemon->sq_head = at;
			t.lane.map.client->sq_tail = at;
			sq_consumer_init(&t.sc, &t.other, at);
			assert_true(put(&t, offset, 3, 2, 1, body) != 0);
			sq_publish(&t.sp);
			assert_int_equal(sq_consumer_refresh(&t.sc), 1);
			assert_int_equal(sq_peek(&t.sc, &copy), 0);
			verify(&t, at, &copy, offset);
		}
		two_fini(&t);
	}
}

/* The largest record, from the last eight bytes of the ring on: all of it but its start lies in the
 * second image. And one that fills the ring to the last byte. */
static void
record_over_the_edge_and_as_large_as_the_ring(void **state)
{
	struct record copy;
	struct two t;

	two_init(&t, 0, LANE_SQ_MIN - 8);
	uint32_t most = lane_max_record(&t.lane.map.geo);
	assert_int_equal(put(&t, 1, 0, 0, 0, most - (uint32_t)sizeof(copy)), most);
	assert_int_equal(put(&t, 2, 0, 0, 0, most - (uint32_t)sizeof(copy)), most);
	assert_int_equal(put(&t, 3, 0, 0, 0, 0), 0); /* full to the byte */
	sq_publish(&t.sp);
	assert_int_equal(sq_consumer_refresh(&t.sc), 1);
	for (uint64_t tag = 1; tag <= 2; tag++) {
		assert_int_equal(sq_peek(&t.sc, &copy), 0);
		verify(&t, t.sc.cursor, &copy, tag);
		t.sc.cursor += copy.size;
	}
	assert_int_equal(sq_consumer_refresh(&t.sc), 0);
	sq_release(&t.sc, t.sc.cursor);
	assert_int_equal(sq_producer_refresh(&t.sp), LANE_SQ_MIN);
	assert_true(put(&t, 4, 0, 0, 0, (uint32_t)(LANE_SQ_MIN - sizeof(copy))) == LANE_SQ_MIN);
	sq_publish(&t.sp);
	assert_int_equal(sq_consumer_refresh(&t.sc), 1);
	assert_int_equal(sq_peek(&t.sc, &copy), 0);
	verify(&t, t.sc.cursor, &copy, 4);
	two_fini(&t);
}

static void
stale_bytes_of_an_earlier_lap_are_no_record(void **state)
{
	struct two t;
	struct record copy;

	two_init(&t, 0, 0);
	for (unsigned lap = 0; lap < 3; lap++) {
		for (uint64_t n = 0; n < LANE_SQ_MIN / 64; n++)
			assert_int_equal(put(&t, n, 0, 0, 0, 16), 64);
		sq_publish(&t.sp);
		assert_int_equal(sq_consumer_refresh(&t.sc), 1);
		while (t.sc.cursor != t.sc.tail_seen) {
			assert_int_equal(sq_peek(&t.sc, &copy), 0);
			t.sc.cursor += copy.size;
		}
		sq_release(&t.sc, t.sc.cursor);
		assert_true(sq_producer_refresh(&t.sp) == LANE_SQ_MIN);
		/* A tail that moves over what the last lap left there. */
		struct sq_consumer lied_to = t.sc;
		t.lane.map.client->sq_tail += LANE_SQ_MIN;
		assert_int_equal(sq_consumer_refresh(&lied_to), 1);
		for (uint64_t n = 0; n < LANE_SQ_MIN / 64; n++, lied_to.cursor += 64)
			assert_int_equal(sq_peek(&lied_to, &copy), -TG_EBROKEN);
	}
	two_fini(&t);
}

static void
punched_hole_is_no_record(void **state)
{
	struct two t;
	struct record copy;

	two_init(&t, 0, 0);
	for (uint64_t n = 0; n < LANE_SQ_MIN / 64; n++)
		assert_int_equal(put(&t, n, 0, 0, 0, 16), 64);
	sq_publish(&t.sp);
	assert_int_equal(sq_consumer_refresh(&t.sc), 1);
	assert_int_equal(sq_peek(&t.sc, &copy), 0);
	/* A ring that is not sealed for good yet allows it. */
	assert_int_equal(
	    fallocate(t.lane.ring, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, LANE_PAGE, LANE_SQ_MIN), 0);
	for (; t.sc.cursor != t.sc.tail_seen; t.sc.cursor += 64) {
		assert_int_equal(sq_peek(&t.sc, &copy), -TG_EBROKEN);
		assert_int_equal(sq_is_cancelled(&t.sc, t.sc.cursor), 0);
	}
	/* The words too: zero is a tail that went backwards, or an empty lane, never a crash. */
	assert_int_equal(fallocate(t.lane.ring, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LANE_PAGE), 0);
	assert_int_equal(sq_consumer_refresh(&t.sc), -TG_EBROKEN);
	two_fini(&t);
}

static void
zero_is_never_a_record(void **state)
{
	struct two t;
	struct record copy;

	two_init(&t, 0, 0);
	for (uint64_t at = 0; at < 4 * LANE_SQ_MIN; at += 8) {
		sq_consumer_init(&t.sc, &t.other, at);
		t.lane.map.client->sq_tail = at + LANE_SQ_MIN;
		assert_int_equal(sq_consumer_refresh(&t.sc), 1);
		assert_int_equal(sq_peek(&t.sc, &copy), -TG_EBROKEN);
	}
	two_fini(&t);
}

/* A refused word changes nothing at the end that refused it. */
static void
hostile_tail_is_refused(void **state)
{
	struct random r = random_seeded("hostile_tail_is_refused");
	struct two t;

	two_init(&t, 0, LANE_SQ_MIN * 5);
	assert_true(put(&t, 1, 0, 0, 0, 100) != 0);
	sq_publish(&t.sp);
	uint64_t head = t.sc.head, good = t.sp.tail;
	assert_int_equal(sq_consumer_refresh(&t.sc), 1);
	for (unsigned i = 0; i < 200000; i++) {
		struct sq_consumer before = t.sc;
		uint64_t word;

		switch (random_below(&r, 4)) {
		case 0:
			word = random_next(&r);
			break;
		case 1:
			word = head + random_below(&r, 3 * LANE_SQ_MIN) - LANE_SQ_MIN;
			break;
		case 2:
			word = head + LANE_SQ_MIN - 16 + random_below(&r, 32);
			break;
		default:
			word = good - 16 + random_below(&r, 32);
		}
		t.lane.map.client->sq_tail = word;
		int is_good = word >= good && word <= head + LANE_SQ_MIN && word % 8 == 0;
		assert_int_equal(sq_consumer_refresh(&t.sc), is_good ? 1 : -TG_EBROKEN);
		if (!is_good)
			assert_memory_equal(&before, &t.sc, sizeof(before));
		else
			assert_int_equal(t.sc.tail_seen, word);
		t.sc = before;
	}
	two_fini(&t);
}

static void
hostile_head_is_refused(void **state)
{
	struct random r = random_seeded("hostile_head_is_refused");
	struct two t;

	two_init(&t, 0, LANE_SQ_MIN * 5);
	for (unsigned n = 0; n < 10; n++)
		assert_true(put(&t, n, 0, 0, 0, 100) != 0);
	sq_publish(&t.sp);
	uint64_t from = t.sp.head_seen, tail = t.sp.tail;
	for (unsigned i = 0; i < 200000; i++) {
		struct sq_producer before = t.sp;
		uint64_t word =
		    random_below(&r, 2) ? random_next(&r) : from - 64 + random_below(&r, tail - from + 128);

		t.lane.map.daemon->sq_head = word;
		int is_good = word >= from && word <= tail && word % 8 == 0;
		int64_t room = sq_producer_refresh(&t.sp);
		if (is_good) {
			assert_int_equal(room, (int64_t)(LANE_SQ_MIN - (tail - word)));
		} else {
			assert_int_equal(room, -TG_EBROKEN);
			assert_memory_equal(&before, &t.sp, sizeof(before));
		}
		t.sp = before;
	}
	two_fini(&t);
}

/* A lane handed back with a sq_head between records. */
static void
unaligned_head_of_a_handed_back_lane_is_refused(void **state)
{
	struct two t;

	two_init(&t, 0, 0);
	for (uint64_t head = 1; head < 64; head++) {
		sq_consumer_init(&t.sc, &t.other, head);
		t.lane.map.client->sq_tail = head + 64 - head % 8;
		assert_int_equal(sq_consumer_refresh(&t.sc), head % 8 == 0 ? 1 : -TG_EBROKEN);
	}
	two_fini(&t);
}

static void
hostile_completion_words_are_refused(void **state)
{
	struct random r = random_seeded("hostile_completion_words_are_refused");
	struct two t;

	two_init(&t, 0, 0);
	uint64_t entries = t.lane.map.geo.cq_entries, at = 1000 * entries;
	cq_producer_init(&t.cp, &t.other, at + 50, at);
	cq_consumer_init(&t.cc, &t.lane.map, at);
	t.cc.tail_seen = at + 10;
	for (unsigned i = 0; i < 200000; i++) {
		struct cq_producer cp = t.cp;
		struct cq_consumer cc = t.cc;
		uint64_t word =
		    random_below(&r, 2) ? random_next(&r) : at - 64 + random_below(&r, entries + 128);

		t.lane.map.client->cq_head = word;
		int64_t rc = cq_producer_refresh(&t.cp);
		assert_int_equal(
		    rc, word >= at && word <= at + 50 ? (int64_t)(entries - (at + 50 - word)) : -TG_EBROKEN);
		t.lane.map.daemon->cq_tail = word;
		rc = cq_consumer_refresh(&t.cc);
		assert_int_equal(
		    rc, word >= at + 10 && word <= at + entries ? (int64_t)(word - at) : -TG_EBROKEN);
		t.cp = cp;
		t.cc = cc;
	}
	two_fini(&t);
}

/*
 * Any bytes as a header. An accepted record lies wholly between cursor and tail, hence inside the
 * mapping (every byte of it is read, with an inaccessible page behind the ring's second image).
 */
static void
hostile_header_is_refused_or_lies_inside(void **state)
{
	struct random r = random_seeded("hostile_header_is_refused_or_lies_inside");
	struct two t;
	unsigned taken = 0;

	two_init(&t, 0, 0);
	/* The CQ lies behind the second image; no access to it may come from the SQ. */
	assert_int_equal(
	    mprotect(t.other.cq, t.other.geo.cq_entries * sizeof(struct completion), PROT_NONE), 0);
	for (unsigned i = 0; i < 400000; i++) {
		uint64_t at = random_below(&r, 8 * LANE_SQ_MIN) & ~UINT64_C(7);
		uint64_t avail = random_below(&r, 8) == 0 ? random_below(&r, 64) & ~UINT64_C(7)
							  : random_below(&r, LANE_SQ_MIN + 8) & ~UINT64_C(7);
		struct record *h = (struct record *)(void *)(t.lane.map.sq + at % LANE_SQ_MIN);
		struct record copy;

		if (avail == 0)
			continue;
		for (size_t w = 0; w < sizeof(*h) / 8; w++)
			((uint64_t *)(void *)h)[w] = random_next(&r);
		if (random_below(&r, 8) != 0)
			h->check = record_check(at);
		if (random_below(&r, 2) != 0)
			h->body_len = (uint32_t)random_below(&r, LANE_SQ_MIN);
		if (random_below(&r, 2) != 0)
			h->topic_len = h->key_len = h->headers_len = 0;
		switch (random_below(&r, 4)) {
		case 0: /* as a 32-bit sum would have it */
			h->body_len = UINT32_MAX - (uint32_t)random_below(&r, 200000);
			h->size =
			    (sizeof(*h) + h->body_len + h->topic_len + h->key_len + h->headers_len + 7) & ~7u;
			break;
		case 1:
			break;
		default:
			h->size = (uint32_t)record_bytes(h->topic_len, h->key_len, h->headers_len, h->body_len);
		}
		t.lane.map.client->sq_tail = at + avail;
		sq_consumer_init(&t.sc, &t.other, at);
		assert_int_equal(sq_consumer_refresh(&t.sc), 1);
		if (sq_peek(&t.sc, &copy) != 0)
			continue;
		taken++;
		assert_int_equal(copy.check, record_check(at));
		assert_true(copy.size >= sizeof(copy) && copy.size % 8 == 0 && copy.size <= avail);
		assert_true(
		    (uint64_t)copy.topic_len + copy.key_len + copy.headers_len + copy.body_len + sizeof(copy) <=
		    copy.size);
		const uint8_t *p = sq_at(&t.sc, at);
		volatile uint8_t sum = 0;
		for (uint32_t b = 0; b < copy.size; b += (b & 4095) == 0 ? 1 : 7)
			sum = (uint8_t)(sum + p[b]);
		sum = (uint8_t)(sum + p[copy.size - 1]);
		assert_true(p + copy.size <= (const uint8_t *)t.other.cq);
		(void)sq_is_cancelled(&t.sc, at);
	}
	assert_true(taken > 1000);
	two_fini(&t);
}

/* Only the copy counts: the producer's later writes cannot change it. */
static void
header_is_looked_at_once(void **state)
{
	struct two t;
	struct record copy;

	two_init(&t, 0, 0);
	assert_true(put(&t, 9, 1, 2, 3, 100) != 0);
	sq_publish(&t.sp);
	assert_int_equal(sq_consumer_refresh(&t.sc), 1);
	assert_int_equal(sq_peek(&t.sc, &copy), 0);
	memset(t.lane.map.sq, 0xff, sizeof(copy));
	assert_int_equal(copy.body_len, 100);
	assert_int_equal(copy.size, record_bytes(1, 2, 3, 100));
	two_fini(&t);
}

static void
sent_mark_never_moves_back(void **state)
{
	struct two t;

	two_init(&t, 0, 64);
	assert_true(!sq_was_sent(&t.sc, 64));
	sq_mark_sent(&t.sc, 64 + 640);
	assert_true(sq_was_sent(&t.sc, 64) && sq_was_sent(&t.sc, 64 + 632) && !sq_was_sent(&t.sc, 64 + 640));
	sq_mark_sent(&t.sc, 128); /* an older record is sent again */
	assert_int_equal(t.lane.map.daemon->sq_sent, 64 + 640);
	/* The next daemon knows. */
	sq_consumer_init(&t.sc, &t.other, 64);
	assert_true(sq_was_sent(&t.sc, 64 + 632) && !sq_was_sent(&t.sc, 64 + 640));
	sq_mark_sent(&t.sc, 192);
	assert_int_equal(t.lane.map.daemon->sq_sent, 64 + 640);
	two_fini(&t);
}

static void
check_word_tells_laps_apart(void **state)
{
	struct random r = random_seeded("check_word_tells_laps_apart");

	for (unsigned i = 0; i < 200000; i++) {
		uint64_t at = random_next(&r) & ~UINT64_C(7);
		uint64_t lap = LANE_SQ_MIN << random_below(&r, 17);

		assert_int_not_equal(record_check(at), record_check(at + 8));
		assert_int_not_equal(record_check(at), record_check(at + lap));
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(rings_behave_like_a_plain_queue),
		cmocka_unit_test(record_is_whole_at_every_offset),
		cmocka_unit_test(record_over_the_edge_and_as_large_as_the_ring),
		cmocka_unit_test(stale_bytes_of_an_earlier_lap_are_no_record),
		cmocka_unit_test(punched_hole_is_no_record),
		cmocka_unit_test(zero_is_never_a_record),
		cmocka_unit_test(hostile_tail_is_refused),
		cmocka_unit_test(hostile_head_is_refused),
		cmocka_unit_test(unaligned_head_of_a_handed_back_lane_is_refused),
		cmocka_unit_test(hostile_completion_words_are_refused),
		cmocka_unit_test(hostile_header_is_refused_or_lies_inside),
		cmocka_unit_test(header_is_looked_at_once),
		cmocka_unit_test(sent_mark_never_moves_back),
		cmocka_unit_test(check_word_tells_laps_apart),
	};

	return cmocka_run_group_tests_name("ring", tests, NULL, NULL);
}
