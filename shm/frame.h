/*
 * The frames of client and daemon on the control socket (AF_UNIX, SOCK_SEQPACKET: one frame a packet).
 *
 *   client                                  daemon
 *   LANE_OPEN  pool, geometry + ring ->
 *                                    <-     LANE_OPENED  + answers, doorbell, bell or  ERROR
 *   LANE_CLOSE lane_id               ->
 *                                    <-     LANE_CLOSED                            or  ERROR
 *   LANE_RETURN + ring, answers      ->     (after a daemon's death)
 *                                    <-     LANE_RETURNED + answers, doorbell, bell  or  ERROR
 *   LANE_READY lane_id               ->     (it uses the answers that came back, see lane.h)
 *
 * Requests are answered in order, one answer each, but for LANE_READY, which has none; a client may send
 * several ahead. A frame of
 * another ABI is answered with ERROR TG_EVERSION, whose head keeps this shape for ever, so that
 * any two versions understand at least that. Closing the socket hands all its lanes' committed
 * records to the daemon to finish.
 *
 * Descriptors: ring and answers are the lane's memory. doorbell (an eventfd, one for each client) wakes the
 * daemon, which reads it without ever blocking, whatever the client does to the description they
 * share (RWF_NOWAIT). bell wakes the client: the reading end of a pipe, one for each lane, because
 * there is no such write: a client could fill a shared eventfd and take O_NONBLOCK off it.
 */
#ifndef TG_SHM_FRAME_H
#define TG_SHM_FRAME_H

#include "lane.h"
#include "packet.h"

#include <stdint.h>
#include <sys/types.h>

#define FRAME_MAGIC UINT32_C(0x74646631) /* "1fdt" */
#define FRAME_FDS 3u                     /* most descriptors in a frame */
#define FRAME_TEXT 240u

enum frame_type {
	FRAME_ERROR = 1,
	FRAME_LANE_OPEN = 2,
	FRAME_LANE_OPENED = 3,
	FRAME_LANE_CLOSE = 4,
	FRAME_LANE_CLOSED = 5,
	FRAME_LANE_RETURN = 6,
	FRAME_LANE_RETURNED = 7,
	FRAME_LANE_READY = 8,
};

enum frame_fd { FRAME_FD_ANSWERS, FRAME_FD_DOORBELL, FRAME_FD_BELL }; /* of LANE_OPENED and LANE_RETURNED */
enum frame_fd_request { FRAME_FD_RING, FRAME_FD_OLD_ANSWERS }; /* of LANE_OPEN, and of LANE_RETURN both */

struct frame {
	uint32_t magic;
	uint32_t abi; /* LANE_ABI of the sender */
	uint32_t type;
	uint32_t serial; /* of the request; its answer repeats it */
	union {
		struct {
			int32_t code; /* TG_E…, positive */
			uint32_t
			    ring_bytes; /* not 0: the largest ring the daemon would take, the one asked for was larger */
			char text[FRAME_TEXT]; /* object, value and limit, in words */
		} error;
		struct {
			uint64_t sq_bytes;   /* of the ring that comes along */
			uint32_t cq_entries; /* 0: default */
			uint32_t flags;      /* none yet */
			char pool[LANE_POOL_NAME];
			char name[32]; /* of the program, for the admin's eyes */
		} open;                /* LANE_OPEN; LANE_RETURN: name alone, the rest is in the memfd */
		struct {
			uint64_t lane_id;
			uint64_t sq_bytes;
			uint32_t cq_entries;
			uint32_t flags;
			uint32_t timeout_ms; /* LANE_OPENED, LANE_RETURNED: the pool's message_timeout_ms */
			uint32_t pad;
			int64_t clock_ns; /* LANE_OPENED, LANE_RETURNED: the daemon's frame_clock() */
		} lane;                   /* LANE_OPENED, LANE_CLOSE, LANE_CLOSED, LANE_RETURNED, LANE_READY */
	} u;
};

_Static_assert(sizeof(struct frame) == 16 + 8 + FRAME_TEXT, "control ABI");

/*
 * CLOCK_MONOTONIC less CLOCK_REALTIME, in ns. The second is the same in every time namespace of a host, so
 * two processes that compare theirs learn how far apart their monotonic clocks are; a time set between the
 * two readings goes in, too.
 */
int64_t frame_clock(void);

/* A zeroed frame with its head filled in. */
void frame_init(struct frame *frame, enum frame_type type, uint32_t serial);

/*
 * Sends a frame and nfds descriptors (they stay the caller's). Returns 0, -TG_ECLOSED when the peer
 * is gone, -TG_EAGAIN when a non-blocking socket is full, -TG_EINVAL for more than FRAME_FDS
 * descriptors, -TG_ESYSTEM with errno set.
 */
int frame_send(int fd, const struct frame *frame, const int *fds, unsigned nfds);

/*
 * Receives one frame. fds (FRAME_FDS of them) are set to the descriptors received, close-on-exec,
 * the caller's to close, or -1: after any error all are -1, and whatever came is closed. Returns 0;
 * -TG_ECLOSED at end of file, or for a packet of no bytes; -TG_EAGAIN; -TG_EPROTOCOL for a packet
 * that is no frame; -TG_EVERSION for a frame of another ABI (frame->serial is good); -TG_ELIMIT when
 * this process has no descriptors left for those sent (the frame is there, unchecked); -TG_ESYSTEM with errno set. Strings in the
 * frame are terminated. How many descriptors its type needs is the caller's to check.
 */
int frame_recv(int fd, struct frame *frame, int fds[FRAME_FDS]);

/*
 * Whether a received packet of len bytes (more than a frame has: it was longer), the first of which are in *frame, is a
 * frame of this ABI: 0, -TG_EPROTOCOL or -TG_EVERSION. Terminates the strings in it.
 */
int frame_check(struct frame *frame, size_t len);

#endif
