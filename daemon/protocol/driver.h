/*
 * A driver: one broker protocol as pure bytes in, bytes and events out.
 *
 * A driver owns no socket, timer, clock, random source or thread. link.c reads the socket and
 * gives the bytes to input(). The driver appends its output to a struct out and reports the
 * results through events. So a driver is replayed from a transcript whole, byte by byte or
 * cut anywhere, with identical events, and the fuzzer drives the same entry.
 *
 * Life of a session (one per connection, made anew for each):
 *
 *   open ── start ── input* ──► EV_UP ── { publish | probe | input }* ── goodbye ── close
 *                       │ EV_FATAL at any time: the link closes the connection
 *
 * A session can be moved to another process (DRIVER_F_REPLAYABLE): the broker's bytes up to EV_UP are
 * given to a new session, whose answers are thrown away, because the broker has had them; the rest of the
 * old session's state goes from its save() to the new one's restore():
 *
 *   open ── start ── input (the same bytes as then) ──► EV_UP ── restore ── { publish | probe | input }*
 *
 * Sequence numbers. The link numbers the messages it publishes on a session 0, 1, 2 … and knows
 * nothing of packet ids, delivery tags or reply subjects; the driver maps between the two. Every
 * published seq is answered by exactly one of EV_ACK, EV_ACK_UPTO, EV_NACK, EV_AGAIN, EV_LOST, EV_UNSURE,
 * or by the link itself when the connection fails, or when the last byte is written and the message was
 * DRIVER_PUBLISHED_NO_ACK. The driver must tolerate any input: it never asserts on the broker's
 * bytes, and an answer to a seq that is not outstanding is its own to detect (EV_FATAL or ignored,
 * as the protocol says).
 *
 * No other producer, user or subscriber may give a message's answer in the broker's place. The id by which a
 * broker knows a message (Nats-Msg-Id) and the name that its answer is matched by (a reply subject) must not be
 * predictable from those of other messages: message_id() and session_words(). Counters are good enough only
 * where the broker alone can answer on the connection (packet ids, delivery tags, receipts, the order of
 * replies). A producer's header that
 * would take the place of one of these is rejected by publish(), in any case the broker may read it in.
 *
 * Threads: everything of a session is used by the one thread of its shard. Settings are read-only after
 * configure(), but for secrets, which that thread renews.
 */
#ifndef TG_DAEMON_DRIVER_H
#define TG_DAEMON_DRIVER_H

#include "out.h"
#include "daemon/base/siphash.h"

#include <stddef.h>
#include <stdint.h>

struct config_node; /* daemon/config/config_node.h: a checked view of a libconfig group */

/* A message to frame. Topic, key and headers are the daemon's copies; the body may lie in a ring. */
struct message {
	uint64_t position;
	uint64_t lane_id;
	const struct siphash_key *id_key; /* the lane's, for message_id() */
	uint64_t published_ns;            /* monotonic */
	const uint8_t *topic;
	const uint8_t *key;
	const uint8_t *headers; /* packed: u16 name_len, u16 value_len, name, value; checked whole */
	const uint8_t *body;
	uint32_t topic_len;
	uint32_t key_len;
	uint32_t headers_len;
	uint32_t body_len;
	uint32_t
	    expiry_ms; /* the rest of the time for which the message is of use to consumers, if the protocol can
	                     * say it; 0: for ever. The deadline for delivering it is not the broker's business */
	uint64_t wall_ms; /* Unix time of the daemon's clock, for protocols that carry dates */
	uint32_t attempt; /* 1: the first time it is given to a link */
	int retain;       /* RECORD_F_RETAIN */
};

/*
 * The message's id: the same whenever it is sent, over whichever link, by whichever daemon; and not to be predicted from
 * the ids of others.
 */
static inline struct siphash
message_id(const struct message *message)
{
	return siphash_of(message->id_key, message->position);
}

/* ... as two numbers of 16 hexadecimal digits and a dash. Returns past it. */
#define MESSAGE_ID_LEN 33u
uint8_t *message_id_put(uint8_t *at, const struct siphash *id);

/* A number as 16 hexadecimal digits. Returns past them. */
uint8_t *driver_put_hex64(uint8_t *at, uint64_t value);

