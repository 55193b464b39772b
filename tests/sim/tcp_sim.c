#include "tcp_sim.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RTO_MAX_NS (120000 * NS_PER_MS)
#define PERSIST_NS (250 * NS_PER_MS)
#define SEND_BUFFER (1u << 20)

void
tcp_post(struct conn *conn, uint64_t at_ns, enum event_type type, unsigned flow, uint64_t n)
{
	struct sim_world *w = conn->host->world;

	conn->events++;
	sim_push(w,
	    &(struct event){
		.at_ns = at_ns, .order = w->event_order++, .type = type, .flow = flow, .what = conn, .n = n });
}

/* ---- flows ---- */

static void
ring_reserve(struct flow *f, size_t more)
{
	size_t used = (size_t)(f->wrote - f->taken);
	size_t capacity = f->capacity == 0 ? 4096 : f->capacity;

	while (capacity < used + more)
		capacity *= 2;
	if (capacity == f->capacity)
		return;
	uint8_t *ring = malloc(capacity);
	if (ring == NULL)
		abort();
	for (uint64_t at = f->taken; at != f->wrote;) {
		size_t from = at & (f->capacity - 1), to = at & (capacity - 1);
		size_t n = (size_t)(f->wrote - at);
		n = n < f->capacity - from ? n : f->capacity - from;
		n = n < capacity - to ? n : capacity - to;
		memcpy(ring + to, f->ring + from, n);
		at += n;
	}
	free(f->ring);
	f->ring = ring;
	f->capacity = capacity;
}

void
tcp_append(struct flow *f, const uint8_t *bytes, size_t len)
{
	ring_reserve(f, len);
	while (len > 0) {
		size_t at = f->wrote & (f->capacity - 1);
		size_t n = len < f->capacity - at ? len : f->capacity - at;
		memcpy(f->ring + at, bytes, n);
		f->wrote += n;
		bytes += n;
		len -= n;
	}
}

size_t
tcp_take(struct flow *f, uint8_t *bytes, size_t len)
{
	size_t left = (size_t)(f->arrived - f->taken), taken = 0;

	if (left > len)
		left = len;
	while (left > 0) {
		size_t at = f->taken & (f->capacity - 1);
		size_t n = left < f->capacity - at ? left : f->capacity - at;
		memcpy(bytes, f->ring + at, n);
		f->taken += n;
		bytes += n;
		taken += n;
		left -= n;
	}
	return taken;
}

static struct segment *
segment_at(struct flow *f, uint64_t number)
{
	return &f->segments[number % SIM_SEGMENTS];
}

static int
passes(struct host *host)
{
	return !host->vanished && !chance_hit(&host->world->chance, host->loss);
}

uint64_t
tcp_travel(struct host *host)
{
	uint64_t jitter = host->jitter_ns == 0 ? 0 : chance_between(&host->world->chance, 0, host->jitter_ns);

	return host->latency_ns + jitter;
}

uint64_t
tcp_backed_off(uint64_t base, uint32_t times)
{
	uint64_t ns = times < 16 ? base << times : RTO_MAX_NS;

	return ns < RTO_MAX_NS ? ns : RTO_MAX_NS;
}

static void
arm(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	f->timer++;
	f->timing = f->next != f->first;
	if (f->timing)
		tcp_post(conn, conn->host->world->now_ns + tcp_backed_off(RTO_NS, f->backoff), EVENT_RTO, way,
		    f->timer);
}

static void
transmit(struct conn *conn, unsigned way, uint64_t number, uint32_t bytes)
{
	struct host *host = conn->host;
	struct flow *f = &conn->flows[way];
	uint64_t now = host->world->now_ns;
	struct segment *segment = segment_at(f, number);

	if (host->bytes_per_s != 0) {
		uint64_t from = f->busy_ns > now ? f->busy_ns : now;
		f->busy_ns = from + bytes * UINT64_C(1000000000) / host->bytes_per_s;
	} else {
		f->busy_ns = now;
	}
	segment->lost = !passes(host);
	if (segment->lost)
		return;
	uint64_t at = f->busy_ns + tcp_travel(host);
	if (at < f->arrives_ns)
		at = f->arrives_ns;
	f->arrives_ns = at;
	tcp_post(conn, at, EVENT_SEGMENT, way, number);
}

