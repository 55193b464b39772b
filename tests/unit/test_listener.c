/* Listening on a path: one daemon at a time, however the starts interleave. */
#include "daemon/front/listener.h"
#include "shm/error.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

struct setup {
	uv_loop_t loop;
	char folder[64];
	char path[108];
	struct listener first, second;
	int first_rc, second_rc;
	int null;
};

/* A second listener starts when the first is about to remove the old socket file. */
static struct setup *between;

int __real_unlink(const char *path);
int __wrap_unlink(const char *path);

static void
on_accepted(void *owner, int fd)
{
	close(fd);
}

static int
listen_on(struct setup *s, struct listener *listener)
{
	return listener_init(listener, &s->loop, s->path, SOCK_SEQPACKET, 0666, NULL, -1, on_accepted, s);
}

int
__wrap_unlink(const char *path)
{
	struct setup *s = between;

	if (s != NULL && strcmp(path, s->path) == 0) {
		between = NULL;
		s->second_rc = listen_on(s, &s->second);
	}
	return __real_unlink(path);
}

static int
setup(void **state)
{
	struct setup *s = calloc(1, sizeof(*s));

	assert_non_null(s);
	s->null = open("/dev/null", O_WRONLY | O_CLOEXEC);
	log_set_fd(s->null);
	strcpy(s->folder, "/tmp/tidegate-test-listener-XXXXXX");
	assert_non_null(mkdtemp(s->folder));
	snprintf(s->path, sizeof(s->path), "%s/socket", s->folder);
	s->first.fd = s->second.fd = s->first.spare = s->second.spare = -1;
	assert_int_equal(uv_loop_init(&s->loop), 0);
	*state = s;
	return 0;
}

static int
teardown(void **state)
{
	struct setup *s = *state;

	listener_fini(&s->first);
	listener_fini(&s->second);
	uv_run(&s->loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(&s->loop), 0);
	assert_int_equal(rmdir(s->folder), 0); /* nothing is left */
	log_set_fd(STDERR_FILENO);
	close(s->null);
	free(s);
	return 0;
}

/* The files of a killed daemon. */
static void
leave_dead_socket(const struct setup *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, s->path, sizeof(addr.sun_path));
	assert_int_equal(bind(fd, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
}

static int
somebody_listens(const struct setup *s)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	memcpy(addr.sun_path, s->path, sizeof(addr.sun_path));
	int rc = connect(fd, (const struct sockaddr *)&addr, sizeof(addr));
	close(fd);
	return rc == 0;
}

static void
dead_socket_is_replaced_and_a_live_one_is_not(void **state)
{
	struct setup *s = *state;

	leave_dead_socket(s);
	assert_int_equal(listen_on(s, &s->first), 0);
	assert_true(somebody_listens(s));
	assert_int_equal(listen_on(s, &s->second), -TG_ESYSTEM);
	assert_true(somebody_listens(s));
	listener_fini(&s->first);
	assert_int_equal(listen_on(s, &s->second), 0);
}

/* Both found no daemon: one of them must listen on the path, and the other must know that it does not. */
static void
of_two_that_begin_at_once_one_listens(void **state)
{
	struct setup *s = *state;

	leave_dead_socket(s);
	between = s;
	s->first_rc = listen_on(s, &s->first);
	assert_null(between);
	assert_int_equal((s->first_rc == 0) + (s->second_rc == 0), 1);
	assert_true(somebody_listens(s));
}

/* A file left by a daemon killed during its start, or a foreign file, does not prevent a start. */
static void
foreign_lock_stops_no_daemon(void **state)
{
	struct setup *s = *state;
	char lock[128];

	snprintf(lock, sizeof(lock), "%s.lock", s->path);
	int fd = open(lock, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	leave_dead_socket(s);
	/* Another daemon is starting there; then it dies. */
	assert_int_equal(flock(fd, LOCK_EX), 0);
	assert_int_equal(listen_on(s, &s->first), -TG_ESYSTEM);
	close(fd);
	assert_int_equal(listen_on(s, &s->first), 0);
	assert_int_equal(access(lock, F_OK), -1);
	listener_fini(&s->first);
	uv_run(&s->loop, UV_RUN_NOWAIT);
	/* A file that other users can open. */
	fd = open(lock, O_RDONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_int_equal(fchmod(fd, 0644), 0);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	leave_dead_socket(s);
	assert_int_equal(listen_on(s, &s->first), 0);
	close(fd);
	assert_int_equal(__real_unlink(lock), 0);
	listener_fini(&s->first);
	leave_dead_socket(s);
	assert_int_equal(symlink("/dev/null", lock), 0);
	assert_int_equal(listen_on(s, &s->second), 0);
	assert_int_equal(__real_unlink(lock), 0);
}

static int
path_is_there(const struct setup *s)
{
	return access(s->path, F_OK) == 0;
}

static int
first_has_lost(const struct setup *s)
{
	return s->first.lost;
}

/* Has the first look at once, as it does every second, and runs the loop until `state`. */
static void
let_it_look(struct setup *s, int (*state)(const struct setup *s))
{
	assert_true(uv_is_active((uv_handle_t *)&s->first.look));
	uv_timer_set_repeat(&s->first.look, 1);
	assert_int_equal(uv_timer_again(&s->first.look), 0);
	uv_ref((uv_handle_t *)&s->first.look);
	for (int i = 0; i < 1000 && !state(s); i++)
		uv_run(&s->loop, UV_RUN_ONCE);
	assert_true(state(s));
	uv_unref((uv_handle_t *)&s->first.look);
}

static void
removed_socket_is_made_anew(void **state)
{
	struct setup *s = *state;
	struct stat st;

	assert_int_equal(listen_on(s, &s->first), 0);
	assert_int_equal(__real_unlink(s->path), 0);
	assert_false(somebody_listens(s));
	let_it_look(s, path_is_there);
	assert_true(somebody_listens(s));
	assert_int_equal(stat(s->path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
	assert_int_equal(s->first.lost, 0);
	/* And the folder with it. */
	assert_int_equal(__real_unlink(s->path), 0);
	assert_int_equal(rmdir(s->folder), 0);
	let_it_look(s, path_is_there);
	assert_true(somebody_listens(s));
}

static void
path_that_another_daemon_has_is_left_to_it(void **state)
{
	struct setup *s = *state;

	assert_int_equal(listen_on(s, &s->first), 0);
	assert_int_equal(__real_unlink(s->path), 0);
	assert_int_equal(listen_on(s, &s->second), 0);
	let_it_look(s, first_has_lost);
	/* Neither now, nor when it ends, does the first take it away. */
	listener_fini(&s->first);
	assert_true(somebody_listens(s));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(dead_socket_is_replaced_and_a_live_one_is_not, setup, teardown),
		cmocka_unit_test_setup_teardown(of_two_that_begin_at_once_one_listens, setup, teardown),
		cmocka_unit_test_setup_teardown(foreign_lock_stops_no_daemon, setup, teardown),
		cmocka_unit_test_setup_teardown(removed_socket_is_made_anew, setup, teardown),
		cmocka_unit_test_setup_teardown(path_that_another_daemon_has_is_left_to_it, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
