/*
 * Which message an answer is for, and what it says.
 *
 * JetStream's answer is JSON: {"stream":"S", "seq":7}, with "duplicate":true when the stream has had
 * it already, or with "error":{"code":503,"err_code":10077,"description":"..."}.
 *
 * That no stream takes a subject is said by the server itself, with a status in the header and no
 * body. But it says so of every subject while it shuts down: JetStream ends first, some milliseconds
 * before the connections. So the account's JetStream is asked for ($JS.API.INFO) before such a
 * message is rejected; without it this is no server to publish to, and everything goes elsewhere.
 *
 * Others may listen on a subject too and answer to its reply subject: what is no acknowledgement, or
 * a second one, is dropped.
 */
#include "nats.h"
#include "utf8.h"

#include "shm/error.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#define INFO_SUBJECT "$JS.API.INFO"
#define INFO_TOKEN "info"

static uint64_t *
word_of(struct nats_session *nats, uint64_t seq)
{
	return &nats->pending[seq & nats->mask];
}

static void
settle(struct nats_session *nats, uint64_t seq)
{
	*word_of(nats, seq) |= NATS_ANSWERED;
	nats->outstanding--;
	while (nats->oldest != nats->next && (*word_of(nats, nats->oldest) & NATS_ANSWERED) != 0)
		nats->oldest++;
}

static int
waits(struct nats_session *nats, uint64_t seq)
{
	return seq - nats->oldest < nats->next - nats->oldest && (*word_of(nats, seq) & NATS_ANSWERED) == 0;
}

/* ---- permissions violations ---- */

static void
nack_denied(struct nats_session *nats, uint64_t seq)
{
	static const char text[] =
	    "permissions violation: the server lets this user not publish to the subject";

	driver_nack(&nats->base, seq, REJECT_DENIED, text, sizeof(text) - 1);
}

/*
 * One message of a subject was denied, and which is not said. Every denied message is counted against
 * the oldest of its subject that has none against it yet. In JetStream, once all that wait for an
 * answer are counted against, none of them will get one; until then some may have been taken before
 * a permission was revoked, and their answers tell (uncount). Core has the PONG to tell.
 * Returns 0 if no message has that subject.
 */
static int
count_denied(struct nats_session *nats, uint64_t hash)
{
	uint64_t first = UINT64_MAX, all = 1;

	for (uint64_t seq = nats->oldest; seq != nats->next && all; seq++) {
		if ((*word_of(nats, seq) ^ hash) == 0) {
			all = first == UINT64_MAX;
			if (all)
				first = seq;
		}
	}
	if (first == UINT64_MAX)
		return 0;
	*word_of(nats, first) |= NATS_DENIED;
	if (nats->jetstream && all) {
		uint64_t end = nats->next;
		for (uint64_t seq = nats->oldest; seq != end; seq++)
			if (*word_of(nats, seq) == (hash | NATS_DENIED)) {
				settle(nats, seq);
				nack_denied(nats, seq);
			}
	}
	return 1;
}

/* One code point as UTF-8. */
static uint8_t *
put_point(uint8_t *to, uint32_t point)
{
	if (point < 0x80) {
		*to++ = (uint8_t)point;
		return to;
	}
	if (point < 0x800) {
		*to++ = (uint8_t)(0xc0 | point >> 6);
	} else {
		if (point < 0x10000) {
			*to++ = (uint8_t)(0xe0 | point >> 12);
		} else {
			*to++ = (uint8_t)(0xf0 | (point >> 18 & 7));
			*to++ = (uint8_t)(0x80 | (point >> 12 & 0x3f));
		}
		*to++ = (uint8_t)(0x80 | (point >> 6 & 0x3f));
	}
	*to++ = (uint8_t)(0x80 | (point & 0x3f));
	return to;
}

