/* libtidegate: connecting, opening and closing lanes, forking, and a daemon that sends wrong answers. */
#include "fake_daemon.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define assert_detail(part) assert_non_null(strstr(tg_client_detail(NULL), part))

static unsigned
open_descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(dir);
	while (readdir(dir) != NULL)
		n++;
	closedir(dir);
	return n;
}

static struct tg_client *
client_of(struct fake *fake, uint32_t timeout_ms)
{
	struct tg_client_options options = { .socket = fake->path, .name = "test", .timeout_ms = timeout_ms };
	struct tg_client *client;

	assert_int_equal(tg_client_open(&client, &options), 0);
	return client;
}

/* ---- the public header against the lists ---- */

#pragma GCC diagnostic push
#pragma GCC diagnostic error "-Wswitch"
/* No default: the compiler rejects an enumerator of the header that is missing in the list. */
static int
error_is_listed(enum tg_error e)
{
	switch (e) {
#define X(name, value, text) case TG_E##name:
#include "shm/error.def"
#undef X
		return 1;
	}
	return 0;
}

static int
outcome_is_listed(enum tg_outcome o)
{
	switch (o) {
#define X(name, value, word, text) case TG_##name:
#include "shm/outcome.def"
#undef X
		return 1;
	}
	return 0;
}
#pragma GCC diagnostic pop

