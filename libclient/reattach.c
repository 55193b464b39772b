/*
 * When the daemon is gone: everything a lane needs is in its memory, which is ours, too. Whichever
 * call of whichever lane notices first connects again and hands all lanes of the client back; the
 * others go on publishing into their rings meanwhile.
 *
 * Noticing costs publishers nothing: a call that sleeps sees the hang-up itself, the others look at
 * the control socket every CHECK_NS of the coarse clock they read anyway.
 *
 * Attempts are spread: 10 ms after the loss, then twice as long each time up to a second, each
 * times a random 0.5 to 1, so that the processes of a host do not meet a restarted daemon at once.
 *
 * Threads: one at a time connects and hands back (client->control), and only it, or an open or close,
 * walks the client's list or uses the control socket. It puts the new descriptors in the old ones' places (dup3), so
 * that no other thread's copy of a number goes stale.
 */
#include "internal.h"

#include "clock.h"

#include <ck_pr.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define CHECK_NS UINT64_C(100000000)
#define RETRY_MIN_NS UINT64_C(10000000)
#define RETRY_MAX_NS UINT64_C(1000000000)
#define MEND_TIMEOUT_MS 1000u /* for each lane's answer: bounds what a call that publishes may take */

/* ---- the right to use the control socket ---- */

void
client_lock(struct tg_client *client)
{
	/* Its holder may be waiting for the daemon's answer, for seconds. */
	pthread_mutex_lock(&client->control);
}

void
client_unlock(struct tg_client *client)
{
	pthread_mutex_unlock(&client->control);
}

/* ---- noticing ---- */

int
client_is_lost(struct tg_client *client)
{
	return ck_pr_load_32(&client->lost) != 0;
}

void
client_lose(struct tg_client *client, uint32_t generation)
{
	if (client_is_lost(client))
		return;
	ck_pr_store_64(&client->lost_ns, clock_now_ns());
	ck_pr_fence_store();
	if (!ck_pr_cas_32(&client->lost, 0, 1))
		return;
	ck_pr_fence_memory();
	/* Another thread may have replaced the connection that hung up: client_mend counts first. */
	if (ck_pr_load_32(&client->generation) != generation)
		ck_pr_store_32(&client->lost, 0);
}

uint32_t
client_generation(struct tg_client *client)
{
	uint32_t generation = ck_pr_load_32(&client->generation);

	ck_pr_fence_acquire();
	return generation;
}

uint64_t
client_retry_ns(struct tg_client *client)
{
	return ck_pr_load_64(&client->retry_ns);
}

static int
socket_hung_up(const struct tg_client *client)
{
	struct pollfd p = { .fd = client->fd };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL)) != 0;
}

void
lane_check_daemon(struct tg_lane *lane, uint64_t now)
{
	struct tg_client *client = lane->client;

	lane->check_ns = now + CHECK_NS;
	if (!client_is_lost(client)) {
		uint32_t generation = client_generation(client);

		if (!socket_hung_up(client))
			return;
		client_lose(client, generation);
	}
	(void)client_mend(client);
}

void
lane_notice(struct tg_lane *lane)
{
	uint64_t now = clock_read_ns(CLOCK_MONOTONIC_COARSE);

	if (now >= lane->check_ns)
		lane_check_daemon(lane, now);
}

/* ---- handing back ---- */

/*
 * A descriptor is about to be replaced: it leaves the lane's set of tg_fd. A child that was forked
 * keeps the old description open, which would stay there and report the hang-up for ever, beyond reach.
 */
