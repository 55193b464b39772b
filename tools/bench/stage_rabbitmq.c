/*
 * A RabbitMQ node of the bench's own: folders, ports, an epmd that ends with it, and definitions that it
 * loads before it listens. Everything of it is in memory: its queue is not durable.
 */
#include "build_config.h"

#include "tools/bench/process.h"
#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define EPMD_TIMEOUT_MS 10000
#define TEXT_MAX (4u * PATH_MAX)

/* "guest" as RabbitMQ keeps passwords: base64 of four bytes of salt and SHA-256 of these and the password. */
#define GUEST_HASH "dGlkZbOInSbAq1R/2vbLzbftVTywb9YKOE1yn/bYfwHDHly/"

/* A queue, and unless it is reached by its name alone the exchange and the binding that lead to it. */
static int
write_definitions(const struct stage *stage, const char *topic, char path[PATH_MAX])
{
	const char *slash = strchr(topic, '/');
	const char *key = slash != NULL ? slash + 1 : topic;
	int exchange_len = slash != NULL ? (int)(slash - topic) : 0;
	json_t *root = json_pack("{s:[{s:s,s:s,s:s,s:[s]}],s:[{s:s}],s:[{s:s,s:s,s:s,s:s,s:s}],"
				 "s:[{s:s,s:s,s:b,s:b,s:{s:I}}],s:[],s:[]}",
	    "users", "name", "guest", "password_hash", GUEST_HASH, "hashing_algorithm",
	    "rabbit_password_hashing_sha256", "tags", "administrator", "vhosts", "name", "/", "permissions",
	    "user", "guest", "vhost", "/", "configure", ".*", "write", ".*", "read", ".*", "queues", "name",
	    key, "vhost", "/", "durable", 0, "auto_delete", 0, "arguments", "x-max-length-bytes",
	    (json_int_t)STAGE_KEEP_BYTES, "exchanges", "bindings");
	char *text;
	int failed = -1;

	if (exchange_len != 0 && root != NULL) {
		json_array_append_new(json_object_get(root, "exchanges"),
		    json_pack("{s:s%,s:s,s:s,s:b,s:b,s:b,s:{}}", "name", topic, exchange_len, "vhost", "/",
			"type", "direct", "durable", 0, "auto_delete", 0, "internal", 0, "arguments"));
		json_array_append_new(json_object_get(root, "bindings"),
		    json_pack("{s:s%,s:s,s:s,s:s,s:s,s:{}}", "source", topic, exchange_len, "vhost", "/",
			"destination", key, "destination_type", "queue", "routing_key", key, "arguments"));
	}
	text = root != NULL ? json_dumps(root, 0) : NULL;
	if (text == NULL)
		cli_error("--topic: \"%s\" is not UTF-8", topic);
	else
		failed = stage_write(stage, "definitions.json", path, text);
	free(text);
	json_decref(root);
	return failed;
}

static int
write_config(const struct stage *stage, const struct bench_options *options, char path[PATH_MAX])
{
	char definitions[PATH_MAX], tls[TEXT_MAX] = "", text[2 * TEXT_MAX];
	int stomp = strcmp(options->protocol->name, "stomp") == 0;

	if (write_definitions(stage, options->topic, definitions) != 0)
		return -1;
	/* Clients without a login are guest. The AMQP port is not used. */
	if (stomp) {
		snprintf(text, sizeof(text),
		    "listeners.tcp = none\nstomp.listeners.%s = none\nstomp.listeners.%s.1 = 127.0.0.1:%u\n"
		    "stomp.default_user = guest\nstomp.default_pass = guest\nlog.console = false\n"
		    "log.file = broker.log\nload_definitions = %s\n",
		    options->tls ? "tcp" : "ssl", options->tls ? "ssl" : "tcp", stage->port, definitions);
		if (options->tls)
			snprintf(tls, sizeof(tls), "ssl_options.certfile = %s\nssl_options.keyfile = %s\n",
			    stage->cert, stage->key);
		strncat(text, tls, sizeof(text) - strlen(text) - 1);
		return stage_write(stage, "rabbitmq.conf", path, text);
	}
	if (options->tls)
		snprintf(tls, sizeof(tls),
		    "listeners.tcp = none\nssl_options.certfile = %s\nssl_options.keyfile = %s\n", stage->cert,
		    stage->key);
	snprintf(text, sizeof(text),
	    "listeners.%s.1 = 127.0.0.1:%u\n%slog.console = false\nlog.file = broker.log\nload_definitions = "
	    "%s\n",
	    options->tls ? "ssl" : "tcp", stage->port, tls, definitions);
	return stage_write(stage, "rabbitmq.conf", path, text);
}

