/* Lanes: making them, and where they are. lane_admit.c takes records in, lane_answer.c completes them. */
#include "lane.h"

#include "daemon/front/client.h"
#include "daemon/base/log.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"

#include <stddef.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

const char *
lane_place_word(enum lane_place place)
{
	static const char *const words[] = {
		[LANE_ASLEEP] = "asleep",
		[LANE_ACTIVE] = "active",
		[LANE_WAIT_LINK] = "waits-for-link",
		[LANE_WAIT_POOL] = "waits-for-pool",
		[LANE_STALLED] = "stalled",
		[LANE_GONE] = "gone",
	};
	return words[place];
}

int
lane_make(struct lane **out, const struct lane_header *header, struct pool *pool, struct client *client,
    const struct lane_memory *memory)
{
	struct lane *lane = calloc(1, sizeof(*lane));
	struct shard *shard = pool->shard;

	if (lane == NULL)
		return -TG_ENOMEM;
	lane->shard = shard;
	lane->pool = pool;
	lane->client = client;
	lane->id = header->lane_id;
	lane->nonce = header->nonce;
	memcpy(lane->secret, header->secret, sizeof(lane->secret));
	lane->map.geo = memory->geo;
	lane->ring = memory->ring;
	lane->answers = memory->answers;
	lane->old_answers = memory->old_answers;
	lane->handed_back = memory->answers >= 0 || memory->old_answers >= 0;
	lane->unready = memory->old_answers >= 0;
	lane->bell = memory->bell;
	lane->earliest_ns = UINT64_MAX;
	lane->cap_ns = UINT64_MAX;
	lane->floor = UINT64_MAX;
	lane->place = LANE_GONE;
	TAILQ_INSERT_TAIL(&shard->making, lane, place_entry);
	shard->lane_count++;
	lane->owner.uid = client != NULL ? client->uid : geteuid(); /* until lane_own() says */
	lane->account = account_hold(&shard->accounts, lane->owner.uid);
	account_charge(lane->account, ACCOUNT_LANES, 1);
	account_charge(lane->account, ACCOUNT_DESCRIPTORS, LANE_DESCRIPTORS);
	lane_charge(lane, lane_cost_bytes(&memory->geo));
	*out = lane;
	return 0;
}

uint64_t
lane_cost_bytes(const struct lane_geometry *geo)
{
	return lane_memfd_bytes(geo) + (uint64_t)geo->cq_entries * sizeof(struct slot);
}

void
lane_charge(struct lane *lane, uint64_t bytes)
{
	lane->charged_bytes += bytes;
	account_charge(lane->account, ACCOUNT_MEMORY, bytes);
}

void
lane_refund(struct lane *lane, uint64_t bytes)
{
	lane->charged_bytes -= bytes;
	account_refund(lane->account, ACCOUNT_MEMORY, bytes);
}

static void
made(struct lane *lane)
{
	TAILQ_REMOVE(&lane->shard->making, lane, place_entry);
}

void
lane_unmake(struct lane *lane)
{
	made(lane);
	lane->shard->lane_count--;
	lane_refund_closed(lane);
	lane_unmap(lane);
	if (lane->made_answers)
		close(lane->answers);
	lane_refund_freed(lane);
	free(lane);
}

/* Maps the answers. Without a descriptor of them it makes new ones, with the contents of the old ones. */
static int
map_answers(struct lane *lane, const struct lane_header *header, int populate)
{
	int answers = lane->answers >= 0 ? lane->answers : lane_answers_create(&lane->map.geo, header);

	if (answers < 0)
		return answers;
	int rc = lane_map_answers(&lane->map, answers, LANE_WRITE, populate);
	if (rc == 0 && lane->old_answers >= 0)
		rc = lane_answers_copy(&lane->map, lane->old_answers);
	if (rc != 0 && lane->answers < 0)
		close(answers);
	if (rc != 0)
		return rc;
	lane->made_answers = lane->answers < 0;
	lane->answers = answers;
	return 0;
}

int
lane_map_in(struct lane *lane, const struct lane_header *header)
{
	struct lane_geometry geo = lane->map.geo;
	int populate = geo.sq_bytes <= LANE_SQ_DEFAULT;
	int rc = lane_ring_check(lane->ring, &geo);

	if (rc == 0)
		rc = lane_map_ring(&lane->map, lane->ring, &geo, LANE_READ, populate);
	if (rc == 0)
		rc = map_answers(lane, header, populate);
	if (rc != 0) {
		int error = errno;
		lane_map_fini(&lane->map);
		lane->map.geo = geo;
		errno = error;
	}
	return rc;
}

