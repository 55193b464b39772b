/*
 * A token bucket for the loop's time: it limits work that costs the loop more than the client that asks for it.
 * Time that was not used adds up to a burst. Time used beyond that is owed, up to a limit: time that an idle
 * daemon gave delayed no other client, and would take minutes to pay back.
 *
 * Everything is counted in the time it takes to earn: work that took 1 us of an eighth of the time counts 8 us.
 *
 * Owner: the object that embeds it; zeroed is a full burst, now_ns none. One thread.
 */
#ifndef TG_DAEMON_ALLOWANCE_H
#define TG_DAEMON_ALLOWANCE_H

#include "world.h"

#include <stdint.h>

#define ALLOWANCE_DEBT_NS (100 * NS_PER_MS)

struct allowance {
	uint64_t free_ns; /* there is time from here on; at most a burst ago */
};

/* Work that took took_ns and ended at now_ns may be had one part in `share` of the time, and burst_ns at once. */
static inline void
allowance_charge(struct allowance *a, uint64_t now_ns, uint64_t took_ns, uint64_t share, uint64_t burst_ns)
{
	uint64_t began_ns = now_ns - took_ns;

	if (a->free_ns + burst_ns < began_ns)
		a->free_ns = began_ns - burst_ns;
	a->free_ns += took_ns * share;
	if (a->free_ns > now_ns + ALLOWANCE_DEBT_NS)
		a->free_ns = now_ns + ALLOWANCE_DEBT_NS;
}

#endif
