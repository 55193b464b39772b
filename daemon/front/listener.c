#include "listener.h"

#include "daemon/base/log.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define ACCEPTS_A_TURN 8
#define LOCK_TRIES 100
#define LOOK_MS 1000

static void
complain(struct listener *listener, const char *what)
{
	int error = errno;

	log_limited(&listener->bind_limit, LOG_LEVEL_ERROR, "listen_failed", "path=%s step=%s cause=%s",
	    listener->path, what, log_quote((char[128]){ 0 }, 128, strerror(error), strlen(strerror(error))));
}

/* A descriptor in reserve. */
static void
keep_spare(struct listener *listener)
{
	if (listener->spare < 0)
		listener->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/*
 * No descriptor is left for a connection. It takes the spare one's place, is told why and closed at once: the
 * socket would stay readable otherwise, and keep the loop from ever sleeping. Returns whether it was taken.
 */
static int
turn_away(struct listener *listener)
{
	int error = errno;

	log_limited(&listener->accept_limit, LOG_LEVEL_ERROR, "accept_failed", "path=%s errno=%d cause=%s",
	    listener->path, error, log_quote((char[128]){ 0 }, 128, strerror(error), strlen(strerror(error))));
	if (listener->spare < 0)
		return 0;
	close(listener->spare);
	listener->spare = -1;
	int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0 && listener->turned_away != NULL)
		listener->turned_away(listener->owner, fd);
	if (fd >= 0)
		close(fd);
	keep_spare(listener);
	return fd >= 0;
}

static void
on_readable(uv_poll_t *poll, int status, int events)
{
	struct listener *listener = poll->data;

	keep_spare(listener);
	for (int i = 0; i < ACCEPTS_A_TURN; i++) {
		if (listener->may_accept != NULL && !listener->may_accept(listener->owner)) {
			uv_poll_stop(poll);
			return;
		}
		int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EINTR || errno == ECONNABORTED)
				continue;
			if (errno == EAGAIN || !turn_away(listener))
				return;
			continue;
		}
		listener->accepted(listener->owner, fd);
	}
}

/* Whether a process listens on the path already. If it hangs, its backlog is full: EAGAIN. */
static int
is_alive(const struct sockaddr_un *addr, int type)
{
	int fd = socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int alive =
	    fd >= 0 && (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 || errno == EAGAIN);

	if (fd >= 0)
		close(fd);
	return alive;
}

/* The folder, one level of it: /run/tidegate on a host without a service manager. */
static void
make_folder(const char *path)
{
	char copy[108];

	snprintf(copy, sizeof(copy), "%s", path);
	mkdir(dirname(copy), 0755);
}

struct path_lock {
	int fd; /* -1: none */
	char name[108 + sizeof(".lock")];
};

/*
 * Two daemons that begin at once must not both find the path free: the later would remove the other's socket.
 * So the daemon checks the path and binds it while it holds a lock on a file beside it, which it removes
 * afterwards. A file that another user made, or could open, is no lock, because that user could keep us out
 * with it: then the daemon goes on without one.
 * Returns 0, or -TG_ESYSTEM: another daemon is at it.
 */
static int
lock_path(struct listener *listener, struct path_lock *lock)
{
	struct stat ours, there;

	snprintf(lock->name, sizeof(lock->name), "%s.lock", listener->path);
	for (int i = 0; i < LOCK_TRIES; i++) {
		lock->fd = open(lock->name, O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
		if (lock->fd < 0)
			return 0;
		if (fstat(lock->fd, &ours) != 0 || !S_ISREG(ours.st_mode) || ours.st_uid != geteuid() ||
		    (ours.st_mode & 077) != 0)
			break;
		if (flock(lock->fd, LOCK_EX | LOCK_NB) != 0) {
			close(lock->fd);
			errno = EADDRINUSE;
			complain(listener, "lock");
			return -TG_ESYSTEM;
		}
		if (stat(lock->name, &there) == 0 && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino)
			return 0;
		close(lock->fd); /* its last holder has just removed it */
		lock->fd = -1;
	}
	if (lock->fd >= 0)
		close(lock->fd);
	lock->fd = -1;
	return 0;
}

static void
unlock_path(const struct path_lock *lock)
{
	if (lock->fd < 0)
		return;
	unlink(lock->name);
	close(lock->fd);
}

static int
take_path(struct listener *listener, int fd)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;

	memcpy(addr.sun_path, listener->path, sizeof(addr.sun_path));
	if (lstat(listener->path, &st) == 0) {
		if (!S_ISSOCK(st.st_mode)) {
			errno = EEXIST;
			complain(listener, "bind");
			return -TG_ESYSTEM;
		}
		if (is_alive(&addr, listener->type)) {
			errno = EADDRINUSE;
			complain(listener, "bind");
			return -TG_ESYSTEM;
		}
		unlink(listener->path);
	}
	/* Created without permissions: no process can connect between bind and the right mode. */
	mode_t old = umask(0777);
	int rc = bind(fd, (const struct sockaddr *)&addr, sizeof(addr));
	umask(old);
	if (rc != 0) {
		complain(listener, "bind");
		return -TG_ESYSTEM;
	}
	const struct group *g = listener->group != NULL ? getgrnam(listener->group) : NULL;
	const char *step = "chmod";
	if ((g == NULL || chown(listener->path, (uid_t)-1, g->gr_gid) == 0) &&
	    chmod(listener->path, listener->mode) == 0) {
		step = "listen";
		if (listen(fd, 4096) == 0)
			return 0;
	}
	complain(listener, step);
	unlink(listener->path);
	return -TG_ESYSTEM;
}

