/*
 * What the daemon's objects need from outside: time, chance, names and broker sockets.
 *
 * One small table, so that links, breakers, pools and lanes run unchanged on libuv (world_uv.c)
 * and on a simulated clock and network (tests/sim). Calls never block and never call back from
 * within; answers come later through the handlers, from the loop.
 */
#ifndef TG_DAEMON_WORLD_H
#define TG_DAEMON_WORLD_H

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

struct address;
struct world;

#define WORLD_ADDRESSES 16u /* most addresses of one name that are tried */

struct world_address {
	struct sockaddr_storage addr;
	socklen_t len;
};

/* A broker socket; the world's own struct begins with it. */
struct sock {
	struct world *world;
	const struct sock_handlers *handlers;
	void *owner;
};

struct sock_handlers {
	/* error: 0 or a positive errno. */
	void (*connected)(void *owner, int error);
	void (*readable)(void *owner);
	void (*writable)(void *owner); /* once for each sock_want_write */
	/* error: 0, or `why` has words for it. */
	void (*resolved)(void *owner, const struct world_address *addresses, unsigned count, const char *why);
};

/* What the kernel knows of a connection. */
struct sock_info {
	uint32_t unacked;      /* segments sent and not acknowledged */
	uint32_t retransmits;  /* consecutive timeouts of the segment at the front */
	uint32_t probes;       /* unanswered window probes */
	uint32_t last_ack_ms;  /* since the last acknowledgement came */
	uint32_t last_sent_ms; /* since data was last sent, again or for the first time */
	uint32_t rto_ms;       /* unanswered, what was sent last is sent again after so long */
	uint32_t unsent_bytes; /* accepted from us, not sent yet */
	uint32_t rtt_us;
};

/*
 * Work that would hold up the loop: run() happens on another thread and touches nothing that anybody else
 * touches meanwhile; done() follows on the loop. Embedded in what it works on. One at a time of each queue, in
 * order. Memory is given back beside the making of lanes, since a client that has mapped it thousands of times
 * can make that slow.
 */
enum world_queue { WORLD_JOB_MAKE, WORLD_JOB_FREE, WORLD_QUEUES };

struct world_job {
	enum world_queue queue;
	void (*run)(struct world_job *job);
	void (*done)(struct world_job *job);
	STAILQ_ENTRY(world_job) entry;
};
STAILQ_HEAD(world_jobs, world_job);

struct world_ops {
	uint64_t (*now_ns)(struct world *world);  /* monotonic; any thread */
	uint64_t (*wall_ms)(struct world *world); /* Unix time; may jump */
	uint64_t (*random)(struct world *world);
	/* Bytes that cannot be predicted from any that were seen, as random()'s can. */
	void (*secret)(struct world *world, void *bytes, size_t len);

	/* Looks a name up; handlers->resolved follows. Returns a request to cancel, or NULL without memory. */
	void *(*resolve)(struct world *world, const struct address *address,
	    const struct sock_handlers *handlers, void *owner);
	void (*resolve_cancel)(struct world *world, void *request);

	/* Begins to connect; handlers->connected follows. Returns NULL with errno set. low_water: the
	 * most bytes the socket is to hold unsent (TCP_NOTSENT_LOWAT). */
	struct sock *(*connect)(struct world *world, const struct world_address *address, uint32_t low_water,
	    const struct sock_handlers *handlers, void *owner);
	/* As writev and read: -1 with errno, EAGAIN when it would block. */
	ssize_t (*writev)(struct sock *sock, const struct iovec *iov, int count);
	ssize_t (*read)(struct sock *sock, void *bytes, size_t len);
	void (*want_write)(struct sock *sock);
	int (*info)(struct sock *sock, struct sock_info *info); /* 0, or -1: not known (unix sockets) */
	/* reset: with RST, nothing queued is sent any more. */
	void (*close)(struct sock *sock, int reset);

	/* Has a job done; never fails. settle: waits until all are, their done() called. */
	void (*work)(struct world *world, struct world_job *job);
	void (*settle)(struct world *world);
};

struct world {
	const struct world_ops *ops;
	void (*event)(
	    void *owner); /* called before each handler and done(), to read the clock again; NULL: none */
	void *owner;
};

static inline void
world_event(struct world *world)
{
	if (world->event != NULL)
		world->event(world->owner);
}

static inline uint64_t
world_now(struct world *world)
{
	return world->ops->now_ns(world);
}

static inline uint64_t
world_random(struct world *world)
{
	return world->ops->random(world);
}

static inline void
world_secret(struct world *world, void *bytes, size_t len)
{
	world->ops->secret(world, bytes, len);
}

/* A random number in [low, high]. */
static inline uint64_t
world_between(struct world *world, uint64_t low, uint64_t high)
{
	return low + world_random(world) % (high - low + 1);
}

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_US UINT64_C(1000)

#endif
