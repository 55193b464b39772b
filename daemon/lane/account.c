#include "account.h"

#include "daemon/config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static const struct {
	const char *words, *all, *one, *counter;
} kinds[] = {
#define X(name, words, all, one, counter) [ACCOUNT_##name] = { words, all, one, counter },
#include "account_limits.def"
#undef X
};

const char *
account_counter(enum account_what what)
{
	return kinds[what].counter;
}

void
accounts_init(struct accounts *accounts, const struct config_limits *limits, uint64_t reserved_descriptors)
{
	memset(accounts, 0, sizeof(*accounts));
	accounts->limits = limits;
	accounts->reserved = reserved_descriptors;
	accounts->others.accounts = accounts;
	accounts->others.uid = (uid_t)-1;
	TAILQ_INIT(&accounts->others.laneless);
	TAILQ_INIT(&accounts->others.waiting);
	for (uint32_t i = 0; i < ACCOUNT_BUCKETS; i++)
		TAILQ_INIT(&accounts->buckets[i]);
}

static struct account_list *
bucket(struct accounts *accounts, uid_t uid)
{
	/* Uids of containers start at multiples of 65536: the multiplication spreads them. */
	return &accounts->buckets[((uint32_t)uid * UINT32_C(2654435761)) >> 24];
}

_Static_assert(ACCOUNT_BUCKETS == 256, "bucket() takes eight bits");

struct account *
account_hold(struct accounts *accounts, uid_t uid)
{
	struct account_list *list = bucket(accounts, uid);
	struct account *account;

	TAILQ_FOREACH (account, list, entry)
		if (account->uid == uid)
			break;
	if (account == NULL && (account = calloc(1, sizeof(*account))) != NULL) {
		account->accounts = accounts;
		account->uid = uid;
		TAILQ_INIT(&account->laneless);
		TAILQ_INIT(&account->waiting);
		TAILQ_INSERT_TAIL(list, account, entry);
		accounts->count++;
	}
	if (account == NULL)
		account = &accounts->others;
	account->holders++;
	return account;
}

struct account *
account_share(struct account *account)
{
	account->holders++;
	return account;
}

void
account_drop(struct account *account)
{
	struct accounts *accounts = account->accounts;

	if (--account->holders > 0 || account == &accounts->others)
		return;
	TAILQ_REMOVE(bucket(accounts, account->uid), account, entry);
	accounts->count--;
	free(account);
}

void
account_charge(struct account *account, enum account_what what, uint64_t n)
{
	account->used[what] += n;
	account->accounts->used[what] += n;
}

void
account_refund(struct account *account, enum account_what what, uint64_t n)
{
	account->used[what] -= n;
	account->accounts->used[what] -= n;
}

/* Links and files come first; with very few descriptors, half of them are for each side. */
static uint64_t
descriptors(const struct accounts *accounts)
{
	struct rlimit limit = { .rlim_cur = 0 };

	getrlimit(RLIMIT_NOFILE, &limit);
	return limit.rlim_cur / 2 > accounts->reserved ? limit.rlim_cur - accounts->reserved
						       : limit.rlim_cur / 2;
}

uint64_t
account_total(const struct accounts *accounts, enum account_what what)
{
	const struct config_limits *limits = accounts->limits;

	switch (what) {
	case ACCOUNT_CLIENTS:
		return limits->clients;
	case ACCOUNT_LANES:
	case ACCOUNT_ORPHANS:
		return limits->lanes;
	case ACCOUNT_MEMORY:
		return limits->memory_bytes;
	case ACCOUNT_DESCRIPTORS:
		return descriptors(accounts);
	case ACCOUNT_KINDS:
		break;
	}
	abort();
}

static uint64_t
per_user(const struct config_limits *limits, enum account_what what)
{
	switch (what) {
	case ACCOUNT_CLIENTS:
		return limits->clients_per_user;
	case ACCOUNT_LANES:
		return limits->lanes_per_user;
	case ACCOUNT_ORPHANS:
		return limits->orphans_per_user;
	case ACCOUNT_MEMORY:
		return limits->memory_per_user;
	case ACCOUNT_DESCRIPTORS:
		return limits->descriptors_per_user;
	case ACCOUNT_KINDS:
		break;
	}
	abort();
}

static int
refuse(struct account *account, struct account_no *no)
{
	account->refused[no->what]++;
	account->accounts->refused[no->what]++;
	return 0;
}

int
account_may(struct account *account, enum account_what what, uint64_t more, int returned, struct account_no *no)
{
	const struct accounts *accounts = account->accounts;
	uint64_t total = account_total(accounts, what), own = per_user(accounts->limits, what);
	uint64_t all = accounts->used[what], used = account->used[what];
	uint64_t left = all < total ? total - all : 0;

	*no = (struct account_no){ .what = what, .more = more, .free = left };
	/* A descriptor that does not exist cannot be had for a lane that comes back, either. */
	if ((!returned || what == ACCOUNT_DESCRIPTORS) && more > left) {
		no->limit = kinds[what].all;
		no->value = total;
		no->used = all;
		no->of_all = 1;
		return refuse(account, no);
	}
	if (returned && own < total / 2)
		own = total / 2;
	if (used + more <= (own != 0 ? own : left))
		return 1;
	no->limit = own != 0 ? kinds[what].one : kinds[what].all;
	no->value = own != 0 ? own : total;
	no->used = used;
	no->of_what_is_free = own == 0;
	return refuse(account, no);
}

const char *
account_no_text(const struct account *account, const struct account_no *no, char *text, size_t size)
{
	const char *words = kinds[no->what].words;
	unsigned long long used = no->used, more = no->more, value = no->value;

	if (no->of_all)
		snprintf(text, size, "all users have %llu %s, user %u asks for %llu more: %s is %llu", used,
		    words, (unsigned)account->uid, more, no->limit, value);
	else if (no->of_what_is_free)
		snprintf(text, size,
		    "user %u has %llu %s and asks for %llu more; %llu of %llu (%s) are free: a user may have as much as "
		    "is left free unless %s is set",
		    (unsigned)account->uid, used, words, more, (unsigned long long)no->free, value, no->limit,
		    kinds[no->what].one);
	else
		snprintf(text, size, "user %u has %llu %s and asks for %llu more: %s is %llu",
		    (unsigned)account->uid, used, words, more, no->limit, value);
	return text;
}

void
account_no_log(struct account *account, const struct account_no *no, pid_t pid)
{
	struct log_limit *limit =
	    no->of_all || account->used[ACCOUNT_CLIENTS] == 0 ? &account->accounts->limit : &account->limit;

	log_limited(limit, LOG_LEVEL_WARN, "limit_reached",
	    "uid=%u pid=%d limit=%s value=%llu used=%llu wanted=%llu free=%llu", (unsigned)account->uid,
	    (int)pid, no->of_what_is_free ? kinds[no->what].one : no->limit, (unsigned long long)no->value,
	    (unsigned long long)no->used, (unsigned long long)no->more, (unsigned long long)no->free);
}
