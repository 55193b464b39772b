#include "address.h"

#include "shm/error.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/un.h>

#define HOST_MAX 253u /* RFC 1035: a domain name in text */

int
address_host_valid(const char *host, size_t len)
{
	char text[HOST_MAX + 1];
	struct in_addr v4;
	int number = 1; /* the label so far is digits */

	if (len == 0 || len > HOST_MAX)
		return 0;
	for (size_t i = 0, label = 0; i < len; i++) {
		unsigned char c = (unsigned char)host[i];

		if (c == '.') {
			if (label == 0)
				return 0;
			label = 0;
			/* The dot that ends an absolute name begins no label. */
			number = i + 1 < len ? 1 : number;
			continue;
		}
		if (!isalnum(c) && c != '-' && c != '_')
			return 0;
		number = number && isdigit(c);
		if (++label > 63)
			return 0;
	}
	/* A last label of digits is an IPv4 address or a mistake: the resolver would take "1883" as 0.0.7.91.
	 */
	memcpy(text, host, len);
	text[len] = '\0';
	return !number || inet_pton(AF_INET, text, &v4) == 1;
}

/* [v6], with or without a %zone. */
static int
v6_valid(const char *host, size_t len)
{
	char text[INET6_ADDRSTRLEN];
	struct in6_addr v6;
	const char *zone = memchr(host, '%', len);
	size_t address_len = zone == NULL ? len : (size_t)(zone - host);

	if (address_len == 0 || address_len >= sizeof(text) || (zone != NULL && len - address_len < 2) ||
	    len - address_len > 16)
		return 0;
	memcpy(text, host, address_len);
	text[address_len] = '\0';
	return inet_pton(AF_INET6, text, &v6) == 1;
}

static const char *
parse_port(const char *text, uint16_t *port)
{
	unsigned long value = 0;

	if (*text == '\0')
		return "a port from 1 to 65535 behind the colon";
	for (; *text != '\0'; text++) {
		if (!isdigit((unsigned char)*text))
			return "a port from 1 to 65535 behind the colon, in digits";
		value = value * 10 + (unsigned long)(*text - '0');
		if (value > 65535)
			return "a port from 1 to 65535";
	}
	if (value == 0)
		return "a port from 1 to 65535";
	*port = (uint16_t)value;
	return NULL;
}

static const char *
parse_inet(struct address *address, const char *text, const char **host, size_t *host_len)
{
	const char *colon;

	if (text[0] == '[') {
		const char *close = strchr(text, ']');
		if (close == NULL)
			return "an IPv6 address that ends in ], as in [::1]:1883";
		*host = text + 1;
		*host_len = (size_t)(close - text) - 1;
		if (!v6_valid(*host, *host_len))
			return "an IPv6 address in the brackets";
		if (close[1] == '\0')
			return NULL;
		if (close[1] != ':')
			return "nothing or :port behind the ]";
		return parse_port(close + 2, &address->port);
	}
	if (strstr(text, "://") != NULL)
		return "host:port, without a scheme in front";
	colon = strchr(text, ':');
	if (colon != NULL && strchr(colon + 1, ':') != NULL)
		return "an IPv6 address in brackets, as in [::1]:1883";
	*host = text;
	*host_len = colon == NULL ? strlen(text) : (size_t)(colon - text);
	if (*host_len == 0)
		return "a host name or address before the port";
	if (!address_host_valid(*host, *host_len))
		return "a host name of at most 253 letters, digits, - _ and ., or an IPv4 address";
	return colon == NULL ? NULL : parse_port(colon + 1, &address->port);
}

int
address_parse(struct address *address, const char *text, uint16_t default_port, const char **why)
{
	static const char unix_prefix[] = "unix:";
	const char *host = NULL, *path = NULL;
	size_t host_len = 0;
	int error = -TG_EINVAL;

	memset(address, 0, sizeof(*address));
	*why = NULL;
	if (strncmp(text, unix_prefix, sizeof(unix_prefix) - 1) == 0) {
		path = text + sizeof(unix_prefix) - 1;
		if (path[0] != '/')
			*why = "an absolute path behind unix:";
		else if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
			*why = "a path of at most 107 bytes behind unix:";
	} else {
		address->port = default_port;
		*why = parse_inet(address, text, &host, &host_len);
	}
	if (*why != NULL)
		goto fail;
	address->text = strdup(text);
	if (path != NULL)
		address->path = strdup(path);
	else
		address->host = strndup(host, host_len);
	if (address->text != NULL && (address->path != NULL || address->host != NULL))
		return 0;
	*why = "out of memory";
	error = -TG_ENOMEM;
fail:
	address_fini(address);
	return error;
}

int
address_same(const struct address *a, const struct address *b)
{
	if (a->path != NULL && b->path != NULL)
		return strcmp(a->path, b->path) == 0;
	return a->host != NULL && b->host != NULL && strcasecmp(a->host, b->host) == 0 && a->port == b->port;
}

void
address_fini(struct address *address)
{
	free(address->text);
	free(address->host);
	free(address->path);
	memset(address, 0, sizeof(*address));
}
