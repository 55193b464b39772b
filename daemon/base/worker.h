/*
 * A thread beside the loop for what would hold it up: one makes the memory of lanes, another frees it.
 *
 * The thread is made at the start, with all signals blocked. Where it cannot be had (pids.max, TasksMax=,
 * RLIMIT_NPROC, a seccomp filter) the daemon works without: it says so, does one job each time the loop comes
 * round, on the loop, and tries again to make the thread with every job.
 *
 * Owner: the world (world_uv.c). The functions are the loop's.
 */
#ifndef TG_DAEMON_WORKER_H
#define TG_DAEMON_WORKER_H

#include "world.h"

#include <uv.h>

struct world;
struct worker;

/* Returns NULL without memory. */
struct worker *worker_new(uv_loop_t *uv, struct world *world);

/* Has a job done, after those given before it; its done() follows from the loop. */
void worker_give(struct worker *worker, struct world_job *job);

/* Whether a job was given whose done() has not been called. */
int worker_is_busy(const struct worker *worker);

/* Ends the thread; it must not be busy. Its memory goes when the loop has closed its handle. */
void worker_free(struct worker *worker);

#endif
