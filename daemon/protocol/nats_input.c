/* Input from a NATS server: INFO, PING, PONG, +OK, -ERR, and answers as MSG and HMSG. */
#include "nats.h"
#include "daemon/base/utf8.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#define fatal(nats, kind, ...) driver_fatal(&(nats)->base, kind, 0, __VA_ARGS__)

/* A line without its end. */
struct text {
	const uint8_t *at;
	size_t len;
};

static int
begins(const struct text *line, const char *word, size_t len)
{
	return line->len >= len && memcmp(line->at, word, len) == 0;
}

#define BEGINS(line, word) begins(line, word, sizeof(word) - 1)
#define IS(line, word) ((line)->len == sizeof(word) - 1 && BEGINS(line, word))

/* ---- -ERR ---- */

struct meaning {
	const char *begins; /* how the server's words begin, in any case */
	enum driver_fatal fatal;
	const char *words;
};

static const struct meaning meanings[] = {
	{ "authorization violation", FATAL_REFUSED, "the server refused the credentials" },
	{ "user authentication", FATAL_REFUSED, "the server no longer takes the credentials" },
	{ "account authentication", FATAL_REFUSED, "the server no longer takes the account" },
	{ "authentication timeout", FATAL_REFUSED, "the server waited in vain for credentials" },
	{ "permissions violation for subscription", FATAL_REFUSED, "the user may not listen for answers" },
	{ "permissions violation", FATAL_REFUSED, "the user lacks a right" },
	{ "secure connection", FATAL_REFUSED, "the server wants TLS" },
	{ "maximum connections", FATAL_UNUSABLE, "the server has no place for another connection" },
	{ "maximum account", FATAL_UNUSABLE, "the account has no place for another connection" },
	{ "maximum payload", FATAL_CLOSED, "the server's limit on messages has become smaller" },
	{ "stale connection", FATAL_CLOSED, "the server has missed answers to its pings" },
	{ "slow consumer", FATAL_CLOSED, "the server's answers were not read in time" },
	{ "server shutdown", FATAL_CLOSED, "the server shuts down" },
	{ "unknown protocol", FATAL_PROTOCOL, "the server did not understand us" },
	{ "parser error", FATAL_PROTOCOL, "the server did not understand us" },
	{ "maximum control line", FATAL_MESSAGE, "the server allows shorter subjects only" },
};

static int
input_error(struct nats_session *nats, struct text said)
{
	static const char denied[] = "Permissions Violation for Publish to \"";
	const struct meaning *meaning = NULL;
	char words[160];

	if (said.len > 0 && said.at[0] == '\'') {
		said.at++;
		said.len--;
	}
	if (said.len > 0 && said.at[said.len - 1] == '\'')
		said.len--;
	if (nats->state == NATS_UP && BEGINS(&said, denied)) {
		nats_denied(nats, said.at + sizeof(denied) - 1, said.len - (sizeof(denied) - 1));
		return 0;
	}
	for (size_t i = 0; i < sizeof(meanings) / sizeof(meanings[0]) && meaning == NULL; i++)
		if (strlen(meanings[i].begins) <= said.len &&
		    strncasecmp((const char *)said.at, meanings[i].begins, strlen(meanings[i].begins)) == 0)
			meaning = &meanings[i];
	utf8_clean(words, sizeof(words), said.at, said.len);
	enum driver_fatal kind = meaning != NULL ? meaning->fatal : FATAL_CLOSED;
	if (kind == FATAL_MESSAGE && nats->outstanding == 0)
		kind = FATAL_PROTOCOL; /* over our own CONNECT, then */
	return fatal(
	    nats, kind, "%s: %s", meaning != NULL ? meaning->words : "the server reports an error", words);
}

/* ---- PONG ---- */

static int
input_pong(struct nats_session *nats, struct out *out)
{
	if (nats->state == NATS_CONNECTING) {
		nats->state = NATS_UP;
		driver_emit(&nats->base, EV_UP, 0);
		return 0;
	}
	if (nats->ping_count == 0)
		return 0; /* unasked: means nothing */
	struct nats_ping *ping = &nats->pings[nats->ping_first];
	uint64_t upto = ping->upto;
	int was_flush = ping->flush != 0;
	if (was_flush)
		ping->flush = 0;
	else
		ping->probes--;
	if (ping->probes == 0) {
		nats->ping_first = (nats->ping_first + 1) % NATS_PINGS;
		nats->ping_count--;
	}
	if (was_flush)
		nats_taken(nats, upto);
	else
		driver_emit(&nats->base, EV_ALIVE, 0);
	return nats->flush_waits ? nats_flush_core(nats, out) : 0;
}

/* ---- MSG and HMSG ---- */

#define MESSAGE_CUT ((ssize_t)NATS_LINE_MAX + (ssize_t)NATS_ANSWER_MAX * 2) /* more than any message */

static int
next_word(struct text *line, struct text *word)
{
	while (line->len > 0 && (*line->at == ' ' || *line->at == '\t')) {
		line->at++;
		line->len--;
	}
	word->at = line->at;
	while (line->len > 0 && *line->at != ' ' && *line->at != '\t') {
		line->at++;
		line->len--;
	}
	word->len = (size_t)(line->at - word->at);
	return word->len > 0;
}

/* Returns the number, or SIZE_MAX for what is none or too large. */
static size_t
read_size(const struct text *word)
{
	size_t size = 0;

	for (size_t i = 0; i < word->len; i++) {
		if (word->at[i] < '0' || word->at[i] > '9' || size > NATS_SKIP_MAX)
			return SIZE_MAX;
		size = size * 10 + (size_t)(word->at[i] - '0');
	}
	return size <= NATS_SKIP_MAX ? size : SIZE_MAX;
}

