/* tidegatectl: inspects and controls a running tidegated. */
#include "build_config.h"

#include "tools/common/cli.h"
#include "tools/common/clock.h"
#include "tools/ctl/ask.h"
#include "tools/ctl/show.h"
#include "tools/ctl/table.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OPT_JSON = 256, OPT_ORPHANS, OPT_SINCE, OPT_MAX, OPT_VERSION };

static const struct cli_option option_table[] = {
	{ "socket", 's', "PATH", "admin socket [$TIDEGATE_ADMIN, then " TG_DEFAULT_ADMIN "]" },
	{ "json", OPT_JSON, NULL, "the daemon's answer as it is" },
	{ "watch", 'w', "SECONDS", "again and again, with rates" },
	{ "orphans", OPT_ORPHANS, NULL, "lanes: only those whose process is gone" },
	{ "follow", 'f', NULL, "events: go on with what happens" },
	{ "since", OPT_SINCE, "SEQ", "events: from this number on" },
	{ "max", OPT_MAX, "N", "events: at most the last N [all that are kept]" },
	{ "help", 'h', NULL, "this text, or a command's" },
	{ "version", OPT_VERSION, NULL, "the version" },
	{ NULL, 0, NULL, NULL },
};

enum features { CTL_TABLE = 1, CTL_ORPHANS = 2, CTL_EVENTS = 4, CTL_UPGRADE = 8 };

#define UPGRADE_LOOK_NS 20000000 /* between two looks whether it is done */
#define UPGRADE_LIMIT_S 30

struct settings {
	const char *path;
	double watch_s; /* 0: once */
	int json, orphans, follow, help;
	uint64_t since, max;
	int has_since;
	const char *operand; /* NULL: none */
};

struct command {
	const char *name, *operand;
	int features;
	const char *summary, *more;
	show_answer *show;
};

/* Events are lines, and an upgrade is an action: neither is a table. */
#define show_events NULL
#define show_upgrade NULL

static const struct command commands[] = {
#define X(name, operand, features, summary, more) { #name, operand, features, summary, more, show_##name },
#include "tools/ctl/commands.def"
#undef X
};

#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

/* ---- words ---- */

static void
help(void)
{
	printf("Usage: tidegatectl [OPTION]... COMMAND [WHICH]\n"
	       "Shows what the tidegated of this host does.\n\n");
	for (size_t i = 0; i < COMMANDS; i++)
		printf("  %-8s %-14s %s\n", commands[i].name, commands[i].operand, commands[i].summary);
	printf("\nOptions, before or after the command:\n");
	cli_help_options(stdout, option_table);
	printf("\n'tidegatectl COMMAND --help' explains a command's columns.\n"
	       "Exit status: 0 answered, 1 no daemon or its answer is an error, 2 for wrong usage.\n");
}

static void
help_command(const struct command *command)
{
	printf("Usage: tidegatectl [-s PATH] [--json]%s%s%s %s%s%s\n",
	    (command->features & CTL_TABLE) != 0 ? " [-w SECONDS]" : "",
	    (command->features & CTL_ORPHANS) != 0 ? " [--orphans]" : "",
	    (command->features & CTL_EVENTS) != 0 ? " [-f] [--since SEQ] [--max N]" : "", command->name,
	    command->operand[0] != '\0' ? " " : "", command->operand);
	printf("%s: %s\n\n%s\n", command->name, command->summary, command->more);
}

/* ---- options ---- */

static double
seconds(const char *text)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end != '\0' || !(value >= 0.1 && value <= 86400))
		cli_usage_error("--watch: \"%s\" is out of range: 0.1 to 86400 seconds", text);
	return value;
}

static const struct command *
find_command(const char *name)
{
	char names[160] = "";
	size_t at = 0;

	for (size_t i = 0; i < COMMANDS; i++) {
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
		if (at < sizeof(names))
			at += (size_t)snprintf(names + at, sizeof(names) - at, " %s", commands[i].name);
	}
	cli_usage_error("there is no command \"%s\"; there are:%s", name, names);
}

