#include "client_rig.h"

#include <poll.h>
#include <stdlib.h>

int
setup_of(void **state, enum fake_mode mode, uint64_t ring_bytes, int flags)
{
	struct setup *s = calloc(1, sizeof(*s));
	/* No spinning: every wait is a sleep. */
	struct tg_lane_options options = { .ring_bytes = ring_bytes, .spin_us = UINT32_MAX };
	struct tg_client_options client_options = { .socket = s->fake.path };

	fake_start(&s->fake, mode);
	if (flags >= 0)
		fake_set_flags(&s->fake, (unsigned)flags);
	assert_int_equal(tg_client_open(&s->client, &client_options), 0);
	assert_int_equal(tg_lane_open(s->client, &s->lane, "events", &options), 0);
	s->peer = fake_lane(&s->fake);
	*state = s;
	return 0;
}

int
setup_hold(void **state)
{
	return setup_of(state, FAKE_HOLD, LANE_SQ_MIN, -1);
}

int
teardown(void **state)
{
	struct setup *s = *state;

	tg_client_close(s->client);
	fake_stop(&s->fake);
	free(s);
	return 0;
}

int
publish(struct setup *s, size_t body_len, uint32_t flags)
{
	static char body[16384];
	struct tg_message m = {
		.topic = "t", .topic_len = TG_NUL, .body = body, .body_len = body_len, .flags = flags
	};

	return tg_publish(s->lane, &m, NULL);
}

int
fires(int fd, int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, timeout_ms);
}

void
wait_in_time(struct tg_lane *lane)
{
	uint64_t begin = fake_now_ms();

	assert_int_equal(tg_wait(lane, FAKE_DEADLINE_MS), 0);
	assert_true(fake_now_ms() - begin < FAKE_DEADLINE_MS);
}
