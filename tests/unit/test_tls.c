/* TLS over sockets in memory: the real client end against OpenSSL's server, cut at every byte. */
#include "daemon/tls.h"

#include "certificates.h"
#include "shm/error.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define NAME "broker.test"
#define BIG (1u << 20)

/* ---- a socket whose other end is here ---- */

struct pipe_sock {
	struct sock sock;
	BIO *to_server, *to_client;
	size_t write_room, read_room; /* before it says EAGAIN */
	size_t step;                  /* most bytes of one call */
	int broken;                   /* errno of all calls; 0: none */
	int eof;                      /* once everything was read */
};

static size_t
least(size_t a, size_t b)
{
	return a < b ? a : b;
}

static ssize_t
pipe_writev(struct sock *sock, const struct iovec *iov, int count)
{
	struct pipe_sock *s = (struct pipe_sock *)sock;
	ssize_t done = 0;

	if (s->broken != 0) {
		errno = s->broken;
		return -1;
	}
	for (int i = 0; i < count; i++) {
		size_t n = least(least(iov[i].iov_len, s->step), s->write_room);
		if (n == 0)
			break;
		assert_int_equal(BIO_write(s->to_server, iov[i].iov_base, (int)n), (int)n);
		s->write_room -= n;
		done += (ssize_t)n;
		if (n < iov[i].iov_len)
			break;
	}
	if (done == 0)
		errno = EAGAIN;
	return done > 0 ? done : -1;
}

static ssize_t
pipe_read(struct sock *sock, void *bytes, size_t len)
{
	struct pipe_sock *s = (struct pipe_sock *)sock;
	size_t n = least(least(len, s->step), least(s->read_room, BIO_ctrl_pending(s->to_client)));

	if (s->broken != 0) {
		errno = s->broken;
		return -1;
	}
	if (n == 0 && s->eof && BIO_ctrl_pending(s->to_client) == 0)
		return 0;
	if (n == 0) {
		errno = EAGAIN;
		return -1;
	}
	assert_int_equal(BIO_read(s->to_client, bytes, (int)n), (int)n);
	s->read_room -= n;
	return (ssize_t)n;
}

static const struct world_ops ops = { .writev = pipe_writev, .read = pipe_read };
static struct world world = { .ops = &ops };

/* ---- both ends ---- */

struct rig {
	struct config_tls config;
	struct tls_context *context;
	struct tls_sessions sessions;
	SSL_CTX *server_context;

	/* one connection */
	struct pipe_sock sock;
	struct tls *tls;
	SSL *server;
};

static struct rig rig;

static void
connect_rig(const char *host)
{
	struct pipe_sock *s = &rig.sock;

	memset(s, 0, sizeof(*s));
	s->sock.world = &world;
	s->to_server = BIO_new(BIO_s_mem());
	s->to_client = BIO_new(BIO_s_mem());
	s->write_room = s->read_room = s->step = SIZE_MAX;
	rig.server = SSL_new(rig.server_context);
	BIO_up_ref(s->to_server);
	BIO_up_ref(s->to_client);
	SSL_set_bio(rig.server, s->to_server, s->to_client);
	SSL_set_accept_state(rig.server);
	rig.tls = tls_new(rig.context, &rig.sessions, &s->sock, host);
	assert_non_null(rig.tls);
	tls_may_read(rig.tls, SIZE_MAX);
}

