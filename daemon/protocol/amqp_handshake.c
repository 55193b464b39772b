/* From the protocol header to EV_UP: start, tune, open, and channel 1 with confirms. */
#include "amqp.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <string.h>

#define START_OK_MAX (1024u + 3 * AMQP_SHORT_MAX) /* user, password, connection name and fixed text */

static const char *const capabilities[] = {
	"publisher_confirms",
	"basic.nack",
	"connection.blocked",           /* without it an alarm would be silence */
	"authentication_failure_close", /* without it a wrong password would be a reset */
	"consumer_cancel_notify",
};

static uint8_t *
put_text_field(uint8_t *at, const char *name, const char *value, size_t value_len)
{
	at = amqp_put_u8(amqp_put_short(at, name, strlen(name)), 'S');
	return amqp_put_long(at, value, value_len);
}

static uint8_t *
put_client_properties(uint8_t *at, const char *client_id)
{
	uint8_t *table = at, *inner;

	at = put_text_field(at + 4, "product", "tidegate", 8);
	at = put_text_field(at, "connection_name", client_id, strnlen(client_id, AMQP_SHORT_MAX));
	at = amqp_put_u8(amqp_put_short(at, "capabilities", 12), 'F');
	inner = at;
	at += 4;
	for (size_t i = 0; i < sizeof(capabilities) / sizeof(capabilities[0]); i++) {
		at = amqp_put_short(at, capabilities[i], strlen(capabilities[i]));
		at = amqp_put_u8(amqp_put_u8(at, 't'), 1);
	}
	amqp_put_u32(inner, (uint32_t)(at - inner - 4));
	amqp_put_u32(table, (uint32_t)(at - table - 4));
	return at;
}

static int
send_start_ok(struct amqp_session *amqp, struct out *out)
{
	const struct amqp_settings *settings = amqp->base.settings;
	const char *client_id = amqp->base.params->client_id != NULL ? amqp->base.params->client_id : "";
	const char *username = settings->username != NULL ? settings->username : "guest";
	const char *password = settings->password.value != NULL ? settings->password.value : "guest";
	const char *mechanism = settings->sasl == SASL_EXTERNAL ? "EXTERNAL" : "PLAIN";

	uint8_t frame[START_OK_MAX], *response;
	uint8_t *at = put_client_properties(amqp_begin_method(frame, 0, CONNECTION_START_OK), client_id);

	at = amqp_put_short(at, mechanism, strlen(mechanism));
	response = at;
	at += 4;
	if (settings->sasl == SASL_PLAIN) {
		at = amqp_put_bytes(amqp_put_u8(at, 0), username, strlen(username));
		at = amqp_put_bytes(amqp_put_u8(at, 0), password, strlen(password));
	}
	amqp_put_u32(response, (uint32_t)(at - response - 4));
	at = amqp_end_method(frame, amqp_put_short(at, "en_US", 5));
	out_mark(out);
	out_copy(out, frame, (size_t)(at - frame));
	explicit_bzero(frame, sizeof(frame));
	out_secret(out);
	if (out_commit(out) == 0)
		return 0;
	amqp_fatal(amqp, FATAL_PROTOCOL, 0, "out of memory for the handshake");
	return -TG_ENOMEM;
}

/* Whether a word is one of those in a list separated by blanks. */
static int
has_word(struct amqp_view list, const char *word)
{
	size_t len = strlen(word);

	for (size_t at = 0; at + len <= list.len; at++)
		if (memcmp(list.bytes + at, word, len) == 0 && (at == 0 || list.bytes[at - 1] == ' ') &&
		    (at + len == list.len || list.bytes[at + len] == ' '))
			return 1;
	return 0;
}

static int
input_start(struct amqp_session *amqp, struct amqp_reader *arguments, struct out *out)
{
	const struct amqp_settings *settings = amqp->base.settings;
	const char *mechanism = settings->sasl == SASL_EXTERNAL ? "EXTERNAL" : "PLAIN";
	char offered[100];

	uint32_t major = (uint32_t)amqp_take(arguments, 1), minor = (uint32_t)amqp_take(arguments, 1);
	amqp_take_long(arguments); /* the server's properties */
	struct amqp_view mechanisms = amqp_take_long(arguments);
	amqp_take_long(arguments);
	if (arguments->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "connection.start: cut short");
	if (major != 0 || minor != 9)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 0,
		    "connection.start: the broker speaks AMQP %u-%u, not 0-9", major, minor);
	if (!has_word(mechanisms, mechanism)) {
		utf8_clean(offered, sizeof(offered), mechanisms.bytes, mechanisms.len);
		return amqp_fatal(amqp, FATAL_REFUSED, 0,
		    "the pool wants SASL mechanism %s, the broker offers \"%s\"", mechanism, offered);
	}
	amqp->state = AMQP_TUNING;
	return send_start_ok(amqp, out);
}

