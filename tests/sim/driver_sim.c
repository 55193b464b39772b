/* The test protocol, the daemon's side. Frames are of one size; a publish has topic and body behind. */
#include "wire.h"

#include "sim.h"

#include "daemon/protocol/driver.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A frame whose bytes are not all with the socket yet. */
struct framed {
	uint64_t start;
	uint64_t position;
	struct producer *producer;
};

struct driver_session {
	struct session session;
	uint64_t next;         /* sequence number */
	uint32_t unanswered;   /* counted against the driver's own window */
	struct framed *framed; /* a queue */
	uint32_t first, count, capacity;
	uint64_t oldest;   /* sim->sums_up: the oldest unanswered one, */
	uint8_t *answered; /* and whether each one was answered */
};

static struct sim *
sim_of(struct session *session)
{
	return *(struct sim *const *)session->settings;
}

static int
sim_open(struct session *session)
{
	return 0;
}

static void
sim_close(struct session *session)
{
	free(((struct driver_session *)session)->framed);
	free(((struct driver_session *)session)->answered);
}

static void
put(struct out *out, enum wire_type type, uint64_t seq)
{
	struct wire wire = { .type = (uint8_t)type, .seq = seq };

	out_copy(out, &wire, sizeof(wire));
}

static int
sim_hello(struct session *session, struct out *out)
{
	out_mark(out);
	put(out, WIRE_HELLO, 0);
	return out_commit(out);
}

static int
sim_probe(struct session *session, struct out *out)
{
	out_mark(out);
	put(out, WIRE_PROBE, 0);
	return out_commit(out);
}

static int
sim_goodbye(struct session *session, struct out *out)
{
	out_mark(out);
	put(out, WIRE_BYE, 0);
	return out_commit(out);
}

static void
remember(struct driver_session *s, const struct framed *framed)
{
	if (s->first > 1024 && s->first * 2 > s->count) {
		memmove(s->framed, s->framed + s->first, (s->count - s->first) * sizeof(*s->framed));
		s->count -= s->first;
		s->first = 0;
	}
	if (s->count == s->capacity) {
		s->capacity = s->capacity == 0 ? 64 : s->capacity * 2;
		s->framed = realloc(s->framed, s->capacity * sizeof(*s->framed));
		if (s->framed == NULL)
			abort();
	}
	s->framed[s->count++] = *framed;
}

static int
sim_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection)
{
	struct driver_session *s = (struct driver_session *)session;
	struct sim *sim = sim_of(session);
	struct link *link = session->events.owner;
	struct producer *producer = sim_producer_of(sim, message->lane_id);
	struct wire wire = {
		.type = WIRE_PUBLISH,
		.topic_len = (uint16_t)message->topic_len,
		.body_len = message->body_len,
		.seq = seq,
		.lane = message->lane_id,
		.position = message->position,
	};

	if (producer == NULL)
		sim_fail(sim, "a record of lane %llu, which is unknown", (unsigned long long)message->lane_id);
	if (seq != s->next)
		sim_fail(sim, "sequence number %llu where %llu is next", (unsigned long long)seq,
		    (unsigned long long)s->next);
	check_publish(sim, link, producer->lane, message);
	if ((message->topic_len == 1 && message->topic[0] == TOPIC_REFUSED[0]) ||
	    sim->brokers[broker_number(link->broker)].refuses) {
		producer_entry(producer, message->position)->refused = 1;
		rejection->code = REJECT_TOPIC;
		rejection->text = "such a topic is not allowed";
		return DRIVER_REJECTED;
	}
	if (sim->credit != 0 && s->unanswered >= sim->credit)
		return DRIVER_FULL;
	if (sim->sums_up) {
		s->answered = realloc(s->answered, s->next + 1);
		if (s->answered == NULL)
			abort();
		s->answered[s->next] = 0;
	}
	remember(
	    s, &(struct framed){ .start = out_end(out), .position = message->position, .producer = producer });
	out_copy(out, &wire, sizeof(wire));
	out_copy(out, message->topic, message->topic_len);
	out_body(out, message->body, message->body_len);
	s->next++;
	s->unanswered++;
	return sim->brokers[broker_number(link->broker)].ack_mode == ACK_NONE ? DRIVER_PUBLISHED_NO_ACK
									      : DRIVER_PUBLISHED;
}

