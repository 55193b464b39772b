/* The new daemon's side of an upgrade. */
#include "handover.h"

#include "daemon/front/client.h"
#include "keeper.h"
#include "daemon/base/log.h"
#include "daemon/base/world_uv.h"
#include "daemon/flow/blame.h"
#include "daemon/flow/pool.h"
#include "restore.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define GIVE_MS 30000 /* between two frames of the old daemon, which waits for its links to be quiet */

/* As long as its frame is: handover_size(). */
struct taken_item {
	int fds[HANDOVER_FDS];
	struct handover_packet packet;
};

struct handover_taken {
	struct taken_item **items;
	size_t count, capacity;
};

void
handover_free(struct handover_taken *taken)
{
	if (taken == NULL)
		return;
	for (size_t i = 0; i < taken->count; i++) {
		packet_close_fds(taken->items[i]->fds);
		free(taken->items[i]);
	}
	free(taken->items);
	free(taken);
}

static int
keep(struct handover_taken *taken, const struct taken_item *item)
{
	if (taken->count == taken->capacity) {
		size_t capacity = taken->capacity == 0 ? 64 : taken->capacity * 2;
		struct taken_item **items = realloc(taken->items, capacity * sizeof(struct taken_item *));
		if (items == NULL)
			return -TG_ENOMEM;
		taken->items = items;
		taken->capacity = capacity;
	}
	size_t size = offsetof(struct taken_item, packet) + handover_size(&item->packet.frame);
	struct taken_item *copy = malloc(size);
	if (copy == NULL)
		return -TG_ENOMEM;
	memcpy(copy, item, size);
	taken->items[taken->count++] = copy;
	return 0;
}

static int
say(int fd, enum handover_type type)
{
	struct handover_frame frame = { .magic = HANDOVER_MAGIC, .version = HANDOVER_VERSION, .type = type };

	return handover_send(fd, &frame, NULL, 0);
}

static int
await(int fd, struct taken_item *item)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, GIVE_MS) > 0 ? handover_recv(fd, &item->packet, item->fds) : -TG_ETIMEOUT;
}

int
handover_receive(int fd, struct handover_taken **out)
{
	struct handover_taken *taken = calloc(1, sizeof(*taken));
	struct taken_item item;
	int rc;

	if (taken == NULL)
		return -TG_ENOMEM;
	if ((rc = say(fd, HANDOVER_READY)) != 0)
		goto fail;
	do {
		if ((rc = await(fd, &item)) != 0)
			goto fail;
		if ((rc = keep(taken, &item)) != 0) {
			packet_close_fds(item.fds);
			goto fail;
		}
	} while (item.packet.frame.type != HANDOVER_DONE);
	*out = taken;
	return 0;
fail:
	handover_free(taken);
	return rc;
}

int
handover_take(int fd)
{
	struct taken_item item;
	int rc = say(fd, HANDOVER_TAKEN);

	if (rc != 0 || (rc = await(fd, &item)) != 0)
		return rc;
	packet_close_fds(item.fds);
	return item.packet.frame.type == HANDOVER_GO ? 0 : -TG_EPROTOCOL;
}

int
handover_listener(struct handover_taken *taken, const char *path, int *owns_path)
{
	for (size_t i = 0; i < taken->count; i++) {
		struct taken_item *item = taken->items[i];
		const struct handover_frame *frame = &item->packet.frame;
		if (frame->type == HANDOVER_LISTENER &&
		    strncmp(frame->u.listener.path, path, sizeof(frame->u.listener.path)) == 0) {
			*owns_path = frame->u.listener.owns_path != 0;
			int fd = item->fds[0];
			item->fds[0] = -1;
			return fd;
		}
	}
	return -1;
}

/* Its pool is gone, or what lies in it makes no sense: its client is told. bell may be -1. */
static void
tell_closed(int answers, int bell, const char *why)
{
	static const char one = 1;
	static const uint32_t closed = 1;

	log_event(LOG_LEVEL_WARN, "lane_not_taken", "cause=\"%s\"", why);
	if (pwrite(answers, &closed, sizeof(closed), LANE_DAEMON_AT + offsetof(struct lane_daemon, closed)) <
		0 ||
	    (bell >= 0 && write(bell, &one, sizeof(one)) < 0))
		log_event(LOG_LEVEL_DEBUG, "bell_failed", "errno=%d", errno);
}

