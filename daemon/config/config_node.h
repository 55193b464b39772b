/*
 * A checked view of one group of the configuration file.
 *
 * Every key is asked for by name with what is allowed; asking also makes it known. config_node_done()
 * then refuses keys that the daemon did not ask for. Every error is reported as
 *   FILE:LINE: pools[0].health.idle_ms: 5000000 is not allowed: a whole number from 10 to 3600000
 * and counted; reading goes on, so that one run shows all that is wrong.
 *
 * Owner: lives on the stack of the function that reads the group; strings it hands out live as long as the
 * config_t. Threads: one.
 */
#ifndef TG_DAEMON_CONFIG_NODE_H
#define TG_DAEMON_CONFIG_NODE_H

#include <libconfig.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct config_source;

struct config_report {
	const char *file;                   /* of the configuration; config_load sets it */
	const struct config_source *source; /* where each line came from; NULL: libconfig's word */
	unsigned errors;
	void (*print)(void *owner, const char *line); /* one complaint, without newline; NULL: stderr */
	void *owner;
};

/* Counts and prints FILE:LINE: text (line 0: FILE: text). Always returns -TG_EINVAL. */
int config_report_error(struct config_report *report, const char *file, unsigned line, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#define CONFIG_NODE_KEYS 48u

struct config_node {
	config_setting_t *setting; /* NULL: the group is absent, every key has its default */
	struct config_report *report;
	char path[160]; /* "pools[0].health", for errors */
	const char *asked[CONFIG_NODE_KEYS];
	unsigned asked_count;
};

/* One of a list of words. */
struct config_choice {
	const char *word; /* NULL ends the list */
	int value;
};

void config_node_init(
    struct config_node *node, config_setting_t *setting, struct config_report *report, const char *path);

/* Each returns 1 if the key was there and good (value stored), 0 if absent (value untouched), or
 * -TG_EINVAL (reported, value untouched). key NULL is the node itself: an element of a list of strings
 * or numbers. Keys asked for are not copied: they are string literals. */
int config_node_int(struct config_node *node, const char *key, int64_t *value, int64_t min, int64_t max);
int config_node_u32(struct config_node *node, const char *key, uint32_t *value, uint32_t min, uint32_t max);
int config_node_bool(struct config_node *node, const char *key, int *value);
/* min_len and max_len in bytes; the string stays the config's and dies with it: copy what is kept. */
int config_node_string(
    struct config_node *node, const char *key, const char **value, size_t min_len, size_t max_len);
int
config_node_choice(struct config_node *node, const char *key, int *value, const struct config_choice *choices);
/* The name of a file; a relative one is taken from the folder of the configuration. Malloced, the
 * caller's to free. The file need not exist. Also returns -TG_ENOMEM. */
int config_node_path(struct config_node *node, const char *key, char **value);
/* A child group; child is initialised in every case (absent or wrong: all defaults). */
int config_node_group(struct config_node *node, const char *key, struct config_node *child);
/* A list (...) of groups or an array [...]: its length, 0 when absent. */
int config_node_list(struct config_node *node, const char *key, struct config_node *list);
void config_node_element(const struct config_node *list, unsigned index, struct config_node *element);

/* The error about a secret's file that is not private; arguments: its name, its mode, its name. */
#define CONFIG_NOT_PRIVATE \
	"%s has mode %04o, which lets every user at it: no rights for others are allowed (chmod o= %s)"

/* Reports a file whose mode lets others than owner and group at it. Returns 0 or -TG_EINVAL. */
int config_node_check_private(const struct config_node *node, const char *key, const char *path, mode_t mode);

/* Makes a key known without reading it. */
void config_node_known(struct config_node *node, const char *key);

/* Whether the group has the key; nothing is reported, and the key is not made known by it. */
int config_node_has(const struct config_node *node, const char *key);

/* Reports a problem with a key (NULL: the group itself), at the key's line if it is there, else at
 * the group's. Always returns -TG_EINVAL. */
int config_node_error(const struct config_node *node, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* config_node_error with the value in front: "VALUE is not allowed: " and what is. The key must be there. */
int config_node_refuse(const struct config_node *node, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Reports every key that the daemon did not ask for, and the keys that are allowed. Call it once all keys were
 * asked for; each reader of a group calls it, also a driver's configure() on its own copy of the node.
 * Returns 0 or -TG_EINVAL. */
int config_node_done(struct config_node *node);

#endif
