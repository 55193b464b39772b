/*
 * A lane as the daemon sees it: the rings, and what is known of each record that is not released.
 *
 * Records are admitted in order: their headers are copied out, checked, and kept as slots. Slots
 * are numbered from 0 for the lane's life.
 *
 *     slot_head           slot_next             slot_tail
 *      v                   v                     v
 *     [done][flight][done][pending][done][pending]      ring: [ admitted ... | cursor ... tail )
 *
 * slot_head .. sq_head: the oldest unreleased record. slot_next: the next to frame. A link's
 * failure makes its slots PENDING again and moves slot_next back to the first of them: everything
 * is sent again from the ring, in order.
 *
 * Nothing in the shared memory is believed: see the trust rules of ring.h. A lane that breaks them
 * is quarantined: closed, counted, logged once.
 *
 * Place. A lane is in exactly one place:
 *   ASLEEP     nothing to do; its next publish rings the doorbell (client's list)
 *   ACTIVE     polled every turn (shard's list)
 *   WAIT_LINK  has records; its link is not writable (link's list)
 *   WAIT_POOL  has records; no link takes them, or it waits for what is in flight (pool's list)
 *   STALLED    its completion ring or slot table is full; the next release puts it back (no list)
 *   GONE       quarantined or finished; freed when no link refers to it and, if it was quarantined, its client has
 *              closed it or is gone: its memory counts until then (no list)
 *
 * Owner: the shard; its client points at it. One thread.
 */
#ifndef TG_DAEMON_LANE_H
#define TG_DAEMON_LANE_H

#include "daemon/link/link.h"
#include "daemon/base/counters.h"
#include "daemon/base/siphash.h"
#include "lane_blame.h"
#include "slots.h"
#include "spin.h"
#include "shm/ring.h"
#include "shm/wake.h"

#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

struct client;
struct pool;
struct shard;

enum lane_place { LANE_ASLEEP, LANE_ACTIVE, LANE_WAIT_LINK, LANE_WAIT_POOL, LANE_STALLED, LANE_GONE };

/* Whose lane it is, or was. */
struct lane_owner {
	uid_t uid;
	pid_t pid;
};

struct lane {
	struct shard *shard;
	struct pool *pool;
	struct client *client; /* NULL: an orphan */
	uint64_t id;
	uint64_t nonce;            /* the header's: the same over restarts of the daemon */
	uint64_t secret[2];        /* the header's */
	struct siphash_key id_key; /* of the ids of its messages: lane_own() */
	struct lane_owner owner;
	struct account *account; /* its owner's; held until its memory is freed */
	uint64_t charged_bytes;  /* to the account: the memfd, and whatever else lane_charge() was told of */
	int counted_orphan;      /* in the account */
	struct lane_map map;
	int ring, answers; /* kept for a successor; owned. answers -1: to be made */
	int old_answers;   /* of a lane that comes back: their contents are copied. The caller's; -1: none */
	int made_answers;  /* `answers` was made by us */
	int handed_back;   /* the lane was not made by us */
	int unready; /* its client has not said that it uses the new answers: nothing is done for it (lane_ready) */
	uint64_t unready_ns; /* since when */
	int bell; /* wakes the client: the writing end of a pipe; owned; -1: it has none yet (lane_await) */

	struct sq_consumer sq;
	struct cq_producer cq;
	struct wake_sleeper doze;
	struct wake_ringer ringer;

	struct slots slots;
	uint64_t slot_head, slot_next, slot_tail;
	uint32_t unfinished; /* admitted slots that are not DONE */
	uint64_t floor;      /* no CQ entry below this count names an unreleased record (ring.h, I4) */
	uint32_t inflight;   /* slots INFLIGHT */
	uint32_t late;       /* of them, those that have left their link's window */
	uint32_t refs;       /* entries of links' rings that name it */

	struct link *link; /* order "lane": where its records ride */
	TAILQ_ENTRY(lane) bound_entry;
	uint64_t epoch; /* order "key": the pool's when its routes were chosen */
	int over_share; /* waits for its link until lane_waited_for() has come down to resume_at (link_has_share) */
	uint32_t resume_at;
	int moving; /* to be bound anew once nothing is in flight */
	struct lane_blame blame;
	int again; /* with an order: the broker had no room for slot `again_slot`: until it has, one goes at a time, */
	uint64_t again_slot; /* so that it cannot refuse one and take the next */

