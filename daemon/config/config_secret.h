/*
 * A secret in a file of its own: a password, a token, a key's seed.
 *
 *   file  = secret [ CR LF | LF ]      one line; no control characters
 *
 * It is read when the configuration is, and again before each connection is made (peers_renew_secrets), so
 * that a rotated password needs no restart. A file that cannot be used then leaves the last good secret in
 * force.
 *
 * Owner: lives in a driver's settings, zeroed until config_node_secret() fills it in. A value that is
 * replaced is wiped: load `value` at each use and keep no copy of the pointer. Threads: one.
 */
#ifndef TG_DAEMON_CONFIG_SECRET_H
#define TG_DAEMON_CONFIG_SECRET_H

#include <stddef.h>

struct config_node;

#define CONFIG_SECRET_WHY 512u
#define CONFIG_SECRET_CAUSE 128u

/* A protocol's own rule. Returns NULL, or what is wrong, static or in cause; it shows nothing of the value. */
typedef const char *config_secret_check(const char *value, char *cause, size_t size);

struct config_secret {
	char *value;                    /* NULL: the configuration names no file */
	char *path;                     /* of the file */
	const char *key;                /* that names it, e.g. "password_file" */
	size_t max;                     /* bytes of value */
	config_secret_check *check;     /* may be NULL */
	char failed[CONFIG_SECRET_WHY]; /* why it could last not be read; "": it could */
};

/*
 * key names the file, which may hold 1 to max bytes; check may be NULL. Returns 1 when it was read, 0 when
 * the key is absent, -TG_EINVAL (reported) or -TG_ENOMEM. The key is a string literal. A file that users
 * other than its owner and group may use is refused.
 */
int config_node_secret(struct config_node *node, const char *key, struct config_secret *secret, size_t max,
    config_secret_check *check);

/*
 * Reads the file again. Returns 1 when it holds another secret, which is in force now; 0 when nothing has
 * changed, a failure that was told before included; or -TG_EINVAL or -TG_ENOMEM with the cause in
 * secret->failed and everything as it was.
 */
int config_secret_renew(struct config_secret *secret);

/* Wipes and frees. */
void config_secret_fini(struct config_secret *secret);

#endif