/* Walks packed headers. Returns 1 and fills in, 0 at the end. */
struct header_view {
	const uint8_t *name;
	const uint8_t *value;
	uint16_t name_len;
	uint16_t value_len;
};
int message_header_next(const struct message *message, uint32_t *offset, struct header_view *header);

enum driver_event_type {
	EV_UP,       /* handshake done; the link may probe, then publish */
	EV_ALIVE,    /* the answer to a probe */
	EV_ACK,      /* seq: that one has `outcome` */
	EV_ACK_UPTO, /* seq: that one and all before it that are outstanding have `outcome` */
	EV_NACK,     /* seq: rejected; code, text */
	EV_AGAIN,    /* seq: not taken, and certainly not kept: send it again, here or elsewhere */
	EV_LOST, /* seq: its answer will never come, and it may have been kept: the pool's on_failure decides */
	EV_UNSURE,    /* seq: the broker has it and cannot promise to keep it: TG_UNKNOWN, not sent again; code,
	               * reference */
	EV_BLOCKED,   /* the broker asks for silence: unwritable, alive; text */
	EV_UNBLOCKED, /* … and takes it back */
	EV_WINDOW,    /* seq: the most unanswered messages the broker allows from now on (> 0) */
	EV_MAX_BODY,  /* seq: the most bytes of body the broker allows */
	EV_KEEPALIVE, /* seq: the broker drops us unless something is sent every so many seconds (> 0) */
	EV_ENDPOINT,  /* text: "host:port" of another broker of this cluster; seq: its place in a list, where 0
	               * begins one that takes the place of all that was said before */
	EV_LEAVING,   /* the broker will go soon: drain and reconnect elsewhere */
	EV_TLS,       /* switch to TLS now (protocols that start in the clear), with nothing in out and all
	               * input consumed; start() is called again when it is done, params->tls is 1 then */
	EV_FATAL,     /* the session is over; kind, code, text */
};

/* Why a session ended, as far as it matters to the breaker and to the admin. */
enum driver_fatal {
	FATAL_PROTOCOL, /* the broker's bytes make no sense, or break a limit */
	FATAL_REFUSED,  /* credentials or rights: trying again soon will not help; back off to the cap */
	FATAL_CLOSED,   /* the broker closes in its own good order; text says why */
	FATAL_UNUSABLE, /* not a broker to publish to now (read-only replica, loading): use another */
	FATAL_SETTINGS, /* the pool's settings do not fit the broker: as FATAL_REFUSED, with other advice */
	FATAL_AGAIN, /* another session, which the driver begins in another way (session_params.memory), is worth
	                 * a try at once: breaker and back-off do not count this. Drivers see to it that only a few of
	                 * them follow each other */
	FATAL_ANSWERED, /* the broker closes over the message that it has rejected last (EV_NACK): no other is to blame */
	FATAL_MESSAGE, /* the broker closes over one of the unanswered messages and does not say which; text
	                 * says why. The daemon finds out which (daemon/flow/blame.h) */
	FATAL_DROPPED, /* the link's own, no driver's: the connection ended without a word. With messages
	                 * unanswered, that may have been over one of them, too */
};

struct driver_event {
	enum driver_event_type type;
	uint64_t seq;
	uint64_t reference;      /* EV_ACK, EV_UNSURE: the broker's number for the message; 0: none */
	uint8_t outcome;         /* EV_ACK, EV_ACK_UPTO: TG_DELIVERED or TG_SENT */
	enum driver_fatal fatal; /* EV_FATAL */
	uint32_t code;           /* EV_NACK and EV_UNSURE (1..65535), EV_FATAL; 0: none */
	const char *text;        /* may be NULL; text_len bytes, not terminated; good during the call only */
	size_t text_len;
};

/* Where a driver says its events. The link fills it in; a test records. */
struct driver_events {
	void (*emit)(void *owner, const struct driver_event *event);
	void *owner;
};

