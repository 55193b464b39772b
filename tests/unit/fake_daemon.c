#include "fake_daemon.h"

#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MUST(x)                                                                                      \
	do {                                                                                         \
		if (!(x)) {                                                                          \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); \
			abort();                                                                     \
		}                                                                                    \
	} while (0)

/* ---- the rings ---- */

int
fake_lane_take(struct fake_lane *lane, struct record *record, const uint8_t **bytes, uint64_t *position)
{
	if (lane->sq.cursor == lane->sq.tail_seen) {
		int rc = sq_consumer_refresh(&lane->sq);

		MUST(rc >= 0);
		if (rc == 0)
			return 0;
	}
	MUST(sq_peek(&lane->sq, record) == 0);
	*position = lane->sq.cursor;
	*bytes = sq_at(&lane->sq, *position) + sizeof(*record);
	lane->sq.cursor += record->size;
	return 1;
}

void
fake_lane_answer(struct fake_lane *lane, uint64_t position, const struct record *record, unsigned outcome)
{
	struct completion c = { .position = position,
		.tag = record->tag,
		.reference = position + 1,
		.elapsed_us = 7,
		.code = outcome == TG_REJECTED ? 135 : 0,
		.outcome = (uint8_t)outcome,
		.info = (uint8_t)(1u | ((record->flags & RECORD_F_QUIET) != 0 ? COMPLETION_QUIET : 0u)) };

	MUST(cq_producer_refresh(&lane->cq) > 0);
	cq_push(&lane->cq, &c);
}

void
fake_lane_ring(struct fake_lane *lane)
{
	uint64_t one = 1;

	order_fence_full(ORDER_F);
	if (wake_must_ring(&lane->client))
		MUST(write(lane->bell, &one, sizeof(one)) == sizeof(one));
}

void
fake_lane_commit(struct fake_lane *lane)
{
	cq_publish(&lane->cq);
	sq_release(&lane->sq, lane->sq.cursor);
	fake_lane_ring(lane);
}

unsigned
fake_lane_drain(struct fake_lane *lane, unsigned outcome)
{
	struct record record;
	const uint8_t *bytes;
	uint64_t position;
	unsigned n = 0;

	while (fake_lane_take(lane, &record, &bytes, &position)) {
		const uint8_t *body = bytes + record.topic_len + record.key_len + record.headers_len;

		for (uint32_t i = 0; i < record.body_len; i++)
			lane->sum += body[i];
		lane->seen += record.body_len;
		fake_lane_answer(lane, position, &record, outcome);
		n++;
	}
	if (n > 0)
		fake_lane_commit(lane);
	return n;
}

/* ---- control frames ---- */

