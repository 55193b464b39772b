/*
 * The keys of the configuration as a table (config_keys.def), and the reader of those that need no
 * more than their row says.
 *
 * Owner: static, read-only. Threads: any.
 */
#ifndef TG_DAEMON_CONFIG_KEYS_H
#define TG_DAEMON_CONFIG_KEYS_H

#include "config_node.h"

/* Which group a key stands in. */
enum config_scope {
	SCOPE_ROOT,
	SCOPE_IDLE,
	SCOPE_LIMITS,
	SCOPE_POOL,
	SCOPE_BROKER,
	SCOPE_WATERMARKS,
	SCOPE_WINDOW,
	SCOPE_HEALTH,
	SCOPE_BREAKER,
	SCOPE_TLS,
	SCOPES
};

enum config_kind { KIND_U32, KIND_U64, KIND_BOOL, KIND_WORD, KIND_PATH, KIND_TEXT, KIND_OWN };

struct config_key {
	enum config_scope scope;
	enum config_kind kind;
	const char *name;
	size_t offset; /* of the value in the scope's struct */
	uint64_t min;  /* KIND_TEXT: bytes */
	uint64_t max;
	uint64_t value; /* default */
	const struct config_choice *choices;
	const char *text; /* KIND_WORD: default; KIND_OWN: the form */
	const char *unit;
};

/* All of them; one without a name ends the list. */
extern const struct config_key config_keys[];

/* The prefix of the scope's keys in the manual: "pools[].health." and the like. */
const char *config_scope_path(enum config_scope scope);

/* The sentence about a key's range and default in the manual, e.g.
 * "Whole number from 10 to 3600000, milliseconds; default 1000". Returns text. */
const char *config_key_form(const struct config_key *key, char *text, size_t size);

/* Gives every key of the scope that is not KIND_OWN its default. */
void config_keys_default(enum config_scope scope, void *object);

/*
 * Reads the scope's keys that are not KIND_OWN into the scope's struct and makes the KIND_OWN ones
 * known, in the table's order. Strings are malloced into the struct, which must have NULL or an owned string
 * there. Errors are in the report; returns 0 or -TG_ENOMEM.
 */
int config_keys_read(enum config_scope scope, struct config_node *node, void *object);

#endif
