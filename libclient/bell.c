/* The bell: the descriptor that wakes a sleeping lane's owner. */
#include "internal.h"

#include <errno.h>
#include <unistd.h>

void
bell_ring(int bell)
{
	static const uint64_t one = 1;
	ssize_t n;

	do
		n = write(bell, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
}

void
bell_drain(int bell)
{
	uint64_t rings[8]; /* a pipe's bytes, or an eventfd's count */
	ssize_t n;

	do
		n = read(bell, rings, sizeof(rings));
	while (n == (ssize_t)sizeof(rings) || (n < 0 && errno == EINTR));
}
