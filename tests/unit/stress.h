/*
 * The two ends of a lane at work: records of random size with content that can be checked, real
 * sleeping on eventfds, and the handshake of wake.h in both directions. They run as two processes
 * or as two threads; both return 0, or -1 after printing the failure.
 *
 * A wake-up counts as lost when a sleeper times out, there is work, and no ring comes during a grace period.
 */
#ifndef TG_TESTS_STRESS_H
#define TG_TESTS_STRESS_H

#include "shm_test.h"

#include "shm/wake.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>

#define STRESS_SLEEP_MS 1000
#define STRESS_GRACE_MS 1500 /* for a peer that was preempted between its store and its ring */
#define STRESS_SLEEPS_MAX 10 /* sleeps in a row that end by their time, without work */
#define STRESS_NEVER UINT32_MAX

struct stress {
	struct lane_map *client_map, *daemon_map;
	int doorbell, bell;
	int expedited;   /* the daemon raises both fences of pair C */
	uint64_t count;  /* records */
	uint64_t window; /* most in flight; 1: ping-pong */
	uint32_t body_max;
	uint32_t client_spins, daemon_spins; /* looks before going to sleep; STRESS_NEVER: looks for ever */
	uint32_t jitter; /* at most so many empty turns before a store, to meet the other's */
	uint64_t seed;
	uint32_t *failed; /* shared by both ends: the other one gave up */
};

static inline void
stress_pin(unsigned cpu)
{
	cpu_set_t all, one;

	if (sched_getaffinity(0, sizeof(all), &all) != 0)
		return;
	for (unsigned i = 0; i < CPU_SETSIZE; i++) {
		if (!CPU_ISSET(i, &all) || cpu-- != 0)
			continue;
		CPU_ZERO(&one);
		CPU_SET(i, &one);
		(void)sched_setaffinity(0, sizeof(one), &one);
		return;
	}
}

static inline int
stress_fail(const struct stress *s, const char *who, const char *what, uint64_t at)
{
	fprintf(stderr, "%s: %s at %llu of %llu (TIDEGATE_TEST_SEED=%llu)\n", who, what, (unsigned long long)at,
	    (unsigned long long)s->count, (unsigned long long)s->seed);
	order_store_relaxed_32(s->failed, 1);
	(void)eventfd_write(s->doorbell, 1);
	(void)eventfd_write(s->bell, 1);
	return -1;
}

static inline void
stress_jitter(const struct stress *s, struct random *r)
{
	if (s->jitter == 0)
		return;
	for (uint64_t n = random_below(r, s->jitter); n > 0; n--)
		__asm__ __volatile__("");
}

/*
 * Sleeps on fd after wake_doze, the fence and a last look. is_work looks again without changing
 * anything. Returns 1 when woken, 0 when it timed out without work, -1 when the wake-up was lost.
 */
static inline int
stress_sleep(int fd, int (*is_work)(const void *), const void *of)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	eventfd_t rings;

	if (poll(&p, 1, STRESS_SLEEP_MS) == 0) {
		if (!is_work(of))
			return 0;
		if (poll(&p, 1, STRESS_GRACE_MS) == 0)
			return -1;
	}
	/* Between the sleep and wake_rise: see wake.h. */
	return eventfd_read(fd, &rings) == 0 || errno == EAGAIN ? 1 : -1;
}

static inline uint32_t
stress_body(const struct stress *s, uint64_t tag)
{
	struct random r = { .state = s->seed ^ tag };

	return (uint32_t)random_below(&r, (uint64_t)s->body_max + 1);
}

static inline void
stress_fill(uint8_t *p, uint32_t len, uint64_t tag)
{
	for (uint32_t i = 0; i < len; i++)
		p[i] = (uint8_t)((tag * 251 + i) ^ (tag >> 8));
}

static inline int
stress_is_filled(const uint8_t *p, uint32_t len, uint64_t tag)
{
	for (uint32_t i = 0; i < len; i++)
		if (p[i] != (uint8_t)((tag * 251 + i) ^ (tag >> 8)))
			return 0;
	return 1;
}

struct stress_client {
	struct sq_producer sq;
	struct cq_consumer cq;
	struct wake_sleeper sleeper;
	struct wake_ringer ringer;
	uint64_t sent, done;
	uint64_t bytes; /* of the record that found no room, or 0 */
};

static inline int
stress_client_has_work(const void *of)
{
	struct stress_client c = *(const struct stress_client *)of;

	return cq_consumer_refresh(&c.cq) != 0 ||
	       (c.bytes != 0 && sq_producer_refresh(&c.sq) >= (int64_t)c.bytes);
}

/* Publishes what fits. Returns how many. */
static inline uint64_t
stress_publish(const struct stress *s, struct stress_client *c, struct random *r)
{
	uint64_t most = s->window - (c->sent - c->done), n = 0;

	if (most > s->count - c->sent)
		most = s->count - c->sent;
	if (most > 1)
		most = 1 + random_below(r, most);
	c->bytes = 0;
	for (; n < most; n++) {
		uint32_t body = stress_body(s, c->sent);
		uint64_t bytes = record_bytes(0, 0, 0, body);
		int error = 0;
		struct record *rec = sq_reserve(&c->sq, bytes, &error);

		if (rec == NULL) {
			c->bytes = bytes;
			break;
		}
		*rec = (struct record){ .size = (uint32_t)bytes,
			.check = record_check(c->sq.tail),
			.tag = c->sent,
			.body_len = body };
		stress_fill((uint8_t *)(rec + 1), body, c->sent);
		sq_commit(&c->sq, bytes);
		c->sent++;
	}
	if (n == 0)
		return 0;
	stress_jitter(s, r);
	sq_publish(&c->sq);
	if (s->expedited)
		order_fence_compiler();
	else
		order_fence_full(ORDER_C);
	if (wake_must_ring(&c->ringer))
		(void)eventfd_write(s->doorbell, 1);
	return n;
}

