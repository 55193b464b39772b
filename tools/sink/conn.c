/*
 * A connection: reading, delayed answers, writing, and its end. message.c decides on each message.
 */
#include "build_config.h"

#include "sink.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define LINGER_NS 5000000000u /* how long a closed connection waits for its peer to close as well */

uint8_t *
buf_grow(struct buf *buf, size_t more)
{
	if (buf->off > 0) {
		memmove(buf->data, buf->data + buf->off, buf->len - buf->off);
		buf->len -= buf->off;
		buf->off = 0;
	}
	if (buf->cap - buf->len < more) {
		size_t cap = buf->cap ? buf->cap : 1024;
		while (cap - buf->len < more)
			cap *= 2;
		uint8_t *data = realloc(buf->data, cap);
		if (!data) {
			fprintf(stderr, "tidegate-sink: no memory for a buffer of %zu bytes\n", cap);
			exit(1);
		}
		buf->data = data;
		buf->cap = cap;
	}
	return buf->data + buf->len;
}

void
buf_fini(struct buf *buf)
{
	free(buf->data);
	memset(buf, 0, sizeof(*buf));
}

static void
name_peer(struct conn *conn, const struct sockaddr_storage *peer)
{
	char host[48], port[8];
	socklen_t len = peer->ss_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);

	if (peer->ss_family != AF_INET && peer->ss_family != AF_INET6) {
		strcpy(conn->peer, "unix");
		return;
	}
	if (getnameinfo((const struct sockaddr *)peer, len, host, sizeof(host), port, sizeof(port),
		NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
		strcpy(conn->peer, "?");
		return;
	}
	snprintf(conn->peer, sizeof(conn->peer), peer->ss_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

static void
socket_options(const struct behaviour *behaviour, int fd, const struct sockaddr_storage *peer)
{
	int one = 1, bytes = (int)behaviour->receive_buffer;

	if (!behaviour->nagle && (peer->ss_family == AF_INET || peer->ss_family == AF_INET6))
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (bytes > 0)
		setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
}

static void
begin_tls(struct conn *conn)
{
	conn->ssl = secure_new(conn->sink->tls, conn->fd);
	if (!conn->ssl) {
		fprintf(stderr, "tidegate-sink: no memory for a connection\n");
		exit(1);
	}
}

void
conn_new(struct sink *sink, const struct listener *listener, int fd, const struct sockaddr_storage *peer)
{
	struct conn *conn = calloc(1, sizeof(*conn));

	if (conn)
		conn->state = calloc(1, listener->protocol->state_size + 1);
	if (!conn || !conn->state) {
		fprintf(stderr, "tidegate-sink: no memory for a connection\n");
		exit(1);
	}
	conn->sink = sink;
	conn->protocol = listener->protocol;
	conn->control = listener->protocol == &protocol_control;
	conn->fd = fd;
	conn->read_ns = conn->credit_ns = sink->now_ns;
	TAILQ_INSERT_TAIL(&sink->conns, conn, all);
	if (conn->control) {
		conn_interest(conn);
		return;
	}
	conn->number = ++sink->connections_ever;
	sink->connections++;
	name_peer(conn, peer);
	if (sink->tls && !conn->protocol->tls_later)
		begin_tls(conn);
	socket_options(&sink->behaviour, fd, peer);
	conn_rearm(conn, -1);
	if (sink->behaviour.max_connections && sink->connections > sink->behaviour.max_connections) {
		sink->connections_refused++;
		conn_end(conn, CONN_FLUSH);
		return;
	}
	if (sink->behaviour.garbage)
		conn_garbage(conn, sink->behaviour.garbage);
	if (conn->protocol->open)
		conn->protocol->open(conn);
	conn_interest(conn);
	server_dirty(sink, conn); /* read-rate may have to set the time of the first read */
}

void
conn_free(struct conn *conn)
{
	server_wake_at(conn->sink, conn, 0);
	secure_free(conn->ssl);
	if (conn->fd >= 0)
		close(conn->fd);
	if (conn->protocol->close)
		conn->protocol->close(conn);
	TAILQ_REMOVE(&conn->sink->conns, conn, all);
	if (!conn->control)
		conn->sink->connections--;
	buf_fini(&conn->in);
	buf_fini(&conn->out);
	free(conn->answers);
	free(conn->client);
	free(conn->state);
	free(conn);
}

void
conn_set_client(struct conn *conn, const uint8_t *name, size_t len)
{
	size_t shown = len < 128 ? len : 128;
	char *to = malloc(shown + 1);

	if (!to)
		return; /* it is only shown */
	for (size_t i = 0; i < shown; i++)
		to[i] =
		    name[i] > 0x20 && name[i] < 0x7f && name[i] != '"' && name[i] != '\\' ? (char)name[i] : '?';
	to[shown] = '\0';
	free(conn->client);
	conn->client = to;
}

void
conn_set_keepalive(struct conn *conn, uint64_t limit_ns)
{
	conn->idle_limit_ns = limit_ns;
	if (limit_ns && !conn->sink->tick_ns)
		conn->sink->tick_ns = conn->sink->now_ns + 1000000000u;
}

void
conn_rearm(struct conn *conn, int which)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	const uint64_t after[3] = { behaviour->stall_after, behaviour->close_after, behaviour->reset_after };

	for (int i = 0; i < 3; i++)
		if (which < 0 || which == i)
			conn->left[i] = after[i];
	if (which <= 0)
		conn->stalled = false;
}

/* Why it does not read now, if it does not. */
static bool
reads(const struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;

	if (conn->control)
		return conn->end == CONN_STAYS && conn->out.len - conn->out.off < SINK_OUT_MAX;
	if (behaviour->freeze || conn->end == CONN_GONE || conn->end == CONN_RESET || conn->end == CONN_FLUSH)
		return false;
	if (conn->end == CONN_LINGER)
		return true;
	if (conn->stalled || behaviour->stall)
		return false;
	if (behaviour->read_rate && conn->credit < 1)
		return false;
	return conn->out.len - conn->out.off < SINK_OUT_MAX &&
	       conn->answers_tail - conn->answers_head < SINK_ANSWERS_MAX;
}

void
conn_interest(struct conn *conn)
{
	bool frozen = conn->sink->behaviour.freeze && !conn->control;
	struct epoll_event event = { .data.ptr = conn };

	if (conn->end == CONN_GONE)
		return;
	if (reads(conn))
		event.events |= EPOLLIN;
	if (conn->write_blocked && !frozen)
		event.events |= EPOLLOUT;
	if (frozen) {
		/* Out of the set altogether: a peer's reset would be reported without end. */
		if (conn->in_epoll)
			epoll_ctl(conn->sink->epoll_fd, EPOLL_CTL_DEL, conn->fd, NULL);
		conn->in_epoll = false;
		return;
	}
	if (conn->in_epoll && conn->events == event.events)
		return;
	if (epoll_ctl(conn->sink->epoll_fd, conn->in_epoll ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, conn->fd, &event) <
	    0) {
		sink_log(conn->sink, conn, "error", "epoll_ctl: %s", strerror(errno));
		conn_end(conn, CONN_GONE);
		return;
	}
	conn->in_epoll = true;
	conn->events = event.events;
}

void
conn_end(struct conn *conn, enum conn_end how)
{
	if (how > conn->end)
		conn->end = how;
	conn->stop = true;
	server_dirty(conn->sink, conn);
}

int
conn_fail(struct conn *conn, const char *format, ...)
{
	char text[300];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	conn->sink->malformed++;
	sink_log(conn->sink, conn, "warn", "%s; closing", text);
	conn_end(conn, CONN_FLUSH);
	return -1;
}

void
conn_garbage(struct conn *conn, uint64_t bytes)
{
	uint8_t *to = buf_room(&conn->out, bytes);

	for (uint64_t i = 0; i < bytes; i++)
		to[i] = (uint8_t)(server_random(conn->sink) >> 56);
	conn->out.len += bytes;
	server_dirty(conn->sink, conn);
}

/* --- messages and answers ---------------------------------------------------------------------- */

static void
answers_grow(struct conn *conn)
{
	uint32_t size = conn->answers_size ? conn->answers_size * 2 : 64;
	struct answer *answers = malloc(size * sizeof(*answers));

	if (!answers) {
		fprintf(stderr, "tidegate-sink: no memory for %u answers\n", size);
		exit(1);
	}
	for (uint32_t i = conn->answers_head; i != conn->answers_tail; i++)
		answers[i & (size - 1)] = conn->answers[i & (conn->answers_size - 1)];
	free(conn->answers);
	conn->answers = answers;
	conn->answers_size = size;
}

void
conn_answer(struct conn *conn, const struct answer *answer)
{
	if (conn->answers_tail - conn->answers_head == conn->answers_size)
		answers_grow(conn);
	struct answer *slot = &conn->answers[conn->answers_tail++ & (conn->answers_size - 1)];
	*slot = *answer;
	slot->arrived_ns = conn->sink->now_ns;
	server_dirty(conn->sink, conn);
}

/* How many of the waiting answers are due. */
static uint32_t
due(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	uint32_t waiting = conn->answers_tail - conn->answers_head, count = waiting;

	if (behaviour->ack_delay) {
		uint64_t delay = behaviour->ack_delay * 1000000u, now = conn->sink->now_ns;
		for (count = 0; count < waiting; count++)
			if (conn->answers[(conn->answers_head + count) & (conn->answers_size - 1)].arrived_ns +
				delay >
			    now)
				break;
	}
	if (behaviour->ack_after > 1)
		count -= count % (uint32_t)behaviour->ack_after;
	return count;
}

static void
release_answers(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;

	if (conn->answers_head == conn->answers_tail)
		return;
	if (behaviour->no_ack || behaviour->mute || conn->sink->record.error) {
		conn->answers_head = conn->answers_tail;
		return;
	}
	uint32_t count = due(conn), mask = conn->answers_size - 1;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t which = behaviour->reorder_acks ? count - 1 - i : i;
		const struct answer *answer = &conn->answers[(conn->answers_head + which) & mask];
		conn->protocol->answer(conn, answer);
		if (behaviour->duplicate_acks)
			conn->protocol->answer(conn, answer);
	}
	conn->answers_head += count;
	conn->counters.acks += count;
	conn->sink->counters.acks += count;
}

