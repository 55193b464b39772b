/* TLS over sockets in memory: data arrives whole however it is cut, and every end has a reason. */
#include "tls_rig.h"

#include <errno.h>
#include <string.h>

#define BIG (1u << 20)

/* The plaintext the server has decrypted so far. */
static size_t
server_reads(uint8_t *bytes, size_t room)
{
	size_t done = 0, n;

	ERR_clear_error();
	while (done < room && SSL_read_ex(rig.server, bytes + done, room - done, &n) == 1)
		done += n;
	return done;
}

static void
fill(uint8_t *bytes, size_t len, unsigned seed)
{
	for (size_t i = 0; i < len; i++)
		bytes[i] = (uint8_t)((seed = seed * 1103515245u + 12345u) >> 16);
}

static const char *const versions[] = { "1.2", "1.3" };

static size_t
step_client(const struct iovec *message, size_t sent, uint8_t *in, size_t *in_len, size_t in_room)
{
	struct iovec rest[3];
	size_t skip = sent;
	int count = 0;

	for (int i = 0; i < 3; i++) {
		if (skip >= message[i].iov_len) {
			skip -= message[i].iov_len;
			continue;
		}
		rest[count++] = (struct iovec){ .iov_base = (uint8_t *)message[i].iov_base + skip,
			.iov_len = message[i].iov_len - skip };
		skip = 0;
	}
	ssize_t n = tls_writev(rig.tls, rest, count);
	assert_true(n >= 0 || errno == EAGAIN);
	ssize_t got = tls_read(rig.tls, in + *in_len, in_room - *in_len);
	assert_true(got > 0 || errno == EAGAIN);
	*in_len += got > 0 ? (size_t)got : 0;
	return n > 0 ? (size_t)n : 0;
}

/*
 * Shakes hands and sends `len` bytes each way, the socket returning EAGAIN after every `cut` bytes in one
 * direction. At every moment the reported count of written bytes is exactly what the server can decrypt.
 */
static size_t
converse(size_t len, size_t write_cut, size_t read_cut, size_t step)
{
	static uint8_t out[BIG], in[BIG], back[BIG], seen[BIG];
	struct iovec message[3] = { { out, 1 }, { out + 1, len / 3 },
		{ out + 1 + len / 3, len - 1 - len / 3 } };
	size_t sent = 0, decrypted = 0, in_len = 0, answered = 0;
	int secured = 0;

	fill(out, len, 1);
	fill(back, len, 2);
	connect_rig(NAME);
	rig.sock.step = step;
	rig.sock.write_room = write_cut;
	rig.sock.read_room = read_cut;
	for (unsigned turn = 0; sent < len || in_len < len; turn++) {
		assert_true(turn < 1000);
		if (turn == 3) /* it had the chance to notice: the socket works again */
			rig.sock.write_room = rig.sock.read_room = SIZE_MAX;
		if (!secured) {
			secured = tls_handshake(rig.tls);
			assert_true(secured >= 0);
		}
		if (secured)
			sent += step_client(message, sent, in, &in_len, len);
		decrypted += server_reads(seen + decrypted, sizeof(seen) - decrypted);
		assert_int_equal(sent, decrypted);
		if (SSL_is_init_finished(rig.server) && answered < len) {
			size_t n = 0;
			assert_int_equal(
			    SSL_write_ex(rig.server, back + answered, least(len - answered, 5000), &n), 1);
			answered += n;
		}
	}
	assert_memory_equal(seen, out, len);
	assert_memory_equal(in, back, len);
	assert_int_equal(tls_unsent(rig.tls), 0);
	size_t bytes = BIO_number_written(rig.sock.to_server);
	disconnect_rig();
	return bytes;
}

static void
everything_arrives_byte_by_byte(void **state)
{
	for (int v = 0; v < 2; v++) {
		start(versions[v]);
		for (size_t step = 1; step < 40; step += 3)
			converse(4000, SIZE_MAX, SIZE_MAX, step);
		converse(BIG, SIZE_MAX, SIZE_MAX, 4097);
		stop();
	}
}

