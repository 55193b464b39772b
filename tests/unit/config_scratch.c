#include "config_scratch.h"

#include "daemon/config/config_node.h"
#include "daemon/protocol/drivers.h"
#include "shm/error.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* libconfig 1.5 loses a string that is the very word a syntax error is about: 64 bytes a file. */
const char *__lsan_default_suppressions(void) __attribute__((visibility("default")));

const char *
__lsan_default_suppressions(void)
{
	return "leak:strbuf_append\n";
}

void
complain(void *owner, const char *line)
{
	struct complaints *complaints = owner;

	for (const char *at = line; *at != '\0'; at++)
		assert_false(iscntrl((unsigned char)*at));
	complaints->lines++;
	if (complaints->used + strlen(line) + 2 < sizeof(complaints->text))
		complaints->used += (size_t)sprintf(complaints->text + complaints->used, "%s\n", line);
}

void
write_file(const char *name, const void *bytes, size_t len, mode_t mode)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

void
write_text(const char *name, const char *text)
{
	write_file(name, text, strlen(text), 0644);
}

char *
read_text(const char *name)
{
	static char text[65536];
	FILE *file = fopen(name, "re");

	assert_non_null(file);
	size_t len = fread(text, 1, sizeof(text), file);
	assert_true(len < sizeof(text));
	text[len] = '\0';
	fclose(file);
	return text;
}

int
load(const char *file, struct config **config, struct complaints *complaints)
{
	struct config_report report = { .print = complain, .owner = complaints };

	memset(complaints, 0, sizeof(*complaints));
	*config = NULL;
	int error = config_load(config, file, &report);
	assert_int_equal(report.errors, complaints->lines);
	assert_true((error == 0) == (*config != NULL));
	if (error == 0)
		assert_int_equal(report.errors, 0);
	if (error == -TG_EINVAL)
		assert_true(report.errors > 0);
	return error;
}

struct config *
load_good(const char *text)
{
	static struct complaints complaints;
	struct config *config = NULL;

	write_text(FILE_NAME, text);
	int error = load(FILE_NAME, &config, &complaints);
	if (error != 0)
		fail_msg("%s", complaints.text);
	return config;
}

/* In an expected complaint, DRIVERS stands for the list of all drivers' names. */
static void
expand_drivers(const char *from, char *to, size_t size)
{
	const char *at = strstr(from, "DRIVERS");
	size_t len = 0;

	if (at == NULL) {
		snprintf(to, size, "%s", from);
		return;
	}
	len += (size_t)snprintf(to, size, "%.*s", (int)(at - from), from);
	for (unsigned i = 0; driver_list[i] != NULL; i++)
		len += (size_t)snprintf(to + len, size - len, "%s\"%s\"",
		    i == 0                       ? ""
		    : driver_list[i + 1] == NULL ? " or "
						 : ", ",
		    driver_list[i]->name);
	snprintf(to + len, size - len, "%s", at + strlen("DRIVERS"));
}

void
expect(const char *text, const char *complaint)
{
	char expanded[4096];
	static struct complaints complaints;
	struct config *config = NULL;

	write_text(FILE_NAME, text);
	if (load(FILE_NAME, &config, &complaints) == 0) {
		config_free(config);
		fail_msg("accepted: %s", text);
	}
	expand_drivers(complaint, expanded, sizeof(expanded));
	assert_string_equal(complaints.text, expanded);
}

int
enter_scratch(void **state)
{
	char *folder = strdup("/tmp/tidegate-config-XXXXXX");

	assert_non_null(folder);
	assert_non_null(mkdtemp(folder));
	assert_int_equal(chdir(folder), 0);
	*state = folder;
	return 0;
}

int
leave_scratch(void **state)
{
	static const char *const names[] = { FILE_NAME, "a.conf", "sub/b.conf", "sub/c.conf", "pw", "ca.pem",
		"key.pem", "sub" };
	char *folder = *state;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		remove(names[i]);
	assert_int_equal(chdir("/"), 0);
	assert_int_equal(rmdir(folder), 0);
	free(folder);
	return 0;
}
