/*
 * Producers: the client's end of a lane as libclient drives it (a completion slot is kept for each
 * record, I4; a producer without room sleeps until the bell rings), and the applications that use it.
 *
 * Released bytes are overwritten at once, so a daemon that still refers to them sends garbage, which the
 * brokers detect.
 */
#include "sim.h"

#include "shm/wake.h"

#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>

#define DOORBELL_NS (5 * NS_PER_US)

/* ---- bodies ---- */

void
body_fill(uint8_t *body, uint32_t len, uint64_t lane_id, uint64_t position)
{
	uint64_t word = (lane_id << 40 ^ position) * UINT64_C(0x9e3779b97f4a7c15) | 1;
	uint32_t i = 0;

	for (; i + 8 <= len; i += 8, word += UINT64_C(0x9e3779b97f4a7c15))
		memcpy(body + i, &word, 8);
	memcpy(body + i, &word, len - i);
}

int
body_is_right(const uint8_t *body, uint32_t len, uint64_t lane_id, uint64_t position)
{
	uint64_t word = (lane_id << 40 ^ position) * UINT64_C(0x9e3779b97f4a7c15) | 1;
	uint32_t i = 0;

	for (; i + 8 <= len; i += 8, word += UINT64_C(0x9e3779b97f4a7c15))
		if (memcmp(body + i, &word, 8) != 0)
			return 0;
	return memcmp(body + i, &word, len - i) == 0;
}

/* ---- the ledger ---- */

struct producer *
sim_producer_of(struct sim *sim, uint64_t lane_id)
{
	return lane_id >= 1 && lane_id <= sim->producer_count ? sim->producers[lane_id - 1] : NULL;
}

struct entry *
producer_entry(struct producer *p, uint64_t position)
{
	uint32_t low = 0, high = p->count;

	/* Mostly it is the entry after the last one that was looked up, or the same entry. */
	for (uint32_t near = p->found; near < p->count && near < p->found + 2; near++)
		if (p->ledger[near].position == position) {
			p->found = near;
			return &p->ledger[near];
		}
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (p->ledger[middle].position < position)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == p->count || p->ledger[low].position != position)
		sim_fail(p->sim, "lane %llu: there is no record at %llu", (unsigned long long)p->id,
		    (unsigned long long)position);
	p->found = low;
	return &p->ledger[low];
}

/* The producer may overwrite everything below sq_head. */
static void
scribble(struct producer *p)
{
	uint64_t head = order_load_acquire_64(ORDER_B, p->sq.head_word);

	while (p->scribbled_to < p->count) {
		const struct entry *entry = &p->ledger[p->scribbled_to];
		if (entry->position + entry->size > head)
			break;
		memset(p->map.sq + (entry->position & p->sq.mask), 0xdd, entry->size);
		p->scribbled_to++;
	}
}

/* ---- doorbell and bell ---- */

/* As client.c does when a doorbell rings. */
static void
on_doorbell(void *arg, uint64_t n)
{
	struct sim *sim = arg;
	struct lane *lane, *next;

	sim->doorbell_posted = 0;
	for (lane = TAILQ_FIRST(&sim->client.asleep); lane != NULL; lane = next) {
		next = TAILQ_NEXT(lane, place_entry);
		lane_hear(lane);
	}
}

void
producer_ring(struct producer *p)
{
	struct sim *sim = p->sim;

	order_fence_full(ORDER_C);
	if (p->unheard || !wake_must_ring(&p->ringer) || sim->doorbell_posted)
		return;
	sim->doorbell_posted = 1;
	sim_after(&sim->w, DOORBELL_NS, on_doorbell, sim, 0);
}

static int
has_slot(const struct producer *p)
{
	return p->published - p->cq.head < p->cq.mask + 1;
}

/* Pair F, the client's side. Returns whether there is room (an eighth of the ring) without a nap. */
static int
wait_for_room(struct producer *p)
{
	wake_doze(&p->nap);
	order_fence_full(ORDER_F);
	producer_read(p);
	uint64_t used = p->sq.tail - order_load_acquire_64(ORDER_B, p->sq.head_word);
	p->sleeping = !has_slot(p) || p->sq.mask + 1 - used < (p->sq.mask + 1) / 8;
	if (!p->sleeping)
		wake_rise(&p->nap);
	return !p->sleeping;
}

/* ---- publishing ---- */

static struct entry *
ledger_add(struct producer *p)
{
	if (p->count == p->capacity) {
		p->capacity = p->capacity == 0 ? 64 : p->capacity * 2;
		p->ledger = realloc(p->ledger, p->capacity * sizeof(*p->ledger));
		if (p->ledger == NULL)
			abort();
	}
	p->unfinished++;
	return &p->ledger[p->count++];
}