/* Puts it to work, its cursors set. */
static void
start(struct lane *lane)
{
	struct pool *pool = lane->pool;
	struct shard *shard = lane->shard;

	made(lane);
	wake_sleeper_init(&lane->doze, &lane->map.daemon->asleep);
	wake_ringer_init(&lane->ringer, &lane->map.client->waiting);
	lane->shown_writable = !pool->writable_shown; /* whatever the word says, it is stored */
	lane_show_writable(lane, pool->writable_shown);
	TAILQ_INSERT_TAIL(&pool->lanes, lane, pool_entry);
	pool->lane_count++;
	shard->count.lanes_opened++;
	lane_set_place(lane, LANE_ACTIVE);
}

void
lane_begin(struct lane *lane)
{
	sq_consumer_init(&lane->sq, &lane->map, 0);
	cq_producer_init(&lane->cq, &lane->map, 0, 0);
	start(lane);
}

/* At most once means that what may have been sent is not sent again. */
static void
report_maybe_sent(struct lane *lane)
{
	for (uint64_t number = lane->slot_head; number != lane->slot_tail; number++) {
		struct slot *slot = lane_slot(lane, number);
		if (slot->state == SLOT_PENDING && slot->maybe_sent)
			lane_give_up(lane, slot,
			    "may have been sent by the daemon before this one; the pool reports such messages");
	}
}

/* Releases records that were finished and not released, and reports those that may not be sent again. */
static void
serve_again(struct lane *lane)
{
	lane_mark_dirty(lane);
	if (lane->pool->config->on_failure == ON_FAILURE_REPORT)
		report_maybe_sent(lane);
}

void
lane_resume(struct lane *lane)
{
	lane->pool->count.accepted += lane->count.records;
	lane->pool->count.bytes += lane->count.bytes;
	start(lane);
	if (!lane->unready) {
		serve_again(lane);
		return;
	}
	lane->unready_ns = lane->shard->now_ns;
	lane_set_place(lane, LANE_STALLED);
	timer_set_earlier(
	    &lane->shard->timers, &lane->shard->late, lane->shard->now_ns + LANE_READY_MS * NS_PER_MS);
}

void
lane_ready(struct lane *lane)
{
	if (!lane->unready)
		return;
	lane->unready = 0;
	lane_set_place(lane, LANE_ACTIVE);
	serve_again(lane);
}

int
lane_is_late(const struct lane *lane)
{
	return lane->unready && lane->shard->now_ns - lane->unready_ns >= LANE_READY_MS * NS_PER_MS;
}

int
lane_new(struct lane **out, const struct lane_header *header, struct pool *pool, struct client *client,
    const struct lane_memory *memory)
{
	struct lane *lane;
	int rc = lane_make(&lane, header, pool, client, memory);

	if (rc != 0)
		return rc;
	if ((rc = lane_map_in(lane, header)) != 0) {
		lane_unmake(lane);
		return rc;
	}
	lane_begin(lane);
	*out = lane;
	return 0;
}

/* A lane waits: the pool's tick looks at it. */
static void
see_to_deadlines(struct lane *lane)
{
	timer_set_earlier(
	    &lane->shard->timers, &lane->pool->tick, lane->shard->now_ns + POOL_TICK_MS * NS_PER_MS);
}

void
lane_set_place(struct lane *lane, enum lane_place place)
{
	struct shard *shard = lane->shard;

	switch (lane->place) {
	case LANE_ASLEEP:
		TAILQ_REMOVE(&lane->client->asleep, lane, place_entry);
		lane->client->asleep_count--;
		shard->lane_events.woken(lane->client);
		wake_rise(&lane->doze);
		break;
	case LANE_ACTIVE:
		TAILQ_REMOVE(&shard->active, lane, place_entry);
		shard->active_count--;
		break;
	case LANE_WAIT_LINK:
		TAILQ_REMOVE(&lane->link->waiters, lane, place_entry);
		expiry_remove(&shard->expiry, lane);
		lane->pool->waiting--;
		lane->over_share = 0;
		break;
	case LANE_WAIT_POOL:
		TAILQ_REMOVE(&lane->pool->waiters, lane, place_entry);
		expiry_remove(&shard->expiry, lane);
		lane->pool->waiting--;
		break;
	case LANE_STALLED:
	case LANE_GONE:
		break;
	}
	lane->place = place;
	switch (place) {
	case LANE_ASLEEP:
		TAILQ_INSERT_TAIL(&lane->client->asleep, lane, place_entry);
		lane->client->asleep_count++;
		wake_doze(&lane->doze);
		break;
	case LANE_ACTIVE:
		lane->active_ns = shard->now_ns;
		TAILQ_INSERT_TAIL(&shard->active, lane, place_entry);
		shard->active_count++;
		break;
	case LANE_WAIT_LINK:
		TAILQ_INSERT_TAIL(&lane->link->waiters, lane, place_entry);
		expiry_add(&shard->expiry, lane);
		lane->pool->waiting++;
		see_to_deadlines(lane);
		break;
	case LANE_WAIT_POOL:
		TAILQ_INSERT_TAIL(&lane->pool->waiters, lane, place_entry);
		expiry_add(&shard->expiry, lane);
		lane->pool->waiting++;
		see_to_deadlines(lane);
		break;
	case LANE_STALLED:
	case LANE_GONE:
		break;
	}
}