/* The settings of one connection. Strings are the link's and outlive the session. */
struct session_params {
	const char *client_id; /* unique per link and per start of the daemon */
	const char *host; /* of the broker's address, for protocols that name it (AMQP vhost no, STOMP host) */
	uint32_t keepalive_s; /* the longest the link lets pass without sending; from the pool's health */
	uint32_t window;      /* the most unanswered messages the link will allow itself */
	uint64_t random;      /* a secret of this connection: session_words() */
	int tls;              /* the connection is encrypted already */
	void *memory;   /* driver->memory_size bytes that all sessions with this broker share, zeroed at first
	                        * and again once the broker could not be connected to: it may be another then */
	int replayed;   /* the handshake is another daemon's, replayed: memory need not know how it began */
	int tls_wanted; /* … or is to be: with DRIVER_F_SERVER_FIRST, nothing is sent before EV_TLS */
};

/* A session is the driver's own struct that begins with this. */
struct session {
	const struct driver *driver;
	const void *settings;
	const struct session_params *params;
	struct driver_events events;
};

/* Secret words of a connection, the same for each number: for what another must not guess, even one that sees the others. */
static inline struct siphash
session_words(const struct session *session, uint64_t number)
{
	const struct siphash_key key = { { session->params->random, UINT64_C(0x7469646567617465) } };

	return siphash_of(&key, number);
}

enum driver_published {
	DRIVER_PUBLISHED = 0,        /* framed; an event will answer it */
	DRIVER_PUBLISHED_NO_ACK = 1, /* framed; TG_SENT once its last byte is written */
	DRIVER_REJECTED = 2,         /* not framed, nothing appended: TG_REJECTED with *code and *text */
	DRIVER_FULL = 3, /* not framed: no room in the protocol's own window; ask again after an answer */
};

/* Why publish() rejected: code is the protocol's where it has one, else enum driver_reject. */
struct driver_rejection {
	uint32_t code;
	const char *text; /* static, or in `buffer` */
	char buffer[200];
};

/* Codes of rejections no broker was asked about. */
enum driver_reject {
	REJECT_TOPIC = 0xff01,  /* topic not allowed by the protocol */
	REJECT_BODY = 0xff02,   /* body too large for the broker */
	REJECT_HEADER = 0xff03, /* a header cannot be expressed in the protocol */
	REJECT_KEY = 0xff04,
	REJECT_DENIED = 0xff05, /* the broker denies it, and has no code of its own for that */
	REJECT_CLOSED = 0xff06, /* the broker closed the connection over it, again and again */
};

#define DRIVER_SECRETS 4u

struct driver {
	const char *name; /* as in the configuration, e.g. "mqtt" */
	uint16_t default_port;
	uint16_t tls_port;
	size_t settings_size;
	size_t session_size;
	size_t memory_size; /* of session_params.memory; 0: none */
	const char *alpn;   /* wanted in TLS; NULL: none */
	unsigned flags;     /* enum driver_flags */
	/* Offsets of the settings' struct config_secret: pool.c reads their files again before each connection,
	 * so that nothing of a secret may be kept elsewhere. */
	size_t secrets[DRIVER_SECRETS];
	unsigned secret_count;

	/*
	 * Reads the pool's group of the driver's name, which may be absent (all defaults), into settings, zeroed
	 * before, and ends with config_node_done(). Returns 0, -TG_EINVAL after config_node_error() said
	 * why, or -TG_ENOMEM. Keeps no pointer into the configuration. settings_free accepts half-filled
	 * settings and wipes secrets.
	 */
	int (*configure)(void *settings, struct config_node *group);
	void (*settings_free)(void *settings);

	/* DRIVER_F_SERVER_FIRST: whether TLS begins before the first word all the same, as the settings say. May be NULL. */
	int (*tls_first)(const void *settings);

	/* session is zeroed but for its struct session. Returns 0 or -TG_ENOMEM. close accepts a half-open one. */
	int (*open)(struct session *session);
	void (*close)(struct session *session);

	/* Connected (and, unless EV_TLS is used, encrypted): first bytes, if the client speaks first. Called
	 * a second time, with params->tls set, when the connection has become encrypted after EV_TLS. */
	int (*start)(struct session *session, struct out *out);

	/*
	 * Bytes from the broker, any number, cut anywhere. Returns how many it consumed (the link keeps
	 * the rest and gives it again, in front of what comes next, once more has come), or a negative
	 * TG_E after EV_FATAL. It must consume or fail before it is offered more than DRIVER_INPUT_MAX
	 * bytes. Answers go to out.
	 */
	ssize_t (*input)(struct session *session, const uint8_t *bytes, size_t len, struct out *out);