static int
publish(struct producer *p, const char *topic, uint32_t body_len, uint32_t timeout_ms, uint32_t expiry_ms)
{
	struct sim *sim = p->sim;
	uint32_t topic_len = (uint32_t)strlen(topic);
	uint64_t size = record_bytes(topic_len, 4, 0, body_len);
	uint32_t key = (uint32_t)p->id + (p->keys > 0 ? (uint32_t)(p->published % p->keys) << 16 : 0);
	int error = -TG_EAGAIN;

	if (!has_slot(p))
		return -TG_EAGAIN;
	scribble(p); /* before what it frees is used */
	struct record *r = sq_reserve(&p->sq, size, &error);
	if (r == NULL) {
		if (error == -TG_EBROKEN)
			sim_fail(sim, "lane %llu: sq_head %llu breaks I1", (unsigned long long)p->id,
			    (unsigned long long)*p->sq.head_word);
		return error;
	}
	uint64_t position = p->sq.tail;
	*r = (struct record){
		.size = (uint32_t)size,
		.check = record_check(position),
		.tag = position ^ p->id << 48,
		.published_ns = sim->w.now_ns,
		.timeout_ms = timeout_ms,
		.body_len = body_len,
		.topic_len = (uint16_t)topic_len,
		.key_len = 4,
		.expiry_ms = expiry_ms,
	};
	uint8_t *at = (uint8_t *)(r + 1);
	memcpy(at, topic, topic_len);
	memcpy(at + topic_len, &key, 4);
	body_fill(at + topic_len + 4, body_len, p->id, position);
	uint32_t limit_ms = timeout_ms != 0 ? timeout_ms : sim->pool_config.message_timeout_ms;
	if (expiry_ms != 0 && expiry_ms < limit_ms)
		limit_ms = expiry_ms;
	*ledger_add(p) = (struct entry){
		.position = position,
		.size = (uint32_t)size,
		.key = key,
		.published_ns = sim->w.now_ns,
		.expiry_ms = expiry_ms,
		.deadline_ns = sim->w.now_ns + SIM_MS(limit_ms),
	};
	p->published++;
	sq_commit(&p->sq, size);
	sq_publish(&p->sq);
	producer_ring(p);
	return 0;
}

int
producer_publish(struct producer *p, uint32_t body_len, uint32_t timeout_ms)
{
	return publish(p, TOPIC_GOOD, body_len, timeout_ms, 0);
}

int
producer_publish_to(struct producer *p, const char *topic)
{
	return publish(p, topic, p->body_low, 0, 0);
}

int
producer_publish_for(struct producer *p, uint32_t body_len, uint32_t timeout_ms, uint32_t expiry_ms)
{
	return publish(p, TOPIC_GOOD, body_len, timeout_ms, expiry_ms);
}

void
producer_read(struct producer *p)
{
	if (cq_consumer_refresh(&p->cq) < 0 || p->cq.tail_seen - p->cq.head > p->published - p->cq.head)
		sim_fail(p->sim, "lane %llu: cq_tail breaks I1", (unsigned long long)p->id);
	cq_release(&p->cq, p->cq.tail_seen);
	scribble(p);
}

static void
cancel_one(struct producer *p)
{
	uint32_t back = (uint32_t)chance_between(&p->sim->chance, 1, 8);

	if (p->scribbled_to + back > p->count)
		return;
	struct entry *entry = &p->ledger[p->count - back];
	struct record *r = (struct record *)(void *)(p->map.sq + (entry->position & p->sq.mask));
	entry->cancelled = 1;
	order_store_relaxed_32(&r->cancel, 1);
}

/* One burst. Without room the producer waits for the bell, and then continues. */
static void
burst(struct producer *p)
{
	struct sim *sim = p->sim;
	uint32_t left = p->burst <= 1 ? 1 : (uint32_t)chance_between(&sim->chance, 1, 2 * p->burst - 1);

	while (left > 0) {
		uint32_t len = (uint32_t)chance_between(&sim->chance, p->body_low, p->body_high);
		uint32_t timeout = 0, expiry = 0;
		if (chance_hit(&sim->chance, p->large))
			len = (uint32_t)chance_between(&sim->chance, 4096, p->sq.mask / 3);
		if (chance_hit(&sim->chance, p->own_timeout))
			timeout = (uint32_t)chance_between(&sim->chance, 10, 5000);
		if (p->own_timeout > 0 && chance_hit(&sim->chance, p->own_timeout))
			expiry = (uint32_t)chance_between(&sim->chance, 10, 20000);
		if (publish(p, chance_hit(&sim->chance, p->cancel / 4) ? TOPIC_REFUSED : p->topic, len, timeout,
			expiry) != 0) {
			p->wrong_times++;
			if (p->reads_every_ns != 0 || !wait_for_room(p))
				return;
			continue;
		}
		if (chance_hit(&sim->chance, p->cancel))
			cancel_one(p);
		left--;
	}
}

