/* The clients that take part: clients.def. */
#include "build_config.h"

#include "tools/bench/client.h"

#include <string.h>

static const struct load_client *const table[] = {
#define CLIENT(name) &client_##name,
#include "tools/bench/clients.def"
#undef CLIENT
};

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