/* Returns a socket that listens on the path, or -TG_ESYSTEM. */
static int
bind_path(struct listener *listener)
{
	struct path_lock lock;
	int fd = socket(AF_UNIX, listener->type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0) {
		complain(listener, "socket");
		return -TG_ESYSTEM;
	}
	make_folder(listener->path);
	int rc = lock_path(listener, &lock);
	if (rc == 0) {
		rc = take_path(listener, fd);
		unlock_path(&lock);
	}
	if (rc == 0)
		return fd;
	close(fd);
	return rc;
}

/* ---- a path that is gone ---- */

static int
is_ours(const struct listener *listener)
{
	struct stat st;

	return lstat(listener->path, &st) == 0 && st.st_dev == listener->dev && st.st_ino == listener->ino;
}

/*
 * A cleaner of /run, or a second daemon that was started and ended, has removed the socket file: no new client
 * can reach us. Connections that wait on the old socket are taken first, up to a turn's number; the others try
 * again.
 */
static void
listen_anew(struct listener *listener)
{
	int active = uv_is_active((uv_handle_t *)&listener->poll);
	int fd = bind_path(listener);

	if (fd < 0)
		return;
	on_readable(&listener->poll, 0, UV_READABLE);
	uv_poll_stop(&listener->poll);
	int rc = dup3(fd, listener->fd, O_CLOEXEC);
	close(fd);
	if (rc < 0) {
		complain(listener, "dup");
		return;
	}
	if (active)
		uv_poll_start(&listener->poll, UV_READABLE, on_readable);
	log_event(LOG_LEVEL_INFO, "socket_made_anew", "path=%s", listener->path);
	listener_own_path(listener);
}

static void
on_look(uv_timer_t *look)
{
	struct listener *listener = look->data;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;

	if (is_ours(listener))
		return;
	memcpy(addr.sun_path, listener->path, sizeof(addr.sun_path));
	int taken = lstat(listener->path, &st) == 0 && S_ISSOCK(st.st_mode) && is_alive(&addr, listener->type);
	if (!listener->lost)
		log_event(LOG_LEVEL_ERROR, "socket_lost", "path=%s cause=\"%s\"", listener->path,
		    taken ? "another process listens on it now; this daemon serves whom it has and waits"
			  : "it was removed or replaced");
	listener->lost = 1;
	if (!taken)
		listen_anew(listener);
}

void
listener_own_path(struct listener *listener)
{
	struct stat st;

	listener->owns_path = 1;
	listener->lost = 0;
	if (lstat(listener->path, &st) == 0) {
		listener->dev = st.st_dev;
		listener->ino = st.st_ino;
	}
	uv_timer_start(&listener->look, on_look, LOOK_MS, LOOK_MS);
}

int
listener_init(struct listener *listener, uv_loop_t *loop, const char *path, int type, mode_t mode,
    const char *group, int inherited, void (*accepted)(void *owner, int fd), void *owner)
{
	memset(listener, 0, sizeof(*listener));
	listener->fd = inherited;
	listener->spare = -1;
	listener->mode = mode;
	listener->group = group;
	listener->type = type;
	listener->accepted = accepted;
	listener->owner = owner;
	listener->poll.data = listener;
	if (strlen(path) >= sizeof(listener->path)) {
		log_event(LOG_LEVEL_ERROR, "listen_failed",
		    "path=%s cause=\"%zu bytes long, the limit is %zu\"", path, strlen(path),
		    sizeof(listener->path) - 1);
		return -TG_ESYSTEM;
	}
	memcpy(listener->path, path, strlen(path) + 1);
	if (inherited < 0) {
		int fd = bind_path(listener);
		if (fd < 0) {
			listener_fini(listener);
			return fd;
		}
		listener->fd = fd;
	}
	uv_timer_init(loop, &listener->look);
	listener->look.data = listener;
	uv_unref((uv_handle_t *)&listener->look);
	if (inherited < 0)
		listener_own_path(listener);
	if (uv_poll_init(loop, &listener->poll, listener->fd) != 0) {
		complain(listener, "poll");
		listener_fini(listener);
		return -TG_ESYSTEM;
	}
	keep_spare(listener);
	uv_poll_start(&listener->poll, UV_READABLE, on_readable);
	return 0;
}

void
listener_resume(struct listener *listener)
{
	uv_poll_start(&listener->poll, UV_READABLE, on_readable);
}

void
listener_fini(struct listener *listener)
{
	if (listener->poll.loop != NULL && !uv_is_closing((uv_handle_t *)&listener->poll))
		uv_close((uv_handle_t *)&listener->poll, NULL);
	if (listener->look.loop != NULL && !uv_is_closing((uv_handle_t *)&listener->look))
		uv_close((uv_handle_t *)&listener->look, NULL);
	/* First the path: once this socket is closed, the next daemon may have made its own there. */
	if (listener->owns_path && is_ours(listener))
		unlink(listener->path);
	if (listener->fd >= 0)
		close(listener->fd);
	if (listener->spare >= 0)
		close(listener->spare);
	listener->fd = listener->spare = -1;
	listener->owns_path = 0;
}