void
tcp_pump(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	while (f->sent != f->wrote && f->next - f->first < SIM_SEGMENTS) {
		uint64_t window = f->taken + f->receive_bytes - f->sent;
		uint64_t n = f->wrote - f->sent;
		n = n < SIM_SEGMENT ? n : SIM_SEGMENT;
		n = n < window ? n : window;
		if (n == 0)
			break;
		f->sent += n;
		*segment_at(f, f->next) = (struct segment){ .end = f->sent };
		if (f->retransmits == 0) /* else the kernel would keep it until an answer has come */
			f->last_sent_ns = conn->host->world->now_ns;
		transmit(conn, way, f->next++, (uint32_t)n);
	}
	if (!f->timing && f->next != f->first)
		arm(conn, way);
	if (f->sent != f->wrote && f->next == f->first && !f->persisting) {
		f->persisting = 1;
		f->timer++;
		f->backoff = 0;
		tcp_post(conn, conn->host->world->now_ns + PERSIST_NS, EVENT_PERSIST, way, f->timer);
	}
	if (f->fin == 1 && f->acked == f->wrote) {
		f->fin = 2;
		if (passes(conn->host))
			tcp_post(conn, conn->host->world->now_ns + tcp_travel(conn->host), EVENT_FIN, way, 0);
	}
}

uint64_t
tcp_unsent(const struct conn *conn)
{
	return conn->flows[TO_BROKER].wrote - conn->flows[TO_BROKER].sent;
}

int
tcp_has_room(const struct conn *conn)
{
	const struct flow *f = &conn->flows[TO_BROKER];

	return tcp_unsent(conn) < conn->low_water && f->wrote - f->acked < SEND_BUFFER;
}

void
tcp_tell_writable(struct conn *conn)
{
	if (!conn->want_write || conn->telling_writable || !(tcp_has_room(conn) || conn->client_reset))
		return;
	conn->telling_writable = 1;
	tcp_post(conn, conn->host->world->now_ns, EVENT_WRITABLE, TO_BROKER, 0);
}

void
tcp_tell_readable(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	if (f->telling)
		return;
	f->telling = 1;
	tcp_post(conn, conn->host->world->now_ns, EVENT_READABLE, way, 0);
}

/* ---- life of a connection ---- */

static void
bury(struct conn *conn)
{
	if (conn->client_open || conn->host_open || conn->events > 0 || !conn->listed)
		return;
	TAILQ_REMOVE(&conn->host->conns, conn, entry);
	free(conn->flows[0].ring);
	free(conn->flows[1].ring);
	free(conn);
}

void
tcp_send_reset(struct conn *conn, unsigned way)
{
	if (passes(conn->host))
		tcp_post(conn, conn->host->world->now_ns + tcp_travel(conn->host), EVENT_RESET, way, 0);
}

void
tcp_leave_host(struct conn *conn)
{
	struct host *host = conn->host;
	int was_accepted = conn->host_open && !conn->in_backlog;

	conn->host_open = 0;
	conn->in_backlog = 0;
	if (was_accepted)
		host->handlers->closed(host, conn);
}

static void
on_client_reset(struct conn *conn, int error)
{
	if (!conn->client_open)
		return;
	if (conn->connecting) {
		conn->connecting = 0;
		conn->sock.handlers->connected(conn->sock.owner, error);
		return;
	}
	conn->client_reset = error;
	conn->flows[TO_BROKER].timer++; /* nothing is sent any more */
	conn->flows[TO_BROKER].timing = 0;
	tcp_tell_readable(conn, TO_CLIENT);
	tcp_tell_writable(conn);
}