	enum lane_place place;
	TAILQ_ENTRY(lane) place_entry; /* of a lane being made: in the shard's list of those */
	TAILQ_ENTRY(lane) pool_entry;
	TAILQ_ENTRY(lane) client_entry;
	TAILQ_ENTRY(lane) dirty_entry;
	TAILQ_ENTRY(lane) dozed_entry;
	TAILQ_ENTRY(lane) waiting_entry; /* WAIT_LINK and WAIT_POOL: in its account's list */
	struct lane_list *dozing;        /* the shard's list it is on by dozed_entry, or NULL */
	uint64_t dozed_ns;               /* on shard->doubted: when it fell asleep */
	uint32_t seen_asleep;            /* doze.count when it was last seen asleep with work */
	int dirty;                       /* has completions to commit */
	int kept;                        /* the service manager has a descriptor of its memory */
	int awaited;                     /* without a client, which may come back: it does not go */
	int left;                        /* its client went and left records: their end is told */
	int shown_writable;
	int32_t deficit;    /* bytes, deficit round robin */
	uint64_t active_ns; /* last time there was something to do */
	struct spin spin;   /* whether it is watched when it has run empty */
	uint64_t
	    earliest_ns; /* no unsent record's deadline is before this; while sweeping, of those below sweep_at */
	uint64_t sweep_at; /* sweeping: the slot at which the search for passed deadlines goes on */
	int sweeping;
	int ordered;        /* no slot's deadline is before that of one before it */
	uint64_t latest_ns; /* the deadline of the slot that has the latest */
	uint64_t orphaned_ns;
	uint64_t cap_ns; /* an orphan: no record's deadline is later (limits.orphan_ms); else UINT64_MAX */
	struct lane_counts count;
	struct lane_counts before; /* the counts when its client went */
	struct world_job job;      /* the freeing of its memory */
	uint64_t unmap_ns;         /* which took so long */
};

/* The ingredients of a lane. Descriptors become the lane's on success, but for old_answers, and stay the
 * caller's on failure. */
struct lane_memory {
	struct lane_geometry geo;
	int ring;        /* the client's */
	int answers;     /* open for writing, from a daemon before us; -1: to be made */
	int old_answers; /* from a client that had it under a daemon before us: they are copied; -1: none */
	int bell;        /* -1: none yet */
};

/* How long a client may take to say LANE_READY, and how long one that hung up without may take to come back. */
#define LANE_READY_MS 5000u

/* Most messages of a lane that have left a window unanswered; more are not sent before some are answered or past
 * their deadlines. */
#define LANE_LATE_MAX 64u

/* Whether the loop maps it itself: a lane so small costs less than the way to another thread and back. */
#define LANE_INLINE_BYTES (128u << 10)
#define LANE_DESCRIPTORS 3u /* its ring's, its answers' and its bell's, for a lane's life */
#define LANE_INLINE_SLOTS 4096u

/* The most records that one look visits: a client chooses how many wait, and when each expires. */
#define LANE_SWEEP_SLOTS 4096u

/*
 * Reports of lanes to the front, which serves their clients (daemon/front/front.c). The shard has one table for all its lanes.
 * Without a front there are no clients, and .freed may be NULL.
 */
struct lane_events {
	void *owner;
	void (*woken)(
	    struct client *client); /* its lane was woken, or is to be rung anew: one more ring may come */
	void (*gone)(struct client *client, struct lane *lane);
	void (*late)(struct client *client); /* did not say LANE_READY in time */
	/* A lane's memory was freed: on the loop since began_ns, or, if took_ns is not 0, for so long beside it. */
	void (*freed)(void *owner, uint64_t began_ns, uint64_t took_ns);
};

/* Keeps the memory of lanes for the daemon after this one. daemon/life/keeper.c fills it; the shard points at it. */
struct lane_store {
	void (*keep)(struct lane_store *store, struct lane *lane);
	void (*forget)(struct lane_store *store, struct lane *lane);
};

/* Makes a lane over a new ring. Returns 0 or a negative TG_E. */
int lane_new(struct lane **lane, const struct lane_header *header, struct pool *pool, struct client *client,
    const struct lane_memory *memory);

/* Puts it into a place (its old list is left). */
void lane_set_place(struct lane *lane, enum lane_place place);

