/*
 * Numbers that were set aside: a small map from a message's number to a word.
 *
 * Links and drivers keep what is unanswered in rings, from the oldest on. A message that its broker does not
 * answer while it answers thousands of later ones would hold up such a ring; it is moved here, and the ring
 * goes on. Empty, it takes no memory.
 *
 * One thread.
 */
#ifndef TG_DAEMON_ASIDE_H
#define TG_DAEMON_ASIDE_H

#include <stddef.h>
#include <stdint.h>

/* Most numbers in one map: as many as a window has messages, twice. */
#define ASIDE_MAX 4096u

struct ck_ht;

struct aside {
	struct ck_ht *table; /* NULL: none yet */
	uint32_t count;
};

void aside_fini(struct aside *aside);

/* Puts a number that is not in it. value: not 0. Returns 0, -TG_ELIMIT (ASIDE_MAX) or -TG_ENOMEM. */
int aside_put(struct aside *aside, uint64_t number, uintptr_t value);

/* The number's value, or 0: it is not here. take: and removes it. */
uintptr_t aside_get(const struct aside *aside, uint64_t number);
uintptr_t aside_take(struct aside *aside, uint64_t number);

/* Any one of them: its value, with *number, or 0: there is none. */
uintptr_t aside_any(const struct aside *aside, uint64_t *number);

/* Calls for each of them, in no order; the map must not change meanwhile. */
void
aside_each(const struct aside *aside, void (*call)(void *arg, uint64_t number, uintptr_t value), void *arg);

#endif
