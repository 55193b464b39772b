/*
 * A link: one connection to one broker.
 *
 *   IDLE → RESOLVING → CONNECTING → TLS → HANDSHAKE → PROBING → READY ⇄ SUSPECT
 *                        any ↘ FAILED → BACKOFF → RESOLVING …   READY → DRAINING → CLOSED
 *
 * link.c has the table and the connection; link_io.c moves bytes; link_flight.c holds what is in
 * flight until its broker answers; link_health.c decides whether it lives, link_move.c hands it to a
 * successor of the daemon. A link that is `apart` carries lanes whose messages a broker may be closing
 * over, one lane at a time (blame.h).
 *
 * Owner: its broker, for the daemon's life. One thread: its shard's.
 *
 * Messages in flight are in a ring indexed by the driver's sequence numbers:
 *
 *      base                        next
 *       v                           v
 *     [ a ][ u ][ a ][ u ][ u ][ u ]          a: answered, u: unanswered
 *
 * Invariants
 *  L1  only a READY and writable link is given a record
 *  L2  unsent bytes (ours and the socket's) <= high watermark + one record + LINK_REPLIES_MAX
 *  L3  outstanding - late <= window messages; their bytes <= window bytes + one record
 *  L4  every entry holds one reference to its lane until it is answered or the link fails
 *  L5  bytes referenced in a ring are not released while they are unwritten: a record is only
 *      completed by the link it is in flight on, and a link that stops carrying owns its bytes first
 *  L6  after the broker could not take what was unanswered, one message is unanswered at a time until the
 *      first of each lane (LINK_CAREFUL_MAX) has been answered
 */
#ifndef TG_DAEMON_LINK_H
#define TG_DAEMON_LINK_H

#include "aside.h"
#include "daemon/base/counters.h"
#include "daemon/config/config.h"
#include "daemon/protocol/out.h"
#include "daemon/protocol/driver.h"
#include "daemon/base/timer.h"
#include "daemon/base/world.h"

#include <stdint.h>
#include <sys/queue.h>

#define LINK_HELLO_MAX 4096u       /* bytes of a handshake that is kept for a successor */
#define LINK_SAVED_MAX (32u << 10) /* and of what its session has become since */

struct broker;
struct lane;
struct link;
struct shard;
struct tls;

enum link_state {
#define X(name, word, meaning) LINK_##name,
#include "link_states.def"
#undef X
	LINK_STATES
};

enum link_event {
	LINK_EV_START,
	LINK_EV_ADOPTED, /* a connection another daemon made */
	LINK_EV_RESOLVED,
	LINK_EV_CONNECTED,     /* in the clear */
	LINK_EV_CONNECTED_TLS, /* encryption comes first */
	LINK_EV_SECURED,
	LINK_EV_UP,
	LINK_EV_PROVEN,
	LINK_EV_SUSPECT,
	LINK_EV_RECOVERED,
	LINK_EV_DRAIN,
	LINK_EV_DRAINED,
	LINK_EV_FAIL,
	LINK_EV_BACKOFF,
	LINK_EVENTS
};

struct inflight {
	struct lane *lane; /* NULL: answered */
	uint64_t slot;     /* the lane's number for the record */
	uint64_t start;    /* of its bytes in the connection's stream */
	uint64_t end;
	uint32_t bytes;        /* of the record, for the window */
	uint32_t sent_ms : 30; /* when it was framed, low bits */
	uint32_t no_ack : 1;
	uint32_t late : 1; /* it has left the window (link_late.c) */
};

#define INFLIGHT_MS_MASK ((1u << 30) - 1)

/* No watermark stops a driver's own answers, such as a PONG for a PING: the link leaves a broker that has
 * us answer without end and does not read the answers. */
#define LINK_REPLIES_MAX (1u << 20)

/* Lanes of which each has its first message answered alone after the broker could not take any: so many
 * round trips, 64 ms at 1 ms each. Links of more lanes than that open up all the same. */
#define LINK_CAREFUL_MAX 64u

/* A link that is apart and carries no lane is closed after so long. */
#define LINK_APART_IDLE_MS 10000u

TAILQ_HEAD(lane_list, lane);

/* The last message that a broker rejected on a link: whose it was. */
struct link_refusal {
	uint64_t lane;
	uid_t uid;
	pid_t pid;
	uint64_t ns; /* 0: none */
};

enum link_back {
	LINK_BACK_AGAIN,  /* certainly not kept by the broker, or the pool says resend */
	LINK_BACK_UNSENT, /* certainly not one byte of it was given to a socket */
	LINK_BACK_FAILED, /* may have been sent; the pool's on_failure decides */
};

