/* daemon/admin/admin.h: answers are whole and valid JSON whatever clients and brokers say, or none at all. */
#include "daemon/life/config_load.h"
#include "daemon/admin/admin.h"
#include "daemon/front/census.h"
#include "daemon/front/client.h"
#include "daemon/config/config_node.h"
#include "daemon/life/loop.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#define MANY 4096u

static const char config_text[] =
    "socket = \"/nowhere/s\"; admin = \"/nowhere/a\"; limits = { lanes = 8192; };\n"
    "pools = ( { name = \"events\"; protocol = \"mqtt\"; links = 2;\n"
    "            brokers = ( { address = \"127.0.0.1:1\"; }, { address = \"127.0.0.1:2\"; } ); },\n"
    "          { name = \"other\"; protocol = \"mqtt\"; brokers = ( { address = \"127.0.0.1:3\"; } ); } );\n";

/* A daemon's objects without sockets: links are never started, lanes are opened by hand. */
struct world_of_one {
	struct config *config;
	struct loop loop;
	struct admin admin;
	struct client client;
	int null;
};

static int
setup(void **state)
{
	struct world_of_one *w = calloc(1, sizeof(*w));
	char file[] = "/tmp/tidegate-test-admin-XXXXXX";
	struct config_report report = { .file = file };

	assert_non_null(w);
	w->null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	log_set_fd(w->null);
	int fd = mkstemp(file);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, config_text, sizeof(config_text) - 1), sizeof(config_text) - 1);
	close(fd);
	assert_int_equal(config_load(&w->config, file, &report), 0);
	unlink(file);
	assert_int_equal(loop_init(&w->loop, w->config), 0);
	assert_int_equal(admin_init(&w->admin, &w->loop.front, &w->loop.uv), 0);
	w->client.front = &w->loop.front;
	w->client.shard = &w->loop.shard;
	w->client.attach = (struct attach *)(void *)w; /* one is always on its way: it is never laneless */
	w->client.pid = 77;
	w->client.uid = 7;
	TAILQ_INIT(&w->client.asleep);
	TAILQ_INIT(&w->client.lanes);
	*state = w;
	return 0;
}

static int
teardown(void **state)
{
	struct world_of_one *w = *state;

	admin_fini(&w->admin);
	loop_fini(&w->loop);
	config_free(w->config);
	log_set_fd(STDERR_FILENO);
	log_set_level(LOG_LEVEL_INFO);
	close(w->null);
	free(w);
	return 0;
}

/* The clients' side of the lanes that were opened last. */
#define CLIENT_MAPS 64u
static struct lane_map client_maps[CLIENT_MAPS];

static struct lane *
open_lane(struct world_of_one *w, struct pool *pool, uint64_t sq_bytes)
{
	struct shard *shard = &w->loop.shard;
	struct lane_geometry geo;
	struct lane *lane;

	assert_int_equal(lane_geometry_make(&geo, sq_bytes, 128), 0);
	struct lane_header header = { .lane_id = ++shard->lane_ids };
	struct lane_map *map = &client_maps[header.lane_id % CLIENT_MAPS];
	lane_map_fini(map);
	const struct lane_memory memory = {
		.geo = geo, .ring = lane_ring_make(map, &geo), .answers = -1, .old_answers = -1, .bell = -1
	};
	assert_true(memory.ring >= 0);
	assert_int_equal(lane_new(&lane, &header, pool, &w->client, &memory), 0);
	assert_int_equal(lane_map_answers(map, lane->answers, LANE_READ, 0), 0);
	TAILQ_INSERT_TAIL(&w->client.lanes, lane, client_entry);
	w->client.lane_count++;
	return lane;
}

/* Commits records of no body, as a client would. */
static void
publish(struct lane *lane, uint32_t count)
{
	struct sq_producer sq;
	int error;

	sq_producer_init(&sq, &client_maps[lane->id % CLIENT_MAPS], lane->sq.tail_seen);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t size = record_bytes(1, 0, 0, 0);
		struct record *record = sq_reserve(&sq, size, &error);
		assert_non_null(record);
		*record = (struct record){ .size = (uint32_t)size,
			.check = record_check(sq.tail),
			.published_ns = lane->shard->now_ns,
			.topic_len = 1 };
		sq_commit(&sq, size);
	}
	sq_publish(&sq);
}