static void
on_syn(struct conn *conn)
{
	struct host *host = conn->host;
	uint64_t now = host->world->now_ns;

	if (!conn->client_open || !conn->connecting || conn->host_open)
		return;
	if (!passes(host)) { /* sent again after 1, 3, 7 s */
		tcp_post(conn, now + (NS_PER_MS * 1000 << conn->syns++), EVENT_SYN, TO_BROKER, 0);
		return;
	}
	host->connects++;
	if (host->port == PORT_REFUSES) {
		tcp_post(conn, now + tcp_travel(host), EVENT_REFUSED, TO_CLIENT, 0);
		return;
	}
	conn->host_open = 1;
	conn->in_backlog = host->port == PORT_HOLDS;
	tcp_post(conn, now + 2 * tcp_travel(host), EVENT_SYN_ACK, TO_CLIENT, 0);
	if (!conn->in_backlog)
		host->handlers->accepted(host, conn);
}

static void
on_segment(struct conn *conn, unsigned way, uint64_t number)
{
	struct host *host = conn->host;
	struct flow *f = &conn->flows[way];
	int reader_open = way == TO_BROKER ? conn->host_open : conn->client_open;

	if (host->vanished)
		return;
	if (!reader_open) { /* half open: the host answers with a reset */
		if (way == TO_BROKER)
			tcp_send_reset(conn, TO_CLIENT);
		return;
	}
	if (number >= f->first && number < f->next)
		segment_at(f, number)->got = 1;
	uint64_t arrived = f->arrived;
	int hole = 0;
	for (uint64_t n = f->first; n != f->next; n++) {
		if (!segment_at(f, n)->got) {
			hole = number > n;
			if (hole && passes(host))
				tcp_post(conn, host->world->now_ns + tcp_travel(host), EVENT_FAST, way, n);
			break;
		}
		if (segment_at(f, n)->end > f->arrived)
			f->arrived = segment_at(f, n)->end;
	}
	if (!hole && passes(host))
		tcp_post(conn, host->world->now_ns + tcp_travel(host), EVENT_ACK, way, f->arrived);
	if (f->arrived != arrived && !conn->in_backlog)
		tcp_tell_readable(conn, way);
}

/* Segments known to be missing are sent again; only those that the timer sends count as its retransmissions. */
static void
repair(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];
	int burst = 4;

	for (uint64_t n = f->first; n != f->next && burst > 0; n++) {
		struct segment *segment = segment_at(f, n);
		if (segment->lost && !segment->got) {
			transmit(conn, way, n, SIM_SEGMENT);
			burst--;
		}
	}
}

static void
on_ack(struct conn *conn, unsigned way, uint64_t upto)
{
	struct flow *f = &conn->flows[way];

	if (conn->host->vanished)
		return;
	f->last_ack_ns = conn->host->world->now_ns;
	if (upto > f->acked) {
		f->acked = upto;
		f->retransmits = f->backoff = 0;
		while (f->first != f->next && segment_at(f, f->first)->end <= upto)
			f->first++;
		repair(conn, way);
		arm(conn, way);
	}
	tcp_pump(conn, way);
	if (way == TO_BROKER)
		tcp_tell_writable(conn);
}

/* No end is left that could use the bytes of this flow. */
static int
is_over(const struct conn *conn, unsigned way)
{
	return !conn->client_open && (way == TO_CLIENT || !conn->host_open);
}

static void
on_rto(struct conn *conn, unsigned way, uint64_t generation)
{
	struct flow *f = &conn->flows[way];

	if (generation != f->timer || f->first == f->next || is_over(conn, way))
		return;
	f->retransmits++;
	f->backoff++;
	f->last_sent_ns = conn->host->world->now_ns;
	transmit(conn, way, f->first, SIM_SEGMENT);
	arm(conn, way);
}

static void
on_persist(struct conn *conn, unsigned way, uint64_t generation)
{
	struct host *host = conn->host;
	struct flow *f = &conn->flows[way];
	int reader_open = way == TO_BROKER ? conn->host_open : conn->client_open;

	if (generation != f->timer || is_over(conn, way))
		return;
	if (!reader_open && !host->vanished) {
		tcp_send_reset(conn, 1 - way);
		return;
	}
	f->probes++;
	f->backoff++;
	if (passes(host) && passes(host))
		tcp_post(conn, host->world->now_ns + 2 * tcp_travel(host), EVENT_WINDOW, way, 0);
	tcp_post(
	    conn, host->world->now_ns + tcp_backed_off(PERSIST_NS, f->backoff), EVENT_PERSIST, way, f->timer);
}

