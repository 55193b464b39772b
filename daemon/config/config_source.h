/*
 * The text of a configuration: the main file with everything it includes put in its place, made fit
 * for libconfig, and a map that finds the file and line any of it came from.
 *
 * Three things libconfig 1.5 does are not good enough for a file people write by hand, so the text
 * passes through here first:
 *   - 5000000000 without an L becomes 705032704, silently: an L is added where a number needs one,
 *     and a number that does not fit 64 bits is an error;
 *   - an @include is looked up in the working directory: here, beside the file that has it;
 *   - an unterminated string is reported at the end of the file: here, where it begins.
 *
 * Owner: config_load's stack. Threads: one.
 */
#ifndef TG_DAEMON_CONFIG_SOURCE_H
#define TG_DAEMON_CONFIG_SOURCE_H

#include <stddef.h>

struct config_report;

#define CONFIG_SOURCE_MAX (1u << 20) /* bytes of all files together */
#define CONFIG_SOURCE_DEPTH 8u       /* files that include each other */
#define CONFIG_SOURCE_FILES 256u

/* From line `at` of the text on, lines are those of `file` from `line` on. Lines count from 1. */
struct config_origin {
	unsigned at;
	unsigned line;
	const char *file;
};

struct config_source {
	char *text; /* terminated */
	size_t len;
	size_t size;
	unsigned lines; /* complete ones so far */
	char *files[CONFIG_SOURCE_FILES];
	unsigned file_count;
	struct config_origin *origins;
	unsigned origin_count;
	unsigned origin_size;
};

/*
 * Reads a file and what it includes. Complaints go to report. Returns 0, -TG_EINVAL or -TG_ENOMEM;
 * *source is to be given to config_source_fini in every case.
 */
int config_source_read(struct config_source *source, const char *file, struct config_report *report);
void config_source_fini(struct config_source *source);

/* Where a line of the text came from. */
void config_source_where(const struct config_source *source, unsigned at, const char **file, unsigned *line);

/*
 * Reads a whole regular file or pipe of at most max bytes. Returns 0 with *bytes malloced (terminated;
 * *len without the terminator), -TG_ENOMEM, or -TG_ESYSTEM with errno set (EFBIG: longer than max).
 */
int config_file_read(const char *path, size_t max, char **bytes, size_t *len);

/* path itself when absolute, else beside the file `beside`. Malloced; NULL when out of memory. */
char *config_path_beside(const char *beside, const char *path);

#endif
