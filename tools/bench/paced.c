/*
 * Messages at a steady rate: the CPU time of each process per message, and the time from publish to completion.
 *
 * A publisher is an event loop: it sleeps in ppoll() until its next message is due or the client's descriptor
 * is readable, and waits for no answer. The publishers' phases are spread over the interval, the same for every
 * client. The time of an answer is when the publisher has read it; libnats calls back on a thread of its own.
 */
#include "build_config.h"

#include "tools/bench/client.h"
#include "tools/bench/group.h"
#include "tools/bench/process.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS_MAX 8
#define STUCK_MS 30000
#define UNDER_WAY_MAX 65536u /* a power of two: messages of one publisher that wait for an answer */
#define GOLDEN \
	0.61803398875 /* multiples of it, less their integers, are spread evenly for any number of them */

struct context {
	const struct bench_options *options;
	const struct load_client *client;
	const struct group *group;
};

/* Of one client, over rounds. Times in ns. */
struct series {
	double publishers[BENCH_ROUNDS_MAX];
	double daemon[BENCH_ROUNDS_MAX];
	double broker[BENCH_ROUNDS_MAX];
	double ours[BENCH_ROUNDS_MAX]; /* publishers and daemon together */
	double p50[BENCH_ROUNDS_MAX];
	double p99[BENCH_ROUNDS_MAX];
	size_t rounds;
};

/* The publisher of this process. Answers come in the order of the messages, or nearly. */
static struct {
	struct group_slot *slot;
	uint64_t published;
	_Atomic uint64_t answered;
	_Atomic uint64_t sent_ns[UNDER_WAY_MAX];
} self;

static void
answered(uint64_t count)
{
	uint64_t now = clock_now_ns(), i = atomic_load(&self.answered);

	for (uint64_t end = i + count; i != end; i++)
		histogram_add(&self.slot->latency, now - atomic_load(&self.sent_ns[i % UNDER_WAY_MAX]));
	atomic_store(&self.answered, i);
}

static void *
prepare(const void *context)
{
	const struct context *c = context;

	return c->client->open(c->options);
}

static int
collect(const struct load_client *client, void *object, int timeout_ms)
{
	int64_t n;

	do {
		n = client->collect(object, timeout_ms);
		if (n < 0)
			return -1;
		if (client->fd != NULL && n > 0)
			answered((uint64_t)n);
		timeout_ms = 0;
	} while (n > 0);
	return 0;
}

/* Sleeps until a message is due; reads the answers that come meanwhile. */
static int
sleep_until(const struct load_client *client, void *object, uint64_t due_ns)
{
	struct pollfd p = { .fd = client->fd != NULL ? client->fd(object) : -1, .events = POLLIN };
	uint64_t now;

	while ((now = clock_now_ns()) < due_ns) {
		struct timespec left = clock_timespec(due_ns - now);
		int n = ppoll(&p, 1, &left, NULL);

		if (n < 0 && errno != EINTR)
			return client_fail("ppoll: %s", strerror(errno));
		if (n > 0 && collect(client, object, 0) != 0)
			return -1;
	}
	return 0;
}

static int
publish(const struct load_client *client, void *object)
{
	int64_t n;

	if (self.published - atomic_load(&self.answered) >= UNDER_WAY_MAX)
		return client_fail(
		    "%u messages wait for an answer: the rate is more than the broker takes", UNDER_WAY_MAX);
	if (client->fd == NULL && collect(client, object, 0) != 0)
		return -1; /* one of those that the library's thread took has failed */
	for (;;) {
		atomic_store(&self.sent_ns[self.published % UNDER_WAY_MAX], clock_now_ns());
		n = client->publish(object, 1);
		if (n != 0)
			break;
		if (collect(client, object, 100) != 0)
			return -1;
	}
	if (n < 0)
		return -1;
	self.published++;
	return client->flush != NULL ? client->flush(object) : 0;
}

static int
work(void *object, const void *context, struct group_slot *slot)
{
	const struct context *c = context;
	uint64_t interval = CLOCK_NS_PER_S / c->options->rate, start = clock_now_ns(), stuck;
	uint64_t end = start + c->options->duration_ms * CLOCK_NS_PER_MS, due;

	self.slot = slot;
	if (c->client->fd == NULL)
		client_answered = answered;
	due = start + (uint64_t)(fmod((double)(slot - c->group->slots) * GOLDEN, 1) * (double)interval);
	for (; due < end; due += interval)
		if (sleep_until(c->client, object, due) != 0 || publish(c->client, object) != 0)
			return -1;
	if (self.published == 0)
		return client_fail("no message was due in %llu ms at %llu messages a second",
		    (unsigned long long)c->options->duration_ms, (unsigned long long)c->options->rate);
	stuck = clock_now_ns() + STUCK_MS * CLOCK_NS_PER_MS;
	while (atomic_load(&self.answered) != self.published) {
		if (sleep_until(c->client, object, clock_now_ns() + CLOCK_NS_PER_MS) != 0)
			return -1;
		if (clock_now_ns() > stuck)
			return client_fail("%llu of %llu messages were not answered in %d ms",
			    (unsigned long long)(self.published - atomic_load(&self.answered)),
			    (unsigned long long)self.published, STUCK_MS);
	}
	slot->finished = self.published;
	return 0;
}

static void
finish(void *object, const void *context)
{
	const struct context *c = context;

	c->client->close(object);
}

