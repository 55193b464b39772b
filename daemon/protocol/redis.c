/*
 * Redis, as a producer: XADD to a stream (TG_DELIVERED by its reply) or PUBLISH to a channel (TG_SENT by
 * its reply, which says that the server has it and not that a subscriber received it).
 *
 *   mode = "stream" | "publish"       default stream
 *   username, password_file           of an ACL user; without username the server's default user
 *   database                          default 0
 *   maxlen, nomkstream                of XADD: MAXLEN ~ maxlen (0: no trimming), NOMKSTREAM
 *   body_field, key_field             names of an entry's fields; key_field "": the key is not kept
 *   wait_replicas, wait_timeout_ms    WAIT after each batch; 0 replicas (default): no WAIT
 *
 * A message's topic is the stream's key or the channel. An entry's fields are the headers in their
 * order, the key if there is one, the body. PUBLISH has a body only.
 *
 * A message that was sent and not answered when a connection ends may be in the stream; sent again
 * it is there twice, under another id. Ids of our own would make that harmless only with a single
 * writer to each stream, which a pool is not.
 *
 * RESP2 is spoken: RESP3 has nothing a producer needs. HELLO tells the role too; servers before 6
 * do not know it and get AUTH instead.
 */
#include "redis.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <stdlib.h>
#include <string.h>

#define SECRET_MAX 65535u
#define WINDOW_MAX 100000u /* as window.messages */

/* ---- settings ---- */

/* Copies a string, or the default where the key is absent (NULL: leaves *copy alone). */
static int
read_text(struct config_node *group, const char *key, char **copy, const char *absent, size_t min)
{
	const char *text = absent;
	int rc = config_node_string(group, key, &text, min, REDIS_FIELD_MAX);

	if (rc < 0)
		return rc;
	if (text != NULL && (*copy = strdup(text)) == NULL)
		return -TG_ENOMEM;
	return rc;
}

/* Frames XADD's options, between the key and the fields. Returns 0 or -TG_ENOMEM. */
static int
frame_options(struct redis_settings *redis, int nomkstream, int64_t maxlen)
{
	char number[24], options[200], *at = options;

	if (nomkstream) {
		at = redis_put_bulk(at, "NOMKSTREAM", 10);
		redis->options_count++;
	}
	if (maxlen > 0) {
		char *end = redis_put_count(number, ' ', (uint64_t)maxlen);
		at = redis_put_bulk(at, "MAXLEN", 6);
		at = redis_put_bulk(at, "~", 1);
		at = redis_put_bulk(at, number + 1, (size_t)(end - number) - 3);
		redis->options_count += 3;
	}
	at = redis_put_bulk(at, "*", 1);
	redis->options_count++;
	redis->options_len = (size_t)(at - options);
	redis->options = malloc(redis->options_len);
	if (redis->options == NULL)
		return -TG_ENOMEM;
	memcpy(redis->options, options, redis->options_len);
	return 0;
}

static int
check_together(struct config_node *group, const struct redis_settings *redis)
{
	static const char *const stream_only[] = { "maxlen", "nomkstream", "body_field", "key_field",
		"wait_replicas", "wait_timeout_ms" };
	int bad = 0;

	for (size_t i = 0; redis->mode == REDIS_PUBLISH && i < sizeof(stream_only) / sizeof(stream_only[0]);
	     i++)
		if (config_node_has(group, stream_only[i])) {
			config_node_error(
			    group, stream_only[i], "it has a meaning only with mode = \"stream\"");
			bad = 1;
		}
	if (redis->username != NULL && redis->password.value == NULL &&
	    !config_node_has(group, "password_file")) {
		config_node_error(group, "username", "a user needs a password_file");
		bad = 1;
	}
	if (redis->body_field != NULL && redis->key_field != NULL &&
	    strcmp(redis->body_field, redis->key_field) == 0) {
		config_node_error(group, NULL, "body_field and key_field are both \"%s\"", redis->key_field);
		bad = 1;
	}
	return bad;
}

static int
redis_configure(void *settings, struct config_node *group)
{
	static const struct config_choice modes[] = { { "stream", REDIS_STREAM }, { "publish", REDIS_PUBLISH },
		{ NULL, 0 } };
	struct redis_settings *redis = settings;
	int64_t maxlen = 0;
	int nomkstream = 0, bad = 0, text;

	redis->wait_timeout_ms = 1000;
	bad |= config_node_choice(group, "mode", &redis->mode, modes) < 0;
	text = read_text(group, "username", &redis->username, NULL, 1);
	if (text != -TG_ENOMEM) {
		bad |= text < 0;
		text = config_node_secret(group, "password_file", &redis->password, SECRET_MAX, NULL);
	}
	if (text != -TG_ENOMEM) {
		bad |= text < 0;
		text = read_text(group, "body_field", &redis->body_field, "body", 1);
	}
	if (text != -TG_ENOMEM) {
		bad |= text < 0;
		text = read_text(group, "key_field", &redis->key_field, "key", 0);
	}
	if (text == -TG_ENOMEM)
		return text;
	bad |= text < 0;
	bad |= config_node_u32(group, "database", &redis->database, 0, INT32_MAX) < 0;
	bad |= config_node_int(group, "maxlen", &maxlen, 0, INT64_C(1000000000000)) < 0;
	bad |= config_node_bool(group, "nomkstream", &nomkstream) < 0;
	bad |= config_node_u32(group, "wait_replicas", &redis->wait_replicas, 0, 100) < 0;
	bad |= config_node_u32(group, "wait_timeout_ms", &redis->wait_timeout_ms, 1, 60000) < 0;
	bad |= check_together(group, redis);
	bad |= config_node_done(group) != 0;
	return bad ? -TG_EINVAL : frame_options(redis, nomkstream, maxlen);
}

