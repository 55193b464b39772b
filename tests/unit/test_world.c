/* world_uv.c: look-ups, jobs on worker threads, a reset behind the last bytes. */
#include "daemon/config/config.h"
#include "daemon/base/world_uv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LOOKUPS 300u

static void
on_resolved(void *owner, const struct world_address *addresses, unsigned count, const char *why)
{
	fail_msg("a cancelled look-up was answered");
}

static void
close_world(struct world *world, uv_loop_t *loop)
{
	world_uv_free(world);
	uv_run(loop, UV_RUN_DEFAULT);
	assert_int_equal(uv_loop_close(loop), 0);
}

static struct address
address_of(const char *host)
{
	return (
	    struct address){ .text = (char *)(uintptr_t)host, .host = (char *)(uintptr_t)host, .port = 1883 };
}

/* Names that wait for their name servers as well as those that need none. */
static void
cancelled_lookups_leave_at_once(void **state)
{
	static const struct sock_handlers handlers = { .resolved = on_resolved };
	static const char *const hosts[] = { "localhost", "silent.invalid", "127.0.0.1" };
	uv_loop_t loop;

	assert_int_equal(uv_loop_init(&loop), 0);
	struct world *world = world_uv_new(&loop, NULL, NULL);
	assert_non_null(world);
	for (unsigned i = 0; i < LOOKUPS; i++) {
		const struct address address = address_of(hosts[i % 3]);
		void *request = world->ops->resolve(world, &address, &handlers, NULL);
		assert_non_null(request);
		world->ops->resolve_cancel(world, request);
	}
	close_world(world, &loop);
}

struct answer {
	int came;
	unsigned count;
	struct world_address first;
	char why[128];
};

static void
on_answer(void *owner, const struct world_address *addresses, unsigned count, const char *why)
{
	struct answer *answer = owner;

	answer->came++;
	answer->count = count;
	if (count > 0)
		answer->first = addresses[0];
	snprintf(answer->why, sizeof(answer->why), "%s", why != NULL ? why : "");
}

static struct answer
look_up(struct address address)
{
	static const struct sock_handlers handlers = { .resolved = on_answer };
	struct answer answer = { .came = 0 };
	uv_loop_t loop;

	assert_int_equal(uv_loop_init(&loop), 0);
	struct world *world = world_uv_new(&loop, NULL, NULL);
	assert_non_null(world);
	assert_non_null(world->ops->resolve(world, &address, &handlers, &answer));
	assert_int_equal(answer.came, 0); /* never from within */
	uv_run(&loop, UV_RUN_DEFAULT);
	assert_int_equal(answer.came, 1);
	close_world(world, &loop);
	return answer;
}

static void
addresses_written_out_need_no_lookup(void **state)
{
	struct answer answer = look_up(address_of("192.0.2.7"));
	const struct sockaddr_in *in = (const struct sockaddr_in *)&answer.first.addr;
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&answer.first.addr;
	const struct sockaddr_un *un = (const struct sockaddr_un *)&answer.first.addr;

	assert_int_equal(answer.count, 1);
	assert_int_equal(in->sin_family, AF_INET);
	assert_int_equal(ntohl(in->sin_addr.s_addr), 0xc0000207);
	assert_int_equal(ntohs(in->sin_port), 1883);
	answer = look_up(address_of("2001:db8::1"));
	assert_int_equal(answer.count, 1);
	assert_int_equal(in6->sin6_family, AF_INET6);
	assert_int_equal(in6->sin6_scope_id, 0);
	answer = look_up(address_of("fe80::1%lo"));
	assert_int_equal(answer.count, 1);
	assert_int_equal(in6->sin6_scope_id, if_nametoindex("lo"));
	assert_int_equal(ntohs(in6->sin6_port), 1883);
	answer = look_up(address_of("fe80::1%nosuch0"));
	assert_int_equal(answer.count, 0);
	assert_string_equal(answer.why, "the interface behind its % does not exist");
	answer = look_up((struct address){ .path = (char *)(uintptr_t) "/run/broker.sock" });
	assert_int_equal(answer.count, 1);
	assert_int_equal(un->sun_family, AF_UNIX);
	assert_string_equal(un->sun_path, "/run/broker.sock");
}

static void
localhost_leads_here(void **state)
{
	struct answer answer = look_up(address_of("localhost"));
	const struct sockaddr_in *in = (const struct sockaddr_in *)&answer.first.addr;

	assert_true(answer.count > 0);
	assert_true(in->sin_family == AF_INET || in->sin_family == AF_INET6);
	assert_int_equal(ntohs(in->sin_port), 1883);
}

/* ---- jobs ---- */

struct counted_job {
	struct world_job job;
	unsigned *ran, *done;
	pthread_t thread;
};

