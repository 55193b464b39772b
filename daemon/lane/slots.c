#include "slots.h"

#include "shm/error.h"

#include <stdlib.h>

#define PLACES_MIN 8u

/* Places for twice as many pieces: first is the first in use, and all are. */
static int
add_places(struct slots *slots, uint64_t first)
{
	uint32_t places = slots->pieces == NULL ? PLACES_MIN : (slots->mask + 1) * 2;
	struct slot **pieces = calloc(places, sizeof(struct slot *));

	if (pieces == NULL)
		return -TG_ENOMEM;
	for (uint64_t n = first; slots->pieces != NULL && n <= first + slots->mask; n++)
		pieces[n & (places - 1)] = slots->pieces[n & slots->mask];
	free(slots->pieces);
	slots->pieces = pieces;
	slots->mask = places - 1;
	return 0;
}

int
slots_reserve(struct slots *slots, uint64_t head, uint64_t tail)
{
	uint64_t first = head / SLOTS_PIECE, piece = tail / SLOTS_PIECE;

	if (slots->pieces == NULL || piece - first > slots->mask) {
		int rc = add_places(slots, first);
		if (rc != 0)
			return rc;
	}
	struct slot **place = &slots->pieces[piece & slots->mask];
	struct slot **passed = &slots->pieces[(first - 1) & slots->mask];
	if (*place != NULL)
		return 0;
	/* The one that was done with last is still warm. */
	if (*passed != NULL) {
		*place = *passed;
		*passed = NULL;
		return 0;
	}
	*place = aligned_alloc(64, SLOTS_PIECE * sizeof(struct slot));
	if (*place == NULL) {
		if (slots->made == 0)
			slots_fini(slots);
		return -TG_ENOMEM;
	}
	slots->made++;
	return 0;
}

void
slots_fini(struct slots *slots)
{
	for (uint32_t n = 0; slots->pieces != NULL && n <= slots->mask; n++)
		free(slots->pieces[n]);
	free(slots->pieces);
	*slots = (struct slots){ 0 };
}
