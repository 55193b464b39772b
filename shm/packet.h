/*
 * One packet of a SOCK_SEQPACKET socket with the descriptors that go along.
 *
 * It carries both kinds of frames: the control socket's (frame.h) and those of one daemon to its
 * successor. They define the meaning of the bytes.
 */
#ifndef TG_SHM_PACKET_H
#define TG_SHM_PACKET_H

#include <stddef.h>
#include <sys/types.h>

#define PACKET_FDS 3u /* most descriptors in a packet */

/*
 * Sends it whole; the descriptors stay the caller's. Returns 0, -TG_ECLOSED when the peer is gone,
 * -TG_EAGAIN when a non-blocking socket is full, -TG_EINVAL for more than PACKET_FDS, -TG_ESYSTEM
 * with errno set.
 */
int packet_send(int fd, const void *bytes, size_t len, const int *fds, unsigned nfds);

/*
 * Receives one of at most size bytes. fds are set to the descriptors that came, close-on-exec, the
 * caller's, or -1. Returns its length; -TG_ECLOSED at the end, -TG_EAGAIN, -TG_EPROTOCOL for one that is too long
 * or has too many descriptors, -TG_ELIMIT when this process could not take them all, -TG_ESYSTEM: then
 * no descriptor is kept. close() of one that came may take as long as the peer likes: for peers that are trusted;
 * the daemon reads its clients' sockets in another way (inlet.h).
 */
ssize_t packet_recv(int fd, void *bytes, size_t size, int fds[PACKET_FDS]);

/* Closes those that are open and sets them to -1. */
void packet_close_fds(int fds[PACKET_FDS]);

#endif
