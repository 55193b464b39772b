/*
 * One AMQP connection as its parts see it. Each file calls only those below it:
 *
 *   amqp.c             settings, start, probe, farewell
 *   amqp_input.c       the broker's frames
 *   amqp_handshake.c   from the protocol header to EV_UP
 *   amqp_confirm.c     the fate of messages
 *   amqp_publish.c     framing
 *   amqp_move.c        the state that a successor needs
 *   amqp_session.c     open and close, channels, bytes sent from inside input()
 *   amqp_wire.c        the elements of frames
 *
 * Channel 1 carries nothing but probes. Every exchange in use has a channel of its own from 2 on, so
 * that RabbitMQ's closing of a channel (no such exchange, no right to write) affects no other
 * exchange. A channel that waits for nothing is given to another exchange when they run out.
 *
 *   session:  seq  ... answered | oldest .. unanswered, some answered early .. | next ...
 *   channel:  tag  ... confirmed | oldest .. unconfirmed ..                    | next ...
 *                                  each names its seq
 *
 * A channel's life:
 *
 *   CLOSED ── publish: open, confirm.select, exchange.declare passive, all pipelined ──► OPEN
 *   OPEN ── channel.close, messages wait on it: close-ok, open, confirm.select ──► REOPENING
 *   REOPENING ── open-ok: the broker has read all that was written before, and the messages are
 *                answered for ──► OPEN
 *   OPEN ── channel.close, nothing waits on it: close-ok ──► CLOSED
 */
#ifndef TG_DAEMON_PROTOCOL_AMQP_H
#define TG_DAEMON_PROTOCOL_AMQP_H

#include "amqp_wire.h"
#include "driver.h"
#include "window.h"

#include "daemon/config/config_secret.h"

#define AMQP_PROBE_CHANNEL 1u
#define AMQP_FIRST_CHANNEL 2u
#define AMQP_CHANNELS_MAX 2000u
#define AMQP_TEXT_MAX 160u

/* EV_NACK's code for basic.nack, which has none of its own: its method number. */
#define AMQP_CODE_NACK 120u

/* connection.close's INTERNAL_ERROR. */
#define AMQP_CODE_CRASH 541u

enum amqp_sasl { SASL_PLAIN, SASL_EXTERNAL };

struct amqp_settings {
	char *vhost;
	char *exchange; /* NULL: the topic names it */
	char *username;
	struct config_secret password;
	char *content_type;
	int mandatory;
	int persistent;
	int sasl;             /* enum amqp_sasl */
	uint32_t heartbeat_s; /* 0: the interval that the link asks for */
	uint32_t channels;
};

enum amqp_state {
	AMQP_CLOSED,
	AMQP_STARTING,  /* header sent, connection.start is due */
	AMQP_TUNING,    /* start-ok sent */
	AMQP_OPENING,   /* tune-ok and open sent */
	AMQP_SELECTING, /* channel 1: open and confirm.select sent */
	AMQP_UP,
};

enum amqp_channel_state { CHANNEL_IS_CLOSED, CHANNEL_IS_OPEN, CHANNEL_IS_REOPENING };

/* The part of a returned message that is still to come. */
enum amqp_content { CONTENT_NONE, CONTENT_HEADER, CONTENT_BODY };

/* HELD_LATER: the question whose answer settles it has not been sent. */
enum amqp_held { HELD_NOT, HELD_NOW, HELD_LATER };

struct amqp_pending {
	uint64_t seq;
	uint32_t id;      /* amqp_id(): tells which message was returned */
	uint8_t returned; /* and rejected then: a later confirm is ignored */
	uint8_t held;     /* by basic.nack, until it is certain that no return follows: HELD_NOW, HELD_LATER */
	uint8_t confirmed;
};

