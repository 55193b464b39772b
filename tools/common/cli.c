#include "tools/common/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OPTIONS_MAX 64

static const char *program_name = "tidegate";
static int progress_shown;

static void
take_standard_descriptors(void)
{
	/* The wrong way round: calls that fail with a closed descriptor fail with these. Errors just have nowhere to go. */
	static const int ways[] = {
		[STDIN_FILENO] = O_WRONLY, [STDOUT_FILENO] = O_RDONLY, [STDERR_FILENO] = O_WRONLY
	};

	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		if (fcntl(fd, F_GETFD) < 0 && errno == EBADF && open("/dev/null", ways[fd]) != fd)
			_exit(CLI_FAILED);
}

/* A full disk shows when the buffer is written. _exit: this is one of exit's own functions. */
static void
check_output(void)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return;
	if (errno != EPIPE)
		cli_error("standard output: %s", strerror(errno));
	_exit(CLI_FAILED);
}

void
cli_init(const char *program)
{
	program_name = program;
	take_standard_descriptors();
	atexit(check_output);
}

void
cli_error(const char *format, ...)
{
	va_list args;

	cli_progress_end();
	fprintf(stderr, "%s: ", program_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
}

void
cli_usage_error(const char *format, ...)
{
	va_list args;

	fprintf(stderr, "%s: ", program_name);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fprintf(stderr, "\nTry '%s --help'.\n", program_name);
	exit(CLI_USAGE);
}

uint64_t
cli_number(const char *option, enum units kind, const char *text, uint64_t min, uint64_t max)
{
	uint64_t value;

	if (units_parse(kind, text, &value) != 0)
		cli_usage_error("%s: \"%s\" is not a number (such as %s)", option, text, units_example(kind));
	if (value < min || value > max)
		cli_usage_error("%s: %s is out of range: %" PRIu64 " to %" PRIu64, option, text, min, max);
	return value;
}

int
cli_next(int argc, char **argv, const struct cli_option *options)
{
	struct option longs[OPTIONS_MAX + 1];
	char shorts[2 * OPTIONS_MAX + 2];
	size_t i, at = 0;
	int letter, index;

	shorts[at++] = ':'; /* errors are ours to word */
	for (i = 0; i < OPTIONS_MAX && options[i].name != NULL; i++) {
		longs[i] = (struct option){ .name = options[i].name,
			.has_arg = options[i].argument != NULL ? required_argument : no_argument,
			.val = options[i].letter };
		if (options[i].letter > 255)
			continue;
		shorts[at++] = (char)options[i].letter;
		if (options[i].argument != NULL)
			shorts[at++] = ':';
	}
	longs[i] = (struct option){ 0 };
	shorts[at] = '\0';
	opterr = 0;
	index = optind;
	letter = getopt_long(argc, argv, shorts, longs, NULL);
	if (letter != '?' && letter != ':')
		return letter;
	/* Inside a group of letters optind has not moved on; the word is then still the one at index. */
	if (letter == ':')
		cli_usage_error("option %s needs a value", argv[optind - 1]);
	if (optopt > 0 && optopt < 256)
		cli_usage_error("unknown option -%c", optopt);
	cli_usage_error("unknown option %s", argv[index < optind ? optind - 1 : index]);
}

void
cli_help_options(FILE *out, const struct cli_option *options)
{
	char left[80];
	size_t i;

	for (i = 0; options[i].name != NULL; i++) {
		const struct cli_option *o = &options[i];
		int len = 0;

		if (o->help == NULL)
			continue;
		if (o->letter < 256)
			len = snprintf(left, sizeof(left), "-%c, --%s", o->letter, o->name);
		else
			len = snprintf(left, sizeof(left), "    --%s", o->name);
		if (o->argument != NULL && len > 0 && (size_t)len < sizeof(left))
			snprintf(left + len, sizeof(left) - (size_t)len, " %s", o->argument);
		fprintf(out, "  %-28s %s\n", left, o->help);
	}
}

int
cli_progress_wanted(void)
{
	static int wanted = -1;

	if (wanted < 0)
		wanted = isatty(STDERR_FILENO) && getenv("TERM") != NULL && strcmp(getenv("TERM"), "dumb") != 0;
	return wanted;
}

void
cli_progress(const char *format, ...)
{
	va_list args;

	if (!cli_progress_wanted())
		return;
	/* To the line's start, erase to its end; no line break, so that the next call writes over it. */
	fputs("\r\033[K", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fflush(stderr);
	progress_shown = 1;
}

void
cli_progress_end(void)
{
	if (!progress_shown)
		return;
	fputs("\r\033[K", stderr);
	fflush(stderr);
	progress_shown = 0;
}