/* Wakes it if its ring is not empty; for a doorbell. Returns whether it was. */
int lane_look(struct lane *lane);

/* An orphan that waits for answers alone leaves the polling; the next commit looks at it again. */
void lane_rest(struct lane *lane);

/* Says that it sleeps and leaves the polling; the caller fences and then lane_look()s once more. */
void lane_sleep(struct lane *lane);

/* As lane_look, for a sleeping lane whose doorbell has been read: if it stays asleep it can be rung anew. */
int lane_hear(struct lane *lane);

/* Moves it onto one of the shard's lists of those that fell asleep lately, or off them with NULL. */
void lane_doze(struct lane *lane, struct lane_list *list);

/* A link answers for a slot that it numbered seq. Drops the entry's reference. text may be NULL. */
void lane_answer(struct lane *lane, uint64_t slot, struct link *link, uint64_t seq, uint8_t outcome,
    uint64_t reference, uint32_t code, const char *text, size_t text_len);

/* Its link has taken a slot out of the window. */
void lane_late(struct lane *lane, uint64_t slot, const struct link *link, uint64_t seq);

/* A link gives a slot back unanswered. Drops the entry's reference. */
void lane_take_back(struct lane *lane, uint64_t slot, struct link *link, uint64_t seq, enum link_back how);

/*
 * Completes a slot in flight whose deadline has passed as UNKNOWN. The link's entry stays, and its
 * answer finds nothing to complete. Only when the link refers to none of its bytes in the ring any more.
 */
void lane_overdue(struct lane *lane, uint64_t slot, const struct link *link, uint64_t seq);

/* Its link is suspect and keeps its copy of the record: another is to send it too. The first answer
 * completes it. */
void lane_reroute(struct lane *lane, uint64_t number, const struct link *link, uint64_t seq);

/* The slot, if `link` still carries it as seq; else NULL. */
struct slot *lane_carried(const struct lane *lane, uint64_t slot, const struct link *link, uint64_t seq);

/* Commits completions and releases, then rings the client if it sleeps. In two steps, so that one
 * fence serves all lanes of a turn. */
void lane_commit(struct lane *lane);
void lane_ring(struct lane *lane);

/* Completes what has passed its deadline unsent. For lanes that wait. Looks at LANE_SWEEP_SLOTS at a time. */
void lane_expire(struct lane *lane);

/* Leaves its link: it is bound anew by its next record. rewind: messages in flight are sent again. */
void lane_unbind(struct lane *lane, int rewind);

/* Tells the client whether the pool takes records. */
void lane_show_writable(struct lane *lane, int writable);

/* Its client has gone or closed it: finishes what is committed, then goes. One that is unready waits for it first. */
void lane_orphan(struct lane *lane);

/* Whether its client has had LANE_READY_MS for what it did not say. */
int lane_is_late(const struct lane *lane);

/*
 * A lane that was taken over without a client, which may still be alive and come back: like an orphan,
 * but it stays. lane_forsake() makes it one, after a last look at records committed meanwhile.
 */
void lane_await(struct lane *lane);
void lane_forsake(struct lane *lane);

/*
 * Whose lane it is. Brokers know by a message's id whether they have the message already (message_id(), in
 * protocol/driver.h), so ids must not be predictable: another producer would publish with the next one first. They are
 * made with a key of the lane's secret and its owner's user id. The secret is in the lane's memory, which only its owner's
 * user can read, and so survives the daemon. The owner may write what it likes there; since the user id is part of
 * the key, that gives it no other user's ids. Among the processes of one user there is nothing to protect.
 */
void lane_own(struct lane *lane, const struct lane_owner *owner);

/* The most memory that a lane of this geometry can have: its ring, its answers and its table of slots (ring.h, I4). */
uint64_t lane_cost_bytes(const struct lane_geometry *geo);

/* Gives its memory to the store for the next daemon, if there is a store that does not have it; and takes it back. */
void lane_keep(struct lane *lane);
void lane_forget(struct lane *lane);

/* The daemon has so many bytes more, or less, because of this lane: they count against its owner's memory. */
void lane_charge(struct lane *lane, uint64_t bytes);
void lane_refund(struct lane *lane, uint64_t bytes);

/* Whether the descriptor is of its ring. */
int lane_is_memory(const struct lane *lane, int ring);

/* A descriptor of its answers for its client, the caller's; or a negative TG_E. */
int lane_share(const struct lane *lane);

