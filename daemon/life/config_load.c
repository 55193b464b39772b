#include "build_config.h"

#include "config_load.h"

#include "daemon/config/config_keys.h"
#include "daemon/config/config_node.h"
#include "daemon/config/config_source.h"
#include "daemon/protocol/drivers.h"
#include "shm/error.h"
#include "shm/lane.h"
#include "daemon/link/tls.h"

#include <fcntl.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define DRIVERS_MAX 31u

_Static_assert(CONFIG_NAME + 1 == LANE_POOL_NAME, "a lane's header holds a pool's name");

/* Reads a group of plain keys. Returns 1 when it was read without a complaint, 0, or -TG_ENOMEM. */
static int
read_group(struct config_node *parent, const char *key, enum config_scope scope, void *object,
    struct config_node *group)
{
	unsigned errors = parent->report->errors;

	config_node_group(parent, key, group);
	int error = config_keys_read(scope, group, object);
	if (error != 0)
		return error;
	config_node_done(group);
	return parent->report->errors == errors;
}

static int
read_copy(struct config_node *node, const char *key, char **copy, size_t min_len, size_t max_len)
{
	const char *string = NULL;
	int there = config_node_string(node, key, &string, min_len, max_len);

	if (there > 0) {
		char *own = strdup(string);
		if (own == NULL)
			return -TG_ENOMEM;
		free(*copy);
		*copy = own;
	}
	return there;
}

static int
read_socket_path(struct config_node *root, const char *key, char **path, const char *fallback)
{
	int there = read_copy(root, key, path, 1, sizeof(((struct sockaddr_un *)0)->sun_path) - 1);

	if (there > 0 && (*path)[0] != '/')
		config_node_error(root, key, "\"%s\" is not allowed: an absolute path", *path);
	if (*path == NULL && there != -TG_ENOMEM)
		*path = strdup(fallback);
	return *path == NULL ? -TG_ENOMEM : 0;
}

/*
 * "0666", 0666 and 666 are all the same mode: libconfig drops a number's leading zero and knows no
 * octal, so a number's digits are what counts.
 */
static void
read_socket_mode(struct config_node *root, uint32_t *mode)
{
	const config_setting_t *setting = config_node_has(root, "socket_mode")
					      ? config_setting_get_member(root->setting, "socket_mode")
					      : NULL;
	char digits[24] = "";
	const char *text = digits;

	config_node_known(root, "socket_mode");
	if (setting == NULL)
		return;
	int type = config_setting_type(setting);
	if (type == CONFIG_TYPE_STRING)
		text = config_setting_get_string(setting);
	else if (type == CONFIG_TYPE_INT || type == CONFIG_TYPE_INT64)
		snprintf(digits, sizeof(digits), "%lld", config_setting_get_int64(setting));
	size_t len = strlen(text);
	unsigned long value = strtoul(text, NULL, 8);
	if (len == 0 || len > 4 || strspn(text, "01234567") != len || value > 0777)
		config_node_refuse(root, "socket_mode", "an octal file mode from 0000 to 0777");
	else
		*mode = (uint32_t)value;
}

static int
read_limits(struct config_node *root, struct config *config)
{
	struct config_limits *limits = &config->limits;
	struct config_node node;
	int good = read_group(root, "limits", SCOPE_LIMITS, config, &node);

	if (good <= 0)
		return good;
	if (!config_node_has(&node, "lanes_per_client") && limits->lanes_per_client > limits->lanes)
		limits->lanes_per_client = limits->lanes;
	if (limits->lanes_per_client > limits->lanes)
		config_node_error(&node, "lanes_per_client",
		    "%" PRIu32 " is not allowed: at most lanes, which is %" PRIu32, limits->lanes_per_client,
		    limits->lanes);
	if (!config_node_has(&node, "ring_bytes") && limits->ring_bytes > limits->memory_bytes)
		limits->ring_bytes = limits->memory_bytes;
	if (limits->ring_bytes > limits->memory_bytes)
		config_node_error(&node, "ring_bytes",
		    "%" PRIu64 " is not allowed: at most memory_bytes, which is %" PRIu64, limits->ring_bytes,
		    limits->memory_bytes);
	return 0;
}

