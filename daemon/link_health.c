/*
 * Whether a link lives.
 *
 * Two detectors decide that something is wrong, by what comes back and never by what was written:
 *   (a) ack progress: something is outstanding and nothing was answered for ack_timeout_ms
 *   (b) heartbeat:    nothing was read for idle_ms → probe; probe_misses probes, probe_timeout_ms
 *                     each, unanswered. With the defaults 1000 + 3 × 500 ms = 2.5 s
 * Either makes the link SUSPECT: it gets nothing new and its lanes go elsewhere. That is what
 * keeps the promise of a few seconds. The third decides what a suspect is:
 *   (c) the kernel: the peer's TCP is gone when the segment at the front has timed out
 *       GONE_RETRANSMITS times or GONE_PROBES window probes went unanswered. Then the link fails at
 *       once; a suspect whose TCP answers has stall_timeout_ms, and without limit while it has said
 *       that it is blocked.
 *
 * Slow is not dead: a suspect that comes back carries on with what it held.
 *
 * Reading only stores a time; the timer looks when something can be due, so that liveness costs
 * nothing for each message.
 */
#include "link.h"

#include "broker.h"
#include "log.h"
#include "pool.h"
#include "shard.h"

#include <stdio.h>

/* Measured on loopback: a peer that vanished shows 3 at 2 s and 4 at 4 s; one of 3 happens to a
 * live peer behind 10 % loss each way (0.19^3 for each lost segment), so one more is asked for. */
#define GONE_RETRANSMITS 4u
/* A closed window whose peer lives shows 0 or 1, back to 0 at each answer. */
#define GONE_PROBES 2u
#define SUSPECT_LOOK_MS 200u

/* Detectors (a) and (b). Returns when the next of them can be due. */
static uint64_t
look(struct link *link, const struct config_health *health)
{
	uint64_t now = link->shard->now_ns;
	uint64_t next = now + health->ack_timeout_ms * NS_PER_MS;

	if (link->outstanding > 0) {
		uint64_t due = link->last_progress_ns + health->ack_timeout_ms * NS_PER_MS;
		if (now >= due && link->state == LINK_READY) {
			snprintf(link->why, sizeof(link->why), "no answer to %u messages in %u ms", link->outstanding,
			    health->ack_timeout_ms);
			link_event(link, LINK_EV_SUSPECT);
			return 0;
		}
		if (link->state == LINK_READY)
			next = due;
	}
	if (link->blocked) {
		/* Round trips hang while it is blocked; its TCP is what is judged, which shows nothing
		 * unless there is something to acknowledge. */
		uint64_t last = link->probe_ns > link->last_read_ns ? link->probe_ns : link->last_read_ns;
		if (now >= last + link->idle_ns && out_unwritten(&link->out) == 0) {
			link_probe(link);
			last = now;
		}
		return last + link->idle_ns < next ? last + link->idle_ns : next;
	}
	/* Whatever is read while a probe is under way ends the silence that it was sent into. */
	if (link->probe_ns == 0 || (link->state == LINK_READY && link->last_read_ns > link->probe_ns)) {
		uint64_t due = link->last_read_ns + link->idle_ns;
		if (now >= due) {
			link_probe(link);
			due = now + health->probe_timeout_ms * NS_PER_MS;
		}
		return due < next ? due : next;
	}
	uint64_t due = link->probe_ns + health->probe_timeout_ms * NS_PER_MS;
	if (now >= due) {
		link->probe_misses++;
		if (link->probe_misses >= health->probe_misses && link->state == LINK_READY) {
			snprintf(link->why, sizeof(link->why), "nothing read for %llu ms, %u probes of %u ms unanswered",
			    (unsigned long long)((now - link->last_read_ns) / NS_PER_MS), link->probe_misses,
			    health->probe_timeout_ms);
			link_event(link, LINK_EV_SUSPECT);
			return 0;
		}
		if (link->state == LINK_READY)
			link_probe(link);
		else
			link->probe_ns = now; /* a suspect has enough of them in its buffer */
		due = now + health->probe_timeout_ms * NS_PER_MS;
	}
	return due < next ? due : next;
}

/* A suspect: gone, stalled for too long, or given more time. Returns 0 when it has failed. */
static int
judge(struct link *link, const struct config_health *health)
{
	struct world *world = link->shard->world;
	uint64_t since_ms = (link->shard->now_ns - link->suspect_ns) / NS_PER_MS;
	struct sock_info info;

	if (world->ops->info(link->sock, &info) == 0 &&
	    ((info.unacked > 0 && info.retransmits >= GONE_RETRANSMITS) || info.probes >= GONE_PROBES))
		link->gone_looks++;
	else
		link->gone_looks = 0;
	/* Twice: the last retransmission may be on its way this very moment, to a peer that is back. */
	if (link->gone_looks >= 2) {
		link_fail(link, FATAL_PROTOCOL,
		    "vanished: nothing read for %llu ms, %u retransmissions and %u window probes unanswered",
		    (unsigned long long)((link->shard->now_ns - link->last_read_ns) / NS_PER_MS), info.retransmits,
		    info.probes);
		return 0;
	}
	if (!link->blocked && since_ms >= health->stall_timeout_ms) {
		link_fail(link, FATAL_PROTOCOL, "stalled for %llu ms: %u messages unanswered, though its TCP answers",
		    (unsigned long long)since_ms, link->outstanding);
		return 0;
	}
	return 1;
}

/* What made it suspect is over. */
static int
has_recovered(const struct link *link)
{
	return !link->blocked && link->last_read_ns > link->suspect_ns && link->probe_ns == 0 &&
	    (link->outstanding == 0 || link->last_progress_ns > link->suspect_ns);
}

void
link_health_check(struct link *link)
{
	const struct config_health *health = &link->broker->pool->config->health;
	uint64_t now = link->shard->now_ns;

	if (link->state == LINK_READY && link->ready_ns != 0 &&
	    now - link->ready_ns >= link->broker->pool->config->breaker.slow_start_ms * NS_PER_MS)
		broker_link_proven(link->broker, link);
	link_expire(link);
	uint64_t next = look(link, health);
	if (link->state == LINK_SUSPECT && now > link->suspect_ns) {
		if (has_recovered(link)) {
			link_event(link, LINK_EV_RECOVERED);
			return;
		}
		if (!judge(link, health))
			return;
		uint64_t soon = now + SUSPECT_LOOK_MS * NS_PER_MS;
		if (next == 0 || next > soon)
			next = soon;
	}
	if (link->state == LINK_READY || link->state == LINK_SUSPECT)
		timer_set_earlier(&link->shard->timers, &link->timer, next <= now ? now + NS_PER_MS : next);
}

void
link_health_read(struct link *link)
{
	link->last_read_ns = link->shard->now_ns;
	link->probe_misses = 0;
}
