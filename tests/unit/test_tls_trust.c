/* TLS: trust, resumption of sessions, and renewed certificates. */
#include "tls_rig.h"

#include "certificates.h"
#include "shm/error.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

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
	assert_string_equal(
	    tls_why(rig.tls), "handshake: what the broker says is no TLS; is this its TLS port?");
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
	rig.config.cert_file = (char *)(uintptr_t) "client.pem";
	rig.config.key_file = (char *)(uintptr_t) "client.key";
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

/* A file that could not be read counts as unread: the next attempt reads it again. */
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
	rig.config.cert_file = (char *)(uintptr_t) "client.pem";
	rig.config.key_file = (char *)(uintptr_t) "client.key";
	assert_int_equal(chmod("client.key", 0604), 0);
	assert_int_equal(tls_context_reload(rig.context, &error), -TG_EINVAL);
	assert_string_equal(error.key, "key_file");
	assert_string_equal(error.why,
	    "client.key has mode 0604, which lets every user at it: no rights for others are "
	    "allowed (chmod o= client.key)");
	assert_int_equal(chmod("client.key", 0600), 0);
	assert_int_equal(tls_context_reload(rig.context, &error), 1);
	stop();
}

static unsigned char offered[32];

static int
note_alpn(SSL *ssl, const unsigned char **chosen, unsigned char *len, const unsigned char *list,
    unsigned list_len, void *owner)
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
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
