/* tidegate-bench: its subcommands and their options. */
#include "build_config.h"

#include "tools/bench/client.h"
#include "tools/bench/process.h"
#include "tools/bench/stage.h"
#include "tools/common/cli.h"

#include <stdlib.h>
#include <string.h>

#define PROCESSES_MAX 1024
#define LANES_MAX 1000000

enum {
	OPT_TOPIC = 256,
	OPT_SIZE,
	OPT_BATCH,
	OPT_WINDOW,
	OPT_RING,
	OPT_SPIN,
	OPT_PACE,
	OPT_RATE,
	OPT_SECONDS,
	OPT_LANES,
	OPT_DURATION,
	OPT_DIRECT,
	OPT_BROKER,
	OPT_BROKER_PID,
	OPT_DAEMON_PID,
	OPT_START,
	OPT_PROTOCOL,
	OPT_TLS,
	OPT_UNCONFIRMED,
	OPT_LINKS,
	OPT_KEEP,
	OPT_JSON,
	OPT_VERSION
};

#define PROTOCOL(name, topic, settings, unconfirmed, package) " " #name
static const char protocol_help[] = "the pool's [the started broker's, else mqtt]:"
#include "tools/bench/protocols.def"
    ;
#undef PROTOCOL
#define BROKER(name, program, protocols) " " #name
static const char start_help[] = "run against a tidegated and a broker of its own, gone afterwards:"
#include "tools/bench/brokers.def"
    ;
#undef BROKER

/* The subcommands, and in which of them an option has a meaning. */
enum {
	IN_ENQUEUE = 1,
	IN_THROUGHPUT = 2,
	IN_LATENCY = 4,
	IN_SPAWN = 8,
	IN_IDLE = 16,
	IN_PACED = 32,
	IN_ALL = 63,
	IN_COMPARE = 64
};
#define IN_DIRECT (IN_THROUGHPUT | IN_LATENCY | IN_SPAWN | IN_PACED)

static const struct {
	struct cli_option option;
	unsigned in;
} option_table[] = {
	{ { "start", OPT_START, "BROKER", start_help }, IN_ALL | IN_COMPARE },
	{ { "protocol", OPT_PROTOCOL, "NAME", protocol_help }, IN_ALL | IN_COMPARE },
	{ { "tls", OPT_TLS, NULL, "--start's broker wants TLS, with a certificate of its own" }, IN_ALL },
	{ { "socket", 's', "PATH", "tidegated's socket [$TIDEGATE_SOCKET, then the built-in path]" }, IN_ALL },
	{ { "pool", 'p', "NAME", "pool to publish to [bench]" }, IN_ALL },
	{ { "topic", 't', "TOPIC", "topic of the messages [by protocol]" }, IN_ALL & ~IN_IDLE },
	{ { "size", OPT_SIZE, "BYTES", "size of a message's body [128]" }, (IN_ALL & ~IN_IDLE) | IN_COMPARE },
	{ { "count", 'n', "N", "messages of each process and round" },
	    (IN_ALL & ~IN_IDLE & ~IN_PACED) | IN_COMPARE },
	{ { "rounds", 'r', "N", "rounds, of which the median is shown" }, (IN_ALL & ~IN_IDLE) | IN_COMPARE },
	{ { "processes", 'P', "N", "publishers at the same time [1; compare, paced: 8]" },
	    IN_THROUGHPUT | IN_PACED | IN_COMPARE },
	{ { "batch", OPT_BATCH, "N", "messages of one tg_publish_batch, 1 to 256 [32]" },
	    IN_ENQUEUE | IN_THROUGHPUT | IN_COMPARE },
	{ { "ring", OPT_RING, "BYTES", "size of a lane's ring" }, IN_ALL },
	{ { "spin", OPT_SPIN, "US",
	      "how long a waiting tidegate client spins [spin: 200, else the library's]" },
	    IN_THROUGHPUT | IN_LATENCY },
	{ { "pace", OPT_PACE, "MS", "time from one message to the next in mode asleep [10]" }, IN_LATENCY },
	{ { "rate", OPT_RATE, "N", "messages a second of each process, 1 to 1000000 [200]" }, IN_PACED },
	{ { "seconds", OPT_SECONDS, "N", "how long a round takes [3]" }, IN_PACED },
	{ { "lanes", 'l', "N", "lanes to attach [1000]" }, IN_IDLE },
	{ { "duration", OPT_DURATION, "MS",
	      "how long to look; latency: a round of mode asleep at most; compare: a row [10s; 3s; 20s]" },
	    IN_IDLE | IN_LATENCY | IN_COMPARE },
	{ { "direct", OPT_DIRECT, NULL, "the same through the broker's own client library, taking turns" },
	    IN_DIRECT },
	{ { "broker", OPT_BROKER, "HOST:PORT", "where --direct connects to; the pool's broker" }, IN_DIRECT },
	{ { "unconfirmed", OPT_UNCONFIRMED, NULL,
	      "messages the broker does not answer for: MQTT with QoS 0, core NATS, PUBLISH of Redis" },
	    IN_THROUGHPUT | IN_LATENCY },
	{ { "links", OPT_LINKS, "N", "connections of --start's tidegated to the broker [1]" },
	    IN_THROUGHPUT | IN_LATENCY | IN_PACED | IN_COMPARE },
	{ { "window", OPT_WINDOW, "N", "unanswered messages of a direct client [the fastest]" },
	    IN_THROUGHPUT | IN_COMPARE },
	{ { "broker-pid", OPT_BROKER_PID, "PID", "the broker's process, for its CPU time" },
	    IN_THROUGHPUT | IN_PACED },
	{ { "daemon-pid", OPT_DAEMON_PID, "PID", "tidegated's process [the one behind the socket]" },
	    IN_THROUGHPUT | IN_PACED | IN_IDLE },
	{ { "keep", OPT_KEEP, NULL, "keep --start's folder: configuration and logs" }, IN_ALL | IN_COMPARE },
	{ { "json", OPT_JSON, NULL, "the figures as one JSON object" }, IN_ALL | IN_COMPARE },
	{ { "help", 'h', NULL, "this text" }, IN_ALL | IN_COMPARE },
};
#define OPTIONS (sizeof(option_table) / sizeof(option_table[0]))

