/* Lanes that clients hand back, in a daemon without links, also when the client hangs up meanwhile. */
#include "daemon/front/attach.h"
#include "daemon/front/client.h"
#include "daemon/life/config_load.h"
#include "daemon/config/config_node.h"
#include "daemon/base/log.h"
#include "daemon/life/loop.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define LARGE (UINT64_C(4) << 20) /* a lane of this size is made on a worker thread */
#define SECRET 0x5ec2e7, 0x1234
#define NONCE UINT64_C(0x0123456789abcdef)

static const char config_text[] = "socket = \"/nowhere/s\"; admin = \"/nowhere/a\";\n"
				  "pools = ( { name = \"events\"; protocol = \"mqtt\";\n"
				  "            brokers = ( { address = \"127.0.0.1:1\"; } ); } );\n";

struct setup {
	struct config *config;
	struct loop loop;
	int null;
};

static int
setup(void **state)
{
	struct setup *s = calloc(1, sizeof(*s));
	char file[] = "/tmp/tidegate-test-attach-XXXXXX";
	struct config_report report = { .file = file };

	assert_non_null(s);
	s->null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	log_set_fd(s->null);
	int fd = mkstemp(file);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, config_text, sizeof(config_text) - 1), sizeof(config_text) - 1);
	close(fd);
	assert_int_equal(config_load(&s->config, file, &report), 0);
	unlink(file);
	assert_int_equal(loop_init(&s->loop, s->config), 0);
	*state = s;
	return 0;
}

static int
teardown(void **state)
{
	struct setup *s = *state;

	loop_fini(&s->loop);
	config_free(s->config);
	log_set_fd(STDERR_FILENO);
	close(s->null);
	free(s);
	return 0;
}

/* A lane's memory as a client has it after a daemon's death, one record in it. */
static void
memory_with_a_record(int fds[FRAME_FDS])
{
	struct lane_header header = { .lane_id = 1, .nonce = NONCE, .secret = { SECRET }, .pool = "events" };
	struct lane_geometry geo;
	struct lane_map map;
	struct sq_producer sq;
	int error;

	assert_int_equal(lane_geometry_make(&geo, LARGE, 0), 0);
	fds[FRAME_FD_RING] = lane_ring_make(&map, &geo);
	fds[FRAME_FD_OLD_ANSWERS] = lane_answers_create(&geo, &header);
	fds[2] = -1;
	assert_true(fds[FRAME_FD_RING] >= 0 && fds[FRAME_FD_OLD_ANSWERS] >= 0);
	assert_int_equal(lane_map_answers(&map, fds[FRAME_FD_OLD_ANSWERS], LANE_READ, 0), 0);
	sq_producer_init(&sq, &map, 0);
	struct record *record = sq_reserve(&sq, record_bytes(1, 0, 0, 0), &error);
	assert_non_null(record);
	*record = (struct record){
		.size = (uint32_t)record_bytes(1, 0, 0, 0), .check = record_check(0), .topic_len = 1
	};
	memcpy(record + 1, "t", 1);
	sq_commit(&sq, record->size);
	sq_publish(&sq);
	lane_map_fini(&map);
}

static struct lane *
only_lane(struct setup *s)
{
	return TAILQ_FIRST(&s->loop.shard.pools[0].lanes);
}

/*
 * A client that hangs up before the answer must not change its lane's identity. For an honest client, messages
 * would be stored twice; a hostile one could write another lane's identity into its header.
 */
static void
lane_of_a_client_that_has_gone_keeps_its_identity(void **state)
{
	struct setup *s = *state;
	struct shard *shard = &s->loop.shard;
	struct lane owned = { .secret = { SECRET } };
	struct frame request;
	int pair[2], fds[FRAME_FDS];

	memory_with_a_record(fds);
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
	int doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct client *client =
	    client_adopt(&s->loop.front, &s->loop.uv, pair[0], doorbell, 77, 1001, 1001, "t");
	assert_non_null(client);
	frame_init(&request, FRAME_LANE_RETURN, 1);
	assert_int_equal(attach_return(client, &request, fds), 0);
	assert_int_equal(fds[FRAME_FD_RING], -1);
	assert_int_equal(fds[FRAME_FD_OLD_ANSWERS], -1);
	assert_non_null(client->attach); /* under way */
	client_close(client);
	shard->world->ops->settle(shard->world);
	assert_non_null(only_lane(s));
	assert_null(only_lane(s)->client);
	lane_own(&owned, &(struct lane_owner){ .uid = 1001, .pid = 77 });
	assert_memory_equal(&only_lane(s)->id_key, &owned.id_key, sizeof(owned.id_key));
	assert_int_equal(only_lane(s)->owner.uid, 1001);
	assert_int_equal(only_lane(s)->owner.pid, 77);
	close(pair[1]);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
		    lane_of_a_client_that_has_gone_keeps_its_identity, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
