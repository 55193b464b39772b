/* The judgement on each message: taken and recorded, rejected, or treated as a rule of --faults says. */
#include "build_config.h"

#include "sink.h"

/* The code a message is answered with, if the behaviour rejects anything at all. */
static uint32_t
judge(struct conn *conn, const struct record_message *message)
{
	struct sink *sink = conn->sink;
	const struct behaviour *behaviour = &sink->behaviour;

	if (behaviour->reject_topic && !fault_topic_matches(behaviour->reject_topic, message->topic))
		return 0;
	if (behaviour->reject_every && ++sink->reject_turn % behaviour->reject_every != 0)
		return 0;
	return behaviour->reject ? (uint32_t)behaviour->reject : conn->protocol->reject_code;
}

/* One message less to go until it stalls, closes or resets. */
static void
count_down(struct conn *conn)
{
	const struct behaviour *behaviour = &conn->sink->behaviour;

	if (behaviour->stall_after && conn->left[0] && --conn->left[0] == 0) {
		conn->stalled = true;
		conn->stop = true;
	}
	if (behaviour->close_after && conn->left[1] && --conn->left[1] == 0)
		conn_end(conn, CONN_FLUSH);
	if (behaviour->reset_after && conn->left[2] && --conn->left[2] == 0)
		conn_end(conn, CONN_RESET);
}

/* A rule picked the message: returns its answer's code, or -1 if it has no answer of its own. */
static int64_t
fall_out(struct conn *conn, const struct fault *fault)
{
	uint32_t code = fault->code ? fault->code : conn->protocol->reject_code;

	switch (fault->how) {
	case FAULT_CLOSE:
		conn_end(conn, CONN_FLUSH);
		return -1;
	case FAULT_RESET:
		conn_end(conn, CONN_RESET);
		return -1;
	case FAULT_TRAIL:
		conn->trails = true;
		conn->last_code = code;
		if (conn->protocol->farewell)
			conn->protocol->farewell(conn, code);
		return -1;
	case FAULT_ERROR:
	case FAULT_BOTH:
		conn->last_words = true;
		conn->last_code = code;
		conn->stop = true;
		return fault->how == FAULT_BOTH ? (int64_t)code : -1;
	case FAULT_REJECT:
		return code;
	case FAULT_SILENT:
	case FAULT_HOWS:
		break;
	}
	server_dirty(conn->sink, conn);
	return -1;
}

bool
conn_message(struct conn *conn, const struct record_message *message, struct answer *answer)
{
	struct sink *sink = conn->sink;
	const struct fault *fault = NULL;

	conn->counters.messages++;
	conn->counters.bytes += message->body.len;
	sink->counters.messages++;
	sink->counters.bytes += message->body.len;
	if (message->dup) {
		conn->counters.dups++;
		sink->counters.dups++;
	}
	answer->code = sink->behaviour.rejects ? judge(conn, message) : 0;
	if (conn->trails) {
		answer->code = conn->last_code;
	} else if (sink->behaviour.rules.count > 0 &&
		   (fault = faults_find(&sink->behaviour.rules, message)) != NULL) {
		int64_t code = fall_out(conn, fault);
		sink->faulted++;
		if (code < 0)
			return false;
		answer->code = (uint32_t)code;
	}
	if (answer->code >= conn->protocol->reject_least) {
		conn->counters.rejected++;
		sink->counters.rejected++;
		if (conn->reject_closes) {
			conn_end(conn, CONN_FLUSH);
			return false;
		}
	} else {
		record_add(&sink->record, message, sink->time_ns, conn->number, conn->counters.messages);
	}
	if (answer->kind)
		conn_answer(conn, answer);
	else
		server_dirty(sink, conn);
	if (sink->behaviour.counts)
		count_down(conn);
	return true;
}
