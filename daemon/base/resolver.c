#include "resolver.h"

#include "address.h"
#include "shm/error.h"

#include <ares.h>
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/un.h>
#include <unistd.h>

/*
 * connect_timeout_ms, 2 s by default, includes the look-up: of two name servers the second has to have its
 * chance well before that. An answer that comes late still counts, so asking again early costs a packet.
 */
#define ANSWER_MS 400
#define TRIES 3 /* each doubles the time */

/* Some name servers drop questions for IPv6 addresses. After so long, IPv4 is asked for alone. */
#define ALONE_MS 1000

/* A socket of c-ares. */
struct query_socket {
	uv_poll_t poll;
	struct lookup *lookup;
	int fd;
	LIST_ENTRY(query_socket) entry;
};

struct lookup {
	uv_loop_t *uv;
	struct world *world;
	const struct sock_handlers *handlers;
	void *owner;
	uv_timer_t timer;     /* c-ares's next time-out; once there is a result: its delivery */
	ares_channel channel; /* NULL: none is needed */
	LIST_HEAD(, query_socket) sockets;
	unsigned handles; /* libuv's, which end later than we close them */
	unsigned pending; /* questions that c-ares has not answered */
	int done;
	int alone; /* IPv4 was asked for alone */
	uint64_t began_ms;
	const char *why;
	const char *host; /* a copy, behind the struct */
	uint16_t port;
	unsigned count;
	struct world_address addresses[WORLD_ADDRESSES];
};

/* ---- addresses that are written out ---- */

static void
set_ipv4(struct world_address *out, const struct in_addr *in, uint16_t port)
{
	struct sockaddr_in *addr = (struct sockaddr_in *)&out->addr;

	*addr = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr = *in, .sin_port = htons(port) };
	out->len = sizeof(*addr);
}

static void
set_ipv6(struct world_address *out, const struct in6_addr *in6, uint32_t scope, uint16_t port)
{
	struct sockaddr_in6 *addr = (struct sockaddr_in6 *)&out->addr;

	*addr = (struct sockaddr_in6){
		.sin6_family = AF_INET6, .sin6_addr = *in6, .sin6_scope_id = scope, .sin6_port = htons(port)
	};
	out->len = sizeof(*addr);
}

/* fe80::1%eth0 or fe80::1%2. Returns 1 if it is an IPv6 address; *scope is 0 if there is no such interface. */
static int
parse_zone(const char *host, struct in6_addr *in6, uint32_t *scope)
{
	char text[INET6_ADDRSTRLEN];
	const char *zone = strchr(host, '%');
	char *end;

	if (zone == NULL || zone - host >= (ptrdiff_t)sizeof(text))
		return 0;
	memcpy(text, host, (size_t)(zone - host));
	text[zone - host] = '\0';
	*scope = if_nametoindex(zone + 1);
	if (*scope == 0) {
		unsigned long number = strtoul(zone + 1, &end, 10);
		*scope = *end == '\0' && number <= UINT32_MAX ? (uint32_t)number : 0;
	}
	return inet_pton(AF_INET6, text, in6) == 1;
}

/* Whether the address needs no look-up; then there is a result. */
static int
is_written_out(struct lookup *lookup, const struct address *address)
{
	struct world_address *out = &lookup->addresses[0];
	struct in6_addr in6;
	struct in_addr in;
	uint32_t scope = 0;

	lookup->count = 1;
	if (address->path != NULL) {
		struct sockaddr_un *un = (struct sockaddr_un *)&out->addr;
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", address->path);
		out->len = sizeof(*un);
	} else if (inet_pton(AF_INET, address->host, &in) == 1) {
		set_ipv4(out, &in, address->port);
	} else if (inet_pton(AF_INET6, address->host, &in6) == 1) {
		set_ipv6(out, &in6, 0, address->port);
	} else if (parse_zone(address->host, &in6, &scope)) {
		set_ipv6(out, &in6, scope, address->port);
		lookup->count = scope != 0;
		lookup->why = "the interface behind its % does not exist";
	} else {
		lookup->count = 0;
		return 0;
	}
	return 1;
}

/* ---- results ---- */

/*
 * Whether this host has a way to the address at all. Without IPv6, the IPv6 addresses of a name would each
 * cost a failed attempt and its pause.
 */
