/*
 * Moving sessions to a successor, beyond what transcripts can express: the moments when a driver refuses to
 * save, and saved bytes that it refuses to restore.
 */
#include "shm/error.h"
#include "tests/conformance/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define INFO "INFO {\"headers\":true,\"jetstream\":true,\"max_payload\":1000}\r\nPONG\r\n"
#define NATS_FIRST_TOKEN 5 /* offset in the saved bytes */
#define NATS_MAX_PAYLOAD 13

static const uint8_t amqp_hello[] =
    "\x01\0\0\0\0\0\x1c\0\x0a\0\x0a\0\x09\0\0\0\0\0\0\0\x05PLAIN\0\0\0\x05"
    "en_US\xce"
    "\x01\0\0\0\0\0\x0c\0\x0a\0\x1e\x07\xff\0\x02\0\0\0\x3c\xce\x01\0\0\0\0\0\x05\0\x0a\0\x29\0\xce"
    "\x01\0\x01\0\0\0\x08\0\x14\0\x0b\0\0\0\0\xce\x01\0\x01\0\0\0\x04\0\x55\0\x0b\xce";

static const struct session_params params = { .client_id = "c", .keepalive_s = 10, .window = 10, .random = 7 };

static void
feed(struct rig *rig, const void *bytes, size_t len)
{
	rig_feed(rig, bytes, len);
	if (rig->broken[0] != '\0')
		fail_msg("the driver %s", rig->broken);
}

#define FEED(rig, text) feed(rig, text, sizeof(text) - 1)

static void
up(struct rig *rig, const char *driver, const char *settings)
{
	assert_int_equal(rig_open(rig, driver_find(driver), settings, "/nonexistent", &params), 0);
	rig_start(rig);
	if (strcmp(driver, "nats") == 0)
		FEED(rig, INFO);
	else
		FEED(rig, amqp_hello);
	assert_true(rig->up);
	rig_forget(rig);
}

static void
publish(struct rig *rig, const char *topic)
{
	struct driver_rejection rejection;
	struct message message = { .topic = (const uint8_t *)topic,
		.topic_len = (uint32_t)strlen(topic),
		.body = (const uint8_t *)"b",
		.body_len = 1,
		.attempt = 1 };

	rig_forget(rig);
	assert_int_equal(rig_publish(rig, &message, &rejection), DRIVER_PUBLISHED);
}

/* The reply subject of the message that was sent. */
static void
reply_of(const struct rig *rig, char reply[80])
{
	const char *at = memmem(rig->sent.bytes, rig->sent.len, "_INBOX.", 7);

	assert_non_null(at);
	assert_int_equal(sscanf(at, "%79[^ ]", reply), 1);
}

static void
answer(struct rig *rig, const char *reply)
{
	char bytes[200];
	int n = snprintf(bytes, sizeof(bytes), "MSG %s 1 26\r\n{\"stream\":\"S\", \"seq\":1234}\r\n", reply);

	rig_forget(rig);
	feed(rig, bytes, (size_t)n);
}

static void
says(struct rig *rig, const char *events)
{
	if (rig->events.len != strlen(events) || memcmp(rig->events.bytes, events, rig->events.len) != 0)
		fail_msg("events are \"%.*s\", not \"%s\"", (int)rig->events.len,
		    rig->events.len > 0 ? (char *)rig->events.bytes : "", events);
}

static int
sent(const struct rig *rig, const void *bytes, size_t len)
{
	return memmem(rig->sent.bytes, rig->sent.len, bytes, len) != NULL;
}

#define SENT(rig, text) sent(rig, text, sizeof(text) - 1)

static void
late_answer_is_no_other_messages(void **state)
{
	char first[80], second[80];
	struct rig rig;

	up(&rig, "nats", "msg_id = false;");
	publish(&rig, "t");
	reply_of(&rig, first);
	answer(&rig, first);
	says(&rig, "ack 0 delivered reference=1234\n");
	assert_int_equal(rig_move(&rig), 0);
	publish(&rig, "t");
	reply_of(&rig, second);
	answer(&rig, first);
	says(&rig, "");
	answer(&rig, second);
	says(&rig, "ack 1 delivered reference=1234\n");
	rig_close(&rig);
}

/* A subscriber of one subject sees the reply subjects of its messages, and where their number stands. */
static void
guessed_answer_is_no_answer(void **state)
{
	char seen[80], next[80];
	struct rig rig;

	up(&rig, "nats", "msg_id = true;");
	publish(&rig, "seen");
	reply_of(&rig, seen);
	publish(&rig, "unseen");
	reply_of(&rig, next);
	assert_int_equal(strlen(seen), strlen(next));
	seen[strlen(seen) - 1] = next[strlen(next) - 1];
	assert_string_not_equal(seen, next);
	answer(&rig, seen);
	says(&rig, "");
	answer(&rig, next);
	says(&rig, "ack 1 delivered reference=1234\n");
	rig_close(&rig);
}

