/* libtidegate against a daemon that acts at the same moment, and concurrent threads of one client. */
#include "client_rig.h"
#include "libclient/internal.h"

#include <sched.h>
#include <stdio.h>
#include <time.h>

static int
setup_hold_fenced(void **state)
{
	return setup_of(state, FAKE_HOLD, LANE_SQ_MIN, 0);
}

static int
setup_answer(void **state)
{
	return setup_of(state, FAKE_ANSWER, LANE_SQ_MIN, -1);
}

static int
setup_answer_fenced(void **state)
{
	return setup_of(state, FAKE_ANSWER, LANE_SQ_MIN, 0);
}

static void
sync_in_time(struct tg_lane *lane, const struct tg_message *m)
{
	uint64_t begin = fake_now_ms();
	struct tg_completion c;

	assert_int_equal(tg_publish_sync(lane, m, FAKE_DEADLINE_MS, &c), 0);
	assert_int_equal(c.tag, m->tag);
	assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
}

/* ---- both sides at once ---- */

static uint64_t
cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * A ping-pong in which both sides sleep after every message, then a stream of every size through a
 * small ring in which each side waits for the other: a lost wake-up is a deadline missed, a byte
 * lost or doubled a wrong sum.
 */
static void
no_wakeup_is_lost_and_every_byte_arrives(void **state)
{
	struct setup *s = *state;
	static uint8_t body[6000];
	struct tg_completion c[64];
	uint64_t sum = 0, bytes = 0, got = 0, want = 0, last = 0;
	uint64_t seed = 2463534242u;
	int use_fd = -1, n;

	for (int i = 0; i < 3000; i++) {
		struct tg_message m = {
			.topic = "t", .topic_len = TG_NUL, .body = "a", .body_len = 1, .tag = (uint64_t)i
		};

		sync_in_time(s->lane, &m);
		sum += 'a';
		bytes++;
	}
	for (unsigned i = 0; i < sizeof(body); i++)
		body[i] = (uint8_t)(i * 7u);
	while (want < 30000) {
		struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body = body, .tag = want };
		int rc;

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		m.body_len = seed % (want % 16 == 0 ? sizeof(body) : 200);
		if (want == 15000)
			use_fd = tg_fd(s->lane);
		while ((rc = tg_publish(s->lane, &m, NULL)) == -TG_EAGAIN) {
			while ((n = tg_poll(s->lane, c, 64)) > 0)
				for (int i = 0; i < n; i++)
					assert_int_equal(c[i].tag, got++);
			assert_int_equal(n, 0);
			if ((rc = tg_publish(s->lane, &m, NULL)) != -TG_EAGAIN)
				break;
			if (use_fd >= 0)
				assert_int_equal(fires(use_fd, FAKE_DEADLINE_MS), 1);
			else
				wait_in_time(s->lane);
		}
		assert_int_equal(rc, 0);
		for (size_t i = 0; i < m.body_len; i++)
			sum += body[i];
		bytes += m.body_len;
		want++;
	}
	assert_int_equal(tg_flush(s->lane, FAKE_DEADLINE_MS), 0);
	while ((n = tg_poll(s->lane, c, 64)) > 0)
		for (int i = 0; i < n; i++)
			assert_int_equal(c[i].tag, got++);
	assert_int_equal(got, want);
	pthread_mutex_lock(&s->fake.lock);
	assert_int_equal(s->peer->seen, bytes);
	assert_int_equal(s->peer->sum, sum);
	pthread_mutex_unlock(&s->fake.lock);

	/* Now both sides sleep: waiting costs no CPU. */
	last = cpu_ns();
	assert_int_equal(tg_wait(s->lane, 100), -TG_ETIMEOUT);
	assert_true(cpu_ns() - last < 20000000u);
}

/* ---- races, aimed at ---- */

#define RACES 20000u
#define RACE_EAGER 4096u /* looks before it yields the processor */
#define RACE_SWEEP 97u   /* stalls: from before the other side's last look to well after it */

struct racer {
	pthread_t thread;
	struct setup *s;
	unsigned rounds;
	int sleeps; /* dozes between messages, and must be rung */
	int failed;
};

static void
stall(unsigned n)
{
	while (n-- > 0)
		ck_pr_stall();
}

