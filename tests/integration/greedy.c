/*
 * greedy: a client that uses as much of the daemon as it can, within or just outside the rules, until it is killed.
 *
 *   greedy SOCKET POOL MODE [ARGUMENT]
 *
 *   open BYTES    opens a lane with a ring of so many bytes and closes it, without end
 *   return BYTES  hands back a lane of which as many records are finished as can be, closes it, and again
 *   connect       connects and hangs up
 *   ask           asks for a pool that does not exist, several requests ahead
 *   unread        publishes and never takes a completion, and rings when its lanes are full
 *   discard       the same, and opens new lanes instead
 *   expired LANES publishes records whose time is over, on so many lanes, as fast as they are taken
 *   publish LANES publishes valid records
 *   ring CLIENTS  rings for nothing on so many connections with a lane each, in turn
 *   nag           rings for nothing, often, then publishes a record and waits for its completion
 *   spin PERCENT  touches nothing: uses so much of a processor
 *
 * Prints `ready` when it has begun. Exit status: 1 when the daemon refuses or hangs up; 2 wrong use.
 */
#include "tests/integration/raw_client.h"
#include "shm/wake.h"

#define AHEAD 8u
#define RECORD_BODY 80u /* a record of 128 bytes: as many as the completion ring has entries */
#define UNREAD_LANES 16u
#define MANY 64u /* lanes, connections */
#define SLICE_NS 2000000u
#define NAGS 1000u

struct attached {
	uint64_t id, tail;
	int ring, answers, doorbell, bell;
	struct lane_map map;
	struct wake_ringer ringer;
};

static void
open_without_end(uint64_t bytes)
{
	struct frame frame = open_request(bytes), answer;
	int control = connect_daemon();
	int fds[FRAME_FDS];
	struct lane_map map;
	int ring = make_ring(bytes, &map); /* one ring for all requests, so that the cost is the daemon's */

	for (;;) {
		request(control, &frame, &ring, 1, &answer, fds);
		if (answer.type == FRAME_LANE_OPENED) {
			close_fds(fds, FRAME_FDS);
			close_lane(control, answer.u.lane.lane_id);
		} else if (answer.u.error.code != TG_ELIMIT) {
			refused(&answer);
		}
		ready();
	}
}

/* Finished records in the ring, as many as recovery looks for, named in an order that has to be sorted. */
static void
finished_lane(uint64_t bytes, struct lane_map *map, int fds[2])
{
	struct lane_header header = { .nonce = 1 };

	snprintf(header.pool, sizeof(header.pool), "%s", pool);
	fds[FRAME_FD_RING] = make_ring(bytes, map);
	fds[FRAME_FD_OLD_ANSWERS] = lane_answers_create(&map->geo, &header);
	if (fds[FRAME_FD_OLD_ANSWERS] < 0 ||
	    lane_map_answers(map, fds[FRAME_FD_OLD_ANSWERS], LANE_WRITE, 0) != 0)
		die("answers");
	uint64_t size = record_bytes(0, 0, 0, RECORD_BODY), count = map->geo.cq_entries / 2;
	for (uint64_t n = 0; n < count; n++) {
		struct record *record = (struct record *)(void *)(map->sq + n * size);
		*record = (struct record){
			.size = (uint32_t)size, .check = record_check(n * size), .body_len = RECORD_BODY
		};
		map->cq[n].position = (n * 0x9e3779b1u & (count - 1)) * size;
		map->cq[n].outcome = TG_DELIVERED;
	}
	map->client->sq_tail = map->daemon->sq_sent = count * size;
	map->daemon->cq_tail = count;
}

