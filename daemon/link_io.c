/* How bytes and answers move over a link. */
#include "link.h"

#include "broker.h"
#include "lane.h"
#include "log.h"
#include "pool.h"
#include "shard.h"
#include "tls.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define IOVECS 64
#define HELLO_MAX 4096u /* of a handshake kept for a successor */
#define READS_A_TURN 4 /* bound of one link's work in a turn */

static struct inflight *
entry_at(struct link *link, uint64_t seq)
{
	return &link->ring[seq & link->ring_mask];
}

/* The number of an entry between base and next. */
static uint64_t
seq_of(const struct link *link, const struct inflight *entry)
{
	return link->base + (((uint64_t)(entry - link->ring) - link->base) & link->ring_mask);
}

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
		link_update_writable(link);
		return LINK_SEND_FULL;
	}
	if (out_commit(&link->out) != 0 || rc < 0) {
		/* The driver has counted a message that the broker will never see. */
		link_fail(link, FATAL_PROTOCOL, "out of memory for a message of %u bytes", bytes);
		return LINK_SEND_NOMEM;
	}
	*entry_at(link, link->next) = (struct inflight){
		.lane = lane,
		.slot = slot,
		.start = start,
		.end = out_end(&link->out),
		.bytes = bytes,
		.no_ack = rc == DRIVER_PUBLISHED_NO_ACK,
	};
	lane->refs++;
	link->next++;
	if (link->outstanding++ == 0) {
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
	const struct config_pool *config = link->broker->pool->config;
	uint64_t unsent = out_unwritten(&link->out);
	uint64_t span = link->next - link->base;
	/* The socket holds up to low / 2 unsent (TCP_NOTSENT_LOWAT): it counts as if it were full. */
	uint64_t in_socket = unsent > 0 ? config->low_bytes / 2 : 0;
	int writable = link->writable;

	if (writable)
		writable = unsent + in_socket < config->high_bytes && link->outstanding < link->window &&
		    link->outstanding_bytes < config->window_bytes && span <= link->ring_mask && !link->full;
	else
		writable = unsent + in_socket <= config->low_bytes && link->outstanding <= link->window_low &&
		    link->outstanding_bytes <= config->window_bytes / 2 && span <= link->ring_mask / 2 && !link->full;
	if (writable == link->writable)
		return;
	link->writable = writable;
	pool_link_changed(link->broker->pool, link);
}

/* An entry is resolved: it leaves the window. Returns its lane. */
static struct lane *
take(struct link *link, struct inflight *entry)
{
	struct lane *lane = entry->lane;

	entry->lane = NULL;
	link->outstanding--;
	link->outstanding_bytes -= entry->bytes;
	link->shard->outstanding--;
	link->shard->work++;
	return lane;
}

/* One entry is answered: its lane is told, the window moves. */
static void
answer(struct link *link, struct inflight *entry, uint8_t outcome, uint64_t reference, uint32_t code,
    const char *text, size_t text_len)
{
	struct lane *lane = take(link, entry);
	uint64_t seq = seq_of(link, entry);

	switch (outcome) {
	case TG_DELIVERED:
		link->count.delivered++;
		link->broker->count.delivered++;
		break;
	case TG_SENT:
		link->count.sent++;
		link->broker->count.sent++;
		break;
	case TG_UNKNOWN:
		break; /* its lane and pool count it */
	default:
		link->count.rejected++;
		link->broker->count.rejected++;
		break;
	}
	lane_answer(lane, entry->slot, link, seq, outcome, reference, code, text, text_len);
}

static void
advance_base(struct link *link)
{
	while (link->base != link->next && entry_at(link, link->base)->lane == NULL)
		link->base++;
}

static void
progress(struct link *link)
{
	link->last_progress_ns = link->shard->now_ns;
	link->full = 0;
	advance_base(link);
	if (link->careful > 0)
		link_answered_carefully(link);
	if (link->state == LINK_DRAINING && link->outstanding == 0)
		link_want_flush(link); /* the flush sees that it has drained */
}

