#include "tls_rig.h"

#include "certificates.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct rig rig;

static char folder[] = "/tmp/tidegate-tls-XXXXXX";

size_t
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

int
enter_folder(void **state)
{
	return mkdtemp(folder) != NULL && chdir(folder) == 0 ? 0 : -1;
}

int
leave_folder(void **state)
{
	static const char *const files[] = { "server.pem", "server.key", "strange.pem", "strange.key",
		"client.pem", "client.key", "other.key" };

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++)
		unlink(files[i]);
	return chdir("/") == 0 && rmdir(folder) == 0 ? 0 : -1;
}

void
start(const char *newest)
{
	struct tls_error error;
	int version = newest[2] == '2' ? TLS1_2_VERSION : TLS1_3_VERSION;

	memset(&rig, 0, sizeof(rig));
	certificate_write("server.pem", "server.key", NAME, 30);
	rig.config = (struct config_tls){ .enabled = 1,
		.verify = 1,
		.ca_file = (char *)(uintptr_t) "server.pem",
		.min_version = TLS1_2_VERSION };
	assert_int_equal(tls_context_new(&rig.context, &rig.config, "mqtt", &error), 0);
	rig.server_context = SSL_CTX_new(TLS_server_method());
	SSL_CTX_set_max_proto_version(rig.server_context, version);
	assert_int_equal(SSL_CTX_use_certificate_file(rig.server_context, "server.pem", SSL_FILETYPE_PEM), 1);
	assert_int_equal(SSL_CTX_use_PrivateKey_file(rig.server_context, "server.key", SSL_FILETYPE_PEM), 1);
}

void
stop(void)
{
	tls_sessions_fini(&rig.sessions);
	tls_context_free(rig.context);
	SSL_CTX_free(rig.server_context);
}

void
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

void
disconnect_rig(void)
{
	tls_free(rig.tls);
	SSL_set_shutdown(rig.server, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(rig.server);
	BIO_free(rig.sock.to_server);
	BIO_free(rig.sock.to_client);
	rig.tls = NULL;
}

int
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

void
finish_shaking(void)
{
	while (!SSL_is_init_finished(rig.server)) {
		ERR_clear_error();
		assert_true(tls_writev(rig.tls, NULL, 0) == 0);
		if (SSL_do_handshake(rig.server) != 1)
			assert_int_equal(SSL_get_error(rig.server, -1), SSL_ERROR_WANT_READ);
	}
}
