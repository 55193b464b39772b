/* Control frames over a socket pair: good frames arrive, bad ones are refused, no descriptor leaks. */
#include "shm_test.h"

#include "shm/frame.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

struct pair {
	int a, b;
	unsigned fds_before;
};

static int
setup(void **state)
{
	static struct pair p;
	int fds[2];

	p.fds_before = count_fds();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds), 0);
	p.a = fds[0];
	p.b = fds[1];
	*state = &p;
	return 0;
}

static int
teardown(void **state)
{
	struct pair *p = *state;

	if (p->a >= 0)
		close(p->a);
	if (p->b >= 0)
		close(p->b);
	assert_int_equal(count_fds(), p->fds_before);
	return 0;
}

/* Sends any bytes with any number of descriptors, as a hostile peer would. */
static void
send_raw(int fd, const void *bytes, size_t len, unsigned nfds)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(64 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)bytes, .iov_len = len };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int fds[64];

	assert_true(nfds <= 64);
	for (unsigned i = 0; i < nfds; i++)
		fds[i] = eventfd(0, EFD_CLOEXEC);
	if (nfds > 0) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(nfds * sizeof(int));
		memcpy(CMSG_DATA(c), fds, nfds * sizeof(int));
	}
	assert_int_equal(sendmsg(fd, &msg, MSG_NOSIGNAL), (ssize_t)len);
	for (unsigned i = 0; i < nfds; i++)
		close(fds[i]);
}

/* Receives, expects this answer and no descriptor. */
static void
expect_refused(int fd, int rc, struct frame *frame)
{
	struct frame own;
	int fds[FRAME_FDS] = { 100, 100, 100 };
	unsigned before = count_fds();

	assert_int_equal(frame_recv(fd, frame != NULL ? frame : &own, fds), rc);
	for (unsigned i = 0; i < FRAME_FDS; i++)
		assert_int_equal(fds[i], -1);
	assert_int_equal(count_fds(), before);
}

static void
frame_arrives_whole(void **state)
{
	struct pair *p = *state;
	struct frame sent, got;
	int fds[FRAME_FDS];

	frame_init(&sent, FRAME_LANE_OPEN, 42);
	sent.u.open.sq_bytes = UINT64_C(1) << 40;
	sent.u.open.cq_entries = 77;
	strcpy(sent.u.open.pool, "events");
	assert_int_equal(frame_send(p->a, &sent, NULL, 0), 0);
	assert_int_equal(frame_recv(p->b, &got, fds), 0);
	assert_memory_equal(&sent, &got, sizeof(sent));
	for (unsigned i = 0; i < FRAME_FDS; i++)
		assert_int_equal(fds[i], -1);
}

static void
descriptors_arrive_in_order_and_close_on_exec(void **state)
{
	struct pair *p = *state;

	for (unsigned n = 1; n <= FRAME_FDS; n++) {
		struct frame sent, got;
		int out[FRAME_FDS], in[FRAME_FDS];

		for (unsigned i = 0; i < n; i++)
			out[i] = eventfd(100 + i, 0);
		frame_init(&sent, FRAME_LANE_OPENED, n);
		assert_int_equal(frame_send(p->a, &sent, out, n), 0);
		assert_int_equal(frame_recv(p->b, &got, in), 0);
		for (unsigned i = 0; i < FRAME_FDS; i++) {
			eventfd_t value;

			if (i >= n) {
				assert_int_equal(in[i], -1);
				continue;
			}
			assert_int_equal(eventfd_read(in[i], &value), 0);
			assert_int_equal(value, 100 + i);
			assert_true((fcntl(in[i], F_GETFD) & FD_CLOEXEC) != 0);
			close(in[i]);
			close(out[i]);
		}
	}
}

static void
send_refuses_more_descriptors_than_a_frame_carries(void **state)
{
	struct pair *p = *state;
	struct frame f;
	int out[FRAME_FDS + 1] = { p->a, p->a, p->a, p->a };

	frame_init(&f, FRAME_LANE_OPENED, 1);
	assert_int_equal(frame_send(p->a, &f, out, FRAME_FDS + 1), -TG_EINVAL);
	expect_refused(p->b, -TG_EAGAIN, NULL);
}

