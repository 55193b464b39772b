/* The brokers' application: reads publishes, checks them, and answers according to its mode. */
#include "wire.h"

#include "sim.h"

#include <stdlib.h>
#include <string.h>

enum verdict { VERDICT_ACK, VERDICT_NACK, VERDICT_AGAIN, VERDICT_UNUSABLE };

struct answer {
	uint64_t due_ns;
	uint64_t seq;
	struct producer *producer;
	uint64_t position;
	enum verdict verdict;
};

/* One accepted connection. */
struct app {
	struct sim_broker *broker;
	struct conn *conn; /* NULL: over */
	TAILQ_ENTRY(app) entry;
	uint32_t events; /* that refer to it */
	uint8_t *buffer; /* a frame that is not whole */
	size_t have, capacity;
	uint64_t next; /* sequence number */
	struct answer *answers;
	uint32_t answer_count, answer_capacity;
	int answering;          /* a timer is set */
	int reading;            /* the slow reader's */
	uint64_t lane_last[64]; /* the newest record of each lane, by its number */
};

static void process(struct app *app);

static void
bury(struct app *app)
{
	if (app->conn != NULL || app->events > 0)
		return;
	TAILQ_REMOVE(&app->broker->ending, app, entry);
	free(app->buffer);
	free(app->answers);
	free(app);
}

static void
reply(struct app *app, enum reply_type type, uint64_t value, uint32_t count)
{
	struct reply r = { .type = type, .value = value, .count = count };

	if (app->conn != NULL)
		conn_write(app->conn, &r, sizeof(r));
}

/* ---- answers ---- */

static void
give(struct app *app, const struct answer *answer, int single)
{
	struct entry *entry = producer_entry(answer->producer, answer->position);

	switch (answer->verdict) {
	case VERDICT_ACK:
		if (!entry->acked)
			entry->broker = (uint8_t)app->broker->index;
		entry->acked = 1;
		if (single)
			reply(app, REPLY_ACK, answer->seq, 1);
		break;
	case VERDICT_NACK:
		entry->nacked = 1;
		reply(app, REPLY_NACK, answer->seq, 1);
		break;
	case VERDICT_AGAIN:
		entry->given--;
		reply(app, REPLY_AGAIN, answer->seq, 1);
		break;
	case VERDICT_UNUSABLE:
		reply(app, REPLY_UNUSABLE, answer->seq, 1);
		break;
	}
}

static void answer_later(struct app *app);

static void
on_answer(void *arg, uint64_t n)
{
	struct app *app = arg;
	struct sim_broker *broker = app->broker;
	struct sim *sim = broker->sim;
	uint32_t due = 0, plain = 0;

	app->events--;
	app->answering = 0;
	if (app->conn == NULL || broker->frozen || broker->mute) {
		bury(app);
		return;
	}
	while (due < app->answer_count && app->answers[due].due_ns <= sim->w.now_ns)
		due++;
	if (broker->ack_mode == ACK_SHUFFLED)
		for (uint32_t i = due; i > 1; i--) {
			uint32_t k = (uint32_t)chance_between(&sim->chance, 0, i - 1);
			struct answer swap = app->answers[i - 1];
			app->answers[i - 1] = app->answers[k];
			app->answers[k] = swap;
		}
	for (uint32_t i = 0; i < due; i++) {
		give(app, &app->answers[i], broker->ack_mode != ACK_UPTO);
		plain += app->answers[i].verdict == VERDICT_ACK;
	}
	if (broker->ack_mode == ACK_UPTO && plain > 0) {
		uint32_t last = due - 1;
		while (app->answers[last].verdict != VERDICT_ACK)
			last--;
		reply(app, REPLY_ACK_UPTO, app->answers[last].seq, plain);
	}
	memmove(app->answers, app->answers + due, (app->answer_count - due) * sizeof(*app->answers));
	app->answer_count -= due;
	answer_later(app);
}

static void
answer_later(struct app *app)
{
	struct sim_world *w = &app->broker->sim->w;

	if (app->answering || app->answer_count == 0 || app->conn == NULL)
		return;
	app->answering = 1;
	app->events++;
	uint64_t due = app->answers[0].due_ns;
	sim_at(w, due > w->now_ns ? due : w->now_ns, on_answer, app, 0);
}

