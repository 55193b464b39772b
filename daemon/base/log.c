#include "log.h"

#include "shm/error.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static _Atomic enum log_level lowest = LOG_LEVEL_INFO;
static atomic_int log_fd = STDERR_FILENO;
static atomic_uint lost; /* lines a full pipe did not take */
static _Atomic(struct log_tap *) log_tap;

static const char *const words[] = {
#define X(name, word) word,
	LOG_LEVELS(X)
#undef X
};

#define LEVELS (sizeof(words) / sizeof(words[0]))

void
log_set_level(enum log_level level)
{
	atomic_store_explicit(&lowest, level, memory_order_relaxed);
}

enum log_level
log_get_level(void)
{
	return atomic_load_explicit(&lowest, memory_order_relaxed);
}

int
log_level_parse(const char *word, enum log_level *level)
{
	for (unsigned i = 0; i < LEVELS; i++)
		if (strcmp(word, words[i]) == 0) {
			*level = (enum log_level)i;
			return 0;
		}
	return -TG_EINVAL;
}

const char *
log_level_word(enum log_level level)
{
	return (unsigned)level < LEVELS ? words[level] : "none";
}

void
log_set_fd(int fd)
{
	atomic_store_explicit(&log_fd, fd, memory_order_relaxed);
}

void
log_set_tap(struct log_tap *tap)
{
	atomic_store_explicit(&log_tap, tap, memory_order_release);
}

/* Who listens to such an event, or NULL. */
static struct log_tap *
tap_of(enum log_level level, const char *event)
{
	struct log_tap *tap = atomic_load_explicit(&log_tap, memory_order_acquire);

	return tap != NULL && (level <= LOG_LEVEL_INFO || strcmp(event, "link_state") == 0) ? tap : NULL;
}

/* The length of the printable UTF-8 character at text, or 0. */
static size_t
printable(const unsigned char *text, size_t len)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800, 0x10000 };
	unsigned char c = text[0];
	size_t bytes = c < 0x80 ? 1 : c < 0xc2 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf5 ? 4 : 0;

	if (bytes == 1)
		return c >= 0x20 && c != 0x7f;
	if (bytes == 0 || bytes > len)
		return 0;
	uint32_t code = c & (0x7fu >> bytes);
	for (size_t i = 1; i < bytes; i++) {
		if ((text[i] & 0xc0) != 0x80)
			return 0;
		code = code << 6 | (text[i] & 0x3fu);
	}
	/* Overlong forms, surrogates, C1 controls, and what turns the direction of a line round. */
	if (code < least[bytes] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) || code < 0xa0 ||
	    (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069))
		return 0;
	return bytes;
}

static int
is_plain(const char *text, size_t len, size_t size)
{
	if (len == 0 || len >= size)
		return 0;
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];
		if (c <= ' ' || c >= 0x7f || c == '"' || c == '=' || c == '\\')
			return 0;
	}
	return 1;
}

const char *
log_quote(char *buffer, size_t size, const char *text, size_t len)
{
	static const char end[] = "...\"";
	size_t used = 0, safe = 1; /* safe: up to there, "..." still fits behind */

	if (text == NULL)
		len = 0;
	if (is_plain(text, len, size)) {
		memcpy(buffer, text, len);
		buffer[len] = '\0';
		return buffer;
	}
	buffer[used++] = '"';
	for (size_t i = 0, step; i < len; i += step) {
		const char *from = text + i;
		size_t bytes = printable((const unsigned char *)from, len - i);
		char escaped[8];

		step = bytes > 0 ? bytes : 1;
		if (*from == '"' || *from == '\\')
			bytes = (size_t)snprintf(escaped, sizeof(escaped), "\\%c", *from);
		else if (*from == '\n' || *from == '\r' || *from == '\t')
			bytes = (size_t)snprintf(escaped, sizeof(escaped), "\\%c",
			    *from == '\n'   ? 'n'
			    : *from == '\r' ? 'r'
					    : 't');
		else if (bytes == 0)
			bytes = (size_t)snprintf(escaped, sizeof(escaped), "\\x%02x", (unsigned char)*from);
		else
			memcpy(escaped, from, bytes);
		if (used + bytes + 2 > size) {
			memcpy(buffer + safe, end, sizeof(end));
			return buffer;
		}
		memcpy(buffer + used, escaped, bytes);
		used += bytes;
		if (used + sizeof(end) <= size)
			safe = used;
	}
	buffer[used++] = '"';
	buffer[used] = '\0';
	return buffer;
}