static void
on_time(void *arg, uint64_t generation)
{
	struct producer *p = arg;
	struct sim *sim = p->sim;

	if (generation != p->generation || p->closed || sim->w.now_ns >= p->stop_ns)
		return;
	if (!p->sleeping)
		burst(p);
	/* An uneven clock: 0.5 to 1.5 of the period. */
	uint64_t next = chance_between(&sim->chance, p->every_ns / 2, p->every_ns * 3 / 2);
	sim_after(&sim->w, next + 1, on_time, p, generation);
}

static void
on_reading_time(void *arg, uint64_t generation)
{
	struct producer *p = arg;

	if (p->closed || p->reads_every_ns == 0)
		return;
	producer_read(p);
	sim_after(&p->sim->w, p->reads_every_ns, on_reading_time, p, generation);
}

void
producer_go(struct producer *p, uint64_t every_ns, uint32_t burst_size)
{
	p->every_ns = every_ns;
	p->burst = burst_size;
	sim_after(&p->sim->w, chance_between(&p->sim->chance, 0, every_ns), on_time, p, ++p->generation);
	if (p->reads_every_ns != 0)
		sim_after(&p->sim->w, p->reads_every_ns, on_reading_time, p, 0);
}

void
producers_on_bells(struct sim *sim)
{
	uint8_t rings[64];

	if (sim->bells == sim->shard.count.bells)
		return;
	sim->bells = sim->shard.count.bells;
	for (uint32_t i = sim->live_from; i < sim->producer_count; i++) {
		struct producer *p = sim->producers[i];
		if (!p->sleeping || p->closed || read(p->bell, rings, sizeof(rings)) < 0)
			continue;
		wake_rise(&p->nap);
		p->sleeping = 0;
		producer_read(p);
		if (p->every_ns != 0)
			wait_for_room(p);
	}
}

/* ---- life ---- */

struct producer *
sim_producer(struct sim *sim, uint64_t sq_bytes)
{
	struct producer *p = calloc(1, sizeof(*p));
	struct lane_geometry geo;
	struct lane_header header = { .lane_id = sim->producer_count + 1 };

	sim->producers = realloc(sim->producers, (sim->producer_count + 1) * sizeof(struct producer *));
	if (p == NULL || sim->producers == NULL || lane_geometry_make(&geo, sq_bytes, 0) != 0)
		abort();
	sim->producers[sim->producer_count++] = p;
	p->sim = sim;
	p->id = header.lane_id;
	p->stop_ns = UINT64_MAX;
	p->topic = TOPIC_GOOD;
	p->body_low = 16;
	p->body_high = 256;
	int bell[2];
	if (pipe2(bell, O_CLOEXEC | O_NONBLOCK) != 0)
		abort();
	p->bell = bell[0];
	struct lane_memory memory = { .geo = geo,
		.ring = lane_ring_make(&p->map, &geo),
		.answers = -1,
		.old_answers = -1,
		.bell = bell[1] };
	if (memory.ring < 0 || lane_new(&p->lane, &header, sim->pool, &sim->client, &memory) != 0 ||
	    lane_map_answers(&p->map, p->lane->answers, LANE_READ, 0) != 0)
		sim_fail(sim, "no lane: out of memory or descriptors");
	TAILQ_INSERT_TAIL(&sim->client.lanes, p->lane, client_entry);
	sim->client.lane_count++;
	sq_producer_init(&p->sq, &p->map, 0);
	cq_consumer_init(&p->cq, &p->map, 0);
	wake_ringer_init(&p->ringer, &p->map.daemon->asleep);
	wake_sleeper_init(&p->nap, &p->map.client->waiting);
	producer_own(p, (uid_t)(1000 + p->id), (pid_t)(1000 + p->id));
	return p;
}

void
producer_own(struct producer *p, uid_t uid, pid_t pid)
{
	lane_own(p->lane, &(struct lane_owner){ .uid = uid, .pid = pid });
	blame_begin(p->lane);
}

void
producer_close(struct producer *p)
{
	if (p->closed)
		return;
	sim_trace(p->sim, "lane %llu is closed with %u unfinished", (unsigned long long)p->id, p->unfinished);
	p->closed = 1;
	p->sleeping = 0;
	lane_orphan(p->lane);
}

void
producer_free(struct producer *p)
{
	lane_map_fini(&p->map);
	close(p->bell);
	free(p->ledger);
	free(p);
}

uint64_t
sim_done(const struct sim *sim, uint8_t outcome)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < sim->producer_count; i++)
		sum += sim->producers[i]->done.outcome[outcome];
	return sum;
}

uint64_t
sim_published(const struct sim *sim)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < sim->producer_count; i++)
		sum += sim->producers[i]->published;
	return sum;
}