/*
 * Reports of a link to the folders above. A link knows a lane by its pointer and a record by the lane's number for it, and
 * looks into neither. seq is the entry's number on the link. One table for the whole daemon (daemon/flow/pool.c).
 */
struct link_events {
	/* A record. The first two drop the entry's reference to the lane. text may be NULL. */
	void (*answered)(struct lane *lane, uint64_t slot, struct link *link, uint64_t seq, uint8_t outcome,
	    uint64_t reference, uint32_t code, const char *text, size_t text_len);
	void (*given_back)(
	    struct lane *lane, uint64_t slot, struct link *link, uint64_t seq, enum link_back how);
	void (*look_overdue)(struct lane *lane, uint64_t slot, const struct link *link,
	    uint64_t seq); /* may be past its deadline */
	void (*late)(
	    struct lane *lane, uint64_t slot, const struct link *link, uint64_t seq); /* has left the window */
	void (*refused)(
	    struct link *link, const struct lane *lane); /* the broker rejects a message of the lane */

	/* The link's state. */
	void (*changed)(struct link *link); /* its readiness, or whether it takes records */
	int (*closed)(struct link
		*link); /* failed, before records are given back; returns whether it was over a message */
	void (*apart_ready)(struct link *link);
	void (*turn)(struct link *link, int answered); /* an apart link: the holder's turn may be over */

	/* Its broker (broker.h): */
	uint64_t (*failed)(struct broker *broker, struct link *link, enum driver_fatal kind);
	void (*ready)(struct broker *broker, struct link *link);
	void (*proven)(struct broker *broker, struct link *link);
	void (*forget)(struct broker *broker);
	void (*trusted)(struct broker *broker); /* no failure of it counts any more */

	/* The lanes that ride it. */
	void (*release)(struct link *link); /* those that wait for it look for another */
	void (*unbind)(struct link *link);  /* all are bound anew, by their next records */
	void (*let_go)(struct link *link);  /* it is suspect: all it holds is to be sent elsewhere too */
	int (*pass_over)(
	    struct link *link); /* no answer for ack_timeout_ms, but probes are answered: riders_pass_over */
	void (*retry_late)(
	    struct link *link); /* late messages that were sent stall_timeout_ms ago are due again */
};

/* One connection, from the look-up of its address to its end: reset by disconnect(). */
struct link_connection {
	void *resolving; /* the look-up that is under way */
	struct sock *sock;
	struct tls *tls; /* NULL: in the clear */
	int wants_tls;   /* the driver has asked for it; acted on when it has returned */
	struct session *session;
	struct session_params params;
	char client_id[48];
	uint64_t ready_ns; /* when it was last proven; 0: never */
	int flushing;      /* on the shard's list of links with something to write */
	int want_write;
	uint64_t replies;     /* bytes the driver has answered by itself since the broker had taken them all */
	uint64_t replies_end; /* where the last of them ends */
	int replayed;         /* the replay of a handshake has come to its end (EV_UP) */
	uint8_t *hello;       /* the broker's bytes up to EV_UP, for a successor's session */
	size_t hello_len;
	uint8_t *held; /* bytes the driver has not consumed */
	size_t held_len;

	/* said by the broker */
	uint64_t max_body; /* 0: no limit known */
	uint64_t
	    idle_ns; /* silence after which it is probed: idle_ms, or less if the broker's keep-alive asks */
	int blocked;
	int suspended; /* it has said in this input that it is blocked; acted on when the driver has returned */
	int leaving;   /* it asks its clients to leave; likewise */

	/* room for messages */
	int congested;        /* unsent bytes have passed their high mark and not come to their low one */
	int crowded;          /* so has what is unanswered, or `full` */
	int full;             /* the driver had no room until an answer comes */
	int worn;             /* the driver has no room, though the window has: the link is to begin anew */
	uint32_t answered_ms; /* sent_ms of the newest answered entry */
	uint32_t ack_ms8;     /* smoothed time to an answer, in eighths of a millisecond */
};

/* The state of the detectors (link_health.c): zeroed when a connection's handshake begins. */
struct link_health {
	uint64_t last_read_ns;
	uint64_t last_progress_ns; /* last answer, or since when something is outstanding */
	uint64_t probe_ns;         /* when the pending probe was sent; 0: none pending */
	uint32_t probe_misses;
	uint64_t alive_ns;     /* when a probe was answered last */
	uint64_t suspect_ns;   /* since when it is suspect */
	uint64_t unblocked_ns; /* when the broker has last said that it is no longer blocked; 0: never */
	uint32_t gone_looks;   /* looks in a row at which its peer's TCP seemed to be gone */
	uint64_t slow_mark;    /* `next` at slow_ns: messages before it are to be answered in good time */
	uint64_t slow_base;    /* `base` at slow_ns */
	uint64_t slow_ns;
	int excused;        /* a silence has moved the mark, and what was in flight then is not answered yet */
	int cut_off;        /* in this silence its TCP has gone without acknowledgements */
	uint64_t grace_ns;  /* until then it is not suspected: its TCP has just come back */
	uint64_t mute_lane; /* whose messages alone were unanswered when the link had no progress; 0: none */
	uint64_t late_looked_ns;
};

