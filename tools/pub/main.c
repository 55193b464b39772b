/*
 * tidegate-pub: publishes the lines of files, or of standard input, through the tidegated of this
 * host, and reports the outcomes.
 */
#include "build_config.h"

#include "tools/common/cli.h"
#include "tools/pub/report.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RING_STREAM (UINT64_C(1) << 20) /* about 1,000 lines of 1 KiB under way */
#define RING_MIN (UINT64_C(16) << 10)
#define RING_MAX (UINT64_C(1) << 30)
#define RECORD_ROOM 256 /* a record's overhead beside topic, key, headers and body, generously */

enum {
	OPT_NULL = 256,
	OPT_KEEP_CR,
	OPT_WHOLE,
	OPT_TIMEOUT,
	OPT_EXPIRY,
	OPT_WAIT,
	OPT_RATE,
	OPT_RETAIN,
	OPT_JSON,
	OPT_STATS,
	OPT_RING,
	OPT_VERSION
};

static const struct cli_option option_table[] = {
	{ "socket", 's', "PATH", "tidegated's socket [$TIDEGATE_SOCKET, then the built-in path]" },
	{ "pool", 'p', "NAME", "pool to publish to" },
	{ "topic", 't', "TOPIC", "topic of every message" },
	{ "key", 'k', "KEY", "routing or partition key of every message" },
	{ "header", 'H', "NAME=VALUE", "a header of every message; may be given often" },
	{ "message", 'm', "TEXT", "publish this one message; no files" },
	{ "null", OPT_NULL, NULL, "messages end with NUL, not with a line break" },
	{ "keep-cr", OPT_KEEP_CR, NULL, "lines end with LF alone; a CR in front of it is part of the message" },
	{ "whole-file", OPT_WHOLE, NULL, "each file is one message" },
	{ "retain", OPT_RETAIN, NULL, "MQTT: the broker keeps it for later subscribers" },
	{ "timeout", OPT_TIMEOUT, "MS", "how long to try to deliver each message [the pool's]" },
	{ "expiry", OPT_EXPIRY, "MS",
	    "how long each message is of use; brokers drop it after that [for ever]" },
	{ "wait", OPT_WAIT, "MS", "give up after this long [never]" },
	{ "rate", OPT_RATE, "N/s", "publish at most this many messages a second" },
	{ "ring", OPT_RING, "BYTES", "size of the lane's ring; a message may take half of it" },
	{ "stats", OPT_STATS, NULL, "latency percentiles after the summary" },
	{ "json", OPT_JSON, NULL, "the summary as one JSON object on standard output" },
	{ "quiet", 'q', NULL, "no progress line, no summary" },
	{ "help", 'h', NULL, "this text" },
	{ "version", OPT_VERSION, NULL, "the version" },
	{ NULL, 0, NULL, NULL },
};

struct settings {
	struct pub_options pub;
	const char *message;
	enum input_mode mode;
	int quiet, json, stats;
	const char *const *files;
	size_t file_count;
};

static const int stop_signals[] = { SIGINT, SIGTERM, SIGHUP };

/* The first signal ends the reading, the second the waiting; from then on they have their usual effect. */
static void
on_signal(int signal_number)
{
	(void)signal_number;
	pub_stop = pub_stop + 1;
	for (size_t i = 0; pub_stop > 1 && i < sizeof(stop_signals) / sizeof(stop_signals[0]); i++)
		signal(stop_signals[i], SIG_DFL);
}

