/*
 * One Redis connection as its parts see it. Each file calls only those below it:
 *
 *   redis.c           settings, open and close, probe, the state that a successor needs
 *   redis_input.c     replies
 *   redis_connect.c   the first commands, and the last
 *   redis_publish.c   framing
 *
 * Replies are positional: nothing in one says what it answers. So the kind of every command that
 * waits for its reply is kept in a ring of bytes; messages among them are answered in their order:
 *
 *   expected:  [ADD][ADD][WAIT][PING][ADD][ADD] ...
 *   seq:         |    answered by XADD   |replied          |next
 *                |oldest: with wait_replicas, the first that a WAIT has not answered for
 *
 * The ring has room for the window, a WAIT, REDIS_PROBES probes and each of the other commands.
 */
#ifndef TG_DAEMON_PROTOCOL_REDIS_H
#define TG_DAEMON_PROTOCOL_REDIS_H

#include "driver.h"
#include "window.h"

#include "daemon/config/config_secret.h"

#include <hiredis/read.h>

#define REDIS_PROBES 16u            /* unanswered; more would say nothing new */
#define REDIS_REPLY_MAX (16u << 10) /* bytes of one element of a reply: an id, a number, an error's words */
#define REDIS_ELEMENTS_MAX 1024u    /* of HELLO's reply, which lists the server's modules */
#define REDIS_KEY_MAX 65535u        /* Redis allows 512 MB */
#define REDIS_TRY_KEY_MAX 128u
#define REDIS_FIELD_MAX 255u
#define REDIS_REFERENCE_SEQ_BITS 20u /* a reference is ms << 20 | seq of the entry's id ms-seq */

enum redis_mode { REDIS_STREAM, REDIS_PUBLISH };

struct redis_settings {
	int mode; /* enum redis_mode */
	uint32_t database;
	uint32_t wait_replicas;
	uint32_t wait_timeout_ms;
	char *username;
	struct config_secret password;
	char *body_field;
	char *key_field;
	char *options; /* of XADD, framed: the arguments between the key and the fields */
	size_t options_len;
	uint32_t options_count;
};

/* The action that an error's first word asks for. */
enum redis_action {
	REDIS_REJECT,   /* this message never */
	REDIS_HOLD,     /* not kept; later, here or elsewhere */
	REDIS_UNUSABLE, /* not kept; another broker */
	REDIS_REFUSE,   /* credentials or rights of the connection */
};

/* Codes of rejections and of unsure answers; those of errors are redis_error.def's. */
enum redis_code {
	REDIS_CODE_NO_STREAM = 40,      /* nomkstream, and there is none */
	REDIS_CODE_NOT_REPLICATED = 41, /* in the primary's stream, on fewer replicas than wait_replicas */
	REDIS_CODE_ODD = 42,   /* answered with what says neither that it was kept nor that it was not */
	REDIS_CODE_OTHER = 99, /* an error whose first word is not in the table */
};

enum redis_expected {
	EXPECT_HELLO,
	EXPECT_AUTH,
	EXPECT_NAME,
	EXPECT_SELECT,
	EXPECT_ADD,     /* a message: XADD's id */
	EXPECT_PUBLISH, /* a message: how many received it */
	EXPECT_WAIT,
	EXPECT_PING,
	EXPECT_TRY, /* the probe of a blocked broker: redis_probe() */
	EXPECT_QUIT,
	EXPECT_NOTHING, /* never in the ring */
};

enum redis_told { TOLD_NOTHING, TOLD_ROLE, TOLD_MODE };

enum redis_server { SERVER_STANDALONE, SERVER_CLUSTER, SERVER_SENTINEL };

enum redis_state { REDIS_CLOSED, REDIS_CONNECTING, REDIS_UP };

/* The reply at hand; text is the beginning of a longer one. */
struct redis_reply {
	int type;
	uint32_t elements; /* of arrays, so far */
	long long integer;
	size_t len;
	char text[240];
};

struct redis_session {
	struct session base;
	redisReader *reader;
	uint8_t *expected;
	uint32_t expected_mask;
	uint32_t expected_head, expected_tail; /* free-running */
	struct window unanswered;
	uint64_t replied;     /* the first message whose own reply has not come */
	uint64_t *references; /* with wait_replicas: by seq & unanswered.mask */
	uint32_t window;      /* the span of unanswered messages stays at or below it */
	uint32_t unwaited;    /* messages since the last WAIT */
	int waiting;          /* a WAIT is under way: the next one is for all that comes meanwhile */
	uint32_t probes;
	enum redis_state state;
	uint8_t leaving; /* QUIT is sent */
	uint8_t blocked;
	uint8_t begun;     /* the reader has a part of a reply */
	uint8_t early;     /* it had one when the handshake was over, which nothing had asked for */
	uint8_t replica;   /* HELLO says so */
	uint8_t next_is;   /* the next element of HELLO's reply: enum redis_told */
	uint8_t mode;      /* ... and what it says of the server: enum redis_server */
	const char *wrong; /* the rule that a reply's shape breaks; NULL: none */
	struct redis_reply reply;
	uint8_t try_key_len; /* 0: none known */
	char try_key[REDIS_TRY_KEY_MAX];
};

static inline struct redis_session *
redis_session(struct session *session)
{
	return (struct redis_session *)session;
}

static inline const struct redis_settings *
redis_settings(const struct session *session)
{
	return session->settings;
}

static inline void
redis_expect(struct redis_session *redis, enum redis_expected kind)
{
	redis->expected[redis->expected_tail++ & redis->expected_mask] = (uint8_t)kind;
}

/* "$len\r\nbytes\r\n" and "*count\r\n": where they end. REDIS_BULK_HEAD bytes are more than their numbers take.
 */
#define REDIS_BULK_HEAD 16u
char *redis_put_count(char *at, char sign, uint64_t count);
char *redis_put_bulk(char *at, const void *bytes, size_t len);

/* The reader of replies, for redis->reader. NULL without memory. */
redisReader *redis_reader_new(struct redis_session *redis);

/* The next commands after HELLO, when the server does not know it, and when it does. Return 0 or -TG_ENOMEM. */
int redis_login(struct redis_session *redis, struct out *out);
int redis_select(struct redis_session *redis, struct out *out);

/* struct driver's. */
int redis_start(struct session *session, struct out *out);
int redis_goodbye(struct session *session, struct out *out);
int redis_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection);
/* WAIT for what was added since the last one, unless that is still under way: each may take its whole time. */
int redis_flush(struct session *session, struct out *out);
ssize_t redis_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out);

#endif
