/* libtidegate: the records it writes, the completions it reads, and the arguments it refuses. */
#include "fake_daemon.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>

#define assert_detail(part) assert_non_null(strstr(tg_client_detail(NULL), part))

struct setup {
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	struct fake_lane *peer;
};

static int
setup_of(void **state, uint64_t ring_bytes)
{
	struct setup *s = calloc(1, sizeof(*s));
	struct tg_lane_options options = { .ring_bytes = ring_bytes };
	struct tg_client_options client_options = { .socket = s->fake.path };

	fake_start(&s->fake, FAKE_HOLD);
	assert_int_equal(tg_client_open(&s->client, &client_options), 0);
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", &options), 0);
	s->peer = fake_lane(&s->fake);
	*state = s;
	return 0;
}

static int
setup_small(void **state)
{
	return setup_of(state, LANE_SQ_MIN);
}

static int
teardown(void **state)
{
	struct setup *s = *state;

	tg_client_close(s->client);
	fake_stop(&s->fake);
	free(s);
	return 0;
}

static int
publish(struct setup *s, const char *topic, const void *body, size_t len, uint64_t tag, uint32_t flags)
{
	struct tg_message m = { .topic = topic,
		.topic_len = topic != NULL ? TG_NUL : 0,
		.body = body,
		.body_len = len,
		.tag = tag,
		.flags = flags };

	return tg_publish(s->lane, &m, NULL);
}

/* ---- records ---- */

static void
record_holds_the_published_message(void **state)
{
	struct setup *s = *state;
	static const struct tg_header headers[] = { { "kind", "order", TG_NUL, 5 }, { "emptyXX", NULL, 5, 0 } };
	struct tg_message m = { .topic = "orders/newXX",
		.topic_len = 10,
		.key = "k\0y",
		.key_len = 3,
		.body = "body",
		.body_len = 4,
		.headers = headers,
		.header_count = 2,
		.tag = UINT64_C(0xfedcba9876543210),
		.timeout_ms = 1234,
		.expiry_ms = 5678,
		.flags = TG_RETAIN };
	static const uint8_t packed[] = { 4, 0, 5, 0, 'k', 'i', 'n', 'd', 'o', 'r', 'd', 'e', 'r', 5, 0, 0, 0,
		'e', 'm', 'p', 't', 'y' };
	uint64_t position = 99, at;
	struct record r;
	const uint8_t *bytes;

	assert_int_equal(tg_publish(s->lane, &m, &position), 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_int_equal(position, at);
	assert_int_equal(r.tag, m.tag);
	assert_int_equal(r.timeout_ms, 1234);
	assert_int_equal(r.expiry_ms, 5678);
	assert_int_equal(r.flags, RECORD_F_RETAIN);
	assert_int_equal(r.cancel, 0);
	assert_true(r.published_ns > 0);
	assert_int_equal(r.topic_len, 10);
	assert_memory_equal(bytes, "orders/new", 10);
	assert_int_equal(r.key_len, 3);
	assert_memory_equal(bytes + 10, "k\0y", 3);
	assert_int_equal(r.headers_len, sizeof(packed));
	assert_memory_equal(bytes + 13, packed, sizeof(packed));
	assert_int_equal(r.body_len, 4);
	assert_memory_equal(bytes + 13 + sizeof(packed), "body", 4);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 0);

	/* Nothing but a NUL-terminated topic; and nothing at all. */
	assert_int_equal(publish(s, "topic", NULL, 0, 0, 0), 0);
	assert_int_equal(publish(s, NULL, NULL, 0, 0, 0), 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_int_equal(r.topic_len, 5);
	assert_int_equal(r.size, 56);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_int_equal(r.size, 48);
}

static void
completion_comes_back_whole(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[4];
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .tag = 77 };
	uint64_t position;

	assert_int_equal(tg_poll(s->lane, c, 4), 0);
	assert_int_equal(tg_publish(s->lane, &m, &position), 0);
	assert_int_equal(tg_outstanding(s->lane), 1);
	fake_lane_drain(s->peer, TG_REJECTED);
	assert_int_equal(tg_outstanding(s->lane), 1);
	assert_int_equal(tg_poll(s->lane, c, 4), 1);
	assert_int_equal(c[0].position, position);
	assert_int_equal(c[0].tag, 77);
	assert_int_equal(c[0].reference, position + 1);
	assert_int_equal(c[0].elapsed_us, 7);
	assert_int_equal(c[0].code, 135);
	assert_int_equal(c[0].outcome, TG_REJECTED);
	assert_int_equal(c[0].attempts, 1);
	assert_int_equal(tg_outstanding(s->lane), 0);
	assert_int_equal(tg_poll(s->lane, c, 4), 0);
	assert_int_equal(tg_poll(s->lane, c, 0), 0);
	assert_int_equal(tg_poll(s->lane, NULL, 1), -TG_EINVAL);
}

