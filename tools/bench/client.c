#include "build_config.h"

#include "tools/bench/client.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char client_error[512];

static const struct load_client *const table[] = {
#define CLIENT(name) &client_##name,
#include "tools/bench/clients.def"
#undef CLIENT
};

int
client_fail(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(client_error, sizeof(client_error), format, args);
	va_end(args);
	return -1;
}

void *
client_body(uint64_t size)
{
	char *body = malloc(size != 0 ? (size_t)size : 1);
	uint64_t i;

	if (body != NULL)
		for (i = 0; i < size; i++)
			body[i] = (char)('a' + i % 26);
	return body;
}

uint64_t
client_window(const struct load_client *client, const struct bench_options *options)
{
	return options->window != 0 ? options->window : client->window;
}

size_t
bench_clients(const struct bench_options *options, const struct load_client *clients[], size_t max)
{
	size_t i, count = 0;

	for (i = 0; i < sizeof(table) / sizeof(table[0]) && count < max; i++)
		if (!table[i]->direct ||
		    (options->direct && strcmp(table[i]->protocol, options->protocol->name) == 0))
			clients[count++] = table[i];
	return count;
}