static void
header_and_lists_have_the_same_numbers(void **state)
{
	(void)state;
#define X(name, value, text)                            \
	assert_int_equal(TG_E##name, value);            \
	assert_string_equal(tg_strerror(value), text);  \
	assert_string_equal(tg_strerror(-value), text); \
	assert_true(error_is_listed(value));
#include "shm/error.def"
#undef X
#define X(name, value, word, text)                         \
	assert_int_equal(TG_##name, value);                \
	assert_string_equal(tg_outcome_name(value), word); \
	assert_true(outcome_is_listed(value));
#include "shm/outcome.def"
#undef X
	assert_int_equal(TG_QUIET, RECORD_F_QUIET);
	assert_int_equal(TG_RETAIN, RECORD_F_RETAIN);
	assert_string_equal(tg_outcome_name(0), "none");
	assert_non_null(tg_strerror(-9999));
	assert_true(strlen(tg_version()) > 0);
}

/* ---- connecting ---- */

static void
no_daemon_names_socket_and_cause(void **state)
{
	struct tg_client_options options = { .socket = "/tmp/tidegate-test-of-nobody/socket" };
	struct tg_client *client = (void *)&options;

	(void)state;
	assert_int_equal(tg_client_open(&client, &options), -TG_ENODAEMON);
	assert_null(client);
	assert_detail("/tmp/tidegate-test-of-nobody/socket");
	assert_detail("No such file");
}

static void
stale_socket_is_no_daemon(void **state)
{
	struct fake fake;
	struct tg_client_options options = { .socket = fake.path };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct tg_client *client;
	int fd = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	unlink(fake.path);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", fake.path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	assert_int_equal(tg_client_open(&client, &options), -TG_ENODAEMON);
	assert_detail("refused");
	fake_stop(&fake);
}

static void
socket_path_is_bounded(void **state)
{
	char path[200];
	struct tg_client_options options = { .socket = path };
	struct tg_client *client;

	(void)state;
	memset(path, 'p', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	assert_int_equal(tg_client_open(&client, &options), -TG_EINVAL);
	assert_detail("199 bytes");
	assert_detail("107");
	path[0] = '\0';
	assert_int_equal(tg_client_open(&client, &options), -TG_EINVAL);
	assert_int_equal(tg_client_open(NULL, &options), -TG_EINVAL);
}

static void
environment_names_the_socket(void **state)
{
	struct fake fake;
	struct tg_client *client;

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	setenv("TIDEGATE_SOCKET", fake.path, 1);
	assert_int_equal(tg_client_open(&client, NULL), 0);
	tg_client_close(client);
	setenv("TIDEGATE_SOCKET", "/nowhere/at/all", 1);
	assert_int_equal(tg_client_open(&client, NULL), -TG_ENODAEMON);
	assert_detail("/nowhere/at/all");
	unsetenv("TIDEGATE_SOCKET");
	fake_stop(&fake);
}

static void
forbidden_socket_is_denied(void **state)
{
	struct fake fake;
	int status;
	pid_t pid;

	(void)state;
	if (geteuid() != 0)
		skip();
	fake_start(&fake, FAKE_HOLD);
	assert_int_equal(chmod(fake.dir, 0700), 0);
	pid = fork();
	if (pid == 0) {
		struct tg_client_options options = { .socket = fake.path };
		struct tg_client *client;

		if (setresuid(65534, 65534, 65534) != 0)
			_exit(1);
		_exit(tg_client_open(&client, &options) == -TG_EDENIED &&
			      strstr(tg_client_detail(NULL), fake.path) != NULL
			  ? 0
			  : 2);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	fake_stop(&fake);
}

static void
full_accept_queue_is_waited_for(void **state)
{
	struct fake fake; /* for its folder */
	char path[100];
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct tg_client_options options = { .socket = path, .timeout_ms = 30 };
	struct tg_client *clients[8];
	int n = 0, rc;
	int listener = socket(AF_UNIX, SOCK_SEQPACKET, 0);

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	snprintf(path, sizeof(path), "%.80s/full", fake.dir);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(listener, 0), 0);
	while ((rc = tg_client_open(&clients[n], &options)) == 0)
		assert_in_range(++n, 1, 7);
	assert_int_equal(rc, -TG_ETIMEOUT);
	assert_detail("30 ms");
	while (n > 0)
		tg_client_close(clients[--n]);
	close(listener);
	unlink(path);
	fake_stop(&fake);
}

/* ---- lanes ---- */

static void
lane_opens_and_closes(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane, *other;
	struct tg_lane_options options = { .ring_bytes = 20000, .completions = 200 };
	struct frame request;
	unsigned before;

	(void)state;
	fake_start(&fake, FAKE_ANSWER);
	before = open_descriptors();
	client = client_of(&fake, 0);
	assert_int_equal(tg_lane_open(client, &lane, "events", &options), 0);
	assert_int_equal(fake_lane(&fake)->map.geo.sq_bytes, 32768);
	assert_int_equal(fake_lane(&fake)->map.geo.cq_entries, 256);
	request = fake_last_open(&fake);
	assert_string_equal(request.u.open.pool, "events");
	assert_string_equal(request.u.open.name, "test");
	assert_int_equal(tg_lane_open(client, &other, "events", NULL), 0);
	assert_int_equal(fake_lane(&fake)->map.geo.sq_bytes, LANE_SQ_DEFAULT);
	assert_true(tg_fd(other) >= 0);
	assert_int_equal(tg_lane_close(lane, -1), 0);
	assert_int_equal(fake_closes(&fake), 1);
	tg_client_close(client); /* with `other` still open */
	tg_client_close(NULL);
	assert_int_equal(tg_lane_close(NULL, 0), 0);
	/* The fake keeps the two memfds and a bell of each lane; its end of the connection may still be open. */
	assert_in_range(open_descriptors(), before + 6, before + 7);
	fake_stop(&fake);
}

static void
lane_arguments_are_checked(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	char pool[100];
	struct tg_lane_options big = { .ring_bytes = LANE_SQ_MAX + 1 };
	struct tg_lane_options many = { .completions = LANE_CQ_MAX + 1 };

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	client = client_of(&fake, 0);
	memset(pool, 'p', sizeof(pool));
	pool[LANE_POOL_NAME] = '\0';
	assert_int_equal(tg_lane_open(client, &lane, pool, NULL), -TG_EINVAL);
	assert_detail("64 bytes, 1 to 63");
	pool[LANE_POOL_NAME - 1] = '\0';
	assert_int_equal(tg_lane_open(client, &lane, pool, NULL), 0);
	assert_int_equal(tg_lane_open(client, &lane, "", NULL), -TG_EINVAL);
	assert_int_equal(tg_lane_open(client, &lane, NULL, NULL), -TG_EINVAL);
	assert_int_equal(tg_lane_open(NULL, &lane, "p", NULL), -TG_EINVAL);
	assert_int_equal(tg_lane_open(client, NULL, "p", NULL), -TG_EINVAL);
	assert_int_equal(tg_lane_open(client, &lane, "p", &big), -TG_EINVAL);
	assert_detail("1073741825");
	assert_detail("1073741824");
	assert_int_equal(tg_lane_open(client, &lane, "p", &many), -TG_EINVAL);
	assert_null(lane);
	tg_client_close(client);
	fake_stop(&fake);
}

static void
refusal_keeps_the_daemons_words(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	static const int codes[] = { TG_ENOPOOL, TG_ELIMIT, TG_EDENIED, TG_ESTOPPING };

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	client = client_of(&fake, 0);
	for (unsigned i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
		fake_set_error(&fake, codes[i]);
		assert_int_equal(tg_lane_open(client, &lane, "gone", NULL), -codes[i]);
		assert_string_equal(tg_client_detail(client), "pool \"gone\": no, 3 of 3");
	}
	fake_set_error(&fake, 0);
	assert_int_equal(tg_lane_open(client, &lane, "gone", NULL), 0);
	tg_client_close(client);
	fake_stop(&fake);
}

static void
lies_are_found_and_nothing_leaks(void **state)
{
	static const struct {
		enum fake_lie lie;
		int error;
		const char *detail;
	} lies[] = {
		{ LIE_NO_DESCRIPTORS, -TG_EPROTOCOL, "descriptor is missing" },
		{ LIE_ONE_DESCRIPTOR, -TG_EPROTOCOL, "descriptor is missing" },
		{ LIE_TYPE, -TG_EPROTOCOL, "type 5 where 3" },
		{ LIE_SERIAL, -TG_EPROTOCOL, "request" },
		{ LIE_GEOMETRY, -TG_EBROKEN, "32768" },
		{ LIE_LANE_ID, -TG_EBROKEN, "header says lane" },
		{ LIE_UNSEALED, -TG_EBROKEN, "not a lane" },
		{ LIE_NOT_A_MEMFD, -TG_EBROKEN, "not a lane" },
		{ LIE_MEMFD_ABI, -TG_EVERSION, "ABI 1" },
		{ LIE_GARBAGE, -TG_EPROTOCOL, "not a tidegate frame" },
		{ LIE_SHORT, -TG_EPROTOCOL, "not a tidegate frame" },
		{ LIE_ABI, -TG_EVERSION, "speaks ABI 2, this library ABI 1" },
		{ LIE_ERROR_UNKNOWN, -TG_EPROTOCOL, "4711" },
		{ LIE_NOT_EMPTY, -TG_EBROKEN, "not empty" },
		{ LIE_HANG_UP, -TG_ECLOSED, "closed the connection" },
		{ LIE_ABI_UNREAD, -TG_EVERSION, "speaks ABI 2, this library ABI 1" },
	};
	struct tg_lane_options options = { .ring_bytes = LANE_SQ_MIN };

	(void)state;
	for (unsigned i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		struct fake fake;
		struct tg_client *client;
		struct tg_lane *lane;
		unsigned before = open_descriptors();

		fake_start(&fake, FAKE_HOLD);
		client = client_of(&fake, 2000);
		fake_set_lie(&fake, lies[i].lie);
		assert_int_equal(tg_lane_open(client, &lane, "events", &options), lies[i].error);
		assert_null(lane);
		assert_detail(lies[i].detail);
		fake_set_lie(&fake, LIE_NONE);
		/* Only a broken stream ends the client. */
		if (lies[i].lie != LIE_HANG_UP && lies[i].lie != LIE_SERIAL && lies[i].lie != LIE_ABI_UNREAD)
			assert_int_equal(tg_lane_open(client, &lane, "events", &options), 0);
		tg_client_close(client);
		fake_stop(&fake);
		assert_int_equal(open_descriptors(), before);
	}
}

static void
late_answer_is_skipped_and_its_lane_given_back(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	struct tg_lane_options small = { .ring_bytes = LANE_SQ_MIN };
	struct tg_lane_options large = { .ring_bytes = 4 * LANE_SQ_MIN };

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	client = client_of(&fake, 300);
	fake_set_lie(&fake, LIE_LATE);
	assert_int_equal(tg_lane_open(client, &lane, "events", &small), -TG_ETIMEOUT);
	assert_detail("300 ms");
	assert_int_equal(tg_lane_open(client, &lane, "events", &large), 0);
	assert_int_equal(fake_lane(&fake)->map.geo.sq_bytes, 4 * LANE_SQ_MIN);
	assert_int_equal(tg_publish(lane, &(struct tg_message){ .topic = "t", .topic_len = TG_NUL }, NULL), 0);
	assert_int_equal(fake_lane_drain(fake_lane(&fake), TG_DELIVERED), 1);
	assert_int_equal(tg_lane_close(lane, -1), 0);
	assert_int_equal(fake_closes(&fake), 2);
	tg_client_close(client);
	fake_stop(&fake);
}

static void
silent_daemon_is_a_timeout(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;

	(void)state;
	fake_start(&fake, FAKE_ANSWER);
	client = client_of(&fake, 1000);
	assert_int_equal(tg_lane_open(client, &lane, "events", NULL), 0);
	fake_set_lie(&fake, LIE_LATE);
	assert_int_equal(tg_lane_close(lane, -1), -TG_ETIMEOUT); /* freed all the same */
	tg_client_close(client);
	fake_stop(&fake);
}

static void
no_descriptors_left_is_a_limit(void **state)
{
	struct fake fake;
	struct tg_client *client, *second;
	struct tg_lane *lane;
	struct tg_client_options options = { .socket = fake.path };
	struct rlimit was, none;
	int fd, rc;

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	client = client_of(&fake, 2000);
	assert_int_equal(tg_lane_open(client, &lane, "events", NULL), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &was), 0);
	none = was;
	/* Those below the first free one are in use. No fewer: the fake's poll() takes no more than the limit. */
	int first = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(first >= 0);
	close(first);
	none.rlim_cur = (rlim_t)first;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	fd = tg_fd(lane);
	rc = tg_client_open(&second, &options);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &was), 0);
	assert_int_equal(fd, -TG_ELIMIT);
	assert_int_equal(rc, -TG_ELIMIT);
	assert_detail("Too many open files");
	assert_true(tg_fd(lane) >= 0);
	tg_client_close(client);
	fake_stop(&fake);
}

