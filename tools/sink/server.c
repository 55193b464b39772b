/*
 * The loop, and what it listens on.
 */
#include "build_config.h"

#include "sink.h"

#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define BACKLOG 4096
#define EVENTS 256
#define ACCEPTS 64                 /* in one turn from one listener */
#define ACCEPT_PAUSE_NS 100000000u /* after running out of descriptors */
#define TICK_NS 1000000000u        /* keepalives are looked at once a second */

static uint64_t
clock_ns(clockid_t which)
{
	struct timespec now;

	clock_gettime(which, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct record_pair *
sink_pair(struct sink *sink, size_t index)
{
	if (index == sink->pairs_size) {
		sink->pairs_size = sink->pairs_size ? sink->pairs_size * 2 : 16;
		sink->pairs = realloc(sink->pairs, sink->pairs_size * sizeof(*sink->pairs));
		if (!sink->pairs) {
			fprintf(stderr, "tidegate-sink: no memory for %zu headers\n", sink->pairs_size);
			exit(1);
		}
	}
	return &sink->pairs[index];
}

void
sink_log(const struct sink *sink, const struct conn *conn, const char *level, const char *format, ...)
{
	char text[400];
	va_list args;

	if (sink->quiet)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (char *at = text; *at; at++)
		if (*at == '"' || (unsigned char)*at < 0x20)
			*at = '\'';
	if (conn)
		fprintf(stderr, "level=%s conn=%" PRIu64 " peer=%s msg=\"%s\"\n", level, conn->number,
		    conn->peer, text);
	else
		fprintf(stderr, "level=%s msg=\"%s\"\n", level, text);
}

/* splitmix64: any seed will do, and one seed gives one run. */
uint64_t
server_random(struct sink *sink)
{
	uint64_t z = sink->random += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

void
server_dirty(struct sink *sink, struct conn *conn)
{
	if (conn->is_dirty)
		return;
	conn->is_dirty = true;
	SLIST_INSERT_HEAD(&sink->dirty, conn, dirty);
}

void
server_wake_at(struct sink *sink, struct conn *conn, uint64_t when_ns)
{
	if (when_ns && !conn->wake_ns)
		LIST_INSERT_HEAD(&sink->timed, conn, timed);
	else if (!when_ns && conn->wake_ns)
		LIST_REMOVE(conn, timed);
	conn->wake_ns = when_ns;
}

/* --- listeners --------------------------------------------------------------------------------- */

/* Splits host:port or [v6]:port in place. Returns 0, or -1. */
static int
split_host_port(char *text, char **host, char **port)
{
	char *colon = strrchr(text, ':');
	uint64_t number;

	if (!colon || colon == text || behaviour_parse_number(colon + 1, 0, 65535, &number) < 0)
		return -1;
	*colon = '\0';
	*port = colon + 1;
	*host = text;
	if (text[0] == '[') {
		if (colon[-1] != ']')
			return -1;
		colon[-1] = '\0';
		*host = text + 1;
	} else if (strchr(text, ':')) {
		return -1; /* a bare IPv6 address: its last group would pass for a port */
	}
	return 0;
}

static int
resolve(struct listener *listener, const char *address)
{
	struct sockaddr_un *local = (struct sockaddr_un *)&listener->address;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE }, *found;
	char text[256], *host, *port;

	if (strncmp(address, "unix:", 5) == 0) {
		const char *path = address + 5;
		if (path[0] != '/' || strlen(path) >= sizeof(local->sun_path)) {
			fprintf(stderr,
			    "tidegate-sink: listen \"%s\": want unix:/PATH with at most %zu bytes of path\n",
			    address, sizeof(local->sun_path) - 1);
			return -2;
		}
		local->sun_family = AF_UNIX;
		strcpy(local->sun_path, path);
		listener->address_len = sizeof(*local);
		return 0;
	}
	snprintf(text, sizeof(text), "%s", address);
	if (strlen(address) >= sizeof(text) || split_host_port(text, &host, &port) < 0) {
		fprintf(stderr,
		    "tidegate-sink: listen \"%s\": want HOST:PORT, [V6]:PORT or unix:/PATH, port 0 to 65535\n",
		    address);
		return -2;
	}
	int error = getaddrinfo(host, port, &hints, &found);
	if (error) {
		fprintf(stderr, "tidegate-sink: listen \"%s\": %s\n", address, gai_strerror(error));
		return -1;
	}
	memcpy(&listener->address, found->ai_addr, found->ai_addrlen);
	listener->address_len = found->ai_addrlen;
	freeaddrinfo(found);
	return 0;
}

/* Removes a socket file without a listener. Returns 0, or -1 with errno. */
static int
remove_stale(const struct listener *listener)
{
	const struct sockaddr_un *local = (const struct sockaddr_un *)&listener->address;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return -1;
	int error = connect(fd, (const struct sockaddr *)local, sizeof(*local)) < 0 ? errno : EADDRINUSE;
	close(fd);
	if (error == ECONNREFUSED && unlink(local->sun_path) == 0)
		return 0;
	errno = error == EAGAIN ? EADDRINUSE : error;
	return error == ENOENT ? 0 : -1;
}

static int
listener_backlog(const struct sink *sink, const struct listener *listener)
{
	return sink->behaviour.never_accept && listener->protocol != &protocol_control ? 0 : BACKLOG;
}

static int
listener_open(struct sink *sink, struct listener *listener)
{
	int one = 1, fd = socket(listener->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	bool local = listener->address.ss_family == AF_UNIX;
	socklen_t len = sizeof(listener->address);

	if (fd < 0)
		return -1;
	if (!local && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0)
		goto fail;
	if (listener->address.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (local && remove_stale(listener) < 0)
		goto fail;
	if (bind(fd, (const struct sockaddr *)&listener->address, listener->address_len) < 0)
		goto fail;
	listener->owns_path = local;
	if (listen(fd, listener_backlog(sink, listener)) < 0)
		goto fail;
	/* Port 0 is a real port from here on, also for `refuse` and `listen`. */
	if (!local && getsockname(fd, (struct sockaddr *)&listener->address, &len) < 0)
		goto fail;
	listener->fd = fd;
	return 0;
fail:;
	int error = errno;
	close(fd);
	errno = error;
	return -1;
}

static void
listener_close(struct listener *listener)
{
	if (listener->fd >= 0)
		close(listener->fd);
	listener->fd = -1;
	listener->in_epoll = false;
	if (listener->owns_path)
		unlink(((struct sockaddr_un *)&listener->address)->sun_path);
	listener->owns_path = false;
}

static void
listener_name(struct listener *listener)
{
	char host[64], port[8];

	if (listener->address.ss_family == AF_UNIX)
		snprintf(listener->name, sizeof(listener->name), "unix:%s",
		    ((struct sockaddr_un *)&listener->address)->sun_path);
	else if (getnameinfo((struct sockaddr *)&listener->address, listener->address_len, host, sizeof(host),
		     port, sizeof(port), NI_NUMERICHOST | NI_NUMERICSERV) == 0)
		snprintf(listener->name, sizeof(listener->name),
		    listener->address.ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* Makes a listener be what the behaviour says: closed, deaf or accepting. */
static void
listener_apply(struct sink *sink, struct listener *listener)
{
	const struct behaviour *behaviour = &sink->behaviour;
	bool control = listener->protocol == &protocol_control;
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = listener };

	if (behaviour->refuse && !control) {
		listener_close(listener);
		return;
	}
	if (listener->fd < 0 && listener_open(sink, listener) < 0) {
		sink_log(sink, NULL, "error", "cannot listen on %s again: %s", listener->name, strerror(errno));
		return;
	}
	listen(listener->fd, listener_backlog(sink, listener)); /* again: changes the length of the queue */
	bool accepts =
	    control || (!behaviour->never_accept && !behaviour->freeze && sink->accept_again_ns == 0);
	if (accepts == listener->in_epoll)
		return;
	epoll_ctl(sink->epoll_fd, accepts ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, listener->fd, &event);
	listener->in_epoll = accepts;
}

int
server_listen(struct sink *sink, const char *address, const struct protocol *protocol)
{
	struct listener *listener = calloc(1, sizeof(*listener));

	if (!listener) {
		fprintf(stderr, "tidegate-sink: no memory for a listener\n");
		return -1;
	}
	listener->fd = -1;
	listener->protocol = protocol;
	int r = resolve(listener, address);
	if (r == 0 && listener_open(sink, listener) < 0) {
		fprintf(stderr, "tidegate-sink: listen \"%s\": %s\n", address, strerror(errno));
		r = -1;
	}
	if (r < 0) {
		listener_close(listener);
		free(listener);
		return r;
	}
	listener_name(listener);
	TAILQ_INSERT_TAIL(&sink->listeners, listener, all);
	listener_apply(sink, listener);
	return 0;
}

static void
listener_accept(struct sink *sink, struct listener *listener)
{
	for (int i = 0; i < ACCEPTS; i++) {
		struct sockaddr_storage peer;
		socklen_t len = sizeof(peer);

		memset(&peer, 0, sizeof(peer));
		int fd = accept4(listener->fd, (struct sockaddr *)&peer, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			conn_new(sink, listener, fd, &peer);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
			sink_log(sink, NULL, "warn", "accept on %s: %s; trying again in %u ms", listener->name,
			    strerror(errno), ACCEPT_PAUSE_NS / 1000000);
			sink->accept_again_ns = sink->now_ns + ACCEPT_PAUSE_NS;
			server_apply(sink);
		}
		return;
	}
}

/* --- the loop ---------------------------------------------------------------------------------- */

int
server_init(struct sink *sink)
{
	struct rlimit limit;
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = sink };
	sigset_t signals;

	TAILQ_INIT(&sink->listeners);
	TAILQ_INIT(&sink->conns);
	LIST_INIT(&sink->timed);
	SLIST_INIT(&sink->dirty);
	sink->start_ns = sink->now_ns = clock_ns(CLOCK_MONOTONIC);
	sink->time_ns = clock_ns(CLOCK_REALTIME);
	sigemptyset(&signals);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN); /* a record at its size limit is an error to report, not a death */
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
	sink->scratch = malloc(2 * SINK_READ_BYTES);
	sink->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	sink->signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
	if (!sink->scratch || sink->epoll_fd < 0 || sink->signal_fd < 0 ||
	    epoll_ctl(sink->epoll_fd, EPOLL_CTL_ADD, sink->signal_fd, &event) < 0) {
		fprintf(stderr, "tidegate-sink: cannot set up the loop: %s\n", strerror(errno));
		return -1;
	}
	return 0;
}

void
server_fini(struct sink *sink)
{
	struct listener *listener;
	struct conn *conn;

	while ((conn = TAILQ_FIRST(&sink->conns)))
		conn_free(conn);
	while ((listener = TAILQ_FIRST(&sink->listeners))) {
		TAILQ_REMOVE(&sink->listeners, listener, all);
		listener_close(listener);
		free(listener);
	}
	free(sink->scratch);
	free(sink->pairs);
	if (sink->epoll_fd >= 0)
		close(sink->epoll_fd);
	if (sink->signal_fd >= 0)
		close(sink->signal_fd);
}

void
server_apply(struct sink *sink)
{
	struct listener *listener;
	struct conn *conn;

	TAILQ_FOREACH (listener, &sink->listeners, all)
		listener_apply(sink, listener);
	TAILQ_FOREACH (conn, &sink->conns, all) {
		conn_continue(conn);
		server_dirty(sink, conn);
	}
}

static int
timeout_ms(const struct sink *sink)
{
	uint64_t next = UINT64_MAX;
	const struct conn *conn;

	LIST_FOREACH (conn, &sink->timed, timed)
		if (conn->wake_ns < next)
			next = conn->wake_ns;
	if (sink->accept_again_ns && sink->accept_again_ns < next)
		next = sink->accept_again_ns;
	if (sink->tick_ns && sink->tick_ns < next)
		next = sink->tick_ns;
	if (next == UINT64_MAX)
		return -1;
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	return next <= now ? 0 : (int)((next - now + 999999) / 1000000);
}

/* Cuts off clients that were silent for longer than they promised. */
static void
check_keepalives(struct sink *sink)
{
	struct conn *conn;
	bool any = false;

	TAILQ_FOREACH (conn, &sink->conns, all) {
		if (!conn->idle_limit_ns || conn->end != CONN_STAYS)
			continue;
		any = true;
		/* Unread bytes may be the sign of life. */
		if (!(conn->events & EPOLLIN) || !conn->in_epoll)
			conn->read_ns = sink->now_ns;
		if (sink->now_ns - conn->read_ns > conn->idle_limit_ns) {
			sink_log(sink, conn, "warn",
			    "silent for %.1f s, longer than its keepalive allows; closing",
			    (double)(sink->now_ns - conn->read_ns) / 1e9);
			conn_end(conn, CONN_FLUSH);
		}
	}
	sink->tick_ns = any ? sink->now_ns + TICK_NS : 0;
}

static void
run_timers(struct sink *sink)
{
	struct conn *conn;

	LIST_FOREACH (conn, &sink->timed, timed)
		if (conn->wake_ns <= sink->now_ns)
			server_dirty(sink, conn);
	if (sink->accept_again_ns && sink->accept_again_ns <= sink->now_ns) {
		sink->accept_again_ns = 0;
		server_apply(sink);
	}
	if (sink->tick_ns && sink->tick_ns <= sink->now_ns)
		check_keepalives(sink);
}

/* The answering half of a turn. */
static void
answer_all(struct sink *sink)
{
	struct conn_dirty dirty, gone;
	struct conn *conn;

	record_flush(&sink->record);
	SLIST_INIT(&gone);
	while (!SLIST_EMPTY(&sink->dirty)) {
		/* A turn may mark its connection again (an ending): repeat until none does. */
		dirty = sink->dirty;
		SLIST_INIT(&sink->dirty);
		while ((conn = SLIST_FIRST(&dirty))) {
			SLIST_REMOVE_HEAD(&dirty, dirty);
			if (conn->end == CONN_GONE) {
				SLIST_INSERT_HEAD(&gone, conn, dirty); /* still is_dirty: comes here once */
				continue;
			}
			conn->is_dirty = false;
			conn_turn(conn);
			if (conn->end == CONN_GONE)
				server_dirty(sink, conn);
		}
	}
	while ((conn = SLIST_FIRST(&gone))) {
		SLIST_REMOVE_HEAD(&gone, dirty);
		conn_free(conn);
	}
}

static struct listener *
listener_of(struct sink *sink, const void *pointer)
{
	struct listener *listener;

	TAILQ_FOREACH (listener, &sink->listeners, all)
		if (listener == pointer)
			return listener;
	return NULL;
}

static void
handle(struct sink *sink, const struct epoll_event *event)
{
	struct listener *listener;
	struct conn *conn;

	if (event->data.ptr == sink) {
		sink->quit = true;
	} else if ((listener = listener_of(sink, event->data.ptr))) {
		/* An earlier event of this turn may have closed it or told it to be deaf. */
		if (listener->in_epoll)
			listener_accept(sink, listener);
	} else {
		conn = event->data.ptr;
		if (conn->end == CONN_GONE || !conn->in_epoll)
			return;
		if ((event->events & (EPOLLHUP | EPOLLERR)) && !(conn->events & EPOLLIN))
			conn_end(conn, CONN_GONE); /* the peer reset what we do not read */
		else if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR) && (conn->events & EPOLLIN))
			conn_readable(conn);
		if (event->events & EPOLLOUT)
			server_dirty(sink, conn);
	}
}

void
server_run(struct sink *sink)
{
	struct epoll_event events[EVENTS];

	while (!sink->quit) {
		int n = epoll_wait(sink->epoll_fd, events, EVENTS, timeout_ms(sink));
		if (n < 0 && errno != EINTR) {
			sink_log(sink, NULL, "error", "epoll_wait: %s", strerror(errno));
			return;
		}
		sink->now_ns = clock_ns(CLOCK_MONOTONIC);
		sink->time_ns = clock_ns(CLOCK_REALTIME);
		for (int i = 0; i < n; i++)
			handle(sink, &events[i]);
		run_timers(sink);
		answer_all(sink);
	}
}
