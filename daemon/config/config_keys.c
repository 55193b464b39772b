#include "build_config.h"

#include "config_keys.h"

#include "config.h"
#include "shm/error.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct config_choice balance_words[] = {
	{ "weighted", BALANCE_WEIGHTED },
	{ "least", BALANCE_LEAST },
	{ "priority", BALANCE_PRIORITY },
	{ "key", BALANCE_KEY },
	{ NULL, 0 },
};

static const struct config_choice order_words[] = {
	{ "lane", ORDER_BY_LANE },
	{ "key", ORDER_BY_KEY },
	{ "none", ORDER_BY_NONE },
	{ NULL, 0 },
};

static const struct config_choice on_failure_words[] = {
	{ "resend", ON_FAILURE_RESEND },
	{ "report", ON_FAILURE_REPORT },
	{ NULL, 0 },
};

static const struct config_choice tls_version_words[] = {
	{ "1.2", 0x0303 },
	{ "1.3", 0x0304 },
	{ NULL, 0 },
};

/* A word's value goes where an int is: the enums must be as wide. */
_Static_assert(sizeof(enum config_balance) == sizeof(int), "enum is not an int");
_Static_assert(sizeof(enum config_order) == sizeof(int), "enum is not an int");
_Static_assert(sizeof(enum config_on_failure) == sizeof(int), "enum is not an int");

/* The offset of a field, having made sure of its type. */
#define AT(type, object, field)           \
	(offsetof(struct object, field) + \
	    0 * sizeof(char[sizeof(((struct object *)0)->field) == sizeof(type) ? 1 : -1]))

const struct config_key config_keys[] = {
#define ROW(scope_, kind_, key, ...) \
	{ .scope = SCOPE_##scope_, .kind = KIND_##kind_, .name = #key, __VA_ARGS__ },
#define U32(scope_, key, object, field, min_, max_, value_, unit_)                             \
	ROW(scope_, U32, key, .offset = AT(uint32_t, object, field), .min = min_, .max = max_, \
	    .value = value_, .unit = unit_)
#define U64(scope_, key, object, field, min_, max_, value_, unit_)                             \
	ROW(scope_, U64, key, .offset = AT(uint64_t, object, field), .min = min_, .max = max_, \
	    .value = value_, .unit = unit_)
#define BOOL(scope_, key, object, field, value_) \
	ROW(scope_, BOOL, key, .offset = AT(int, object, field), .value = value_)
#define WORD(scope_, key, object, field, choices_, word) \
	ROW(scope_, WORD, key, .offset = AT(int, object, field), .choices = choices_, .text = word)
#define PATH(scope_, key, object, field) ROW(scope_, PATH, key, .offset = AT(char *, object, field))
#define TEXT(scope_, key, object, field, min_, max_) \
	ROW(scope_, TEXT, key, .offset = AT(char *, object, field), .min = min_, .max = max_)
#define OWN(scope_, key, form) ROW(scope_, OWN, key, .text = form)
#include "config_keys.def"
#undef U32
#undef U64
#undef BOOL
#undef WORD
#undef PATH
#undef TEXT
#undef OWN
#undef ROW
	{ .name = NULL },
};

const char *
config_scope_path(enum config_scope scope)
{
	static const char *const paths[SCOPES] = {
		[SCOPE_ROOT] = "",
		[SCOPE_IDLE] = "idle.",
		[SCOPE_LIMITS] = "limits.",
		[SCOPE_POOL] = "pools[].",
		[SCOPE_BROKER] = "pools[].brokers[].",
		[SCOPE_WATERMARKS] = "pools[].watermarks.",
		[SCOPE_WINDOW] = "pools[].window.",
		[SCOPE_HEALTH] = "pools[].health.",
		[SCOPE_BREAKER] = "pools[].breaker.",
		[SCOPE_TLS] = "pools[].tls.",
	};
	return paths[scope];
}

const char *
config_key_form(const struct config_key *key, char *text, size_t size)
{
	size_t used = 0;

	switch (key->kind) {
	case KIND_U32:
	case KIND_U64:
		snprintf(text, size, "Whole number from %" PRIu64 " to %" PRIu64 ", %s; default %" PRIu64,
		    key->min, key->max, key->unit, key->value);
		break;
	case KIND_BOOL:
		snprintf(text, size, "true or false; default %s", key->value ? "true" : "false");
		break;
	case KIND_WORD:
		snprintf(text, size, "One of");
		for (const struct config_choice *choice = key->choices; choice->word != NULL; choice++) {
			used = strlen(text);
			snprintf(
			    text + used, size - used, " %s%s", choice->word, choice[1].word != NULL ? "," : "");
		}
		used = strlen(text);
		snprintf(text + used, size - used, "; default %s", key->text);
		break;
	case KIND_PATH:
		snprintf(text, size, "Name of a file; default none");
		break;
	case KIND_TEXT:
		snprintf(
		    text, size, "String of %" PRIu64 " to %" PRIu64 " bytes; default none", key->min, key->max);
		break;
	case KIND_OWN:
		snprintf(text, size, "%s", key->text);
		break;
	}
	return text;
}

static int
word_value(const struct config_key *key)
{
	const struct config_choice *choice = key->choices;

	while (strcmp(choice->word, key->text) != 0)
		choice++;
	return choice->value;
}

void
config_keys_default(enum config_scope scope, void *object)
{
	for (const struct config_key *key = config_keys; key->name != NULL; key++) {
		void *at = (char *)object + key->offset;

		if (key->scope != scope)
			continue;
		if (key->kind == KIND_U32)
			*(uint32_t *)at = (uint32_t)key->value;
		else if (key->kind == KIND_U64)
			*(uint64_t *)at = key->value;
		else if (key->kind == KIND_BOOL)
			*(int *)at = (int)key->value;
		else if (key->kind == KIND_WORD)
			*(int *)at = word_value(key);
	}
}

static int
read_string(struct config_node *node, const struct config_key *key, char **at)
{
	const char *string = NULL;
	char *copy = NULL;
	int there;

	if (key->kind == KIND_PATH) {
		there = config_node_path(node, key->name, &copy);
	} else {
		there = config_node_string(node, key->name, &string, (size_t)key->min, (size_t)key->max);
		if (there > 0 && (copy = strdup(string)) == NULL)
			there = -TG_ENOMEM;
	}
	if (there > 0) {
		free(*at);
		*at = copy;
	}
	return there;
}

int
config_keys_read(enum config_scope scope, struct config_node *node, void *object)
{
	for (const struct config_key *key = config_keys; key->name != NULL; key++) {
		void *at = (char *)object + key->offset;
		int64_t number = 0;
		int there = 0;

		if (key->scope != scope)
			continue;
		switch (key->kind) {
		case KIND_U32:
			there = config_node_u32(node, key->name, at, (uint32_t)key->min, (uint32_t)key->max);
			break;
		case KIND_U64:
			there = config_node_int(node, key->name, &number, (int64_t)key->min, (int64_t)key->max);
			if (there > 0)
				*(uint64_t *)at = (uint64_t)number;
			break;
		case KIND_BOOL:
			there = config_node_bool(node, key->name, at);
			break;
		case KIND_WORD:
			there = config_node_choice(node, key->name, at, key->choices);
			break;
		case KIND_PATH:
		case KIND_TEXT:
			there = read_string(node, key, at);
			break;
		case KIND_OWN:
			config_node_known(node, key->name);
			break;
		}
		if (there == -TG_ENOMEM)
			return there;
	}
	return 0;
}
