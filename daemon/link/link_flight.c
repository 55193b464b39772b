/* The messages in flight on a link, and the broker's answers to them. */
#include "link.h"

#include "broker.h"
#include "endpoints.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The unanswered entry of this number, in the ring or set aside, or NULL. */
static struct inflight *
find(struct link *link, uint64_t seq)
{
	if (seq - link->base >= link->next - link->base)
		return (struct inflight *)aside_get(&link->aside, seq);
	struct inflight *entry = link_entry(link, seq);
	return entry->lane != NULL ? entry : NULL;
}

/* An entry is resolved: it leaves the link. Returns what it was. */
static struct inflight
take(struct link *link, uint64_t seq, struct inflight *entry)
{
	struct inflight was = *entry;

	entry->lane = NULL;
	link->outstanding--;
	link->outstanding_bytes -= was.bytes;
	if (was.late) {
		link->late--;
		link->late_bytes -= was.bytes;
	} else {
		link->shard->outstanding--;
	}
	link->shard->work++;
	if (seq - link->base >= link->next - link->base) {
		aside_take(&link->aside, seq);
		free(entry);
	}
	return was;
}

/* One entry is answered: its lane is told, the window moves. */
static void
answer(struct link *link, uint64_t seq, struct inflight *entry, uint8_t outcome, uint64_t reference,
    uint32_t code, const char *text, size_t text_len)
{
	link_note_answer(link, entry);
	struct inflight was = take(link, seq, entry);

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
	link->events->answered(was.lane, was.slot, link, seq, outcome, reference, code, text, text_len);
}

struct call {
	void (*call)(void *arg, uint64_t seq, struct inflight *entry);
	void *arg;
};

static void
call_entry(void *arg, uint64_t seq, uintptr_t value)
{
	const struct call *call = arg;

	call->call(call->arg, seq, (struct inflight *)value);
}

void
link_each(struct link *link, void (*call)(void *arg, uint64_t seq, struct inflight *entry), void *arg)
{
	for (uint64_t seq = link->base; seq != link->next; seq++) {
		struct inflight *entry = link_entry(link, seq);
		if (entry->lane != NULL)
			call(arg, seq, entry);
	}
	aside_each(&link->aside, call_entry, &(struct call){ .call = call, .arg = arg });
}

static void
advance_base(struct link *link)
{
	while (link->base != link->next && link_entry(link, link->base)->lane == NULL)
		link->base++;
}

void
link_yield(struct link *link, const struct lane *lane)
{
	if (link->holder != lane)
		return;
	link->holder = NULL;
	if (!TAILQ_EMPTY(&link->waiters))
		link_want_serve(link);
}

void
link_set_window(struct link *link, uint64_t messages)
{
	const struct config_pool *config = link->broker->peers->config;

	if (messages == 0 || messages > config->window_messages)
		messages = config->window_messages;
	link->window_wide = (uint32_t)messages;
	link->window = link->careful > 0 ? 1 : link->window_wide;
	link->window_low = config->window_low < link->window / 2 ? config->window_low : link->window / 2;
}

static void
progress(struct link *link)
{
	link->health.last_progress_ns = link->shard->now_ns;
	link->conn.full = 0;
	link->health.mute_lane = 0;
	advance_base(link);
	if (link->careful > 0 && --link->careful == 0)
		link_set_window(link, link->window_wide);
	if (link->apart)
		link->events->turn(link, 1);
	if (link->state == LINK_DRAINING && link_waited_for(link) == 0)
		link_want_flush(link); /* the flush sees that it has drained */
}

void
link_answer_written(struct link *link)
{
	uint64_t before = link->base;

	while (link->base != link->next) {
		struct inflight *entry = link_entry(link, link->base);
		if (entry->lane != NULL) {
			if (!entry->no_ack || entry->end > out_written(&link->out))
				break;
			answer(link, link->base, entry, TG_SENT, 0, 0, NULL, 0);
		}
		link->base++;
	}
	if (link->base != before)
		progress(link);
}

/* ---- the driver's events ---- */