/* The socket has taken that much of the connection's bytes. */
void
driver_sim_written(void *watcher, void *owner, uint64_t written)
{
	struct link *link = owner;
	struct driver_session *s = (struct driver_session *)link->conn.session;

	while (s->first != s->count && s->framed[s->first].start < written) {
		struct framed *framed = &s->framed[s->first++];
		struct entry *entry = producer_entry(framed->producer, framed->position);
		entry->given++;
		if (order_load_relaxed_64(&framed->producer->map.daemon->sq_sent) <
		    entry->position + entry->size)
			sim_fail(watcher,
			    "lane %llu: a byte of record %llu was written before sq_sent passed it",
			    (unsigned long long)framed->producer->id, (unsigned long long)entry->position);
	}
}

static void
tell(struct session *session, const struct reply *reply)
{
	const char *name = sim_of(session)->tells_numbers ? "0.0.0.0" : "elsewhere";
	char text[40];
	int len = snprintf(text, sizeof(text), "%s:%u", name, (unsigned)reply->value);

	session->events.emit(session->events.owner,
	    &(struct driver_event){
		.type = EV_ENDPOINT, .seq = reply->count, .text = text, .text_len = (size_t)len });
}

static void
acked(struct driver_session *s, uint64_t seq)
{
	if (!sim_of(&s->session)->sums_up) {
		driver_ack(&s->session, EV_ACK, seq, TG_DELIVERED, seq + 1);
		return;
	}
	s->answered[seq] = 1;
	if (seq != s->oldest) {
		driver_ack(&s->session, EV_ACK, seq, TG_DELIVERED, 0);
		return;
	}
	while (s->oldest != s->next && s->answered[s->oldest])
		s->oldest++;
	driver_ack(&s->session, EV_ACK_UPTO, s->oldest - 1, TG_DELIVERED, 0);
}

/* Returns 0 or a negative TG_E. */
static int
answer(struct driver_session *s, const struct reply *reply)
{
	struct session *session = &s->session;

	switch ((enum reply_type)reply->type) {
	case REPLY_UP:
		driver_emit(session, EV_UP, 0);
		break;
	case REPLY_ALIVE:
		driver_emit(session, EV_ALIVE, 0);
		break;
	case REPLY_ACK:
		s->unanswered--;
		acked(s, reply->value);
		break;
	case REPLY_ACK_UPTO:
		s->unanswered -= reply->count;
		driver_ack(session, EV_ACK_UPTO, reply->value, TG_DELIVERED, 0);
		break;
	case REPLY_NACK:
		s->unanswered--;
		driver_nack(session, reply->value, 7, "no room", 7);
		break;
	case REPLY_AGAIN:
		s->unanswered--;
		driver_emit(session, EV_AGAIN, reply->value);
		break;
	case REPLY_BLOCKED:
		driver_emit(session, EV_BLOCKED, 0);
		break;
	case REPLY_UNBLOCKED:
		driver_emit(session, EV_UNBLOCKED, 0);
		break;
	case REPLY_WINDOW:
		driver_emit(session, EV_WINDOW, reply->value);
		break;
	case REPLY_LEAVING:
		driver_emit(session, EV_LEAVING, 0);
		break;
	case REPLY_UNUSABLE:
		return driver_fatal(session, FATAL_UNUSABLE, 503, "no leader");
	case REPLY_CLOSING:
		return driver_fatal(session, FATAL_MESSAGE, 130, "malformed message");
	case REPLY_ENDPOINT:
		tell(session, reply);
		break;
	}
	return 0;
}

int driver_sim_in_input;

static ssize_t
sim_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out)
{
	size_t used = 0;
	int rc = 0;

	driver_sim_in_input = 1;
	for (; rc == 0 && len - used >= sizeof(struct reply); used += sizeof(struct reply)) {
		struct reply reply;
		memcpy(&reply, bytes + used, sizeof(reply));
		rc = answer((struct driver_session *)session, &reply);
	}
	driver_sim_in_input = 0;
	return rc != 0 ? rc : (ssize_t)used;
}

const struct driver driver_sim = {
	.name = "sim",
	.settings_size = sizeof(struct sim *),
	.session_size = sizeof(struct driver_session),
	.open = sim_open,
	.close = sim_close,
	.start = sim_hello,
	.input = sim_input,
	.publish = sim_publish,
	.probe = sim_probe,
	.goodbye = sim_goodbye,
};