static void
return_without_end(uint64_t bytes)
{
	struct lane_map map;
	struct frame frame, answer;
	int control = connect_daemon();
	int fds[FRAME_FDS];
	int memory[2];

	finished_lane(bytes, &map, memory);
	frame_init(&frame, FRAME_LANE_RETURN, 1);
	for (;;) {
		map.header->nonce++;
		request(control, &frame, memory, 2, &answer, fds);
		close_fds(fds, FRAME_FDS);
		if (answer.type == FRAME_LANE_RETURNED) {
			uint64_t id = answer.u.lane.lane_id;
			frame_init(&answer, FRAME_LANE_READY, 3);
			answer.u.lane.lane_id = id;
			if (frame_send(control, &answer, NULL, 0) != 0)
				die("control socket");
			close_lane(control, id);
		} else if (answer.u.error.code != TG_ELIMIT) {
			refused(&answer);
		}
		ready();
	}
}

static void
connect_without_end(void)
{
	for (;;) {
		close(connect_daemon());
		ready();
	}
}

static void
ask_without_end(void)
{
	struct frame frame, answer;
	int control = connect_daemon();
	int fds[FRAME_FDS];
	unsigned ahead = 0;

	frame = open_request(0);
	snprintf(frame.u.open.pool, sizeof(frame.u.open.pool), "no such pool");
	for (;;) {
		for (; ahead < AHEAD; ahead++)
			if (frame_send(control, &frame, NULL, 0) != 0)
				die("control socket");
		if (frame_recv(control, &answer, fds) != 0)
			die("control socket");
		ahead--;
		ready();
	}
}

static void
attach(int control, struct attached *a)
{
	struct frame frame = open_request(LANE_SQ_DEFAULT), answer;
	int fds[FRAME_FDS];

	a->tail = 0;
	a->ring = make_ring(LANE_SQ_DEFAULT, &a->map);
	request(control, &frame, &a->ring, 1, &answer, fds);
	if (answer.type != FRAME_LANE_OPENED)
		refused(&answer);
	a->id = answer.u.lane.lane_id;
	a->answers = fds[FRAME_FD_ANSWERS];
	a->doorbell = fds[FRAME_FD_DOORBELL];
	a->bell = fds[FRAME_FD_BELL];
	if (lane_map_answers(&a->map, a->answers, LANE_READ, 0) != 0)
		die("mapping");
	wake_ringer_init(&a->ringer, &a->map.daemon->asleep);
}

static void
detach(int control, struct attached *a)
{
	close_lane(control, a->id);
	lane_map_fini(&a->map);
	close(a->ring);
	close(a->answers);
	close(a->doorbell);
	close(a->bell);
}

/* It breaks the rules: it takes no completions, and its messages' deadlines have passed. */
enum { UNREAD = 1, EXPIRED = 2 };

static void
ring(const struct attached *a)
{
	static const uint64_t one = 1;

	if (write(a->doorbell, &one, sizeof(one)) < 0 && errno != EAGAIN)
		die("doorbell");
}

/* Returns whether there was room. */
static int
publish(struct attached *a, int how)
{
	uint64_t size = record_bytes(1, 0, 0, RECORD_BODY);
	uint64_t mask = a->map.geo.sq_bytes - 1;

	if (a->tail + size - order_load_acquire_64(ORDER_B, &a->map.daemon->sq_head) > mask + 1)
		return 0;
	struct record *record = (struct record *)(void *)(a->map.sq + (a->tail & mask));
	*record = (struct record){ .size = (uint32_t)size,
		.check = record_check(a->tail),
		.published_ns = (how & EXPIRED) ? 0 : now_ns(),
		.body_len = RECORD_BODY,
		.topic_len = 1 };
	*(char *)(record + 1) = 'g';
	a->tail += size;
	order_store_release_64(ORDER_A, &a->map.client->sq_tail, a->tail);
	order_fence_full(ORDER_C);
	if (wake_must_ring(&a->ringer))
		ring(a);
	if (!(how & UNREAD))
		order_store_release_64(
		    ORDER_E, &a->map.client->cq_head, order_load_acquire_64(ORDER_D, &a->map.daemon->cq_tail));
	return 1;
}

