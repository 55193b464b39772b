/*
 * The front door: everything that local processes connect to. It holds the clients and the limits on their requests,
 * apart from the shard that serves their lanes: the shard knows it through two structs of callbacks (struct lane_events,
 * struct shard_events), which front_init() fills.
 *
 * Owner: the loop. One thread.
 */
#ifndef TG_DAEMON_FRONT_H
#define TG_DAEMON_FRONT_H

#include "control.h"
#include "laneless.h"
#include "daemon/base/log.h"

#include <stdint.h>
#include <sys/queue.h>

TAILQ_HEAD(client_list, client);

struct front {
	struct shard *shard;
	struct control control;
	struct laneless laneless; /* clients that have no lane */
	struct client_list clients;
	struct client_list looking; /* clients that have rung, by looking_entry */
	uint32_t client_count;
	uint32_t unheard;            /* clients whose doorbells are not listened to now: client.h */
	struct log_limit gone_limit; /* clients that connect and send nonsense */
	struct log_limit unheard_limit;
	struct log_limit turned_away_limit;
};

/* Becomes the shard's front. Returns 0 or -TG_ENOMEM. */
int front_init(struct front *front, struct shard *shard);

/* Closes all clients, whose lanes become orphans. Before shard_fini(). */
void front_fini(struct front *front);

#endif
