/*
 * Shared by the library's files. Nothing here is exported.
 *
 *   fork.c     which process a handle belongs to
 *   detail.c   the last error in words
 *   control.c  one request and its answer on the control socket
 *   client.c   connect, close
 *   lane.c     attach and close a lane
 *   publish.c  records into the SQ
 *   poll.c     completions out of the CQ; the descriptor for event loops
 *   reattach.c finding the next daemon when this one is gone
 *   wait.c     spinning, sleeping, and the conditions to wait for
 *
 * Threads: a client's fields are written by the thread that holds client_lock: open and close of lanes, and
 * the one lane that mends a lost connection; the words it shares with the others are atomic, and
 * `fd` keeps its number for the client's life. A lane's fields belong
 * to the one thread that owns the lane.
 */
#ifndef TG_INTERNAL_H
#define TG_INTERNAL_H

#include "tidegate.h"

#include "shm/error.h"
#include "shm/frame.h"
#include "shm/lane.h"
#include "shm/order.h"
#include "shm/ring.h"
#include "shm/wake.h"

#include <pthread.h>
#include <sys/un.h>

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

#define CLIENT_TIMEOUT_MS 5000u
#define CLOCK_SAME_NS UINT64_C(20000000) /* clocks that differ by less are one: a coarse clock lags by 10 ms */
#define LANE_SPIN_US 20u                 /* the time of a completion while both sides are awake */
#define LANE_POPULATE_MAX (UINT64_C(256) << 10) /* above, touching every page costs more than it saves */
#define AWAY_MIN_NS UINT64_C(1000000)           /* between two looks at a daemon that is away */
#define CLIENT_NAME 32u                         /* of struct frame, terminator included */

/* ---- fork.c ---- */

/*
 * The calling process's mark: a word that the kernel zeroes in every forked child, and the value
 * it has here. A handle keeps both; it is this process's own as long as they agree.
 */
struct fork_mark {
	const uint32_t *word;
	uint32_t stamp;
};

/* Marks the calling process if it has no mark. Returns 0 or -TG_ESYSTEM with errno set. Any thread. */
int fork_mark_get(struct fork_mark *mark);

static inline int
fork_is_child(const struct fork_mark *mark)
{
	return order_load_relaxed_32(mark->word) != mark->stamp;
}

/* ---- detail.c ---- */

