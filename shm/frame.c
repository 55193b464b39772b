#include "frame.h"

#include "error.h"
#include "packet.h"

#include <string.h>
#include <time.h>

_Static_assert(FRAME_FDS == PACKET_FDS, "a frame is a packet");

void
frame_init(struct frame *frame, enum frame_type type, uint32_t serial)
{
	memset(frame, 0, sizeof(*frame));
	frame->magic = FRAME_MAGIC;
	frame->abi = LANE_ABI;
	frame->type = type;
	frame->serial = serial;
}

static uint64_t
read_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

int64_t
frame_clock(void)
{
	uint64_t monotonic, before, after;
	unsigned tries = 3;

	do { /* a process that is preempted in between would err by as much */
		before = read_ns(CLOCK_REALTIME);
		monotonic = read_ns(CLOCK_MONOTONIC);
		after = read_ns(CLOCK_REALTIME);
	} while (after - before > 1000000 && --tries > 0);
	return (int64_t)(monotonic - before);
}

int
frame_send(int fd, const struct frame *frame, const int *fds, unsigned nfds)
{
	return packet_send(fd, frame, sizeof(*frame), fds, nfds);
}

int
frame_check(struct frame *frame, size_t len)
{
	if (len < offsetof(struct frame, u) || frame->magic != FRAME_MAGIC)
		return -TG_EPROTOCOL;
	/* Whatever is wrong with the rest of it, a head of another ABI is what its sender needs to hear. */
	if (frame->abi != LANE_ABI)
		return -TG_EVERSION;
	if (len != sizeof(*frame))
		return -TG_EPROTOCOL;
	if (frame->type == FRAME_ERROR)
		frame->u.error.text[FRAME_TEXT - 1] = '\0';
	if (frame->type == FRAME_LANE_OPEN || frame->type == FRAME_LANE_RETURN) {
		frame->u.open.pool[sizeof(frame->u.open.pool) - 1] = '\0';
		frame->u.open.name[sizeof(frame->u.open.name) - 1] = '\0';
	}
	return 0;
}

int
frame_recv(int fd, struct frame *frame, int fds[FRAME_FDS])
{
	memset(frame, 0, sizeof(*frame));
	ssize_t n = packet_recv(fd, frame, sizeof(*frame), fds);
	int rc = n >= 0 ? frame_check(frame, (size_t)n)
		 : n == -TG_EPROTOCOL && frame_check(frame, sizeof(*frame)) == -TG_EVERSION ? -TG_EVERSION
											    : (int)n;

	if (rc != 0)
		packet_close_fds(fds);
	return rc;
}
