/* How bytes move over a link. */
#include "link.h"

#include "broker.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"
#include "tls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IOVECS 64
#define READS_A_TURN 4 /* bound of one link's work in a turn */

/* ---- out ---- */

void
link_want_flush(struct link *link)
{
	if (link->conn.flushing)
		return;
	link->conn.flushing = 1;
	TAILQ_INSERT_TAIL(&link->shard->flush, link, flush_entry);
}

enum link_send_result
link_send(struct link *link, struct lane *lane, uint64_t slot, uint32_t bytes, const struct message *message,
    struct driver_rejection *rejection)
{
	uint64_t start = out_end(&link->out);

	out_mark(&link->out);
	int rc =
	    link->conn.session->driver->publish(link->conn.session, link->next, message, &link->out, rejection);
	if (rc == DRIVER_REJECTED || rc == DRIVER_FULL) {
		out_rollback(&link->out);
		if (rc == DRIVER_REJECTED)
			return LINK_SEND_REJECTED;
		link->conn.full = 1;
		if (link->aside.count > 0)
			link_wear(link);
		link_update_writable(link);
		return LINK_SEND_FULL;
	}
	if (out_commit(&link->out) != 0 || rc < 0) {
		/* The driver has counted a message that the broker will never see. */
		link_fail(link, FATAL_PROTOCOL, "out of memory for a message of %u bytes", bytes);
		return LINK_SEND_NOMEM;
	}
	*link_entry(link, link->next) = (struct inflight){
		.lane = lane,
		.slot = slot,
		.start = start,
		.end = out_end(&link->out),
		.bytes = bytes,
		.sent_ms = (uint32_t)(link->shard->now_ns / NS_PER_MS) & INFLIGHT_MS_MASK,
		.no_ack = rc == DRIVER_PUBLISHED_NO_ACK,
	};
	link->next++;
	link->outstanding++;
	if (link_waited_for(link) == 1) {
		link->health.last_progress_ns = link->shard->now_ns;
		link_health_mark(link);
	}
	link->outstanding_bytes += bytes;
	link->shard->outstanding++;
	link->shard->work++;
	link->count.framed++;
	link_want_flush(link);
	link_update_writable(link);
	return LINK_SEND_OK;
}

void
link_update_writable(struct link *link)
{
	const struct config_pool *config = link->broker->peers->config;
	uint64_t unsent = out_unwritten(&link->out);
	if (link->next - link->base > link->ring_mask / 2)
		link_make_room(link);
	if (link->conn.crowded)
		link_pass_over(link);
	uint64_t span = link->next - link->base;
	uint32_t waited_for = link_waited_for(link);
	uint64_t waited_bytes = link->outstanding_bytes - link->late_bytes;
	/* The socket holds up to low / 2 unsent (TCP_NOTSENT_LOWAT): it counts as if it were full. */
	uint64_t in_socket = unsent > 0 ? config->low_bytes / 2 : 0;

	/* Two pairs of marks: a link that has sent what it had takes more, however many answers are to come. */
	if (unsent + in_socket >= config->high_bytes)
		link->conn.congested = 1;
	else if (unsent + in_socket <= config->low_bytes)
		link->conn.congested = 0;
	if (waited_for >= link->window || waited_bytes >= config->window_bytes || span > link->ring_mask ||
	    link->conn.full)
		link->conn.crowded = 1;
	else if (waited_for <= link->window_low && waited_bytes <= config->window_bytes / 2 &&
		 span <= link->ring_mask / 2 + 1)
		link->conn.crowded = 0;
	int writable = !link->conn.congested && !link->conn.crowded;
	if (writable == link->writable)
		return;
	link->writable = writable;
	link->events->changed(link);
}

/* ---- plain or TLS ---- */

static ssize_t
send_pieces(struct link *link, const struct iovec *iov, int count)
{
	if (link->conn.tls != NULL)
		return tls_writev(link->conn.tls, iov, count);
	return link->shard->world->ops->writev(link->conn.sock, iov, count);
}

static ssize_t
receive(struct link *link, void *bytes, size_t len)
{
	if (link->conn.tls != NULL)
		return tls_read(link->conn.tls, bytes, len);
	return link->shard->world->ops->read(link->conn.sock, bytes, len);
}

static void
fail_io(struct link *link, const char *what)
{
	char why[256];

	if (link->conn.tls == NULL || errno != EPROTO) {
		link_fail(link, errno == ECONNRESET || errno == EPIPE ? FATAL_DROPPED : FATAL_PROTOCOL,
		    "%s: %s", what, strerror(errno));
		return;
	}
	snprintf(why, sizeof(why), "%s", tls_why(link->conn.tls)); /* which does not outlive the failure */
	link_fail(link, tls_why_kind(link->conn.tls), "TLS: %s", why);
}