static json_t *
ask(struct world_of_one *w, const char *request)
{
	json_t *json = json_loads(request, 0, NULL);

	assert_non_null(json);
	json_t *answer = admin_answer(&w->admin, json);
	json_decref(json);
	return answer;
}

/* Formats the answer as text and parses it again, as an administrator's program would. */
static json_t *
ask_as_text(struct world_of_one *w, const char *request)
{
	json_t *answer = ask(w, request);
	json_error_t error;

	assert_non_null(answer);
	char *text = json_dumps(answer, JSON_COMPACT);
	assert_non_null(text);
	for (const char *c = text; *c != '\0'; c++)
		assert_true((unsigned char)*c >= 0x20 && *c != 0x7f);
	assert_null(strstr(text, "\\u00"));
	json_t *again = json_loads(text, 0, &error);
	assert_non_null(again);
	assert_true(json_equal(answer, again));
	free(text);
	json_decref(answer);
	return again;
}

static const char *
why_text(json_t *answer, size_t row)
{
	return json_string_value(json_object_get(json_array_get(json_object_get(answer, "why"), row), "text"));
}

static const char *const requests[] = { "{\"cmd\":\"status\"}", "{\"cmd\":\"pools\"}", "{\"cmd\":\"brokers\"}",
	"{\"cmd\":\"links\"}", "{\"cmd\":\"links\",\"pool\":\"other\"}", "{\"cmd\":\"lanes\"}",
	"{\"cmd\":\"lanes\",\"max\":1}", "{\"cmd\":\"stats\"}", "{\"cmd\":\"why\"}",
	"{\"cmd\":\"why\",\"lane\":1}", "{\"cmd\":\"events\"}", "{\"cmd\":\"dance\"}",
	"{\"cmd\":\"lanes\",\"pool\":\"nope\"}" };

#define REQUESTS (sizeof(requests) / sizeof(requests[0]))

static void
hostile_text_makes_valid_json(void **state)
{
	struct world_of_one *w = *state;
	struct link *link = &w->loop.shard.pools[0].peers.list[0].links[0];
	unsigned seed = 1;

	publish(open_lane(w, &w->loop.shard.pools[0], LANE_SQ_MIN), 3);
	for (int round = 0; round < 300; round++) {
		char *const texts[] = { w->client.name, link->why, link->broker->why };
		const size_t sizes[] = { sizeof(w->client.name), sizeof(link->why), sizeof(link->broker->why) };
		for (size_t t = 0; t < 3; t++) {
			size_t len = (size_t)rand_r(&seed) % sizes[t];
			for (size_t i = 0; i < len; i++)
				texts[t][i] = (char)(1 + rand_r(&seed) % 255);
			texts[t][len] = '\0';
		}
		link->state = (enum link_state)(round % LINK_STATES);
		for (size_t r = 0; r < REQUESTS; r++)
			json_decref(ask_as_text(w, requests[r]));
	}
	link->state = LINK_IDLE;
}

/* ---- memory ---- */

static uint64_t allowed = UINT64_MAX;

static void *
failing_malloc(size_t size)
{
	if (allowed == 0)
		return NULL;
	allowed--;
	return malloc(size);
}

static void
without_memory_there_is_no_answer_or_all_of_it(void **state)
{
	struct world_of_one *w = *state;

	for (int i = 0; i < 3; i++)
		publish(open_lane(w, &w->loop.shard.pools[i % 2], LANE_SQ_MIN), 2);
	for (int i = 0; i < 5; i++)
		log_event(LOG_LEVEL_INFO, "test", "n=%d", i);
	snprintf(w->loop.shard.pools[0].peers.list[1].why, 200, "refused");
	for (size_t r = 0; r < REQUESTS; r++) {
		json_t *request = json_loads(requests[r], 0, NULL);
		/* Figures of the process itself change from one answer to the next. */
		if (strstr(requests[r], "stat") != NULL) {
			json_decref(request);
			continue;
		}
		json_t *whole = admin_answer(&w->admin, request);
		assert_non_null(whole);
		uint64_t n = 0;
		json_set_alloc_funcs(failing_malloc, free);
		for (;; n++) {
			allowed = n;
			json_t *answer = admin_answer(&w->admin, request);
			int enough = allowed > 0;
			allowed = UINT64_MAX;
			assert_true(answer == NULL || json_equal(answer, whole));
			json_decref(answer);
			if (enough)
				break;
		}
		json_set_alloc_funcs(malloc, free);
		assert_true(n > 5);
		json_decref(request);
		json_decref(whole);
	}
}