static void
everything_arrives_cut_at_every_byte(void **state)
{
	for (int v = 0; v < 2; v++) {
		start(versions[v]);
		size_t total = converse(200, SIZE_MAX, SIZE_MAX, SIZE_MAX);
		assert_true(total > 400);
		for (size_t cut = 0; cut < total; cut++)
			converse(200, cut, SIZE_MAX, SIZE_MAX);
		for (size_t cut = 0; cut < 2000; cut++)
			converse(200, SIZE_MAX, cut, SIZE_MAX);
		stop();
	}
}

static void
full_records_cut_anywhere_are_reported_when_whole(void **state)
{
	start("1.3");
	for (size_t cut = 700; cut < 150000; cut += 1237)
		converse(140000, cut, SIZE_MAX, SIZE_MAX);
	stop();
}

/* A producer may change its body while its record waits in the socket. */
static void
encrypted_bytes_are_not_read_again(void **state)
{
	static uint8_t body[60000], seen[60000], was[60000];
	struct iovec iov = { body, sizeof(body) };

	start("1.3");
	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	finish_shaking();
	fill(body, sizeof(body), 7);
	memcpy(was, body, sizeof(body));
	rig.sock.write_room = 20000;
	assert_int_equal(tls_writev(rig.tls, &iov, 1), 16384);
	assert_true(tls_unsent(rig.tls) > 40000);
	memset(body, 0xee, sizeof(body));
	rig.sock.write_room = SIZE_MAX;
	iov = (struct iovec){ body + 16384, sizeof(body) - 16384 };
	assert_int_equal(tls_writev(rig.tls, &iov, 1), (int)sizeof(body) - 16384);
	assert_int_equal(server_reads(seen, sizeof(seen)), sizeof(seen));
	assert_memory_equal(seen, was, sizeof(seen));
	disconnect_rig();
	stop();
}

/* No data stays inside OpenSSL that the socket will not announce. */
static void
a_bounded_read_leaves_the_rest_to_the_socket(void **state)
{
	static uint8_t back[BIG], in[BIG];
	size_t in_len = 0;

	for (int v = 0; v < 2; v++) {
		start(versions[v]);
		connect_rig(NAME);
		assert_int_equal(shake(), 1);
		finish_shaking();
		fill(back, sizeof(back), 3);
		for (size_t at = 0, n = 0; at < sizeof(back); at += n)
			assert_int_equal(SSL_write_ex(rig.server, back + at, sizeof(back) - at, &n), 1);
		for (in_len = 0; in_len < sizeof(in);) {
			tls_may_read(rig.tls, 100000);
			for (;;) {
				ssize_t n = tls_read(rig.tls, in + in_len, least(sizeof(in) - in_len, 7001));
				if (n < 0)
					break;
				in_len += (size_t)n;
			}
			assert_int_equal(errno, EAGAIN);
			/* All records but the last, which is cut, have come out. */
			size_t taken = BIO_number_read(rig.sock.to_client);
			assert_true(
			    in_len + 17000 + 4000 + (taken / 16384 + 1) * 64 >= taken || in_len == sizeof(in));
		}
		assert_memory_equal(in, back, sizeof(back));
		disconnect_rig();
		stop();
	}
}

static void
a_key_update_is_answered_when_the_socket_has_room(void **state)
{
	uint8_t in[8], seen[8];
	struct iovec iov = { (void *)(uintptr_t) "after", 5 };
	size_t n;

	start("1.3");
	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	finish_shaking();
	rig.sock.write_room = 0;
	for (int i = 0; i < 5; i++) {
		SSL_key_update(rig.server, SSL_KEY_UPDATE_REQUESTED);
		assert_int_equal(SSL_write_ex(rig.server, "x", 1, &n), 1);
		assert_int_equal(tls_read(rig.tls, in, sizeof(in)), 1);
		assert_int_equal(tls_writev(rig.tls, &iov, 1), -1); /* its reply is written first */
		assert_int_equal(errno, EAGAIN);
		assert_true(tls_unsent(rig.tls) > 0);
	}
	rig.sock.write_room = SIZE_MAX;
	assert_int_equal(tls_writev(rig.tls, &iov, 1), 5);
	assert_int_equal(server_reads(seen, sizeof(seen)), 5);
	assert_int_equal(SSL_write_ex(rig.server, "y", 1, &n), 1);
	assert_int_equal(tls_read(rig.tls, in, sizeof(in)), 1);
	disconnect_rig();
	stop();
}