struct late {
	struct app *app;
	struct answer answer;
};

static void
on_late(void *arg, uint64_t n)
{
	struct late *late = arg;
	struct app *app = late->app;

	app->events--;
	if (app->conn != NULL)
		give(app, &late->answer, 1);
	free(late);
	bury(app);
}

static void
answer_very_late(struct app *app, const struct answer *answer)
{
	struct late *late = malloc(sizeof(*late));

	if (late == NULL)
		abort();
	*late = (struct late){ .app = app, .answer = *answer };
	app->events++;
	sim_after(&app->broker->sim->w, SIM_LATE_NS, on_late, late, 0);
}

/* ---- requests ---- */

static int
is_topic(const struct wire *wire, const uint8_t *topic, const char *name)
{
	return wire->topic_len == strlen(name) && memcmp(topic, name, wire->topic_len) == 0;
}

/* Closes over this message? Later bytes are not read, and due answers are not given. */
static int
closes_over(struct app *app, const struct wire *wire, const uint8_t *topic)
{
	int words = is_topic(wire, topic, TOPIC_WORDS);

	if (!words && !is_topic(wire, topic, TOPIC_CLOSES))
		return 0;
	struct entry *entry = producer_entry(sim_producer_of(app->broker->sim, wire->lane), wire->position);
	if (entry->closed_over < UINT8_MAX)
		entry->closed_over++;
	app->broker->closed_over++;
	if (words)
		reply(app, REPLY_CLOSING, 0, 0);
	conn_close(app->conn, 0);
	return 1;
}

static void
on_publish(struct app *app, const struct wire *wire, const uint8_t *topic)
{
	const uint8_t *body = topic + wire->topic_len;
	struct sim_broker *broker = app->broker;
	struct sim *sim = broker->sim;
	struct producer *producer = sim_producer_of(sim, wire->lane);
	struct entry *entry = producer == NULL ? NULL : producer_entry(producer, wire->position);
	uint64_t bit = UINT64_C(1) << conn_id(app->conn) % 64;
	uint64_t *last = &app->lane_last[wire->lane % 64];

	if (entry == NULL)
		sim_fail(sim, "broker %u: lane %llu has no record %llu", broker->index,
		    (unsigned long long)wire->lane, (unsigned long long)wire->position);
	if (wire->seq != app->next++)
		sim_fail(sim, "broker %u: sequence number %llu where %llu is next", broker->index,
		    (unsigned long long)wire->seq, (unsigned long long)app->next - 1);
	if (!body_is_right(body, wire->body_len, wire->lane, wire->position))
		sim_fail(sim, "broker %u: lane %llu: the body of record %llu is not what was published",
		    broker->index, (unsigned long long)wire->lane, (unsigned long long)wire->position);
	if (closes_over(app, wire, topic))
		return;
	/* Few lanes never share an element here; with many the check would be wrong. */
	if (sim->pool_config.order == ORDER_BY_LANE && sim->producer_count < 64 && broker->again == 0) {
		if (wire->position + 1 <= *last && (entry->seen & bit) == 0)
			sim_fail(sim, "broker %u: lane %llu: record %llu comes after %llu on one connection",
			    broker->index, (unsigned long long)wire->lane, (unsigned long long)wire->position,
			    (unsigned long long)*last - 1);
		if (wire->position + 1 > *last)
			*last = wire->position + 1;
	}
	entry->seen |= bit;
	broker->firsts += entry->arrivals == 0;
	entry->arrivals++;
	broker->stored++;
	if (broker->ack_mode == ACK_NONE || is_topic(wire, topic, TOPIC_SILENT))
		return;
	if (is_topic(wire, topic, TOPIC_LATE)) {
		answer_very_late(app,
		    &(struct answer){ .seq = wire->seq, .producer = producer, .position = wire->position });
		return;
	}
	if (app->answer_count == app->answer_capacity) {
		app->answer_capacity = app->answer_capacity == 0 ? 16 : app->answer_capacity * 2;
		app->answers = realloc(app->answers, app->answer_capacity * sizeof(*app->answers));
		if (app->answers == NULL)
			abort();
	}
	app->answers[app->answer_count++] = (struct answer){
		.due_ns = sim->w.now_ns + broker->ack_ns,
		.seq = wire->seq,
		.producer = producer,
		.position = wire->position,
		.verdict = broker->leaderless                        ? VERDICT_UNUSABLE
			   : chance_hit(&sim->chance, broker->nack)  ? VERDICT_NACK
			   : chance_hit(&sim->chance, broker->again) ? VERDICT_AGAIN
								     : VERDICT_ACK,
	};
	if (app->answers[app->answer_count - 1].verdict != VERDICT_ACK)
		return;
	producer->overtaken += wire->position + 1 < producer->taken_upto;
	if (wire->position + 1 > producer->taken_upto)
		producer->taken_upto = wire->position + 1;
}

