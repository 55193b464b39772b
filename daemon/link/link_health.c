/*
 * Whether a link lives.
 *
 * Three detectors decide that something is wrong, by what comes back and never by what was written:
 *   (a) ack progress: something is outstanding and nothing was answered for ack_timeout_ms
 *   (b) heartbeat:    nothing was read for idle_ms → probe; probe_misses probes, probe_timeout_ms
 *                     each, unanswered. With the defaults 1000 + 3 × 500 ms = 2.5 s, and up to half
 *                     a probe's time more when an answer can come in it (hope_ms)
 *   (d) slowness:     messages in flight are not answered in half of ack_timeout_ms, and at this speed
 *                     those in flight now take longer than stall_timeout_ms, while another broker
 *                     has room
 * Each makes the link SUSPECT: it gets nothing new and its lanes go elsewhere. That is what
 * keeps the promise of a few seconds. The last decides what a suspect is:
 *   (c) the kernel: the peer's TCP is gone when the segment at the front has timed out
 *       GONE_RETRANSMITS times or GONE_PROBES window probes went unanswered. Then the link fails at
 *       once; a suspect whose TCP answers has stall_timeout_ms from its last answer on, and no limit
 *       while it has said that it is blocked; that it no longer is counts as an answer.
 *
 * Slow is not dead: a suspect that comes back carries on with what it held.
 *
 * Reading only stores a time; the timer looks when something can be due, so that liveness costs
 * nothing for each message.
 */
#include "link.h"

#include "broker.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"

#include <stdio.h>

/* A peer that vanished shows 4 after 2.4 s (world_uv.c), or 3 s on older kernels. One of 3 happens to a
 * live peer behind 10 % loss each way (0.19^3 for each lost segment), so one more is asked for. */
#define GONE_RETRANSMITS 4u
/* A peer with its receive buffer full drops what is sent and acknowledges again what it had: that
 * answers the retransmission at once, though it is counted as one more. */
#define GONE_UNANSWERED_MS 1000u
/* A closed window whose peer lives shows 0 or 1, back to 0 at each answer. */
#define GONE_PROBES 2u
#define SUSPECT_LOOK_MS 200u
/* While something is in flight; (d) is late by this at most. */
#define SLOW_LOOK_MS 250u

/*
 * Called when a probe was missed: whether the link may have grace. When a path was down and is up again,
 * each end's TCP comes back with its own next retransmission, the broker's maybe at twice the time the
 * path was down: after 1.5 s, at 3.2 s. That ours has been acknowledged shows that it is up; a stopped broker's TCP never
 * ceased to acknowledge, and gets no grace.
 */
static int
has_come_back(struct link *link)
{
	struct sock_info info;

	if (link->shard->world->ops->info(link->conn.sock, &info) != 0)
		return 0;
	if (info.unacked > 0 && info.retransmits > 0) {
		link->health.cut_off = 1;
		return 0;
	}
	return link->health.cut_off;
}

static uint64_t
slow_after_ns(const struct config_health *health)
{
	return health->ack_timeout_ms * NS_PER_MS / 2;
}

void
link_health_mark(struct link *link)
{
	link->health.slow_mark = link->next;
	link->health.slow_base = link->base;
	link->health.slow_ns = link->shard->now_ns;
}

/* A silence so long is not slowness. */
static uint64_t
silence_ns(const struct link *link, const struct config_health *health)
{
	return link->conn.idle_ns + health->probe_timeout_ms * NS_PER_MS / 2;
}

/* Everything that was in flight at the mark has been answered. */
static int
has_passed_mark(const struct link *link)
{
	return link_waited_for(link) == 0 || link->base >= link->health.slow_mark;
}

/*
 * Detector (d). A broker that answers one message a second is never silent; its link stays READY and
 * the lanes bound to it wait for it. Silence is left to (a) and (b), and so is a path on which nothing
 * passes at the moment: TCP sends its lost segments again when it is back.
 */