static void
check_features(const struct settings *s, const struct command *command)
{
	if (s->orphans && (command->features & CTL_ORPHANS) == 0)
		cli_usage_error("--orphans is for lanes, not for %s", command->name);
	if ((s->follow || s->has_since || s->max > 0) && (command->features & CTL_EVENTS) == 0)
		cli_usage_error("--follow, --since and --max are for events, not for %s", command->name);
	if (s->watch_s > 0 && (command->features & CTL_TABLE) == 0)
		cli_usage_error("--watch is not for %s: --follow shows what happens", command->name);
	if (s->watch_s > 0 && s->json)
		cli_usage_error("--watch shows tables: it does not go with --json");
	if (s->operand != NULL && command->operand[0] == '\0')
		cli_usage_error("%s takes nothing more: \"%s\"", command->name, s->operand);
}

static const struct command *
parse(struct settings *s, int argc, char **argv)
{
	int letter;

	s->path = getenv("TIDEGATE_ADMIN");
	if (s->path == NULL || s->path[0] == '\0')
		s->path = TG_DEFAULT_ADMIN;
	while ((letter = cli_next(argc, argv, option_table)) != -1) {
		switch (letter) {
		case 's':
			s->path = optarg;
			break;
		case OPT_JSON:
			s->json = 1;
			break;
		case 'w':
			s->watch_s = seconds(optarg);
			break;
		case OPT_ORPHANS:
			s->orphans = 1;
			break;
		case 'f':
			s->follow = 1;
			break;
		case OPT_SINCE:
			s->since = cli_number("--since", UNITS_COUNT, optarg, 0, INT64_MAX);
			s->has_since = 1;
			break;
		case OPT_MAX:
			s->max = cli_number("--max", UNITS_COUNT, optarg, 1, 1024);
			break;
		case OPT_VERSION:
			printf("tidegatectl %s\n", PACKAGE_VERSION);
			exit(CLI_OK);
		default:
			s->help = 1;
			break;
		}
	}
	if (optind == argc) {
		if (!s->help)
			cli_usage_error("a command is missing");
		help();
		exit(CLI_OK);
	}
	const struct command *command = find_command(argv[optind++]);
	if (s->help) {
		help_command(command);
		exit(CLI_OK);
	}
	if (optind < argc)
		s->operand = argv[optind++];
	if (optind < argc)
		cli_usage_error("unexpected argument \"%s\"", argv[optind]);
	check_features(s, command);
	return command;
}

/* ---- requests ---- */

static json_t *
make_request(const struct settings *s, const struct command *command)
{
	json_t *request = json_pack("{s:s}", "cmd", command->name);

	if (s->orphans)
		json_object_set_new(request, "orphans", json_true());
	if (s->has_since)
		json_object_set_new(request, "since", json_integer((json_int_t)s->since));
	if (s->max > 0)
		json_object_set_new(request, "max", json_integer((json_int_t)s->max));
	if (s->follow)
		json_object_set_new(request, "follow", json_true());
	if (s->operand == NULL)
		return request;
	if (strcmp(command->name, "why") == 0 && s->operand[0] != '\0' &&
	    strspn(s->operand, "0123456789") == strlen(s->operand)) {
		uint64_t lane = cli_number("why", UNITS_COUNT, s->operand, 1, INT64_MAX);
		json_object_set_new(request, "lane", json_integer((json_int_t)lane));
		return request;
	}
	json_t *name = json_string(s->operand);
	if (name == NULL)
		cli_usage_error("a pool's name is UTF-8: \"%s\" is not", s->operand);
	json_object_set_new(request, "pool", name);
	return request;
}

static int
flush_output(void)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return CLI_OK;
	if (errno != EPIPE)
		cli_error("standard output: %s", strerror(errno));
	clearerr(stdout); /* it is said */
	return CLI_FAILED;
}

