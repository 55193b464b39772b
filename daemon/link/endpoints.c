#include "endpoints.h"

#include "broker.h"
#include "link.h"
#include "daemon/flow/shard.h"

#include <arpa/inet.h>
#include <string.h>

static void
forget(struct endpoints *endpoints)
{
	while (endpoints->count > 0)
		address_fini(&endpoints->list[--endpoints->count]);
}

void
endpoints_init(struct endpoints *endpoints, uint64_t chance)
{
	memset(endpoints, 0, sizeof(*endpoints));
	endpoints->turn = chance % (ENDPOINTS_MAX * ENDPOINTS_MAX);
}

void
endpoints_fini(struct endpoints *endpoints)
{
	forget(endpoints);
}

/* ---- learning ---- */

/* Why it cannot be used, or NULL with *address made. */
static const char *
parse(struct address *address, const char *text, size_t len, uint16_t port)
{
	char copy[ADDRESS_TEXT + 1];
	const char *why;

	if (len > ADDRESS_TEXT || memchr(text, '\0', len) != NULL)
		return "longer than an address can be, or not text";
	memcpy(copy, text, len);
	copy[len] = '\0';
	if (address_parse(address, copy, port, &why) != 0)
		return why;
	/* A path or a zone is of this host, of which no broker knows. */
	if (address->host != NULL && strchr(address->host, '%') == NULL)
		return NULL;
	address_fini(address);
	return "host:port or [v6]:port";
}

static int
is_configured(const struct peers *peers, const struct address *address)
{
	for (uint32_t i = 0; i < peers->count; i++)
		if (address_same(&peers->list[i].config->address, address))
			return 1;
	return 0;
}

static int
is_known(const struct endpoints *endpoints, const struct address *address)
{
	for (uint32_t i = 0; i < endpoints->count; i++)
		if (address_same(&endpoints->list[i], address))
			return 1;
	return 0;
}

void
endpoints_learn(struct broker *broker, const char *text, size_t len, uint64_t number)
{
	struct endpoints *endpoints = &broker->endpoints;
	const struct config_pool *config = broker->peers->config;
	struct address address;

	if (number == 0)
		forget(endpoints);
	if (endpoints->count == ENDPOINTS_MAX)
		return;
	const char *why = parse(
	    &address, text, len, config->tls.enabled ? config->driver->tls_port : config->driver->default_port);
	if (why != NULL) {
		char quoted[200], reason[160];
		log_limited(&endpoints->limit, LOG_LEVEL_WARN, "endpoint_ignored",
		    "pool=%s broker=%s endpoint=%s cause=%s", config->name, broker->config->address.text,
		    log_quote(quoted, sizeof(quoted), text, len),
		    log_quote(reason, sizeof(reason), why, strlen(why)));
		return;
	}
	if (is_configured(broker->peers, &address) || is_known(endpoints, &address)) {
		address_fini(&address);
		return;
	}
	endpoints->list[endpoints->count++] = address;
	log_event(LOG_LEVEL_DEBUG, "endpoint_learned", "pool=%s broker=%s endpoint=%s", config->name,
	    broker->config->address.text, address.text);
}

/* ---- turns ---- */

static int
is_at(const struct world_address *at, const struct address *address)
{
	if (at->addr.ss_family == AF_INET) {
		const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)&at->addr;
		struct in_addr v4;
		return ntohs(in->sin_port) == address->port && inet_pton(AF_INET, address->host, &v4) == 1 &&
		       v4.s_addr == in->sin_addr.s_addr;
	}
	if (at->addr.ss_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)&at->addr;
		struct in6_addr v6;
		return ntohs(in6->sin6_port) == address->port && inet_pton(AF_INET6, address->host, &v6) == 1 &&
		       memcmp(&v6, &in6->sin6_addr, sizeof(v6)) == 0;
	}
	return 0;
}

/* Servers tell numbers where the configuration has names. */
static int
is_brokers(const struct peers *peers, const struct address *address)
{
	for (uint32_t b = 0; b < peers->count; b++)
		for (uint32_t l = 0; l < peers->list[b].link_count; l++) {
			const struct link *link = &peers->list[b].links[l];
			for (unsigned i = 0; i < link->address_count; i++)
				if (is_at(&link->addresses[i], address))
					return 1;
		}
	return 0;
}

/* The next in turn, or NULL: there is none to use. */
static const struct address *
next(struct broker *broker)
{
	struct endpoints *endpoints = &broker->endpoints;

	for (uint32_t i = 0; i < endpoints->count; i++) {
		const struct address *address = &endpoints->list[endpoints->turn++ % endpoints->count];
		if (!is_brokers(broker->peers, address))
			return address;
	}
	return NULL;
}

const struct address *
endpoints_choose(struct link *link)
{
	const struct address *own = &link->broker->config->address, *address = NULL;
	const char *why;

	address_fini(&link->endpoint);
	if (link->try_endpoint)
		address = next(link->broker);
	link->try_endpoint = 0;
	/* A copy: the list may change while the link is on its way. */
	if (address == NULL || address_parse(&link->endpoint, address->text, address->port, &why) != 0)
		return own;
	return &link->endpoint;
}

void
endpoints_failed(struct link *link)
{
	struct endpoints *endpoints = &link->broker->endpoints;
	const struct config_breaker *breaker = &link->broker->peers->config->breaker;
	int lasted = link->conn.ready_ns != 0 &&
		     link->shard->now_ns - link->conn.ready_ns >= breaker->slow_start_ms * NS_PER_MS;

	if (endpoints_of(link) == NULL) {
		if (endpoints->own_failures < UINT32_MAX)
			endpoints->own_failures++;
		link->try_endpoint = !lasted && endpoints->own_failures >= breaker->failures;
	}
	endpoints_left(link);
}

void
endpoints_left(struct link *link)
{
	address_fini(&link->endpoint);
}

void
endpoints_leaving(struct link *link)
{
	struct endpoints *endpoints = &link->broker->endpoints;
	uint32_t enough = link->broker->peers->config->breaker.failures - 1;

	if (endpoints_of(link) == NULL && endpoints->own_failures < enough)
		endpoints->own_failures = enough;
}

void
endpoints_ready(struct link *link)
{
	struct broker *broker = link->broker;

	if (endpoints_of(link) == NULL)
		return;
	for (uint32_t i = 0; i < broker->link_count; i++) {
		struct link *other = &broker->links[i];
		if (other->state == LINK_IDLE || other->state == LINK_BACKOFF)
			other->try_endpoint = 1;
	}
}

void
endpoints_proven(struct link *link)
{
	if (endpoints_of(link) == NULL)
		link->broker->endpoints.own_failures = 0;
}

const char *
endpoints_of(const struct link *link)
{
	return link->endpoint.text;
}
