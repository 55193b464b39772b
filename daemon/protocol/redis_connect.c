/* The commands before the first message, HELLO, AUTH, CLIENT SETNAME and SELECT, and QUIT behind the last. */
#include "redis.h"

#include <string.h>

/* Appends a command of `count` words, the last of which may have any length. */
static void
put_command(struct out *out, const char *const *words, unsigned count)
{
	char head[REDIS_BULK_HEAD];

	out_copy(out, head, (size_t)(redis_put_count(head, '*', count) - head));
	for (unsigned i = 0; i < count; i++) {
		size_t len = strlen(words[i]);
		out_copy(out, head, (size_t)(redis_put_count(head, '$', len) - head));
		out_copy(out, words[i], len);
		out_copy(out, "\r\n", 2);
	}
}

int
redis_start(struct session *session, struct out *out)
{
	struct redis_session *redis = redis_session(session);
	const struct redis_settings *settings = redis_settings(session);
	const char *words[7] = { "HELLO", "2" };
	unsigned count = 2;

	if (settings->password.value != NULL) {
		words[count++] = "AUTH";
		words[count++] = settings->username != NULL ? settings->username : "default";
		words[count++] = settings->password.value;
	}
	if (session->params->client_id != NULL) {
		words[count++] = "SETNAME";
		words[count++] = session->params->client_id;
	}
	out_mark(out);
	put_command(out, words, count);
	if (settings->password.value != NULL)
		out_secret(out);
	int rc = out_commit(out);
	if (rc != 0)
		return rc;
	redis_expect(redis, EXPECT_HELLO);
	redis->state = REDIS_CONNECTING;
	return 0;
}

int
redis_login(struct redis_session *redis, struct out *out)
{
	const struct redis_settings *settings = redis_settings(&redis->base);
	const char *auth[3] = { "AUTH" }, *name[3] = { "CLIENT", "SETNAME", redis->base.params->client_id };
	unsigned count = 1;

	out_mark(out);
	if (settings->password.value != NULL) {
		if (settings->username != NULL)
			auth[count++] = settings->username;
		auth[count++] = settings->password.value;
		put_command(out, auth, count);
		out_secret(out);
	}
	if (name[2] != NULL)
		put_command(out, name, 3);
	int rc = out_commit(out);
	if (rc != 0)
		return rc;
	if (settings->password.value != NULL)
		redis_expect(redis, EXPECT_AUTH);
	if (name[2] != NULL)
		redis_expect(redis, EXPECT_NAME);
	return redis_select(redis, out);
}

int
redis_select(struct redis_session *redis, struct out *out)
{
	const struct redis_settings *settings = redis_settings(&redis->base);
	char number[REDIS_BULK_HEAD];
	const char *words[2] = { "SELECT", number + 1 };

	if (settings->database == 0)
		return 0;
	redis_put_count(number, ' ', settings->database)[-2] = '\0';
	out_mark(out);
	put_command(out, words, 2);
	int rc = out_commit(out);
	if (rc == 0)
		redis_expect(redis, EXPECT_SELECT);
	return rc;
}

int
redis_goodbye(struct session *session, struct out *out)
{
	struct redis_session *redis = redis_session(session);
	const char *quit = "QUIT";

	if (redis->leaving)
		return 0;
	out_mark(out);
	put_command(out, &quit, 1);
	int rc = out_commit(out);
	if (rc == 0) {
		redis->leaving = 1;
		redis_expect(redis, EXPECT_QUIT);
	}
	return rc;
}
