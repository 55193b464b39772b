/*
 * How much of the loop's time clients may have for what they ask for.
 *
 * Connecting, opening and closing a lane cost the loop tens of microseconds each, and cost who asks for them
 * next to nothing: one client could keep the loop from everybody's messages. So the time such work takes is
 * measured, and while there are messages it gets an eighth of all time (allowance.h); what it had while there
 * were none is charged, too: a client that waits for each of his messages leaves such moments. What is too much
 * waits: whoever asked is held (his socket is not read), and those who are held take turns. The large part,
 * memory, is not done on the loop at all: see attach.h.
 *
 * While the shard is paused (an upgrade) everything is held; what is unread then is the successor's to answer.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_CONTROL_H
#define TG_DAEMON_CONTROL_H

#include "allowance.h"
#include "timer.h"

#include <stdint.h>
#include <sys/queue.h>

struct client;
struct listener;
struct shard;

TAILQ_HEAD(held_list, client);

struct control {
	struct shard *shard;
	struct allowance allowance;
	struct timer timer;
	struct held_list held;     /* by held_entry */
	struct listener *listener; /* the control socket's; NULL: none */
	int listener_held;
	int listener_next; /* it and the clients take turns */
};

/* Returns 0 or -TG_ENOMEM. */
int control_init(struct control *control, struct shard *shard);
void control_fini(struct control *control);

/* Whether there is time for a piece of work now. */
int control_may(const struct control *control);

/* Around each piece of work: control_end(control, control_begin(control)). */
uint64_t control_begin(const struct control *control);
void control_end(struct control *control, uint64_t began_ns);

/* What was done for a client beside the loop costs his like, too, as long as it took: it takes a processor. */
void control_charge(struct control *control, uint64_t took_ns);

/* A client whose socket is not to be read for now; control_gone: it ends. */
void control_hold(struct control *control, struct client *client);
void control_gone(struct control *control, struct client *client);

/* Whoever knocks next has to wait. */
void control_hold_listener(struct control *control);

/* At the end of each turn: if there are no messages any more, whoever is held need not wait for his time. */
void control_look(struct control *control);

/* There may be time for the held ones: the shard is not paused any more. */
void control_resume(struct control *control);

#endif