static void
publish_without_end(int how, uint64_t count)
{
	struct attached lanes[MANY];
	int control = connect_daemon();

	for (unsigned i = 0; i < count; i++)
		attach(control, &lanes[i]);
	for (;;) {
		for (unsigned i = 0; i < count; i++)
			publish(&lanes[i], how);
		ready();
	}
}

static void
ring_without_end(uint64_t count)
{
	struct attached lanes[MANY];

	for (unsigned i = 0; i < count; i++)
		attach(connect_daemon(), &lanes[i]);
	for (;;) {
		for (unsigned i = 0; i < count; i++)
			ring(&lanes[i]);
		ready();
	}
}

static void
nag_without_end(void)
{
	static const struct timespec pause = { .tv_nsec = 100000 };
	struct attached a;

	attach(connect_daemon(), &a);
	for (uint64_t taken = 0;; taken++) {
		for (unsigned i = 0; i < NAGS; i++)
			ring(&a);
		publish(&a, 0);
		/* Without the library it has no bell: it polls for its completion. */
		while (order_load_acquire_64(ORDER_D, &a.map.daemon->cq_tail) == taken)
			nanosleep(&pause, NULL);
		ready();
	}
}

static void
never_read(int discard)
{
	struct attached lanes[UNREAD_LANES];
	int control = connect_daemon();

	for (unsigned i = 0; i < UNREAD_LANES; i++)
		attach(control, &lanes[i]);
	for (;;) {
		unsigned full = 0;
		for (unsigned i = 0; i < UNREAD_LANES; i++)
			full += !publish(&lanes[i], UNREAD);
		ready();
		if (full < UNREAD_LANES)
			continue;
		if (!discard) {
			ring(&lanes[0]);
			continue;
		}
		for (unsigned i = 0; i < UNREAD_LANES; i++) {
			detach(control, &lanes[i]);
			attach(control, &lanes[i]);
		}
	}
}

static void
spin(unsigned percent)
{
	uint64_t busy = (uint64_t)SLICE_NS * percent / 100;
	uint64_t next = now_ns();
	struct timespec rest = { .tv_nsec = (long)(SLICE_NS - busy) };

	for (;;) {
		next = now_ns() + busy;
		while (now_ns() < next)
			;
		if (rest.tv_nsec > 0)
			nanosleep(&rest, NULL);
		ready();
	}
}

int
main(int argc, char **argv)
{
	const char *mode = argc > 3 ? argv[3] : "";
	uint64_t argument = argc > 4 ? strtoull(argv[4], NULL, 0) : 0;

	if (argc < 4 || strlen(argv[1]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: greedy SOCKET POOL MODE [ARGUMENT]\n"
				"MODE: open return connect ask unread discard expired publish ring nag spin\n");
		return 2;
	}
	strcpy(address.sun_path, argv[1]);
	pool = argv[2];
	if (strcmp(mode, "open") == 0)
		open_without_end(argument);
	else if (strcmp(mode, "return") == 0)
		return_without_end(argument);
	else if (strcmp(mode, "connect") == 0)
		connect_without_end();
	else if (strcmp(mode, "ask") == 0)
		ask_without_end();
	else if (strcmp(mode, "unread") == 0)
		never_read(0);
	else if (strcmp(mode, "discard") == 0)
		never_read(1);
	else if (strcmp(mode, "publish") == 0)
		publish_without_end(0, argument < MANY ? argument : MANY);
	else if (strcmp(mode, "expired") == 0)
		publish_without_end(EXPIRED, argument < MANY ? argument : MANY);
	else if (strcmp(mode, "ring") == 0)
		ring_without_end(argument < MANY ? argument : MANY);
	else if (strcmp(mode, "nag") == 0)
		nag_without_end();
	else if (strcmp(mode, "spin") == 0)
		spin((unsigned)(argument < 100 ? argument : 100));
	fprintf(stderr, "greedy: %s: no such mode\n", mode);
	return 2;
}
