/* The real world: libuv's loop, c-ares for names (resolver.c), a thread for what takes long (worker.c), broker sockets of our own. */
#include "world_uv.h"

#include "address.h"
#include "inject.h"
#include "resolver.h"
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

/*
 * The kernel doubles its pause with each retransmission, so that a path which was silent for 1.5 s is
 * tried again only after 3 s, when the link has been left. It is to stop growing at RTO_MAX_MS, the
 * least allowed, on kernels that can (TCP_RTO_MAX_MS, 6.15, which glibc does not know yet). On older ones
 * at least a connection with up to three segments in flight is tried at the same pace for a while.
 */
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#endif
#define RTO_MAX_MS 1000

struct world_uv {
	struct world world;
	uv_loop_t *uv;
	uint64_t seed[2]; /* xoroshiro128+ : jitter, not secrets */
	struct worker *workers[WORLD_QUEUES];
};

struct sock_uv {
	struct sock sock;
	uv_poll_t poll;
	int fd;
	int is_tcp;
	int connecting;
	int events;
};

/* ---- time and chance ---- */

static uint64_t
now_ns(struct world *world)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

static uint64_t
wall_ms(struct world *world)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME_COARSE, &ts);
	return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / NS_PER_MS;
}

static uint64_t
rotate(uint64_t x, int k)
{
	return x << k | x >> (64 - k);
}

static uint64_t
random_64(struct world *world)
{
	struct world_uv *w = (struct world_uv *)world;
	uint64_t a = w->seed[0], b = w->seed[1] ^ w->seed[0];
	uint64_t sum = w->seed[0] + w->seed[1];

	w->seed[0] = rotate(a, 24) ^ b ^ b << 16;
	w->seed[1] = rotate(b, 37);
	return sum;
}

static void
secret(struct world *world, void *bytes, size_t len)
{
	/* Nothing interrupts so few bytes. Where the call is forbidden, as the first one was, chance has to do. */
	if (getrandom(bytes, len, 0) == (ssize_t)len)
		return;
	for (size_t i = 0; i < len; i++)
		((uint8_t *)bytes)[i] = (uint8_t)(random_64(world) >> 56);
}

/* ---- names ---- */

static void *
resolve(struct world *world, const struct address *address, const struct sock_handlers *handlers, void *owner)
{
	struct world_uv *w = (struct world_uv *)world;

	return resolver_start(w->uv, world, address, handlers, owner);
}

static void
resolve_cancel(struct world *world, void *request)
{
	resolver_cancel(request);
}

/* ---- sockets ---- */

static void on_poll(uv_poll_t *poll, int status, int events);

static void
set_events(struct sock_uv *s, int events)
{
	if (s->events == events)
		return;
	s->events = events;
	uv_poll_start(&s->poll, events, on_poll);
}

static void
on_poll(uv_poll_t *poll, int status, int events)
{
	struct sock_uv *s = poll->data;

	world_event(s->sock.world);
	/* libuv no longer watches a socket whose error it has reported, and there may be more to read than one
	 * read takes: last words, and then the error. */
	if (status < 0) {
		int wanted = s->events;
		s->events = 0;
		set_events(s, wanted);
	}
	if (s->connecting) {
		int error = 0;
		socklen_t len = sizeof(error);
		/* libuv reports any error condition as EBADF; the socket knows better. */
		if (getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || (error == 0 && status < 0))
			error = -status;
		s->connecting = 0;
		set_events(s, UV_READABLE);
		s->sock.handlers->connected(s->sock.owner, error);
		return;
	}
	if ((events & UV_WRITABLE) != 0) {
		set_events(s, UV_READABLE);
		s->sock.handlers->writable(s->sock.owner);
	}
	/* An error shows up in the read. The owner may have closed us by now: nothing after this. */
	if (status < 0 || (events & UV_READABLE) != 0)
		s->sock.handlers->readable(s->sock.owner);
}

static int
set_option(int fd, int level, int name, int value)
{
	return setsockopt(fd, level, name, &value, sizeof(value));
}

static struct sock *
sock_connect(struct world *world, const struct world_address *address, uint32_t low_water,
    const struct sock_handlers *handlers, void *owner)
{
	struct world_uv *w = (struct world_uv *)world;
	int family = address->addr.ss_family;
	struct sock_uv *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	s->fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		goto fail;
	s->is_tcp = family != AF_UNIX;
	if (s->is_tcp) {
		/* Frames are gathered by us; a probe must not wait for an acknowledgement. */
		set_option(s->fd, IPPROTO_TCP, TCP_NODELAY, 1);
		set_option(s->fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, (int)low_water);
		if (set_option(s->fd, IPPROTO_TCP, TCP_RTO_MAX_MS, RTO_MAX_MS) != 0)
			set_option(s->fd, IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1);
	}
	if (connect(s->fd, (const struct sockaddr *)&address->addr, address->len) != 0 && errno != EINPROGRESS)
		goto fail_fd;
	s->sock = (struct sock){ .world = world, .handlers = handlers, .owner = owner };
	s->connecting = 1;
	s->poll.data = s;
	int rc = uv_poll_init(w->uv, &s->poll, s->fd);
	if (rc != 0) {
		errno = -rc;
		goto fail_fd;
	}
	set_events(s, UV_WRITABLE);
	return &s->sock;
fail_fd:
	close(s->fd);
fail:
	free(s);
	return NULL;
}

