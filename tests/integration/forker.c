/*
 * forker: processes that use the library and fork or exec, against a running daemon.
 *
 *   exec      checks that a program started with posix_spawn or vfork and exec has none of its descriptors; checks
 * again after a line on standard input, with another daemon
 *   prefork   a server whose workers are forked after it has opened a client
 *   threads   threads that publish while another forks without end
 *
 * A message's body is "PROCESS 0 SEQUENCE", as a load program's (record.h). PROCESS 0 is the parent. Exit status: 0 all
 * checks passed, 1 not (the reason is on standard error).
 */
#include "tests/integration/record.h"
#include "libclient/tidegate.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKERS 8u
#define THREADS 3u
#define MESSAGES 500u
#define FORKS 150u
#define FDS 256

extern char **environ;

static const char *control_path, *program;

static void __attribute__((format(printf, 1, 2), noreturn)) fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	_exit(1);
}

#define CHECK(call, want)                                                                                      \
	do {                                                                                                   \
		int got_ = (call);                                                                             \
		if (got_ != (want))                                                                            \
			fail("%s: %s: %d, not %d: %s", __func__, #call, got_, (want), tg_client_detail(NULL)); \
	} while (0)

struct handle {
	struct tg_client *client;
	struct tg_lane *lane;
};

static void
open_own(struct handle *h)
{
	struct tg_client_options options = { .socket = control_path };

	CHECK(tg_client_open(&h->client, &options), 0);
	CHECK(tg_lane_open(h->client, &h->lane, "events", NULL), 0);
}

static void
close_own(struct handle *h)
{
	CHECK(tg_lane_close(h->lane, 20000), 0);
	tg_client_close(h->client);
}

/* Each gets its completion. */
static void
publish(struct tg_lane *lane, unsigned who, unsigned from, unsigned count)
{
	struct tg_completion c[32];
	unsigned sent = 0, got = 0;
	char body[RECORD_BODY_MIN];

	while (got < count) {
		struct tg_message m = { .topic = "load/fork", .topic_len = TG_NUL, .body = body };
		int rc = -TG_EAGAIN;
		if (sent < count) {
			m.body_len = record_body(body, 1, who, 0, from + sent);
			rc = tg_publish(lane, &m, NULL);
			if (rc == 0)
				sent++;
			else if (rc != -TG_EAGAIN)
				fail("tg_publish: %d %s", rc, tg_client_detail(NULL));
		}
		int n = tg_poll(lane, c, 32);
		if (n < 0)
			fail("tg_poll: %d %s", n, tg_client_detail(NULL));
		for (int i = 0; i < n; i++)
			if (c[i].outcome != TG_DELIVERED)
				fail("outcome %d", c[i].outcome);
		got += (unsigned)n;
		if (rc == -TG_EAGAIN && n == 0 && (rc = tg_wait(lane, 20000)) != 0)
			fail("tg_wait: %d %s", rc, tg_client_detail(NULL));
	}
}

/* Every call on what a child has inherited. */
static void
check_forked(const struct handle *h)
{
	struct tg_message m = { .topic = "load/fork", .topic_len = TG_NUL, .body = "9 9 9", .body_len = 5 };
	struct tg_completion c;
	struct tg_lane *lane;
	void *body;

	CHECK(tg_publish(h->lane, &m, NULL), -TG_EFORKED);
	CHECK(tg_publish_batch(h->lane, &m, 1, NULL), -TG_EFORKED);
	CHECK(tg_publish_sync(h->lane, &m, 10, &c), -TG_EFORKED);
	CHECK(tg_reserve(h->lane, &m, &body), -TG_EFORKED);
	CHECK(tg_poll(h->lane, &c, 1), -TG_EFORKED);
	CHECK(tg_wait(h->lane, 10), -TG_EFORKED);
	CHECK(tg_flush(h->lane, 10), -TG_EFORKED);
	CHECK(tg_fd(h->lane), -TG_EFORKED);
	CHECK(tg_writable(h->lane), -TG_EFORKED);
	CHECK(tg_cancel(h->lane, 0), -TG_EFORKED);
	CHECK(tg_lane_open(h->client, &lane, "events", NULL), -TG_EFORKED);
}

static void
reap(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			fail("waitpid: %s", strerror(errno));
	if (status != 0)
		fail("child %d ended with status 0x%x", (int)pid, (unsigned)status);
}

/* ---- exec ---- */

/* In the started program: its descriptors beyond the standard three. */
static int
list_descriptors(void)
{
	int found = 0;

	for (int fd = 3; fd < FDS; fd++)
		if (fcntl(fd, F_GETFD) >= 0) {
			char name[64], to[128];
			snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
			ssize_t n = readlink(name, to, sizeof(to) - 1);
			to[n < 0 ? 0 : n] = '\0';
			fprintf(stderr, "descriptor %d came along: %s\n", fd, to);
			found = 1;
		}
	return found;
}

static void
check_exec(void)
{
	char *args[] = { (char *)(uintptr_t)program, (char *)(uintptr_t) "-", (char *)(uintptr_t) "list",
		NULL };
	pid_t pid;

	if (posix_spawn(&pid, program, NULL, NULL, args, environ) != 0)
		fail("posix_spawn: %s", strerror(errno));
	reap(pid);
	pid = vfork();
	if (pid == 0) {
		execv(program, args);
		_exit(9);
	}
	reap(pid);
}

static int
run_exec(void)
{
	struct handle h;
	char line[16];

	/* Descriptors inherited from our own parent are not the library's. */
	for (int fd = 3; fd < FDS; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	open_own(&h);
	if (tg_fd(h.lane) < 0)
		fail("tg_fd");
	publish(h.lane, 0, 0, 10);
	check_exec();
	publish(h.lane, 0, 10, 10);
	puts("checked");
	fflush(stdout);
	if (fgets(line, sizeof(line), stdin) == NULL)
		fail("nothing on standard input");
	publish(h.lane, 0, 20, 10);
	check_exec();
	close_own(&h);
	return 0;
}

/* ---- pre-forking server ---- */

static int
run_prefork(void)
{
	struct handle parents, own;
	pid_t pids[WORKERS];

	open_own(&parents);
	publish(parents.lane, 0, 0, MESSAGES);
	for (unsigned w = 1; w <= WORKERS; w++) {
		pids[w - 1] = fork();
		if (pids[w - 1] != 0)
			continue;
		check_forked(&parents);
		open_own(&own);
		publish(own.lane, w, 0, MESSAGES);
		check_forked(&parents);
		close_own(&own);
		/* As a worker does that ends in good order. */
		tg_lane_close(parents.lane, 0);
		tg_client_close(parents.client);
		exit(0);
	}
	publish(parents.lane, 0, MESSAGES, MESSAGES);
	for (unsigned w = 0; w < WORKERS; w++)
		reap(pids[w]);
	publish(parents.lane, 0, 2 * MESSAGES, MESSAGES);
	close_own(&parents);
	return 0;
}

/* ---- threads ---- */

struct worker {
	struct handle h;
	unsigned who;
	uint32_t stop;
	unsigned published;
	pthread_t thread;
};

static void *
work(void *arg)
{
	struct worker *w = arg;

	while (!__atomic_load_n(&w->stop, __ATOMIC_ACQUIRE) || w->published < MESSAGES) {
		publish(w->h.lane, w->who, w->published, 50);
		w->published += 50;
	}
	return NULL;
}

static int
run_threads(void)
{
	struct tg_client_options options = { .socket = control_path };
	struct worker workers[THREADS];
	struct tg_client *client;

	CHECK(tg_client_open(&client, &options), 0);
	for (unsigned t = 0; t < THREADS; t++) {
		workers[t] = (struct worker){ .h.client = client, .who = t };
		CHECK(tg_lane_open(client, &workers[t].h.lane, "events", NULL), 0);
	}
	for (unsigned t = 0; t < THREADS; t++)
		if (pthread_create(&workers[t].thread, NULL, work, &workers[t]) != 0)
			fail("pthread_create");
	for (unsigned f = 0; f < FORKS; f++) {
		pid_t pid = fork();
		if (pid == 0) {
			struct handle own;
			check_forked(&workers[f % THREADS].h);
			if (f % 10 == 0) {
				open_own(&own);
				publish(own.lane, THREADS + f, 0, 5);
				close_own(&own);
			}
			_exit(0);
		}
		if (pid < 0)
			fail("fork: %s", strerror(errno));
		reap(pid);
	}
	for (unsigned t = 0; t < THREADS; t++)
		__atomic_store_n(&workers[t].stop, 1, __ATOMIC_RELEASE);
	for (unsigned t = 0; t < THREADS; t++) {
		pthread_join(workers[t].thread, NULL);
		printf("%u %u\n", workers[t].who, workers[t].published);
		CHECK(tg_lane_close(workers[t].h.lane, 20000), 0);
	}
	tg_client_close(client);
	return 0;
}

int
main(int argc, char **argv)
{
	program = argv[0];
	control_path = argc > 1 ? argv[1] : "";
	const char *mode = argc > 2 ? argv[2] : "";

	if (strcmp(mode, "list") == 0)
		return list_descriptors();
	if (strcmp(mode, "exec") == 0)
		return run_exec();
	if (strcmp(mode, "prefork") == 0)
		return run_prefork();
	if (strcmp(mode, "threads") == 0)
		return run_threads();
	fprintf(stderr, "usage: forker SOCKET exec|prefork|threads\n");
	return 2;
}
