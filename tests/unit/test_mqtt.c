/* MQTT packet ids over their wrap, for which transcripts are too short. */
#include "tests/conformance/rig.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const struct message message = {
	.topic = (const uint8_t *)"t", .topic_len = 1, .body = (const uint8_t *)"b", .body_len = 1, .attempt = 1
};

static void
up(struct rig *rig, uint32_t window)
{
	static const uint8_t connack[] = { 0x20, 2, 0, 0 };
	struct session_params params = { .client_id = "c", .keepalive_s = 10, .window = window };

	assert_int_equal(rig_open(rig, driver_find("mqtt"), "version = 4;", "/nonexistent", &params), 0);
	rig->quiet = 1;
	rig_start(rig);
	rig_feed(rig, connack, sizeof(connack));
	assert_true(rig->up);
}

/* Publishes until it is full; returns how many went. */
static uint32_t
fill(struct rig *rig)
{
	struct driver_rejection rejection;
	uint32_t n = 0;

	while (rig_publish(rig, &message, &rejection) == DRIVER_PUBLISHED)
		n++;
	return n;
}

static void
puback(struct rig *rig, uint64_t seq)
{
	uint32_t id = (uint32_t)(seq % 65535) + 1;
	uint8_t packet[4] = { 0x40, 2, (uint8_t)(id >> 8), (uint8_t)id };

	rig_feed(rig, packet, sizeof(packet));
	if (rig->broken[0] != '\0' || rig->dead)
		fail_msg("seq %lu: %s", seq, rig->broken);
}

static void
ids_stay_unique_and_in_step_over_their_wrap(void **state)
{
	struct rig rig;

	up(&rig, 100000);
	assert_int_equal(fill(&rig), 65535);
	rig.quiet = 0;
	for (uint64_t seq = 0; seq < 3 * 65535 + 17; seq++) {
		assert_int_equal(rig.waits[seq], 1);
		puback(&rig, seq);
		assert_int_equal(rig.waits[seq], 0);
		rig_forget(&rig);
		assert_int_equal(fill(&rig), 1);
		/* 32 06 00 01 't' id id 'b': the id that was just given back */
		assert_int_equal(rig.sent.len, 8);
		assert_int_equal(rig.sent.bytes[5] << 8 | rig.sent.bytes[6], seq % 65535 + 1);
	}
	assert_int_equal(rig.outstanding, 65535);
	rig_close(&rig);
}

static void
answers_in_any_order_find_their_message(void **state)
{
	static const uint32_t windows[] = { 1, 2, 63, 64, 65, 1000, 65535 };
	uint32_t roll = 12345;

	for (size_t w = 0; w < sizeof(windows) / sizeof(windows[0]); w++) {
		struct rig rig;
		uint32_t *order = malloc(windows[w] * sizeof(*order));
		assert_non_null(order);
		up(&rig, windows[w]);
		for (int round = 0; round < 3; round++) {
			uint64_t first = rig.next;
			assert_int_equal(fill(&rig), windows[w]);
			for (uint32_t i = 0; i < windows[w]; i++) {
				roll = roll * 1664525u + 1013904223u;
				uint32_t at = (uint32_t)(((uint64_t)roll * (i + 1)) >> 32);
				order[i] = order[at];
				order[at] = i;
			}
			for (uint32_t i = 0; i < windows[w]; i++) {
				assert_int_equal(rig.waits[first + order[i]], 1);
				puback(&rig, first + order[i]);
				assert_int_equal(rig.waits[first + order[i]], 0);
			}
			assert_int_equal(rig.outstanding, 0);
		}
		free(order);
		rig_close(&rig);
	}
}

static void
probes_are_counted(void **state)
{
	static const uint8_t pingresp[] = { 0xd0, 0 };
	struct rig rig;

	up(&rig, 10);
	rig.quiet = 0;
	rig_probe(&rig);
	rig_probe(&rig);
	for (int i = 0; i < 5; i++)
		rig_feed(&rig, pingresp, sizeof(pingresp));
	assert_int_equal(rig.events.len, 2 * strlen("alive\n"));
	rig_close(&rig);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ids_stay_unique_and_in_step_over_their_wrap),
		cmocka_unit_test(answers_in_any_order_find_their_message),
		cmocka_unit_test(probes_are_counted),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
