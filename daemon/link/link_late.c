/*
 * Messages that a broker never answers, and each lane's share of the window.
 *
 * A message may stay unanswered for long while the broker answers others: a subject that a service listens to
 * and no stream stores, a queue without a quorum, a broker that drops what it denies. It holds up its own lane
 * alone:
 *
 *   the ring     its entries are kept from the oldest on. When the span from the oldest unanswered one to the
 *                newest fills half of the ring, the oldest are set aside (struct aside), and the ring goes on
 *   the window   an entry is late when one was answered that was sent LATE_ACKS times the smoothed time to an
 *                answer after it, LATE_MIN_MS at least. A late entry no longer counts against the window. It
 *                is still answered if an answer comes, and completed at its deadline
 *   the driver   keeps what is unanswered in its own way, for a span of messages (driver.h). At the end of that,
 *                the link drains, and connects again at once; the lanes send what was never answered anew
 *   the link     silence of the broker about one lane's messages, while it answers probes, is no reason to
 *                suspect the link (riders_pass_over)
 *   the message  is sent again after stall_timeout_ms, once on a connection, if the pool resends; an answer to
 *                either counts
 *   the lane     has at most a window of unanswered messages, LANE_LATE_MAX late ones, and, while the link has
 *                late ones and more than half of its window is in use, its share of the window
 *
 * The smoothed time is TCP's estimator (RFC 6298: an eighth of each new sample).
 */
#include "link.h"

#include "broker.h"
#include "daemon/flow/shard.h"
#include "shm/error.h"

#include <stdlib.h>

#define LATE_ACKS 8u
#define LATE_MIN_MS 100u
#define LATE_LOOK_MS 20u
#define WORN_WINDOWS 12u

static uint32_t
age_ms(uint32_t since_ms, uint32_t now_ms)
{
	return (now_ms - since_ms) & INFLIGHT_MS_MASK;
}

void
link_note_answer(struct link *link, const struct inflight *entry)
{
	uint32_t now_ms = (uint32_t)(link->shard->now_ns / NS_PER_MS) & INFLIGHT_MS_MASK;

	/* Late ones would raise the time by which others become late. */
	if (entry->late)
		return;
	link->conn.ack_ms8 += age_ms(entry->sent_ms, now_ms) - link->conn.ack_ms8 / 8;
	/* Newer than the newest so far: less than half of the circle ahead. */
	if (age_ms(link->conn.answered_ms, entry->sent_ms) <= INFLIGHT_MS_MASK / 2)
		link->conn.answered_ms = entry->sent_ms;
}

/* Moves the ring's oldest entry out of it. Returns 0, or a negative TG_E: it stays. */
static int
set_aside(struct link *link)
{
	struct inflight *entry = link_entry(link, link->base);
	struct inflight *copy = malloc(sizeof(*copy));

	if (copy == NULL)
		return -TG_ENOMEM;
	*copy = *entry;
	int rc = aside_put(&link->aside, link->base, (uintptr_t)copy);
	if (rc != 0) {
		free(copy);
		return rc;
	}
	entry->lane = NULL;
	while (link->base != link->next && link_entry(link, link->base)->lane == NULL)
		link->base++;
	return 0;
}

void
link_make_room(struct link *link)
{
	while (link->next - link->base > link->ring_mask / 2 && link_entry(link, link->base)->lane != NULL)
		if (set_aside(link) != 0)
			return;
}

void
link_become_late(struct link *link, uint64_t seq, struct inflight *entry)
{
	if (entry->late)
		return;
	entry->late = 1;
	link->late++;
	link->late_bytes += entry->bytes;
	link->shard->outstanding--;
	link->events->late(entry->lane, entry->slot, link, seq);
}

static uint32_t
late_after_ms(const struct link *link)
{
	const struct config_health *health = &link->broker->peers->config->health;
	uint32_t ms = link->conn.ack_ms8 / 8 * LATE_ACKS;

	if (ms < LATE_MIN_MS)
		ms = LATE_MIN_MS;
	return ms < health->ack_timeout_ms ? ms : health->ack_timeout_ms;
}

static void
look_aside(void *arg, uint64_t seq, uintptr_t value)
{
	struct link *link = arg;
	struct inflight *entry = (struct inflight *)value;
	uint32_t ahead = age_ms(entry->sent_ms, link->conn.answered_ms);

	if (ahead <= INFLIGHT_MS_MASK / 2 && ahead > late_after_ms(link))
		link_become_late(link, seq, entry);
}

void
link_pass_over(struct link *link)
{
	uint32_t after = late_after_ms(link);

	if (link->shard->now_ns - link->health.late_looked_ns < LATE_LOOK_MS * NS_PER_MS)
		return;
	link->health.late_looked_ns = link->shard->now_ns;
	aside_each(&link->aside, look_aside, link);
	/* Entries are in the order in which they were sent. */
	while (link->base != link->next) {
		struct inflight *entry = link_entry(link, link->base);
		uint32_t ahead = age_ms(entry->sent_ms, link->conn.answered_ms);
		if (entry->lane == NULL) {
			link->base++;
			continue;
		}
		if (ahead > INFLIGHT_MS_MASK / 2 || ahead <= after)
			break;
		link_become_late(link, link->base, entry);
		if (set_aside(link) != 0)
			break;
	}
}

static void
find_oldest(void *arg, uint64_t seq, uintptr_t value)
{
	uint64_t *oldest = arg;

	if (seq < *oldest)
		*oldest = seq;
}

static void
age_aside(void *arg, uint64_t seq, uintptr_t value)
{
	link_become_late(arg, seq, (struct inflight *)value);
}

void
link_wear(struct link *link)
{
	uint64_t oldest = link->next;

	if (link->conn.worn || link_waited_for(link) > link->window / 2 + link->aside.count)
		return;
	aside_each(&link->aside, find_oldest, &oldest);
	/* Less than any driver's span (DRIVER_SPAN, 16 windows); more than what a small window of the broker's does. */
	if (link->next - oldest < (uint64_t)WORN_WINDOWS * link->broker->peers->config->window_messages)
		return;
	aside_each(&link->aside, age_aside, link);
	link->conn.worn = 1;
	timer_set_earlier(&link->shard->timers, &link->timer, link->shard->now_ns);
}
