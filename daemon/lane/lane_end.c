/* The end of lanes: their client goes, or comes back; they finish what is committed, and their memory is freed. */
#include "lane.h"

#include "daemon/base/log.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

/* ---- memory and charges ---- */

void
lane_unmap(struct lane *lane)
{
	struct lane_geometry geo = lane->map.geo;

	lane_map_fini(&lane->map);
	lane->map.geo = geo;
	slots_fini(&lane->slots);
}

void
lane_refund_closed(struct lane *lane)
{
	account_refund(lane->account, ACCOUNT_LANES, 1);
	account_refund(lane->account, ACCOUNT_DESCRIPTORS, LANE_DESCRIPTORS);
	if (lane->counted_orphan)
		account_refund(lane->account, ACCOUNT_ORPHANS, 1);
	lane->counted_orphan = 0;
}

void
lane_refund_freed(struct lane *lane)
{
	lane_refund(lane, lane->charged_bytes);
	account_drop(lane->account);
}

static void
count_orphan(struct lane *lane)
{
	if (!lane->counted_orphan)
		account_charge(lane->account, ACCOUNT_ORPHANS, 1);
	lane->counted_orphan = 1;
}

/* ---- leaving ---- */

/* The records that the client left behind are all completed, or will not be by this daemon. */
static void
tell_end(const struct lane *lane)
{
	const struct lane_counts *now = &lane->count, *was = &lane->before;

	log_limited(&lane->shard->orphan_limit, LOG_LEVEL_INFO, "orphan_done",
	    "lane=%llu pool=%s pid=%d uid=%u delivered=%llu sent=%llu rejected=%llu expired=%llu unknown=%llu "
	    "cancelled=%llu left_bytes=%llu ms=%llu",
	    (unsigned long long)lane->id, lane->pool->config->name, (int)lane->owner.pid,
	    (unsigned)lane->owner.uid, (unsigned long long)(now->delivered - was->delivered),
	    (unsigned long long)(now->sent - was->sent), (unsigned long long)(now->rejected - was->rejected),
	    (unsigned long long)(now->expired - was->expired),
	    (unsigned long long)(now->unknown - was->unknown),
	    (unsigned long long)(now->cancelled - was->cancelled),
	    (unsigned long long)(lane->sq.tail_seen - lane->sq.head),
	    (unsigned long long)((lane->shard->now_ns - lane->orphaned_ns) / NS_PER_MS));
}

static void
leave_client(struct lane *lane)
{
	if (lane->client != NULL)
		lane->shard->lane_events.gone(lane->client, lane);
	lane->client = NULL;
	if (lane->refs == 0)
		TAILQ_INSERT_TAIL(&lane->shard->graveyard, lane, place_entry);
}

/* Out of every list but its client's, where it goes on counting; its memory stays while a link refers to it. */
static void
leave(struct lane *lane)
{
	if (lane->left)
		tell_end(lane);
	if (lane_is_empty(lane)) /* else the next daemon may have it */
		lane_forget(lane);
	lane_unbind(lane, 0);
	lane_set_place(lane, LANE_GONE);
	if (lane->dirty) {
		TAILQ_REMOVE(&lane->shard->dirty, lane, dirty_entry);
		lane->dirty = 0;
	}
	lane_doze(lane, NULL);
	TAILQ_REMOVE(&lane->pool->lanes, lane, pool_entry);
	lane->pool->lane_count--;
	lane->shard->lane_count--;
	lane->shard->count.lanes_closed++;
	lane_refund_closed(lane);
	close(lane->ring); /* which is mapped */
	if (lane->bell >= 0)
		close(lane->bell);
	lane->bell = -1;
}

/*
 * No more records will come: looks at the committed ones a last time. Its client has ended; the tail is frozen,
 * so that no other process with a copy of the memory can publish. Returns whether the lane still exists.
 */
static int
freeze(struct lane *lane)
{
	lane->sq.tail_word = &lane->map.client->sq_tail;
	if (sq_consumer_refresh(&lane->sq) < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return 0;
	}
	if (lane->place == LANE_ASLEEP || (lane->place == LANE_STALLED && !lane->unready))
		lane_set_place(lane, LANE_ACTIVE);
	if (lane->client != NULL)
		lane->shard->lane_events.gone(lane->client, lane);
	lane->client = NULL;
	lane->sq.tail_word = &lane->sq.tail_seen;
	return 1;
}

static void
become_orphan(struct lane *lane)
{
	lane->shard->count.lanes_orphaned++;
	count_orphan(lane);
	lane->cap_ns = lane->orphaned_ns + lane->shard->config->limits.orphan_ms * NS_PER_MS;
	if (!lane_is_empty(lane) && !lane->shard->stopping) {
		lane->left = 1;
		log_limited(&lane->shard->orphan_limit, LOG_LEVEL_INFO, "lane_orphaned",
		    "lane=%llu pool=%s pid=%d uid=%u left_bytes=%llu", (unsigned long long)lane->id,
		    lane->pool->config->name, (int)lane->owner.pid, (unsigned)lane->owner.uid,
		    (unsigned long long)(lane->sq.tail_seen - lane->sq.head));
	}
	lane_finish_orphan(lane);
}

