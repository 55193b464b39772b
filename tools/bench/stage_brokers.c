/* The brokers --start knows: a table, and those that take no more than a command line or a short file. */
#include "build_config.h"

#include "tools/bench/stage_internal.h"

#include <string.h>
#include <unistd.h>

#define CONFIG_MAX (4u * PATH_MAX)

static const struct stage_broker brokers[] = {
#define BROKER(name, program, protocols) { #name, program, protocols, stage_start_##name },
#include "tools/bench/brokers.def"
#undef BROKER
};

const struct stage_broker *
stage_broker(const char *name)
{
	size_t i;

	for (i = 0; i < sizeof(brokers) / sizeof(brokers[0]); i++)
		if (strcmp(brokers[i].name, name) == 0)
			return &brokers[i];
	return NULL;
}

int
stage_broker_speaks(const struct stage_broker *broker, const char *protocol)
{
	const char *rest = broker->protocols;
	size_t len;

	for (; *rest != '\0'; rest += len + (rest[len] == ' ')) {
		len = strcspn(rest, " ");
		if (len == strlen(protocol) && strncmp(rest, protocol, len) == 0)
			return 1;
	}
	return 0;
}

int
stage_start_sink(struct stage *stage, const struct bench_options *options)
{
	char listen_on[64];
	char *argv[] = { (char *)"tidegate-sink", (char *)"--protocol", (char *)options->protocol->name,
		(char *)"--listen", listen_on, (char *)"--no-record",
		options->tls ? (char *)"--tls-cert" : NULL, stage->cert, (char *)"--tls-key", stage->key,
		NULL };

	snprintf(listen_on, sizeof(listen_on), "127.0.0.1:%u", stage->port);
	return stage_run(stage, "tidegate-sink", argv, NULL, &stage->broker);
}

int
stage_start_mosquitto(struct stage *stage, const struct bench_options *options)
{
	char config[PATH_MAX], tls[CONFIG_MAX] = "", text[2 * CONFIG_MAX];
	char *argv[] = { (char *)"mosquitto", (char *)"-c", config, NULL };

	if (options->tls)
		snprintf(tls, sizeof(tls), "cafile %s\ncertfile %s\nkeyfile %s\n", stage->cert, stage->cert,
		    stage->key);
	/*
	 * The default configuration except for the needs of a bench: no disk, and more than the default of 20 messages
	 * under way, which MQTT 5 clients (but not 3.1.1 ones) would be held to.
	 */
	snprintf(text, sizeof(text),
	    "listener %u 127.0.0.1\n%sallow_anonymous true\npersistence false\nmax_inflight_messages 0\n"
	    "log_dest stderr\nlog_type error\nlog_type warning\n%s",
	    stage->port, tls, geteuid() == 0 ? "user root\n" : "");
	if (stage_write(stage, "mosquitto.conf", config, text) != 0)
		return -1;
	return stage_run(stage, "mosquitto", argv, NULL, &stage->broker);
}

int
stage_start_nats(struct stage *stage, const struct bench_options *options)
{
	char config[PATH_MAX], tls[CONFIG_MAX] = "", text[2 * CONFIG_MAX];
	char *argv[] = { (char *)"nats-server", (char *)"-c", config, NULL };

	if (options->tls)
		snprintf(
		    tls, sizeof(tls), "tls { cert_file: \"%s\", key_file: \"%s\" }\n", stage->cert, stage->key);
	snprintf(text, sizeof(text), "listen: \"127.0.0.1:%u\"\njetstream { store_dir: \"%s/nats\" }\n%s",
	    stage->port, stage->folder, tls);
	if (stage_write(stage, "nats.conf", config, text) != 0)
		return -1;
	return stage_run(stage, "nats-server", argv, NULL, &stage->broker);
}

int
stage_start_redis(struct stage *stage, const struct bench_options *options)
{
	char config[PATH_MAX], tls[CONFIG_MAX] = "", text[2 * CONFIG_MAX];
	char *argv[] = { (char *)"redis-server", config, NULL };

	if (options->tls)
		snprintf(tls, sizeof(tls),
		    "tls-port %u\ntls-cert-file %s\ntls-key-file %s\ntls-ca-cert-file %s\ntls-auth-clients "
		    "no\n",
		    stage->port, stage->cert, stage->key, stage->cert);
	/* No disk; XADD trims the stream. */
	snprintf(text, sizeof(text), "bind 127.0.0.1\nport %u\nsave \"\"\nappendonly no\ndir %s\n%s",
	    options->tls ? 0u : stage->port, stage->folder, tls);
	if (stage_write(stage, "redis.conf", config, text) != 0)
		return -1;
	return stage_run(stage, "redis-server", argv, NULL, &stage->broker);
}
