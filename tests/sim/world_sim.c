#include "world_sim.h"

#include "daemon/config.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#define RTO_NS (200 * NS_PER_MS)
#define RTO_MAX_NS (120000 * NS_PER_MS)
#define SEND_BUFFER (1u << 20)
#define PERSIST_NS (250 * NS_PER_MS)

enum event_type {
	EVENT_CALL,
	EVENT_RESOLVED,
	EVENT_SYN,
	EVENT_SYN_ACK,
	EVENT_REFUSED,
	EVENT_SEGMENT,  /* flow, n: number of the segment */
	EVENT_ACK,      /* flow, n: offset */
	EVENT_FAST,     /* flow, n: number of the segment that is missing */
	EVENT_RTO,      /* flow, n: the timer's generation */
	EVENT_PERSIST,  /* flow, n: the timer's generation */
	EVENT_WINDOW,   /* flow: the receiver has room again, or answers a probe */
	EVENT_RESET,    /* to the end that reads the flow */
	EVENT_FIN,
	EVENT_READABLE, /* tell the reader of the flow */
	EVENT_WRITABLE,
};

struct event {
	uint64_t at_ns;
	uint64_t order;
	enum event_type type;
	unsigned flow;
	void *what; /* a connection (held), a look-up, or the argument of a call */
	uint64_t n;
	void (*fire)(void *arg, uint64_t n);
};

struct segment {
	uint64_t end;
	int got;
	int lost;
};

/* Bytes one way. Offsets count from 0: taken <= arrived <= sent <= wrote, acked <= arrived. */
struct flow {
	uint8_t *ring; /* [taken, wrote) */
	size_t capacity;
	uint64_t wrote, sent, acked, arrived, taken;
	struct segment segments[SIM_SEGMENTS];
	uint64_t first, next; /* segments in flight, numbered from 0 */
	uint64_t timer;       /* generation of the one that runs */
	int timing, persisting;
	uint32_t backoff;
	uint32_t retransmits, probes;
	uint64_t last_ack_ns, last_sent_ns;
	uint64_t busy_ns;    /* the wire is busy until then */
	uint64_t arrives_ns; /* nothing overtakes on the wire */
	uint32_t receive_bytes;
	int fin, fin_arrived;
	int telling; /* EVENT_READABLE is under way */
};

enum { TO_BROKER, TO_CLIENT };

struct conn {
	struct sock sock; /* the client's end; must be first */
	struct host *host;
	uint64_t id;
	TAILQ_ENTRY(conn) entry;
	uint32_t events; /* that refer to it */
	struct flow flows[2];
	uint32_t low_water;
	uint32_t syns;
	int connecting, connected, want_write, telling_writable;
	int client_open, host_open;
	int client_reset;  /* what the client's next call is told */
	int in_backlog;
	int listed;
	void *app;
};

struct lookup {
	struct sim_world *world;
	const struct sock_handlers *handlers; /* NULL: cancelled */
	void *owner;
	struct host *host;
};

/* ---- chance ---- */

