/*
 * Publishing through librabbitmq: one thread, one channel with publisher confirms, and a window of messages
 * under way that is refilled as it empties. As tidegated's, messages are persistent and mandatory.
 */
#include "build_config.h"

#ifdef HAVE_LIBRABBITMQ

#include "tools/bench/client.h"

#include <amqp.h>
#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#define CHANNEL 1
#define FRAME_MAX 131072
#define TIMEOUT_S 10
#define TAGS 65536u /* more than the largest window: tags under way differ in their last 16 bits */
#define PERSISTENT 2

struct rabbitmq_client {
	amqp_connection_state_t connection;
	amqp_bytes_t exchange, key, body;
	amqp_basic_properties_t properties;
	void *bytes;
	uint64_t window;
	uint64_t published;  /* the last tag */
	uint64_t confirmed;  /* everything up to this tag is */
	uint64_t finished;   /* confirmed since the last collect */
	uint8_t early[TAGS]; /* confirmed before one in front of it */
	uint64_t earlies;
};

static int
fail_status(const char *what, int status)
{
	return client_fail("librabbitmq: %s: %s", what, amqp_error_string2(status));
}

/* The reason in the broker's close frame. */
static int
fail_closed(const char *what, const amqp_method_t *method)
{
	amqp_bytes_t text = amqp_empty_bytes;
	unsigned code = 0;

	if (method->id == AMQP_CHANNEL_CLOSE_METHOD) {
		const amqp_channel_close_t *m = method->decoded;

		text = m->reply_text;
		code = m->reply_code;
	} else if (method->id == AMQP_CONNECTION_CLOSE_METHOD) {
		const amqp_connection_close_t *m = method->decoded;

		text = m->reply_text;
		code = m->reply_code;
	} else if (method->id == AMQP_BASIC_RETURN_METHOD) {
		const amqp_basic_return_t *m = method->decoded;

		text = m->reply_text;
		code = m->reply_code;
	}
	return client_fail("librabbitmq: %s: %s: %u %.*s", what, amqp_method_name(method->id), code,
	    (int)text.len, (const char *)text.bytes);
}

static int
check_reply(const char *what, amqp_rpc_reply_t reply)
{
	if (reply.reply_type == AMQP_RESPONSE_NORMAL)
		return 0;
	if (reply.reply_type == AMQP_RESPONSE_SERVER_EXCEPTION)
		return fail_closed(what, &reply.reply);
	return fail_status(what, reply.library_error);
}

static void
close_rabbitmq(void *self)
{
	struct rabbitmq_client *r = self;

	if (r == NULL)
		return;
	if (r->connection != NULL) {
		amqp_connection_close(r->connection, AMQP_REPLY_SUCCESS);
		amqp_destroy_connection(r->connection);
	}
	free(r->bytes);
	free(r);
}

static void
confirm_up_to(struct rabbitmq_client *r, uint64_t tag)
{
	while (r->confirmed < tag || r->early[(r->confirmed + 1) % TAGS]) {
		uint8_t *early = &r->early[++r->confirmed % TAGS];

		r->finished += !*early;
		r->earlies -= *early;
		*early = 0;
	}
}

static int
on_ack(struct rabbitmq_client *r, const amqp_basic_ack_t *ack)
{
	if (ack->delivery_tag > r->published)
		return client_fail("librabbitmq: tag %llu is confirmed, the last published is %llu",
		    (unsigned long long)ack->delivery_tag, (unsigned long long)r->published);
	if (ack->multiple || ack->delivery_tag == r->confirmed + 1) {
		confirm_up_to(r, ack->delivery_tag != 0 ? ack->delivery_tag : r->published);
	} else if (ack->delivery_tag > r->confirmed && !r->early[ack->delivery_tag % TAGS]) {
		r->early[ack->delivery_tag % TAGS] = 1;
		r->earlies++;
		r->finished++;
	}
	return 0;
}

static int
on_frame(struct rabbitmq_client *r, const amqp_frame_t *frame)
{
	if (frame->frame_type != AMQP_FRAME_METHOD)
		return 0;
	if (frame->payload.method.id == AMQP_BASIC_ACK_METHOD)
		return on_ack(r, frame->payload.method.decoded);
	return fail_closed("a message was refused", &frame->payload.method);
}

static int64_t
collect_rabbitmq(void *self, int timeout_ms)
{
	struct rabbitmq_client *r = self;
	struct timeval timeout = { .tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000 };
	amqp_frame_t frame;
	uint64_t finished;
	int status;

	for (;;) {
		status = amqp_simple_wait_frame_noblock(r->connection, &frame, &timeout);
		if (status == AMQP_STATUS_TIMEOUT)
			break;
		if (status != AMQP_STATUS_OK)
			return fail_status("receive", status);
		if (on_frame(r, &frame) != 0)
			return -1;
		if (r->finished != 0 && !amqp_frames_enqueued(r->connection) &&
		    !amqp_data_in_buffer(r->connection))
			break;
	}
	amqp_maybe_release_buffers(r->connection);
	finished = r->finished;
	r->finished = 0;
	return (int64_t)finished;
}

