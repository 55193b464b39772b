#include "link.h"

#include "broker.h"
#include "endpoints.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"
#include "tls.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *
link_state_word(enum link_state state)
{
	static const char *const words[LINK_STATES] = {
#define X(name, word, meaning) [LINK_##name] = word,
#include "link_states.def"
#undef X
	};
	return words[state];
}

#define AGAIN_MS 20u /* at most so long until a session is begun in another way */

/* How long a link that begins anew because of unanswered messages waits for the others' answers: in times of one. */
#define WORN_DRAIN_ACKS 4u
#define WORN_DRAIN_MIN_MS 10u

static const struct config_pool *
config_of(const struct link *link)
{
	return link->broker->peers->config;
}

/* ---- entering a state ---- */

static void on_resolved(void *owner, const struct world_address *addresses, unsigned count, const char *why);
static void on_connected(void *owner, int error);

static const struct sock_handlers handlers = {
	.connected = on_connected,
	.readable = link_on_readable,
	.writable = link_on_writable,
	.resolved = on_resolved,
};

static void
set_deadline(struct link *link, uint32_t ms)
{
	timer_set(&link->shard->timers, &link->timer, link->shard->now_ns + ms * NS_PER_MS);
}

static void
enter_resolving(struct link *link)
{
	struct world *world = link->shard->world;

	link->connects++;
	link->broker->count.attempts++;
	link->broker->last_attempt_ns = link->shard->now_ns;
	set_deadline(link, config_of(link)->health.connect_timeout_ms);
	link->conn.resolving = world->ops->resolve(world, endpoints_choose(link), &handlers, link);
	if (link->conn.resolving == NULL)
		link_fail(link, FATAL_PROTOCOL, "out of memory for a name look-up");
}

static void
on_resolved(void *owner, const struct world_address *addresses, unsigned count, const char *why)
{
	struct link *link = owner;

	link->conn.resolving = NULL;
	if (count == 0) {
		link_fail(link, FATAL_PROTOCOL, "name look-up: %s", why);
		return;
	}
	if (endpoints_of(link) != NULL) {
		link->endpoint_at = addresses[world_between(link->shard->world, 0, count - 1)];
	} else {
		memcpy(link->addresses, addresses, count * sizeof(*addresses));
		link->address_count = count;
	}
	link_event(link, LINK_EV_RESOLVED);
}

static void
enter_connecting(struct link *link)
{
	struct world *world = link->shard->world;
	/* One address an attempt, in turn: the back-off between attempts holds for all of them. */
	const struct world_address *address =
	    endpoints_of(link) != NULL ? &link->endpoint_at
				       : &link->addresses[link->address_next++ % link->address_count];
	uint64_t low_water = config_of(link)->low_bytes / 2;

	link->conn.sock = world->ops->connect(
	    world, address, low_water < OUT_BLOCK * 2 ? (uint32_t)low_water : OUT_BLOCK * 2, &handlers, link);
	if (link->conn.sock == NULL)
		link_fail(link, FATAL_PROTOCOL, "connect: %s", strerror(errno));
}

/* Protocols that begin in the clear say themselves when TLS begins (EV_TLS). */
static int
asks_first(const struct link *link)
{
	const struct driver *driver = config_of(link)->driver;

	return (driver->flags & DRIVER_F_SERVER_FIRST) != 0 &&
	       (driver->tls_first == NULL || !driver->tls_first(config_of(link)->driver_settings));
}

static void
on_connected(void *owner, int error)
{
	struct link *link = owner;

	if (error != 0)
		link_fail(link, FATAL_PROTOCOL, "connect: %s", strerror(error));
	else
		link_event(link, config_of(link)->tls.enabled && !asks_first(link) ? LINK_EV_CONNECTED_TLS
										   : LINK_EV_CONNECTED);
}

static void
enter_tls(struct link *link)
{
	struct broker *broker = link->broker;
	const char *name = config_of(link)->tls.server_name;

	peers_renew_tls(broker->peers);
	link->conn.tls = tls_new(broker->peers->tls, &broker->tls_sessions, link->conn.sock,
	    name != NULL ? name : broker->config->address.host);
	if (link->conn.tls == NULL) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for TLS");
		return;
	}
	link_secure(link);
}

