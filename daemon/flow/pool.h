/*
 * A pool: a named set of brokers that speak one protocol. Producers publish to a pool.
 *
 * It chooses the link for a record (balance), keeps a lane's records together (order), and holds
 * the lanes that wait because none of its links takes records.
 *
 * Order. "lane": a lane is bound to one link; everything it publishes rides there. It is bound
 * anew when that link fails or is suspect, when it has nothing in flight and has been asleep, or
 * when the shares call for it (then it first waits until nothing is in flight). A move re-sends
 * what is unfinished, in order, before anything newer. "key": the same per key, by rendezvous
 * hash over the ready brokers; when that set changes a lane waits until nothing of it is in flight. "none":
 * each record is balanced by itself.
 *
 * Owner: the shard, for the daemon's life. One thread.
 */
#ifndef TG_DAEMON_POOL_H
#define TG_DAEMON_POOL_H

#include "blame.h"
#include "daemon/link/broker.h"
#include "daemon/config/config.h"
#include "daemon/link/link.h"
#include "daemon/base/counters.h"
#include "daemon/base/log.h"

#include <stddef.h>

#define POOL_TICK_MS 20u /* while lanes wait */

struct pool {
	struct shard *shard;
	const struct config_pool *config;
	uint32_t index;
	struct peers peers; /* its brokers */

	struct lane_list waiters; /* lanes with records and no link to bind to */
	uint32_t waiting;         /* lanes in any waiting list of this pool */
	struct lane_list lanes;   /* all of its lanes, by pool_entry */
	uint32_t lane_count;
	uint32_t preferred;       /* balance "priority": the group that carries the load */
	uint64_t spread_until_ns; /* shares are still being evened out */
	uint64_t spread_ns;       /* when that was last done */
	int writable;             /* some link is READY and writable */
	int writable_shown;       /* the value in the lanes' shared words */
	uint64_t unwritable_ns;   /* since when */
	uint64_t epoch;           /* changes with the set of ready brokers */
	struct blame_book blame;
	struct log_limit blame_limit;
	struct log_limit rejected_limit;
	struct timer tick; /* expiry of waiting lanes, writable words, shares; set only while needed */
	struct pool_counts count;
};

/* Returns 0, -TG_ENOMEM, or -TG_EINVAL after logging what is wrong with the TLS files. */
int pool_init(struct pool *pool, struct shard *shard, const struct config_pool *config, uint32_t index);
void pool_fini(struct pool *pool);
void pool_start(struct pool *pool);

/* All its links at once, where a daemon that serves is about to be replaced; and whether each is READY or
 * has failed once. */
void pool_warm(struct pool *pool);
int pool_is_warm(const struct pool *pool);

/*
 * The link for a lane's next record, by balance alone: READY and writable, or NULL. key is looked
 * at by balance and order "key" only; those two give the key's link even if it is not writable:
 * the caller checks.
 */
struct link *pool_pick(struct pool *pool, const uint8_t *key, uint32_t key_len);

/* Lets lanes that wait in the pool have their turn. */
void pool_serve(struct pool *pool);

/* The lane of this number, if it is of this pool; else NULL. */
struct lane *pool_lane(struct pool *pool, uint64_t id);

/* The pool that a broker is of. */
static inline struct pool *
pool_of(const struct broker *broker)
{
	return (struct pool *)(void *)((char *)(uintptr_t)broker->peers - offsetof(struct pool, peers));
}

#endif
