/*
 * The loop of one shard on libuv: sockets and timers. loop.c is where a reader should start.
 *
 * Owner: main. One thread.
 */
#ifndef TG_DAEMON_LOOP_H
#define TG_DAEMON_LOOP_H

#include "daemon/flow/shard.h"
#include "daemon/front/front.h"

#include <uv.h>

struct loop {
	uv_loop_t uv;
	struct world *world; /* world_uv.c */
	struct shard shard;
	struct front front; /* its clients */
	uv_timer_t wake;    /* for timers_next() */
	struct timer drain; /* while stopping: looks whether everything is done */
	uint64_t drain_until_ns;
	int signals; /* that ask it to stop, received */
	int done;
	int drained; /* everything was answered before the end */
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

#endif