uint64_t
chance_next(struct chance *chance)
{
	uint64_t z = chance->state += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

uint64_t
chance_between(struct chance *chance, uint64_t low, uint64_t high)
{
	return low + chance_next(chance) % (high - low + 1);
}

int
chance_hit(struct chance *chance, double probability)
{
	return probability > 0 && (double)(chance_next(chance) >> 11) < probability * 9007199254740992.0;
}

/* ---- events ---- */

static int
is_before(const struct event *a, const struct event *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->order < b->order;
}

static void
push(struct sim_world *w, const struct event *event)
{
	if (w->event_count + 1 >= w->event_capacity) {
		w->event_capacity = w->event_capacity == 0 ? 256 : w->event_capacity * 2;
		w->events = realloc(w->events, w->event_capacity * sizeof(*w->events));
		if (w->events == NULL)
			abort();
	}
	uint32_t place = ++w->event_count;
	for (; place > 1 && is_before(event, &w->events[place / 2]); place /= 2)
		w->events[place] = w->events[place / 2];
	w->events[place] = *event;
}

static struct event
pop(struct sim_world *w)
{
	struct event top = w->events[1];
	struct event last = w->events[w->event_count--];
	uint32_t place = 1;

	for (;;) {
		uint32_t child = place * 2;
		if (child > w->event_count)
			break;
		if (child < w->event_count && is_before(&w->events[child + 1], &w->events[child]))
			child++;
		if (!is_before(&w->events[child], &last))
			break;
		w->events[place] = w->events[child];
		place = child;
	}
	w->events[place] = last;
	return top;
}

void
sim_at(struct sim_world *w, uint64_t at_ns, void (*fire)(void *arg, uint64_t n), void *arg, uint64_t n)
{
	push(w, &(struct event){
	    .at_ns = at_ns, .order = w->event_order++, .type = EVENT_CALL, .what = arg, .n = n, .fire = fire });
}

void
sim_after(struct sim_world *w, uint64_t ns, void (*fire)(void *arg, uint64_t n), void *arg, uint64_t n)
{
	sim_at(w, w->now_ns + ns, fire, arg, n);
}

static void
post(struct conn *conn, uint64_t at_ns, enum event_type type, unsigned flow, uint64_t n)
{
	struct sim_world *w = conn->host->world;

	conn->events++;
	push(w, &(struct event){
	    .at_ns = at_ns, .order = w->event_order++, .type = type, .flow = flow, .what = conn, .n = n });
}

uint64_t
sim_next(const struct sim_world *w)
{
	return w->event_count == 0 ? UINT64_MAX : w->events[1].at_ns;
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

static void
flow_append(struct flow *f, const uint8_t *bytes, size_t len)
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

static size_t
flow_take(struct flow *f, uint8_t *bytes, size_t len)
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

static uint64_t
travel(struct host *host)
{
	uint64_t jitter = host->jitter_ns == 0 ? 0 : chance_between(&host->world->chance, 0, host->jitter_ns);

	return host->latency_ns + jitter;
}

static uint64_t
backed_off(uint64_t base, uint32_t times)
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
		post(conn, conn->host->world->now_ns + backed_off(RTO_NS, f->backoff), EVENT_RTO, way, f->timer);
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
	uint64_t at = f->busy_ns + travel(host);
	if (at < f->arrives_ns)
		at = f->arrives_ns;
	f->arrives_ns = at;
	post(conn, at, EVENT_SEGMENT, way, number);
}

static void
pump(struct conn *conn, unsigned way)
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
		post(conn, conn->host->world->now_ns + PERSIST_NS, EVENT_PERSIST, way, f->timer);
	}
	if (f->fin == 1 && f->acked == f->wrote) {
		f->fin = 2;
		if (passes(conn->host))
			post(conn, conn->host->world->now_ns + travel(conn->host), EVENT_FIN, way, 0);
	}
}

static uint64_t
unsent(const struct conn *conn)
{
	return conn->flows[TO_BROKER].wrote - conn->flows[TO_BROKER].sent;
}

static int
has_room(const struct conn *conn)
{
	const struct flow *f = &conn->flows[TO_BROKER];

	return unsent(conn) < conn->low_water && f->wrote - f->acked < SEND_BUFFER;
}

static void
tell_writable(struct conn *conn)
{
	if (!conn->want_write || conn->telling_writable || !(has_room(conn) || conn->client_reset))
		return;
	conn->telling_writable = 1;
	post(conn, conn->host->world->now_ns, EVENT_WRITABLE, TO_BROKER, 0);
}

static void
tell_readable(struct conn *conn, unsigned way)
{
	struct flow *f = &conn->flows[way];

	if (f->telling)
		return;
	f->telling = 1;
	post(conn, conn->host->world->now_ns, EVENT_READABLE, way, 0);
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

static void
send_reset(struct conn *conn, unsigned way)
{
	if (passes(conn->host))
		post(conn, conn->host->world->now_ns + travel(conn->host), EVENT_RESET, way, 0);
}

static void
leave_host(struct conn *conn)
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
	tell_readable(conn, TO_CLIENT);
	tell_writable(conn);
}

