/*
 * Fuzzes the reader of the configuration: any text is either refused with a complaint that names the place, or
 * yields a configuration within its limits.
 *
 * An input is the text of the main file and, behind a byte 0xff, that of "more.conf" beside it.
 */
#include "fuzz.h"

#include "daemon/life/config_load.h"
#include "daemon/config/config_node.h"
#include "daemon/protocol/driver.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* libconfig leaks a string that the end of the text cuts off. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_options(void);

__attribute__((visibility("default"), used)) const char *
__lsan_default_suppressions(void)
{
	return "leak:libconfig.so";
}

__attribute__((visibility("default"), used)) const char *
__lsan_default_options(void)
{
	return "print_suppressions=0";
}

static char folder[] = "/tmp/tidegate-fuzz-XXXXXX";
static char paths[2][sizeof(folder) + 16];
static int fds[2];
static unsigned complaints;

static void
on_complaint(void *owner, const char *line)
{
	(void)owner;
	fuzz_check(strncmp(line, folder, strlen(folder)) == 0, "a complaint does not say about which file");
	complaints++;
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_check(mkdtemp(folder) != NULL, "no folder for its files");
	/* memfds instead of files: file system work would dominate an execution. */
	for (int i = 0; i < 2; i++) {
		char target[40];
		snprintf(paths[i], sizeof(paths[i]), "%s/%s.conf", folder, i == 0 ? "main" : "more");
		fds[i] = memfd_create("configuration", MFD_CLOEXEC);
		snprintf(target, sizeof(target), "/proc/self/fd/%d", fds[i]);
		fuzz_check(fds[i] >= 0 && symlink(target, paths[i]) == 0, "its file cannot be made");
	}
	atexit(fuzz_fini);
	return 0;
}

int
fuzz_folder(const char *name)
{
	(void)name;
	return 1;
}

void
fuzz_fini(void)
{
	for (int i = 0; i < 2; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
		unlink(paths[i]);
	}
	rmdir(folder);
}

static void
check_config(const struct config *config)
{
	fuzz_check(config->socket != NULL && config->admin != NULL, "it has no sockets");
	fuzz_check(
	    config->pool_count > 0 && config->pool_count <= CONFIG_POOLS, "its pools are not in their limits");
	for (uint32_t i = 0; i < config->pool_count; i++) {
		const struct config_pool *pool = &config->pools[i];
		fuzz_check(pool->name != NULL && strlen(pool->name) > 0 && strlen(pool->name) <= CONFIG_NAME,
		    "a pool's name is not in its limits");
		fuzz_check(pool->driver != NULL && pool->driver_settings != NULL, "a pool has no driver");
		fuzz_check(pool->broker_count > 0 && pool->broker_count <= CONFIG_BROKERS,
		    "a pool's brokers are not in their limits");
		for (uint32_t j = 0; j < pool->broker_count; j++)
			fuzz_check(
			    (pool->brokers[j].address.host != NULL) != (pool->brokers[j].address.path != NULL),
			    "a broker's address is no one thing");
	}
}

static void
put(int fd, const uint8_t *bytes, size_t len)
{
	fuzz_check(
	    ftruncate(fd, 0) == 0 && pwrite(fd, bytes, len, 0) == (ssize_t)len, "its file cannot be written");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct config_report report = { .print = on_complaint };
	struct config *config = NULL;
	const uint8_t *more = size > 0 ? memchr(data, 0xff, size) : NULL;
	size_t len = more != NULL ? (size_t)(more - data) : size;

	complaints = 0;
	put(fds[0], data, len);
	put(fds[1], more != NULL ? more + 1 : data, more != NULL ? size - len - 1 : 0);
	int rc = config_load(&config, paths[0], &report);
	fuzz_check(rc == 0 || rc == -TG_EINVAL, "an error of another kind");
	fuzz_check(
	    (rc == 0) == (report.errors == 0), "errors are counted and it is taken, or none and refused");
	fuzz_check(report.errors == complaints, "not as many complaints as errors");
	fuzz_check((rc == 0) == (config != NULL), "refused, and given all the same");
	if (rc == 0)
		check_config(config);
	config_free(config);
	return 0;
}
