#include "build_config.h"

#include "tools/bench/client.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

char client_error[512];
void (*client_answered)(uint64_t count);

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
