/*
 * Looks names up without ever waiting for one: c-ares on the daemon's loop.
 *
 * Each look-up has a c-ares channel of its own, with sockets and time-outs of its own: a name server that
 * does not answer one holds up no other, and cancelling one is destroying its channel. A channel reads
 * resolv.conf, nsswitch.conf and the hosts file when it is made, so a change to those counts from the next
 * look-up on. Making one costs some 20 us, once for each attempt to connect.
 *
 * Addresses that are written out, and paths, need no look-up and take none.
 *
 * Owner: the world (world_uv.c). One thread.
 */
#ifndef TG_DAEMON_RESOLVER_H
#define TG_DAEMON_RESOLVER_H

#include "world.h"

#include <uv.h>

struct lookup;
struct world;

/* Once before the first look-up, and once after the last. Returns 0 or -TG_ENOMEM. */
int resolver_init(void);
void resolver_fini(void);

/*
 * Looks address up. handlers->resolved follows from the loop, never from within. Returns NULL without memory.
 * The look-up has no deadline but those of its queries: the caller cancels it when it has waited enough.
 */
struct lookup *resolver_start(uv_loop_t *uv, struct world *world, const struct address *address,
    const struct sock_handlers *handlers, void *owner);
void resolver_cancel(struct lookup *lookup);

#endif
