/*
 * Where messages wait, and for what, in words:
 *
 *   lane 12: 3,104 records wait: pool "events" has no writable link: 10.0.0.5:1883 SUSPECT 2.1 s (…)
 *
 * Lanes that wait for the same are told of in one line: however many there are, the answer is short.
 */
#include "admin.h"

#include "daemon/front/census.h"
#include "daemon/front/client.h"
#include "daemon/lane/lane.h"
#include "daemon/flow/pool.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define GROUPS 64u      /* causes in one answer */
#define LANES_NAMED 4u  /* of one cause */
#define LINKS_NAMED 8u  /* of one pool */
#define LINK_WORDS 320u /* for one link */

enum reason {
#define X(name, word, waits) WHY_##name,
#include "why_reasons.def"
#undef X
	WHY_REASONS
};

static const struct {
	const char *word;
	int waits;
} reasons[WHY_REASONS] = {
#define X(name, word, waits) { word, waits },
#include "why_reasons.def"
#undef X
};

/* Lanes of one pool with the same cause. */
struct group {
	enum reason reason;
	const struct pool *pool;
	const struct link *link; /* NULL: not one link's matter */
	uint64_t ids[LANES_NAMED];
	const struct lane *first;
	uint64_t lanes, waiting, in_flight, bytes, unread;
	uint64_t oldest_ns;
	int more; /* at least so many wait */
};

/* ---- words ---- */

struct words {
	char *text;
	size_t size, len;
};