static void
redis_settings_free(void *settings)
{
	struct redis_settings *redis = settings;

	free(redis->username);
	config_secret_fini(&redis->password);
	free(redis->body_field);
	free(redis->key_field);
	free(redis->options);
	memset(redis, 0, sizeof(*redis));
}

/* ---- the session ---- */

static int
redis_open(struct session *session)
{
	struct redis_session *redis = redis_session(session);

	redis->window = session->params->window;
	if (redis->window == 0 || redis->window > WINDOW_MAX)
		redis->window = WINDOW_MAX;
	if (window_init(&redis->unanswered, session, TG_SENT, redis->window) != 0)
		return -TG_ENOMEM;
	uint32_t entries = window_power_of_two(redis->window + REDIS_PROBES + EXPECT_QUIT);
	redis->expected_mask = entries - 1;
	redis->expected = malloc(entries);
	if (redis_settings(session)->wait_replicas > 0) {
		redis->references = malloc((redis->unanswered.mask + UINT64_C(1)) * sizeof(*redis->references));
		if (redis->references == NULL)
			return -TG_ENOMEM;
	}
	redis->reader = redis_reader_new(redis);
	return redis->expected != NULL && redis->reader != NULL ? 0 : -TG_ENOMEM;
}

static void
redis_close(struct session *session)
{
	struct redis_session *redis = redis_session(session);

	if (redis->reader != NULL)
		redisReaderFree(redis->reader);
	window_fini(&redis->unanswered);
	free(redis->expected);
	free(redis->references);
	redis->reader = NULL;
	redis->expected = NULL;
	redis->references = NULL;
	redis->state = REDIS_CLOSED;
}

/*
 * PING; but a broker that is blocked answers that with PONG long before it takes messages again. It
 * is asked with a write that writes nothing: SETRANGE key 0 "" of a key that is no string fails, of one that
 * is not there does nothing, and where writes are refused (OOM, NOREPLICAS, MISCONF) it is too.
 */
static int
redis_probe(struct session *session, struct out *out)
{
	struct redis_session *redis = redis_session(session);
	char frame[64 + REDIS_TRY_KEY_MAX], *at = frame;
	enum redis_expected kind = redis->blocked && redis->try_key_len > 0 ? EXPECT_TRY : EXPECT_PING;

	if (redis->probes >= REDIS_PROBES || redis->leaving)
		return 0; /* the answer to one of these will do */
	if (kind == EXPECT_PING) {
		at = redis_put_count(at, '*', 1);
		at = redis_put_bulk(at, "PING", 4);
	} else {
		at = redis_put_count(at, '*', 4);
		at = redis_put_bulk(at, "SETRANGE", 8);
		at = redis_put_bulk(at, redis->try_key, redis->try_key_len);
		at = redis_put_bulk(at, "0", 1);
		at = redis_put_bulk(at, "", 0);
	}
	int rc = out_frame(out, frame, (size_t)(at - frame));
	if (rc != 0)
		return rc;
	redis->probes++;
	redis_expect(redis, kind);
	return 0;
}

/* The state that a successor's session needs beside the handshake: the key that asks whether there is room
 * again. */
static ssize_t
redis_save(const struct session *session, uint8_t *bytes, size_t room)
{
	const struct redis_session *redis = (const struct redis_session *)session;

	/* A reply that the next session does not wait for would end it, and so would the end of one. */
	if (redis->state != REDIS_UP || redis->expected_head != redis->expected_tail || redis->blocked ||
	    redis->begun)
		return -TG_EAGAIN;
	/* Nor can it be told where in what came with the handshake's end the next reply has begun. */
	if (redis->early || redis->try_key_len > room)
		return -TG_ELIMIT;
	memcpy(bytes, redis->try_key, redis->try_key_len);
	return redis->try_key_len;
}

static int
redis_restore(struct session *session, const uint8_t *bytes, size_t len)
{
	struct redis_session *redis = redis_session(session);

	if (redis->state != REDIS_UP || len > REDIS_TRY_KEY_MAX)
		return -TG_EINVAL;
	memcpy(redis->try_key, bytes, len);
	redis->try_key_len = (uint8_t)len;
	return 0;
}

const struct driver driver_redis = {
	.name = "redis",
	.default_port = 6379,
	.tls_port = 6379,
	.settings_size = sizeof(struct redis_settings),
	.session_size = sizeof(struct redis_session),
	.flags = DRIVER_F_REPLAYABLE,
	.secrets = { offsetof(struct redis_settings, password) },
	.secret_count = 1,
	.configure = redis_configure,
	.settings_free = redis_settings_free,
	.open = redis_open,
	.close = redis_close,
	.start = redis_start,
	.input = redis_input,
	.publish = redis_publish,
	.flush = redis_flush,
	.probe = redis_probe,
	.goodbye = redis_goodbye,
	.save = redis_save,
	.restore = redis_restore,
};
