/*
 * The daemon's side of a lane, as far as the library can see it: a thread that answers control
 * frames, honestly or not as a test asks, and rings that either the thread empties or the test does
 * by hand. Built on shm/ alone.
 *
 * Threads: the fake's own thread answers frames and, in FAKE_ANSWER, drains. In FAKE_HOLD the rings belong to
 * the caller of the fake_lane_ functions, one thread at a time.
 */
#ifndef TG_TEST_FAKE_DAEMON_H
#define TG_TEST_FAKE_DAEMON_H

#include "libclient/tidegate.h"

#include "shm/frame.h"
#include "shm/lane.h"
#include "shm/ring.h"
#include "shm/wake.h"

#include <pthread.h>

#define FAKE_LANES 128
#define FAKE_CONNS 16
#define FAKE_DEADLINE_MS 10000 /* for any state a test waits for */

enum fake_mode { FAKE_HOLD, FAKE_ANSWER };

/* The fault in its answers to LANE_OPEN. */
enum fake_lie {
	LIE_NONE,
	LIE_NO_DESCRIPTORS,
	LIE_ONE_DESCRIPTOR,
	LIE_TYPE,
	LIE_SERIAL,
	LIE_GEOMETRY,
	LIE_LANE_ID,
	LIE_UNSEALED,
	LIE_NOT_A_MEMFD,
	LIE_GARBAGE,
	LIE_SHORT,
	LIE_ABI,
	LIE_MEMFD_ABI,
	LIE_ERROR_UNKNOWN,
	LIE_NOT_EMPTY,
	LIE_HANG_UP,
	LIE_ABI_UNREAD, /* another ABI, then a close that leaves the request unread: a reset comes first */
	LIE_LATE,       /* the answer is kept until the next request */
};

struct fake_lane {
	struct lane_map map;
	struct sq_consumer sq;
	struct cq_producer cq;
	struct wake_sleeper asleep;
	struct wake_ringer client;
	int bell;
	int ring, answers;
	uint64_t lane_id;
	uint64_t seen; /* bytes of bodies answered, a sum over their content */
	uint64_t sum;
};

struct fake {
	char dir[64];
	char path[96];
	int listener, doorbell, nudge;
	int conns[FAKE_CONNS];
	unsigned conn_count;
	pthread_t thread;
	pthread_mutex_t lock; /* everything below */
	enum fake_mode mode;
	enum fake_lie lie;
	int error;        /* answer LANE_OPEN and LANE_RETURN with this error */
	unsigned flags;   /* of the lanes' headers */
	int64_t clock_ns; /* how far its clock is ahead */
	unsigned rings;   /* doorbells heard */
	unsigned closes;  /* LANE_CLOSE heard */
	uint64_t last_close;
	int hang_up, stopping;
	int takes_back; /* LANE_RETURN is answered, with the flags of the moment */
	struct frame held;
	int held_fds[FRAME_FDS];
	int is_held;
	struct frame last_open;
	struct fake_lane lanes[FAKE_LANES];
	unsigned lane_count;
};

void fake_start(struct fake *fake, enum fake_mode mode);
void fake_stop(struct fake *fake);

/* The thread's counters, and its orders from now on. */
void fake_set_lie(struct fake *fake, enum fake_lie lie);
void fake_set_error(struct fake *fake, int error);
void fake_set_flags(struct fake *fake, unsigned flags);
void fake_set_clock(struct fake *fake, int64_t ahead_ns);
void fake_take_back(struct fake *fake, unsigned flags);
unsigned fake_rings(struct fake *fake);
unsigned fake_closes(struct fake *fake);
uint64_t fake_last_close(struct fake *fake); /* the number in it */
unsigned fake_conns(struct fake *fake);
struct frame fake_last_open(struct fake *fake);

/* Closes every connection, as the kernel does when the daemon dies. Returns when it is done. */
void fake_hang_up(struct fake *fake);

/* The lane opened last. */
struct fake_lane *fake_lane(struct fake *fake);

/* FAKE_HOLD. The next record: 1 (header in *record, its bytes at *bytes), or 0. */
int fake_lane_take(struct fake_lane *lane, struct record *record, const uint8_t **bytes, uint64_t *position);

/* Writes a completion; fake_lane_commit shows all that were written and rings. */
void fake_lane_answer(struct fake_lane *lane, uint64_t position, const struct record *record, unsigned outcome);
void fake_lane_commit(struct fake_lane *lane);

/* Takes and answers everything there is and commits it. Returns how many. */
unsigned fake_lane_drain(struct fake_lane *lane, unsigned outcome);

/* Rings if the client sleeps, for events that are not completions. */
void fake_lane_ring(struct fake_lane *lane);

/* The clock that deadlines are held against. */
uint64_t fake_now_ms(void);

/* Runs fn in a thread of its own once the client dozes on this lane. */
struct fake_later {
	pthread_t thread;
	struct fake_lane *lane;
	void (*fn)(struct fake_lane *lane, void *arg);
	void *arg;
};
void fake_later_start(
    struct fake_later *later, struct fake_lane *lane, void (*fn)(struct fake_lane *lane, void *arg), void *arg);
void fake_later_join(struct fake_later *later);

#endif
