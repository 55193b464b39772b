/*
 * Publishing through libmosquitto: MQTT 3.1.1, QoS 1 (0 if unconfirmed: a message is finished when the
 * library has written it), without its thread, Nagle off, and a window of messages under way that is refilled
 * as it empties. A broker with Nagle on (mosquitto as it comes) holds back the last acknowledgements of a
 * window; refilled at half-empty, libmosquitto then waits for our kernel's delayed acknowledgement, so here the
 * continuous refill is the fast one. So is a window of 100 among 20, 100, 1,000 and 10,000.
 */
#include "build_config.h"

#ifdef HAVE_LIBMOSQUITTO

#include "tools/bench/client.h"
#include "tools/common/clock.h"

#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPEN_TIMEOUT_MS 10000
#define KEEPALIVE_S 60

struct mosquitto_client {
	struct mosquitto *mosq;
	const char *topic;
	void *body;
	int body_len;
	int qos;
	uint64_t window;
	uint64_t under_way; /* published and not acknowledged */
	uint64_t finished;  /* acknowledged since the last collect */
	int refused;        /* a reason code of CONNACK */
	int connected;
};

static void
on_connect(struct mosquitto *mosq, void *self, int code)
{
	struct mosquitto_client *m = self;

	(void)mosq;
	m->connected = code == 0;
	m->refused = code;
}

static void
on_publish(struct mosquitto *mosq, void *self, int id)
{
	struct mosquitto_client *m = self;

	(void)mosq;
	(void)id;
	m->finished++;
	m->under_way--;
}

static void
close_mosquitto(void *self)
{
	struct mosquitto_client *m = self;

	if (m == NULL)
		return;
	if (m->mosq != NULL) {
		mosquitto_disconnect(m->mosq);
		mosquitto_destroy(m->mosq);
	}
	mosquitto_lib_cleanup();
	free(m->body);
	free(m);
}

static int
turn(struct mosquitto_client *m, int timeout_ms)
{
	int error;

	/* An event loop's way, without the select() of mosquitto_loop(). */
	if (timeout_ms == 0) {
		error = mosquitto_loop_read(m->mosq, 1);
		if (error == MOSQ_ERR_SUCCESS && mosquitto_want_write(m->mosq))
			error = mosquitto_loop_write(m->mosq, 1);
		if (error == MOSQ_ERR_SUCCESS)
			error = mosquitto_loop_misc(m->mosq);
	} else {
		error = mosquitto_loop(m->mosq, timeout_ms, 1);
	}

	return error == MOSQ_ERR_SUCCESS ? 0 : client_fail("libmosquitto: %s", mosquitto_strerror(error));
}

static int64_t
collect_mosquitto(void *self, int timeout_ms)
{
	struct mosquitto_client *m = self;
	uint64_t finished;

	if (m->finished == 0 && turn(m, timeout_ms) != 0)
		return -1;
	finished = m->finished;
	m->finished = 0;
	return (int64_t)finished;
}

static int64_t
publish_mosquitto(void *self, uint64_t count)
{
	struct mosquitto_client *m = self;
	uint64_t taken = 0;
	int error;

	while (m->under_way < m->window && taken < count) {
		error = mosquitto_publish(m->mosq, NULL, m->topic, m->body_len, m->body, m->qos, false);
		if (error != MOSQ_ERR_SUCCESS)
			return client_fail("libmosquitto: publish: %s", mosquitto_strerror(error));
		m->under_way++;
		taken++;
	}
	return (int64_t)taken;
}

static int
fd_mosquitto(void *self)
{
	struct mosquitto_client *m = self;

	return mosquitto_socket(m->mosq);
}

static int
connect_mosquitto(struct mosquitto_client *m, const struct bench_options *options)
{
	uint64_t deadline = clock_now_ns() + OPEN_TIMEOUT_MS * CLOCK_NS_PER_MS;
	int error;

	mosquitto_connect_callback_set(m->mosq, on_connect);
	mosquitto_publish_callback_set(m->mosq, on_publish);
	mosquitto_int_option(m->mosq, MOSQ_OPT_TCP_NODELAY, 1);
	mosquitto_max_inflight_messages_set(m->mosq, (unsigned)m->window);
	if (options->ca_file != NULL) {
		error = mosquitto_tls_set(m->mosq, options->ca_file, NULL, NULL, NULL, NULL);
		if (error != MOSQ_ERR_SUCCESS)
			return client_fail("libmosquitto: %s: %s", options->ca_file, mosquitto_strerror(error));
	}
	error = mosquitto_connect(m->mosq, options->broker_host, options->broker_port, KEEPALIVE_S);
	if (error != MOSQ_ERR_SUCCESS)
		return client_fail("libmosquitto: connect to %s port %u: %s", options->broker_host,
		    options->broker_port, mosquitto_strerror(error));
	while (!m->connected) {
		if (turn(m, 100) != 0)
			return -1;
		if (m->refused != 0)
			return client_fail("libmosquitto: %s port %u: %s", options->broker_host,
			    options->broker_port, mosquitto_connack_string(m->refused));
		if (clock_now_ns() > deadline)
			return client_fail("libmosquitto: %s port %u: no CONNACK in %d ms",
			    options->broker_host, options->broker_port, OPEN_TIMEOUT_MS);
	}
	return 0;
}

static void *
open_mosquitto(const struct bench_options *options)
{
	struct mosquitto_client *m = calloc(1, sizeof(*m));

	mosquitto_lib_init();
	if (m == NULL || (m->body = client_body(options->size)) == NULL ||
	    (m->mosq = mosquitto_new(NULL, true, m)) == NULL) {
		client_fail("out of memory");
		goto failed;
	}
	m->topic = options->topic;
	m->body_len = (int)options->size;
	m->qos = options->unconfirmed ? 0 : 1;
	m->window = client_window(&client_mosquitto, options);
	if (connect_mosquitto(m, options) != 0)
		goto failed;
	/* The same first message there and back as the other clients'. */
	if (publish_mosquitto(m, 1) != 1)
		goto failed;
	while (m->finished == 0)
		if (turn(m, 100) != 0)
			goto failed;
	m->finished = 0;
	return m;
failed:
	close_mosquitto(m);
	return NULL;
}

static void
targets_mosquitto(const struct bench_options *options, char text[2][256])
{
	snprintf(text[0], sizeof(text[0]), "%s", options->broker_host);
	snprintf(text[1], sizeof(text[1]), "%u", options->broker_port);
}

const struct load_client client_mosquitto = {
	.name = "libmosquitto",
	.protocol = "mqtt",
	.helper = "tidegate-once-mosquitto",
	.window = 100,
	.direct = 1,
	.open = open_mosquitto,
	.publish = publish_mosquitto,
	.collect = collect_mosquitto,
	.close = close_mosquitto,
	.fd = fd_mosquitto,
	.targets = targets_mosquitto,
};

#endif
