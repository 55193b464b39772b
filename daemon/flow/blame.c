#include "blame.h"

#include "daemon/link/broker.h"
#include "daemon/lane/lane.h"
#include "daemon/base/log.h"
#include "pool.h"
#include "pump.h"
#include "daemon/base/utf8.h"
#include "shard.h"

#include <stdio.h>
#include <string.h>

#define SLOT_NONE UINT64_MAX
#define TOPIC_SHOWN 48u
#define KNOWN_AT 1u          /* verdicts: set apart at the first close */
#define PROCESS_BEGINS_AT 2u /* verdicts: a new lane of the process begins apart */
#define USER_BEGINS_AT 8u    /* ... and of any process of the user */

const char *
blame_word(enum blame_state state)
{
	static const char *const words[] = {
		[BLAME_NONE] = "no",
		[BLAME_SUSPECT] = "suspect",
		[BLAME_SINGLE] = "single",
	};
	return words[state];
}

/* ---- the book ---- */

static void
fade(struct blame_entry *entry, uint64_t now_ns)
{
	uint64_t halvings = (now_ns - entry->last_ns) / (BLAME_FADE_MS * NS_PER_MS);

	if (halvings == 0)
		return;
	entry->verdicts = halvings < 32 ? entry->verdicts >> halvings : 0;
	entry->last_ns += halvings * BLAME_FADE_MS * NS_PER_MS;
}

static struct blame_entry *
find(struct blame_entry *list, uid_t uid, pid_t pid, uint64_t now_ns)
{
	for (uint32_t i = 0; i < BLAME_BOOK; i++) {
		fade(&list[i], now_ns);
		if (list[i].verdicts > 0 && list[i].uid == uid && list[i].pid == pid)
			return &list[i];
	}
	return NULL;
}

static void
note(struct blame_entry *list, uid_t uid, pid_t pid, uint64_t now_ns)
{
	struct blame_entry *entry = find(list, uid, pid, now_ns);

	if (entry == NULL) {
		entry = &list[0];
		for (uint32_t i = 1; i < BLAME_BOOK && entry->verdicts > 0; i++)
			if (list[i].verdicts < entry->verdicts ||
			    (list[i].verdicts == entry->verdicts && list[i].last_ns < entry->last_ns))
				entry = &list[i];
		*entry = (struct blame_entry){ .uid = uid, .pid = pid };
	}
	entry->verdicts++;
	entry->last_ns = now_ns;
}

static uint32_t
process_verdicts(const struct lane *lane)
{
	const struct blame_entry *entry =
	    find(lane->pool->blame.processes, lane->owner.uid, lane->owner.pid, lane->shard->now_ns);

	return entry != NULL ? entry->verdicts : 0;
}

static uint32_t
user_verdicts(const struct lane *lane)
{
	const struct blame_entry *entry =
	    find(lane->pool->blame.users, lane->owner.uid, 0, lane->shard->now_ns);

	return entry != NULL ? entry->verdicts : 0;
}

static int
is_known(const struct lane *lane)
{
	return lane->blame.verdicts >= KNOWN_AT || process_verdicts(lane) >= KNOWN_AT ||
	       user_verdicts(lane) >= KNOWN_AT;
}

static uint32_t
answers_needed(uint32_t verdicts)
{
	uint32_t needed = BLAME_ANSWERS;

	for (uint32_t i = 1; i < verdicts && needed < BLAME_ANSWERS_MAX; i++)
		needed *= 2;
	return needed;
}

void
blame_begin(struct lane *lane)
{
	uint32_t process = process_verdicts(lane), user = user_verdicts(lane);

	if (process < PROCESS_BEGINS_AT && user < USER_BEGINS_AT)
		return;
	lane->blame.state = BLAME_SINGLE;
	lane->blame.needed = answers_needed(process > user / USER_BEGINS_AT ? process : user / USER_BEGINS_AT);
}

/* ---- setting apart ---- */

