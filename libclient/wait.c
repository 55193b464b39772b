/*
 * Waiting: look, spin a little, then sleep on the bell and on the control socket. Pair F keeps the
 * wake-up from being lost: `waiting` is odd before the last look.
 */
#include "internal.h"

#include "clock.h"

#include <ck_pr.h>
#include <errno.h>
#include <inttypes.h>

#define SPIN_LOOKS 16u       /* between two readings of the clock, which costs 55 ns */
#define SPIN_MISSES_MAX 4u   /* spins in vain after which it is tried only ... */
#define SPIN_RETRY_EVERY 16u /* ... this often */

/* Is it there? 1, 0, or a negative error. */
typedef int looks_fn(struct tg_lane *lane, void *arg);

/* Completions come before the lane's trouble does. */
static int
look(struct tg_lane *lane, looks_fn *looks, void *arg)
{
	int rc = looks(lane, arg);
	int trouble, late;

	if (rc != 0 || (trouble = lane_trouble(lane)) == 0)
		return rc;
	late = looks(lane, arg);
	return late != 0 ? late : trouble;
}

static int
spin(struct tg_lane *lane, looks_fn *looks, void *arg)
{
	uint64_t end;
	int rc;

	if (lane->spin_ns == 0)
		return 0;
	if (lane->spin_misses >= SPIN_MISSES_MAX && lane->spin_misses++ % SPIN_RETRY_EVERY != 0)
		return 0;
	end = clock_now_ns() + lane->spin_ns;
	do {
		for (unsigned i = 0; i < SPIN_LOOKS; i++) {
			ck_pr_stall();
			if ((rc = look(lane, looks, arg)) != 0) {
				lane->spin_misses = 0;
				return rc;
			}
		}
	} while (clock_now_ns() < end);
	if (lane->spin_misses < SPIN_MISSES_MAX)
		lane->spin_misses++;
	return 0;
}

/* While the daemon is away: until the next attempt to find it, which is made, or the deadline. */
static int
sleep_away(struct tg_lane *lane, uint64_t deadline)
{
	uint64_t retry = client_retry_ns(lane->client);
	uint64_t soon = clock_now_ns() + AWAY_MIN_NS; /* another thread may be at it */
	int n;

	if (retry < soon)
		retry = soon;
	n = clock_poll(NULL, 0, retry < deadline ? retry : deadline);

	if (n < 0 && errno == EINTR)
		return 1;
	if (client_mend(lane->client) == 0)
		return 0;
	return clock_now_ns() >= deadline ? -TG_ETIMEOUT : 0;
}

/* Sleeps until something rings. 0: look again; 1: a signal; or a negative error. */
static int
sleep_once(struct tg_lane *lane, uint64_t deadline)
{
	struct pollfd p[2] = { { .fd = lane->bell, .events = POLLIN }, { .fd = lane->client->fd } };
	uint32_t generation = client_generation(lane->client);
	int n;

	if (client_is_lost(lane->client))
		return sleep_away(lane, deadline);
	n = clock_poll(p, 2, deadline);

	if (n < 0 && errno == EINTR)
		return 1;
	if (n < 0)
		return detail_fail(-TG_ESYSTEM, "lane %" PRIu64 ": poll: %s", lane->lane_id, strerror(errno));
	if (n == 0)
		return -TG_ETIMEOUT;
	if ((p[0].revents & POLLIN) != 0)
		bell_drain(lane->bell);
	if ((p[1].revents & (POLLHUP | POLLERR)) != 0)
		client_lose(lane->client, generation);
	return 0;
}

