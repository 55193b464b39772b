/*
 * tidegate-sink: a broker that does as it is told.
 *
 * One process, one thread, one epoll set. A turn of the loop:
 *
 *    epoll_wait ─► read and parse ─► record: one write() ─► frame answers ─► write to the sockets
 *                    conn.c            record.c               protocol          conn.c
 *
 * so a message is in the record before its answer can leave, and a read's answers leave in one write.
 * A protocol is one file that turns bytes into conn_message() calls and answers into bytes; the configured
 * behaviour (behaviour.def) is applied between the two and is the same for every protocol.
 *
 * Memory is bounded: a connection that has ANSWERS_MAX answers waiting or OUT_MAX bytes that its
 * peer does not take is not read from.
 */
#ifndef TG_SINK_SINK_H
#define TG_SINK_SINK_H

#include "behaviour.h"
#include "record.h"
#include "secure.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/types.h>

#define SINK_READ_BYTES (256u << 10)
#define SINK_ANSWERS_MAX (1u << 20)
#define SINK_OUT_MAX (4u << 20)

struct conn;
struct sink;

/* A growing array of bytes with a read position; memory it cannot get ends the process. */
struct buf {
	uint8_t *data;
	size_t off; /* [off, len) holds bytes */
	size_t len;
	size_t cap;
};
uint8_t *buf_grow(struct buf *buf, size_t more);
void buf_fini(struct buf *buf);

/* Room for `more` bytes after len, which the caller then advances. */
static inline uint8_t *
buf_room(struct buf *buf, size_t more)
{
	return buf->cap - buf->len >= more ? buf->data + buf->len : buf_grow(buf, more);
}

/* The answer that a message waits for; id, kind are the protocol's, code 0 is success. */
#define ANSWER_TOKEN_MAX 40u
struct answer {
	uint64_t arrived_ns;
	union {
		uint64_t id;
		uint8_t token[ANSWER_TOKEN_MAX]; /* with zeros behind it */
	};
	uint32_t code;
	uint32_t kind; /* 0: the message wants no answer */
};

struct protocol {
	const char *name;
	size_t state_size;     /* zeroed for each connection at conn->state */
	uint32_t reject_code;  /* "not authorised", for --reject-every without --reject */
	uint32_t reject_least; /* codes from here on say no; smaller ones are successes with a remark */
	bool tls_later;        /* the server's first words are in the clear, TLS begins behind them */

	/* Connected. A protocol whose server speaks first does so here. May be NULL. */
	void (*open)(struct conn *conn);

	/* Frees what state holds. May be NULL. */
	void (*close)(struct conn *conn);

	/*
	 * Takes whole packets from bytes until one is incomplete or conn->stop is set, which it looks at
	 * after each. Returns how many bytes it took, or -1 after conn_fail().
	 */
	ssize_t (*input)(struct conn *conn, const uint8_t *bytes, size_t len);

	/* Frames an answer into conn->out. */
	void (*answer)(struct conn *conn, const struct answer *answer);

	/* Says goodbye with a code, where the protocol's server can; the connection is closed then. May be
	 * NULL. */
	void (*farewell)(struct conn *conn, uint32_t code);
};

#define PROTOCOL(name) extern const struct protocol protocol_##name;
#include "protocol.def"
#undef PROTOCOL
extern const struct protocol protocol_control;

struct counters {
	uint64_t messages;
	uint64_t bytes; /* of bodies */
	uint64_t acks;  /* answers framed, twice sent ones once */
	uint64_t rejected;
	uint64_t pings;
	uint64_t dups; /* messages that came with a "sent before" mark */
};

enum conn_end {
	CONN_STAYS,
	CONN_FLUSH,  /* answers that are due leave, then FIN */
	CONN_LINGER, /* FIN is sent; reads and drops until the peer closes too, or a RST would overtake the
			answers */
	CONN_RESET,  /* RST; nothing more leaves */
	CONN_GONE,   /* closed; freed at the end of the turn */
};

