/* libtidegate: who waits is woken, for everything it waits for and for nothing else. */
#include "fake_daemon.h"
#include "libclient/internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct setup {
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	struct fake_lane *peer;
};

static int
setup_of(void **state, enum fake_mode mode, uint64_t ring_bytes, int flags)
{
	struct setup *s = calloc(1, sizeof(*s));
	/* No spinning: every wait is a sleep. */
	struct tg_lane_options options = { .ring_bytes = ring_bytes, .spin_us = UINT32_MAX };
	struct tg_client_options client_options = { .socket = s->fake.path };

	fake_start(&s->fake, mode);
	if (flags >= 0)
		fake_set_flags(&s->fake, (unsigned)flags);
	assert_int_equal(tg_client_open(&s->client, &client_options), 0);
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", &options), 0);
	s->peer = fake_lane(&s->fake);
	*state = s;
	return 0;
}

static int
setup_hold(void **state)
{
	return setup_of(state, FAKE_HOLD, LANE_SQ_MIN, -1);
}

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

static int
teardown(void **state)
{
	struct setup *s = *state;

	tg_client_close(s->client);
	fake_stop(&s->fake);
	free(s);
	return 0;
}

static int
publish(struct setup *s, size_t body_len, uint32_t flags)
{
	static char body[16384];
	struct tg_message m = { .topic = "t", .body = body, .body_len = body_len, .flags = flags };

	return tg_publish(s->lane, &m, NULL);
}

static int
fires(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, timeout_ms);
}

static uint64_t
now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/*
 * Waits that end only because the time is up find what they missed and say 0; so a lost wake-up is
 * known by how long it took.
 */
static void
sync_in_time(struct tg_lane *lane, const struct tg_message *m)
{
	uint64_t begin = now_ms();
	struct tg_completion c;

	assert_int_equal(tg_publish_sync(lane, m, FAKE_DEADLINE_MS, &c), 0);
	assert_int_equal(c.tag, m->tag);
	assert_true(now_ms() - begin < FAKE_DEADLINE_MS);
}

static void
wait_in_time(struct tg_lane *lane)
{
	uint64_t begin = now_ms();

	assert_int_equal(tg_wait(lane, FAKE_DEADLINE_MS), 0);
	assert_true(now_ms() - begin < FAKE_DEADLINE_MS);
}

/* ---- what the daemon may do while the client sleeps ---- */

static void
do_deliver(struct fake_lane *lane, void *arg)
{
	(void)arg;
	fake_lane_drain(lane, TG_DELIVERED);
}

static void
do_writable(struct fake_lane *lane, void *arg)
{
	(void)arg;
	order_store_relaxed_32(&lane->map.daemon->writable, 1);
	fake_lane_ring(lane);
}

static void
do_close(struct fake_lane *lane, void *arg)
{
	(void)arg;
	order_store_relaxed_32(&lane->map.daemon->closed, 1);
	fake_lane_ring(lane);
}

static void
do_deliver_and_close(struct fake_lane *lane, void *arg)
{
	do_deliver(lane, arg);
	do_close(lane, arg);
}

static void
do_hang_up(struct fake_lane *lane, void *arg)
{
	(void)lane;
	fake_hang_up(arg);
}

static void
do_bare_ring(struct fake_lane *lane, void *arg)
{
	fake_lane_ring(lane); /* for nothing */
	while ((order_load_relaxed_32(&lane->map.client->waiting) & 1u) == 0 ||
	       order_load_relaxed_32(&lane->map.client->waiting) == lane->client.rung)
		sched_yield(); /* it goes to sleep again */
	do_deliver(lane, arg);
}

static void
do_signal(struct fake_lane *lane, void *arg)
{
	(void)lane;
	pthread_kill(*(pthread_t *)arg, SIGUSR1);
}

static void
wait_wakes_for_completions(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[2];
	struct fake_later later;

	for (int i = 0; i < 50; i++) {
		assert_int_equal(publish(s, 10, 0), 0);
		fake_later_start(&later, s->peer, i % 2 == 0 ? do_deliver : do_bare_ring, NULL);
		wait_in_time(s->lane);
		fake_later_join(&later);
		assert_int_equal(tg_poll(s->lane, c, 2), 1);
	}
	assert_int_equal(tg_wait(s->lane, 0), -TG_ETIMEOUT);
	assert_int_equal(tg_wait(s->lane, 5), -TG_ETIMEOUT);
}

