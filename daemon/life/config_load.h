/* The configuration file: reads all of it into struct config and checks it, drivers' settings and TLS files included. */
#ifndef TG_DAEMON_CONFIG_LOAD_H
#define TG_DAEMON_CONFIG_LOAD_H

#include "daemon/config/config.h"

/*
 * Reads and checks a file and what it includes. Complaints go to report, all of them in one run. Returns 0 with
 * *config the caller's, or -TG_EINVAL (report->errors > 0), -TG_ENOMEM.
 */
int config_load(struct config **config, const char *file, struct config_report *report);
void config_free(struct config *config);

#endif
