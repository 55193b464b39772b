/*
 * What the daemon holds for each user, and how much of it a user may have.
 *
 * A user is a uid as the kernel gives it for a connection (SO_PEERCRED). Everything that a client can make the daemon
 * hold is charged to its user's account and refunded when the daemon has really let go of it: a lane that outlives its
 * process stays charged, and so does the memory of a closed lane until it is freed.
 *
 * Two limits apply to each kind of thing (account_limits.def):
 *
 *   all users together    limits.lanes and its like
 *   one user              limits.lanes_per_user and its like. 0, the default: as much as is left free, so that one
 *                         user gets half of everything, two get a third each, and a newcomer always finds something
 *
 * A lane that a client hands back after a daemon's end was granted before. Users return in another order than they
 * came in, so the limit of all does not apply to it, and half of that limit is the least that one user may return.
 *
 * Accounts are found by uid in a hash. They live as long as somebody holds them, which bounds their number by those of
 * clients and lanes; when there is no memory for another one, its user shares the account `others`.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_ACCOUNT_H
#define TG_DAEMON_ACCOUNT_H

#include "daemon/base/log.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

enum account_what {
#define X(name, words, all, one, counter) ACCOUNT_##name,
#include "account_limits.def"
#undef X
	ACCOUNT_KINDS
};

#define ACCOUNT_BUCKETS 256u

struct accounts;
struct client;
struct config_limits;
struct lane;

TAILQ_HEAD(account_lanes, lane);

TAILQ_HEAD(laneless_list, client); /* laneless.h */

struct account {
	struct accounts *accounts;
	uid_t uid;
	uint32_t holders;
	uint64_t used[ACCOUNT_KINDS];
	uint64_t refused[ACCOUNT_KINDS]; /* requests that a limit refused */
	struct log_limit limit;          /* of the lines about them */
	struct laneless_list laneless; /* its connections without a lane, by account_entry, the longest first */
	TAILQ_ENTRY(account) entry;

	struct account_lanes waiting; /* the user's lanes that wait, whose deadlines are looked at: expiry.h */
	uint32_t waiting_count;
	uint32_t looks; /* left in this tick */
	TAILQ_ENTRY(account) waiting_entry;
};

TAILQ_HEAD(account_list, account);

struct accounts {
	const struct config_limits *limits;
	uint64_t reserved; /* descriptors that the daemon needs for itself */
	struct account_list buckets[ACCOUNT_BUCKETS];
	struct account others;
	uint32_t count;
	uint64_t used[ACCOUNT_KINDS]; /* by all */
	uint64_t refused[ACCOUNT_KINDS];
	struct log_limit limit; /* of lines about users who hold nothing, whose accounts do not last */
};

/* Why a user may not have more. */
struct account_no {
	enum account_what what;
	const char *limit; /* its name */
	uint64_t value;    /* its value */
	uint64_t used;     /* by the user, or by all if it is the limit of all */
	uint64_t more;     /* what was asked for */
	uint64_t free;     /* limit of one that is not configured: what is left of that of all */
	int of_all;
	int of_what_is_free;
};

void
accounts_init(struct accounts *accounts, const struct config_limits *limits, uint64_t reserved_descriptors);

/* The account of a user, held until account_drop. Never NULL. */
struct account *account_hold(struct accounts *accounts, uid_t uid);
void account_drop(struct account *account);

/* One more holder of the same account. */
struct account *account_share(struct account *account);

/* The user has so much more, or less, of it; whether that is allowed was asked before. */
void account_charge(struct account *account, enum account_what what, uint64_t n);
void account_refund(struct account *account, enum account_what what, uint64_t n);

/*
 * Whether the user may have so much more of it. If not, *no says why and the refusal is counted.
 * returned: it is for a lane that the user hands back.
 */
int account_may(
    struct account *account, enum account_what what, uint64_t more, int returned, struct account_no *no);

/* The refusal in words, for the client. Returns text. */
const char *
account_no_text(const struct account *account, const struct account_no *no, char *text, size_t size);

/* And a line in the log, not more often than log_limited says for each user. */
void account_no_log(struct account *account, const struct account_no *no, pid_t pid);

/* What all users together may have of it now. */
uint64_t account_total(const struct accounts *accounts, enum account_what what);

/* The name under which its refusals are counted for an admin. */
const char *account_counter(enum account_what what);

#endif