static void
on_request(struct app *app, const struct wire *wire)
{
	switch ((enum wire_type)wire->type) {
	case WIRE_HELLO:
		if (app->broker->leaves_at_once)
			reply(app, REPLY_LEAVING, 0, 0);
		reply(app, REPLY_UP, 0, 0);
		for (uint32_t i = 0, said = 0; i < SIM_HOSTS; i++)
			if (app->broker->tells >> i & 1)
				reply(app, REPLY_ENDPOINT, i + 1, said++);
		if (app->broker->window != 0)
			reply(app, REPLY_WINDOW, app->broker->window, 0);
		if (app->broker->blocked)
			reply(app, REPLY_BLOCKED, 0, 0);
		break;
	case WIRE_PROBE:
		reply(app, REPLY_ALIVE, 0, 0);
		break;
	case WIRE_PUBLISH:
		on_publish(app, wire, app->buffer + sizeof(*wire));
		break;
	case WIRE_BYE:
		break;
	default:
		sim_fail(app->broker->sim, "broker %u: a frame of type %u", app->broker->index, wire->type);
	}
}

/* Brings the frame at hand up to `want` bytes. Returns whether it has them. */
static int
fill(struct app *app, size_t want)
{
	if (app->capacity < want) {
		app->capacity = want < 4096 ? 4096 : want * 2;
		app->buffer = realloc(app->buffer, app->capacity);
		if (app->buffer == NULL)
			abort();
	}
	if (app->have < want)
		app->have += conn_read(app->conn, app->buffer + app->have, want - app->have);
	return app->have == want;
}

/* Returns whether there was one. */
static int
read_one(struct app *app)
{
	struct wire wire;

	if (app->have < sizeof(wire) && !fill(app, sizeof(wire)))
		return 0;
	memcpy(&wire, app->buffer, sizeof(wire));
	if (!fill(app, sizeof(wire) + wire.topic_len + wire.body_len))
		return 0;
	app->have = 0;
	on_request(app, &wire);
	return 1;
}

static void
on_slow(void *arg, uint64_t n)
{
	struct app *app = arg;

	app->events--;
	app->reading = 0;
	if (app->conn == NULL) {
		bury(app);
		return;
	}
	app->events++;
	if (!app->broker->frozen && !app->broker->blocked)
		read_one(app);
	if (app->conn != NULL)
		process(app);
	app->events--;
	bury(app);
}

/* A blocked broker still reads frames before the first publish, such as those of a new connection. */
static int
may_read(const struct app *app)
{
	return app->conn != NULL && !app->broker->frozen && (!app->broker->blocked || app->next == 0);
}

static void
process(struct app *app)
{
	struct sim_broker *broker = app->broker;

	answer_later(app);
	if (broker->slow_ns != 0 && app->next > 0) {
		if (app->reading || conn_available(app->conn) == 0)
			return;
		app->reading = 1;
		app->events++;
		sim_after(&broker->sim->w, broker->slow_ns, on_slow, app, 0);
		return;
	}
	app->events++; /* it may close the connection over what it reads */
	while (may_read(app) && read_one(app))
		if (broker->slow_ns != 0 && app->next > 0)
			break;
	answer_later(app);
	app->events--;
	bury(app);
}

/* ---- the host's ---- */

