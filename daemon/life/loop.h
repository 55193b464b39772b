/*
 * The loop of one shard on libuv: sockets and timers. loop.c is where a reader should start.
 *
 * Owner: main. One thread.
 */
#ifndef TG_DAEMON_LOOP_H
#define TG_DAEMON_LOOP_H

#include "daemon/flow/shard.h"

#include <uv.h>

struct loop {
	uv_loop_t uv;
	struct world *world; /* world_uv.c */
	struct shard shard;
	uv_timer_t wake;   /* for timers_next() */
	struct timer drain; /* while stopping: looks whether everything is done */
	uint64_t drain_until_ns;
	int signals;       /* that ask it to stop, received */
	int done;
	int drained;       /* everything was answered before the end */
};

/* Returns 0 or a negative TG_E after saying why. */
int loop_init(struct loop *loop, const struct config *config);
void loop_fini(struct loop *loop);

/* Before a takeover: runs until the links that will not be handed over are proven, or have failed once, or
 * limit_ms is over. */
void loop_warm(struct loop *loop, uint32_t limit_ms);

/* Runs until a signal has ended it. Returns 0 if everything was drained, 1 if not. */
int loop_run(struct loop *loop);

/* A signal asks it to stop: drains, and at the second one ends at once. signal: its name, for the log. */
void loop_stop(struct loop *loop, const char *signal);

/* The clock is read once a turn, and once more when the loop has slept: each callback of the loop says so first. */
void loop_refresh_clock(struct shard *shard);

/* The libuv world of a loop. Returns NULL without memory. The loop is closed after it was freed, not before. */
struct world *world_uv_new(uv_loop_t *uv, struct shard *shard);
void world_uv_free(struct world *world);

/* The descriptor of a broker socket, still its; and a socket made of a connected one, which it owns on success. */
int world_uv_sock_fd(const struct sock *sock);
struct sock *world_uv_adopt(struct world *world, int fd, const struct sock_handlers *handlers, void *owner);

#endif