/* Keeps the words for tg_client_detail, of the calling thread. Returns code. */
int detail_fail(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * The same for what can happen millions of times a second: the numbers are kept, the words are
 * made on request. Both return -TG_EAGAIN.
 */
int detail_no_room(uint64_t lane_id, uint64_t need, uint64_t free, uint64_t size);
int detail_no_slot(uint64_t lane_id, uint64_t held, uint64_t size);

/* ---- client and lane ---- */

struct tg_client {
	struct fork_mark mark;
	int fd; /* control socket, non-blocking */
	uint32_t serial;
	uint32_t timeout_ms;
	int registered; /* the daemon's membarrier reaches this process */
	struct tg_lane *lanes;
	pthread_mutex_t
	    control;         /* whose holder uses the control socket and the list of lanes. A forked child never
	                          * takes it: every call there is refused before (fork.c) */
	uint32_t lost;       /* 1: the daemon has hung up */
	uint64_t lost_ns;    /* when that was noticed */
	uint32_t generation; /* counts reattachments */
	uint64_t retry_ns;   /* not before this */
	uint64_t retry_step_ns; /* the last wait, without jitter */
	char name[CLIENT_NAME];
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
};

/* The record that tg_reserve has prepared at the tail. */
struct reservation {
	struct record *record; /* NULL: none open */
	uint64_t fixed;        /* topic, key and headers */
	size_t body_max;
};

struct tg_lane {
	/* Every publish reads these. */
	struct fork_mark mark;
	int fault;   /* 0, or the error every publish from now on gets */
	int refused; /* the daemon will not have it back: why; set by who mends */
	int busy;    /* a reservation is open */
	const uint32_t *closed_word;
	struct wake_ringer doorbell_ringer;
	int full_fence; /* pair C: the daemon raises no fence for us; set on a reconnect */
	uint32_t max_record;
	uint64_t clock_ahead; /* ns: the daemon's CLOCK_MONOTONIC less ours; set by who mends */
	struct sq_producer sq;
	uint64_t published; /* records committed; counts like cq_tail does */
	struct cq_consumer cq;
	int doorbell;

	uint64_t check_ns;     /* when the control socket is looked at next */
	const char *fault_why; /* TG_EBROKEN: the first fault found */
	uint64_t start;        /* position of the first record */

	/* Waiting. */
	int bell;
	struct wake_sleeper sleeper;
	uint64_t want_bytes;    /* the size that the last -TG_EAGAIN refused; 0: none waits for room */
	uint64_t marked;        /* completions in the CQ that were consumed out of turn, */
	uint64_t *marks;        /* a bit for each entry of the CQ, which we cannot write */
	uint32_t writable_seen; /* the owner's last view of `writable` */
	uint32_t spin_ns;
	uint32_t spin_misses; /* spins in a row that were for nothing */
	int epoll;            /* tg_fd; -1: never asked for */
	int self;             /* an eventfd in it, with which the library rings the owner itself */
	int retry_timer;      /* in it while the daemon is away; -1: never was */
	int watching_retry;
	uint32_t generation; /* the client's when the descriptors were last put into it */
	int armed;           /* `waiting` is odd on behalf of tg_fd */

	struct reservation reservation;
	struct lane_map map;
	uint64_t lane_id;
	uint64_t nonce;
	uint32_t timeout_ms; /* the pool's; set by who mends */
	int ring, answers;   /* the two memfds */
	struct tg_client *client;
	struct tg_lane *next, **link;
};

/* ---- control.c ---- */

/*
 * Sends a request (its serial is filled in) and waits for its answer, at most the client's timeout.
 * fds receive the answer's descriptors, the caller's to close, -1 where there is none. Late answers
 * of requests that were given up are skipped; a lane that arrives so is closed again.
 * Returns 0 when the answer is of type `expect`, else a negative error with detail; then no
 * descriptor is left open.
 */
int control_request(struct tg_client *client, struct frame *request, struct frame *answer,
    enum frame_type expect, int fds[FRAME_FDS]);

/* The same with descriptors of the caller's going along. */
int control_request_fds(struct tg_client *client, struct frame *request, const int *send, unsigned nsend,
    struct frame *answer, enum frame_type expect, int fds[FRAME_FDS]);

/* Sends what has no answer. Returns 0 or a negative error with detail. */
int control_say(struct tg_client *client, struct frame *frame);

/* ---- connect.c ---- */

/*
 * A descriptor that is none of 0 to 2: a program that was started without those would write its output into
 * it, or read it as its input. Returns fd or what takes its place, or -1 with errno and fd closed.
 */
int fd_above_standard(int fd);

/* Makes client->fd a new connection. 0 or a negative error with detail; then fd is -1. */
int client_connect(struct tg_client *client);

/* Ends the connection, for the daemon too: a child that was forked meanwhile has a copy of the descriptor. */
void client_hang_up(struct tg_client *client);

/* ---- reattach.c ---- */

/* The right to use the control socket and to walk or change the list of lanes. */
void client_lock(struct tg_client *client);
void client_unlock(struct tg_client *client);

/* Counts reattachments. */
uint32_t client_generation(struct tg_client *client);

/* The control socket of that generation has hung up. */
void client_lose(struct tg_client *client, uint32_t generation);
int client_is_lost(struct tg_client *client);

/* When the next attempt is due. */
uint64_t client_retry_ns(struct tg_client *client);

/* Connects again and hands all lanes back, if it is time. 0: attached; -TG_EAGAIN: not yet. */
int client_mend(struct tg_client *client);

/* The same at any time, for the thread that holds client_lock. */
int client_mend_held(struct tg_client *client);

/* Looks whether the daemon is still there, and mends. For calls that do not sleep; now: coarse. */
void lane_check_daemon(struct tg_lane *lane, uint64_t now);

/* The same, if it is time, for calls that have not read the clock. */
void lane_notice(struct tg_lane *lane);

/* tg_fd while the daemon is away, and once it is back. */
int lane_watch_retry(struct tg_lane *lane);
void lane_rejoin(struct tg_lane *lane);

/* The source of an event of tg_fd's epoll. */
enum { WATCH_BELL, WATCH_CONTROL, WATCH_SELF, WATCH_RETRY };

/* ---- lane.c ---- */

/* Frees this process's side: mapping, descriptors, memory. Tells the daemon nothing. */
void lane_free(struct tg_lane *lane);

/* The mapping and the two memfds alone. */
void lane_drop_memory(struct tg_lane *lane);

/* Notes which side raises the fence, as the lane's daemon says (enum lane_flags). */
void lane_set_fence(struct tg_lane *lane, uint32_t flags);

/* How far apart our monotonic clocks are: ours (frame_clock) before the request, theirs in its answer. */
void lane_set_clock(struct tg_lane *lane, int64_t ours, int64_t theirs);

/* Why nothing may be done with this lane, or 0: fork, an earlier fault, a lane the daemon closed. */
int lane_trouble(struct tg_lane *lane);

/* The daemon's words broke a rule: remembers it. Returns -TG_EBROKEN. */
int lane_broken(struct tg_lane *lane, const char *what);

/* ---- publish.c ---- */

/* tg_publish, with a completion whatever the message's flags say. */
int lane_publish_loud(struct tg_lane *lane, const struct tg_message *message, uint64_t *position);

/* ---- poll.c ---- */

/* Looks for completions, even if some are known. 0, or -TG_EBROKEN. */
int lane_cq_refresh(struct tg_lane *lane);

/* Remembers that an entry, which is below the tail, was taken out of turn. */
void lane_mark(struct tg_lane *lane, uint64_t count);

/* Gives back the completions at the CQ's head that the application must not see. 0, or -TG_EBROKEN. */
int lane_sweep(struct tg_lane *lane);

/* A completion as the public interface has it. */
void completion_fill(struct tg_completion *to, const struct completion *from);

/* Stops sleeping on tg_fd's behalf, empties the bell and looks at the socket. */
void lane_disarm(struct tg_lane *lane);

/* Starts again; rings the own bell if there is something to look at already. */
void lane_arm(struct tg_lane *lane);

/*
 * Has room returned for what got -TG_EAGAIN, or has `writable` turned to 1? Each is reported once.
 * 1, 0, or -TG_EBROKEN.
 */
int lane_edge(struct tg_lane *lane);

/* Is there a completion to read, or an edge? 1, 0, or -TG_EBROKEN. */
int lane_is_eventful(struct tg_lane *lane);

/* ---- bell.c ---- */

/* Takes the bell's count, so that it is silent until it is rung again. Only when it is readable. */
void bell_drain(int bell);
void bell_ring(int bell);

#endif