/* Undoes Go's %q in place of what subjects can hold. Returns the length; never longer than quoted. */
static size_t
unquote(uint8_t *to, const uint8_t *at, size_t len)
{
	uint8_t *start = to;

	while (len > 0 && *at != '"') {
		size_t digits = 0;
		uint32_t point = 0;
		if (*at != '\\' || len < 2) {
			*to++ = *at++;
			len--;
			continue;
		}
		digits = at[1] == 'x' ? 2 : at[1] == 'u' ? 4 : at[1] == 'U' ? 8 : 0;
		if (digits > len - 2)
			digits = len - 2;
		for (size_t i = 0; i < digits; i++) {
			uint32_t c = at[2 + i];
			point = point << 4 | ((c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10) & 0xf);
		}
		if (digits > 0)
			to = put_point(to, point);
		else
			*to++ = at[1];
		at += 2 + digits;
		len -= 2 + digits;
	}
	return (size_t)(to - start);
}

void
nats_taken(struct nats_session *nats, uint64_t upto)
{
	int any = 0;

	for (; nats->oldest != upto; nats->oldest++) {
		int denied = (*word_of(nats, nats->oldest) & NATS_DENIED) != 0;
		nats->outstanding--;
		if (denied && any)
			driver_ack(&nats->base, EV_ACK_UPTO, nats->oldest - 1, TG_SENT, 0);
		if (denied)
			nack_denied(nats, nats->oldest);
		any = !denied;
	}
	if (any)
		driver_ack(&nats->base, EV_ACK_UPTO, upto - 1, TG_SENT, 0);
}

/* ---- JetStream ---- */

/* A message was not denied after all: the violation was of a later one. `word` is what it was. */
static void
uncount(struct nats_session *nats, uint64_t word)
{
	if ((word & NATS_DENIED) != 0)
		count_denied(nats, word & ~NATS_FLAGS);
}

static void
delivered(struct nats_session *nats, uint64_t seq, uint64_t reference)
{
	uint64_t word = *word_of(nats, seq);

	settle(nats, seq);
	driver_ack(&nats->base, EV_ACK, seq, TG_DELIVERED, reference);
	uncount(nats, word);
}

/* Errors that pass by themselves and in which nothing was kept. The rest is the answer. */
static int
is_passing(json_int_t code)
{
	return code == 10008 /* JetStream system temporarily unavailable */ ||
	       code == 10009 /* not the leader */;
}

static void
refused(struct nats_session *nats, uint64_t seq, const json_t *error)
{
	const json_t *words = json_object_get(error, "description");
	json_int_t code = json_integer_value(json_object_get(error, "err_code"));
	char said[160], text[200];

	if (code <= 0)
		code = json_integer_value(json_object_get(error, "code"));
	if (code <= 0 || code > UINT16_MAX)
		code = UINT16_MAX;
	uint64_t word = *word_of(nats, seq);
	settle(nats, seq);
	if (is_passing(code)) {
		driver_emit(&nats->base, EV_AGAIN, seq);
		uncount(nats, word);
		return;
	}
	const char *description = json_string_value(words);
	utf8_clean(said, sizeof(said), (const uint8_t *)(description != NULL ? description : "no reason given"),
	    description != NULL ? json_string_length(words) : 15);
	int n = snprintf(text, sizeof(text), "JetStream: %s", said);
	driver_nack(&nats->base, seq, (uint32_t)code, text, (size_t)n);
	uncount(nats, word);
}

/* Whether headers say "NATS/1.0 503". */
static int
is_no_responders(const uint8_t *headers, size_t len)
{
	static const char status[] = "NATS/1.0 503";

	return len >= sizeof(status) - 1 && memcmp(headers, status, sizeof(status) - 1) == 0;
}

static void
nack_no_stream(struct nats_session *nats, uint64_t seq)
{
	static const char none[] = "no stream takes this subject";
	static const char off[] = "no stream takes this subject: JetStream is off on this server";
	const char *text = nats->no_streams ? off : none;

	settle(nats, seq);
	driver_nack(&nats->base, seq, NATS_NO_RESPONDERS, text, strlen(text));
}