/* client_id: NULL for a new connection's own name; else that of the connection that is taken over. */
static int
session_new(struct link *link, const char *client_id, uint64_t random)
{
	const struct config_pool *config = config_of(link);
	const struct driver *driver = config->driver;

	link->conn.session = calloc(1, driver->session_size);
	if (link->conn.session == NULL)
		return -TG_ENOMEM;
	if (client_id != NULL)
		snprintf(link->conn.client_id, sizeof(link->conn.client_id), "%s", client_id);
	else
		snprintf(link->conn.client_id, sizeof(link->conn.client_id), "tidegate-%08x-%u-%llx",
		    (unsigned)link->shard->start_random, link->id, (unsigned long long)link->connects);
	uint32_t quiet_s = config->health.idle_ms / 1000 * 4;
	link->conn.params = (struct session_params){
		.client_id = link->conn.client_id,
		.host = link->broker->config->address.host,
		.keepalive_s = quiet_s < 10 ? 10 : quiet_s,
		.window = config->window_messages,
		.random = random,
		.memory = link->broker->memory,
		.replayed = client_id != NULL,
		.tls_wanted = config->tls.enabled,
	};
	link->conn.session->driver = driver;
	link->conn.session->settings = config->driver_settings;
	link->conn.session->params = &link->conn.params;
	link->conn.session->events = (struct driver_events){ .emit = link_on_driver_event, .owner = link };
	return driver->open(link->conn.session);
}

static void
enter_handshake(struct link *link)
{
	uint64_t secret;

	link->health = (struct link_health){ .last_read_ns = link->shard->now_ns,
		.last_progress_ns = link->shard->now_ns };
	if (link->conn.session == NULL)
		peers_renew_secrets(link->broker->peers);
	world_secret(link->shard->world, &secret, sizeof(secret));
	if (link->conn.session == NULL && session_new(link, NULL, secret) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for a session");
		return;
	}
	link->conn.params.tls = link->conn.tls != NULL;
	if (link->conn.session->driver->start(link->conn.session, &link->out) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for the handshake");
		return;
	}
	link_want_flush(link);
}

static void
enter_probing(struct link *link)
{
	const struct config_health *health = &config_of(link)->health;

	set_deadline(link, health->probe_timeout_ms * health->probe_misses);
	link_probe(link);
}

static void
enter_adopted(struct link *link)
{
	link->health = (struct link_health){ .last_read_ns = link->shard->now_ns,
		.last_progress_ns = link->shard->now_ns };
	enter_probing(link);
}

/* Health is looked at from the timer: a state may change while the driver is running. */
static void
look_soon(struct link *link)
{
	timer_set(&link->shard->timers, &link->timer, link->shard->now_ns);
}

static void
enter_ready(struct link *link)
{
	link->conn.ready_ns = link->shard->now_ns;
	link->count.ready++;
	link->health.probe_misses = 0;
	link->health.last_progress_ns = link->shard->now_ns;
	link_health_begin(link);
	link_update_writable(link);
	if (link->apart) {
		link->failed = 0;
		link->events->apart_ready(link);
	} else {
		link->events->ready(link->broker, link);
	}
	look_soon(link);
	if (link->conn.blocked) /* said so before it was ready */
		link_event(link, LINK_EV_SUSPECT);
	else
		link->events->changed(link);
}

void
link_want_serve(struct link *link)
{
	if (link->serving)
		return;
	link->serving = 1;
	TAILQ_INSERT_TAIL(&link->shard->serve, link, serve_entry);
}

static void
enter_suspect(struct link *link)
{
	/* L5: its lanes may leave, and their records be released while bytes of them wait here. */
	if (out_own(&link->out) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory for %llu unsent bytes",
		    (unsigned long long)out_unwritten(&link->out));
		return;
	}
	link->health.suspect_ns = link->shard->now_ns;
	link->health.gone_looks = 0;
	link->events->release(link);
	link->events->changed(link);
	look_soon(link);
}

static void
enter_recovered(struct link *link)
{
	link->health.probe_misses = 0;
	link_health_begin(link);
	link_update_writable(link);
	link->events->changed(link);
	look_soon(link);
}

