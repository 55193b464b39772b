/* One message under way at a time: from publish to its answer. */
#include "build_config.h"

#include "tools/bench/client.h"
#include "tools/bench/group.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <jansson.h>

#define CLIENTS_MAX 8
#define ANSWER_MS 30000
#define SPIN_US 200 /* of a client that spins: longer than a loopback broker takes */

struct mode {
	const char *name;
	const char *what;
	int paced;
};

static const struct mode modes[] = {
	{ "spin", "the next as soon as the last is answered; the waiting client spins", 0 },
	{ "asleep", "one every pace, so that all processes sleep in between", 1 },
};
#define MODES (sizeof(modes) / sizeof(modes[0]))

struct context {
	struct bench_options options; /* as this mode wants them */
	const struct load_client *client;
	const struct mode *mode;
};

struct series {
	double p50[BENCH_ROUNDS_MAX];
	double p99[BENCH_ROUNDS_MAX];
	size_t rounds;
};

static void *
prepare(const void *context)
{
	const struct context *c = context;

	return c->client->open(&c->options);
}

static int
one_message(const struct load_client *client, void *self, struct group_slot *slot)
{
	uint64_t start = clock_now_ns(), now;
	int64_t n = client->publish(self, 1);

	if (n == 0)
		return client_fail("an empty lane has no room for one message");
	while (n >= 0) {
		n = client->collect(self, ANSWER_MS);
		now = clock_now_ns();
		if (n > 0) {
			histogram_add(&slot->latency, now - start);
			return 0;
		}
		if (n == 0 && now - start > ANSWER_MS * CLOCK_NS_PER_MS)
			return client_fail("no answer in %d ms", ANSWER_MS);
	}
	return -1;
}

static int
work(void *self, const void *context, struct group_slot *slot)
{
	const struct context *c = context;
	uint64_t next = clock_now_ns();
	uint64_t i;

	for (i = 0; i < c->options.count; i++) {
		if (c->mode->paced) {
			struct timespec t;

			next += c->options.pace_ms * CLOCK_NS_PER_MS;
			t = clock_timespec(next);
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
		}
		if (one_message(c->client, self, slot) != 0)
			return -1;
		slot->finished++;
	}
	return 0;
}

static void
finish(void *self, const void *context)
{
	const struct context *c = context;

	c->client->close(self);
}

static int
measure(const struct bench_options *options, const struct load_client *client, const struct mode *mode,
    struct series *s)
{
	static const struct group_job job = { prepare, work, finish };
	struct context context = { *options, client, mode };
	struct group group;
	int failed;

	if (context.options.spin_us == 0 && !mode->paced)
		context.options.spin_us = SPIN_US;
	if (mode->paced && context.options.count > options->duration_ms / options->pace_ms)
		context.options.count = options->duration_ms / options->pace_ms;
	context.options.batch = 1;
	if (group_start(&group, 1, &job, &context) != 0)
		return -1;
	failed = group_run(&group);
	if (!failed) {
		s->p50[s->rounds] = (double)histogram_percentile(&group.slots[0].latency, 50);
		s->p99[s->rounds] = (double)histogram_percentile(&group.slots[0].latency, 99);
		s->rounds++;
	}
	group_fini(&group);
	return failed ? -1 : 0;
}

static void
show(const struct bench_options *o, const struct load_client *const *clients, struct series (*series)[MODES],
    size_t count)
{
	char p50[UNITS_TEXT], p99[UNITS_TEXT];
	double base = 0;
	size_t m, i;

	printf("one message of %llu bytes under way, medians of %llu rounds\n", (unsigned long long)o->size,
	    (unsigned long long)o->rounds);
	for (m = 0; m < MODES; m++) {
		printf("%s: %s\n", modes[m].name, modes[m].what);
		for (i = 0; i < count; i++) {
			struct series *s = &series[i][m];
			double median = bench_median(s->p50, s->rounds);

			printf("  %-14s p50 %10s   p99 %10s", clients[i]->name,
			    units_ns(p50, sizeof(p50), median),
			    units_ns(p99, sizeof(p99), bench_median(s->p99, s->rounds)));
			if (i == 0) {
				base = median;
				printf("\n");
			} else {
				printf("   tidegate's p50 is %.2f x this\n", base / median);
			}
		}
	}
}

static int
print_json(const struct bench_options *o, const struct load_client *const *clients,
    struct series (*series)[MODES], size_t count)
{
	json_t *list = json_array();
	size_t m, i;

	for (i = 0; i < count; i++)
		for (m = 0; m < MODES; m++)
			json_array_append_new(list,
			    json_pack("{s:s,s:s,s:f,s:f}", "client", clients[i]->name, "mode", modes[m].name,
				"p50_ns", bench_median(series[i][m].p50, series[i][m].rounds), "p99_ns",
				bench_median(series[i][m].p99, series[i][m].rounds)));
	return bench_print_json(
	    json_pack("{s:s,s:I,s:I,s:I,s:o}", "bench", "latency", "size", (json_int_t)o->size, "rounds",
		(json_int_t)o->rounds, "pace_ms", (json_int_t)o->pace_ms, "results", list));
}

int
bench_latency(const struct bench_options *options)
{
	static struct series series[CLIENTS_MAX][MODES];
	const struct load_client *clients[CLIENTS_MAX];
	size_t count = bench_clients(options, clients, CLIENTS_MAX);
	uint64_t round;
	size_t m, i;

	for (round = 0; round < options->rounds; round++) {
		for (m = 0; m < MODES; m++) {
			for (i = 0; i < count; i++) {
				cli_progress("round %llu of %llu: %s, %s", (unsigned long long)round + 1,
				    (unsigned long long)options->rounds, modes[m].name, clients[i]->name);
				if (measure(options, clients[i], &modes[m], &series[i][m]) != 0)
					return CLI_FAILED;
			}
		}
	}
	cli_progress_end();
	if (options->json)
		return print_json(options, clients, series, count);
	show(options, clients, series, count);
	return CLI_OK;
}
