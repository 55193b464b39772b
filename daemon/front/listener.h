/*
 * A listening unix socket: the control socket's and the admin socket's.
 *
 * Owner: main. One thread.
 */
#ifndef TG_DAEMON_LISTENER_H
#define TG_DAEMON_LISTENER_H

#include "daemon/base/log.h"

#include <sys/types.h>
#include <uv.h>

struct listener {
	uv_poll_t poll;
	int fd;
	int spare;     /* given up to take, and let go, a connection that finds no descriptor left; -1: none */
	int type;      /* SOCK_SEQPACKET or SOCK_STREAM */
	int owns_path; /* bound by us: made anew when it is gone, and unlinked at the end if it is still ours */
	char path[108];
	mode_t mode;
	const char *group;
	uv_timer_t look; /* whether the path still leads to us */
	dev_t dev;       /* of the path when it was ours */
	ino_t ino;
	int lost;                              /* it does not, and that was said */
	void (*accepted)(void *owner, int fd); /* takes the descriptor over */
	void (*turned_away)(
	    void *owner, int fd); /* tells one that finds no descriptor left; NULL: it reads an end */
	int (*may_accept)(
	    void *owner); /* asked before each; on 0 it is silent until listener_resume. NULL: always */
	struct log_limit accept_limit, bind_limit;
	void *owner;
};

/*
 * Listens on path, or takes over `inherited` (a listening socket from the service manager; -1:
 * none). A socket file on which no process listens is replaced; one with a listener, or one that another
 * daemon is about to make, is an error.
 * mode: of the file. group: its group if that exists (NULL: unchanged). Returns 0 or -TG_ESYSTEM
 * after saying why in the log.
 */
int listener_init(struct listener *listener, uv_loop_t *loop, const char *path, int type, mode_t mode,
    const char *group, int inherited, void (*accepted)(void *owner, int fd), void *owner);
void listener_fini(struct listener *listener);

/* The path of an inherited socket is ours from now on, as those are that we have bound. */
void listener_own_path(struct listener *listener);

/* Accepts again, after may_accept has said no. */
void listener_resume(struct listener *listener);

#endif
