/*
 * selfish: a client that tries to make the daemon do, hold or wait for more than its share, until it is killed.
 * It repeats refused requests, and reconnects when the daemon hangs up.
 *
 *   selfish SOCKET POOL MODE [NUMBER]
 *
 *   silent NUMBER     keeps so many connections that say nothing
 *   strays            sends descriptors that no frame asks for, 253 a packet, and TCP sockets whose close waits
 *   leave NUMBER      opens so many lanes, leaves a record of 49 days in each and ends; and again
 *   closed BYTES      opens a lane with a ring of so many bytes, closes it and keeps its answers mapped
 *   punch NUMBER      maps its lane so many times, punches holes into it and rings
 *   punched NUMBER    hands back a lane that is mapped so many times while it is punched
 *   deadlines NUMBER  so many lanes of records whose deadlines pass one by one, the later ones first
 *   hold NUMBER       hands back so many lanes full of finished records and keeps them
 *
 * Says `ready` when it has begun.
 */
#include "tests/integration/raw_client.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define STRAYS 253u /* the most that the kernel passes on in a packet */
#define LINGERING 4
#define KEPT_BYTES (UINT64_C(256) << 20) /* of closed lanes; the daemon does not limit one of them */
#define MAPPERS 4
#define RECORD 56u
#define DEADLINES 1000u /* a lane */
#define STEP_MS 20u
#define FULL_BYTES (UINT64_C(16) << 20)
#define PAUSE_US 1000u

/* A connection; waits until there is one. */
static int
come_back(void)
{
	for (;;) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
			return fd;
		if (fd >= 0)
			close(fd);
		usleep(PAUSE_US);
	}
}

/* Returns whether the answer has come and is of this type; if not, *control may be another connection. */
static int
ask(int *control, const struct frame *frame, const int *send, unsigned nsend, enum frame_type want,
    struct frame *answer, int fds[FRAME_FDS])
{
	if (frame_send(*control, frame, send, nsend) != 0 || frame_recv(*control, answer, fds) != 0) {
		close(*control);
		*control = come_back();
		return 0;
	}
	if (answer->type == want)
		return 1;
	close_fds(fds, FRAME_FDS);
	usleep(PAUSE_US);
	return 0;
}

static void
silent(uint64_t count)
{
	struct rlimit files;
	int *fds = calloc(count, sizeof(*fds));

	if (fds == NULL || getrlimit(RLIMIT_NOFILE, &files) != 0)
		die("memory");
	files.rlim_cur = files.rlim_max;
	setrlimit(RLIMIT_NOFILE, &files);
	for (;;) {
		for (uint64_t i = 0; i < count; i++) {
			char byte;
			if (fds[i] > 0 && recv(fds[i], &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN)
				continue;
			if (fds[i] > 0)
				close(fds[i]);
			fds[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
			if (fds[i] >= 0 && connect(fds[i], (struct sockaddr *)&address, sizeof(address)) == 0)
				continue;
			if (fds[i] >= 0)
				close(fds[i]);
			fds[i] = 0;
			usleep(PAUSE_US);
		}
		ready();
		usleep(PAUSE_US);
	}
}

static void
send_strays(int control, const int *fds, unsigned count)
{
	struct frame frame;
	struct iovec iov = { .iov_base = &frame, .iov_len = sizeof(frame) };
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(STRAYS * sizeof(int))];
	} room = { .head = { .cmsg_level = SOL_SOCKET,
		       .cmsg_type = SCM_RIGHTS,
		       .cmsg_len = CMSG_LEN(count * sizeof(int)) } };
	struct msghdr m = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &room,
		.msg_controllen = CMSG_SPACE(count * sizeof(int)) };

	frame_init(&frame, FRAME_ERROR, 1);
	memcpy(CMSG_DATA(&room.head), fds, count * sizeof(int));
	if (sendmsg(control, &m, MSG_DONTWAIT) < 0)
		usleep(PAUSE_US);
}

