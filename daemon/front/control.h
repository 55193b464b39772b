/*
 * How much of the loop's time clients may have for what they ask for.
 *
 * Connecting, opening and closing a lane cost the loop tens of microseconds each, and the client that asks for
 * them next to nothing: one client could keep the loop from all other clients' messages. So the time such work
 * takes is measured, and while there are messages a token bucket limits it to an eighth of all time
 * (allowance.h). Time used while there were no messages is charged, too, because a client that waits for each
 * of its messages leaves such moments. Beyond the limit the client that asks is held (the daemon does not read
 * its socket), and held clients take turns. The large part, memory, is not done on the loop at all: see
 * attach.h.
 *
 * While the shard is paused (an upgrade) all clients are held; the successor answers requests unread by then.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_CONTROL_H
#define TG_DAEMON_CONTROL_H

#include "daemon/base/allowance.h"
#include "daemon/base/timer.h"

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
	struct held_list held;                     /* by held_entry */
	void (*serve)(struct client *client);      /* a held client goes on */
	void (*accept)(struct listener *listener); /* and the listener */
	struct listener *listener;                 /* the control socket's; NULL: none */
	int listener_held;
	int listener_next; /* it and the clients take turns */
};

/* Returns 0 or -TG_ENOMEM. */
int control_init(struct control *control, struct shard *shard, void (*serve)(struct client *client));
void control_fini(struct control *control);

/* Whether there is time for a piece of work now. */
int control_may(const struct control *control);

/* Around each piece of work: control_end(control, control_begin(control)). */
uint64_t control_begin(const struct control *control);
void control_end(struct control *control, uint64_t began_ns);

/* Charges work that a thread did for a client, too, with the time that it took: it takes a processor. */
void control_charge(struct control *control, uint64_t took_ns);

/* A client whose socket is not to be read for now; control_gone: it ends. */
void control_hold(struct control *control, struct client *client);
void control_gone(struct control *control, struct client *client);

/* The next client that connects has to wait. */
void control_hold_listener(struct control *control);

/* At the end of each turn: if there are no more messages, held clients go on at once. */
void control_look(struct control *control);

/* There may be time for the held ones: the shard is not paused any more. */
void control_resume(struct control *control);

#endif
