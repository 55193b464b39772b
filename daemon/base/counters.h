/*
 * Counters: one struct for each scope of counters.def, and the table that names them.
 *
 * A struct is its object's. One thread: the shard's.
 */
#ifndef TG_DAEMON_COUNTERS_H
#define TG_DAEMON_COUNTERS_H

#include <stddef.h>
#include <stdint.h>

enum counter_scope {
	COUNTERS_LANE,
	COUNTERS_LINK,
	COUNTERS_BROKER,
	COUNTERS_POOL,
	COUNTERS_SHARD,
	COUNTER_SCOPES
};

/* Members of one scope: X selects by pasting the scope's name to IN_, which is defined for one scope at a time. */
#define COUNTERS_IN_LANE(name)
#define COUNTERS_IN_LINK(name)
#define COUNTERS_IN_BROKER(name)
#define COUNTERS_IN_POOL(name)
#define COUNTERS_IN_SHARD(name)
#define X(scope, name, unit, help) COUNTERS_IN_##scope(name)

#undef COUNTERS_IN_LANE
#define COUNTERS_IN_LANE(name) uint64_t name;
struct lane_counts {
#include "counters.def"
};
#undef COUNTERS_IN_LANE
#define COUNTERS_IN_LANE(name)

#undef COUNTERS_IN_LINK
#define COUNTERS_IN_LINK(name) uint64_t name;
struct link_counts {
#include "counters.def"
};
#undef COUNTERS_IN_LINK
#define COUNTERS_IN_LINK(name)

#undef COUNTERS_IN_BROKER
#define COUNTERS_IN_BROKER(name) uint64_t name;
struct broker_counts {
#include "counters.def"
};
#undef COUNTERS_IN_BROKER
#define COUNTERS_IN_BROKER(name)

#undef COUNTERS_IN_POOL
#define COUNTERS_IN_POOL(name) uint64_t name;
struct pool_counts {
#include "counters.def"
};
#undef COUNTERS_IN_POOL
#define COUNTERS_IN_POOL(name)

#undef COUNTERS_IN_SHARD
#define COUNTERS_IN_SHARD(name) uint64_t name;
struct shard_counts {
#include "counters.def"
};
#undef COUNTERS_IN_SHARD
#undef COUNTERS_IN_POOL
#undef COUNTERS_IN_BROKER
#undef COUNTERS_IN_LINK
#undef COUNTERS_IN_LANE
#undef X

struct counter {
	enum counter_scope scope;
	const char *name, *unit, *help;
	size_t offset; /* in the scope's struct */
};

/* In the order of counters.def; the last has no name. */
extern const struct counter counters[];

/* The value of a counter in its scope's struct. */
static inline uint64_t
counter_value(const struct counter *counter, const void *counts)
{
	return *(const uint64_t *)(const void *)((const char *)counts + counter->offset);
}

/* The scope's word in the manual: "lane", "link", "broker", "pool", "daemon". */
const char *counter_scope_word(enum counter_scope scope);

#endif
