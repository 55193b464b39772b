#include "config_source.h"

#include "config_node.h"
#include "shm/error.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int
config_file_read(const char *path, size_t max, char **bytes, size_t *len)
{
	size_t size = 4096, used = 0;
	char *buffer = NULL;
	int saved = 0, error = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);

	if (fd < 0)
		return -TG_ESYSTEM;
	buffer = malloc(size);
	for (;;) {
		if (buffer == NULL) {
			error = -TG_ENOMEM;
			break;
		}
		ssize_t n = read(fd, buffer + used, size - used - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			saved = errno;
			error = -TG_ESYSTEM;
			break;
		}
		used += (size_t)n;
		if (used > max) {
			saved = EFBIG;
			error = -TG_ESYSTEM;
			break;
		}
		if (n == 0)
			break;
		if (size - used - 1 == 0) {
			/* A new block and not realloc, which would leave a secret's first half behind. */
			char *bigger = malloc(size * 2);
			if (bigger != NULL)
				memcpy(bigger, buffer, used);
			explicit_bzero(buffer, used);
			free(buffer);
			buffer = bigger;
			size *= 2;
		}
	}
	close(fd);
	if (error != 0) {
		if (buffer != NULL)
			explicit_bzero(buffer, used);
		free(buffer);
		errno = saved;
		return error;
	}
	buffer[used] = '\0';
	*bytes = buffer;
	*len = used;
	return 0;
}

char *
config_path_beside(const char *beside, const char *path)
{
	const char *slash = strrchr(beside, '/');
	char *joined = NULL;

	if (path[0] == '/' || slash == NULL)
		return strdup(path);
	if (asprintf(&joined, "%.*s/%s", (int)(slash - beside), beside, path) < 0)
		return NULL;
	return joined;
}

static int
append(struct config_source *source, const char *bytes, size_t len)
{
	if (source->size - source->len <= len) {
		size_t size = source->size * 2 + len + 1;
		char *text = realloc(source->text, size);
		if (text == NULL)
			return -TG_ENOMEM;
		source->text = text;
		source->size = size;
	}
	memcpy(source->text + source->len, bytes, len);
	source->len += len;
	source->text[source->len] = '\0';
	for (size_t i = 0; i < len; i++)
		source->lines += bytes[i] == '\n';
	return 0;
}

/* The text appended next begins at `line` of `file`. */
static int
mark_origin(struct config_source *source, const char *file, unsigned line)
{
	if (source->origin_count == source->origin_size) {
		unsigned size = source->origin_size * 2 + 8;
		struct config_origin *origins = realloc(source->origins, size * sizeof(*origins));
		if (origins == NULL)
			return -TG_ENOMEM;
		source->origins = origins;
		source->origin_size = size;
	}
	source->origins[source->origin_count++] =
	    (struct config_origin){ .at = source->lines + 1, .line = line, .file = file };
	return 0;
}

/* The file being copied. */
struct reader {
	struct config_source *source;
	struct config_report *report;
	const char *file;
	const char *at;
	const char *end;
	unsigned line;
	unsigned depth;
};

static int read_file(
    struct config_source *source, const char *path, const struct reader *from, struct config_report *report);

/* Copies up to `to`, counting lines. */
static int
copy_to(struct reader *reader, const char *to)
{
	const char *from = reader->at;

	for (const char *at = from; at < to; at++)
		reader->line += *at == '\n';
	reader->at = to;
	return append(reader->source, from, (size_t)(to - from));
}

static int
copy_string(struct reader *reader)
{
	const char *at = reader->at + 1;

	while (at < reader->end && *at != '"')
		at += *at == '\\' && at + 1 < reader->end ? 2 : 1;
	if (at >= reader->end)
		return config_report_error(
		    reader->report, reader->file, reader->line, "this string has no closing \"");
	return copy_to(reader, at + 1);
}

