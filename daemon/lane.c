#include "lane.h"

#include "client.h"
#include "inject.h"
#include "log.h"
#include "pool.h"
#include "shard.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SLOTS_MIN 16u
#define SLOTS_KEEP 64u /* a sleeping lane keeps no more than these */

static struct slot *
slot_at(const struct lane *lane, uint64_t number)
{
	return &lane->slots[number & (lane->slot_capacity - 1)];
}

const char *
lane_place_word(enum lane_place place)
{
	static const char *const words[] = {
		[LANE_ASLEEP] = "asleep",
		[LANE_ACTIVE] = "active",
		[LANE_WAIT_LINK] = "waits-for-link",
		[LANE_WAIT_POOL] = "waits-for-pool",
		[LANE_STALLED] = "stalled",
		[LANE_GONE] = "gone",
	};
	return words[place];
}

int
lane_make(struct lane **out, const struct lane_header *header, struct pool *pool, struct client *client,
    int memfd, const struct lane_geometry *geo, int bell)
{
	struct lane *lane = calloc(1, sizeof(*lane));
	int rc;

	if (lane == NULL)
		return -TG_ENOMEM;
	rc = lane_map_init(&lane->map, memfd, geo, geo->sq_bytes <= LANE_SQ_DEFAULT);
	if (rc != 0) {
		free(lane);
		return rc;
	}
	lane->shard = pool->shard;
	lane->pool = pool;
	lane->client = client;
	lane->id = header->lane_id;
	lane->nonce = header->nonce;
	lane->memfd = memfd;
	lane->bell = bell;
	wake_sleeper_init(&lane->doze, &lane->map.daemon->asleep);
	wake_ringer_init(&lane->ringer, &lane->map.client->waiting);
	lane->earliest_ns = UINT64_MAX;
	lane->floor = UINT64_MAX;
	lane->place = LANE_GONE;
	*out = lane;
	return 0;
}

void
lane_unmake(struct lane *lane)
{
	lane_map_fini(&lane->map);
	free(lane->slots);
	free(lane);
}

void
lane_start(struct lane *lane)
{
	struct pool *pool = lane->pool;
	struct shard *shard = lane->shard;

	lane->shown_writable = !pool->writable_shown; /* whatever the word says, it is stored */
	lane_show_writable(lane, pool->writable_shown);
	TAILQ_INSERT_TAIL(&pool->lanes, lane, pool_entry);
	pool->lane_count++;
	shard->lane_count++;
	shard->lane_memory += lane_memfd_bytes(&lane->map.geo);
	shard->count.lanes_opened++;
	lane_set_place(lane, LANE_ACTIVE);
}

int
lane_new(struct lane **out, const struct lane_header *header, struct pool *pool, struct client *client, int memfd,
    const struct lane_geometry *geo, int bell)
{
	struct lane *lane;
	int rc = lane_make(&lane, header, pool, client, memfd, geo, bell);

	if (rc != 0)
		return rc;
	sq_consumer_init(&lane->sq, &lane->map, 0);
	cq_producer_init(&lane->cq, &lane->map, 0, 0);
	lane_start(lane);
	*out = lane;
	return 0;
}

void
lane_set_place(struct lane *lane, enum lane_place place)
{
	struct shard *shard = lane->shard;

	switch (lane->place) {
	case LANE_ASLEEP:
		TAILQ_REMOVE(&lane->client->asleep, lane, place_entry);
		lane->client->asleep_count--;
		wake_rise(&lane->doze);
		break;
	case LANE_ACTIVE:
		TAILQ_REMOVE(&shard->active, lane, place_entry);
		shard->active_count--;
		break;
	case LANE_WAIT_LINK:
		TAILQ_REMOVE(&lane->link->waiters, lane, place_entry);
		lane->pool->waiting--;
		break;
	case LANE_WAIT_POOL:
		TAILQ_REMOVE(&lane->pool->waiters, lane, place_entry);
		lane->pool->waiting--;
		break;
	case LANE_STALLED:
	case LANE_GONE:
		break;
	}
	lane->place = place;
	switch (place) {
	case LANE_ASLEEP:
		TAILQ_INSERT_TAIL(&lane->client->asleep, lane, place_entry);
		lane->client->asleep_count++;
		wake_doze(&lane->doze);
		break;
	case LANE_ACTIVE:
		lane->active_ns = shard->now_ns;
		TAILQ_INSERT_TAIL(&shard->active, lane, place_entry);
		shard->active_count++;
		break;
	case LANE_WAIT_LINK:
		TAILQ_INSERT_TAIL(&lane->link->waiters, lane, place_entry);
		lane->pool->waiting++;
		pool_lane_waits(lane->pool);
		break;
	case LANE_WAIT_POOL:
		TAILQ_INSERT_TAIL(&lane->pool->waiters, lane, place_entry);
		lane->pool->waiting++;
		pool_lane_waits(lane->pool);
		break;
	case LANE_STALLED:
	case LANE_GONE:
		break;
	}
}