/* Whether anything waits for the socket. */
static int
has_unsent(const struct link *link)
{
	return out_unwritten(&link->out) > 0 || (link->conn.tls != NULL && tls_unsent(link->conn.tls) > 0);
}

static void
want_write(struct link *link)
{
	link->conn.want_write = 1;
	link->shard->world->ops->want_write(link->conn.sock);
}

int
link_secure(struct link *link)
{
	switch (tls_handshake(link->conn.tls)) {
	case 1:
		link_event(link, LINK_EV_SECURED);
		return link->state == LINK_HANDSHAKE;
	case 0:
		if (tls_unsent(link->conn.tls) > 0 && !link->conn.want_write)
			want_write(link);
		return 0;
	default:
		errno = EPROTO;
		fail_io(link, "handshake");
		return 0;
	}
}

/* The driver has asked for TLS and has returned. */
static void
begin_tls(struct link *link, size_t rest)
{
	link->conn.wants_tls = 0;
	/* Whoever is in the middle could have put them there, for us to believe later. */
	if (rest > 0 || out_unwritten(&link->out) > 0) {
		link_fail(link, FATAL_PROTOCOL,
		    "TLS: %zu bytes in the clear came behind where it begins, %llu were still to be sent", rest,
		    (unsigned long long)out_unwritten(&link->out));
		return;
	}
	free(link->conn.held);
	link->conn.held = NULL;
	link->conn.held_len = 0;
	link_event(link, LINK_EV_CONNECTED_TLS);
}

/* A pool with TLS sends nothing in the clear. */
static int
must_wait_for_tls(struct link *link)
{
	if (link->state == LINK_TLS)
		return 1;
	if (link->conn.tls != NULL || !link->broker->peers->config->tls.enabled)
		return 0;
	if (out_unwritten(&link->out) > 0 && !link->conn.wants_tls)
		link_fail(link, FATAL_SETTINGS, "the broker offers no TLS, and the pool has a tls group");
	return 1;
}

static int read_once(struct link *link);

void
link_flush(struct link *link)
{
	struct iovec iov[IOVECS];

	if (must_wait_for_tls(link))
		return;
	if (link->conn.session->driver->flush != NULL &&
	    link->conn.session->driver->flush(link->conn.session, &link->out) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for a flush");
		return;
	}
	while (!link->conn.want_write && has_unsent(link)) {
		int count = out_iovec(&link->out, iov, IOVECS);
		ssize_t n = send_pieces(link, iov, count);
		if (n < 0) {
			if (errno != EAGAIN) {
				int error = errno;
				/* A broker that closes over what we sent has said why, and its reset came after. */
				while (read_once(link))
					;
				errno = error;
				if (link->conn.sock != NULL)
					fail_io(link, "write");
				return;
			}
			if (link->conn.tls == NULL || tls_unsent(link->conn.tls) > 0)
				want_write(link);
			break; /* or TLS waits for the broker: reading flushes again */
		}
		link->count.writes++;
		link->count.bytes_out += (uint64_t)n;
		out_consume(&link->out, (size_t)n);
	}
	link_answer_written(link);
	link_update_writable(link);
	if (link->state == LINK_DRAINING && link_waited_for(link) == 0)
		link_event(link, LINK_EV_DRAINED);
}

void
link_farewell(struct link *link)
{
	struct iovec iov[IOVECS];

	if (link_can_move(link) || link->state != LINK_READY || link->outstanding > 0 ||
	    out_unwritten(&link->out) > 0)
		return;
	if (link->conn.session->driver->goodbye != NULL &&
	    link->conn.session->driver->goodbye(link->conn.session, &link->out) == 0)
		(void)send_pieces(link, iov, out_iovec(&link->out, iov, IOVECS));
	if (link->conn.tls != NULL)
		tls_goodbye(link->conn.tls);
}

void
link_on_writable(void *owner)
{
	struct link *link = owner;

	link->conn.want_write = 0;
	if (link->state == LINK_TLS)
		link_secure(link);
	else
		link_want_flush(link);
}

void
link_probe(struct link *link)
{
	/* One that finds no memory is never answered, and counts as a miss. */
	if (link->conn.session->driver->probe(link->conn.session, &link->out) == 0)
		link_want_flush(link);
	link->health.probe_ns = link->shard->now_ns;
}

/* ---- in ---- */

/* Keeps what the driver did not consume, for the next read. Returns 0 or -TG_ENOMEM. */
static int
hold(struct link *link, const uint8_t *bytes, size_t len)
{
	free(link->conn.held);
	link->conn.held = NULL;
	link->conn.held_len = 0;
	if (len == 0)
		return 0;
	link->conn.held = malloc(len);
	if (link->conn.held == NULL)
		return -TG_ENOMEM;
	memcpy(link->conn.held, bytes, len);
	link->conn.held_len = len;
	return 0;
}

