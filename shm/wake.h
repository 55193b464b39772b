/*
 * A side that goes to sleep says so, and the other side rings when it has something for it. Pairs C (the daemon
 * sleeps on a lane) and F (the client sleeps on its completions) of ring.h.
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
 * Measured on Linux 6.18: that barrier misses a thread now and then. The kernel keeps on each
 * processor whether the address space there is registered, and brings it up to date when another
 * address space is switched to; a processor that idled since before the registration, with ours still
 * loaded, is passed over until then. In a litmus test of 300,000 rounds up to 49 stores were missed, none
 * once another process had run on that processor. A missed store is one that is still on its way
 * out of its processor: so a sleeper that relies on membarrier looks a second time, WAKE_SECOND_LOOK_MS
 * after it fell asleep, before it sleeps for good.
 *
 * The eventfd is read empty between the sleep and wake_rise, never between wake_doze and the sleep:
 * there it would eat the one ring that this sleep gets. One doorbell serves many words; the daemon that read it
 * looks for work at each word that dozes, and begins a new sleep where it finds none: a publisher that was
 * held up between its store and its look at the word rings for work that is done, in a sleep that has
 * just begun, and would not ring for that value again.
 *
 * A ringer's memory of its rings dies with it. One that takes over from another (a new daemon that is
 * handed a lane) starts with rung = 0 and rings once without asking, because the one before may
 * have died between its store and its ring.
 *
 * tests/model/wake.pml is this, checked; doorbell.pml has the several words, the late rings and the second look.
 */
#ifndef TG_SHM_WAKE_H
#define TG_SHM_WAKE_H

#include "order.h"

/* Milliseconds: far more than a processor keeps a store to itself. */
#define WAKE_SECOND_LOOK_MS 1u

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

/*
 * Takes the word over, awake, wherever it stands: a ringer may remember an odd value of the
 * sleeper before us, and would not ring for the same value again.
 */
static inline void
wake_sleeper_init(struct wake_sleeper *s, uint32_t *word)
{
	s->word = word;
	s->count = (order_load_relaxed_32(word) | 1u) + 1u;
	order_store_relaxed_32(word, s->count);
}

static inline void
wake_ringer_init(struct wake_ringer *r, const uint32_t *word)
{
	r->word = word;
	r->rung = 0;
}

/*
 * Says "asleep". The caller then fences (order_fence_full, or wake_barrier for both sides) and
 * looks for work once more.
 */
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

/* The sleeper's barrier for both sides, but for the second look (above). Returns 0, or -TG_ESYSTEM where the kernel has none. */
int wake_barrier(void);

#endif