void
lane_mark_dirty(struct lane *lane)
{
	if (lane->dirty)
		return;
	lane->dirty = 1;
	TAILQ_INSERT_TAIL(&lane->shard->dirty, lane, dirty_entry);
}

/* ---- admission ---- */

static int
slots_grow(struct lane *lane)
{
	uint32_t capacity = lane->slot_capacity == 0 ? SLOTS_MIN : lane->slot_capacity * 2;
	struct slot *slots = aligned_alloc(64, capacity * sizeof(*slots));

	if (slots == NULL)
		return -TG_ENOMEM;
	for (uint64_t n = lane->slot_head; n != lane->slot_tail; n++)
		slots[n & (capacity - 1)] = *slot_at(lane, n);
	free(lane->slots);
	lane->slots = slots;
	lane->slot_capacity = capacity;
	return 0;
}

/* Gives a sleeping lane's table back; its records are all released. */
static void
slots_shrink(struct lane *lane)
{
	if (lane->slot_head != lane->slot_tail || lane->slot_capacity <= SLOTS_KEEP)
		return;
	free(lane->slots);
	lane->slots = NULL;
	lane->slot_capacity = 0;
}

int
lane_admit(struct lane *lane, struct slot **out)
{
	struct record record;
	int rc;

	if (lane->slot_tail - lane->slot_head == lane->slot_capacity && (rc = slots_grow(lane)) != 0)
		return rc;
	if (sq_peek(&lane->sq, &record) != 0 || record.size > lane_max_record(&lane->map.geo))
		return -TG_EBROKEN;
	struct slot *slot = slot_at(lane, lane->slot_tail);
	uint32_t timeout_ms = record.timeout_ms != 0 ? record.timeout_ms : lane->pool->config->message_timeout_ms;
	/* The producer's clock is only believed as far as it is not ahead of ours. */
	uint64_t published = record.published_ns < lane->shard->now_ns ? record.published_ns : lane->shard->now_ns;
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
		.own_deadline = record.timeout_ms != 0,
	};
	if (slot->deadline_ns < lane->earliest_ns)
		lane->earliest_ns = slot->deadline_ns;
	lane->sq.cursor += record.size;
	lane->slot_tail++;
	lane->unfinished++;
	lane->count.records++;
	lane->count.bytes += record.size;
	lane->pool->count.accepted++;
	lane->pool->count.bytes += record.size;
	if (out != NULL)
		*out = slot;
	INJECT(admitted);
	return 0;
}

/* lane_admit() if there is a slot for it now, in the table and among the completions; 1 if not. */
static int
admit(struct lane *lane)
{
	uint64_t floor = lane->floor == UINT64_MAX ? lane->cq.tail : lane->floor;

	/* A dead client's completion ring is nobody's any more: its records go on without it. */
	if (lane->client == NULL)
		return lane->unfinished >= lane->map.geo.cq_entries ? 1 : lane_admit(lane, NULL);
	if (!cq_may_admit(&lane->cq, floor, lane->unfinished)) {
		if (cq_producer_refresh(&lane->cq) < 0)
			return -TG_EBROKEN;
		if (!cq_may_admit(&lane->cq, floor, lane->unfinished))
			return 1;
	}
	return lane_admit(lane, NULL);
}

/* ---- completion ---- */

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
		.info = (uint8_t)(slot->attempts | ((slot->flags & RECORD_F_QUIET) != 0 ? COMPLETION_QUIET : 0)),
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