int
link_keep_hello(struct link *link, const uint8_t *bytes, size_t len)
{
	uint8_t *hello = link->conn.hello_len + len <= LINK_HELLO_MAX
			     ? realloc(link->conn.hello, link->conn.hello_len + len)
			     : NULL;

	if (hello == NULL) {
		/* Longer than anybody's: no successor will have it, that is all. */
		free(link->conn.hello);
		link->conn.hello = NULL;
		link->conn.hello_len = 0;
		return -TG_ENOMEM;
	}
	memcpy(hello + link->conn.hello_len, bytes, len);
	link->conn.hello = hello;
	link->conn.hello_len += len;
	return 0;
}

/* The driver has answered what was read, from `end` on. Returns whether the broker reads what it asks for. */
static int
count_replies(struct link *link, uint64_t end)
{
	if (out_end(&link->out) == end)
		return 1;
	if (out_written(&link->out) >= link->conn.replies_end)
		link->conn.replies = 0;
	link->conn.replies += out_end(&link->out) - end;
	link->conn.replies_end = out_end(&link->out);
	return link->conn.replies <= LINK_REPLIES_MAX;
}

/* Returns 1 if there may be more to read, 0 if not or the link is gone. */
static int
read_once(struct link *link)
{
	uint8_t *buffer = link->shard->read_buffer;
	size_t held = link->conn.held_len;

	if (held > 0)
		memcpy(buffer, link->conn.held, held);
	ssize_t n = receive(link, buffer + held, SHARD_READ_BYTES);
	if (n < 0) {
		if (errno != EAGAIN)
			fail_io(link, "read");
		return 0;
	}
	if (n == 0) {
		link_fail(link, FATAL_DROPPED, "closed by the broker");
		return 0;
	}
	link->count.reads++;
	link->count.bytes_in += (uint64_t)n;
	link_health_read(link);
	size_t len = held + (size_t)n;
	int greeting = link->state == LINK_HANDSHAKE;
	uint64_t end = out_end(&link->out);
	link->verdict.given = 0;
	ssize_t used = link->conn.session->driver->input(link->conn.session, buffer, len, &link->out);
	if (link->verdict.given || used < 0) {
		char why[sizeof(link->verdict.why)];
		memcpy(why, link->verdict.why, sizeof(why));
		link_fail(link, link->verdict.kind, "%s", link->verdict.given ? why : "the driver gave up");
		return 0;
	}
	if (!count_replies(link, end)) {
		link_fail(link, FATAL_PROTOCOL,
		    "the broker reads none of the %llu bytes of answers that it has asked for; %u are the limit",
		    (unsigned long long)link->conn.replies, LINK_REPLIES_MAX);
		return 0;
	}
	if (link->conn.wants_tls) {
		begin_tls(link, len - (size_t)used);
		return 0;
	}
	if (greeting)
		link_keep_hello(link, buffer, (size_t)used);
	if (len - (size_t)used > DRIVER_INPUT_MAX || hold(link, buffer + used, len - (size_t)used) != 0) {
		link_fail(link, FATAL_PROTOCOL, "%zu bytes of input that make no frame", len - (size_t)used);
		return 0;
	}
	link_update_writable(link);
	if (out_unwritten(&link->out) > 0)
		link_want_flush(link);
	if (link->conn.suspended) {
		link->conn.suspended = 0;
		if (link->conn.blocked)
			link_event(link, LINK_EV_SUSPECT);
		if (link->conn.sock == NULL)
			return 0;
	}
	/* Not before: without anything outstanding, draining ends with the session. */
	if (link->conn.leaving) {
		link->conn.leaving = 0;
		link_drain(link);
		if (link->conn.sock == NULL)
			return 0;
	}
	return n == SHARD_READ_BYTES || (link->conn.tls != NULL && tls_has_ended(link->conn.tls));
}

void
link_on_readable(void *owner)
{
	struct link *link = owner;
	int reads = 0;

	if (link->conn.tls == NULL) {
		while (read_once(link) && ++reads < READS_A_TURN)
			;
		return;
	}
	/* What is inside OpenSSL must come out, for no socket announces it: the bound is on what goes in. */
	tls_may_read(link->conn.tls, (size_t)READS_A_TURN * SHARD_READ_BYTES);
	if (link->state == LINK_TLS && !link_secure(link))
		return;
	while (read_once(link))
		;
	if (link->conn.tls != NULL && tls_unsent(link->conn.tls) > 0)
		link_want_flush(link);
}
