#include "config_secret.h"

#include "config_node.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct why {
	char text[CONFIG_SECRET_WHY];
};

static int __attribute__((format(printf, 2, 3))) refuse(struct why *why, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why->text, sizeof(why->text), format, args);
	va_end(args);
	return -TG_EINVAL;
}

static int
system_error(const char *path, struct why *why)
{
	const char *cause = strerrordesc_np(errno);

	return refuse(why, "%s cannot be read: %s", path, cause == NULL ? "unknown error" : cause);
}

static int
open_private(const char *path, int *opened, struct why *why)
{
	struct stat about;
	/* Without O_NONBLOCK, a FIFO that has no writer would hold up the daemon for ever. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), error = 0;

	if (fd < 0)
		return system_error(path, why);
	if (fstat(fd, &about) != 0)
		error = system_error(path, why);
	else if (!S_ISREG(about.st_mode))
		error = refuse(why, "%s is not a regular file", path);
	else if ((about.st_mode & S_IRWXO) != 0)
		error = refuse(why, CONFIG_NOT_PRIVATE, path, (unsigned)about.st_mode & 07777u, path);
	if (error != 0)
		close(fd);
	else
		*opened = fd;
	return error;
}

/* Cuts the line's end off and looks at what is left. */
static int
check_text(const struct config_secret *secret, char *text, size_t len, struct why *why)
{
	const char *path = secret->path;
	char *end = memchr(text, '\n', len);
	size_t line = end == NULL ? len : (size_t)(end - text);
	char cause[CONFIG_SECRET_CAUSE];

	if (end != NULL && line > 0 && text[line - 1] == '\r')
		line--;
	if (line > secret->max)
		return refuse(why, "%s is longer than %zu bytes", path, secret->max);
	if (line == 0)
		return refuse(why, "%s is empty", path);
	for (size_t i = 0; i < line; i++)
		if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
			return refuse(why, "%s:1: byte %zu is a control character (0x%02x)", path, i + 1,
			    (unsigned)(unsigned char)text[i]);
	if (end != NULL && end + 1 < text + len)
		return refuse(why, "%s:2: a second line: a secret is one line", path);
	text[line] = '\0';
	const char *wrong = secret->check == NULL ? NULL : secret->check(text, cause, sizeof(cause));
	return wrong == NULL ? 0 : refuse(why, "%s:1: %s", path, wrong);
}

static int
read_file(const struct config_secret *secret, char **value, struct why *why)
{
	const char *path = secret->path;
	size_t size = secret->max + 3, used = 0; /* CR, LF and one byte too many */
	char *text = NULL;
	int fd = -1, error = open_private(path, &fd, why);

	if (error != 0)
		return error;
	text = malloc(size + 1);
	if (text == NULL) {
		refuse(why, "%s cannot be read: out of memory", path);
		error = -TG_ENOMEM;
	}
	while (error == 0 && used < size) {
		ssize_t n = read(fd, text + used, size - used);
		if (n > 0)
			used += (size_t)n;
		else if (n == 0)
			break;
		else if (errno != EINTR)
			error = system_error(path, why);
	}
	close(fd);
	if (error == 0)
		error = check_text(secret, text, used, why);
	if (error == 0) {
		*value = text;
		return 0;
	}
	if (text != NULL)
		explicit_bzero(text, size + 1);
	free(text);
	return error;
}

static void
wipe(char *value)
{
	if (value != NULL)
		explicit_bzero(value, strlen(value));
	free(value);
}

int
config_node_secret(struct config_node *node, const char *key, struct config_secret *secret, size_t max,
    config_secret_check *check)
{
	struct why why = { "" };

	secret->key = key;
	secret->max = max;
	secret->check = check;
	int there = config_node_path(node, key, &secret->path);
	if (there <= 0)
		return there;
	int error = read_file(secret, &secret->value, &why);
	if (error == -TG_EINVAL)
		config_node_error(node, key, "%s", why.text);
	return error == 0 ? 1 : error;
}

int
config_secret_renew(struct config_secret *secret)
{
	struct why why = { "" };
	char *fresh = NULL;

	if (secret->value == NULL)
		return 0;
	int error = read_file(secret, &fresh, &why);
	if (error != 0) {
		int said = strcmp(secret->failed, why.text) == 0;
		memcpy(secret->failed, why.text, sizeof(secret->failed));
		return said ? 0 : error;
	}
	secret->failed[0] = '\0';
	int changed = strcmp(fresh, secret->value) != 0;
	char *old = changed ? secret->value : fresh;
	if (changed)
		secret->value = fresh;
	wipe(old);
	return changed;
}

void
config_secret_fini(struct config_secret *secret)
{
	wipe(secret->value);
	free(secret->path);
	memset(secret, 0, sizeof(*secret));
}
