#include "laneless.h"

#include "client.h"
#include "front.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"
#include "shm/frame.h"

#include <stddef.h>
#include <stdio.h>

#define ENDED_A_TURN 8u /* they may all have come at once */

static uint64_t
limit_ns(const struct laneless *laneless)
{
	return laneless->shard->config->limits.laneless_ms * NS_PER_MS;
}

static void
set_timer(struct laneless *laneless)
{
	const struct client *first = TAILQ_FIRST(&laneless->clients);

	if (first == NULL)
		timer_stop(&laneless->shard->timers, &laneless->timer);
	else
		timer_set(&laneless->shard->timers, &laneless->timer, first->laneless_ns + limit_ns(laneless));
}

static void
end(struct laneless *laneless, struct client *client, const char *why)
{
	struct shard *shard = laneless->shard;
	char text[FRAME_TEXT];

	shard->count.laneless_ended++;
	log_limited(&laneless->limit, LOG_LEVEL_INFO, "client_ended", "pid=%d uid=%u ms=%llu cause=\"%s\"",
	    (int)client->pid, client->uid,
	    (unsigned long long)((shard->now_ns - client->laneless_ns) / NS_PER_MS), why);
	snprintf(text, sizeof(text), "process %d of user %u had no lane for %llu ms: %s", (int)client->pid,
	    client->uid, (unsigned long long)((shard->now_ns - client->laneless_ns) / NS_PER_MS), why);
	laneless->dismiss(client, TG_ECLOSED, text);
}

static void
on_time(struct timer *timer)
{
	struct laneless *laneless =
	    (struct laneless *)(void *)((char *)timer - offsetof(struct laneless, timer));
	struct shard *shard = laneless->shard;
	struct client *client;
	char why[64];

	if (shard->paused) { /* a successor has them, or time begins anew */
		timer_set(&shard->timers, timer, shard->now_ns + limit_ns(laneless));
		return;
	}
	snprintf(why, sizeof(why), "limits.laneless_ms is %u", shard->config->limits.laneless_ms);
	uint64_t began = control_begin(laneless->control);
	for (uint32_t n = 0; n < ENDED_A_TURN && (client = TAILQ_FIRST(&laneless->clients)) != NULL &&
			     client->laneless_ns + limit_ns(laneless) <= shard->now_ns;
	     n++)
		end(laneless, client, why);
	control_end(laneless->control, began);
	set_timer(laneless);
}

int
laneless_init(struct laneless *laneless, struct shard *shard, struct control *control,
    void (*dismiss)(struct client *client, int code, const char *text))
{
	*laneless =
	    (struct laneless){ .shard = shard, .control = control, .dismiss = dismiss, .timer.fire = on_time };
	TAILQ_INIT(&laneless->clients);
	return timers_reserve(&shard->timers);
}

static void
leave(struct client *client)
{
	struct laneless *laneless = &client->front->laneless;

	if (!client->laneless)
		return;
	client->laneless = 0;
	laneless->count--;
	TAILQ_REMOVE(&laneless->clients, client, laneless_entry);
	TAILQ_REMOVE(&client->account->laneless, client, account_entry);
}

void
laneless_look(struct client *client)
{
	struct laneless *laneless = &client->front->laneless;
	int has_lane = client->lane_count > 0 || client->attach != NULL;

	if (has_lane) {
		leave(client);
		return;
	}
	if (client->laneless)
		return;
	client->laneless = 1;
	client->laneless_ns = client->shard->now_ns;
	laneless->count++;
	TAILQ_INSERT_TAIL(&laneless->clients, client, laneless_entry);
	TAILQ_INSERT_TAIL(&client->account->laneless, client, account_entry);
	if (laneless->timer.place == 0)
		set_timer(laneless);
}

void
laneless_gone(struct client *client)
{
	leave(client);
}

int
laneless_make_room(struct laneless *laneless, const struct account *account, const struct account_no *no)
{
	struct client *client = TAILQ_FIRST(account != NULL ? &account->laneless : &laneless->clients);
	char why[96];

	if (client == NULL)
		return 0;
	snprintf(
	    why, sizeof(why), "its place was wanted, %s is %llu", no->limit, (unsigned long long)no->value);
	end(laneless, client, why);
	return 1;
}
