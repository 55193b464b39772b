/*
 * STOMP 1.2, as a publisher: SEND with a receipt, TG_DELIVERED by RECEIPT.
 *
 *   login, passcode_file   a file with the passcode
 *   vhost                  the header `host`; default: the host of the broker's address
 *   heartbeat_ms           the longest silence that is promised to the broker, 0: none; default: as
 *                          MQTT's keep-alive, four times health.idle_ms and at least 10 s
 *   persistent             default true: the header persistent:true
 *   content_type           of messages that have no such header of their own; default: none
 *
 * The topic is the destination, as it is. A key that is not empty is the header tidegate-key, other
 * headers go with their names. The broker is asked for no heart-beats: one says that a timer of the
 * broker's runs, and would postpone the probe that says more. The probe begins a transaction and
 * aborts it with a receipt: a heart-beat has no answer.
 */
#include "stomp.h"
#include "daemon/base/utf8.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEARTBEAT_AUTO UINT32_MAX
#define HEARTBEAT_MIN 1000u /* shorter promises could not be kept: EV_KEEPALIVE has seconds */

static int
stomp_configure(void *settings, struct config_node *group)
{
	struct stomp_settings *stomp = settings;
	int bad = 0;

	stomp->persistent = 1;
	stomp->heartbeat_ms = HEARTBEAT_AUTO;
	int login = driver_read_text(group, "login", &stomp->login, 1, STOMP_TEXT_MAX);
	int passcode = config_node_secret(group, "passcode_file", &stomp->passcode, STOMP_TEXT_MAX, NULL);
	int vhost = driver_read_text(group, "vhost", &stomp->vhost, 1, STOMP_TEXT_MAX);
	int type = driver_read_text(group, "content_type", &stomp->content_type, 1, STOMP_TEXT_MAX);
	bad |= config_node_u32(group, "heartbeat_ms", &stomp->heartbeat_ms, 0, 3600000) < 0;
	if (stomp->heartbeat_ms > 0 && stomp->heartbeat_ms < HEARTBEAT_MIN) {
		config_node_refuse(
		    group, "heartbeat_ms", "0, or a whole number from %u to 3600000", HEARTBEAT_MIN);
		bad = 1;
	}
	bad |= config_node_bool(group, "persistent", &stomp->persistent) < 0;
	if (login == -TG_ENOMEM || passcode == -TG_ENOMEM || vhost == -TG_ENOMEM || type == -TG_ENOMEM)
		return -TG_ENOMEM;
	bad |= login < 0 || passcode < 0 || vhost < 0 || type < 0;
	if (login == 0 && passcode > 0) {
		config_node_error(group, "passcode_file", "there is no login that it is for");
		bad = 1;
	}
	if (stomp->content_type != NULL && strpbrk(stomp->content_type, ":\\") != NULL) {
		config_node_refuse(group, "content_type", "a media type, such as \"application/json\"");
		bad = 1;
	}
	bad |= config_node_done(group) != 0;
	stomp->constant = strdup(stomp->persistent ? "\npersistent:true" : "");
	if (stomp->constant == NULL)
		return -TG_ENOMEM;
	stomp->constant_len = strlen(stomp->constant);
	return bad ? -TG_EINVAL : 0;
}

static void
stomp_settings_free(void *settings)
{
	struct stomp_settings *stomp = settings;

	free(stomp->login);
	config_secret_fini(&stomp->passcode);
	free(stomp->vhost);
	free(stomp->content_type);
	free(stomp->constant);
	memset(stomp, 0, sizeof(*stomp));
}

static int
stomp_open(struct session *session)
{
	struct stomp_session *stomp = stomp_session(session);

	stomp->login = ((const struct stomp_settings *)session->settings)->login;
	return window_init(&stomp->unanswered, session, TG_DELIVERED, window_room(session->params->window));
}

static void
stomp_close(struct session *session)
{
	struct stomp_session *stomp = stomp_session(session);

	window_fini(&stomp->unanswered);
	stomp->state = STOMP_CLOSED;
}

static void
append(struct out *out, const char *text)
{
	out_copy(out, text, strlen(text));
}

static int
stomp_start(struct session *session, struct out *out)
{
	struct stomp_session *stomp = stomp_session(session);
	const struct stomp_settings *settings = session->settings;
	const char *host = session->params->host;
	uint64_t ours = settings->heartbeat_ms;
	char beat[64];

	if (settings->vhost != NULL)
		host = settings->vhost;
	else if (host == NULL || host[0] == '\0' || host[0] == '/')
		host = "localhost"; /* a unix socket has no name, and the header must have a value */
	if (ours == HEARTBEAT_AUTO)
		ours = session->params->keepalive_s * UINT64_C(1000);
	stomp->heartbeat_ms = ours < UINT32_MAX ? (uint32_t)ours : UINT32_MAX;
	snprintf(beat, sizeof(beat), "\nheart-beat:%u,0", stomp->heartbeat_ms);
	out_mark(out);
	append(out, "CONNECT\naccept-version:1.2\nhost:");
	append(out, host);
	append(out, beat);
	if (settings->login != NULL) {
		append(out, "\nlogin:");
		append(out, settings->login);
	}
	if (settings->passcode.value != NULL) {
		append(out, "\npasscode:");
		append(out, settings->passcode.value);
		out_secret(out);
	}
	out_copy(out, "\n\n", 3); /* and the zero */
	int rc = out_commit(out);
	if (rc == 0)
		stomp->state = STOMP_CONNECTING;
	return rc;
}

static int
stomp_probe(struct session *session, struct out *out)
{
	struct stomp_session *stomp = stomp_session(session);
	char text[160];
	unsigned long long n = stomp->probe_next;

	int len = snprintf(text, sizeof(text),
	    "BEGIN\ntransaction:p%llu\n\n%cABORT\ntransaction:p%llu\nreceipt:p%llu\n\n", n, 0, n, n);
	int rc = out_frame(out, text, (size_t)len + 1);
	if (rc == 0)
		stomp->probe_next++;
	return rc;
}

static int
stomp_goodbye(struct session *session, struct out *out)
{
	(void)session;
	return out_frame(out, "DISCONNECT\n\n", 13); /* and the zero */
}

const struct driver driver_stomp = {
	.name = "stomp",
	.default_port = 61613,
	.tls_port = 61614,
	.settings_size = sizeof(struct stomp_settings),
	.session_size = sizeof(struct stomp_session),
	.flags = DRIVER_F_REPLAYABLE,
	.secrets = { offsetof(struct stomp_settings, passcode) },
	.secret_count = 1,
	.configure = stomp_configure,
	.settings_free = stomp_settings_free,
	.open = stomp_open,
	.close = stomp_close,
	.start = stomp_start,
	.input = stomp_input,
	.publish = stomp_publish,
	.probe = stomp_probe,
	.goodbye = stomp_goodbye,
};
