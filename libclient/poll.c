/*
 * Completions out of the CQ, and the descriptor that tells an event loop to come for them.
 *
 * Two kinds of entries are never shown: successes of quiet messages, and those tg_publish_sync has
 * taken out of turn, which it marks (lane_mark).
 */
#include "internal.h"

#include "clock.h"

#include <ck_pr.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define REASON_TRIES 1000
#define ROOM_SHARE 8u /* a full ring is worth waking up for when an eighth is free again */

/* Whether the entry was taken out of turn. Takes the mark away. */
static inline int
take_mark(struct tg_lane *lane, uint64_t count)
{
	uint64_t entry = count & lane->cq.mask, bit = UINT64_C(1) << entry % 64;

	if (LIKELY(lane->marked == 0) || (lane->marks[entry / 64] & bit) == 0)
		return 0;
	lane->marks[entry / 64] &= ~bit;
	lane->marked--;
	return 1;
}

void
lane_mark(struct tg_lane *lane, uint64_t count)
{
	uint64_t entry = count & lane->cq.mask;

	lane->marks[entry / 64] |= UINT64_C(1) << entry % 64;
	lane->marked++;
}

/* Whether the entry is not for the application; then it is given back. */
static inline int
is_swallowed(struct tg_lane *lane, uint64_t count, const struct completion *c)
{
	return take_mark(lane, count) ||
	       ((c->info & COMPLETION_QUIET) != 0 && (c->outcome == TG_DELIVERED || c->outcome == TG_SENT));
}

void
completion_fill(struct tg_completion *to, const struct completion *from)
{
	*to = (struct tg_completion){
		.position = from->position,
		.tag = from->tag,
		.reference = from->reference,
		.elapsed_us = from->elapsed_us,
		.code = from->code,
		.outcome = from->outcome,
		.attempts = from->info & COMPLETION_ATTEMPTS,
	};
}

int
lane_cq_refresh(struct tg_lane *lane)
{
	struct cq_consumer *cq = &lane->cq;
	uint64_t seen = cq->tail_seen;

	if (UNLIKELY(cq_consumer_refresh(cq) < 0 || cq->tail_seen - cq->head > lane->published - cq->head)) {
		cq->tail_seen = seen; /* entries checked earlier stay readable */
		return lane_broken(lane, "cq_tail counts completions that nothing was published for");
	}
	return 0;
}

/* Looks for completions unless some are known. 1 if there are, 0, or -TG_EBROKEN. */
static inline int
cq_look(struct tg_lane *lane)
{
	int rc;

	if (lane->cq.tail_seen != lane->cq.head)
		return 1;
	rc = lane_cq_refresh(lane);
	return UNLIKELY(rc < 0) ? rc : lane->cq.tail_seen != lane->cq.head;
}

int
lane_sweep(struct tg_lane *lane)
{
	struct cq_consumer *cq = &lane->cq;
	int there;

	while ((there = cq_look(lane)) > 0) {
		uint64_t head = cq->head;

		while (head != cq->tail_seen && is_swallowed(lane, head, cq_at(cq, head)))
			head++;
		if (head == cq->head)
			return 0;
		cq_release(cq, head);
	}
	return there;
}

/*
 * Waking for every freed record would cost a sleep and a doorbell each; so an eighth of ring and
 * slots has to be free, or what was asked for if that is more.
 */
static int
room_returned(struct tg_lane *lane)
{
	uint64_t size = lane->sq.mask + 1, entries = lane->cq.mask + 1;
	uint64_t need = lane->want_bytes > size / ROOM_SHARE ? lane->want_bytes : size / ROOM_SHARE;
	int64_t room = sq_producer_refresh(&lane->sq);

	if (room < 0)
		return lane_broken(lane, "sq_head is not between the last one seen and sq_tail");
	if ((uint64_t)room < need || entries - (lane->published - lane->cq.head) < entries / ROOM_SHARE)
		return 0;
	lane->want_bytes = 0;
	return 1;
}

int
lane_edge(struct tg_lane *lane)
{
	uint32_t writable = order_load_relaxed_32(&lane->map.daemon->writable) != 0;
	int turned = writable && !lane->writable_seen;
	int room = lane->want_bytes != 0 ? room_returned(lane) : 0;

	lane->writable_seen = writable;
	return room != 0 ? room : turned;
}

