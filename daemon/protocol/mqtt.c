/*
 * MQTT 3.1.1 and 5, as a publisher: QoS 0 (TG_SENT) and QoS 1 (TG_DELIVERED by PUBACK).
 *
 *   version = "auto" | 4 | 5 4 is 3.1.1; default "auto": 5, or 3.1.1 if the broker speaks no 5
 *   qos = 0 | 1              default 1
 *   username, password_file  a file with the password
 *   dollar_topics            false: topics that begin with $ are refused; $SYS always is
 *   client_id_prefix         in front of the link's own name; default "tidegate-"
 *
 * Every connection is a new session (clean start): the link resends unanswered messages,
 * under a new packet id and without DUP, which would mean nothing here.
 *
 * Headers are v5 user properties in their order, a key that is not empty is one more of the name
 * tidegate-key. 3.1.1 can express neither: there a message with headers is rejected, and a key only
 * chooses the link.
 */
#include "mqtt.h"
#include "daemon/base/utf8.h"

#include "daemon/config/config_node.h"
#include "daemon/config/config_secret.h"
#include "shm/error.h"

#include <stdlib.h>

#define MQTT_PREFIX_MAX 64u

struct mqtt_settings {
	uint32_t version; /* as on the wire, 4 or 5; 0: "auto" */
	uint32_t qos;
	int dollar_topics;
	char *username;
	struct config_secret password;
	char *client_id_prefix;
};

/* A number, or the word "auto". Returns 0 or -TG_EINVAL. */
static int
read_version(struct config_node *group, uint32_t *version)
{
	static const struct config_choice words[] = { { "auto", 0 }, { NULL, 0 } };
	const config_setting_t *setting =
	    group->setting != NULL ? config_setting_get_member(group->setting, "version") : NULL;
	int word = 0;

	if (setting != NULL && config_setting_is_number(setting))
		return config_node_u32(group, "version", version, 4, 5) < 0 ? -TG_EINVAL : 0;
	return config_node_choice(group, "version", &word, words) < 0 ? -TG_EINVAL : 0;
}

static int
mqtt_configure(void *settings, struct config_node *group)
{
	struct mqtt_settings *mqtt = settings;
	int bad = 0;

	mqtt->qos = 1;
	bad |= read_version(group, &mqtt->version) < 0;
	bad |= config_node_u32(group, "qos", &mqtt->qos, 0, 1) < 0;
	bad |= config_node_bool(group, "dollar_topics", &mqtt->dollar_topics) < 0;
	int username = driver_read_text(group, "username", &mqtt->username, 1, MQTT_STRING_MAX);
	int password = config_node_secret(group, "password_file", &mqtt->password, MQTT_STRING_MAX, NULL);
	int prefix = driver_read_text(group, "client_id_prefix", &mqtt->client_id_prefix, 0, MQTT_PREFIX_MAX);
	if (username == -TG_ENOMEM || password == -TG_ENOMEM || prefix == -TG_ENOMEM)
		return -TG_ENOMEM;
	bad |= username < 0 || password < 0 || prefix < 0;
	if (mqtt->version == 4 && username == 0 && password > 0) {
		config_node_error(group, "password_file", "MQTT 3.1.1 has no password without a username");
		bad = 1;
	}
	bad |= config_node_done(group) != 0;
	return bad ? -TG_EINVAL : 0;
}

static void
mqtt_settings_free(void *settings)
{
	struct mqtt_settings *mqtt = settings;

	free(mqtt->username);
	config_secret_fini(&mqtt->password);
	free(mqtt->client_id_prefix);
	memset(mqtt, 0, sizeof(*mqtt));
}

static int
mqtt_open(struct session *session)
{
	struct mqtt_session *mqtt = mqtt_session(session);
	const struct mqtt_settings *settings = session->settings;

	mqtt->version = mqtt_version_choose(mqtt, settings->version);
	mqtt->dollar_topics = settings->dollar_topics != 0;
	mqtt->qos = (uint8_t)settings->qos;
	mqtt->retain_available = 1;
	mqtt->max_packet = 1 + 4 + MQTT_REMAINING_MAX;
	mqtt->window = session->params->window;
	if (mqtt->window == 0 || mqtt->window >= MQTT_IDS)
		mqtt->window = MQTT_IDS;
	return window_init(&mqtt->unanswered, session, TG_DELIVERED, MQTT_IDS);
}

