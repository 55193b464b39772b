#include "packet.h"

#include "error.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define FDS_MAX 253u /* the kernel's limit for one packet (SCM_MAX_FD) */

union fd_control {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(PACKET_FDS * sizeof(int))];
};

/* Room for all that can come: a descriptor is cut off only when this process can open no more. */
union fd_control_any {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(FDS_MAX * sizeof(int))];
};

static int
error_from_errno(void)
{
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return -TG_EAGAIN;
	if (errno == EPIPE || errno == ECONNRESET || errno == ENOTCONN)
		return -TG_ECLOSED;
	return -TG_ESYSTEM;
}

int
packet_send(int fd, const void *bytes, size_t len, const int *fds, unsigned nfds)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union fd_control control;
	ssize_t n;

	if (nfds > PACKET_FDS)
		return -TG_EINVAL;
	if (nfds > 0) {
		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
		cmsg->cmsg_level = SOL_SOCKET;
		cmsg->cmsg_type = SCM_RIGHTS;
		cmsg->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(cmsg), fds, nfds * sizeof(int));
	}
	do
		n = sendmsg(fd, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? error_from_errno() : 0;
}

void
packet_close_fds(int fds[PACKET_FDS])
{
	for (unsigned i = 0; i < PACKET_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/*
 * The kernel has installed them already: take each one, even of a packet that will be refused.
 * Returns how many came, those included that found no place in fds and were closed.
 */
static unsigned
take_fds(struct msghdr *msg, int fds[PACKET_FDS])
{
	unsigned taken = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (taken < PACKET_FDS)
				fds[taken] = fd;
			else
				close(fd);
			taken++;
		}
	}
	return taken;
}

ssize_t
packet_recv(int fd, void *bytes, size_t size, int fds[PACKET_FDS])
{
	struct iovec iov = { .iov_base = bytes, .iov_len = size };
	union fd_control_any control;
	struct msghdr msg = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes) };
	ssize_t n;

	for (unsigned i = 0; i < PACKET_FDS; i++)
		fds[i] = -1;
	do
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_from_errno();
	unsigned count = take_fds(&msg, fds);
	if (n == 0)
		n = -TG_ECLOSED;
	else if ((msg.msg_flags & MSG_TRUNC) != 0 || count > PACKET_FDS)
		n = -TG_EPROTOCOL;
	else if ((msg.msg_flags & MSG_CTRUNC) != 0)
		n = -TG_ELIMIT; /* there was room in control: it is this process that has no more */
	if (n < 0)
		packet_close_fds(fds);
	return n;
}