/* An empty slice of another language points anywhere, and no NUL follows. */
static void
length_zero_reads_no_byte(void **state)
{
	struct setup *s = *state;
	const struct tg_header header = { "n", (const void *)1, TG_NUL, 0 };
	const struct tg_message m = { .topic = (const char *)1,
		.key = (const void *)1,
		.body = (const void *)1,
		.headers = &header,
		.header_count = 1 };
	struct record r;
	const uint8_t *bytes;
	uint64_t at;

	assert_int_equal(tg_publish(s->lane, &m, NULL), 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_int_equal(r.topic_len, 0);
	assert_int_equal(r.key_len, 0);
	assert_int_equal(r.body_len, 0);
	assert_int_equal(r.headers_len, 4 + 1);
}

static void
header_lengths_that_wrap_around_are_too_big(void **state)
{
	struct setup *s = *state;
	const struct tg_header headers[] = { { "n", "v", SIZE_MAX - 8, 1 }, { "n", "v", 1, SIZE_MAX - 3 } };
	struct tg_message m = { .topic = "t", .topic_len = 1, .header_count = 1 };

	for (unsigned i = 0; i < 2; i++) {
		m.headers = &headers[i];
		assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
		assert_detail("at most 65535");
	}
}

static void
wrong_arguments_are_named(void **state)
{
	struct setup *s = *state;
	struct tg_header bad = { .name = NULL, .name_len = TG_NUL };
	struct tg_header no_value = { .name = "n", .name_len = TG_NUL, .value_len = 1 };
	struct tg_header no_name = { .name = "n", .value = "v", .value_len = 1 };
	const struct tg_message wrong[] = {
		{ .topic_len = 1 },
		{ .topic = "t", .topic_len = TG_NUL, .key_len = 1 },
		{ .topic = "t", .topic_len = TG_NUL, .body_len = 1 },
		{ .topic = "t", .topic_len = TG_NUL, .flags = 4 },
		{ .topic = "t", .topic_len = TG_NUL, .header_count = 1 },
		{ .topic = "t", .topic_len = TG_NUL, .header_count = 1, .headers = &bad },
		{ .topic = "t", .topic_len = TG_NUL, .header_count = 1, .headers = &no_value },
		{ .topic = "t", .topic_len = TG_NUL, .header_count = 1, .headers = &no_name },
	};
	struct tg_message good = { .topic = "t", .topic_len = TG_NUL };
	struct record r;
	const uint8_t *bytes;
	uint64_t at;

	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(tg_publish(s->lane, &wrong[i], NULL), -TG_EINVAL);
		assert_detail("lane 1: ");
	}
	assert_int_equal(tg_publish(s->lane, NULL, NULL), -TG_EINVAL);
	assert_int_equal(tg_publish(NULL, &good, NULL), -TG_EINVAL);
	assert_int_equal(tg_publish_batch(s->lane, NULL, 1, NULL), -TG_EINVAL);
	assert_int_equal(tg_publish_batch(s->lane, &good, 0, NULL), 0);
	assert_int_equal(tg_publish_sync(s->lane, &good, 0, NULL), -TG_EINVAL);
	assert_int_equal(tg_reserve(s->lane, &good, NULL), -TG_EINVAL);
	assert_int_equal(tg_commit(s->lane, 0, NULL), -TG_EINVAL);
	assert_int_equal(tg_abort(s->lane), -TG_EINVAL);
	assert_int_equal(tg_reason(s->lane, NULL, 5, NULL), -TG_EINVAL);
	assert_int_equal(tg_wait(NULL, 0), -TG_EINVAL);
	assert_int_equal(tg_flush(NULL, 0), -TG_EINVAL);
	assert_int_equal(tg_fd(NULL), -TG_EINVAL);
	assert_int_equal(tg_writable(NULL), -TG_EINVAL);
	assert_int_equal(tg_outstanding(NULL), -TG_EINVAL);
	assert_int_equal(tg_cancel(NULL, 0), -TG_EINVAL);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 0);
}