/* tune-ok and connection.open, whose answers come in this order anyway. */
static int
send_open(struct amqp_session *amqp, uint32_t channels, struct out *out)
{
	const struct amqp_settings *settings = amqp->base.settings;
	uint8_t frames[64 + AMQP_SHORT_MAX], *open;
	uint8_t *at = amqp_begin_method(frames, 0, CONNECTION_TUNE_OK);

	at = amqp_put_u32(amqp_put_u16(at, channels), amqp->frame_max);
	open = amqp_end_method(frames, amqp_put_u16(at, amqp->heartbeat_s));
	at = amqp_begin_method(open, 0, CONNECTION_OPEN);
	at = amqp_put_short(at, settings->vhost, strlen(settings->vhost));
	at = amqp_end_method(open, amqp_put_u16(at, 0)); /* two reserved fields */
	return amqp_send(amqp, out, frames, (size_t)(at - frames));
}

static int
input_tune(struct amqp_session *amqp, struct amqp_reader *arguments, struct out *out)
{
	const struct amqp_settings *settings = amqp->base.settings;
	uint32_t channels = (uint32_t)amqp_take(arguments, 2);
	uint32_t frame_max = (uint32_t)amqp_take(arguments, 4);
	uint32_t heartbeat = (uint32_t)amqp_take(arguments, 2);
	uint32_t ours = settings->heartbeat_s > 0 ? settings->heartbeat_s : amqp->base.params->keepalive_s;

	if (arguments->bad)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 502, "connection.tune: cut short");
	if (channels == 1)
		return amqp_fatal(amqp, FATAL_REFUSED, 0,
		    "the broker allows 1 channel on a connection; 2 are the least to publish with");
	if (frame_max > 0 && frame_max < AMQP_FRAME_LEAST)
		return amqp_fatal(amqp, FATAL_PROTOCOL, 501,
		    "connection.tune: frames of at most %u bytes; AMQP allows no less than %u", frame_max,
		    AMQP_FRAME_LEAST);
	amqp->channel_max = settings->channels;
	if (channels > 0 && channels - 1 < amqp->channel_max)
		amqp->channel_max = channels - 1;
	if (frame_max > 0 && frame_max < amqp->frame_max)
		amqp->frame_max = frame_max;
	if (ours > UINT16_MAX)
		ours = UINT16_MAX;
	amqp->heartbeat_s = heartbeat > 0 && (heartbeat < ours || ours == 0) ? heartbeat : ours;
	amqp->state = AMQP_OPENING;
	return send_open(amqp, amqp->channel_max + 1, out);
}

static int
input_open_ok(struct amqp_session *amqp, struct out *out)
{
	uint8_t frames[AMQP_OPEN_SIZE];

	amqp->state = AMQP_SELECTING;
	return amqp_send(amqp, out, frames, (size_t)(amqp_put_open(frames, AMQP_PROBE_CHANNEL, 0) - frames));
}

static int
input_select_ok(struct amqp_session *amqp)
{
	amqp->state = AMQP_UP;
	if (amqp->heartbeat_s > 0)
		driver_emit(&amqp->base, EV_KEEPALIVE, amqp->heartbeat_s);
	driver_emit(&amqp->base, EV_UP, 0);
	return 0;
}

int
amqp_handshake(struct amqp_session *amqp, uint32_t channel, uint32_t method, struct amqp_reader *arguments,
    struct out *out)
{
	if (channel == 0 && amqp->state == AMQP_STARTING && method == CONNECTION_START)
		return input_start(amqp, arguments, out);
	if (channel == 0 && amqp->state == AMQP_TUNING && method == CONNECTION_TUNE)
		return input_tune(amqp, arguments, out);
	if (channel == 0 && amqp->state == AMQP_TUNING && method == CONNECTION_SECURE)
		return amqp_fatal(amqp, FATAL_REFUSED, 0, "the broker asks for a second SASL response");
	if (channel == 0 && amqp->state == AMQP_OPENING && method == CONNECTION_OPEN_OK)
		return input_open_ok(amqp, out);
	if (channel == AMQP_PROBE_CHANNEL && amqp->state == AMQP_SELECTING && method == CHANNEL_OPEN_OK)
		return 0;
	if (channel == AMQP_PROBE_CHANNEL && amqp->state == AMQP_SELECTING && method == CONFIRM_SELECT_OK)
		return input_select_ok(amqp);
	return amqp_fatal(amqp, FATAL_PROTOCOL, 503,
	    "the broker sent method %u.%u on channel %u, which it may not during the handshake", method >> 16,
	    method & 0xffff, channel);
}