/* It is rebuilt, or cannot be: a lane that there is no memory for now is to be handed back, with the others of its client. */
static void
on_restored(struct restored *restored)
{
	struct lane *lane = restored->lane;
	struct client *client = lane->client;
	int fds[] = { lane->ring, lane->answers, lane->bell };

	if (restored->rc == 0) {
		blame_begin(lane);
		lane_resume(lane);
		if (restored->kept)
			keeper_keep_on(lane);
		if (client != NULL) {
			client_add_lane(client, lane);
			return;
		}
		lane_keep(lane);
		lane_orphan(lane);
		return;
	}
	if (restored->rc == -TG_EBROKEN)
		tell_closed(lane->answers, lane->bell, error_text(restored->rc));
	else
		log_event(LOG_LEVEL_WARN, "lane_not_taken", "cause=\"%s\"", error_text(restored->rc));
	lane_unmake(lane);
	for (unsigned i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (restored->rc != -TG_EBROKEN && client != NULL)
		client_close(client);
}

/* Returns whether its client can stay. */
static int
adopt_lane(struct shard *shard, struct restore *restore, struct client *client, struct taken_item *item)
{
	const struct handover_frame *f = &item->packet.frame;
	struct restored restored = { .owner = { .uid = f->u.lane.uid, .pid = f->u.lane.pid },
		.kept = (int)f->u.lane.kept,
		.orphan = (int)f->orphan,
		.done = on_restored };
	struct lane_memory memory = {
		.ring = item->fds[0], .answers = item->fds[1], .old_answers = -1, .bell = item->fds[2]
	};
	int rc = lane_header_read(memory.answers, &restored.header, &memory.geo);

	if (rc != 0) {
		log_event(LOG_LEVEL_WARN, "lane_not_taken", "cause=\"%s\"", error_text(rc));
		return 0;
	}
	struct pool *pool = shard_pool(shard, restored.header.pool);
	if (pool == NULL) {
		tell_closed(memory.answers, memory.bell, "its pool is not configured any more");
		return 1;
	}
	restored.header.lane_id = f->u.lane.id;
	restored.header.nonce = f->u.lane.nonce;
	memcpy(restored.header.secret, f->u.lane.secret, sizeof(restored.header.secret));
	if ((rc = restore_add(restore, &restored, pool, client, &memory, (int)f->u.lane.unready)) != 0) {
		log_event(LOG_LEVEL_WARN, "lane_not_taken", "cause=\"%s\"", error_text(rc));
		return 0;
	}
	item->fds[0] = item->fds[1] = item->fds[2] = -1;
	if (restored.header.lane_id > shard->lane_ids)
		shard->lane_ids = restored.header.lane_id;
	return 1;
}

static void
adopt_link(struct shard *shard, struct taken_item *item)
{
	const struct handover_frame *f = &item->packet.frame;
	struct pool *pool = shard_pool(shard, f->u.link.pool);

	for (uint32_t b = 0; pool != NULL && b < pool->peers.count; b++) {
		struct broker *broker = &pool->peers.list[b];
		if (strcmp(broker->config->address.text, f->u.link.broker) != 0 ||
		    f->u.link.index >= broker->link_count)
			continue;
		struct link *link = &broker->links[f->u.link.index];
		struct sock *sock = link->state == LINK_IDLE
					? world_uv_adopt(shard->world, item->fds[0], link_handlers(), link)
					: NULL;
		if (sock == NULL)
			return;
		item->fds[0] = -1;
		link_adopt(link, sock,
		    &(struct link_past){
			.client_id = f->u.link.client_id,
			.random = f->u.link.random,
			.hello = item->packet.bytes,
			.hello_len = f->u.link.hello_len,
			.saved = item->packet.bytes + f->u.link.hello_len,
			.saved_len = f->u.link.saved_len,
		    });
		return;
	}
}

void
handover_adopt(struct handover_taken *taken, struct loop *loop)
{
	struct shard *shard = &loop->shard;
	struct restore *restore = restore_new(shard);
	struct client *client = NULL;

	for (size_t i = 0; i < taken->count && restore != NULL; i++) {
		struct taken_item *item = taken->items[i];
		const struct handover_frame *f = &item->packet.frame;
		switch (f->type) {
		case HANDOVER_CLIENT:
			client = client_adopt(&loop->front, &loop->uv, item->fds[0], item->fds[1],
			    f->u.client.pid, f->u.client.uid, f->u.client.gid, f->u.client.name);
			if (client != NULL)
				item->fds[0] = item->fds[1] = -1;
			break;
		case HANDOVER_LANE:
			if (adopt_lane(shard, restore, f->orphan ? NULL : client, item) || f->orphan ||
			    client == NULL)
				break;
			client_close(client); /* it comes back with all its lanes */
			client = NULL;
			break;
		case HANDOVER_LINK:
			adopt_link(shard, item);
			break;
		default:
			break;
		}
	}
	if (restore != NULL)
		restore_begin(restore);
	/* Their lanes were told that their fences are raised, and they are not any more: they come back and are told. */
	while (!shard->expedited && !TAILQ_EMPTY(&loop->front.clients))
		client_close(TAILQ_FIRST(&loop->front.clients));
	log_event(
	    LOG_LEVEL_INFO, "taken_over", "lanes=%u clients=%u", shard->lane_count, loop->front.client_count);
	handover_free(taken);
}