static void
unwatch(struct tg_lane *lane, int fd)
{
	int epoll = ck_pr_load_int(&lane->epoll);

	if (epoll >= 0)
		epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

/* Puts `from` in the place of `to`, if it is one. */
static void
replace(int *from, int to)
{
	if (*from < 0)
		return;
	if (to >= 0)
		dup3(*from, to, O_CLOEXEC);
	close(*from);
	*from = -1;
}

/* Will the daemon say no for ever? Everything else is tried again. */
static int
is_final(int rc)
{
	return rc == -TG_ENOPOOL || rc == -TG_EBROKEN || rc == -TG_EVERSION || rc == -TG_EDENIED ||
	       rc == -TG_EINVAL;
}

/*
 * Maps the answers of the daemon that has the lane now. They hold what is in the old ones, and nothing is added
 * before we say that we use them: the thread that owns the lane need not know.
 */
static int
take_answers(struct tg_lane *lane, int *answers)
{
	struct lane_header header;
	struct lane_geometry geo;
	int rc;

	if (*answers < 0)
		return detail_fail(
		    -TG_EPROTOCOL, "lane %" PRIu64 ": tidegated's answer has no descriptor", lane->lane_id);
	if ((rc = lane_header_read(*answers, &header, &geo)) != 0 || header.nonce != lane->nonce ||
	    geo.sq_bytes != lane->map.geo.sq_bytes || geo.cq_entries != lane->map.geo.cq_entries)
		return detail_fail(rc != 0 ? rc : -TG_EBROKEN,
		    "lane %" PRIu64 ": what tidegated has made of it is another lane", lane->lane_id);
	if ((rc = lane_map_answers(&lane->map, *answers, LANE_READ, 0)) != 0)
		return detail_fail(
		    rc, "lane %" PRIu64 ": mapping its memory: %s", lane->lane_id, error_text(rc));
	replace(answers, lane->answers);
	return 0;
}

/* One lane. 0, also when the daemon will never have it (the lane is told); else try all again later. */
static int
hand_back(struct tg_client *fresh, struct tg_lane *lane)
{
	struct frame request, answer;
	int64_t clock = frame_clock();
	int fds[FRAME_FDS];
	int rc;

	if (ck_pr_load_int(&lane->refused) != 0)
		return 0;
	frame_init(&request, FRAME_LANE_RETURN, 0);
	memcpy(request.u.open.name, fresh->name, sizeof(fresh->name));
	int memory[] = { [FRAME_FD_RING] = lane->ring, [FRAME_FD_OLD_ANSWERS] = lane->answers };
	rc = control_request_fds(fresh, &request, memory, 2, &answer, FRAME_LANE_RETURNED, fds);
	if (rc == 0 && (rc = take_answers(lane, &fds[FRAME_FD_ANSWERS])) != 0)
		for (unsigned i = 0; i < FRAME_FDS; i++)
			replace(&fds[i], -1);
	if (rc != 0) {
		if (!is_final(rc))
			return rc;
		ck_pr_store_int(&lane->refused, rc);
		return 0;
	}
	ck_pr_store_64(&lane->lane_id, answer.u.lane.lane_id);
	ck_pr_store_32(&lane->timeout_ms, answer.u.lane.timeout_ms);
	lane_set_clock(lane, clock, answer.u.lane.clock_ns);
	/* Not every daemon can raise our fences. Before the ring, which has this one look at what came without. */
	lane_set_fence(lane, answer.u.lane.flags);
	replace(&fds[FRAME_FD_DOORBELL], lane->doorbell);
	/* The daemon may have gone to sleep since it answered, and its owner have rung the old one for it. */
	bell_ring(lane->doorbell);
	unwatch(lane, lane->bell);
	replace(&fds[FRAME_FD_BELL], lane->bell);
	frame_init(&request, FRAME_LANE_READY, 0);
	request.u.lane.lane_id = answer.u.lane.lane_id;
	return control_say(fresh, &request);
}

static int
mend(struct tg_client *client)
{
	/* The new connection is a client of its own until it has everything. */
	struct tg_client fresh = *client;
	struct tg_lane *lane;
	int rc;

	fresh.timeout_ms = MEND_TIMEOUT_MS;
	rc = client_connect(&fresh);
	for (lane = client->lanes; rc == 0 && lane != NULL; lane = lane->next)
		rc = hand_back(&fresh, lane);
	if (rc != 0) {
		if (fresh.fd >= 0)
			client_hang_up(&fresh);
		return rc;
	}
	for (lane = client->lanes; lane != NULL; lane = lane->next)
		unwatch(lane, client->fd);
	replace(&fresh.fd, client->fd);
	client->serial = fresh.serial;
	client->retry_step_ns = 0;
	return 0;
}

/* Jitter, not secrets. */
static uint64_t
spread(uint64_t ns)
{
	uint64_t x = clock_now_ns() ^ (uint64_t)getpid() * UINT64_C(0x9e3779b97f4a7c15);

	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	x ^= x >> 32;
	return ns / 2 + x % (ns / 2 + 1);
}

/*
 * The old descriptors left the sets of tg_fd when they were replaced, perhaps before their owners
 * saw the hang-up. Pair: tg_fd stores `self`, fences, and looks at the generation.
 */
static void
wake_owners(struct tg_client *client)
{
	for (struct tg_lane *lane = client->lanes; lane != NULL; lane = lane->next) {
		int self = ck_pr_load_int(&lane->self);

		if (self >= 0)
			bell_ring(self);
	}
}

int
client_mend_held(struct tg_client *client)
{
	int rc;

	if (!client_is_lost(client))
		return 0;
	rc = mend(client);
	if (rc == 0) {
		ck_pr_inc_32(&client->generation);
		ck_pr_fence_memory();
		ck_pr_store_32(&client->lost, 0);
		wake_owners(client);
	} else {
		uint64_t step = client->retry_step_ns == 0 ? RETRY_MIN_NS : client->retry_step_ns * 2;

		client->retry_step_ns = step < RETRY_MAX_NS ? step : RETRY_MAX_NS;
		ck_pr_store_64(&client->retry_ns, clock_now_ns() + spread(client->retry_step_ns));
	}
	return rc == 0 ? 0 : -TG_EAGAIN;
}

int
client_mend(struct tg_client *client)
{
	int rc;

	if (!client_is_lost(client))
		return 0;
	if (clock_now_ns() < client_retry_ns(client) || pthread_mutex_trylock(&client->control) != 0)
		return -TG_EAGAIN;
	rc = client_mend_held(client);
	client_unlock(client);
	return rc;
}

/* ---- the event loop's descriptor meanwhile ---- */

/*
 * While the daemon is away its two ends would be readable without end: they leave the set, and a
 * timer that brings the owner back for the next attempt takes their place.
 */
int
lane_watch_retry(struct tg_lane *lane)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u32 = WATCH_RETRY };
	struct itimerspec at = { .it_value.tv_nsec = 0 };
	uint64_t retry = client_retry_ns(lane->client);
	uint64_t soon = clock_now_ns() + AWAY_MIN_NS; /* another thread may be at it, for seconds */

	if (lane->epoll < 0)
		return 0;
	if (retry < soon)
		retry = soon;
	if (lane->retry_timer < 0) {
		int timer = fd_above_standard(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
		    saved;
		if (timer < 0 || epoll_ctl(lane->epoll, EPOLL_CTL_ADD, timer, &event) != 0) {
			saved = errno;
			if (timer >= 0)
				close(timer);
			return detail_fail(-TG_ESYSTEM, "lane %" PRIu64 ": a timer to wait on: %s",
			    lane->lane_id, strerror(saved));
		}
		lane->retry_timer = timer; /* it is watched: the next call need not */
	}
	if (!lane->watching_retry) {
		epoll_ctl(lane->epoll, EPOLL_CTL_DEL, lane->bell, NULL);
		epoll_ctl(lane->epoll, EPOLL_CTL_DEL, lane->client->fd, NULL);
		lane->watching_retry = 1;
	}
	at.it_value.tv_sec = (time_t)(retry / UINT64_C(1000000000));
	at.it_value.tv_nsec = (long)(retry % UINT64_C(1000000000)) | 1; /* zero would stop it */
	timerfd_settime(lane->retry_timer, TFD_TIMER_ABSTIME, &at, NULL);
	return 0;
}

/* Back again: the new descriptors are watched. */
void
lane_rejoin(struct tg_lane *lane)
{
	static const struct itimerspec never;
	struct epoll_event bell = { .events = EPOLLIN, .data.u32 = WATCH_BELL };
	struct epoll_event control = { .events = 0, .data.u32 = WATCH_CONTROL };

	lane->generation = client_generation(lane->client);
	if (lane->epoll < 0)
		return;
	/* The old descriptions left the set with their last descriptor; EEXIST is as good. */
	epoll_ctl(lane->epoll, EPOLL_CTL_ADD, lane->bell, &bell);
	epoll_ctl(lane->epoll, EPOLL_CTL_ADD, lane->client->fd, &control);
	lane->watching_retry = 0;
	if (lane->retry_timer >= 0)
		timerfd_settime(lane->retry_timer, 0, &never, NULL);
}
