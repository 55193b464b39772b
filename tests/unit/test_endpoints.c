/* The addresses a broker learns, from good and bad announcements. */
#include "daemon/link/endpoints.h"

#include "daemon/link/broker.h"
#include "daemon/link/link.h"
#include "daemon/base/log.h"
#include "daemon/flow/pool.h"
#include "daemon/protocol/drivers.h"
#include "daemon/flow/shard.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static unsigned complaints;

static void
on_line(struct log_tap *tap, enum log_level level, const char *line, size_t len)
{
	complaints += strstr(line, "event=endpoint_ignored") != NULL;
}

static struct log_tap tap = { .line = on_line };

/* A pool of two brokers with a link each. */
struct rig {
	struct shard shard;
	struct config_pool config;
	struct config_broker configs[2];
	struct pool pool;
	struct broker brokers[2];
	struct link links[2];
	int null;
};

static int
setup(void **state)
{
	static const char *const texts[] = { "first.example:4222", "10.0.0.2:4222" };
	struct rig *rig = calloc(1, sizeof(*rig));
	const char *why;

	assert_non_null(rig);
	rig->config = (struct config_pool){ .name = (char *)(uintptr_t) "events",
		.driver = driver_find("nats"),
		.brokers = rig->configs,
		.broker_count = 2,
		.breaker = { .failures = 3, .slow_start_ms = 5000 } };
	rig->pool = (struct pool){
		.shard = &rig->shard,
		.config = &rig->config,
		.peers = { .shard = &rig->shard, .config = &rig->config, .list = rig->brokers, .count = 2 },
	};
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(address_parse(&rig->configs[i].address, texts[i], 4222, &why), 0);
		rig->brokers[i] = (struct broker){ .peers = &rig->pool.peers,
			.config = &rig->configs[i],
			.links = &rig->links[i],
			.link_count = 1 };
		rig->links[i] =
		    (struct link){ .shard = &rig->shard, .broker = &rig->brokers[i], .state = LINK_BACKOFF };
		endpoints_init(&rig->brokers[i].endpoints, 0);
	}
	complaints = 0;
	rig->null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	assert_true(rig->null >= 0);
	log_set_fd(rig->null);
	log_set_tap(&tap);
	*state = rig;
	return 0;
}

static int
teardown(void **state)
{
	struct rig *rig = *state;

	log_set_tap(NULL);
	log_set_fd(STDERR_FILENO);
	close(rig->null);
	for (unsigned i = 0; i < 2; i++) {
		endpoints_left(&rig->links[i]);
		endpoints_fini(&rig->brokers[i].endpoints);
		address_fini(&rig->configs[i].address);
	}
	free(rig);
	return 0;
}

static void
learn(struct rig *rig, const char *text, uint64_t number)
{
	endpoints_learn(&rig->brokers[0], text, strlen(text), number);
}

static void
good_addresses_are_kept_once_and_in_order(void **state)
{
	struct rig *rig = *state;
	const struct endpoints *kept = &rig->brokers[0].endpoints;

	learn(rig, "a.example:4223", 0);
	learn(rig, "[::1]:4224", 1);
	learn(rig, "A.EXAMPLE:4223", 2);
	learn(rig, "b.example", 3);
	assert_int_equal(kept->count, 3);
	assert_string_equal(kept->list[0].host, "a.example");
	assert_int_equal(kept->list[0].port, 4223);
	assert_string_equal(kept->list[1].host, "::1");
	assert_int_equal(kept->list[1].port, 4224);
	assert_string_equal(kept->list[2].text, "b.example");
	assert_int_equal(kept->list[2].port, 4222); /* the driver's */
	assert_int_equal(complaints, 0);
}

static void
a_new_list_takes_the_old_ones_place(void **state)
{
	struct rig *rig = *state;
	const struct endpoints *kept = &rig->brokers[0].endpoints;

	learn(rig, "a.example:1", 0);
	learn(rig, "b.example:2", 1);
	learn(rig, "c.example:3", 0);
	assert_int_equal(kept->count, 1);
	assert_string_equal(kept->list[0].text, "c.example:3");
	/* Also when nothing of it can be used. */
	learn(rig, "first.example:4222", 0);
	assert_int_equal(kept->count, 0);
	assert_int_equal(rig->brokers[1].endpoints.count, 0);
}

