/* libtidegate when the daemon dies: the library reads the completions it left and finds the next daemon by
 * itself. */
#include "client_rig.h"
#include "libclient/internal.h"

#include <ck_pr.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

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
	/* No daemon will deliver them now, and the error says so. */
	assert_int_equal(tg_lane_close(s->lane, 0), -TG_ECLOSED);
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", NULL), 0); /* it listens again */
}

/* One daemon supports membarrier, and the next may not. */
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

static uint64_t
published_ns(struct setup *s, int reserved)
{
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body_len = 8, .body = "12345678" };
	struct record record;
	const uint8_t *bytes;
	uint64_t position;
	void *body;

	if (reserved) {
		assert_int_equal(tg_reserve(s->lane, &m, &body), 0);
		assert_int_equal(tg_commit(s->lane, 8, NULL), 0);
	} else {
		assert_int_equal(tg_publish(s->lane, &m, NULL), 0);
	}
	assert_int_equal(fake_lane_take(s->peer, &record, &bytes, &position), 1);
	return record.published_ns;
}

/* The daemon, and the next one, may be in another time namespace than the client. */
static void
records_are_dated_by_the_daemons_clock(void **state)
{
	struct setup *s = *state;
	static const int64_t ahead_s[] = { 0, 60, -20, 1000000, 0 };

	for (unsigned i = 0; i < sizeof(ahead_s) / sizeof(ahead_s[0]); i++) {
		uint32_t generation = s->client->generation;
		fake_set_clock(&s->fake, ahead_s[i] * 1000000000);
		fake_take_back(&s->fake, 0);
		fake_hang_up(&s->fake);
		for (unsigned ms = 0; s->client->generation == generation; ms++) {
			assert_true(ms < FAKE_DEADLINE_MS);
			(void)tg_wait(s->lane, 1);
		}
		for (int reserved = 0; reserved < 2; reserved++) {
			uint64_t begin_ms = fake_now_ms();
			int64_t ms = (int64_t)(published_ns(s, reserved) / 1000000) - ahead_s[i] * 1000;
			/* The coarse clock lags by a tick. */
			assert_in_range(ms, begin_ms - 20, fake_now_ms() + 1);
		}
	}
}

static void
call_batch(struct tg_lane *lane)
{
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };

	(void)tg_publish_batch(lane, &m, 1, NULL);
}

static void
call_commit(struct tg_lane *lane)
{
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body_len = 8 };
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

/* A program may only ever call tg_publish with TG_QUIET, or only tg_outstanding. */
static void
every_call_finds_the_next_daemon(void **state)
{
	struct setup *s = *state;
	static void (*const calls[])(
	    struct tg_lane *) = { call_cancel, call_writable, call_outstanding, call_batch, call_commit };

	assert_int_equal(publish(s, 10, 0), 0); /* the cancelled message */
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

/* Another lane's thread reconnects and waits for its answer: this lane's loop must not spin meanwhile. */
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

struct looker {
	pthread_t thread;
	struct setup *s;
	int looks, stop;
};

static void
look_for_daemon(struct tg_lane *lane)
{
	lane->check_ns = 0; /* it is time */
	(void)tg_writable(lane);
}

/* The thread of another lane, which looks at the connection as often as it can. */
static void *
look_run(void *arg)
{
	struct looker *l = arg;

	while (ck_pr_load_int(&l->stop) == 0) {
		if (ck_pr_load_int(&l->looks) == 0) {
			sched_yield();
			continue;
		}
		ck_pr_store_64(&l->s->client->retry_ns, 0);
		look_for_daemon(l->s->lane);
	}
	return NULL;
}

/* Whichever thread notices first, there is one loss and one return. */
static void
lane_is_opened_while_another_reattaches(void **state)
{
	enum { ROUNDS = 100 };
	struct setup *s = *state;
	struct looker l = { .s = s };
	struct tg_lane_options options = { .ring_bytes = LANE_SQ_MIN };
	struct tg_lane *lane;
	int rc = 0;

	fake_take_back(&s->fake, 0);
	assert_int_equal(pthread_create(&l.thread, NULL, look_run, &l), 0);
	for (unsigned i = 0; i < ROUNDS && rc == 0; i++) {
		fake_hang_up(&s->fake);
		ck_pr_store_int(&l.looks, 1);
		if ((rc = tg_lane_open(s->client, &lane, "events", &options)) == 0)
			rc = tg_lane_close(lane, 0);
		ck_pr_store_int(&l.looks, 0);
	}
	ck_pr_store_int(&l.stop, 1);
	assert_int_equal(pthread_join(l.thread, NULL), 0);
	assert_int_equal(rc, 0);
	assert_int_equal(s->client->generation, ROUNDS);
	assert_int_equal(s->client->lost, 0);
}

struct closer {
	pthread_t thread;
	struct tg_lane *lane;
	int tid;
	int rc;
};

static void *
close_run(void *arg)
{
	struct closer *c = arg;

	ck_pr_store_int(&c->tid, (int)syscall(SYS_gettid));
	c->rc = tg_lane_close(c->lane, 0);
	return NULL;
}

/* Of a thread of this process: 'S' as long as it waits. */
static char
thread_state(int tid)
{
	char path[64], text[256] = "";
	const char *end;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	file = fopen(path, "re");
	if (file == NULL)
		return '-';
	if (fgets(text, sizeof(text), file) == NULL)
		text[0] = '\0';
	fclose(file);
	end = strrchr(text, ')');
	return end != NULL && end[1] == ' ' ? end[2] : '-';
}

/* The next daemon may know the lane by another number, and it comes while its owner waits to close it. */
static void
lane_is_closed_by_the_number_it_has_now(void **state)
{
	struct setup *s = *state;
	struct closer c = { .lane = s->lane };
	uint64_t begin = fake_now_ms();

	assert_int_equal(pthread_mutex_lock(&s->client->control), 0);
	assert_int_equal(pthread_create(&c.thread, NULL, close_run, &c), 0);
	while (ck_pr_load_int(&c.tid) == 0 || thread_state(c.tid) != 'S') {
		assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
		sched_yield();
	}
	ck_pr_store_64(&s->lane->lane_id, 77); /* as hand_back() does */
	assert_int_equal(pthread_mutex_unlock(&s->client->control), 0);
	assert_int_equal(pthread_join(c.thread, NULL), 0);
	assert_int_equal(c.rc, 0);
	assert_int_equal(fake_last_close(&s->fake), 77);
}

/* A lane that the next daemon refuses takes no more messages: they would be lost silently. */
static void
lane_that_is_not_taken_back_takes_no_messages(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	uint64_t begin = fake_now_ms();

	fake_take_back(&s->fake, 0);
	fake_set_error(&s->fake, TG_ENOPOOL);
	fake_hang_up(&s->fake);
	while (ck_pr_load_int(&s->lane->refused) == 0) {
		assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
		look_for_daemon(s->lane);
		sched_yield();
	}
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ENOPOOL);
	assert_int_equal(tg_publish_batch(s->lane, &m, 1, NULL), -TG_ENOPOOL);
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ENOPOOL);
}

