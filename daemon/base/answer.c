#include "answer.h"

#include "utf8.h"

#include <string.h>

void
answer_init(struct answer *answer)
{
	answer->object = json_object();
	answer->failed = answer->object == NULL;
}

json_t *
answer_end(struct answer *answer)
{
	json_t *object = answer->object;

	if (answer->failed) {
		json_decref(object);
		object = NULL;
	}
	*answer = (struct answer){ .object = NULL };
	return object;
}

void
answer_json(struct answer *answer, const char *key, json_t *value)
{
	/* Takes value over even when it fails. */
	if (json_object_set_new_nocheck(answer->object, key, value) != 0)
		answer->failed = 1;
}

void
answer_count(struct answer *answer, const char *key, uint64_t n)
{
	answer_json(answer, key, json_integer(n <= INT64_MAX ? (json_int_t)n : INT64_MAX));
}

void
answer_truth(struct answer *answer, const char *key, int truth)
{
	answer_json(answer, key, json_boolean(truth));
}

void
answer_null(struct answer *answer, const char *key)
{
	answer_json(answer, key, json_null());
}

void
answer_text(struct answer *answer, const char *key, const char *text)
{
	size_t len = strlen(text), offset;
	char clean[ANSWER_TEXT];

	if (len >= sizeof(clean) ||
	    utf8_check((const uint8_t *)text, len, (const char[2]){ 0 }, &offset) != UTF8_PLAIN) {
		len = utf8_clean(clean, sizeof(clean), (const uint8_t *)text, len);
		text = clean;
	}
	answer_json(answer, key, json_stringn_nocheck(text, len));
}

json_t *
answer_list(struct answer *answer, const char *key)
{
	json_t *list = json_array();

	if (json_object_set_new_nocheck(answer->object, key, list) == 0)
		return list;
	answer->failed = 1;
	return NULL; /* the attempt has let go of it */
}

void
answer_row(struct answer *answer, json_t *list, struct answer *row)
{
	if (json_array_append_new(list, answer_end(row)) != 0)
		answer->failed = 1;
}