static int
read_watermarks(struct config_node *node, struct config_pool *pool)
{
	struct config_node group;
	int good = read_group(node, "watermarks", SCOPE_WATERMARKS, pool, &group);

	if (good <= 0)
		return good;
	if (config_node_has(&group, "high") && !config_node_has(&group, "low"))
		pool->low_bytes = pool->high_bytes / 4;
	if (pool->low_bytes >= pool->high_bytes)
		config_node_error(&group, "low",
		    "%" PRIu64 " is not allowed: less than high, which is %" PRIu64, pool->low_bytes,
		    pool->high_bytes);
	return 0;
}

static int
read_window(struct config_node *node, struct config_pool *pool)
{
	struct config_node group;
	int good = read_group(node, "window", SCOPE_WINDOW, pool, &group);

	if (good <= 0)
		return good;
	if (config_node_has(&group, "messages") && !config_node_has(&group, "low"))
		pool->window_low = pool->window_messages / 2;
	if (pool->window_low >= pool->window_messages)
		config_node_error(&group, "low",
		    "%" PRIu32 " is not allowed: less than messages, which is %" PRIu32, pool->window_low,
		    pool->window_messages);
	return 0;
}

static int
read_health(struct config_node *node, struct config_health *health)
{
	struct config_node group;
	int good = read_group(node, "health", SCOPE_HEALTH, health, &group);

	if (good <= 0)
		return good;
	/* A broker is left before it is given up: whatever notices silence must come before the stall limit. */
	uint64_t silence_ms = health->idle_ms + (uint64_t)health->probe_timeout_ms * health->probe_misses;
	if (silence_ms > health->stall_timeout_ms)
		config_node_error(&group, "stall_timeout_ms",
		    "%" PRIu32
		    " is not allowed: at least idle_ms + probe_misses * probe_timeout_ms, which is %" PRIu64,
		    health->stall_timeout_ms, silence_ms);
	if (health->ack_timeout_ms > health->stall_timeout_ms)
		config_node_error(&group, "stall_timeout_ms",
		    "%" PRIu32 " is not allowed: at least ack_timeout_ms, which is %" PRIu32,
		    health->stall_timeout_ms, health->ack_timeout_ms);
	return 0;
}

static int
read_breaker(struct config_node *node, struct config_breaker *breaker)
{
	struct config_node group;
	int good = read_group(node, "breaker", SCOPE_BREAKER, breaker, &group);

	if (good <= 0)
		return good;
	if (breaker->retry_ms > breaker->retry_max_ms)
		config_node_error(&group, "retry_max_ms",
		    "%" PRIu32 " is not allowed: at least retry_ms, which is %" PRIu32, breaker->retry_max_ms,
		    breaker->retry_ms);
	return 0;
}

/* Now, with its line, is better than at the first handshake. */
static void
check_readable(const struct config_node *node, const char *key, const char *path, int is_private)
{
	struct stat about;

	if (path == NULL)
		return;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0 || fstat(fd, &about) != 0)
		config_node_error(node, key, "%s cannot be read: %s", path, strerrordesc_np(errno));
	else if (!S_ISREG(about.st_mode))
		config_node_error(node, key, "%s is not a regular file", path);
	else if (is_private)
		config_node_check_private(node, key, path, about.st_mode);
	if (fd >= 0)
		close(fd);
}

/* Loads what the files hold, as every pool does when it starts. */
static int
check_tls(const struct config_node *group, const struct config_tls *tls)
{
	struct tls_context *context = NULL;
	struct tls_error error;
	int rc = tls_context_new(&context, tls, NULL, &error);

	tls_context_free(context);
	if (rc == -TG_EINVAL)
		config_node_error(group, error.key, "%s", error.why);
	return rc == -TG_ENOMEM ? rc : 0;
}

static int
read_tls(struct config_node *node, struct config_tls *tls)
{
	struct config_node group;
	unsigned errors = node->report->errors;
	int good = read_group(node, "tls", SCOPE_TLS, tls, &group);

	tls->enabled = config_node_has(node, "tls");
	if (good <= 0 || !tls->enabled)
		return good < 0 ? good : 0;
	check_readable(&group, "ca_file", tls->ca_file, 0);
	check_readable(&group, "cert_file", tls->cert_file, 0);
	check_readable(&group, "key_file", tls->key_file, 1);
	if ((tls->cert_file == NULL) != (tls->key_file == NULL))
		config_node_error(&group, NULL, "cert_file and key_file are given together or not at all");
	if (tls->server_name != NULL && !address_host_valid(tls->server_name, strlen(tls->server_name)))
		config_node_error(
		    &group, "server_name", "\"%s\" is not allowed: a host name", tls->server_name);
	return node->report->errors == errors ? check_tls(&group, tls) : 0;
}

