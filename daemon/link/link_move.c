/*
 * A link changes hands: what the old daemon tells of it, and how the new one goes on with it.
 *
 * The connection itself is a descriptor. Its session is made anew: the broker's side of the handshake is
 * replayed, and what became of it since is restored from what the driver saved. Nothing is sent before all
 * that has succeeded, so whatever is wrong with those bytes costs this connection and no more.
 */
#include "link.h"

#include "broker.h"
#include "endpoints.h"
#include "shm/error.h"

int
link_kind_can_move(const struct config_pool *config)
{
	return !config->tls.enabled && (config->driver->flags & DRIVER_F_REPLAYABLE) != 0;
}

ssize_t
link_save(const struct link *link, uint8_t *bytes, size_t room)
{
	const struct config_pool *config = link->broker->peers->config;

	if (!link_kind_can_move(config))
		return -TG_ELIMIT;
	if (link->state != LINK_READY || link->conn.blocked || link->outstanding > 0 ||
	    out_unwritten(&link->out) > 0 || link->conn.held_len > 0 || link->health.probe_ns != 0)
		return -TG_EAGAIN;
	/* The successor would take an endpoint for the broker's own address. */
	if (link->conn.tls != NULL || link->conn.hello == NULL || endpoints_of(link) != NULL)
		return -TG_ELIMIT;
	return config->driver->save != NULL ? config->driver->save(link->conn.session, bytes, room) : 0;
}

int
link_can_move(const struct link *link)
{
	uint8_t bytes[LINK_SAVED_MAX];

	return link_save(link, bytes, sizeof(bytes)) >= 0;
}

const char *
link_replay(struct link *link, const struct link_past *past)
{
	const struct driver *driver = link->conn.session->driver;
	struct out heard; /* the broker has heard it all */
	const char *why = NULL;

	link->verdict.given = link->conn.replayed = 0;
	out_init(&heard);
	if (driver->start(link->conn.session, &heard) != 0 ||
	    driver->input(link->conn.session, past->hello, past->hello_len, &heard) !=
		(ssize_t)past->hello_len ||
	    link->verdict.given || !link->conn.replayed)
		why = "its handshake cannot be replayed";
	else if (driver->restore != NULL
		     ? driver->restore(link->conn.session, past->saved, past->saved_len) != 0
		     : past->saved_len > 0)
		why = "it was made with other settings, or what was saved of it cannot be read";
	/* What the broker said around its handshake is over: no link moves while it is blocked or has to leave. */
	link->conn.blocked = link->conn.suspended = link->conn.leaving = 0;
	out_fini(&heard);
	return why;
}
