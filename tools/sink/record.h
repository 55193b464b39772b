/*
 * The record: one line for each message that arrived and was not rejected, in order of arrival.
 *
 *    time_ns  conn  seq  qos  flags  topic  key  headers  body        (tab separated)
 *
 * time_ns is the wall clock of the read, conn and seq count from 1, flags is any of `d` (sent before)
 * and `r` (retain) or `-`, headers are name=value joined by `;`. Bytes below 0x20, 0x7f and `\` are
 * written \t, \n, \r, \\ or \xNN; in headers `=` and `;` are written \x3d and \x3b. With
 * RECORD_BODY a line is the body alone, so that lines that were published can be compared as they are.
 *
 * Lines gather in memory until record_flush(), which hands all of them to one write(). The caller
 * answers no message before its line was flushed. If the file cannot be written, the record is
 * broken for good: the file is cut back to its last whole batch, and nothing is answered any more.
 */
#ifndef TG_SINK_RECORD_H
#define TG_SINK_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum record_format { RECORD_FULL, RECORD_BODY };

struct record {
	int fd; /* -1: nothing is recorded */
	const char *path;
	enum record_format format;
	char *data;
	size_t len;
	size_t cap;
	uint64_t lines; /* flushed */
	uint64_t waiting;
	int error; /* errno that broke it; 0: fine */
};

struct record_view {
	const uint8_t *bytes;
	size_t len;
};

struct record_pair {
	struct record_view name;
	struct record_view value;
};

/* A message as any protocol has it. All views are the caller's, good during the call. */
struct record_message {
	struct record_view topic;
	struct record_view key;
	struct record_view body;
	const struct record_pair *headers;
	size_t header_count;
	uint8_t qos;
	bool dup;
	bool retain;
};

/* Opens for appending; path NULL records nothing. Returns 0 or a negative errno. fini accepts a zeroed one with
 * fd -1. */
int record_init(struct record *record, const char *path, enum record_format format);
void record_fini(struct record *record);

/* Appends a line. Writes by itself when a lot has gathered. */
void record_add(
    struct record *record, const struct record_message *message, uint64_t time_ns, uint64_t conn, uint64_t seq);

/* Returns 0, or -1 if the record is broken; the first time it says so on stderr. */
int record_flush(struct record *record);

#endif
