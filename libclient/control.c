/*
 * The control socket: one request, one answer, in order. A client that gave up waiting for an
 * answer finds it in front of the next one; serials tell them apart.
 */
#include "internal.h"

#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static void
fds_close(int fds[FRAME_FDS])
{
	for (unsigned i = 0; i < FRAME_FDS; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}

/* Moves those that came as a standard descriptor, which the program does not have. 0, or -TG_ELIMIT and none is left. */
static int
fds_settle(int fds[FRAME_FDS])
{
	for (unsigned i = 0; i < FRAME_FDS; i++) {
		if (fds[i] < 0 || (fds[i] = fd_above_standard(fds[i])) >= 0)
			continue;
		fds_close(fds);
		return -TG_ELIMIT;
	}
	return 0;
}

static int
fd_await(const struct tg_client *client, short events, uint64_t deadline)
{
	struct pollfd p = { .fd = client->fd, .events = events };
	int n = clock_poll(&p, 1, deadline);

	if (n == 0)
		return detail_fail(-TG_ETIMEOUT, "socket %s: no answer from tidegated in %u ms", client->path,
		    client->timeout_ms);
	if (n < 0 && errno != EINTR)
		return detail_fail(-TG_ESYSTEM, "socket %s: poll: %s", client->path, strerror(errno));
	return 0;
}

static int
transport_fail(const struct tg_client *client, int rc, const struct frame *answer)
{
	switch (rc) {
	case -TG_ECLOSED:
		return detail_fail(rc, "socket %s: tidegated closed the connection", client->path);
	case -TG_EVERSION:
		return detail_fail(rc, "socket %s: tidegated speaks ABI %u, this library ABI %u", client->path,
		    answer != NULL ? answer->abi : 0, LANE_ABI);
	case -TG_EPROTOCOL:
		return detail_fail(rc, "socket %s: the answer is not a tidegate frame", client->path);
	case -TG_ESYSTEM:
		return detail_fail(rc, "socket %s: %s", client->path, strerror(errno));
	case -TG_ELIMIT:
		return detail_fail(
		    rc, "socket %s: this process has no descriptors left for a lane's three", client->path);
	default:
		return detail_fail(rc, "socket %s: %s", client->path, error_text(rc));
	}
}

static int
frame_post(
    struct tg_client *client, const struct frame *request, const int *fds, unsigned nfds, uint64_t deadline)
{
	int rc;

	while ((rc = frame_send(client->fd, request, fds, nfds)) == -TG_EAGAIN)
		if ((rc = fd_await(client, POLLOUT, deadline)) < 0)
			return rc;
	return rc < 0 ? transport_fail(client, rc, NULL) : 0;
}

/* A lane whose opener has given up, or cannot have it: hand it back. Its answer will be a late one, too. */
static void
late_answer(struct tg_client *client, const struct frame *answer)
{
	struct frame request;

	if (answer->type != FRAME_LANE_OPENED)
		return;
	frame_init(&request, FRAME_LANE_CLOSE, answer->serial);
	request.u.lane.lane_id = answer->u.lane.lane_id;
	(void)frame_send(client->fd, &request, NULL, 0); /* if it fails, the next request does */
}

/* Not an answer: why the daemon does not want this connection, before it closes it. */
static int
is_farewell(const struct frame *answer)
{
	return answer->type == FRAME_ERROR && answer->serial == 0;
}

/*
 * Reads the daemon's last words after it closed the connection; a reset comes first if it had not read our request.
 * 0, or why there are none.
 */
static int
farewell_take(struct tg_client *client, struct frame *answer)
{
	int fds[FRAME_FDS];
	int rc = frame_recv(client->fd, answer, fds);

	if (rc == -TG_ECLOSED)
		rc = frame_recv(client->fd, answer, fds);
	fds_close(fds);
	if (rc == -TG_EVERSION)
		return transport_fail(client, rc, answer);
	return rc == 0 && is_farewell(answer) ? 0 : -TG_ECLOSED;
}

static int
frame_take(
    struct tg_client *client, struct frame *answer, uint32_t serial, int fds[FRAME_FDS], uint64_t deadline)
{
	for (;;) {
		int rc = fd_await(client, POLLIN, deadline);

		if (rc < 0)
			return rc;
		rc = frame_recv(client->fd, answer, fds);
		if (rc == -TG_EAGAIN)
			continue;
		if (rc == 0)
			rc = fds_settle(fds);
		if (rc == -TG_ELIMIT && answer->magic == FRAME_MAGIC && answer->abi == LANE_ABI)
			late_answer(client, answer); /* its descriptors found no room here */
		if (rc < 0)
			return transport_fail(client, rc, answer);
		if (answer->serial == serial || is_farewell(answer))
			return 0;
		fds_close(fds);
		if ((int32_t)(answer->serial - serial) > 0)
			return detail_fail(-TG_EPROTOCOL,
			    "socket %s: an answer to request %u, the last one was %u", client->path,
			    answer->serial, serial);
		late_answer(client, answer);
	}
}

static int
answer_check(const struct tg_client *client, const struct frame *answer, enum frame_type expect)
{
	int code = answer->u.error.code;

	if (answer->type == expect)
		return 0;
	if (answer->type != FRAME_ERROR)
		return detail_fail(-TG_EPROTOCOL, "socket %s: an answer of type %u where %u was due",
		    client->path, answer->type, (unsigned)expect);
	if (code < TG_EAGAIN || code > TG_ESTOPPING)
		return detail_fail(-TG_EPROTOCOL,
		    "socket %s: tidegated answered with error %d, which has no meaning: %s", client->path, code,
		    answer->u.error.text);
	return detail_fail(
	    -code, "%s", answer->u.error.text[0] != '\0' ? answer->u.error.text : error_text(code));
}

int
control_request(struct tg_client *client, struct frame *request, struct frame *answer, enum frame_type expect,
    int fds[FRAME_FDS])
{
	return control_request_fds(client, request, NULL, 0, answer, expect, fds);
}

int
control_say(struct tg_client *client, struct frame *frame)
{
	frame->serial = ++client->serial;
	return frame_post(client, frame, NULL, 0, clock_deadline((int)client->timeout_ms));
}

int
control_request_fds(struct tg_client *client, struct frame *request, const int *send, unsigned nsend,
    struct frame *answer, enum frame_type expect, int fds[FRAME_FDS])
{
	uint64_t deadline = clock_deadline((int)client->timeout_ms);
	int rc;

	for (unsigned i = 0; i < FRAME_FDS; i++)
		fds[i] = -1;
	memset(answer, 0, sizeof(*answer));
	request->serial = ++client->serial;
	rc = frame_post(client, request, send, nsend, deadline);
	if (rc == 0)
		rc = frame_take(client, answer, request->serial, fds, deadline);
	if (rc == -TG_ECLOSED)
		rc = farewell_take(client, answer);
	if (rc < 0)
		return rc;
	if ((rc = answer_check(client, answer, expect)) < 0)
		fds_close(fds);
	return rc;
}
