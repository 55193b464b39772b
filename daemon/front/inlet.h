/*
 * How the daemon reads and closes a client's socket: without waiting for what a client has put into it.
 *
 * A packet may carry descriptors, and letting go of the last reference to one may take as long as its sender likes
 * (stray.h): a socket that lingers holds up whoever the kernel has close it, be it close(), a recvmsg() with no room
 * for the descriptor, or the close of the unix socket that the packet still lies in. So a request is looked at first
 * (MSG_PEEK, which drops nothing) and is taken out of the socket only when all that goes with it are the memfds that
 * its type takes, of which the daemon holds descriptors by then. If anything else does, the request is refused, the
 * client is ended, and a thread closes the socket with all that lies in it; of what it sent no more than INLET_FDS + 1
 * descriptors have been installed here.
 *
 * Owner: the client. One thread.
 */
#ifndef TG_DAEMON_INLET_H
#define TG_DAEMON_INLET_H

#include "daemon/lane/account.h"
#include "shm/frame.h"

#define INLET_FDS 2u     /* most that a request takes: the ring and the answers of a lane (frame.h) */
#define INLET_UNWANTED 1 /* descriptors came that the request does not take */

/*
 * Receives one request. fds: the memfds that came with it, the caller's, or -1. Returns 0, -TG_EAGAIN when there
 * is none, or INLET_UNWANTED, -TG_ECLOSED, -TG_EPROTOCOL, -TG_EVERSION, -TG_ESYSTEM, -TG_ELIMIT when this process has
 * no descriptor left for a memfd: after these the client is to be ended; frame->serial is good if the request was a
 * frame.
 */
int inlet_recv(int fd, struct frame *frame, int fds[INLET_FDS], struct account *account);

/* Closes the socket, on a thread if descriptors lie in it. */
void inlet_close(int fd, struct account *account);

#endif
