/*
 * NATS as a publisher: core (TG_SENT) and JetStream (TG_DELIVERED by the stream's acknowledgement).
 *
 *   jetstream = true | false   default true
 *   msg_id = true | false      default true: Nats-Msg-Id, so that a stream drops what is sent twice
 *   learn_endpoints = true | false   default true: INFO's connect_urls are said as EV_ENDPOINT
 *   handshake_first = true | false   default false: TLS begins before INFO, as the server's setting of that name has it
 *   username, password_file    or token_file, or nkey_seed_file
 *
 * The topic is the subject. Headers are NATS headers in their order; a key that is not empty is one
 * more of the name Tidegate-Key. The message's deadline has no place in the protocol.
 *
 * Nats-Msg-Id is message_id(). A producer's own header of that name is refused: with the id of another's message it
 * would have that dropped, and acknowledged, as a duplicate.
 */
#include "nats.h"
#include "daemon/base/utf8.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <stdlib.h>
#include <string.h>

/* A secret that will stand in JSON. */
static const char *
check_text(const char *value, char *cause, size_t size)
{
	size_t offset = 0;
	enum utf8_fault fault = utf8_check((const uint8_t *)value, strlen(value), "\0", &offset);

	if (fault == UTF8_PLAIN)
		return NULL;
	snprintf(cause, size, "its content %s at byte %zu", utf8_fault_text(fault), offset);
	return cause;
}

static const char *
check_seed(const char *value, char *cause, size_t size)
{
	struct nats_nkey nkey;

	(void)cause;
	(void)size;
	const char *wrong = nats_nkey_read(&nkey, value);
	nats_nkey_fini(&nkey);
	return wrong;
}

static int
configure(void *settings, struct config_node *group)
{
	struct nats_settings *nats = settings;
	int bad = 0;

	nats->jetstream = nats->msg_id = nats->learn_endpoints = 1;
	bad |= config_node_bool(group, "jetstream", &nats->jetstream) < 0;
	bad |= config_node_bool(group, "msg_id", &nats->msg_id) < 0;
	bad |= config_node_bool(group, "learn_endpoints", &nats->learn_endpoints) < 0;
	bad |= config_node_bool(group, "handshake_first", &nats->handshake_first) < 0;
	int username = driver_read_text(group, "username", &nats->username, 1, NATS_CREDENTIAL_MAX);
	int password =
	    config_node_secret(group, "password_file", &nats->password, NATS_CREDENTIAL_MAX, check_text);
	int token = config_node_secret(group, "token_file", &nats->token, NATS_CREDENTIAL_MAX, check_text);
	int nkey =
	    config_node_secret(group, "nkey_seed_file", &nats->nkey_seed, NATS_SEED_TEXT + 1, check_seed);
	if (username == -TG_ENOMEM || password == -TG_ENOMEM || token == -TG_ENOMEM || nkey == -TG_ENOMEM)
		return -TG_ENOMEM;
	bad |= username < 0 || password < 0 || token < 0 || nkey < 0;
	if (password > 0 && username == 0)
		bad |= config_node_error(group, "password_file", "a password needs a username") != 0;
	if (token > 0 && username > 0)
		bad |= config_node_error(group, "token_file", "a token and a username exclude each other") != 0;
	if (nkey > 0 && (username > 0 || token > 0))
		bad |= config_node_error(
			   group, "nkey_seed_file", "an nkey and a username or token exclude each other") != 0;
	bad |= config_node_done(group) != 0;
	return bad ? -TG_EINVAL : 0;
}

static void
settings_free(void *settings)
{
	struct nats_settings *nats = settings;

	free(nats->username);
	config_secret_fini(&nats->password);
	config_secret_fini(&nats->token);
	config_secret_fini(&nats->nkey_seed);
	memset(nats, 0, sizeof(*nats));
}

static int
tls_first(const void *settings)
{
	return ((const struct nats_settings *)settings)->handshake_first;
}

/* The server speaks first; after EV_TLS it has, and it is our turn. */
static int
start(struct session *session, struct out *out)
{
	struct nats_session *nats = nats_session(session);

	return nats->state == NATS_SECURING ? nats_connect(nats, out) : 0;
}

static int
flush(struct session *session, struct out *out)
{
	return nats_flush_core(nats_session(session), out);
}

static int
probe(struct session *session, struct out *out)
{
	struct nats_session *nats = nats_session(session);
	int rc = nats_ping_probe(nats, out);

	if (rc == 0 && nats->asking > 0)
		rc = nats_ask_again(nats, out);
	return rc == 0 ? nats_ask_silent(nats, out) : rc;
}

const struct driver driver_nats = {
	.name = "nats",
	.default_port = 4222,
	.tls_port = 4222,
	.settings_size = sizeof(struct nats_settings),
	.session_size = sizeof(struct nats_session),
	.flags = DRIVER_F_SERVER_FIRST | DRIVER_F_REPLAYABLE,
	.secrets = { offsetof(struct nats_settings, password), offsetof(struct nats_settings, token),
	    offsetof(struct nats_settings, nkey_seed) },
	.secret_count = 3,
	.configure = configure,
	.settings_free = settings_free,
	.tls_first = tls_first,
	.open = nats_open,
	.close = nats_close,
	.start = start,
	.input = nats_input,
	.publish = nats_publish,
	.flush = flush,
	.probe = probe,
	.save = nats_save,
	.restore = nats_restore,
};
