#include "loop.h"

#include "daemon/base/log.h"
#include "daemon/base/world_uv.h"

#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define DRAIN_LOOK_MS 5u
#define CLOSING_TURNS 16
#define PACE_US 100
#define PACE_OUTSTANDING 64u /* below this a message's own latency counts */
#define PACE_WORK 32u        /* a turn that did this much has paid for itself */

static void
on_event(void *owner)
{
	shard_refresh_clock(owner);
}

static void
on_wake(uv_timer_t *timer)
{
	/* Ends the sleep, also when it fires before the loop has begun to poll; timers_run follows. */
	uv_stop(timer->loop);
}

/* Sleeps until an event, the next timer of the shard, or `until`. */
static void
sleep_until_event(struct loop *loop, uint64_t until)
{
	uint64_t next = timers_next(&loop->shard.timers);

	if (until < next)
		next = until;
	if (next != TIMER_NEVER) {
		uint64_t ns = next > loop->shard.now_ns ? next - loop->shard.now_ns : 0;
		uv_update_time(&loop->uv);
		uv_timer_start(&loop->wake, on_wake, (ns + NS_PER_MS - 1) / NS_PER_MS, 0);
	}
	loop->shard.clock_is_stale = 1;
	uv_run(&loop->uv, UV_RUN_ONCE);
	uv_timer_stop(&loop->wake);
}

/*
 * A broker that answers one message at a time would cost a turn, two or three system calls and a
 * bell for each. While many are outstanding, a pause shorter than the time those take delays no client:
 * the answers gather (interrupt moderation, as in a network card).
 */
static void
pace(struct shard *shard)
{
	static const struct timespec pause = { .tv_nsec = PACE_US * 1000 };

	if (shard->outstanding >= PACE_OUTSTANDING && shard->work < PACE_WORK)
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	shard->work = 0;
}

static void
turn(struct loop *loop, uint64_t until)
{
	struct shard *shard = &loop->shard;
	int more = shard_turn(shard);

	pace(shard);
	if (more) {
		shard->clock_is_stale = 1;
		uv_run(&loop->uv, UV_RUN_NOWAIT);
	} else {
		sleep_until_event(loop, until);
	}
	shard->clock_is_stale = 1;
	shard_refresh_clock(shard);
	timers_run(&shard->timers, shard->now_ns);
}

int
loop_run(struct loop *loop)
{
	struct shard *shard = &loop->shard;

	prctl(PR_SET_TIMERSLACK, 1000UL); /* the pause is to be what it says, not 50 us more */
	shard_start(shard);
	while (!loop->done)
		turn(loop, TIMER_NEVER);
	return loop->drained ? 0 : 1;
}

void
loop_warm(struct loop *loop, uint32_t limit_ms)
{
	struct shard *shard = &loop->shard;
	uint64_t until = shard->now_ns + limit_ms * NS_PER_MS;

	shard_warm(shard);
	while (!loop->done && !shard_is_warm(shard) && shard->now_ns < until)
		turn(loop, until);
}

/* ---- the end ---- */

static void
on_drain(struct timer *timer)
{
	struct loop *loop = (struct loop *)(void *)((char *)timer - offsetof(struct loop, drain));
	struct shard *shard = &loop->shard;
	int empty = shard_is_empty(shard);

	if (!empty && shard->now_ns < loop->drain_until_ns) {
		timer_set(&shard->timers, &loop->drain, shard->now_ns + DRAIN_LOOK_MS * NS_PER_MS);
		return;
	}
	log_event(empty ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "stopping", "drained=%s limit_ms=%u",
	    empty ? "yes" : "no", shard->config->drain_ms);
	loop->drained = empty;
	loop->done = 1;
	shard_drain_links(shard);
}

void
loop_stop(struct loop *loop, const char *signal)
{
	struct shard *shard = &loop->shard;

	if (loop->signals++ > 0) {
		log_event(LOG_LEVEL_WARN, "stopping", "drained=no cause=\"second signal\"");
		loop->done = 1;
		return;
	}
	shard_refresh_clock(shard);
	log_event(LOG_LEVEL_INFO, "draining", "signal=%s lanes=%u limit_ms=%u", signal, shard->lane_count,
	    shard->config->drain_ms);
	shard->stopping = 1;
	loop->drain_until_ns = shard->now_ns + shard->config->drain_ms * NS_PER_MS;
	timer_set(&shard->timers, &loop->drain, shard->now_ns);
}

int
loop_init(struct loop *loop, const struct config *config)
{
	int rc;

	memset(loop, 0, sizeof(*loop));
	if (uv_loop_init(&loop->uv) != 0)
		return -TG_ENOMEM;
	loop->uv.data = loop;
	loop->world = world_uv_new(&loop->uv, on_event, &loop->shard);
	if (loop->world == NULL)
		return -TG_ENOMEM;
	rc = shard_init(&loop->shard, loop->world, config);
	if (rc == 0)
		rc = front_init(&loop->front, &loop->shard);
	if (rc != 0)
		return rc;
	rc = timers_reserve(&loop->shard.timers);
	if (rc != 0)
		return rc;
	loop->drain.fire = on_drain;
	uv_timer_init(&loop->uv, &loop->wake);
	return 0;
}

static void
close_handle(uv_handle_t *handle, void *arg)
{
	if (!uv_is_closing(handle))
		uv_close(handle, NULL);
}

void
loop_fini(struct loop *loop)
{
	if (loop->world == NULL)
		return; /* libuv aborts when a loop is closed that was not wholly made */
	front_fini(&loop->front);
	shard_fini(&loop->shard);
	world_uv_free(loop->world);
	uv_walk(&loop->uv, close_handle, NULL);
	for (int i = 0; i < CLOSING_TURNS && uv_loop_close(&loop->uv) == UV_EBUSY; i++)
		uv_run(&loop->uv, UV_RUN_NOWAIT);
}
