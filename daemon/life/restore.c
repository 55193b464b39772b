#include "restore.h"

#include "daemon/front/client.h"
#include "daemon/flow/shard.h"

#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define BATCH_NS (2 * NS_PER_MS)
#define LANE_COST (64u << 10) /* what an empty lane costs, as bytes of records */

struct restore {
	struct world_job job;
	struct shard *shard;
	struct restored *list;
	size_t count, capacity;
	size_t built, done;
	uint64_t now_ns;
};

struct restore *
restore_new(struct shard *shard)
{
	struct restore *restore = calloc(1, sizeof(*restore));

	if (restore != NULL)
		restore->shard = shard;
	return restore;
}

/* The bytes of records in it, as its memory says; the client's word is not trusted for more than an order. */
static uint64_t
bytes_waiting(const struct lane_memory *memory)
{
	uint64_t tail = 0, head = 0;

	if (pread(memory->ring, &tail, sizeof(tail), LANE_CLIENT_AT) < 0 ||
	    pread(memory->answers, &head, sizeof(head), LANE_DAEMON_AT) < 0)
		return memory->geo.sq_bytes;
	return tail - head < memory->geo.sq_bytes ? tail - head : memory->geo.sq_bytes;
}

int
restore_add(struct restore *restore, const struct restored *what, struct pool *pool, struct client *client,
    const struct lane_memory *memory, int unready)
{
	struct lane *lane;
	int rc;

	if (restore->count == restore->capacity) {
		size_t capacity = restore->capacity == 0 ? 64 : restore->capacity * 2;
		struct restored *list = realloc(restore->list, capacity * sizeof(*list));
		if (list == NULL)
			return -TG_ENOMEM;
		restore->list = list;
		restore->capacity = capacity;
	}
	if ((rc = lane_make(&lane, &what->header, pool, client, memory)) != 0)
		return rc;
	lane->unready = unready;
	lane_own(lane, &what->owner);
	if (client != NULL)
		client_restore(client, 1);
	struct restored *restored = &restore->list[restore->count++];
	*restored = *what;
	restored->lane = lane;
	restored->order = bytes_waiting(memory) + LANE_COST;
	return 0;
}

/* ---- the order ---- */

static int
by_owner(const void *a, const void *b)
{
	const struct restored *x = a, *y = b;

	if (x->owner.uid != y->owner.uid)
		return x->owner.uid < y->owner.uid ? -1 : 1;
	return x->order < y->order ? -1 : x->order > y->order;
}

static int
by_order(const void *a, const void *b)
{
	const struct restored *x = a, *y = b;

	if (x->order != y->order)
		return x->order < y->order ? -1 : 1;
	return x->lane->id < y->lane->id ? -1 : x->lane->id > y->lane->id;
}

static void
put_in_order(struct restore *restore)
{
	struct restored *list = restore->list;

	qsort(list, restore->count, sizeof(*list), by_owner);
	for (size_t i = 1; i < restore->count; i++)
		if (list[i].owner.uid == list[i - 1].owner.uid)
			list[i].order += list[i - 1].order;
	qsort(list, restore->count, sizeof(*list), by_order);
}

/* ---- the work ---- */

static void
run(struct world_job *job)
{
	struct restore *restore = (struct restore *)(void *)((char *)job - offsetof(struct restore, job));
	struct world *world = restore->shard->world; /* whose clock any thread may read */
	uint64_t began = world_now(world);

	do {
		struct restored *restored = &restore->list[restore->built];
		restored->rc = lane_map_in(restored->lane, &restored->header);
		if (restored->rc == 0)
			restored->rc = lane_rebuild(restored->lane, restore->now_ns);
		restore->built++;
	} while (restore->built < restore->count && world_now(world) - began < BATCH_NS);
}

static void
on_done(struct world_job *job)
{
	struct restore *restore = (struct restore *)(void *)((char *)job - offsetof(struct restore, job));

	for (; restore->done < restore->built; restore->done++) {
		struct restored *restored = &restore->list[restore->done];
		struct client *client = restored->lane->client;
		if (client != NULL)
			client_restore(client, -1); /* first: it may be closed */
		restored->done(restored);
	}
	restore->now_ns = restore->shard->now_ns;
	if (restore->done < restore->count) {
		restore->shard->world->ops->work(restore->shard->world, &restore->job);
		return;
	}
	free(restore->list);
	free(restore);
}

void
restore_begin(struct restore *restore)
{
	struct shard *shard = restore->shard;

	if (restore->count == 0) {
		free(restore->list);
		free(restore);
		return;
	}
	put_in_order(restore);
	restore->now_ns = shard->now_ns;
	restore->job = (struct world_job){ .queue = WORLD_JOB_MAKE, .run = run, .done = on_done };
	shard->world->ops->work(shard->world, &restore->job);
}
