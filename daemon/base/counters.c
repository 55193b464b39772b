#include "counters.h"

#define STRUCT_LANE struct lane_counts
#define STRUCT_LINK struct link_counts
#define STRUCT_BROKER struct broker_counts
#define STRUCT_POOL struct pool_counts
#define STRUCT_SHARD struct shard_counts

const struct counter counters[] = {
#define X(scope, name, unit, help) { COUNTERS_##scope, #name, #unit, help, offsetof(STRUCT_##scope, name) },
#include "counters.def"
#undef X
	{ .name = NULL },
};

const char *
counter_scope_word(enum counter_scope scope)
{
	static const char *const words[COUNTER_SCOPES] = {
		[COUNTERS_LANE] = "lane",
		[COUNTERS_LINK] = "link",
		[COUNTERS_BROKER] = "broker",
		[COUNTERS_POOL] = "pool",
		[COUNTERS_SHARD] = "daemon",
	};
	return words[scope];
}
