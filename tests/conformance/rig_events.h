/*
 * Records a driver's events for the rig: lines of text, digests of bytes, and the first broken rule. For rig.c
 * alone; other files read the rig.
 */
#ifndef TG_TESTS_CONFORMANCE_RIG_EVENTS_H
#define TG_TESTS_CONFORMANCE_RIG_EVENTS_H

#include "rig.h"

#include <stdarg.h>
#include <stdlib.h>

/* Without memory there is nothing to test. */
static inline void *
must(void *memory)
{
	if (memory == NULL)
		abort();
	return memory;
}

/* The driver has broken a rule; the first that it has broken stays in rig->broken. */
void rig_broken(struct rig *rig, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Another line of what was said. */
void rig_say(struct rig *rig, const char *format, ...) __attribute__((format(printf, 2, 3)));

void rig_digest_add(struct rig_digest *digest, const void *bytes, size_t len);

/* The session's events come here; owner is the rig. */
void rig_on_event(void *owner, const struct driver_event *event);

#endif