static void
too_big_names_the_limit(void **state)
{
	struct setup *s = *state;
	static char bytes[70000];
	struct tg_header header = { "name", bytes, TG_NUL, 65531 };
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body = bytes };

	memset(bytes, 'x', sizeof(bytes) - 1);
	m.body_len = 8192 - 48 - 1;
	assert_int_equal(tg_publish(s->lane, &m, NULL), 0);
	m.body_len++;
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
	assert_detail("8200");
	assert_detail("8192");
	m.body_len = SIZE_MAX;
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
	m.body_len = 0;
	m.topic = bytes;
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
	assert_detail("topic has 69999 bytes, at most 65535");
	m.topic = "t";
	m.key = bytes;
	m.key_len = 65536;
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
	assert_detail("key has 65536");
	m.key_len = 0;
	m.headers = &header;
	m.header_count = 1;
	assert_int_equal(tg_publish(s->lane, &m, NULL), -TG_ETOOBIG);
	assert_detail("headers");
	assert_detail("65539");
	assert_int_equal(tg_outstanding(s->lane), 1);
}

/* ---- room ---- */

static void
full_ring_is_eagain_and_changes_nothing(void **state)
{
	struct setup *s = *state;
	static char body[4000];
	struct tg_completion c[8];
	uint64_t tail;
	int n = 0, rc;

	while ((rc = publish(s, "t", body, sizeof(body), 0, 0)) == 0)
		n++;
	assert_int_equal(rc, -TG_EAGAIN);
	assert_int_equal(n, 4); /* of 4,056 bytes in 16,384 */
	assert_detail("lane 1: the record needs 4056 bytes, 160 of the ring's 16384 are free");
	tail = order_load_relaxed_64(&s->peer->map.client->sq_tail);
	assert_int_equal(publish(s, "t", body, sizeof(body), 0, 0), -TG_EAGAIN);
	assert_int_equal(order_load_relaxed_64(&s->peer->map.client->sq_tail), tail);
	assert_int_equal(publish(s, "t", body, 100, 0, 0), 0); /* a smaller one fits */
	assert_int_equal(fake_lane_drain(s->peer, TG_DELIVERED), 5);
	assert_int_equal(tg_wait(s->lane, 0), 0);
	assert_int_equal(tg_poll(s->lane, c, 8), 5);
	assert_int_equal(publish(s, "t", body, sizeof(body), 0, 0), 0);
}

static void
no_record_without_a_completion_slot(void **state)
{
	struct setup *s = *state;
	struct tg_completion c;
	int n = 0;

	while (publish(s, NULL, NULL, 0, 0, 0) == 0)
		n++;
	assert_int_equal(n, 128);
	assert_detail("128 of 128 completion slots");
	assert_int_equal(fake_lane_drain(s->peer, TG_DELIVERED), 128);
	assert_int_equal(publish(s, NULL, NULL, 0, 0, 0), -TG_EAGAIN); /* answered, but not read */
	assert_int_equal(tg_poll(s->lane, &c, 1), 1);
	assert_int_equal(publish(s, NULL, NULL, 0, 0, 0), 0);
	assert_int_equal(publish(s, NULL, NULL, 0, 0, 0), -TG_EAGAIN);
}

