/*
 * producer: publishes numbered messages on several lanes and checks that each gets exactly one
 * completion. Its whole state is in a mapped file (record.h), which survives its SIGKILL.
 *
 * SIGUSR1, or -O offered messages (refused ones count), ends the publishing; the program then waits for the accepted
 * messages.
 *
 * Exit status: 0 all accepted and completed; 3 the library gave an error; 4 out of time.
 */
#include "tests/integration/record.h"
#include "libclient/tidegate.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct options {
	const char *socket, *pool, *topic, *file;
	uint32_t id, lanes;
	uint64_t count, rate, ring_bytes, seed, offers;
	uint32_t min, max, batch, wait_ms, timeout_ms, linger, one_topic;
};

struct producer {
	struct options o;
	struct tg_client *client;
	struct tg_lane *lanes[RECORD_LANES];
	struct record_producer *record;
	uint8_t *outcomes;
	uint64_t accepted, completed, random;
	uint64_t *published; /* when, in ns, of each lane's last PUBLISHED messages; odd: in phase 1 */
	char *bodies;
	struct tg_message *batch;
};

#define PUBLISHED 16384u

static volatile sig_atomic_t told_to_stop;

static void
on_usr1(int signum)
{
	(void)signum;
	told_to_stop = 1;
}

static uint64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t
now_us(void)
{
	return now_ns() / 1000u;
}

static unsigned
phase(const struct producer *p)
{
	return __atomic_load_n(&p->record->phase, __ATOMIC_RELAXED) & 1u;
}

static uint64_t *
published(const struct producer *p, uint32_t lane, uint64_t sequence)
{
	return &p->published[(size_t)lane * PUBLISHED + sequence % PUBLISHED];
}

static uint64_t
next_random(struct producer *p)
{
	p->random ^= p->random << 13;
	p->random ^= p->random >> 7;
	p->random ^= p->random << 17;
	return p->random;
}

/* Sizes spread evenly over their logarithm, so that small ones are not lost among large ones. */
static size_t
body_len(struct producer *p)
{
	uint32_t len = p->o.min;

	while (len < p->o.max && next_random(p) % 8 != 0)
		len += 1 + (uint32_t)(next_random(p) % (len / 2 + 1));
	return len < p->o.max ? len : p->o.max;
}

static void
fail(struct producer *p, const char *what, int error)
{
	p->record->error = (uint64_t)-error;
	fprintf(stderr, "producer %u: %s: %s (%s)\n", p->o.id, what, tg_strerror(error),
	    tg_client_detail(p->client));
	exit(3);
}

static void
take(struct producer *p, uint32_t lane)
{
	struct tg_completion c[64];
	int n;

	while ((n = tg_poll(p->lanes[lane], c, 64)) > 0) {
		uint64_t now = now_ns();
		for (int i = 0; i < n; i++) {
			uint64_t of = c[i].tag >> 40;
			uint64_t sequence = c[i].tag & ((1ull << 40) - 1);

			if (of != lane || sequence >= p->record->lanes[lane].accepted) {
				p->record->strangers++;
				continue;
			}
			uint8_t *outcome = &p->outcomes[lane * p->o.count + sequence];
			if (*outcome != 0) {
				p->record->doubles++;
				continue;
			}
			*outcome = (uint8_t)(c[i].outcome | (c[i].attempts > 1 ? RECORD_RESENT : 0));
			p->record->outcomes[c[i].outcome & 7]++;
			uint64_t at = *published(p, lane, sequence);
			p->record->times[(at & 1u) | phase(p)]
			    .answer[record_bucket(now - (at & ~UINT64_C(1)))]++;
			p->record->resent += c[i].attempts > 1;
			if (c[i].elapsed_us > p->record->elapsed_max_us)
				p->record->elapsed_max_us = c[i].elapsed_us;
			p->record->lanes[lane].completed++;
			p->completed++;
		}
	}
	if (n < 0)
		fail(p, "tg_poll", n);
}