static int
copy_block_comment(struct reader *reader)
{
	const char *close = memmem(reader->at + 2, (size_t)(reader->end - reader->at) - 2, "*/", 2);

	if (close == NULL)
		return config_report_error(
		    reader->report, reader->file, reader->line, "this comment has no closing */");
	return copy_to(reader, close + 2);
}

/* A number, or a name: anything libconfig takes as one word. */
static int
copy_word(struct reader *reader)
{
	const char *start = reader->at, *end = start;
	char digits[72];

	if (*end == '+' || *end == '-')
		end++;
	while (
	    end < reader->end && (isalnum((unsigned char)*end) || *end == '_' || *end == '.' || *end == '*' ||
				     ((*end == '-' || *end == '+') &&
					 (end[-1] == 'e' || end[-1] == 'E' || isalpha((unsigned char)*start)))))
		end++;
	if (end == start)
		end++;
	size_t len = (size_t)(end - start);
	int error = copy_to(reader, end);
	if (error != 0 || isalpha((unsigned char)*start) || len >= sizeof(digits))
		return error;

	memcpy(digits, start, len);
	digits[len] = '\0';
	size_t plain = len;
	while (plain > 0 && digits[plain - 1] == 'L')
		plain--;
	int suffixed = plain < len;
	digits[plain] = '\0';
	int hex = digits[0] == '0' && (digits[1] == 'x' || digits[1] == 'X');
	char *rest = digits;
	errno = 0;
	long long value = strtoll(digits, &rest, hex ? 16 : 10);
	if (rest == digits || *rest != '\0')
		return 0; /* no whole number: libconfig's to judge */
	if (errno == ERANGE)
		return config_report_error(reader->report, reader->file, reader->line,
		    "%s is not allowed: a whole number from %lld to %lld", digits, LLONG_MIN, LLONG_MAX);
	if (!suffixed && (value > INT32_MAX || value < INT32_MIN))
		return append(reader->source, "L", 1);
	return 0;
}

/* At an @include in the first column: puts the file in its place. Returns 1 when it is none. */
static int
copy_include(struct reader *reader)
{
	static const char word[] = "@include";
	const char *at = reader->at;
	char *name = NULL, *path = NULL;
	int error;

	if ((size_t)(reader->end - at) < sizeof(word) || memcmp(at, word, sizeof(word) - 1) != 0)
		return 1;
	at += sizeof(word) - 1;
	while (at < reader->end && (*at == ' ' || *at == '\t'))
		at++;
	const char *open = at < reader->end && *at == '"' ? at + 1 : NULL;
	const char *line_end = memchr(at, '\n', (size_t)(reader->end - at));
	const char *close =
	    open == NULL ? NULL
			 : memchr(open, '"', (size_t)((line_end == NULL ? reader->end : line_end) - open));
	if (close == NULL)
		return config_report_error(reader->report, reader->file, reader->line,
		    "@include is not followed by a file name in double quotes");
	name = strndup(open, (size_t)(close - open));
	path = name == NULL ? NULL : config_path_beside(reader->file, name);
	if (path == NULL)
		error = -TG_ENOMEM;
	else if (reader->depth >= CONFIG_SOURCE_DEPTH)
		error = config_report_error(reader->report, reader->file, reader->line,
		    "@include \"%s\": files include each other more than %u deep", name, CONFIG_SOURCE_DEPTH);
	else
		error = read_file(reader->source, path, reader, reader->report);
	if (error == 0)
		error = mark_origin(reader->source, reader->file, reader->line);
	reader->at = close + 1;
	free(name);
	free(path);
	return error;
}

