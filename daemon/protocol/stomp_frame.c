/* Reading the head of a STOMP frame: a command, headers, an empty line. Lines end with LF or CR LF. */
#include "stomp.h"
#include "daemon/base/utf8.h"

#include <stdio.h>
#include <string.h>

static const char *const commands[STOMP_COMMANDS] = {
	[STOMP_CONNECTED] = "CONNECTED",
	[STOMP_RECEIPT] = "RECEIPT",
	[STOMP_ERROR] = "ERROR",
	[STOMP_MESSAGE] = "MESSAGE",
};

const char *
stomp_command_word(enum stomp_command command)
{
	return commands[command];
}

static int
is(const uint8_t *bytes, size_t len, const char *word)
{
	return len == strlen(word) && memcmp(bytes, word, len) == 0;
}

int
stomp_number(const uint8_t *bytes, size_t len, uint64_t max, uint64_t *value)
{
	uint64_t n = 0;

	if (len == 0 || len > 19)
		return -1;
	for (size_t i = 0; i < len; i++) {
		if (bytes[i] < '0' || bytes[i] > '9')
			return -1;
		n = n * 10 + (uint64_t)(bytes[i] - '0');
	}
	if (n > max)
		return -1;
	*value = n;
	return 0;
}

void
stomp_clean(char *text, size_t size, const uint8_t *bytes, size_t len)
{
	uint8_t plain[1024];
	size_t n = 0;

	for (size_t i = 0; i < len && n < sizeof(plain) && n < size; i++) {
		uint8_t c = bytes[i];
		if (c == '\\' && i + 1 < len) {
			c = bytes[++i];
			c = c == 'c' ? ':' : c == 'n' || c == 'r' ? ' ' : c;
		}
		plain[n++] = c;
	}
	utf8_clean(text, size, plain, n);
}

static int
read_command(struct stomp_head *head, const uint8_t *line, size_t len, char *why)
{
	char word[40];

	for (unsigned i = 0; i < STOMP_COMMANDS; i++)
		if (is(line, len, commands[i])) {
			head->command = (enum stomp_command)i;
			return 0;
		}
	utf8_clean(word, sizeof(word), line, len);
	snprintf(why, 160, "a frame begins with \"%s\", which is no command of a broker's", word);
	return -1;
}

static int
read_header(struct stomp_head *head, const uint8_t *line, size_t len, char *why)
{
	const struct {
		const char *name;
		struct stomp_text *to;
	} known[] = {
		{ "version", &head->version },
		{ "heart-beat", &head->heart_beat },
		{ "server", &head->server },
		{ "receipt-id", &head->receipt_id },
		{ "message", &head->message },
	};
	const char *command = commands[head->command];
	const uint8_t *colon = memchr(line, ':', len);
	uint64_t length;

	if (memchr(line, '\0', len) != NULL || colon == NULL || colon == line) {
		snprintf(why, 160, "%s: a line of its head is not NAME:VALUE", command);
		return -1;
	}
	size_t name_len = (size_t)(colon - line), value_len = len - name_len - 1;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].to->bytes == NULL && is(line, name_len, known[i].name)) {
			*known[i].to = (struct stomp_text){ .bytes = colon + 1, .len = value_len };
			return 0;
		}
	if (head->content_length >= 0 || !is(line, name_len, "content-length"))
		return 0;
	if (stomp_number(colon + 1, value_len, INT64_MAX, &length) != 0) {
		snprintf(why, 160, "%s: its content-length is not a number", command);
		return -1;
	}
	head->content_length = (int64_t)length;
	return 0;
}

ssize_t
stomp_head_read(struct stomp_head *head, const uint8_t *bytes, size_t len, char why[static 160])
{
	size_t limit = len < STOMP_HEAD_MAX ? len : STOMP_HEAD_MAX, at = 0;

	memset(head, 0, sizeof(*head));
	head->content_length = -1;
	for (unsigned lines = 0;; lines++) {
		const uint8_t *line = bytes + at, *end = memchr(line, '\n', limit - at);
		if (end == NULL && limit < STOMP_HEAD_MAX)
			return 0;
		if (end == NULL) {
			snprintf(why, 160, "the head of a frame has more than %u bytes", STOMP_HEAD_MAX);
			return -1;
		}
		at += (size_t)(end - line) + 1;
		size_t line_len = (size_t)(end - line);
		if (line_len > 0 && line[line_len - 1] == '\r')
			line_len--;
		if (lines == 0) {
			if (read_command(head, line, line_len, why) != 0)
				return -1;
		} else if (line_len == 0) {
			return (ssize_t)at;
		} else if (lines > STOMP_HEADERS_MAX) {
			snprintf(
			    why, 160, "%s: more than %u headers", commands[head->command], STOMP_HEADERS_MAX);
			return -1;
		} else if (read_header(head, line, line_len, why) != 0) {
			return -1;
		}
	}
}
