/*
 * The last error in words, one for each thread: lanes of one client may fail in several threads at
 * once, and tg_client_open has no client to keep its words in.
 */
#include "internal.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define DETAIL_TEXT 384

enum detail_kind { DETAIL_WORDS, DETAIL_NO_ROOM, DETAIL_NO_SLOT };

static _Thread_local struct {
	enum detail_kind kind;
	uint64_t lane_id, need, have, limit;
	char text[DETAIL_TEXT];
} last;

int
detail_fail(int code, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(last.text, sizeof(last.text), format, args);
	va_end(args);
	last.kind = DETAIL_WORDS;
	return code;
}

static int
numbers(enum detail_kind kind, uint64_t lane_id, uint64_t need, uint64_t have, uint64_t limit)
{
	last.kind = kind;
	last.lane_id = lane_id;
	last.need = need;
	last.have = have;
	last.limit = limit;
	return -TG_EAGAIN;
}

int
detail_no_room(uint64_t lane_id, uint64_t need, uint64_t free, uint64_t size)
{
	return numbers(DETAIL_NO_ROOM, lane_id, need, free, size);
}

int
detail_no_slot(uint64_t lane_id, uint64_t held, uint64_t size)
{
	return numbers(DETAIL_NO_SLOT, lane_id, 1, held, size);
}

const char *
tg_client_detail(const struct tg_client *client)
{
	(void)client;
	switch (last.kind) {
	case DETAIL_NO_ROOM:
		snprintf(last.text, sizeof(last.text),
		    "lane %" PRIu64 ": the record needs %" PRIu64 " bytes, %" PRIu64 " of the ring's %" PRIu64
		    " are free",
		    last.lane_id, last.need, last.have, last.limit);
		break;
	case DETAIL_NO_SLOT:
		snprintf(last.text, sizeof(last.text),
		    "lane %" PRIu64 ": %" PRIu64 " of %" PRIu64
		    " completion slots are taken by unanswered messages and unread completions",
		    last.lane_id, last.have, last.limit);
		break;
	case DETAIL_WORDS:
		break;
	}
	return last.text;
}

const char *
tg_strerror(int error)
{
	return error_text(error);
}

const char *
tg_outcome_name(unsigned outcome)
{
	return outcome_word(outcome);
}
