#include "rig_events.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

void
rig_broken(struct rig *rig, const char *format, ...)
{
	va_list args;

	if (rig->broken[0] != '\0')
		return;
	va_start(args, format);
	vsnprintf(rig->broken, sizeof(rig->broken), format, args);
	va_end(args);
}

void
rig_bytes_add(struct rig_bytes *to, const void *bytes, size_t len)
{
	if (len == 0)
		return;
	if (to->capacity - to->len < len) {
		to->capacity = (to->len + len) * 2;
		to->bytes = must(realloc(to->bytes, to->capacity));
	}
	memcpy(to->bytes + to->len, bytes, len);
	to->len += len;
}

void
rig_bytes_fini(struct rig_bytes *bytes)
{
	free(bytes->bytes);
	memset(bytes, 0, sizeof(*bytes));
}

static void
digest_word(struct rig_digest *digest, uint64_t word)
{
	digest->sum = (digest->sum ^ word) * UINT64_C(0x9e3779b97f4a7c15);
	digest->sum ^= digest->sum >> 29;
}

void
rig_digest_add(struct rig_digest *digest, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	for (; len > 0 && digest->have > 0; len--) {
		digest->word |= (uint64_t)*at++ << 8 * digest->have;
		digest->have = (digest->have + 1) % 8;
		if (digest->have == 0)
			digest_word(digest, digest->word);
	}
	for (; len >= 8; len -= 8, at += 8) {
		memcpy(&digest->word, at, 8);
		digest_word(digest, digest->word);
	}
	if (digest->have == 0)
		digest->word = 0;
	for (; len > 0; len--)
		digest->word |= (uint64_t)*at++ << 8 * digest->have++;
}

uint64_t
rig_digest_value(const struct rig_digest *digest)
{
	struct rig_digest end = *digest;

	digest_word(&end, end.have > 0 ? end.word : 0);
	digest_word(&end, end.have);
	return end.sum;
}

void
rig_say(struct rig *rig, const char *format, ...)
{
	char line[600];
	va_list args;

	if (rig->quiet || rig->moving)
		return;
	va_start(args, format);
	int n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	size_t len = (size_t)n < sizeof(line) - 2 ? (size_t)n : sizeof(line) - 2;
	line[len++] = '\n';
	rig_bytes_add(&rig->events, line, len);
}

/* One seq is answered. Returns 0 if none was due. */
static int
answered(struct rig *rig, uint64_t seq)
{
	if (seq >= rig->next || !rig->waits[seq])
		return 0;
	rig->waits[seq] = 0;
	rig->outstanding--;
	return 1;
}

static void
acked(struct rig *rig, const struct driver_event *event)
{
	uint64_t first = event->seq;
	int any = 0;

	if (event->outcome != TG_DELIVERED && event->outcome != TG_SENT)
		rig_broken(rig, "an acknowledgement has outcome %u", event->outcome);
	while (rig->oldest < rig->next && !rig->waits[rig->oldest])
		rig->oldest++;
	if (event->type == EV_ACK_UPTO)
		first = rig->oldest;
	for (uint64_t seq = first; seq <= event->seq && seq < rig->next; seq++) {
		if (!answered(rig, seq))
			continue;
		any = 1;
		uint64_t what[3] = { rig->base + seq, event->outcome,
			event->type == EV_ACK ? event->reference : 0 };
		if (rig->quiet)
			rig_digest_add(&rig->said, what, sizeof(what));
		else if (what[2] != 0)
			rig_say(rig, "ack %lu %s reference=%lu", rig->base + seq, outcome_word(event->outcome),
			    event->reference);
		else
			rig_say(rig, "ack %lu %s", rig->base + seq, outcome_word(event->outcome));
	}
	if (!any || event->seq >= rig->next)
		rig_broken(
		    rig, "acknowledged seq %lu, which waits for nothing (next is %lu)", event->seq, rig->next);
}

