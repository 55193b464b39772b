/*
 * The state that a successor's session needs of this one, beside its handshake:
 *
 *   "AMQ1"  u32 frame_max  u32 heartbeat_s  u32 channel_max  vhost  u64 max_body  u64 messages  u32 channels
 *   each channel, from AMQP_FIRST_CHANNEL on:
 *     u8 flags  u64 next delivery tag  u64 used  u32 careful  exchange
 *
 * Numbers in network order, vhost and exchange short strings. The fields before max_body have been agreed
 * with the broker: settings that would have agreed on something else need a connection of their own.
 */
#include "amqp.h"

#include "shm/error.h"

#define MAGIC UINT32_C(0x414d5131)
#define HEAD_LEN (4u * 4 + 1 + AMQP_SHORT_MAX + 8u * 2 + 4u)
#define CHANNEL_LEN (1u + 8 + 8 + 4 + 1 + AMQP_SHORT_MAX)
#define COUNT_MAX (UINT64_MAX / 2) /* of messages and tags: more than any connection ever has */

enum saved_flags {
	SAVED_OPEN = 1 << 0,
	SAVED_CHECKED = 1 << 1,
	SAVED_PROVEN = 1 << 2,
	SAVED_ALL = (1 << 3) - 1,
};

static int
is_at_rest(const struct amqp_channel *channel)
{
	return channel->oldest == channel->next && channel->content == CONTENT_NONE && !channel->open_due &&
	       channel->state != CHANNEL_IS_REOPENING;
}

static uint8_t *
put_channel(uint8_t *at, const struct amqp_channel *channel)
{
	uint32_t flags = (channel->state == CHANNEL_IS_OPEN ? SAVED_OPEN : 0) |
			 (channel->checked ? SAVED_CHECKED : 0) | (channel->proven ? SAVED_PROVEN : 0);

	at = amqp_put_u64(amqp_put_u8(at, flags), channel->next);
	at = amqp_put_u32(amqp_put_u64(at, channel->used), channel->careful);
	return amqp_put_short(at, channel->exchange, channel->exchange_len);
}

ssize_t
amqp_save(const struct session *session, uint8_t *bytes, size_t room)
{
	const struct amqp_session *amqp = (const struct amqp_session *)session;
	const struct amqp_settings *settings = session->settings;
	uint8_t piece[HEAD_LEN > CHANNEL_LEN ? HEAD_LEN : CHANNEL_LEN], *at = piece;
	size_t len;

	if (amqp->state != AMQP_UP || amqp->leaving || !window_is_empty(&amqp->unanswered) || amqp->probes > 0)
		return -TG_EAGAIN;
	for (uint32_t i = 0; i < amqp->channel_count; i++)
		if (!is_at_rest(amqp->channels[i]))
			return -TG_EAGAIN;
	at = amqp_put_u32(amqp_put_u32(at, MAGIC), amqp->frame_max);
	at = amqp_put_u32(amqp_put_u32(at, amqp->heartbeat_s), amqp->channel_max);
	at = amqp_put_short(at, settings->vhost, strlen(settings->vhost));
	at = amqp_put_u64(amqp_put_u64(at, amqp->max_body), amqp->before + amqp->unanswered.next);
	at = amqp_put_u32(at, amqp->channel_count);
	len = (size_t)(at - piece);
	if (len > room)
		return -TG_ELIMIT;
	memcpy(bytes, piece, len);
	for (uint32_t i = 0; i < amqp->channel_count; i++) {
		size_t n = (size_t)(put_channel(piece, amqp->channels[i]) - piece);
		if (n > room - len)
			return -TG_ELIMIT;
		memcpy(bytes + len, piece, n);
		len += n;
	}
	return (ssize_t)len;
}

/* Returns 0 or a negative TG_E. */
static int
take_channel(struct amqp_session *amqp, struct amqp_reader *from)
{
	uint32_t flags = (uint32_t)amqp_take(from, 1);
	uint64_t next = amqp_take(from, 8), used = amqp_take(from, 8);
	uint32_t careful = (uint32_t)amqp_take(from, 4);
	struct amqp_view exchange = amqp_take_short(from);

	/* A tag is 1 or more, where there are any; a channel is careful for as many messages as waited on it once,
	 * perhaps in a wider window than this session has. */
	if (from->bad || (flags & ~(uint32_t)SAVED_ALL) != 0 || next > COUNT_MAX ||
	    ((flags & SAVED_OPEN) != 0 && next == 0) || used > amqp->before || careful > WINDOW_ROOM_MAX)
		return -TG_EINVAL;
	struct amqp_channel *channel = amqp_channel_add(amqp);
	if (channel == NULL)
		return -TG_ENOMEM;
	channel->state = (flags & SAVED_OPEN) != 0 ? CHANNEL_IS_OPEN : CHANNEL_IS_CLOSED;
	channel->checked = (flags & SAVED_CHECKED) != 0;
	channel->proven = (flags & SAVED_PROVEN) != 0;
	channel->oldest = channel->next = channel->return_from = next;
	channel->used = used;
	channel->careful = careful;
	channel->exchange_len = (uint8_t)exchange.len;
	memcpy(channel->exchange, exchange.bytes, exchange.len);
	return 0;
}

int
amqp_restore(struct session *session, const uint8_t *bytes, size_t len)
{
	struct amqp_session *amqp = amqp_session(session);
	const struct amqp_settings *settings = session->settings;
	struct amqp_reader from = { bytes, bytes + len, 0 };
	int rc = 0;

	uint32_t magic = (uint32_t)amqp_take(&from, 4), frame_max = (uint32_t)amqp_take(&from, 4);
	uint32_t heartbeat_s = (uint32_t)amqp_take(&from, 4), channel_max = (uint32_t)amqp_take(&from, 4);
	struct amqp_view vhost = amqp_take_short(&from);
	uint64_t max_body = amqp_take(&from, 8), before = amqp_take(&from, 8);
	uint32_t count = (uint32_t)amqp_take(&from, 4);
	if (amqp->state != AMQP_UP || amqp->channel_count > 0 || from.bad || magic != MAGIC ||
	    frame_max != amqp->frame_max || heartbeat_s != amqp->heartbeat_s ||
	    channel_max != amqp->channel_max || vhost.len != strlen(settings->vhost) ||
	    memcmp(vhost.bytes, settings->vhost, vhost.len) != 0 || max_body == 0 || before > COUNT_MAX ||
	    count > amqp->channel_max)
		return -TG_EINVAL;
	amqp->before = before;
	for (uint32_t i = 0; i < count && rc == 0; i++)
		rc = take_channel(amqp, &from);
	if (rc != 0)
		return rc;
	if (from.at != from.end)
		return -TG_EINVAL;
	amqp->max_body = max_body;
	if (max_body != UINT64_MAX)
		driver_emit(session, EV_MAX_BODY, max_body);
	return 0;
}