static int
read_broker(struct config_node *node, struct config_pool *pool, struct config_broker *broker)
{
	const char *text = NULL, *why = NULL;
	uint16_t port = pool->driver == NULL ? 0
			: pool->tls.enabled  ? pool->driver->tls_port
					     : pool->driver->default_port;

	config_keys_default(SCOPE_BROKER, broker);
	if (node->setting == NULL || !config_setting_is_group(node->setting)) {
		config_node_done(node);
		return 0;
	}
	int error = config_keys_read(SCOPE_BROKER, node, broker);
	if (error != 0)
		return error;
	int there = config_node_string(node, "address", &text, 1, ADDRESS_TEXT);
	if (there == 0)
		config_node_error(node, "address", "missing: host:port, [v6]:port or unix:/path");
	if (there > 0) {
		error = address_parse(&broker->address, text, port, &why);
		if (error == -TG_ENOMEM)
			return error;
		if (error != 0)
			config_node_error(node, "address", "\"%s\" is not allowed: %s", text, why);
	}
	for (const struct config_broker *other = pool->brokers; there > 0 && other < broker; other++)
		if (address_same(&other->address, &broker->address)) {
			config_node_error(node, "address",
			    "\"%s\" is not allowed: brokers[%td] has this address", text,
			    other - pool->brokers);
			break;
		}
	if (broker->address.path != NULL && pool->tls.enabled && pool->tls.verify &&
	    pool->tls.server_name == NULL)
		config_node_error(node, "address",
		    "\"%s\" is not allowed with TLS unless tls.server_name says whose certificate to expect",
		    text);
	config_node_done(node);
	return 0;
}

static int
read_brokers(struct config_node *node, struct config_pool *pool)
{
	struct config_node list, element;
	int count = config_node_list(node, "brokers", &list), error = 0;

	if (count < 0)
		return 0;
	if (count == 0 || (unsigned)count > CONFIG_BROKERS) {
		if (!config_node_has(node, "brokers"))
			config_node_error(
			    node, "brokers", "missing: a list of 1 to %u brokers", CONFIG_BROKERS);
		else
			config_node_error(
			    node, "brokers", "%d brokers are not allowed: 1 to %u", count, CONFIG_BROKERS);
		return 0;
	}
	pool->brokers = calloc((unsigned)count, sizeof(*pool->brokers));
	if (pool->brokers == NULL)
		return -TG_ENOMEM;
	pool->broker_count = (uint32_t)count;
	for (unsigned i = 0; i < (unsigned)count && error == 0; i++) {
		config_node_element(&list, i, &element);
		error = read_broker(&element, pool, &pool->brokers[i]);
	}
	return error;
}

static int
read_name(struct config_node *node, struct config_pool *pool, const struct config *config)
{
	static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
	int there = read_copy(node, "name", &pool->name, 1, CONFIG_NAME);

	if (there == -TG_ENOMEM)
		return there;
	if (there == 0)
		config_node_error(node, "name", "missing: a string of 1 to %u bytes", CONFIG_NAME);
	if (there <= 0)
		return 0;
	if (strspn(pool->name, allowed) != strlen(pool->name))
		config_node_error(node, "name",
		    "\"%s\" is not allowed: only the characters A-Z a-z 0-9 _ . - stand in a name", pool->name);
	for (const struct config_pool *other = config->pools; other < pool; other++)
		if (other->name != NULL && strcmp(other->name, pool->name) == 0) {
			config_node_error(node, "name", "\"%s\" is not allowed: pools[%td] has this name",
			    pool->name, other - config->pools);
			break;
		}
	return 0;
}

