/* The admin socket's reports, as JSON. */
#include "admin.h"

#include "build_config.h"
#include "daemon/front/census.h"
#include "daemon/front/client.h"
#include "daemon/front/front.h"
#include "daemon/config/config.h"
#include "daemon/link/endpoints.h"
#include "daemon/life/handover.h"
#include "daemon/link/tls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef HAVE_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

static uint64_t
ms_since(const struct shard *shard, uint64_t ns)
{
	return ns == 0 || ns > shard->now_ns ? 0 : (shard->now_ns - ns) / NS_PER_MS;
}

/* Resident bytes of this process, from the kernel. */
static uint64_t
resident_bytes(void)
{
	unsigned long long size = 0, resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f == NULL)
		return 0;
	if (fscanf(f, "%llu %llu", &size, &resident) != 2)
		resident = 0;
	fclose(f);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void
add_allocator(struct answer *to)
{
#ifdef HAVE_JEMALLOC
	uint64_t epoch = 1;
	size_t len = sizeof(epoch), value;
	static const struct {
		const char *key, *name;
	} figures[] = {
		{ "allocated", "stats.allocated" },
		{ "active", "stats.active" },
		{ "resident", "stats.resident" },
		{ "mapped", "stats.mapped" },
		{ "retained", "stats.retained" },
	};
	struct answer heap;

	answer_init(&heap);
	mallctl("epoch", &epoch, &len, &epoch, len);
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
		len = sizeof(value);
		if (mallctl(figures[i].name, &value, &len, NULL, 0) == 0)
			answer_count(&heap, figures[i].key, value);
	}
	answer_json(to, "jemalloc", answer_end(&heap));
#else
	answer_null(to, "jemalloc");
#endif
}

#define FOR_EACH_POOL(query, pool)                                              \
	for (struct pool *pool = (query)->shard->pools;                         \
	     pool < (query)->shard->pools + (query)->shard->pool_count; pool++) \
		if ((query)->pool == NULL || (query)->pool == pool)

#define FOR_EACH_BROKER(pool, broker)                                                                       \
	for (struct broker *broker = (pool)->peers.list; broker < (pool)->peers.list + (pool)->peers.count; \
	     broker++)

#define FOR_EACH_LINK(broker, link) \
	for (struct link *link = (broker)->links; link < (broker)->links + (broker)->link_count; link++)

/* ---- pages ---- */

/* Rows are numbered for the daemon's life; they come in the order of their numbers. */
struct page {
	struct admin_query *query;
	json_t *rows; /* the answer's */
	uint64_t made;
	uint64_t next; /* number of the first row that had no place; 0: none */
};

static void
page_init(struct page *page, struct admin_query *query, const char *name)
{
	*page = (struct page){ .query = query, .rows = answer_list(&query->answer, name) };
}

/* Whether the row of this number is to be made. */
static int
page_wants(struct page *page, uint64_t number)
{
	if (number < page->query->from || page->next != 0)
		return 0;
	if (page->made < page->query->max) {
		page->made++;
		return 1;
	}
	page->next = number;
	return 0;
}

static void
page_add(struct page *page, struct answer *row)
{
	answer_row(&page->query->answer, page->rows, row);
}

static void
page_end(const struct page *page)
{
	if (page->next != 0)
		answer_count(&page->query->answer, "next", page->next);
}

/* ---- reports ---- */

static void
add_counts(struct answer *to, enum counter_scope scope, const void *counts)
{
	for (const struct counter *counter = counters; counter->name != NULL; counter++)
		if (counter->scope == scope)
			answer_count(to, counter->name, counter_value(counter, counts));
}

static uint64_t
finished(const struct pool *pool)
{
	return pool->count.delivered + pool->count.sent + pool->count.rejected + pool->count.expired +
	       pool->count.unknown + pool->count.cancelled;
}

static uint32_t
ready_links(const struct broker *broker)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < broker->link_count; i++)
		n += (uint32_t)link_is_ready(&broker->links[i]);
	return n;
}

