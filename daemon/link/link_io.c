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
	if (link->flushing)
		return;
	link->flushing = 1;
	TAILQ_INSERT_TAIL(&link->shard->flush, link, flush_entry);
}

enum link_send_result
link_send(struct link *link, struct lane *lane, uint64_t slot, uint32_t bytes, const struct message *message,
    struct driver_rejection *rejection)
{
	uint64_t start = out_end(&link->out);

	out_mark(&link->out);
	int rc = link->session->driver->publish(link->session, link->next, message, &link->out, rejection);
	if (rc == DRIVER_REJECTED || rc == DRIVER_FULL) {
		out_rollback(&link->out);
		if (rc == DRIVER_REJECTED)
			return LINK_SEND_REJECTED;
		link->full = 1;
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
		link->last_progress_ns = link->shard->now_ns;
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
	if (link->crowded)
		link_pass_over(link);
	uint64_t span = link->next - link->base;
	uint32_t waited_for = link_waited_for(link);
	uint64_t waited_bytes = link->outstanding_bytes - link->late_bytes;
	/* The socket holds up to low / 2 unsent (TCP_NOTSENT_LOWAT): it counts as if it were full. */
	uint64_t in_socket = unsent > 0 ? config->low_bytes / 2 : 0;

	/* Two pairs of marks: a link that has sent what it had takes more, however many answers are to come. */
	if (unsent + in_socket >= config->high_bytes)
		link->congested = 1;
	else if (unsent + in_socket <= config->low_bytes)
		link->congested = 0;
	if (waited_for >= link->window || waited_bytes >= config->window_bytes ||
	    span > link->ring_mask || link->full)
		link->crowded = 1;
	else if (waited_for <= link->window_low && waited_bytes <= config->window_bytes / 2 &&
	    span <= link->ring_mask / 2 + 1)
		link->crowded = 0;
	int writable = !link->congested && !link->crowded;
	if (writable == link->writable)
		return;
	link->writable = writable;
	link->events->changed(link);
}

/* ---- plain or TLS ---- */

static ssize_t
send_pieces(struct link *link, const struct iovec *iov, int count)
{
	if (link->tls != NULL)
		return tls_writev(link->tls, iov, count);
	return link->shard->world->ops->writev(link->sock, iov, count);
}

static ssize_t
receive(struct link *link, void *bytes, size_t len)
{
	if (link->tls != NULL)
		return tls_read(link->tls, bytes, len);
	return link->shard->world->ops->read(link->sock, bytes, len);
}

static void
fail_io(struct link *link, const char *what)
{
	char why[256];

	if (link->tls == NULL || errno != EPROTO) {
		link_fail(link, errno == ECONNRESET || errno == EPIPE ? FATAL_DROPPED : FATAL_PROTOCOL, "%s: %s", what,
		    strerror(errno));
		return;
	}
	snprintf(why, sizeof(why), "%s", tls_why(link->tls)); /* which does not outlive the failure */
	link_fail(link, tls_why_kind(link->tls), "TLS: %s", why);
}

/* Whether anything waits for the socket. */
static int
has_unsent(const struct link *link)
{
	return out_unwritten(&link->out) > 0 || (link->tls != NULL && tls_unsent(link->tls) > 0);
}

static void
want_write(struct link *link)
{
	link->want_write = 1;
	link->shard->world->ops->want_write(link->sock);
}

int
link_secure(struct link *link)
{
	switch (tls_handshake(link->tls)) {
	case 1:
		link_event(link, LINK_EV_SECURED);
		return link->state == LINK_HANDSHAKE;
	case 0:
		if (tls_unsent(link->tls) > 0 && !link->want_write)
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
	link->wants_tls = 0;
	/* Whoever is in the middle could have put them there, for us to believe later. */
	if (rest > 0 || out_unwritten(&link->out) > 0) {
		link_fail(link, FATAL_PROTOCOL,
		    "TLS: %zu bytes in the clear came behind where it begins, %llu were still to be sent", rest,
		    (unsigned long long)out_unwritten(&link->out));
		return;
	}
	free(link->held);
	link->held = NULL;
	link->held_len = 0;
	link_event(link, LINK_EV_CONNECTED_TLS);
}

/* A pool with TLS sends nothing in the clear. */
static int
must_wait_for_tls(struct link *link)
{
	if (link->state == LINK_TLS)
		return 1;
	if (link->tls != NULL || !link->broker->peers->config->tls.enabled)
		return 0;
	if (out_unwritten(&link->out) > 0 && !link->wants_tls)
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
	if (link->session->driver->flush != NULL && link->session->driver->flush(link->session, &link->out) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for a flush");
		return;
	}
	while (!link->want_write && has_unsent(link)) {
		int count = out_iovec(&link->out, iov, IOVECS);
		ssize_t n = send_pieces(link, iov, count);
		if (n < 0) {
			if (errno != EAGAIN) {
				int error = errno;
				/* A broker that closes over what we sent has said why, and its reset came after. */
				while (read_once(link))
					;
				errno = error;
				if (link->sock != NULL)
					fail_io(link, "write");
				return;
			}
			if (link->tls == NULL || tls_unsent(link->tls) > 0)
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

	if (link_can_move(link) || link->state != LINK_READY || link->outstanding > 0 || out_unwritten(&link->out) > 0)
		return;
	if (link->session->driver->goodbye != NULL && link->session->driver->goodbye(link->session, &link->out) == 0)
		(void)send_pieces(link, iov, out_iovec(&link->out, iov, IOVECS));
	if (link->tls != NULL)
		tls_goodbye(link->tls);
}

void
link_on_writable(void *owner)
{
	struct link *link = owner;

	link->want_write = 0;
	if (link->state == LINK_TLS)
		link_secure(link);
	else
		link_want_flush(link);
}

void
link_probe(struct link *link)
{
	/* One that finds no memory is never answered, and counts as a miss. */
	if (link->session->driver->probe(link->session, &link->out) == 0)
		link_want_flush(link);
	link->probe_ns = link->shard->now_ns;
}

/* ---- in ---- */

/* Keeps what the driver did not consume, for the next read. Returns 0 or -TG_ENOMEM. */
static int
hold(struct link *link, const uint8_t *bytes, size_t len)
{
	free(link->held);
	link->held = NULL;
	link->held_len = 0;
	if (len == 0)
		return 0;
	link->held = malloc(len);
	if (link->held == NULL)
		return -TG_ENOMEM;
	memcpy(link->held, bytes, len);
	link->held_len = len;
	return 0;
}

int
link_keep_hello(struct link *link, const uint8_t *bytes, size_t len)
{
	uint8_t *hello = link->hello_len + len <= LINK_HELLO_MAX ? realloc(link->hello, link->hello_len + len) : NULL;

	if (hello == NULL) {
		/* Longer than anybody's: no successor will have it, that is all. */
		free(link->hello);
		link->hello = NULL;
		link->hello_len = 0;
		return -TG_ENOMEM;
	}
	memcpy(hello + link->hello_len, bytes, len);
	link->hello = hello;
	link->hello_len += len;
	return 0;
}

/* The driver has answered what was read, from `end` on. Returns whether the broker reads what it asks for. */
static int
count_replies(struct link *link, uint64_t end)
{
	if (out_end(&link->out) == end)
		return 1;
	if (out_written(&link->out) >= link->replies_end)
		link->replies = 0;
	link->replies += out_end(&link->out) - end;
	link->replies_end = out_end(&link->out);
	return link->replies <= LINK_REPLIES_MAX;
}

/* Returns 1 if there may be more to read, 0 if not or the link is gone. */
static int
read_once(struct link *link)
{
	uint8_t *buffer = link->shard->read_buffer;
	size_t held = link->held_len;

	if (held > 0)
		memcpy(buffer, link->held, held);
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
	link->fatal = 0;
	ssize_t used = link->session->driver->input(link->session, buffer, len, &link->out);
	if (link->fatal || used < 0) {
		char why[sizeof(link->fatal_why)];
		memcpy(why, link->fatal_why, sizeof(why));
		link_fail(link, link->fatal_kind, "%s", link->fatal ? why : "the driver gave up");
		return 0;
	}
	if (!count_replies(link, end)) {
		link_fail(link, FATAL_PROTOCOL,
		    "the broker reads none of the %llu bytes of answers that it has asked for; %u are the limit",
		    (unsigned long long)link->replies, LINK_REPLIES_MAX);
		return 0;
	}
	if (link->wants_tls) {
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
	if (link->suspended) {
		link->suspended = 0;
		if (link->blocked)
			link_event(link, LINK_EV_SUSPECT);
		if (link->sock == NULL)
			return 0;
	}
	/* Not before: without anything outstanding, draining ends with the session. */
	if (link->leaving) {
		link->leaving = 0;
		link_drain(link);
		if (link->sock == NULL)
			return 0;
	}
	return n == SHARD_READ_BYTES || (link->tls != NULL && tls_has_ended(link->tls));
}

void
link_on_readable(void *owner)
{
	struct link *link = owner;
	int reads = 0;

	if (link->tls == NULL) {
		while (read_once(link) && ++reads < READS_A_TURN)
			;
		return;
	}
	/* What is inside OpenSSL must come out, for no socket announces it: the bound is on what goes in. */
	tls_may_read(link->tls, (size_t)READS_A_TURN * SHARD_READ_BYTES);
	if (link->state == LINK_TLS && !link_secure(link))
		return;
	while (read_once(link))
		;
	if (link->tls != NULL && tls_unsent(link->tls) > 0)
		link_want_flush(link);
}
