/*
 * What waits in a lane, counted for an admin.
 *
 * Records that were admitted are known. Those still in the ring are known in bytes alone; they are
 * counted by walking over their headers with the checks of sq_peek, on a copy of the lane's cursor,
 * as far as a budget goes. Nothing of the lane changes: one that breaks the rules is quarantined
 * when it is next drained, not because somebody looked.
 */
#ifndef TG_DAEMON_CENSUS_H
#define TG_DAEMON_CENSUS_H

#include "daemon/lane/lane.h"

struct census {
	uint64_t waiting; /* records committed, neither answered nor in flight */
	int more;         /* there are more: the budget ended before the ring did */
	int broken;       /* what lies in the ring is not what it must be */
	uint64_t in_flight;
	uint64_t bytes;     /* from the oldest unreleased record to the tail */
	uint64_t unread;    /* completions the client has not taken */
	uint64_t oldest_ns; /* when the oldest unanswered record was published; 0: there is none */
	struct link *link;  /* where the oldest record in flight is; NULL: none is */
};

#define CENSUS_BUDGET 8192u /* headers: each may cost a cache miss */

/* *budget is used up by records that are walked over. */
void census_take(struct census *census, const struct lane *lane, uint32_t *budget);

#endif