static void
fatal(struct link *link, enum driver_fatal kind, uint32_t code, const char *text, size_t len)
{
	if (link->verdict.given)
		return;
	if (len >= sizeof(link->verdict.why))
		len = sizeof(link->verdict.why) - 1;
	/* Acted on when the driver has returned: failing frees the session it is running in. */
	link->verdict.given = 1;
	link->verdict.kind = kind;
	link->verdict.code = code;
	memcpy(link->verdict.why, text, len);
	link->verdict.why[len] = '\0';
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
	fatal(link, FATAL_SETTINGS, 0, text, strlen(text));
}

/* The entry an answer is for, or NULL: not outstanding, or (L5) answered before it was sent: whole, or with
 * `begun` its first bytes. */
static struct inflight *
find_outstanding(struct link *link, uint64_t seq, int begun)
{
	uint64_t written = out_written(&link->out);
	struct inflight *entry = find(link, seq);

	if (entry == NULL) {
		fatal_text(link, "an answer to a message that is not outstanding, or a second one");
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
	answer(link, event->seq, entry, event->outcome, event->reference, 0, NULL, 0);
	progress(link);
}

struct upto {
	struct link *link;
	const struct driver_event *event;
	uint64_t seqs[ASIDE_MAX];
	uint32_t count;
};

static void
collect_upto(void *arg, uint64_t seq, uintptr_t value)
{
	struct upto *upto = arg;

	if (seq <= upto->event->seq)
		upto->seqs[upto->count++] = seq;
}

/* Entries set aside are older than all others, so the answer may be to one of them, too. */
static void
answer_aside_upto(struct link *link, const struct driver_event *event)
{
	struct upto upto = { .link = link, .event = event };

	aside_each(&link->aside, collect_upto, &upto);
	for (uint32_t i = 0; i < upto.count; i++)
		answer(
		    link, upto.seqs[i], find(link, upto.seqs[i]), event->outcome, event->reference, 0, NULL, 0);
}

static void
on_ack_upto(struct link *link, const struct driver_event *event)
{
	/* Below base there is what was set aside: for a driver, its oldest unanswered message may be one of those. */
	if (event->seq >= link->next || (event->seq < link->base && link->aside.count == 0)) {
		fatal_text(link, "an answer to a message that is not outstanding");
		return;
	}
	if (find(link, event->seq) != NULL && outstanding(link, event->seq) == NULL)
		return;
	for (uint64_t seq = link->base; seq <= event->seq; seq++) {
		struct inflight *entry = link_entry(link, seq);
		if (entry->lane != NULL)
			answer(link, seq, entry, event->outcome, event->reference, 0, NULL, 0);
	}
	if (link->aside.count > 0)
		answer_aside_upto(link, event);
	progress(link);
}

static void
on_nack(struct link *link, const struct driver_event *event)
{
	struct inflight *entry = find_outstanding(link, event->seq, 1);

	if (entry == NULL)
		return;
	/* A broker may refuse a length before it has the body. The rest of the body is sent all the same. */
	if (entry->end > out_written(&link->out) && out_own(&link->out) != 0) {
		fatal_text(link, "out of memory for the rest of a message that the broker refused early");
		return;
	}
	link->events->refused(link, entry->lane);
	answer(
	    link, event->seq, entry, TG_REJECTED, event->reference, event->code, event->text, event->text_len);
	progress(link);
}

/* The broker will say no more about it: its fate is unknown. */
static void
on_unsure(struct link *link, const struct driver_event *event)
{
	struct inflight *entry = outstanding(link, event->seq);

	if (entry == NULL)
		return;
	answer(link, event->seq, entry, TG_UNKNOWN, event->reference, event->code, NULL, 0);
	progress(link);
}

static void
on_again(struct link *link, const struct driver_event *event, enum link_back how)
{
	struct inflight *entry = outstanding(link, event->seq);

	if (entry == NULL)
		return;
	struct inflight was = take(link, event->seq, entry);
	link->events->given_back(was.lane, was.slot, link, event->seq, how);
	progress(link);
}

static void
on_alive(struct link *link)
{
	if (link->health.probe_ns != 0)
		link->probe_rtt_ns = link->shard->now_ns - link->health.probe_ns;
	link->health.probe_ns = 0;
	link->health.probe_misses = 0;
	link->health.alive_ns = link->shard->now_ns;
	link_event(link, LINK_EV_PROVEN);
}

static void
on_blocked(struct link *link, const struct driver_event *event)
{
	link->conn.blocked = 1;
	snprintf(link->why, sizeof(link->why), "the broker says it is blocked: %.*s", (int)event->text_len,
	    event->text != NULL ? event->text : "");
	link->conn.suspended = 1; /* acted on when the driver has returned: it may end the session */
}

void
link_on_driver_event(void *owner, const struct driver_event *event)
{
	struct link *link = owner;

	if (link->verdict.given)
		return;
	switch (event->type) {
	case EV_UP:
		if (link->broker->peers->config->tls.enabled && link->conn.tls == NULL)
			refuse(link, "the broker offers no TLS, and the pool has a tls group");
		else if (link->state == LINK_IDLE)
			link->conn.replayed = 1;
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
		on_again(link, event, LINK_BACK_AGAIN);
		break;
	case EV_LOST:
		on_again(link, event, LINK_BACK_FAILED);
		break;
	case EV_UNSURE:
		on_unsure(link, event);
		break;
	case EV_BLOCKED:
		on_blocked(link, event);
		break;
	case EV_UNBLOCKED:
		link->conn.blocked = 0;
		link->health.unblocked_ns = link->shard->now_ns;
		break;
	case EV_WINDOW:
		link_set_window(link, event->seq);
		break;
	case EV_MAX_BODY:
		link->conn.max_body = event->seq;
		break;
	case EV_KEEPALIVE:
		/* Silence is broken by a probe: twice in the time the broker allows. */
		if (event->seq * 1000 * NS_PER_MS / 2 < link->conn.idle_ns)
			link->conn.idle_ns = event->seq * 1000 * NS_PER_MS / 2;
		break;
	case EV_ENDPOINT:
		endpoints_learn(link->broker, event->text, event->text_len, event->seq);
		break;
	case EV_LEAVING:
		link->conn.leaving = 1;
		endpoints_leaving(link);
		break;
	case EV_TLS:
		if (!link->broker->peers->config->tls.enabled)
			refuse(link, "the broker demands TLS, and the pool has no tls group");
		else if (link->conn.tls != NULL)
			fatal_text(link, "the broker wants TLS inside of TLS");
		else
			link->conn.wants_tls = 1;
		break;
	case EV_FATAL:
		fatal(link, event->fatal, event->code, event->text != NULL ? event->text : "", event->text_len);
		break;
	}
}

static void
expire_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct link *link = arg;

	/* L5: a suspect owns what it has not written. */
	if (entry->end <= out_written(&link->out) || link->state == LINK_SUSPECT)
		link->events->look_overdue(entry->lane, entry->slot, link, seq);
}