static void
the_end_comes_after_the_data(void **state)
{
	char in[16];
	size_t n;

	for (int how = 0; how < 3; how++) {
		start("1.3");
		connect_rig(NAME);
		assert_int_equal(shake(), 1);
		finish_shaking();
		assert_int_equal(SSL_write_ex(rig.server, "last", 4, &n), 1);
		if (how == 0)
			SSL_shutdown(rig.server);
		else if (how == 1)
			rig.sock.eof = 1;
		else
			BIO_write(
			    rig.sock.to_client, "\x17\x03\x03\x00\x20 this was never encrypted       ", 37);
		assert_int_equal(tls_read(rig.tls, in, sizeof(in)), 4);
		assert_true(tls_has_ended(rig.tls));
		ssize_t end = tls_read(rig.tls, in, sizeof(in));
		assert_int_equal(end, how == 2 ? -1 : 0);
		if (how == 2) {
			assert_int_equal(errno, EPROTO);
			assert_string_equal(tls_why(rig.tls), "read: decryption failed or bad record mac");
		}
		assert_int_equal(tls_read(rig.tls, in, sizeof(in)), end);
		disconnect_rig();
		stop();
	}
}

static void
a_broken_socket_says_its_errno(void **state)
{
	struct iovec iov = { (void *)(uintptr_t) "x", 1 };
	char in[16];

	start("1.3");
	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	finish_shaking();
	rig.sock.broken = ECONNRESET;
	assert_int_equal(tls_writev(rig.tls, &iov, 1), -1);
	assert_int_equal(errno, ECONNRESET);
	assert_int_equal(tls_read(rig.tls, in, sizeof(in)), -1);
	assert_int_equal(errno, ECONNRESET);
	disconnect_rig();
	connect_rig(NAME);
	rig.sock.broken = EPIPE;
	assert_int_equal(shake(), -1);
	assert_string_equal(tls_why(rig.tls), "handshake: Broken pipe");
	disconnect_rig();
	connect_rig(NAME);
	rig.sock.eof = 1;
	assert_int_equal(shake(), -1);
	assert_string_equal(tls_why(rig.tls), "handshake: closed by the broker");
	disconnect_rig();
	stop();
}

static void
goodbye_is_said_once_secured(void **state)
{
	char seen[4];

	start("1.3");
	connect_rig(NAME);
	tls_goodbye(rig.tls);
	assert_int_equal(BIO_ctrl_pending(rig.sock.to_server), 0);
	assert_int_equal(shake(), 1);
	finish_shaking();
	tls_goodbye(rig.tls);
	ERR_clear_error();
	int rc = SSL_read(rig.server, seen, sizeof(seen));
	assert_int_equal(SSL_get_error(rig.server, rc), SSL_ERROR_ZERO_RETURN);
	disconnect_rig();
	stop();
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_arrives_byte_by_byte),
		cmocka_unit_test(everything_arrives_cut_at_every_byte),
		cmocka_unit_test(full_records_cut_anywhere_are_reported_when_whole),
		cmocka_unit_test(encrypted_bytes_are_not_read_again),
		cmocka_unit_test(a_bounded_read_leaves_the_rest_to_the_socket),
		cmocka_unit_test(a_key_update_is_answered_when_the_socket_has_room),
		cmocka_unit_test(the_end_comes_after_the_data),
		cmocka_unit_test(a_broken_socket_says_its_errno),
		cmocka_unit_test(goodbye_is_said_once_secured),
	};

	return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
