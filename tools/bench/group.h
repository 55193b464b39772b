/*
 * A number of forked processes that do the same thing at the same time.
 *
 *	child  prepare ── ready ──┐            ┌─ work ─ exit
 *	child  prepare ── ready ──┤ all ready  ├─ work ─ exit
 *	parent …                  └─► release ─┘            └─► all gone
 *
 * Each writes its result into its own slot of memory it shares with the parent. A child dies with
 * its parent; one that fails leaves the reason in its slot. Owner: the parent; one group at a time.
 */
#ifndef TG_BENCH_GROUP_H
#define TG_BENCH_GROUP_H

#include "tools/bench/bench.h"

struct group_slot {
	char error[512]; /* empty: all is well */
	int ready, done;
	uint64_t start_ns, end_ns; /* of the work, CLOCK_MONOTONIC */
	uint64_t cpu_ns;           /* this process's, during the work */
	uint64_t finished;         /* messages */
	struct histogram latency;  /* ns */
	double figures[4];         /* further figures of a job */
};

struct group {
	struct group_slot *slots;
	pid_t *pids;
	size_t count;
	int ready_fd;   /* a byte from each child that is ready */
	int release_fd; /* closed to let them go */
	int alive_fd;   /* end of file when all are gone */
};

/* The two halves of a child's life. prepare returns an object or NULL, work 0 or -1; both leave the reason in
 * client_error. */
struct group_job {
	void *(*prepare)(const void *context);
	int (*work)(void *object, const void *context, struct group_slot *slot);
	void (*finish)(void *object, const void *context);
};

/* Forks count children and waits until all are ready. Returns 0, or -1 with a message shown; then it is over.
 */
int group_start(struct group *group, size_t count, const struct group_job *job, const void *context);

/* Lets them work and waits until all are gone. Returns 0, or -1 with a message shown. */
int group_run(struct group *group);

/* Ends what is left of them. A zeroed group is fine. */
void group_fini(struct group *group);

#endif