static void
status(struct admin_query *query)
{
	const struct shard *shard = query->shard;
	uint32_t ready = 0, all = 0;
	uint64_t accepted = 0, answered = 0;
	struct answer s;

	FOR_EACH_POOL (query, pool) {
		accepted += pool->count.accepted;
		answered += finished(pool);
		FOR_EACH_BROKER (pool, broker) {
			ready += ready_links(broker);
			all += broker->link_count;
		}
	}
	answer_init(&s);
	answer_text(&s, "version", PACKAGE_VERSION);
	answer_count(&s, "pid", (uint64_t)getpid());
	answer_count(&s, "uptime_ms", ms_since(shard, shard->started_ns));
	answer_truth(&s, "upgrading", query->admin->handover != NULL && query->admin->handover->fd >= 0);
	answer_truth(&s, "stopping", shard->stopping);
	answer_count(&s, "clients", query->admin->front->client_count);
	answer_count(&s, "lanes", shard->lane_count);
	answer_count(&s, "pools", shard->pool_count);
	answer_count(&s, "links_ready", ready);
	answer_count(&s, "links", all);
	answer_count(&s, "accepted", accepted);
	answer_count(&s, "finished", answered);
	answer_count(&s, "lane_memory_bytes", shard->accounts.used[ACCOUNT_MEMORY]);
	answer_count(&s, "resident_bytes", resident_bytes());
	answer_json(&query->answer, "status", answer_end(&s));
}

static void
add_failing(struct answer *to, const struct pool *pool)
{
	json_t *list = answer_list(to, "failing");

	FOR_EACH_BROKER (pool, broker) {
		struct answer row;
		if (broker->why[0] == '\0' || broker_is_ready(broker))
			continue;
		answer_init(&row);
		answer_text(&row, "broker", broker->config->address.text);
		answer_text(&row, "why", broker->why);
		answer_row(to, list, &row);
	}
}

static void
pools(struct admin_query *query)
{
	struct page page;

	page_init(&page, query, "pools");
	FOR_EACH_POOL (query, pool) {
		struct answer row;
		uint32_t ready = 0;
		if (!page_wants(&page, pool->index + 1u))
			continue;
		FOR_EACH_BROKER (pool, broker)
			ready += (uint32_t)broker_is_ready(broker);
		answer_init(&row);
		answer_text(&row, "name", pool->config->name);
		answer_text(&row, "protocol", pool->config->driver->name);
		answer_count(&row, "brokers", pool->peers.count);
		answer_count(&row, "brokers_ready", ready);
		answer_truth(&row, "writable", pool->writable);
		answer_count(&row, "lanes", pool->lane_count);
		answer_count(&row, "lanes_waiting", pool->waiting);
		answer_count(&row, "under_way", pool->count.accepted - finished(pool));
		add_failing(&row, pool);
		add_counts(&row, COUNTERS_POOL, &pool->count);
		page_add(&page, &row);
	}
	page_end(&page);
}

/* Those that are READY at an endpoint. */
static uint32_t
links_elsewhere(const struct broker *broker)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < broker->link_count; i++)
		n += link_is_ready(&broker->links[i]) && endpoints_of(&broker->links[i]) != NULL;
	return n;
}

static void
add_endpoints(struct answer *to, const struct broker *broker)
{
	json_t *list = answer_list(to, "endpoints");

	for (uint32_t i = 0; i < broker->endpoints.count; i++) {
		struct answer row;
		answer_init(&row);
		answer_text(&row, "address", broker->endpoints.list[i].text);
		answer_row(to, list, &row);
	}
}

static void
broker_row(struct answer *row, const struct broker *broker, uint64_t id, uint64_t now_ns)
{
	answer_init(row);
	answer_count(row, "id", id);
	answer_text(row, "pool", broker->peers->config->name);
	answer_text(row, "address", broker->config->address.text);
	answer_count(row, "weight", broker->config->weight);
	answer_count(row, "priority", broker->config->priority);
	answer_text(row, "breaker", broker_breaker_word(broker, now_ns));
	answer_count(row, "consecutive_failures", broker->failures);
	answer_count(row, "share_thousandths",
	    broker->config->weight > 0 ? broker_weight(broker, now_ns) / broker->config->weight : 0);
	answer_count(row, "links", broker->link_count);
	answer_count(row, "links_ready", ready_links(broker));
	answer_count(row, "links_elsewhere", links_elsewhere(broker));
	add_endpoints(row, broker);
	add_counts(row, COUNTERS_BROKER, &broker->count);
	answer_text(row, "why", broker->why);
}

