/*
 * The admin socket: one JSON object a line in, one a line out.
 *
 *   {"cmd":"status"}                    →  {"ok":true,"status":{…}}
 *   {"cmd":"links","pool":"events"}     →  {"ok":true,"links":[…]}
 *   {"cmd":"lanes","max":50}            →  {"ok":true,"lanes":[…],"next":51}
 *   {"cmd":"lanes","max":50,"from":51}  →  {"ok":true,"lanes":[…]}
 *   {"cmd":"why","lane":12}             →  {"ok":true,"why":[{"text":"lane 12: …",…}]}
 *   {"cmd":"events","follow":true}      →  {"ok":true,"seq":…,"events":[…]}, then {"event":{…}} for each new
 * one
 *   {"cmd":"nonsense"}                  →  {"ok":false,"error":"…"}
 *
 * Commands are admin_commands.def. The loop must not wait for an admin: a report is made ADMIN_PAGE
 * rows at a time, one page a turn, also when the whole of it was asked for and goes out as one line
 * (rows of one line are then not all of one moment). A connection's next request is looked at when
 * the answer to the last has been written, so that a connection whose peer does not read keeps
 * only its current page and ADMIN_QUEUED bytes of events; beyond those the daemon closes it.
 *
 * Owner: main. One thread.
 */
#ifndef TG_DAEMON_ADMIN_H
#define TG_DAEMON_ADMIN_H

#include "daemon/base/answer.h"
#include "daemon/base/events.h"
#include "daemon/flow/shard.h"

#include <jansson.h>
#include <sys/queue.h>
#include <uv.h>

#define ADMIN_CONNECTIONS 64u   /* one more, and who has asked nothing for longest goes */
#define ADMIN_LINE 65536u       /* longest request */
#define ADMIN_QUEUED (4u << 20) /* most bytes one admin may leave unread */
#define ADMIN_PAGE 128u         /* rows made in a turn */

struct admin_session;
TAILQ_HEAD(admin_sessions, admin_session);

struct admin {
	struct front *front;
	struct shard *shard; /* the front's */
	uv_loop_t *loop;
	struct handover *handover; /* for "upgrade"; NULL: there is none */
	struct events events;
	uv_async_t came; /* new events, for those who follow */
	int started;
	struct log_limit refused_limit;
	struct admin_sessions sessions;
	uint32_t connections;
};

/* Events are kept from here on. Returns 0 or -TG_ENOMEM. */
int admin_init(struct admin *admin, struct front *front, uv_loop_t *loop);

/* Closes all connections; the loop must run once more to free their memory. Accepts a zeroed one. */
void admin_fini(struct admin *admin);

/* Takes over an accepted socket. */
void admin_accept(struct admin *admin, int fd);

/* Tells a connection that there is no descriptor for it; the caller closes it. */
void admin_turn_away(struct admin *admin, int fd);

/*
 * One command to its answer, a new reference; NULL without memory. A report with more rows than
 * fit the request's max, or ADMIN_PAGE, has `next`: the `from` of the next page. admin_report.c
 */
json_t *admin_answer(struct admin *admin, const json_t *request);

/* ---- for the commands ---- */

/* A request that was checked, and its answer under way. */
struct admin_query {
	struct admin *admin;
	struct shard *shard;
	struct pool *pool; /* the one asked about; NULL: all */
	uint64_t lane;     /* 0: none */
	uint64_t from;     /* number of the first row */
	uint64_t max;      /* rows */
	uint64_t since;    /* events; 0: all */
	int orphans;
	struct answer answer;
	char error[320]; /* "": none */
};

/* One event as it is answered and pushed. Returns 0, or -TG_ENOTFOUND: it is kept no longer. */
int admin_event(struct answer *event, struct events *events, uint64_t seq);

/* admin_why.c */
void admin_why(struct admin_query *query);

/* admin_users.c */
void admin_users(struct admin_query *query);

#endif
