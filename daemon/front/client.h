/*
 * A client: one attached process, seen through its control socket.
 *
 * It opens and closes lanes (frame.h) and owns one doorbell for all of them. When its socket hangs
 * up its lanes become orphans: their committed records are delivered, then the lanes are freed.
 *
 * Everything that comes from it is checked; an answer that its socket does not take at once ends it.
 *
 * One sleep of a lane is rung once (wake.h), so there are hardly more rings than wakings; those that come after the
 * waking, which another ring or a look of the daemon's own has brought about, are still owed. A ring that was
 * not owed costs the loop more than its client. It is charged to a token bucket (allowance.h): a client whose
 * rings take more than a thirty-second of the loop's time (less where several clients ring so) is ignored until
 * it has earned some, for about a tenth of a second at most. Meanwhile only records of its own lanes that slept
 * wait.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_CLIENT_H
#define TG_DAEMON_CLIENT_H

#include "daemon/lane/account.h"
#include "daemon/base/allowance.h"
#include "daemon/lane/lane.h"
#include "daemon/base/timer.h"

#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>
#include <uv.h>

struct attach;
struct front;
struct frame;

#define CLIENT_DESCRIPTORS 2u /* its socket and its doorbell */

struct client {
	struct front *front;
	struct shard *shard; /* that serves its lanes */
	int fd;
	int doorbell;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	struct account *account;
	int laneless; /* it is on the two lists of those without a lane */
	uint64_t laneless_ns;
	TAILQ_ENTRY(client) laneless_entry, account_entry;
	char name[32];
	uv_poll_t control_poll;
	uv_poll_t doorbell_poll;
	int open_handles;
	struct lane_list asleep; /* by place_entry */
	uint32_t asleep_count;
	uint32_t to_look; /* sleeping lanes still to be looked at since the last ring; 0: not on the list */
	uint32_t looks;   /* how many they were at that ring */
	TAILQ_ENTRY(client) looking_entry;
	uint32_t
	    rings_owed; /* wakings without a ring so far; at most one a lane, and one that is just being read */
	struct allowance idle_rings; /* rings that were not owed */
	struct timer unheard;        /* set: its doorbell is not listened to until then */
	struct lane_list lanes;      /* by client_entry */
	uint32_t lane_count;
	TAILQ_ENTRY(client) entry;
	struct attach *attach; /* its request that is on its way; NULL: none */
	uint32_t restoring;    /* its lanes that are on their way from another daemon: restore.h */
	int held;              /* its socket is not read: see control.h */
	TAILQ_ENTRY(client) held_entry;
};

/* Takes over an accepted socket, closing it when the client cannot be had: then -TG_ELIMIT, -TG_ENOMEM. */
int client_new(struct front *front, uv_loop_t *loop, int fd);

/* Tells a connection that there is no descriptor for it; the caller closes it. */
void client_turn_away(struct front *front, int fd);

/* A client whose socket and doorbell exist already: they become the client's. NULL without memory. */
struct client *client_adopt(struct front *front, uv_loop_t *loop, int fd, int doorbell, pid_t pid, uid_t uid,
    gid_t gid, const char *name);

/* One of its lanes is on its way (1), or has come or failed (-1): meanwhile its socket is not read. */
void client_restore(struct client *client, int step);

/* A lane joins its client. */
void client_add_lane(struct client *client, struct lane *lane);

/* Reads its socket, or does not: as it has no request on its way and is not held. */
void client_watch(struct client *client);

/* It was held, and is no more: serves a request. */
void client_serve_held(struct client *client);

/*
 * Answers. A non-zero return ends the client: client_end().
 * An answer that does not fit its socket's buffer is one: it does not read.
 */
int client_answer(struct client *client, const struct frame *frame, const int *fds, unsigned nfds);
int client_refuse(struct client *client, uint32_t serial, int code, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* The same for a limit (account.h), and a line in the log. */
int client_refuse_limit(struct client *client, uint32_t serial, const struct account_no *no);

/* Says why, and closes. */
void client_end(struct client *client, int why);

/* The same, and tells the client, in a frame that answers no request. */
void client_dismiss(struct client *client, int code, const char *text);

/* Its request's lane is on its way, or is not any more. */
void client_set_attach(struct client *client, struct attach *attach);

/* Hangs up; its lanes become orphans. The memory goes when the loop has let go of it. */
void client_close(struct client *client);

/* A lane of it has been woken, or may be rung without having slept: a ring of its doorbell may still come. */
void client_owe_ring(struct client *client);

/* Looks at some of its sleeping lanes; for the shard's turn. */
void client_look(struct client *client);

/* A lane leaves its client. */
void client_lane_gone(struct client *client, struct lane *lane);

int client_pid(const struct client *client);

#endif