static void
mqtt_close(struct session *session)
{
	struct mqtt_session *mqtt = mqtt_session(session);

	window_fini(&mqtt->unanswered);
	mqtt->state = MQTT_CLOSED;
}

static int
mqtt_start(struct session *session, struct out *out)
{
	struct mqtt_session *mqtt = mqtt_session(session);
	const struct mqtt_settings *settings = session->settings;
	const char *prefix = settings->client_id_prefix != NULL ? settings->client_id_prefix : "tidegate-";
	const char *name = session->params->client_id != NULL ? session->params->client_id : "";
	const char *username = settings->username;
	/* 3.1.1 has no password without a user name: the result of "auto" is then refused in the broker's
	 * words. */
	const char *password = username != NULL || mqtt->version == 5 ? settings->password.value : NULL;
	size_t prefix_len = strlen(prefix), name_len = strlen(name);
	size_t username_len = username != NULL ? strlen(username) : 0;
	size_t password_len = password != NULL ? strlen(password) : 0;
	size_t remaining = 6 + 1 + 1 + 2 + (mqtt->version == 5 ? 6u : 0u) + 2 + prefix_len + name_len +
			   (username != NULL ? 2 + username_len : 0) +
			   (password != NULL ? 2 + password_len : 0);
	uint32_t keep_alive = session->params->keepalive_s;
	uint8_t head[32], *at = head;

	if (prefix_len + name_len > MQTT_STRING_MAX)
		return -TG_EINVAL;
	*at++ = MQTT_CONNECT << 4;
	at = mqtt_put_length(at, remaining);
	at = mqtt_put_string(at, "MQTT", 4);
	*at++ = mqtt->version;
	*at++ = (uint8_t)((username != NULL ? 0x80u : 0u) | (password != NULL ? 0x40u : 0u) | 0x02u);
	at = mqtt_put_u16(at, keep_alive < 0xffff ? keep_alive : 0xffff);
	if (mqtt->version == 5) {
		*at++ = 5;
		*at++ = PROPERTY_MAXIMUM_PACKET_SIZE; /* reason strings larger than we would read */
		at = mqtt_put_u32(at, DRIVER_INPUT_MAX);
	}
	at = mqtt_put_u16(at, (uint32_t)(prefix_len + name_len));

	uint8_t lens[4];
	mqtt_put_u16(lens, (uint32_t)username_len);
	mqtt_put_u16(lens + 2, (uint32_t)password_len);
	out_mark(out);
	out_copy(out, head, (size_t)(at - head));
	out_copy(out, prefix, prefix_len);
	out_copy(out, name, name_len);
	if (username != NULL) {
		out_copy(out, lens, 2);
		out_copy(out, username, username_len);
	}
	if (password != NULL) {
		out_copy(out, lens + 2, 2);
		out_copy(out, password, password_len);
		out_secret(out);
	}
	int rc = out_commit(out);
	if (rc == 0)
		mqtt->state = MQTT_CONNECTING;
	return rc;
}

static int
send_bare(struct out *out, enum mqtt_type type)
{
	uint8_t packet[2] = { (uint8_t)(type << 4), 0 };

	return out_frame(out, packet, sizeof(packet));
}

static int
mqtt_probe(struct session *session, struct out *out)
{
	int rc = send_bare(out, MQTT_PINGREQ);

	if (rc == 0)
		mqtt_session(session)->probes++;
	return rc;
}

static int
mqtt_goodbye(struct session *session, struct out *out)
{
	return send_bare(out, MQTT_DISCONNECT);
}

const struct driver driver_mqtt = {
	.name = "mqtt",
	.default_port = 1883,
	.tls_port = 8883,
	.settings_size = sizeof(struct mqtt_settings),
	.session_size = sizeof(struct mqtt_session),
	.memory_size = sizeof(struct mqtt_memory),
	.alpn = "mqtt",
	.flags = DRIVER_F_REPLAYABLE,
	.secrets = { offsetof(struct mqtt_settings, password) },
	.secret_count = 1,
	.configure = mqtt_configure,
	.settings_free = mqtt_settings_free,
	.open = mqtt_open,
	.close = mqtt_close,
	.start = mqtt_start,
	.input = mqtt_input,
	.publish = mqtt_publish,
	.probe = mqtt_probe,
	.goodbye = mqtt_goodbye,
	.unheard = mqtt_unheard,
	.speaks = mqtt_speaks,
};
