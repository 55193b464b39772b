#include "clock.h"

#include <stddef.h>

#define SECOND_NS UINT64_C(1000000000)

int
clock_poll(struct pollfd *fds, nfds_t count, uint64_t deadline)
{
	struct timespec left;
	uint64_t now;

	if (deadline == UINT64_MAX)
		return ppoll(fds, count, NULL, NULL);
	now = clock_now_ns();
	now = now < deadline ? deadline - now : 0;
	left.tv_sec = (time_t)(now / SECOND_NS);
	left.tv_nsec = (long)(now % SECOND_NS);
	return ppoll(fds, count, &left, NULL);
}