static void
limits_of_a_later_info_hold_on(void **state)
{
	struct driver_rejection rejection;
	struct message message = {
		.topic = (const uint8_t *)"t", .topic_len = 1, .body = (const uint8_t *)"xxxx", .body_len = 4
	};
	struct rig rig;

	up(&rig, "nats", "jetstream = false;");
	FEED(&rig, "INFO {\"headers\":false,\"jetstream\":true,\"max_payload\":3}\r\n");
	assert_int_equal(rig_move(&rig), 0);
	assert_int_equal(rig_publish(&rig, &message, &rejection), DRIVER_REJECTED);
	assert_int_equal(rejection.code, REJECT_BODY);
	message.body_len = 1;
	message.key = (const uint8_t *)"k";
	message.key_len = 1;
	assert_int_equal(rig_publish(&rig, &message, &rejection), DRIVER_REJECTED);
	assert_int_equal(rejection.code, REJECT_HEADER);
	rig_close(&rig);
}

/* Two probes, and one answer: the other's is on its way. */
static void
session_with_a_ping_under_way_does_not_move(void **state)
{
	static const uint8_t select_ok[] = "\x01\0\x01\0\0\0\x04\0\x55\0\x0b\xce";
	uint8_t bytes[1000];
	struct rig rig;

	up(&rig, "nats", "jetstream = false;");
	rig_probe(&rig);
	rig_probe(&rig);
	FEED(&rig, "PONG\r\n");
	assert_int_equal(rig.driver->save(rig.session, bytes, sizeof(bytes)), -TG_EAGAIN);
	assert_int_equal(rig_move(&rig), -1);
	FEED(&rig, "PONG\r\n");
	assert_int_equal(rig_move(&rig), 0);
	rig_close(&rig);

	up(&rig, "amqp", "");
	rig_probe(&rig);
	rig_probe(&rig);
	FEED(&rig, select_ok);
	assert_int_equal(rig.driver->save(rig.session, bytes, sizeof(bytes)), -TG_EAGAIN);
	FEED(&rig, select_ok);
	assert_int_equal(rig_move(&rig), 0);
	rig_close(&rig);
}

/* basic.ack of channel 2 or 3. */
static void
ack(struct rig *rig, uint8_t channel, uint8_t tag)
{
	uint8_t open_ok[] = { 1, 0, channel, 0, 0, 0, 8, 0, 0x14, 0, 0x0b, 0, 0, 0, 0, 0xce };
	uint8_t frame[] = { 1, 0, channel, 0, 0, 0, 13, 0, 0x3c, 0, 0x50, 0, 0, 0, 0, 0, 0, 0, tag, 0, 0xce };

	rig_forget(rig);
	if (tag == 1)
		feed(rig, open_ok, sizeof(open_ok));
	feed(rig, frame, sizeof(frame));
}

static void
channels_go_on_where_they_were(void **state)
{
	static const char opened[] = "\0\x14\0\x0a", declared[] = "\0\x28\0\x0a";
	struct rig rig;

	up(&rig, "amqp", "");
	publish(&rig, "a/k");
	assert_true(SENT(&rig, opened) && SENT(&rig, declared));
	ack(&rig, 2, 1);
	publish(&rig, "b/k");
	assert_true(SENT(&rig, opened) && SENT(&rig, declared));
	ack(&rig, 3, 1);
	says(&rig, "ack 1 delivered\n");
	assert_int_equal(rig_move(&rig), 0);
	publish(&rig, "b/k");
	assert_false(SENT(&rig, opened) || SENT(&rig, declared));
	ack(&rig, 3, 2);
	says(&rig, "ack 2 delivered\n");
	publish(&rig, "a/k");
	assert_false(SENT(&rig, opened) || SENT(&rig, declared));
	ack(&rig, 2, 2);
	says(&rig, "ack 3 delivered\n");
	assert_int_equal(rig_move(&rig), 0);
	rig_close(&rig);
}

/* The first half of a returned message is no place to stop. */
static void
session_with_a_return_coming_in_does_not_move(void **state)
{
	static const uint8_t method[] = "\x01\0\x02\0\0\0\x11\0\x3c\0\x32\x01\x38\x08NO_ROUTE\0\0\xce";
	uint8_t bytes[1000];
	struct rig rig;

	up(&rig, "amqp", "");
	publish(&rig, "a/k");
	ack(&rig, 2, 1);
	assert_true(rig.driver->save(rig.session, bytes, sizeof(bytes)) > 0);
	feed(&rig, method, sizeof(method) - 1);
	assert_false(rig.dead);
	assert_int_equal(rig.driver->save(rig.session, bytes, sizeof(bytes)), -TG_EAGAIN);
	rig_close(&rig);
}

