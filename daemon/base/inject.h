/*
 * Dying on purpose, at a named point, for the tests of what a crash leaves behind.
 *
 * Only in builds configured with --enable-injection; elsewhere INJECT() is nothing. There
 * TIDEGATED_INJECT=POINT:N kills the process (SIGKILL, nothing is flushed or undone) the N-th time it
 * comes by POINT, one of inject.def.
 */
#ifndef TG_DAEMON_INJECT_H
#define TG_DAEMON_INJECT_H

#ifdef TG_INJECTION
enum inject_point {
#define X(name, where) INJECT_##name,
#include "inject.def"
#undef X
	INJECT_POINTS
};

void inject(enum inject_point point);
#define INJECT(name) inject(INJECT_##name)
#else
#define INJECT(name) ((void)0)
#endif

#endif