void
link_expire(struct link *link)
{
	link_each(link, expire_entry, link);
}

void
link_abandon(struct link *link)
{
	uint64_t written = out_written(&link->out);
	int keeps = link->apart && link->conn.ready_ns != 0 && link->state == LINK_FAILED;

	/* The broker may take messages again at any moment (a leader was elected): the first message of each
	 * lane goes alone, so that none overtakes one that is refused. */
	uint32_t lanes = link->bound_count < LINK_CAREFUL_MAX ? link->bound_count + 1 : LINK_CAREFUL_MAX;
	if (link->state == LINK_FAILED && link->failed_kind == FATAL_UNUSABLE && link->outstanding > 0 &&
	    link->careful < lanes)
		link->careful = lanes;

	while (link->aside.count > 0) {
		uint64_t seq;
		struct inflight *entry = (struct inflight *)aside_any(&link->aside, &seq);
		struct inflight was = take(link, seq, entry);
		link->events->given_back(was.lane, was.slot, link, seq, LINK_BACK_FAILED);
	}
	for (; link->base != link->next; link->base++) {
		struct inflight *entry = link_entry(link, link->base);
		if (entry->lane == NULL)
			continue;
		struct inflight was = take(link, link->base, entry);
		link->events->given_back(was.lane, was.slot, link, link->base,
		    was.start >= written ? LINK_BACK_UNSENT : LINK_BACK_FAILED);
	}
	link->base = link->next = 0;
	link->holder = NULL;
	/* Lanes that are set apart wait for the link: their verdict is due when it is READY again. */
	if (!keeps)
		link->events->unbind(link);
}