/* ---- fork ---- */

static int
child_checks(struct fake *fake, struct tg_client *client, struct tg_lane *lane)
{
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	struct tg_client_options options = { .socket = fake->path };
	struct tg_completion c;
	struct tg_lane *own;
	struct tg_client *mine;
	void *body;
	int want = -TG_EFORKED;

	if (tg_publish(lane, &m, NULL) != want || tg_publish_batch(lane, &m, 1, NULL) != want)
		return 1;
	if (tg_reserve(lane, &m, &body) != want || tg_commit(lane, 0, NULL) != want || tg_abort(lane) != want)
		return 2;
	if (tg_poll(lane, &c, 1) != want || tg_wait(lane, 0) != want || tg_fd(lane) != want)
		return 3;
	if (tg_writable(lane) != want || tg_cancel(lane, 0) != want || tg_flush(lane, 0) != want)
		return 4;
	if (tg_publish_sync(lane, &m, 0, &c) != want || tg_reason(lane, NULL, 0, NULL) != want)
		return 5;
	if (tg_outstanding(lane) != want || tg_lane_open(client, &own, "events", NULL) != want)
		return 6;
	if (strstr(tg_client_detail(NULL), "parent") == NULL)
		return 7;
	if (tg_client_open(&mine, &options) != 0 || tg_lane_open(mine, &own, "events", NULL) != 0)
		return 8;
	if (tg_publish_sync(own, &m, FAKE_DEADLINE_MS, &c) != 0 || c.outcome != TG_DELIVERED)
		return 9;
	if (tg_publish(lane, &m, NULL) != want) /* still the parent's */
		return 10;
	if (tg_lane_close(lane, -1) != want)
		return 11;
	tg_client_close(client);
	if (tg_publish_sync(own, &m, FAKE_DEADLINE_MS, &c) != 0)
		return 12;
	if (tg_lane_close(own, -1) != 0)
		return 13;
	tg_client_close(mine);
	return 0;
}