/*
 * MSG subject sid [reply] size, HMSG subject sid [reply] header-size size; `line` is behind the verb and
 * `rest` begins behind the line. Returns how much of the rest was taken, MESSAGE_CUT while it is not
 * whole, or a negative TG_E.
 */
static ssize_t
input_message(struct nats_session *nats, struct text line, int has_headers, struct text rest, struct out *out)
{
	struct text words[6];
	size_t count = 0, sizes = has_headers ? 2 : 1, headers = 0;

	while (count < 6 && next_word(&line, &words[count]))
		count++;
	if (count < 2 + sizes || count > 3 + sizes)
		return fatal(nats, FATAL_PROTOCOL, "%s with %zu words", has_headers ? "HMSG" : "MSG", count);
	size_t size = read_size(&words[count - 1]);
	if (has_headers)
		headers = read_size(&words[count - 2]);
	if (size == SIZE_MAX || headers > size)
		return fatal(nats, FATAL_PROTOCOL, "a message whose size is not from 0 to %u", NATS_SKIP_MAX);
	if (!nats->jetstream || words[0].len < NATS_INBOX_LEN ||
	    memcmp(words[0].at, nats->inbox, NATS_INBOX_LEN) != 0)
		return fatal(nats, FATAL_PROTOCOL, "a message on a subject that was not subscribed to");
	struct nats_reply reply = {
		.token = words[0].at + NATS_INBOX_LEN,
		.token_len = words[0].len - NATS_INBOX_LEN,
		.unread = size > NATS_ANSWER_MAX,
	};
	if (reply.unread) {
		nats->skip = (uint64_t)size + 2;
		return nats_answer(nats, &reply, out);
	}
	if (rest.len < size + 2)
		return MESSAGE_CUT;
	if (rest.at[size] != '\r' || rest.at[size + 1] != '\n')
		return fatal(nats, FATAL_PROTOCOL, "a message that does not end after %zu bytes", size);
	reply.headers = rest.at;
	reply.headers_len = headers;
	reply.body = rest.at + headers;
	reply.body_len = size - headers;
	int rc = nats_answer(nats, &reply, out);
	return rc < 0 ? rc : (ssize_t)(size + 2);
}

/* ---- lines ---- */

static int
unexpected(struct nats_session *nats, const struct text *line)
{
	char words[60];

	utf8_clean(words, sizeof(words), line->at, line->len);
	return fatal(nats, FATAL_PROTOCOL, "the server sent \"%s\"%s", words,
	    nats->state == NATS_WAIT_INFO  ? " where an INFO belongs"
	    : nats->state == NATS_SECURING ? " in the clear, though TLS was to begin"
					   : ", which it may not send a publisher");
}

/*
 * One line, and what belongs to it. Returns its size, 0 while it is not whole, or a negative TG_E. Only
 * whole lines are judged, so that cutting the input elsewhere changes nothing.
 */
static ssize_t
input_line(struct nats_session *nats, const uint8_t *bytes, size_t len, struct out *out)
{
	size_t most = len < NATS_LINE_MAX ? len : NATS_LINE_MAX;
	const uint8_t *end = memchr(bytes, '\n', most);
	struct text line = { .at = bytes };
	int rc;

	if (end == NULL && most < NATS_LINE_MAX)
		return 0;
	if (end == NULL)
		return fatal(nats, FATAL_PROTOCOL, "a line of more than %u bytes", NATS_LINE_MAX);
	size_t size = (size_t)(end - bytes) + 1;
	line.len = size - 1;
	if (line.len > 0 && line.at[line.len - 1] == '\r')
		line.len--;
	int connected = nats->state == NATS_CONNECTING || nats->state == NATS_UP;
	if (nats->state != NATS_SECURING && BEGINS(&line, "INFO "))
		rc = nats_info(nats, line.at + 5, line.len - 5, out);
	else if (nats->state != NATS_SECURING && BEGINS(&line, "-ERR "))
		rc = input_error(nats, (struct text){ .at = line.at + 5, .len = line.len - 5 });
	else if (connected && IS(&line, "PING"))
		rc = out_frame(out, "PONG\r\n", 6);
	else if (connected && IS(&line, "PONG"))
		rc = input_pong(nats, out);
	else if (connected && IS(&line, "+OK"))
		rc = 0;
	else if (nats->state == NATS_UP && (BEGINS(&line, "MSG ") || BEGINS(&line, "HMSG "))) {
		int has_headers = line.at[0] == 'H';
		size_t verb = has_headers ? 5 : 4;
		struct text words = { .at = line.at + verb, .len = line.len - verb };
		ssize_t n = input_message(
		    nats, words, has_headers, (struct text){ .at = bytes + size, .len = len - size }, out);
		if (n == MESSAGE_CUT)
			return 0;
		if (n < 0)
			return n;
		return (ssize_t)size + n;
	} else
		rc = unexpected(nats, &line);
	return rc < 0 ? rc : (ssize_t)size;
}

ssize_t
nats_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	struct nats_session *nats = nats_session(session);
	size_t at = 0;

	if (nats->state == NATS_CLOSED)
		return -TG_EPROTOCOL;
	while (at < len) {
		if (nats->skip > 0) {
			size_t n = len - at < nats->skip ? len - at : (size_t)nats->skip;
			nats->skip -= n;
			at += n;
			continue;
		}
		if (nats->state == NATS_UP && nats->jetstream)
			at += nats_acks(nats, bytes + at, len - at);
		if (at == len)
			break;
		ssize_t n = input_line(nats, bytes + at, len - at, out);
		if (n < 0)
			nats->state = NATS_CLOSED;
		if (n < 0)
			return n;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	return (ssize_t)at;
}
