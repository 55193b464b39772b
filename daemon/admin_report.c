/* What the admin socket tells, as JSON. */
#include "admin.h"

#include "build_config.h"
#include "client.h"
#include "config.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#ifdef HAVE_JEMALLOC
#include <jemalloc/jemalloc.h>
#endif

static json_t *
count(uint64_t n)
{
	return json_integer((json_int_t)n);
}

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
add_allocator(json_t *to)
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
	json_t *heap = json_object();

	mallctl("epoch", &epoch, &len, &epoch, len);
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++) {
		len = sizeof(value);
		if (mallctl(figures[i].name, &value, &len, NULL, 0) == 0)
			json_object_set_new(heap, figures[i].key, count(value));
	}
	json_object_set_new(to, "jemalloc", heap);
#else
	json_object_set_new(to, "jemalloc", json_null());
#endif
}

#define FOR_EACH_BROKER(shard, pool, broker)                                                            \
	for (struct pool *pool = (shard)->pools; pool < (shard)->pools + (shard)->pool_count; pool++)   \
		for (struct broker *broker = pool->brokers; broker < pool->brokers + pool->broker_count; broker++)

static json_t *
pool_counts(const struct pool *pool)
{
	return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "accepted", count(pool->count.accepted),
	    "delivered", count(pool->count.delivered), "sent", count(pool->count.sent), "rejected",
	    count(pool->count.rejected), "expired", count(pool->count.expired), "unknown",
	    count(pool->count.unknown), "cancelled", count(pool->count.cancelled), "resent",
	    count(pool->count.resent), "bytes", count(pool->count.bytes));
}

static uint32_t
ready_links(const struct broker *broker)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < broker->link_count; i++)
		n += (uint32_t)link_is_ready(&broker->links[i]);
	return n;
}

static json_t *
status(struct shard *shard)
{
	uint32_t ready = 0, links = 0;
	uint64_t accepted = 0, finished = 0;

	FOR_EACH_BROKER (shard, pool, broker) {
		ready += ready_links(broker);
		links += broker->link_count;
	}
	for (uint32_t i = 0; i < shard->pool_count; i++) {
		const struct pool *pool = &shard->pools[i];
		accepted += pool->count.accepted;
		finished += pool->count.delivered + pool->count.sent + pool->count.rejected + pool->count.expired +
		    pool->count.unknown + pool->count.cancelled;
	}
	return json_pack("{s:s, s:i, s:o, s:b, s:i, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "version",
	    PACKAGE_VERSION, "pid", (int)getpid(), "uptime_ms", count(ms_since(shard, shard->started_ns)), "stopping",
	    shard->stopping, "clients", (int)shard->client_count, "lanes", (int)shard->lane_count, "pools",
	    (int)shard->pool_count, "links_ready", (int)ready, "links", (int)links, "accepted", count(accepted),
	    "finished", count(finished), "lane_memory_bytes", count(shard->lane_memory), "resident_bytes",
	    count(resident_bytes()));
}

static json_t *
pools(struct shard *shard)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < shard->pool_count; i++) {
		const struct pool *pool = &shard->pools[i];
		json_t *brokers = json_array();
		uint32_t ready = 0;
		for (uint32_t b = 0; b < pool->broker_count; b++) {
			const struct broker *broker = &pool->brokers[b];
			ready += (uint32_t)broker_is_ready(broker);
			if (broker->why[0] != '\0' && !broker_is_ready(broker))
				json_array_append_new(brokers,
				    json_pack("{s:s, s:s}", "broker", broker->config->address.text, "why", broker->why));
		}
		json_t *one = json_pack("{s:s, s:s, s:i, s:i, s:b, s:i, s:i, s:o}", "name", pool->config->name,
		    "protocol", pool->config->driver->name, "brokers", (int)pool->broker_count, "brokers_ready",
		    (int)ready, "writable", pool->writable, "lanes", (int)pool->lane_count, "lanes_waiting",
		    (int)pool->waiting, "failing", brokers);
		json_t *counts = pool_counts(pool);
		json_object_update(one, counts);
		json_decref(counts);
		json_array_append_new(list, one);
	}
	return list;
}

static json_t *
brokers(struct shard *shard)
{
	json_t *list = json_array();

	FOR_EACH_BROKER (shard, pool, broker) {
		json_array_append_new(list,
		    json_pack("{s:s, s:s, s:i, s:i, s:s, s:i, s:o, s:i, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:s}",
		        "pool", pool->config->name, "address", broker->config->address.text, "weight",
		        (int)broker->config->weight, "priority", (int)broker->config->priority, "breaker",
		        broker_breaker_word(broker, shard->now_ns), "consecutive_failures", (int)broker->failures,
		        "share_thousandths", count(broker_weight(broker, shard->now_ns) / broker->config->weight),
		        "links", (int)broker->link_count, "links_ready", (int)ready_links(broker), "attempts",
		        count(broker->count.attempts), "failures", count(broker->count.failures), "delivered",
		        count(broker->count.delivered), "sent", count(broker->count.sent), "rejected",
		        count(broker->count.rejected), "resent", count(broker->count.resent), "why", broker->why));
	}
	return list;
}

