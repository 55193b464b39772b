/*
 * The state that a successor's session needs of this one, beside its handshake:
 *
 *   "NTS1"  u8 flags  u64 first token  u64 max_payload        numbers in network order
 *
 * Limits and flags are the last INFO's. With nothing outstanding and no PING or question under way there is
 * no more: subjects that were published to are a cache, and the state of a message ended with its answer.
 */
#include "nats.h"

#include "shm/error.h"

#include <endian.h>
#include <string.h>

#define MAGIC "NTS1"
#define SAVED_LEN (4u + 1u + 8u + 8u)
#define TOKENS_MAX (UINT64_MAX / 2) /* more than any connection ever uses: those to come do not wrap */

enum saved_flags {
	SAVED_JETSTREAM = 1 << 0, /* the inbox is subscribed to */
	SAVED_NO_STREAMS = 1 << 1,
	SAVED_HEADERS = 1 << 2,
	SAVED_MAY_NOT_ASK = 1 << 3,
	SAVED_ALL = (1 << 4) - 1,
};

static uint8_t *
put_u64(uint8_t *at, uint64_t value)
{
	value = htobe64(value);
	memcpy(at, &value, sizeof(value));
	return at + sizeof(value);
}

static uint64_t
read_u64(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return be64toh(value);
}

ssize_t
nats_save(const struct session *session, uint8_t *bytes, size_t room)
{
	const struct nats_session *nats = (const struct nats_session *)session;
	uint8_t *at = bytes;

	/* A PONG or an answer on its way to this session would be taken for one that the next has asked for. */
	if (nats->state != NATS_UP || nats->outstanding > 0 || nats->ping_count > 0 || nats->asking > 0 ||
	    nats->skip > 0)
		return -TG_EAGAIN;
	if (room < SAVED_LEN)
		return -TG_ELIMIT;
	memcpy(at, MAGIC, 4);
	at += 4;
	*at++ = (uint8_t)((nats->jetstream ? SAVED_JETSTREAM : 0) | (nats->no_streams ? SAVED_NO_STREAMS : 0) |
			  (nats->headers ? SAVED_HEADERS : 0) | (nats->may_not_ask ? SAVED_MAY_NOT_ASK : 0));
	at = put_u64(at, nats->first_token + nats->next);
	at = put_u64(at, nats->max_payload);
	return at - bytes;
}

int
nats_restore(struct session *session, const uint8_t *bytes, size_t len)
{
	struct nats_session *nats = nats_session(session);

	if (nats->state != NATS_UP || len != SAVED_LEN || memcmp(bytes, MAGIC, 4) != 0)
		return -TG_EINVAL;
	unsigned flags = bytes[4];
	uint64_t first_token = read_u64(bytes + 5), max_payload = read_u64(bytes + 13);
	/* Whether answers are subscribed to is the connection's for good. */
	if ((flags & ~(unsigned)SAVED_ALL) != 0 || ((flags & SAVED_JETSTREAM) != 0) != (nats->jetstream != 0) ||
	    first_token > TOKENS_MAX || max_payload == 0)
		return -TG_EINVAL;
	nats->no_streams = (flags & SAVED_NO_STREAMS) != 0;
	nats->headers = (flags & SAVED_HEADERS) != 0;
	nats->may_not_ask = (flags & SAVED_MAY_NOT_ASK) != 0;
	nats->first_token = first_token;
	nats->max_payload = max_payload;
	if (max_payload != UINT64_MAX)
		driver_emit(session, EV_MAX_BODY, max_payload);
	return 0;
}
