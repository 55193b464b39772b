/* The new daemon's side of an upgrade: it takes nothing before the old one has said its last word. */
#include "daemon/handover.h"
#include "daemon/lane.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static void
say(int fd, enum handover_type type)
{
	struct handover_frame frame = { .magic = HANDOVER_MAGIC, .version = HANDOVER_VERSION, .type = type };
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_true(null >= 0);
	assert_int_equal(handover_send(fd, &frame, &null, type == HANDOVER_LISTENER), 0);
	close(null);
}

static int
receive(const enum handover_type *types, unsigned count)
{
	struct handover_taken *taken = NULL;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	for (unsigned i = 0; i < count; i++)
		say(pair[0], types[i]);
	shutdown(pair[0], SHUT_WR);
	int rc = handover_receive(pair[1], &taken);
	if (rc == 0)
		rc = handover_take(pair[1]);
	handover_free(taken);
	close(pair[0]);
	close(pair[1]);
	return rc;
}

static void
only_go_sets_it_to_work(void **state)
{
	const enum handover_type whole[] = { HANDOVER_LISTENER, HANDOVER_DONE, HANDOVER_GO };
	const enum handover_type wrong[] = { HANDOVER_LISTENER, HANDOVER_DONE, HANDOVER_TAKEN };

	assert_int_equal(receive(whole, 0), -TG_ECLOSED);
	assert_int_equal(receive(whole, 1), -TG_ECLOSED);
	assert_int_equal(receive(whole, 2), -TG_ECLOSED);
	assert_int_equal(receive(wrong, 3), -TG_EPROTOCOL);
	assert_int_equal(receive(whole, 3), 0);
}

/* What a lane's messages are known by at the broker: the same for ever, and nobody else's. */
static void
copied_nonce_is_not_a_copied_identity(void **state)
{
	struct lane mine = { .nonce = 0x0123456789abcdef }, again = mine, other = mine, back;

	lane_own(&mine, &(struct lane_owner){ .uid = 1000, .pid = 7 });
	lane_own(&again, &(struct lane_owner){ .uid = 1000, .pid = 8 });
	lane_own(&other, &(struct lane_owner){ .uid = 1001, .pid = 7 });
	assert_true(mine.identity == again.identity);
	assert_true(mine.identity != other.identity);
	/* Nor is what is seen in a message good for a lane. */
	back = (struct lane){ .nonce = mine.identity };
	lane_own(&back, &(struct lane_owner){ .uid = 1000, .pid = 7 });
	assert_true(back.identity != mine.identity);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_go_sets_it_to_work),
		cmocka_unit_test(copied_nonce_is_not_a_copied_identity),
	};

	return cmocka_run_group_tests_name("handover", tests, NULL, NULL);
}