static void
brokers(struct admin_query *query)
{
	const struct shard *shard = query->shard;
	struct page page;
	uint64_t id = 0;

	page_init(&page, query, "brokers");
	for (uint32_t p = 0; p < shard->pool_count; p++)
		FOR_EACH_BROKER (&shard->pools[p], broker) {
			struct answer row;
			id++;
			if ((query->pool != NULL && query->pool != &shard->pools[p]) || !page_wants(&page, id))
				continue;
			broker_row(&row, broker, id, shard->now_ns);
			page_add(&page, &row);
		}
	page_end(&page);
}

static void
link_row(struct answer *row, const struct link *link)
{
	const struct shard *shard = link->shard;
	char tls[40] = "";

	if (link->conn.tls != NULL)
		tls_word(link->conn.tls, tls, sizeof(tls));
	answer_init(row);
	answer_count(row, "id", link->id);
	answer_text(row, "pool", link->broker->peers->config->name);
	answer_text(row, "broker", link->broker->config->address.text);
	answer_text(row, "endpoint", endpoints_of(link) != NULL ? endpoints_of(link) : "");
	const struct driver *driver = link->broker->peers->config->driver;
	const char *speaks =
	    link->conn.session != NULL && driver->speaks != NULL ? driver->speaks(link->conn.session) : NULL;
	answer_text(row, "speaks", speaks != NULL ? speaks : "");
	answer_text(row, "state", link_state_word(link->state));
	answer_count(row, "state_ms", ms_since(shard, link->state_since_ns));
	answer_truth(row, "writable", link_is_writable(link));
	answer_truth(row, "blocked", link->conn.blocked);
	answer_count(row, "outstanding", link->outstanding);
	answer_count(row, "outstanding_bytes", link->outstanding_bytes);
	answer_count(row, "unsent_bytes", out_unwritten(&link->out));
	answer_count(row, "window", link->window);
	answer_count(row, "lanes", link->bound_count);
	answer_truth(row, "apart", link->apart);
	answer_count(row, "probe_rtt_us", link->probe_rtt_ns / NS_PER_US);
	answer_count(row, "last_read_ms", ms_since(shard, link->health.last_read_ns));
	answer_count(row, "connects", link->connects);
	add_counts(row, COUNTERS_LINK, &link->count);
	answer_text(row, "tls", tls);
	answer_text(row, "why", link->why);
}

static void
links(struct admin_query *query)
{
	const struct link *link;
	struct page page;

	page_init(&page, query, "links");
	FOR_EACH_POOL (query, pool)
		FOR_EACH_BROKER (pool, broker)
			for (uint32_t l = 0; (link = broker_link(broker, l)) != NULL; l++) {
				struct answer row;
				if (!page_wants(&page, link->id))
					continue;
				link_row(&row, link);
				page_add(&page, &row);
			}
	page_end(&page);
}

/* ---- lanes ---- */

static void
lane_row(struct answer *row, const struct lane *lane, uint32_t *budget)
{
	const struct client *client = lane->client;
	struct census census;

	census_take(&census, lane, budget);
	answer_init(row);
	answer_count(row, "id", lane->id);
	answer_text(row, "pool", lane->pool->config->name);
	answer_count(row, "pid", (uint64_t)lane->owner.pid);
	answer_count(row, "uid", lane->owner.uid);
	answer_text(row, "name", client != NULL ? client->name : "");
	answer_truth(row, "orphan", client == NULL);
	answer_text(row, "place", lane_place_word(lane->place));
	answer_text(row, "apart", blame_word(lane->blame.state));
	answer_count(row, "verdicts", lane->blame.verdicts);
	if (lane->link != NULL)
		answer_count(row, "link", lane->link->id);
	else
		answer_null(row, "link");
	answer_count(row, "waiting", census.waiting);
	answer_truth(row, "waiting_more", census.more);
	answer_count(row, "in_flight", census.in_flight);
	if (census.oldest_ns != 0)
		answer_count(row, "oldest_ms", ms_since(lane->shard, census.oldest_ns));
	else
		answer_null(row, "oldest_ms");
	answer_count(row, "waiting_bytes", census.bytes);
	answer_count(row, "ring_bytes", lane->map.geo.sq_bytes);
	answer_count(row, "completions", lane->map.geo.cq_entries);
	answer_count(row, "completions_unread", census.unread);
	add_counts(row, COUNTERS_LANE, &lane->count);
}

