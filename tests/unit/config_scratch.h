/*
 * A folder in which a test writes the configuration it loads, and the complaints about it. A failure in here
 * fails the calling test. One thread.
 */
#ifndef TG_TESTS_CONFIG_SCRATCH_H
#define TG_TESTS_CONFIG_SCRATCH_H

#include "daemon/life/config_load.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>

#include <cmocka.h>

/* The configuration's file, and lines that every configuration needs. */
#define FILE_NAME "t.conf"
#define BROKER "brokers = ( { address = \"h\"; } );"
#define POOL(more) "pools = ( { name = \"p\"; protocol = \"mqtt\"; " BROKER " " more " } );\n"

/* As complaints list them. */
#define ROOT_KEYS "socket, socket_mode, admin, drain_timeout_ms, idle, limits, pools"

/* A test in a folder of its own, which is the working directory. */
#define IN_SCRATCH(name) cmocka_unit_test_setup_teardown(name, enter_scratch, leave_scratch)
int enter_scratch(void **state);
int leave_scratch(void **state);

struct complaints {
	char text[65536];
	size_t used;
	unsigned lines;
};

/* For struct config_report, whose owner is struct complaints. */
void complain(void *owner, const char *line);

void write_file(const char *name, const void *bytes, size_t len, mode_t mode);
void write_text(const char *name, const char *text);
/* The text of a file of the source tree; good until the next call. */
char *read_text(const char *name);

/* Returns config_load()'s result; the caller frees *config. */
int load(const char *file, struct config **config, struct complaints *complaints);
/* The configuration of a text that must be good. */
struct config *load_good(const char *text);
/* The text must be refused, with this complaint, in which DRIVERS stands for all drivers' names. */
void expect(const char *text, const char *complaint);

#endif
