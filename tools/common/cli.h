/*
 * Shared by the command-line tools: errors, numbers with limits, options from one table.
 *
 * Exit codes: CLI_OK, CLI_FAILED (it ran and did not wholly succeed), CLI_USAGE.
 * cli_init() first. Not for threads.
 */
#ifndef TG_TOOLS_CLI_H
#define TG_TOOLS_CLI_H

#include "tools/common/units.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

/* One option for getopt_long, and its help. A table ends with name NULL. */
struct cli_option {
	const char *name;     /* long name */
	int letter;           /* short name, or a number above 255 for none */
	const char *argument; /* NULL: takes none */
	const char *help;     /* NULL: accepted, not shown */
};

/*
 * Before anything opens a descriptor. program: the name that starts every message; static storage. Closed
 * standard descriptors are taken, so that no socket becomes one: reading standard input then fails, as writing
 * standard output does. Output that standard output could not take at exit is an error, too.
 */
void cli_init(const char *program);

/* "program: text\n" on standard error, after removing the progress line if there is one. */
void cli_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* The same, with a pointer to --help, then exit(CLI_USAGE). */
_Noreturn void cli_usage_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A number with limits, or a usage error that names the option, the value and the limits. */
uint64_t cli_number(const char *option, enum units kind, const char *text, uint64_t min, uint64_t max);

/*
 * getopt_long over a table. Returns the letter of the next option with optarg set, -1 at the end
 * (optind is at the first operand). A bad option is a usage error.
 */
int cli_next(int argc, char **argv, const struct cli_option *options);

/* The table as help text. */
void cli_help_options(FILE *out, const struct cli_option *options);

/*
 * A line that is written over itself, on standard error and only if that is a terminal (else
 * nothing is shown). cli_progress_end() removes it; cli_error() does so by itself.
 */
int cli_progress_wanted(void);
void cli_progress(const char *format, ...) __attribute__((format(printf, 1, 2)));
void cli_progress_end(void);

#endif
