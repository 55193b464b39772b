#include "check.h"

#include "daemon/base/log.h"
#include "daemon/lane/lane.h"
#include "daemon/link/broker.h"
#include "pool.h"
#include "shard.h"

#include <stdlib.h>

/* ---- links ---- */

struct sums {
	uint32_t entries, late;
	uint64_t bytes, late_bytes, live; /* live: of lanes that are not gone */
};

static void
add_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct sums *sums = arg;

	sums->entries++;
	sums->bytes += entry->bytes;
	sums->live += entry->lane->place != LANE_GONE;
	if (entry->late) {
		sums->late++;
		sums->late_bytes += entry->bytes;
	}
}

const char *
link_check(struct link *link)
{
	const struct config_pool *config = link->broker->peers->config;
	struct sums sums = { .entries = 0 };

	if (link->late > link->outstanding)
		return "more messages are late than outstanding";
	if (link_waited_for(link) > config->window_messages)
		return "L3: more messages count against the window than the pool's window has";
	if (link->window == 0 || link->window > link->window_wide ||
	    link->window_wide > config->window_messages)
		return "the window is out of its range";
	if (link->careful > 0 && link->window != 1)
		return "L6: a careful link has a window of more than one message";
	if (link->conn.sock == NULL && link->outstanding > 0)
		return "messages are in flight without a connection";
	if (link->state == LINK_READY && link->conn.session == NULL)
		return "a READY link has no session";
	if (link->outstanding > CHECK_MOST)
		return NULL;
	link_each(link, add_entry, &sums);
	if (sums.entries != link->outstanding || sums.late != link->late)
		return "its counts of messages in flight do not match its entries";
	if (sums.bytes != link->outstanding_bytes || sums.late_bytes != link->late_bytes)
		return "its bytes in flight do not match its entries";
	return NULL;
}

/* ---- lanes ---- */

static const char *
check_slots(const struct lane *lane)
{
	uint64_t position = lane->sq.head;
	uint32_t unfinished = 0, inflight = 0, late = 0;

	for (uint64_t n = lane->slot_head; n != lane->slot_tail; n++) {
		const struct slot *slot = lane_slot(lane, n);
		if ((int64_t)(slot->position - position) < 0)
			return "its slots are not in the order of the ring";
		position = slot->position + slot->size;
		unfinished += slot->state != SLOT_DONE;
		inflight += slot->state == SLOT_INFLIGHT;
		late += slot->late;
		if (slot->state == SLOT_PENDING && n < lane->slot_next)
			return "a record that is to be sent lies behind slot_next";
		if ((slot->state == SLOT_INFLIGHT) != (slot->link != NULL))
			return "a slot names a link without being in flight there, or is in flight nowhere";
	}
	if (position != lane->sq.cursor && lane->slot_head != lane->slot_tail)
		return "its last slot does not end at the cursor";
	if (unfinished != lane->unfinished || inflight != lane->inflight || late != lane->late)
		return "its counts do not match its slots";
	return NULL;
}

const char *
lane_check(const struct lane *lane)
{
	uint64_t slots = lane->slot_tail - lane->slot_head;

	if (lane->slot_next - lane->slot_head > slots)
		return "slot_next is out of its range";
	if (lane->sq.cursor - lane->sq.head > lane->map.geo.sq_bytes ||
	    lane->sq.tail_seen - lane->sq.head > lane->map.geo.sq_bytes)
		return "I1: its cursors are further apart than its ring is long";
	if (lane->cq.tail - lane->cq.head_seen > lane->map.geo.cq_entries)
		return "I1: more completions than its ring has room for";
	if (lane->unfinished > lane->map.geo.cq_entries)
		return "I4: more unfinished records than completions have room";
	if (lane->inflight > lane->unfinished || lane->inflight > lane->refs)
		return "more records in flight than unfinished, or than links refer to";
	if (lane->place == LANE_WAIT_LINK && lane->link == NULL)
		return "it waits for a link and is bound to none";
	if (lane->blame.state == BLAME_NONE && lane->link != NULL && lane->link->apart &&
	    lane->link->holder == lane)
		return "it holds an apart link without being set apart";
	return slots <= CHECK_MOST ? check_slots(lane) : NULL;
}

/* ---- all ---- */

const char *
pool_check(struct pool *pool)
{
	struct sums sums = { .entries = 0 };
	uint64_t refs = 0;
	struct lane *lane;
	struct link *link;

	TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
		refs += lane->refs;
	if (refs > CHECK_MOST)
		return NULL;
	for (uint32_t b = 0; b < pool->peers.count; b++)
		for (uint32_t l = 0; (link = broker_link(&pool->peers.list[b], l)) != NULL; l++)
			link_each(link, add_entry, &sums);
	return refs == sums.live ? NULL : "L4: its lanes' references do not match the entries of its links";
}

static void
require(const char *what, uint64_t number, const char *broken)
{
	if (broken == NULL)
		return;
	log_event(LOG_LEVEL_ERROR, "invariant_broken", "object=%s number=%llu cause=\"%s\"", what,
	    (unsigned long long)number, broken);
	abort(); /* ours: nothing from outside can break one */
}

void
shard_check(struct shard *shard)
{
	struct lane *lane;
	struct link *link;

	for (uint32_t p = 0; p < shard->pool_count; p++) {
		struct pool *pool = &shard->pools[p];
		for (uint32_t b = 0; b < pool->peers.count; b++)
			for (uint32_t l = 0; (link = broker_link(&pool->peers.list[b], l)) != NULL; l++)
				require("link", link->id, link_check(link));
		TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
			require("lane", lane->id, lane_check(lane));
		require("pool", pool->index, pool_check(pool));
	}
}
