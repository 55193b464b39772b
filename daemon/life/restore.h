/*
 * Lanes that another daemon served and that no client has asked for: those handed over in an upgrade, and those
 * that the service manager has kept.
 *
 * Their records are walked beside the loop, a few milliseconds' worth at a time, and each lane begins to work
 * as soon as it is rebuilt. The order is that of fair queueing by user: a lane's turn comes by the bytes waiting in
 * it and in its user's lanes before it, so that one user's full lanes keep that user's own waiting. From
 * the beginning all of them count, in the shard's list of lanes being made. A client whose lanes are on
 * their way is not read.
 *
 * Owner: the loop, until the last one is done. One thread, but for lane_map_in and lane_rebuild.
 */
#ifndef TG_DAEMON_RESTORE_H
#define TG_DAEMON_RESTORE_H

#include "daemon/lane/lane.h"

struct restore;

struct restored {
	struct lane *lane;
	struct lane_header header;
	struct lane_owner owner;
	int kept;   /* the service manager has it */
	int orphan; /* its client had gone already */
	uint64_t order;
	int rc; /* 0, or why it could not be rebuilt: the lane is to be unmade, its descriptors are the callee's */
	void (*done)(struct restored *restored);
};

/* Returns NULL without memory. */
struct restore *restore_new(struct shard *shard);

/* Adds a lane: it counts from now on, its client, if any, is not read. Returns 0 or -TG_ENOMEM: nothing is taken. */
int restore_add(struct restore *restore, const struct restored *what, struct pool *pool, struct client *client,
    const struct lane_memory *memory, int unready);

/* Begins, and frees itself in the end. */
void restore_begin(struct restore *restore);

#endif