	/*
	 * Frames a message and gives it `seq` (one more than the last that was framed). Bodies of
	 * OUT_REF_MIN bytes or more are appended by reference (out_ref) where framing does not depend on
	 * them. Returns enum driver_published, or -TG_ENOMEM with nothing appended.
	 */
	int (*publish)(struct session *session, uint64_t seq, const struct message *message, struct out *out,
	    struct driver_rejection *rejection);

	/* After the last publish of a turn: protocols that ask for a flush (NATS core PING). May be NULL. */
	int (*flush)(struct session *session, struct out *out);

	/* A round trip that only the broker's application can answer; EV_ALIVE follows. */
	int (*probe)(struct session *session, struct out *out);

	/*
	 * The connection has ended, or its time is up, after start() and before EV_UP, and the driver has not said
	 * EV_FATAL. Returns what another session will try instead (static; the end is FATAL_AGAIN then), or NULL:
	 * there is nothing else to try. May be NULL.
	 */
	const char *(*unheard)(struct session *session);

	/* The version agreed upon with the broker, for admins: "MQTT 3.1.1". Static; NULL before EV_UP. May be
	 * NULL. */
	const char *(*speaks)(const struct session *session);

	/* Orderly farewell. May be NULL. */
	int (*goodbye)(struct session *session, struct out *out);

	/*
	 * Both or neither, for DRIVER_F_REPLAYABLE: the state that the handshake does not determine. The new
	 * session numbers its messages from 0 again; the broker does not notice the move.
	 *
	 * save, asked with every message answered: writes at most room bytes and returns how many, -TG_EAGAIN
	 * if it cannot be moved now (something is under way), or -TG_ELIMIT if it does not fit. Changes nothing.
	 *
	 * restore, at once after EV_UP of the replay: takes them up. It sends nothing; it may say the broker's
	 * limits (EV_MAX_BODY). The bytes come from another version of this daemon, under another version of
	 * the settings: all of them are checked. Returns 0, -TG_EINVAL for a session that cannot go on
	 * here, or -TG_ENOMEM; the session is of no use then.
	 */
	ssize_t (*save)(const struct session *session, uint8_t *bytes, size_t room);
	int (*restore)(struct session *session, const uint8_t *bytes, size_t len);
};

enum driver_flags {
	/* With nothing outstanding, a session is what its broker's handshake made it, under the same
	 * client_id and random, and what save() says: replaying those bytes makes another that can go on in
	 * its place. */
	DRIVER_F_REPLAYABLE = 1u << 1,
	DRIVER_F_SERVER_FIRST = 1u << 0, /* the broker speaks first; in TLS pools EV_TLS decides when */
};

/* From the oldest unanswered message to the newest, drivers of protocols that answer in any order allow at least so
 * many: one that is never answered is not to hold up the others. At the end of it publish() says DRIVER_FULL, and the
 * link begins anew. */
#define DRIVER_SPAN (64u << 10)

/* The most a driver may leave unconsumed: larger frames are consumed piecemeal or refused. */
#define DRIVER_INPUT_MAX (256u << 10)

/* Says an event with nothing but its type and seq. */
void driver_emit(struct session *session, enum driver_event_type type, uint64_t seq);

/* EV_ACK_UPTO or EV_ACK with an outcome. */
void driver_ack(
    struct session *session, enum driver_event_type type, uint64_t seq, uint8_t outcome, uint64_t reference);

/* EV_NACK. text may be NULL. */
void driver_nack(struct session *session, uint64_t seq, uint32_t code, const char *text, size_t text_len);

/* EV_UNSURE. */
void driver_unsure(struct session *session, uint64_t seq, uint32_t code, uint64_t reference);

/* EV_FATAL with a printf text; returns -TG_EPROTOCOL, for `return driver_fatal(...)`. */
int driver_fatal(struct session *session, enum driver_fatal kind, uint32_t code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* For publish(): DRIVER_REJECTED with the code and a printf text, for `return driver_reject(...)`. */
int driver_reject(struct driver_rejection *rejection, uint32_t code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* For configure(): a text of min to max bytes, plain UTF-8, copied; *copy is the caller's to free. Returns as
 * config_node_string() does, or -TG_ENOMEM. */
int driver_read_text(struct config_node *group, const char *key, char **copy, size_t min, size_t max);

#endif