static void
on_syn(struct conn *conn)
{
	struct host *host = conn->host;
	uint64_t now = host->world->now_ns;

	if (!conn->client_open || !conn->connecting || conn->host_open)
		return;
	if (!passes(host)) { /* sent again after 1, 3, 7 s */
		post(conn, now + (NS_PER_MS * 1000 << conn->syns++), EVENT_SYN, TO_BROKER, 0);
		return;
	}
	host->connects++;
	if (host->port == PORT_REFUSES) {
		post(conn, now + travel(host), EVENT_REFUSED, TO_CLIENT, 0);
		return;
	}
	conn->host_open = 1;
	conn->in_backlog = host->port == PORT_HOLDS;
	post(conn, now + 2 * travel(host), EVENT_SYN_ACK, TO_CLIENT, 0);
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
	if (!reader_open) { /* half open: who is not there answers with a reset */
		if (way == TO_BROKER)
			send_reset(conn, TO_CLIENT);
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
				post(conn, host->world->now_ns + travel(host), EVENT_FAST, way, n);
			break;
		}
		if (segment_at(f, n)->end > f->arrived)
			f->arrived = segment_at(f, n)->end;
	}
	if (!hole && passes(host))
		post(conn, host->world->now_ns + travel(host), EVENT_ACK, way, f->arrived);
	if (f->arrived != arrived && !conn->in_backlog)
		tell_readable(conn, way);
}

/* What is known to be missing is sent again; the timer counts only what it sent itself. */
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
	pump(conn, way);
	if (way == TO_BROKER)
		tell_writable(conn);
}

/* Nobody is left whom the bytes of this flow could matter to. */
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
		send_reset(conn, 1 - way);
		return;
	}
	f->probes++;
	f->backoff++;
	if (passes(host) && passes(host))
		post(conn, host->world->now_ns + 2 * travel(host), EVENT_WINDOW, way, 0);
	post(conn, host->world->now_ns + backed_off(PERSIST_NS, f->backoff), EVENT_PERSIST, way, f->timer);
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
	pump(conn, way);
	if (way == TO_BROKER)
		tell_writable(conn);
}

/* The reader made room: it says so once there is room for more than a morsel. */
static void
after_take(struct conn *conn, unsigned way, uint64_t before)
{
	struct flow *f = &conn->flows[way];
	uint64_t had = before + f->receive_bytes - f->sent, has = f->taken + f->receive_bytes - f->sent;
	uint64_t enough = f->receive_bytes / 4;

	/* Should it be lost, the sender's probe finds out. */
	if (had < enough && has >= enough && passes(conn->host))
		post(conn, conn->host->world->now_ns + travel(conn->host), EVENT_WINDOW, way, 0);
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
		tell_readable(conn, way);
}

static void
on_syn_ack(struct conn *conn)
{
	if (!conn->client_open || !conn->connecting)
		return;
	if (!passes(conn->host)) {
		post(conn, conn->host->world->now_ns + 1000 * NS_PER_MS, EVENT_SYN_ACK, TO_CLIENT, 0);
		return;
	}
	conn->connecting = 0;
	conn->connected = 1;
	conn->sock.handlers->connected(conn->sock.owner, 0);
	if (conn->client_open && conn->flows[TO_CLIENT].arrived != 0)
		tell_readable(conn, TO_CLIENT);
}

static void
on_conn_event(const struct event *e)
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
			leave_host(conn);
		break;
	case EVENT_FIN:
		conn->flows[e->flow].fin_arrived = 1;
		if (e->flow == TO_CLIENT)
			tell_readable(conn, TO_CLIENT);
		else if (conn->host_open)
			leave_host(conn);
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

static void
on_resolved(struct lookup *lookup)
{
	struct world_address address = { .len = sizeof(struct sockaddr_in) };
	struct sockaddr_in *in = (struct sockaddr_in *)&address.addr;
	struct host *host = lookup->host;

	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)(host->index + 1));
	if (lookup->handlers != NULL) {
		if (host->lookup_fails)
			lookup->handlers->resolved(lookup->owner, NULL, 0, "temporary failure in name resolution");
		else
			lookup->handlers->resolved(lookup->owner, &address, 1, NULL);
	}
	free(lookup);
}