static void
tell(const struct lane *lane, enum log_level level, const char *name, const char *cause)
{
	log_limited(&lane->pool->blame_limit, level, name,
	    "pool=%s lane=%llu pid=%d uid=%u state=%s verdicts=%u cause=%s", lane->pool->config->name,
	    (unsigned long long)lane->id, (int)lane->owner.pid, (unsigned)lane->owner.uid,
	    blame_word(lane->blame.state), lane->blame.verdicts,
	    log_quote((char[256]){ 0 }, 256, cause, strlen(cause)));
}

static void
clear(struct lane *lane)
{
	struct link *link = lane->link;

	lane->blame.state = BLAME_NONE;
	lane->blame.accused = 0;
	lane->blame.until = 0;
	lane->blame.resume_ns = 0;
	if (link != NULL && link->apart)
		lane_unbind(lane, 0);
}

static void
set_apart(struct lane *lane, uint64_t until, const struct link *link)
{
	if (until > lane->blame.until)
		lane->blame.until = until;
	if (lane->blame.state != BLAME_NONE)
		return;
	lane->blame.state = BLAME_SUSPECT;
	if (lane->pool->config->on_failure == ON_FAILURE_REPORT) {
		lane->blame.state = BLAME_SINGLE;
		lane->blame.needed = BLAME_TRIAL;
		lane->blame.answers = 0;
	}
	tell(lane, LOG_LEVEL_INFO, "lane_set_apart", link->why);
}

/* Where nothing is sent twice: whether the lane has sent on two links that closed one soon after the other. */
static int
closes_meet(struct lane *lane)
{
	uint64_t now = lane->shard->now_ns;

	if (now - lane->blame.closes_ns > BLAME_NEAR_MS * NS_PER_MS)
		lane->blame.closes = 0;
	else if (lane->blame.closes > 0 && now == lane->blame.closes_ns)
		return lane->blame.closes > 1; /* the same close, another message */
	if (lane->blame.closes < UINT8_MAX)
		lane->blame.closes++;
	lane->blame.closes_ns = now;
	return lane->blame.closes > 1;
}

static int
is_suspicious(struct lane *lane, const struct slot *slot)
{
	if (lane->pool->config->on_failure == ON_FAILURE_REPORT && closes_meet(lane))
		return 1;
	return slot->closes >= 2 || is_known(lane);
}

/* What a walk over a link's unanswered entries finds. */
struct walk {
	struct link *link;
	uint32_t apart; /* lanes set apart */
	uint32_t sent;  /* messages that may be the one */
};

/* The slot of an entry that was sent, or NULL. */
static struct slot *
sent_slot(const struct walk *walk, uint64_t seq, const struct inflight *entry)
{
	if (entry->start >= out_written(&walk->link->out))
		return NULL;
	return lane_carried(entry->lane, entry->slot, walk->link, seq);
}

static void
mark_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct walk *walk = arg;
	struct slot *slot = sent_slot(walk, seq, entry);
	struct lane *lane = entry->lane;

	if (slot == NULL)
		return;
	walk->sent++;
	if (slot->closes < 3)
		slot->closes++;
	if (!is_suspicious(lane, slot))
		return;
	walk->apart += lane->blame.state == BLAME_NONE;
	if (lane->blame.state != BLAME_NONE || walk->apart <= BLAME_AT_ONCE)
		set_apart(lane, entry->slot + 1, walk->link);
}

/* Marks what was sent and not answered, and sets lanes apart that are known or marked twice. */
static int
mark(struct link *link)
{
	struct walk walk = { .link = link };

	link_each(link, mark_entry, &walk);
	return walk.sent > 0;
}

static void
accuse_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct walk *walk = arg;
	struct lane *lane = entry->lane;

	if (lane != walk->link->holder || sent_slot(walk, seq, entry) == NULL)
		return;
	lane->blame.accused = 1;
	lane->blame.alone = walk->sent++ == 0 ? entry->slot : SLOT_NONE;
	if (entry->slot + 1 > lane->blame.until)
		lane->blame.until = entry->slot + 1;
}