void
conn_settle(struct conn *conn)
{
	if (conn->sink->behaviour.freeze || conn->answers_head == conn->answers_tail)
		return;
	record_flush(&conn->sink->record);
	release_answers(conn);
}

/* --- reading ----------------------------------------------------------------------------------- */

/* Keeps what the parser did not take. bytes may lie in conn->in itself. */
static void
keep(struct conn *conn, const uint8_t *bytes, size_t len)
{
	struct buf *in = &conn->in;

	if (len == 0) {
		if (in->cap > SINK_READ_BYTES)
			buf_fini(in); /* was one large packet */
		in->off = in->len = 0;
		return;
	}
	if (in->data && bytes >= in->data && bytes <= in->data + in->len) {
		memmove(in->data, bytes, len);
	} else {
		in->off = in->len = 0;
		memcpy(buf_room(in, len), bytes, len);
	}
	in->off = 0;
	in->len = len;
}

static void
parse(struct conn *conn, const uint8_t *bytes, size_t len)
{
	ssize_t used = conn->stop ? 0 : conn->protocol->input(conn, bytes, len);

	if (used < 0) {
		keep(conn, bytes, 0);
		return;
	}
	if (conn->last_words && conn->protocol->farewell)
		conn->protocol->farewell(conn, conn->last_code);
	if (conn->last_words || conn->trails)
		conn_end(conn, CONN_FLUSH);
	conn->unparsed = conn->stop;
	keep(conn, bytes + used, len - (size_t)used);
}

