#include "drivers.h"

#include <string.h>

#define X(name) extern const struct driver driver_##name;
#include "drivers.def"
#undef X

const struct driver *const driver_list[] = {
#define X(name) &driver_##name,
#include "drivers.def"
#undef X
	NULL
};

const struct driver *
driver_find(const char *name)
{
	for (unsigned i = 0; driver_list[i] != NULL; i++)
		if (strcmp(driver_list[i]->name, name) == 0)
			return driver_list[i];
	return NULL;
}
