#include "control.h"

#include "client.h"
#include "daemon/flow/shard.h"

#define CONTROL_SHARE 8u /* one part in so many of the time */
#define CONTROL_BURST_NS (4 * NS_PER_MS)

/* No lane has messages that wait for the loop. */
static int
is_idle(const struct shard *shard)
{
	return shard->active_count == 0 && shard->outstanding == 0;
}

int
control_may(const struct control *control)
{
	const struct shard *shard = control->shard;

	return !shard->paused && (is_idle(shard) || control->allowance.free_ns <= world_now(shard->world));
}

uint64_t
control_begin(const struct control *control)
{
	return world_now(control->shard->world);
}

void
control_end(struct control *control, uint64_t began_ns)
{
	uint64_t now_ns = world_now(control->shard->world);

	allowance_charge(&control->allowance, now_ns, now_ns - began_ns, CONTROL_SHARE, CONTROL_BURST_NS);
}

void
control_charge(struct control *control, uint64_t took_ns)
{
	allowance_charge(&control->allowance, world_now(control->shard->world), took_ns, 1, CONTROL_BURST_NS);
}

static void
wait_for_time(struct control *control)
{
	struct shard *shard = control->shard;

	if (shard->paused || (TAILQ_EMPTY(&control->held) && !control->listener_held))
		return;
	uint64_t free_ns = control->allowance.free_ns;
	uint64_t at_ns = is_idle(shard) || free_ns < shard->now_ns ? shard->now_ns : free_ns;
	timer_set(&shard->timers, &control->timer, at_ns);
}

void
control_look(struct control *control)
{
	if (is_idle(control->shard))
		wait_for_time(control);
}

/* One piece of work a turn, so that lanes with messages are served in between. */
static void
on_time(struct timer *timer)
{
	struct control *control = (struct control *)(void *)((char *)timer - offsetof(struct control, timer));
	struct client *client = TAILQ_FIRST(&control->held);

	if (control_may(control)) {
		if (control->listener_held && control->listener != NULL &&
		    (client == NULL || control->listener_next)) {
			control->listener_next = 0;
			control->listener_held = 0;
			control->accept(control->listener);
		} else if (client != NULL) {
			control->listener_next = 1;
			control_gone(control, client);
			control->serve(client);
		}
	}
	wait_for_time(control);
}

void
control_hold(struct control *control, struct client *client)
{
	if (client->held)
		return;
	client->held = 1;
	TAILQ_INSERT_TAIL(&control->held, client, held_entry);
	wait_for_time(control);
}

void
control_gone(struct control *control, struct client *client)
{
	if (!client->held)
		return;
	client->held = 0;
	TAILQ_REMOVE(&control->held, client, held_entry);
}

void
control_hold_listener(struct control *control)
{
	control->listener_held = 1;
	wait_for_time(control);
}

void
control_resume(struct control *control)
{
	wait_for_time(control);
}

int
control_init(struct control *control, struct shard *shard, void (*serve)(struct client *client))
{
	*control = (struct control){ .shard = shard, .serve = serve, .timer.fire = on_time };
	TAILQ_INIT(&control->held);
	return timers_reserve(&shard->timers);
}

void
control_fini(struct control *control)
{
	if (control->shard != NULL)
		timer_stop(&control->shard->timers, &control->timer);
	control->listener = NULL;
	control->listener_held = 0;
}