/* ---- many lanes ---- */

static double
cpu_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static void
report_of_many_lanes_is_made_in_short_pages(void **state)
{
	struct world_of_one *w = *state;
	uint64_t from = 0, seen = 0;
	double longest = 0, sum = 0;

	for (uint32_t i = 0; i < MANY; i++)
		publish(open_lane(w, &w->loop.shard.pools[i % 2], LANE_SQ_MIN), 2);
	do {
		char request[64];
		snprintf(
		    request, sizeof(request), "{\"cmd\":\"lanes\",\"from\":%llu}", (unsigned long long)from);
		double start = cpu_ms();
		json_t *answer = ask(w, request);
		char *text = json_dumps(answer, JSON_COMPACT);
		double ms = cpu_ms() - start;
		free(text);
		longest = ms > longest ? ms : longest;
		sum += ms;
		json_t *rows = json_object_get(answer, "lanes"), *row;
		size_t i;
		assert_true(json_array_size(rows) > 0 && json_array_size(rows) <= ADMIN_PAGE);
		json_array_foreach (rows, i, row)
			assert_int_equal(json_integer_value(json_object_get(row, "id")), ++seen);
		from = (uint64_t)json_integer_value(json_object_get(answer, "next"));
		assert_true(from == 0 || from == seen + 1);
		json_decref(answer);
	} while (from != 0);
	assert_int_equal(seen, MANY);
	double start = cpu_ms();
	json_t *answer = ask(w, "{\"cmd\":\"why\"}");
	double why_ms = cpu_ms() - start;
	assert_string_equal(why_text(answer, 1) != NULL ? "two pools" : "", "two pools");
	assert_non_null(strstr(why_text(answer, 0), "lanes 1, 3, 5, 7 and 2,044 more: "));
	json_decref(answer);
	printf("%u lanes: %.1f ms of CPU in pages of %u, the longest %.2f ms; why %.2f ms\n", MANY, sum,
	    ADMIN_PAGE, longest, why_ms);
}

static void
page_goes_on_where_lanes_have_gone(void **state)
{
	struct world_of_one *w = *state;
	struct lane *lanes[5];

	for (int i = 0; i < 5; i++)
		lanes[i] = open_lane(w, &w->loop.shard.pools[i % 2], LANE_SQ_MIN);
	json_t *first = ask(w, "{\"cmd\":\"lanes\",\"max\":2}");
	assert_int_equal(json_integer_value(json_object_get(first, "next")), 3);
	json_decref(first);
	lane_quarantine(lanes[2], "test");
	json_t *second = ask(w, "{\"cmd\":\"lanes\",\"max\":2,\"from\":3}");
	json_t *rows = json_object_get(second, "lanes");
	assert_int_equal(json_integer_value(json_object_get(json_array_get(rows, 0), "id")), 4);
	assert_int_equal(json_integer_value(json_object_get(json_array_get(rows, 1), "id")), 5);
	assert_null(json_object_get(second, "next"));
	json_decref(second);
	json_t *gone = ask(w, "{\"cmd\":\"why\",\"lane\":3}");
	assert_non_null(strstr(json_string_value(json_object_get(gone, "error")), "does not exist any more"));
	json_decref(gone);
	lane_orphan(lanes[2]); /* its client closes it */
}

/* ---- the ring ---- */

static void
records_in_the_ring_are_counted_without_touching_it(void **state)
{
	struct world_of_one *w = *state;
	struct lane *lane = open_lane(w, &w->loop.shard.pools[0], LANE_SQ_MIN);
	struct sq_consumer before;

	publish(lane, 17);
	before = lane->sq;
	json_t *answer = ask(w, "{\"cmd\":\"why\",\"lane\":1}");
	assert_non_null(
	    strstr(why_text(answer, 0), "lane 1: 17 records wait: pool \"events\" has no writable link: "));
	json_decref(answer);
	assert_memory_equal(&before, &lane->sq, sizeof(before));
	assert_int_equal(lane->place, LANE_ACTIVE);
}

