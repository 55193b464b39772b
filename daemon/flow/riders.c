#include "riders.h"

#include "blame.h"
#include "daemon/lane/lane.h"
#include "daemon/link/broker.h"
#include "pool.h"
#include "pump.h"
#include "shard.h"

/* ---- turns ---- */

void
riders_serve(struct link *link)
{
	if (link->apart) {
		if (link_is_writable(link))
			blame_serve(link);
		return;
	}
	uint32_t turns = pool_of(link->broker)->waiting; /* no lane has more than one */
	struct lane *lane;

	while (turns-- > 0 && link_is_writable(link) && (lane = TAILQ_FIRST(&link->waiters)) != NULL) {
		lane_set_place(lane, LANE_ACTIVE);
		lane_pump(lane, SHARD_QUANTUM);
	}
}

void
riders_release(struct link *link)
{
	struct lane *lane;

	while ((lane = TAILQ_FIRST(&link->waiters)) != NULL)
		lane_set_place(lane, LANE_ACTIVE);
}

void
riders_unbind(struct link *link)
{
	while (!TAILQ_EMPTY(&link->bound))
		lane_unbind(TAILQ_FIRST(&link->bound), 0);
}

static void
let_go_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	lane_reroute(entry->lane, entry->slot, arg, seq);
}

void
riders_let_go(struct link *link)
{
	link_each(link, let_go_entry, link);
	riders_unbind(link);
}

/* ---- one lane's silence ---- */

static uint32_t
age_ms(uint32_t since_ms, uint32_t now_ms)
{
	return (now_ms - since_ms) & INFLIGHT_MS_MASK;
}

struct one_lane {
	struct link *link;
	struct lane *lane;
	int several;
	int again;     /* one of its messages was sent more than once already */
	int unwritten; /* L5: what is not written yet cannot be sent elsewhere, and must not be overtaken */
};

static void
find_lane(void *arg, uint64_t seq, struct inflight *entry)
{
	struct one_lane *one = arg;

	if (entry->late)
		return;
	if (one->lane == NULL)
		one->lane = entry->lane;
	one->several |= one->lane != entry->lane;
	one->unwritten |= entry->end > out_written(&one->link->out);
}

static void
pass_over_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct one_lane *one = arg;
	const struct slot *slot = lane_carried(entry->lane, entry->slot, one->link, seq);

	link_become_late(one->link, seq, entry);
	one->again |= entry->lane == one->lane && slot != NULL && slot->attempts > 1;
}

static void
reroute_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	const struct one_lane *one = arg;

	if (entry->lane == one->lane)
		lane_reroute(entry->lane, entry->slot, one->link, seq);
}

/* Whether the lane's messages may go to another broker: all of them, in order, or none. */
static int
may_reroute(const struct one_lane *one)
{
	const struct broker *broker = one->link->broker;

	return !one->again && broker->peers->config->on_failure == ON_FAILURE_RESEND &&
	       peers_have_other(broker);
}

int
riders_pass_over(struct link *link)
{
	struct one_lane one = { .link = link };

	if (link->health.alive_ns <= link->health.last_progress_ns)
		return 0;
	link_each(link, find_lane, &one);
	if (one.lane == NULL || one.several || one.unwritten ||
	    (link->health.mute_lane != 0 && link->health.mute_lane != one.lane->id))
		return 0;
	link->health.mute_lane = one.lane->id;
	link_each(link, pass_over_entry, &one);
	/* Once: the next link may be of the same broker, and what no broker answers would be sent again and again. */
	if (may_reroute(&one))
		link_each(link, reroute_entry, &one);
	if (one.lane->link == link && one.lane->inflight == 0)
		lane_unbind(one.lane, 0);
	if (link->apart)
		blame_turn(link, 0);
	link_update_writable(link);
	return 1;
}

static void
retry_entry(void *arg, uint64_t seq, struct inflight *entry)
{
	struct link *link = arg;
	uint32_t now_ms = (uint32_t)(link->shard->now_ns / NS_PER_MS) & INFLIGHT_MS_MASK;

	if (!entry->late ||
	    age_ms(entry->sent_ms, now_ms) < link->broker->peers->config->health.stall_timeout_ms ||
	    entry->end > out_written(&link->out))
		return;
	struct slot *slot = lane_carried(entry->lane, entry->slot, link, seq);
	if (slot == NULL || slot->retried)
		return;
	slot->retried = 1;
	lane_reroute(entry->lane, entry->slot, link, seq);
}

void
riders_retry_late(struct link *link)
{
	if (link->late > 0 && link->broker->peers->config->on_failure == ON_FAILURE_RESEND)
		link_each(link, retry_entry, link);
}

/* ---- shares ---- */

int
rider_has_share(const struct link *link, const struct lane *lane)
{
	if (lane->late >= LANE_LATE_MAX || lane->inflight >= link->window_wide)
		return 0;
	/* Without late messages answers come as fast as the broker works: there is nothing to keep for others. */
	if (link->late == 0 || link_waited_for(link) < link->window / 2 || lane_waited_for(lane) == 0)
		return 1;
	return (uint64_t)lane_waited_for(lane) * link->bound_count < link->window;
}