void
lane_orphan(struct lane *lane)
{
	if (lane->place == LANE_GONE) {
		if (lane->client != NULL)
			leave_client(lane); /* it was quarantined */
		return;
	}
	if (lane->unready && lane->client != NULL) {
		/* It may have given up waiting for our answer, and has the old ones: it has its time to come back. */
		lane->unready_ns = lane->shard->now_ns;
		timer_set_earlier(
		    &lane->shard->timers, &lane->shard->late, lane->unready_ns + LANE_READY_MS * NS_PER_MS);
		lane_await(lane);
		return;
	}
	if (!freeze(lane))
		return;
	lane->orphaned_ns = lane->shard->now_ns;
	lane->before = lane->count;
	become_orphan(lane);
}

void
lane_await(struct lane *lane)
{
	if (!freeze(lane))
		return;
	lane->orphaned_ns = lane->shard->now_ns;
	count_orphan(lane);
	lane->awaited = 1;
	lane->left = !lane_is_empty(lane);
}

void
lane_forsake(struct lane *lane)
{
	if (!lane->awaited)
		return;
	lane->awaited = 0;
	lane_ready(lane);
	if (freeze(lane))
		become_orphan(lane);
}

void
lane_reclaim(struct lane *lane, struct client *client, int bell)
{
	if (lane->bell >= 0)
		close(lane->bell);
	lane->bell = bell;
	if (lane->counted_orphan)
		account_refund(lane->account, ACCOUNT_ORPHANS, 1);
	lane->counted_orphan = 0;
	lane->awaited = lane->left = 0;
	lane->unready_ns = lane->shard->now_ns;
	wake_ringer_init(&lane->ringer, &lane->map.client->waiting);
	lane->client = client;
	lane->orphaned_ns = 0;
	lane->cap_ns = UINT64_MAX;
	lane->sq.tail_word = &lane->map.client->sq_tail;
	if (lane->place == LANE_STALLED && !lane->unready)
		lane_set_place(lane, LANE_ACTIVE);
	lane_mark_dirty(lane); /* rings a client that slept during the change */
}

void
lane_finish_orphan(struct lane *lane)
{
	/* Completions that are not committed yet come first. */
	if (lane->place == LANE_GONE || lane->client != NULL || lane->awaited || !lane_is_empty(lane) ||
	    lane->dirty)
		return;
	leave(lane);
	leave_client(lane);
}

void
lane_quarantine(struct lane *lane, const char *why)
{
	if (lane->place == LANE_GONE)
		return;
	lane->shard->count.lanes_quarantined++;
	log_limited(&lane->shard->quarantine_limit, LOG_LEVEL_WARN, "lane_quarantined",
	    "lane=%llu pool=%s pid=%d why=%s sq_head=%llu cursor=%llu sq_tail=%llu sq_bytes=%llu",
	    (unsigned long long)lane->id, lane->pool->config->name,
	    lane->client != NULL ? (int)lane->owner.pid : 0, log_quote((char[128]){ 0 }, 128, why, strlen(why)),
	    (unsigned long long)lane->sq.head, (unsigned long long)lane->sq.cursor,
	    (unsigned long long)order_load_relaxed_64(lane->sq.tail_word),
	    (unsigned long long)lane->map.geo.sq_bytes);
	order_store_relaxed_32(&lane->map.daemon->closed, 1);
	if (lane->bell >= 0)
		lane_bell(lane);
	lane_forget(lane); /* the next daemon would think no better of it */
	leave(lane);
	if (lane->client == NULL)
		leave_client(lane);
}

/* Not before the memory is: a client could have one lane after the other closed while links refer to them. */
static void
forget(struct lane *lane)
{
	close(lane->answers);
	lane_refund_freed(lane);
	free(lane);
}

void
lane_free(struct lane *lane)
{
	if (lane->place != LANE_GONE) {
		leave(lane);
		leave_client(lane);
	}
	if (lane->refs == 0)
		TAILQ_REMOVE(&lane->shard->graveyard, lane, place_entry);
	lane_unmap(lane);
	forget(lane);
}

static void
run_unmap(struct world_job *job)
{
	struct lane *lane = (struct lane *)(void *)((char *)job - offsetof(struct lane, job));
	uint64_t began = world_now(lane->shard->world);

	lane_unmap(lane);
	lane_answers_punch(lane->answers, &lane->map.geo);
	lane->unmap_ns = world_now(lane->shard->world) - began;
}

static void
on_unmapped(struct world_job *job)
{
	struct lane *lane = (struct lane *)(void *)((char *)job - offsetof(struct lane, job));

	const struct lane_events *events = &lane->shard->lane_events;

	if (events->freed != NULL)
		events->freed(events->owner, 0, lane->unmap_ns);
	forget(lane);
}

void
lane_bury(struct lane *lane)
{
	struct shard *shard = lane->shard;

	TAILQ_REMOVE(&shard->graveyard, lane, place_entry);
	/* To punch what others have mapped takes as long as they like. */
	if (lane_memfd_bytes(&lane->map.geo) > LANE_INLINE_BYTES ||
	    slots_made(&lane->slots) > LANE_INLINE_SLOTS || lane_answers_are_shared(lane->answers)) {
		lane->job.queue = WORLD_JOB_FREE;
		lane->job.run = run_unmap;
		lane->job.done = on_unmapped;
		shard->world->ops->work(shard->world, &lane->job);
		return;
	}
	uint64_t began = world_now(shard->world);
	lane_unmap(lane);
	forget(lane);
	if (shard->lane_events.freed != NULL)
		shard->lane_events.freed(shard->lane_events.owner, began, 0);
}