static void
on_accepted(struct host *host, struct conn *conn)
{
	struct sim_broker *broker = host->app;
	struct app *app = calloc(1, sizeof(*app));

	if (app == NULL)
		abort();
	app->broker = broker;
	app->conn = conn;
	conn_set_app(conn, app);
	broker->accepted++;
	TAILQ_INSERT_TAIL(&broker->apps, app, entry);
}

static int
has_place(const struct app *app)
{
	uint32_t before = 0;
	struct app *other;

	TAILQ_FOREACH (other, &app->broker->apps, entry) {
		if (other == app)
			break;
		before++;
	}
	return app->broker->places == 0 || before < app->broker->places;
}

static void
on_readable(struct host *host, struct conn *conn)
{
	struct app *app = conn_app(conn);

	if (!has_place(app))
		conn_close(conn, 1);
	else if (may_read(app))
		process(app);
}

static void
on_closed(struct host *host, struct conn *conn)
{
	struct app *app = conn_app(conn);

	TAILQ_REMOVE(&app->broker->apps, app, entry);
	TAILQ_INSERT_TAIL(&app->broker->ending, app, entry);
	app->conn = NULL;
	bury(app);
}

static const struct host_handlers handlers = {
	.accepted = on_accepted,
	.readable = on_readable,
	.closed = on_closed,
};

void
sim_broker_init(struct sim_broker *broker, struct sim *sim, unsigned index)
{
	*broker = (struct sim_broker){
		.sim = sim, .host = &sim->w.hosts[index], .index = index, .ack_ns = 500 * NS_PER_US
	};
	TAILQ_INIT(&broker->apps);
	TAILQ_INIT(&broker->ending);
	broker->host->app = broker;
	broker->host->handlers = &handlers;
}

/* Frees the objects whose events will not come any more; after world_sim_fini. */
void
sim_broker_fini(struct sim_broker *broker)
{
	struct app *app;

	while ((app = TAILQ_FIRST(&broker->ending)) != NULL) {
		app->events = 0;
		bury(app);
	}
}

static void
go_on(struct sim_broker *broker)
{
	struct app *app, *next;

	for (app = TAILQ_FIRST(&broker->apps); app != NULL; app = next) {
		next = TAILQ_NEXT(app, entry);
		process(app);
	}
}

void
sim_broker_crash(struct sim_broker *broker)
{
	sim_trace(broker->sim, "broker %u crashes", broker->index);
	broker->host->port = PORT_REFUSES;
	broker->blocked = broker->frozen = broker->mute = 0;
	host_crash(broker->host);
}

void
sim_broker_start(struct sim_broker *broker)
{
	sim_trace(broker->sim, "broker %u starts", broker->index);
	host_open(broker->host);
}

void
sim_broker_freeze(struct sim_broker *broker, int frozen)
{
	sim_trace(broker->sim, "broker %u %s", broker->index, frozen ? "freezes" : "goes on");
	broker->frozen = frozen;
	if (!frozen)
		go_on(broker);
}

void
sim_broker_mute(struct sim_broker *broker, int mute)
{
	sim_trace(
	    broker->sim, "broker %u %s", broker->index, mute ? "acknowledges nothing" : "acknowledges again");
	broker->mute = mute;
	if (!mute)
		go_on(broker);
}

void
sim_broker_slow(struct sim_broker *broker, uint64_t ns)
{
	sim_trace(broker->sim, "broker %u reads a message in %llu ns", broker->index, (unsigned long long)ns);
	broker->slow_ns = ns;
	if (ns == 0)
		go_on(broker);
}

void
sim_broker_block(struct sim_broker *broker, int blocked)
{
	struct app *app;

	sim_trace(broker->sim, "broker %u is %s", broker->index, blocked ? "blocked" : "unblocked");
	broker->blocked = blocked;
	TAILQ_FOREACH (app, &broker->apps, entry)
		reply(app, blocked ? REPLY_BLOCKED : REPLY_UNBLOCKED, 0, 0);
	if (!blocked)
		go_on(broker);
}

void
sim_broker_leave(struct sim_broker *broker)
{
	struct app *app;

	sim_trace(broker->sim, "broker %u asks its clients to leave", broker->index);
	TAILQ_FOREACH (app, &broker->apps, entry)
		reply(app, REPLY_LEAVING, 0, 0);
}
