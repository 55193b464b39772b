/*
 * A client with one lane, whose other end the test drives as the daemon would. A failure in here fails the
 * calling test.
 */
#ifndef TG_TESTS_CLIENT_RIG_H
#define TG_TESTS_CLIENT_RIG_H

#include "fake_daemon.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

struct setup {
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	struct fake_lane *peer;
};

/* *state is a struct setup. flags: of the lanes' headers; negative: the fake daemon's own. */
int setup_of(void **state, enum fake_mode mode, uint64_t ring_bytes, int flags);
int setup_hold(void **state);
int teardown(void **state);
#define HOLD(f) cmocka_unit_test_setup_teardown(f, setup_hold, teardown)

int publish(struct setup *s, size_t body_len, uint32_t flags);

/* The result of poll() on a descriptor that may become readable. */
int fires(int fd, int timeout_ms);

/*
 * A wait that only its time-out ends still finds the missed event and returns 0, so the tests recognise a lost
 * wake-up by the time it took.
 */
void wait_in_time(struct tg_lane *lane);

#endif