/* Sleeps as the daemon does, a little earlier or later each time; true if it was rung or saw work. */
static int
racer_sleep(struct racer *r, struct fake_lane *lane, unsigned heard)
{
	uint64_t begin = fake_now_ms(), deadline = begin + FAKE_DEADLINE_MS;
	int seen;

	wake_doze(&lane->asleep);
	if (r->s->fake.flags == 0 || wake_barrier() != 0)
		order_fence_full(ORDER_C);
	seen = sq_consumer_refresh(&lane->sq) > 0;
	while (!seen && fake_rings(&r->s->fake) == heard) {
		uint64_t now = fake_now_ms();

		if (now > deadline)
			return 0;
		/* The second look of wake.h. */
		seen = r->s->fake.flags != 0 && now > begin + WAKE_SECOND_LOOK_MS &&
		       sq_consumer_refresh(&lane->sq) > 0;
		sched_yield();
	}
	wake_rise(&lane->asleep);
	return 1;
}

/* Answers each message once, after a delay that sweeps over the client's way to sleep. */
static void *
racer_run(void *arg)
{
	struct racer *r = arg;
	struct fake_lane *lane = r->s->peer;
	uint64_t deadline;

	for (unsigned i = 0; i < r->rounds;) {
		unsigned heard = r->sleeps ? fake_rings(&r->s->fake) : 0;

		if (r->sleeps) {
			stall(i % RACE_SWEEP);
			if (!racer_sleep(r, lane, heard)) {
				__atomic_store_n(&r->failed, 1, __ATOMIC_RELAXED);
				fake_lane_drain(lane, TG_DELIVERED); /* lets the client go on to its end */
				return NULL;
			}
		}
		deadline = fake_now_ms() + FAKE_DEADLINE_MS;
		for (unsigned n = 0; sq_consumer_refresh(&lane->sq) <= 0; n++) {
			if (n % RACE_EAGER != RACE_EAGER - 1)
				continue;
			if (fake_now_ms() > deadline)
				return NULL;
			sched_yield();
		}
		stall(r->sleeps ? 0 : i % (RACE_SWEEP / 2));
		i += fake_lane_drain(lane, TG_DELIVERED);
	}
	return NULL;
}

static void
racer_start(struct racer *r, struct setup *s, unsigned rounds, int sleeps)
{
	*r = (struct racer){ .s = s, .rounds = rounds, .sleeps = sleeps };
	wake_rise(&s->peer->asleep);
	assert_int_equal(pthread_create(&r->thread, NULL, racer_run, r), 0);
}

static void
answer_that_comes_while_falling_asleep_is_seen(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	struct tg_lane_options options = { .ring_bytes = LANE_SQ_MIN, .spin_us = 1 };
	struct racer racer;

	/* A short spin, so that the way to sleep begins when the answer is about to come. */
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", &options), 0);
	s->peer = fake_lane(&s->fake);
	racer_start(&racer, s, RACES, 0);
	for (m.tag = 0; m.tag < RACES; m.tag++) {
		sync_in_time(s->lane, &m);
	}
	assert_int_equal(pthread_join(racer.thread, NULL), 0);
}

static void
answer_that_comes_while_arming_the_descriptor_is_seen(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	struct tg_completion c;
	struct racer racer;
	int fd = tg_fd(s->lane);
	int n;

	racer_start(&racer, s, RACES, 0);
	for (m.tag = 0; m.tag < RACES; m.tag++) {
		assert_int_equal(tg_publish(s->lane, &m, NULL), 0);
		stall((unsigned)m.tag * 7u % (RACE_SWEEP / 2));
		while ((n = tg_poll(s->lane, &c, 1)) == 0)
			assert_int_equal(fires(fd, FAKE_DEADLINE_MS), 1);
		assert_int_equal(n, 1);
		assert_int_equal(c.tag, m.tag);
	}
	assert_int_equal(pthread_join(racer.thread, NULL), 0);
}

static void
message_that_comes_while_the_daemon_falls_asleep_rings(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	struct tg_completion c;
	struct racer racer;
	int rc = 0;

	racer_start(&racer, s, RACES / 4, 1);
	for (m.tag = 0; m.tag < RACES / 4 && rc == 0; m.tag++) {
		if ((rc = tg_publish(s->lane, &m, NULL)) == 0)
			while ((rc = tg_poll(s->lane, &c, 1)) == 0 &&
			       !__atomic_load_n(&racer.failed, __ATOMIC_RELAXED))
				ck_pr_stall();
		rc = rc == 1 ? 0 : -1;
	}
	assert_int_equal(pthread_join(racer.thread, NULL), 0);
	assert_int_equal(racer.failed, 0);
	assert_int_equal(rc, 0);
}

/* ---- threads ---- */

#define THREADS 4

struct worker {
	pthread_t thread;
	struct fake *fake;
	struct tg_lane *lane;
	uint64_t base;
};