/* ---- asleep and awake ---- */

int
lane_look(struct lane *lane)
{
	int rc = sq_consumer_refresh(&lane->sq);

	if (rc < 0) {
		lane_quarantine(lane, "sq_tail is out of range");
		return 0;
	}
	if (rc > 0)
		lane_set_place(lane, LANE_ACTIVE);
	return rc;
}

int
lane_hear(struct lane *lane)
{
	int rc = lane_look(lane);

	/* Rung late, for what it has had already: that was the one ring of this sleep, so another begins (wake.h). */
	if (rc == 0 && lane->place == LANE_ASLEEP) {
		wake_rise(&lane->doze);
		wake_doze(&lane->doze);
		lane_doze(lane, &lane->shard->dozed);
	}
	return rc;
}

void
lane_doze(struct lane *lane, struct lane_list *list)
{
	if (lane->dozing != NULL)
		TAILQ_REMOVE(lane->dozing, lane, dozed_entry);
	lane->dozing = list;
	if (list != NULL)
		TAILQ_INSERT_TAIL(list, lane, dozed_entry);
}

void
lane_sleep(struct lane *lane)
{
	lane_slots_shrink(lane);
	if (lane->link != NULL && lane->inflight == 0)
		lane_unbind(lane, 0); /* balanced anew when it wakes */
	lane_set_place(lane, LANE_ASLEEP);
	lane_doze(lane, &lane->shard->dozed);
}

void
lane_rest(struct lane *lane)
{
	lane_set_place(lane, LANE_STALLED);
}

int
lane_is_empty(const struct lane *lane)
{
	return lane->unfinished == 0 && lane->sq.cursor == lane->sq.tail_seen;
}

/* Another user has it from now on. */
static void
charge_to(struct lane *lane, uid_t uid)
{
	struct account *from = lane->account;

	if (from == NULL || from->uid == uid)
		return;
	struct account *to = account_hold(from->accounts, uid);
	int waits = lane->place == LANE_WAIT_LINK || lane->place == LANE_WAIT_POOL;
	if (waits)
		expiry_remove(&lane->shard->expiry, lane);
	account_refund(from, ACCOUNT_LANES, 1);
	account_charge(to, ACCOUNT_LANES, 1);
	account_refund(from, ACCOUNT_DESCRIPTORS, LANE_DESCRIPTORS);
	account_charge(to, ACCOUNT_DESCRIPTORS, LANE_DESCRIPTORS);
	account_refund(from, ACCOUNT_ORPHANS, (uint64_t)lane->counted_orphan);
	account_charge(to, ACCOUNT_ORPHANS, (uint64_t)lane->counted_orphan);
	account_refund(from, ACCOUNT_MEMORY, lane->charged_bytes);
	account_charge(to, ACCOUNT_MEMORY, lane->charged_bytes);
	lane->account = to;
	if (waits)
		expiry_add(&lane->shard->expiry, lane);
	account_drop(from);
}

void
lane_own(struct lane *lane, const struct lane_owner *owner)
{
	uint8_t digest[EVP_MAX_MD_SIZE];
	uint64_t from[3] = { lane->secret[0], lane->secret[1], owner->uid };

	charge_to(lane, owner->uid);
	lane->owner = *owner;
	/* Without a digest nothing would work that has to do with TLS either; the secret alone is then the best there is. */
	if (EVP_Digest(from, sizeof(from), digest, NULL, EVP_sha256(), NULL) == 1)
		memcpy(&lane->id_key, digest, sizeof(lane->id_key));
	else
		memcpy(&lane->id_key, lane->secret, sizeof(lane->id_key));
	OPENSSL_cleanse(digest, sizeof(digest));
}

void
lane_keep(struct lane *lane)
{
	struct lane_store *store = lane->shard->store;

	if (store != NULL && !lane->kept)
		store->keep(store, lane);
}

void
lane_forget(struct lane *lane)
{
	struct lane_store *store = lane->shard->store;

	if (store != NULL && lane->kept)
		store->forget(store, lane);
}

int
lane_is_memory(const struct lane *lane, int ring)
{
	struct stat x, y;

	return fstat(lane->ring, &x) == 0 && fstat(ring, &y) == 0 && x.st_dev == y.st_dev &&
	       x.st_ino == y.st_ino;
}

int
lane_share(const struct lane *lane)
{
	return lane_answers_share(lane->answers);
}
