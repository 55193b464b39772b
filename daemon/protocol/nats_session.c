/* A session's life, the hashes and places of its subjects, and its PINGs in flight. */
#include "nats.h"
#include "window.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>

static void
inbox_make(char inbox[NATS_INBOX_LEN + 1], uint64_t random)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

	memcpy(inbox, "_INBOX.", 7);
	for (int i = 7; i < 18; i++, random >>= 6)
		inbox[i] = letters[random & 63];
	inbox[18] = '.';
	inbox[NATS_INBOX_LEN] = '\0';
}

int
nats_open(struct session *session)
{
	struct nats_session *nats = nats_session(session);
	const struct nats_settings *settings = session->settings;

	nats->jetstream = settings->jetstream;
	nats->msg_id = settings->jetstream && settings->msg_id;
	nats->state = NATS_WAIT_INFO;
	nats->max_payload = UINT64_MAX;
	nats->window = session->params->window > 0 ? session->params->window : 1;
	struct siphash words = session_words(session, 0), more = session_words(session, 1);
	inbox_make(nats->inbox, words.word[0]);
	nats->seed = words.word[1] | 1;
	nats->mixed = more.word[0];
	nats->question = more.word[1];
	/* Sixteen windows, of 16 bytes a message: answers that come out of order, or never, leave holes that the next
	 * ones need not wait for. */
	uint64_t room = nats->window * (nats->jetstream ? UINT64_C(16) : UINT64_C(1));
	uint32_t capacity = window_power_of_two(room > 1024 ? room : 1024);
	nats->mask = capacity - 1;
	nats->pending = calloc(capacity, sizeof(*nats->pending));
	return nats->pending != NULL ? 0 : -TG_ENOMEM;
}

void
nats_close(struct session *session)
{
	struct nats_session *nats = nats_session(session);

	for (uint32_t i = 0; i < NATS_SUBJECTS; i++)
		free(nats->subjects[i].text);
	memset(nats->subjects, 0, sizeof(nats->subjects));
	free(nats->pending);
	nats->pending = NULL;
	nats->state = NATS_CLOSED;
}

/* ---- subjects ---- */

uint64_t
nats_hash(const struct nats_session *nats, const uint8_t *subject, size_t len)
{
	const uint64_t odd = UINT64_C(0xd6e8feb86659fd93);
	uint64_t hash = nats->seed ^ len * odd, word = 0;

	for (; len >= sizeof(word); len -= sizeof(word), subject += sizeof(word)) {
		memcpy(&word, subject, sizeof(word));
		hash = (hash ^ word) * odd;
		hash ^= hash >> 32;
	}
	word = 0;
	if (len > 0) /* an empty subject may have no address, which memcpy() must not be given */
		memcpy(&word, subject, len);
	hash = (hash ^ word) * odd;
	hash ^= hash >> 32;
	return hash * odd & ~NATS_FLAGS;
}

void
nats_keep_subject(struct nats_session *nats, uint64_t hash, const struct message *message)
{
	struct nats_subject *subject = &nats->subjects[nats_place(hash)];

	if (subject->asking)
		return;
	if (message->topic_len > subject->room) {
		uint8_t *text = realloc(subject->text, message->topic_len);
		if (text == NULL)
			return;
		subject->text = text;
		subject->room = message->topic_len;
	}
	if (subject->hash != hash)
		subject->counted = nats->oldest;
	memcpy(subject->text, message->topic, message->topic_len);
	subject->len = message->topic_len;
	subject->hash = hash;
}

/* ---- PINGs ---- */

int
nats_flush_core(struct nats_session *nats, struct out *out)
{
	if (nats->jetstream || nats->flushed == nats->next)
		return 0;
	nats->flush_waits = nats->ping_count == NATS_PINGS;
	if (nats->flush_waits)
		return 0;
	int rc = out_frame(out, "PING\r\n", 6);
	if (rc != 0)
		return rc;
	nats->pings[(nats->ping_first + nats->ping_count++) % NATS_PINGS] =
	    (struct nats_ping){ .upto = nats->next, .flush = 1 };
	nats->flushed = nats->next;
	return 0;
}

int
nats_ping_probe(struct nats_session *nats, struct out *out)
{
	int rc = out_frame(out, "PING\r\n", 6);

	if (rc != 0)
		return rc;
	/* Behind the last one: its questions about messages have been asked, or will be. */
	if (nats->ping_count == 0)
		nats->pings[(nats->ping_first + nats->ping_count++) % NATS_PINGS] = (struct nats_ping){ 0 };
	nats->pings[(nats->ping_first + nats->ping_count - 1) % NATS_PINGS].probes++;
	return 0;
}
