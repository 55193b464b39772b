#include "build_config.h"

#include "record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLUSH_BYTES (1u << 20) /* more than this is not gathered */
#define KEEP_BYTES (8u << 20)  /* a buffer larger than this was for one huge message and is given back */

int
record_init(struct record *record, const char *path, enum record_format format)
{
	memset(record, 0, sizeof(*record));
	record->fd = -1;
	record->path = path;
	record->format = format;
	if (!path)
		return 0;
	/* Appending: a broker that was stopped and comes back keeps what it had. */
	record->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
	return record->fd < 0 ? -errno : 0;
}

void
record_fini(struct record *record)
{
	if (record->fd >= 0)
		close(record->fd);
	record->fd = -1;
	free(record->data);
	record->data = NULL;
	record->len = record->cap = 0;
}

static char *
room(struct record *record, size_t more)
{
	if (record->cap - record->len < more) {
		size_t cap = record->cap ? record->cap : 64u << 10;
		while (cap - record->len < more)
			cap *= 2;
		char *data = realloc(record->data, cap);
		if (!data) {
			fprintf(stderr, "tidegate-sink: no memory for %zu bytes of record\n", cap);
			exit(1);
		}
		record->data = data;
		record->cap = cap;
	}
	return record->data + record->len;
}

/* Whether a byte is written without an escape. Bytes above 0x7f are: topics and most bodies are UTF-8. */
static inline bool
plain(uint8_t byte, bool in_header)
{
	if (byte < 0x20 || byte == 0x7f || byte == '\\')
		return false;
	return !in_header || (byte != '=' && byte != ';');
}

/* Eight bytes at once: true if none of them is below 0x20, 0x7f or a backslash. Zero-byte trick on each. */
static inline bool
plain8(const uint8_t *bytes)
{
	const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
	uint64_t w;

	memcpy(&w, bytes, sizeof(w));
	uint64_t del = w ^ (ones * 0x7f), back = w ^ (ones * '\\');
	uint64_t bad = ((w - ones * 0x20) & ~w) | ((del - ones) & ~del) | ((back - ones) & ~back);
	return (bad & highs) == 0;
}

static char *
escape_byte(char *to, uint8_t byte)
{
	static const char hex[] = "0123456789abcdef";

	*to++ = '\\';
	switch (byte) {
	case '\t':
		*to++ = 't';
		break;
	case '\n':
		*to++ = 'n';
		break;
	case '\r':
		*to++ = 'r';
		break;
	case '\\':
		*to++ = '\\';
		break;
	default:
		*to++ = 'x';
		*to++ = hex[byte >> 4];
		*to++ = hex[byte & 15];
	}
	return to;
}

/* The caller has made room for four times the length. */
static char *
escape(char *to, struct record_view view, bool in_header)
{
	if (view.len == 0)
		return to; /* an absent one has no address either */
	const uint8_t *at = view.bytes, *end = view.bytes + view.len;

	while (at < end) {
		if (!in_header && end - at >= 8 && plain8(at)) {
			memcpy(to, at, 8);
			to += 8;
			at += 8;
		} else if (plain(*at, in_header)) {
			*to++ = (char)*at++;
		} else {
			to = escape_byte(to, *at++);
		}
	}
	return to;
}

static char *
decimal(char *to, uint64_t n)
{
	char digits[20];
	int count = 0;

	do
		digits[count++] = (char)('0' + n % 10);
	while (n /= 10);
	while (count > 0)
		*to++ = digits[--count];
	return to;
}

static char *
columns(char *to, const struct record_message *message, uint64_t time_ns, uint64_t conn, uint64_t seq)
{
	to = decimal(to, time_ns);
	*to++ = '\t';
	to = decimal(to, conn);
	*to++ = '\t';
	to = decimal(to, seq);
	*to++ = '\t';
	*to++ = (char)('0' + message->qos);
	*to++ = '\t';
	if (message->dup)
		*to++ = 'd';
	if (message->retain)
		*to++ = 'r';
	if (!message->dup && !message->retain)
		*to++ = '-';
	*to++ = '\t';
	to = escape(to, message->topic, false);
	*to++ = '\t';
	to = escape(to, message->key, false);
	*to++ = '\t';
	for (size_t i = 0; i < message->header_count; i++) {
		if (i > 0)
			*to++ = ';';
		to = escape(to, message->headers[i].name, true);
		*to++ = '=';
		to = escape(to, message->headers[i].value, true);
	}
	*to++ = '\t';
	return to;
}

void
record_add(
    struct record *record, const struct record_message *message, uint64_t time_ns, uint64_t conn, uint64_t seq)
{
	size_t need = message->body.len;

	if (record->fd < 0 || record->error)
		return;
	if (record->format == RECORD_FULL) {
		need += message->topic.len + message->key.len;
		for (size_t i = 0; i < message->header_count; i++)
			need += message->headers[i].name.len + message->headers[i].value.len + 2;
	}
	char *to = room(record, need * 4 + 128);
	if (record->format == RECORD_FULL)
		to = columns(to, message, time_ns, conn, seq);
	to = escape(to, message->body, false);
	*to++ = '\n';
	record->len = (size_t)(to - record->data);
	record->waiting++;
	if (record->len >= FLUSH_BYTES)
		record_flush(record);
}

static void
broke(struct record *record, int error, off_t size)
{
	record->error = error;
	/* Half a line would be compared with a whole one. None of this batch is answered. */
	if (size >= 0 && ftruncate(record->fd, size) < 0)
		fprintf(stderr, "tidegate-sink: record %s: cannot cut off a partial line: %s\n", record->path,
		    strerror(errno));
	fprintf(stderr, "tidegate-sink: record %s: %s; no message is answered from now on\n", record->path,
	    strerror(error));
}

int
record_flush(struct record *record)
{
	size_t done = 0;
	off_t size = -1;

	if (record->error)
		return -1;
	while (done < record->len) {
		ssize_t n = write(record->fd, record->data + done, record->len - done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int error = errno;
			struct stat stat;
			if (done > 0 && fstat(record->fd, &stat) == 0 && S_ISREG(stat.st_mode))
				size = stat.st_size - (off_t)done;
			broke(record, error, size);
			return -1;
		}
		done += (size_t)n;
	}
	record->len = 0;
	record->lines += record->waiting;
	record->waiting = 0;
	if (record->cap > KEEP_BYTES) {
		free(record->data);
		record->data = NULL;
		record->cap = 0;
	}
	return 0;
}
