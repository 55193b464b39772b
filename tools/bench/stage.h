/*
 * --start: a tidegated and a broker of the bench's own, on free loopback ports, in a folder under
 * $TMPDIR that is gone afterwards.
 *
 * Owner: main. Everything it starts ends with stage_stop(), or with this process.
 */
#ifndef TG_BENCH_STAGE_H
#define TG_BENCH_STAGE_H

#include "tools/bench/bench.h"

#include <limits.h>

struct stage {
	char folder[PATH_MAX]; /* empty: none */
	char socket[PATH_MAX];
	pid_t broker, daemon;
	uint16_t port;
};

/*
 * Starts what options->start names, waits until messages can be published, and makes options point
 * at it. Returns 0, or -1 with a message shown, and nothing left.
 */
int stage_start(struct stage *stage, struct bench_options *options);
void stage_stop(struct stage *stage, int keep);

#endif
