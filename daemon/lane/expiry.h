/*
 * The deadlines of records in lanes that wait: for a link, for a pool, for room on a link.
 *
 * While any lane waits, a tick every EXPIRY_TICK_MS looks at some. Users take turns, and so do a user's lanes, one
 * look at a time, until each user has had EXPIRY_LOOKS or the tick has taken EXPIRY_TICK_NS. So the tick takes a
 * twentieth of the loop's time at most, whatever deadlines a client gives its records; and who has thousands of lanes
 * with thousands of deadlines each learns of them late, but no other user does.
 *
 * A look costs a cache line where nothing has come and nothing is due, since a lane keeps its earliest deadline. There
 * is no heap of lanes by deadline: a lane that waits has to be looked at for new records anyway, whose deadlines only
 * their client knows before that.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_EXPIRY_H
#define TG_DAEMON_EXPIRY_H

#include "account.h"
#include "daemon/base/timer.h"

#include <stdint.h>

#define EXPIRY_TICK_MS 20u                /* how late a deadline may be noticed, of a user with few lanes */
#define EXPIRY_TICK_NS (1000 * NS_PER_US) /* of it */
#define EXPIRY_LOOKS 1024u                /* of one user, a tick */

struct lane;
struct shard;

struct expiry {
	struct shard *shard;
	struct timer tick;
	void (*look)(
	    struct lane *lane); /* completes what has passed its deadline; it may take the lane off the lists */
	TAILQ_HEAD(, account) accounts; /* that have waiting lanes, by waiting_entry */
};

/* Returns 0 or -TG_ENOMEM. */
int expiry_init(struct expiry *expiry, struct shard *shard, void (*look)(struct lane *lane));

/* A lane begins to wait, or does not any more; or its user changes while it does. */
void expiry_add(struct expiry *expiry, struct lane *lane);
void expiry_remove(struct expiry *expiry, struct lane *lane);

#endif
