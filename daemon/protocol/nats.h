/*
 * One NATS connection as its parts see it. Each file calls only those below it:
 *
 *   nats.c           settings, start, probe
 *   nats_input.c     the server's lines
 *   nats_connect.c   INFO and CONNECT
 *   nats_ack.c       the answer to a message
 *   nats_publish.c   framing
 *   nats_move.c      the state that a successor needs
 *   nats_session.c   open and close, subjects, PINGs in flight
 *   nats_nkey.c      signatures
 *
 *   seq:  ... answered | oldest .. unanswered, some answered early .. | next ...
 *
 * Every unanswered message has a word in `pending`, by seq & mask: a hash of its subject, because a
 * permissions violation names nothing else, and two flags.
 *
 * JetStream: each message asks for its answer on INBOX + its token, in hexadecimal: a check of sixteen digits, and its
 * number, which is its seq and how many tokens the connection had before this session took it over, so that a
 * late answer is never another message's. Subscribers of a message's subject see its token, and a user that may
 * publish to an inbox can answer to it in the stream's place; the check, a part of the message's id, keeps such
 * users from answering messages that they do not see. Answers come in any order. Core: nothing is answered; a
 * PING is sent behind the messages of each turn, and its PONG says that the server has taken all before it.
 * Pings in flight, oldest first, are in `pings`.
 */
#ifndef TG_DAEMON_PROTOCOL_NATS_H
#define TG_DAEMON_PROTOCOL_NATS_H

#include "driver.h"
#include "nats_nkey.h"

#include "daemon/config/config_secret.h"

#define NATS_CONTROL_MAX 4096u    /* the server closes on a longer control line (its default) */
#define NATS_LINE_MAX (64u << 10) /* the longest line we read: an INFO that names many servers */
#define NATS_ANSWER_MAX \
	(64u << 10) /* the largest answer we read; JetStream's have 30 to 200 bytes. Others are skipped */
#define NATS_SKIP_MAX UINT32_MAX       /* ... and the largest that is */
#define NATS_CREDENTIAL_MAX 1024u      /* bytes of a user name, password or token: CONNECT is a control line */
#define NATS_PINGS 64u                 /* flushes in flight; beyond, one waits for the next PONG */
#define NATS_INBOX_LEN (7u + 11u + 1u) /* "_INBOX." eleven random characters "." */
#define NATS_CHECK_LEN 16u             /* of a token: digits that cannot be guessed */

#define NATS_NO_RESPONDERS 503u /* the code of a message that no stream takes */

struct nats_settings {
	int jetstream;
	int msg_id;
	int learn_endpoints;
	int handshake_first;
	char *username;
	struct config_secret password;
	struct config_secret token;
	struct config_secret nkey_seed;
};

enum nats_state {
	NATS_CLOSED,
	NATS_WAIT_INFO,
	NATS_SECURING, /* EV_TLS was said; start() comes again */
	NATS_CONNECTING,
	NATS_UP,
};

/* Flags in the low bits of a pending word. */
#define NATS_ANSWERED UINT64_C(1)
#define NATS_DENIED UINT64_C(2)  /* a violation was counted against it */
#define NATS_DOUBTED UINT64_C(4) /* no stream took it, and whether there is one is to be asked */
#define NATS_ASKED UINT64_C(8)   /* ... and has been; without NATS_DOUBTED: the answer was no acknowledgement */
#define NATS_FLAGS (NATS_ANSWERED | NATS_DENIED | NATS_DOUBTED | NATS_ASKED)

/* PINGs in flight: one behind messages, or none, and then probes. */
struct nats_ping {
	uint64_t upto; /* the flush: it comes behind every seq below */
	uint32_t flush;
	uint32_t probes;
};

/*
 * The subject that was last published to of those that share its place: it is known to be in order, and in
 * JetStream questions may be asked about it. While one is under way the place is kept. Messages of a subject that has lost its place are sent again, which gives
 * it back.
 */
#define NATS_SUBJECTS 64u
struct nats_subject {
	uint64_t hash; /* 0: none */
	uint8_t *text;
	uint32_t len, room;
	uint64_t counted; /* every unanswered seq of the subject below has a violation counted against it */
	int asking;       /* an answer is due */
	uint64_t
	    silent; /* ... asked in a silence, on behalf of every unanswered seq below; 0: because of a doubt */
};

