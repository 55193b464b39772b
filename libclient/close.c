/* Closing a lane: wait for what was published, give the lane back to the daemon, free it. */
#include "internal.h"

#include <inttypes.h>
#include <unistd.h>

int
tg_lane_close(struct tg_lane *lane, int timeout_ms)
{
	struct frame request, answer;
	struct tg_client *client;
	int fds[FRAME_FDS];
	int rc, flushed;

	if (lane == NULL)
		return 0;
	client = lane->client;
	if (fork_is_child(&lane->mark)) {
		rc = lane_trouble(lane);
		lane_free(lane);
		return rc;
	}
	if (lane->busy)
		(void)tg_abort(lane);
	flushed = tg_flush(lane, timeout_ms);
	frame_init(&request, FRAME_LANE_CLOSE, 0);
	client_lock(client);
	request.u.lane.lane_id = lane->lane_id; /* which the next daemon may have changed */
	/* Memory that no other process maps any more costs the daemon less to free. */
	lane_drop_memory(lane);
	rc = client_is_lost(client)
		 ? detail_fail(-TG_ECLOSED, "lane %" PRIu64 ": tidegated is away", lane->lane_id)
		 : control_request(client, &request, &answer, FRAME_LANE_CLOSED, fds);
	for (unsigned i = 0; rc == 0 && i < FRAME_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	lane_free(lane);
	client_unlock(client);
	/* Without a daemon that could go on delivering, waiting longer would not help. */
	return flushed == 0 || (flushed == -TG_ETIMEOUT && rc == -TG_ECLOSED) ? rc : flushed;
}