static int
has_route(const struct world_address *address)
{
	int fd = socket(address->addr.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int error = 0;

	if (fd < 0)
		return errno != EAFNOSUPPORT;
	if (connect(fd, (const struct sockaddr *)&address->addr, address->len) != 0)
		error = errno;
	close(fd);
	return error != ENETUNREACH && error != EHOSTUNREACH && error != EADDRNOTAVAIL;
}

/* Leaves out what cannot be reached, unless that is all there is. The order is c-ares's (RFC 6724). */
static void
take_usable(struct lookup *lookup, const struct ares_addrinfo *found)
{
	struct world_address *out = lookup->addresses;
	unsigned useless = 0;

	for (int routed = 1; routed >= 0 && lookup->count == 0; routed--)
		for (struct ares_addrinfo_node *node = found->nodes;
		     node != NULL && lookup->count < WORLD_ADDRESSES; node = node->ai_next) {
			const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)node->ai_addr;
			const struct sockaddr_in6 *in6 =
			    (const struct sockaddr_in6 *)(const void *)node->ai_addr;
			struct world_address *address = &out[lookup->count];
			if (node->ai_family == AF_INET)
				set_ipv4(address, &in->sin_addr, lookup->port);
			else if (node->ai_family == AF_INET6)
				set_ipv6(address, &in6->sin6_addr, in6->sin6_scope_id, lookup->port);
			else
				continue;
			if (!routed || has_route(address))
				lookup->count++;
			else if (++useless == 2 * WORLD_ADDRESSES)
				break;
		}
}

static void
on_answer(void *arg, int status, int timeouts, struct ares_addrinfo *found)
{
	struct lookup *lookup = arg;

	lookup->pending--;
	if (!lookup->done) {
		if (status == ARES_SUCCESS)
			take_usable(lookup, found);
		lookup->why = status == ARES_SUCCESS ? "no address" : ares_strerror(status);
		lookup->done = lookup->count > 0 || lookup->pending == 0;
	}
	if (found != NULL)
		ares_freeaddrinfo(found);
}

/* ---- c-ares on libuv ---- */

static void
handle_closed(struct lookup *lookup)
{
	if (--lookup->handles == 0)
		free(lookup);
}

static void
on_timer_closed(uv_handle_t *handle)
{
	handle_closed(handle->data);
}

static void
on_socket_closed(uv_handle_t *handle)
{
	struct query_socket *s = handle->data;

	handle_closed(s->lookup);
	free(s);
}

/* Ends it: no callback comes any more. Its memory lives until libuv has closed the handles. */
static void
end(struct lookup *lookup)
{
	if (uv_is_closing((uv_handle_t *)&lookup->timer))
		return;
	lookup->done = 1;
	if (lookup->channel != NULL)
		ares_destroy(lookup->channel);
	lookup->channel = NULL;
	uv_close((uv_handle_t *)&lookup->timer, on_timer_closed);
}

static void
deliver(struct lookup *lookup)
{
	end(lookup);
	world_event(lookup->world);
	lookup->handlers->resolved(lookup->owner, lookup->addresses, lookup->count, lookup->why);
}

static void ask(struct lookup *lookup, int family);

static void on_timer(uv_timer_t *timer);

/* After c-ares has done something: when to look again. */
static void
go_on(struct lookup *lookup)
{
	struct timeval tv, *next;
	uint64_t ms = 0;

	if (!lookup->done) {
		uint64_t past = (uv_hrtime() / NS_PER_MS) - lookup->began_ms;
		next = ares_timeout(lookup->channel, NULL, &tv);
		ms = next == NULL ? ANSWER_MS : (uint64_t)tv.tv_sec * 1000 + (uint64_t)tv.tv_usec / 1000 + 1;
		if (!lookup->alone && past + ms > ALONE_MS)
			ms = past < ALONE_MS ? ALONE_MS - past : 0;
	}
	uv_update_time(lookup->uv);
	uv_timer_start(&lookup->timer, on_timer, ms, 0);
}

static void
on_timer(uv_timer_t *timer)
{
	struct lookup *lookup = timer->data;

	if (lookup->done) {
		deliver(lookup);
		return;
	}
	ares_process_fd(lookup->channel, ARES_SOCKET_BAD, ARES_SOCKET_BAD);
	if (!lookup->done && !lookup->alone && uv_hrtime() / NS_PER_MS >= lookup->began_ms + ALONE_MS) {
		lookup->alone = 1;
		ask(lookup, AF_INET);
	}
	go_on(lookup);
}

