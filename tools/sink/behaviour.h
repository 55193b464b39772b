/*
 * How a sink behaves at the moment: the values of behaviour.def, set by options and by the control
 * channel alike. Owned by struct sink, used by its one thread.
 */
#ifndef TG_SINK_BEHAVIOUR_H
#define TG_SINK_BEHAVIOUR_H

#include "fault.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

struct behaviour {
#define NUMBER(field, name, argument, least, most, preset, help) uint64_t field;
#define FLAG(field, name, help) uint64_t field;
#define TEXT(field, name, argument, help) char *field; /* NULL: not set */
#define CHOICE(field, name, words, help) uint64_t field;
#include "behaviour.def"
#undef NUMBER
#undef FLAG
#undef TEXT
#undef CHOICE
	/* Derived, so that a good broker pays nothing for all this: */
	bool rejects;        /* any of reject, reject-every, reject-topic */
	bool counts;         /* any of stall-after, close-after, reset-after */
	struct faults rules; /* of faults */
	char *user;          /* of auth */
	char *password;
	size_t password_len;
};

enum behaviour_id {
#define NUMBER(field, name, argument, least, most, preset, help) BEHAVIOUR_##field,
#define FLAG(field, name, help) BEHAVIOUR_##field,
#define TEXT(field, name, argument, help) BEHAVIOUR_##field,
#define CHOICE(field, name, words, help) BEHAVIOUR_##field,
#include "behaviour.def"
#undef NUMBER
#undef FLAG
#undef TEXT
#undef CHOICE
	BEHAVIOUR_COUNT
};

enum behaviour_type { BEHAVIOUR_NUMBER, BEHAVIOUR_FLAG, BEHAVIOUR_TEXT, BEHAVIOUR_CHOICE };

/* Values of mqtt5. */
enum { MQTT5_TAKEN, MQTT5_REFUSED, MQTT5_REFUSED_AS_311, MQTT5_CLOSED, MQTT5_UNANSWERED };

struct behaviour_info {
	const char *name;
	const char *argument; /* NULL for flags; of choices their words, with | between them */
	const char *help;
	enum behaviour_type type;
	uint64_t least;
	uint64_t most;
	uint64_t preset;
	size_t offset; /* of the value in struct behaviour */
};

extern const struct behaviour_info behaviour_list[BEHAVIOUR_COUNT];

#define BEHAVIOUR_WHY_MAX 512

void behaviour_init(struct behaviour *behaviour);
void behaviour_fini(struct behaviour *behaviour);

/* Returns the id of the name, or -1. */
int behaviour_find(const char *name);

/*
 * Sets one value from its text; NULL for a flag means on, an empty text unsets a TEXT. Returns 0, or
 * -1 with `why` (BEHAVIOUR_WHY_MAX bytes) naming the value and what is allowed; then nothing changed.
 */
int behaviour_set(struct behaviour *behaviour, enum behaviour_id id, const char *value, char *why);

uint64_t behaviour_number(const struct behaviour *behaviour, enum behaviour_id id);
/* The word of a choice's value, in word (size bytes). */
void behaviour_word(const struct behaviour *behaviour, enum behaviour_id id, char *word, size_t size);
const char *behaviour_text(const struct behaviour *behaviour, enum behaviour_id id);

/* The behaviours' part of --help. */
void behaviour_help(FILE *stream);

/* Prints "  --name ARGUMENT   help", wrapped; for --help. */
void behaviour_help_line(FILE *stream, const char *name, const char *argument, const char *help);

/* Parses a number (decimal, or hexadecimal with 0x) in [least, most]. Returns 0 or -1. */
int behaviour_parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value);

#endif