static void
reject(struct lane *lane, struct slot *slot, uint64_t reference, uint32_t code, const char *text,
    size_t text_len)
{
	store_reason(lane, code, text, text_len);
	lane_finish(lane, slot, TG_REJECTED, reference, code);
	log_limited(&lane->pool->rejected_limit, LOG_LEVEL_WARN, "message_rejected",
	    "pool=%s lane=%llu code=%u reason=%s", lane->pool->config->name, (unsigned long long)lane->id, code,
	    log_quote((char[256]){ 0 }, 256, text, text_len));
}

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
	uint64_t left_ms = (slot->deadline_ns - lane->shard->now_ns) / NS_PER_MS;

	memcpy(copy, at, meta);
	*message = (struct message){
		.position = slot->position,
		.lane_id = lane->id,
		.lane_nonce = lane->nonce,
		.published_ns = slot->published_ns,
		.topic = copy,
		.key = copy + slot->topic_len,
		.headers = copy + slot->topic_len + slot->key_len,
		.body = at + meta,
		.topic_len = slot->topic_len,
		.key_len = slot->key_len,
		.headers_len = slot->headers_len,
		.body_len = slot->body_len,
		.expiry_ms = !slot->own_deadline ? 0
		    : left_ms == 0           ? 1
		    : left_ms < UINT32_MAX   ? (uint32_t)left_ms
		                             : UINT32_MAX,
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
	if (!link_is_writable(link)) {
		lane_set_place(lane, LANE_WAIT_LINK);
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
	if (link == NULL || !link_is_writable(link)) {
		lane_set_place(lane, LANE_WAIT_POOL);
		return NULL;
	}
	return link;
}

static struct link *
route(struct lane *lane, const struct message *message, int *rewound)
{
	struct link *link;

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

/* A slot that is not to be sent any more. Returns whether it was one. */
static int
finish_unsent(struct lane *lane, struct slot *slot)
{
	if (!slot->maybe_sent && sq_is_cancelled(&lane->sq, slot->position)) {
		lane_finish(lane, slot, TG_CANCELLED, 0, 0);
		return 1;
	}
	if (lane->shard->now_ns >= slot->deadline_ns) {
		lane_finish(lane, slot, slot->maybe_sent ? TG_UNKNOWN : TG_EXPIRED, 0, 0);
		return 1;
	}
	return 0;
}

enum framed { FRAMED, FRAMED_NOT_THIS, FRAMED_MOVED };

/* Frames the slot at slot_next, which is PENDING. */
static enum framed
frame(struct lane *lane, struct slot *slot)
{
	struct message message;
	struct driver_rejection rejection = { .code = 0 };
	int rewound = 0;

	if (finish_unsent(lane, slot))
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
		reject(lane, slot, 0, rejection.code, rejection.text,
		    rejection.text != NULL ? strlen(rejection.text) : 0);
		return FRAMED_NOT_THIS;
	case LINK_SEND_FULL:
		lane_set_place(lane, lane->pool->config->order == ORDER_BY_LANE ? LANE_WAIT_LINK : LANE_WAIT_POOL);
		return FRAMED_MOVED;
	case LINK_SEND_NOMEM: /* the link has failed over it; the lane has been moved already */
		lane_set_place(lane, LANE_WAIT_POOL);
		return FRAMED_MOVED;
	}
	INJECT(framed);
	slot->state = SLOT_INFLIGHT;
	slot->link = link;
	slot->seq = (uint32_t)(link->next - 1);
	slot->maybe_sent = 1;
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

enum lane_pumped
lane_pump(struct lane *lane, int32_t budget)
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
			rc = admit(lane);
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
		struct slot *slot = slot_at(lane, lane->slot_next);
		if (slot->state != SLOT_PENDING) {
			lane->slot_next++;
			continue;
		}
		switch (frame(lane, slot)) {
		case FRAMED:
			lane->deficit -= (int32_t)slot->size;
			lane->slot_next++;
			break;
		case FRAMED_NOT_THIS:
			break;
		case FRAMED_MOVED:
			return LANE_PUMP_MOVED;
		}
	}
	return LANE_PUMP_MORE;
}

void
lane_expire(struct lane *lane)
{
	uint64_t now = lane->shard->now_ns;

	if (sq_consumer_refresh(&lane->sq) < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return;
	}
	while (lane->sq.cursor != lane->sq.tail_seen) {
		int rc = admit(lane);
		if (rc == 1 || rc == -TG_ENOMEM)
			break;
		if (rc != 0) {
			lane_quarantine(lane, "what lies at the cursor is not a record");
			return;
		}
	}
	if (now < lane->earliest_ns)
		return;
	lane->earliest_ns = UINT64_MAX;
	for (uint64_t n = lane->slot_next; n != lane->slot_tail; n++) {
		struct slot *slot = slot_at(lane, n);
		if (slot->state == SLOT_PENDING && !finish_unsent(lane, slot) &&
		    slot->deadline_ns < lane->earliest_ns)
			lane->earliest_ns = slot->deadline_ns;
	}
}

/* ---- answers ---- */