struct subcommand {
	const char *name;
	unsigned in;
	int (*run)(const struct bench_options *options);
	uint64_t count, rounds, duration_ms; /* defaults */
	const char *words;
};

static const struct subcommand subcommands[] = {
	{ "enqueue", IN_ENQUEUE, bench_enqueue, 1024, 31, 0, "the cost of publishing for the caller" },
	{ "throughput", IN_THROUGHPUT, bench_throughput, 100000, 5, 0,
	    "confirmed messages a second, CPU of every process for each" },
	{ "latency", IN_LATENCY, bench_latency, 5000, 5, 3000,
	    "one message under way: spinning, and asleep in between" },
	{ "paced", IN_PACED, bench_paced, 0, 3, 3000,
	    "messages at a steady rate: CPU of every process for each, and the time to the answer" },
	{ "spawn", IN_SPAWN, bench_spawn, 200, 5, 0, "processes that publish one message and end" },
	{ "idle", IN_IDLE, bench_idle, 0, 1, 10000, "the cost of idle attached lanes" },
	{ "compare", IN_COMPARE, bench_compare, 10000, 3, 20000,
	    "every protocol through its broker, in the clear and with TLS, beside its own client" },
	{ NULL, 0, NULL, 0, 0, 0, NULL },
};

static void
help(void)
{
	const struct subcommand *s;

	printf("Usage: tidegate-bench SUBCOMMAND [OPTION]...\n\n");
	for (s = subcommands; s->name != NULL; s++)
		printf("  %-12s %s\n", s->name, s->words);
	printf("\n'tidegate-bench SUBCOMMAND --help' shows its options. To see something at once:\n"
	       "  tidegate-bench throughput --start sink\n"
	       "  tidegate-bench throughput --start mosquitto --direct --processes 8\n"
	       "  tidegate-bench throughput --start nats --direct --tls\n"
	       "  tidegate-bench compare\n");
}

static const struct subcommand *
find_subcommand(const char *name)
{
	const struct subcommand *s;

	for (s = subcommands; s->name != NULL; s++)
		if (strcmp(s->name, name) == 0)
			return s;
	cli_usage_error("\"%s\" is no subcommand", name);
}

/* HOST:PORT or [V6]:PORT, cut apart in place. */
static void
parse_broker(struct bench_options *o, char *text)
{
	char *colon = strrchr(text, ':');

	if (colon == NULL || colon == text)
		cli_usage_error("--broker: \"%s\" is not HOST:PORT", text);
	*colon = '\0';
	o->broker_port = (uint16_t)cli_number("--broker", UNITS_COUNT, colon + 1, 1, UINT16_MAX);
	if (text[0] == '[' && colon[-1] == ']') {
		colon[-1] = '\0';
		text++;
	}
	o->broker_host = text;
}

