/*
 * The last events: lines of the log of level info and above, and every change of a link's state,
 * kept for admins whatever the log's own level is.
 *
 * Numbered from 1 on. At most EVENTS_KEPT lines of at most LOG_LINE bytes are kept: the oldest goes
 * for the newest. A line that finds no memory is missing, its number is not used again.
 *
 * Owner: main. Threads: any may log; everything else belongs to the thread that owns it. One in a
 * process, since there is one log.
 */
#ifndef TG_DAEMON_EVENTS_H
#define TG_DAEMON_EVENTS_H

#include "log.h"

#include <pthread.h>
#include <stdint.h>

#define EVENTS_KEPT 1024u

struct event {
	uint64_t seq; /* 0: none */
	enum log_level level;
	char *line; /* without line break */
};

struct events {
	struct log_tap tap;
	pthread_mutex_t lock;
	struct event kept[EVENTS_KEPT];      /* seq s at s % EVENTS_KEPT */
	uint64_t next;                       /* the number of the next */
	void (*came)(struct events *events); /* from any thread, after each; may be NULL */
};

/* Begins to listen. came() must do no more than wake a thread. */
void events_init(struct events *events, void (*came)(struct events *events));
void events_fini(struct events *events);

/* The number that the next event gets, and the oldest number that may still be there. */
uint64_t events_next(struct events *events);
uint64_t events_first(struct events *events);

/* Copies event seq into line (LOG_LINE bytes, terminated). Returns 0, or -TG_ENOTFOUND. */
int events_get(struct events *events, uint64_t seq, enum log_level *level, char *line);

#endif