/* The slot an entry of a link's ring means, if it is still that link's to answer. */
static struct slot *
drop_ref(struct lane *lane, uint64_t number)
{
	lane->refs--;
	if (lane->place == LANE_GONE) {
		if (lane->refs == 0)
			TAILQ_INSERT_TAIL(&lane->shard->graveyard, lane, place_entry);
		return NULL;
	}
	if (number < lane->slot_head)
		return NULL;
	struct slot *slot = slot_at(lane, number);
	return slot->state == SLOT_DONE ? NULL : slot;
}

/* One less in flight: a lane that waited for that can go on. */
static void
landed(struct lane *lane)
{
	lane->inflight--;
	if (lane->inflight == 0 && lane->place == LANE_WAIT_POOL)
		lane_set_place(lane, LANE_ACTIVE);
}

/* A lane that left a link and came back has two entries there for one slot: the newer one counts. */
static int
is_carried_by(const struct slot *slot, const struct link *link, uint64_t seq)
{
	return slot->state == SLOT_INFLIGHT && slot->link == link && slot->seq == (uint32_t)seq;
}

void
lane_overdue(struct lane *lane, uint64_t number, const struct link *link, uint64_t seq)
{
	if (lane->place == LANE_GONE || number < lane->slot_head)
		return;
	struct slot *slot = slot_at(lane, number);
	if (!is_carried_by(slot, link, seq) || lane->shard->now_ns < slot->deadline_ns)
		return;
	landed(lane);
	lane_finish(lane, slot, TG_UNKNOWN, 0, 0);
}

void
lane_answer(struct lane *lane, uint64_t number, struct link *link, uint64_t seq, uint8_t outcome, uint64_t reference,
    uint32_t code, const char *text, size_t text_len)
{
	struct slot *slot = drop_ref(lane, number);

	if (slot == NULL)
		return;
	if (slot->state == SLOT_INFLIGHT) {
		if (!is_carried_by(slot, link, seq))
			return; /* L5: it is on its way once more, and that entry answers for it */
		landed(lane);
	} else if (outcome != TG_DELIVERED) {
		return; /* taken from this link already, and about to be sent again */
	}
	if (outcome == TG_REJECTED)
		reject(lane, slot, reference, code, text, text_len);
	else
		lane_finish(lane, slot, outcome, reference, code);
}

