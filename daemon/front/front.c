#include "front.h"

#include "client.h"
#include "daemon/flow/shard.h"

#include <string.h>

static void
on_woken(struct client *client)
{
	client_owe_ring(client);
}

static void
on_gone(struct client *client, struct lane *lane)
{
	client_lane_gone(client, lane);
}

static void
on_late(struct client *client)
{
	client_end(client, -TG_ETIMEOUT);
}

static void
on_freed(void *owner, uint64_t began_ns, uint64_t took_ns)
{
	struct front *front = owner;

	if (took_ns > 0)
		control_charge(&front->control, took_ns);
	else
		control_end(&front->control, began_ns);
}

/* Looks at lanes after a ring of the doorbell: some of each client a turn. */
static void
on_turn(void *owner)
{
	struct front *front = owner;
	struct client *client, *next;

	for (client = TAILQ_FIRST(&front->looking); client != NULL; client = next) {
		next = TAILQ_NEXT(client, looking_entry);
		client_look(client);
	}
}

static int
on_turned(void *owner)
{
	struct front *front = owner;

	control_look(&front->control);
	return !TAILQ_EMPTY(&front->looking);
}

int
front_init(struct front *front, struct shard *shard)
{
	memset(front, 0, sizeof(*front));
	front->shard = shard;
	TAILQ_INIT(&front->clients);
	TAILQ_INIT(&front->looking);
	int rc = control_init(&front->control, shard, client_serve_held);
	if (rc == 0)
		rc = laneless_init(&front->laneless, shard, &front->control, client_dismiss);
	if (rc != 0)
		return rc;
	shard->lane_events = (struct lane_events){
		.owner = front, .woken = on_woken, .gone = on_gone, .late = on_late, .freed = on_freed
	};
	shard->events = (struct shard_events){ .owner = front, .turn = on_turn, .turned = on_turned };
	return 0;
}

void
front_fini(struct front *front)
{
	if (front->shard == NULL)
		return;
	while (!TAILQ_EMPTY(&front->clients))
		client_close(TAILQ_FIRST(&front->clients));
	control_fini(&front->control);
	timer_stop(&front->shard->timers, &front->laneless.timer);
}