static int
measure(const struct bench_options *o, const struct load_client *client, struct series *s)
{
	static const struct group_job job = { prepare, work, finish };
	static struct histogram latency;
	struct group group;
	struct context context = { o, client, &group };
	uint64_t daemon_ns, broker_ns, cpu = 0, messages = 0;
	size_t i, r = s->rounds;
	int failed;

	if (group_start(&group, (size_t)o->processes, &job, &context) != 0)
		return -1;
	histogram_reset(&latency);
	daemon_ns = process_cpu_ns(o->daemon_pid);
	broker_ns = process_cpu_ns(o->broker_pid);
	failed = group_run(&group);
	daemon_ns = process_cpu_ns(o->daemon_pid) - daemon_ns;
	broker_ns = process_cpu_ns(o->broker_pid) - broker_ns;
	for (i = 0; !failed && i < group.count; i++) {
		cpu += group.slots[i].cpu_ns;
		messages += group.slots[i].finished;
		histogram_merge(&latency, &group.slots[i].latency);
	}
	group_fini(&group);
	if (failed)
		return -1;
	s->publishers[r] = (double)cpu / (double)messages;
	s->daemon[r] = client->direct ? 0 : (double)daemon_ns / (double)messages;
	s->broker[r] = (double)broker_ns / (double)messages;
	s->ours[r] = s->publishers[r] + s->daemon[r];
	s->p50[r] = (double)histogram_percentile(&latency, 50);
	s->p99[r] = (double)histogram_percentile(&latency, 99);
	s->rounds++;
	return 0;
}

static void
show(const struct bench_options *o, const struct load_client *const *clients, struct series *series,
    size_t count)
{
	char cells[6][UNITS_TEXT];
	double base = 0;
	size_t i;

	printf(
	    "%s%s: %llu processes x %llu messages/s of %llu bytes, medians of %llu rounds; CPU per message\n",
	    o->protocol->name, o->ca_file != NULL ? ", TLS" : "", (unsigned long long)o->processes,
	    (unsigned long long)o->rate, (unsigned long long)o->size, (unsigned long long)o->rounds);
	printf("%-14s %12s %12s %12s %16s %10s %10s\n", "", "publishers", "tidegated", "broker",
	    "publ.+tidegated", "p50", "p99");
	for (i = 0; i < count; i++) {
		struct series *s = &series[i];
		double ours = bench_median(s->ours, s->rounds);
		double daemon = bench_median(s->daemon, s->rounds);
		double broker = bench_median(s->broker, s->rounds);

		printf("%-14s %12s %12s %12s %16s %10s %10s", clients[i]->name,
		    units_ns(cells[0], sizeof(cells[0]), bench_median(s->publishers, s->rounds)),
		    clients[i]->direct || o->daemon_pid == 0 ? "-"
							     : units_ns(cells[1], sizeof(cells[1]), daemon),
		    o->broker_pid == 0 ? "-" : units_ns(cells[2], sizeof(cells[2]), broker),
		    units_ns(cells[3], sizeof(cells[3]), ours),
		    units_ns(cells[4], sizeof(cells[4]), bench_median(s->p50, s->rounds)),
		    units_ns(cells[5], sizeof(cells[5]), bench_median(s->p99, s->rounds)));
		if (i == 0) {
			base = ours;
			printf("\n");
		} else {
			printf("   tidegate is at %.2f x its CPU\n", base / ours);
		}
	}
}

static int
print_json(const struct bench_options *o, const struct load_client *const *clients, struct series *series,
    size_t count)
{
	json_t *list = json_array();
	size_t i;

	for (i = 0; i < count; i++) {
		struct series *s = &series[i];
		json_t *row = json_pack("{s:s,s:f,s:f,s:f,s:f}", "client", clients[i]->name, "publishers_ns",
		    bench_median(s->publishers, s->rounds), "publishers_and_daemon_ns",
		    bench_median(s->ours, s->rounds), "p50_ns", bench_median(s->p50, s->rounds), "p99_ns",
		    bench_median(s->p99, s->rounds));

		if (!clients[i]->direct && o->daemon_pid != 0)
			json_object_set_new(row, "daemon_ns", json_real(bench_median(s->daemon, s->rounds)));
		if (o->broker_pid != 0)
			json_object_set_new(row, "broker_ns", json_real(bench_median(s->broker, s->rounds)));
		json_array_append_new(list, row);
	}
	return bench_print_json(json_pack("{s:s,s:s,s:b,s:I,s:I,s:I,s:I,s:I,s:o}", "bench", "paced", "protocol",
	    o->protocol->name, "tls", o->ca_file != NULL, "processes", (json_int_t)o->processes, "rate",
	    (json_int_t)o->rate, "milliseconds", (json_int_t)o->duration_ms, "size", (json_int_t)o->size,
	    "rounds", (json_int_t)o->rounds, "clients", list));
}

int
bench_paced(const struct bench_options *options)
{
	static struct series series[CLIENTS_MAX];
	struct bench_options single = *options;
	const struct load_client *clients[CLIENTS_MAX];
	size_t count = bench_clients(options, clients, CLIENTS_MAX);
	uint64_t round;
	size_t i;

	single.batch = 1;
	for (round = 0; round < options->rounds; round++) {
		for (i = 0; i < count; i++) {
			cli_progress("round %llu of %llu: %s", (unsigned long long)round + 1,
			    (unsigned long long)options->rounds, clients[i]->name);
			if (measure(&single, clients[i], &series[i]) != 0)
				return CLI_FAILED;
		}
	}
	cli_progress_end();
	if (options->json)
		return print_json(options, clients, series, count);
	show(options, clients, series, count);
	return CLI_OK;
}
