/*
 * tidegate: publish to message brokers through the tidegated of this host.
 *
 *	struct tg_client *client;
 *	struct tg_lane *lane;
 *	struct tg_message m = { .topic = "orders/new", .topic_len = TG_NUL,
 *		.body = text, .body_len = strlen(text) };
 *	struct tg_completion c;
 *
 *	tg_client_open(&client, NULL);
 *	tg_lane_open(client, &lane, "events", NULL);
 *	tg_publish(lane, &m, NULL);
 *	while (tg_poll(lane, &c, 1) == 0)
 *		tg_wait(lane, -1);
 *
 * Every function that returns int gives 0 (or a count) or a negative TG_E…; tg_strerror() has the
 * words, and tg_client_detail() the ones that name object, value and limit.
 *
 * Threads: a client may be used by one thread at a time; a lane belongs to one thread at a time
 * (single producer, and the same thread reads its completions). Different lanes of one client may
 * be used by different threads at once; only open and close of lanes need the client to itself.
 *
 * fork: a child gets TG_EFORKED from every call on handles it inherited and opens its own.
 *
 * tidegate(3) and the pages it names say the rest.
 */
#ifndef TIDEGATE_H
#define TIDEGATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define TG_API __attribute__((visibility("default")))
#else
#define TG_API
#endif

enum tg_error {
	TG_EAGAIN = 1,     /* the ring or its completion queue is full; tg_poll, or tg_wait and try again */
	TG_EINVAL = 2,     /* an argument is wrong */
	TG_ETOOBIG = 3,    /* the message is larger than the lane can carry */
	TG_ENOMEM = 4,     /* no memory for a client, a lane, or the lane's rings */
	TG_ENODAEMON = 5,  /* no daemon listens on the socket */
	TG_ECLOSED = 6,    /* the daemon is away */
	TG_EVERSION = 7,   /* library and daemon speak different ABI versions */
	TG_ENOPOOL = 8,    /* the daemon has no pool of that name */
	TG_ELIMIT = 9,     /* a configured limit is reached */
	TG_EDENIED = 10,   /* not allowed */
	TG_EFORKED = 11,   /* the handle belongs to the parent process */
	TG_EBROKEN = 12,   /* the lane's shared memory is inconsistent, or the daemon has closed the lane */
	TG_ETIMEOUT = 13,  /* the time given has passed */
	TG_EBUSY = 14,     /* a reservation is open on this lane */
	TG_ENOTFOUND = 15, /* no such message in the ring */
	TG_ESYSTEM = 16,   /* a system call failed; errno says why */
	TG_EPROTOCOL = 17, /* a control frame could not be understood */
	TG_ELATE = 18,     /* the message is finished already, or on its way */
	TG_ESTOPPING = 19  /* the daemon is draining and takes no new lanes */
};

/* The outcome of an accepted message. */
enum tg_outcome {
	TG_DELIVERED = 1, /* the broker said that it has it */
	TG_SENT = 2,      /* the protocol has no acknowledgement; never reported as delivered */
	TG_REJECTED = 3,  /* the broker, or its protocol's rules, said no; code says why */
	TG_EXPIRED = 4,   /* its deadline or expiry passed, and it was certainly never sent */
	TG_UNKNOWN = 5,   /* sent, the answer never came: it may have been delivered */
	TG_CANCELLED = 6  /* taken back before it was sent */
};

enum tg_flags {
	TG_QUIET = 1 << 0, /* no completion when DELIVERED or SENT; every other outcome is reported */
	TG_RETAIN = 1 << 1 /* MQTT: the broker keeps it for later subscribers; elsewhere no meaning */
};

/* The length of a topic or a header's name that is NUL-terminated. A length of 0 is 0: nothing is read. */
#define TG_NUL ((size_t)-1)

/* One header (MQTT 5 user property, AMQP header, NATS header …). At most 65,535 bytes each. */
struct tg_header {
	const char *name;
	const void *value;
	size_t name_len; /* TG_NUL: name is NUL-terminated. A name has at least 1 byte */
	size_t value_len;
};

/*
 * A message to publish. Zero-initialise it, then set what is needed. Nothing in it is kept after
 * the call. Topic, key and all headers together: at most 65,535 bytes each.
 */
