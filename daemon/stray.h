/*
 * Descriptors that a stranger has sent and nobody wants.
 *
 * close() may take as long as who sent them likes: a TCP socket that lingers, a file of his own FUSE
 * server, a memfd of many gigabytes. So it is done by threads that nothing else needs. When all of them
 * are held up, what comes meanwhile stays open until one is not; the process's limit on descriptors
 * bounds that.
 *
 * Owner: the process. Threads: any.
 */
#ifndef TG_DAEMON_STRAY_H
#define TG_DAEMON_STRAY_H

/* Closes fd, some time. */
void stray_close(int fd);

#endif