/* Waits for looks() to be true. 0, or its error, or the lane's, or -TG_ETIMEOUT. */
static int
await(struct tg_lane *lane, looks_fn *looks, void *arg, int timeout_ms, int interruptible)
{
	uint64_t deadline;
	int rc, slept, armed;

	if ((rc = look(lane, looks, arg)) != 0)
		return rc < 0 ? rc : 0;
	deadline = clock_deadline(timeout_ms);
	armed = lane->armed;
	lane_disarm(lane);
	if (timeout_ms != 0 && (rc = spin(lane, looks, arg)) != 0)
		goto out;
	do {
		wake_doze(&lane->sleeper);
		order_fence_full(ORDER_F);
		slept = 0;
		if ((rc = look(lane, looks, arg)) == 0)
			slept = sleep_once(lane, deadline);
		wake_rise(&lane->sleeper);
		if (rc == 0)
			rc = look(lane, looks, arg);
		if (rc == 0 && slept < 0)
			rc = slept;
	} while (rc == 0 && !(slept > 0 && interruptible));
out:
	if (armed)
		lane_arm(lane); /* tg_fd goes on as if no thread had slept in between */
	return rc < 0 ? rc : 0;
}

static int
looks_eventful(struct tg_lane *lane, void *arg)
{
	(void)arg;
	return lane_is_eventful(lane);
}

int
tg_wait(struct tg_lane *lane, int timeout_ms)
{
	int rc;

	if (lane == NULL || fork_is_child(&lane->mark))
		return lane_trouble(lane);
	rc = await(lane, looks_eventful, NULL, timeout_ms, 1);
	if (rc == -TG_ETIMEOUT)
		return detail_fail(rc, "lane %" PRIu64 ": nothing in %d ms", lane->lane_id, timeout_ms);
	return rc;
}

static int
looks_flushed(struct tg_lane *lane, void *arg)
{
	int rc = lane_cq_refresh(lane);

	(void)arg;
	return rc < 0 ? rc : lane->cq.tail_seen == lane->published;
}

int
tg_flush(struct tg_lane *lane, int timeout_ms)
{
	int rc;

	if (lane == NULL || fork_is_child(&lane->mark))
		return lane_trouble(lane);
	rc = await(lane, looks_flushed, NULL, timeout_ms, 0);
	if (rc == -TG_ETIMEOUT)
		return detail_fail(rc, "lane %" PRIu64 ": %" PRIu64 " messages are unanswered after %d ms",
		    lane->lane_id, lane->published - lane->cq.tail_seen, timeout_ms);
	return rc;
}

/* One record's completion, wherever it comes to lie in the CQ. */
struct hunt {
	uint64_t position;
	uint64_t scan; /* looked at below this */
	struct completion found;
};

static int
looks_found(struct tg_lane *lane, void *arg)
{
	struct hunt *hunt = arg;
	int rc = lane_cq_refresh(lane);

	if (rc < 0)
		return rc;
	for (; hunt->scan != lane->cq.tail_seen; hunt->scan++) {
		const struct completion *c = cq_at(&lane->cq, hunt->scan);

		if (c->position != hunt->position)
			continue;
		hunt->found = *c;
		lane_mark(lane, hunt->scan);
		return 1;
	}
	return 0;
}

int
tg_publish_sync(
    struct tg_lane *lane, const struct tg_message *message, int timeout_ms, struct tg_completion *completion)
{
	struct hunt hunt;
	int rc;

	if (lane == NULL || fork_is_child(&lane->mark))
		return lane_trouble(lane);
	if (completion == NULL)
		return detail_fail(-TG_EINVAL, "lane %" PRIu64 ": completion is NULL", lane->lane_id);
	hunt.scan = lane->cq.tail_seen; /* the answer to what is published now is not below */
	if ((rc = lane_publish_loud(lane, message, &hunt.position)) < 0)
		return rc;
	/* Finding it a slot may have given more back, and what is below the head is the daemon's to write. */
	if ((int64_t)(lane->cq.head - hunt.scan) > 0)
		hunt.scan = lane->cq.head;
	rc = await(lane, looks_found, &hunt, timeout_ms, 0);
	if (rc == -TG_ETIMEOUT)
		return detail_fail(rc, "lane %" PRIu64 ": message %" PRIu64 " is unanswered after %d ms",
		    lane->lane_id, hunt.position, timeout_ms);
	if (rc < 0)
		return rc;
	completion_fill(completion, &hunt.found);
	return lane_sweep(lane);
}
