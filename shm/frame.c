#include "frame.h"

#include "error.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* CMSG_SPACE rounds up: there is room for one descriptor more than a frame may carry. */
union fd_control {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(FRAME_FDS * sizeof(int))];
};

void
frame_init(struct frame *frame, enum frame_type type, uint32_t serial)
{
	memset(frame, 0, sizeof(*frame));
	frame->magic = FRAME_MAGIC;
	frame->abi = LANE_ABI;
	frame->type = type;
	frame->serial = serial;
}

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
frame_send(int fd, const struct frame *frame, const int *fds, unsigned nfds)
{
	struct iovec iov = { .iov_base = (void *)(uintptr_t)frame, .iov_len = sizeof(*frame) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	union fd_control control;
	ssize_t n;

	if (nfds > FRAME_FDS)
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

static void
close_fds(int fds[FRAME_FDS])
{
	for (unsigned i = 0; i < FRAME_FDS; i++) {
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
take_fds(struct msghdr *msg, int fds[FRAME_FDS])
{
	unsigned taken = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c != NULL; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (taken < FRAME_FDS)
				fds[taken] = fd;
			else
				close(fd);
			taken++;
		}
	}
	return taken;
}

int
frame_recv(int fd, struct frame *frame, int fds[FRAME_FDS])
{
	struct iovec iov = { .iov_base = frame, .iov_len = sizeof(*frame) };
	union fd_control control;
	struct msghdr msg = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes) };
	ssize_t n;
	int rc;

	for (unsigned i = 0; i < FRAME_FDS; i++)
		fds[i] = -1;
	memset(frame, 0, sizeof(*frame));
	do
		n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_from_errno();
	unsigned count = take_fds(&msg, fds);
	if (n == 0) {
		rc = -TG_ECLOSED;
		goto refuse;
	}
	if ((size_t)n < offsetof(struct frame, u) || frame->magic != FRAME_MAGIC) {
		rc = -TG_EPROTOCOL;
		goto refuse;
	}
	if (frame->abi != LANE_ABI) {
		rc = -TG_EVERSION;
		goto refuse;
	}
	if ((size_t)n != sizeof(*frame) || (msg.msg_flags & MSG_TRUNC) != 0 || count > FRAME_FDS) {
		rc = -TG_EPROTOCOL;
		goto refuse;
	}
	if ((msg.msg_flags & MSG_CTRUNC) != 0) {
		rc = -TG_ELIMIT; /* there was room in control: it is this process that has no more */
		goto refuse;
	}
	if (frame->type == FRAME_ERROR)
		frame->u.error.text[FRAME_TEXT - 1] = '\0';
	if (frame->type == FRAME_LANE_OPEN || frame->type == FRAME_LANE_RETURN) {
		frame->u.open.pool[sizeof(frame->u.open.pool) - 1] = '\0';
		frame->u.open.name[sizeof(frame->u.open.name) - 1] = '\0';
	}
	return 0;
refuse:
	close_fds(fds);
	return rc;
}
