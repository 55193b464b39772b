/* A lane's part in finding the message over which a broker closes its connections (daemon/flow/blame.h). */
#ifndef TG_DAEMON_LANE_BLAME_H
#define TG_DAEMON_LANE_BLAME_H

#include <stdint.h>

enum blame_state {
	BLAME_NONE,    /* rides the ordinary links */
	BLAME_SUSPECT, /* apart, until its marked messages are answered */
	BLAME_SINGLE,  /* apart, one message at a time */
};

/* A lane's part. Zeroed: BLAME_NONE. */
struct lane_blame {
	uint8_t state;
	uint8_t verdicts; /* against this lane */
	uint8_t
	    accused; /* held the apart link when that closed; the verdict is due when the link is READY again */
	uint8_t closes;   /* on_failure "report": closes of links that it had sent on, since closes_ns */
	uint32_t answers; /* in a row, since the last verdict */
	uint32_t needed;  /* of them, to return to the ordinary links */
	uint64_t until;   /* it stays apart while a slot below this is unanswered */
	uint64_t alone;   /* accused: the one slot that was sent then; UINT64_MAX: there were several */
	uint64_t closes_ns;
	uint64_t pause_ns;
	uint64_t resume_ns;
};

#endif
