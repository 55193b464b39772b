/*
 * tidegate-sink: a broker that does as it is told. This file reads the options; server.c has the loop.
 */
#include "build_config.h"

#include "sink.h"
#include "tools/common/cli.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* OPTION(name, argument, help): options that are not behaviours and cannot be changed later. */
#define OPTIONS                                                                                          \
	OPTION(protocol, "NAME", "the protocol: mqtt (3.1.1 and 5), amqp (0-9-1), nats, redis or stomp") \
	OPTION(listen, "ADDR[,ADDR...]",                                                                 \
	    "HOST:PORT, [V6]:PORT or unix:/PATH; port 0 picks a free one, which is printed")             \
	OPTION(record, "FILE", "append a line to FILE for each message, before it is answered")          \
	OPTION(record_format, "FORMAT", "full (all columns, the default) or body (the body alone)")      \
	OPTION(no_record, NULL, "record nothing")                                                        \
	OPTION(control, "unix:/PATH", "take commands there while running")                               \
	OPTION(tell, "unix:/PATH", "client mode: send the command to a running sink, print its answer")  \
	OPTION(seed, "N", "seed of --garbage, for a repeatable run; default: the clock")                 \
	OPTION(tls_cert, "FILE", "speak TLS with this certificate chain (PEM); needs --tls-key")         \
	OPTION(tls_key, "FILE", "its private key")                                                       \
	OPTION(tls_ca, "FILE", "want a certificate of every client, by one of these CAs")                \
	OPTION(quiet, NULL, "do not log connections that end badly")                                     \
	OPTION(help, NULL, "this text")                                                                  \
	OPTION(version, NULL, "the version")

enum option_id {
#define OPTION(name, argument, help) OPTION_##name,
	OPTIONS
#undef OPTION
	    OPTION_COUNT
};

#define OPTION_FIRST 1000 /* values of long options, past all characters */
#define BEHAVIOUR_FIRST 2000
#define LISTEN_MAX 64

struct settings {
	const struct protocol *protocol;
	char *listen[LISTEN_MAX];
	int listen_count;
	const char *record;
	const char *control;
	const char *tell;
	const char *tls_cert;
	const char *tls_key;
	const char *tls_ca;
	enum record_format format;
	bool no_record;
};

static const struct protocol *const protocols[] = {
#define PROTOCOL(name) &protocol_##name,
#include "protocol.def"
#undef PROTOCOL
};

struct option_info {
	char name[16];
	const char *argument;
	const char *help;
};

static struct option_info option_list[OPTION_COUNT] = {
#define OPTION(name, argument, help) { #name, argument, help },
	OPTIONS
#undef OPTION
};

static void
usage(FILE *stream)
{
	fprintf(stream,
	    "Usage: tidegate-sink --protocol NAME --listen ADDR[,ADDR...] (--record FILE | --no-record)\n"
	    "                     [--control unix:/PATH] [BEHAVIOUR...]\n"
	    "       tidegate-sink --tell unix:/PATH COMMAND...\n"
	    "A broker that does as it is told, for tests, benchmarks and demonstrations.\n\nOptions:\n");
	for (int i = 0; i < OPTION_COUNT; i++)
		behaviour_help_line(stream, option_list[i].name, option_list[i].argument, option_list[i].help);
	fprintf(stream, "\nBehaviours (options now, `set NAME VALUE` later; 0 or off is \"a good broker\"):\n");
	behaviour_help(stream);
	fprintf(stream, "\nCommands:\n");
	control_help(stream);
	fprintf(stream,
	    "\nExit status: 0; 1 after an error, a record that could not be written included; 2 for bad "
	    "options.\n");
}

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int
complain(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "tidegate-sink: ");
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "; see --help\n");
	return 2;
}

static int
set_protocol(struct settings *settings, const char *name)
{
	char all[128] = "";

	for (size_t i = 0; i < sizeof(protocols) / sizeof(protocols[0]); i++) {
		if (strcmp(protocols[i]->name, name) == 0) {
			settings->protocol = protocols[i];
			return 0;
		}
		snprintf(
		    all + strlen(all), sizeof(all) - strlen(all), "%s%s", i ? ", " : "", protocols[i]->name);
	}
	return complain("--protocol \"%s\": want one of %s", name, all);
}

static int
add_listen(struct settings *settings, char *list)
{
	for (char *address; (address = strsep(&list, ","));) {
		if (!*address)
			return complain("--listen: an address is empty: want ADDR[,ADDR...]");
		if (settings->listen_count == LISTEN_MAX)
			return complain("--listen \"%s\": at most %d addresses", address, LISTEN_MAX);
		settings->listen[settings->listen_count++] = address;
	}
	return 0;
}

/* Returns 0, a positive exit status, or -1 for done with status 0. */
static int
take(struct sink *sink, struct settings *settings, enum option_id id, char *value)
{
	switch (id) {
	case OPTION_protocol:
		return set_protocol(settings, value);
	case OPTION_listen:
		return add_listen(settings, value);
	case OPTION_record:
		settings->record = value;
		return 0;
	case OPTION_record_format:
		if (strcmp(value, "full") != 0 && strcmp(value, "body") != 0)
			return complain("--record-format \"%s\": want full or body", value);
		settings->format = value[0] == 'b' ? RECORD_BODY : RECORD_FULL;
		return 0;
	case OPTION_no_record:
		settings->no_record = true;
		return 0;
	case OPTION_control:
		if (strncmp(value, "unix:/", 6) != 0)
			return complain("--control \"%s\": want unix:/PATH", value);
		settings->control = value;
		return 0;
	case OPTION_tell:
		settings->tell = value;
		return 0;
	case OPTION_seed:
		if (behaviour_parse_number(value, 0, UINT64_MAX, &sink->random) < 0)
			return complain("--seed \"%s\": want a number from 0 to %llu", value,
			    (unsigned long long)UINT64_MAX);
		return 0;
	case OPTION_tls_cert:
		settings->tls_cert = value;
		return 0;
	case OPTION_tls_key:
		settings->tls_key = value;
		return 0;
	case OPTION_tls_ca:
		settings->tls_ca = value;
		return 0;
	case OPTION_quiet:
		sink->quiet = true;
		return 0;
	case OPTION_help:
		usage(stdout);
		return -1;
	case OPTION_version:
		printf("tidegate-sink %s\n", PACKAGE_VERSION);
		return -1;
	case OPTION_COUNT:
		break;
	}
	return 2;
}

