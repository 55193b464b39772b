/*
 * The service manager's descriptor store: a copy of every lane's memory outside this process.
 *
 * A lane's memory outlives the daemon in its producer, which hands it back. When the producer has ended
 * the daemon's descriptors are the only ones; when that dies too, the records are gone. So systemd is given
 * two to keep, of the ring and of the answers (sd_pid_notify_with_fds(3), FDSTORE=1), under a name that says whose
 * they are:
 *
 *     lane-NONCE-UID-PID     16 hexadecimal digits, decimal, decimal
 *
 * and gives all of them to the daemon that it starts next (sd_listen_fds_with_names(3)). A kept lane
 * is as untrusted as any lane that is handed back: only the name is the manager's word. Such a lane has no
 * client yet. It works like an orphan for KEEPER_AWAIT_MS, in which its producer, if there is one, finds
 * the daemon again and reclaims it; then it is one.
 *
 * The manager takes as many as FileDescriptorStoreMax= says and silently drops the others (from version
 * 254 on it says how many: $FDSTORE; then we count, and say so). A lane it has no room for is served like
 * any other, and lost if its producer and the daemon both die. It takes no part in anything else.
 *
 * Nothing waits for the manager: messages that its socket does not take now are tried again every
 * KEEPER_RETRY_MS, at most KEEPER_PENDING of them; further lanes are not kept.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_KEEPER_H
#define TG_DAEMON_KEEPER_H

#include "daemon/lane/lane.h"

#include <stdint.h>

#define KEEPER_AWAIT_MS 5000u /* the library tries at least once a second */
#define KEEPER_RETRY_MS 50u
#define KEEPER_PENDING 1024u

struct keeper;

/*
 * Becomes the shard's store (lane_keep, lane_forget) until the owner sets shard->store to NULL or frees the shard.
 * Returns 0, with *keeper NULL where no service manager listens ($NOTIFY_SOCKET), or -TG_ENOMEM.
 */
int keeper_new(struct keeper **keeper, struct shard *shard);
void keeper_free(struct keeper *keeper);

/* Takes what the manager has passed: the lanes are kept for keeper_restore. Returns the listening control
 * socket, the caller's, or -1. keeper may be NULL. */
int keeper_inherit(struct keeper *keeper);

/* Puts the lanes that came back to work. For a loop that has not begun. keeper may be NULL. */
void keeper_restore(struct keeper *keeper);

/* Whether the manager has a lane. One that waits to be said, and would not be if this process ended now, it has not. */
int keeper_has(const struct lane *lane);

/* It keeps a lane already: the daemon before us saw to that. */
void keeper_keep_on(struct lane *lane);

#endif