static int64_t
publish_rabbitmq(void *self, uint64_t count)
{
	struct rabbitmq_client *r = self;
	uint64_t taken;
	int status;

	for (taken = 0; taken < count; taken++) {
		if (r->published - r->confirmed - r->earlies >= r->window ||
		    r->published - r->confirmed >= TAGS - 1)
			break;
		status = amqp_basic_publish(
		    r->connection, CHANNEL, r->exchange, r->key, 1, 0, &r->properties, r->body);
		if (status != AMQP_STATUS_OK)
			return fail_status("publish", status);
		r->published++;
	}
	return (int64_t)taken;
}

static amqp_socket_t *
new_socket(struct rabbitmq_client *r, const struct bench_options *options)
{
	amqp_socket_t *socket;

	if (options->ca_file == NULL)
		return amqp_tcp_socket_new(r->connection);
	socket = amqp_ssl_socket_new(r->connection);
	if (socket == NULL || amqp_ssl_socket_set_cacert(socket, options->ca_file) != AMQP_STATUS_OK)
		return NULL;
	amqp_ssl_socket_set_verify_peer(socket, 1);
	/* It compares host names only, and a broker on loopback is named by its address. */
	amqp_ssl_socket_set_verify_hostname(socket, 0);
	return socket;
}

static int
fd_rabbitmq(void *self)
{
	struct rabbitmq_client *r = self;

	return amqp_get_sockfd(r->connection);
}

static int
connect_rabbitmq(struct rabbitmq_client *r, const struct bench_options *options)
{
	struct timeval timeout = { .tv_sec = TIMEOUT_S };
	amqp_socket_t *socket;
	int status;

	r->connection = amqp_new_connection();
	socket = r->connection != NULL ? new_socket(r, options) : NULL;
	if (socket == NULL)
		return client_fail("librabbitmq: no socket");
	status = amqp_socket_open_noblock(socket, options->broker_host, options->broker_port, &timeout);
	if (status != AMQP_STATUS_OK)
		return client_fail("librabbitmq: connect to %s port %u: %s", options->broker_host,
		    options->broker_port, amqp_error_string2(status));
	if (check_reply("login",
		amqp_login(r->connection, "/", 0, FRAME_MAX, 0, AMQP_SASL_METHOD_PLAIN, "guest", "guest")) != 0)
		return -1;
	amqp_channel_open(r->connection, CHANNEL);
	if (check_reply("channel.open", amqp_get_rpc_reply(r->connection)) != 0)
		return -1;
	amqp_confirm_select(r->connection, CHANNEL);
	return check_reply("confirm.select", amqp_get_rpc_reply(r->connection));
}

/* Exchange and routing key by the rule of tidegated.conf(5). */
static void
split_topic(struct rabbitmq_client *r, const char *topic)
{
	const char *slash = strchr(topic, '/');

	r->exchange = slash != NULL ? (amqp_bytes_t){ (size_t)(slash - topic), (void *)(uintptr_t)topic }
				    : amqp_empty_bytes;
	r->key = amqp_cstring_bytes(slash != NULL ? slash + 1 : topic);
}

static void *
open_rabbitmq(const struct bench_options *options)
{
	struct rabbitmq_client *r = calloc(1, sizeof(*r));
	int64_t finished;

	if (r == NULL || (r->bytes = client_body(options->size)) == NULL) {
		client_fail("out of memory");
		goto failed;
	}
	split_topic(r, options->topic);
	r->body = (amqp_bytes_t){ (size_t)options->size, r->bytes };
	r->properties =
	    (amqp_basic_properties_t){ ._flags = AMQP_BASIC_DELIVERY_MODE_FLAG, .delivery_mode = PERSISTENT };
	r->window = client_window(&client_rabbitmq, options);
	if (connect_rabbitmq(r, options) != 0)
		goto failed;
	/* The same first message there and back as the other clients'. */
	if (publish_rabbitmq(r, 1) != 1)
		goto failed;
	finished = collect_rabbitmq(r, TIMEOUT_S * 1000);
	if (finished == 1)
		return r;
	if (finished == 0)
		client_fail("librabbitmq: the first message was not confirmed in %d s", TIMEOUT_S);
failed:
	close_rabbitmq(r);
	return NULL;
}

const struct load_client client_rabbitmq = {
	.name = "librabbitmq",
	.protocol = "amqp",
	.window = 1000,
	.direct = 1,
	.open = open_rabbitmq,
	.publish = publish_rabbitmq,
	.collect = collect_rabbitmq,
	.close = close_rabbitmq,
	.fd = fd_rabbitmq,
};

#endif
