/* A session's life, its channels, and the bytes and answers that several of its parts send. */
#include "amqp.h"

#include "shm/error.h"

#include <stdlib.h>

int
amqp_open(struct session *session)
{
	struct amqp_session *amqp = amqp_session(session);
	const struct amqp_settings *settings = session->settings;

	amqp->frame_max = AMQP_FRAME_MAX;
	amqp->max_body = UINT64_MAX;
	if (window_init(&amqp->unanswered, session, TG_DELIVERED, window_room(session->params->window)) != 0)
		return -TG_ENOMEM;
	amqp->channels = calloc(settings->channels, sizeof(*amqp->channels));
	return amqp->channels != NULL ? 0 : -TG_ENOMEM;
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
	window_fini(&amqp->unanswered);
	amqp->channels = NULL;
	amqp->last = NULL;
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

int
amqp_send(struct amqp_session *amqp, struct out *out, const void *bytes, size_t len)
{
	if (out_frame(out, bytes, len) == 0)
		return 0;
	amqp_fatal(amqp, FATAL_PROTOCOL, 0, "out of memory for an answer to the broker");
	return -TG_ENOMEM;
}