static void
quiet_successes_are_never_seen(void **state)
{
	struct setup *s = *state;
	struct tg_completion c[8];

	for (uint64_t i = 0; i < 10000; i++) {
		assert_int_equal(publish(s, "t", "b", 1, i, TG_QUIET), 0);
		if (i % 100 == 99)
			fake_lane_drain(s->peer, i % 200 == 99 ? TG_DELIVERED : TG_SENT);
	}
	assert_int_equal(tg_outstanding(s->lane), 0);
	assert_int_equal(tg_poll(s->lane, c, 8), 0);
	assert_int_equal(publish(s, "t", "b", 1, 1, TG_QUIET), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(publish(s, "t", "b", 1, 2, TG_QUIET), 0);
	fake_lane_drain(s->peer, TG_EXPIRED);
	assert_int_equal(publish(s, "t", "b", 1, 3, TG_QUIET), 0);
	fake_lane_drain(s->peer, TG_SENT);
	assert_int_equal(publish(s, "t", "b", 1, 4, 0), 0);
	fake_lane_drain(s->peer, TG_SENT);
	assert_int_equal(tg_poll(s->lane, c, 8), 2);
	assert_int_equal(c[0].tag, 2);
	assert_int_equal(c[0].outcome, TG_EXPIRED);
	assert_int_equal(c[0].attempts, 1); /* without the flag's bit */
	assert_int_equal(c[1].tag, 4);
	assert_int_equal(tg_outstanding(s->lane), 0);
}

static void
batch_takes_what_fits_and_rings_once(void **state)
{
	struct setup *s = *state;
	struct tg_message m[200] = { { 0 } };
	uint64_t positions[200] = { 0 };
	struct tg_completion c[200];
	struct tg_message huge[2] = { { .topic = "t", .topic_len = TG_NUL },
		{ .topic = "t", .topic_len = TG_NUL, .body = "", .body_len = 100000 } };

	for (unsigned i = 0; i < 200; i++)
		m[i].tag = i;
	assert_int_equal(tg_publish_batch(s->lane, m, 200, positions), 128);
	assert_int_equal(fake_rings(&s->fake), 1);
	assert_int_equal(positions[127], 127 * 48);
	assert_int_equal(positions[128], 0);
	assert_int_equal(tg_publish_batch(s->lane, m, 200, positions), -TG_EAGAIN);
	assert_int_equal(fake_lane_drain(s->peer, TG_DELIVERED), 128);
	assert_int_equal(tg_poll(s->lane, c, 200), 128);
	for (unsigned i = 0; i < 128; i++) {
		assert_int_equal(c[i].tag, i);
		assert_int_equal(c[i].position, positions[i]);
	}
	assert_int_equal(tg_publish_batch(s->lane, huge, 2, NULL), 1);
	assert_int_equal(tg_publish_batch(s->lane, huge + 1, 1, NULL), -TG_ETOOBIG);
	assert_int_equal(fake_rings(&s->fake), 1); /* the daemon has slept since */
}

static void
one_sleep_is_rung_once(void **state)
{
	struct setup *s = *state;

	for (int i = 0; i < 10; i++)
		assert_int_equal(publish(s, "t", NULL, 0, 0, 0), 0);
	assert_int_equal(fake_rings(&s->fake), 1);
	wake_rise(&s->peer->asleep);
	assert_int_equal(publish(s, "t", NULL, 0, 0, 0), 0);
	assert_int_equal(fake_rings(&s->fake), 1); /* awake: no bell */
	wake_doze(&s->peer->asleep);
	assert_int_equal(publish(s, "t", NULL, 0, 0, 0), 0);
	assert_int_equal(fake_rings(&s->fake), 2);
}

/* ---- in place ---- */

static void
reservation_is_written_in_place(void **state)
{
	struct setup *s = *state;
	struct tg_message m = {
		.topic = "topic", .topic_len = TG_NUL, .key = "key", .key_len = 3, .body_len = 1000, .tag = 5
	};
	struct tg_completion c;
	struct record r;
	const uint8_t *bytes;
	uint64_t position = 9, at;
	void *body;

	assert_int_equal(tg_reserve(s->lane, &m, &body), 0);
	assert_int_equal(tg_reserve(s->lane, &m, &body), -TG_EBUSY);
	assert_int_equal(publish(s, "t", NULL, 0, 0, 0), -TG_EBUSY);
	assert_int_equal(tg_publish_batch(s->lane, &m, 1, NULL), -TG_EBUSY);
	assert_int_equal(tg_publish_sync(s->lane, &m, 0, &c), -TG_EBUSY);
	assert_int_equal(tg_poll(s->lane, &c, 1), 0);
	memcpy(body, "hello", 5);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 0);
	assert_int_equal(tg_commit(s->lane, 1001, NULL), -TG_EINVAL);
	assert_int_equal(tg_commit(s->lane, 5, &position), 0);
	assert_int_equal(position, 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_int_equal(r.size, record_bytes(5, 3, 0, 5));
	assert_int_equal(r.body_len, 5);
	assert_true(r.published_ns > 0);
	assert_memory_equal(bytes, "topickeyhello", 13);
	assert_int_equal(tg_commit(s->lane, 0, NULL), -TG_EINVAL);

	assert_int_equal(tg_reserve(s->lane, &m, &body), 0);
	memset(body, 'x', 1000);
	assert_int_equal(tg_abort(s->lane), 0);
	assert_int_equal(tg_outstanding(s->lane), 1);
	assert_int_equal(publish(s, "next", NULL, 0, 0, 0), 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	assert_memory_equal(bytes, "next", 4);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 0);
}

static void
reservation_holds_room_and_slot(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body_len = 8000 };
	void *body;
	int n = 0;

	assert_int_equal(tg_reserve(s->lane, &m, &body), 0);
	assert_int_equal(tg_commit(s->lane, 8000, NULL), 0);
	assert_int_equal(tg_reserve(s->lane, &m, &body), 0);
	assert_int_equal(tg_commit(s->lane, 8000, NULL), 0);
	assert_int_equal(tg_reserve(s->lane, &m, &body), -TG_EAGAIN);
	m.body_len = 9000;
	assert_int_equal(tg_reserve(s->lane, &m, &body), -TG_ETOOBIG);
	fake_lane_drain(s->peer, TG_DELIVERED);
	while (publish(s, NULL, NULL, 0, 0, 0) == 0)
		n++;
	assert_int_equal(n, 126);
	m.body_len = 0;
	assert_int_equal(tg_reserve(s->lane, &m, &body), -TG_EAGAIN);
	assert_detail("completion slots");
}

