/*
 * Which message an answer is for, and what it says.
 *
 * JetStream's answer is JSON: {"stream":"S", "seq":7}, with "duplicate":true when the stream has had
 * it already, or with "error":{"code":503,"err_code":10077,"description":"..."}.
 *
 * That no stream takes a subject is said by the server itself, with a status in the header and no
 * body. But it says so of every subject while it shuts down, because JetStream ends first, some
 * milliseconds before the connections; and of a stream's subjects while its copies in a cluster elect a
 * leader, for seconds. So JetStream is asked which streams take the subject ($JS.API.STREAM.NAMES) before
 * such a message is rejected. Without JetStream, or with a stream that has no leader, this is no server to
 * publish to now, and everything is sent again, elsewhere or later.
 *
 * The server says nothing about a subject that no stream takes and others listen to: it has handed the message
 * on. So JetStream is asked about unanswered messages after a silence, too. If no stream takes the subject as
 * far as it knows, the answer will never come (EV_LOST); a mapping of subjects or another domain's stream may
 * have taken it all the same. Any other result of such a question means nothing: a stream may be slow.
 *
 * Others may listen on a subject too and answer to its reply subject. A second answer is dropped. Of one that is no
 * acknowledgement, or too long to be read, JetStream is asked as well: if no stream takes the subject, the message
 * is rejected; else the stream's answer is waited for.
 */
#include "nats.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMES_SUBJECT "$JS.API.STREAM.NAMES"
#define NAMES_TOKEN 'q' /* then a check and the subject's place, in hexadecimal; no message's token begins so */