/* The driver's last words, acted on when it has returned. */
struct link_verdict {
	int given;
	enum driver_fatal kind;
	uint32_t code;
	char why[200];
};

struct link {
	struct shard *shard;
	struct broker *broker;
	const struct link_events *events;
	uint32_t id; /* unique in the daemon */
	enum link_state state;
	uint64_t state_since_ns;
	struct timer timer;

	/* apart, see blame.h */
	int apart;
	struct lane *holder;  /* the lane whose turn it is; bound to this link; NULL: none */
	uint64_t closed_ns;   /* the last time that it closed over a message of its holder, */
	uint32_t closed_code; /* and the broker's words then */
	char closed_why[200];
	struct link_refusal refused;
	int closed_over; /* this failure may be over a message: broker_link_failed reads it */

	/* connecting */
	uint64_t connects; /* attempts, ever */
	uint32_t failed;   /* failures in a row: since it has last stayed READY long enough to be trusted */
	struct world_address addresses[WORLD_ADDRESSES]; /* the broker's own */
	unsigned address_count, address_next;
	int try_endpoint;        /* instead, the next time (endpoints.h) */
	struct address endpoint; /* where it is or is going instead; zeroed: it is not */
	struct world_address endpoint_at;

	struct link_connection conn;
	struct link_health health;
	struct link_verdict verdict;
	struct out out;
	TAILQ_ENTRY(link) flush_entry;

	/* in flight */
	struct inflight *ring; /* capacity: power of two > window */
	uint32_t ring_mask;
	uint64_t base, next;
	uint32_t outstanding;
	uint64_t outstanding_bytes;
	struct aside aside; /* entries before base that are unanswered: struct inflight, malloced, by seq */
	uint32_t late;      /* outstanding ones that have left the window (link_late.c), and */
	uint64_t late_bytes;

	/* flow */
	uint32_t window; /* messages, the pool's or the broker's if that is less */
	uint32_t window_low;
	uint32_t window_wide; /* the window of a link that is not careful */
	uint32_t careful;     /* L6: answers to come one at a time before it opens again */
	int writable;         /* below the marks; whether it is READY is another matter */
	int counted_ready;    /* the state that the pool was last told */
	int serving;          /* on the shard's list of links whose waiters have a turn coming */
	TAILQ_ENTRY(link) serve_entry;
	struct lane_list waiters; /* lanes bound to it that have records and must wait */
	struct lane_list bound;   /* lanes whose records ride it */
	uint32_t bound_count;

	/* for admins */
	char why[200];                 /* cause of the last failure or suspicion */
	enum driver_fatal failed_kind; /* of the last failure */
	uint64_t probe_rtt_ns;         /* of the last answered probe */
	struct link_counts count;
};

/* The one table's words. */
const char *link_state_word(enum link_state state);

/* Returns 0 or -TG_ENOMEM. */
int link_init(struct link *link, struct broker *broker, uint32_t id);
void link_fini(struct link *link);

/* The one function that changes state: takes the table's transition for this event, if there is one. */
void link_event(struct link *link, enum link_event event);