/* ---- cancel, reason, writable ---- */

static void
cancel_finds_only_live_messages(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body = "0123456789abcdef", .body_len = 16 };
	uint64_t first, second;

	assert_int_equal(tg_cancel(s->lane, 0), -TG_ENOTFOUND);
	assert_int_equal(tg_publish(s->lane, &m, &first), 0);
	assert_int_equal(tg_publish(s->lane, &m, &second), 0);
	assert_int_equal(tg_cancel(s->lane, second), 0);
	assert_false(sq_is_cancelled(&s->peer->sq, first));
	assert_true(sq_is_cancelled(&s->peer->sq, second));
	assert_int_equal(tg_cancel(s->lane, second + 1), -TG_ENOTFOUND);
	assert_int_equal(tg_cancel(s->lane, second + 8), -TG_ENOTFOUND);
	assert_int_equal(tg_cancel(s->lane, second + 72), -TG_ENOTFOUND);
	assert_int_equal(tg_cancel(s->lane, UINT64_MAX - 7), -TG_ENOTFOUND);
	assert_detail("18446744073709551608");
	assert_int_equal(tg_cancel(s->lane, second + (UINT64_C(1) << 62)), -TG_ENOTFOUND);
	fake_lane_drain(s->peer, TG_CANCELLED);
	assert_int_equal(tg_cancel(s->lane, first), -TG_ELATE);
	assert_int_equal(tg_cancel(s->lane, second), -TG_ELATE);
	/* A record that takes the same bytes a lap later is not cancelled by what was asked before. */
	for (int i = 0; i < 1000; i++) {
		assert_int_equal(tg_publish(s->lane, &m, &first), 0);
		assert_false(sq_is_cancelled(&s->peer->sq, first));
		assert_int_equal(tg_cancel(s->lane, first), 0);
		fake_lane_drain(s->peer, TG_CANCELLED);
		assert_int_equal(tg_poll(s->lane, &(struct tg_completion){ 0 }, 1), 1);
	}
}

