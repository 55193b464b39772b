/*
 * Opening lanes, and taking them back after another daemon's death.
 *
 * A large lane takes tens of milliseconds: its pages are allocated and mapped, or its records walked. That is done
 * beside the loop (world.h), as is all of a lane that comes back: one lane at a time for all clients and one request
 * at a time for each, in order. Until it is answered the client's socket is not read. Everything is checked and counted when the
 * request comes, so that limits hold whatever is on its way.
 *
 * A client that hangs up meanwhile has its lane made to the end: a new one goes at once, one that was
 * handed back is an orphan, whose records are delivered. An upgrade waits for what is on its way.
 *
 * Owner: the client. The lane on its way is in the shard's `making`. One thread but for lane_map_in and
 * lane_rebuild.
 */
#ifndef TG_DAEMON_ATTACH_H
#define TG_DAEMON_ATTACH_H

#include "shm/frame.h"

struct attach;
struct client;

/*
 * Serve a request. Return 0, the answer sent or (client->attach) to come, or a negative TG_E that ends the client.
 * fds: the descriptors that came along (FRAME_FDS); -1 when they were taken.
 */
int attach_open(struct client *client, const struct frame *request, int *fds);
int attach_return(struct client *client, const struct frame *request, int *fds);

/* Nobody waits for its answer any more. */
void attach_abandon(struct attach *attach);

#endif