static void
enter_draining(struct link *link)
{
	if (out_own(&link->out) != 0) {
		link_fail(link, FATAL_PROTOCOL, "out of memory while draining");
		return;
	}
	link->events->release(link);
	link->events->changed(link);
	uint32_t limit_ms = config_of(link)->health.ack_timeout_ms;
	if (link->conn.worn && WORN_DRAIN_MIN_MS + link->conn.ack_ms8 / 8 * WORN_DRAIN_ACKS < limit_ms)
		limit_ms = WORN_DRAIN_MIN_MS + link->conn.ack_ms8 / 8 * WORN_DRAIN_ACKS;
	set_deadline(link, limit_ms);
	link_want_flush(link); /* which sees when nothing is outstanding any more */
}

/* Frees the connection and all that belongs to it. The messages in flight have been resolved. */
static void
disconnect(struct link *link)
{
	struct world *world = link->shard->world;
	struct link_connection *conn = &link->conn;

	timer_stop(&link->shard->timers, &link->timer);
	if (conn->resolving != NULL)
		world->ops->resolve_cancel(world, conn->resolving);
	if (conn->flushing)
		TAILQ_REMOVE(&link->shard->flush, link, flush_entry);
	if (link->serving)
		TAILQ_REMOVE(&link->shard->serve, link, serve_entry);
	link->serving = 0;
	if (conn->session != NULL) {
		conn->session->driver->close(conn->session);
		free(conn->session);
	}
	tls_free(conn->tls);
	if (conn->sock != NULL)
		world->ops->close(conn->sock, link->state == LINK_FAILED);
	free(conn->held);
	free(conn->hello);
	*conn = (struct link_connection){ .idle_ns = config_of(link)->health.idle_ms * NS_PER_MS };
	link->verdict.given = 0;
	link->refused.ns = 0;
	out_reset(&link->out);
	link_set_window(link, 0);
	link->writable = 1;
}

static void
enter_failed(struct link *link)
{
	link->count.failures++;
	link->closed_over = link->events->closed(link);
	if (link->failed_kind != FATAL_AGAIN)
		endpoints_failed(link);
	link_abandon(link);
	link->events->release(link);
	disconnect(link);
	link->events->changed(link);
}

static void
enter_closed(struct link *link)
{
	if (link->conn.session != NULL && link->conn.sock != NULL &&
	    link->conn.session->driver->goodbye != NULL &&
	    link->conn.session->driver->goodbye(link->conn.session, &link->out) == 0)
		link_flush(link);
	if (link->conn.tls != NULL)
		tls_goodbye(link->conn.tls);
	int worn = link->conn.worn;
	endpoints_left(link);
	link_abandon(link);
	disconnect(link);
	link->events->changed(link);
	if (link->shard->stopping)
		return;
	/* The broker asked us to go; it, or what replaces it, is tried again. */
	uint32_t retry_ms = config_of(link)->breaker.retry_ms;
	link_event(link, LINK_EV_BACKOFF);
	if (link->apart)
		return; /* until a lane is set apart */
	if (worn) {
		timer_set(&link->shard->timers, &link->timer, link->shard->now_ns);
		return;
	}
	if (link->broker->open && link->broker->prober != link)
		return; /* the prober tries for all of them */
	timer_set(&link->shard->timers, &link->timer,
	    link->shard->now_ns + world_between(link->shard->world, retry_ms / 2, retry_ms) * NS_PER_MS);
}

/* ---- the table ---- */

struct transition {
	enum link_state next;
	void (*enter)(struct link *link);
	int valid;
};

#define TO(state, action)                                           \
	{                                                           \
		.next = LINK_##state, .enter = (action), .valid = 1 \
	}

