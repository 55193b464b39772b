/*
 * A client: one attached process, seen through its control socket.
 *
 * It opens and closes lanes (frame.h) and owns one doorbell for all of them. When its socket hangs
 * up its lanes become orphans: what they hold committed is delivered, and they go.
 *
 * Everything that comes from it is checked; an answer that its socket does not take at once ends it.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_CLIENT_H
#define TG_DAEMON_CLIENT_H

#include "lane.h"

#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

struct client {
	struct shard *shard;
	int fd;
	int doorbell;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	char name[32];
	uv_poll_t control_poll;
	uv_poll_t doorbell_poll;
	int open_handles;
	struct lane_list asleep; /* by place_entry */
	uint32_t asleep_count;
	uint32_t to_look; /* sleeping lanes still to be looked at since the last ring; 0: not on the list */
	TAILQ_ENTRY(client) looking_entry;
	struct lane_list lanes;  /* by client_entry */
	uint32_t lane_count;
	TAILQ_ENTRY(client) entry;
};

/* Takes over an accepted socket, closing it when the client cannot be had: then -TG_ELIMIT, -TG_ENOMEM. */
int client_new(struct shard *shard, uv_loop_t *loop, int fd);

/* A client whose socket and doorbell exist already: they become the client's. NULL without memory. */
struct client *client_adopt(struct shard *shard, uv_loop_t *loop, int fd, int doorbell, pid_t pid, uid_t uid,
    gid_t gid, const char *name);

/* A lane joins its client. */
void client_add_lane(struct client *client, struct lane *lane);

/* Hangs up; its lanes become orphans. The memory goes when the loop has let go of it. */
void client_close(struct client *client);

/* Looks at some of its sleeping lanes; for the shard's turn. */
void client_look(struct client *client);

/* A lane leaves its client. */
void client_lane_gone(struct client *client, struct lane *lane);

int client_pid(const struct client *client);

#endif
