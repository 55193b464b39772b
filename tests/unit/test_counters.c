/* The table of counters, and the manual's section made from it. */
#include "config_scratch.h"

#include "daemon/base/counters.h"

#include <stdio.h>
#include <string.h>

static void
table_reaches_every_member_of_each_struct(void **state)
{
	static const size_t sizes[COUNTER_SCOPES] = {
		[COUNTERS_LANE] = sizeof(struct lane_counts),
		[COUNTERS_LINK] = sizeof(struct link_counts),
		[COUNTERS_BROKER] = sizeof(struct broker_counts),
		[COUNTERS_POOL] = sizeof(struct pool_counts),
		[COUNTERS_SHARD] = sizeof(struct shard_counts),
	};
	size_t next[COUNTER_SCOPES] = { 0 };
	struct link_counts link = { .framed = 1, .bytes_in = UINT64_C(1) << 40, .ready = 3 };

	(void)state;
	for (const struct counter *counter = counters; counter->name != NULL; counter++) {
		assert_int_equal(counter->offset, next[counter->scope]);
		next[counter->scope] += sizeof(uint64_t);
		if (counter->scope == COUNTERS_LINK && strcmp(counter->name, "bytes_in") == 0)
			assert_int_equal(counter_value(counter, &link), UINT64_C(1) << 40);
	}
	for (int scope = 0; scope < COUNTER_SCOPES; scope++)
		assert_int_equal(next[scope], sizes[scope]);
}

static void
manual_lists_each_counter_and_nothing_else(void **state)
{
	char *page = read_text(TG_SOURCE "/tools/man/tidegatectl.1");
	char *section = strstr(page, ".Sh COUNTERS\n");
	unsigned items = 0, known = 0;
	char item[300];

	(void)state;
	assert_non_null(section);
	char *end = strstr(section + 1, "\n.Sh ");
	assert_non_null(end);
	end[1] = '\0';
	for (const char *at = section; (at = strstr(at, "\n.It Li ")) != NULL; at++)
		items++;
	for (const struct counter *counter = counters; counter->name != NULL; counter++, known++) {
		snprintf(item, sizeof(item), "\n.It Li %s.%s\n%s %s\n", counter_scope_word(counter->scope),
		    counter->name, counter->unit, counter->help);
		if (strstr(section, item) == NULL)
			fail_msg("the manual's section COUNTERS lacks:%s", item);
	}
	assert_int_equal(items, known);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(table_reaches_every_member_of_each_struct),
		cmocka_unit_test(manual_lists_each_counter_and_nothing_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