static int
is_slow(struct link *link, const struct config_health *health)
{
	uint64_t now = link->shard->now_ns;
	uint64_t elapsed = now - link->health.slow_ns;
	struct sock_info info;

	if (has_passed_mark(link)) {
		link_health_mark(link);
		link->health.excused = 0;
		return 0;
	}
	if (elapsed < slow_after_ns(health) || now - link->health.last_progress_ns >= silence_ns(link, health))
		return 0;
	uint64_t answered = link->base - link->health.slow_base;
	if (elapsed / NS_PER_MS * link->outstanding <= answered * health->stall_timeout_ms) {
		link_health_mark(link);
		link->health.excused = 0;
		return 0;
	}
	if (!peers_have_room_beside(link->broker) ||
	    (link->shard->world->ops->info(link->conn.sock, &info) == 0 && info.unacked > 0 &&
		info.retransmits > 0))
		return 0;
	snprintf(link->why, sizeof(link->why), "slow: %llu messages answered in %llu ms, %u are waited for",
	    (unsigned long long)answered, (unsigned long long)(elapsed / NS_PER_MS), link->outstanding);
	return 1;
}

/*
 * The last probe is late_ms overdue: for how many more is an answer worth waiting for?
 *
 * A silence as long as all the probes is still allowed, and a broker that was asked at its beginning and comes
 * back at its end needs a moment to answer: a quarter of a probe's time and a round trip. A path that was cut
 * comes back with our next retransmission and not before. So there is no hope left when a retransmission went
 * out half a probe's time after such a silence and was not answered in that moment, or when the next one is not
 * due within half a probe's time, which is the longest wait. With nothing in flight a suspicion costs no lane
 * anything.
 */
static uint64_t
hope_ms(struct link *link, const struct config_health *health, uint64_t late_ms)
{
	uint64_t half = health->probe_timeout_ms / 2, most = half, reply = half / 2;
	uint64_t forgiven = (uint64_t)health->probe_misses * health->probe_timeout_ms;
	uint64_t asked = link->outstanding > 0
			     ? (link->shard->now_ns - link->health.last_progress_ns) / NS_PER_MS
			     : forgiven;
	struct sock_info info;
	uint64_t hope;

	if (late_ms >= most)
		return 0;
	most -= late_ms;
	if (link->shard->world->ops->info(link->conn.sock, &info) != 0)
		return most;
	reply += info.rtt_us / 1000;
	if (info.unacked == 0 || info.retransmits == 0)
		hope = asked < forgiven + reply ? forgiven + reply - asked : 0;
	else if (link->outstanding == 0 || asked >= info.last_sent_ms + forgiven + half ||
		 info.rto_ms > info.last_sent_ms + most)
		hope = info.last_sent_ms < reply ? reply - info.last_sent_ms : 0;
	else
		hope = most;
	return hope < most ? hope : most;
}