struct tg_message {
	const char *topic;
	size_t topic_len; /* TG_NUL: topic is NUL-terminated */
	const void *key;  /* routing or partition key; its meaning is the protocol's. May be NULL */
	size_t key_len;
	const void *body;
	size_t body_len;
	const struct tg_header *headers;
	size_t header_count;
	uint64_t tag;        /* yours; comes back in the completion */
	uint32_t timeout_ms; /* how long tidegate tries to deliver it; 0: the pool's message_timeout_ms */
	uint32_t
	    expiry_ms; /* how long it is of use to consumers: brokers that can drop it after that; 0: for ever */
	uint32_t flags; /* enum tg_flags */
};

struct tg_completion {
	uint64_t position; /* as tg_publish gave it */
	uint64_t tag;
	uint64_t reference;  /* the broker's own number (stream sequence, offset …); 0: none */
	uint64_t elapsed_us; /* from publish to answer, at the kernel's tick (1 to 10 ms) */
	uint32_t code;       /* the broker's reason code; 0: none */
	uint8_t outcome;     /* enum tg_outcome */
	uint8_t attempts;    /* times it was given to a link; 0: never; 127: or more */
	uint8_t reserved[2];
};

struct tg_client;
struct tg_lane;

/* Options of tg_client_open. Zeroed: the defaults. */
struct tg_client_options {
	const char *socket;  /* NULL: $TIDEGATE_SOCKET, then the path the library was built with */
	const char *name;    /* shown to admins; NULL: the program's name */
	uint32_t timeout_ms; /* for the daemon's answer to a request; 0: 5,000 */
};

/* Options of tg_lane_open. Zeroed: the defaults. */
struct tg_lane_options {
	uint64_t
	    ring_bytes; /* rounded up to a power of two; 0: 256 KiB, or what the daemon allows; at least 16 KiB. A page
	                       * costs 3 us at attach, so one-shot publishers ask for 16 KiB */
	uint32_t completions; /* unread completions and unanswered messages it holds; 0: ring_bytes / 128 */
	uint32_t spin_us;     /* how long tg_wait spins before it sleeps; 0: 20. UINT32_MAX: no spinning */
};

/* The result of tg_lane_info. */
struct tg_lane_info {
	uint64_t lane_id; /* as tidegatectl shows it */
	uint64_t ring_bytes;
	uint64_t record_bytes; /* of the largest record: 48, topic, key, headers and body */
	uint64_t
	    away_ms; /* since the daemon was lost, as long as none has taken the lane back; 0: there is one */
	uint32_t completions;
	uint32_t timeout_ms; /* the pool's, for messages without one */
};

/* Connects to the daemon. *client is the caller's, for tg_client_close. */
TG_API int tg_client_open(struct tg_client **client, const struct tg_client_options *options);

/*
 * Closes the client and every lane still open on it. Messages already accepted are delivered by
 * the daemon without it; their completions are lost. NULL is fine. In a forked child it frees the
 * child's copy only.
 */
TG_API void tg_client_close(struct tg_client *client);

/*
 * The calling thread's last error in words, naming object, value and limit. client may be NULL, as it
 * is after a failed tg_client_open. Never NULL; good until the thread's next call.
 */
TG_API const char *tg_client_detail(const struct tg_client *client);

/* Opens a lane to a pool. */
TG_API int tg_lane_open(
    struct tg_client *client, struct tg_lane **lane, const char *pool, const struct tg_lane_options *options);

/*
 * Waits up to timeout_ms (-1: without limit, 0: not at all) for accepted messages to be completed,
 * then closes the lane. Returns 0, or -TG_ETIMEOUT when some were not: the lane is closed all the
 * same and the daemon goes on delivering them. -TG_ECLOSED: there is no daemon that could; only one to
 * which the service manager passes the lane's memory will. Unread completions are lost. Whatever is
 * returned (-TG_EBROKEN ...), the lane is freed; in a forked child it is the child's copy only.
 */
TG_API int tg_lane_close(struct tg_lane *lane, int timeout_ms);

/*
 * Publishes a copy of a message. Never blocks, makes no system call unless the daemon sleeps.
 * position, if not NULL, is set to the message's position, its identity for the lane's life.
 * Returns 0: accepted, and exactly one completion will come. -TG_EAGAIN: no room, nothing happened.
 * Others: TG_EINVAL, TG_ETOOBIG, TG_EBUSY, TG_EFORKED, TG_EBROKEN. With the daemon away messages are
 * accepted while there is room; ten times a second a call looks whether it is back, and then may
 * take as long as handing the lanes back does, at most a second for each.
 */