static void
on_socket(uv_poll_t *poll, int status, int events)
{
	struct query_socket *s = poll->data;
	struct lookup *lookup = s->lookup;
	int failed = status < 0; /* c-ares finds out how, by reading */

	ares_process_fd(lookup->channel, failed || (events & UV_READABLE) != 0 ? s->fd : ARES_SOCKET_BAD,
	    failed || (events & UV_WRITABLE) != 0 ? s->fd : ARES_SOCKET_BAD);
	go_on(lookup);
}

static struct query_socket *
socket_of(struct lookup *lookup, int fd)
{
	struct query_socket *s;

	LIST_FOREACH (s, &lookup->sockets, entry)
		if (s->fd == fd)
			return s;
	return NULL;
}

/* Without memory for it, the question times out. */
static struct query_socket *
socket_new(struct lookup *lookup, int fd)
{
	struct query_socket *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	if (uv_poll_init(lookup->uv, &s->poll, fd) != 0) {
		free(s);
		return NULL;
	}
	s->poll.data = s;
	s->lookup = lookup;
	s->fd = fd;
	lookup->handles++;
	LIST_INSERT_HEAD(&lookup->sockets, s, entry);
	return s;
}

/*
 * c-ares says what it waits for on a socket of its own. Neither: it is about to close the socket, and libuv must have let go
 * of the descriptor by then.
 */
static void
on_socket_state(void *data, ares_socket_t fd, int readable, int writable)
{
	struct lookup *lookup = data;
	struct query_socket *s = socket_of(lookup, fd);

	if (s == NULL && (readable || writable))
		s = socket_new(lookup, fd);
	if (s == NULL)
		return;
	if (readable || writable) {
		uv_poll_start(&s->poll, (readable ? UV_READABLE : 0) | (writable ? UV_WRITABLE : 0), on_socket);
		return;
	}
	LIST_REMOVE(s, entry);
	uv_close((uv_handle_t *)&s->poll, on_socket_closed);
}

/* ---- asking ---- */

static void
ask(struct lookup *lookup, int family)
{
	struct ares_addrinfo_hints hints = { .ai_family = family, .ai_socktype = SOCK_STREAM };

	lookup->pending++;
	ares_getaddrinfo(lookup->channel, lookup->host, NULL, &hints, on_answer, lookup);
}

static void
begin(struct lookup *lookup)
{
	struct ares_options options = { .timeout = ANSWER_MS,
		.tries = TRIES,
		.sock_state_cb = on_socket_state,
		.sock_state_cb_data = lookup };
	int rc = ares_init_options(
	    &lookup->channel, &options, ARES_OPT_TIMEOUTMS | ARES_OPT_TRIES | ARES_OPT_SOCK_STATE_CB);

	if (rc == ARES_SUCCESS) {
		ask(lookup, AF_UNSPEC);
		return;
	}
	lookup->channel = NULL;
	lookup->why = ares_strerror(rc);
	lookup->done = 1;
}

struct lookup *
resolver_start(uv_loop_t *uv, struct world *world, const struct address *address,
    const struct sock_handlers *handlers, void *owner)
{
	size_t len = address->host != NULL ? strlen(address->host) : 0;
	struct lookup *lookup = calloc(1, sizeof(*lookup) + len + 1);

	if (lookup == NULL)
		return NULL;
	memcpy(lookup + 1, address->host != NULL ? address->host : "", len);
	lookup->host = (const char *)(lookup + 1);
	lookup->uv = uv;
	lookup->world = world;
	lookup->handlers = handlers;
	lookup->owner = owner;
	lookup->port = address->port;
	lookup->began_ms = uv_hrtime() / NS_PER_MS;
	LIST_INIT(&lookup->sockets);
	uv_timer_init(uv, &lookup->timer);
	lookup->timer.data = lookup;
	lookup->handles = 1;
	lookup->done = is_written_out(lookup, address);
	if (!lookup->done)
		begin(lookup);
	go_on(lookup);
	return lookup;
}

void
resolver_cancel(struct lookup *lookup)
{
	end(lookup);
}

int
resolver_init(void)
{
	return ares_library_init(ARES_LIB_INIT_ALL) == ARES_SUCCESS ? 0 : -TG_ENOMEM;
}

void
resolver_fini(void)
{
	ares_library_cleanup();
}