static int
by_id(const void *a, const void *b)
{
	const struct lane *const *left = a, *const *right = b;

	return (*left)->id < (*right)->id ? -1 : (*left)->id > (*right)->id;
}

/* Of all lanes from `from` on, those with the lowest numbers: a page stays right while lanes come and go. */
static void
lanes(struct admin_query *query)
{
	uint32_t budget = CENSUS_BUDGET, count = 0;
	const struct lane **list = calloc(query->shard->lane_count + 1u, sizeof(*list));
	struct lane *lane;
	struct page page;

	page_init(&page, query, "lanes");
	if (list == NULL) {
		query->answer.failed = 1;
		return;
	}
	FOR_EACH_POOL (query, pool)
		TAILQ_FOREACH (lane, &pool->lanes, pool_entry)
			if (lane->id >= query->from && (!query->orphans || lane->client == NULL) &&
			    count < query->shard->lane_count)
				list[count++] = lane;
	qsort(list, count, sizeof(*list), by_id);
	for (uint32_t i = 0; i < count && page_wants(&page, list[i]->id); i++) {
		struct answer row;
		lane_row(&row, list[i], &budget);
		page_add(&page, &row);
	}
	page_end(&page);
	free(list);
}

/* ---- counters and events ---- */

static void
stats(struct admin_query *query)
{
	const struct shard *shard = query->shard;
	struct answer all, by_pool;

	answer_init(&all);
	add_counts(&all, COUNTERS_SHARD, &shard->count);
	for (int what = 0; what < ACCOUNT_KINDS; what++)
		answer_count(&all, account_counter((enum account_what)what), shard->accounts.refused[what]);
	answer_count(&all, "laneless", query->admin->front->laneless.count);
	answer_count(&all, "lane_memory_bytes", shard->accounts.used[ACCOUNT_MEMORY]);
	answer_count(&all, "resident_bytes", resident_bytes());
	answer_init(&by_pool);
	FOR_EACH_POOL (query, pool) {
		struct answer one;
		answer_init(&one);
		add_counts(&one, COUNTERS_POOL, &pool->count);
		answer_json(&by_pool, pool->config->name, answer_end(&one));
	}
	answer_json(&all, "pools", answer_end(&by_pool));
	add_allocator(&all);
	answer_json(&query->answer, "stats", answer_end(&all));
}

int
admin_event(struct answer *event, struct events *events, uint64_t seq)
{
	char line[LOG_LINE];
	enum log_level level;
	int rc = events_get(events, seq, &level, line);

	if (rc != 0)
		return rc;
	answer_init(event);
	answer_count(event, "seq", seq);
	answer_text(event, "level", log_level_word(level));
	answer_text(event, "line", line);
	return 0;
}

static void
events(struct admin_query *query)
{
	struct events *kept = &query->admin->events;
	uint64_t first = events_first(kept), next = events_next(kept);
	uint64_t from = query->since > first ? query->since : first;

	if (from > next)
		from = next;
	if (next - from > query->max)
		from = next - query->max;
	answer_count(&query->answer, "seq", next);
	answer_count(
	    &query->answer, "missed", query->since > 0 && query->since < first ? first - query->since : 0);
	json_t *list = answer_list(&query->answer, "events");
	for (uint64_t seq = from; seq < next; seq++) {
		struct answer event;
		if (admin_event(&event, kept, seq) == 0)
			answer_row(&query->answer, list, &event);
	}
}

/* ---- upgrade ---- */

static void
upgrade(struct admin_query *query)
{
	const char *why = "this daemon cannot be upgraded";
	int pid = query->admin->handover != NULL ? handover_begin(query->admin->handover, &why) : -TG_EINVAL;

	if (pid < 0) {
		snprintf(query->error, sizeof(query->error), "upgrade: %s", why);
		return;
	}
	answer_count(&query->answer, "upgrade", (uint64_t)pid);
}

