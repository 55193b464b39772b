/*
 * For programs that speak to the daemon without the library and exit when they fail: greedy.c, selfish.c.
 */
#ifndef TG_TESTS_RAW_CLIENT_H
#define TG_TESTS_RAW_CLIENT_H

#include "shm/frame.h"
#include "shm/ring.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_un address = { .sun_family = AF_UNIX };
static const char *pool;

static inline void
die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static inline void
ready(void)
{
	static int said;

	if (!said++) {
		puts("ready");
		fflush(stdout);
	}
}

static inline uint64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * UINT64_C(1000000000) + (uint64_t)t.tv_nsec;
}

static inline int
connect_daemon(void)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
		die(address.sun_path);
	return fd;
}

static inline void
request(int control, const struct frame *frame, const int *send, unsigned nsend, struct frame *answer,
    int fds[FRAME_FDS])
{
	if (frame_send(control, frame, send, nsend) != 0 || frame_recv(control, answer, fds) != 0)
		die("control socket");
}

static inline void
close_fds(const int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

static inline struct frame
open_request(uint64_t bytes)
{
	struct frame frame;

	frame_init(&frame, FRAME_LANE_OPEN, 1);
	frame.u.open.sq_bytes = bytes;
	snprintf(frame.u.open.pool, sizeof(frame.u.open.pool), "%s", pool);
	snprintf(frame.u.open.name, sizeof(frame.u.open.name), "%s", program_invocation_short_name);
	return frame;
}

static inline void
close_lane(int control, uint64_t id)
{
	struct frame frame, answer;
	int fds[FRAME_FDS];

	frame_init(&frame, FRAME_LANE_CLOSE, 2);
	frame.u.lane.lane_id = id;
	request(control, &frame, NULL, 0, &answer, fds);
}

/* A client's part of a lane, as the daemon takes it. */
static inline int
make_ring(uint64_t bytes, struct lane_map *map)
{
	struct lane_geometry geo;
	int ring = -1;

	if (lane_geometry_make(&geo, bytes, 0) != 0 || (ring = lane_ring_make(map, &geo)) < 0)
		die("ring");
	return ring;
}

static inline void
refused(const struct frame *answer)
{
	fprintf(stderr, "%s: refused: %s\n", program_invocation_short_name, answer->u.error.text);
	exit(1);
}

#endif
