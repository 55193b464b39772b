#include "census.h"

#include "daemon/flow/shard.h"

#include <string.h>

#define SLOTS_LOOKED_AT 4096u /* for the oldest: finished ones lie before it only until the turn ends */

static void
note_oldest(struct census *census, const struct lane *lane, uint64_t published_ns)
{
	uint64_t now = lane->shard->now_ns;

	/* The producer's clock is only believed as far as it is not ahead of ours. */
	if (census->oldest_ns == 0)
		census->oldest_ns = published_ns < now ? published_ns : now;
	if (census->oldest_ns == 0)
		census->oldest_ns = 1;
}

static void
look_at_slots(struct census *census, const struct lane *lane)
{
	uint64_t end = lane->slot_tail;

	if (end - lane->slot_head > SLOTS_LOOKED_AT)
		end = lane->slot_head + SLOTS_LOOKED_AT;
	for (uint64_t n = lane->slot_head; n != end; n++) {
		const struct slot *slot = lane_slot(lane, n);
		if (slot->state == SLOT_DONE)
			continue;
		note_oldest(census, lane, slot->published_ns);
		if (lane->inflight == 0)
			return;
		if (slot->state == SLOT_INFLIGHT) {
			census->link = slot->link;
			return;
		}
	}
}

/* What is committed and not admitted. */
static void
walk_ring(struct census *census, const struct lane *lane, uint32_t *budget)
{
	struct sq_consumer look = lane->sq;
	struct record record;

	if (sq_consumer_refresh(&look) < 0) {
		census->broken = 1;
		return;
	}
	census->bytes = look.tail_seen - look.head;
	while (look.cursor != look.tail_seen) {
		if (*budget == 0) {
			census->more = 1;
			return;
		}
		--*budget;
		if (sq_peek(&look, &record) != 0) {
			census->broken = 1;
			return;
		}
		note_oldest(census, lane, record.published_ns);
		census->waiting++;
		look.cursor += record.size;
	}
}

void
census_take(struct census *census, const struct lane *lane, uint32_t *budget)
{
	struct cq_producer look = lane->cq;

	memset(census, 0, sizeof(*census));
	census->waiting = lane->unfinished - lane->inflight;
	census->in_flight = lane->inflight;
	if (lane->unfinished > 0)
		look_at_slots(census, lane);
	walk_ring(census, lane, budget);
	if (lane->client == NULL)
		return; /* nobody is left to read */
	if (cq_producer_refresh(&look) < 0)
		census->broken = 1;
	else
		census->unread = look.tail - look.head_seen;
}