/* Publishes up to a batch on a lane. Returns how many were accepted. */
static uint32_t
offer(struct producer *p, uint32_t lane, uint32_t most)
{
	uint64_t sequence = p->record->lanes[lane].accepted;
	uint64_t left = p->o.count - sequence;
	uint32_t n = most < p->o.batch ? most : p->o.batch;
	char topic[256];
	int got;

	if (n > left)
		n = (uint32_t)left;
	if (n == 0)
		return 0;
	if (p->o.one_topic)
		snprintf(topic, sizeof(topic), "%s", p->o.topic);
	else
		snprintf(topic, sizeof(topic), "%s/%u/%u", p->o.topic, p->o.id, lane);
	for (uint32_t i = 0; i < n; i++) {
		char *body = p->bodies + (size_t)i * (p->o.max + RECORD_BODY_MIN);
		struct tg_message *m = &p->batch[i];

		memset(m, 0, sizeof(*m));
		m->topic = topic;
		m->topic_len = TG_NUL;
		m->body = body;
		m->body_len = record_body(body, body_len(p), p->o.id, lane, sequence + i);
		m->tag = (uint64_t)lane << 40 | (sequence + i);
		m->timeout_ms = p->o.timeout_ms;
	}
	uint64_t before = now_ns() & ~UINT64_C(1);
	got = n == 1 ? tg_publish(p->lanes[lane], p->batch, NULL)
		     : tg_publish_batch(p->lanes[lane], p->batch, n, NULL);
	if (n == 1 && got == 0)
		got = 1;
	if (got == -TG_EAGAIN) {
		p->record->again++;
		return 0;
	}
	if (got < 0)
		fail(p, "tg_publish", got);
	unsigned in = phase(p);
	p->record->times[in].call[record_bucket(now_ns() - before)]++;
	for (int i = 0; i < got; i++)
		*published(p, lane, sequence + (uint64_t)i) = before | in;
	p->record->lanes[lane].accepted += (uint64_t)got;
	p->accepted += (uint64_t)got;
	return (uint32_t)got;
}

static void
wait_any(struct producer *p, int timeout_ms)
{
	struct pollfd fds[RECORD_LANES];

	if (p->o.lanes == 1) {
		int error = tg_wait(p->lanes[0], timeout_ms);
		if (error < 0 && error != -TG_ETIMEOUT)
			fail(p, "tg_wait", error);
		return;
	}
	for (uint32_t l = 0; l < p->o.lanes; l++)
		fds[l] = (struct pollfd){ .fd = tg_fd(p->lanes[l]), .events = POLLIN };
	if (poll(fds, p->o.lanes, timeout_ms) < 0 && errno != EINTR) {
		perror("poll");
		exit(3);
	}
}

static void
run(struct producer *p)
{
	uint64_t total = p->o.count * p->o.lanes;
	uint64_t start = now_us();
	uint64_t deadline = start + (uint64_t)p->o.wait_ms * 1000u;

	p->record->state = 2;
	while (p->completed < total) {
		uint64_t now = now_us();
		if (told_to_stop || (p->o.offers != 0 && p->accepted + p->record->again >= p->o.offers))
			total = p->accepted;
		uint64_t due = p->o.rate == 0 ? total : 1 + (now - start) * p->o.rate / 1000000u;
		uint32_t published = 0;

		if (now > deadline) {
			fprintf(stderr, "producer %u: out of time: %llu of %llu accepted, %llu completed\n",
			    p->o.id, (unsigned long long)p->accepted, (unsigned long long)total,
			    (unsigned long long)p->completed);
			exit(4);
		}
		for (uint32_t l = 0; l < p->o.lanes; l++) {
			if (p->accepted < due && p->accepted < total)
				published += offer(
				    p, l, due - p->accepted < 1000 ? (uint32_t)(due - p->accepted) : 1000);
			take(p, l);
		}
		if (p->accepted == total)
			p->record->state = 3;
		/* With -O a refused message is dropped, as by a program that does not retry. */
		if (published == 0 && (p->o.offers == 0 || p->accepted == total))
			wait_any(p, p->accepted < total && p->o.rate != 0 ? 1 : 100);
	}
	p->record->state = 4;
}

