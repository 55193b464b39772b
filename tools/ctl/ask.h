/*
 * The admin socket from the asking side: one JSON object a line each way (daemon/admin/admin.h).
 *
 * Every failure is printed with its remedy on standard error before the call returns. Not
 * for threads.
 */
#ifndef TG_TOOLS_CTL_ASK_H
#define TG_TOOLS_CTL_ASK_H

#include <jansson.h>
#include <stddef.h>

#define ASK_TIMEOUT_S 10 /* for an answer; events that are followed are waited for without end */
#define ASK_LINE (64u << 20)

struct ask {
	const char *path;
	int fd;
	char *buffer;
	size_t start, len, size; /* bytes received: [start, start + len) */
	int patient;             /* the caller will ask_again(): a hang-up is said so */
	int lost;                /* the daemon has hung up, or does not answer */
};

/* As ask_open, but silent when no daemon accepts: while one daemon takes over from another. */
int ask_try(struct ask *ask, const char *path);

/* Connects again once there is a daemon to connect to, and says so. */
void ask_again(struct ask *ask);

/* Returns 0 or -1. ask_close accepts a zeroed or half-open one. */
int ask_open(struct ask *ask, const char *path);
void ask_close(struct ask *ask);

/*
 * Sends a request, which is taken over, and returns the answer, a new reference; NULL when there is
 * none, or the daemon's answer is an error.
 */
json_t *ask_once(struct ask *ask, json_t *request);

/* The next line from the daemon, waited for without end: an event. NULL when it has hung up. */
json_t *ask_next(struct ask *ask);

#endif
