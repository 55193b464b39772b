/*
 * Publishing through libnats with its own threads: JetStream with asynchronous acknowledgements, or
 * core NATS with a flush (a ping and its answer) for each window, which tidegated waits for, too.
 * A message for a stream has a Nats-Msg-Id, as tidegated's have, so that both are kept once.
 *
 * Acknowledgements come in on a thread of the library's. A wake-up for each would dominate the cost, so the
 * publisher sleeps until half of the messages in flight are answered.
 */
#include "build_config.h"

#ifdef HAVE_LIBNATS

#include "tools/bench/client.h"
#include "tools/common/clock.h"

#include <nats/nats.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TIMEOUT_MS 10000

struct nats_client {
	natsConnection *connection;
	jsCtx *stream; /* NULL: core */
	const char *topic;
	void *body;
	int body_len;
	uint64_t window;
	uint64_t published, collected;
	pthread_mutex_t lock;
	pthread_cond_t enough;
	char error[256];           /* under the lock: the error of the first message that failed */
	_Atomic uint64_t answered; /* by the library's thread */
	/*
	 * The publisher sleeps until so many are answered; UINT64_MAX: it does not sleep. It stores this and
	 * loads `answered`, the other thread stores `answered` and loads this: one of them sees the other.
	 */
	_Atomic uint64_t awaited;
};

static int
fail_nats(const char *what, natsStatus status)
{
	const char *detail = nats_GetLastError(NULL);

	return client_fail("libnats: %s: %s%s%s", what, natsStatus_GetText(status),
	    detail != NULL && detail[0] != '\0' ? ": " : "", detail != NULL ? detail : "");
}

static void
on_answer(jsCtx *stream, natsMsg *message, jsPubAck *ack, jsPubAckErr *error, void *self)
{
	struct nats_client *n = self;

	(void)stream;
	(void)ack;
	natsMsg_Destroy(message);
	if (client_answered != NULL)
		client_answered(1);
	if (error != NULL) {
		pthread_mutex_lock(&n->lock);
		if (n->error[0] == '\0')
			snprintf(n->error, sizeof(n->error), "code %d: %s", (int)error->ErrCode,
			    error->ErrText != NULL ? error->ErrText : natsStatus_GetText(error->Err));
		pthread_mutex_unlock(&n->lock);
	}
	if (atomic_fetch_add(&n->answered, 1) + 1 < atomic_load(&n->awaited))
		return;
	pthread_mutex_lock(&n->lock);
	pthread_cond_signal(&n->enough);
	pthread_mutex_unlock(&n->lock);
}

static void
close_nats(void *self)
{
	struct nats_client *n = self;

	if (n == NULL)
		return;
	jsCtx_Destroy(n->stream);
	natsConnection_Destroy(n->connection);
	/* Its threads have ended when this returns, so on_answer is not called any more. */
	nats_CloseAndWait(0);
	pthread_cond_destroy(&n->enough);
	pthread_mutex_destroy(&n->lock);
	free(n->body);
	free(n);
}

static void
await_answers(struct nats_client *n, int timeout_ms)
{
	struct timespec end = clock_timespec(clock_now_ns() + (uint64_t)timeout_ms * CLOCK_NS_PER_MS);
	uint64_t half = (n->published - n->collected + 1) / 2;

	pthread_mutex_lock(&n->lock);
	atomic_store(&n->awaited, n->collected + half);
	while (atomic_load(&n->answered) < n->collected + half)
		if (pthread_cond_timedwait(&n->enough, &n->lock, &end) != 0)
			break;
	atomic_store(&n->awaited, UINT64_MAX);
	pthread_mutex_unlock(&n->lock);
}

static int64_t
collect_nats(void *self, int timeout_ms)
{
	struct nats_client *n = self;
	natsStatus status;
	uint64_t finished;
	int failed;

	if (n->published == n->collected)
		return 0;
	if (n->stream == NULL) {
		status = natsConnection_FlushTimeout(n->connection, TIMEOUT_MS);
		if (status != NATS_OK)
			return fail_nats("flush", status);
		atomic_store(&n->answered, n->published);
	} else if (timeout_ms != 0) {
		await_answers(n, timeout_ms);
	}
	finished = atomic_load(&n->answered) - n->collected;
	n->collected += finished;
	pthread_mutex_lock(&n->lock);
	failed = n->error[0] != '\0' ? client_fail("libnats: a message was rejected: %s", n->error) : 0;
	pthread_mutex_unlock(&n->lock);
	return failed ? -1 : (int64_t)finished;
}