static void
print_json(const json_t *json)
{
	json_dumpf(json, stdout, table_on_terminal() ? JSON_INDENT(2) : JSON_COMPACT);
	putchar('\n');
}

static int
run_once(struct ask *ask, const struct settings *s, const struct command *command)
{
	json_t *answer = ask_once(ask, make_request(s, command));

	if (answer == NULL)
		return CLI_FAILED;
	if (s->json)
		print_json(answer);
	else
		command->show(&(struct sample){ .answer = answer }, stdout);
	json_decref(answer);
	return flush_output();
}

static int
run_watch(struct ask *ask, const struct settings *s, const struct command *command)
{
	json_t *before = NULL, *answer;
	uint64_t before_ns = 0, next_ns = clock_now_ns();
	int status = CLI_OK;

	ask->patient = 1;
	for (;;) {
		if ((answer = ask_once(ask, make_request(s, command))) == NULL) {
			if (!ask->lost)
				break;
			/* The next daemon counts from zero. */
			json_decref(before);
			before = NULL;
			ask_again(ask);
			continue;
		}
		uint64_t now_ns = clock_now_ns();
		struct sample sample = { .answer = answer,
			.before = before,
			.rates = 1,
			.seconds = (double)(now_ns - before_ns) / (double)CLOCK_NS_PER_S };
		char when[32];
		time_t wall = time(NULL);
		struct tm local;
		strftime(when, sizeof(when), "%H:%M:%S", localtime_r(&wall, &local));
		/* To the top and clear: the next table takes this one's place. */
		if (table_on_terminal())
			fputs("\033[H\033[2J", stdout);
		printf("%s  tidegatectl %s%s%s, every %g s\n", when, command->name,
		    s->operand != NULL ? " " : "", s->operand != NULL ? s->operand : "", s->watch_s);
		command->show(&sample, stdout);
		if (!table_on_terminal())
			putchar('\n');
		json_decref(before);
		before = answer;
		before_ns = now_ns;
		if ((status = flush_output()) != CLI_OK)
			break;
		next_ns += (uint64_t)(s->watch_s * (double)CLOCK_NS_PER_S);
		if (next_ns < now_ns)
			next_ns = now_ns;
		struct timespec until = clock_timespec(next_ns);
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
			;
	}
	if (answer == NULL)
		status = CLI_FAILED;
	json_decref(before);
	return status;
}

/* Which daemon it is: one that was started at another time numbers its events from 1 again. */
struct identity {
	json_int_t pid;
	int64_t started_ns;
};

static int
identify(struct ask *ask, struct identity *identity)
{
	json_t *answer = ask_once(ask, json_pack("{s:s}", "cmd", "status")),
	       *status = json_object_get(answer, "status");

	if (answer == NULL)
		return -1;
	identity->pid = json_integer_value(json_object_get(status, "pid"));
	identity->started_ns =
	    (int64_t)clock_now_ns() - json_integer_value(json_object_get(status, "uptime_ms")) * 1000000;
	json_decref(answer);
	return 0;
}

static int
is_same(const struct identity *a, const struct identity *b)
{
	return a->pid == b->pid && llabs(a->started_ns - b->started_ns) < (long long)CLOCK_NS_PER_S;
}

/* Shows the events there are, and those that follow. *last: the number of the last that was shown. */
static int
follow_events(struct ask *ask, const struct settings *s, const struct command *command, uint64_t *last)
{
	json_t *answer = ask_once(ask, make_request(s, command)), *event, *pushed;
	uint64_t missed;
	size_t i;
	int status;

	if (answer == NULL)
		return CLI_FAILED;
	missed = (uint64_t)json_integer_value(json_object_get(answer, "missed"));
	if (missed > 0 && s->has_since)
		cli_error("%llu events since %llu are kept no longer", (unsigned long long)missed,
		    (unsigned long long)s->since);
	json_array_foreach (json_object_get(answer, "events"), i, event) {
		*last = (uint64_t)json_integer_value(json_object_get(event, "seq"));
		if (!s->json)
			show_event(event, stdout);
	}
	if (s->json)
		print_json(answer);
	json_decref(answer);
	status = flush_output();
	while (s->follow && status == CLI_OK) {
		if ((pushed = ask_next(ask)) == NULL)
			return CLI_FAILED;
		event = json_object_get(pushed, "event");
		*last = (uint64_t)json_integer_value(json_object_get(event, "seq"));
		if (s->json) {
			json_dumpf(pushed, stdout, JSON_COMPACT);
			putchar('\n');
		} else {
			show_event(event, stdout);
		}
		json_decref(pushed);
		status = flush_output();
	}
	return status;
}

