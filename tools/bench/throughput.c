/* Confirmed messages a second, and the CPU time of each process per message. */
#include "build_config.h"

#include "tools/bench/client.h"
#include "tools/bench/group.h"
#include "tools/bench/process.h"
#include "tools/bench/throughput.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <jansson.h>

#define STUCK_MS 60000 /* no answer to anything for so long: it is not measuring any more */
#define COLLECT_MS 1000

struct context {
	const struct bench_options *options;
	const struct load_client *client;
};

static void *
prepare(const void *context)
{
	const struct context *c = context;

	return c->client->open(c->options);
}

static int
work(void *self, const void *context, struct group_slot *slot)
{
	const struct context *c = context;
	const struct load_client *client = c->client;
	uint64_t left = c->options->count;
	uint64_t batch = c->options->batch;
	uint64_t moved_ns = clock_now_ns();
	int64_t n;

	while (slot->finished < c->options->count) {
		while (left != 0 && (n = client->publish(self, left < batch ? left : batch)) != 0) {
			if (n < 0)
				return -1;
			left -= (uint64_t)n;
		}
		n = client->collect(self, COLLECT_MS);
		if (n < 0)
			return -1;
		slot->finished += (uint64_t)n;
		if (n != 0)
			moved_ns = clock_now_ns();
		else if (clock_now_ns() - moved_ns > STUCK_MS * CLOCK_NS_PER_MS)
			return client_fail("nothing was answered for %d ms, %llu of %llu messages in", STUCK_MS,
			    (unsigned long long)slot->finished, (unsigned long long)c->options->count);
	}
	slot->end_ns = clock_now_ns();
	return 0;
}

static void
finish(void *self, const void *context)
{
	const struct context *c = context;

	c->client->close(self);
}

static int
measure(const struct context *context, struct throughput *s)
{
	static const struct group_job job = { prepare, work, finish };
	const struct bench_options *o = context->options;
	uint64_t daemon_ns, broker_ns, start = UINT64_MAX, end = 0, cpu = 0;
	double messages = (double)(o->count * o->processes);
	struct group group;
	size_t i, r = s->rounds;
	int failed;

	if (group_start(&group, (size_t)o->processes, &job, context) != 0)
		return -1;
	daemon_ns = process_cpu_ns(o->daemon_pid);
	broker_ns = process_cpu_ns(o->broker_pid);
	failed = group_run(&group);
	daemon_ns = process_cpu_ns(o->daemon_pid) - daemon_ns;
	broker_ns = process_cpu_ns(o->broker_pid) - broker_ns;
	for (i = 0; !failed && i < group.count; i++) {
		const struct group_slot *slot = &group.slots[i];

		start = slot->start_ns < start ? slot->start_ns : start;
		end = slot->end_ns > end ? slot->end_ns : end;
		cpu += slot->cpu_ns;
	}
	group_fini(&group);
	if (failed)
		return -1;
	s->per_second[r] = messages * (double)CLOCK_NS_PER_S / (double)(end - start);
	s->publishers[r] = (double)cpu / messages;
	s->daemon[r] = context->client->direct ? 0 : (double)daemon_ns / messages;
	s->broker[r] = (double)broker_ns / messages;
	s->ours[r] = s->publishers[r] + s->daemon[r];
	s->rounds++;
	return 0;
}

