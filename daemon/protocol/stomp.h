/*
 * One STOMP connection as its parts see it: stomp.c (settings, connect, probe), stomp_publish.c
 * (framing), stomp_frame.c (reading a frame's head) and stomp_input.c (answers).
 *
 * A message's receipt is its sequence number in decimal, a probe's is `p` and a number. Brokers may
 * answer in any order.
 */
#ifndef TG_DAEMON_PROTOCOL_STOMP_H
#define TG_DAEMON_PROTOCOL_STOMP_H

#include "driver.h"
#include "window.h"

#include "daemon/config/config_secret.h"

#define STOMP_HEAD_MAX (32u << 10) /* bytes of a broker's frame before its body */
#define STOMP_HEADERS_MAX 100u     /* its headers */
#define STOMP_TEXT_MAX 4096u       /* of our own settings, in bytes */
#define STOMP_KEY_NAME "tidegate-key"

enum stomp_state { STOMP_CLOSED, STOMP_CONNECTING, STOMP_UP };

/* The rest of the body of an ERROR that has been acted on. */
enum stomp_skip { STOMP_SKIP_NONE, STOMP_SKIP_LENGTH, STOMP_SKIP_TO_ZERO };

/* How a broker is told when a message is not worth delivering any more. */
enum stomp_expiry {
	STOMP_EXPIRES,    /* expires: Unix time in ms (ActiveMQ, Artemis) */
	STOMP_EXPIRATION, /* expiration: ms from now on (RabbitMQ) */
};

struct stomp_settings {
	char *login;
	struct config_secret passcode;
	char *vhost;
	char *content_type;
	char *constant; /* headers that every SEND has, in their wire form */
	size_t constant_len;
	uint32_t heartbeat_ms; /* longest silence that is promised; UINT32_MAX: from the pool's health */
	int persistent;
};

struct stomp_session {
	struct session base;
	struct window unanswered;
	uint32_t heartbeat_ms;
	uint64_t probe_next; /* numbers of probes: [probe_oldest, probe_next) are unanswered */
	uint64_t probe_oldest;
	uint64_t skip_left; /* STOMP_SKIP_LENGTH: bytes before the zero */
	enum stomp_skip skip;
	enum stomp_state state;
	enum stomp_expiry expiry;
	uint8_t errored;     /* an ERROR has come, and no receipt since for what was framed behind it */
	uint64_t errored_at; /* unanswered.next when it came */
	const char *login;   /* the pool's */
};

static inline struct stomp_session *
stomp_session(struct session *session)
{
	return (struct stomp_session *)session;
}

/* ---- stomp_frame.c: the head of a broker's frame ---- */

enum stomp_command { STOMP_CONNECTED, STOMP_RECEIPT, STOMP_ERROR, STOMP_MESSAGE, STOMP_COMMANDS };

/* The headers that matter; the first of a name counts. bytes NULL: absent. */
struct stomp_text {
	const uint8_t *bytes;
	size_t len;
};

struct stomp_head {
	enum stomp_command command;
	struct stomp_text version, heart_beat, server, receipt_id, message;
	int64_t content_length; /* -1: none, the body ends at its first zero byte */
};

/*
 * Reads a frame's head. Returns its bytes up to the body, 0 while it is not whole, or -1 with why[]
 * filled in: errors are found line by line, so that they do not depend on how bytes were cut.
 */
ssize_t stomp_head_read(struct stomp_head *head, const uint8_t *bytes, size_t len, char why[static 160]);

/* Decimal digits and nothing else. Returns 0, or -1. */
int stomp_number(const uint8_t *bytes, size_t len, uint64_t max, uint64_t *value);

/* Undoes the escapes of a header's value as far as it fits, what is unprintable made '?'. */
void stomp_clean(char *text, size_t size, const uint8_t *bytes, size_t len);

const char *stomp_command_word(enum stomp_command command);

/* ---- struct driver's publish and input ---- */

int stomp_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection);
ssize_t stomp_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out);

#endif
