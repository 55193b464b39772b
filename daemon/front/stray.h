/*
 * Descriptors whose close may take as long as a client likes.
 *
 * close() of the last descriptor of a TCP socket that lingers waits for its peer, that of a memfd of many gigabytes
 * frees them first, and that of a unix socket does all this for the descriptors in packets nobody has read. So it is
 * done by a few threads that nothing else needs. A signal interrupts the wait of sockets that linger every 50 ms
 * (measured: one signal ends that of all sockets in a packet); what no signal interrupts holds up other descriptors
 * of this kind alone.
 *
 * Each stays charged to its user until it is closed, so that limits.descriptors_per_user bounds how many there are.
 *
 * Owner: the process. stray_close and the others are called by the loop's thread.
 */
#ifndef TG_DAEMON_STRAY_H
#define TG_DAEMON_STRAY_H

struct account;
struct accounts;

/* Closes fd on a thread, and charges it to the account until then. */
void stray_close(int fd, struct account *account);

/* Refunds what has been closed meanwhile. */
void stray_reap(void);

/* These accounts are about to go: what is not closed yet is charged to none of them any more. */
void stray_leave(const struct accounts *accounts);

#endif