/* Where the last whole pair that ends at or before `limit` ends: blanks inside quotes end nothing. */
static size_t
last_pair(const char *line, size_t limit)
{
	size_t end = 0;
	int quoted = 0;

	for (size_t i = 0; i < limit; i++) {
		if (quoted && line[i] == '\\')
			i++;
		else if (line[i] == '"')
			quoted = !quoted;
		else if (!quoted && line[i] == ' ')
			end = i;
	}
	return end;
}

/*
 * Whether a line can be written without waiting for whoever reads. O_NONBLOCK would do, but it is of
 * the description, which we share with our parent's terminal or shell. A pipe that polls as writable
 * has PIPE_BUF bytes of room, a socket more.
 */
static int
has_room(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	if (poll(&p, 1, 0) > 0 && (p.revents & POLLOUT) != 0)
		return 1;
	errno = EAGAIN;
	return 0;
}

static void
write_line(char *line, size_t len, unsigned gone)
{
	int fd = atomic_load_explicit(&log_fd, memory_order_relaxed);
	ssize_t n;

	do
		n = has_room(fd) ? write(fd, line, len) : -1;
	while (n < 0 && errno == EINTR);
	/* A log nobody reads must not stop the loop: the line is gone, and the next one says so (in place
	 * of this one, which was to tell of `gone` others). */
	if (n < 0)
		atomic_fetch_add_explicit(&lost, gone + 1, memory_order_relaxed);
}

static void __attribute__((format(printf, 4, 0)))
log_args(enum log_level level, const char *event, uint64_t suppressed, const char *format, va_list args)
{
	static const char cut[] = " cut=1";
	char line[LOG_LINE];
	struct timespec now;
	struct tm utc;
	int saved = errno;
	int wanted = level <= log_get_level();
	unsigned gone = wanted ? atomic_exchange_explicit(&lost, 0, memory_order_relaxed) : 0;
	struct log_tap *tap = tap_of(level, event);

	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	size_t used = strftime(line, sizeof(line), "ts=%Y-%m-%dT%H:%M:%S", &utc);
	used += (size_t)snprintf(line + used, sizeof(line) - used, ".%03ldZ level=%s event=%.64s",
	    now.tv_nsec / 1000000, log_level_word(level), event);
	if (suppressed > 0)
		used += (size_t)snprintf(line + used, sizeof(line) - used, " suppressed=%" PRIu64, suppressed);
	if (gone > 0)
		used += (size_t)snprintf(line + used, sizeof(line) - used, " lost=%u", gone);
	if (format[0] != '\0') {
		line[used++] = ' ';
		int len = vsnprintf(line + used, sizeof(line) - used, format, args);
		if (len > 0 && used + (size_t)len + 1 > sizeof(line)) {
			used = last_pair(line, sizeof(line) - sizeof(cut) - 1);
			memcpy(line + used, cut, sizeof(cut) - 1);
			used += sizeof(cut) - 1;
		} else if (len > 0) {
			used += (size_t)len;
		}
	}
	for (size_t i = 0; i < used; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	if (tap != NULL)
		tap->line(tap, level, line, used);
	line[used++] = '\n';
	if (wanted)
		write_line(line, used, gone);
	errno = saved;
}

void
log_event(enum log_level level, const char *event, const char *format, ...)
{
	va_list args;

	if (level > log_get_level() && tap_of(level, event) == NULL)
		return;
	va_start(args, format);
	log_args(level, event, 0, format, args);
	va_end(args);
}

int
log_limit_take(struct log_limit *limit, uint64_t now_ns)
{
	/* A bucket of LOG_BURST, kept as the moment it is full again. */
	uint64_t from = limit->full_ns > now_ns ? limit->full_ns : now_ns;

	if (from - now_ns > (LOG_BURST - 1) * LOG_EVERY_NS) {
		limit->suppressed++;
		return 0;
	}
	limit->full_ns = from + LOG_EVERY_NS;
	return 1;
}

void
log_limited(struct log_limit *limit, enum log_level level, const char *event, const char *format, ...)
{
	struct timespec now;
	va_list args;

	if (level > log_get_level())
		return;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	if (!log_limit_take(limit, (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec))
		return;
	va_start(args, format);
	log_args(level, event, limit->suppressed, format, args);
	va_end(args);
	limit->suppressed = 0;
}

void
log_limit_flush(struct log_limit *limit, enum log_level level, const char *event)
{
	if (limit->suppressed > 0)
		log_event(level, event, "suppressed=%" PRIu64, limit->suppressed);
	limit->suppressed = 0;
}
