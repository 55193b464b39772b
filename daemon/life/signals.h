/*
 * Signals. Only those that mean "stop" end the daemon; the others of which the default would end it are either
 * acted on, logged or ignored. signals.c has the table.
 *
 * Owner: main. One thread: the others block all signals.
 */
#ifndef TG_DAEMON_SIGNALS_H
#define TG_DAEMON_SIGNALS_H

#include "daemon/base/log.h"

#include <uv.h>

struct handover;
struct loop;

#define SIGNALS_WATCHED 12u

struct signals {
	struct loop *loop;
	struct handover *handover; /* NULL: no upgrade can begin yet */
	struct log_limit limit;
	uv_signal_t handles[SIGNALS_WATCHED];
};

/* First thing in main: from here on a stray signal harms nothing, and a mask that the parent left is undone. */
void signals_ignore(void);

/* Acts on them from the loop. */
void signals_init(struct signals *signals, struct loop *loop);

#endif