static void
reason_is_copied_whole_or_not_at_all(void **state)
{
	struct setup *s = *state;
	struct lane_reason *reason = s->peer->map.reason;
	char text[300];
	uint32_t code = 7;

	assert_int_equal(tg_reason(s->lane, text, sizeof(text), &code), 0);
	assert_string_equal(text, "");
	assert_int_equal(code, 0);
	snprintf(reason->text, sizeof(reason->text), "not authorized to publish");
	order_store_relaxed_32(&reason->code, 135);
	order_store_relaxed_32(&reason->seq, 2);
	assert_int_equal(tg_reason(s->lane, text, sizeof(text), &code), 25);
	assert_string_equal(text, "not authorized to publish");
	assert_int_equal(code, 135);
	assert_int_equal(tg_reason(s->lane, text, 4, NULL), 25);
	assert_string_equal(text, "not");
	assert_int_equal(tg_reason(s->lane, NULL, 0, &code), 25);
	memset(reason->text, 'x', sizeof(reason->text)); /* not terminated */
	assert_int_equal(tg_reason(s->lane, text, sizeof(text), NULL), LANE_REASON_BYTES - 1);
	order_store_relaxed_32(&reason->seq, 3);
	assert_int_equal(tg_reason(s->lane, text, sizeof(text), NULL), -TG_EAGAIN);
}

static void
writable_follows_the_daemons_word(void **state)
{
	struct setup *s = *state;

	assert_int_equal(tg_writable(s->lane), 1);
	order_store_relaxed_32(&s->peer->map.daemon->writable, 0);
	assert_int_equal(tg_writable(s->lane), 0);
	order_store_relaxed_32(&s->peer->map.daemon->writable, 4711);
	assert_int_equal(tg_writable(s->lane), 1);
}

/* ---- one message and its answer ---- */

static void
sync_leaves_the_others_in_order(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .tag = 100, .flags = TG_QUIET };
	struct tg_completion c[8], mine;
	struct record r;
	const uint8_t *bytes;
	uint64_t at;

	/* After the time-out its completion comes through tg_poll, also with TG_QUIET. */
	assert_int_equal(publish(s, "t", NULL, 0, 1, 0), 0);
	assert_int_equal(tg_publish_sync(s->lane, &m, 0, &mine), -TG_ETIMEOUT);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(tg_poll(s->lane, c, 8), 2);
	assert_int_equal(c[0].tag, 1);
	assert_int_equal(c[1].tag, 100);

	/* The answer lies between two others' that were there before. */
	assert_int_equal(publish(s, "t", NULL, 0, 2, 0), 0);
	assert_int_equal(publish(s, "t", NULL, 0, 3, 0), 0);
	assert_int_equal(fake_lane_take(s->peer, &r, &bytes, &at), 1);
	fake_lane_answer(s->peer, at, &r, TG_SENT);
	cq_publish(&s->peer->cq);
	assert_int_equal(tg_outstanding(s->lane), 2);
	struct fake_later later;
	fake_later_start(&later, s->peer, (void (*)(struct fake_lane *, void *))(void *)fake_lane_drain,
	    (void *)(uintptr_t)TG_DELIVERED);
	assert_int_equal(tg_publish_sync(s->lane, &m, FAKE_DEADLINE_MS, &mine), 0);
	fake_later_join(&later);
	assert_int_equal(mine.tag, 100);
	assert_int_equal(mine.outcome, TG_DELIVERED);
	assert_int_equal(tg_outstanding(s->lane), 2);
	assert_int_equal(publish(s, "t", NULL, 0, 4, 0), 0);
	fake_lane_drain(s->peer, TG_DELIVERED);
	assert_int_equal(tg_outstanding(s->lane), 3);
	assert_int_equal(tg_poll(s->lane, c, 8), 3);
	assert_int_equal(c[0].tag, 2);
	assert_int_equal(c[0].outcome, TG_SENT);
	assert_int_equal(c[1].tag, 3);
	assert_int_equal(c[2].tag, 4);
	assert_int_equal(tg_outstanding(s->lane), 0);
}

