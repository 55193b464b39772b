#include "driver.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"
#include "daemon/base/utf8.h"

#include <endian.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int
message_header_next(const struct message *message, uint32_t *offset, struct header_view *header)
{
	uint16_t lens[2];
	uint32_t left = message->headers_len - *offset;

	if (left < sizeof(lens))
		return 0;
	const uint8_t *at = message->headers + *offset;
	memcpy(lens, at, sizeof(lens));
	if ((uint32_t)lens[0] + lens[1] > left - sizeof(lens))
		return 0;
	header->name_len = lens[0];
	header->value_len = lens[1];
	header->name = at + sizeof(lens);
	header->value = header->name + lens[0];
	*offset += (uint32_t)sizeof(lens) + lens[0] + lens[1];
	return 1;
}

uint8_t *
driver_put_hex64(uint8_t *at, uint64_t value)
{
	/* Sixteen digits at once, each in a byte of two words: those above 9 are as far from '9' as 'a' is. */
	for (int shift = 32; shift >= 0; shift -= 32) {
		uint64_t x = value >> shift & UINT32_MAX;
		x = (x << 16 | x) & UINT64_C(0x0000ffff0000ffff);
		x = (x << 8 | x) & UINT64_C(0x00ff00ff00ff00ff);
		x = (x << 4 | x) & UINT64_C(0x0f0f0f0f0f0f0f0f);
		uint64_t above = (x + UINT64_C(0x0606060606060606)) >> 4 & UINT64_C(0x0101010101010101);
		x = htobe64(x + UINT64_C(0x3030303030303030) + above * ('a' - '9' - 1));
		memcpy(at, &x, sizeof(x));
		at += sizeof(x);
	}
	return at;
}

uint8_t *
message_id_put(uint8_t *at, const struct siphash *id)
{
	at = driver_put_hex64(at, id->word[0]);
	*at++ = '-';
	return driver_put_hex64(at, id->word[1]);
}

static void
emit(struct session *session, const struct driver_event *event)
{
	session->events.emit(session->events.owner, event);
}

void
driver_emit(struct session *session, enum driver_event_type type, uint64_t seq)
{
	emit(session, &(struct driver_event){ .type = type, .seq = seq });
}

void
driver_ack(
    struct session *session, enum driver_event_type type, uint64_t seq, uint8_t outcome, uint64_t reference)
{
	emit(session,
	    &(struct driver_event){ .type = type, .seq = seq, .outcome = outcome, .reference = reference });
}

void
driver_nack(struct session *session, uint64_t seq, uint32_t code, const char *text, size_t text_len)
{
	emit(session, &(struct driver_event){
			  .type = EV_NACK, .seq = seq, .code = code, .text = text, .text_len = text_len });
}

void
driver_unsure(struct session *session, uint64_t seq, uint32_t code, uint64_t reference)
{
	emit(session,
	    &(struct driver_event){ .type = EV_UNSURE, .seq = seq, .code = code, .reference = reference });
}

int
driver_fatal(struct session *session, enum driver_fatal kind, uint32_t code, const char *format, ...)
{
	char text[240];
	va_list args;

	va_start(args, format);
	int n = vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	emit(session, &(struct driver_event){ .type = EV_FATAL,
			  .fatal = kind,
			  .code = code,
			  .text = text,
			  .text_len = n < 0                      ? 0
				      : (size_t)n < sizeof(text) ? (size_t)n
								 : sizeof(text) - 1 });
	return -TG_EPROTOCOL;
}

int
driver_reject(struct driver_rejection *rejection, uint32_t code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(rejection->buffer, sizeof(rejection->buffer), format, args);
	va_end(args);
	rejection->code = code;
	rejection->text = rejection->buffer;
	return DRIVER_REJECTED;
}

int
driver_read_text(struct config_node *group, const char *key, char **copy, size_t min, size_t max)
{
	const char *text = NULL;
	size_t offset = 0;
	int rc = config_node_string(group, key, &text, min, max);

	if (rc <= 0)
		return rc;
	enum utf8_fault fault = utf8_check((const uint8_t *)text, strlen(text), "\0", &offset);
	if (fault != UTF8_PLAIN)
		return config_node_error(
		    group, key, "\"%s\" %s at byte %zu", text, utf8_fault_text(fault), offset);
	*copy = strdup(text);
	return *copy != NULL ? 1 : -TG_ENOMEM;
}