static int
not_a_lane(enum fake_lie lie)
{
	int fd;

	if (lie == LIE_NOT_A_MEMFD) {
		fd = eventfd(0, EFD_CLOEXEC);
	} else {
		fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		struct lane_header header = { .magic = LANE_MAGIC,
			.abi = lie == LIE_MEMFD_ABI ? LANE_ABI + 1 : LANE_ABI,
			.lane_id = 1,
			.sq_bytes = LANE_SQ_MIN,
			.cq_entries = LANE_CQ_MIN,
			.max_record = LANE_SQ_MIN / 2 };
		struct lane_geometry geo = { LANE_SQ_MIN, LANE_CQ_MIN };
		MUST(ftruncate(fd, (off_t)lane_answers_bytes(&geo)) == 0);
		MUST(pwrite(fd, &header, sizeof(header), 0) == sizeof(header));
		if (lie == LIE_MEMFD_ABI)
			MUST(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
	}
	MUST(fd >= 0);
	return fd;
}

static struct fake_lane *
lane_make(struct fake *fake, const struct frame *request, int ring)
{
	struct lane_header header = { .flags = fake->flags };
	struct lane_geometry geo;
	struct fake_lane *lane = &fake->lanes[fake->lane_count];

	MUST(fake->lane_count < FAKE_LANES);
	MUST(lane_geometry_make(&geo, request->u.open.sq_bytes, request->u.open.cq_entries) == 0);
	lane->lane_id = header.lane_id = ++fake->lane_count;
	snprintf(header.pool, sizeof(header.pool), "%s", request->u.open.pool);
	MUST(lane_ring_check(ring, &geo) == 0);
	MUST((lane->ring = fcntl(ring, F_DUPFD_CLOEXEC, 0)) >= 0);
	MUST((lane->answers = lane_answers_create(&geo, &header)) >= 0);
	MUST(lane_map_ring(&lane->map, lane->ring, &geo, LANE_READ, 0) == 0);
	MUST(lane_map_answers(&lane->map, lane->answers, LANE_WRITE, 0) == 0);
	MUST((lane->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0);
	sq_consumer_init(&lane->sq, &lane->map, 0);
	cq_producer_init(&lane->cq, &lane->map, 0, 0);
	wake_sleeper_init(&lane->asleep, &lane->map.daemon->asleep);
	wake_ringer_init(&lane->client, &lane->map.client->waiting);
	wake_doze(&lane->asleep);
	order_store_relaxed_32(&lane->map.daemon->writable, 1);
	return lane;
}

static void
reply(struct fake *fake, int conn, const struct frame *answer, const int *fds, unsigned nfds)
{
	if (fake->lie == LIE_LATE) {
		fake->held = *answer;
		fake->is_held = 1;
		for (unsigned i = 0; i < FRAME_FDS; i++)
			MUST((fake->held_fds[i] = i < nfds ? dup(fds[i]) : -1) >= 0 || i >= nfds);
		fake->lie = LIE_NONE;
		return;
	}
	if (fake->lie == LIE_GARBAGE || fake->lie == LIE_SHORT) {
		char junk[64];

		memset(junk, 'x', sizeof(junk));
		(void)send(conn, fake->lie == LIE_SHORT ? (const void *)answer : junk, 40, MSG_NOSIGNAL);
		return;
	}
	(void)frame_send(conn, answer, fds, nfds); /* the client may have gone */
}

static void
answer_open(struct fake *fake, int conn, const struct frame *request, int ring)
{
	struct fake_lane *lane = lane_make(fake, request, ring);
	struct frame answer;
	int answers = lane_answers_share(lane->answers);
	int fds[FRAME_FDS] = { answers, fake->doorbell, lane->bell };
	unsigned nfds = FRAME_FDS;
	int fake_fd = -1;

	fake->last_open = *request;
	frame_init(&answer, FRAME_LANE_OPENED, request->serial);
	answer.u.lane.lane_id = lane->lane_id;
	answer.u.lane.sq_bytes = lane->map.geo.sq_bytes;
	answer.u.lane.cq_entries = lane->map.geo.cq_entries;
	answer.u.lane.clock_ns = frame_clock() + fake->clock_ns;
	if (fake->error != 0) {
		frame_init(&answer, FRAME_ERROR, request->serial);
		answer.u.error.code = fake->error;
		snprintf(answer.u.error.text, FRAME_TEXT, "pool \"%s\": no, 3 of 3", request->u.open.pool);
		nfds = 0;
	}
	switch (fake->lie) {
	case LIE_NO_DESCRIPTORS:
		nfds = 0;
		break;
	case LIE_ONE_DESCRIPTOR:
		nfds = 1;
		break;
	case LIE_TYPE:
		answer.type = FRAME_LANE_CLOSED;
		break;
	case LIE_SERIAL:
		answer.serial += 7;
		break;
	case LIE_GEOMETRY:
		answer.u.lane.sq_bytes *= 2;
		break;
	case LIE_LANE_ID:
		answer.u.lane.lane_id += 1;
		break;
	case LIE_UNSEALED:
	case LIE_NOT_A_MEMFD:
	case LIE_MEMFD_ABI:
		fds[0] = fake_fd = not_a_lane(fake->lie);
		break;
	case LIE_ABI:
		answer.abi = LANE_ABI + 1;
		break;
	case LIE_ERROR_UNKNOWN:
		answer.type = FRAME_ERROR;
		answer.u.error.code = 4711;
		break;
	case LIE_NOT_EMPTY:
		order_store_relaxed_64(&lane->map.daemon->cq_tail, 3);
		break;
	case LIE_HANG_UP:
		shutdown(conn, SHUT_RDWR);
		close(answers);
		return;
	default:
		break;
	}
	reply(fake, conn, &answer, fds, nfds);
	if (fake_fd >= 0)
		close(fake_fd);
	close(answers);
}

/* The lane opened last, whichever comes. */
static void
answer_return(struct fake *fake, int conn, const struct frame *request)
{
	struct fake_lane *lane = &fake->lanes[fake->lane_count - 1];
	int answers = lane_answers_share(lane->answers);
	int fds[] = { answers, fake->doorbell, lane->bell };
	struct frame answer;

	frame_init(&answer, FRAME_LANE_RETURNED, request->serial);
	answer.u.lane.lane_id = lane->lane_id;
	answer.u.lane.flags = fake->flags;
	answer.u.lane.clock_ns = frame_clock() + fake->clock_ns;
	if (fake->error != 0) {
		frame_init(&answer, FRAME_ERROR, request->serial);
		answer.u.error.code = fake->error;
	}
	reply(fake, conn, &answer, fds, fake->error != 0 ? 0 : 3);
	close(answers);
}

static void
held_send(struct fake *fake, int conn)
{
	if (!fake->is_held)
		return;
	fake->is_held = 0;
	(void)frame_send(conn, &fake->held, fake->held_fds, FRAME_FDS);
	for (unsigned i = 0; i < FRAME_FDS; i++)
		close(fake->held_fds[i]);
}

static int
conn_serve(struct fake *fake, int conn)
{
	struct frame request, answer;
	int fds[FRAME_FDS];
	int rc;

	if (fake->lie == LIE_ABI_UNREAD) {
		frame_init(&answer, FRAME_ERROR, 0);
		answer.abi = LANE_ABI + 1;
		(void)frame_send(conn, &answer, NULL, 0);
		return -TG_EVERSION;
	}
	rc = frame_recv(conn, &request, fds);

	if (rc == -TG_EAGAIN)
		return 0;
	if (rc < 0)
		return rc;
	held_send(fake, conn);
	if (request.type == FRAME_LANE_OPEN) {
		answer_open(fake, conn, &request, fds[FRAME_FD_RING]);
	} else if (request.type == FRAME_LANE_CLOSE) {
		fake->closes++;
		fake->last_close = request.u.lane.lane_id;
		frame_init(&answer, FRAME_LANE_CLOSED, request.serial);
		answer.u.lane.lane_id = request.u.lane.lane_id;
		reply(fake, conn, &answer, NULL, 0);
	} else if (request.type == FRAME_LANE_RETURN && fake->takes_back) {
		answer_return(fake, conn, &request);
	}
	for (unsigned i = 0; i < FRAME_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return 0;
}

/* ---- the thread ---- */

static unsigned
drain_all(struct fake *fake)
{
	unsigned n = 0;

	for (unsigned i = 0; fake->mode == FAKE_ANSWER && i < fake->lane_count; i++)
		n += fake_lane_drain(&fake->lanes[i], TG_DELIVERED);
	return n;
}

/* Marks every lane as slept on; returns whether there is still nothing to do. */
static int
doze_all(struct fake *fake)
{
	if (fake->mode != FAKE_ANSWER)
		return 1;
	for (unsigned i = 0; i < fake->lane_count; i++)
		wake_doze(&fake->lanes[i].asleep);
	if (wake_barrier() != 0)
		order_fence_full(ORDER_C);
	return drain_all(fake) == 0;
}

static void
rise_all(struct fake *fake)
{
	for (unsigned i = 0; fake->mode == FAKE_ANSWER && i < fake->lane_count; i++)
		wake_rise(&fake->lanes[i].asleep);
}

static void
conns_close(struct fake *fake)
{
	for (unsigned i = 0; i < fake->conn_count; i++)
		close(fake->conns[i]);
	fake->conn_count = 0;
}

static void
conns_serve(struct fake *fake, const struct pollfd *p, unsigned count)
{
	for (unsigned i = count; i-- > 0;) {
		if (p[i].revents == 0 || conn_serve(fake, fake->conns[i]) == 0)
			continue;
		close(fake->conns[i]);
		fake->conns[i] = fake->conns[--fake->conn_count];
	}
}

static void *
fake_run(void *arg)
{
	struct fake *fake = arg;
	struct pollfd p[3 + FAKE_CONNS];
	int stop = 0;

	while (!stop) {
		uint64_t count;
		unsigned conns;
		int sleepy, ready;

		pthread_mutex_lock(&fake->lock);
		(void)drain_all(fake);
		sleepy = doze_all(fake);
		conns = fake->conn_count;
		pthread_mutex_unlock(&fake->lock);
		p[0] = (struct pollfd){ .fd = fake->nudge, .events = POLLIN };
		p[1] = (struct pollfd){ .fd = fake->doorbell, .events = POLLIN };
		p[2] = (struct pollfd){ .fd = conns < FAKE_CONNS ? fake->listener : -1, .events = POLLIN };
		for (unsigned i = 0; i < conns; i++)
			p[3 + i] = (struct pollfd){ .fd = fake->conns[i], .events = POLLIN };
		MUST((ready = poll(p, 3 + conns, sleepy ? WAKE_SECOND_LOOK_MS : 0)) >= 0 || errno == EINTR);
		if (ready == 0 && sleepy) {
			/* A publisher that membarrier missed can be seen now (wake.h). */
			pthread_mutex_lock(&fake->lock);
			sleepy = drain_all(fake) == 0;
			pthread_mutex_unlock(&fake->lock);
			MUST(poll(p, 3 + conns, sleepy ? -1 : 0) >= 0 || errno == EINTR);
		}
		pthread_mutex_lock(&fake->lock);
		if (read(fake->doorbell, &count, sizeof(count)) == sizeof(count))
			fake->rings += (unsigned)count;
		rise_all(fake);
		conns_serve(fake, p + 3, conns);
		if (p[2].revents != 0) {
			int fd = accept4(fake->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

			if (fd >= 0)
				fake->conns[fake->conn_count++] = fd;
		}
		if (p[0].revents != 0)
			MUST(read(fake->nudge, &count, sizeof(count)) == sizeof(count));
		if (fake->hang_up) {
			conns_close(fake);
			fake->hang_up = 0;
		}
		stop = fake->stopping;
		pthread_mutex_unlock(&fake->lock);
	}
	return NULL;
}

static void
poke(struct fake *fake)
{
	uint64_t one = 1;

	MUST(write(fake->nudge, &one, sizeof(one)) == sizeof(one));
}

void
fake_start(struct fake *fake, enum fake_mode mode)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	memset(fake, 0, sizeof(*fake));
	strcpy(fake->dir, "/tmp/tidegate-test.XXXXXX");
	MUST(mkdtemp(fake->dir) != NULL);
	snprintf(fake->path, sizeof(fake->path), "%s/socket", fake->dir);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", fake->path);
	fake->mode = mode;
	MUST(pthread_mutex_init(&fake->lock, NULL) == 0);
	if (wake_register() == 0)
		fake->flags = LANE_F_EXPEDITED;
	MUST((fake->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)) >= 0);
	MUST(bind(fake->listener, (struct sockaddr *)&addr, sizeof(addr)) == 0);
	MUST(listen(fake->listener, 16) == 0);
	MUST((fake->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0);
	MUST((fake->nudge = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) >= 0);
	MUST(pthread_create(&fake->thread, NULL, fake_run, fake) == 0);
}

void
fake_stop(struct fake *fake)
{
	pthread_mutex_lock(&fake->lock);
	fake->stopping = 1;
	pthread_mutex_unlock(&fake->lock);
	poke(fake);
	MUST(pthread_join(fake->thread, NULL) == 0);
	conns_close(fake);
	for (unsigned i = 0; i < fake->lane_count; i++) {
		lane_map_fini(&fake->lanes[i].map);
		close(fake->lanes[i].ring);
		close(fake->lanes[i].answers);
		close(fake->lanes[i].bell);
	}
	close(fake->listener);
	close(fake->doorbell);
	close(fake->nudge);
	pthread_mutex_destroy(&fake->lock);
	unlink(fake->path);
	rmdir(fake->dir);
}

void
fake_set_lie(struct fake *fake, enum fake_lie lie)
{
	pthread_mutex_lock(&fake->lock);
	fake->lie = lie;
	pthread_mutex_unlock(&fake->lock);
}

void
fake_set_error(struct fake *fake, int error)
{
	pthread_mutex_lock(&fake->lock);
	fake->error = error;
	pthread_mutex_unlock(&fake->lock);
}

void
fake_set_flags(struct fake *fake, unsigned flags)
{
	pthread_mutex_lock(&fake->lock);
	fake->flags = flags;
	pthread_mutex_unlock(&fake->lock);
}

void
fake_set_clock(struct fake *fake, int64_t ahead_ns)
{
	pthread_mutex_lock(&fake->lock);
	fake->clock_ns = ahead_ns;
	pthread_mutex_unlock(&fake->lock);
}

/* Rings that the client has already written count, whether the thread has read them or not. */
unsigned
fake_rings(struct fake *fake)
{
	uint64_t count;
	unsigned n;

	pthread_mutex_lock(&fake->lock);
	if (read(fake->doorbell, &count, sizeof(count)) == sizeof(count))
		fake->rings += (unsigned)count;
	n = fake->rings;
	pthread_mutex_unlock(&fake->lock);
	return n;
}

unsigned
fake_closes(struct fake *fake)
{
	unsigned n;

	pthread_mutex_lock(&fake->lock);
	n = fake->closes;
	pthread_mutex_unlock(&fake->lock);
	return n;
}

uint64_t
fake_last_close(struct fake *fake)
{
	uint64_t id;

	pthread_mutex_lock(&fake->lock);
	id = fake->last_close;
	pthread_mutex_unlock(&fake->lock);
	return id;
}

unsigned
fake_conns(struct fake *fake)
{
	unsigned n;

	pthread_mutex_lock(&fake->lock);
	n = fake->conn_count;
	pthread_mutex_unlock(&fake->lock);
	return n;
}

struct frame
fake_last_open(struct fake *fake)
{
	struct frame frame;

	pthread_mutex_lock(&fake->lock);
	frame = fake->last_open;
	pthread_mutex_unlock(&fake->lock);
	return frame;
}

struct fake_lane *
fake_lane(struct fake *fake)
{
	struct fake_lane *lane;

	pthread_mutex_lock(&fake->lock);
	MUST(fake->lane_count > 0);
	lane = &fake->lanes[fake->lane_count - 1];
	pthread_mutex_unlock(&fake->lock);
	return lane;
}

void
fake_take_back(struct fake *fake, unsigned flags)
{
	pthread_mutex_lock(&fake->lock);
	fake->takes_back = 1;
	fake->flags = flags;
	pthread_mutex_unlock(&fake->lock);
}

void
fake_hang_up(struct fake *fake)
{
	int pending = 1;

	pthread_mutex_lock(&fake->lock);
	fake->hang_up = 1;
	pthread_mutex_unlock(&fake->lock);
	poke(fake);
	while (pending) {
		sched_yield();
		pthread_mutex_lock(&fake->lock);
		pending = fake->hang_up;
		pthread_mutex_unlock(&fake->lock);
	}
}

/* ---- later ---- */

uint64_t
fake_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

static void *
later_run(void *arg)
{
	struct fake_later *later = arg;
	uint64_t deadline = fake_now_ms() + FAKE_DEADLINE_MS;

	while ((order_load_relaxed_32(&later->lane->map.client->waiting) & 1u) == 0) {
		MUST(fake_now_ms() < deadline);
		sched_yield();
	}
	later->fn(later->lane, later->arg);
	return NULL;
}

void
fake_later_start(
    struct fake_later *later, struct fake_lane *lane, void (*fn)(struct fake_lane *lane, void *arg), void *arg)
{
	later->lane = lane;
	later->fn = fn;
	later->arg = arg;
	MUST(pthread_create(&later->thread, NULL, later_run, later) == 0);
}

void
fake_later_join(struct fake_later *later)
{
	MUST(pthread_join(later->thread, NULL) == 0);
}
