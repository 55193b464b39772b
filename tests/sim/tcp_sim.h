/*
 * TCP between the simulated hosts (world_sim.h): each end's kernel state, and its changes when segments,
 * acknowledgements and timers are due. For world_sim.c alone, which has the two ends that the daemon and the
 * brokers use.
 *
 * Everything under way is an event; a connection is freed when both its ends and all events that
 * refer to it are gone.
 */
#ifndef TG_TESTS_TCP_SIM_H
#define TG_TESTS_TCP_SIM_H

#include "world_sim.h"

#define RTO_NS (200 * NS_PER_MS)

enum event_type {
	EVENT_CALL,
	EVENT_RESOLVED,
	EVENT_SYN,
	EVENT_SYN_ACK,
	EVENT_REFUSED,
	EVENT_SEGMENT, /* flow, n: number of the segment */
	EVENT_ACK,     /* flow, n: offset */
	EVENT_FAST,    /* flow, n: number of the segment that is missing */
	EVENT_RTO,     /* flow, n: the timer's generation */
	EVENT_PERSIST, /* flow, n: the timer's generation */
	EVENT_WINDOW,  /* flow: the receiver has room again, or answers a probe */
	EVENT_RESET,   /* to the end that reads the flow */
	EVENT_FIN,
	EVENT_READABLE, /* tell the reader of the flow */
	EVENT_WRITABLE,
};

struct event {
	uint64_t at_ns;
	uint64_t order;
	enum event_type type;
	unsigned flow;
	void *what; /* a connection (held), a look-up, or the argument of a call */
	uint64_t n;
	void (*fire)(void *arg, uint64_t n);
};

struct segment {
	uint64_t end;
	int got;
	int lost;
};

/* Bytes one way. Offsets count from 0: taken <= arrived <= sent <= wrote, acked <= arrived. */
struct flow {
	uint8_t *ring; /* [taken, wrote) */
	size_t capacity;
	uint64_t wrote, sent, acked, arrived, taken;
	struct segment segments[SIM_SEGMENTS];
	uint64_t first, next; /* segments in flight, numbered from 0 */
	uint64_t timer;       /* generation of the one that runs */
	int timing, persisting;
	uint32_t backoff;
	uint32_t retransmits, probes;
	uint64_t last_ack_ns, last_sent_ns;
	uint64_t busy_ns;    /* the wire is busy until then */
	uint64_t arrives_ns; /* nothing overtakes on the wire */
	uint32_t receive_bytes;
	int fin, fin_arrived;
	int telling; /* EVENT_READABLE is under way */
};

enum { TO_BROKER, TO_CLIENT };

struct conn {
	struct sock sock; /* the client's end; must be first */
	struct host *host;
	uint64_t id;
	TAILQ_ENTRY(conn) entry;
	uint32_t events; /* that refer to it */
	struct flow flows[2];
	uint32_t low_water;
	uint32_t syns;
	int connecting, connected, want_write, telling_writable;
	int client_open, host_open;
	int client_reset; /* the error of the client's next call */
	int in_backlog;
	int listed;
	void *app;
};

/* world_sim.c: the event is copied. */
void sim_push(struct sim_world *w, const struct event *event);

/* Posts an event of a connection; its type defines flow and n. */
void tcp_post(struct conn *conn, uint64_t at_ns, enum event_type type, unsigned flow, uint64_t n);
/* Such an event is due; frees the connection if it was the last thing to happen to it. */
void tcp_on_event(const struct event *e);

/* Bytes into a flow, which tcp_pump() then sends as far as its window allows. */
void tcp_append(struct flow *f, const uint8_t *bytes, size_t len);
void tcp_pump(struct conn *conn, unsigned way);
/* Bytes out of it. Returns how many. tcp_after_take() lets the sender know; before: taken, as it was then. */
size_t tcp_take(struct flow *f, uint8_t *bytes, size_t len);
void tcp_after_take(struct conn *conn, unsigned way, uint64_t before);

/* The client's unsent bytes, and whether it may write more of them. */
uint64_t tcp_unsent(const struct conn *conn);
int tcp_has_room(const struct conn *conn);
/* Tells an end that it can read or write, if it wants to. */
void tcp_tell_writable(struct conn *conn);
void tcp_tell_readable(struct conn *conn, unsigned way);

/* A reset, to the end that reads the flow. */
void tcp_send_reset(struct conn *conn, unsigned way);
/* It is over for the host's end, whose application is told. */
void tcp_leave_host(struct conn *conn);

/* How long a segment takes to or from the host, this time. */
uint64_t tcp_travel(struct host *host);
/* base doubled so many times, up to what the kernel waits at most. */
uint64_t tcp_backed_off(uint64_t base, uint32_t times);

#endif