/* Detectors (a), (b) and (d). Returns when the next of them can be due. */
static uint64_t
look(struct link *link, const struct config_health *health)
{
	uint64_t now = link->shard->now_ns;
	uint64_t next = now + health->ack_timeout_ms * NS_PER_MS;

	if (link_waited_for(link) > 0) {
		uint64_t due = link->health.last_progress_ns + health->ack_timeout_ms * NS_PER_MS;
		if (due < link->health.grace_ns)
			due = link->health.grace_ns;
		if (now >= due && link->state == LINK_READY && !link->events->pass_over(link)) {
			snprintf(link->why, sizeof(link->why), "no answer to %u messages in %u ms",
			    link->outstanding, health->ack_timeout_ms);
			link_event(link, LINK_EV_SUSPECT);
			return 0;
		}
		if (link->state == LINK_READY && link_waited_for(link) > 0) {
			if (is_slow(link, health)) {
				link_event(link, LINK_EV_SUSPECT);
				return 0;
			}
			uint64_t soon = now + SLOW_LOOK_MS * NS_PER_MS;
			uint64_t slow = link->health.slow_ns + slow_after_ns(health);
			next = slow > now && slow < soon ? slow : soon;
			if (due < next)
				next = due;
		}
	}
	if (link->conn.blocked) {
		/* Round trips hang while it is blocked; its TCP is what is judged, which shows nothing
		 * unless there is something to acknowledge. */
		uint64_t last = link->health.probe_ns > link->health.last_read_ns ? link->health.probe_ns
										  : link->health.last_read_ns;
		if (now >= last + link->conn.idle_ns && out_unwritten(&link->out) == 0) {
			link_probe(link);
			last = now;
		}
		return last + link->conn.idle_ns < next ? last + link->conn.idle_ns : next;
	}
	/* Whatever is read while a probe is under way ends the silence that it was sent into. */
	if (link->health.probe_ns == 0 ||
	    (link->state == LINK_READY && link->health.last_read_ns > link->health.probe_ns)) {
		uint64_t due = link->health.last_read_ns + link->conn.idle_ns;
		if (now >= due) {
			link_probe(link);
			due = now + health->probe_timeout_ms * NS_PER_MS;
		}
		return due < next ? due : next;
	}
	uint64_t due = link->health.probe_ns + health->probe_timeout_ms * NS_PER_MS;
	if (now >= due && link->health.probe_misses + 1 == health->probe_misses)
		due = now + hope_ms(link, health, (now - due) / NS_PER_MS) * NS_PER_MS;
	if (now >= due) {
		link->health.probe_misses++;
		if (link->state == LINK_READY && has_come_back(link)) {
			link->health.cut_off = 0;
			link->health.grace_ns =
			    now + (uint64_t)health->probe_misses * health->probe_timeout_ms * NS_PER_MS;
		}
		if (link->health.probe_misses >= health->probe_misses && link->state == LINK_READY &&
		    now >= link->health.grace_ns) {
			snprintf(link->why, sizeof(link->why),
			    "nothing read for %llu ms, %u probes of %u ms unanswered",
			    (unsigned long long)((now - link->health.last_read_ns) / NS_PER_MS),
			    link->health.probe_misses, health->probe_timeout_ms);
			link_event(link, LINK_EV_SUSPECT);
			return 0;
		}
		if (link->state == LINK_READY)
			link_probe(link);
		else
			link->health.probe_ns = now; /* a suspect has enough of them in its buffer */
		due = now + health->probe_timeout_ms * NS_PER_MS;
	}
	return due < next ? due : next;
}

/* A suspect: gone, stalled for too long, or given more time. Returns 0 when it has failed. */
static int
judge(struct link *link, const struct config_health *health)
{
	struct world *world = link->shard->world;
	uint64_t since_ns = link->health.last_progress_ns > link->health.suspect_ns
				? link->health.last_progress_ns
				: link->health.suspect_ns;
	struct sock_info info;

	if (since_ns < link->health.unblocked_ns)
		since_ns = link->health.unblocked_ns;
	uint64_t since_ms = (link->shard->now_ns - since_ns) / NS_PER_MS;

	/* A broker that has just sent something is alive, however badly our own segments get through. */
	if (link->shard->now_ns - link->health.last_read_ns >= GONE_UNANSWERED_MS * NS_PER_MS &&
	    world->ops->info(link->conn.sock, &info) == 0 &&
	    ((info.unacked > 0 && info.retransmits >= GONE_RETRANSMITS &&
		 info.last_ack_ms >= info.last_sent_ms + GONE_UNANSWERED_MS) ||
		info.probes >= GONE_PROBES))
		link->health.gone_looks++;
	else
		link->health.gone_looks = 0;
	/* Twice: the last retransmission may be on its way this very moment, to a peer that is back. */
	if (link->health.gone_looks >= 2) {
		link_fail(link, FATAL_PROTOCOL,
		    "vanished: nothing read for %llu ms, %u retransmissions and %u window probes unanswered",
		    (unsigned long long)((link->shard->now_ns - link->health.last_read_ns) / NS_PER_MS),
		    info.retransmits, info.probes);
		return 0;
	}
	if (!link->conn.blocked && since_ms >= health->stall_timeout_ms) {
		link_fail(link, FATAL_PROTOCOL,
		    "stalled for %llu ms: %u messages unanswered, though its TCP answers",
		    (unsigned long long)since_ms, link->outstanding);
		return 0;
	}
	return 1;
}