static void
show(const struct bench_options *o, const struct load_client *const *clients, struct throughput *series,
    size_t count)
{
	char rate[UNITS_TEXT], cells[4][UNITS_TEXT];
	double base_rate = 0, base_cpu = 0;
	size_t i;

	printf(
	    "%s%s%s: %llu processes x %llu messages of %llu bytes, medians of %llu rounds; CPU per message\n",
	    o->protocol->name, o->ca_file != NULL ? ", TLS" : "", o->unconfirmed ? ", unconfirmed" : "",
	    (unsigned long long)o->processes, (unsigned long long)o->count, (unsigned long long)o->size,
	    (unsigned long long)o->rounds);
	printf("%-14s %12s %12s %12s %12s %16s\n", "", "messages/s", "publishers", "tidegated", "broker",
	    "publ.+tidegated");
	for (i = 0; i < count; i++) {
		struct throughput *s = &series[i];
		double per_second = bench_median(s->per_second, s->rounds);
		double ours = bench_median(s->ours, s->rounds);
		double daemon = bench_median(s->daemon, s->rounds);
		double broker = bench_median(s->broker, s->rounds);

		printf("%-14s %12s %12s %12s %12s %16s", clients[i]->name,
		    units_count(rate, sizeof(rate), (uint64_t)per_second),
		    units_ns(cells[0], sizeof(cells[0]), bench_median(s->publishers, s->rounds)),
		    clients[i]->direct || o->daemon_pid == 0 ? "-"
							     : units_ns(cells[1], sizeof(cells[1]), daemon),
		    o->broker_pid == 0 ? "-" : units_ns(cells[2], sizeof(cells[2]), broker),
		    units_ns(cells[3], sizeof(cells[3]), ours));
		if (i == 0) {
			base_rate = per_second;
			base_cpu = ours;
			printf("\n");
		} else {
			printf("   tidegate is at %.2f x its rate and %.2f x its CPU\n", base_rate / per_second,
			    base_cpu / ours);
		}
	}
}

static json_t *
series_json(const struct bench_options *o, const struct load_client *client, struct throughput *s)
{
	json_t *object = json_pack("{s:s,s:f,s:f,s:f}", "client", client->name, "messages_per_second",
	    bench_median(s->per_second, s->rounds), "publishers_ns", bench_median(s->publishers, s->rounds),
	    "publishers_and_daemon_ns", bench_median(s->ours, s->rounds));

	if (!client->direct && o->daemon_pid != 0)
		json_object_set_new(object, "daemon_ns", json_real(bench_median(s->daemon, s->rounds)));
	if (o->broker_pid != 0)
		json_object_set_new(object, "broker_ns", json_real(bench_median(s->broker, s->rounds)));
	return object;
}

static int
print_json(const struct bench_options *o, const struct load_client *const *clients, struct throughput *series,
    size_t count)
{
	json_t *list = json_array();
	size_t i;

	for (i = 0; i < count; i++)
		json_array_append_new(list, series_json(o, clients[i], &series[i]));
	return bench_print_json(json_pack("{s:s,s:s,s:b,s:b,s:I,s:I,s:I,s:I,s:o}", "bench", "throughput",
	    "protocol", o->protocol->name, "tls", o->ca_file != NULL, "unconfirmed", o->unconfirmed,
	    "processes", (json_int_t)o->processes, "messages", (json_int_t)o->count, "size",
	    (json_int_t)o->size, "rounds", (json_int_t)o->rounds, "clients", list));
}

int
throughput_measure(const struct bench_options *options, const struct load_client *const *clients,
    struct throughput *series, size_t count, const char *what)
{
	uint64_t begun_ns = clock_now_ns();
	uint64_t round;
	size_t i;

	for (round = 0; round < options->rounds; round++) {
		if (round > 0 && options->duration_ms > 0 &&
		    clock_now_ns() - begun_ns > options->duration_ms * CLOCK_NS_PER_MS)
			break;
		for (i = 0; i < count; i++) {
			struct context context = { options, clients[i] };

			cli_progress("%sround %llu of %llu: %s", what, (unsigned long long)round + 1,
			    (unsigned long long)options->rounds, clients[i]->name);
			if (measure(&context, &series[i]) != 0)
				return -1;
		}
	}
	cli_progress_end();
	return 0;
}

int
bench_throughput(const struct bench_options *options)
{
	static struct throughput series[THROUGHPUT_CLIENTS];
	const struct load_client *clients[THROUGHPUT_CLIENTS];
	size_t count = bench_clients(options, clients, THROUGHPUT_CLIENTS);

	if (throughput_measure(options, clients, series, count, "") != 0)
		return CLI_FAILED;
	if (options->json)
		return print_json(options, clients, series, count);
	show(options, clients, series, count);
	return CLI_OK;
}
