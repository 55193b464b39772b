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
	char log[PATH_MAX];                 /* of the program that was started last */
	char cert[PATH_MAX], key[PATH_MAX]; /* with TLS */
	char key_store[PATH_MAX];           /* ... both, as PKCS #12 */
	pid_t broker, daemon;
	pid_t epmd; /* RabbitMQ's */
	uint16_t port;
};

/* A line of brokers.def. */
struct stage_broker {
	const char *name, *program;
	const char *protocols; /* with blanks between them, the default first */
	int (*start)(struct stage *stage, const struct bench_options *options);
};

/* The broker of that name, or NULL. */
const struct stage_broker *stage_broker(const char *name);
int stage_broker_speaks(const struct stage_broker *broker, const char *protocol);

/*
 * Starts options->start, waits until messages can be published, and makes options point
 * at it. Returns 0, or -1 with a message shown, and nothing left.
 */
int stage_start(struct stage *stage, struct bench_options *options);
void stage_stop(struct stage *stage, int keep);

#endif
