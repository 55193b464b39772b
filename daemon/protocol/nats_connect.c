/* INFO, in which the server says what it is, and CONNECT, in which we say who we are. */
#include "nats.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <jansson.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define ENDPOINTS_MAX 64u
#define ENDPOINT_MAX 260u

static int
is_true(const json_t *info, const char *key)
{
	return json_is_true(json_object_get(info, key));
}

static void
say_endpoints(struct nats_session *nats, const json_t *urls)
{
	const struct nats_settings *settings = nats->base.settings;
	size_t count = settings->learn_endpoints ? json_array_size(urls) : 0;
	uint64_t said = 0;

	for (size_t i = 0; i < count && i < ENDPOINTS_MAX; i++) {
		const json_t *url = json_array_get(urls, i);
		size_t len = json_string_length(url);
		size_t offset;
		const char *text = json_string_value(url);
		if (text == NULL || len == 0 || len > ENDPOINT_MAX ||
		    utf8_check((const uint8_t *)text, len, "  ", &offset) != UTF8_PLAIN)
			continue;
		nats->base.events.emit(nats->base.events.owner,
		    &(struct driver_event){
			.type = EV_ENDPOINT, .seq = said++, .text = text, .text_len = len });
	}
}

/* The first INFO: whether this server will do, and in the clear or not. */
static int
first_info(struct nats_session *nats, const json_t *info, struct out *out)
{
	const struct nats_settings *settings = nats->base.settings;
	const struct session_params *params = nats->base.params;
	const char *nonce = json_string_value(json_object_get(info, "nonce"));
	int offers_tls = is_true(info, "tls_required") || is_true(info, "tls_available");

	if (is_true(info, "ldm"))
		return driver_fatal(&nats->base, FATAL_UNUSABLE, 0, "the server is about to leave (lame duck)");
	if (nats->jetstream && !nats->headers)
		return driver_fatal(&nats->base, FATAL_UNUSABLE, 0,
		    "the server takes no headers, without which JetStream says nothing of a missing stream");
	if (settings->nkey_seed.value != NULL && nonce == NULL)
		return driver_fatal(
		    &nats->base, FATAL_REFUSED, 0, "the pool has an nkey and the server asks for no signature");
	if (nonce != NULL && strlen(nonce) >= sizeof(nats->nonce))
		return driver_fatal(&nats->base, FATAL_PROTOCOL, 0,
		    "INFO: a nonce of %zu bytes; at most %zu are read", strlen(nonce), sizeof(nats->nonce) - 1);
	snprintf(nats->nonce, sizeof(nats->nonce), "%s", nonce != NULL ? nonce : "");
	if (params->tls)
		return nats_connect(nats, out);
	if (params->tls_wanted && !offers_tls)
		return driver_fatal(
		    &nats->base, FATAL_REFUSED, 0, "the pool wants TLS and the server offers none");
	if (!params->tls_wanted && is_true(info, "tls_required"))
		return driver_fatal(
		    &nats->base, FATAL_REFUSED, 0, "the server wants TLS and the pool has no tls group");
	if (!params->tls_wanted)
		return nats_connect(nats, out);
	nats->state = NATS_SECURING;
	driver_emit(&nats->base, EV_TLS, 0);
	return 0;
}

int
nats_info(struct nats_session *nats, const uint8_t *json, size_t len, struct out *out)
{
	json_error_t error;
	json_t *info = json_loadb((const char *)json, len, 0, &error);
	json_int_t most = json_integer_value(json_object_get(info, "max_payload"));
	int rc = 0;

	if (!json_is_object(info)) {
		json_decref(info);
		return driver_fatal(&nats->base, FATAL_PROTOCOL, 0, "INFO is not a JSON object");
	}
	const json_t *headers = json_object_get(info, "headers"), *streams = json_object_get(info, "jetstream");
	nats->headers = json_is_true(headers);
	nats->no_streams = !json_is_true(streams);
	if (most > 0) {
		nats->max_payload = (uint64_t)most;
		driver_emit(&nats->base, EV_MAX_BODY, nats->max_payload);
	}
	say_endpoints(nats, json_object_get(info, "connect_urls"));
	if (nats->state == NATS_WAIT_INFO)
		rc = first_info(nats, info, out);
	else if (is_true(info, "ldm") && nats->state == NATS_UP)
		driver_emit(&nats->base, EV_LEAVING, 0);
	json_decref(info);
	return rc;
}