/* The reason for the suspicion is over. */
static int
has_recovered(const struct link *link)
{
	return !link->conn.blocked && link->health.last_read_ns > link->health.suspect_ns &&
	       link->health.probe_ns == 0 && has_passed_mark(link) &&
	       (link->outstanding == 0 || link->health.last_progress_ns > link->health.suspect_ns);
}

void
link_health_begin(struct link *link)
{
	link_health_mark(link);
	link->health.excused = 0;
	link->health.cut_off = 0;
	link->health.grace_ns = 0;
}

void
link_health_check(struct link *link)
{
	const struct config_health *health = &link->broker->peers->config->health;
	uint64_t now = link->shard->now_ns;

	if (link->apart && TAILQ_EMPTY(&link->bound) && link->outstanding == 0 &&
	    now - link->health.last_progress_ns >= LINK_APART_IDLE_MS * NS_PER_MS) {
		link_drain(link);
		return;
	}
	if (!link->apart && link->state == LINK_READY && link->conn.ready_ns != 0 &&
	    now - link->conn.ready_ns >= link->broker->peers->config->breaker.slow_start_ms * NS_PER_MS)
		link->events->proven(link->broker, link);
	link_expire(link);
	link_pass_over(link);
	link->events->retry_late(link);
	if (link->apart)
		link->events->turn(link, 0); /* what its holder waits for may be late by now */
	if ((link->conn.worn || link->aside.count > ASIDE_MAX / 2) && link->state == LINK_READY) {
		link->conn.worn = 1;
		snprintf(link->why, sizeof(link->why),
		    "%u messages were never answered: a new connection begins without them", link->late);
		link_drain(link);
		return;
	}
	uint64_t next = look(link, health);
	if (link->state == LINK_SUSPECT && now > link->health.suspect_ns) {
		if (has_recovered(link)) {
			link_event(link, LINK_EV_RECOVERED);
			return;
		}
		if (!judge(link, health))
			return;
		/* Also for lanes with nothing new: unanswered messages fill their rings. */
		if (link->broker->peers->config->on_failure == ON_FAILURE_RESEND &&
		    peers_have_other(link->broker))
			link->events->let_go(link);
		uint64_t soon = now + SUSPECT_LOOK_MS * NS_PER_MS;
		if (next == 0 || next > soon)
			next = soon;
	} else if (link->state == LINK_SUSPECT) {
		next = now; /* judged in the next turn */
	}
	if (link->state == LINK_READY || link->state == LINK_SUSPECT)
		timer_set_earlier(&link->shard->timers, &link->timer, next <= now ? now + NS_PER_MS : next);
}

void
link_health_read(struct link *link)
{
	const struct config_health *health = &link->broker->peers->config->health;
	uint64_t now = link->shard->now_ns;

	/* Detector (d): no answer could come in a silence that is over. Once: a broker that falls silent again
	 * before it has answered those messages is slow. */
	if (!link->health.excused && link->state == LINK_READY &&
	    (link->health.cut_off || now < link->health.grace_ns ||
		now - link->health.last_read_ns >= silence_ns(link, health))) {
		link_health_mark(link);
		link->health.excused = 1;
	}
	link->health.last_read_ns = now;
	link->health.probe_misses = 0;
	link->health.cut_off = 0;
}