static natsStatus
publish_one(struct nats_client *n)
{
	jsPubOptions options;
	char id[48];

	if (n->stream == NULL)
		return natsConnection_Publish(n->connection, n->topic, n->body, n->body_len);
	jsPubOptions_Init(&options);
	snprintf(id, sizeof(id), "%x-%llx-%llx", (unsigned)getpid(), (unsigned long long)(uintptr_t)n,
	    (unsigned long long)n->published);
	options.MsgId = id;
	return js_PublishAsync(n->stream, n->topic, n->body, n->body_len, &options);
}

static int64_t
publish_nats(void *self, uint64_t count)
{
	struct nats_client *n = self;
	uint64_t taken;
	natsStatus status;

	for (taken = 0; taken < count; taken++) {
		if (n->published - n->collected >= n->window)
			break;
		status = publish_one(n);
		if (status != NATS_OK)
			return fail_nats("publish", status);
		n->published++;
	}
	return (int64_t)taken;
}

static natsStatus
set_options(natsOptions *o, const struct bench_options *options)
{
	char url[320];
	natsStatus status;

	snprintf(url, sizeof(url),
	    strchr(options->broker_host, ':') != NULL ? "nats://[%s]:%u" : "nats://%s:%u", options->broker_host,
	    options->broker_port);
	status = natsOptions_SetURL(o, url);
	if (status == NATS_OK)
		status = natsOptions_SetAllowReconnect(o, false);
	/* With one message in flight the publisher flushes it itself: the library's thread first sleeps 1 ms.
	 * */
	if (status == NATS_OK && options->batch == 1)
		status = natsOptions_SetSendAsap(o, true);
	if (status == NATS_OK && options->ca_file != NULL)
		status = natsOptions_SetSecure(o, true);
	if (status == NATS_OK && options->ca_file != NULL)
		status = natsOptions_LoadCATrustedCertificates(o, options->ca_file);
	return status;
}

static int
connect_nats(struct nats_client *n, const struct bench_options *options)
{
	natsOptions *o = NULL;
	jsOptions js;
	natsStatus status = natsOptions_Create(&o);

	if (status == NATS_OK)
		status = set_options(o, options);
	if (status == NATS_OK)
		status = natsConnection_Connect(&n->connection, o);
	natsOptions_Destroy(o);
	if (status == NATS_OK && !options->unconfirmed) {
		jsOptions_Init(&js);
		js.PublishAsync.AckHandler = on_answer;
		js.PublishAsync.AckHandlerClosure = n;
		status = natsConnection_JetStream(&n->stream, n->connection, &js);
	}
	if (status != NATS_OK)
		fail_nats("connect", status);
	return status == NATS_OK ? 0 : -1;
}

static void *
open_nats(const struct bench_options *options)
{
	struct nats_client *n = calloc(1, sizeof(*n));
	pthread_condattr_t attributes;
	int64_t finished;

	if (n == NULL || (n->body = client_body(options->size)) == NULL) {
		client_fail("out of memory");
		free(n);
		return NULL;
	}
	pthread_mutex_init(&n->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&n->enough, &attributes);
	pthread_condattr_destroy(&attributes);
	atomic_init(&n->awaited, UINT64_MAX);
	n->topic = options->topic;
	n->body_len = (int)options->size;
	n->window = client_window(&client_nats, options);
	if (connect_nats(n, options) != 0)
		goto failed;
	/* The same first message there and back as the other clients'. */
	if (publish_nats(n, 1) != 1)
		goto failed;
	finished = collect_nats(n, TIMEOUT_MS);
	if (finished == 1)
		return n;
	if (finished == 0)
		client_fail("libnats: the first message was not answered in %d ms", TIMEOUT_MS);
failed:
	close_nats(n);
	return NULL;
}

const struct load_client client_nats = {
	.name = "libnats",
	.protocol = "nats",
	.window = 1000,
	.direct = 1,
	.open = open_nats,
	.publish = publish_nats,
	.collect = collect_nats,
	.close = close_nats,
};

#endif