static json_t *
links(struct shard *shard)
{
	json_t *list = json_array();

	FOR_EACH_BROKER (shard, pool, broker) {
		for (uint32_t i = 0; i < broker->link_count; i++) {
			const struct link *link = &broker->links[i];
			json_array_append_new(list,
			    json_pack("{s:i, s:s, s:s, s:s, s:o, s:b, s:b, s:i, s:o, s:o, s:i, s:i, s:o, s:o, s:o, s:o, "
			              "s:o, s:o, s:o, s:o, s:o, s:o, s:s}",
			        "id", (int)link->id, "pool", pool->config->name, "broker", broker->config->address.text,
			        "state", link_state_word(link->state), "state_ms", count(ms_since(shard, link->state_since_ns)),
			        "writable", link_is_writable(link), "blocked", link->blocked, "outstanding",
			        (int)link->outstanding, "outstanding_bytes", count(link->outstanding_bytes), "unsent_bytes",
			        count(out_unwritten(&link->out)), "window", (int)link->window, "lanes", (int)link->bound_count,
			        "probe_rtt_us", count(link->probe_rtt_ns / NS_PER_US), "last_read_ms",
			        count(ms_since(shard, link->last_read_ns)), "connects", count(link->connects), "failures",
			        count(link->count.failures), "framed", count(link->count.framed), "delivered",
			        count(link->count.delivered), "sent", count(link->count.sent), "rejected",
			        count(link->count.rejected), "bytes_out", count(link->count.bytes_out), "bytes_in",
			        count(link->count.bytes_in), "why", link->why));
		}
	}
	return list;
}

static json_t *
lanes(struct shard *shard)
{
	json_t *list = json_array();
	struct lane *lane;

	for (uint32_t i = 0; i < shard->pool_count; i++) {
		TAILQ_FOREACH (lane, &shard->pools[i].lanes, pool_entry) {
			json_array_append_new(list,
			    json_pack("{s:o, s:s, s:i, s:s, s:b, s:s, s:o, s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, "
			              "s:o, s:o}",
			        "id", count(lane->id), "pool", lane->pool->config->name, "pid",
			        lane->client != NULL ? client_pid(lane->client) : 0, "name",
			        lane->client != NULL ? lane->client->name : "", "orphan", lane->client == NULL, "place",
			        lane_place_word(lane->place), "link", lane->link != NULL ? count(lane->link->id) : json_null(),
			        "in_flight", (int)lane->inflight, "waiting_bytes",
			        count(lane->sq.tail_seen - lane->sq.head), "ring_bytes", count(lane->map.geo.sq_bytes),
			        "completions", count(lane->map.geo.cq_entries), "records", count(lane->count.records),
			        "bytes", count(lane->count.bytes), "delivered", count(lane->count.delivered), "sent",
			        count(lane->count.sent), "rejected", count(lane->count.rejected), "expired",
			        count(lane->count.expired), "unknown", count(lane->count.unknown), "resent",
			        count(lane->count.resent)));
		}
	}
	return list;
}

static json_t *
stats(struct shard *shard)
{
	json_t *all = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "turns",
	    count(shard->count.turns), "clients_attached", count(shard->count.clients), "refused",
	    count(shard->count.refused), "lanes_opened", count(shard->count.lanes_opened), "lanes_closed",
	    count(shard->count.lanes_closed), "lanes_orphaned", count(shard->count.lanes_orphaned),
	    "lanes_quarantined", count(shard->count.lanes_quarantined), "doorbells", count(shard->count.doorbells),
	    "bells", count(shard->count.bells), "lane_memory_bytes", count(shard->lane_memory), "resident_bytes",
	    count(resident_bytes()));
	json_t *by_pool = json_object();

	for (uint32_t i = 0; i < shard->pool_count; i++)
		json_object_set_new(by_pool, shard->pools[i].config->name, pool_counts(&shard->pools[i]));
	json_object_set_new(all, "pools", by_pool);
	add_allocator(all);
	return all;
}

static const struct {
	const char *name;
	json_t *(*report)(struct shard *shard);
} commands[] = {
#define X(name, function, text) { #name, function },
#include "admin_commands.def"
#undef X
};

json_t *
admin_answer(struct shard *shard, const json_t *request)
{
	const char *cmd = json_string_value(json_object_get(request, "cmd"));
	char error[320];
	size_t at = 0;

	for (size_t i = 0; cmd != NULL && i < sizeof(commands) / sizeof(commands[0]); i++)
		if (strcmp(commands[i].name, cmd) == 0)
			return json_pack("{s:b, s:o}", "ok", 1, cmd, commands[i].report(shard));
	at += (size_t)snprintf(error, sizeof(error), "cmd \"%.60s\" is not known; there are:", cmd != NULL ? cmd : "");
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]) && at < sizeof(error); i++)
		at += (size_t)snprintf(error + at, sizeof(error) - at, " %s", commands[i].name);
	return json_pack("{s:b, s:s}", "ok", 0, "error", error);
}
