/* libtidegate when the daemon goes: what it left is read, and the next one is found by itself. */
#include "client_rig.h"
#include "libclient/internal.h"

#include <sched.h>

static void
do_hang_up(struct fake_lane *lane, void *arg)
{
	(void)lane;
	fake_hang_up(arg);
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
		uint64_t begin = fake_now_ms();
		fake_take_back(&s->fake, 0);
		fake_hang_up(&s->fake);
		while (s->client->generation == generation) {
			assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
			calls[i](s->lane);
			sched_yield();
		}
	}
	/* With a full ring, too. */
	while (publish(s, 4000, 0) == 0)
		continue;
	for (unsigned i = 3; i < sizeof(calls) / sizeof(calls[0]); i++) {
		uint32_t generation = s->client->generation;
		uint64_t begin = fake_now_ms();
		fake_hang_up(&s->fake);
		while (s->client->generation == generation) {
			assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
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
	begin = fake_now_ms();
	for (unsigned i = 0; i < ROUNDS; i++) {
		assert_int_equal(fires(fd, FAKE_DEADLINE_MS), 1);
		assert_int_equal(tg_poll(s->lane, c, 2), 0);
	}
	assert_true(fake_now_ms() - begin >= ROUNDS / 2);
	assert_int_equal(pthread_mutex_unlock(&s->client->control), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		HOLD(dead_daemon_leaves_the_ring_and_its_completions),
		HOLD(lane_fences_as_the_daemon_that_has_it_needs),
		HOLD(every_call_finds_the_next_daemon),
		HOLD(descriptor_rests_while_another_lane_reattaches),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
