#include "pump.h"

#include "blame.h"
#include "daemon/base/inject.h"
#include "daemon/lane/lane.h"
#include "pool.h"
#include "riders.h"
#include "shard.h"

#include <stdlib.h>
#include <string.h>

/* ---- framing ---- */

/* Whether packed headers fill their length exactly. */
static int
headers_are_whole(const struct message *message)
{
	struct header_view header;
	uint32_t offset = 0;

	while (message_header_next(message, &offset, &header))
		;
	return offset == message->headers_len;
}

/* T4: copies everything that will be looked at; the body stays where it is. */
static int
message_make(struct lane *lane, const struct slot *slot, struct message *message)
{
	const uint8_t *at = sq_at(&lane->sq, slot->position) + sizeof(struct record);
	uint8_t *copy = lane->shard->copy_buffer;
	uint32_t meta = (uint32_t)slot->topic_len + slot->key_len + slot->headers_len;
	uint64_t waited_ms = (lane->shard->now_ns - slot->published_ns) / NS_PER_MS;
	uint32_t expiry_ms = sq_expiry_ms(&lane->sq, slot->position);

	memcpy(copy, at, meta);
	*message = (struct message){
		.position = slot->position,
		.lane_id = lane->id,
		.id_key = &lane->id_key,
		.published_ns = slot->published_ns,
		.topic = copy,
		.key = copy + slot->topic_len,
		.headers = copy + slot->topic_len + slot->key_len,
		.body = at + meta,
		.topic_len = slot->topic_len,
		.key_len = slot->key_len,
		.headers_len = slot->headers_len,
		.body_len = slot->body_len,
		.expiry_ms = expiry_ms == 0 ? 0
			     : waited_ms < expiry_ms
				 ? expiry_ms - (uint32_t)waited_ms
				 : 1, /* the producer has changed it since: its deadline was no later */
		.wall_ms = lane->shard->wall_ms,
		.attempt = slot->attempts + 1u,
		.retain = (slot->flags & RECORD_F_RETAIN) != 0,
	};
	return message->headers_len == 0 || headers_are_whole(message) ? 0 : -TG_EBROKEN;
}

static void
bind_to(struct lane *lane, struct link *link)
{
	lane->link = link;
	TAILQ_INSERT_TAIL(&link->bound, lane, bound_entry);
	link->bound_count++;
	link->broker->bound_count++;
}

/* A lane may leave a link that holds records of it only if those may be sent twice. */
static int
may_leave(const struct lane *lane)
{
	return lane->inflight == 0 || lane->pool->config->on_failure == ON_FAILURE_RESEND;
}

/* Whether the oldest record that a broker had no room for still waits for some. */
static int
waits_for_room(struct lane *lane)
{
	if (lane->again)
		lane->again = lane->again_slot >= lane->slot_head &&
			      lane_slot(lane, lane->again_slot)->state != SLOT_DONE;
	return lane->again;
}

/*
 * The link for the slot at slot_next, or NULL after the lane has been put where it waits.
 * *rewound: slot_next has moved back; the caller looks again.
 */
static struct link *
route_by_lane(struct lane *lane, int *rewound)
{
	struct link *link = lane->link;

	if (lane->moving) {
		if (lane->inflight > 0 && link != NULL && link_is_ready(link)) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		lane->moving = 0;
		if (lane->inflight == 0 && link != NULL)
			lane_unbind(lane, 0);
		link = lane->link;
	}
	if (link != NULL && !link_is_ready(link)) {
		struct link *other = may_leave(lane) ? pool_pick(lane->pool, NULL, 0) : NULL;
		if (other == NULL) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		*rewound = lane->inflight > 0;
		lane_unbind(lane, 1);
		bind_to(lane, other);
		return other;
	}
	if (link == NULL) {
		link = pool_pick(lane->pool, NULL, 0);
		if (link == NULL) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		bind_to(lane, link);
	}
	if (lane->inflight > 0 && waits_for_room(lane)) {
		lane_set_place(lane, LANE_WAIT_POOL);
		return NULL;
	}
	if (!link_is_writable(link)) {
		lane_set_place(lane, LANE_WAIT_LINK);
		return NULL;
	}
	if (!rider_has_share(link, lane)) {
		lane_set_place(lane, LANE_WAIT_LINK);
		lane->over_share = 1;
		lane->resume_at = lane_waited_for(lane) / 2;
		return NULL;
	}
	return link;
}

