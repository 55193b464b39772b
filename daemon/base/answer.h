/*
 * An object of an admin's answer, member by member.
 *
 * Text comes from clients and brokers and may be anything: what is not plain UTF-8 becomes '?', so
 * that every answer is valid JSON. A member that finds no memory is remembered, and the whole object
 * is then NULL: half an answer would be a lie.
 *
 * Owner: lives on the stack of whoever fills it. Threads: one.
 */
#ifndef TG_DAEMON_ANSWER_H
#define TG_DAEMON_ANSWER_H

#include <jansson.h>
#include <stdint.h>

#define ANSWER_TEXT 2304u /* the longest text; what is longer is cut */

struct answer {
	json_t *object;
	int failed;
};

void answer_init(struct answer *answer);

/* Gives up the object: the caller's, or NULL. The answer is then as if zeroed. */
json_t *answer_end(struct answer *answer);

void answer_count(struct answer *answer, const char *key, uint64_t n);
void answer_truth(struct answer *answer, const char *key, int truth);
void answer_text(struct answer *answer, const char *key, const char *text);
void answer_null(struct answer *answer, const char *key);

/* Takes value over; NULL: it found no memory. */
void answer_json(struct answer *answer, const char *key, json_t *value);

/* A list in this answer, borrowed; NULL without memory, which answer_row accepts. */
json_t *answer_list(struct answer *answer, const char *key);

/* Ends `row` and appends it to a list of this answer. */
void answer_row(struct answer *answer, json_t *list, struct answer *row);

#endif
