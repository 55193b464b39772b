#include "broker.h"

#include "daemon/base/log.h"
#include "daemon/flow/shard.h"

#include <stdlib.h>
#include <string.h>

#define SLOW_START_PERCENT 10u /* of its weight, at first */
#define AT_ONCE_MS 5u          /* a link that was closed over a message connects again within */

static const struct config_breaker *
breaker_of(const struct broker *broker)
{
	return &broker->peers->config->breaker;
}

int
broker_init(struct broker *broker, const struct peers *peers, const struct config_broker *config)
{
	memset(broker, 0, sizeof(*broker));
	broker->peers = peers;
	broker->config = config;
	endpoints_init(&broker->endpoints, world_random(peers->shard->world));
	broker->links = calloc(peers->config->links, sizeof(*broker->links));
	if (broker->links == NULL)
		return -TG_ENOMEM;
	if (peers->config->driver->memory_size > 0 &&
	    (broker->memory = calloc(1, peers->config->driver->memory_size)) == NULL)
		return -TG_ENOMEM;
	for (; broker->link_count < peers->config->links; broker->link_count++) {
		int rc = link_init(&broker->links[broker->link_count], broker, ++peers->shard->link_ids);
		if (rc != 0)
			return rc;
	}
	return 0;
}

void
broker_fini(struct broker *broker)
{
	for (uint32_t i = 0; i < broker->link_count; i++)
		link_fini(&broker->links[i]);
	if (broker->apart != NULL)
		link_fini(broker->apart);
	free(broker->apart);
	tls_sessions_fini(&broker->tls_sessions);
	endpoints_fini(&broker->endpoints);
	free(broker->links);
	free(broker->memory);
	broker->links = NULL;
	broker->memory = NULL;
	broker->link_count = 0;
}

static void
start_spread(struct broker *broker, const struct link *but, uint32_t within_ms)
{
	struct shard *shard = broker->peers->shard;

	for (uint32_t i = 0; i < broker->link_count; i++) {
		struct link *link = &broker->links[i];
		if (link == but || (link->state != LINK_IDLE && link->state != LINK_BACKOFF))
			continue;
		uint64_t delay_ns = world_between(shard->world, 0, within_ms * NS_PER_MS);
		timer_set_earlier(&shard->timers, &link->timer, shard->now_ns + delay_ns);
	}
}

void
broker_start(struct broker *broker)
{
	/* The first link at once: a daemon that has just started has no other work. */
	struct shard *shard = broker->peers->shard;

	if (broker->links[0].state == LINK_IDLE)
		timer_set(&shard->timers, &broker->links[0].timer, shard->now_ns);
	start_spread(broker, &broker->links[0], breaker_of(broker)->retry_ms);
}

struct link *
broker_apart(struct broker *broker)
{
	struct shard *shard = broker->peers->shard;
	struct link *link = broker->apart;

	if (link == NULL) {
		link = malloc(sizeof(*link));
		if (link == NULL)
			return NULL;
		if (link_init(link, broker, ++shard->link_ids) != 0) {
			link_fini(link);
			free(link);
			return NULL;
		}
		link->apart = 1;
		broker->apart = link;
	}
	if ((link->state == LINK_IDLE || link->state == LINK_BACKOFF) && link->timer.place == 0)
		timer_set(&shard->timers, &link->timer, shard->now_ns);
	return link;
}

uint64_t
broker_weight(const struct broker *broker, uint64_t now_ns)
{
	uint64_t full = broker->config->weight * UINT64_C(1000);
	uint64_t ramp_ns = breaker_of(broker)->slow_start_ms * NS_PER_MS;
	uint64_t age_ns = now_ns - broker->slow_start_ns;

	if (broker->slow_start_ns == 0 || age_ns >= ramp_ns)
		return full;
	uint64_t percent =
	    SLOW_START_PERCENT + (100 - SLOW_START_PERCENT) * (age_ns / NS_PER_MS) / (ramp_ns / NS_PER_MS);
	return full * percent / 100;
}

/* ---- breaker and back-off ---- */

static uint64_t
backoff_ns(const struct broker *broker, const struct link *link, enum driver_fatal kind)
{
	const struct config_breaker *breaker = breaker_of(broker);
	/* That another link is well says nothing about one whose connections the broker has no place for. */
	uint32_t failures = link->failed > broker->failures ? link->failed : broker->failures;
	uint64_t cap_ms = breaker->retry_max_ms;
	uint64_t ms = breaker->retry_ms;

	/* A refusal for credentials must not be hammered at: accounts get locked. */
	if (kind == FATAL_REFUSED || kind == FATAL_SETTINGS)
		return world_between(broker->peers->shard->world, cap_ms * NS_PER_MS / 2, cap_ms * NS_PER_MS);
	if (!peers_are_usable(broker->peers) && cap_ms > BROKER_LONELY_MAX_MS)
		cap_ms = BROKER_LONELY_MAX_MS;
	for (uint32_t i = 1; i < failures && ms < cap_ms; i++)
		ms *= 2;
	if (ms > cap_ms)
		ms = cap_ms;
	return world_between(broker->peers->shard->world, ms * NS_PER_MS / 2, ms * NS_PER_MS);
}