/* A TCP socket whose last close waits: it holds what its peer never takes. */
static int
lingering(void)
{
	struct linger linger = { .l_onoff = 1, .l_linger = 30 };
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(to);
	int listener = socket(AF_INET, SOCK_STREAM, 0), s = socket(AF_INET, SOCK_STREAM, 0);
	static const char filler[65536];

	if (listener < 0 || s < 0 || bind(listener, (struct sockaddr *)&to, len) != 0 ||
	    listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr *)&to, &len) != 0 ||
	    connect(s, (struct sockaddr *)&to, len) != 0)
		die("TCP");
	setsockopt(s, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	while (send(s, filler, sizeof(filler), MSG_DONTWAIT) > 0)
		;
	return s; /* the listener stays open, and accepts nothing */
}

static void
strays(void)
{
	int many[STRAYS], null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	for (unsigned i = 0; i < STRAYS; i++)
		many[i] = null;
	for (unsigned i = 0; i < LINGERING; i++) {
		int control = come_back(), s = lingering();
		send_strays(control, &s, 1);
		close(s); /* the daemon's is the last */
		close(control);
	}
	for (;;) {
		int control = come_back();
		send_strays(control, many, STRAYS);
		close(control);
		ready();
	}
}

/* Records with these timeouts in a lane's empty ring; the daemon finds them when it is rung. */
static void
write_records(struct lane_map *map, unsigned count, uint32_t (*timeout_ms)(unsigned n, unsigned count))
{
	for (unsigned n = 0; n < count; n++) {
		struct record *record = (struct record *)(void *)(map->sq + (uint64_t)n * RECORD);
		*record = (struct record){ .size = RECORD,
			.check = record_check((uint64_t)n * RECORD),
			.published_ns = now_ns(),
			.topic_len = 1,
			.body_len = 1,
			.timeout_ms = timeout_ms(n, count) };
		memcpy(record + 1, "sx", 2);
	}
	order_store_release_64(ORDER_A, &map->client->sq_tail, (uint64_t)count * RECORD);
}

static uint32_t
days(unsigned n, unsigned count)
{
	(void)n, (void)count;
	return UINT32_MAX;
}

static uint32_t
staggered(unsigned n, unsigned count)
{
	return n == 0 ? 3600000u : 200u + (count - n) * STEP_MS;
}

/* Opens a lane and fills it. Returns whether there was one. */
static int
filled_lane(
    int *control, uint64_t bytes, unsigned count, uint32_t (*timeout_ms)(unsigned, unsigned), int *doorbell)
{
	static const uint64_t one = 1;
	struct frame frame = open_request(bytes), answer;
	struct lane_map map;
	int fds[FRAME_FDS], ring = make_ring(bytes, &map);
	int opened = ask(control, &frame, &ring, 1, FRAME_LANE_OPENED, &answer, fds);

	close(ring);
	if (opened) {
		uint32_t entries = map.geo.cq_entries - 1;
		unsigned room =
		    entries < map.geo.sq_bytes / RECORD ? entries : (unsigned)(map.geo.sq_bytes / RECORD);
		write_records(&map, count < room ? count : room, timeout_ms);
	}
	lane_map_fini(&map);
	if (!opened)
		return 0;
	close(fds[FRAME_FD_ANSWERS]);
	close(fds[FRAME_FD_BELL]);
	if (*doorbell >= 0)
		close(*doorbell);
	*doorbell = fds[FRAME_FD_DOORBELL];
	if (write(*doorbell, &one, sizeof(one)) < 0)
		usleep(PAUSE_US);
	return 1;
}

static void
leave(uint64_t count)
{
	for (;;) {
		int control = come_back(), doorbell = -1;

		for (uint64_t i = 0; i < count; i++)
			filled_lane(&control, 16384, 1, days, &doorbell);
		close(doorbell);
		close(control);
		ready();
	}
}

