/*
 * Where a broker's links may go when its own address cannot be had: other addresses of its cluster,
 * as the broker itself has told them (EV_ENDPOINT).
 *
 * The list is the broker's: the newest that any link of it was told takes the place of the one
 * before. Only host:port is taken, checked as a configured address is. The address of a
 * configured broker of the pool, as text or as a result of looking it up, is not used: such a
 * broker has links and a weight of its own, and the broker's own address is tried anyway.
 *
 * Turns. An attempt at the own address that fails, when that is at least the breaker's `failures`-th
 * failure of it in a row, is followed by one at the next endpoint; whatever then ends that attempt or
 * that connection is followed by one at the own address. So they alternate, and the broker's back-off
 * holds between any two. A connection that ends before it has been READY for slow_start_ms counts as an
 * attempt that failed. When one link gets through at an endpoint, the others of its broker begin with
 * theirs. Failures of the own address are forgotten when a link has stayed READY there for
 * slow_start_ms. A link at an endpoint stays there as long as it lives.
 *
 * Each link takes the next endpoint in turn, from a random one on: a fleet spreads over a cluster. Two
 * brokers of a pool may be told of the same endpoint and use it together.
 *
 * Owner: its broker. One thread.
 */
#ifndef TG_DAEMON_ENDPOINTS_H
#define TG_DAEMON_ENDPOINTS_H

#include "daemon/config/config.h"
#include "daemon/base/log.h"

#include <stddef.h>
#include <stdint.h>

#define ENDPOINTS_MAX 16u

struct broker;
struct link;

struct endpoints {
	struct address list[ENDPOINTS_MAX];
	uint32_t count;
	uint32_t own_failures;  /* of the own address, in a row */
	uint64_t turn;          /* counts picks */
	struct log_limit limit; /* of complaints about what was told */
};

/* chance: where the turns begin. */
void endpoints_init(struct endpoints *endpoints, uint64_t chance);
void endpoints_fini(struct endpoints *endpoints);

/* A link was told of one; number: its place in what it was told, 0 begins a new list. */
void endpoints_learn(struct broker *broker, const char *text, size_t len, uint64_t number);

/* Where this attempt of the link goes; good until the next call or endpoints_left. */
const struct address *endpoints_choose(struct link *link);

/* The link's attempt or connection has failed, or has ended in good order. */
void endpoints_failed(struct link *link);
void endpoints_left(struct link *link);

/* The broker asks the link to go: one attempt at its address is enough. */
void endpoints_leaving(struct link *link);

/* The link is READY; has stayed so for slow_start_ms. */
void endpoints_ready(struct link *link);
void endpoints_proven(struct link *link);

/* The endpoint's text while the link is at one, else NULL. */
const char *endpoints_of(const struct link *link);

#endif
