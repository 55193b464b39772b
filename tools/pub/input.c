#include "tools/pub/input.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES (64u << 10)

static const char *
shown_name(const char *name)
{
	return strcmp(name, "-") == 0 ? "standard input" : name;
}

/* The sum of all files' sizes, if every one has a size. */
static uint64_t
total_bytes(const char *const *files, size_t count)
{
	uint64_t sum = 0;
	struct stat st;
	size_t i;

	for (i = 0; i < count; i++) {
		int failed = strcmp(files[i], "-") == 0 ? fstat(STDIN_FILENO, &st) : stat(files[i], &st);

		if (failed || !S_ISREG(st.st_mode))
			return 0;
		sum += (uint64_t)st.st_size;
	}
	return sum;
}

int
input_init(struct input *in, const char *const *files, size_t count, enum input_mode mode, size_t limit)
{
	memset(in, 0, sizeof(*in));
	in->files = files;
	in->file_count = count;
	in->mode = mode;
	in->limit = limit;
	in->fd = -1;
	in->capacity = limit + READ_BYTES;
	in->buffer = malloc(in->capacity);
	in->marks = calloc(count + 1, sizeof(*in->marks));
	if (in->buffer == NULL || in->marks == NULL) {
		input_fini(in);
		return -1;
	}
	in->total_bytes = total_bytes(files, count);
	return 0;
}

int
input_init_text(struct input *in, const char *text, size_t limit)
{
	size_t len = strlen(text);

	if (input_init(in, NULL, 0, INPUT_WHOLE, len > limit ? len : limit) != 0)
		return -1;
	/* As if a file had been read whole. Its length is left to the lane to judge. */
	memcpy(in->buffer, text, len);
	in->end = len;
	in->fd = STDIN_FILENO;
	in->eof = 1;
	in->name = "message";
	in->marks[in->mark_count++] = (struct input_mark){ .first = 0, .name = in->name };
	return 0;
}

static void
close_file(struct input *in)
{
	if (in->fd > STDIN_FILENO)
		close(in->fd);
	in->fd = -1;
	in->eof = 0;
	in->start = in->scanned = in->end = 0;
	in->dropped = 0;
	in->dropped_cr = 0;
}

void
input_fini(struct input *in)
{
	if (in->buffer != NULL)
		close_file(in);
	free(in->buffer);
	free(in->marks);
	in->buffer = NULL;
	in->marks = NULL;
}

static enum input_result
open_next(struct input *in)
{
	const char *name = in->files[in->file_next++];
	struct stat st;

	in->name = shown_name(name);
	in->fd = strcmp(name, "-") == 0 ? STDIN_FILENO : open(name, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	if (in->fd < 0) {
		snprintf(in->error, sizeof(in->error), "%s: cannot open: %s", in->name, strerror(errno));
		return INPUT_ERROR;
	}
	in->regular = fstat(in->fd, &st) == 0 && S_ISREG(st.st_mode);
	if (in->mode == INPUT_WHOLE && in->regular && (uint64_t)st.st_size > in->limit) {
		/* Its length is known: no need to read past all of it. */
		in->dropped = (uint64_t)st.st_size;
		in->eof = 1;
	}
	in->marks[in->mark_count++] = (struct input_mark){ .first = in->number, .name = in->name };
	return INPUT_MORE;
}

static enum input_result
take(struct input *in, struct input_item *item, size_t len, size_t separator)
{
	/* Of CR LF the CR is taken off. */
	int ends_in_cr = len > 0 ? in->buffer[in->start + len - 1] == '\r' : in->dropped_cr;
	size_t cr = in->mode == INPUT_LINES && separator > 0 && ends_in_cr;
	uint64_t whole = in->dropped + len - cr;

	item->bytes = in->dropped == 0 && len - cr <= in->limit ? in->buffer + in->start : NULL;
	item->len = (size_t)whole;
	item->number = in->number++;
	in->start += len + separator;
	in->scanned = in->start;
	in->dropped = 0;
	in->dropped_cr = 0;
	return item->bytes != NULL ? INPUT_ITEM : INPUT_TOO_LONG;
}

enum input_result
input_next(struct input *in, struct input_item *item)
{
	size_t unseen, left;
	const uint8_t *found = NULL;
	enum input_result result;

	if (in->fd < 0)
		return in->file_next == in->file_count ? INPUT_END : open_next(in);
	unseen = in->end - in->scanned;
	if (in->mode != INPUT_WHOLE && unseen != 0)
		found = memchr(in->buffer + in->scanned, in->mode == INPUT_NUL ? '\0' : '\n', unseen);
	if (found != NULL)
		return take(in, item, (size_t)(found - in->buffer) - in->start, 1);
	in->scanned = in->end;
	if (in->eof == 0)
		return INPUT_MORE;
	if (in->eof < 0) {
		snprintf(in->error, sizeof(in->error), "%s: cannot read: %s", in->name, strerror(-in->eof));
		close_file(in);
		return INPUT_ERROR;
	}
	left = in->end - in->start;
	if (left == 0 && in->dropped == 0 && in->mode != INPUT_WHOLE) {
		/* It ended with a separator. */
		close_file(in);
		return INPUT_MORE;
	}
	/* The bytes stay where they are until input_fill() reads the next file. */
	result = take(in, item, left, 0);
	close_file(in);
	return result;
}

int
input_wait_fd(const struct input *in)
{
	return in->fd >= 0 && !in->regular ? in->fd : -1;
}

void
input_fill(struct input *in)
{
	ssize_t got;

	if (in->fd < 0 || in->eof != 0)
		return;
	if (in->end - in->start > in->limit + (in->mode == INPUT_LINES) || in->dropped != 0) {
		/* Too long already: only its length is still wanted. */
		if (in->end > in->start)
			in->dropped_cr = in->buffer[in->end - 1] == '\r';
		in->dropped += in->end - in->start;
		in->start = in->scanned = in->end = 0;
	}
	if (in->start != 0) {
		memmove(in->buffer, in->buffer + in->start, in->end - in->start);
		in->end -= in->start;
		in->scanned -= in->start;
		in->start = 0;
	}
	do
		got = read(in->fd, in->buffer + in->end, in->capacity - in->end);
	while (got < 0 && errno == EINTR && in->regular);
	if (got > 0) {
		in->end += (size_t)got;
		in->read_bytes += (uint64_t)got;
	} else if (got == 0) {
		in->eof = 1;
	} else if (errno != EINTR && errno != EAGAIN) {
		in->eof = -errno;
	}
}

const char *
input_locate(const struct input *in, uint64_t number, uint64_t *line)
{
	size_t i = in->mark_count;

	/* The last mark at or below: a file without messages shares its number with the next one. */
	while (i > 0 && in->marks[i - 1].first > number)
		i--;
	if (i == 0) {
		*line = number + 1;
		return "input";
	}
	*line = number - in->marks[i - 1].first + 1;
	return in->marks[i - 1].name;
}
