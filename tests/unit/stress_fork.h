/* Runs the two ends of stress.h as two processes on a lane of their own. */
#ifndef TG_TESTS_STRESS_FORK_H
#define TG_TESTS_STRESS_FORK_H

#include "stress.h"

#include <sys/mman.h>
#include <sys/wait.h>

/* The child is the client; both ends must report success. */
static inline void
stress_fork(struct stress s, uint64_t sq_bytes)
{
	struct test_lane lane;
	struct lane_map other;
	int status = 0;

	test_lane_init(&lane, sq_bytes, 0);
	s.doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	s.failed = mmap(NULL, sizeof(*s.failed), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert_ptr_not_equal(s.failed, MAP_FAILED);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		stress_pin(1);
		/* As a client does: its own mapping, and registered before its first publish. */
		int rc = test_lane_map(&lane, &other);

		s.client_map = &other;
		if (rc == 0 && s.expedited)
			rc = wake_register();
		_exit(rc == 0 && stress_client(&s) == 0 ? 0 : 1);
	}
	cpu_set_t all;
	assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
	stress_pin(0);
	s.daemon_map = &lane.map;
	int rc = stress_daemon(&s);
	(void)sched_setaffinity(0, sizeof(all), &all);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	munmap(s.failed, sizeof(*s.failed));
	close(s.doorbell);
	close(s.bell);
	test_lane_fini(&lane);
	assert_int_equal(rc, 0);
	assert_int_equal(status, 0);
}

#endif