struct conn {
	TAILQ_ENTRY(conn) all;
	LIST_ENTRY(conn) timed; /* in sink->timed while wake_ns is not 0 */
	SLIST_ENTRY(conn) dirty;
	bool is_dirty;

	struct sink *sink;
	const struct protocol *protocol;
	void *state;
	bool control; /* a control connection: no behaviour applies to it */
	int fd;
	struct ssl_st *ssl; /* NULL: in the clear */
	bool secured;       /* its handshake is counted */
	uint32_t events;    /* registered with epoll; 0 with in_epoll unset: not registered */
	bool in_epoll;
	uint64_t number; /* 1, 2, … since the start */
	char peer[64];
	char *client; /* the client's name for itself, escaped; NULL: none yet */

	enum conn_end end;
	bool stop;          /* the parser must return: stalled or ending */
	bool stalled;       /* by stall-after */
	bool reject_closes; /* the protocol cannot say no to one message */
	bool last_words;    /* farewell with last_code, then the end: when the parser has returned */
	bool trails;        /* parsed messages are rejected with last_code, then the end */
	uint32_t last_code;
	bool write_blocked;
	bool unparsed;    /* `in` may hold whole packets, left when stop was set */
	uint64_t left[3]; /* messages to go until stall-, close-, reset-after; see conn_rearm() */

	struct buf in;  /* an incomplete packet */
	struct buf out; /* framed, not written */

	struct answer *answers; /* ring; free-running head and tail; size is a power of two */
	uint32_t answers_size;
	uint32_t answers_head;
	uint32_t answers_tail;

	uint64_t wake_ns;       /* when the loop must look at it again; 0: never */
	uint64_t idle_limit_ns; /* the protocol's keepalive: longest silence of the client; 0: any */
	uint64_t read_ns;       /* when something last came */
	uint64_t credit_ns;     /* read-rate: up to when credit is counted */
	double credit;          /* bytes it may read */

	struct counters counters;
};

TAILQ_HEAD(conn_list, conn);
LIST_HEAD(conn_timed, conn);
SLIST_HEAD(conn_dirty, conn);

struct listener {
	TAILQ_ENTRY(listener) all;
	const struct protocol *protocol;
	struct sockaddr_storage address;
	socklen_t address_len;
	char name[128]; /* as printed; the port is the real one */
	int fd;         /* -1: closed by refuse */
	bool in_epoll;
	bool owns_path; /* unix: the socket file is ours to unlink */
};
TAILQ_HEAD(listener_list, listener);

struct sink {
	struct behaviour behaviour;
	struct record record;
	const struct protocol *protocol;
	struct listener_list listeners;
	struct conn_list conns;
	struct conn_timed timed;
	struct conn_dirty dirty;
	int epoll_fd;
	int signal_fd;
	struct ssl_ctx_st *tls; /* NULL: in the clear */
	bool quit;
	bool quiet;
	uint64_t now_ns; /* monotonic, once a turn */
	uint64_t start_ns;
	uint64_t time_ns;         /* wall clock of the turn, for the record */
	uint64_t accept_again_ns; /* out of descriptors: not before */
	uint64_t tick_ns;         /* next look at keepalives; 0: no connection has one */
	uint64_t random;
	uint64_t reject_turn; /* counts for reject-every */
	struct counters counters;
	uint64_t connections; /* open now, without control connections */
	uint64_t connections_ever;
	uint64_t connections_refused; /* max-connections, connack, auth */
	uint64_t tls_handshakes;      /* that came to an end */
	uint64_t tls_resumed;         /* of them, those that took up a session again */
	uint64_t tls_failed;          /* connections ended because TLS failed */
	uint64_t faulted;             /* messages that a rule of faults picked */
	uint64_t malformed;           /* connections ended for what the client sent */
	uint8_t *scratch;             /* SINK_READ_BYTES * 2: where reads land */
	struct record_pair *pairs;    /* headers of the message at hand */
	size_t pairs_size;
};

