/*
 * The messages of a session that the broker has not answered yet.
 *
 *   seq:  ... answered | oldest .. unanswered, some answered early .. | next ...
 *
 * The answer to the oldest message moves `oldest` past it and past the early answers behind it; any other
 * answer sets a bit. A message that is never answered holds up no other until the newest is `mask` ahead of it:
 * then window_is_full(), publish() returns DRIVER_FULL, and the link reconnects.
 *
 * Successes in order are gathered: window_ack() of the oldest message emits nothing, and window_flush() reports
 * all of them in one EV_ACK_UPTO. A driver calls window_flush() at the end of input() and before each event
 * that does not come from here.
 *
 * Owner: part of a driver's session, used by that session's one thread. Zeroed: nothing to free.
 */
#ifndef TG_DAEMON_PROTOCOL_WINDOW_H
#define TG_DAEMON_PROTOCOL_WINDOW_H

#include "driver.h"

/* The most messages from the oldest unanswered one to the newest, whatever the pool allows. */
#define WINDOW_ROOM_MAX (UINT32_C(1) << 24)

struct window {
	uint64_t oldest;      /* the first unanswered seq */
	uint64_t next;        /* one more than the last framed seq; oldest == next: nothing is outstanding */
	uint64_t *early_bits; /* by seq & mask */
	uint32_t mask;        /* the room, less one */
	uint32_t early;       /* how many above oldest are answered already */
	uint8_t outcome;      /* of a success: TG_DELIVERED or TG_SENT */
	uint8_t gathered;     /* everything before oldest is answered, and window_flush() has not reported it */
	struct session *session;
};

/* The smallest power of two, from 64 on, that is `least` or more. */
uint32_t window_power_of_two(uint64_t least);

/*
 * The room for a broker that answers in any order: four times the messages that the pool lets be unanswered
 * (session_params.window), and DRIVER_SPAN at least.
 */
uint64_t window_room(uint32_t messages);

/* Room for so many messages, or a few more. Returns 0 or -TG_ENOMEM. fini accepts a zeroed one. */
int window_init(struct window *window, struct session *session, uint8_t outcome, uint64_t room);
void window_fini(struct window *window);

/* Reports the gathered successes. */
void window_flush_gathered(struct window *window);

static inline void
window_flush(struct window *window)
{
	if (window->gathered)
		window_flush_gathered(window);
}

static inline int
window_is_empty(const struct window *window)
{
	return window->oldest == window->next;
}

/* Whether the next message has no bit left. */
static inline int
window_is_full(const struct window *window)
{
	return window->next - window->oldest > window->mask;
}

/* How many messages are unanswered. */
static inline uint64_t
window_outstanding(const struct window *window)
{
	return window->next - window->oldest - window->early;
}

/* Remembers an early answer, or moves past those behind the oldest message, which is answered. */
int window_set_early(struct window *window, uint64_t seq);
void window_skip_early(struct window *window);

static inline void
window_advance(struct window *window)
{
	window->oldest++;
	if (__builtin_expect(window->early > 0, 0))
		window_skip_early(window);
}

/* The oldest message succeeded; there is one. */
static inline void
window_ack_oldest(struct window *window)
{
	window_advance(window);
	window->gathered = 1;
}

/*
 * A message is answered, and the caller emits the event: gathered successes are reported first. Returns 0,
 * having done no more than that, if the message does not wait for an answer.
 */
static inline int
window_take(struct window *window, uint64_t seq)
{
	window_flush(window);
	if (seq - window->oldest >= window->next - window->oldest)
		return 0;
	if (seq != window->oldest)
		return window_set_early(window, seq);
	window_advance(window);
	return 1;
}

/* A message succeeded. Returns 0 if it does not wait for an answer. */
int window_ack(struct window *window, uint64_t seq);

#endif