int
lane_is_eventful(struct tg_lane *lane)
{
	int rc = lane_sweep(lane);

	if (rc < 0)
		return rc;
	return lane->cq.tail_seen != lane->cq.head ? 1 : lane_edge(lane);
}

/* Up to max completions to the caller. How many, or -TG_EBROKEN. */
static int
cq_take(struct tg_lane *lane, struct tg_completion *to, size_t max)
{
	struct cq_consumer *cq = &lane->cq;
	size_t taken = 0;
	int there = 0;

	while (taken < max && (there = cq_look(lane)) > 0) {
		uint64_t head = cq->head;

		for (; head != cq->tail_seen && taken < max; head++) {
			struct completion c = *cq_at(cq, head);

			if (!is_swallowed(lane, head, &c))
				completion_fill(&to[taken++], &c);
		}
		cq_release(cq, head);
	}
	return taken > 0 || there >= 0 ? (int)taken : there;
}

void
lane_disarm(struct tg_lane *lane)
{
	struct epoll_event events[4];
	int n;

	if (!lane->armed)
		return;
	lane->armed = 0;
	do
		n = epoll_wait(lane->epoll, events, 4, 0);
	while (n < 0 && errno == EINTR);
	for (int i = 0; i < n; i++) {
		if (events[i].data.u32 == WATCH_BELL)
			bell_drain(lane->bell);
		else if (events[i].data.u32 == WATCH_SELF)
			bell_drain(lane->self);
		else if (events[i].data.u32 == WATCH_RETRY)
			bell_drain(lane->retry_timer);
		else
			client_lose(lane->client, lane->generation);
	}
	wake_rise(&lane->sleeper);
}

/* The daemon is away, or has been: tg_fd watches other descriptors. */
static void
follow_daemon(struct tg_lane *lane)
{
	if (client_is_lost(lane->client) && client_mend(lane->client) != 0)
		(void)lane_watch_retry(lane);
	if (UNLIKELY(lane->generation != client_generation(lane->client)))
		lane_rejoin(lane);
}

/* From here on the daemon rings when it commits a completion; the caller looks once more. */
static void
doze(struct tg_lane *lane)
{
	lane->armed = 1;
	wake_doze(&lane->sleeper);
	order_fence_full(ORDER_F);
}

void
lane_arm(struct tg_lane *lane)
{
	follow_daemon(lane);
	doze(lane);
	if (lane_is_eventful(lane) != 0 || order_load_relaxed_32(lane->closed_word) != 0)
		bell_ring(lane->self);
}

static int
arg_check(struct tg_lane *lane, const void *pointer, const char *name)
{
	if (lane == NULL || fork_is_child(&lane->mark))
		return lane_trouble(lane);
	if (pointer == NULL)
		return detail_fail(-TG_EINVAL, "lane %" PRIu64 ": %s is NULL", lane->lane_id, name);
	return 0;
}

int
tg_poll(struct tg_lane *lane, struct tg_completion *completions, size_t max)
{
	int n = arg_check(lane, completions, "completions");
	int late;

	if (UNLIKELY(n < 0))
		return n;
	if (max > INT_MAX)
		max = INT_MAX;
	if (max == 0)
		return 0;
	if (UNLIKELY(lane->armed))
		lane_disarm(lane);
	if ((n = cq_take(lane, completions, max)) != 0)
		return n;
	n = lane_trouble(lane);
	if (LIKELY(n == 0 && lane->epoll < 0)) {
		uint64_t now = clock_read_ns(CLOCK_MONOTONIC_COARSE);

		if (UNLIKELY(now >= lane->check_ns))
			lane_check_daemon(lane, now);
		return 0;
	}
	if (n == 0) {
		follow_daemon(lane);
		doze(lane);
	}
	/* Completions committed before the fence, or before the trouble, are visible now. */
	late = cq_take(lane, completions, max);
	if (late != 0) {
		if (lane->armed)
			wake_rise(&lane->sleeper);
		lane->armed = 0;
		return late;
	}
	/* The caller may have come because of a bell that rang for the edge: report it again. */
	if (n == 0 && (lane_edge(lane) != 0 || order_load_relaxed_32(lane->closed_word) != 0))
		bell_ring(lane->self);
	return n;
}