TG_API int tg_publish(struct tg_lane *lane, const struct tg_message *message, uint64_t *position);

/*
 * Publishes up to count messages with one wake-up. Returns how many were accepted, from the front
 * (positions, if not NULL, has room for count), or the first one's error if none was.
 */
TG_API int
tg_publish_batch(struct tg_lane *lane, const struct tg_message *messages, size_t count, uint64_t *positions);

/*
 * Writes in place: reserves room for message->body_len bytes (message->body is not looked at) and
 * points *body at it. Then tg_commit, or tg_abort, before anything else is published on this lane.
 */
TG_API int tg_reserve(struct tg_lane *lane, const struct tg_message *message, void **body);

/* Publishes the reservation with the first body_len bytes of its body (at most as many as reserved). */
TG_API int tg_commit(struct tg_lane *lane, size_t body_len, uint64_t *position);

/* Gives the reservation up: it leaves no trace. */
TG_API int tg_abort(struct tg_lane *lane);

/*
 * Takes up to max completions. Never blocks. Returns how many (0: none now), or a negative error;
 * completions that are there come before an error of the lane does.
 */
TG_API int tg_poll(struct tg_lane *lane, struct tg_completion *completions, size_t max);

/*
 * Waits until tg_poll has something, room or writability returns, or timeout_ms have passed (-1: no
 * limit). Spins for spin_us, or less where that has been in vain lately, then sleeps. Returns 0 when
 * there is something to look at or a signal handler ran, -TG_ETIMEOUT, -TG_EBROKEN.
 */
TG_API int tg_wait(struct tg_lane *lane, int timeout_ms);

/*
 * A descriptor for any event loop: readable when there may be completions, room or writability, or
 * the daemon is gone. After it fires call tg_poll until it returns 0; that arms it again. It may fire
 * once more than needed, never once less. It is the lane's: do not close or read it.
 */
TG_API int tg_fd(struct tg_lane *lane);

/*
 * 1: the pool has a link that takes messages now. 0: messages are accepted as long as there is room
 * and wait for one. Negative: an error. tg_wait and tg_fd wake when it turns to 1.
 */
TG_API int tg_writable(struct tg_lane *lane);

/* Describes the lane, and says whether its daemon is there. */
TG_API int tg_lane_info(struct tg_lane *lane, struct tg_lane_info *info);

/*
 * Asks for a message back. 0: asked; its completion says CANCELLED if it was in time, or what
 * happened instead. -TG_ELATE: it is finished. -TG_ENOTFOUND: no such position.
 */
TG_API int tg_cancel(struct tg_lane *lane, uint64_t position);

/*
 * Waits until everything accepted on this lane is completed. Completions stay for tg_poll.
 * timeout_ms: -1: no limit. Returns 0, -TG_ETIMEOUT, -TG_EBROKEN.
 */
TG_API int tg_flush(struct tg_lane *lane, int timeout_ms);

/*
 * Publishes one message and waits for its completion, leaving those of others for tg_poll.
 * timeout_ms bounds the wait, -1: no limit; -TG_ETIMEOUT means not known yet: the completion will
 * come through tg_poll. TG_QUIET has no meaning here.
 */
TG_API int tg_publish_sync(
    struct tg_lane *lane, const struct tg_message *message, int timeout_ms, struct tg_completion *completion);

/*
 * The broker's words for the lane's last REJECTED message and, if code is not NULL, the code they
 * belong to. Copies at most size bytes, terminated. Returns the text's length, 0 if there is none.
 */
TG_API int tg_reason(struct tg_lane *lane, char *text, size_t size, uint32_t *code);

/*
 * Messages accepted whose completion tg_poll has not returned yet. Finished TG_QUIET ones count as
 * long as unread completions lie before theirs.
 */
TG_API int64_t tg_outstanding(struct tg_lane *lane);

/* The words of an error (either sign). Static. */
TG_API const char *tg_strerror(int error);

/* "delivered", "sent", "rejected", "expired", "unknown", "cancelled". Static. */
TG_API const char *tg_outcome_name(unsigned outcome);

/* The library's version, "1.0.0". Static. */
TG_API const char *tg_version(void);

#ifdef __cplusplus
}
#endif

#endif
