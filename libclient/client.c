/* Connecting to the daemon. Nothing is said until the first lane is asked for. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "build_config.h"

static const char *
socket_path(const struct tg_client_options *options)
{
	const char *path = options->socket;

	if (path == NULL)
		path = secure_getenv("TIDEGATE_SOCKET");
	return path != NULL && (path[0] != '\0' || options->socket != NULL) ? path : TG_DEFAULT_SOCKET;
}

static int
options_apply(struct tg_client *client, const struct tg_client_options *options)
{
	const char *path = socket_path(options);
	const char *name = options->name != NULL ? options->name : program_invocation_short_name;
	size_t len = strlen(path);

	if (len == 0 || len >= sizeof(client->path))
		return detail_fail(-TG_EINVAL, "socket \"%s\": the path has %zu bytes, 1 to %zu are possible",
		    path, len, sizeof(client->path) - 1);
	if (options->timeout_ms > INT_MAX)
		return detail_fail(-TG_EINVAL, "timeout_ms = %u: at most %d", options->timeout_ms, INT_MAX);
	memcpy(client->path, path, len + 1);
	strncpy(client->name, name, sizeof(client->name) - 1);
	client->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : CLIENT_TIMEOUT_MS;
	return 0;
}

static int
connect_once(int fd, const struct tg_client *client)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int rc;

	memcpy(addr.sun_path, client->path, sizeof(addr.sun_path));
	do
		rc = connect(fd, (const struct sockaddr *)&addr, sizeof(addr));
	while (rc != 0 && errno == EINTR);
	return rc;
}

/* The accept queue is full: only a blocking connect waits in it. */
static int
connect_patiently(int fd, const struct tg_client *client)
{
	struct timeval limit = { .tv_sec = (time_t)(client->timeout_ms / 1000),
		.tv_usec = (suseconds_t)(client->timeout_ms % 1000) * 1000 };
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) != 0 ||
	    fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) != 0)
		return -1;
	if (connect_once(fd, client) != 0) /* EAGAIN: the time is over */
		return -1;
	return fcntl(fd, F_SETFL, flags);
}

static int
connect_fail(const struct tg_client *client)
{
	int code;

	switch (errno) {
	case ENOENT:
	case ECONNREFUSED:
	case ENOTDIR:
	case EPROTOTYPE:
		code = -TG_ENODAEMON;
		break;
	case EACCES:
	case EPERM:
		code = -TG_EDENIED;
		break;
	case EMFILE:
	case ENFILE:
		code = -TG_ELIMIT;
		break;
	case ENOMEM:
	case ENOBUFS:
		code = -TG_ENOMEM;
		break;
	case EAGAIN:
		return detail_fail(-TG_ETIMEOUT, "socket %s: tidegated did not take the connection in %u ms",
		    client->path, client->timeout_ms);
	default:
		code = -TG_ESYSTEM;
	}
	return detail_fail(code, "socket %s: %s: %s", client->path, strerror(errno), error_text(code));
}

int
fd_above_standard(int fd)
{
	int above, saved;

	if (fd < 0 || fd > STDERR_FILENO)
		return fd;
	above = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
	saved = errno;
	close(fd);
	errno = saved;
	return above;
}

int
client_connect(struct tg_client *client)
{
	int rc;

	client->fd = fd_above_standard(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
	if (client->fd < 0)
		return connect_fail(client);
	if (connect_once(client->fd, client) == 0)
		return 0;
	if (errno == EAGAIN && connect_patiently(client->fd, client) == 0)
		return 0;
	rc = connect_fail(client);
	close(client->fd);
	client->fd = -1;
	return rc;
}

void
client_hang_up(struct tg_client *client)
{
	shutdown(client->fd, SHUT_RDWR);
	close(client->fd);
}

int
tg_client_open(struct tg_client **out, const struct tg_client_options *options)
{
	static const struct tg_client_options defaults;
	struct tg_client *client;
	int rc;

	if (out == NULL)
		return detail_fail(-TG_EINVAL, "tg_client_open: client is NULL");
	*out = NULL;
	client = calloc(1, sizeof(*client));
	if (client == NULL)
		return detail_fail(-TG_ENOMEM, "no memory for a client (%zu bytes)", sizeof(*client));
	client->fd = -1;
	pthread_mutex_init(&client->control, NULL); /* never fails with these attributes */
	if ((rc = options_apply(client, options != NULL ? options : &defaults)) != 0)
		goto fail;
	if ((rc = fork_mark_get(&client->mark)) != 0) {
		detail_fail(rc, "fork detection (MADV_WIPEONFORK): %s", strerror(errno));
		goto fail;
	}
	if ((rc = client_connect(client)) != 0)
		goto fail;
	client->registered = wake_register() == 0;
	*out = client;
	return 0;
fail:
	free(client);
	return rc;
}

void
tg_client_close(struct tg_client *client)
{
	if (client == NULL)
		return;
	while (client->lanes != NULL)
		lane_free(client->lanes);
	if (fork_is_child(&client->mark))
		close(client->fd); /* the parent is not disturbed */
	else
		client_hang_up(client);
	free(client);
}

const char *
tg_version(void)
{
	return PACKAGE_VERSION;
}