/* The apart link has closed: its holder is accused of what was sent. */
static int
accuse(struct link *link)
{
	struct walk walk = { .link = link };

	link_each(link, accuse_entry, &walk);
	if (walk.sent == 0)
		return 0;
	link->closed_ns = link->shard->now_ns;
	link->closed_code = link->failed_kind == FATAL_MESSAGE ? link->verdict.code : 0;
	snprintf(link->closed_why, sizeof(link->closed_why), "%s",
	    link->failed_kind == FATAL_MESSAGE ? link->verdict.why : "it closed without a word");
	return 1;
}

/* From now on its messages go one at a time. */
static void
convict(struct lane *lane, const char *cause)
{
	struct lane_blame *blame = &lane->blame;

	if (blame->verdicts < UINT8_MAX)
		blame->verdicts++;
	blame->state = BLAME_SINGLE;
	blame->answers = 0;
	blame->needed = answers_needed(blame->verdicts);
	blame->pause_ns = blame->pause_ns == 0 ? BLAME_PAUSE_MS * NS_PER_MS : blame->pause_ns * 2;
	if (blame->pause_ns > BLAME_PAUSE_MAX_MS * NS_PER_MS)
		blame->pause_ns = BLAME_PAUSE_MAX_MS * NS_PER_MS;
	blame->resume_ns = lane->shard->now_ns + blame->pause_ns;
	tell(lane, LOG_LEVEL_WARN, "lane_blamed", cause);
}

static void
enter_in_book(struct link *link, uid_t uid, pid_t pid)
{
	struct blame_book *book = &pool_of(link->broker)->blame;
	uint64_t now = link->shard->now_ns;

	note(book->processes, uid, pid, now);
	note(book->users, uid, 0, now);
	link->broker->unexplained = 0;
}

void
blame_refused(struct link *link, const struct lane *lane)
{
	link->refused = (struct link_refusal){
		.lane = lane->id, .uid = lane->owner.uid, .pid = lane->owner.pid, .ns = link->shard->now_ns
	};
}

/* Whether the close is explained by a rejection just before; its lane, which may be gone, is convicted. */
static int
is_afterword(struct link *link)
{
	struct link_refusal refused = link->refused;
	int said = link->failed_kind == FATAL_ANSWERED;

	link->refused.ns = 0;
	if (refused.ns == 0)
		return said;
	if (!said && link->shard->now_ns - refused.ns > BLAME_AFTERWORD_MS * NS_PER_MS)
		return 0;
	struct lane *lane = pool_lane(pool_of(link->broker), refused.lane);
	enter_in_book(link, refused.uid, refused.pid);
	if (lane != NULL)
		convict(lane, link->why); /* its message has its answer */
	return 1;
}

int
blame_closed(struct link *link)
{
	uint64_t now = link->shard->now_ns;

	if (link->conn.ready_ns == 0)
		return 0;
	int answered = link->health.last_progress_ns > link->conn.ready_ns;
	if (answered && now - link->conn.ready_ns >= BLAME_WELL_MS * NS_PER_MS)
		link->broker->unexplained = 0;
	if (is_afterword(link))
		return 1;
	if (link->failed_kind != FATAL_MESSAGE && link->failed_kind != FATAL_DROPPED)
		return 0;
	if (link->apart)
		return accuse(link);
	/* Some brokers acknowledge a message that they close over. */
	return mark(link) ||
	       (answered && now - link->health.last_progress_ns <= BLAME_AFTERWORD_MS * NS_PER_MS);
}

/* ---- the verdict ---- */

/* Another link of the broker that was READY when this one closed, and still is: the broker has lived all the time. */
static int
has_witness(const struct link *link)
{
	const struct broker *broker = link->broker;

	for (uint32_t i = 0; i < broker->link_count; i++)
		if (link_is_ready(&broker->links[i]) && broker->links[i].conn.ready_ns < link->closed_ns)
			return 1;
	return 0;
}

