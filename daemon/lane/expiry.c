#include "expiry.h"

#include "lane.h"
#include "daemon/flow/shard.h"

#include <stddef.h>

void
expiry_add(struct expiry *expiry, struct lane *lane)
{
	struct account *account = lane->account;

	if (account->waiting_count++ == 0) {
		account->looks = 0; /* from the next tick on */
		TAILQ_INSERT_TAIL(&expiry->accounts, account, waiting_entry);
	}
	TAILQ_INSERT_TAIL(&account->waiting, lane, waiting_entry);
	timer_set_earlier(
	    &expiry->shard->timers, &expiry->tick, expiry->shard->now_ns + EXPIRY_TICK_MS * NS_PER_MS);
}

void
expiry_remove(struct expiry *expiry, struct lane *lane)
{
	struct account *account = lane->account;

	TAILQ_REMOVE(&account->waiting, lane, waiting_entry);
	if (--account->waiting_count == 0)
		TAILQ_REMOVE(&expiry->accounts, account, waiting_entry);
}

/* One look at one lane of the user who is next. Returns 0 when every user has had its looks. */
static int
look_at_one(struct expiry *expiry)
{
	struct account *account;
	struct lane *lane;

	TAILQ_FOREACH (account, &expiry->accounts, waiting_entry)
		if (account->looks > 0)
			break;
	if (account == NULL)
		return 0;
	lane = TAILQ_FIRST(&account->waiting);
	TAILQ_REMOVE(&account->waiting, lane, waiting_entry);
	TAILQ_INSERT_TAIL(&account->waiting, lane, waiting_entry);
	TAILQ_REMOVE(&expiry->accounts, account, waiting_entry);
	TAILQ_INSERT_TAIL(&expiry->accounts, account, waiting_entry);
	account->looks--;
	expiry->look(lane); /* which may take it, and its account, off the lists */
	return 1;
}

static void
on_tick(struct timer *timer)
{
	struct expiry *expiry = (struct expiry *)(void *)((char *)timer - offsetof(struct expiry, tick));
	struct shard *shard = expiry->shard;
	uint64_t began_ns = world_now(shard->world);
	struct account *account;

	TAILQ_FOREACH (account, &expiry->accounts, waiting_entry)
		account->looks = account->waiting_count < EXPIRY_LOOKS ? account->waiting_count : EXPIRY_LOOKS;
	while (look_at_one(expiry) && world_now(shard->world) - began_ns < EXPIRY_TICK_NS)
		;
	if (!TAILQ_EMPTY(&expiry->accounts))
		timer_set(&shard->timers, timer, shard->now_ns + EXPIRY_TICK_MS * NS_PER_MS);
}

int
expiry_init(struct expiry *expiry, struct shard *shard, void (*look)(struct lane *lane))
{
	*expiry = (struct expiry){ .shard = shard, .tick.fire = on_tick, .look = look };
	TAILQ_INIT(&expiry->accounts);
	return timers_reserve(&shard->timers);
}