static void
too_many_descriptors_are_refused_and_closed(void **state)
{
	struct pair *p = *state;
	struct frame f;

	for (unsigned n = FRAME_FDS + 1; n <= 64; n++) {
		frame_init(&f, FRAME_LANE_RETURN, n);
		send_raw(p->a, &f, sizeof(f), n);
		expect_refused(p->b, -TG_EPROTOCOL, NULL);
	}
}

static void
packet_of_any_wrong_length_is_refused(void **state)
{
	struct pair *p = *state;
	char bytes[2 * sizeof(struct frame)] = { 0 };
	struct frame f;

	frame_init(&f, FRAME_LANE_CLOSE, 3);
	memcpy(bytes, &f, sizeof(f));
	for (size_t len = 1; len <= sizeof(bytes); len++) {
		if (len == sizeof(f))
			continue;
		send_raw(p->a, bytes, len, len % (FRAME_FDS + 1));
		expect_refused(p->b, -TG_EPROTOCOL, NULL);
	}
}

static void
empty_packet_is_a_closed_peer(void **state)
{
	struct pair *p = *state;

	send_raw(p->a, "", 0, 2);
	expect_refused(p->b, -TG_ECLOSED, NULL);
}

static void
wrong_magic_is_refused(void **state)
{
	struct pair *p = *state;
	struct frame f;

	frame_init(&f, FRAME_LANE_CLOSE, 3);
	for (unsigned bit = 0; bit < 32; bit++) {
		struct frame bad = f;

		bad.magic ^= UINT32_C(1) << bit;
		send_raw(p->a, &bad, sizeof(bad), 3);
		expect_refused(p->b, -TG_EPROTOCOL, NULL);
	}
}

/* A version we do not know may have frames of any length; its head is enough to answer it. */
static void
other_abi_is_named_whatever_its_length(void **state)
{
	struct pair *p = *state;
	char bytes[2 * sizeof(struct frame)] = { 0 };
	struct frame f, got;

	frame_init(&f, FRAME_LANE_OPEN, 4711);
	f.abi = LANE_ABI + 1;
	memcpy(bytes, &f, sizeof(f));
	for (size_t len = offsetof(struct frame, u); len <= sizeof(bytes); len += 4) {
		send_raw(p->a, bytes, len, 1);
		expect_refused(p->b, -TG_EVERSION, &got);
		assert_int_equal(got.serial, 4711);
	}
}

static void
random_packets_are_refused_or_terminated(void **state)
{
	struct pair *p = *state;
	struct random r = random_seeded("random_packets_are_refused_or_terminated");

	for (unsigned i = 0; i < 20000; i++) {
		union {
			struct frame f;
			uint64_t words[2 * sizeof(struct frame) / 8];
		} u;
		size_t len = random_below(&r, 2) ? sizeof(u.f) : 1 + random_below(&r, sizeof(u) - 1);
		unsigned before = count_fds(), came = 0;
		struct frame got;
		int fds[FRAME_FDS];

		for (size_t w = 0; w < sizeof(u) / 8; w++)
			u.words[w] = random_next(&r) | UINT64_C(0x0101010101010101);
		if (random_below(&r, 4) != 0)
			u.f.magic = FRAME_MAGIC;
		if (random_below(&r, 4) != 0)
			u.f.abi = LANE_ABI;
		if (random_below(&r, 2) != 0)
			u.f.type = (uint32_t)random_below(&r, 9);
		send_raw(p->a, &u, len, (unsigned)random_below(&r, 6));
		int rc = frame_recv(p->b, &got, fds);
		for (unsigned k = 0; k < FRAME_FDS; k++)
			came += fds[k] >= 0;
		assert_int_equal(count_fds(), before + came);
		if (rc == 0) {
			if (got.type == FRAME_ERROR)
				assert_true(strnlen(got.u.error.text, FRAME_TEXT) < FRAME_TEXT);
			if (got.type == FRAME_LANE_OPEN)
				assert_true(strnlen(got.u.open.pool, LANE_POOL_NAME) < LANE_POOL_NAME &&
					    strnlen(got.u.open.name, sizeof(got.u.open.name)) <
						sizeof(got.u.open.name));
		} else {
			assert_int_equal(came, 0);
			assert_true(rc == -TG_EPROTOCOL || rc == -TG_EVERSION);
		}
		for (unsigned k = 0; k < FRAME_FDS; k++)
			if (fds[k] >= 0)
				close(fds[k]);
	}
}