static void
text_that_is_no_address_is_ignored(void **state)
{
	static const char *const bad[] = { "", ":", "x:", ":4222", "x:0", "x:65536", "x:4222 ", "nats://x:4222",
		"unix:/run/x", "unix:x", "/run/x", "::1:4222", "[::1", "[::1]x", "[fe80::1%eth0]:4222",
		"[::1%\"]:1", "a b:1", "a\nb:1", "\xff:1", "1883", "a..b:1", "x:4222:1", "x:-1" };
	struct rig *rig = *state;
	char text[ADDRESS_TEXT + 2];

	learn(rig, "a.example:1", 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		learn(rig, bad[i], i + 1);
		assert_int_equal(rig->brokers[0].endpoints.count, 1);
	}
	endpoints_learn(&rig->brokers[0], "x:1\0y", 5, 1);
	memset(text, 'a', sizeof(text));
	endpoints_learn(&rig->brokers[0], text, sizeof(text) - 1, 1);
	endpoints_learn(&rig->brokers[0], text, 254, 1);
	assert_int_equal(rig->brokers[0].endpoints.count, 1);
	/* The log line is short, however long the list. */
	for (unsigned i = 0; i < 10000; i++)
		learn(rig, "nats://x:4222", 1);
	assert_true(complaints >= LOG_BURST && complaints <= LOG_BURST + 60);
}

static void
the_list_is_bounded(void **state)
{
	struct rig *rig = *state;
	char text[32];

	for (unsigned i = 0; i < ENDPOINTS_MAX * 4; i++) {
		snprintf(text, sizeof(text), "n%u.example:4222", i);
		learn(rig, text, i);
	}
	assert_int_equal(rig->brokers[0].endpoints.count, ENDPOINTS_MAX);
	assert_string_equal(rig->brokers[0].endpoints.list[ENDPOINTS_MAX - 1].text, "n15.example:4222");
}

static void
configured_brokers_are_not_kept(void **state)
{
	struct rig *rig = *state;

	learn(rig, "first.example:4222", 0);
	learn(rig, "FIRST.example", 1);
	learn(rig, "10.0.0.2:4222", 2);
	assert_int_equal(rig->brokers[0].endpoints.count, 0);
	learn(rig, "10.0.0.2:4223", 3);
	assert_int_equal(rig->brokers[0].endpoints.count, 1);
}

/* `failures` attempts at the own address, then endpoints and the own address alternate. */
static void
turns_begin_when_the_own_address_has_failed(void **state)
{
	struct rig *rig = *state;
	struct link *link = &rig->links[0];
	const struct address *own = &rig->configs[0].address;

	learn(rig, "a.example:1", 0);
	learn(rig, "b.example:2", 1);
	for (unsigned i = 0; i < 3; i++) {
		assert_ptr_equal(endpoints_choose(link), own);
		assert_null(endpoints_of(link));
		endpoints_failed(link);
	}
	for (unsigned i = 0; i < 6; i++) {
		const char *expected = i % 2 == 0 ? "a.example:1" : "b.example:2";
		assert_string_equal(endpoints_choose(link)->text, expected);
		assert_string_equal(endpoints_of(link), expected);
		endpoints_failed(link);
		assert_null(endpoints_of(link));
		assert_ptr_equal(endpoints_choose(link), own);
		endpoints_failed(link);
	}
	/* The list goes while a link is on its way: the link's copy stays. */
	endpoints_choose(link);
	endpoints_learn(&rig->brokers[0], "c.example:3", 11, 0);
	assert_string_equal(endpoints_of(link), "a.example:1");
}

/* The brokers' resolved addresses are known when a turn comes. */
static void
addresses_that_brokers_were_found_at_are_passed_over(void **state)
{
	struct rig *rig = *state;
	struct link *link = &rig->links[0];
	struct sockaddr_in *in = (struct sockaddr_in *)(void *)&rig->links[0].addresses[0].addr;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)(void *)&rig->links[1].addresses[1].addr;

	rig->links[0].address_count = 1;
	in->sin_family = AF_INET;
	in->sin_port = htons(4222);
	assert_int_equal(inet_pton(AF_INET, "10.0.0.1", &in->sin_addr), 1);
	rig->links[1].address_count = 2;
	in6->sin6_family = AF_INET6;
	in6->sin6_port = htons(4222);
	assert_int_equal(inet_pton(AF_INET6, "fd00::2", &in6->sin6_addr), 1);
	learn(rig, "10.0.0.1:4222", 0);
	learn(rig, "[fd00:0::2]:4222", 1);
	link->try_endpoint = 1;
	assert_ptr_equal(endpoints_choose(link), &rig->configs[0].address);
	/* Another port is another server. */
	learn(rig, "10.0.0.1:4223", 2);
	for (unsigned i = 0; i < 4; i++) {
		link->try_endpoint = 1;
		assert_string_equal(endpoints_choose(link)->text, "10.0.0.1:4223");
	}
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(good_addresses_are_kept_once_and_in_order),
		TEST(a_new_list_takes_the_old_ones_place),
		TEST(text_that_is_no_address_is_ignored),
		TEST(the_list_is_bounded),
		TEST(configured_brokers_are_not_kept),
		TEST(turns_begin_when_the_own_address_has_failed),
		TEST(addresses_that_brokers_were_found_at_are_passed_over),
	};

	return cmocka_run_group_tests_name("endpoints", tests, NULL, NULL);
}