static int
run_events(struct ask *ask, const struct settings *settings, const struct command *command)
{
	struct settings s = *settings;
	struct identity before, now;
	uint64_t last = 0;
	int status;

	if (!s.follow)
		return follow_events(ask, &s, command, &last);
	ask->patient = 1;
	if (identify(ask, &before) != 0)
		return CLI_FAILED;
	while ((status = follow_events(ask, &s, command, &last)) != CLI_OK && ask->lost) {
		do
			ask_again(ask);
		while (identify(ask, &now) != 0 && ask->lost);
		if (ask->lost)
			break;
		s.since = is_same(&before, &now) ? last + 1 : 1;
		s.has_since = 1;
		s.max = 0;
		before = now;
	}
	return status;
}

/* The status of the daemon that answers now, a new reference; NULL: no daemon answers. */
static json_t *
ask_status(const char *path)
{
	struct ask ask = { .fd = -1 };
	json_t *answer = ask_try(&ask, path) == 0 ? ask_once(&ask, json_pack("{s:s}", "cmd", "status")) : NULL;

	ask_close(&ask);
	return answer;
}

/* Until the new daemon answers, or the old one has given up. */
static int
run_upgrade(struct ask *ask, const struct settings *s, const struct command *command)
{
	static const struct timespec pause = { .tv_nsec = UPGRADE_LOOK_NS };
	uint64_t until_ns = clock_now_ns() + UPGRADE_LIMIT_S * (uint64_t)CLOCK_NS_PER_S;
	json_t *answer = ask_once(ask, make_request(s, command));

	if (answer == NULL)
		return CLI_FAILED;
	json_int_t pid = json_integer_value(json_object_get(answer, "upgrade"));
	json_decref(answer);
	while (clock_now_ns() < until_ns) {
		json_t *status = ask_status(ask->path), *now = json_object_get(status, "status");
		json_int_t serving = json_integer_value(json_object_get(now, "pid"));
		int under_way = json_is_true(json_object_get(now, "upgrading"));
		json_decref(status);
		if (serving == pid) {
			if (s->json)
				printf("{\"ok\":true,\"upgrade\":%lld}\n", (long long)pid);
			else
				printf("upgraded: process %lld serves now\n", (long long)pid);
			return flush_output();
		}
		if (serving != 0 && !under_way) {
			cli_error(
			    "the new daemon (process %lld) did not take over; process %lld goes on: its log "
			    "says why",
			    (long long)pid, (long long)serving);
			return CLI_FAILED;
		}
		clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL);
	}
	cli_error("the new daemon (process %lld) does not answer after %d s", (long long)pid, UPGRADE_LIMIT_S);
	return CLI_FAILED;
}

int
main(int argc, char **argv)
{
	struct settings s = { .path = NULL };
	struct ask ask = { .fd = -1 };
	int status;

	cli_init("tidegatectl");
	const struct command *command = parse(&s, argc, argv);
	if (ask_open(&ask, s.path) != 0)
		return CLI_FAILED;
	if ((command->features & CTL_EVENTS) != 0)
		status = run_events(&ask, &s, command);
	else if ((command->features & CTL_UPGRADE) != 0)
		status = run_upgrade(&ask, &s, command);
	else if (s.watch_s > 0)
		status = run_watch(&ask, &s, command);
	else
		status = run_once(&ask, &s, command);
	ask_close(&ask);
	return status;
}