static void
closed_peer_is_said_so_both_ways(void **state)
{
	struct pair *p = *state;
	struct frame f;

	frame_init(&f, FRAME_LANE_CLOSE, 1);
	close(p->a);
	p->a = -1;
	expect_refused(p->b, -TG_ECLOSED, NULL);
	assert_int_equal(frame_send(p->b, &f, NULL, 0), -TG_ECLOSED);
}

/* A peer that goes with our frame unread resets the connection instead of ending it. */
static void
peer_that_died_with_unread_frames_is_closed(void **state)
{
	struct pair *p = *state;
	struct frame f;

	frame_init(&f, FRAME_LANE_CLOSE, 1);
	assert_int_equal(frame_send(p->b, &f, &p->b, 1), 0);
	close(p->a);
	p->a = -1;
	expect_refused(p->b, -TG_ECLOSED, NULL);
}

static void
full_socket_says_again_and_loses_nothing(void **state)
{
	struct pair *p = *state;
	struct frame f;
	uint32_t sent = 0;
	int rc;

	frame_init(&f, FRAME_LANE_CLOSE, 0);
	while ((rc = frame_send(p->a, &f, NULL, 0)) == 0 && sent < 1000000)
		f.serial = ++sent;
	assert_int_equal(rc, -TG_EAGAIN);
	for (uint32_t i = 0; i < sent; i++) {
		int fds[FRAME_FDS];

		assert_int_equal(frame_recv(p->b, &f, fds), 0);
		assert_int_equal(f.serial, i);
	}
	expect_refused(p->b, -TG_EAGAIN, NULL);
}

static void
receiver_without_descriptors_is_told_of_its_limit(void **state)
{
	struct pair *p = *state;
	struct rlimit old, none;
	struct frame f;
	int fds[FRAME_FDS];
	int out[FRAME_FDS] = { p->a, p->a, p->a };
	int rc;

	frame_init(&f, FRAME_LANE_OPENED, 1);
	assert_int_equal(frame_send(p->a, &f, out, FRAME_FDS), 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	int next = dup(p->a); /* one descriptor more fits, three do not */
	none.rlim_cur = (rlim_t)next + 1;
	close(next);
	unsigned before = count_fds();
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	rc = frame_recv(p->b, &f, fds);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(rc, -TG_ELIMIT);
	assert_int_equal(count_fds(), before);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(frame_arrives_whole, setup, teardown),
		cmocka_unit_test_setup_teardown(descriptors_arrive_in_order_and_close_on_exec, setup, teardown),
		cmocka_unit_test_setup_teardown(
		    send_refuses_more_descriptors_than_a_frame_carries, setup, teardown),
		cmocka_unit_test_setup_teardown(too_many_descriptors_are_refused_and_closed, setup, teardown),
		cmocka_unit_test_setup_teardown(packet_of_any_wrong_length_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(empty_packet_is_a_closed_peer, setup, teardown),
		cmocka_unit_test_setup_teardown(wrong_magic_is_refused, setup, teardown),
		cmocka_unit_test_setup_teardown(other_abi_is_named_whatever_its_length, setup, teardown),
		cmocka_unit_test_setup_teardown(random_packets_are_refused_or_terminated, setup, teardown),
		cmocka_unit_test_setup_teardown(closed_peer_is_said_so_both_ways, setup, teardown),
		cmocka_unit_test_setup_teardown(peer_that_died_with_unread_frames_is_closed, setup, teardown),
		cmocka_unit_test_setup_teardown(full_socket_says_again_and_loses_nothing, setup, teardown),
		cmocka_unit_test_setup_teardown(
		    receiver_without_descriptors_is_told_of_its_limit, setup, teardown),
	};

	return cmocka_run_group_tests_name("frame", tests, NULL, NULL);
}