static void *
map_file(const char *name, size_t size)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	void *at;

	if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
		perror(name);
		exit(2);
	}
	at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (at == MAP_FAILED) {
		perror(name);
		exit(2);
	}
	close(fd);
	return at;
}

static void
read_options(struct options *o, int argc, char **argv)
{
	int c;

	*o = (struct options){ .topic = "load",
		.lanes = 1,
		.count = 1000,
		.min = 64,
		.max = 64,
		.batch = 1,
		.wait_ms = 60000,
		.seed = 1 };
	while ((c = getopt(argc, argv, "s:p:t:o:i:l:n:r:R:S:m:M:b:w:T:O:LF")) != -1) {
		uint64_t number = optarg != NULL ? strtoull(optarg, NULL, 10) : 0;

		switch (c) {
		case 's':
			o->socket = optarg;
			break;
		case 'p':
			o->pool = optarg;
			break;
		case 't':
			o->topic = optarg;
			break;
		case 'o':
			o->file = optarg;
			break;
		case 'i':
			o->id = (uint32_t)number;
			break;
		case 'l':
			o->lanes = (uint32_t)number;
			break;
		case 'n':
			o->count = number;
			break;
		case 'r':
			o->rate = number;
			break;
		case 'R':
			o->ring_bytes = number;
			break;
		case 'S':
			o->seed = number;
			break;
		case 'm':
			o->min = (uint32_t)number;
			break;
		case 'M':
			o->max = (uint32_t)number;
			break;
		case 'b':
			o->batch = (uint32_t)number;
			break;
		case 'w':
			o->wait_ms = (uint32_t)number;
			break;
		case 'T':
			o->timeout_ms = (uint32_t)number;
			break;
		case 'O':
			o->offers = number;
			break;
		case 'L':
			o->linger = 1;
			break;
		case 'F':
			o->one_topic = 1;
			break;
		default:
			exit(2);
		}
	}
	if (o->socket == NULL || o->pool == NULL || o->file == NULL || o->lanes == 0 ||
	    o->lanes > RECORD_LANES || o->batch == 0 || o->batch > 4096 || o->min > o->max) {
		fprintf(stderr,
		    "usage: producer -s SOCKET -p POOL -o FILE [-t TOPIC] [-i ID] [-l LANES] [-n COUNT]"
		    " [-r RATE] [-R RING] [-S SEED] [-m MIN] [-M MAX] [-b BATCH] [-w WAIT_MS]"
		    " [-T TIMEOUT_MS] [-O OFFERS] [-L] [-F]\n");
		exit(2);
	}
}

int
main(int argc, char **argv)
{
	static struct producer p;
	int error;

	read_options(&p.o, argc, argv);
	signal(SIGUSR1, on_usr1);
	p.random = (p.o.seed + 1) * 0x9e3779b97f4a7c15ull;
	p.record = map_file(p.o.file, sizeof(*p.record) + p.o.lanes * p.o.count);
	p.outcomes = (uint8_t *)(p.record + 1);
	p.bodies = malloc((size_t)p.o.batch * (p.o.max + RECORD_BODY_MIN));
	p.batch = calloc(p.o.batch, sizeof(*p.batch));
	p.published = calloc((size_t)p.o.lanes * PUBLISHED, sizeof(*p.published));
	if (p.bodies == NULL || p.batch == NULL || p.published == NULL)
		return 2;

	struct tg_client_options co = { .socket = p.o.socket };
	error = tg_client_open(&p.client, &co);
	if (error < 0)
		fail(&p, "tg_client_open", error);
	for (uint32_t l = 0; l < p.o.lanes; l++) {
		struct tg_lane_options lo = { .ring_bytes = p.o.ring_bytes };

		error = tg_lane_open(p.client, &p.lanes[l], p.o.pool, &lo);
		if (error < 0)
			fail(&p, "tg_lane_open", error);
	}
	p.record->state = 1;
	run(&p);
	while (p.o.linger) /* stays attached until it is killed */
		pause();
	for (uint32_t l = 0; l < p.o.lanes; l++)
		tg_lane_close(p.lanes[l], 0);
	tg_client_close(p.client);
	free(p.bodies);
	free(p.batch);
	free(p.published);
	return 0;
}