static void
apply(struct bench_options *o, int letter, const struct subcommand *s, const struct cli_option *table)
{
	switch (letter) {
	case 's':
		o->socket = optarg;
		break;
	case 'p':
		o->pool = optarg;
		break;
	case 't':
	case OPT_TOPIC:
		o->topic = optarg;
		break;
	case 'n':
		o->count = cli_number("--count", UNITS_COUNT, optarg, 1, UINT32_MAX);
		break;
	case 'r':
		o->rounds = cli_number("--rounds", UNITS_COUNT, optarg, 1, BENCH_ROUNDS_MAX);
		break;
	case 'P':
		o->processes = cli_number("--processes", UNITS_COUNT, optarg, 1, PROCESSES_MAX);
		break;
	case 'l':
		o->lanes = cli_number("--lanes", UNITS_COUNT, optarg, 1, LANES_MAX);
		break;
	case OPT_SIZE:
		o->size = cli_number("--size", UNITS_BYTES, optarg, 0, 64u << 20);
		break;
	case OPT_BATCH:
		o->batch = cli_number("--batch", UNITS_COUNT, optarg, 1, 256);
		break;
	case OPT_WINDOW:
		o->window = cli_number("--window", UNITS_COUNT, optarg, 1, UINT16_MAX);
		break;
	case OPT_RING:
		o->ring_bytes = cli_number("--ring", UNITS_BYTES, optarg, 16u << 10, 1u << 30);
		break;
	case OPT_SPIN:
		o->spin_us = cli_number("--spin", UNITS_COUNT, optarg, 1, UINT32_MAX);
		break;
	case OPT_PACE:
		o->pace_ms = cli_number("--pace", UNITS_MS, optarg, 1, 10000);
		break;
	case OPT_RATE:
		o->rate = cli_number("--rate", UNITS_COUNT, optarg, 1, 1000000);
		break;
	case OPT_SECONDS:
		o->duration_ms = 1000 * cli_number("--seconds", UNITS_COUNT, optarg, 1, 3600);
		break;
	case OPT_DURATION:
		o->duration_ms = cli_number("--duration", UNITS_MS, optarg, 1, 3600000);
		break;
	case OPT_DIRECT:
		o->direct = 1;
		break;
	case OPT_BROKER:
		parse_broker(o, optarg);
		break;
	case OPT_BROKER_PID:
		o->broker_pid = (pid_t)cli_number("--broker-pid", UNITS_COUNT, optarg, 1, INT32_MAX);
		break;
	case OPT_DAEMON_PID:
		o->daemon_pid = (pid_t)cli_number("--daemon-pid", UNITS_COUNT, optarg, 1, INT32_MAX);
		break;
	case OPT_START:
		o->start = stage_broker(optarg);
		if (o->start == NULL)
			cli_usage_error("--start: \"%s\" is none of%s", optarg, strrchr(start_help, ':'));
		break;
	case OPT_PROTOCOL:
		o->protocol = bench_protocol(optarg);
		if (o->protocol == NULL)
			cli_usage_error("--protocol: \"%s\" is none of%s", optarg, strrchr(protocol_help, ':'));
		break;
	case OPT_TLS:
		o->tls = 1;
		break;
	case OPT_UNCONFIRMED:
		o->unconfirmed = 1;
		break;
	case OPT_LINKS:
		o->links = cli_number("--links", UNITS_COUNT, optarg, 1, 64);
		break;
	case OPT_KEEP:
		o->keep = 1;
		break;
	case OPT_JSON:
		o->json = 1;
		break;
	case 'h':
		printf("Usage: tidegate-bench %s [OPTION]...\nMeasures %s.\n\n", s->name, s->words);
		cli_help_options(stdout, table);
		exit(CLI_OK);
	default:
		exit(CLI_USAGE);
	}
}

