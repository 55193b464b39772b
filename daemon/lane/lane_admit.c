/* Records enter the table of slots, and leave it without being sent: cancelled, or past their deadlines. */
#include "lane.h"

#include "daemon/base/inject.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"

#define PIECES_KEEP 2u /* of slots; a sleeping lane keeps no more */

/* Gives a sleeping lane's table back; its records are all released. */
void
lane_slots_shrink(struct lane *lane)
{
	if (lane->slot_head == lane->slot_tail && lane->slots.made > PIECES_KEEP)
		slots_fini(&lane->slots);
}

int
lane_admit(struct lane *lane, uint64_t now_ns, struct slot **out)
{
	struct record record;
	int rc;

	if ((lane->slot_tail % SLOTS_PIECE == 0 || lane->slots.pieces == NULL) &&
	    (rc = slots_reserve(&lane->slots, lane->slot_head, lane->slot_tail)) != 0)
		return rc;
	if (sq_peek(&lane->sq, &record) != 0 || record.size > lane_max_record(&lane->map.geo))
		return -TG_EBROKEN;
	struct slot *slot = lane_slot(lane, lane->slot_tail);
	uint32_t timeout_ms =
	    record.timeout_ms != 0 ? record.timeout_ms : lane->pool->config->message_timeout_ms;
	/* There is no use in trying for longer than the message is of use. */
	if (record.expiry_ms != 0 && record.expiry_ms < timeout_ms)
		timeout_ms = record.expiry_ms;
	/* The producer's clock is only believed as far as it is not ahead of ours. */
	uint64_t published = record.published_ns < now_ns ? record.published_ns : now_ns;
	*slot = (struct slot){
		.position = lane->sq.cursor,
		.tag = record.tag,
		.published_ns = published,
		.deadline_ns = published + timeout_ms * NS_PER_MS,
		.size = record.size,
		.body_len = record.body_len,
		.topic_len = record.topic_len,
		.key_len = record.key_len,
		.headers_len = record.headers_len,
		.flags = record.flags,
		.state = SLOT_PENDING,
	};
	if (slot->deadline_ns < lane->earliest_ns)
		lane->earliest_ns = slot->deadline_ns;
	lane->ordered =
	    lane->slot_head == lane->slot_tail || (lane->ordered && slot->deadline_ns >= lane->latest_ns);
	if (lane->slot_head == lane->slot_tail || slot->deadline_ns > lane->latest_ns)
		lane->latest_ns = slot->deadline_ns;
	lane->sq.cursor += record.size;
	lane->slot_tail++;
	lane->unfinished++;
	lane->count.records++;
	lane->count.bytes += record.size;
	*out = slot;
	INJECT(admitted);
	return 0;
}

static int
admit_next(struct lane *lane)
{
	struct slot *slot;
	int rc = lane_admit(lane, lane->shard->now_ns, &slot);

	if (rc != 0)
		return rc;
	lane->pool->count.accepted++;
	lane->pool->count.bytes += slot->size;
	return 0;
}

int
lane_admit_next(struct lane *lane)
{
	uint64_t floor = lane->floor == UINT64_MAX ? lane->cq.tail : lane->floor;

	/*
	 * An orphan's completion ring may stay full for ever: its records go on without it. But as long as
	 * its client may come back, or a successor may take it, the entries must tell what is finished (I5).
	 */
	if (lane->client == NULL)
		return lane->cq.tail - floor + lane->unfinished >= lane->map.geo.cq_entries / 2
			   ? 1
			   : admit_next(lane);
	if (!cq_may_admit(&lane->cq, floor, lane->unfinished)) {
		if (cq_producer_refresh(&lane->cq) < 0)
			return -TG_EBROKEN;
		if (!cq_may_admit(&lane->cq, floor, lane->unfinished))
			return 1;
	}
	return admit_next(lane);
}

/* ---- not sent ---- */

int
lane_finish_unsent(struct lane *lane, struct slot *slot)
{
	if (!slot->maybe_sent && sq_is_cancelled(&lane->sq, slot->position)) {
		lane_finish(lane, slot, TG_CANCELLED, 0, 0);
		return 1;
	}
	if (lane->shard->now_ns >= lane_deadline(lane, slot)) {
		lane_give_up(lane, slot,
		    slot->maybe_sent ? "sent, and not answered before its deadline"
				     : "not sent before its deadline");
		return 1;
	}
	return 0;
}

void
lane_expire(struct lane *lane)
{
	uint64_t now = lane->shard->now_ns;

	if (sq_consumer_refresh(&lane->sq) < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return;
	}
	for (uint32_t n = 0; n < LANE_SWEEP_SLOTS && lane->sq.cursor != lane->sq.tail_seen; n++) {
		int rc = lane_admit_next(lane);
		if (rc == 1 || rc == -TG_ENOMEM)
			break;
		if (rc != 0) {
			lane_quarantine(lane, "what lies at the cursor is not a record");
			return;
		}
	}
	if (!lane->sweeping) {
		if (now < lane->earliest_ns && now < lane->cap_ns)
			return;
		lane->sweeping = 1;
		lane->sweep_at = lane->slot_next;
		lane->earliest_ns = UINT64_MAX;
	}
	if (lane->sweep_at < lane->slot_next)
		lane->sweep_at = lane->slot_next;
	for (uint32_t n = 0; n < LANE_SWEEP_SLOTS && lane->sweep_at != lane->slot_tail; n++, lane->sweep_at++) {
		struct slot *slot = lane_slot(lane, lane->sweep_at);
		if (slot->state != SLOT_PENDING || lane_finish_unsent(lane, slot))
			continue;
		if (slot->deadline_ns < lane->earliest_ns)
			lane->earliest_ns = slot->deadline_ns;
		if (lane->ordered) {
			lane->sweeping = 0; /* nor has what is behind it expired */
			return;
		}
	}
	lane->sweeping = lane->sweep_at != lane->slot_tail;
}
