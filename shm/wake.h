/*
 * Who sleeps says so, and who has something for him rings. Pairs C (the daemon sleeps on a lane)
 * and F (the client sleeps on its completions) of ring.h.
 *
 * The word is a count of goings to sleep and wakings: odd means asleep. A ringer remembers the
 * odd value it last rang for, so one sleep is rung once, however many publishes it takes the
 * sleeper to get up.
 *
 *        publisher                         sleeper
 *        store work                        word = odd
 *        FENCE                             FENCE
 *        odd word, not yet rung? ring      work there? word = even, go on : sleep
 *
 * Both fences can be raised by the sleeper alone with membarrier(GLOBAL_EXPEDITED), which runs a
 * full barrier on every running thread of every registered process: 170 ns once a sleep, measured,
 * instead of 6 to 48 ns on every publish.
 *
 * tests/model/wake.pml is this, checked.
 */
#ifndef TG_SHM_WAKE_H
#define TG_SHM_WAKE_H

#include "order.h"

/* The sleeper's private side of a word it owns. */
struct wake_sleeper {
	uint32_t *word;
	uint32_t count;
};

/* The ringer's private side of the peer's word. */
struct wake_ringer {
	const uint32_t *word;
	uint32_t rung;
};

/* Says "asleep". The caller then fences (wake_fence or wake_barrier) and looks for work once more. */
static inline void
wake_doze(struct wake_sleeper *s)
{
	s->count |= 1u;
	order_store_relaxed_32(s->word, s->count);
}

/* Says "awake", whether it slept or not. */
static inline void
wake_rise(struct wake_sleeper *s)
{
	s->count = (s->count | 1u) + 1u;
	order_store_relaxed_32(s->word, s->count);
}

static inline int
wake_is_dozing(const struct wake_sleeper *s)
{
	return (int)(s->count & 1u);
}

/* After the work is stored and the fence is done: returns 1 if the caller has to ring now. */
static inline int
wake_must_ring(struct wake_ringer *r)
{
	uint32_t word = order_load_relaxed_32(r->word);

	if ((word & 1u) == 0 || word == r->rung)
		return 0;
	r->rung = word;
	return 1;
}

/* Registers the calling process for the daemon's membarrier. Returns 0 or -TG_ESYSTEM. */
int wake_register(void);

/* The sleeper's barrier for both sides. Returns 0, or -TG_ESYSTEM where the kernel has none. */
int wake_barrier(void);

#endif
