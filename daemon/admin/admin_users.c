/* The admin socket's report on users: the daemon's holdings for each, and how often each limit refused more. */
#include "admin.h"

#include "daemon/lane/account.h"
#include "daemon/flow/shard.h"

#include <stdlib.h>

static int
by_uid(const void *a, const void *b)
{
	const struct account *const *left = a, *const *right = b;

	return (*left)->uid < (*right)->uid ? -1 : (*left)->uid > (*right)->uid;
}

static void
row_make(struct answer *row, const struct account *account)
{
	uint64_t refused = 0;

	for (int what = 0; what < ACCOUNT_KINDS; what++)
		refused += account->refused[what];
	answer_init(row);
	answer_count(row, "uid", account->uid);
	answer_count(row, "connections", account->used[ACCOUNT_CLIENTS]);
	answer_count(row, "lanes", account->used[ACCOUNT_LANES]);
	answer_count(row, "orphans", account->used[ACCOUNT_ORPHANS]);
	answer_count(row, "memory_bytes", account->used[ACCOUNT_MEMORY]);
	answer_count(row, "descriptors", account->used[ACCOUNT_DESCRIPTORS]);
	answer_count(row, "refused", refused);
}

/* In the order of their uids; a row's number, from which the next page goes on, is its uid and one. */
void
admin_users(struct admin_query *query)
{
	const struct accounts *accounts = &query->shard->accounts;
	const struct account **list = calloc(accounts->count + 1u, sizeof(*list));
	json_t *rows = answer_list(&query->answer, "users");
	const struct account *account;
	uint32_t count = 0, made = 0;

	if (list == NULL) {
		query->answer.failed = 1;
		return;
	}
	for (uint32_t b = 0; b < ACCOUNT_BUCKETS; b++)
		TAILQ_FOREACH (account, &accounts->buckets[b], entry)
			if (account->uid + UINT64_C(1) >= query->from)
				list[count++] = account;
	qsort(list, count, sizeof(*list), by_uid);
	for (uint32_t i = 0; i < count; i++) {
		struct answer row;
		if (made++ == query->max) {
			answer_count(&query->answer, "next", list[i]->uid + UINT64_C(1));
			break;
		}
		row_make(&row, list[i]);
		answer_row(&query->answer, rows, &row);
	}
	free(list);
}