static void
count_has_a_limit_and_says_so(void **state)
{
	struct world_of_one *w = *state;
	struct lane *lane = open_lane(w, &w->loop.shard.pools[0], UINT64_C(4) << 20);

	publish(lane, 40000);
	json_t *answer = ask(w, "{\"cmd\":\"why\",\"lane\":1}");
	assert_non_null(
	    strstr(why_text(answer, 0), "lane 1: at least 32,768 records (2.1 MiB of ring) wait: "));
	json_decref(answer);
	answer = ask(w, "{\"cmd\":\"lanes\"}");
	json_t *row = json_array_get(json_object_get(answer, "lanes"), 0);
	assert_int_equal(json_integer_value(json_object_get(row, "waiting")), CENSUS_BUDGET);
	assert_true(json_is_true(json_object_get(row, "waiting_more")));
	json_decref(answer);
}

static void
broken_ring_is_reported_not_followed(void **state)
{
	struct world_of_one *w = *state;
	struct lane *lane = open_lane(w, &w->loop.shard.pools[0], LANE_SQ_MIN);
	struct lane_map *map = &client_maps[lane->id % CLIENT_MAPS];
	unsigned seed = 3;

	publish(lane, 5);
	memset(map->sq + 2 * record_bytes(1, 0, 0, 0), 0, 8);
	json_t *answer = ask(w, "{\"cmd\":\"why\",\"lane\":1}");
	assert_non_null(strstr(why_text(answer, 0), "2 records wait: then the ring is broken"));
	json_decref(answer);
	for (int round = 0; round < 2000; round++) {
		for (uint32_t *word = (uint32_t *)(void *)map->sq;
		     word < (uint32_t *)(void *)(map->sq + LANE_SQ_MIN); word++)
			*word = (uint32_t)rand_r(&seed);
		order_store_relaxed_64(
		    &map->client->sq_tail, (uint64_t)rand_r(&seed) * (round % 3 == 0 ? 8 : 1));
		order_store_relaxed_64(&map->client->cq_head, (uint64_t)rand_r(&seed));
		json_decref(ask_as_text(w, "{\"cmd\":\"why\"}"));
		json_decref(ask_as_text(w, "{\"cmd\":\"lanes\"}"));
	}
	assert_int_equal(lane->place, LANE_ACTIVE);
	assert_int_equal(w->loop.shard.count.lanes_quarantined, 0);
}

/* ---- events ---- */

static void
last_events_are_kept_whatever_the_level(void **state)
{
	struct world_of_one *w = *state;
	char line[LOG_LINE];
	enum log_level level;

	log_set_level(LOG_LEVEL_ERROR);
	uint64_t start = events_next(&w->admin.events);
	log_event(LOG_LEVEL_INFO, "kept", "n=1");
	log_event(LOG_LEVEL_DEBUG, "chatter", "n=2");
	log_event(LOG_LEVEL_DEBUG, "link_state", "n=3");
	assert_int_equal(events_next(&w->admin.events), start + 2);
	assert_int_equal(events_get(&w->admin.events, start + 1, &level, line), 0);
	assert_non_null(strstr(line, "level=debug event=link_state n=3"));
	assert_int_equal(level, LOG_LEVEL_DEBUG);
	for (uint32_t i = 0; i < EVENTS_KEPT; i++)
		log_event(LOG_LEVEL_WARN, "many", "i=%u", i);
	assert_int_equal(events_first(&w->admin.events), start + 2);
	assert_int_equal(events_get(&w->admin.events, start + 1, &level, line), -TG_ENOTFOUND);
	json_t *answer = ask_as_text(w, "{\"cmd\":\"events\",\"since\":1}");
	assert_int_equal(json_integer_value(json_object_get(answer, "missed")), start + 1);
	assert_int_equal(json_array_size(json_object_get(answer, "events")), EVENTS_KEPT);
	assert_int_equal(json_integer_value(json_object_get(answer, "seq")), start + 2 + EVENTS_KEPT);
	json_decref(answer);
	answer = ask(w, "{\"cmd\":\"events\",\"max\":1}");
	json_t *event = json_array_get(json_object_get(answer, "events"), 0);
	assert_non_null(strstr(json_string_value(json_object_get(event, "line")), "event=many i=1023"));
	json_decref(answer);
}

