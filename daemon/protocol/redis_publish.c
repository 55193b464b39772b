/* Framing of XADD, WAIT and PUBLISH. A Redis string holds any bytes, so little can be wrong with a message. */
#include "redis.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

char *
redis_put_count(char *at, char sign, uint64_t count)
{
	char digits[20];
	size_t n = 0;

	if (count < 10) {
		memcpy(at, (const char[4]){ sign, (char)('0' + count), '\r', '\n' }, 4);
		return at + 4;
	}
	do
		digits[n++] = (char)('0' + count % 10);
	while ((count /= 10) > 0);
	*at++ = sign;
	while (n > 0)
		*at++ = digits[--n];
	*at++ = '\r';
	*at++ = '\n';
	return at;
}

char *
redis_put_bulk(char *at, const void *bytes, size_t len)
{
	at = redis_put_count(at, '$', len);
	if (len > 0)
		memcpy(at, bytes, len);
	at += len;
	*at++ = '\r';
	*at++ = '\n';
	return at;
}

static int
is_named(const struct header_view *header, const char *field)
{
	return field[0] != '\0' && header->name_len == strlen(field) &&
	       memcmp(header->name, field, header->name_len) == 0;
}

/* Counts the fields that headers become, and the bytes of their frames at most. */
static int
measure_headers(const struct redis_settings *settings, const struct message *message, uint32_t *fields,
    size_t *size, struct driver_rejection *rejection)
{
	struct header_view header;
	uint32_t at = 0;

	if (message->headers_len > 0 && settings->mode == REDIS_PUBLISH)
		return driver_reject(rejection, REJECT_HEADER,
		    "PUBLISH has no headers; set mode = \"stream\" in the pool's redis group");
	while (message_header_next(message, &at, &header)) {
		/* Consumers read fields into a map, which would hold either value. */
		if (is_named(&header, settings->body_field) || is_named(&header, settings->key_field))
			return driver_reject(rejection, REJECT_HEADER,
			    "a header has the name \"%.*s\", which is a field of every entry (body_field, "
			    "key_field)",
			    (int)header.name_len, (const char *)header.name);
		++*fields;
		*size += 2 * REDIS_BULK_HEAD + (size_t)header.name_len + header.value_len;
	}
	return 0;
}

static char *
frame_head(char *at, const struct redis_settings *settings, const struct message *message, uint32_t fields)
{
	if (settings->mode == REDIS_PUBLISH) {
		at = redis_put_count(at, '*', 3);
		at = redis_put_bulk(at, "PUBLISH", 7);
		at = redis_put_bulk(at, message->topic, message->topic_len);
		return redis_put_count(at, '$', message->body_len);
	}
	at = redis_put_count(at, '*', 2 + settings->options_count + 2 * (uint64_t)fields);
	at = redis_put_bulk(at, "XADD", 4);
	at = redis_put_bulk(at, message->topic, message->topic_len);
	memcpy(at, settings->options, settings->options_len);
	at += settings->options_len;
	if (message->headers_len > 0) {
		struct header_view header;
		uint32_t offset = 0;
		while (message_header_next(message, &offset, &header)) {
			at = redis_put_bulk(at, header.name, header.name_len);
			at = redis_put_bulk(at, header.value, header.value_len);
		}
	}
	if (message->key_len > 0 && settings->key_field[0] != '\0') {
		at = redis_put_bulk(at, settings->key_field, strlen(settings->key_field));
		at = redis_put_bulk(at, message->key, message->key_len);
	}
	at = redis_put_bulk(at, settings->body_field, strlen(settings->body_field));
	return redis_put_count(at, '$', message->body_len);
}

/* Head and small body in one piece; a large body goes by reference. size: of the head, at most. */
static int
frame_append(const struct redis_settings *settings, const struct message *message, uint32_t fields, size_t size,
    struct out *out)
{
	size_t body = message->body_len < OUT_REF_MIN ? message->body_len : 0, room = size + body + 2;

	out_mark(out);
	char *at = (char *)out_space(out, room);
	if (at == NULL)
		return out_commit(out);
	char *end = frame_head(at, settings, message, fields);
	end = (char *)out_put((uint8_t *)end, message->body, body);
	if (body == message->body_len) {
		*end++ = '\r';
		*end++ = '\n';
	}
	out_trim(out, room - (size_t)(end - at));
	if (body < message->body_len) {
		out_ref(out, message->body, message->body_len);
		out_copy(out, "\r\n", 2);
	}
	return out_commit(out);
}

int
redis_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct redis_session *redis = redis_session(session);
	const struct redis_settings *settings = redis_settings(session);
	size_t size = 8 * REDIS_BULK_HEAD + settings->options_len + REDIS_FIELD_MAX;
	uint32_t fields = 1;

	if (redis->state != REDIS_UP || redis->unanswered.next - redis->unanswered.oldest >= redis->window)
		return DRIVER_FULL;
	if (message->topic_len == 0)
		return driver_reject(
		    rejection, REJECT_TOPIC, "the topic is empty: it is the stream's key or the channel");
	if (message->topic_len > REDIS_KEY_MAX)
		return driver_reject(rejection, REJECT_TOPIC, "the topic has %u bytes, %u are allowed",
		    message->topic_len, REDIS_KEY_MAX);
	if (message->headers_len > 0 && measure_headers(settings, message, &fields, &size, rejection) != 0)
		return DRIVER_REJECTED;
	if (message->key_len > 0 && settings->mode == REDIS_STREAM && settings->key_field[0] != '\0') {
		fields++;
		size += REDIS_FIELD_MAX + message->key_len;
	}
	int rc = frame_append(settings, message, fields, size + message->topic_len, out);
	if (rc != 0)
		return rc;
	redis->unanswered.next = seq + 1;
	if (settings->mode == REDIS_PUBLISH) {
		redis_expect(redis, EXPECT_PUBLISH);
		return DRIVER_PUBLISHED;
	}
	redis_expect(redis, EXPECT_ADD);
	redis->unwaited++;
	if (redis->try_key_len == 0 && message->topic_len <= REDIS_TRY_KEY_MAX) {
		redis->try_key_len = (uint8_t)message->topic_len;
		memcpy(redis->try_key, message->topic, message->topic_len);
	}
	return DRIVER_PUBLISHED;
}

int
redis_flush(struct session *session, struct out *out)
{
	struct redis_session *redis = redis_session(session);
	const struct redis_settings *settings = redis_settings(session);
	char frame[80], replicas[24], timeout[24], *at = frame, *end;

	/* Nothing waits if all that came since the last one was refused. */
	if (settings->wait_replicas == 0 || redis->unwaited == 0 || window_is_empty(&redis->unanswered) ||
	    redis->waiting || redis->state != REDIS_UP)
		return 0;
	at = redis_put_count(at, '*', 3);
	at = redis_put_bulk(at, "WAIT", 4);
	end = redis_put_count(replicas, ' ', settings->wait_replicas);
	at = redis_put_bulk(at, replicas + 1, (size_t)(end - replicas) - 3);
	end = redis_put_count(timeout, ' ', settings->wait_timeout_ms);
	at = redis_put_bulk(at, timeout + 1, (size_t)(end - timeout) - 3);
	int rc = out_frame(out, frame, (size_t)(at - frame));
	if (rc != 0)
		return rc;
	redis->unwaited = 0;
	redis->waiting = 1;
	redis_expect(redis, EXPECT_WAIT);
	return 0;
}