/* --- server.c: listeners and the loop ---------------------------------------------------------- */

/* Sets up epoll and signals. Returns 0, or -1 after a message on stderr. server_fini accepts any state. */
int server_init(struct sink *sink);
void server_fini(struct sink *sink);

/*
 * Opens a listener on host:port, [v6]:port or unix:/path. Returns 0; -1 if it could not be opened,
 * -2 if the address makes no sense, both after a message on stderr.
 */
int server_listen(struct sink *sink, const char *address, const struct protocol *protocol);

/* Runs until `quit`, SIGTERM or SIGINT. */
void server_run(struct sink *sink);

/* The behaviour was changed: makes listeners and connections follow. */
void server_apply(struct sink *sink);

/* Marks a connection for the answering half of this turn. */
void server_dirty(struct sink *sink, struct conn *conn);
/* The loop looks at the connection at when_ns (0: no more). */
void server_wake_at(struct sink *sink, struct conn *conn, uint64_t when_ns);
uint64_t server_random(struct sink *sink);

/* The place of a message's header in sink->pairs, which grows; without memory the sink ends. */
struct record_pair *sink_pair(struct sink *sink, size_t index);

/* One logfmt line on stderr; conn may be NULL. */
void sink_log(const struct sink *sink, const struct conn *conn, const char *level, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* --- conn.c ------------------------------------------------------------------------------------ */

/* Takes fd over. */
void conn_new(struct sink *sink, const struct listener *listener, int fd, const struct sockaddr_storage *peer);
void conn_free(struct conn *conn);

void conn_readable(struct conn *conn);
/* The answering half: frames what is due, writes, ends. Called for dirty connections after the record is
 * written. */
void conn_turn(struct conn *conn);
/* Parses what was left when it stopped, if it may go on. */
void conn_continue(struct conn *conn);
/* Registers with epoll what it waits for. */
void conn_interest(struct conn *conn);
/* Starts the counts of stall-, close- and reset-after anew; which: 0, 1, 2, or -1 for all. */
void conn_rearm(struct conn *conn, int which);

/* Ends a connection at the end of this turn. */
void conn_end(struct conn *conn, enum conn_end how);

/* The client sent what makes no sense: logs, counts, ends. Returns -1. */
int conn_fail(struct conn *conn, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * A message arrived: counted, judged, recorded if it was not rejected, and its answer queued
 * (answer->kind 0: none). answer->code and arrived_ns are filled in. The caller looks at conn->stop.
 * Returns whether the caller may answer it; false: a rule of --faults has seen to it.
 */
bool conn_message(struct conn *conn, const struct record_message *message, struct answer *answer);

/* Queues an answer that belongs to no message (the second half of QoS 2). */
void conn_answer(struct conn *conn, const struct answer *answer);

/*
 * Frames the answers that are due, so that what the protocol frames next comes after them. Only for
 * what is rare (a ping, a farewell): it writes the record first.
 */
void conn_settle(struct conn *conn);

/* Sends random bytes. */
void conn_garbage(struct conn *conn, uint64_t bytes);

/* Remembers what the client calls itself. */
void conn_set_client(struct conn *conn, const uint8_t *name, size_t len);

/* The client promised never to be silent for longer than this; 0: it did not. */
void conn_set_keepalive(struct conn *conn, uint64_t limit_ns);

/* Whether anything but a message may be answered now. */
static inline bool
conn_may_answer(const struct conn *conn)
{
	return !conn->sink->behaviour.mute;
}

/* --- control.c --------------------------------------------------------------------------------- */

/* The statistics as one line of JSON; the caller frees it. */
char *control_stats(const struct sink *sink, bool with_connections);

/* Client mode: sends the words as one line to a control socket and prints the answer. Returns the exit status.
 */
int control_tell(const char *address, char *const *words, int count);

/* The commands' part of --help. */
void control_help(FILE *stream);

#endif
