/*
 * Treatments of particular messages: a list of rules, of which the first that matches counts.
 *
 *    RULE[,RULE...]     RULE: PATTERN=HOW[:CODE]     PATTERN: a shell pattern for topics, or >BYTES for bodies
 *
 * Owned by struct behaviour; used by the one thread.
 */
#ifndef TG_SINK_FAULT_H
#define TG_SINK_FAULT_H

#include "record.h"

#include <stdint.h>

enum fault_how {
#define FAULT(name, word, help) FAULT_##name,
#include "fault.def"
#undef FAULT
	FAULT_HOWS
};

struct fault {
	char *pattern; /* NULL: by size */
	uint64_t over; /* bytes of body */
	enum fault_how how;
	uint32_t code; /* 0: the protocol's "not authorised" */
};

struct faults {
	struct fault *list;
	size_t count;
};

/* Reads a list of rules. Returns 0, or -1 with the reason in why (size bytes) and nothing changed. */
int faults_parse(struct faults *faults, const char *text, char *why, size_t size);
void faults_fini(struct faults *faults);

/* The first rule that matches the message, or NULL. */
const struct fault *faults_find(const struct faults *faults, const struct record_message *message);

/* Whether a topic matches a shell pattern. */
bool fault_topic_matches(const char *pattern, struct record_view topic);

#endif
