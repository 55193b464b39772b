/*
 * A share of the loop's time for work that costs the loop more than who asks for it: what he has not had for
 * a while he may have at once, up to a burst; what he had too much is owed, up to a limit, since what an idle
 * daemon gave hurt nobody and would take minutes to pay back.
 *
 * Owner: whoever embeds it; zeroed is a full burst. One thread.
 */
#ifndef TG_DAEMON_ALLOWANCE_H
#define TG_DAEMON_ALLOWANCE_H

#include "world.h"

#include <stdint.h>

#define ALLOWANCE_BURST_NS (4 * NS_PER_MS)
#define ALLOWANCE_DEBT_NS (100 * NS_PER_MS)

struct allowance {
	uint64_t free_ns; /* there is time from here on; at most ALLOWANCE_BURST_NS ago */
};

/* Work that took took_ns and ended at now_ns may be had one part in `share` of the time. */
static inline void
allowance_charge(struct allowance *a, uint64_t now_ns, uint64_t took_ns, uint64_t share)
{
	uint64_t began_ns = now_ns - took_ns;

	if (a->free_ns + ALLOWANCE_BURST_NS < began_ns)
		a->free_ns = began_ns - ALLOWANCE_BURST_NS;
	a->free_ns += took_ns * share;
	if (a->free_ns > now_ns + ALLOWANCE_DEBT_NS)
		a->free_ns = now_ns + ALLOWANCE_DEBT_NS;
}

#endif