struct child {
	pid_t pid;
	int end;
};

/* A child that lives, with everything that it has inherited open, until child_end(). */
static void
child_start(struct child *child)
{
	int pair[2];
	char byte;

	assert_int_equal(pipe(pair), 0);
	child->pid = fork();
	assert_true(child->pid >= 0);
	if (child->pid == 0) {
		close(pair[1]);
		while (read(pair[0], &byte, 1) < 0 && errno == EINTR)
			;
		_exit(0);
	}
	close(pair[0]);
	child->end = pair[1];
}

static void
child_end(struct child *child)
{
	int status;

	close(child->end);
	assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
}

static int
conns_become(struct setup *s, unsigned count)
{
	uint64_t begin = fake_now_ms();

	while (fake_conns(&s->fake) != count) {
		if (fake_now_ms() - begin >= FAKE_DEADLINE_MS)
			return 0;
		sched_yield();
	}
	return 1;
}

/* A server opens a client, forks its workers, and closes the client: the daemon notices at once. */
static void
client_is_closed_though_a_child_has_its_descriptors(void **state)
{
	struct setup *s = *state;
	struct child child;
	int closed;

	child_start(&child);
	tg_client_close(s->client);
	s->client = NULL;
	closed = conns_become(s, 0);
	child_end(&child);
	assert_true(closed);
}

static void *
mend_run(void *arg)
{
	look_for_daemon(arg);
	return NULL;
}

/* A daemon that was too slow still has the lanes, on a connection that a child must not keep alive. */
static void
attempt_is_over_though_a_child_has_its_descriptor(void **state)
{
	struct setup *s = *state;
	struct child child;
	pthread_t thread;
	int closed;

	fake_hang_up(&s->fake);
	assert_int_equal(pthread_create(&thread, NULL, mend_run, s->lane), 0);
	assert_true(conns_become(s, 1)); /* which is not answered */
	child_start(&child);
	assert_int_equal(pthread_join(thread, NULL), 0);
	assert_int_equal(s->client->lost, 1);
	closed = conns_become(s, 0);
	child_end(&child);
	assert_true(closed);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		HOLD(dead_daemon_leaves_the_ring_and_its_completions),
		HOLD(lane_fences_as_the_daemon_that_has_it_needs),
		HOLD(records_are_dated_by_the_daemons_clock),
		HOLD(every_call_finds_the_next_daemon),
		HOLD(descriptor_rests_while_another_lane_reattaches),
		HOLD(lane_is_opened_while_another_reattaches),
		HOLD(lane_is_closed_by_the_number_it_has_now),
		HOLD(lane_that_is_not_taken_back_takes_no_messages),
		HOLD(client_is_closed_though_a_child_has_its_descriptors),
		HOLD(attempt_is_over_though_a_child_has_its_descriptor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