/* The library freed entries of quiet completions to make room; the daemon may overwrite those from now on. */
static void
sync_reads_nothing_that_is_not_committed(void **state)
{
	struct setup *s = *state;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .tag = 100 };
	struct tg_completion c;

	for (uint64_t i = 0; i < LANE_CQ_MIN; i++)
		assert_int_equal(publish(s, "t", NULL, 0, i, TG_QUIET), 0);
	assert_int_equal(fake_lane_drain(s->peer, TG_DELIVERED), LANE_CQ_MIN);
	/* As far as it gets before cq_tail. */
	s->peer->map.cq[7].position = s->peer->sq.cursor;
	assert_int_equal(tg_publish_sync(s->lane, &m, 0, &c), -TG_ETIMEOUT);
	assert_int_equal(fake_lane_drain(s->peer, TG_REJECTED), 1);
	assert_int_equal(tg_poll(s->lane, &c, 1), 1);
	assert_int_equal(c.tag, 100);
	assert_int_equal(c.outcome, TG_REJECTED);
	assert_int_equal(tg_outstanding(s->lane), 0);
}

/* ---- a daemon gone mad ---- */

static void
bad_words_break_the_lane_and_nothing_else(void **state)
{
	struct tg_client_options options;
	struct setup *s = *state;
	struct tg_completion c[2];
	static char body[8000];

	(void)options;
	for (int which = 0; which < 6; which++) {
		struct tg_lane *lane;
		struct fake_lane *peer;
		struct tg_lane_options small = { .ring_bytes = LANE_SQ_MIN };
		struct tg_message m = {
			.topic = "t", .topic_len = TG_NUL, .body = body, .body_len = sizeof(body)
		};

		assert_int_equal(tg_lane_open(s->client, &lane, "events", &small), 0);
		peer = fake_lane(&s->fake);
		assert_int_equal(tg_publish(lane, &m, NULL), 0);
		fake_lane_drain(peer, TG_DELIVERED);
		assert_int_equal(tg_publish(lane, &m, NULL), 0);
		switch (which) {
		case 0: /* released what was never published */
			order_store_relaxed_64(&peer->map.daemon->sq_head, 1 << 20);
			break;
		case 1: /* and backwards */
			assert_int_equal(tg_publish(lane, &m, NULL), 0);
			order_store_relaxed_64(&peer->map.daemon->sq_head, UINT64_MAX - 7);
			break;
		case 2: /* between records */
			order_store_relaxed_64(&peer->map.daemon->sq_head, 13);
			break;
		case 3: /* completions without messages */
			order_store_relaxed_64(&peer->map.daemon->cq_tail, 3);
			break;
		case 4:
			order_store_relaxed_64(&peer->map.daemon->cq_tail, 1 << 30);
			break;
		case 5:
			order_store_relaxed_32(&peer->map.daemon->closed, 1);
			break;
		}
		if (which < 3) {
			(void)tg_publish(lane, &m, NULL); /* may still fit below the old head */
			assert_int_equal(tg_publish(lane, &m, NULL), -TG_EBROKEN);
			assert_detail("sq_head");
		} else if (which < 5) {
			assert_int_equal(tg_poll(lane, c, 2), -TG_EBROKEN);
			assert_detail("cq_tail");
		} else {
			assert_int_equal(tg_poll(lane, c, 2), 1); /* a completion comes before the error */
			assert_int_equal(tg_poll(lane, c, 2), -TG_EBROKEN);
			assert_detail("closed");
		}
		assert_int_equal(tg_publish(lane, &m, NULL), -TG_EBROKEN);
		assert_int_equal(tg_publish_batch(lane, &m, 1, NULL), -TG_EBROKEN);
		assert_int_equal(tg_wait(lane, -1) == 0 || tg_poll(lane, c, 2) < 0, 1);
		while (tg_poll(lane, c, 2) > 0)
			continue;
		assert_int_equal(tg_wait(lane, -1), -TG_EBROKEN);
		assert_int_equal(tg_flush(lane, -1), -TG_EBROKEN);
		assert_int_equal(tg_writable(lane), -TG_EBROKEN);
		assert_int_equal(tg_lane_close(lane, -1), -TG_EBROKEN);
		assert_int_equal(publish(s, "t", NULL, 0, 0, 0), 0);
	}
}

