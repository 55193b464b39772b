/* The real world: libuv's loop, getaddrinfo off it, broker sockets of our own. */
#include "loop.h"

#include "config.h"
#include "inject.h"
#include "log.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/un.h>
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
	struct shard *shard;
	uint64_t seed[2]; /* xoroshiro128+ : jitter, not secrets */
	struct world_jobs jobs; /* the first is running */
	uv_work_t work;
};

struct sock_uv {
	struct sock sock;
	uv_poll_t poll;
	int fd;
	int is_tcp;
	int connecting;
	int events;
};

struct resolve_uv {
	uv_getaddrinfo_t request;
	struct world_uv *world;
	const struct sock_handlers *handlers; /* NULL: cancelled */
	void *owner;
	uv_idle_t now;                        /* for an address that needs no look-up */
	struct world_address fixed;
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

/* ---- names ---- */

static void
on_addresses(uv_getaddrinfo_t *request, int status, struct addrinfo *found)
{
	struct resolve_uv *r = request->data;
	struct world_address addresses[WORLD_ADDRESSES];
	unsigned count = 0;

	for (struct addrinfo *a = found; a != NULL && count < WORLD_ADDRESSES; a = a->ai_next) {
		memcpy(&addresses[count].addr, a->ai_addr, a->ai_addrlen);
		addresses[count++].len = a->ai_addrlen;
	}
	if (found != NULL)
		uv_freeaddrinfo(found);
	if (r->handlers != NULL) {
		loop_refresh_clock(r->world->shard);
		r->handlers->resolved(r->owner, addresses, count, status < 0 ? uv_strerror(status) : "no address");
	}
	free(r);
}

static void
on_fixed_closed(uv_handle_t *handle)
{
	free(handle->data);
}

static void
on_fixed(uv_idle_t *idle)
{
	struct resolve_uv *r = idle->data;

	uv_idle_stop(idle);
	if (r->handlers != NULL) {
		loop_refresh_clock(r->world->shard);
		r->handlers->resolved(r->owner, &r->fixed, 1, NULL);
	}
	uv_close((uv_handle_t *)idle, on_fixed_closed);
}

/* An address that is written out. Returns 1 if it is one. */
static int
parse_fixed(const struct config_address *address, struct world_address *out)
{
	memset(out, 0, sizeof(*out));
	if (address->path != NULL) {
		struct sockaddr_un *un = (struct sockaddr_un *)&out->addr;
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", address->path);
		out->len = sizeof(*un);
		return 1;
	}
	struct sockaddr_in *in = (struct sockaddr_in *)&out->addr;
	if (inet_pton(AF_INET, address->host, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(address->port);
		out->len = sizeof(*in);
		return 1;
	}
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&out->addr;
	if (inet_pton(AF_INET6, address->host, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(address->port);
		out->len = sizeof(*in6);
		return 1;
	}
	return 0;
}

static void *
resolve(struct world *world, const struct config_address *address, const struct sock_handlers *handlers,
    void *owner)
{
	struct world_uv *w = (struct world_uv *)world;
	struct resolve_uv *r = calloc(1, sizeof(*r));
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG };
	char port[8];

	if (r == NULL)
		return NULL;
	r->world = w;
	r->handlers = handlers;
	r->owner = owner;
	r->request.data = r->now.data = r;
	if (parse_fixed(address, &r->fixed)) {
		uv_idle_init(w->uv, &r->now);
		uv_idle_start(&r->now, on_fixed);
		return r;
	}
	snprintf(port, sizeof(port), "%u", address->port);
	if (uv_getaddrinfo(w->uv, &r->request, on_addresses, address->host, port, &hints) != 0) {
		free(r);
		return NULL;
	}
	return r;
}

static void
resolve_cancel(struct world *world, void *request)
{
	struct resolve_uv *r = request;

	/*
	 * Its answer is not wanted any more. One that has not begun is taken back: with a name server that
	 * is silent they come faster than they end. One that has begun ends when it ends.
	 */
	r->handlers = NULL;
	if (r->request.loop != NULL)
		uv_cancel((uv_req_t *)&r->request);
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
	struct world_uv *w = (struct world_uv *)s->sock.world;

	loop_refresh_clock(w->shard);
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

/*
 * libuv's threads are shared with the look-ups, which may hang: libuv gives those at most half of the
 * threads, and jobs take one. main() sees to it that there are enough for both.
 */
static void on_work_done(uv_work_t *work, int status);

static void
on_work(uv_work_t *work)
{
	struct world_job *job = work->data;

	job->run(job);
}

static void
work_next(struct world_uv *w)
{
	w->work.data = STAILQ_FIRST(&w->jobs);
	if (w->work.data != NULL)
		uv_queue_work(w->uv, &w->work, on_work, on_work_done);
}

static void
on_work_done(uv_work_t *work, int status)
{
	struct world_uv *w = (struct world_uv *)(void *)((char *)work - offsetof(struct world_uv, work));
	struct world_job *job = work->data;

	STAILQ_REMOVE_HEAD(&w->jobs, entry);
	work_next(w);
	loop_refresh_clock(w->shard);
	job->done(job);
}

static void
work(struct world *world, struct world_job *job)
{
	struct world_uv *w = (struct world_uv *)world;
	int idle = STAILQ_EMPTY(&w->jobs);

	STAILQ_INSERT_TAIL(&w->jobs, job, entry);
	if (idle)
		work_next(w);
}

static void
settle(struct world *world)
{
	struct world_uv *w = (struct world_uv *)world;

	while (!STAILQ_EMPTY(&w->jobs))
		uv_run(w->uv, UV_RUN_ONCE);
}

static const struct world_ops ops = {
	.now_ns = now_ns,
	.wall_ms = wall_ms,
	.random = random_64,
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
world_uv_new(uv_loop_t *uv, struct shard *shard)
{
	struct world_uv *w = calloc(1, sizeof(*w));

	if (w == NULL)
		return NULL;
	w->world.ops = &ops;
	w->uv = uv;
	w->shard = shard;
	STAILQ_INIT(&w->jobs);
	if (getrandom(w->seed, sizeof(w->seed), 0) != (ssize_t)sizeof(w->seed))
		w->seed[0] = now_ns(&w->world) | 1;
	return &w->world;
}

void
world_uv_free(struct world *world)
{
	free(world);
}
