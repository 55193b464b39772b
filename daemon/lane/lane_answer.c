/* From answers to completions: what becomes of a slot, what is committed and released, who is rung. */
#include "lane.h"

#include "daemon/base/inject.h"
#include "daemon/base/log.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- completion ---- */

void
lane_mark_dirty(struct lane *lane)
{
	if (lane->dirty)
		return;
	lane->dirty = 1;
	TAILQ_INSERT_TAIL(&lane->shard->dirty, lane, dirty_entry);
}

static void
count_outcome(struct lane *lane, uint8_t outcome)
{
	switch (outcome) {
	case TG_DELIVERED:
		lane->count.delivered++;
		lane->pool->count.delivered++;
		break;
	case TG_SENT:
		lane->count.sent++;
		lane->pool->count.sent++;
		break;
	case TG_REJECTED:
		lane->count.rejected++;
		lane->pool->count.rejected++;
		break;
	case TG_EXPIRED:
		lane->count.expired++;
		lane->pool->count.expired++;
		break;
	case TG_UNKNOWN:
		lane->count.unknown++;
		lane->pool->count.unknown++;
		break;
	case TG_CANCELLED:
		lane->count.cancelled++;
		lane->pool->count.cancelled++;
		break;
	default:
		abort(); /* ours: no caller passes anything else */
	}
}

void
lane_finish(struct lane *lane, struct slot *slot, uint8_t outcome, uint64_t reference, uint32_t code)
{
	uint64_t elapsed_us = (lane->shard->now_ns - slot->published_ns) / NS_PER_US;
	struct completion completion = {
		.position = slot->position,
		.tag = slot->tag,
		.reference = reference,
		.elapsed_us = elapsed_us < UINT32_MAX ? (uint32_t)elapsed_us : UINT32_MAX,
		.code = code <= UINT16_MAX ? (uint16_t)code : UINT16_MAX,
		.outcome = outcome,
		.info =
		    (uint8_t)(slot->attempts | ((slot->flags & RECORD_F_QUIET) != 0 ? COMPLETION_QUIET : 0)),
	};

	slot->state = SLOT_DONE;
	slot->link = NULL;
	lane->unfinished--;
	if (lane->floor == UINT64_MAX)
		lane->floor = lane->cq.tail;
	/* I4 kept a place for it; only a dead client's ring may be full. */
	INJECT(before_push);
	if (lane->client != NULL || cq_producer_refresh(&lane->cq) > 0)
		cq_push(&lane->cq, &completion);
	INJECT(after_push);
	count_outcome(lane, outcome);
	lane_mark_dirty(lane);
}

/* The broker's words, for tg_reason: a seqlock with one writer. */
static void
store_reason(struct lane *lane, uint32_t code, const char *text, size_t text_len)
{
	struct lane_reason *reason = lane->map.reason;
	static const char none[] = "";

	if (text == NULL) {
		text = none;
		text_len = 0;
	}
	if (text_len >= LANE_REASON_BYTES)
		text_len = LANE_REASON_BYTES - 1;
	uint32_t seq = order_load_relaxed_32(&reason->seq) | 1u;
	order_store_relaxed_32(&reason->seq, seq);
	ck_pr_fence_store();
	order_store_relaxed_32(&reason->code, code);
	memcpy(reason->text, text, text_len);
	reason->text[text_len] = '\0';
	ck_pr_fence_store();
	order_store_relaxed_32(&reason->seq, seq + 1u);
}

void
lane_reject(
    struct lane *lane, struct slot *slot, uint64_t reference, uint32_t code, const char *text, size_t text_len)
{
	store_reason(lane, code, text, text_len);
	lane_finish(lane, slot, TG_REJECTED, reference, code);
	log_limited(&lane->pool->rejected_limit, LOG_LEVEL_WARN, "message_rejected",
	    "pool=%s lane=%llu code=%u reason=%s", lane->pool->config->name, (unsigned long long)lane->id, code,
	    log_quote((char[256]){ 0 }, 256, text, text_len));
}

void
lane_give_up(struct lane *lane, struct slot *slot, const char *why)
{
	store_reason(lane, 0, why, strlen(why));
	lane_finish(lane, slot, slot->maybe_sent ? TG_UNKNOWN : TG_EXPIRED, 0, 0);
}

/* ---- answers ---- */

