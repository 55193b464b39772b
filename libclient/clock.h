/* Time as the library uses it: CLOCK_MONOTONIC nanoseconds; UINT64_MAX is a deadline that never comes. */
#ifndef TG_CLOCK_H
#define TG_CLOCK_H

#include <poll.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t
clock_read_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

static inline uint64_t
clock_now_ns(void)
{
	return clock_read_ns(CLOCK_MONOTONIC);
}

static inline uint64_t
clock_deadline(int timeout_ms)
{
	return timeout_ms < 0 ? UINT64_MAX : clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
}

/* poll() until a deadline; one that has passed only looks. */
int clock_poll(struct pollfd *fds, nfds_t count, uint64_t deadline);

#endif