/* Counts read-rate's credit up to now; returns how many bytes may be read. */
static size_t
credit(struct conn *conn)
{
	double rate = (double)conn->sink->behaviour.read_rate, most = rate / 20;
	uint64_t now = conn->sink->now_ns;

	if (most < 1)
		most = 1;
	conn->credit += rate * (double)(now - conn->credit_ns) / 1e9;
	conn->credit_ns = now;
	if (conn->credit > most)
		conn->credit = most;
	return (size_t)conn->credit;
}

/* TLS has moved: counts a handshake's end, or says why there will be none. */
static void
note_tls(struct conn *conn, ssize_t n)
{
	struct sink *sink = conn->sink;

	if (!conn->secured && secure_is_done(conn->ssl)) {
		conn->secured = true;
		sink->tls_handshakes++;
		sink->tls_resumed += secure_is_resumed(conn->ssl);
		server_dirty(sink, conn); /* waiting output may leave */
	}
	if (n < 0 && errno == EPROTO) {
		sink->tls_failed++;
		sink_log(sink, conn, "warn", "TLS: %s; closing", secure_why());
	}
}

static ssize_t
receive(struct conn *conn, uint8_t *bytes, size_t want)
{
	bool wants_write = false;

	if (!conn->ssl)
		return recv(conn->fd, bytes, want, MSG_DONTWAIT);
	ssize_t n = secure_read(conn->ssl, bytes, want, &wants_write);
	int error = errno;
	note_tls(conn, n);
	if (wants_write) {
		conn->write_blocked = true;
		server_dirty(conn->sink, conn);
	}
	errno = error;
	return n;
}

