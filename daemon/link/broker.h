/*
 * A broker: one address of a pool, with its links, its breaker and its back-off. While that address cannot
 * be had its links may be at other addresses of its cluster (endpoints.h); they are this broker's all the same.
 *
 * Breaker. Consecutive failures of its links (a failed attempt, or a lost connection) are counted;
 * at `failures` of them it opens: one link alone probes, once per back-off, the others wait. The
 * probe that becomes READY closes it, the other links follow, spread over retry_ms, and the
 * broker's share grows from a tenth to the whole over slow_start_ms. The count is forgotten only
 * after a link has stayed READY for slow_start_ms: a broker that flaps goes on backing off.
 *
 * Back-off. The n-th consecutive failure, of the broker or of the link alone, waits
 * retry_ms × 2^(n-1), at most retry_max_ms, times a random 0.5 … 1 (exponential back-off with
 * jitter). While no broker of the pool is usable the cap is BROKER_LONELY_MAX_MS: all lanes wait, and
 * the daemon has nothing better to do than to try.
 *
 * A link that the broker closes while messages are unanswered may have been closed over one of them. As long
 * as there were no more than BROKER_UNEXPLAINED such closes without a verdict (blame.h), the link connects
 * again at once and no failure is counted: a broker that accepts and answers the probe is well.
 *
 * Share cap. No more than share_cap percent of a pool's brokers have an open breaker, unless none
 * of the pool is usable anyway: a wave of short failures never takes the pool down by itself.
 *
 * Owner: its pool. One thread.
 */
#ifndef TG_DAEMON_BROKER_H
#define TG_DAEMON_BROKER_H

#include "daemon/base/counters.h"
#include "daemon/config/config.h"
#include "endpoints.h"
#include "link.h"
#include "tls.h"

#include <stdint.h>

#define BROKER_LONELY_MAX_MS 2000u
#define BROKER_UNEXPLAINED 4u /* quick reconnects in a row after closes that may have been over a message */

/* The brokers of one pool, and what they have in common. Constant while the daemon runs, but for the brokers' own state. */
struct peers {
	struct shard *shard;
	const struct config_pool *config;
	const struct link_events *events;
	struct tls_context *tls; /* NULL: in the clear */
	struct broker *list;
	uint32_t count;
};

struct broker {
	const struct peers *peers;
	const struct config_broker *config;
	struct link *links;
	uint32_t link_count;
	struct link *apart;   /* for lanes that are set apart (blame.h); NULL: never needed yet */
	uint32_t unexplained; /* closes that may have been over a message, without a verdict since */

	uint32_t failures;   /* consecutive */
	int open;            /* the breaker */
	struct link *prober; /* while open: the one link that tries */
	uint64_t opened_ns;
	uint64_t slow_start_ns; /* since when its share grows; 0: whole */
	uint64_t last_attempt_ns;

	uint32_t bound_count; /* lanes bound to its links */
	int64_t credit;       /* smooth weighted choice */
	char why[200];        /* the last failure */
	struct tls_sessions tls_sessions;
	void *memory;               /* its driver's (session_params); NULL: the driver wants none */
	struct endpoints endpoints; /* of its cluster, as it has announced them */
	struct broker_counts count;
};

/* Returns 0 or -TG_ENOMEM. */
int broker_init(struct broker *broker, const struct peers *peers, const struct config_broker *config);
void broker_fini(struct broker *broker);

/* Starts its links, spread over a random part of retry_ms (a whole fleet starts at once after a power cut). */
void broker_start(struct broker *broker);

/* A link has failed: counts, opens the breaker, and says when this link may try again (0: not by itself). */
uint64_t broker_link_failed(struct broker *broker, struct link *link, enum driver_fatal kind);

/* Its links by number: the ordinary ones, then the apart link if there is one; NULL behind the last. */
static inline struct link *
broker_link(const struct broker *broker, uint32_t number)
{
	return number < broker->link_count    ? &broker->links[number]
	       : number == broker->link_count ? broker->apart
					      : NULL;
}

/* Its apart link, on its way to be READY or waiting for its next attempt. NULL: no memory. */
struct link *broker_apart(struct broker *broker);

/* A connect failed: the driver's knowledge of the broker may be out of date. */
void broker_forget(struct broker *broker);

/* A link has been proven. */
void broker_link_ready(struct broker *broker, struct link *link);

/* A link has stayed READY long enough to be trusted. */
void broker_link_proven(struct broker *broker, struct link *link);

/* Its share now: weight in thousandths, reduced while it starts slowly. */
uint64_t broker_weight(const struct broker *broker, uint64_t now_ns);

/* The READY and writable link of it with least outstanding, or NULL. */
struct link *broker_pick_link(const struct broker *broker);

/* Whether any link of it is READY. */
int broker_is_ready(const struct broker *broker);

/* Whether any of them is READY; whether another than this one is; whether another would take records now. */
int peers_are_usable(const struct peers *peers);
int peers_have_other(const struct broker *broker);
int peers_have_room_beside(const struct broker *broker);

/*
 * Loads a pool's certificates. Returns 0, -TG_ENOMEM, or -TG_EINVAL after logging what is wrong with the files.
 * The other two take over certificates, or passwords and the like, whose files were renewed. They log files that cannot be
 * used, and the old contents stay in force.
 */
int peers_load_tls(struct peers *peers);
void peers_renew_tls(const struct peers *peers);
void peers_renew_secrets(const struct peers *peers);

/* "closed", "open", "half-open" (open and its prober is on its way), "slow-start". */
const char *broker_breaker_word(const struct broker *broker, uint64_t now_ns);

#endif