int
world_uv_sock_fd(const struct sock *sock)
{
	return ((const struct sock_uv *)sock)->fd;
}

struct sock *
world_uv_adopt(struct world *world, int fd, const struct sock_handlers *handlers, void *owner)
{
	struct world_uv *w = (struct world_uv *)world;
	struct sock_uv *s = calloc(1, sizeof(*s));
	int domain = AF_UNIX;
	socklen_t len = sizeof(domain);

	if (s == NULL)
		return NULL;
	getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len);
	s->fd = fd;
	s->is_tcp = domain != AF_UNIX;
	s->sock = (struct sock){ .world = world, .handlers = handlers, .owner = owner };
	s->poll.data = s;
	if (uv_poll_init(w->uv, &s->poll, fd) != 0) {
		free(s);
		return NULL;
	}
	set_events(s, UV_READABLE);
	return &s->sock;
}

static ssize_t
sock_writev(struct sock *sock, const struct iovec *iov, int count)
{
	struct sock_uv *s = (struct sock_uv *)sock;
	struct msghdr msg = { .msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count };
	ssize_t n;

	INJECT(before_write);
	do
		n = sendmsg(s->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	INJECT(after_write);
	return n;
}

static ssize_t
sock_read(struct sock *sock, void *bytes, size_t len)
{
	struct sock_uv *s = (struct sock_uv *)sock;
	ssize_t n;

	do
		n = recv(s->fd, bytes, len, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	/* A broker that keeps Nagle on waits for our ACK before its next small segment; a delayed ACK
	 * costs 40 ms a round. The kernel forgets this with every receive. */
	if (n > 0 && s->is_tcp)
		set_option(s->fd, IPPROTO_TCP, TCP_QUICKACK, 1);
	return n;
}

static void
sock_want_write(struct sock *sock)
{
	set_events((struct sock_uv *)sock, UV_READABLE | UV_WRITABLE);
}

static int
sock_info(struct sock *sock, struct sock_info *info)
{
	struct sock_uv *s = (struct sock_uv *)sock;
	struct tcp_info tcp;
	socklen_t len = sizeof(tcp);
	int unsent = 0;

	if (!s->is_tcp || getsockopt(s->fd, IPPROTO_TCP, TCP_INFO, &tcp, &len) != 0)
		return -1;
	ioctl(s->fd, SIOCOUTQNSD, &unsent);
	*info = (struct sock_info){
		.unacked = tcp.tcpi_unacked,
		.retransmits = tcp.tcpi_retransmits,
		.probes = tcp.tcpi_probes,
		.last_ack_ms = tcp.tcpi_last_ack_recv,
		.last_sent_ms = tcp.tcpi_last_data_sent,
		.rto_ms = tcp.tcpi_rto / 1000,
		.unsent_bytes = (uint32_t)unsent,
		.rtt_us = tcp.tcpi_rtt,
	};
	return 0;
}

static void
on_sock_closed(uv_handle_t *handle)
{
	struct sock_uv *s = handle->data;

	close(s->fd);
	free(s);
}

static void
sock_close(struct sock *sock, int reset)
{
	struct sock_uv *s = (struct sock_uv *)sock;
	struct linger now = { .l_onoff = 1, .l_linger = 0 };

	if (reset && s->is_tcp)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	uv_close((uv_handle_t *)&s->poll, on_sock_closed);
}

/* ---- work beside the loop ---- */

static void
work(struct world *world, struct world_job *job)
{
	worker_give(((struct world_uv *)world)->workers[job->queue], job);
}

static void
settle(struct world *world)
{
	struct world_uv *w = (struct world_uv *)world;

	while (worker_is_busy(w->workers[WORLD_JOB_MAKE]) || worker_is_busy(w->workers[WORLD_JOB_FREE]))
		uv_run(w->uv, UV_RUN_ONCE);
}

static const struct world_ops ops = {
	.now_ns = now_ns,
	.wall_ms = wall_ms,
	.random = random_64,
	.secret = secret,
	.resolve = resolve,
	.resolve_cancel = resolve_cancel,
	.connect = sock_connect,
	.writev = sock_writev,
	.read = sock_read,
	.want_write = sock_want_write,
	.info = sock_info,
	.close = sock_close,
	.work = work,
	.settle = settle,
};

struct world *
world_uv_new(uv_loop_t *uv, void (*event)(void *owner), void *owner)
{
	struct world_uv *w = calloc(1, sizeof(*w));

	if (w == NULL)
		return NULL;
	w->world = (struct world){ .ops = &ops, .event = event, .owner = owner };
	w->uv = uv;
	int rc = resolver_init();
	for (unsigned i = 0; rc == 0 && i < WORLD_QUEUES; i++)
		rc = (w->workers[i] = worker_new(uv, &w->world)) == NULL;
	if (rc != 0) {
		world_uv_free(&w->world);
		return NULL;
	}
	if (getrandom(w->seed, sizeof(w->seed), 0) != (ssize_t)sizeof(w->seed))
		w->seed[0] = now_ns(&w->world) | 1;
	return &w->world;
}

void
world_uv_free(struct world *world)
{
	for (unsigned i = 0; i < WORLD_QUEUES; i++)
		worker_free(((struct world_uv *)world)->workers[i]);
	resolver_fini();
	free(world);
}