void
sim_run_due(struct sim_world *w)
{
	if (w->clock_of_shard != NULL)
		*w->clock_of_shard = w->now_ns;
	/* What these post for now is for the next call: the daemon has a turn in between. */
	uint64_t order = w->event_order;
	while (w->event_count > 0 && w->events[1].at_ns <= w->now_ns && w->events[1].order < order) {
		struct event e = pop(w);
		w->steps++;
		if (e.type == EVENT_CALL)
			e.fire(e.what, e.n);
		else if (e.type == EVENT_RESOLVED)
			on_resolved(e.what);
		else
			on_conn_event(&e);
	}
}

/* ---- the application's end ---- */

uint64_t
conn_id(const struct conn *conn)
{
	return conn->id;
}

void *
conn_app(const struct conn *conn)
{
	return conn->app;
}

void
conn_set_app(struct conn *conn, void *app)
{
	conn->app = app;
}

size_t
conn_available(const struct conn *conn)
{
	return (size_t)(conn->flows[TO_BROKER].arrived - conn->flows[TO_BROKER].taken);
}

size_t
conn_read(struct conn *conn, void *bytes, size_t len)
{
	uint64_t before = conn->flows[TO_BROKER].taken;
	size_t n = flow_take(&conn->flows[TO_BROKER], bytes, len);

	after_take(conn, TO_BROKER, before);
	return n;
}

void
conn_write(struct conn *conn, const void *bytes, size_t len)
{
	flow_append(&conn->flows[TO_CLIENT], bytes, len);
	pump(conn, TO_CLIENT);
}

void
conn_close(struct conn *conn, int reset)
{
	if (!conn->host_open)
		return;
	leave_host(conn);
	if (reset) {
		send_reset(conn, TO_CLIENT);
	} else {
		conn->flows[TO_CLIENT].fin = 1;
		pump(conn, TO_CLIENT);
	}
}

void
host_crash(struct host *host)
{
	struct conn *conn, *next;

	for (conn = TAILQ_FIRST(&host->conns); conn != NULL; conn = next) {
		next = TAILQ_NEXT(conn, entry);
		if (conn->host_open)
			conn_close(conn, 1);
	}
}

void
host_open(struct host *host)
{
	struct conn *conn;

	host->port = PORT_OPEN;
	TAILQ_FOREACH (conn, &host->conns, entry) {
		if (!conn->host_open || !conn->in_backlog)
			continue;
		conn->in_backlog = 0;
		host->handlers->accepted(host, conn);
		if (conn_available(conn) > 0)
			tell_readable(conn, TO_BROKER);
	}
}

void
host_set_vanished(struct host *host, int vanished)
{
	host->vanished = vanished;
}

/* ---- the table ---- */

static uint64_t
now_ns(struct world *world)
{
	return ((struct sim_world *)world)->now_ns;
}

static uint64_t
wall_ms(struct world *world)
{
	return UINT64_C(1700000000000) + now_ns(world) / NS_PER_MS;
}

static uint64_t
random_64(struct world *world)
{
	return chance_next(&((struct sim_world *)world)->daemons);
}

static void *
resolve(struct world *world, const struct config_address *address, const struct sock_handlers *handlers,
    void *owner)
{
	struct sim_world *w = (struct sim_world *)world;
	struct lookup *lookup = calloc(1, sizeof(*lookup));

	if (lookup == NULL)
		return NULL;
	if (w->on_resolve != NULL)
		w->on_resolve(w->watcher, owner);
	assert(address->port >= 1 && address->port <= SIM_HOSTS);
	*lookup = (struct lookup){
		.world = w, .handlers = handlers, .owner = owner, .host = &w->hosts[address->port - 1] };
	push(w, &(struct event){ .at_ns = w->now_ns + lookup->host->lookup_ns,
	    .order = w->event_order++,
	    .type = EVENT_RESOLVED,
	    .what = lookup });
	return lookup;
}

