/* Every protocol through its real broker, in the clear and with TLS, beside its own client: one table. */
#include "build_config.h"

#include "tools/bench/stage.h"
#include "tools/bench/throughput.h"
#include "tools/common/cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define WHAT_MAX 64

static const struct comparison {
	const char *broker, *protocol, *name;
	int unconfirmed;
} comparisons[] = {
#define COMPARISON(broker, protocol, unconfirmed, name) { #broker, #protocol, name, unconfirmed },
#include "tools/bench/comparisons.def"
#undef COMPARISON
};

/* One line of the table. */
struct row {
	const struct comparison *of;
	const struct load_client *clients[THROUGHPUT_CLIENTS];
	struct throughput *series; /* of each client */
	size_t count;              /* of clients; 0: it was not measured */
	int tls;
};

static double
rate(struct row *row, size_t client)
{
	return bench_median(row->series[client].per_second, row->series[client].rounds);
}

static double
cpu(struct row *row, size_t client)
{
	return bench_median(row->series[client].ours, row->series[client].rounds);
}

/* The options of one row: all that the command line left to it. */
static struct bench_options
options_of(const struct bench_options *given, const struct row *row)
{
	struct bench_options o = *given;

	o.protocol = bench_protocol(row->of->protocol);
	o.start = stage_broker(row->of->broker);
	o.unconfirmed = row->of->unconfirmed;
	o.tls = row->tls;
	if (o.topic == NULL)
		o.topic = o.protocol->topic;
	o.direct = 1;
	return o;
}

/* A direct client without TLS has no figure in that row. */
static size_t
choose_clients(const struct bench_options *o, const struct load_client *clients[THROUGHPUT_CLIENTS])
{
	size_t count = bench_clients(o, clients, THROUGHPUT_CLIENTS), kept = 0;

	for (size_t i = 0; i < count; i++)
		if (!o->tls || !clients[i]->clear_only)
			clients[kept++] = clients[i];
	return kept;
}

/* Returns 0, or -1 with a message shown and nothing left. */
static int
measure_row(const struct bench_options *given, struct row *row)
{
	struct bench_options o = options_of(given, row);
	struct stage stage;
	char what[WHAT_MAX];

	snprintf(what, sizeof(what), "%s%s: ", row->of->name, row->tls ? ", TLS" : "");
	cli_progress("%sstarting", what);
	if (stage_start(&stage, &o) != 0)
		return -1;
	size_t count = choose_clients(&o, row->clients);
	row->series = calloc(count, sizeof(*row->series));
	int failed = row->series == NULL || throughput_measure(&o, row->clients, row->series, count, what) != 0;
	stage_stop(&stage, o.keep);
	if (failed)
		return -1;
	row->count = count;
	return 0;
}

static void
show_head(const struct bench_options *o)
{
	printf("%llu processes x %llu messages of %llu bytes, medians of up to %llu rounds\n"
	       "CPU per message: tidegate's is that of its publishers and of tidegated together\n\n"
	       "%-17s %-5s %12s %10s   %-14s %12s %10s %8s %8s\n",
	    (unsigned long long)o->processes, (unsigned long long)o->count, (unsigned long long)o->size,
	    (unsigned long long)o->rounds, "", "", "tidegate/s", "CPU", "direct client", "messages/s", "CPU",
	    "rate", "CPU");
}

static void
show_row(struct row *row)
{
	char text[4][UNITS_TEXT];
	size_t i;

	cli_progress_end();
	printf("%-17s %-5s", row->of->name, row->tls ? "TLS" : "clear");
	if (row->count == 0) {
		printf(" not measured\n");
		return;
	}
	printf(" %12s %10s", units_count(text[0], UNITS_TEXT, (uint64_t)rate(row, 0)),
	    units_ns(text[1], UNITS_TEXT, cpu(row, 0)));
	for (i = 1; i < row->count; i++)
		printf("   %-14s %12s %10s %6.2f x %6.2f x", row->clients[i]->name,
		    units_count(text[2], UNITS_TEXT, (uint64_t)rate(row, i)),
		    units_ns(text[3], UNITS_TEXT, cpu(row, i)), rate(row, 0) / rate(row, i),
		    cpu(row, 0) / cpu(row, i));
	printf(row->count == 1 ? "   -\n" : "\n");
	fflush(stdout);
}

static json_t *
row_json(struct row *row)
{
	json_t *clients = json_array();

	for (size_t i = 0; i < row->count; i++)
		json_array_append_new(
		    clients, json_pack("{s:s,s:f,s:f,s:I}", "client", row->clients[i]->name,
				 "messages_per_second", rate(row, i), "publishers_and_daemon_ns", cpu(row, i),
				 "rounds", (json_int_t)row->series[i].rounds));
	return json_pack("{s:s,s:s,s:s,s:b,s:b,s:o}", "name", row->of->name, "broker", row->of->broker,
	    "protocol", row->of->protocol, "unconfirmed", row->of->unconfirmed, "tls", row->tls, "clients",
	    clients);
}

/* Whether the options ask for it. */
static int
is_wanted(const struct bench_options *o, const struct comparison *of)
{
	return (o->protocol == NULL || strcmp(o->protocol->name, of->protocol) == 0) &&
	       (o->start == NULL || strcmp(o->start->name, of->broker) == 0);
}

int
bench_compare(const struct bench_options *options)
{
	json_t *list = json_array();
	int measured = 0;

	if (!options->json)
		show_head(options);
	for (size_t i = 0; i < 2 * sizeof(comparisons) / sizeof(comparisons[0]) && !bench_stop; i++) {
		struct row row = { .of = &comparisons[i / 2], .tls = i % 2 != 0 };
		if (!is_wanted(options, row.of))
			continue;
		/* A missing program is reported and leaves a gap. */
		measured += measure_row(options, &row) == 0;
		if (bench_stop)
			break;
		if (options->json)
			json_array_append_new(list, row_json(&row));
		else
			show_row(&row);
		free(row.series);
	}
	cli_progress_end();
	if (options->json)
		return bench_print_json(json_pack("{s:s,s:I,s:I,s:I,s:I,s:o}", "bench", "compare", "processes",
		    (json_int_t)options->processes, "messages", (json_int_t)options->count, "size",
		    (json_int_t)options->size, "rounds", (json_int_t)options->rounds, "rows", list));
	json_decref(list);
	return measured > 0 ? CLI_OK : CLI_FAILED;
}