int
tg_fd(struct tg_lane *lane)
{
	struct epoll_event bell = { .events = EPOLLIN, .data.u32 = WATCH_BELL };
	struct epoll_event control = { .events = 0, .data.u32 = WATCH_CONTROL }; /* hang-up comes unasked */
	struct epoll_event self = { .events = EPOLLIN, .data.u32 = WATCH_SELF };
	int fd, own;

	if (lane == NULL || fork_is_child(&lane->mark))
		return lane_trouble(lane);
	if (lane->epoll >= 0)
		return lane->epoll;
	fd = fd_above_standard(epoll_create1(EPOLL_CLOEXEC));
	own = fd_above_standard(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
	if (fd < 0 || own < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, own, &self) != 0 ||
	    epoll_ctl(fd, EPOLL_CTL_ADD, lane->bell, &bell) != 0 ||
	    epoll_ctl(fd, EPOLL_CTL_ADD, lane->client->fd, &control) != 0) {
		int saved = errno;

		if (fd >= 0)
			close(fd);
		if (own >= 0)
			close(own);
		errno = saved;
		return detail_fail(
		    saved == EMFILE || saved == ENFILE || saved == ENOSPC ? -TG_ELIMIT : -TG_ESYSTEM,
		    "lane %" PRIu64 ": a descriptor to wait on: %s", lane->lane_id, strerror(saved));
	}
	ck_pr_store_int(&lane->epoll, fd);
	ck_pr_store_int(&lane->self, own);
	ck_pr_fence_memory(); /* wake_owners() */
	lane_arm(lane);
	return fd;
}

int
tg_writable(struct tg_lane *lane)
{
	int rc = lane_trouble(lane);

	if (rc < 0)
		return rc;
	lane_notice(lane);
	lane->writable_seen = order_load_relaxed_32(&lane->map.daemon->writable) != 0;
	return (int)lane->writable_seen;
}

int64_t
tg_outstanding(struct tg_lane *lane)
{
	int rc = arg_check(lane, lane, "lane");

	if (rc < 0 || (rc = lane_sweep(lane)) < 0)
		return rc;
	lane_notice(lane);
	return (int64_t)(lane->published - lane->cq.head - lane->marked);
}

/* The text as it was at one moment. Its length, 0 if there is none, or -TG_EAGAIN. */
static int
reason_copy(const struct lane_reason *from, struct lane_reason *to)
{
	uint64_t word;

	for (unsigned i = 0; i < REASON_TRIES; i++, ck_pr_stall()) {
		to->seq = order_load_relaxed_32(&from->seq);
		if (to->seq == 0)
			return 0;
		if ((to->seq & 1) != 0)
			continue;
		ck_pr_fence_load(); /* not a word of the text is read before seq */
		to->code = order_load_relaxed_32(&from->code);
		for (size_t at = 0; at < sizeof(to->text); at += sizeof(word)) {
			word = order_load_relaxed_64((const uint64_t *)(const void *)(from->text + at));
			memcpy(to->text + at, &word, sizeof(word));
		}
		ck_pr_fence_load(); /* nor after it */
		if (order_load_relaxed_32(&from->seq) == to->seq)
			return (int)strnlen(to->text, sizeof(to->text) - 1);
	}
	return -TG_EAGAIN;
}

int
tg_reason(struct tg_lane *lane, char *text, size_t size, uint32_t *code)
{
	struct lane_reason copy;
	int len = arg_check(lane, text != NULL || size == 0 ? lane : NULL, "text");

	if (len < 0)
		return len;
	copy.code = 0;
	len = reason_copy(lane->map.reason, &copy);
	if (len < 0)
		return detail_fail(len, "lane %" PRIu64 ": the reason is being rewritten", lane->lane_id);
	if (size > 0) {
		size_t part = (size_t)len < size ? (size_t)len : size - 1;

		memcpy(text, copy.text, part);
		text[part] = '\0';
	}
	if (code != NULL)
		*code = copy.code;
	return len;
}