static void
reject(struct lane *lane, struct slot *slot, const struct link *link)
{
	uint32_t code =
	    link->closed_code > 0 && link->closed_code <= UINT16_MAX ? link->closed_code : REJECT_CLOSED;
	uint32_t len = slot->topic_len < TOPIC_SHOWN ? slot->topic_len : TOPIC_SHOWN;
	char clean[TOPIC_SHOWN + 1], text[LANE_REASON_BYTES];
	uint8_t topic[TOPIC_SHOWN];

	memcpy(topic, sq_at(&lane->sq, slot->position) + sizeof(struct record), len); /* T4 */
	utf8_clean(clean, sizeof(clean), topic, len);
	int n = snprintf(text, sizeof(text),
	    "the broker closed %u connections over this message: %s (pool %s, lane %llu, process %d, user %u, topic %s)",
	    BLAME_REJECT, link->closed_why, lane->pool->config->name, (unsigned long long)lane->id,
	    (int)lane->owner.pid, (unsigned)lane->owner.uid, clean);
	lane_reject(lane, slot, 0, code, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

void
blame_ready(struct link *link)
{
	struct lane *lane, *next, *guilty = NULL;

	TAILQ_FOREACH (lane, &link->bound, bound_entry)
		if (lane->blame.accused)
			break;
	if (lane == NULL)
		return;
	lane->blame.accused = 0;
	if (!has_witness(link)) {
		lane->blame.resume_ns = link->shard->now_ns + BLAME_PAUSE_MS * NS_PER_MS;
		return;
	}
	guilty = lane;
	enter_in_book(link, guilty->owner.uid, guilty->owner.pid);
	convict(guilty, link->closed_why);
	if (guilty->blame.alone != SLOT_NONE && guilty->blame.alone >= guilty->slot_head) {
		struct slot *slot = lane_slot(guilty, guilty->blame.alone);
		if (slot->state == SLOT_PENDING && ++slot->alone >= BLAME_REJECT)
			reject(guilty, slot, link);
	}
	for (lane = TAILQ_FIRST(&link->bound); lane != NULL; lane = next) {
		next = TAILQ_NEXT(lane, bound_entry);
		if (lane != guilty && lane->blame.state == BLAME_SUSPECT)
			clear(lane);
	}
}

/* ---- turns ---- */

struct link *
blame_link(struct lane *lane)
{
	struct link *main = pool_pick(lane->pool, NULL, 0);

	if (main == NULL)
		return NULL;
	struct link *link = broker_apart(main->broker);
	if (link != NULL && link->failed < BLAME_ATTEMPTS)
		return link;
	/* The broker takes no further connection, or there is no memory for one. */
	tell(lane, LOG_LEVEL_WARN, "lane_not_apart", link != NULL ? link->why : "out of memory for a link");
	clear(lane);
	return NULL;
}

int
blame_may_send(struct link *link, struct lane *lane)
{
	if (link->holder == NULL && lane->blame.resume_ns <= link->shard->now_ns)
		link->holder = lane;
	return link->holder == lane && (lane->blame.state == BLAME_SUSPECT || link_waited_for(link) == 0);
}

void
blame_serve(struct link *link)
{
	struct lane *lane = link->holder;

	if (lane != NULL && lane->place != LANE_WAIT_LINK)
		return;
	if (lane == NULL)
		TAILQ_FOREACH (lane, &link->waiters, place_entry)
			if (lane->blame.resume_ns <= link->shard->now_ns)
				break;
	if (lane == NULL)
		return;
	lane_set_place(lane, LANE_ACTIVE);
	lane_pump(lane, SHARD_QUANTUM);
}

void
blame_turn(struct link *link, int answered)
{
	struct lane *lane = link->holder;

	if (lane == NULL || link_waited_for(link) > 0)
		return;
	struct lane_blame *blame = &lane->blame;
	if (answered && blame->answers < UINT32_MAX) {
		blame->answers++;
		blame->pause_ns /= 2;
	}
	/* Late messages stay in flight here: on another link younger ones would overtake them. */
	if (lane->inflight == 0 && lane->slot_next >= blame->until &&
	    (blame->state == BLAME_SUSPECT || blame->answers >= blame->needed)) {
		clear(lane);
		tell(lane, LOG_LEVEL_INFO, "lane_cleared", "its messages were answered");
		return;
	}
	if (blame->state == BLAME_SINGLE || lane->place != LANE_WAIT_LINK || lane->inflight > 0)
		link_yield(link, lane);
	else
		link_want_serve(link);
}
