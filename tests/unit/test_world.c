/* The real world: look-ups that nobody waits for do not pile up, a reset behind last words is seen. */
#include "daemon/config.h"
#include "daemon/loop.h"

#include <arpa/inet.h>
#include <errno.h>
#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define LOOKUPS 1000

static void
hold_up(uv_work_t *work)
{
	sem_wait(work->data);
}

static void
held_up(uv_work_t *work, int status)
{
}

static void
on_resolved(void *owner, const struct world_address *addresses, unsigned count, const char *why)
{
	fail_msg("a cancelled look-up was answered");
}

static void
cancelled_lookups_leave_at_once(void **state)
{
	static const struct sock_handlers handlers = { .resolved = on_resolved };
	const struct config_address address = { .text = (char *)(uintptr_t) "localhost:1",
		.host = (char *)(uintptr_t) "localhost",
		.port = 1 };
	struct shard shard = { .clock_is_stale = 0 };
	uv_work_t work;
	uv_loop_t loop;
	sem_t sem;

	/* The only thread of the pool is as busy as a silent name server makes it. */
	assert_int_equal(setenv("UV_THREADPOOL_SIZE", "1", 1), 0);
	assert_int_equal(sem_init(&sem, 0, 0), 0);
	assert_int_equal(uv_loop_init(&loop), 0);
	work.data = &sem;
	assert_int_equal(uv_queue_work(&loop, &work, hold_up, held_up), 0);
	struct world *world = world_uv_new(&loop, &shard);
	assert_non_null(world);
	for (unsigned i = 0; i < LOOKUPS; i++) {
		void *request = world->ops->resolve(world, &address, &handlers, NULL);
		assert_non_null(request);
		world->ops->resolve_cancel(world, request);
	}
	/* At most one was taken up before the one that holds up the thread. */
	for (unsigned i = 0; i < 3; i++)
		uv_run(&loop, UV_RUN_NOWAIT);
	assert_in_range(loop.active_reqs.count, 1, 2);
	sem_post(&sem);
	uv_run(&loop, UV_RUN_DEFAULT);
	world_uv_free(world);
	assert_int_equal(uv_loop_close(&loop), 0);
	sem_destroy(&sem);
}

/* A connection over loopback: the end we watch, and the broker's. */
static void
connect_pair(int pair[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(pair[0] >= 0);
	assert_int_equal(connect(pair[0], (struct sockaddr *)&address, len), 0);
	pair[1] = accept(listener, NULL, NULL);
	assert_true(pair[1] >= 0);
	close(listener);
}

struct reader {
	struct sock *sock; /* NULL: closed */
	char said[32];
	int error;
};

/* As a link does: what is there is read once, and a short read means that nothing else is. */
static void
read_once(void *owner)
{
	struct reader *reader = owner;
	char bytes[sizeof(reader->said)];
	ssize_t n = reader->sock->world->ops->read(reader->sock, bytes, sizeof(bytes) - 1);

	if (n > 0) {
		memcpy(reader->said, bytes, (size_t)n);
		return;
	}
	reader->error = n < 0 ? errno : 0;
	reader->sock->world->ops->close(reader->sock, 0);
	reader->sock = NULL;
}

static void
ignore(void *owner)
{
	(void)owner;
}

static void
reset_behind_last_words_is_seen(void **state)
{
	static const struct sock_handlers handlers = { .readable = read_once, .writable = ignore };
	struct shard shard = { .clock_is_stale = 0 };
	struct reader reader = { .error = 0 };
	uv_loop_t loop;
	int pair[2];

	connect_pair(pair);
	assert_int_equal(uv_loop_init(&loop), 0);
	struct world *world = world_uv_new(&loop, &shard);
	assert_non_null(world);
	reader.sock = world_uv_adopt(world, pair[0], &handlers, &reader);
	assert_non_null(reader.sock);
	/* Whoever closes with something unread resets the connection. */
	assert_int_equal(write(pair[0], "unwanted", 8), 8);
	assert_int_equal(recv(pair[1], (char[8]){ 0 }, 8, MSG_PEEK | MSG_WAITALL), 8);
	assert_int_equal(write(pair[1], "last words", 10), 10);
	close(pair[1]);
	/* Ends when nothing is watched any more. */
	uv_run(&loop, UV_RUN_DEFAULT);
	assert_string_equal(reader.said, "last words");
	assert_null(reader.sock);
	assert_int_equal(reader.error, ECONNRESET);
	world_uv_free(world);
	assert_int_equal(uv_loop_close(&loop), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_behind_last_words_is_seen),
		cmocka_unit_test(cancelled_lookups_leave_at_once),
	};

	return cmocka_run_group_tests_name("world", tests, NULL, NULL);
}