static void
on_window(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	if (conn->host->vanished)
		return;
	f->probes = 0;
	f->last_ack_ns = conn->host->world->now_ns;
	if (f->taken + f->receive_bytes == f->sent)
		return;
	if (f->persisting) {
		f->persisting = 0;
		f->backoff = 0;
		f->timer++;
	}
	tcp_pump(conn, way);
	if (way == TO_BROKER)
		tcp_tell_writable(conn);
}

/* The reader made room; it announces a window once there is room for a full segment. */
void
tcp_after_take(struct conn *conn, unsigned way, uint64_t before)
{
	struct flow *f = &conn->flows[way];
	uint64_t had = before + f->receive_bytes - f->sent, has = f->taken + f->receive_bytes - f->sent;
	uint64_t enough = f->receive_bytes / 4;

	/* Should it be lost, the sender's probe finds out. */
	if (had < enough && has >= enough && passes(conn->host))
		tcp_post(conn, conn->host->world->now_ns + tcp_travel(conn->host), EVENT_WINDOW, way, 0);
}

static void
on_readable(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	f->telling = 0;
	if (way == TO_BROKER) {
		if (conn->host_open && !conn->in_backlog && f->arrived != f->taken)
			conn->host->handlers->readable(conn->host, conn);
		return;
	}
	if (!conn->client_open || conn->connecting)
		return;
	if (f->arrived == f->taken && !conn->client_reset && !f->fin_arrived)
		return;
	conn->sock.handlers->readable(conn->sock.owner);
	/* Level-triggered, as epoll is. */
	if (conn->client_open && (f->arrived != f->taken || conn->client_reset || f->fin_arrived))
		tcp_tell_readable(conn, way);
}

static void
on_syn_ack(struct conn *conn)
{
	if (!conn->client_open || !conn->connecting)
		return;
	if (!passes(conn->host)) {
		tcp_post(conn, conn->host->world->now_ns + 1000 * NS_PER_MS, EVENT_SYN_ACK, TO_CLIENT, 0);
		return;
	}
	conn->connecting = 0;
	conn->connected = 1;
	conn->sock.handlers->connected(conn->sock.owner, 0);
	if (conn->client_open && conn->flows[TO_CLIENT].arrived != 0)
		tcp_tell_readable(conn, TO_CLIENT);
}

void
tcp_on_event(const struct event *e)
{
	struct conn *conn = e->what;

	switch (e->type) {
	case EVENT_SYN:
		on_syn(conn);
		break;
	case EVENT_SYN_ACK:
		on_syn_ack(conn);
		break;
	case EVENT_REFUSED:
		if (!conn->host->vanished)
			on_client_reset(conn, ECONNREFUSED);
		break;
	case EVENT_SEGMENT:
		on_segment(conn, e->flow, e->n);
		break;
	case EVENT_ACK:
		on_ack(conn, e->flow, e->n);
		break;
	case EVENT_FAST:
		if (!conn->host->vanished)
			repair(conn, e->flow);
		break;
	case EVENT_RTO:
		on_rto(conn, e->flow, e->n);
		break;
	case EVENT_PERSIST:
		on_persist(conn, e->flow, e->n);
		break;
	case EVENT_WINDOW:
		on_window(conn, e->flow);
		break;
	case EVENT_RESET:
		if (conn->host->vanished)
			break;
		if (e->flow == TO_CLIENT)
			on_client_reset(conn, ECONNRESET);
		else if (conn->host_open)
			tcp_leave_host(conn);
		break;
	case EVENT_FIN:
		conn->flows[e->flow].fin_arrived = 1;
		if (e->flow == TO_CLIENT)
			tcp_tell_readable(conn, TO_CLIENT);
		else if (conn->host_open)
			tcp_leave_host(conn);
		break;
	case EVENT_READABLE:
		on_readable(conn, e->flow);
		break;
	case EVENT_WRITABLE:
		conn->telling_writable = 0;
		if (conn->client_open && conn->want_write) {
			conn->want_write = 0;
			conn->sock.handlers->writable(conn->sock.owner);
		}
		break;
	case EVENT_CALL:
	case EVENT_RESOLVED:
		abort();
	}
	conn->events--;
	bury(conn);
}
