/*
 * Everything one loop thread owns. Shards share nothing.
 *
 * A turn (shard_turn), after the loop has read sockets and fired timers:
 *   1  lanes     waiting lanes of writable links, then active lanes, are drained onto links, in turns
 *   2  links     what was framed is written
 *   3  lanes     completions are committed, releases stored, sleeping clients rung
 *   4  lanes     that had nothing to do for spin_us go to sleep
 *
 * Returns whether there is anything left to do at once; if not the loop may block until
 * timers_next().
 */
#ifndef TG_DAEMON_SHARD_H
#define TG_DAEMON_SHARD_H

#include "daemon/lane/account.h"
#include "daemon/lane/expiry.h"
#include "daemon/lane/lane.h"
#include "daemon/link/link.h"
#include "pool.h"
#include "daemon/base/counters.h"
#include "daemon/base/timer.h"
#include "daemon/base/world.h"

#define SHARD_READ_BYTES (256u << 10)
#define SHARD_SECOND_LOOK_NS (WAKE_SECOND_LOOK_MS * NS_PER_MS)
#define SHARD_IDS_APART 1000000u          /* a handed-back lane's number is not believed farther than this */
#define SHARD_ROUND_NS (1000 * NS_PER_MS) /* one cache line a sleeping lane */
#define SHARD_QUANTUM (64 << 10)          /* bytes a lane may frame a turn; one record may exceed it */

TAILQ_HEAD(link_list, link);

/* The steps that a shard has its front do (daemon/front/front.c). Both may be NULL. */
struct shard_events {
	void *owner;
	void (*turn)(void *owner);  /* a turn begins, and the shard is not paused */
	int (*turned)(void *owner); /* a turn ends; returns whether there is more to do at once */
};

struct shard {
	struct world *world;
	const struct config *config;
	uint64_t now_ns;  /* of this turn */
	uint64_t wall_ms; /* and of the calendar's clock */
	struct timers timers;

	struct pool *pools;
	uint32_t pool_count;
	uint32_t link_ids;
	uint64_t lane_ids;
	uint64_t started_ns;
	uint64_t start_random; /* of this start, in client ids */

	struct lane_list active;
	uint32_t active_count;
	struct lane_list dirty;   /* by dirty_entry */
	struct lane_list dozed;   /* fell asleep in this turn, by dozed_entry */
	struct lane_list doubted; /* fell asleep lately, to be looked at again, by dozed_entry */
	struct timer second_look;
	struct timer round;         /* of the sleepers */
	struct timer late;          /* for lanes whose clients do not say LANE_READY */
	struct lane_list graveyard; /* gone lanes no link refers to, freed at the end of the turn */
	struct lane_list making;    /* lanes that are being made or rebuilt, by place_entry */
	struct link_list flush;     /* by flush_entry */
	struct link_list serve;     /* writable links with waiters, by serve_entry */
	struct expiry expiry;
	uint32_t lane_count;
	struct accounts accounts; /* of users: their holdings and limits */
	int expedited;            /* membarrier works: clients need no fence */
	struct lane_events lane_events;
	struct shard_events events;
	struct lane_store *store;      /* keeps lanes for the next daemon; NULL: there is none */
	struct log_limit orphan_limit; /* a host's processes may all die at once */
	struct log_limit overslept_limit;
	struct log_limit quarantine_limit; /* a client may open lanes and spoil them without end */
	int stopping;
	int paused;         /* nothing new is framed: a successor is about to take over */
	int checking;       /* each turn ends with shard_check(): sanitizer builds and the simulated world */
	int clock_is_stale; /* the loop has run since now_ns was read */

	uint64_t outstanding; /* unanswered messages of all links */
	uint32_t work;        /* records framed and answers read since the last turn began */

	uint8_t *read_buffer; /* DRIVER_INPUT_MAX + SHARD_READ_BYTES */
	uint8_t *copy_buffer; /* topic, key and headers of the record being framed */

	struct shard_counts count;
};

/* Returns 0 or -TG_ENOMEM; everything is in place and nothing started. */
int shard_init(struct shard *shard, struct world *world, const struct config *config);
void shard_fini(struct shard *shard);

/* Starts the links of all pools. */
void shard_start(struct shard *shard);

/* Starts those alone that no other daemon can hand over; and whether each of them is READY or has failed once. */
void shard_warm(struct shard *shard);
int shard_is_warm(const struct shard *shard);

/* The clock is read once a turn, and once more when the loop has slept: each callback of the loop calls this first. */
void shard_refresh_clock(struct shard *shard);

/* One turn. Returns 1 if the next must follow at once, 0 if nothing is to be done until an event. */
int shard_turn(struct shard *shard);

/* Whether every lane is empty (for a drain). */
int shard_is_empty(const struct shard *shard);

/* Links say goodbye. */
void shard_drain_links(struct shard *shard);

/* Those that were not handed over do, and nothing else is touched: the lanes have another daemon. */
void shard_farewell(struct shard *shard);

struct pool *shard_pool(struct shard *shard, const char *name);

/* A lane by its number; or, since numbers start anew with the daemon and nonces can be copied, by its
 * nonce and memory. NULL: none. */
struct lane *shard_lane(const struct shard *shard, uint64_t id);
struct lane *shard_lane_of(const struct shard *shard, uint64_t nonce, int ring);

/* A number for a lane that had this one under another daemon: the same if that is possible. */
uint64_t shard_lane_id(struct shard *shard, uint64_t wish);

#endif