static const struct transition table[LINK_STATES][LINK_EVENTS] = {
	[LINK_IDLE] = {
		[LINK_EV_START] = TO(RESOLVING, enter_resolving),
		[LINK_EV_ADOPTED] = TO(PROBING, enter_adopted),
		[LINK_EV_BACKOFF] = TO(BACKOFF, NULL),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_RESOLVING] = {
		[LINK_EV_RESOLVED] = TO(CONNECTING, enter_connecting),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_CONNECTING] = {
		[LINK_EV_CONNECTED] = TO(HANDSHAKE, enter_handshake),
		[LINK_EV_CONNECTED_TLS] = TO(TLS, enter_tls),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_TLS] = {
		[LINK_EV_SECURED] = TO(HANDSHAKE, enter_handshake),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_HANDSHAKE] = {
		[LINK_EV_CONNECTED_TLS] = TO(TLS, enter_tls),
		[LINK_EV_UP] = TO(PROBING, enter_probing),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_PROBING] = {
		[LINK_EV_PROVEN] = TO(READY, enter_ready),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_READY] = {
		[LINK_EV_SUSPECT] = TO(SUSPECT, enter_suspect),
		[LINK_EV_DRAIN] = TO(DRAINING, enter_draining),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
	},
	[LINK_SUSPECT] = {
		[LINK_EV_RECOVERED] = TO(READY, enter_recovered),
		[LINK_EV_DRAIN] = TO(DRAINING, enter_draining),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
	},
	[LINK_DRAINING] = {
		[LINK_EV_DRAINED] = TO(CLOSED, enter_closed),
		[LINK_EV_FAIL] = TO(FAILED, enter_failed),
	},
	[LINK_FAILED] = {
		[LINK_EV_BACKOFF] = TO(BACKOFF, NULL),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_BACKOFF] = {
		[LINK_EV_START] = TO(RESOLVING, enter_resolving),
		[LINK_EV_DRAIN] = TO(CLOSED, enter_closed),
	},
	[LINK_CLOSED] = {
		[LINK_EV_BACKOFF] = TO(BACKOFF, NULL),
	},
};

static void
set_state(struct link *link, enum link_state next)
{
	struct broker *broker = link->broker;
	uint64_t held_ms = (link->shard->now_ns - link->state_since_ns) / NS_PER_MS;
	enum log_level level = next == LINK_FAILED || next == LINK_SUSPECT ? LOG_LEVEL_WARN
			       : next == LINK_READY || next == LINK_CLOSED ? LOG_LEVEL_INFO
									   : LOG_LEVEL_DEBUG;
	const char *endpoint = endpoints_of(link);
	char why[256];

	log_event(level, "link_state",
	    "pool=%s broker=%s%s%s link=%u from=%s to=%s after_ms=%llu outstanding=%u unsent=%llu failures=%u cause=%s",
	    broker->peers->config->name, broker->config->address.text, endpoint != NULL ? " endpoint=" : "",
	    endpoint != NULL ? endpoint : "", link->id, link_state_word(link->state), link_state_word(next),
	    (unsigned long long)held_ms, link->outstanding, (unsigned long long)out_unwritten(&link->out),
	    broker->failures,
	    level == LOG_LEVEL_WARN ? log_quote(why, sizeof(why), link->why, strlen(link->why)) : "-");
	link->state = next;
	link->state_since_ns = link->shard->now_ns;
}

void
link_event(struct link *link, enum link_event event)
{
	const struct transition *t = &table[link->state][event];

	if (!t->valid)
		return;
	set_state(link, t->next);
	if (t->enter != NULL)
		t->enter(link);
}

/* Asks the driver after a handshake without a verdict: the fallback to try, or NULL. */
static const char *
ask_unheard(struct link *link)
{
	if (link->state != LINK_HANDSHAKE || link->verdict.given || link->conn.session == NULL ||
	    link->conn.session->driver->unheard == NULL)
		return NULL;
	return link->conn.session->driver->unheard(link->conn.session);
}

void
link_fail(struct link *link, enum driver_fatal kind, const char *format, ...)
{
	const char *endpoint = endpoints_of(link), *other;
	size_t at = 0;
	va_list args;

	if (!table[link->state][LINK_EV_FAIL].valid)
		return;
	if (endpoint != NULL)
		at = (size_t)snprintf(link->why, sizeof(link->why), "at %.80s: ", endpoint);
	va_start(args, format);
	vsnprintf(link->why + at, sizeof(link->why) - at, format, args);
	va_end(args);
	other = ask_unheard(link);
	if (other != NULL) {
		kind = FATAL_AGAIN;
		at = strlen(link->why);
		snprintf(link->why + at, sizeof(link->why) - at, "; %s", other);
	}
	if (link->state == LINK_CONNECTING && endpoint == NULL)
		link->events->forget(link->broker);
	link->failed_kind = kind;
	int draining = link->state == LINK_DRAINING && link->shard->stopping;
	snprintf(link->broker->why, sizeof(link->broker->why), "%s", link->why);
	link_event(link, LINK_EV_FAIL);
	if (draining) {
		link_event(link, LINK_EV_DRAIN);
		return;
	}
	/* A little apart all the same: a fleet of daemons meets the same broker. */
	uint64_t at_ns = kind == FATAL_AGAIN
			     ? link->shard->now_ns + world_between(link->shard->world, 0, AGAIN_MS * NS_PER_MS)
			     : link->events->failed(link->broker, link, kind);
	link_event(link, LINK_EV_BACKOFF);
	if (at_ns != 0)
		timer_set(&link->shard->timers, &link->timer, at_ns);
	else
		link->events->unbind(link); /* it does not come back by itself */
}