static void
resolve_cancel(struct world *world, void *request)
{
	((struct lookup *)request)->handlers = NULL;
}

static struct sock *
sock_connect(struct world *world, const struct world_address *address, uint32_t low_water,
    const struct sock_handlers *handlers, void *owner)
{
	struct sim_world *w = (struct sim_world *)world;
	const struct sockaddr_in *in = (const struct sockaddr_in *)&address->addr;
	struct host *host = &w->hosts[ntohs(in->sin_port) - 1];
	struct conn *conn = calloc(1, sizeof(*conn));

	if (conn == NULL) {
		errno = ENOMEM;
		return NULL;
	}
	conn->sock = (struct sock){ .world = world, .handlers = handlers, .owner = owner };
	conn->host = host;
	conn->id = ++w->connections;
	conn->low_water = low_water;
	conn->connecting = conn->client_open = conn->listed = 1;
	conn->flows[TO_BROKER].receive_bytes = host->receive_bytes;
	conn->flows[TO_CLIENT].receive_bytes = 1u << 20;
	conn->flows[TO_BROKER].last_ack_ns = conn->flows[TO_CLIENT].last_ack_ns = w->now_ns;
	TAILQ_INSERT_TAIL(&host->conns, conn, entry);
	post(conn, w->now_ns + travel(host), EVENT_SYN, TO_BROKER, 0);
	return &conn->sock;
}

static ssize_t
sock_writev(struct sock *sock, const struct iovec *iov, int count)
{
	struct conn *conn = (struct conn *)sock;
	struct sim_world *w = conn->host->world;
	struct flow *f = &conn->flows[TO_BROKER];
	size_t done = 0;

	assert(conn->client_open && conn->connected);
	if (conn->client_reset) {
		errno = EPIPE;
		return -1;
	}
	/* The kernel looks before each segment: the last one may pass the mark. */
	for (int i = 0; i < count; i++) {
		const uint8_t *bytes = iov[i].iov_base;
		size_t len = iov[i].iov_len;
		while (len > 0 && has_room(conn)) {
			size_t n = len < SIM_SEGMENT ? len : SIM_SEGMENT;
			flow_append(f, bytes, n);
			pump(conn, TO_BROKER);
			bytes += n;
			len -= n;
			done += n;
		}
		if (len > 0)
			break;
	}
	if (done == 0) {
		errno = EAGAIN;
		return -1;
	}
	if (w->on_written != NULL)
		w->on_written(w->watcher, sock->owner, f->wrote);
	return (ssize_t)done;
}

static ssize_t
sock_read(struct sock *sock, void *bytes, size_t len)
{
	struct conn *conn = (struct conn *)sock;
	struct flow *f = &conn->flows[TO_CLIENT];
	uint64_t before = f->taken;

	assert(conn->client_open && conn->connected);
	if (f->arrived == f->taken || conn->client_reset) {
		if (conn->client_reset)
			errno = conn->client_reset;
		else if (f->fin_arrived)
			return 0;
		else
			errno = EAGAIN;
		return -1;
	}
	size_t n = flow_take(f, bytes, len);
	after_take(conn, TO_CLIENT, before);
	return (ssize_t)n;
}

static void
sock_want_write(struct sock *sock)
{
	struct conn *conn = (struct conn *)sock;

	conn->want_write = 1;
	tell_writable(conn);
}

static int
sock_info(struct sock *sock, struct sock_info *info)
{
	struct conn *conn = (struct conn *)sock;
	struct flow *f = &conn->flows[TO_BROKER];

	*info = (struct sock_info){
		.unacked = (uint32_t)(f->next - f->first),
		.retransmits = f->retransmits,
		.probes = f->probes,
		.last_ack_ms = (uint32_t)((conn->host->world->now_ns - f->last_ack_ns) / NS_PER_MS),
		.last_sent_ms = (uint32_t)((conn->host->world->now_ns - f->last_sent_ns) / NS_PER_MS),
		.rto_ms = (uint32_t)(backed_off(RTO_NS, f->backoff) / NS_PER_MS),
		.unsent_bytes = (uint32_t)unsent(conn),
		.rtt_us = (uint32_t)(2 * conn->host->latency_ns / NS_PER_US),
	};
	return 0;
}

