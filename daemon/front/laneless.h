/*
 * Connections that have no lane: silent ones, those whose lane is not asked for yet, and those whose last lane was closed.
 *
 * They cost the daemon two descriptors and a place each, and their processes nothing. So one goes, told why in a frame
 * (ERROR TG_ECLOSED, serial 0), when it has had no lane for limits.laneless_ms, or earlier when its place is wanted:
 * the one without a lane for the longest time makes room, of its own user when that user's limit is reached, of all
 * users when theirs is. A lane that is on its way is a lane. libtidegate connects anew when its next lane is asked for.
 *
 * Owner: the shard. One thread.
 */
#ifndef TG_DAEMON_LANELESS_H
#define TG_DAEMON_LANELESS_H

#include "daemon/lane/account.h"
#include "daemon/base/timer.h"

#include <stdint.h>
#include <sys/queue.h>

struct client;
struct control;
struct shard;

struct laneless {
	struct shard *shard;
	struct control *control;
	void (*dismiss)(struct client *client, int code, const char *text);
	struct laneless_list clients; /* by laneless_entry, the longest first */
	uint32_t count;
	struct timer timer;
	struct log_limit limit;
};

/* Returns 0 or -TG_ENOMEM. */
int laneless_init(struct laneless *laneless, struct shard *shard, struct control *control,
    void (*dismiss)(struct client *client, int code, const char *text));

/* The client is new, or has a lane more or one less, or goes. */
void laneless_look(struct client *client);
void laneless_gone(struct client *client);

/*
 * Ends one so that another connection can be had. account: one of this user; NULL: of any. Returns whether there was one.
 */
int laneless_make_room(struct laneless *laneless, const struct account *account, const struct account_no *no);

#endif