static struct link *
route_by_key(struct lane *lane, const struct message *message)
{
	struct pool *pool = lane->pool;

	if (lane->epoch != pool->epoch) {
		if (lane->inflight > 0) {
			lane->moving = 1;
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		lane->moving = 0;
		lane->epoch = pool->epoch;
	}
	struct link *link = pool_pick(pool, message->key, message->key_len);
	if (lane->inflight > 0 && waits_for_room(lane))
		link = NULL;
	if (link == NULL || !link_is_writable(link)) {
		lane_set_place(lane, LANE_WAIT_POOL);
		return NULL;
	}
	return link;
}

/* The apart link for a lane that is set apart, whatever the pool's order. */
static struct link *
route_apart(struct lane *lane, int *rewound)
{
	struct link *link = lane->link;

	if (link == NULL || !link->apart) {
		/* Records in flight elsewhere are answered first: none is sent twice, or overtaken by one with its key. */
		if (lane->inflight > 0 &&
		    (link != NULL ? link_is_ready(link) : lane->pool->config->order == ORDER_BY_KEY)) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		link = lane->link == NULL || may_leave(lane) ? blame_link(lane) : NULL;
		if (link == NULL) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		*rewound = lane->link != NULL && lane->inflight > 0;
		lane_unbind(lane, *rewound);
		bind_to(lane, link);
		if (*rewound)
			return link;
	}
	lane->moving = 0;
	if (lane->inflight > 0 && waits_for_room(lane)) {
		lane_set_place(lane, LANE_WAIT_POOL);
		return NULL;
	}
	if (!link_is_writable(link) || !blame_may_send(link, lane)) {
		lane_set_place(lane, LANE_WAIT_LINK);
		return NULL;
	}
	return link;
}

static struct link *
route(struct lane *lane, const struct message *message, int *rewound)
{
	struct link *link;

	if (lane->blame.state != BLAME_NONE)
		return route_apart(lane, rewound);
	switch (lane->pool->config->order) {
	case ORDER_BY_LANE:
		return route_by_lane(lane, rewound);
	case ORDER_BY_KEY:
		return route_by_key(lane, message);
	case ORDER_BY_NONE:
		link = pool_pick(lane->pool, message->key, message->key_len);
		if (link == NULL || !link_is_writable(link)) {
			lane_set_place(lane, LANE_WAIT_POOL);
			return NULL;
		}
		return link;
	}
	abort();
}

enum framed { FRAMED, FRAMED_NOT_THIS, FRAMED_MOVED };

/* Frames the slot at slot_next, which is PENDING. */
static enum framed
frame(struct lane *lane, struct slot *slot)
{
	struct message message;
	struct driver_rejection rejection = { .code = 0 };
	int rewound = 0;

	if (lane_finish_unsent(lane, slot))
		return FRAMED_NOT_THIS;
	if (message_make(lane, slot, &message) != 0) {
		lane_quarantine(lane, "a record's headers are malformed");
		return FRAMED_MOVED;
	}
	struct link *link = route(lane, &message, &rewound);
	if (link == NULL)
		return FRAMED_MOVED;
	if (rewound)
		return FRAMED_NOT_THIS;
	/* I6: stored before the link can write a byte of it. */
	INJECT(before_sent);
	sq_mark_sent(&lane->sq, slot->position + slot->size);
	INJECT(after_sent);
	switch (link_send(link, lane, lane->slot_next, slot->size, &message, &rejection)) {
	case LINK_SEND_OK:
		break;
	case LINK_SEND_REJECTED:
		if (slot->maybe_sent) {
			/* This link cannot carry it; another may have delivered it. */
			lane_finish(lane, slot, TG_UNKNOWN, 0, rejection.code);
			return FRAMED_NOT_THIS;
		}
		lane_reject(lane, slot, 0, rejection.code, rejection.text,
		    rejection.text != NULL ? strlen(rejection.text) : 0);
		return FRAMED_NOT_THIS;
	case LINK_SEND_FULL:
		lane_set_place(lane, lane->link != NULL ? LANE_WAIT_LINK : LANE_WAIT_POOL);
		return FRAMED_MOVED;
	case LINK_SEND_NOMEM: /* the link has failed over it; the lane has been moved already */
		lane_set_place(lane, LANE_WAIT_POOL);
		return FRAMED_MOVED;
	}
	INJECT(framed);
	slot->state = SLOT_INFLIGHT;
	lane->refs++;
	slot->link = link;
	slot->seq = (uint32_t)(link->next - 1);
	slot->maybe_sent = slot->maybe_sent ? 3 : 1;
	lane->inflight++;
	if (slot->attempts > 0) {
		lane->count.resent++;
		lane->pool->count.resent++;
		link->count.resent++;
		link->broker->count.resent++;
	}
	if (slot->attempts < COMPLETION_ATTEMPTS)
		slot->attempts++;
	return FRAMED;
}

static enum lane_pumped
pump(struct lane *lane, int32_t budget)
{
	int rc = sq_consumer_refresh(&lane->sq);

	if (rc < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return LANE_PUMP_MOVED;
	}
	if (rc == 0 && lane->slot_next == lane->slot_tail)
		return LANE_PUMP_IDLE;
	lane->active_ns = lane->shard->now_ns;
	/* Deficit round robin: a record larger than the share is paid for in later turns; nothing is saved up. */
	lane->deficit = lane->deficit > 0 ? budget : lane->deficit + budget;
	while (lane->deficit > 0) {
		if (lane->slot_next == lane->slot_tail) {
			if (lane->sq.cursor == lane->sq.tail_seen) {
				lane->deficit = 0;
				return LANE_PUMP_IDLE;
			}
			rc = lane_admit_next(lane);
			if (rc == 1) {
				lane_set_place(lane, LANE_STALLED);
				return LANE_PUMP_MOVED;
			}
			if (rc == -TG_ENOMEM) {
				lane_set_place(lane, LANE_WAIT_POOL); /* the pool's tick tries again */
				return LANE_PUMP_MOVED;
			}
			if (rc != 0) {
				lane_quarantine(lane, "what lies at the cursor is not a record");
				return LANE_PUMP_MOVED;
			}
		}
		struct slot *slot = lane_slot(lane, lane->slot_next);
		if (slot->state != SLOT_PENDING) {
			lane->slot_next++;
			continue;
		}
		switch (frame(lane, slot)) {
		case FRAMED:
			lane->deficit -= (int32_t)slot->size;
			lane->slot_next++;
			break;
		case FRAMED_NOT_THIS: /* expired, cancelled, refused: that was work, too */
			lane->deficit -= (int32_t)slot->size;
			break;
		case FRAMED_MOVED:
			return LANE_PUMP_MOVED;
		}
	}
	return LANE_PUMP_MORE;
}

enum lane_pumped
lane_pump(struct lane *lane, int32_t budget)
{
	enum lane_pumped rc = pump(lane, budget);

	if (lane->blame.state != BLAME_NONE && lane->link != NULL && lane->link->holder == lane)
		blame_turn(lane->link, 0);
	return rc;
}
