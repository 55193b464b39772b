/* The control socket: making a connection, and ending it. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

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