/* The slot an entry of a link's ring means, if it is still that link's to answer. */
static struct slot *
drop_ref(struct lane *lane, uint64_t number)
{
	lane->refs--;
	if (lane->place == LANE_GONE) {
		if (lane->refs == 0 && lane->client == NULL)
			TAILQ_INSERT_TAIL(&lane->shard->graveyard, lane, place_entry);
		return NULL;
	}
	if (number < lane->slot_head)
		return NULL;
	struct slot *slot = lane_slot(lane, number);
	return slot->state == SLOT_DONE ? NULL : slot;
}

/* Fewer of its messages count against the window: a lane that waited for that can go on. */
static void
share_again(struct lane *lane)
{
	if (lane->over_share && lane->late < LANE_LATE_MAX && lane_waited_for(lane) <= lane->resume_at)
		lane_set_place(lane, LANE_ACTIVE);
}

/* One less in flight. */
static void
landed(struct lane *lane, struct slot *slot)
{
	lane->inflight--;
	lane->late -= slot->late;
	slot->late = 0;
	share_again(lane);
	if (lane->inflight == 0 && lane->place == LANE_WAIT_POOL)
		lane_set_place(lane, LANE_ACTIVE);
}

/* A lane that left a link and came back has two entries there for one slot: the newer one counts. */
static int
is_carried_by(const struct slot *slot, const struct link *link, uint64_t seq)
{
	return slot->state == SLOT_INFLIGHT && slot->link == link && slot->seq == (uint32_t)seq;
}

struct slot *
lane_carried(const struct lane *lane, uint64_t number, const struct link *link, uint64_t seq)
{
	if (lane->place == LANE_GONE || number < lane->slot_head)
		return NULL;
	struct slot *slot = lane_slot(lane, number);
	return is_carried_by(slot, link, seq) ? slot : NULL;
}

void
lane_late(struct lane *lane, uint64_t number, const struct link *link, uint64_t seq)
{
	struct slot *slot = lane_carried(lane, number, link, seq);

	if (slot == NULL || slot->late)
		return;
	slot->late = 1;
	lane->late++;
	share_again(lane);
}

void
lane_overdue(struct lane *lane, uint64_t number, const struct link *link, uint64_t seq)
{
	struct slot *slot = lane_carried(lane, number, link, seq);

	if (slot == NULL || lane->shard->now_ns < lane_deadline(lane, slot))
		return;
	landed(lane, slot);
	lane_give_up(lane, slot, "sent, and not answered before its deadline");
}

void
lane_answer(struct lane *lane, uint64_t number, struct link *link, uint64_t seq, uint8_t outcome,
    uint64_t reference, uint32_t code, const char *text, size_t text_len)
{
	struct slot *slot = drop_ref(lane, number);

	if (slot == NULL)
		return;
	if (slot->state == SLOT_INFLIGHT) {
		if (!is_carried_by(slot, link, seq))
			return; /* L5: it is on its way once more, and that entry answers for it */
		landed(lane, slot);
	} else if (outcome != TG_DELIVERED) {
		return; /* taken from this link already, and about to be sent again */
	}
	if (outcome == TG_REJECTED)
		lane_reject(lane, slot, reference, code, text, text_len);
	else
		lane_finish(lane, slot, outcome, reference, code);
}

void
lane_take_back(struct lane *lane, uint64_t number, struct link *link, uint64_t seq, enum link_back how)
{
	struct slot *slot = drop_ref(lane, number);

	if (slot == NULL || !is_carried_by(slot, link, seq))
		return;
	landed(lane, slot);
	slot->link = NULL;
	slot->state = SLOT_PENDING;
	slot->retried = 0;
	if (how == LINK_BACK_FAILED && link->conn.max_body != 0 && slot->body_len > link->conn.max_body)
		how = LINK_BACK_UNSENT; /* the broker has said that it keeps nothing so large */
	if (how != LINK_BACK_FAILED)    /* as if this attempt had not been */
		slot->maybe_sent >>= 1;
	if (how == LINK_BACK_FAILED && lane->pool->config->on_failure == ON_FAILURE_REPORT) {
		lane_give_up(lane, slot,
		    "sent, and its connection ended before it was answered; the pool reports such messages");
		return;
	}
	if (number < lane->slot_next)
		lane->slot_next = number;
	if (slot->deadline_ns < lane->earliest_ns)
		lane->earliest_ns = slot->deadline_ns;
	if (how == LINK_BACK_AGAIN && (!lane->again || number < lane->again_slot)) {
		lane->again = 1;
		lane->again_slot = number;
	}
	/* What the broker has just not taken it would not take at once either: the pool's tick tries again. */
	enum lane_place place = how == LINK_BACK_AGAIN ? LANE_WAIT_POOL : LANE_ACTIVE;
	if (lane->place != place)
		lane_set_place(lane, place);
}

