/* libtidegate: tg_wait and tg_fd wake for every event they wait for, and for no other. */
#include "client_rig.h"

#include <sched.h>
#include <signal.h>

/* ---- actions of the daemon while the client sleeps ---- */

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

/* The descriptor may fire twice for one event, since tg_poll cannot tell whether the caller saw it; then it is
 * quiet. */
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
	/* Room without a visible completion. */
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
	/* The daemon's end, after the completions it left. */
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
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	assert_int_equal(tg_lane_open(s->client, &lane, "events", NULL), 0);
	assert_int_equal(tg_publish(lane, &m, NULL), 0);
	fake_lane_drain(fake_lane(&s->fake), TG_DELIVERED);
	assert_int_equal(fires(tg_fd(lane), 0), 1);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		HOLD(wait_wakes_for_completions),
		HOLD(wait_wakes_for_room),
		HOLD(wait_wakes_when_writable_again),
		HOLD(closed_lane_ends_the_wait_after_its_completions),
		HOLD(flush_waits_for_all_and_reads_none),
		HOLD(signal_ends_a_wait_and_not_a_flush),
		HOLD(descriptor_fires_for_each_reason),
		HOLD(descriptor_fires_for_a_closed_lane),
		HOLD(descriptor_survives_waiting_in_between),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