/* Adds to the digest every field that the event's type has. */
static void
digest_event(struct rig *rig, const struct driver_event *event)
{
	uint64_t what[5] = { event->type, event->seq, event->code, event->fatal, event->text_len };

	if (event->type == EV_UNSURE)
		what[3] = event->reference;
	if (event->type == EV_NACK || event->type == EV_AGAIN || event->type == EV_LOST ||
	    event->type == EV_UNSURE)
		what[1] += rig->base;
	rig_digest_add(&rig->said, what, sizeof(what));
	rig_digest_add(&rig->said, event->text, event->text_len);
}

static void
one_answer(struct rig *rig, const struct driver_event *event)
{
	if (!answered(rig, event->seq))
		rig_broken(
		    rig, "answered seq %lu, which waits for nothing (next is %lu)", event->seq, rig->next);
}

void
rig_on_event(void *owner, const struct driver_event *event)
{
	static const char *const kinds[] = { "protocol", "refused", "closed", "unusable", "settings", "again",
		"answered", "message" };
	struct rig *rig = owner;
	char text[400] = "";
	int n = event->text_len < 300 ? (int)event->text_len : 300;
	uint64_t seq = rig->base + event->seq;

	if (rig->dead)
		rig_broken(rig, "said event %d after the fatal one", event->type);
	if (!rig->allowed_events)
		rig_broken(rig, "said event %d outside input()", event->type);
	if (rig->quiet && !rig->moving && event->type != EV_ACK && event->type != EV_ACK_UPTO)
		digest_event(rig, event);
	if (event->text_len > 0 && !rig->quiet)
		snprintf(text, sizeof(text), " \"%.*s\"", n, event->text);
	for (char *c = text; *c != '\0'; c++)
		if ((unsigned char)*c < ' ')
			*c = '?';
	switch (event->type) {
	case EV_UP:
		if (rig->up)
			rig_broken(rig, "came up twice");
		rig->up = 1;
		rig_say(rig, "up");
		return;
	case EV_ALIVE:
		rig->probing = 0;
		rig_say(rig, "alive");
		return;
	case EV_ACK:
	case EV_ACK_UPTO:
		acked(rig, event);
		return;
	case EV_NACK:
		one_answer(rig, event);
		if (event->code == 0 || event->code > 65535)
			rig_broken(rig, "a rejection has code %u", event->code);
		rig_say(rig, "nack %lu 0x%02x%s", seq, event->code, text);
		return;
	case EV_AGAIN:
		one_answer(rig, event);
		rig_say(rig, "again %lu", seq);
		return;
	case EV_LOST:
		one_answer(rig, event);
		rig_say(rig, "lost %lu", seq);
		return;
	case EV_UNSURE:
		one_answer(rig, event);
		if (event->code == 0 || event->code > 65535)
			rig_broken(rig, "an unsure answer has code %u", event->code);
		rig_say(rig, "unsure %lu 0x%02x reference=%lu", seq, event->code, event->reference);
		return;
	case EV_BLOCKED:
		rig_say(rig, "blocked%s", text);
		return;
	case EV_UNBLOCKED:
		rig_say(rig, "unblocked");
		return;
	case EV_WINDOW:
	case EV_MAX_BODY:
	case EV_KEEPALIVE:
		if (event->seq == 0 && event->type != EV_MAX_BODY)
			rig_broken(rig, "a limit is 0");
		rig_say(rig, "%s %lu",
		    event->type == EV_WINDOW     ? "window"
		    : event->type == EV_MAX_BODY ? "max-body"
						 : "keepalive",
		    event->seq);
		return;
	case EV_ENDPOINT:
		if (event->seq != 0 && event->seq != rig->endpoints)
			rig_broken(rig, "an endpoint has the number %lu where %lu is next", event->seq,
			    rig->endpoints);
		rig->endpoints = event->seq + 1;
		rig_say(rig, "endpoint%s", text);
		return;
	case EV_LEAVING:
		rig_say(rig, "leaving");
		return;
	case EV_TLS:
		rig->securing = 1;
		rig_say(rig, "tls");
		return;
	case EV_FATAL:
		rig->dead = 1;
		if (event->text_len == 0)
			rig_broken(rig, "the end has no text");
		rig_say(rig, "fatal %s 0x%02x%s", event->fatal <= FATAL_MESSAGE ? kinds[event->fatal] : "?",
		    event->code, text);
		return;
	}
	rig_broken(rig, "said an event of no known type, %d", event->type);
}
