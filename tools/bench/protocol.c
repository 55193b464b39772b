/* The protocols that can be measured: protocols.def. */
#include "build_config.h"

#include "tools/bench/bench.h"

#include <string.h>

static const struct bench_protocol protocols[] = {
#define PROTOCOL(name, topic, settings, unconfirmed, package) { #name, topic, settings, unconfirmed, package },
#include "tools/bench/protocols.def"
#undef PROTOCOL
	{ NULL, NULL, NULL, NULL, NULL },
};

const struct bench_protocol *
bench_protocol(const char *name)
{
	const struct bench_protocol *p;

	for (p = protocols; p->name != NULL; p++)
		if (strcmp(p->name, name) == 0)
			return p;
	return NULL;
}