static void
long_options(struct option *options)
{
	int n = 0;

	for (int i = 0; i < OPTION_COUNT; i++) {
		for (char *at = option_list[i].name; *at; at++)
			if (*at == '_')
				*at = '-';
		options[n++] = (struct option){ option_list[i].name,
			option_list[i].argument ? required_argument : no_argument, NULL, OPTION_FIRST + i };
	}
	for (int i = 0; i < BEHAVIOUR_COUNT; i++)
		options[n++] = (struct option){ behaviour_list[i].name,
			behaviour_list[i].argument ? required_argument : no_argument, NULL,
			BEHAVIOUR_FIRST + i };
	options[n] = (struct option){ NULL, 0, NULL, 0 };
}

static int
read_options(struct sink *sink, struct settings *settings, int argc, char **argv)
{
	static struct option options[OPTION_COUNT + BEHAVIOUR_COUNT + 1];
	char why[BEHAVIOUR_WHY_MAX];
	int c, r;

	long_options(options);
	opterr = 0;
	/* "+": words after --tell's address are the command, dashes or not. ":" distinguishes a missing
	 * argument.
	 */
	while ((c = getopt_long(argc, argv, "+:hV", options, NULL)) != -1) {
		if (c == ':')
			return complain("option \"%s\" needs a value", argv[optind - 1]);
		if (c == '?')
			return complain("no option \"%s\", or not one that takes a value", argv[optind - 1]);
		if (c >= BEHAVIOUR_FIRST) {
			if (behaviour_set(
				&sink->behaviour, (enum behaviour_id)(c - BEHAVIOUR_FIRST), optarg, why) < 0)
				return complain("--%s", why);
			continue;
		}
		if (c < OPTION_FIRST)
			c = OPTION_FIRST + (c == 'h' ? OPTION_help : OPTION_version);
		r = take(sink, settings, (enum option_id)(c - OPTION_FIRST), optarg);
		if (r != 0)
			return r;
	}
	if (settings->tell)
		return optind < argc ? 0 : complain("--tell needs a command");
	if (optind < argc)
		return complain("unexpected argument \"%s\"", argv[optind]);
	if (!settings->protocol)
		return complain("--protocol is missing");
	if (settings->listen_count == 0)
		return complain("--listen is missing");
	if (!settings->record == !settings->no_record)
		return complain("want either --record FILE or --no-record");
	if (!settings->tls_cert != !settings->tls_key || (settings->tls_ca && !settings->tls_cert))
		return complain("want --tls-cert and --tls-key together, and --tls-ca only with them");
	return 0;
}

/* Opens the record and the listeners, and says where it listens. Returns the exit status so far. */
static int
start(struct sink *sink, const struct settings *settings)
{
	const struct listener *listener;
	int r = record_init(&sink->record, settings->record, settings->format);

	if (r < 0) {
		fprintf(stderr, "tidegate-sink: record \"%s\": %s\n", settings->record, strerror(-r));
		return 1;
	}
	if (settings->tls_cert) {
		sink->tls = secure_context_new(settings->tls_cert, settings->tls_key, settings->tls_ca);
		if (!sink->tls)
			return 1;
	}
	if (server_init(sink) < 0)
		return 1;
	for (int i = 0; i < settings->listen_count && r == 0; i++)
		r = server_listen(sink, settings->listen[i], settings->protocol);
	if (r == 0 && settings->control)
		r = server_listen(sink, settings->control, &protocol_control);
	if (r < 0)
		return r == -2 ? 2 : 1;
	TAILQ_FOREACH (listener, &sink->listeners, all)
		printf("listening %s %s\n", listener->protocol->name, listener->name);
	fflush(stdout);
	return 0;
}

int
main(int argc, char **argv)
{
	struct sink sink = { .epoll_fd = -1,
		.signal_fd = -1,
		.record.fd = -1,
		.random = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32 };
	struct settings settings = { .format = RECORD_FULL };

	cli_init("tidegate-sink");
	TAILQ_INIT(&sink.listeners);
	TAILQ_INIT(&sink.conns);
	behaviour_init(&sink.behaviour);
	int status = read_options(&sink, &settings, argc, argv);
	if (status == 0 && settings.tell) {
		status = control_tell(settings.tell, argv + optind, argc - optind);
	} else if (status == 0) {
		sink.protocol = settings.protocol;
		status = start(&sink, &settings);
		if (status == 0) {
			server_run(&sink);
			char *stats = control_stats(&sink, false);
			fprintf(stderr, "%s\n", stats);
			free(stats);
			status = sink.record.error ? 1 : 0;
		}
	} else if (status < 0) {
		status = 0;
	}
	server_fini(&sink);
	secure_context_free(sink.tls);
	record_fini(&sink.record);
	behaviour_fini(&sink.behaviour);
	return status;
}