static void
read_protocol(struct config_node *node, struct config_pool *pool)
{
	struct config_choice choices[DRIVERS_MAX + 1] = { { NULL, 0 } };
	int chosen = 0;

	for (unsigned i = 0; i < DRIVERS_MAX && driver_list[i] != NULL; i++)
		choices[i] = (struct config_choice){ .word = driver_list[i]->name, .value = (int)i };
	int there = config_node_choice(node, "protocol", &chosen, choices);
	if (there > 0)
		pool->driver = driver_list[chosen];
	else if (there == 0)
		config_node_error(
		    node, "protocol", "missing: the name of a driver, such as \"%s\"", choices[0].word);
}

static int
read_driver_group(struct config_node *node, struct config_pool *pool)
{
	struct config_node group;

	for (unsigned i = 0; driver_list[i] != NULL; i++) {
		const char *name = driver_list[i]->name;

		config_node_known(node, name);
		if (pool->driver != NULL && driver_list[i] != pool->driver && config_node_has(node, name))
			config_node_error(node, name,
			    "this group is not allowed: the pool's protocol is \"%s\"", pool->driver->name);
	}
	if (pool->driver == NULL)
		return 0;
	size_t size = pool->driver->settings_size;
	pool->driver_settings = calloc(1, size > 0 ? size : 1);
	if (pool->driver_settings == NULL)
		return -TG_ENOMEM;
	if (config_node_group(node, pool->driver->name, &group) < 0)
		return 0;
	unsigned errors = node->report->errors;
	int error = pool->driver->configure(pool->driver_settings, &group);
	/* A driver that refuses has said why; one that forgot to still must not start. */
	if (error == -TG_EINVAL && node->report->errors == errors)
		config_node_error(&group, NULL, "the %s driver refuses these settings", pool->driver->name);
	return error == -TG_ENOMEM ? error : 0;
}

static int
read_pool(struct config_node *node, struct config *config, struct config_pool *pool)
{
	int error;

	config_keys_default(SCOPE_POOL, pool);
	config_keys_default(SCOPE_WATERMARKS, pool);
	config_keys_default(SCOPE_WINDOW, pool);
	config_keys_default(SCOPE_HEALTH, &pool->health);
	config_keys_default(SCOPE_BREAKER, &pool->breaker);
	config_keys_default(SCOPE_TLS, &pool->tls);
	if (node->setting == NULL || !config_setting_is_group(node->setting)) {
		config_node_done(node);
		return 0;
	}
	unsigned errors = node->report->errors;
	error = config_keys_read(SCOPE_POOL, node, pool);
	if (error == 0 && node->report->errors == errors && pool->balance == BALANCE_KEY &&
	    pool->order == ORDER_BY_LANE)
		config_node_error(node, "balance",
		    "\"key\" is not allowed with order \"lane\", where all records of a lane ride one link");
	if (error == 0)
		error = read_name(node, pool, config);
	if (error == 0)
		read_protocol(node, pool);
	if (error == 0)
		error = read_watermarks(node, pool);
	if (error == 0)
		error = read_window(node, pool);
	if (error == 0)
		error = read_health(node, &pool->health);
	if (error == 0)
		error = read_breaker(node, &pool->breaker);
	if (error == 0)
		error = read_tls(node, &pool->tls);
	if (error == 0)
		error = read_brokers(node, pool); /* after tls: the default port is TLS's */
	if (error == 0)
		error = read_driver_group(node, pool);
	if (error == 0)
		config_node_done(node);
	return error;
}

static int
read_pools(struct config_node *root, struct config *config)
{
	struct config_node list, element;
	int count = config_node_list(root, "pools", &list), error = 0;

	if (count < 0)
		return 0;
	if (count == 0 || (unsigned)count > CONFIG_POOLS) {
		if (!config_node_has(root, "pools"))
			config_node_error(root, "pools", "missing: a list of 1 to %u pools", CONFIG_POOLS);
		else
			config_node_error(
			    root, "pools", "%d pools are not allowed: 1 to %u", count, CONFIG_POOLS);
		return 0;
	}
	config->pools = calloc((unsigned)count, sizeof(*config->pools));
	if (config->pools == NULL)
		return -TG_ENOMEM;
	config->pool_count = (uint32_t)count;
	for (unsigned i = 0; i < (unsigned)count && error == 0; i++) {
		config_node_element(&list, i, &element);
		error = read_pool(&element, config, &config->pools[i]);
	}
	return error;
}