static void
catch_signals(void)
{
	struct sigaction action = { .sa_handler = on_signal }, before;

	sigemptyset(&action.sa_mask);
	for (size_t i = 0; i < sizeof(stop_signals) / sizeof(stop_signals[0]); i++) {
		/* Ignored by nohup, or by a shell for its background jobs: it stays so. */
		if (sigaction(stop_signals[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
			sigaction(stop_signals[i], &action, NULL);
	}
	/* A reader of our output that goes away does not end what is under way. */
	signal(SIGPIPE, SIG_IGN);
}

static void
help(void)
{
	printf("Usage: tidegate-pub [-s SOCKET] -p POOL -t TOPIC [OPTION]... [-m TEXT | FILE...]\n"
	       "Publishes the lines of FILEs (\"-\" or none: standard input) through tidegated.\n\n");
	cli_help_options(stdout, option_table);
	printf("\nExit status: 0 if every message was delivered or sent, 1 if not, 2 for wrong usage.\n");
}

static void
add_header(struct pub_options *pub, const char *text)
{
	const char *equals = strchr(text, '=');
	struct tg_header *headers;

	if (equals == NULL || equals == text)
		cli_usage_error("--header: \"%s\" is not NAME=VALUE", text);
	if (equals - text > UINT16_MAX || strlen(equals + 1) > UINT16_MAX)
		cli_usage_error(
		    "--header: name or value of \"%.40s...\" is longer than %d bytes", text, UINT16_MAX);
	headers = realloc(pub->headers, (pub->header_count + 1) * sizeof(*headers));
	if (headers == NULL)
		cli_usage_error("--header: out of memory");
	headers[pub->header_count++] = (struct tg_header){ .name = text,
		.name_len = (size_t)(equals - text),
		.value = equals + 1,
		.value_len = strlen(equals + 1) };
	pub->headers = headers;
}

static void
parse(struct settings *s, int argc, char **argv)
{
	static const char *const standard_input[] = { "-" };
	int letter, keep_cr = 0;

	while ((letter = cli_next(argc, argv, option_table)) != -1) {
		switch (letter) {
		case 's':
			s->pub.socket = optarg;
			break;
		case 'p':
			s->pub.pool = optarg;
			break;
		case 't':
			s->pub.topic = optarg;
			break;
		case 'k':
			s->pub.key = optarg;
			break;
		case 'H':
			add_header(&s->pub, optarg);
			break;
		case 'm':
			s->message = optarg;
			break;
		case 'q':
			s->quiet = 1;
			break;
		case OPT_NULL:
			s->mode = INPUT_NUL;
			break;
		case OPT_KEEP_CR:
			keep_cr = 1;
			break;
		case OPT_WHOLE:
			s->mode = INPUT_WHOLE;
			break;
		case OPT_RETAIN:
			s->pub.flags |= TG_RETAIN;
			break;
		case OPT_TIMEOUT:
			s->pub.timeout_ms = (uint32_t)cli_number("--timeout", UNITS_MS, optarg, 1, UINT32_MAX);
			break;
		case OPT_EXPIRY:
			s->pub.expiry_ms = (uint32_t)cli_number("--expiry", UNITS_MS, optarg, 1, UINT32_MAX);
			break;
		case OPT_WAIT:
			s->pub.wait_ms = cli_number("--wait", UNITS_MS, optarg, 1, UINT32_MAX);
			break;
		case OPT_RATE:
			s->pub.rate = cli_number("--rate", UNITS_RATE, optarg, 1, 100000000);
			break;
		case OPT_RING:
			s->pub.ring_bytes = cli_number("--ring", UNITS_BYTES, optarg, RING_MIN, RING_MAX);
			break;
		case OPT_STATS:
			s->stats = 1;
			break;
		case OPT_JSON:
			s->json = 1;
			break;
		case 'h':
			help();
			exit(CLI_OK);
		case OPT_VERSION:
			printf("tidegate-pub %s\n", PACKAGE_VERSION);
			exit(CLI_OK);
		default:
			exit(CLI_USAGE);
		}
	}
	if (keep_cr && s->mode == INPUT_LINES)
		s->mode = INPUT_LINES_RAW;
	if (s->pub.pool == NULL)
		cli_usage_error("no pool: -p NAME");
	if (s->pub.topic == NULL)
		cli_usage_error("no topic: -t TOPIC");
	if (s->message != NULL && optind < argc)
		cli_usage_error("-m TEXT and files (\"%s\") exclude each other", argv[optind]);
	s->files = optind < argc ? (const char *const *)&argv[optind] : standard_input;
	s->file_count = optind < argc ? (size_t)(argc - optind) : 1;
}

/* A lane carries records of half its ring: the smallest ring that takes a message of len bytes. */
static uint64_t
ring_for(const struct pub_options *pub, uint64_t len)
{
	uint64_t need = len + strlen(pub->topic) + (pub->key != NULL ? strlen(pub->key) : 0) + RECORD_ROOM;
	uint64_t ring = RING_MIN;
	size_t i;

	for (i = 0; i < pub->header_count; i++)
		need += 4u + pub->headers[i].name_len + pub->headers[i].value_len;
	while (ring / 2 < need && ring < RING_MAX)
		ring *= 2;
	return ring;
}

static uint64_t
default_ring(const struct settings *s)
{
	if (s->message != NULL) /* small: a ring's first touch is most of such a run's cost */
		return ring_for(&s->pub, strlen(s->message));
	return RING_STREAM;
}

static int
open_input(struct input *in, const struct settings *s)
{
	size_t limit = (size_t)(s->pub.ring_bytes / 2);

	if (s->message != NULL)
		return input_init_text(in, s->message, limit);
	return input_init(in, s->files, s->file_count, s->mode, limit);
}

/* Says where to go on from. */
static void
report_interrupted(const struct pub *pub)
{
	uint64_t line;
	const char *name = input_locate(pub->in, pub->next_number, &line);

	cli_error("interrupted: the first message not published is %s:%llu", name, (unsigned long long)line);
}

int
main(int argc, char **argv)
{
	struct settings settings = { 0 };
	struct pub pub;
	struct input in;
	int success;

	cli_init("tidegate-pub");
	parse(&settings, argc, argv);
	if (settings.pub.ring_bytes == 0)
		settings.pub.ring_bytes = default_ring(&settings);
	if (pub_open(&pub, &settings.pub) != 0)
		return CLI_FAILED;
	if (open_input(&in, &settings) != 0) {
		cli_error("out of memory for messages of %llu bytes",
		    (unsigned long long)settings.pub.ring_bytes / 2);
		pub_close(&pub);
		return CLI_FAILED;
	}
	catch_signals();
	pub_run(&pub, &in, settings.quiet || !cli_progress_wanted() ? NULL : report_progress);
	cli_progress_end();
	success = report_success(&pub);
	if (pub.interrupted)
		report_interrupted(&pub);
	if (pub.stranded)
		cli_error(
		    "gave up: tidegated has been away for %.1f s; the outcomes of the unanswered messages are not known",
		    (double)pub.away_ms / 1000);
	if (pub.timed_out)
		cli_error("gave up after %llu ms (--wait)", (unsigned long long)settings.pub.wait_ms);
	if (pub.outcomes[TG_REJECTED] > pub.rejection_count)
		cli_error("%llu more were rejected",
		    (unsigned long long)(pub.outcomes[TG_REJECTED] - pub.rejection_count));
	if (!settings.quiet)
		report_summary(stderr, &pub);
	if (settings.stats && !settings.quiet)
		report_latency(stderr, &pub);
	if (settings.json && report_json(stdout, &pub, success) != 0) {
		cli_error("cannot write the JSON object");
		clearerr(stdout); /* it is said */
		success = 0;
	}
	pub_close(&pub);
	input_fini(&in);
	free(settings.pub.headers);
	return success ? CLI_OK : CLI_FAILED;
}