/* The result of restoring these bytes in a session with these settings. */
static int
restored(const char *driver, const char *settings, const uint8_t *bytes, size_t len)
{
	uint8_t *exact = malloc(len + !len);
	struct rig rig;

	assert_non_null(exact);
	memcpy(exact, bytes, len);
	up(&rig, driver, settings);
	rig.allowed_events = 1;
	int rc = rig.driver->restore(rig.session, exact, len);
	says(&rig, rc == 0 && strcmp(driver, "nats") == 0 ? "max-body 1000\n" : "");
	rig_close(&rig);
	free(exact);
	return rc;
}

/* A byte more, any number fewer, and one changed in each place that means something. */
static void
garbled(const char *driver, const uint8_t *saved, size_t len, const size_t *wrong, size_t count)
{
	uint8_t bytes[1000];

	assert_true(len < sizeof(bytes));
	memcpy(bytes, saved, len);
	bytes[len] = 0;
	assert_int_equal(restored(driver, "", bytes, len), 0);
	assert_int_equal(restored(driver, "", bytes, len + 1), -TG_EINVAL);
	for (size_t n = 0; n < len; n++)
		assert_int_equal(restored(driver, "", bytes, n), -TG_EINVAL);
	for (size_t i = 0; i < count; i++) {
		bytes[wrong[i]] ^= 0xf8;
		if (restored(driver, "", bytes, len) != -TG_EINVAL)
			fail_msg("%s: byte %zu may be anything", driver, wrong[i]);
		bytes[wrong[i]] = saved[wrong[i]];
	}
}

static void
garbled_bytes_are_refused(void **state)
{
	static const size_t nats[] = { 0, 1, 2, 3, 4, NATS_FIRST_TOKEN };
	/* magic, frame_max, heartbeat, channel_max, vhost, messages, channels; a channel's flags, tag, used,
	 * careful and the length of its exchange */
	static const size_t amqp[] = { 0, 3, 4, 7, 11, 15, 16, 17, 26, 34, 37, 38, 39, 47, 55, 59 };
	uint8_t bytes[1000];
	struct rig rig;

	up(&rig, "nats", "");
	ssize_t len = rig.driver->save(rig.session, bytes, sizeof(bytes));
	assert_true(len > 0);
	rig_close(&rig);
	garbled("nats", bytes, (size_t)len, nats, sizeof(nats) / sizeof(nats[0]));
	memset(bytes + NATS_MAX_PAYLOAD, 0, 8);
	assert_int_equal(restored("nats", "", bytes, (size_t)len), -TG_EINVAL);

	up(&rig, "amqp", "");
	publish(&rig, "a/k");
	ack(&rig, 2, 1);
	len = rig.driver->save(rig.session, bytes, sizeof(bytes));
	assert_true(len > 0);
	rig_close(&rig);
	garbled("amqp", bytes, (size_t)len, amqp, sizeof(amqp) / sizeof(amqp[0]));
	memset(bytes + 18, 0, 8);
	assert_int_equal(restored("amqp", "", bytes, (size_t)len), -TG_EINVAL);
}

static void
connection_of_other_settings_is_refused(void **state)
{
	static const char *const others[] = { "vhost = \"v\";", "vhost = \"/v\";", "heartbeat_s = 9;",
		"channels = 5;" };
	uint8_t bytes[1000];
	struct rig rig;

	up(&rig, "nats", "jetstream = true;");
	ssize_t len = rig.driver->save(rig.session, bytes, sizeof(bytes));
	rig_close(&rig);
	assert_int_equal(restored("nats", "jetstream = false;", bytes, (size_t)len), -TG_EINVAL);
	assert_int_equal(restored("nats", "msg_id = false;", bytes, (size_t)len), 0);

	up(&rig, "amqp", "");
	len = rig.driver->save(rig.session, bytes, sizeof(bytes));
	rig_close(&rig);
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		assert_int_equal(restored("amqp", others[i], bytes, (size_t)len), -TG_EINVAL);
	assert_int_equal(restored("amqp", "persistent = false;", bytes, (size_t)len), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(late_answer_is_no_other_messages),
		cmocka_unit_test(guessed_answer_is_no_answer),
		cmocka_unit_test(limits_of_a_later_info_hold_on),
		cmocka_unit_test(session_with_a_ping_under_way_does_not_move),
		cmocka_unit_test(channels_go_on_where_they_were),
		cmocka_unit_test(session_with_a_return_coming_in_does_not_move),
		cmocka_unit_test(garbled_bytes_are_refused),
		cmocka_unit_test(connection_of_other_settings_is_refused),
	};

	return cmocka_run_group_tests_name("move", tests, NULL, NULL);
}