/* Each thread has its own lane and sees the details of its own errors only. */
static void *
worker_run(void *arg)
{
	struct worker *w = arg;
	struct tg_client_options options = { .socket = w->fake->path };
	struct tg_message wrong = {
		.topic = "t", .topic_len = TG_NUL, .body = "", .body_len = 100000 + w->base
	};
	struct tg_client *own;
	struct tg_completion c;
	char number[32];

	snprintf(number, sizeof(number), "%zu", wrong.body_len);
	if (tg_client_open(&own, &options) != 0)
		return (void *)1;
	for (uint64_t i = 0; i < 300; i++) {
		struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .tag = w->base + i };

		if (tg_publish_sync(w->lane, &m, FAKE_DEADLINE_MS, &c) != 0 || c.tag != w->base + i)
			return (void *)2;
		if (tg_publish(w->lane, &wrong, NULL) != -TG_ETOOBIG)
			return (void *)3;
		if (strstr(tg_client_detail(NULL), number) == NULL)
			return (void *)4;
	}
	tg_client_close(own);
	return NULL;
}

static void
lanes_of_one_client_run_in_threads(void **state)
{
	struct setup *s = *state;
	struct worker workers[THREADS];
	struct tg_lane_options options = { .ring_bytes = LANE_SQ_MIN };

	for (unsigned i = 0; i < THREADS; i++) {
		workers[i] = (struct worker){ .fake = &s->fake, .base = i * 1000u };
		assert_int_equal(tg_lane_open(s->client, &workers[i].lane, "events", &options), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&workers[i].thread, NULL, worker_run, &workers[i]), 0);
	for (unsigned i = 0; i < THREADS; i++) {
		void *failed;

		assert_int_equal(pthread_join(workers[i].thread, &failed), 0);
		assert_null(failed);
	}
}

struct opener {
	pthread_t thread;
	struct tg_client *client;
	uint64_t wall_ns, cpu_ns;
	int rc;
};

static uint64_t
clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static void *
open_run(void *arg)
{
	struct opener *o = arg;
	struct tg_lane_options options = { .ring_bytes = LANE_SQ_MIN };
	struct tg_lane *lane = NULL;
	uint64_t wall = clock_ns(CLOCK_MONOTONIC), cpu = clock_ns(CLOCK_THREAD_CPUTIME_ID);

	o->rc = tg_lane_open(o->client, &lane, "events", &options);
	o->wall_ns = clock_ns(CLOCK_MONOTONIC) - wall;
	o->cpu_ns = clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu;
	return NULL;
}

/* While the daemon takes long to answer one thread, the other threads sleep. A spinning thread with a real-time
 * priority could keep the processor from the thread it waits for. */
static void
threads_that_wait_for_the_control_socket_sleep(void **state)
{
	struct setup *s = *state;
	struct opener openers[2] = { { .client = NULL } };

	s->client->timeout_ms = 500;
	fake_set_lie(&s->fake, LIE_LATE);
	for (unsigned i = 0; i < 2; i++) {
		openers[i].client = s->client;
		assert_int_equal(pthread_create(&openers[i].thread, NULL, open_run, &openers[i]), 0);
	}
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(pthread_join(openers[i].thread, NULL), 0);
	/* The first thread had no answer in time; the other one waited for it and got one. */
	unsigned second = openers[0].rc == 0 ? 0 : 1;
	assert_int_equal(openers[second].rc, 0);
	assert_int_equal(openers[1 - second].rc, -TG_ETIMEOUT);
	assert_true(openers[second].cpu_ns < openers[second].wall_ns / 4);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		HOLD(threads_that_wait_for_the_control_socket_sleep),
		HOLD(answer_that_comes_while_falling_asleep_is_seen),
		HOLD(answer_that_comes_while_arming_the_descriptor_is_seen),
		HOLD(message_that_comes_while_the_daemon_falls_asleep_rings),
		{ "message_that_comes_while_the_daemon_falls_asleep_rings_fenced",
		    message_that_comes_while_the_daemon_falls_asleep_rings, setup_hold_fenced, teardown, NULL },
		cmocka_unit_test_setup_teardown(lanes_of_one_client_run_in_threads, setup_answer, teardown),
		cmocka_unit_test_setup_teardown(
		    no_wakeup_is_lost_and_every_byte_arrives, setup_answer, teardown),
		{ "no_wakeup_is_lost_with_fences_of_our_own", no_wakeup_is_lost_and_every_byte_arrives,
		    setup_answer_fenced, teardown, NULL },
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