/* Messages nobody acknowledges are SENT when the kernel has their last byte. */
static void
answer_written(struct link *link)
{
	uint64_t before = link->base;

	while (link->base != link->next) {
		struct inflight *entry = entry_at(link, link->base);
		if (entry->lane != NULL) {
			if (!entry->no_ack || entry->end > out_written(&link->out))
				break;
			answer(link, entry, TG_SENT, 0, 0, NULL, 0);
		}
		link->base++;
	}
	if (link->base != before)
		progress(link);
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
		link_fail(link, FATAL_PROTOCOL, "%s: %s", what, strerror(errno));
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
	if (link->tls != NULL || !link->broker->pool->config->tls.enabled)
		return 0;
	if (out_unwritten(&link->out) > 0 && !link->wants_tls)
		link_fail(link, FATAL_REFUSED, "the broker offers no TLS, and the pool has a tls group");
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
	answer_written(link);
	link_update_writable(link);
	if (link->state == LINK_DRAINING && link->outstanding == 0)
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
	uint8_t *hello = link->hello_len + len <= HELLO_MAX ? realloc(link->hello, link->hello_len + len) : NULL;

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
		link_fail(link, FATAL_CLOSED, "closed by the broker");
		return 0;
	}
	link->count.reads++;
	link->count.bytes_in += (uint64_t)n;
	link_health_read(link);
	size_t len = held + (size_t)n;
	int greeting = link->state == LINK_HANDSHAKE;
	link->fatal = 0;
	ssize_t used = link->session->driver->input(link->session, buffer, len, &link->out);
	if (link->fatal || used < 0) {
		char why[sizeof(link->fatal_why)];
		memcpy(why, link->fatal_why, sizeof(why));
		link_fail(link, link->fatal_kind, "%s", link->fatal ? why : "the driver gave up");
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
	advance_base(link);
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

/* ---- the driver's events ---- */

static void
fatal(struct link *link, enum driver_fatal kind, uint32_t code, const char *text, size_t len)
{
	if (link->fatal)
		return;
	if (len >= sizeof(link->fatal_why))
		len = sizeof(link->fatal_why) - 1;
	/* Acted on when the driver has returned: failing frees the session it is running in. */
	link->fatal = 1;
	link->fatal_kind = kind;
	link->fatal_code = code;
	memcpy(link->fatal_why, text, len);
	link->fatal_why[len] = '\0';
}

static void
fatal_text(struct link *link, const char *text)
{
	fatal(link, FATAL_PROTOCOL, 0, text, strlen(text));
}

/* Nothing will be different soon. */
static void
refuse(struct link *link, const char *text)
{
	fatal(link, FATAL_REFUSED, 0, text, strlen(text));
}

/* The entry an answer is for, or NULL: not outstanding, or (L5) answered before it was sent: whole, or with
 * `begun` its first bytes. */
static struct inflight *
find_outstanding(struct link *link, uint64_t seq, int begun)
{
	uint64_t written = out_written(&link->out);

	if (seq - link->base >= link->next - link->base) {
		fatal_text(link, "an answer to a message that is not outstanding");
		return NULL;
	}
	struct inflight *entry = entry_at(link, seq);
	if (entry->lane == NULL) {
		fatal_text(link, "a second answer to one message");
		return NULL;
	}
	if (entry->end > written && (!begun || entry->start >= written)) {
		fatal_text(link, "an answer to a message that is not sent yet");
		return NULL;
	}
	return entry;
}

static struct inflight *
outstanding(struct link *link, uint64_t seq)
{
	return find_outstanding(link, seq, 0);
}

static void
on_ack(struct link *link, const struct driver_event *event)
{
	struct inflight *entry = outstanding(link, event->seq);

	if (entry == NULL)
		return;
	answer(link, entry, event->outcome, event->reference, 0, NULL, 0);
	progress(link);
}

static void
on_ack_upto(struct link *link, const struct driver_event *event)
{
	if (event->seq - link->base >= link->next - link->base) {
		fatal_text(link, "an answer to a message that is not outstanding");
		return;
	}
	if (entry_at(link, event->seq)->lane != NULL && outstanding(link, event->seq) == NULL)
		return;
	for (uint64_t seq = link->base; seq != event->seq + 1; seq++) {
		struct inflight *entry = entry_at(link, seq);
		if (entry->lane != NULL)
			answer(link, entry, event->outcome, event->reference, 0, NULL, 0);
	}
	progress(link);
}

static void
on_nack(struct link *link, const struct driver_event *event)
{
	struct inflight *entry = find_outstanding(link, event->seq, 1);

	if (entry == NULL)
		return;
	/* A length it does not like is refused before the body is there. What is left of it goes all the same. */
	if (entry->end > out_written(&link->out) && out_own(&link->out) != 0) {
		fatal_text(link, "out of memory for the rest of a message that the broker refused early");
		return;
	}
	answer(link, entry, TG_REJECTED, event->reference, event->code, event->text, event->text_len);
	progress(link);
}

/* As far as the broker goes it is done with; what becomes of it nobody knows. */
static void
on_unsure(struct link *link, const struct driver_event *event)
{
	struct inflight *entry = outstanding(link, event->seq);

	if (entry == NULL)
		return;
	answer(link, entry, TG_UNKNOWN, event->reference, event->code, NULL, 0);
	progress(link);
}

static void
on_again(struct link *link, const struct driver_event *event, enum lane_taken_back how)
{
	struct inflight *entry = outstanding(link, event->seq);

	if (entry == NULL)
		return;
	struct lane *lane = take(link, entry);
	lane_take_back(lane, entry->slot, link, event->seq, how);
	progress(link);
}

static void
on_alive(struct link *link)
{
	if (link->probe_ns != 0)
		link->probe_rtt_ns = link->shard->now_ns - link->probe_ns;
	link->probe_ns = 0;
	link->probe_misses = 0;
	link_event(link, LINK_EV_PROVEN);
}

static void
on_blocked(struct link *link, const struct driver_event *event)
{
	link->blocked = 1;
	snprintf(link->why, sizeof(link->why), "the broker says it is blocked: %.*s", (int)event->text_len,
	    event->text != NULL ? event->text : "");
	link->suspended = 1; /* acted on when the driver has returned: it may end the session */
}

void
link_on_driver_event(void *owner, const struct driver_event *event)
{
	struct link *link = owner;

	if (link->fatal)
		return;
	switch (event->type) {
	case EV_UP:
		if (link->broker->pool->config->tls.enabled && link->tls == NULL)
			refuse(link, "the broker offers no TLS, and the pool has a tls group");
		else
			link_event(link, LINK_EV_UP);
		break;
	case EV_ALIVE:
		on_alive(link);
		break;
	case EV_ACK:
		on_ack(link, event);
		break;
	case EV_ACK_UPTO:
		on_ack_upto(link, event);
		break;
	case EV_NACK:
		on_nack(link, event);
		break;
	case EV_AGAIN:
		on_again(link, event, LANE_BACK_AGAIN);
		break;
	case EV_LOST:
		on_again(link, event, LANE_BACK_FAILED);
		break;
	case EV_UNSURE:
		on_unsure(link, event);
		break;
	case EV_BLOCKED:
		on_blocked(link, event);
		break;
	case EV_UNBLOCKED:
		link->blocked = 0;
		break;
	case EV_WINDOW:
		link_set_window(link, event->seq);
		break;
	case EV_MAX_BODY:
		link->max_body = event->seq;
		break;
	case EV_KEEPALIVE:
		/* Silence is broken by a probe: twice in the time the broker allows. */
		if (event->seq * 1000 * NS_PER_MS / 2 < link->idle_ns)
			link->idle_ns = event->seq * 1000 * NS_PER_MS / 2;
		break;
	case EV_ENDPOINT:
		log_event(LOG_LEVEL_DEBUG, "endpoint_learned", "pool=%s broker=%s endpoint=%s",
		    link->broker->pool->config->name, link->broker->config->address.text,
		    log_quote((char[160]){ 0 }, 160, event->text, event->text_len));
		break;
	case EV_LEAVING:
		link->leaving = 1;
		break;
	case EV_TLS:
		if (!link->broker->pool->config->tls.enabled)
			refuse(link, "the broker demands TLS, and the pool has no tls group");
		else if (link->tls != NULL)
			fatal_text(link, "the broker wants TLS inside of TLS");
		else
			link->wants_tls = 1;
		break;
	case EV_FATAL:
		fatal(link, event->fatal, event->code, event->text != NULL ? event->text : "", event->text_len);
		break;
	}
}

void
link_expire(struct link *link)
{
	uint64_t written = out_written(&link->out);

	for (uint64_t seq = link->base; seq != link->next; seq++) {
		struct inflight *entry = entry_at(link, seq);
		/* L5: a suspect owns what it has not written. */
		if (entry->lane != NULL && (entry->end <= written || link->state == LINK_SUSPECT))
			lane_overdue(entry->lane, entry->slot, link, seq);
	}
}

void
link_let_go(struct link *link)
{
	for (uint64_t seq = link->base; seq != link->next; seq++) {
		struct inflight *entry = entry_at(link, seq);
		if (entry->lane != NULL)
			lane_reroute(entry->lane, entry->slot, link, seq);
	}
	while (!TAILQ_EMPTY(&link->bound))
		lane_unbind(TAILQ_FIRST(&link->bound), 0);
}

void
link_abandon(struct link *link)
{
	uint64_t written = out_written(&link->out);
	uint32_t code;
	struct inflight *guilty =
	    link->state == LINK_FAILED && link->failed_kind == FATAL_MESSAGE ? link_blame(link, &code) : NULL;

	if (guilty != NULL)
		answer(link, guilty, TG_REJECTED, 0, code, link->fatal_why, strlen(link->fatal_why));

	for (; link->base != link->next; link->base++) {
		struct inflight *entry = entry_at(link, link->base);
		if (entry->lane == NULL)
			continue;
		struct lane *lane = take(link, entry);
		lane_take_back(lane, entry->slot, link, link->base,
		    entry->start >= written ? LANE_BACK_UNSENT : LANE_BACK_FAILED);
	}
	link->base = link->next = 0;
	while (!TAILQ_EMPTY(&link->bound))
		lane_unbind(TAILQ_FIRST(&link->bound), 0);
}