void
lane_take_back(struct lane *lane, uint64_t number, struct link *link, uint64_t seq, enum lane_taken_back how)
{
	struct slot *slot = drop_ref(lane, number);

	if (slot == NULL || !is_carried_by(slot, link, seq))
		return;
	landed(lane);
	slot->link = NULL;
	slot->state = SLOT_PENDING;
	if (how != LANE_BACK_FAILED && slot->attempts == 1)
		slot->maybe_sent = 0;
	if (how == LANE_BACK_FAILED && lane->pool->config->on_failure == ON_FAILURE_REPORT) {
		lane_finish(lane, slot, TG_UNKNOWN, 0, 0);
		return;
	}
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
	}
	if (!rewind)
		return;
	/*
	 * All that is in flight: where the broker has given one back there are some behind slot_next too.
	 * And back to the first of them, no further: with none, the record being routed stays the next.
	 */
	for (uint64_t n = lane->slot_tail; n-- > lane->slot_head;) {
		struct slot *slot = slot_at(lane, n);
		if (slot->state == SLOT_INFLIGHT) {
			slot->state = SLOT_PENDING;
			slot->link = NULL;
			lane->inflight--;
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
	while (lane->slot_head != lane->slot_tail && slot_at(lane, lane->slot_head)->state == SLOT_DONE)
		lane->slot_head++;
	if (lane->slot_next < lane->slot_head)
		lane->slot_next = lane->slot_head;
	uint64_t head =
	    lane->slot_head == lane->slot_tail ? lane->sq.cursor : slot_at(lane, lane->slot_head)->position;
	INJECT(before_commit);
	cq_publish(&lane->cq); /* D: the commit point; G: and only then the release */
	INJECT(after_commit);
	if (head != lane->sq.head)
		sq_release(&lane->sq, head);
	INJECT(after_release);
	if (lane->slot_tail - lane->slot_head == lane->unfinished)
		lane->floor = UINT64_MAX; /* no finished record is unreleased */
	if (lane->place == LANE_STALLED)
		lane_set_place(lane, LANE_ACTIVE);
}

/* One byte into the bell's pipe: a full one is ringing already. */
static void
bell_write(const struct lane *lane)
{
	static const char one = 1;

	if (write(lane->bell, &one, sizeof(one)) < 0 && errno != EAGAIN && errno != EPIPE)
		log_event(LOG_LEVEL_WARN, "bell_failed", "lane=%llu errno=%d", (unsigned long long)lane->id, errno);
}

void
lane_ring(struct lane *lane)
{
	lane->dirty = 0;
	if (lane->client == NULL || !wake_must_ring(&lane->ringer))
		return;
	lane->shard->count.bells++;
	bell_write(lane);
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

/* ---- the end ---- */

int
lane_look(struct lane *lane)
{
	int rc = sq_consumer_refresh(&lane->sq);

	if (rc < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return 0;
	}
	if (rc > 0)
		lane_set_place(lane, LANE_ACTIVE);
	return rc;
}

void
lane_sleep(struct lane *lane)
{
	slots_shrink(lane);
	if (lane->link != NULL && lane->inflight == 0)
		lane_unbind(lane, 0); /* balanced anew when it wakes */
	lane_set_place(lane, LANE_ASLEEP);
	lane->dozed = 1;
	TAILQ_INSERT_TAIL(&lane->shard->dozed, lane, dozed_entry);
}

void
lane_rest(struct lane *lane)
{
	lane_set_place(lane, LANE_STALLED);
}

int
lane_is_empty(const struct lane *lane)
{
	return lane->unfinished == 0 && lane->sq.cursor == lane->sq.tail_seen;
}

/* Out of every list but its client's; its memory stays while a link refers to it. */
static void
leave(struct lane *lane)
{
	if (lane->place == LANE_GONE)
		return;
	lane_unbind(lane, 0);
	lane_set_place(lane, LANE_GONE);
	if (lane->dirty) {
		TAILQ_REMOVE(&lane->shard->dirty, lane, dirty_entry);
		lane->dirty = 0;
	}
	if (lane->dozed) {
		TAILQ_REMOVE(&lane->shard->dozed, lane, dozed_entry);
		lane->dozed = 0;
	}
	TAILQ_REMOVE(&lane->pool->lanes, lane, pool_entry);
	lane->pool->lane_count--;
	lane->shard->lane_count--;
	lane->shard->lane_memory -= lane_memfd_bytes(&lane->map.geo);
	lane->shard->count.lanes_closed++;
	if (lane->client != NULL)
		client_lane_gone(lane->client, lane);
	lane->client = NULL;
	if (lane->refs == 0)
		TAILQ_INSERT_TAIL(&lane->shard->graveyard, lane, place_entry);
}

void
lane_orphan(struct lane *lane)
{
	if (lane->place == LANE_GONE)
		return;
	/* What it had committed is all there will be: it is looked at once more, now. */
	if (sq_consumer_refresh(&lane->sq) < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return;
	}
	if (lane->place == LANE_ASLEEP || lane->place == LANE_STALLED)
		lane_set_place(lane, LANE_ACTIVE);
	if (lane->client != NULL)
		client_lane_gone(lane->client, lane);
	lane->client = NULL;
	lane->orphaned_ns = lane->shard->now_ns;
	/* Nobody publishes here any more; freezing the tail keeps a copy of the memory from doing so. */
	lane->sq.tail_word = &lane->sq.tail_seen;
	lane->shard->count.lanes_orphaned++;
	lane_finish_orphan(lane);
}

void
lane_finish_orphan(struct lane *lane)
{
	/* What is not committed yet has its turn first. */
	if (lane->place != LANE_GONE && lane->client == NULL && lane_is_empty(lane) && !lane->dirty)
		leave(lane);
}

void
lane_quarantine(struct lane *lane, const char *why)
{
	if (lane->place == LANE_GONE)
		return;
	lane->shard->count.lanes_quarantined++;
	log_limited(&lane->shard->quarantine_limit, LOG_LEVEL_WARN, "lane_quarantined",
	    "lane=%llu pool=%s pid=%d why=%s sq_head=%llu cursor=%llu sq_tail=%llu sq_bytes=%llu",
	    (unsigned long long)lane->id, lane->pool->config->name,
	    lane->client != NULL ? client_pid(lane->client) : 0, log_quote((char[128]){ 0 }, 128, why, strlen(why)),
	    (unsigned long long)lane->sq.head, (unsigned long long)lane->sq.cursor,
	    (unsigned long long)order_load_relaxed_64(lane->sq.tail_word),
	    (unsigned long long)lane->map.geo.sq_bytes);
	order_store_relaxed_32(&lane->map.daemon->closed, 1);
	bell_write(lane);
	leave(lane);
}

void
lane_free(struct lane *lane)
{
	leave(lane);
	if (lane->refs == 0)
		TAILQ_REMOVE(&lane->shard->graveyard, lane, place_entry);
	lane_map_fini(&lane->map);
	close(lane->memfd);
	close(lane->bell);
	free(lane->slots);
	free(lane);
}