static inline int
stress_client(const struct stress *s)
{
	struct stress_client c = { 0 };
	struct random r = { .state = s->seed + 1 };
	uint32_t idle = 0, slept = 0;

	sq_producer_init(&c.sq, s->client_map, 0);
	cq_consumer_init(&c.cq, s->client_map, 0);
	wake_sleeper_init(&c.sleeper, &s->client_map->client->waiting);
	wake_ringer_init(&c.ringer, &s->client_map->daemon->asleep);
	while (c.done < s->count) {
		uint64_t moved = stress_publish(s, &c, &r);
		int64_t n = cq_consumer_refresh(&c.cq);

		if (n < 0)
			return stress_fail(s, "client", "cq_tail is out of bounds", c.done);
		for (int64_t i = 0; i < n; i++, c.done++)
			if (cq_at(&c.cq, c.done)->tag != c.done)
				return stress_fail(s, "client", "wrong completion", c.done);
		if (n > 0)
			cq_release(&c.cq, c.done);
		if (n > 0 || moved > 0) {
			idle = slept = 0;
			continue;
		}
		if (idle++ < s->client_spins || s->client_spins == STRESS_NEVER) {
			if (idle > 100000 && idle % 1000 == 0) {
				sched_yield(); /* the other end sleeps, or needs this processor */
				if (order_load_relaxed_32(s->failed) != 0)
					return -1;
			}
			continue;
		}
		stress_jitter(s, &r);
		wake_doze(&c.sleeper);
		order_fence_full(ORDER_F);
		if (!stress_client_has_work(&c)) {
			int woken = stress_sleep(s->bell, stress_client_has_work, &c);

			if (order_load_relaxed_32(s->failed) != 0)
				return -1;
			if (woken < 0)
				return stress_fail(s, "client", "lost wake-up", c.done);
			slept = woken != 0 ? 0 : slept + 1;
			if (slept > STRESS_SLEEPS_MAX)
				return stress_fail(s, "client", "nothing comes any more", c.done);
		}
		wake_rise(&c.sleeper);
		idle = 0;
	}
	return 0;
}

struct stress_daemon {
	struct sq_consumer sq;
	struct cq_producer cq;
	struct wake_sleeper sleeper;
	struct wake_ringer ringer;
};

static inline int
stress_daemon_has_work(const void *of)
{
	struct stress_daemon d = *(const struct stress_daemon *)of;

	return sq_consumer_refresh(&d.sq) != 0;
}

static inline int
stress_daemon(const struct stress *s)
{
	struct stress_daemon d = { 0 };
	struct random r = { .state = s->seed + 2 };
	uint32_t idle = 0, slept = 0;
	uint64_t done = 0;

	sq_consumer_init(&d.sq, s->daemon_map, 0);
	cq_producer_init(&d.cq, s->daemon_map, 0, 0);
	wake_sleeper_init(&d.sleeper, &s->daemon_map->daemon->asleep);
	wake_ringer_init(&d.ringer, &s->daemon_map->client->waiting);
	while (done < s->count) {
		uint64_t batch = 1 + random_below(&r, 16), n = 0;

		if (sq_consumer_refresh(&d.sq) < 0 || cq_producer_refresh(&d.cq) < 0)
			return stress_fail(s, "daemon", "a word is out of bounds", done);
		while (n < batch && d.sq.cursor != d.sq.tail_seen && cq_may_admit(&d.cq, d.cq.tail, 0)) {
			struct record copy;

			if (sq_peek(&d.sq, &copy) != 0)
				return stress_fail(s, "daemon", "not a record", done);
			if (copy.tag != done || copy.body_len != stress_body(s, done) ||
			    !stress_is_filled(sq_at(&d.sq, d.sq.cursor) + sizeof(copy), copy.body_len, done))
				return stress_fail(s, "daemon", "wrong record", done);
			struct completion c = {
				.position = d.sq.cursor, .tag = copy.tag, .outcome = TG_DELIVERED
			};
			cq_push(&d.cq, &c);
			d.sq.cursor += copy.size;
			done++;
			n++;
		}
		if (n > 0) {
			stress_jitter(s, &r);
			cq_publish(&d.cq);
			sq_release(&d.sq, d.sq.cursor);
			order_fence_full(ORDER_F);
			if (wake_must_ring(&d.ringer))
				(void)eventfd_write(s->bell, 1);
			idle = slept = 0;
			continue;
		}
		if (idle++ < s->daemon_spins || s->daemon_spins == STRESS_NEVER) {
			if (idle > 100000 && idle % 1000 == 0) {
				sched_yield();
				if (order_load_relaxed_32(s->failed) != 0)
					return -1;
			}
			continue;
		}
		stress_jitter(s, &r);
		wake_doze(&d.sleeper);
		if (!s->expedited)
			order_fence_full(ORDER_C);
		else if (wake_barrier() != 0)
			return stress_fail(s, "daemon", "membarrier failed", done);
		if (!stress_daemon_has_work(&d)) {
			int woken = stress_sleep(s->doorbell, stress_daemon_has_work, &d);

			if (order_load_relaxed_32(s->failed) != 0)
				return -1;
			if (woken < 0)
				return stress_fail(s, "daemon", "lost wake-up", done);
			slept = woken != 0 ? 0 : slept + 1;
			if (slept > STRESS_SLEEPS_MAX)
				return stress_fail(s, "daemon", "nothing comes any more", done);
		}
		wake_rise(&d.sleeper);
		idle = 0;
	}
	return 0;
}

#endif