static void
wait_wakes_for_room(void **state)
{
	struct setup *s = *state;
	struct fake_later later;
	struct tg_completion c;

	while (publish(s, 4000, TG_QUIET) == 0)
		continue;
	fake_later_start(&later, s->peer, do_deliver, NULL);
	wait_in_time(s->lane);
	fake_later_join(&later);
	assert_int_equal(tg_poll(s->lane, &c, 1), 0);
	assert_int_equal(tg_wait(s->lane, 0), -TG_ETIMEOUT); /* said once */
	assert_int_equal(publish(s, 4000, TG_QUIET), 0);

	/* And for slots. */
	while (publish(s, 0, TG_QUIET) == 0)
		continue;
	assert_non_null(strstr(tg_client_detail(NULL), "slots"));
	fake_later_start(&later, s->peer, do_deliver, NULL);
	wait_in_time(s->lane);
	fake_later_join(&later);
	assert_int_equal(publish(s, 0, TG_QUIET), 0);
}

static void
wait_wakes_when_writable_again(void **state)
{
	struct setup *s = *state;
	struct fake_later later;

	assert_int_equal(tg_wait(s->lane, 0), -TG_ETIMEOUT); /* it was writable all the time */
	order_store_relaxed_32(&s->peer->map.daemon->writable, 0);
	assert_int_equal(tg_writable(s->lane), 0);
	fake_later_start(&later, s->peer, do_writable, NULL);
	wait_in_time(s->lane);
	fake_later_join(&later);
	assert_int_equal(tg_writable(s->lane), 1);
	assert_int_equal(tg_wait(s->lane, 0), -TG_ETIMEOUT);
}

static void
closed_lane_ends_the_wait_after_its_completions(void **state)
{
	struct setup *s = *state;
	struct fake_later later;
	struct tg_completion c[2];

	assert_int_equal(publish(s, 10, 0), 0);
	fake_later_start(&later, s->peer, do_deliver_and_close, NULL);
	wait_in_time(s->lane);
	fake_later_join(&later);
	wait_in_time(s->lane);
	assert_int_equal(tg_poll(s->lane, c, 2), 1);
	assert_int_equal(tg_wait(s->lane, FAKE_DEADLINE_MS), -TG_EBROKEN);
	assert_int_equal(tg_poll(s->lane, c, 2), -TG_EBROKEN);
}

