/*
 * The world of daemon/base/world.h, simulated: one clock, one random source, hosts and TCP between them.
 *
 *   world_sim.c   clock, random source, events, names, and the two ends of a connection
 *   tcp_sim.c     the TCP between them
 *
 * Nothing here knows the daemon beyond that table. A host has a name, a network in front of it and
 * an application behind (struct host_handlers). A connection is two flows of bytes, each with the state of a
 * sender's TCP: unsent bytes, segments in flight, a retransmission timer that doubles,
 * window probes. Loss shows as TCP shows it: bytes arrive late, in order; sock_info shows the
 * retransmissions. The figures of a vanished or silent peer are those that were measured on a real
 * kernel: timeouts at 0.2, 0.6, 1.4, 3.0, 6.2 s after the send.
 *
 * writev copies, as the kernel does, and not earlier: if the daemon releases a ring's bytes before they are
 * written, wrong bytes arrive.
 *
 * The same seed gives the same run. One thread.
 */
#ifndef TG_TESTS_WORLD_SIM_H
#define TG_TESTS_WORLD_SIM_H

#include "daemon/base/world.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#define SIM_START_NS (UINT64_C(1000) * 1000 * NS_PER_MS)
#define SIM_SEGMENT 16384u
#define SIM_SEGMENTS 64u /* in flight, of one flow */
#define SIM_HOSTS 8u

struct conn;
struct host;
struct sim_world;

/* A small random source: splitmix64. */
struct chance {
	uint64_t state;
};
uint64_t chance_next(struct chance *chance);
uint64_t chance_between(struct chance *chance, uint64_t low, uint64_t high);
int chance_hit(struct chance *chance, double probability);

/* The application behind a host's port. */
struct host_handlers {
	void (*accepted)(struct host *host, struct conn *conn);
	void (*readable)(struct host *host, struct conn *conn);
	void (*closed)(struct host *host, struct conn *conn); /* the connection is over */
};

enum host_port {
	PORT_OPEN,
	PORT_REFUSES, /* closed: RST */
	PORT_HOLDS,   /* the backlog takes connections and their bytes; the application never accepts */
};

struct host {
	struct sim_world *world;
	void *app;
	const struct host_handlers *handlers;
	unsigned index;
	enum host_port port;
	int vanished; /* nothing passes, either way */
	double loss;  /* of segments, each way */
	int lookup_fails;
	uint64_t lookup_ns; /* a name look-up takes so long */
	uint64_t latency_ns;
	uint64_t jitter_ns;
	uint64_t bytes_per_s; /* 0: no limit */
	uint32_t receive_bytes;
	TAILQ_HEAD(conn_list, conn) conns;
	uint64_t connects; /* SYNs that reached it */
};

struct sim_world {
	struct world world;
	uint64_t now_ns;
	struct chance chance;  /* the network's */
	struct chance daemons; /* returned by world_random() */
	struct event *events;  /* binary heap */
	uint32_t event_count, event_capacity;
	uint64_t event_order;
	struct host hosts[SIM_HOSTS];
	uint64_t connections;
	uint64_t steps;
	uint64_t *clock_of_shard; /* kept at now_ns */
	struct world_jobs jobs;   /* done, and not yet known to be */
	/* Hooks that observe the daemon's calls. */
	void *watcher;
	void (*on_resolve)(void *watcher, void *owner);
	void (*on_written)(void *watcher, void *owner, uint64_t written);
};

void world_sim_init(struct sim_world *w, uint64_t seed);
void world_sim_fini(struct sim_world *w);

/* Calls a function of the test at a time. Cannot be cancelled: arg and n must tell whether it is still wanted.
 * */
void sim_at(struct sim_world *w, uint64_t at_ns, void (*fire)(void *arg, uint64_t n), void *arg, uint64_t n);
void sim_after(struct sim_world *w, uint64_t ns, void (*fire)(void *arg, uint64_t n), void *arg, uint64_t n);

/* When the next event is due, or UINT64_MAX. */
uint64_t sim_next(const struct sim_world *w);

/* Lets everything happen that is due at now_ns. */
void sim_run_due(struct sim_world *w);

/* ---- the application's end of a connection ---- */

uint64_t conn_id(const struct conn *conn);
void *conn_app(const struct conn *conn);
void conn_set_app(struct conn *conn, void *app);
/* Bytes that have arrived and are not read. */
size_t conn_available(const struct conn *conn);
size_t conn_read(struct conn *conn, void *bytes, size_t len);
void conn_write(struct conn *conn, const void *bytes, size_t len);
void conn_close(struct conn *conn, int reset);

/* The application ends: its connections are reset, or, when nothing passes, forgotten. */
void host_crash(struct host *host);
/* Accepts the connections that the backlog held. */
void host_open(struct host *host);
void host_set_vanished(struct host *host, int vanished);

#endif