static void
disconnect_rig(void)
{
	tls_free(rig.tls);
	SSL_set_shutdown(rig.server, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(rig.server);
	BIO_free(rig.sock.to_server);
	BIO_free(rig.sock.to_client);
	rig.tls = NULL;
}

/* Both ends take turns until the client's is done or failed, or nobody has anything to do. */
static int
shake(void)
{
	int rc = 0;

	for (int i = 0; i < 20 && rc == 0; i++) {
		rc = tls_handshake(rig.tls);
		ERR_clear_error();
		SSL_do_handshake(rig.server);
	}
	return rc;
}

static void
finish_shaking(void)
{
	while (!SSL_is_init_finished(rig.server)) {
		ERR_clear_error();
		assert_true(tls_writev(rig.tls, NULL, 0) == 0);
		if (SSL_do_handshake(rig.server) != 1)
			assert_int_equal(SSL_get_error(rig.server, -1), SSL_ERROR_WANT_READ);
	}
}

static void
start(const char *newest)
{
	struct tls_error error;
	int version = newest[2] == '2' ? TLS1_2_VERSION : TLS1_3_VERSION;

	memset(&rig, 0, sizeof(rig));
	certificate_write("server.pem", "server.key", NAME, 30);
	rig.config = (struct config_tls){
		.enabled = 1, .verify = 1, .ca_file = (char *)(uintptr_t)"server.pem", .min_version = TLS1_2_VERSION
	};
	assert_int_equal(tls_context_new(&rig.context, &rig.config, "mqtt", &error), 0);
	rig.server_context = SSL_CTX_new(TLS_server_method());
	SSL_CTX_set_max_proto_version(rig.server_context, version);
	assert_int_equal(SSL_CTX_use_certificate_file(rig.server_context, "server.pem", SSL_FILETYPE_PEM), 1);
	assert_int_equal(SSL_CTX_use_PrivateKey_file(rig.server_context, "server.key", SSL_FILETYPE_PEM), 1);
}

static void
stop(void)
{
	tls_sessions_fini(&rig.sessions);
	tls_context_free(rig.context);
	SSL_CTX_free(rig.server_context);
}

/* What the server decrypts of what has reached it. */
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

/* ---- tests ---- */

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
 * Shakes hands and sends `len` bytes each way, the socket saying EAGAIN when `cut` bytes have gone one
 * way. What is reported as written is exactly what the server could decrypt, at every moment.
 */
static size_t
converse(size_t len, size_t write_cut, size_t read_cut, size_t step)
{
	static uint8_t out[BIG], in[BIG], back[BIG], seen[BIG];
	struct iovec message[3] = { { out, 1 }, { out + 1, len / 3 }, { out + 1 + len / 3, len - 1 - len / 3 } };
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
		if (turn == 3) /* it has had the chance to notice: the socket goes on */
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
			assert_int_equal(SSL_write_ex(rig.server, back + answered, least(len - answered, 5000), &n), 1);
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
what_was_encrypted_is_not_read_again(void **state)
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

/* Nothing stays inside of OpenSSL that the socket will not announce. */
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
			assert_true(in_len + 17000 + 4000 + (taken / 16384 + 1) * 64 >= taken || in_len == sizeof(in));
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
	struct iovec iov = { (void *)(uintptr_t)"after", 5 };
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
		assert_int_equal(tls_writev(rig.tls, &iov, 1), -1); /* what answers it goes first */
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
			BIO_write(rig.sock.to_client, "\x17\x03\x03\x00\x20 this was never encrypted       ", 37);
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
	struct iovec iov = { (void *)(uintptr_t)"x", 1 };
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

static void
refusals_have_words(void **state)
{
	char words[200];

	start("1.3");
	connect_rig("other.test");
	assert_int_equal(shake(), -1);
	assert_string_equal(tls_why(rig.tls), "its certificate is for " NAME ", not for other.test");
	assert_int_equal(tls_why_kind(rig.tls), FATAL_REFUSED);
	disconnect_rig();
	connect_rig("10.1.2.3");
	assert_int_equal(shake(), -1);
	assert_string_equal(tls_why(rig.tls), "its certificate is for " NAME ", not for 10.1.2.3");
	disconnect_rig();
	connect_rig(NAME);
	BIO_write(rig.sock.to_client, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
	assert_int_equal(tls_handshake(rig.tls), -1);
	assert_string_equal(tls_why(rig.tls), "handshake: what the broker says is no TLS; is this its TLS port?");
	disconnect_rig();

	certificate_write("strange.pem", "strange.key", "strange", 30);
	SSL_CTX_use_certificate_file(rig.server_context, "strange.pem", SSL_FILETYPE_PEM);
	SSL_CTX_use_PrivateKey_file(rig.server_context, "strange.key", SSL_FILETYPE_PEM);
	connect_rig(NAME);
	assert_int_equal(shake(), -1);
	assert_string_equal(
	    tls_why(rig.tls), "the certificate of \"strange\" is by \"strange\", a CA unknown to server.pem");
	disconnect_rig();
	stop();

	start("1.3");
	certificate_write("server.pem", "server.key", NAME, -1);
	struct tls_error error;
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	SSL_CTX_use_certificate_file(rig.server_context, "server.pem", SSL_FILETYPE_PEM);
	SSL_CTX_use_PrivateKey_file(rig.server_context, "server.key", SSL_FILETYPE_PEM);
	connect_rig(NAME);
	assert_int_equal(shake(), -1);
	snprintf(words, sizeof(words), "the certificate of \"" NAME "\" has expired: it was valid until 20");
	assert_memory_equal(tls_why(rig.tls), words, strlen(words));
	assert_int_equal(tls_why_kind(rig.tls), FATAL_REFUSED);
	disconnect_rig();
	rig.config.verify = 0;
	chmod("server.pem", 0600);
	certificate_write("server.pem", "server.key", NAME, -1); /* another file: it is read again */
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	disconnect_rig();
	stop();
}

static const char *
word(void)
{
	static char text[40];

	return tls_word(rig.tls, text, sizeof(text));
}

/* One connection from handshake to a read, with which tickets come. */
static void
visit(const char *expect)
{
	uint8_t in[4];
	size_t n;

	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	finish_shaking();
	assert_int_equal(SSL_write_ex(rig.server, "x", 1, &n), 1);
	assert_int_equal(tls_read(rig.tls, in, sizeof(in)), 1);
	assert_string_equal(word(), expect);
	disconnect_rig();
}

static void
sessions_are_resumed_until_the_certificates_change(void **state)
{
	struct tls_error error;

	start("1.2");
	visit("TLSv1.2");
	for (int i = 0; i < 10; i++)
		visit("TLSv1.2 resumed");
	stop();

	start("1.3");
	visit("TLSv1.3");
	for (int i = 0; i < 10; i++) {
		visit("TLSv1.3 resumed");
		assert_true(rig.sessions.count <= TLS_SESSIONS);
	}
	assert_int_equal(tls_context_reload(rig.context, &error), 0);
	certificate_write("server.pem", "server.key", NAME, 30);
	SSL_CTX_use_certificate_file(rig.server_context, "server.pem", SSL_FILETYPE_PEM);
	SSL_CTX_use_PrivateKey_file(rig.server_context, "server.key", SSL_FILETYPE_PEM);
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	visit("TLSv1.3");
	visit("TLSv1.3 resumed");
	stop();
}

/* Such a server answers every attempt to resume with an alert. */
static void
a_broker_that_cannot_resume_is_not_asked_again(void **state)
{
	start("1.3");
	visit("TLSv1.3");
	SSL_CTX_set_verify(rig.server_context, SSL_VERIFY_PEER, NULL); /* and no session id context */
	connect_rig(NAME);
	assert_int_equal(shake(), -1);
	assert_non_null(strstr(tls_why(rig.tls), "alert 80, internal error"));
	assert_int_equal(tls_why_kind(rig.tls), FATAL_PROTOCOL); /* the next attempt may come soon */
	disconnect_rig();
	visit("TLSv1.3");
	visit("TLSv1.3");
	stop();
}

static void
a_renewal_that_fails_changes_nothing(void **state)
{
	struct tls_error error;

	start("1.3");
	certificate_write("client.pem", "client.key", "client", 30);
	rig.config.cert_file = (char *)(uintptr_t)"client.pem";
	rig.config.key_file = (char *)(uintptr_t)"client.key";
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	certificate_write("client.pem", "other.key", "client", 30);
	assert_int_equal(tls_context_reload(rig.context, &error), -TG_EINVAL);
	assert_string_equal(error.key, "key_file");
	assert_string_equal(error.why, "client.key is not the key of the certificate in client.pem");
	assert_int_equal(tls_context_reload(rig.context, &error), 0); /* said once */
	visit("TLSv1.3");
	unlink("client.pem");
	assert_int_equal(tls_context_reload(rig.context, &error), -TG_EINVAL);
	assert_string_equal(error.key, "cert_file");
	assert_non_null(strstr(error.why, "No such file or directory"));
	visit("TLSv1.3 resumed");
	certificate_write("client.pem", "client.key", "client", 30);
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	visit("TLSv1.3");
	stop();
}

/* What could not be read is not what has changed: it is tried again until it can be. */
static void
a_renewal_that_could_not_be_read_is_tried_again(void **state)
{
	struct rlimit limit;
	struct tls_error error;

	start("1.3");
	certificate_write("server.pem", "server.key", NAME, 30);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	struct rlimit none = { .rlim_cur = 0, .rlim_max = limit.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	int first = tls_context_reload(rig.context, &error);
	int second = tls_context_reload(rig.context, &error);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_int_equal(first, -TG_EINVAL);
	assert_string_equal(error.why, "server.pem is no list of certificates: Too many open files");
	assert_int_equal(second, 0); /* said once */
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	assert_int_equal(tls_context_reload(rig.context, &error), 0);
	stop();
}

static void
a_renewed_key_is_as_private_as_the_first(void **state)
{
	struct tls_error error;

	start("1.3");
	certificate_write("client.pem", "client.key", "client", 30);
	rig.config.cert_file = (char *)(uintptr_t)"client.pem";
	rig.config.key_file = (char *)(uintptr_t)"client.key";
	assert_int_equal(chmod("client.key", 0604), 0);
	assert_int_equal(tls_context_reload(rig.context, &error), -TG_EINVAL);
	assert_string_equal(error.key, "key_file");
	assert_string_equal(error.why, "client.key has mode 0604, which lets every user at it: no rights for others are "
				       "allowed (chmod o= client.key)");
	assert_int_equal(chmod("client.key", 0600), 0);
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	stop();
}

static unsigned char offered[32];

static int
note_alpn(SSL *ssl, const unsigned char **chosen, unsigned char *len, const unsigned char *list, unsigned list_len,
    void *owner)
{
	memcpy(offered, list, least(list_len, sizeof(offered)));
	*chosen = list + 1;
	*len = list[0];
	return SSL_TLSEXT_ERR_OK;
}

static void
the_protocol_and_the_name_are_asked_for(void **state)
{
	start("1.3");
	connect_rig(NAME);
	assert_int_equal(shake(), 1); /* a server that knows nothing of ALPN is fine */
	finish_shaking();
	assert_string_equal(SSL_get_servername(rig.server, TLSEXT_NAMETYPE_host_name), NAME);
	disconnect_rig();
	SSL_CTX_set_alpn_select_cb(rig.server_context, note_alpn, NULL);
	connect_rig(NAME);
	assert_int_equal(shake(), 1);
	assert_memory_equal(offered, "\4mqtt", 6);
	disconnect_rig();
	/* The resolver's dot of an absolute name is no part of the host's (RFC 6066, section 3). */
	connect_rig(NAME ".");
	assert_int_equal(shake(), 1);
	finish_shaking();
	assert_string_equal(SSL_get_servername(rig.server, TLSEXT_NAMETYPE_host_name), NAME);
	disconnect_rig();
	stop();
}

static char folder[] = "/tmp/tidegate-tls-XXXXXX";

static int
enter_folder(void **state)
{
	return mkdtemp(folder) != NULL && chdir(folder) == 0 ? 0 : -1;
}

static int
leave_folder(void **state)
{
	static const char *const files[] = { "server.pem", "server.key", "strange.pem", "strange.key", "client.pem",
		"client.key", "other.key" };

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		unlink(files[i]);
	return chdir("/") == 0 && rmdir(folder) == 0 ? 0 : -1;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(everything_arrives_byte_by_byte),
		cmocka_unit_test(everything_arrives_cut_at_every_byte),
		cmocka_unit_test(full_records_cut_anywhere_are_reported_when_whole),
		cmocka_unit_test(what_was_encrypted_is_not_read_again),
		cmocka_unit_test(a_bounded_read_leaves_the_rest_to_the_socket),
		cmocka_unit_test(a_key_update_is_answered_when_the_socket_has_room),
		cmocka_unit_test(the_end_comes_after_the_data),
		cmocka_unit_test(a_broken_socket_says_its_errno),
		cmocka_unit_test(goodbye_is_said_once_secured),
		cmocka_unit_test(refusals_have_words),
		cmocka_unit_test(sessions_are_resumed_until_the_certificates_change),
		cmocka_unit_test(a_broker_that_cannot_resume_is_not_asked_again),
		cmocka_unit_test(a_renewal_that_fails_changes_nothing),
		cmocka_unit_test(a_renewal_that_could_not_be_read_is_tried_again),
		cmocka_unit_test(a_renewed_key_is_as_private_as_the_first),
		cmocka_unit_test(the_protocol_and_the_name_are_asked_for),
	};

	return cmocka_run_group_tests(tests, enter_folder, leave_folder);
}