/* Lets the loop work until it has nothing to do. */
static void
settle(struct world_of_one *w)
{
	for (int i = 0; i < 20; i++)
		uv_run(&w->loop.uv, UV_RUN_NOWAIT);
}

static int
connect_admin(struct world_of_one *w)
{
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	admin_accept(&w->admin, pair[0]);
	return pair[1];
}

static void
say(int fd, const char *text)
{
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void
follower_that_does_not_read_is_cut_off(void **state)
{
	struct world_of_one *w = *state;
	int slow = connect_admin(w), quick = connect_admin(w);
	char pad[1800], buffer[65536];
	size_t logged = 0, read_back = 0;

	memset(pad, 'x', sizeof(pad) - 1);
	pad[sizeof(pad) - 1] = '\0';
	say(slow, "{\"cmd\":\"events\",\"follow\":true}\n");
	say(quick, "{\"cmd\":\"events\",\"follow\":true}\n");
	settle(w);
	assert_int_equal(w->admin.connections, 2);
	while (w->admin.connections == 2 && logged < 4 * (size_t)ADMIN_QUEUED) {
		ssize_t n;
		log_event(LOG_LEVEL_INFO, "pad", "x=%s", pad);
		logged += sizeof(pad);
		settle(w);
		while ((n = read(quick, buffer, sizeof(buffer))) > 0)
			read_back += (size_t)n;
	}
	assert_int_equal(w->admin.connections, 1);
	assert_true(logged > ADMIN_QUEUED - (1u << 20) && logged < 2 * (size_t)ADMIN_QUEUED);
	assert_true(read_back > logged);
	say(quick, "{\"cmd\":\"status\"}\n");
	settle(w);
	ssize_t n = read(quick, buffer, sizeof(buffer) - 1);
	assert_true(n > 0);
	buffer[n] = '\0';
	assert_non_null(strstr(buffer, "{\"ok\":true,\"status\":"));
	close(slow);
	close(quick);
	settle(w);
	assert_int_equal(w->admin.connections, 0);
}

static void
client_that_asks_without_reading_gets_one_answer(void **state)
{
	struct world_of_one *w = *state;
	int fd = connect_admin(w);
	size_t lines = 0, left = 0;
	char buffer[65536], all[300 * 16 + 1] = "";

	for (uint32_t i = 0; i < 300; i++)
		open_lane(w, &w->loop.shard.pools[0], LANE_SQ_MIN);
	for (int i = 0; i < 300; i++)
		strcat(all, "{\"cmd\":\"lanes\"}\n");
	say(fd, all);
	settle(w);
	settle(w);
	/* If all 300 answers (45 MB) were made at once, the daemon would cut the connection off. */
	assert_int_equal(w->admin.connections, 1);
	for (int idle = 0; idle < 50; idle++) {
		ssize_t n;
		settle(w);
		while ((n = read(fd, buffer, sizeof(buffer))) > 0) {
			idle = 0;
			left += (size_t)n;
			for (ssize_t i = 0; i < n; i++)
				lines += buffer[i] == '\n';
		}
	}
	assert_int_equal(lines, 300);
	assert_true(left > 300u * 300u * 100u);
	close(fd);
	settle(w);
	assert_int_equal(w->admin.connections, 0);
}

int
main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(hostile_text_makes_valid_json),
		TEST(without_memory_there_is_no_answer_or_all_of_it),
		TEST(report_of_many_lanes_is_made_in_short_pages),
		TEST(page_goes_on_where_lanes_have_gone),
		TEST(records_in_the_ring_are_counted_without_touching_it),
		TEST(count_has_a_limit_and_says_so),
		TEST(broken_ring_is_reported_not_followed),
		TEST(last_events_are_kept_whatever_the_level),
		TEST(follower_that_does_not_read_is_cut_off),
		TEST(client_that_asks_without_reading_gets_one_answer),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