/* Without our own epmd in the foreground, the first Erlang program would leave one running. */
static int
start_epmd(struct stage *stage, uint16_t port)
{
	char text[16];
	char *argv[] = { (char *)"epmd", (char *)"-port", text, (char *)"-address", (char *)"127.0.0.1", NULL };
	uint64_t deadline = clock_now_ns() + EPMD_TIMEOUT_MS * CLOCK_NS_PER_MS;
	struct timespec t = clock_timespec(5 * CLOCK_NS_PER_MS);
	int fd, status;

	snprintf(text, sizeof(text), "%u", port);
	if (stage_run(stage, "epmd", argv, NULL, &stage->epmd) != 0)
		return -1;
	while ((fd = stage_connect(port)) < 0) {
		if (process_has_ended(stage->epmd, &status)) {
			stage->epmd = 0;
			cli_error("--start: epmd ended at once (status 0x%x)", (unsigned)status);
			return -1;
		}
		if (bench_stop || clock_now_ns() > deadline)
			return -1;
		nanosleep(&t, NULL);
	}
	close(fd);
	return 0;
}

int
stage_start_rabbitmq(struct stage *stage, const struct bench_options *options)
{
	char *argv[] = { (char *)"rabbitmq-server", NULL };
	char config[PATH_MAX], plugins[PATH_MAX], folders[2][PATH_MAX];
	char text[9][PATH_MAX + 64];
	/*
	 * As a service it replaces its script, so that the process is the node itself. Its schedulers do not
	 * spin while they wait, since the spinning would show in every figure. Its
	 * name is an address: a bare machine may have no name for itself.
	 */
	char *environment[] = { text[0], text[1], text[2], text[3], text[4], text[5], text[6], text[7], text[8],
		(char *)"ERL_EPMD_ADDRESS=127.0.0.1", (char *)"RABBITMQ_CONF_ENV_FILE=/dev/null",
		(char *)"RABBITMQ_USE_LONGNAME=true", (char *)"RUNNING_UNDER_SYSTEMD=true",
		(char *)"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+sbwt none +sbwtdcpu none +sbwtdio none", NULL };
	uint16_t epmd_port = stage_free_port(), dist_port = stage_free_port();

	if (epmd_port == 0 || dist_port == 0 || stage_path(stage, "mnesia", folders[0]) != 0 ||
	    stage_path(stage, "log", folders[1]) != 0)
		return -1;
	if (mkdir(folders[0], 0700) != 0 || mkdir(folders[1], 0700) != 0) {
		cli_error("--start: %s: %s", folders[0], strerror(errno));
		return -1;
	}
	if (write_config(stage, options, config) != 0 ||
	    stage_write(stage, "plugins", plugins,
		strcmp(options->protocol->name, "stomp") == 0 ? "[rabbitmq_stomp].\n" : "[].\n") != 0)
		return -1;
	snprintf(text[0], sizeof(text[0]), "HOME=%s", stage->folder);
	snprintf(text[1], sizeof(text[1]), "RABBITMQ_NODENAME=bench%u@127.0.0.1", stage->port);
	snprintf(text[2], sizeof(text[2]), "ERL_EPMD_PORT=%u", epmd_port);
	snprintf(text[3], sizeof(text[3]), "RABBITMQ_DIST_PORT=%u", dist_port);
	snprintf(text[4], sizeof(text[4]), "RABBITMQ_MNESIA_BASE=%s", folders[0]);
	snprintf(text[5], sizeof(text[5]), "RABBITMQ_LOG_BASE=%s", folders[1]);
	snprintf(text[6], sizeof(text[6]), "RABBITMQ_CONFIG_FILE=%s", config);
	snprintf(text[7], sizeof(text[7]), "RABBITMQ_ENABLED_PLUGINS_FILE=%s", plugins);
	snprintf(text[8], sizeof(text[8]), "RABBITMQ_PID_FILE=%s/rabbitmq.pid", stage->folder);
	if (start_epmd(stage, epmd_port) != 0)
		return -1;
	return stage_run(stage, options->start->program, argv, environment, &stage->broker);
}
