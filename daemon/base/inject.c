#include "inject.h"

#ifdef TG_INJECTION
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct {
	int read;
	int point; /* -1: none */
	uint64_t left;
} wish = { .point = -1 };

static void
read_wish(void)
{
	static const char *const names[] = {
#define X(name, where) #name,
#include "inject.def"
#undef X
	};
	const char *text = getenv("TIDEGATED_INJECT");
	const char *colon = text != NULL ? strchr(text, ':') : NULL;

	wish.read = 1;
	if (colon == NULL)
		return;
	for (int i = 0; i < INJECT_POINTS; i++)
		if (strlen(names[i]) == (size_t)(colon - text) &&
		    strncmp(names[i], text, (size_t)(colon - text)) == 0) {
			wish.point = i;
			wish.left = strtoull(colon + 1, NULL, 10);
			return;
		}
	fprintf(stderr, "TIDEGATED_INJECT=%s: no such point\n", text);
	exit(2);
}

void
inject(enum inject_point point)
{
	if (!wish.read)
		read_wish();
	if ((int)point == wish.point && --wish.left == 0)
		kill(getpid(), SIGKILL);
}
#else
typedef int inject_is_not_built;
#endif