static uint64_t *
word_of(struct nats_session *nats, uint64_t seq)
{
	return &nats->pending[seq & nats->mask].word;
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
	struct nats_subject *subject = &nats->subjects[nats_place(hash)];
	uint64_t first = UINT64_MAX, all = 1, seq = nats->oldest;

	/* Else each of many violations of a subject would look at all that were counted before it. */
	if (subject->hash == hash && subject->counted - seq < nats->next - seq)
		seq = subject->counted;
	for (; seq != nats->next && all; seq++) {
		if ((*word_of(nats, seq) ^ hash) == 0) {
			all = first == UINT64_MAX;
			if (all)
				first = seq;
		}
	}
	if (first == UINT64_MAX)
		return 0;
	if (subject->hash == hash)
		subject->counted = first + 1;
	*word_of(nats, first) |= NATS_DENIED;
	if (nats->jetstream && all) {
		uint64_t end = nats->next;
		for (seq = nats->oldest; seq != end; seq++)
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

/* Errors that pass by themselves and in which this copy was not kept. The rest is the answer. */
static int
is_passing(json_int_t code)
{
	return code == 10008 /* JetStream system temporarily unavailable */ ||
	       code == 10009 /* not the leader */ ||
	       code == 10158 /* an earlier copy, by its Nats-Msg-Id, is still under way: it may yet be kept */;
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

static void
nack_odd(struct nats_session *nats, uint64_t seq)
{
	static const char text[] = "no stream takes this subject: what answers is no acknowledgement";

	settle(nats, seq);
	driver_nack(&nats->base, seq, NATS_NO_RESPONDERS, text, sizeof(text) - 1);
}

/* {"subject":"..."}: subjects are UTF-8 without control characters. */
static int
send_question(const struct nats_session *nats, const struct nats_subject *subject, struct out *out)
{
	static const char before[] = "{\"subject\":\"", after[] = "\"}";
	uint32_t escapes = 0;
	char head[96];

	for (uint32_t i = 0; i < subject->len; i++)
		escapes += subject->text[i] == '"' || subject->text[i] == '\\';
	int n = snprintf(head, sizeof(head), "PUB " NAMES_SUBJECT " %s%c%016" PRIx64 "%x %zu\r\n", nats->inbox,
	    NAMES_TOKEN, nats->question, (unsigned)(subject - nats->subjects),
	    sizeof(before) + sizeof(after) - 2 + subject->len + escapes);
	out_mark(out);
	out_copy(out, head, (size_t)n);
	out_copy(out, before, sizeof(before) - 1);
	for (uint32_t i = 0, from = 0; i <= subject->len; i++) {
		if (i < subject->len && subject->text[i] != '"' && subject->text[i] != '\\')
			continue;
		out_copy(out, subject->text + from, i - from);
		if (i < subject->len)
			out_copy(out, "\\", 1);
		from = i;
	}
	out_copy(out, after, sizeof(after) - 1);
	out_copy(out, "\r\n", 2);
	return out_commit(out);
}

/* Asks on behalf of every message of the subject that is in doubt. */
static int
ask(struct nats_session *nats, struct nats_subject *subject, struct out *out)
{
	int rc = send_question(nats, subject, out);

	if (rc != 0)
		return rc;
	subject->asking = 1;
	nats->asking++;
	for (uint64_t seq = nats->oldest; seq != nats->next; seq++)
		if ((*word_of(nats, seq) & ~(NATS_DENIED | NATS_ASKED)) == (subject->hash | NATS_DOUBTED))
			*word_of(nats, seq) |= NATS_ASKED;
	return 0;
}

int
nats_ask_again(struct nats_session *nats, struct out *out)
{
	int rc = 0;

	for (uint32_t i = 0; i < NATS_SUBJECTS && rc == 0; i++)
		if (nats->subjects[i].asking)
			rc = send_question(nats, &nats->subjects[i], out);
	return rc;
}

int
nats_ask_silent(struct nats_session *nats, struct out *out)
{
	if (!nats->jetstream || nats->may_not_ask)
		return 0;
	for (uint64_t seq = nats->oldest; seq != nats->next; seq++) {
		uint64_t word = *word_of(nats, seq), hash = word & ~NATS_FLAGS;
		struct nats_subject *subject = &nats->subjects[nats_place(hash)];
		if ((word & (NATS_ANSWERED | NATS_DOUBTED)) != 0 || subject->hash != hash || subject->asking)
			continue;
		int rc = send_question(nats, subject, out);
		if (rc != 0)
			return rc;
		subject->asking = 1;
		subject->silent = nats->next;
		nats->asking++;
	}
	return 0;
}

/* The message was answered by what is no stream. */
static int
odd(struct nats_session *nats, uint64_t seq, struct out *out)
{
	uint64_t *word = word_of(nats, seq), hash = *word & ~NATS_FLAGS;
	struct nats_subject *subject = &nats->subjects[nats_place(hash)];

	if (nats->may_not_ask || (*word & (NATS_DOUBTED | NATS_DENIED)) != 0 || subject->hash != hash)
		return 0; /* the stream's answer, or the deadline */
	*word |= NATS_ASKED;
	if (subject->asking)
		return 0;
	int rc = send_question(nats, subject, out);
	if (rc != 0)
		return rc;
	subject->asking = 1;
	subject->silent = seq + 1;
	nats->asking++;
	return 0;
}

static void
give_back(struct nats_session *nats, uint64_t seq, enum driver_event_type how)
{
	settle(nats, seq);
	driver_emit(&nats->base, how, seq);
}

static int
no_stream(struct nats_session *nats, uint64_t seq, struct out *out)
{
	uint64_t word = *word_of(nats, seq), hash = word & ~NATS_FLAGS;
	struct nats_subject *subject = &nats->subjects[nats_place(hash)];
	int kept = subject->hash == hash;

	if (nats->may_not_ask)
		nack_no_stream(nats, seq);
	else if (!kept && !subject->asking)
		give_back(nats, seq, EV_AGAIN);
	else
		*word_of(nats, seq) = hash | NATS_DOUBTED | (word & NATS_ASKED);
	uncount(nats, word);
	return kept && !subject->asking && !nats->may_not_ask ? ask(nats, subject, out) : 0;
}

/*
 * The question is answered. none: no stream takes the subject, or the user may not ask. Messages that were in
 * doubt at the time of the question are rejected; unanswered ones are not waited for any more.
 */
static int
asked(struct nats_session *nats, struct nats_subject *subject, int none, struct out *out)
{
	uint64_t end = nats->next, silent = subject->silent;
	int more = 0;

	subject->asking = 0;
	subject->silent = 0;
	nats->asking--;
	for (uint64_t seq = nats->oldest; seq != end; seq++) {
		uint64_t word = *word_of(nats, seq), hash = word & ~NATS_FLAGS;
		if ((word & NATS_ANSWERED) != 0 || &nats->subjects[nats_place(hash)] != subject)
			continue;
		if ((word & NATS_DOUBTED) == 0) {
			if (none && hash == subject->hash && (word & NATS_ASKED) != 0)
				nack_odd(nats, seq);
			else if (none && hash == subject->hash && seq < silent && (word & NATS_DENIED) == 0)
				give_back(nats, seq, EV_LOST);
			else if (hash == subject->hash)
				*word_of(nats, seq) &= ~NATS_ASKED;
		} else if (hash != subject->hash) {
			give_back(nats, seq, EV_AGAIN); /* it had no place to ask from */
		} else if ((word & NATS_ASKED) != 0) {
			nack_no_stream(nats, seq);
		} else {
			more = 1;
		}
	}
	return more ? ask(nats, subject, out) : 0;
}

/* The answer to ask(). */
static int
names_came(
    struct nats_session *nats, struct nats_subject *subject, const struct nats_reply *reply, struct out *out)
{
	json_error_t where;
	char said[100];
	int rc;

	if (!subject->asking)
		return 0;
	if (reply->unread)
		return asked(nats, subject, 0, out);
	if (is_no_responders(reply->headers, reply->headers_len)) {
		if (nats->no_streams || subject->silent != 0)
			return asked(nats, subject, nats->no_streams, out);
		return driver_fatal(&nats->base, FATAL_UNUSABLE, 0,
		    "JetStream has ended on this server, or its cluster has no leader");
	}
	json_t *answer = json_loadb((const char *)reply->body, reply->body_len, 0, &where);
	const json_t *error = json_object_get(answer, "error");
	const json_t *words = json_is_object(error) ? json_object_get(error, "description")
						    : json_array_get(json_object_get(answer, "streams"), 0);
	const char *text = json_string_value(words);
	utf8_clean(said, sizeof(said), (const uint8_t *)(text != NULL ? text : ""), json_string_length(words));
	if (subject->silent != 0)
		rc = asked(nats, subject, !json_is_object(error) && text == NULL, out);
	else if (json_is_object(error))
		rc = driver_fatal(&nats->base, FATAL_UNUSABLE, 0, "JetStream is not there: %s", said);
	else if (text != NULL)
		rc = driver_fatal(&nats->base, FATAL_UNUSABLE, 0, "stream \"%s\" has no leader", said);
	else
		rc = asked(nats, subject, 1, out);
	json_decref(answer);
	return rc;
}

void
nats_denied(struct nats_session *nats, const uint8_t *quoted, size_t len)
{
	uint8_t subject[2 * NATS_CONTROL_MAX];

	if (len > sizeof(subject))
		return; /* longer than any we sent */
	subject[0] = 0;
	len = unquote(subject, quoted, len);
	if (count_denied(nats, nats_hash(nats, subject, len)) || nats->asking == 0)
		return;
	if (len != sizeof(NAMES_SUBJECT) - 1 || memcmp(subject, NAMES_SUBJECT, len) != 0)
		return;
	/* It is ours, and not for this user to ask. */
	nats->may_not_ask = 1;
	nats->asking = 0;
	for (uint32_t i = 0; i < NATS_SUBJECTS; i++) {
		nats->subjects[i].asking = 0;
		nats->subjects[i].silent = 0;
	}
	uint64_t end = nats->next;
	for (uint64_t seq = nats->oldest; seq != end; seq++)
		if ((*word_of(nats, seq) & (NATS_DOUBTED | NATS_ANSWERED)) == NATS_DOUBTED)
			nack_no_stream(nats, seq);
}

static int
read_hex(const uint8_t *token, size_t len, uint64_t *number)
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
	*number = value;
	return 1;
}

/* The number of a token, behind its check. */
static int
read_number(const uint8_t *token, size_t len, uint64_t *number)
{
	return len > NATS_CHECK_LEN && read_hex(token + NATS_CHECK_LEN, len - NATS_CHECK_LEN, number);
}

static int
is_check(const uint8_t *token, uint64_t check)
{
	uint8_t digits[NATS_CHECK_LEN];

	driver_put_hex64(digits, check);
	return memcmp(token, digits, sizeof(digits)) == 0;
}

/* The seq of a message that waits for an answer under this token. */
static int
read_token(struct nats_session *nats, const uint8_t *token, size_t len, uint64_t *seq)
{
	if (!read_number(token, len, seq))
		return 0;
	*seq -= nats->first_token;
	return waits(nats, *seq) && is_check(token, nats->pending[*seq & nats->mask].check);
}

/* The place of a subject about which a question was asked under this token. */
static int
read_question(const struct nats_session *nats, const uint8_t *token, size_t len, uint64_t *place)
{
	return read_number(token, len, place) && *place < NATS_SUBJECTS && is_check(token, nats->question);
}

int
nats_answer(struct nats_session *nats, const struct nats_reply *reply, struct out *out)
{
	json_error_t where;
	uint64_t seq;

	if (reply->token_len > 1 && reply->token[0] == NAMES_TOKEN)
		return read_question(nats, reply->token + 1, reply->token_len - 1, &seq)
			   ? names_came(nats, &nats->subjects[seq], reply, out)
			   : 0;
	if (!read_token(nats, reply->token, reply->token_len, &seq))
		return 0;
	if (reply->unread)
		return odd(nats, seq, out);
	if (is_no_responders(reply->headers, reply->headers_len))
		return no_stream(nats, seq, out);
	int rc = 0;
	json_t *answer = json_loadb((const char *)reply->body, reply->body_len, 0, &where);
	const json_t *error = json_object_get(answer, "error");
	const json_t *number = json_object_get(answer, "seq");
	if (json_is_object(error))
		refused(nats, seq, error);
	else if (json_is_string(json_object_get(answer, "stream")) && json_is_integer(number) &&
		 json_integer_value(number) > 0)
		delivered(nats, seq, (uint64_t)json_integer_value(number));
	else
		rc = odd(nats, seq, out);
	json_decref(answer);
	return rc;
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

	if (len < 4 + NATS_INBOX_LEN + NATS_CHECK_LEN + 24 || memcmp(at, "MSG ", 4) != 0 ||
	    memcmp(at + 4, nats->inbox, NATS_INBOX_LEN) != 0)
		return 0;
	at += 4 + NATS_INBOX_LEN;
	const uint8_t *space = memchr(at, ' ', NATS_CHECK_LEN + 17);
	if (space == NULL || !read_token(nats, at, (size_t)(space - at), &seq))
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