void
lane_reroute(struct lane *lane, uint64_t number, const struct link *link, uint64_t seq)
{
	struct slot *slot = lane_carried(lane, number, link, seq);

	if (slot == NULL)
		return;
	landed(lane, slot);
	slot->link = NULL;
	slot->state = SLOT_PENDING;
	if (number < lane->slot_next)
		lane->slot_next = number;
	if (slot->deadline_ns < lane->earliest_ns)
		lane->earliest_ns = slot->deadline_ns;
	if (lane->place != LANE_ACTIVE)
		lane_set_place(lane, LANE_ACTIVE);
}

void
lane_unbind(struct lane *lane, int rewind)
{
	struct link *link = lane->link;

	if (link != NULL) {
		if (lane->place == LANE_WAIT_LINK)
			lane_set_place(lane, LANE_ACTIVE);
		TAILQ_REMOVE(&link->bound, lane, bound_entry);
		link->bound_count--;
		link->broker->bound_count--;
		lane->link = NULL;
		lane->blame.accused = 0;
		link_yield(link, lane);
	}
	if (!rewind)
		return;
	/*
	 * All that is in flight: where the broker has given one back there are some behind slot_next too.
	 * And back to the first of them, no further: with none, the record being routed stays the next.
	 * What waits behind them, half a million records maybe, is not looked at.
	 */
	for (uint64_t n = lane->slot_head; lane->inflight > 0 && n != lane->slot_tail; n++) {
		struct slot *slot = lane_slot(lane, n);
		if (slot->state == SLOT_INFLIGHT) {
			slot->state = SLOT_PENDING;
			slot->link = NULL;
			lane->inflight--;
			lane->late -= slot->late;
			slot->late = 0;
			if (n < lane->slot_next)
				lane->slot_next = n;
			if (slot->deadline_ns < lane->earliest_ns)
				lane->earliest_ns = slot->deadline_ns;
		}
	}
}

/* ---- commit ---- */

void
lane_commit(struct lane *lane)
{
	if (lane->place == LANE_GONE)
		return;
	while (lane->slot_head != lane->slot_tail && lane_slot(lane, lane->slot_head)->state == SLOT_DONE)
		lane->slot_head++;
	if (lane->slot_next < lane->slot_head)
		lane->slot_next = lane->slot_head;
	uint64_t head =
	    lane->slot_head == lane->slot_tail ? lane->sq.cursor : lane_slot(lane, lane->slot_head)->position;
	INJECT(before_commit);
	cq_publish(&lane->cq); /* D: the commit point; G: and only then the release */
	INJECT(after_commit);
	if (head != lane->sq.head)
		sq_release(&lane->sq, head);
	INJECT(after_release);
	if (lane->slot_tail - lane->slot_head == lane->unfinished)
		lane->floor = UINT64_MAX; /* no finished record is unreleased */
	if (lane->place == LANE_STALLED && !lane->unready)
		lane_set_place(lane, LANE_ACTIVE);
}

/* One byte into the bell's pipe: a full one is ringing already. */
void
lane_bell(const struct lane *lane)
{
	static const char one = 1;

	if (write(lane->bell, &one, sizeof(one)) < 0 && errno != EAGAIN && errno != EPIPE)
		log_event(
		    LOG_LEVEL_WARN, "bell_failed", "lane=%llu errno=%d", (unsigned long long)lane->id, errno);
}

void
lane_ring(struct lane *lane)
{
	lane->dirty = 0;
	if (lane->client == NULL || !wake_must_ring(&lane->ringer))
		return;
	lane->shard->count.bells++;
	lane_bell(lane);
}

void
lane_show_writable(struct lane *lane, int writable)
{
	if (lane->shown_writable == writable)
		return;
	lane->shown_writable = writable;
	order_store_relaxed_32(&lane->map.daemon->writable, (uint32_t)writable);
	if (writable)
		lane_mark_dirty(lane); /* those who wait for it are rung at the end of the turn */
}
