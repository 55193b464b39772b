/*
 * The table of drivers, from drivers.def. It names every driver, and no driver includes it: a driver calls
 * the helpers in driver.h alone.
 */
#ifndef TG_DAEMON_PROTOCOL_DRIVERS_H
#define TG_DAEMON_PROTOCOL_DRIVERS_H

#include "driver.h"

/* The list, in drivers.def order; NULL-terminated. */
extern const struct driver *const driver_list[];

/* Finds a driver by its configuration name, or NULL. */
const struct driver *driver_find(const char *name);

#endif
