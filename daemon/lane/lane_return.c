/*
 * A lane that comes back after a daemon's death.
 *
 * Everything is in its memory: sq_head, the records up to sq_tail, the completions below cq_tail,
 * and sq_sent. A record at or above sq_head is finished exactly when one of the entries that can
 * still be believed names it (I5). One that is not finished and starts below sq_sent may have been
 * sent (I6): it is sent again or reported, as the pool says, and its completion tells. Above
 * sq_sent nothing was ever sent.
 *
 * The client could write all of this, so nothing of it is trusted: words are loaded once and
 * checked by the same functions as always, records are validated as they are walked, and an entry
 * that names no record's start makes the lane refused.
 */
#include "lane.h"

#include "daemon/base/inject.h"
#include "daemon/base/log.h"

#include <stdlib.h>

struct finished {
	uint64_t position;
	uint64_t count; /* of its entry */
};

static int
by_position(const void *a, const void *b)
{
	const struct finished *x = a, *y = b;

	return x->position < y->position ? -1 : x->position > y->position;
}

/* The finished records at or above sq_head, in order. Returns how many, or -TG_ENOMEM. */
static int64_t
collect_finished(const struct lane *lane, struct finished **out)
{
	uint64_t from = cq_recover_from(&lane->cq, lane->cq.tail);
	uint64_t in_ring = lane->sq.tail_seen - lane->sq.head;
	struct finished *list = malloc((lane->cq.tail - from + 1) * sizeof(*list));
	int64_t n = 0;

	if (list == NULL)
		return -TG_ENOMEM;
	for (uint64_t count = from; count != lane->cq.tail; count++) {
		uint64_t position = lane->cq.entries[count & lane->cq.mask].position;
		/* Relative to sq_head, so that order holds where positions wrap. */
		if (position - lane->sq.head < in_ring)
			list[n++] = (struct finished){ .position = position - lane->sq.head, .count = count };
	}
	qsort(list, (size_t)n, sizeof(*list), by_position);
	*out = list;
	return n;
}

/*
 * Walks the records the old daemon knew: those that are finished, and those that may have been
 * sent. What lies behind them is admitted in the ordinary way.
 */
static int
walk(struct lane *lane, const struct finished *list, int64_t n, uint64_t now_ns)
{
	uint64_t head = lane->sq.head, end = lane->sq.sent;
	int64_t next = 0;
	int rc;

	if (end - head > lane->sq.tail_seen - head)
		end = (int64_t)(end - head) < 0 ? head : lane->sq.tail_seen;
	while (lane->sq.cursor != lane->sq.tail_seen && ((int64_t)(lane->sq.cursor - end) < 0 || next < n)) {
		struct slot *slot;
		if (lane->slot_tail - lane->slot_head >= lane->map.geo.cq_entries)
			return -TG_EBROKEN;
		if ((rc = lane_admit(lane, now_ns, &slot)) != 0)
			return rc;
		INJECT(returned_walk);
		if (next < n && list[next].position == slot->position - head) {
			slot->state = SLOT_DONE;
			lane->unfinished--;
			if (list[next].count < lane->floor)
				lane->floor = list[next].count;
			next++;
			continue;
		}
		if (next < n && list[next].position < lane->sq.cursor - head)
			return -TG_EBROKEN; /* an entry names a place inside a record, or one twice */
		slot->maybe_sent = sq_was_sent(&lane->sq, slot->position) != 0;
		slot->attempts = slot->maybe_sent;
	}
	return 0;
}

static int
rebuild(struct lane *lane, uint64_t now_ns)
{
	struct finished *list = NULL;
	uint64_t sq_head = order_load_acquire_64(ORDER_G, &lane->map.daemon->sq_head);
	uint64_t cq_tail = order_load_relaxed_64(&lane->map.daemon->cq_tail);
	uint64_t cq_head = order_load_acquire_64(ORDER_E, &lane->map.client->cq_head);

	sq_consumer_init(&lane->sq, &lane->map, sq_head);
	cq_producer_init(&lane->cq, &lane->map, cq_tail, cq_head);
	if (cq_tail - cq_head > lane->map.geo.cq_entries || sq_consumer_refresh(&lane->sq) < 0)
		return -TG_EBROKEN;
	int64_t n = collect_finished(lane, &list);
	int rc = n < 0 ? (int)n : walk(lane, list, n, now_ns);
	free(list);
	return rc;
}

int
lane_rebuild(struct lane *lane, uint64_t now_ns)
{
	int rc = rebuild(lane, now_ns);

	if (rc != 0) {
		struct lane_geometry geo = lane->map.geo;
		lane_map_fini(&lane->map);
		lane->map.geo = geo;
		return rc;
	}
	INJECT(returned_built);
	return 0;
}
