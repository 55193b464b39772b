/*
 * Whether a lane that has run empty is watched for idle.spin_us before it sleeps.
 *
 * Watching pays when the next record comes while the loop still looks: a publisher in a closed loop. It costs
 * up to spin_us of CPU when the record comes later: a publisher at a steady rate. Each lane remembers how its
 * watches ended, as haltpoll does for a processor: a watch that caught a record earns a credit, one in vain uses
 * one up, and a lane without credits is watched only once in SPIN_RETRY_EVERY sleeps, to find out whether its
 * publisher has changed its ways.
 *
 * It decides when a lane sleeps, not how: the wake-up protocol (shm/wake.h) is the same either way. Owner: the
 * lane's shard.
 */
#ifndef TG_DAEMON_SPIN_H
#define TG_DAEMON_SPIN_H

#include <stdint.h>

#define SPIN_CREDITS 4u
#define SPIN_RETRY_EVERY 64u

/* Zeroed: a lane that has not run empty yet. */
struct spin {
	uint8_t spent;    /* of SPIN_CREDITS */
	uint8_t skipped;  /* sleeps since the last watch without credits */
	uint8_t empty;    /* the lane has run empty and does not sleep yet */
	uint8_t watching; /* while empty: it is watched */
};

/* The lane is empty. Returns whether it is watched before it sleeps; the same until it has slept or moved. */
static inline int
spin_watches(struct spin *spin)
{
	if (!spin->empty) {
		spin->empty = 1;
		spin->watching = spin->spent < SPIN_CREDITS || ++spin->skipped >= SPIN_RETRY_EVERY;
		if (spin->watching)
			spin->skipped = 0;
	}
	return spin->watching;
}

/* The lane had a record, or was held up by other than its publisher. */
static inline void
spin_moved(struct spin *spin)
{
	if (spin->empty && spin->watching && spin->spent > 0)
		spin->spent--;
	spin->empty = 0;
}

/* The lane is put to sleep. */
static inline void
spin_slept(struct spin *spin)
{
	if (spin->watching && spin->spent < SPIN_CREDITS)
		spin->spent++;
	spin->empty = spin->watching = 0;
}

#endif