/* The share cap: whether one more of the pool's breakers may open. */
static int
may_open(const struct broker *broker)
{
	const struct peers *peers = broker->peers;
	uint32_t open = 1;

	if (!peers_are_usable(peers))
		return 1;
	for (uint32_t i = 0; i < peers->count; i++)
		open += (uint32_t)peers->list[i].open;
	/* At least one may always: a pool of two with a cap of 50 % must be able to leave a dead one. */
	return open == 1 || open * 100 <= peers->count * breaker_of(broker)->share_cap;
}

static void
open_breaker(struct broker *broker, struct link *prober)
{
	struct shard *shard = broker->peers->shard;

	broker->open = 1;
	broker->prober = prober;
	broker->opened_ns = shard->now_ns;
	broker->count.opened++;
	for (uint32_t i = 0; i < broker->link_count; i++)
		if (broker->links[i].state == LINK_BACKOFF)
			timer_stop(&shard->timers, &broker->links[i].timer);
	if (broker->apart != NULL &&
	    (broker->apart->state == LINK_BACKOFF || broker->apart->state == LINK_IDLE)) {
		timer_stop(&shard->timers, &broker->apart->timer);
		broker->peers->events->unbind(broker->apart);
	}
	log_event(LOG_LEVEL_WARN, "breaker_open", "pool=%s broker=%s failures=%u cause=%s",
	    broker->peers->config->name, broker->config->address.text, broker->failures,
	    log_quote((char[256]){ 0 }, 256, broker->why, strlen(broker->why)));
}

uint64_t
broker_link_failed(struct broker *broker, struct link *link, enum driver_fatal kind)
{
	struct shard *shard = broker->peers->shard;
	int over_a_message = link->closed_over;

	link->closed_over = 0;
	broker->count.failures++;
	if (over_a_message && !broker->open && (link->apart || broker->unexplained < BROKER_UNEXPLAINED)) {
		broker->unexplained += !link->apart;
		return shard->now_ns + world_between(shard->world, 0, AT_ONCE_MS * NS_PER_MS);
	}
	link->failed++;
	if (link->apart)
		return TAILQ_EMPTY(&link->bound) || !broker_is_ready(broker)
			   ? 0
			   : shard->now_ns + backoff_ns(broker, link, kind);
	broker->failures++;
	if (!broker->open && broker->failures >= breaker_of(broker)->failures && !broker_is_ready(broker) &&
	    may_open(broker))
		open_breaker(broker, link);
	if (broker->open && broker->prober != link)
		return 0; /* the prober tries for all of them */
	return shard->now_ns + backoff_ns(broker, link, kind);
}

void
broker_forget(struct broker *broker)
{
	if (broker->memory != NULL)
		memset(broker->memory, 0, broker->peers->config->driver->memory_size);
}

void
broker_link_ready(struct broker *broker, struct link *link)
{
	struct shard *shard = broker->peers->shard;

	/* A whole pool that comes back has nothing to ramp against, but its brokers come one by one. */
	if (broker->failures > 0)
		broker->slow_start_ns = shard->now_ns;
	endpoints_ready(link);
	if (!broker->open)
		return;
	broker->open = 0;
	broker->prober = NULL;
	log_event(LOG_LEVEL_INFO, "breaker_closed", "pool=%s broker=%s open_ms=%llu",
	    broker->peers->config->name, broker->config->address.text,
	    (unsigned long long)((shard->now_ns - broker->opened_ns) / NS_PER_MS));
	start_spread(broker, link, breaker_of(broker)->retry_ms);
}

void
broker_link_proven(struct broker *broker, struct link *link)
{
	link->failed = 0;
	broker->unexplained = 0;
	endpoints_proven(link);
	if (broker->failures == 0 && broker->slow_start_ns == 0)
		return;
	broker->failures = 0;
	broker->slow_start_ns = 0;
	broker->peers->events->trusted(broker);
}

const char *
broker_breaker_word(const struct broker *broker, uint64_t now_ns)
{
	if (broker->open)
		return broker->prober != NULL && broker->prober->state != LINK_BACKOFF ? "half-open" : "open";
	if (broker->slow_start_ns != 0 &&
	    now_ns - broker->slow_start_ns < breaker_of(broker)->slow_start_ms * NS_PER_MS)
		return "slow-start";
	return "closed";
}