/* Contradicting options are refused before anything starts. */
static void
check(const struct bench_options *o)
{
	const struct load_client *clients[2];

	if (o->start != NULL && !stage_broker_speaks(o->start, o->protocol->name))
		cli_usage_error(
		    "--start %s: it speaks %s, not %s", o->start->name, o->start->protocols, o->protocol->name);
	if (o->start != NULL &&
	    (o->socket != NULL || o->broker_host != NULL || o->daemon_pid != 0 || o->broker_pid != 0))
		cli_usage_error("--start brings its own: --socket, --broker and the pids do not go with it");
	if (o->tls && o->start == NULL)
		cli_usage_error("--tls is about the broker of --start");
	if (o->links > 1 && o->start == NULL)
		cli_usage_error("--links is about the tidegated of --start");
	if (o->unconfirmed && o->protocol->unconfirmed == NULL)
		cli_usage_error("--unconfirmed: in %s the broker answers for every message", o->protocol->name);
	if (o->direct && o->start == NULL && o->broker_host == NULL)
		cli_usage_error("--direct needs to know the broker: --broker HOST:PORT, or --start");
	if (o->direct && o->protocol->package == NULL)
		cli_usage_error("--direct: there is nothing to compare %s with", o->protocol->name);
	if (o->direct && bench_clients(o, clients, 2) < 2)
		cli_usage_error("--direct: this program was built without a client for %s (Debian: %s)",
		    o->protocol->name, o->protocol->package);
	if (o->direct && o->tls && clients[1]->clear_only)
		cli_usage_error("--direct --tls: %s is used in the clear only", clients[1]->name);
}

/* Defaults that depend on other options. */
static void
complete(struct bench_options *o)
{
	size_t first;

	if (o->protocol == NULL && o->start != NULL) {
		char name[16];

		first = strcspn(o->start->protocols, " ");
		snprintf(name, sizeof(name), "%.*s", (int)first, o->start->protocols);
		o->protocol = bench_protocol(name);
	}
	if (o->protocol == NULL)
		o->protocol = bench_protocol("mqtt");
	if (o->topic == NULL)
		o->topic = o->protocol->topic;
}

static void
parse(struct bench_options *o, const struct subcommand *s, int argc, char **argv)
{
	struct cli_option table[OPTIONS + 1];
	size_t i, count = 0;
	int letter;

	for (i = 0; i < OPTIONS; i++)
		if (option_table[i].in & s->in)
			table[count++] = option_table[i].option;
	table[count] = (struct cli_option){ 0 };
	while ((letter = cli_next(argc, argv, table)) != -1)
		apply(o, letter, s, table);
	if (optind < argc)
		cli_usage_error("%s takes no operand: \"%s\"", s->name, argv[optind]);
	/* Which takes a protocol and a broker for what to leave out, and starts what it needs. */
	if (s->in == IN_COMPARE)
		return;
	complete(o);
	check(o);
}

/* The daemon that is behind the socket; not if systemd listens in its place. */
static void
find_daemon(struct bench_options *o)
{
	const char *path = o->socket != NULL ? o->socket : getenv("TIDEGATE_SOCKET");

	if (o->daemon_pid == 0)
		o->daemon_pid = process_of_socket(path != NULL ? path : TG_DEFAULT_SOCKET);
	if (o->daemon_pid == 1)
		o->daemon_pid = 0;
}

int
main(int argc, char **argv)
{
	const struct subcommand *s;
	struct bench_options options = { .pool = "bench",
		.size = 128,
		.processes = 1,
		.batch = 32,
		.pace_ms = 10,
		.rate = 200,
		.lanes = 1000,
		.links = 1 };
	struct stage stage = { 0 };
	int status;

	cli_init("tidegate-bench");
	if (argc < 2)
		cli_usage_error("which measurement?");
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
		help();
		return CLI_OK;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf("tidegate-bench %s\n", PACKAGE_VERSION);
		return CLI_OK;
	}
	s = find_subcommand(argv[1]);
	options.count = s->count;
	options.rounds = s->rounds;
	options.duration_ms = s->duration_ms;
	if ((s->in & (IN_COMPARE | IN_PACED)) != 0)
		options.processes = 8;
	parse(&options, s, argc - 1, argv + 1);
	bench_catch_signals();
	if (s->in != IN_COMPARE && options.start != NULL && stage_start(&stage, &options) != 0)
		return CLI_FAILED;
	if (s->in != IN_COMPARE)
		find_daemon(&options);
	status = s->run(&options);
	cli_progress_end();
	stage_stop(&stage, options.keep);
	if (bench_stop) {
		cli_error("interrupted");
		return CLI_FAILED;
	}
	return status;
}