/* FAIL with its cause in words. kind steers the broker's back-off. Resolves everything in flight. */
void link_fail(struct link *link, enum driver_fatal kind, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Closes in good order. */
void link_drain(struct link *link);

/*
 * For one that no successor could go on with: says goodbye to the broker if nothing is outstanding, as far
 * as the kernel takes it at once. No lane is touched: the process ends now.
 */
void link_farewell(struct link *link);

/* The state of a connection that another daemon made. */
struct link_past {
	const char *client_id;
	uint64_t random;      /* its session's */
	const uint8_t *hello; /* the broker's bytes up to EV_UP */
	size_t hello_len;
	const uint8_t *saved; /* link_save()'s */
	size_t saved_len;
};

/*
 * For one that is IDLE: goes on with it. Its session is made anew by replaying the broker's side of the
 * handshake, then proven. sock becomes the link's. If that cannot be it is as good as never had: the link
 * stays IDLE, and makes a new one when it is started.
 */
void link_adopt(struct link *link, struct sock *sock, const struct link_past *past);

/* The callbacks of links' sockets. */
const struct sock_handlers *link_handlers(void);

/* L1's first half: READY. */
static inline int
link_is_ready(const struct link *link)
{
	return link->state == LINK_READY;
}

/* L1: the only condition under which it is given a record. */
static inline int
link_is_writable(const struct link *link)
{
	return link->state == LINK_READY && link->writable && !link->conn.blocked;
}

/* link_io.c ------------------------------------------------------------------------------- */

enum link_send_result {
	LINK_SEND_OK,
	LINK_SEND_FULL,     /* not now: it is unwritable until an answer comes */
	LINK_SEND_REJECTED, /* never: the rejection says why */
	LINK_SEND_NOMEM,
};

/* Frames one record of a lane (L1 holds). On OK the new entry refers to the lane, which the caller counts. */
enum link_send_result link_send(struct link *link, struct lane *lane, uint64_t slot, uint32_t bytes,
    const struct message *message, struct driver_rejection *rejection);

/* Puts it on the shard's list of links to write at the end of the turn. */
void link_want_flush(struct link *link);

/* Writes what it can. Called by the shard, and when the socket has room. */
void link_flush(struct link *link);

/* Goes on with the TLS handshake (state TLS). Returns 1 once it is done, else 0. */
int link_secure(struct link *link);

void link_on_readable(void *owner);
void link_on_writable(void *owner);

/* Recomputes `writable` from the marks; wakes those who waited when it turns on. */
void link_update_writable(struct link *link);

/* Puts it on the shard's list of links whose waiters have a turn coming. */
void link_want_serve(struct link *link);

/* Sends a probe. */
void link_probe(struct link *link);

/* Adds to what the broker said in the handshake. Returns 0, or -TG_ENOMEM: too much, or no memory. */
int link_keep_hello(struct link *link, const uint8_t *bytes, size_t len);

/* link_flight.c --------------------------------------------------------------------------- */

static inline struct inflight *
link_entry(struct link *link, uint64_t seq)
{
	return &link->ring[seq & link->ring_mask];
}

/* Unanswered messages that count against the window. */
static inline uint32_t
link_waited_for(const struct link *link)
{
	return link->outstanding - link->late;
}

/* Calls for every unanswered entry, oldest of the ring first, those set aside behind them. */
void link_each(struct link *link, void (*call)(void *arg, uint64_t seq, struct inflight *entry), void *arg);

/* The driver speaks. */
void link_on_driver_event(void *owner, const struct driver_event *event);

/* Messages that the protocol does not acknowledge are SENT when the kernel has their last byte. */
void link_answer_written(struct link *link);

/* The most messages it may have unanswered, within the pool's limit; 0: the pool's. Minds L6. */
void link_set_window(struct link *link, uint64_t messages);

/* Completes what is in flight and past its deadline; its entries go on counting against the window. */
void link_expire(struct link *link);

/* Resolves everything in flight because the connection is over. */
void link_abandon(struct link *link);

/* link_late.c ----------------------------------------------------------------------------- */

/* An entry was answered: judges which older ones are late. */
void link_note_answer(struct link *link, const struct inflight *entry);

/* The ring's oldest entries make way, so that at least half of its places are free for new ones. */
void link_make_room(struct link *link);

/* The driver has no room while messages are set aside: if it is for their sake, the link is to begin anew. */
void link_wear(struct link *link);

/* An unanswered entry leaves the window. */
void link_become_late(struct link *link, uint64_t seq, struct inflight *entry);

/* The apart link's holder gives it up, or is not its holder: the next one may have it. */
void link_yield(struct link *link, const struct lane *lane);

/* Entries that younger ones have long overtaken leave the window. Looks at most every few milliseconds. */
void link_pass_over(struct link *link);

/* link_health.c --------------------------------------------------------------------------- */

/* It carries messages from now on, or again. */
void link_health_begin(struct link *link);

/* Starts the time in which the messages now in flight, or the first of the next, have to be answered. */
void link_health_mark(struct link *link);

/* Looks at the clock: probes, suspects, fails; sets its timer for the next look. */
void link_health_check(struct link *link);

/* Something came back. */
void link_health_read(struct link *link);

/* link_move.c ----------------------------------------------------------------------------- */

/* Whether any link of such a pool could ever be handed over. */
int link_kind_can_move(const struct config_pool *config);

/*
 * Writes the state that a successor needs beside `hello`, at most room bytes. Returns how many; -TG_EAGAIN: not
 * now, because it is not READY, blocked, or something is under way; -TG_ELIMIT: never.
 */
ssize_t link_save(const struct link *link, uint8_t *bytes, size_t room);

/* Whether a successor goes on with its connection: link_save() finds nothing against it. */
int link_can_move(const struct link *link);

/* In state IDLE, with its session open: brings that to where the old daemon's was. Returns NULL, or why not; static. */
const char *link_replay(struct link *link, const struct link_past *past);

#endif
