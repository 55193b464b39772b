/* TLS at the sink's end. */
#include "secure.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>

static int
no_password(char *buffer, int size, int writing, void *owner)
{
	return -1;
}

const char *
secure_why(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_error());

	ERR_clear_error();
	return text ? text : "no reason given";
}

static struct ssl_ctx_st *
refuse(SSL_CTX *context, const char *option, const char *file)
{
	fprintf(stderr, "tidegate-sink: %s \"%s\": %s\n", option, file, secure_why());
	SSL_CTX_free(context);
	return NULL;
}

struct ssl_ctx_st *
secure_context_new(const char *cert, const char *key, const char *ca)
{
	static const unsigned char name[] = "tidegate-sink";
	SSL_CTX *context = SSL_CTX_new(TLS_server_method());

	if (!context)
		return refuse(NULL, "--tls-cert", cert);
	SSL_CTX_set_mode(context,
	    SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
	/* Without a name for them, sessions of clients with certificates cannot be resumed. */
	SSL_CTX_set_session_id_context(context, name, sizeof(name) - 1);
	SSL_CTX_set_default_passwd_cb(context, no_password);
	ERR_clear_error();
	if (SSL_CTX_use_certificate_chain_file(context, cert) != 1)
		return refuse(context, "--tls-cert", cert);
	if (SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1)
		return refuse(context, "--tls-key", key);
	if (ca) {
		if (SSL_CTX_load_verify_file(context, ca) != 1)
			return refuse(context, "--tls-ca", ca);
		SSL_CTX_set_client_CA_list(context, SSL_load_client_CA_file(ca));
		SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
	}
	return context;
}

void
secure_context_free(struct ssl_ctx_st *context)
{
	SSL_CTX_free(context);
}

struct ssl_st *
secure_new(struct ssl_ctx_st *context, int fd)
{
	SSL *ssl = SSL_new(context);

	if (ssl && SSL_set_fd(ssl, fd) != 1) {
		SSL_free(ssl);
		return NULL;
	}
	if (ssl)
		SSL_set_accept_state(ssl);
	return ssl;
}

void
secure_free(struct ssl_st *ssl)
{
	if (ssl)
		SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(ssl);
}

bool
secure_is_done(const struct ssl_st *ssl)
{
	return SSL_is_init_finished(ssl);
}

bool
secure_is_resumed(const struct ssl_st *ssl)
{
	return SSL_session_reused(ssl);
}

/* Maps the result of a call that returned no data to recv's conventions. */
static ssize_t
meaning(SSL *ssl, int rc, bool *wants_write)
{
	int error = SSL_get_error(ssl, rc);

	switch (error) {
	case SSL_ERROR_WANT_WRITE:
		*wants_write = true;
		/* fall through */
	case SSL_ERROR_WANT_READ:
		errno = EAGAIN;
		return -1;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	case SSL_ERROR_SYSCALL:
		return errno ? -1 : 0;
	default:
		errno = EPROTO;
		return -1;
	}
}

ssize_t
secure_read(struct ssl_st *ssl, void *bytes, size_t want, bool *wants_write)
{
	size_t done = 0, left;

	do {
		size_t n;
		ERR_clear_error();
		errno = 0;
		left = done < want ? want - done : (size_t)SSL_pending(ssl);
		int rc = SSL_read_ex(ssl, (char *)bytes + done, left, &n);
		if (rc != 1) {
			ssize_t result = meaning(ssl, rc, wants_write);
			return done > 0 ? (ssize_t)done : result; /* an end comes again */
		}
		done += n;
	} while (done < want || SSL_pending(ssl) > 0);
	return (ssize_t)done;
}

ssize_t
secure_write(struct ssl_st *ssl, const void *bytes, size_t len, bool *wants_write)
{
	size_t n = 0;

	ERR_clear_error();
	errno = 0;
	int rc = len > 0 ? SSL_write_ex(ssl, bytes, len, &n) : SSL_do_handshake(ssl);
	return rc == 1 ? (ssize_t)n : meaning(ssl, rc, wants_write);
}

void
secure_shutdown(struct ssl_st *ssl)
{
	ERR_clear_error();
	if (SSL_is_init_finished(ssl))
		SSL_shutdown(ssl);
	ERR_clear_error();
}