/* Unless the limit is set, a pool's own time-out is not cut short by it. */
static void
default_orphan_ms(const struct config_node *root, struct config *config)
{
	if (config_setting_lookup(root->setting, "limits.orphan_ms") != NULL)
		return;
	for (uint32_t i = 0; i < config->pool_count; i++)
		if (config->pools[i].message_timeout_ms > config->limits.orphan_ms)
			config->limits.orphan_ms = config->pools[i].message_timeout_ms;
}

static int
read_root(struct config_node *root, struct config *config)
{
	struct config_node idle;
	int error;

	config->socket_mode = 0666;
	config_keys_default(SCOPE_ROOT, config);
	config_keys_default(SCOPE_IDLE, config);
	config_keys_default(SCOPE_LIMITS, config);
	error = config_keys_read(SCOPE_ROOT, root, config);
	if (error == 0)
		error = read_socket_path(root, "socket", &config->socket, TG_DEFAULT_SOCKET);
	if (error == 0)
		error = read_socket_path(root, "admin", &config->admin, TG_DEFAULT_ADMIN);
	if (error == 0 && strcmp(config->socket, config->admin) == 0)
		config_node_error(
		    root, "admin", "\"%s\" is not allowed: it is the same as socket", config->admin);
	if (error == 0)
		read_socket_mode(root, &config->socket_mode);
	if (error == 0 && read_group(root, "idle", SCOPE_IDLE, config, &idle) < 0)
		error = -TG_ENOMEM;
	if (error == 0)
		error = read_limits(root, config);
	if (error == 0)
		error = read_pools(root, config);
	if (error == 0) {
		default_orphan_ms(root, config);
		config_node_done(root);
	}
	return error;
}

/* libconfig's own complaint, at the place the text came from, with the line it choked on. */
static void
report_syntax(struct config_report *report, const config_t *tree)
{
	const char *file = report->file, *at = report->source->text;
	unsigned line = (unsigned)config_error_line(tree);

	for (unsigned n = 1; n < line && at != NULL; n++)
		at = (at = strchr(at, '\n')) == NULL ? NULL : at + 1;
	at = at == NULL ? "" : at + strspn(at, " \t");
	int shown = (int)strcspn(at, "\n");
	config_source_where(report->source, line, &file, &line);
	if (shown == 0)
		config_report_error(report, file, line, "%s", config_error_text(tree));
	else
		config_report_error(report, file, line, "%s at or before: %.*s", config_error_text(tree),
		    shown < 60 ? shown : 60, at);
}

int
config_load(struct config **config, const char *file, struct config_report *report)
{
	struct config_source source;
	struct config_node root;
	struct config *made = NULL;
	config_t tree;
	int error;

	*config = NULL;
	report->file = file;
	config_init(&tree);
	error = config_source_read(&source, file, report);
	report->source = &source;
	if (error != 0)
		goto out;
	error = -TG_EINVAL;
	if (config_read_string(&tree, source.text) != CONFIG_TRUE) {
		report_syntax(report, &tree);
		goto out;
	}
	error = -TG_ENOMEM;
	made = calloc(1, sizeof(*made));
	if (made == NULL)
		goto out;
	config_node_init(&root, config_root_setting(&tree), report, "");
	error = read_root(&root, made);
	if (error == 0 && report->errors > 0)
		error = -TG_EINVAL;
	if (error == 0) {
		*config = made;
		made = NULL;
	}
out:
	config_free(made);
	config_destroy(&tree);
	config_source_fini(&source);
	report->source = NULL;
	return error;
}

static void
pool_fini(struct config_pool *pool)
{
	if (pool->driver_settings != NULL) {
		pool->driver->settings_free(pool->driver_settings);
		free(pool->driver_settings);
	}
	for (uint32_t i = 0; i < pool->broker_count; i++)
		address_fini(&pool->brokers[i].address);
	free(pool->brokers);
	free(pool->tls.ca_file);
	free(pool->tls.cert_file);
	free(pool->tls.key_file);
	free(pool->tls.server_name);
	free(pool->name);
}

void
config_free(struct config *config)
{
	if (config == NULL)
		return;
	for (uint32_t i = 0; i < config->pool_count; i++)
		pool_fini(&config->pools[i]);
	free(config->pools);
	free(config->socket);
	free(config->admin);
	free(config);
}