/* CONNECT as it grows. A text that is too long is cut, and the caller refuses it. */
struct line {
	size_t len;
	char text[8 * NATS_CREDENTIAL_MAX];
};

static void
add(struct line *line, const char *text)
{
	size_t len = strlen(text), room = sizeof(line->text) - line->len;

	if (len > room)
		len = room;
	memcpy(line->text + line->len, text, len);
	line->len += len;
}

/* ,"key":"value", if there is one. Values are plain UTF-8: there are no control characters. */
static void
add_field(struct line *line, const char *key, const char *value)
{
	char piece[3] = { 0 };

	if (value == NULL)
		return;
	add(line, ",\"");
	add(line, key);
	add(line, "\":\"");
	for (; *value != '\0'; value++) {
		int escaped = *value == '"' || *value == '\\';
		piece[0] = escaped ? '\\' : *value;
		piece[1] = escaped ? *value : '\0';
		add(line, piece);
	}
	add(line, "\"");
}

/* The seed was checked when it was read. */
static int
sign(const char *seed, const char *nonce, char public[NATS_PUBLIC_TEXT + 1],
    char signature[NATS_SIGNATURE_TEXT + 1])
{
	struct nats_nkey nkey;
	int rc = nats_nkey_read(&nkey, seed) == NULL ? nats_nkey_sign(&nkey, nonce, strlen(nonce), signature)
						     : -TG_EINVAL;

	if (rc == 0)
		memcpy(public, nkey.public_text, sizeof(nkey.public_text));
	nats_nkey_fini(&nkey);
	return rc;
}

int
nats_connect(struct nats_session *nats, struct out *out)
{
	const struct nats_settings *settings = nats->base.settings;
	const struct session_params *params = nats->base.params;
	struct line line = { .len = 0 };
	char public[NATS_PUBLIC_TEXT + 1], signature[NATS_SIGNATURE_TEXT + 1];

	if (settings->nkey_seed.value != NULL &&
	    sign(settings->nkey_seed.value, nats->nonce, public, signature) != 0)
		return driver_fatal(&nats->base, FATAL_PROTOCOL, 0, "the server's nonce cannot be signed");
	/* protocol 1: the server tells of new servers and of its own leaving. */
	add(&line, "CONNECT {\"verbose\":false,\"pedantic\":false,\"echo\":false,\"headers\":true,"
		   "\"no_responders\":true,\"protocol\":1,\"lang\":\"c\"");
	add(&line, params->tls ? ",\"tls_required\":true" : ",\"tls_required\":false");
	add_field(&line, "name", params->client_id);
	add_field(&line, "user", settings->username);
	add_field(&line, "pass", settings->password.value);
	add_field(&line, "auth_token", settings->token.value);
	if (settings->nkey_seed.value != NULL) {
		add_field(&line, "nkey", public);
		add_field(&line, "sig", signature);
	}
	add(&line, "}\r\n");
	if (nats->jetstream) {
		add(&line, "SUB ");
		add(&line, nats->inbox);
		add(&line, "* 1\r\n");
	}
	add(&line, "PING\r\n");
	out_mark(out);
	out_copy(out, line.text, line.len);
	out_secret(out);
	int rc = line.len < sizeof(line.text) ? out_commit(out) : -TG_EINVAL;
	OPENSSL_cleanse(&line, sizeof(line));
	if (rc == -TG_EINVAL) {
		out_rollback(out);
		return driver_fatal(
		    &nats->base, FATAL_REFUSED, 0, "CONNECT becomes longer than %zu bytes", sizeof(line.text));
	}
	if (rc == 0)
		nats->state = NATS_CONNECTING;
	return rc;
}
