/*
 * The invariants of links and lanes, checked: for tests, the simulated world and sanitizer builds, at the end of each
 * turn (struct shard, `checking`).
 *
 * Each function returns NULL, or which one is broken in static words. Objects that hold more than CHECK_MOST entries
 * are not counted through.
 */
#ifndef TG_DAEMON_CHECK_H
#define TG_DAEMON_CHECK_H

#define CHECK_MOST 4096u

struct lane;
struct link;
struct pool;
struct shard;

/* L3, L6, and that the sums match the entries (link.h). */
const char *link_check(struct link *link);

/* I1, I4, and that slots, counts and places match (ring.h, lane.h). */
const char *lane_check(const struct lane *lane);

/* L4: lanes' references match the entries of the pool's links that name them. */
const char *pool_check(struct pool *pool);

/* All of a shard's. Logs the first that is broken and aborts. */
void shard_check(struct shard *shard);

#endif
