/*
 * The log: one line an event, logfmt, to stderr.
 *
 *   ts=2026-11-21T20:00:00.123Z level=info event=link_state pool=events link=3 to=READY
 *
 * The format given to log_event yields key=value pairs with one blank between them. A value that
 * comes from outside (a broker's text, a path, a topic) goes through log_quote; nothing else can be
 * quoted. Whatever is passed, one call writes one line of at most LOG_LINE bytes with one write(2), so
 * that lines of several threads and processes do not mix, and no value can forge a line or a key.
 *
 * Owner: the level, the descriptor and the tap are the process's, the only state here; stderr is one too.
 * Threads: any. A struct log_limit belongs to one thread.
 */
#ifndef TG_DAEMON_LOG_H
#define TG_DAEMON_LOG_H

#include <stddef.h>
#include <stdint.h>

/* X(NAME, word), the worst first. */
#define LOG_LEVELS(X)                                                                                          \
	X(ERROR, "error") /* something does not work and will not until someone acts */                        \
	X(WARN, "warn")   /* something went wrong and was dealt with */                                        \
	X(INFO, "info") /* what an operator wants to find later: every change of a link's or broker's state */ \
	X(DEBUG, "debug")

enum log_level {
#define X(name, word) LOG_LEVEL_##name,
	LOG_LEVELS(X)
#undef X
};

#define LOG_LINE 2048u /* below PIPE_BUF: a line goes into a pipe whole */

/* Events below the level cost one load. Default: LOG_LEVEL_INFO. */
void log_set_level(enum log_level level);
enum log_level log_get_level(void);

/* "error", "warn" ...: returns 0 and stores the level, or -TG_EINVAL. */
int log_level_parse(const char *word, enum log_level *level);
const char *log_level_word(enum log_level level);

/* Where lines go instead of stderr; the descriptor stays the caller's. */
void log_set_fd(int fd);

/*
 * Somebody who listens: gets each line of level info and above, and every link_state event, even when
 * the log's level is lower. line is called in whatever thread logs, without the line break, and must
 * not log. One at a time; NULL: nobody. It must outlive all threads that may log.
 */
struct log_tap {
	void (*line)(struct log_tap *tap, enum log_level level, const char *line, size_t len);
};

void log_set_tap(struct log_tap *tap);

/* format may be "" for an event without figures. A line that is too long loses its last pairs and ends
 * in cut=1. errno is left as it was. */
void log_event(enum log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Writes text as a logfmt value into buffer (size >= 8) and returns buffer: as it is when it is one
 * plain word, else in double quotes with \" \\ \n \r \t and \xNN for what is not UTF-8 or would move a
 * terminal. What does not fit is cut and ends in "...". text may be NULL: "".
 */
const char *log_quote(char *buffer, size_t size, const char *text, size_t len);

/*
 * Keeps what a peer can cause at will from flooding the log: LOG_BURST lines at once, one more every
 * LOG_EVERY_NS after that, the others counted; the next line that gets through says suppressed=N.
 * Zeroed is ready to use. One for each thing that may flood, in that thing's struct.
 */
#define LOG_BURST 10u
#define LOG_EVERY_NS UINT64_C(1000000000)

struct log_limit {
	uint64_t full_ns; /* when the burst will be whole again; 0: it is */
	uint64_t suppressed;
};

/* Whether a line may pass at now_ns (monotonic); if not it is counted. */
int log_limit_take(struct log_limit *limit, uint64_t now_ns);

/* log_event under a limit. */
void log_limited(struct log_limit *limit, enum log_level level, const char *event, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Says what was suppressed and not yet said, if anything: for when the thing that flooded goes away. */
void log_limit_flush(struct log_limit *limit, enum log_level level, const char *event);

#endif