static void
run_counted(struct world_job *job)
{
	struct counted_job *counted = (struct counted_job *)job;

	counted->thread = pthread_self();
	++*counted->ran;
}

static void
done_counted(struct world_job *job)
{
	struct counted_job *counted = (struct counted_job *)job;

	++*counted->done;
}

#define JOBS 10u

/* threads: RLIMIT_NPROC has room for one. Runs in a child. */
static void
do_jobs(int threads)
{
	struct counted_job jobs[JOBS];
	unsigned ran = 0, done = 0;
	uv_loop_t loop;

	assert_int_equal(uv_loop_init(&loop), 0);
	struct world *world = world_uv_new(&loop, NULL, NULL);
	assert_non_null(world);
	for (unsigned i = 0; i < JOBS; i++) {
		jobs[i] = (struct counted_job){
			.job = { .run = run_counted, .done = done_counted }, .ran = &ran, .done = &done
		};
		world->ops->work(world, &jobs[i].job);
	}
	assert_int_equal(done, 0); /* never from within */
	if (!threads)
		assert_int_equal(ran, 0);
	world->ops->settle(world);
	assert_int_equal(ran, JOBS);
	assert_int_equal(done, JOBS);
	for (unsigned i = 0; i < JOBS; i++)
		assert_int_equal(!pthread_equal(jobs[i].thread, pthread_self()), threads);
	close_world(world, &loop);
}

static void
jobs_are_done_beside_the_loop(void **state)
{
	do_jobs(1);
}

/* As in a container whose pids.max is reached. Root has no limit, so the child is another user. */
static void
jobs_are_done_on_the_loop_when_there_are_no_threads(void **state)
{
	const struct rlimit none = { 0, 0 };
	int status;

	if (geteuid() != 0)
		skip();
	pid_t child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		if (setrlimit(RLIMIT_NPROC, &none) != 0 || setgid(54321) != 0 || setuid(54321) != 0)
			_exit(2);
		do_jobs(0);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
}

/* A connection over loopback: the end we watch, and the broker's. */
static void
connect_pair(int pair[2])
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&address, len), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &len), 0);
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(pair[0] >= 0);
	assert_int_equal(connect(pair[0], (struct sockaddr *)&address, len), 0);
	pair[1] = accept(listener, NULL, NULL);
	assert_true(pair[1] >= 0);
	close(listener);
}

struct reader {
	struct sock *sock; /* NULL: closed */
	char said[32];
	int error;
};

/* Reads once, as a link does: a short read means that no more data is there. */
static void
read_once(void *owner)
{
	struct reader *reader = owner;
	char bytes[sizeof(reader->said)];
	ssize_t n = reader->sock->world->ops->read(reader->sock, bytes, sizeof(bytes) - 1);

	if (n > 0) {
		memcpy(reader->said, bytes, (size_t)n);
		return;
	}
	reader->error = n < 0 ? errno : 0;
	reader->sock->world->ops->close(reader->sock, 0);
	reader->sock = NULL;
}

static void
ignore(void *owner)
{
	(void)owner;
}

static void
reset_behind_last_words_is_seen(void **state)
{
	static const struct sock_handlers handlers = { .readable = read_once, .writable = ignore };
	struct reader reader = { .error = 0 };
	uv_loop_t loop;
	int pair[2];

	connect_pair(pair);
	assert_int_equal(uv_loop_init(&loop), 0);
	struct world *world = world_uv_new(&loop, NULL, NULL);
	assert_non_null(world);
	reader.sock = world_uv_adopt(world, pair[0], &handlers, &reader);
	assert_non_null(reader.sock);
	/* Closing a socket with unread data resets the connection. */
	assert_int_equal(write(pair[0], "unwanted", 8), 8);
	assert_int_equal(recv(pair[1], (char[8]){ 0 }, 8, MSG_PEEK | MSG_WAITALL), 8);
	assert_int_equal(write(pair[1], "last words", 10), 10);
	close(pair[1]);
	/* Ends when nothing is watched any more. */
	uv_run(&loop, UV_RUN_DEFAULT);
	assert_string_equal(reader.said, "last words");
	assert_null(reader.sock);
	assert_int_equal(reader.error, ECONNRESET);
	close_world(world, &loop);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(reset_behind_last_words_is_seen),
		cmocka_unit_test(cancelled_lookups_leave_at_once),
		cmocka_unit_test(addresses_written_out_need_no_lookup),
		cmocka_unit_test(localhost_leads_here),
		cmocka_unit_test(jobs_are_done_beside_the_loop),
		cmocka_unit_test(jobs_are_done_on_the_loop_when_there_are_no_threads),
	};

	return cmocka_run_group_tests_name("world", tests, NULL, NULL);
}