/* Asks whether JetStream is there, on behalf of every message in doubt. */
static int
ask(struct nats_session *nats, struct out *out)
{
	out_mark(out);
	out_copy(out, "PUB " INFO_SUBJECT " ", sizeof("PUB " INFO_SUBJECT " ") - 1);
	out_copy(out, nats->inbox, NATS_INBOX_LEN);
	out_copy(out, INFO_TOKEN " 0\r\n\r\n", sizeof(INFO_TOKEN " 0\r\n\r\n") - 1);
	int rc = out_commit(out);
	if (rc != 0)
		return rc;
	nats->asking = 1;
	for (uint64_t seq = nats->oldest; seq != nats->next; seq++)
		if ((*word_of(nats, seq) & NATS_DOUBTED) != 0)
			*word_of(nats, seq) |= NATS_ASKED;
	return 0;
}

static int
no_stream(struct nats_session *nats, uint64_t seq, struct out *out)
{
	uint64_t word = *word_of(nats, seq);

	if (nats->no_streams || nats->may_not_ask) {
		nack_no_stream(nats, seq);
		uncount(nats, word);
		return 0;
	}
	*word_of(nats, seq) = (word & ~NATS_FLAGS) | NATS_DOUBTED;
	uncount(nats, word);
	return nats->asking ? 0 : ask(nats, out);
}

/* JetStream is there, or nobody may know: what no stream took when it was asked for is rejected. */
static void
asked(struct nats_session *nats)
{
	uint64_t end = nats->next;

	nats->asking = 0;
	for (uint64_t seq = nats->oldest; seq != end; seq++)
		if ((*word_of(nats, seq) & (NATS_ASKED | NATS_ANSWERED)) == NATS_ASKED)
			nack_no_stream(nats, seq);
}

/* The answer to ask(). */
static int
info_came(struct nats_session *nats, const struct nats_reply *reply, struct out *out)
{
	json_error_t where;
	char said[100];

	if (!nats->asking)
		return 0;
	if (is_no_responders(reply->headers, reply->headers_len))
		return driver_fatal(&nats->base, FATAL_UNUSABLE, 0, "JetStream has ended on this server");
	json_t *info = json_loadb((const char *)reply->body, reply->body_len, 0, &where);
	const json_t *error = json_object_get(info, "error");
	if (json_is_object(error)) {
		const json_t *words = json_object_get(error, "description");
		const char *text = json_string_value(words);
		utf8_clean(
		    said, sizeof(said), (const uint8_t *)(text != NULL ? text : ""), json_string_length(words));
		json_decref(info);
		return driver_fatal(&nats->base, FATAL_UNUSABLE, 0, "JetStream is not there: %s", said);
	}
	json_decref(info);
	asked(nats);
	for (uint64_t seq = nats->oldest; seq != nats->next; seq++)
		if ((*word_of(nats, seq) & NATS_DOUBTED) != 0 && (*word_of(nats, seq) & NATS_ANSWERED) == 0)
			return ask(nats, out);
	return 0;
}

void
nats_denied(struct nats_session *nats, const uint8_t *quoted, size_t len)
{
	uint8_t subject[2 * NATS_CONTROL_MAX];

	if (len > sizeof(subject))
		return; /* longer than any we sent */
	subject[0] = 0;
	len = unquote(subject, quoted, len);
	if (count_denied(nats, nats_hash(nats, subject, len)) || !nats->asking)
		return;
	if (len != sizeof(INFO_SUBJECT) - 1 || memcmp(subject, INFO_SUBJECT, len) != 0)
		return;
	/* It is ours, and not for this user to ask. */
	nats->may_not_ask = 1;
	for (uint64_t seq = nats->oldest; seq != nats->next; seq++)
		if ((*word_of(nats, seq) & NATS_DOUBTED) != 0)
			*word_of(nats, seq) |= NATS_ASKED;
	asked(nats);
}

static int
read_token(const uint8_t *token, size_t len, uint64_t *seq)
{
	uint64_t value = 0;

	if (len == 0 || len > 16)
		return 0;
	for (size_t i = 0; i < len; i++) {
		uint8_t c = token[i];
		if (c >= '0' && c <= '9')
			value = value << 4 | (uint64_t)(c - '0');
		else if (c >= 'a' && c <= 'f')
			value = value << 4 | (uint64_t)(c - 'a' + 10);
		else
			return 0;
	}
	*seq = value;
	return 1;
}

