/*
 * AMQP 0-9-1 as RabbitMQ speaks it, as a publisher with confirms: TG_DELIVERED by basic.ack.
 *
 *   vhost                    default "/"
 *   exchange                 fixed: the topic is the routing key; default none: the topic is
 *                            "exchange/routing.key", without a slash a queue's name
 *   mandatory, persistent    default true, true
 *   username, password_file  default guest and its well-known password
 *   sasl                     "plain" | "external"; default "plain"
 *   heartbeat_s              default what the pool's health asks for
 *   channels                 how many exchanges have messages under way at a time; default 64
 *   content_type             of every message; default none
 *
 * Headers are the headers table's long strings in their order, a key that is not empty is one more
 * of the name tidegate-key. A message's expiration is the rest of its expiry; its message id is
 * message_id().
 */
#include "amqp.h"
#include "daemon/base/utf8.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <stdlib.h>

#define HEARTBEAT_MAX_S 600u

/* Which of user and password go with the mechanism. */
static int
check_credentials(struct amqp_settings *amqp, struct config_node *group)
{
	if (amqp->sasl == SASL_EXTERNAL && amqp->password.value != NULL)
		return config_node_error(group, "password_file", "sasl = \"external\" has no password");
	if (amqp->sasl == SASL_EXTERNAL)
		return 0;
	if (amqp->username != NULL && amqp->password.value == NULL)
		return config_node_error(group, "username", "sasl = \"plain\" needs a password_file with it");
	if (amqp->username == NULL && amqp->password.value != NULL)
		return config_node_error(group, "password_file", "sasl = \"plain\" needs a username with it");
	return 0;
}

static int
amqp_configure(void *settings, struct config_node *group)
{
	static const struct config_choice sasls[] = { { "plain", SASL_PLAIN }, { "external", SASL_EXTERNAL },
		{ NULL, 0 } };
	struct amqp_settings *amqp = settings;
	int bad = 0, text[6];

	amqp->mandatory = amqp->persistent = 1;
	amqp->channels = 64;
	text[0] = driver_read_text(group, "vhost", &amqp->vhost, 1, AMQP_SHORT_MAX);
	text[1] = driver_read_text(group, "exchange", &amqp->exchange, 0, AMQP_SHORT_MAX);
	bad |= config_node_bool(group, "mandatory", &amqp->mandatory) < 0;
	bad |= config_node_bool(group, "persistent", &amqp->persistent) < 0;
	text[2] = driver_read_text(group, "username", &amqp->username, 1, AMQP_SHORT_MAX);
	text[3] = config_node_secret(group, "password_file", &amqp->password, AMQP_SHORT_MAX, NULL);
	bad |= config_node_choice(group, "sasl", &amqp->sasl, sasls) < 0;
	bad |= config_node_u32(group, "heartbeat_s", &amqp->heartbeat_s, 1, HEARTBEAT_MAX_S) < 0;
	bad |= config_node_u32(group, "channels", &amqp->channels, 1, AMQP_CHANNELS_MAX) < 0;
	text[4] = driver_read_text(group, "content_type", &amqp->content_type, 1, AMQP_SHORT_MAX);
	text[5] = 0;
	if (text[0] == 0 && (amqp->vhost = strdup("/")) == NULL)
		return -TG_ENOMEM;
	for (int i = 0; i < 6; i++) {
		if (text[i] == -TG_ENOMEM)
			return -TG_ENOMEM;
		bad |= text[i] < 0;
	}
	if (!bad)
		bad |= check_credentials(amqp, group) != 0;
	bad |= config_node_done(group) != 0;
	return bad ? -TG_EINVAL : 0;
}

static void
amqp_settings_free(void *settings)
{
	struct amqp_settings *amqp = settings;

	free(amqp->vhost);
	free(amqp->exchange);
	free(amqp->username);
	config_secret_fini(&amqp->password);
	free(amqp->content_type);
	memset(amqp, 0, sizeof(*amqp));
}

static int
amqp_start(struct session *session, struct out *out)
{
	int rc = out_frame(out, "AMQP\0\0\x09\x01", 8);

	if (rc == 0)
		amqp_session(session)->state = AMQP_STARTING;
	return rc;
}

/* There is no ping: asking once more for confirms is answered by the channel's process. */
static int
amqp_probe(struct session *session, struct out *out)
{
	uint8_t frame[16];
	uint8_t *at = amqp_begin_method(frame, AMQP_PROBE_CHANNEL, CONFIRM_SELECT);

	at = amqp_end_method(frame, amqp_put_u8(at, 0));
	int rc = out_frame(out, frame, (size_t)(at - frame));
	if (rc == 0)
		amqp_session(session)->probes++;
	return rc;
}

static int
amqp_goodbye(struct session *session, struct out *out)
{
	uint8_t frame[32];
	uint8_t *at = amqp_begin_method(frame, 0, CONNECTION_CLOSE);

	at = amqp_put_short(amqp_put_u16(at, 200), "goodbye", 7);
	at = amqp_end_method(frame, amqp_put_u32(at, 0));
	amqp_session(session)->leaving = 1;
	return out_frame(out, frame, (size_t)(at - frame));
}

const struct driver driver_amqp = {
	.name = "amqp",
	.default_port = 5672,
	.tls_port = 5671,
	.settings_size = sizeof(struct amqp_settings),
	.session_size = sizeof(struct amqp_session),
	.flags = DRIVER_F_REPLAYABLE,
	.secrets = { offsetof(struct amqp_settings, password) },
	.secret_count = 1,
	.configure = amqp_configure,
	.settings_free = amqp_settings_free,
	.open = amqp_open,
	.close = amqp_close,
	.start = amqp_start,
	.input = amqp_input,
	.publish = amqp_publish,
	.probe = amqp_probe,
	.goodbye = amqp_goodbye,
	.save = amqp_save,
	.restore = amqp_restore,
};