static int
copy_text(struct reader *reader)
{
	int fresh = 1, error = 0; /* fresh: only blanks so far in this line */

	while (error == 0 && reader->at < reader->end) {
		char c = *reader->at, next = reader->at + 1 < reader->end ? reader->at[1] : '\0';

		if (c == '@' && fresh) {
			error = copy_include(reader);
			if (error == 1)
				error = copy_to(reader, reader->at + 1);
		} else if (c == '#' || (c == '/' && next == '/')) {
			const char *newline = memchr(reader->at, '\n', (size_t)(reader->end - reader->at));
			error = copy_to(reader, newline == NULL ? reader->end : newline);
		} else if (c == '/' && next == '*') {
			error = copy_block_comment(reader);
		} else if (c == '"') {
			error = copy_string(reader);
		} else if (isalnum((unsigned char)c) || c == '.' ||
			   ((c == '-' || c == '+') && (isdigit((unsigned char)next) || next == '.'))) {
			error = copy_word(reader);
		} else {
			error = copy_to(reader, reader->at + 1);
		}
		fresh = c == '\n' || (fresh && (c == ' ' || c == '\t'));
	}
	return error;
}

static int
read_file(
    struct config_source *source, const char *path, const struct reader *from, struct config_report *report)
{
	char *bytes = NULL, *name = NULL;
	size_t len = 0,
	       left = CONFIG_SOURCE_MAX - (source->len < CONFIG_SOURCE_MAX ? source->len : CONFIG_SOURCE_MAX);
	int error;

	if (source->file_count == CONFIG_SOURCE_FILES)
		return config_report_error(report, from == NULL ? path : from->file,
		    from == NULL ? 0 : from->line, "more than %u files are included", CONFIG_SOURCE_FILES);
	name = strdup(path);
	if (name == NULL)
		return -TG_ENOMEM;
	source->files[source->file_count++] = name;
	error = config_file_read(path, left, &bytes, &len);
	if (error == -TG_ESYSTEM) {
		const char *why = strerrordesc_np(errno);
		char too_long[80];

		if (errno == EFBIG) {
			snprintf(too_long, sizeof(too_long), "the configuration is longer than %u bytes",
			    CONFIG_SOURCE_MAX);
			why = too_long;
		}
		if (why == NULL)
			why = "unknown error";
		if (from == NULL)
			return config_report_error(report, path, 0, "cannot be read: %s", why);
		return config_report_error(
		    report, from->file, from->line, "@include: %s cannot be read: %s", path, why);
	}
	if (error != 0)
		return error;

	struct reader reader = { .source = source,
		.report = report,
		.file = name,
		.at = bytes,
		.end = bytes + len,
		.line = 1,
		.depth = from == NULL ? 1 : from->depth + 1 };
	const char *zero = memchr(bytes, '\0', len);
	if (zero != NULL) {
		for (const char *at = bytes; at < zero; at++)
			reader.line += *at == '\n';
		error = config_report_error(report, name, reader.line, "a zero byte is not allowed: text only");
	} else {
		if (len >= 3 && memcmp(bytes, "\xef\xbb\xbf", 3) == 0)
			reader.at += 3; /* a byte order mark some editors leave */
		error = mark_origin(source, name, 1);
		if (error == 0)
			error = copy_text(&reader);
		if (error == 0 && len > 0 && bytes[len - 1] != '\n')
			error = append(source, "\n", 1);
	}
	free(bytes);
	return error;
}

int
config_source_read(struct config_source *source, const char *file, struct config_report *report)
{
	memset(source, 0, sizeof(*source));
	int error = append(source, "", 0);
	return error != 0 ? error : read_file(source, file, NULL, report);
}

void
config_source_fini(struct config_source *source)
{
	for (unsigned i = 0; i < source->file_count; i++)
		free(source->files[i]);
	free(source->origins);
	free(source->text);
	memset(source, 0, sizeof(*source));
}

void
config_source_where(const struct config_source *source, unsigned at, const char **file, unsigned *line)
{
	unsigned low = 0, high = source->origin_count;

	while (low + 1 < high) {
		unsigned middle = low + (high - low) / 2;
		if (source->origins[middle].at <= at)
			low = middle;
		else
			high = middle;
	}
	if (source->origin_count == 0)
		return;
	*file = source->origins[low].file;
	*line = at < source->origins[low].at ? source->origins[low].line
					     : source->origins[low].line + (at - source->origins[low].at);
}