static void
deadlines(uint64_t count)
{
	static const uint64_t one = 1;
	int control = come_back(), doorbell = -1;

	for (uint64_t i = 0; i < count; i++)
		filled_lane(&control, DEADLINES * RECORD, DEADLINES, staggered, &doorbell);
	for (;;) {
		ready();
		if (write(doorbell, &one, sizeof(one)) < 0)
			filled_lane(&control, DEADLINES * RECORD, DEADLINES, staggered, &doorbell);
		usleep(PAUSE_US * 100);
	}
}

static void
closed(uint64_t bytes)
{
	struct frame frame = open_request(bytes), answer;
	int control = come_back(), fds[FRAME_FDS];
	size_t keep = KEPT_BYTES / bytes, at = 0, size = 0;
	void **kept = calloc(keep, sizeof(*kept));
	struct lane_map map;
	int ring = make_ring(bytes, &map);

	if (kept == NULL)
		die("memory");
	for (;;) {
		ready();
		if (!ask(&control, &frame, &ring, 1, FRAME_LANE_OPENED, &answer, fds))
			continue;
		if (kept[at] != NULL)
			munmap(kept[at], size);
		size = (size_t)lseek(fds[FRAME_FD_ANSWERS], 0, SEEK_END);
		kept[at] = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fds[FRAME_FD_ANSWERS], 0);
		if (kept[at] == MAP_FAILED)
			die("mapping");
		at = (at + 1) % keep;
		close_fds(fds, FRAME_FDS);
		struct frame close_it;
		frame_init(&close_it, FRAME_LANE_CLOSE, 2);
		close_it.u.lane.lane_id = answer.u.lane.lane_id;
		ask(&control, &close_it, NULL, 0, FRAME_LANE_CLOSED, &answer, fds);
	}
}

