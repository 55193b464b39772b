/*
 * hostile: a client that breaks the rules. It attaches without the library and then attacks:
 * random bytes anywhere in the shared mapping, random cursors, records whose
 * fields contradict each other and that change while they are read, tries at punching holes, a doorbell that
 * never stops, completions that are never taken.
 *
 *   hostile SOCKET POOL SEED MUTATIONS MODE     MODE: bytes words records holes flood mix return
 *
 * Prints `mutations=N lanes=N quarantined=N returned=N` at the end. Exit status: 0; 1 when the daemon hangs up or
 * refuses a lane; 2 wrong use; 3 memory could be punched. A lane that the daemon has closed is replaced by a new one.
 */
#include "shm/frame.h"
#include "shm/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define PUBLISH_EVERY 64u /* random writes between two looks at the lane */

struct hostile {
	int control, ring, answers, doorbell, bell;
	struct lane_header header;
	uint64_t lane_id;
	struct lane_map map;
	struct lane_geometry geo;
	uint64_t random, mutations, lanes, quarantined, returned, tail;
	const char *pool;
};

static uint64_t
next_random(struct hostile *h)
{
	h->random ^= h->random << 13;
	h->random ^= h->random >> 7;
	h->random ^= h->random << 17;
	return h->random;
}

static void
die(const char *what)
{
	fprintf(stderr, "hostile: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void
attach(struct hostile *h)
{
	struct frame frame;
	int fds[FRAME_FDS];

	frame_init(&frame, FRAME_LANE_OPEN, (uint32_t)next_random(h));
	frame.u.open.sq_bytes = LANE_SQ_MIN << next_random(h) % 3;
	if (lane_geometry_make(&h->geo, frame.u.open.sq_bytes, 0) != 0 ||
	    (h->ring = lane_ring_make(&h->map, &h->geo)) < 0)
		die("ring");
	snprintf(frame.u.open.pool, sizeof(frame.u.open.pool), "%s", h->pool);
	for (size_t i = 0; i < sizeof(frame.u.open.name); i++)
		frame.u.open.name[i] = (char)next_random(h);
	struct frame request = frame;
	/* Lanes that were spoiled count against their user until the daemon has freed them. */
	for (unsigned tries = 0; tries < 1000; tries++) {
		if (frame_send(h->control, &request, &h->ring, 1) != 0 ||
		    frame_recv(h->control, &frame, fds) != 0)
			die("control socket");
		if (frame.type == FRAME_LANE_OPENED || frame.u.error.code != TG_ELIMIT)
			break;
		poll(NULL, 0, 10);
	}
	if (frame.type != FRAME_LANE_OPENED) {
		fprintf(stderr, "hostile: refused: %s\n", frame.u.error.text);
		exit(1);
	}
	h->lane_id = frame.u.lane.lane_id;
	h->answers = fds[FRAME_FD_ANSWERS];
	h->doorbell = fds[FRAME_FD_DOORBELL];
	h->bell = fds[FRAME_FD_BELL];
	h->tail = 0;
	if (lane_map_answers(&h->map, h->answers, LANE_READ, 0) != 0)
		die("mapping");
	h->header = *h->map.header;
	h->lanes++;
}

/* Drops the lane: half the time in good order, half by forgetting it (its records stay behind). */
static void
detach(struct hostile *h)
{
	struct frame frame;
	int fds[FRAME_FDS];

	if (h->map.daemon->closed != 0)
		h->quarantined++;
	frame_init(&frame, FRAME_LANE_CLOSE, 1);
	frame.u.lane.lane_id = h->lane_id;
	if (frame_send(h->control, &frame, NULL, 0) != 0 || frame_recv(h->control, &frame, fds) != 0)
		die("control socket");
	lane_map_fini(&h->map);
	close(h->ring);
	close(h->answers);
	close(h->doorbell);
	close(h->bell);
}

static void
ring(struct hostile *h)
{
	static const uint64_t one = 1;

	if (write(h->doorbell, &one, sizeof(one)) < 0 && errno != EAGAIN)
		die("doorbell");
}

/* Answers as a daemon before might have left them, with lies in them: anywhere, and in its words most of all. */
static int
forge_answers(struct hostile *h)
{
	uint64_t bytes = lane_answers_bytes(&h->geo);
	struct lane_header header = h->header;

	if (next_random(h) % 8 != 0)
		header.nonce = next_random(h);
	int fd = lane_answers_create(&h->geo, &header);
	uint8_t *at = fd < 0 ? MAP_FAILED : mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED)
		die("answers");
	memcpy(at + LANE_DAEMON_AT, h->map.daemon, bytes - LANE_DAEMON_AT);
	struct lane_daemon *words = (struct lane_daemon *)(void *)(at + LANE_DAEMON_AT);
	for (uint64_t lies = next_random(h) % 8; lies > 0; lies--) {
		uint64_t r = next_random(h);
		uint64_t near = h->tail + (r >> 8) % 65536 - 32768;
		uint64_t value = (r & 1) ? near : (r & 2) ? near & ~UINT64_C(7) : next_random(h);
		switch ((r >> 4) % 5) {
		case 0:
			words->sq_head = value;
			break;
		case 1:
			words->sq_sent = value;
			break;
		case 2:
			words->cq_tail = value;
			break;
		case 3:
			at[LANE_PAGE + (r >> 8) % (bytes - LANE_PAGE)] = (uint8_t)r;
			break;
		default:
			at[(r >> 8) % bytes] = (uint8_t)r;
			break;
		}
	}
	munmap(at, bytes);
	return fd;
}

/* Hands the lane back as if another daemon had served it, its memory in whatever state it is. */
static void
hand_back(struct hostile *h)
{
	struct frame frame;
	int fds[FRAME_FDS];
	int memory[] = { [FRAME_FD_RING] = h->ring, [FRAME_FD_OLD_ANSWERS] = forge_answers(h) };

	frame_init(&frame, FRAME_LANE_RETURN, 1);
	if (frame_send(h->control, &frame, memory, 2) != 0 || frame_recv(h->control, &frame, fds) != 0)
		die("control socket");
	close(memory[FRAME_FD_OLD_ANSWERS]);
	for (unsigned i = 0; i < FRAME_FDS; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (frame.type != FRAME_LANE_RETURNED)
		return;
	h->returned++;
	uint64_t lane_id = frame.u.lane.lane_id;
	frame_init(&frame, FRAME_LANE_READY, 1);
	frame.u.lane.lane_id = lane_id;
	if (next_random(h) % 4 != 0 && frame_send(h->control, &frame, NULL, 0) != 0)
		die("control socket");
	frame_init(&frame, FRAME_LANE_CLOSE, 1);
	frame.u.lane.lane_id = lane_id;
	if (frame_send(h->control, &frame, NULL, 0) != 0 || frame_recv(h->control, &frame, fds) != 0)
		die("control socket");
}

/* A random byte anywhere in the ring: words and records. */
static void
mutate_bytes(struct hostile *h)
{
	uint64_t bytes = lane_ring_bytes(&h->geo);
	uint8_t *base = h->map.base;
	uint64_t at = next_random(h) % bytes;
	uint64_t r = next_random(h);

	if (r % 4 == 0)
		at %= LANE_PAGE; /* the words are few: aim at them */
	base[at] = (uint8_t)(r >> 8);
}

static void
mutate_words(struct hostile *h)
{
	uint64_t r = next_random(h);
	uint64_t near = h->map.daemon->sq_head + (r >> 8) % 65536 - 32768;
	uint64_t value = (r & 1) ? near : (r & 2) ? near & ~UINT64_C(7) : r;

	switch ((r >> 3) % 3) {
	case 0:
		order_store_release_64(ORDER_A, &h->map.client->sq_tail, value);
		break;
	case 1:
		order_store_release_64(ORDER_E, &h->map.client->cq_head, value);
		break;
	default:
		order_store_relaxed_32(&h->map.client->waiting, (uint32_t)r);
		break;
	}
}

/* A record that looks right at first sight and may lie in any field, now or a moment later. */
static void
mutate_record(struct hostile *h)
{
	uint64_t r = next_random(h), lie = next_random(h);
	uint64_t used = h->tail - order_load_relaxed_64(&h->map.daemon->sq_head);
	uint16_t topic = (uint16_t)(r % 40), key = (uint16_t)((r >> 8) % 20),
		 headers = (r & 0xf0) != 0 ? 0 : (uint16_t)((r >> 16) % 60);
	uint32_t body = (uint32_t)((r >> 24) % 3000);
	uint64_t size = record_bytes(topic, key, headers, body);
	struct record *record = (struct record *)(void *)(h->map.sq + (h->tail & (h->geo.sq_bytes - 1)));

	if (used + size > h->geo.sq_bytes) {
		/* Full: change what the daemon is reading instead. */
		h->map.sq[lie % h->geo.sq_bytes] = (uint8_t)(lie >> 40);
		return;
	}
	for (uint64_t i = 0; i < size; i++)
		((uint8_t *)record)[i] = (uint8_t)next_random(h);
	*record = (struct record){
		.size = (uint32_t)size,
		.check = record_check(h->tail),
		.tag = r,
		.published_ns = (lie & 1) ? lie : 0,
		.timeout_ms = (uint32_t)(lie >> 32),
		.body_len = body,
		.topic_len = topic,
		.key_len = key,
		.headers_len = headers,
		.flags = (uint16_t)(lie >> 1),
		.cancel = (lie & 6) == 6,
	};
	if ((lie & 0xf00) == 0)
		((uint8_t *)record)[lie % sizeof(*record)] ^= (uint8_t)(1u << (lie >> 60) % 8);
	h->tail += size;
	order_store_release_64(ORDER_A, &h->map.client->sq_tail, h->tail);
	((uint8_t *)record)[(lie >> 16) % size] = (uint8_t)lie;
	if ((lie & 0xf0) == 0)
		order_store_release_64(
		    ORDER_E, &h->map.client->cq_head, order_load_relaxed_64(&h->map.daemon->cq_tail));
}

/* Neither memfd can be punched: the ring is sealed, the answers are open for reading alone. */
static void
mutate_hole(struct hostile *h)
{
	uint64_t r = next_random(h);
	int is_ring = (int)(r & 1);
	uint64_t pages = (is_ring ? lane_ring_bytes(&h->geo) : lane_answers_bytes(&h->geo)) / LANE_PAGE;

	if (fallocate(is_ring ? h->ring : h->answers, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		(off_t)((r >> 1) % pages * LANE_PAGE), (off_t)(LANE_PAGE * (1 + (r >> 32) % 4))) == 0) {
		fprintf(stderr, "hostile: a hole could be punched\n");
		exit(3);
	}
}

static void
mutate(struct hostile *h, const char *mode)
{
	uint64_t pick = next_random(h) % 16;

	if (strcmp(mode, "return") == 0)
		mode = "mix";
	if (strcmp(mode, "bytes") == 0 || (strcmp(mode, "mix") == 0 && pick < 4))
		mutate_bytes(h);
	else if (strcmp(mode, "words") == 0 || (strcmp(mode, "mix") == 0 && pick == 4))
		mutate_words(h);
	else if (strcmp(mode, "holes") == 0 || (strcmp(mode, "mix") == 0 && pick == 5))
		mutate_hole(h);
	else if (strcmp(mode, "flood") == 0)
		ring(h);
	else
		mutate_record(h);
	h->mutations++;
}

int
main(int argc, char **argv)
{
	struct hostile h = { .random = 1 };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (argc != 6 || strlen(argv[1]) >= sizeof(addr.sun_path)) {
		fprintf(stderr,
		    "usage: hostile SOCKET POOL SEED MUTATIONS bytes|words|records|holes|flood|mix|return\n");
		return 2;
	}
	h.pool = argv[2];
	h.random = strtoull(argv[3], NULL, 0) * UINT64_C(0x9e3779b97f4a7c15) | 1;
	uint64_t goal = strtoull(argv[4], NULL, 0);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", argv[1]);
	h.control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (h.control < 0 || connect(h.control, (struct sockaddr *)&addr, sizeof(addr)) != 0)
		die(argv[1]);
	while (h.mutations < goal) {
		uint64_t life = 1 + next_random(&h) % 4096;
		attach(&h);
		while (life-- > 0 && h.mutations < goal && h.map.daemon->closed != 1) {
			for (unsigned i = 0; i < PUBLISH_EVERY; i++)
				mutate(&h, argv[5]);
			ring(&h);
			if (strcmp(argv[5], "return") == 0)
				hand_back(&h);
		}
		detach(&h);
	}
	printf("mutations=%llu lanes=%llu quarantined=%llu returned=%llu\n", (unsigned long long)h.mutations,
	    (unsigned long long)h.lanes, (unsigned long long)h.quarantined, (unsigned long long)h.returned);
	return 0;
}