static void
child_gets_forked_and_opens_its_own(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane, *second;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	struct tg_completion c;
	int status;
	pid_t pid;

	(void)state;
	fake_start(&fake, FAKE_ANSWER);
	client = client_of(&fake, 0);
	assert_int_equal(tg_lane_open(client, &second, "events", NULL), 0);
	assert_int_equal(tg_lane_open(client, &lane, "events", NULL), 0);
	assert_true(tg_fd(lane) >= 0);
	assert_int_equal(tg_publish_sync(lane, &m, FAKE_DEADLINE_MS, &c), 0);
	pid = fork();
	if (pid == 0)
		_exit(child_checks(&fake, client, lane));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	/* The parent is as it was. */
	assert_int_equal(tg_publish_sync(lane, &m, FAKE_DEADLINE_MS, &c), 0);
	assert_int_equal(c.outcome, TG_DELIVERED);
	assert_int_equal(tg_lane_close(second, -1), 0);
	assert_int_equal(tg_lane_close(lane, -1), 0);
	tg_client_close(client);
	fake_stop(&fake);
}

static int
grandchild_checks(struct fake *fake, struct tg_lane *lane)
{
	struct tg_client_options options = { .socket = fake->path };
	struct tg_client *client;
	struct tg_lane *own;
	struct tg_message m = { .topic = "t", .topic_len = TG_NUL };
	int status;
	pid_t pid;

	if (tg_client_open(&client, &options) != 0 || tg_lane_open(client, &own, "events", NULL) != 0)
		return 1;
	pid = fork();
	if (pid == 0) {
		struct tg_client *third;

		if (tg_client_open(&third, &options) != 0)
			_exit(3);
		_exit(tg_publish(own, &m, NULL) == -TG_EFORKED && tg_publish(lane, &m, NULL) == -TG_EFORKED
			  ? 0
			  : 4);
	}
	if (waitpid(pid, &status, 0) != pid || status != 0)
		return 2;
	return tg_publish(own, &m, NULL) == 0 ? 0 : 5;
}

