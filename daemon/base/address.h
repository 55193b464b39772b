/* Addresses of brokers as texts: host:port, [v6]:port or unix:/path. */
#ifndef TG_DAEMON_ADDRESS_H
#define TG_DAEMON_ADDRESS_H

#include <stddef.h>
#include <stdint.h>

#define ADDRESS_TEXT 300u /* bytes of one */

/* host:port, [v6]:port or unix:/path. */
struct address {
	char *text; /* as written */
	char *host; /* NULL for unix */
	char *path; /* unix */
	uint16_t port;
};

/* Parses an address; default_port is taken when none is written. Returns 0, or -TG_EINVAL or -TG_ENOMEM
 * with *why, static, saying what is allowed, and *address empty. */
int address_parse(struct address *address, const char *text, uint16_t default_port, const char **why);
void address_fini(struct address *address);

/* Whether they are written alike: the same path, or the same host (in any case) and port. */
int address_same(const struct address *a, const struct address *b);

/* Whether it is a domain name or an IPv4 address. */
int address_host_valid(const char *host, size_t len);

#endif