static ssize_t
transmit(struct conn *conn, const uint8_t *bytes, size_t len)
{
	bool wants_write = false;

	if (!conn->ssl)
		return send(conn->fd, bytes, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	ssize_t n = secure_write(conn->ssl, bytes, len, &wants_write);
	int error = errno;
	note_tls(conn, n);
	if (n < 0 && error == EAGAIN)
		conn->write_blocked = wants_write; /* or it waits for the peer: reading goes on with it */
	errno = error;
	return n;
}

/* Reads and drops until the peer has closed as well. */
static void
linger(struct conn *conn)
{
	ssize_t n = recv(conn->fd, conn->sink->scratch, SINK_READ_BYTES, MSG_DONTWAIT);

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
		conn_end(conn, CONN_GONE);
}

void
conn_readable(struct conn *conn)
{
	size_t kept = conn->in.len, spare = conn->ssl ? SECURE_RECORD : 0, want = SINK_READ_BYTES - spare;
	uint8_t *bytes = conn->sink->scratch;

	if (conn->end == CONN_LINGER) {
		linger(conn);
		return;
	}
	if (!conn->control && conn->sink->behaviour.read_rate) {
		size_t may = credit(conn);
		if (may < 1) {
			server_dirty(conn->sink, conn);
			return;
		}
		want = may < want ? may : want;
	}
	/* The rest of the last read goes in front; the rest of a large packet stays where it is. */
	if (kept > SINK_READ_BYTES) {
		if (conn->in.cap - kept < want + spare)
			buf_room(&conn->in, kept);
		bytes = conn->in.data;
	} else if (kept > 0) {
		memcpy(bytes, conn->in.data, kept);
	}
	ssize_t n = receive(conn, bytes + kept, want);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		conn_end(conn, CONN_GONE);
		return;
	}
	conn->read_ns = conn->sink->now_ns;
	if (conn->sink->behaviour.read_rate)
		conn->credit -= (double)n;
	if (bytes == conn->in.data)
		conn->in.len = kept + (size_t)n;
	parse(conn, bytes, kept + (size_t)n);
	/* Reading may have to pause (rate, limits). */
	if (conn->sink->behaviour.read_rate)
		server_dirty(conn->sink, conn);
}

void
conn_continue(struct conn *conn)
{
	if (conn->control)
		return;
	conn->stop = conn->end != CONN_STAYS || conn->stalled || conn->sink->behaviour.stall ||
		     conn->sink->behaviour.freeze;
	if (conn->unparsed && !conn->stop)
		parse(conn, conn->in.data, conn->in.len);
}

/* --- answering --------------------------------------------------------------------------------- */

static void
write_out(struct conn *conn)
{
	struct buf *out = &conn->out;

	/* A handshake that could not write has nothing in `out`. */
	if (conn->ssl && !conn->secured && out->off == out->len) {
		if (transmit(conn, NULL, 0) < 0 && errno != EAGAIN)
			conn_end(conn, CONN_GONE);
		return;
	}
	while (out->off < out->len) {
		ssize_t n = transmit(conn, out->data + out->off, out->len - out->off);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			if (!conn->ssl)
				conn->write_blocked = errno == EAGAIN;
			if (errno != EAGAIN)
				conn_end(conn, CONN_GONE);
			return;
		}
		out->off += (size_t)n;
	}
	if (conn->protocol->tls_later && conn->sink->tls && !conn->ssl && out->len != 0)
		begin_tls(conn);
	conn->write_blocked = false;
	out->off = out->len = 0;
}

static void
reset(struct conn *conn)
{
	struct linger hard = { .l_onoff = 1, .l_linger = 0 };

	setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof(hard));
	conn->end = CONN_GONE;
}

static void
finish(struct conn *conn)
{
	if (conn->end == CONN_FLUSH && !conn->write_blocked) {
		if (conn->ssl)
			secure_shutdown(conn->ssl);
		shutdown(conn->fd, SHUT_WR);
		conn->end = CONN_LINGER;
		server_wake_at(conn->sink, conn, conn->sink->now_ns + LINGER_NS);
	} else if (conn->end == CONN_LINGER && conn->wake_ns <= conn->sink->now_ns) {
		conn->end = CONN_GONE;
	}
}

/* When the next answer is due or reading may go on. */
static void
set_timer(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;
	uint64_t when = 0, now = conn->sink->now_ns;

	if (behaviour->ack_delay && conn->answers_head != conn->answers_tail) {
		uint64_t at = conn->answers[conn->answers_head & (conn->answers_size - 1)].arrived_ns +
			      behaviour->ack_delay * 1000000u;
		if (at > now) /* else it waits for ack-after, not for the time */
			when = at;
	}
	if (behaviour->read_rate && !conn->stop) {
		size_t may = credit(conn);
		if (may < 1) {
			uint64_t at = now +
				      (uint64_t)((1 - conn->credit) * 1e9 / (double)behaviour->read_rate) +
				      1000000u;
			when = when == 0 || at < when ? at : when;
		}
	}
	server_wake_at(conn->sink, conn, when);
}

void
conn_turn(struct conn *conn)
{
	if (conn->end == CONN_GONE)
		return;
	if (conn->end == CONN_RESET) {
		reset(conn);
		return;
	}
	if (!conn->control && conn->sink->behaviour.freeze) {
		server_wake_at(conn->sink, conn, 0);
		conn_interest(conn);
		return;
	}
	if (conn->end != CONN_LINGER) {
		release_answers(conn);
		write_out(conn);
	}
	if (conn->end == CONN_STAYS && !conn->control)
		set_timer(conn);
	finish(conn);
	conn_interest(conn);
}
