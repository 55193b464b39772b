/* The real world's name look-ups: those that nobody waits for any more do not pile up. */
#include "daemon/config.h"
#include "daemon/loop.h"

#include <semaphore.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(cancelled_lookups_leave_at_once),
	};

	return cmocka_run_group_tests_name("world", tests, NULL, NULL);
}
