#include "tools/ctl/ask.h"

#include "tools/common/cli.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define AGAIN_MIN_NS 20000000
#define AGAIN_MAX_NS 320000000

static void
complain_connect(const char *path, int error)
{
	switch (error) {
	case ENOENT:
		cli_error("no tidegated at %s: there is no such socket. Is it running, and is this the "
			  "\"admin\" of its "
			  "configuration? -s or TIDEGATE_ADMIN names another",
		    path);
		break;
	case ECONNREFUSED:
		cli_error("no tidegated at %s: its socket file is there, but the daemon is not running. "
			  "Start it (systemctl start tidegated, or "
			  "tidegated -c FILE)",
		    path);
		break;
	case EACCES:
	case EPERM:
		cli_error("%s: permission denied: the admin socket is for root and the group tidegate. Become "
			  "root, or "
			  "join the group: adduser USER tidegate",
		    path);
		break;
	case EPROTOTYPE:
		cli_error(
		    "%s: this is not an admin socket; the one that producers use? -s or TIDEGATE_ADMIN names the "
		    "\"admin\" of tidegated's configuration",
		    path);
		break;
	case EAGAIN:
		cli_error("%s: tidegated has not taken the connection for %d s", path, ASK_TIMEOUT_S);
		break;
	default:
		cli_error("%s: cannot connect: %s", path, strerror(error));
		break;
	}
}

static int
ask_connect(struct ask *ask, const char *path, int quiet)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = ASK_TIMEOUT_S }; /* its accept queue may be full */

	*ask = (struct ask){ .path = path, .fd = -1 };
	if (path[0] == '\0' || strlen(path) >= sizeof(addr.sun_path)) {
		cli_error("socket \"%s\": its path has %zu bytes, 1 to %zu are possible", path, strlen(path),
		    sizeof(addr.sun_path) - 1);
		return -1;
	}
	memcpy(addr.sun_path, path, strlen(path) + 1);
	ask->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (ask->fd < 0 || setsockopt(ask->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
	    connect(ask->fd, (const struct sockaddr *)&addr, sizeof(addr)) != 0) {
		if (!quiet)
			complain_connect(path, errno);
		ask_close(ask);
		return -1;
	}
	return 0;
}

int
ask_open(struct ask *ask, const char *path)
{
	return ask_connect(ask, path, 0);
}

int
ask_try(struct ask *ask, const char *path)
{
	return ask_connect(ask, path, 1);
}

void
ask_again(struct ask *ask)
{
	const char *path = ask->path;
	struct timespec pause = { .tv_nsec = AGAIN_MIN_NS };

	ask_close(ask);
	while (ask_try(ask, path) != 0) {
		nanosleep(&pause, NULL);
		if (pause.tv_nsec < AGAIN_MAX_NS)
			pause.tv_nsec *= 2;
	}
	ask->patient = 1;
	cli_error("%s: connected again", path);
}

void
ask_close(struct ask *ask)
{
	if (ask->path != NULL && ask->fd >= 0)
		close(ask->fd);
	free(ask->buffer);
	*ask = (struct ask){ .fd = -1 };
}

static int
send_line(struct ask *ask, const char *text)
{
	size_t len = strlen(text), at = 0;

	while (at < len) {
		ssize_t n = send(ask->fd, text + at, len - at, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		at += (size_t)n;
	}
	return 0;
}

/* Room for more bytes behind those that are there. */
static int
make_room(struct ask *ask)
{
	size_t size = ask->size == 0 ? 64u << 10 : ask->size * 2;
	char *buffer;

	if (ask->start > 0) {
		memmove(ask->buffer, ask->buffer + ask->start, ask->len);
		ask->start = 0;
	}
	if (ask->len < ask->size)
		return 0;
	if (size > ASK_LINE) {
		cli_error(
		    "%s: a line of more than %u bytes: is this tidegated's admin socket?", ask->path, ASK_LINE);
		return -1;
	}
	buffer = realloc(ask->buffer, size);
	if (buffer == NULL) {
		cli_error("out of memory for an answer of %zu bytes", size);
		return -1;
	}
	ask->buffer = buffer;
	ask->size = size;
	return 0;
}

/* Adds what comes to the buffer. Returns 1; 0 at the end of the stream; -1 after printing the error. */
static int
receive(struct ask *ask, int timeout_ms)
{
	struct pollfd pollfd = { .fd = ask->fd, .events = POLLIN };
	int ready;

	if (make_room(ask) != 0)
		return -1;
	do
		ready = poll(&pollfd, 1, timeout_ms);
	while (ready < 0 && errno == EINTR);
	if (ready == 0) {
		cli_error("%s: tidegated has not answered for %d s", ask->path, timeout_ms / 1000);
		ask->lost = 1;
		return -1;
	}
	ssize_t n = read(ask->fd, ask->buffer + ask->len, ask->size - ask->len);
	if (n < 0 && errno == EINTR)
		return 1;
	if (n < 0 && errno != ECONNRESET) {
		cli_error("%s: %s", ask->path, strerror(errno));
		return -1;
	}
	if (n <= 0)
		return 0;
	ask->len += (size_t)n;
	return 1;
}

/* One line as JSON; NULL after printing the error. */
static json_t *
next_line(struct ask *ask, int timeout_ms)
{
	json_error_t error;
	size_t seen = 0;
	char *end;

	while (ask->len == seen ||
	       (end = memchr(ask->buffer + ask->start + seen, '\n', ask->len - seen)) == NULL) {
		seen = ask->len;
		int rc = receive(ask, timeout_ms);
		if (rc == 0)
			ask->lost = 1;
		if (rc == 0 && ask->patient)
			cli_error("%s: tidegated has hung up; waiting for it or the next one", ask->path);
		else if (rc == 0)
			cli_error("%s: tidegated has hung up: it has ended, or has 64 admins already, or this "
				  "one did not read "
				  "fast enough; its log says which",
			    ask->path);
		if (rc <= 0)
			return NULL;
	}
	size_t used = (size_t)(end - (ask->buffer + ask->start)) + 1;
	json_t *line = json_loadb(ask->buffer + ask->start, used - 1, 0, &error);
	if (line == NULL)
		cli_error("%s: not an answer of tidegated: %s", ask->path, error.text);
	ask->start += used;
	ask->len -= used;
	return line;
}

json_t *
ask_next(struct ask *ask)
{
	return next_line(ask, -1);
}

json_t *
ask_once(struct ask *ask, json_t *request)
{
	char *text = request != NULL ? json_dumps(request, JSON_COMPACT) : NULL;
	json_t *answer;
	const char *error;

	json_decref(request);
	if (text == NULL) {
		cli_error("out of memory for a request");
		return NULL;
	}
	/* One that has hung up already may have left its reason to be read. */
	if (send_line(ask, text) != 0 || send_line(ask, "\n") != 0) {
		if (errno != EPIPE && errno != ECONNRESET) {
			cli_error("%s: %s", ask->path, strerror(errno));
			free(text);
			return NULL;
		}
	}
	free(text);
	answer = next_line(ask, ASK_TIMEOUT_S * 1000);
	if (answer == NULL || json_is_true(json_object_get(answer, "ok")))
		return answer;
	error = json_string_value(json_object_get(answer, "error"));
	cli_error("tidegated says: %s", error != NULL ? error : "neither ok nor an error");
	json_decref(answer);
	return NULL;
}