/* The client of an orphan is back, on another connection: the bell becomes the lane's. */
void lane_reclaim(struct lane *lane, struct client *client, int bell);

/* Lets an orphan go that has nothing left. */
void lane_finish_orphan(struct lane *lane);

/* Frees a lane of the shard's graveyard, its memory beside the loop. */
void lane_bury(struct lane *lane);

/* Its memory breaks the rules. */
void lane_quarantine(struct lane *lane, const char *why);

/* Whether everything committed is completed and released. */
int lane_is_empty(const struct lane *lane);

/* Frees a lane at the daemon's end, whatever its state. */
void lane_free(struct lane *lane);

const char *lane_place_word(enum lane_place place);

/* Between the files of a lane ------------------------------------------------------------- */

static inline struct slot *
lane_slot(const struct lane *lane, uint64_t number)
{
	return slots_at(&lane->slots, number);
}

/* A record's deadline, which its client's end may have moved forward. */
static inline uint64_t
lane_deadline(const struct lane *lane, const struct slot *slot)
{
	return slot->deadline_ns < lane->cap_ns ? slot->deadline_ns : lane->cap_ns;
}

/* Its messages that count against a link's window. */
static inline uint32_t
lane_waited_for(const struct lane *lane)
{
	return lane->inflight - lane->late;
}

/* Takes the record at the cursor into a slot, if there is one for it now, in the table and among the completions; 1 if not.
 * Returns 0, 1, -TG_ENOMEM or -TG_EBROKEN. */
int lane_admit_next(struct lane *lane);

/* Completes a slot that is not to be sent any more. Returns whether it was one. */
int lane_finish_unsent(struct lane *lane, struct slot *slot);

/* Gives the memory back; its size is still told. */
void lane_unmap(struct lane *lane);

/* The account has back what a lane costs beside its memory, when it is closed; and the memory, when it is freed. */
void lane_refund_closed(struct lane *lane);
void lane_refund_freed(struct lane *lane);

/* Gives most of a sleeping lane's table back, if its records are all released. */
void lane_slots_shrink(struct lane *lane);

/* Completes a slot as REJECTED, keeps the words for tg_reason and logs them. text may be NULL. */
void lane_reject(
    struct lane *lane, struct slot *slot, uint64_t reference, uint32_t code, const char *text, size_t text_len);

/* Completes a slot as UNKNOWN, or EXPIRED if no byte of it was sent, and keeps why for tg_reason. */
void lane_give_up(struct lane *lane, struct slot *slot, const char *why);

/* Writes into the bell, whether the client sleeps or not. */
void lane_bell(const struct lane *lane);

/*
 * The steps in which a lane is made, or comes back from another daemon. lane_map_in and lane_rebuild take long with a large lane. They
 * touch nothing but the lane and may run beside the loop, while no other code touches it.
 *
 *   lane_make ── lane_map_in ────────────────── lane_begin
 *                           └── lane_rebuild ── lane_resume
 */

/* Room for a lane that counts from now on, in the shard's list of lanes being made. */
int lane_make(struct lane **lane, const struct lane_header *header, struct pool *pool, struct client *client,
    const struct lane_memory *memory);

/* Undoes lane_make and what followed; the caller's descriptors are the caller's again. */
void lane_unmake(struct lane *lane);

/* Checks the ring, makes the answers if there are none, and maps both. On an error nothing is mapped. */
int lane_map_in(struct lane *lane, const struct lane_header *header);

/* Finds out what was done with the records (lane_return). On an error it is not mapped any more. */
int lane_rebuild(struct lane *lane, uint64_t now_ns);

/*
 * Puts it to work: a new one, and one that was rebuilt. One whose answers are new to its client rests, unready,
 * until lane_ready(): a daemon that comes after us would have the old ones from its client.
 */
void lane_begin(struct lane *lane);
void lane_resume(struct lane *lane);
void lane_ready(struct lane *lane);

/* Makes a slot of the record at the cursor. Returns 0, -TG_EBROKEN or -TG_ENOMEM. */
int lane_admit(struct lane *lane, uint64_t now_ns, struct slot **slot);

/* Has it committed at the end of the turn. */
void lane_mark_dirty(struct lane *lane);

/* Completes a slot. */
void lane_finish(struct lane *lane, struct slot *slot, uint8_t outcome, uint64_t reference, uint32_t code);

#endif
