/* Frames that several parts send, and the words and meanings of reply codes. */
#include "amqp_wire.h"

uint8_t *
amqp_put_open(uint8_t *at, uint32_t channel, int nowait)
{
	uint8_t *select = amqp_end_method(at, amqp_put_u8(amqp_begin_method(at, channel, CHANNEL_OPEN), 0));

	at = amqp_put_u8(amqp_begin_method(select, channel, CONFIRM_SELECT), nowait != 0);
	return amqp_end_method(select, at);
}

const char *
amqp_reply_text(uint32_t code)
{
	switch (code) {
#define X(number, words, fatal) \
	case number:            \
		return words;
#include "amqp_reply.def"
#undef X
	default:
		return "unknown code";
	}
}

enum driver_fatal
amqp_reply_fatal(uint32_t code)
{
	switch (code) {
#define X(number, words, fatal) \
	case number:            \
		return fatal;
#include "amqp_reply.def"
#undef X
	default:
		return FATAL_PROTOCOL;
	}
}
