/*
 * Messages out of files: lines, NUL separated pieces, or each file whole.
 *
 * Memory is bounded by the largest message that may be sent: a longer one is measured while it is
 * read past, and reported instead. Nothing blocks but input_fill(), which is one read().
 *
 *	while ((what = input_next(&in, &item)) != INPUT_END)
 *		if (what == INPUT_MORE)
 *			input_fill(&in);       (items handed out so far are void after it)
 *
 * Owner: the caller; one thread.
 */
#ifndef TG_PUB_INPUT_H
#define TG_PUB_INPUT_H

#include <stddef.h>
#include <stdint.h>

enum input_mode {
	INPUT_LINES,     /* each ends with LF or CR LF */
	INPUT_LINES_RAW, /* with LF; a CR in front of it is part of the line */
	INPUT_NUL,
	INPUT_WHOLE,
};

enum input_result {
	INPUT_ITEM,     /* a message */
	INPUT_MORE,     /* none in memory: input_fill() */
	INPUT_TOO_LONG, /* one was read past: item->len is its length, item->bytes NULL */
	INPUT_ERROR,    /* a file could not be opened or read: in->error; the next call goes on */
	INPUT_END
};

struct input_item {
	const uint8_t *bytes; /* in the input's buffer, good until input_fill() */
	size_t len;
	uint64_t number; /* of this message among all of the input, from 0 */
};

struct input_mark {
	uint64_t first; /* number of the file's first message */
	const char *name;
};

struct input {
	const char *const *files;
	size_t file_count;
	size_t file_next;
	enum input_mode mode;
	size_t limit; /* longest message, bytes */
	int fd;       /* -1: none open */
	int eof;
	int regular; /* fd never blocks */
	const char *name;
	uint8_t *buffer;
	size_t capacity, start, scanned, end;
	uint64_t dropped;     /* bytes of a too long message already read past */
	int dropped_cr;       /* the last of them is a CR */
	uint64_t number;      /* of the next message */
	uint64_t read_bytes;  /* so far, of all files */
	uint64_t total_bytes; /* of all files; 0: not known */
	struct input_mark *marks;
	size_t mark_count;
	char error[512];
};

/*
 * files: names, "-" for standard input; borrowed, as long as the input lives. limit: the longest
 * message in bytes, at least 1. Returns 0, or -1 without memory.
 */
int input_init(struct input *in, const char *const *files, size_t count, enum input_mode mode, size_t limit);

/* One message that is in memory already: text, which may be empty. Copied. Returns 0 or -1. */
int input_init_text(struct input *in, const char *text, size_t limit);
void input_fini(struct input *in);

enum input_result input_next(struct input *in, struct input_item *item);

/* The descriptor to wait for before input_fill(); -1: it will not block. */
int input_wait_fd(const struct input *in);

/* One read(). A failure is told by the next input_next(). */
void input_fill(struct input *in);

/* Name of the file a message number came from, and its line (or piece) in it, from 1. */
const char *input_locate(const struct input *in, uint64_t number, uint64_t *line);

#endif
