#include "inlet.h"

#include "stray.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEEKED (INLET_FDS + 1) /* descriptors taken to see whether there are more than a request takes */
#define DRAINED 64 /* packets taken out of a socket that is closed; a client that stops reading has fewer */

union room {
	struct cmsghdr head;
	char bytes[CMSG_SPACE(PEEKED * sizeof(int)) > CMSG_SPACE(sizeof(struct ucred))
		       ? CMSG_SPACE(PEEKED * sizeof(int))
		       : CMSG_SPACE(sizeof(struct ucred))];
};

/* Without waiting, and with room for so many bytes of control data. *msg has its flags and control data. */
static ssize_t
receive(int fd, struct frame *frame, int flags, union room *room, size_t room_size, struct msghdr *msg)
{
	static _Thread_local struct iovec iov;
	ssize_t n;

	iov = (struct iovec){ .iov_base = frame, .iov_len = sizeof(*frame) };
	*msg = (struct msghdr){
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = room_size
	};
	do
		n = recvmsg(fd, msg, flags | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	return n;
}

static int
error_from_errno(void)
{
	if (errno == EAGAIN || errno == EWOULDBLOCK)
		return -TG_EAGAIN;
	return errno == ECONNRESET || errno == ENOTCONN ? -TG_ECLOSED : -TG_ESYSTEM;
}

/* A packet that is longer than a frame is none, whatever it begins with. */
static size_t
length(ssize_t n, const struct msghdr *msg)
{
	return (size_t)n + ((msg->msg_flags & MSG_TRUNC) != 0);
}

/* How many memfds go with a request. */
static unsigned
wanted(const struct frame *frame)
{
	return frame->type == FRAME_LANE_OPEN ? 1 : frame->type == FRAME_LANE_RETURN ? 2 : 0;
}

/* Only a file in memory has seals; asking for them never waits, as fstat() of another file may. */
static int
are_memfds(const int *fds, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		if (fcntl(fds[i], F_GET_SEALS) < 0)
			return 0;
	return 1;
}

static unsigned
peeked(struct msghdr *msg, int fds[PEEKED])
{
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);

	if (c == NULL || c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
		return 0;
	unsigned count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
	memcpy(fds, CMSG_DATA(c), count * sizeof(int));
	return count;
}

int
inlet_recv(int fd, struct frame *frame, int fds[INLET_FDS], struct account *account)
{
	int came[PEEKED];
	struct msghdr msg;
	union room room;
	int rc;

	for (unsigned i = 0; i < INLET_FDS; i++)
		fds[i] = -1;
	memset(frame, 0, sizeof(*frame));
	/* CMSG_SPACE would have room for one more: the kernel fills the padding, too. */
	ssize_t n = receive(fd, frame, MSG_PEEK, &room, CMSG_LEN(sizeof(came)), &msg);
	if (n < 0)
		return error_from_errno();
	unsigned count = peeked(&msg, came);
	int cut = (msg.msg_flags & MSG_CTRUNC) != 0;
	if (n == 0 && count == 0 && !cut)
		return -TG_ECLOSED;
	rc = frame_check(frame, length(n, &msg));
	if (rc == 0 && (cut || count > wanted(frame) || !are_memfds(came, count)))
		rc = cut && count < PEEKED ? -TG_ELIMIT : INLET_UNWANTED;
	/* Their other descriptors, if any, are ours: nothing is let go of that could hold us up. */
	if ((rc == 0 || (count == 0 && !cut)) && receive(fd, frame, 0, NULL, 0, &msg) < 0)
		rc = error_from_errno();
	if (rc == 0)
		rc = frame_check(frame, length(n, &msg)); /* the second copy has no end to its strings */
	for (unsigned i = 0; i < count; i++)
		if (rc == 0)
			fds[i] = came[i];
		else
			stray_close(came[i], account);
	return rc;
}

void
inlet_close(int fd, struct account *account)
{
	struct frame frame;
	union room room;
	struct msghdr msg;
	int one = 1;

	/* Nothing can be put into it any more. */
	shutdown(fd, SHUT_RDWR);
	/* Every packet comes with its sender's credentials from here on: an empty one is told from the end by them. */
	if (setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &one, sizeof(one)) != 0)
		goto on_a_thread;
	for (int i = 0; i < DRAINED; i++) {
		ssize_t n = receive(fd, &frame, MSG_PEEK, &room, CMSG_SPACE(sizeof(struct ucred)), &msg);
		if ((msg.msg_flags & MSG_CTRUNC) != 0)
			break;
		if (n < 0 || (n == 0 && msg.msg_controllen == 0)) {
			close(fd);
			return;
		}
		receive(fd, &frame, 0, NULL, 0, &msg);
	}
on_a_thread:
	stray_close(fd, account);
}