struct amqp_channel {
	struct amqp_pending *ring; /* by tag & ring_mask */
	uint64_t oldest, next;     /* tags */
	uint64_t return_from;      /* tags below it will not be returned any more */
	uint64_t used;             /* when, counted in messages of the connection */
	uint64_t content_left;     /* bytes of a returned body */
	uint32_t ring_mask;
	uint32_t number;
	uint32_t careful;    /* so many messages go one at a time: one of them closes the channel */
	uint32_t close_code; /* REOPENING: why the broker closed it */
	uint32_t close_method;
	uint32_t return_code; /* of the return that is coming in */
	uint8_t state;
	uint8_t content;
	uint8_t checked;  /* the exchange was asked for since it was opened or given to that exchange */
	uint8_t proven;   /* … and took a message */
	uint8_t open_due; /* open-ok has not come yet */
	uint8_t asking;   /* confirm.select was sent because of a basic.nack */
	uint8_t exchange_len;
	char exchange[AMQP_SHORT_MAX];
	char close_text[AMQP_TEXT_MAX];
	char return_text[AMQP_TEXT_MAX];
};

struct amqp_session {
	struct session base;
	struct window unanswered;
	uint64_t max_body;  /* UINT64_MAX: not known */
	uint64_t before;    /* messages of the connection before this session took it over */
	uint32_t probes;    /* unanswered */
	uint32_t frame_max; /* both ways, once tuned */
	uint32_t heartbeat_s;
	uint32_t channel_count; /* those ever used */
	uint32_t channel_max;
	struct amqp_channel **channels; /* [settings->channels], made as they are wanted */
	struct amqp_channel *last;      /* the one published on last */
	enum amqp_state state;
	uint8_t leaving; /* goodbye was said */
};

static inline struct amqp_session *
amqp_session(struct session *session)
{
	return (struct amqp_session *)session;
}

/*
 * The part of a message's id that is kept. The broker returns messages in their order and hardly any two of
 * those that wait at a time are alike in it (1 in 2^32 for each pair).
 */
static inline uint32_t
amqp_id(const struct siphash *id)
{
	return (uint32_t)id->word[0];
}

/* A channel at the end of those there are. Returns NULL without memory. */
struct amqp_channel *amqp_channel_add(struct amqp_session *amqp);

/* Ends the session; returns a negative TG_E. */
#define amqp_fatal(amqp, kind, code, ...)                                \
	(window_flush(&(amqp)->unanswered), (amqp)->state = AMQP_CLOSED, \
	    driver_fatal(&(amqp)->base, kind, code, __VA_ARGS__))

/* Sends bytes now. Returns 0 or -TG_ENOMEM after EV_FATAL; only inside input(). */
int amqp_send(struct amqp_session *amqp, struct out *out, const void *bytes, size_t len);

/* A method on channel 0 or 1 before EV_UP. Returns 0 or a negative TG_E after EV_FATAL. */
int amqp_handshake(struct amqp_session *amqp, uint32_t channel, uint32_t method, struct amqp_reader *arguments,
    struct out *out);

/* amqp_confirm.c: the same for what says what became of messages. */
int amqp_confirm(struct amqp_session *amqp, struct amqp_channel *channel, uint32_t method,
    struct amqp_reader *arguments, struct out *out);
int amqp_asked(struct amqp_session *amqp, struct amqp_channel *channel, struct out *out);
int amqp_return(struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *arguments);
int amqp_return_header(struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *header);
int amqp_return_body(struct amqp_session *amqp, struct amqp_channel *channel, size_t len);
int amqp_channel_closed(
    struct amqp_session *amqp, struct amqp_channel *channel, struct amqp_reader *arguments, struct out *out);
int amqp_channel_opened(struct amqp_session *amqp, struct amqp_channel *channel);

/* struct driver's. */
int amqp_open(struct session *session);
void amqp_close(struct session *session);
int amqp_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection);
ssize_t amqp_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out);
ssize_t amqp_save(const struct session *session, uint8_t *bytes, size_t room);
int amqp_restore(struct session *session, const uint8_t *bytes, size_t len);

#endif