/* Anything in the words the daemon writes, at any moment: errors, never a crash or a hang. */
static void
random_words_never_hurt(void **state)
{
	struct setup *s = *state;
	uint64_t seed = 88172645463325252u;
	struct tg_lane_options small = { .ring_bytes = LANE_SQ_MIN };
	static char body[3000];

	for (int round = 0; round < 12; round++) {
		struct tg_lane *lane;
		struct fake_lane *peer;

		assert_int_equal(tg_lane_open(s->client, &lane, "events", &small), 0);
		peer = fake_lane(&s->fake);
		for (int i = 0; i < 2000; i++) {
			struct tg_message m = { .topic = "t", .topic_len = TG_NUL, .body = body };
			struct tg_completion c[16];
			uint64_t *words[] = { &peer->map.daemon->sq_head, &peer->map.daemon->cq_tail };
			char text[16];
			void *at;

			seed ^= seed << 13;
			seed ^= seed >> 7;
			seed ^= seed << 17;
			m.body_len = seed % sizeof(body);
			order_store_relaxed_64(words[i & 1], i % 3 == 0 ? seed : seed % 64 * 8);
			((uint64_t *)(void *)peer->map.cq)[seed % 512] = seed;
			((uint32_t *)(void *)peer->map.reason)[seed % 60] = (uint32_t)seed;
			(void)tg_publish(lane, &m, NULL);
			(void)tg_publish_batch(lane, &m, 1, NULL);
			if (tg_reserve(lane, &m, &at) == 0)
				(void)tg_commit(lane, m.body_len / 2, NULL);
			(void)tg_poll(lane, c, seed % 16);
			(void)tg_cancel(lane, seed % 65536 & ~7u);
			(void)tg_reason(lane, text, sizeof(text), NULL);
			(void)tg_wait(lane, 0);
			(void)tg_outstanding(lane);
			(void)tg_publish_sync(lane, &m, 0, c);
		}
		(void)tg_lane_close(lane, 0);
	}
}

#define RING_TEST(f) cmocka_unit_test_setup_teardown(f, setup_small, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		RING_TEST(record_holds_the_published_message),
		RING_TEST(completion_comes_back_whole),
		RING_TEST(length_zero_reads_no_byte),
		RING_TEST(header_lengths_that_wrap_around_are_too_big),
		RING_TEST(wrong_arguments_are_named),
		RING_TEST(too_big_names_the_limit),
		RING_TEST(full_ring_is_eagain_and_changes_nothing),
		RING_TEST(no_record_without_a_completion_slot),
		RING_TEST(quiet_successes_are_never_seen),
		RING_TEST(batch_takes_what_fits_and_rings_once),
		RING_TEST(one_sleep_is_rung_once),
		RING_TEST(reservation_is_written_in_place),
		RING_TEST(reservation_holds_room_and_slot),
		RING_TEST(cancel_finds_only_live_messages),
		RING_TEST(reason_is_copied_whole_or_not_at_all),
		RING_TEST(writable_follows_the_daemons_word),
		RING_TEST(sync_leaves_the_others_in_order),
		RING_TEST(sync_reads_nothing_that_is_not_committed),
		RING_TEST(bad_words_break_the_lane_and_nothing_else),
		RING_TEST(random_words_never_hurt),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
