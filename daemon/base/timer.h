/*
 * Timers of a shard: a binary heap on the shard's clock.
 *
 * One clock for the real world and the simulated one, at nanoseconds: that is why it is not the
 * event loop's. The loop arms one timer of its own for timers_next().
 *
 * Owner: a struct timer is embedded in its object, which stops it before it goes. Every object
 * reserves its place when it is made, so that setting a timer cannot fail later. One thread.
 */
#ifndef TG_DAEMON_TIMER_H
#define TG_DAEMON_TIMER_H

#include <stdint.h>

#define TIMER_NEVER UINT64_MAX

struct timer {
	uint64_t at_ns;
	uint32_t place; /* in the heap, from 1; 0: not set */
	void (*fire)(struct timer *timer);
};

struct timers {
	struct timer **heap;
	uint32_t count;
	uint32_t capacity;
	uint32_t reserved;
};

/* Room for one more timer for ever. Returns 0 or -TG_ENOMEM. timers_unreserve gives it back. */
int timers_reserve(struct timers *timers);
void timers_unreserve(struct timers *timers);
void timers_fini(struct timers *timers);

/* Sets or moves a timer. */
void timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns);
void timer_stop(struct timers *timers, struct timer *timer);

/* Sets it unless it is set for that time or earlier: the lazy way of pulling a deadline in. */
void timer_set_earlier(struct timers *timers, struct timer *timer, uint64_t at_ns);

/* When the next one is due, or TIMER_NEVER. */
uint64_t timers_next(const struct timers *timers);

/* Fires what is due, each once; what they set anew for `now` waits for the next call. */
void timers_run(struct timers *timers, uint64_t now_ns);

#endif