/* Idle processes that have it mapped: punching has to search every mapping. */
static void
map_often(int memfd, uint64_t count)
{
	off_t size = lseek(memfd, 0, SEEK_END);
	int ready_pipe[2];
	char byte;

	if (pipe(ready_pipe) != 0)
		die("pipe");
	for (unsigned i = 0; i < MAPPERS; i++) {
		if (fork() != 0)
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (uint64_t n = 0; n < count / MAPPERS; n++)
			if (mmap(NULL, (size_t)size, PROT_READ, MAP_SHARED, memfd, 0) == MAP_FAILED)
				break;
		if (write(ready_pipe[1], "x", 1) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	for (unsigned i = 0; i < MAPPERS; i++)
		if (read(ready_pipe[0], &byte, 1) < 0)
			die("pipe");
}

static void
punch_once(int memfd)
{
	if (fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, lseek(memfd, 0, SEEK_END)) != 0)
		usleep(PAUSE_US); /* it is sealed against that */
}

static void *
punch_on(void *arg)
{
	for (;;)
		punch_once(*(int *)arg);
	return NULL;
}

static void
punch(uint64_t count)
{
	static const uint64_t one = 1;
	struct frame frame = open_request(16384), answer;
	struct lane_map map;
	int control = come_back(), fds[FRAME_FDS], ring = make_ring(16384, &map);
	pthread_t threads[2];

	while (!ask(&control, &frame, &ring, 1, FRAME_LANE_OPENED, &answer, fds))
		;
	map_often(ring, count);
	if (pthread_create(&threads[0], NULL, punch_on, &ring) != 0 ||
	    pthread_create(&threads[1], NULL, punch_on, &fds[FRAME_FD_ANSWERS]) != 0)
		die("thread");
	for (;;) {
		if (write(fds[FRAME_FD_DOORBELL], &one, sizeof(one)) < 0)
			usleep(PAUSE_US);
		ready();
		usleep(PAUSE_US / 5);
	}
}

/* A lane to hand back: as many finished records as recovery looks at, or only a few that are not. */
static void
lane_to_return(uint64_t bytes, uint64_t nonce, int full, int memory[2])
{
	struct lane_header header = { .nonce = nonce };
	struct lane_map map;
	uint64_t size = record_bytes(0, 0, 0, 80);

	snprintf(header.pool, sizeof(header.pool), "%s", pool);
	memory[FRAME_FD_RING] = make_ring(bytes, &map);
	memory[FRAME_FD_OLD_ANSWERS] = lane_answers_create(&map.geo, &header);
	if (memory[FRAME_FD_OLD_ANSWERS] < 0 ||
	    lane_map_answers(&map, memory[FRAME_FD_OLD_ANSWERS], LANE_WRITE, 0) != 0)
		die("answers");
	uint64_t count = full ? map.geo.cq_entries / 2 : 64;
	for (uint64_t n = 0; n < count; n++) {
		struct record *record = (struct record *)(void *)(map.sq + n * size);
		*record = (struct record){ .size = (uint32_t)size,
			.check = record_check(n * size),
			.body_len = 80,
			.timeout_ms = UINT32_MAX };
		/* The oldest is not finished, so that none is released. */
		map.cq[n].position = full && n != 0 ? (n * 0x9e3779b1u & (count - 1)) * size : UINT64_MAX - 7;
		map.cq[n].outcome = TG_DELIVERED;
	}
	map.client->sq_tail = count * size;
	if (full) {
		map.daemon->sq_sent = count * size;
		map.daemon->cq_tail = count;
	}
	lane_map_fini(&map);
}

static void
say_ready(int control, uint64_t lane_id)
{
	struct frame frame;

	frame_init(&frame, FRAME_LANE_READY, 2);
	frame.u.lane.lane_id = lane_id;
	if (frame_send(control, &frame, NULL, 0) != 0)
		usleep(PAUSE_US);
}

static void
punched(uint64_t count)
{
	struct frame frame, answer;
	int control = come_back(), fds[FRAME_FDS], memory[2];
	pthread_t thread;

	lane_to_return(1 << 20, 7, 0, memory);
	map_often(memory[FRAME_FD_OLD_ANSWERS], count);
	if (pthread_create(&thread, NULL, punch_on, &memory[FRAME_FD_OLD_ANSWERS]) != 0)
		die("thread");
	frame_init(&frame, FRAME_LANE_RETURN, 1);
	for (;;) {
		if (ask(&control, &frame, memory, 2, FRAME_LANE_RETURNED, &answer, fds))
			close_fds(fds, FRAME_FDS);
		ready();
	}
}

static void
hold(uint64_t count)
{
	struct frame frame, answer;
	int control = come_back(), fds[FRAME_FDS];

	frame_init(&frame, FRAME_LANE_RETURN, 1);
	for (uint64_t i = 0; i < count; i++) {
		int memory[2];
		lane_to_return(FULL_BYTES, 1000 + i, 1, memory);
		if (ask(&control, &frame, memory, 2, FRAME_LANE_RETURNED, &answer, fds)) {
			close_fds(fds, FRAME_FDS);
			say_ready(control, answer.u.lane.lane_id);
		}
		close_fds(memory, 2);
	}
	ready();
	for (;;)
		pause();
}

int
main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(uint64_t number);
	} modes[] = {
		{ "silent", silent },
		{ "leave", leave },
		{ "closed", closed },
		{ "punch", punch },
		{ "punched", punched },
		{ "deadlines", deadlines },
		{ "hold", hold },
	};
	uint64_t number = argc > 4 ? strtoull(argv[4], NULL, 0) : 1;

	if (argc < 4 || strlen(argv[1]) >= sizeof(address.sun_path)) {
		fprintf(stderr, "usage: selfish SOCKET POOL MODE [NUMBER]\n"
				"MODE: silent strays leave closed punch punched deadlines hold\n");
		return 2;
	}
	strcpy(address.sun_path, argv[1]);
	pool = argv[2];
	signal(SIGPIPE, SIG_IGN);
	if (strcmp(argv[3], "strays") == 0)
		strays();
	for (unsigned i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (strcmp(argv[3], modes[i].name) == 0)
			modes[i].run(number);
	fprintf(stderr, "selfish: %s: no such mode\n", argv[3]);
	return 2;
}