static void say(struct words *words, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Cuts the text at the end of the buffer. */
static void
say(struct words *words, const char *format, ...)
{
	va_list args;

	if (words->len + 1 >= words->size)
		return;
	va_start(args, format);
	int n = vsnprintf(words->text + words->len, words->size - words->len, format, args);
	va_end(args);
	words->len += n > 0 ? (size_t)n : 0;
	if (words->len >= words->size)
		words->len = words->size - 1;
}

/* 1,234,567 */
static void
say_number(struct words *words, uint64_t n)
{
	char digits[24];
	size_t len = (size_t)snprintf(digits, sizeof(digits), "%" PRIu64, n);

	for (size_t i = 0; i < len; i++)
		say(words, "%s%c", i > 0 && (len - i) % 3 == 0 ? "," : "", digits[i]);
}

static void
say_records(struct words *words, uint64_t n)
{
	say_number(words, n);
	say(words, n == 1 ? " record" : " records");
}

static void
say_bytes(struct words *words, uint64_t bytes)
{
	if (bytes < 1024)
		say(words, "%" PRIu64 " B", bytes);
	else if (bytes < 1024 * 1024)
		say(words, "%.1f KiB", (double)bytes / 1024);
	else
		say(words, "%.1f MiB", (double)bytes / (1024 * 1024));
}

static void
say_ns(struct words *words, uint64_t ns)
{
	uint64_t ms = ns / NS_PER_MS;

	if (ms < 100)
		say(words, "%" PRIu64 " ms", ms);
	else if (ms < 60000)
		say(words, "%.1f s", (double)ms / 1000);
	else
		say(words, "%" PRIu64 " min %" PRIu64 " s", ms / 60000, ms / 1000 % 60);
}

static void
say_since(struct words *words, const struct shard *shard, uint64_t ns)
{
	say_ns(words, shard->now_ns > ns ? shard->now_ns - ns : 0);
}

static void
say_upper(struct words *words, const char *word)
{
	for (; *word != '\0'; word++)
		say(words, "%c", *word >= 'a' && *word <= 'z' ? *word - 'a' + 'A' : *word);
}

/* ---- links ---- */

/* Why a READY link takes nothing, from its marks as link_update_writable sees them. */
static void
say_full(struct words *words, const struct link *link)
{
	const struct config_pool *config = link->broker->peers->config;
	uint64_t unsent = out_unwritten(&link->out);

	if (link->conn.blocked) {
		say(words, "the broker says that it is blocked");
	} else if (link->conn.full) {
		say(words, "the protocol's own window is full, ");
		say_number(words, link->outstanding);
		say(words, " unanswered");
	} else if (link->outstanding > link->window_low) {
		say(words, "window full: ");
		say_number(words, link->outstanding);
		say(words, " of ");
		say_number(words, link->window);
		say(words, " messages unanswered, it takes more at ");
		say_number(words, link->window_low);
	} else if (unsent + config->low_bytes / 2 > config->low_bytes) {
		say(words, "watermark: ");
		say_bytes(words, unsent);
		say(words, " unsent, high is ");
		say_bytes(words, config->high_bytes);
		say(words, ", it takes more at ");
		say_bytes(words, config->low_bytes / 2);
	} else if (link->outstanding_bytes > config->window_bytes / 2) {
		say(words, "window full: ");
		say_bytes(words, link->outstanding_bytes);
		say(words, " of ");
		say_bytes(words, config->window_bytes);
		say(words, " unanswered, it takes more at ");
		say_bytes(words, config->window_bytes / 2);
	} else {
		say(words, "window full: a message sent long ago is unanswered");
	}
	if (link->outstanding > 0) {
		say(words, ", last answer ");
		say_since(words, link->shard, link->health.last_progress_ns);
		say(words, " ago");
	}
}

static void
say_next_attempt(struct words *words, const struct link *link)
{
	const struct shard *shard = link->shard;

	if (link->timer.place != 0) {
		say(words, ", tries again in ");
		say_ns(words, link->timer.at_ns > shard->now_ns ? link->timer.at_ns - shard->now_ns : 0);
	} else if (link->broker->open && link->broker->prober != NULL && link->broker->prober != link) {
		say(words, ", waits for link %u, which tries for all of its broker", link->broker->prober->id);
	}
}

/* 10.0.0.5:1883 SUSPECT 2.1 s (no answer to 12 messages in 3000 ms) */
static void
say_link(struct words *words, const struct link *link)
{
	const struct broker *broker = link->broker;

	say(words, "%s", broker->config->address.text);
	if (endpoints_of(link) != NULL)
		say(words, " at %s", endpoints_of(link));
	if (broker->link_count > 1)
		say(words, " link %u", link->id);
	say(words, " ");
	say_upper(words, link_state_word(link->state));
	if (link_is_writable(link))
		return;
	if (link->state == LINK_READY) {
		say(words, " (");
		say_full(words, link);
		say(words, ")");
		return;
	}
	say(words, " ");
	say_since(words, link->shard, link->state_since_ns);
	if (link->why[0] != '\0' && link->state != LINK_CLOSED) {
		int now =
		    link->state == LINK_SUSPECT || link->state == LINK_BACKOFF || link->state == LINK_FAILED;
		say(words, now ? " (%s" : " (before that: %s", link->why);
		if (link->state != LINK_SUSPECT && link->failed_kind == FATAL_REFUSED)
			say(words, "; check the pool's credentials and rights");
		if (link->state != LINK_SUSPECT && link->failed_kind == FATAL_SETTINGS)
			say(words, "; check the pool's settings");
		if (link->state == LINK_BACKOFF)
			say_next_attempt(words, link);
		say(words, ")");
	}
}

static void
say_links(struct words *words, const struct pool *pool)
{
	uint32_t named = 0, all = 0;

	for (uint32_t b = 0; b < pool->peers.count; b++)
		for (uint32_t l = 0; l < pool->peers.list[b].link_count; l++) {
			if (all++ >= LINKS_NAMED)
				continue;
			char text[LINK_WORDS];
			struct words one = { .text = text, .size = sizeof(text) };
			say_link(&one, &pool->peers.list[b].links[l]);
			say(words, "%s%s", named++ > 0 ? ", " : "", text);
		}
	if (all > named)
		say(words, " and %u more links", all - named);
}

/* ---- lanes ---- */

/* Why a lane whose slot table or completion ring is full is where it is. */
static enum reason
stalled(const struct lane *lane, const struct census *census)
{
	if (lane->client == NULL)
		return census->in_flight > 0 ? WHY_IN_FLIGHT : WHY_TABLE;
	return census->unread > lane->unfinished ? WHY_UNREAD : WHY_TABLE;
}

static enum reason
waits_for_link(const struct link *link)
{
	if (link->conn.blocked)
		return WHY_BLOCKED;
	return link_is_ready(link) ? WHY_LINK_FULL : WHY_LINK_GONE;
}

static enum reason
reason_of(const struct lane *lane, const struct census *census, const struct link **link)
{
	*link = NULL;
	if (census->broken)
		return WHY_BROKEN;
	if (lane->blame.state != BLAME_NONE && census->waiting + census->in_flight > 0) {
		*link = lane->link;
		return WHY_APART;
	}
	if (census->waiting == 0) {
		*link = census->link;
		if (census->in_flight > 0)
			return WHY_IN_FLIGHT;
		return lane->client != NULL && census->unread >= lane->map.geo.cq_entries ? WHY_UNREAD
											  : WHY_NOTHING;
	}
	switch (lane->place) {
	case LANE_STALLED:
		*link = census->link;
		return stalled(lane, census);
	case LANE_WAIT_LINK:
		*link = lane->link;
		return waits_for_link(lane->link);
	case LANE_WAIT_POOL:
		if (lane->link != NULL && census->in_flight > 0 && !link_is_ready(lane->link) &&
		    lane->pool->writable) {
			*link = lane->link;
			return WHY_LINK_GONE;
		}
		if (!lane->pool->writable)
			return WHY_NO_LINK;
		*link = lane->moving ? census->link : NULL;
		return lane->moving ? WHY_MOVING : WHY_KEY_LINK;
	case LANE_ASLEEP:
	case LANE_ACTIVE:
	case LANE_GONE:
		break;
	}
	return lane->pool->writable ? WHY_SENDING : WHY_NO_LINK;
}

struct groups {
	struct group list[GROUPS];
	uint32_t count;
	uint64_t left_out; /* lanes with one cause too many */
};

static void
add_lane(struct groups *groups, const struct lane *lane, uint32_t *budget)
{
	struct census census;
	const struct link *link;
	struct group *group;

	census_take(&census, lane, budget);
	enum reason reason = reason_of(lane, &census, &link);
	for (group = groups->list; group < groups->list + groups->count; group++)
		if (group->reason == reason && group->link == link && group->pool == lane->pool)
			break;
	if (group == groups->list + GROUPS) {
		groups->left_out++;
		return;
	}
	if (group == groups->list + groups->count) {
		*group = (struct group){ .reason = reason, .pool = lane->pool, .link = link, .first = lane };
		groups->count++;
	}
	if (group->lanes < LANES_NAMED)
		group->ids[group->lanes] = lane->id;
	group->lanes++;
	group->waiting += census.waiting;
	group->in_flight += census.in_flight;
	group->bytes += census.bytes;
	group->unread += census.unread;
	group->more |= census.more;
	if (census.oldest_ns != 0 && (group->oldest_ns == 0 || census.oldest_ns < group->oldest_ns))
		group->oldest_ns = census.oldest_ns;
}

static void
say_lanes(struct words *words, const struct group *group)
{
	say(words, group->lanes == 1 ? "lane " : "lanes ");
	for (uint64_t i = 0; i < group->lanes && i < LANES_NAMED; i++)
		say(words, "%s%" PRIu64, i > 0 ? ", " : "", group->ids[i]);
	if (group->lanes > LANES_NAMED) {
		say(words, " and ");
		say_number(words, group->lanes - LANES_NAMED);
		say(words, " more");
	}
	say(words, ": ");
}

/* "link 3 to 10.0.0.5:1883" */
static void
say_which_link(struct words *words, const struct link *link)
{
	say(words, "link %u to %s", link->id, link->broker->config->address.text);
	if (endpoints_of(link) != NULL)
		say(words, " at %s", endpoints_of(link));
}

static void
say_waiting(struct words *words, const struct group *group)
{
	if (group->waiting == 0)
		return;
	if (group->more)
		say(words, "at least ");
	say_records(words, group->waiting);
	if (group->more) {
		say(words, " (");
		say_bytes(words, group->bytes);
		say(words, " of ring)");
	}
	say(words, group->waiting == 1 ? " waits" : " wait");
}

static void
say_in_flight(struct words *words, const struct group *group)
{
	say_records(words, group->in_flight);
	say(words, group->in_flight == 1 ? " is in flight" : " are in flight");
	if (group->link != NULL) {
		say(words, " on ");
		say_which_link(words, group->link);
	}
	say(words, group->in_flight == 1 ? " and waits for its answer" : " and wait for their answers");
	if (group->link == NULL)
		return;
	if (link_is_ready(group->link)) {
		say(words, ", no answer for ");
		say_since(words, group->link->shard, group->link->health.last_progress_ns);
	} else {
		say(words, ": ");
		say_link(words, group->link);
	}
}

static void
say_apart(struct words *words, const struct group *group)
{
	const struct lane *lane = group->first;

	say(words,
	    ": set apart (%s, process %d, user %u, %u verdicts): a broker closed its connection while messages of "
	    "it were unanswered",
	    blame_word(lane->blame.state), (int)lane->owner.pid, (unsigned)lane->owner.uid,
	    lane->blame.verdicts);
	if (lane->blame.resume_ns > lane->shard->now_ns) {
		say(words, "; the next is sent in ");
		say_ns(words, lane->blame.resume_ns - lane->shard->now_ns);
	}
	if (group->link == NULL)
		return;
	say(words, "; ");
	say_which_link(words, group->link);
	if (group->link->closed_why[0] != '\0')
		say(words, " was closed last over: %s", group->link->closed_why);
}

static void
say_cause(struct words *words, const struct group *group)
{
	const struct link *link = group->link;

	switch (group->reason) {
	case WHY_NOTHING:
		say(words, "nothing waits: every record is answered");
		break;
	case WHY_IN_FLIGHT:
		say_in_flight(words, group);
		break;
	case WHY_SENDING:
		say(words, ": nothing holds them up, their turn comes at once");
		break;
	case WHY_NO_LINK:
		say(words, ": pool \"%s\" has no writable link: ", group->pool->config->name);
		say_links(words, group->pool);
		break;
	case WHY_LINK_FULL:
	case WHY_BLOCKED:
		say(words, ": ");
		say_which_link(words, link);
		say(words, " takes no more for now: ");
		say_full(words, link);
		break;
	case WHY_LINK_GONE:
		say(words, ": what is in flight on ");
		say_which_link(words, link);
		say(words, " may not be overtaken: ");
		say_link(words, link);
		break;
	case WHY_KEY_LINK:
		say(words, ": the link that balance or order gives them takes no more for now: ");
		say_links(words, group->pool);
		break;
	case WHY_MOVING:
		say(words, ": the next link may be used when ");
		say_in_flight(words, group);
		break;
	case WHY_APART:
		say_apart(words, group);
		break;
	case WHY_UNREAD:
		if (group->waiting > 0)
			say(words, ": ");
		say_number(words, group->unread);
		say(words, " completions are unread, the completion ring is full: the program must call "
			   "tg_poll or tg_wait");
		break;
	case WHY_TABLE:
		say(words, ": as many records are unanswered, or answered behind one that is not, as the lane "
			   "may have: ");
		say_in_flight(words, group);
		break;
	case WHY_BROKEN:
		say(words, group->waiting > 0 ? ": then the ring is broken" : "the ring is broken");
		say(words, ": the lane is closed when it is next looked at");
		break;
	case WHY_REASONS:
		break;
	}
}

static void
add_group(struct admin_query *query, json_t *list, const struct group *group)
{
	char text[ANSWER_TEXT];
	struct words words = { .text = text, .size = sizeof(text) };
	const struct client *client = group->first->client;
	struct answer row;
	int waits = reasons[group->reason].waits;

	say_lanes(&words, group);
	if (group->reason != WHY_IN_FLIGHT && group->reason != WHY_NOTHING)
		say_waiting(&words, group);
	say_cause(&words, group);
	if (waits && group->oldest_ns != 0) {
		say(&words, "; the oldest record is ");
		say_since(&words, query->shard, group->oldest_ns);
		say(&words, " old");
	}
	answer_init(&row);
	answer_text(&row, "pool", group->pool->config->name);
	answer_text(&row, "reason", reasons[group->reason].word);
	answer_truth(&row, "waits", waits);
	if (group->lanes == 1) {
		answer_count(&row, "lane", group->ids[0]);
		answer_count(&row, "pid", client != NULL ? (uint64_t)client_pid(client) : 0);
	}
	if (group->link != NULL)
		answer_count(&row, "link", group->link->id);
	answer_count(&row, "lanes", group->lanes);
	answer_count(&row, "waiting", group->waiting);
	answer_truth(&row, "waiting_more", group->more);
	answer_count(&row, "in_flight", group->in_flight);
	answer_count(&row, "bytes", group->bytes);
	answer_text(&row, "text", text);
	answer_row(&query->answer, list, &row);
}

/* ---- pools ---- */

/* Reports a pool whose lanes are all empty, if anything is wrong with it anyway. */
static void
add_quiet_pool(struct admin_query *query, json_t *list, const struct pool *pool)
{
	char text[ANSWER_TEXT];
	struct words words = { .text = text, .size = sizeof(text) };
	struct answer row;

	say(&words, "pool \"%s\": nothing waits: ", pool->config->name);
	if (pool->lane_count == 0 && pool->count.accepted == 0)
		say(&words, "nobody has published to it");
	else if (pool->lane_count == 0)
		say(&words, "every record is answered, and no lane is open");
	else
		say(&words, "every record is answered");
	if (!pool->writable) {
		say(&words, ". It has no writable link: ");
		say_links(&words, pool);
	}
	answer_init(&row);
	answer_text(&row, "pool", pool->config->name);
	answer_text(&row, "reason", reasons[WHY_NOTHING].word);
	answer_truth(&row, "waits", 0);
	answer_count(&row, "lanes", pool->lane_count);
	answer_count(&row, "waiting", 0);
	answer_count(&row, "in_flight", 0);
	answer_text(&row, "text", text);
	answer_row(&query->answer, list, &row);
}

static void
add_left_out(struct admin_query *query, json_t *list, uint64_t lanes)
{
	struct answer row;
	char text[128];

	snprintf(text, sizeof(text), "and %" PRIu64 " lanes more, for other causes: ask for a pool or a lane",
	    lanes);
	answer_init(&row);
	answer_truth(&row, "waits", 1);
	answer_count(&row, "lanes", lanes);
	answer_text(&row, "text", text);
	answer_row(&query->answer, list, &row);
}

static void
why_pools(struct admin_query *query, json_t *list, struct groups *groups)
{
	uint32_t budget = CENSUS_BUDGET;
	struct shard *shard = query->shard;
	struct lane *lane;

	for (struct pool *pool = shard->pools; pool < shard->pools + shard->pool_count; pool++) {
		if (query->pool != NULL && query->pool != pool)
			continue;
		int said = 0;
		groups->count = 0;
		TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
			add_lane(groups, lane, &budget);
		for (uint32_t i = 0; i < groups->count; i++)
			if (groups->list[i].reason != WHY_NOTHING) {
				add_group(query, list, &groups->list[i]);
				said = 1;
			}
		if (!said)
			add_quiet_pool(query, list, pool);
	}
	if (groups->left_out > 0)
		add_left_out(query, list, groups->left_out);
}

static void
why_lane(struct admin_query *query, json_t *list, struct groups *groups)
{
	uint32_t budget = CENSUS_BUDGET * 4; /* of one lane more can be counted */
	struct shard *shard = query->shard;
	struct lane *lane;

	for (uint32_t i = 0; i < shard->pool_count; i++)
		TAILQ_FOREACH (lane, &shard->pools[i].lanes, pool_entry)
			if (lane->id == query->lane) {
				add_lane(groups, lane, &budget);
				add_group(query, list, &groups->list[0]);
				return;
			}
	snprintf(query->error, sizeof(query->error), "lane %" PRIu64 " does not exist%s", query->lane,
	    query->lane <= shard->lane_ids
		? " any more: its process has closed it or gone, and all it held is answered"
		: ": the numbers are those of the command lanes");
}

void
admin_why(struct admin_query *query)
{
	static const struct groups empty;
	struct groups groups = empty;
	json_t *list = answer_list(&query->answer, "why");

	if (query->lane != 0)
		why_lane(query, list, &groups);
	else
		why_pools(query, list, &groups);
}