/* ---- requests ---- */

static const struct {
	const char *name;
	void (*report)(struct admin_query *query);
} commands[] = {
#define X(name, function, text) { #name, function },
#include "admin_commands.def"
#undef X
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static int
number_member(struct admin_query *query, const char *key, const json_t *value, uint64_t *number, uint64_t least)
{
	if (!json_is_integer(value) || json_integer_value(value) < (json_int_t)least) {
		snprintf(query->error, sizeof(query->error), "%s: a whole number from %llu on is wanted", key,
		    (unsigned long long)least);
		return -1;
	}
	*number = (uint64_t)json_integer_value(value);
	return 0;
}

static void
unknown_pool(struct admin_query *query, const char *name)
{
	size_t at = (size_t)snprintf(
	    query->error, sizeof(query->error), "pool \"%.63s\" does not exist; there are:", name);

	for (uint32_t i = 0; i < query->shard->pool_count && at < sizeof(query->error); i++)
		at += (size_t)snprintf(
		    query->error + at, sizeof(query->error) - at, " %s", query->shard->pools[i].config->name);
}

static int
pool_member(struct admin_query *query, const json_t *value)
{
	const char *name = json_string_value(value);

	query->pool = name != NULL ? shard_pool(query->shard, name) : NULL;
	if (query->pool == NULL)
		unknown_pool(query, name != NULL ? name : "");
	return query->pool != NULL ? 0 : -1;
}

static int
member(struct admin_query *query, const char *key, const json_t *value)
{
	if (strcmp(key, "cmd") == 0)
		return 0;
	if (strcmp(key, "pool") == 0)
		return pool_member(query, value);
	if (strcmp(key, "lane") == 0)
		return number_member(query, key, value, &query->lane, 1);
	if (strcmp(key, "from") == 0)
		return number_member(query, key, value, &query->from, 0);
	if (strcmp(key, "since") == 0)
		return number_member(query, key, value, &query->since, 0);
	if (strcmp(key, "max") == 0)
		return number_member(query, key, value, &query->max, 1);
	if (strcmp(key, "orphans") == 0 || strcmp(key, "follow") == 0) {
		if (strcmp(key, "orphans") == 0)
			query->orphans = json_is_true(value);
		if (json_is_boolean(value))
			return 0;
		snprintf(query->error, sizeof(query->error), "%s: true or false is wanted", key);
		return -1;
	}
	snprintf(query->error, sizeof(query->error),
	    "member \"%.60s\" is not known; there are: cmd pool lane from since max orphans follow", key);
	return -1;
}

static void
run(struct admin_query *query, const json_t *request)
{
	const char *cmd = json_string_value(json_object_get(request, "cmd")), *key;
	json_t *value;
	size_t at, i;

	json_object_foreach ((json_t *)(uintptr_t)request, key, value)
		if (member(query, key, value) != 0)
			return;
	for (i = 0; cmd != NULL && i < COMMANDS; i++)
		if (strcmp(commands[i].name, cmd) == 0)
			break;
	if (cmd != NULL && i < COMMANDS) {
		uint64_t most = strcmp(cmd, "events") == 0 ? EVENTS_KEPT : ADMIN_PAGE;
		if (query->max > most)
			query->max = most;
		commands[i].report(query);
		return;
	}
	at = (size_t)snprintf(query->error, sizeof(query->error),
	    "cmd \"%.60s\" is not known; there are:", cmd != NULL ? cmd : "");
	for (i = 0; i < COMMANDS && at < sizeof(query->error); i++)
		at += (size_t)snprintf(query->error + at, sizeof(query->error) - at, " %s", commands[i].name);
}

json_t *
admin_answer(struct admin *admin, const json_t *request)
{
	struct admin_query query = { .admin = admin, .shard = admin->shard, .max = UINT64_MAX };

	answer_init(&query.answer);
	answer_truth(&query.answer, "ok", 1);
	run(&query, request);
	if (query.error[0] == '\0')
		return answer_end(&query.answer);
	json_decref(answer_end(&query.answer));
	answer_init(&query.answer);
	answer_truth(&query.answer, "ok", 0);
	answer_text(&query.answer, "error", query.error);
	return answer_end(&query.answer);
}
