/* A session's life, its channels, and the bytes and answers that several of its parts send. */
#include "amqp.h"

#include "shm/error.h"

#include <stdlib.h>

int
amqp_open(struct session *session)
{
	struct amqp_session *amqp = amqp_session(session);
	const struct amqp_settings *settings = session->settings;
	uint32_t bits = 64;

	amqp->frame_max = AMQP_FRAME_MAX;
	amqp->max_body = UINT64_MAX;
	/* Queues confirm in their own time, and one may never confirm. */
	while ((bits / 4 < session->params->window || bits < DRIVER_SPAN) && bits < AMQP_UNANSWERED_MAX)
		bits *= 2;
	amqp->early_mask = bits - 1;
	amqp->early_bits = calloc(bits / 64, sizeof(*amqp->early_bits));
	amqp->channels = calloc(settings->channels, sizeof(*amqp->channels));
	return amqp->early_bits != NULL && amqp->channels != NULL ? 0 : -TG_ENOMEM;
}

void
amqp_close(struct session *session)
{
	struct amqp_session *amqp = amqp_session(session);

	for (uint32_t i = 0; i < amqp->channel_count; i++) {
		free(amqp->channels[i]->ring);
		free(amqp->channels[i]);
	}
	free(amqp->channels);
	free(amqp->early_bits);
	amqp->channels = NULL;
	amqp->last = NULL;
	amqp->early_bits = NULL;
	amqp->channel_count = 0;
	amqp->state = AMQP_CLOSED;
}

struct amqp_channel *
amqp_channel_add(struct amqp_session *amqp)
{
	struct amqp_channel *channel = calloc(1, sizeof(*channel));

	if (channel == NULL)
		return NULL;
	channel->number = AMQP_FIRST_CHANNEL + amqp->channel_count;
	amqp->channels[amqp->channel_count++] = channel;
	return channel;
}

void
amqp_flush_acked(struct amqp_session *amqp)
{
	if (!amqp->acked)
		return;
	amqp->acked = 0;
	driver_ack(&amqp->base, EV_ACK_UPTO, amqp->oldest - 1, TG_DELIVERED, 0);
}

int
amqp_append(struct out *out, const void *bytes, size_t len)
{
	out_mark(out);
	out_copy(out, bytes, len);
	return out_commit(out);
}

int
amqp_send(struct amqp_session *amqp, struct out *out, const void *bytes, size_t len)
{
	if (amqp_append(out, bytes, len) == 0)
		return 0;
	amqp_fatal(amqp, FATAL_PROTOCOL, 0, "out of memory for an answer to the broker");
	return -TG_ENOMEM;
}
