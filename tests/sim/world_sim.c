#include "world_sim.h"
#include "tcp_sim.h"

#include "daemon/config/config.h"

#include <assert.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

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

void
sim_push(struct sim_world *w, const struct event *event)
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
	sim_push(w, &(struct event){ .at_ns = at_ns,
			.order = w->event_order++,
			.type = EVENT_CALL,
			.what = arg,
			.n = n,
			.fire = fire });
}

void
sim_after(struct sim_world *w, uint64_t ns, void (*fire)(void *arg, uint64_t n), void *arg, uint64_t n)
{
	sim_at(w, w->now_ns + ns, fire, arg, n);
}

uint64_t
sim_next(const struct sim_world *w)
{
	return w->event_count == 0 ? UINT64_MAX : w->events[1].at_ns;
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
			lookup->handlers->resolved(
			    lookup->owner, NULL, 0, "temporary failure in name resolution");
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
	/* Events that these post for now run in the next call: the daemon has a turn in between. */
	uint64_t order = w->event_order;
	while (w->event_count > 0 && w->events[1].at_ns <= w->now_ns && w->events[1].order < order) {
		struct event e = pop(w);
		w->steps++;
		if (e.type == EVENT_CALL)
			e.fire(e.what, e.n);
		else if (e.type == EVENT_RESOLVED)
			on_resolved(e.what);
		else
			tcp_on_event(&e);
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
	size_t n = tcp_take(&conn->flows[TO_BROKER], bytes, len);

	tcp_after_take(conn, TO_BROKER, before);
	return n;
}

void
conn_write(struct conn *conn, const void *bytes, size_t len)
{
	tcp_append(&conn->flows[TO_CLIENT], bytes, len);
	tcp_pump(conn, TO_CLIENT);
}

void
conn_close(struct conn *conn, int reset)
{
	if (!conn->host_open)
		return;
	tcp_leave_host(conn);
	if (reset) {
		tcp_send_reset(conn, TO_CLIENT);
	} else {
		conn->flows[TO_CLIENT].fin = 1;
		tcp_pump(conn, TO_CLIENT);
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
			tcp_tell_readable(conn, TO_BROKER);
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

static void
secret(struct world *world, void *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)bytes)[i] = (uint8_t)(random_64(world) >> 56);
}

static void *
resolve(struct world *world, const struct address *address, const struct sock_handlers *handlers, void *owner)
{
	struct sim_world *w = (struct sim_world *)world;
	struct lookup *lookup = calloc(1, sizeof(*lookup));

	if (lookup == NULL)
		return NULL;
	if (w->on_resolve != NULL)
		w->on_resolve(w->watcher, owner);
	assert(address->port >= 1 && address->port <= SIM_HOSTS);
	*lookup = (struct lookup){
		.world = w, .handlers = handlers, .owner = owner, .host = &w->hosts[address->port - 1]
	};
	sim_push(w, &(struct event){ .at_ns = w->now_ns + lookup->host->lookup_ns,
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
	tcp_post(conn, w->now_ns + tcp_travel(host), EVENT_SYN, TO_BROKER, 0);
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
		while (len > 0 && tcp_has_room(conn)) {
			size_t n = len < SIM_SEGMENT ? len : SIM_SEGMENT;
			tcp_append(f, bytes, n);
			tcp_pump(conn, TO_BROKER);
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
	size_t n = tcp_take(f, bytes, len);
	tcp_after_take(conn, TO_CLIENT, before);
	return (ssize_t)n;
}

static void
sock_want_write(struct sock *sock)
{
	struct conn *conn = (struct conn *)sock;

	conn->want_write = 1;
	tcp_tell_writable(conn);
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
		.rto_ms = (uint32_t)(tcp_backed_off(RTO_NS, f->backoff) / NS_PER_MS),
		.unsent_bytes = (uint32_t)tcp_unsent(conn),
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
		tcp_send_reset(conn, TO_BROKER);
		/* An end that the reset does not reach forgets the connection later. */
		if (conn->host_open)
			tcp_post(conn, conn->host->world->now_ns + 60000 * NS_PER_MS, EVENT_FIN, TO_BROKER, 0);
	} else {
		conn->flows[TO_BROKER].fin = 1;
		tcp_pump(conn, TO_BROKER);
		tcp_post(conn, conn->host->world->now_ns + 60000 * NS_PER_MS, EVENT_FIN, TO_BROKER, 0);
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
	.secret = secret,
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
				tcp_leave_host(conn);
			TAILQ_REMOVE(&w->hosts[i].conns, conn, entry);
			free(conn->flows[0].ring);
			free(conn->flows[1].ring);
			free(conn);
		}
	}
}
