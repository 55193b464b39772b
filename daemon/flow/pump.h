/* From a lane's slots onto links: the choice of a link for each record, and framing. */
#ifndef TG_DAEMON_PUMP_H
#define TG_DAEMON_PUMP_H

#include <stdint.h>

struct lane;

enum lane_pumped {
	LANE_PUMP_IDLE,  /* nothing to frame now */
	LANE_PUMP_MORE,  /* its share of this turn is used up */
	LANE_PUMP_MOVED, /* it waits elsewhere now, or is gone */
};

/* Frames up to `budget` bytes of records onto links. The lane's turn on an apart link ends with it (blame.h). */
enum lane_pumped lane_pump(struct lane *lane, int32_t budget);

#endif