void
link_drain(struct link *link)
{
	link_event(link, LINK_EV_DRAIN);
}

/* ---- successors ---- */

const struct sock_handlers *
link_handlers(void)
{
	return &handlers;
}

void
link_adopt(struct link *link, struct sock *sock, const struct link_past *past)
{
	const char *why = "out of memory for a session";

	link->conn.sock = sock;
	timer_stop(&link->shard->timers, &link->timer);
	if (session_new(link, past->client_id, past->random) == 0 &&
	    link_keep_hello(link, past->hello, past->hello_len) == 0 &&
	    (why = link_replay(link, past)) == NULL) {
		link_event(link, LINK_EV_ADOPTED);
		return;
	}
	log_event(LOG_LEVEL_WARN, "link_not_taken", "pool=%s broker=%s link=%u cause=\"%s\"",
	    link->broker->peers->config->name, link->broker->config->address.text, link->id, why);
	disconnect(link);
}

/* ---- time ---- */

static void
on_timer(struct timer *timer)
{
	struct link *link = (struct link *)(void *)((char *)timer - offsetof(struct link, timer));
	const struct config_health *health = &config_of(link)->health;

	switch (link->state) {
	case LINK_IDLE:
	case LINK_BACKOFF:
		link_event(link, LINK_EV_START);
		break;
	case LINK_RESOLVING:
		link_fail(link, FATAL_PROTOCOL, "name look-up: no answer of the name servers in %u ms",
		    health->connect_timeout_ms);
		break;
	case LINK_CONNECTING:
	case LINK_TLS:
	case LINK_HANDSHAKE:
		link_fail(link, FATAL_PROTOCOL, "no end of %s in %u ms", link_state_word(link->state),
		    health->connect_timeout_ms);
		break;
	case LINK_PROBING:
		link_fail(link, FATAL_PROTOCOL, "no answer to the first probe in %u ms",
		    health->probe_timeout_ms * health->probe_misses);
		break;
	case LINK_READY:
	case LINK_SUSPECT:
		link_health_check(link);
		break;
	case LINK_DRAINING:
		if (link->conn.worn) {
			link_event(link, LINK_EV_DRAINED);
			break;
		}
		link_fail(link, FATAL_CLOSED, "%u messages unanswered after %u ms of draining",
		    link->outstanding, health->ack_timeout_ms);
		break;
	case LINK_FAILED:
	case LINK_CLOSED:
	case LINK_STATES:
		break;
	}
}

/* ---- life ---- */

int
link_init(struct link *link, struct broker *broker, uint32_t id)
{
	const struct config_pool *config = broker->peers->config;
	uint32_t capacity = 1024;

	memset(link, 0, sizeof(*link));
	link->broker = broker;
	link->shard = broker->peers->shard;
	link->events = broker->peers->events;
	link->id = id;
	link->state = LINK_IDLE;
	link->state_since_ns = link->shard->now_ns;
	link->timer.fire = on_timer;
	TAILQ_INIT(&link->waiters);
	TAILQ_INIT(&link->bound);
	out_init(&link->out);
	link_set_window(link, 0);
	link->writable = 1;
	link->conn.idle_ns = config->health.idle_ms * NS_PER_MS;
	/* Four windows: answers that come out of order leave holes that the next ones must not wait for. */
	while (capacity < config->window_messages * 4u)
		capacity *= 2;
	link->ring_mask = capacity - 1;
	link->ring = calloc(capacity, sizeof(*link->ring));
	if (link->ring == NULL)
		return -TG_ENOMEM;
	return timers_reserve(&link->shard->timers);
}

void
link_fini(struct link *link)
{
	if (link->ring == NULL)
		return;
	link_abandon(link);
	disconnect(link);
	timers_unreserve(&link->shard->timers);
	out_fini(&link->out);
	address_fini(&link->endpoint);
	aside_fini(&link->aside);
	free(link->ring);
	link->ring = NULL;
}