static void
dead_daemon_leaves_the_ring_and_its_completions(void **state)
{
	struct setup *s = *state;
	struct fake_later later;
	struct tg_completion c[2];

	assert_int_equal(publish(s, 10, 0), 0);
	assert_int_equal(publish(s, 10, 0), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(publish(s, 10, 0), 0);
	fake_later_start(&later, s->peer, do_hang_up, &s->fake);
	assert_int_equal(tg_flush(s->lane, 50), -TG_ETIMEOUT);
	fake_later_join(&later);
	wait_in_time(s->lane);
	assert_int_equal(tg_poll(s->lane, c, 2), 2);
	assert_int_equal(tg_wait(s->lane, 50), -TG_ETIMEOUT);
	assert_int_equal(tg_poll(s->lane, c, 2), 0);
	assert_int_equal(publish(s, 10, 0), 0); /* there is room: a new daemon will find it */
	/* Which never will now: nobody is there that could go on delivering, and that is what is said. */
	assert_int_equal(tg_lane_close(s->lane, 0), -TG_ECLOSED);
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", NULL), 0); /* it listens again */
}

static void
flush_waits_for_all_and_reads_none(void **state)
{
	struct setup *s = *state;
	struct fake_later later;
	struct tg_completion c[8];

	assert_int_equal(tg_flush(s->lane, -1), 0);
	for (int i = 0; i < 5; i++)
		assert_int_equal(publish(s, 10, i % 2 == 0 ? TG_QUIET : 0), 0);
	assert_int_equal(tg_flush(s->lane, 5), -TG_ETIMEOUT);
	assert_non_null(strstr(tg_client_detail(NULL), "5 messages"));
	fake_later_start(&later, s->peer, do_deliver, NULL);
	assert_int_equal(tg_flush(s->lane, FAKE_DEADLINE_MS), 0);
	fake_later_join(&later);
	assert_int_equal(tg_poll(s->lane, c, 8), 2);
	assert_int_equal(publish(s, 10, 0), 0);
	assert_int_equal(tg_lane_close(s->lane, 1), -TG_ETIMEOUT);
	assert_int_equal(fake_closes(&s->fake), 1);
}

static void
on_signal(int number)
{
	(void)number;
}

static void
signal_ends_a_wait_and_not_a_flush(void **state)
{
	struct setup *s = *state;
	struct sigaction action = { .sa_handler = on_signal };
	pthread_t self = pthread_self();
	struct fake_later later;
	struct tg_completion c;

	sigaction(SIGUSR1, &action, NULL);
	fake_later_start(&later, s->peer, do_signal, &self);
	/* The signal may come just before the sleep; then the time given ends it. */
	assert_in_range(-tg_wait(s->lane, 200), 0, TG_ETIMEOUT);
	fake_later_join(&later);
	assert_int_equal(tg_poll(s->lane, &c, 1), 0);
	assert_int_equal(publish(s, 10, 0), 0);
	fake_later_start(&later, s->peer, do_signal, &self);
	assert_int_equal(tg_flush(s->lane, 50), -TG_ETIMEOUT);
	fake_later_join(&later);
}

/* ---- the descriptor ---- */

/* An edge may be told twice, since tg_poll cannot know who has seen the bell; then it is quiet. */
static void
becomes_quiet(struct setup *s, int fd)
{
	struct tg_completion c;

	assert_int_equal(tg_poll(s->lane, &c, 1), 0);
	if (fires(fd, 0) == 1)
		assert_int_equal(tg_poll(s->lane, &c, 1), 0);
	assert_int_equal(fires(fd, 0), 0);
}

static void
descriptor_fires_for_each_reason(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[8];
	int fd = tg_fd(s->lane);

	assert_true(fd >= 0);
	assert_int_equal(tg_fd(s->lane), fd);
	assert_int_equal(fires(fd, 0), 0);
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	assert_int_equal(fires(fd, 0), 0);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(publish(s, 10, 0), 0);
		assert_int_equal(publish(s, 10, 0), 0);
		assert_int_equal(fires(fd, 0), 0);
		fake_lane_drain(s->peer, TG_DELIVERED);
		assert_int_equal(fires(fd, 0), 1);
		assert_int_equal(tg_poll(s->lane, c, 8), 2);
		assert_int_equal(tg_poll(s->lane, c, 8), 0);
		assert_int_equal(fires(fd, 0), 0);
	}
	/* Room, though no completion is to be seen. */
	while (publish(s, 4000, TG_QUIET) == 0)
		continue;
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	assert_int_equal(fires(fd, 0), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(fires(fd, 0), 1);
	becomes_quiet(s, fd);
	/* Room that came back before tg_poll could arm it. */
	while (publish(s, 4000, TG_QUIET) == 0)
		continue;
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	assert_int_equal(fires(fd, 0), 1);
	becomes_quiet(s, fd);
	/* Writability. */
	order_store_relaxed_32(&s->peer->map.daemon->writable, 0);
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	do_writable(s->peer, NULL);
	assert_int_equal(fires(fd, 0), 1);
	becomes_quiet(s, fd);
	/* The end of the daemon, after what it left. */
	assert_int_equal(publish(s, 10, 0), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	fake_hang_up(&s->fake);
	assert_int_equal(fires(fd, 0), 1);
	assert_int_equal(tg_poll(s->lane, c, 8), 1);
	becomes_quiet(s, fd); /* but for the timer that brings the owner back to look for a new daemon */
	assert_int_equal(fires(fd, FAKE_DEADLINE_MS), 1);
}

static void
descriptor_fires_for_a_closed_lane(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[8];
	int fd = tg_fd(s->lane);

	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	do_close(s->peer, NULL);
	assert_int_equal(fires(fd, 0), 1);
	assert_int_equal(tg_poll(s->lane, c, 8), -TG_EBROKEN);
}

static void
descriptor_survives_waiting_in_between(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[8];
	int fd = tg_fd(s->lane);

	assert_int_equal(tg_wait(s->lane, 1), -TG_ETIMEOUT);
	assert_int_equal(publish(s, 10, 0), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(fires(fd, 0), 1);
	assert_int_equal(tg_flush(s->lane, 100), 0);
	assert_int_equal(fires(fd, 0), 1); /* not eaten */
	assert_int_equal(tg_poll(s->lane, c, 8), 1);
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	assert_int_equal(fires(fd, 0), 0);
	struct fake_later later;
	assert_int_equal(publish(s, 10, 0), 0);
	fake_later_start(&later, s->peer, do_deliver, NULL);
	assert_int_equal(tg_flush(s->lane, FAKE_DEADLINE_MS), 0);
	fake_later_join(&later);
	assert_int_equal(fires(fd, 0), 1);
	assert_int_equal(tg_poll(s->lane, c, 8), 1);
	/* A descriptor that is asked for when something is there already. */
	struct tg_lane *lane;
	struct tg_message m = { .topic = "t" };
	assert_int_equal(tg_lane_open(s->client, &lane, "events", NULL), 0);
	assert_int_equal(tg_publish(lane, &m, NULL), 0);
	fake_lane_drain(fake_lane(&s->fake), TG_DELIVERED);
	assert_int_equal(fires(tg_fd(lane), 0), 1);
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
		struct tg_message m = { .topic = "t", .body = "a", .body_len = 1, .tag = (uint64_t)i };

		sync_in_time(s->lane, &m);
		sum += 'a';
		bytes++;
	}
	for (unsigned i = 0; i < sizeof(body); i++)
		body[i] = (uint8_t)(i * 7u);
	while (want < 30000) {
		struct tg_message m = { .topic = "t", .body = body, .tag = want };
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

	/* Now everyone sleeps: waiting costs no CPU. */
	last = cpu_ns();
	assert_int_equal(tg_wait(s->lane, 100), -TG_ETIMEOUT);
	assert_true(cpu_ns() - last < 20000000u);
}

/* ---- races, aimed at ---- */

#define RACES 20000u
#define RACE_EAGER 4096u /* looks before it lets someone else run */
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
	uint64_t begin = now_ms(), deadline = begin + FAKE_DEADLINE_MS;
	int seen;

	wake_doze(&lane->asleep);
	if (r->s->fake.flags == 0 || wake_barrier() != 0)
		order_fence_full(ORDER_C);
	seen = sq_consumer_refresh(&lane->sq) > 0;
	while (!seen && fake_rings(&r->s->fake) == heard) {
		uint64_t now = now_ms();

		if (now > deadline)
			return 0;
		/* The second look of wake.h. */
		seen = r->s->fake.flags != 0 && now > begin + WAKE_SECOND_LOOK_MS && sq_consumer_refresh(&lane->sq) > 0;
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
		deadline = now_ms() + FAKE_DEADLINE_MS;
		for (unsigned n = 0; sq_consumer_refresh(&lane->sq) <= 0; n++) {
			if (n % RACE_EAGER != RACE_EAGER - 1)
				continue;
			if (now_ms() > deadline)
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
	struct tg_message m = { .topic = "t" };
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
	struct tg_message m = { .topic = "t" };
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
	struct tg_message m = { .topic = "t" };
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

/* Each has its lane; words of its own errors, too, whatever the others run into. */
static void *
worker_run(void *arg)
{
	struct worker *w = arg;
	struct tg_client_options options = { .socket = w->fake->path };
	struct tg_message wrong = { .topic = "t", .body = "", .body_len = 100000 + w->base };
	struct tg_client *own;
	struct tg_completion c;
	char number[32];

	snprintf(number, sizeof(number), "%zu", wrong.body_len);
	if (tg_client_open(&own, &options) != 0)
		return (void *)1;
	for (uint64_t i = 0; i < 300; i++) {
		struct tg_message m = { .topic = "t", .tag = w->base + i };

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

/* One daemon raises the fences of its clients, and the next may not be able to. */
static void
lane_fences_as_the_daemon_that_has_it_needs(void **state)
{
	struct setup *s = *state;
	static const unsigned flags[] = { 0, LANE_F_EXPEDITED, 0 };
	int registered = s->lane->full_fence == 0;

	for (unsigned i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
		uint32_t generation = s->client->generation;
		fake_take_back(&s->fake, flags[i]);
		fake_hang_up(&s->fake);
		for (unsigned ms = 0; s->client->generation == generation; ms++) {
			assert_true(ms < FAKE_DEADLINE_MS);
			(void)tg_wait(s->lane, 1);
		}
		assert_int_equal(s->lane->full_fence, !(registered && flags[i] != 0));
	}
}

static void
call_batch(struct tg_lane *lane)
{
	struct tg_message m = { .topic = "t" };

	(void)tg_publish_batch(lane, &m, 1, NULL);
}

static void
call_commit(struct tg_lane *lane)
{
	struct tg_message m = { .topic = "t", .body_len = 8 };
	void *body;

	if (tg_reserve(lane, &m, &body) == 0) {
		memset(body, 'x', 8);
		(void)tg_commit(lane, 8, NULL);
	}
}

static void
call_cancel(struct tg_lane *lane)
{
	(void)tg_cancel(lane, lane->start);
}

static void
call_writable(struct tg_lane *lane)
{
	(void)tg_writable(lane);
}

static void
call_outstanding(struct tg_lane *lane)
{
	(void)tg_outstanding(lane);
}

/* A program that publishes quietly, or only asks how far things are, may make no other call. */
static void
every_call_finds_the_next_daemon(void **state)
{
	struct setup *s = *state;
	static void (*const calls[])(struct tg_lane *) = { call_cancel, call_writable, call_outstanding, call_batch,
		call_commit };

	assert_int_equal(publish(s, 10, 0), 0); /* what is cancelled */
	for (unsigned i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
		uint32_t generation = s->client->generation;
		uint64_t begin = now_ms();
		fake_take_back(&s->fake, 0);
		fake_hang_up(&s->fake);
		while (s->client->generation == generation) {
			assert_true(now_ms() - begin < FAKE_DEADLINE_MS);
			calls[i](s->lane);
			sched_yield();
		}
	}
	/* With a full ring, too. */
	while (publish(s, 4000, 0) == 0)
		continue;
	for (unsigned i = 3; i < sizeof(calls) / sizeof(calls[0]); i++) {
		uint32_t generation = s->client->generation;
		uint64_t begin = now_ms();
		fake_hang_up(&s->fake);
		while (s->client->generation == generation) {
			assert_true(now_ms() - begin < FAKE_DEADLINE_MS);
			calls[i](s->lane);
			sched_yield();
		}
	}
}

/* Another lane's thread is at it, and has its answer to wait for: this one's loop is not kept busy. */
static void
descriptor_rests_while_another_lane_reattaches(void **state)
{
	enum { ROUNDS = 100 };
	struct setup *s = *state;
	struct tg_completion c[2];
	int fd = tg_fd(s->lane);
	uint64_t begin;

	assert_int_equal(pthread_mutex_lock(&s->client->control), 0);
	fake_hang_up(&s->fake);
	begin = now_ms();
	for (unsigned i = 0; i < ROUNDS; i++) {
		assert_int_equal(fires(fd, FAKE_DEADLINE_MS), 1);
		assert_int_equal(tg_poll(s->lane, c, 2), 0);
	}
	assert_true(now_ms() - begin >= ROUNDS / 2);
	assert_int_equal(pthread_mutex_unlock(&s->client->control), 0);
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

/* The daemon takes long to answer one thread: the others that want something of it sleep. A thread that
 * span there could, with a real-time priority, keep the one it waits for from the processor. */
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
	/* Whoever was first had no answer in time; the other waited for him, and had one. */
	unsigned second = openers[0].rc == 0 ? 0 : 1;
	assert_int_equal(openers[second].rc, 0);
	assert_int_equal(openers[1 - second].rc, -TG_ETIMEOUT);
	assert_true(openers[second].cpu_ns < openers[second].wall_ns / 4);
}

#define HOLD(f) cmocka_unit_test_setup_teardown(f, setup_hold, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		HOLD(wait_wakes_for_completions),
		HOLD(wait_wakes_for_room),
		HOLD(wait_wakes_when_writable_again),
		HOLD(closed_lane_ends_the_wait_after_its_completions),
		HOLD(dead_daemon_leaves_the_ring_and_its_completions),
		HOLD(flush_waits_for_all_and_reads_none),
		HOLD(threads_that_wait_for_the_control_socket_sleep),
		HOLD(lane_fences_as_the_daemon_that_has_it_needs),
		HOLD(every_call_finds_the_next_daemon),
		HOLD(descriptor_rests_while_another_lane_reattaches),
		HOLD(signal_ends_a_wait_and_not_a_flush),
		HOLD(descriptor_fires_for_each_reason),
		HOLD(descriptor_fires_for_a_closed_lane),
		HOLD(descriptor_survives_waiting_in_between),
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