struct nats_pending {
	uint64_t word;  /* the subject's hash, and flags */
	uint64_t check; /* of its token */
};

struct nats_session {
	struct session base;
	enum nats_state state;
	int jetstream;
	int msg_id;
	int no_streams; /* the server says that it has JetStream off */
	int headers;    /* the server takes headers */

	uint64_t oldest; /* the first unanswered seq */
	uint64_t next;   /* one more than the last framed seq */
	uint64_t outstanding;
	struct nats_pending *pending; /* by seq & mask */
	uint32_t window;
	uint32_t mask;
	uint64_t max_payload; /* headers and body together */
	uint64_t seed;        /* of the hashes */
	uint64_t mixed;       /* into checks */
	uint64_t question;    /* the check of questions' tokens */
	uint64_t first_token; /* seq 0's */

	struct nats_ping pings[NATS_PINGS];
	uint32_t ping_first, ping_count;
	uint64_t flushed; /* a PING comes behind every seq below */
	int flush_waits;  /* for a place in pings */

	struct nats_subject subjects[NATS_SUBJECTS]; /* by nats_place() */
	uint32_t asking;                             /* of them, those whose answer is due */
	int may_not_ask;

	uint64_t skip;   /* bytes to come of a message that is not read */
	char nonce[128]; /* the server's, to be signed */
	char inbox[NATS_INBOX_LEN + 1];
};

static inline struct nats_session *
nats_session(struct session *session)
{
	return (struct nats_session *)session;
}

/* A subject's word in `pending`, flags clear. The seed is secret, so that no producer can make two subjects meet. */
uint64_t nats_hash(const struct nats_session *nats, const uint8_t *subject, size_t len);

static inline uint32_t
nats_place(uint64_t hash)
{
	return (uint32_t)(hash / (NATS_FLAGS + 1)) % NATS_SUBJECTS;
}

/* A message of the subject was framed: gives the subject its place, unless memory or another's question
 * forbids. */
void nats_keep_subject(struct nats_session *nats, uint64_t hash, const struct message *message);

/* Sends a PING whose PONG is EV_ALIVE. Returns 0 or -TG_ENOMEM. */
int nats_ping_probe(struct nats_session *nats, struct out *out);

/* Sends a PING behind what is not flushed yet. Returns 0 or -TG_ENOMEM. */
int nats_flush_core(struct nats_session *nats, struct out *out);

/* nats_connect.c: an INFO line's JSON; CONNECT, SUB and PING. Both return 0 or a negative TG_E. */
int nats_info(struct nats_session *nats, const uint8_t *json, size_t len, struct out *out);
int nats_connect(struct nats_session *nats, struct out *out);

/* nats_ack.c */

/* A message that came to the inbox. */
struct nats_reply {
	const uint8_t *token, *headers, *body;
	size_t token_len, headers_len, body_len;
	int unread; /* it is too long: neither headers nor body are given */
};

/* The answer to the message whose token it has; drops anything else. Returns 0 or a negative TG_E. */
int nats_answer(struct nats_session *nats, const struct nats_reply *reply, struct out *out);
/* The stream of JetStream's plain acknowledgements. Returns how many bytes were taken. */
size_t nats_acks(struct nats_session *nats, const uint8_t *bytes, size_t len);
/* The server refused a publish to a subject, quoted as Go's %q does. */
void nats_denied(struct nats_session *nats, const uint8_t *quoted, size_t len);
/* Repeats the questions that were not answered: the server asked may be gone. Returns 0 or -TG_ENOMEM. */
int nats_ask_again(struct nats_session *nats, struct out *out);
/* Nothing has come for a while: asks about what is unanswered. Returns 0 or -TG_ENOMEM. */
int nats_ask_silent(struct nats_session *nats, struct out *out);
/* Core: a PONG says that everything below upto was taken, or denied. */
void nats_taken(struct nats_session *nats, uint64_t upto);

/* struct driver's. */
int nats_open(struct session *session);
void nats_close(struct session *session);
int nats_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection);
ssize_t nats_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out);
ssize_t nats_save(const struct session *session, uint8_t *bytes, size_t room);
int nats_restore(struct session *session, const uint8_t *bytes, size_t len);

#endif