static void
sock_close(struct sock *sock, int reset)
{
	struct conn *conn = (struct conn *)sock;

	assert(conn->client_open);
	conn->client_open = 0;
	conn->want_write = 0;
	if (reset || conn->connecting) {
		conn->flows[TO_BROKER].timer++;
		send_reset(conn, TO_BROKER);
		/* Whom the reset does not reach forgets the connection in his own time. */
		if (conn->host_open)
			post(conn, conn->host->world->now_ns + 60000 * NS_PER_MS, EVENT_FIN, TO_BROKER, 0);
	} else {
		conn->flows[TO_BROKER].fin = 1;
		pump(conn, TO_BROKER);
		post(conn, conn->host->world->now_ns + 60000 * NS_PER_MS, EVENT_FIN, TO_BROKER, 0);
	}
	conn->connecting = 0;
}

/* ---- work beside the loop: done at once, known a little later ---- */

#define WORK_MAX_NS (5 * NS_PER_MS)

static void
on_work_done(void *arg, uint64_t n)
{
	struct sim_world *w = arg;
	struct world_job *job = STAILQ_FIRST(&w->jobs);

	if (job == NULL)
		return; /* settled */
	STAILQ_REMOVE_HEAD(&w->jobs, entry);
	job->done(job);
}

static void
work(struct world *world, struct world_job *job)
{
	struct sim_world *w = (struct sim_world *)world;

	job->run(job);
	STAILQ_INSERT_TAIL(&w->jobs, job, entry);
	sim_after(w, chance_between(&w->chance, 0, WORK_MAX_NS), on_work_done, w, 0);
}

static void
settle(struct world *world)
{
	struct sim_world *w = (struct sim_world *)world;

	while (!STAILQ_EMPTY(&w->jobs))
		on_work_done(w, 0);
}

static const struct world_ops ops = {
	.now_ns = now_ns,
	.wall_ms = wall_ms,
	.random = random_64,
	.resolve = resolve,
	.resolve_cancel = resolve_cancel,
	.connect = sock_connect,
	.writev = sock_writev,
	.read = sock_read,
	.want_write = sock_want_write,
	.info = sock_info,
	.close = sock_close,
	.work = work,
	.settle = settle,
};

void
world_sim_init(struct sim_world *w, uint64_t seed)
{
	memset(w, 0, sizeof(*w));
	w->world.ops = &ops;
	STAILQ_INIT(&w->jobs);
	w->now_ns = SIM_START_NS;
	w->chance.state = seed;
	w->daemons.state = seed ^ UINT64_C(0x5851f42d4c957f2d);
	for (unsigned i = 0; i < SIM_HOSTS; i++) {
		struct host *host = &w->hosts[i];
		host->world = w;
		host->index = i;
		host->latency_ns = 200 * NS_PER_US;
		host->lookup_ns = NS_PER_MS;
		host->receive_bytes = 256u << 10;
		TAILQ_INIT(&host->conns);
	}
}

void
world_sim_fini(struct sim_world *w)
{
	for (uint32_t i = 1; i <= w->event_count; i++)
		if (w->events[i].type == EVENT_RESOLVED)
			free(w->events[i].what);
	free(w->events);
	w->events = NULL;
	w->event_count = 0;
	for (unsigned i = 0; i < SIM_HOSTS; i++) {
		struct conn *conn;
		while ((conn = TAILQ_FIRST(&w->hosts[i].conns)) != NULL) {
			if (conn->host_open)
				leave_host(conn);
			TAILQ_REMOVE(&w->hosts[i].conns, conn, entry);
			free(conn->flows[0].ring);
			free(conn->flows[1].ring);
			free(conn);
		}
	}
}