int
nats_answer(struct nats_session *nats, const struct nats_reply *reply, struct out *out)
{
	json_error_t where;
	uint64_t seq;

	if (reply->token_len == sizeof(INFO_TOKEN) - 1 &&
	    memcmp(reply->token, INFO_TOKEN, reply->token_len) == 0)
		return info_came(nats, reply, out);
	if (!read_token(reply->token, reply->token_len, &seq) || !waits(nats, seq))
		return 0;
	if (is_no_responders(reply->headers, reply->headers_len))
		return no_stream(nats, seq, out);
	json_t *answer = json_loadb((const char *)reply->body, reply->body_len, 0, &where);
	const json_t *error = json_object_get(answer, "error");
	const json_t *number = json_object_get(answer, "seq");
	if (json_is_object(error))
		refused(nats, seq, error);
	else if (json_is_string(json_object_get(answer, "stream")) && json_is_integer(number) &&
		 json_integer_value(number) > 0)
		delivered(nats, seq, (uint64_t)json_integer_value(number));
	json_decref(answer);
	return 0;
}

/* A decimal number of at most 19 digits. Returns past it, or NULL. */
static const uint8_t *
read_decimal(const uint8_t *at, const uint8_t *end, uint64_t *value)
{
	const uint8_t *start = at;
	uint64_t sum = 0;

	for (; at < end && (uint8_t)(*at - '0') < 10; at++)
		sum = sum * 10 + (uint64_t)(*at - '0');
	*value = sum;
	return at == start || at - start > 19 || (*start == '0' && at - start > 1) ? NULL : at;
}

/*
 *   MSG INBOX<token> 1  23\r\n{"stream":"S", "seq":1}\r\n
 *
 * Returns the size of what is exactly that (or its duplicate form) and whole; 0: the long way, which
 * would say the same.
 */
static size_t
plain_ack(struct nats_session *nats, const uint8_t *bytes, size_t len)
{
	static const char head[] = "{\"stream\":\"",
			  number[] = "\", \"seq\":", twice[] = ",\"duplicate\": true";
	const uint8_t *at = bytes, *end = bytes + len;
	uint64_t seq, size, reference;

	if (len < 4 + NATS_INBOX_LEN + 40 || memcmp(at, "MSG ", 4) != 0 ||
	    memcmp(at + 4, nats->inbox, NATS_INBOX_LEN) != 0)
		return 0;
	at += 4 + NATS_INBOX_LEN;
	const uint8_t *space = memchr(at, ' ', 17);
	if (space == NULL || !read_token(at, (size_t)(space - at), &seq) || !waits(nats, seq))
		return 0;
	if (memcmp(space, " 1 ", 3) != 0)
		return 0;
	at = space + 3;
	at += *at == ' ';
	at = read_decimal(at, end, &size);
	if (at == NULL || end - at < 2 || at[0] != '\r' || at[1] != '\n')
		return 0;
	at += 2;
	if (size > NATS_ANSWER_MAX || (size_t)(end - at) < size + 2 || size < sizeof(head))
		return 0;
	end = at + size;
	if (end[0] != '\r' || end[1] != '\n' || memcmp(at, head, sizeof(head) - 1) != 0)
		return 0;
	at += sizeof(head) - 1;
	const uint8_t *quote = at;
	while (quote < end && *quote != '"' && *quote != '\\' && *quote >= ' ' && *quote < 0x7f)
		quote++;
	if ((size_t)(end - quote) < sizeof(number) || memcmp(quote, number, sizeof(number) - 1) != 0)
		return 0;
	at = read_decimal(quote + sizeof(number) - 1, end, &reference);
	if (at == NULL || reference == 0 || reference > INT64_MAX)
		return 0;
	if ((size_t)(end - at) > sizeof(twice) - 1 && memcmp(at, twice, sizeof(twice) - 1) == 0)
		at += sizeof(twice) - 1;
	if (end - at != 1 || *at != '}')
		return 0;
	delivered(nats, seq, reference);
	return (size_t)(end + 2 - bytes);
}

size_t
nats_acks(struct nats_session *nats, const uint8_t *bytes, size_t len)
{
	size_t done = 0, n;

	while ((n = plain_ack(nats, bytes + done, len - done)) > 0)
		done += n;
	return done;
}