static void
grandchild_is_not_its_parent_either(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	int status;
	pid_t pid;

	(void)state;
	fake_start(&fake, FAKE_ANSWER);
	client = client_of(&fake, 0);
	assert_int_equal(tg_lane_open(client, &lane, "events", NULL), 0);
	pid = fork();
	if (pid == 0)
		_exit(grandchild_checks(&fake, lane));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	tg_client_close(client);
	fake_stop(&fake);
}

static void
descriptors_are_close_on_exec(void **state)
{
	struct fake fake;
	struct tg_client *client;
	struct tg_lane *lane;
	char was[256];
	unsigned fresh = 0;

	(void)state;
	fake_start(&fake, FAKE_HOLD);
	for (int fd = 0; fd < (int)sizeof(was); fd++)
		was[fd] = fcntl(fd, F_GETFD) >= 0;
	client = client_of(&fake, 0);
	assert_int_equal(tg_lane_open(client, &lane, "events", NULL), 0);
	assert_true(tg_fd(lane) >= 0);
	for (int fd = 0; fd < (int)sizeof(was); fd++) {
		int flags = fcntl(fd, F_GETFD);

		if (was[fd] || flags < 0)
			continue;
		assert_true((flags & FD_CLOEXEC) != 0);
		fresh++;
	}
	assert_true(fresh >= 5); /* socket, ring, answers, doorbell, bell, epoll; and the fake's */
	tg_client_close(client);
	fake_stop(&fake);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(header_and_lists_have_the_same_numbers),
		cmocka_unit_test(no_daemon_names_socket_and_cause),
		cmocka_unit_test(stale_socket_is_no_daemon),
		cmocka_unit_test(socket_path_is_bounded),
		cmocka_unit_test(environment_names_the_socket),
		cmocka_unit_test(forbidden_socket_is_denied),
		cmocka_unit_test(full_accept_queue_is_waited_for),
		cmocka_unit_test(lane_opens_and_closes),
		cmocka_unit_test(lane_arguments_are_checked),
		cmocka_unit_test(refusal_keeps_the_daemons_words),
		cmocka_unit_test(lies_are_found_and_nothing_leaks),
		cmocka_unit_test(late_answer_is_skipped_and_its_lane_given_back),
		cmocka_unit_test(silent_daemon_is_a_timeout),
		cmocka_unit_test(no_descriptors_left_is_a_limit),
		cmocka_unit_test(child_gets_forked_and_opens_its_own),
		cmocka_unit_test(grandchild_is_not_its_parent_either),
		cmocka_unit_test(descriptors_are_close_on_exec),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
