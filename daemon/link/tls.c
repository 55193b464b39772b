/* TLS on one connection. */
#include "tls_internal.h"

#include "shm/error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509v3.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Full records, and room for a flight of the handshake or for what TLS has to say behind them. */
#define PENDING \
	(TLS_RECORDS * (TLS_RECORD + SSL3_RT_MAX_ENCRYPTED_OVERHEAD + SSL3_RT_HEADER_LENGTH) + (16u << 10))

struct tls {
	struct tls_context *context;
	struct tls_sessions *sessions;
	struct sock *sock;
	SSL *ssl;
	char name[256]; /* of the peer, as asked for; empty: any */
	size_t may_read;
	int secured;
	int offered; /* a session, to be resumed */

	/* The last errors of the socket and of OpenSSL; both stay. */
	int sock_error;
	int eof;
	int ended; /* tls_read() will say so: 1 in good order, -1 not */
	int ended_errno;

	char why[256];
	enum driver_fatal kind;

	/* Ciphertext. Records are encrypted only when nothing is pending, so they come first in it. */
	size_t head, tail;
	struct {
		size_t end;   /* in pending */
		size_t plain; /* bytes it holds */
	} records[TLS_RECORDS];
	unsigned record_count, record_next;
	uint8_t pending[PENDING];
};

/* ---- words ---- */

static int
why(struct tls *tls, enum driver_fatal kind, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The first cause is the one that counts. Always returns -1. */
static int
why(struct tls *tls, enum driver_fatal kind, const char *format, ...)
{
	va_list args;

	if (tls->why[0] != '\0')
		return -1;
	va_start(args, format);
	vsnprintf(tls->why, sizeof(tls->why), format, args);
	va_end(args);
	/* Names and reasons come from the peer's certificate. */
	for (char *at = tls->why; *at != '\0'; at++)
		if ((unsigned char)*at < 0x20 || (unsigned char)*at >= 0x7f)
			*at = '?';
	tls->kind = kind;
	return -1;
}

static void
append(char *text, size_t size, const char *separator, const char *more, size_t more_len)
{
	size_t len = strlen(text);

	snprintf(text + len, size - len, "%s%.*s", len > 0 ? separator : "", (int)more_len, more);
}

/* The names a certificate is for. */
static void
names_of(X509 *certificate, char *text, size_t size)
{
	GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
	char address[INET6_ADDRSTRLEN];

	text[0] = '\0';
	for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
		const ASN1_OCTET_STRING *ip = name->d.iPAddress;
		if (name->type == GEN_DNS)
			append(text, size, ", ", (const char *)ASN1_STRING_get0_data(name->d.dNSName),
			    (size_t)ASN1_STRING_length(name->d.dNSName));
		else if (name->type == GEN_IPADD && (ip->length == 4 || ip->length == 16) &&
			 inet_ntop(ip->length == 4 ? AF_INET : AF_INET6, ip->data, address, sizeof(address)) !=
			     NULL)
			append(text, size, ", ", address, strlen(address));
	}
	GENERAL_NAMES_free(names);
	if (text[0] == '\0')
		X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, text, (int)size);
	if (text[0] == '\0')
		snprintf(text, size, "nobody");
}

static const char *
moment(const ASN1_TIME *when, char *text, size_t size)
{
	struct tm tm;

	if (when == NULL || ASN1_TIME_to_tm(when, &tm) != 1 ||
	    strftime(text, size, "%Y-%m-%d %H:%M:%S UTC", &tm) == 0)
		return "an unreadable time";
	return text;
}

static void
explain_certificate(struct tls *tls, X509_STORE_CTX *store)
{
	X509 *certificate = X509_STORE_CTX_get_current_cert(store);
	int error = X509_STORE_CTX_get_error(store);
	char subject[80] = "", issuer[80] = "", names[120], when[32];

	if (certificate == NULL) {
		why(tls, FATAL_REFUSED, "its certificate is not accepted: %s",
		    X509_verify_cert_error_string(error));
		return;
	}
	X509_NAME_get_text_by_NID(
	    X509_get_subject_name(X509_STORE_CTX_get0_cert(store)), NID_commonName, subject, sizeof(subject));
	X509_NAME_get_text_by_NID(X509_get_issuer_name(certificate), NID_commonName, issuer, sizeof(issuer));
	const char *whose = X509_STORE_CTX_get_error_depth(store) > 0 ? ", or one that it is by," : "";
	switch (error) {
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		names_of(certificate, names, sizeof(names));
		why(tls, FATAL_REFUSED, "its certificate is for %s, not for %s", names, tls->name);
		break;
	case X509_V_ERR_CERT_HAS_EXPIRED:
		why(tls, FATAL_REFUSED, "the certificate of \"%s\"%s has expired: it was valid until %s",
		    subject, whose, moment(X509_get0_notAfter(certificate), when, sizeof(when)));
		break;
	case X509_V_ERR_CERT_NOT_YET_VALID:
		why(tls, FATAL_REFUSED, "the certificate of \"%s\"%s is not valid before %s", subject, whose,
		    moment(X509_get0_notBefore(certificate), when, sizeof(when)));
		break;
	case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
	case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
	case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
	case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
	case X509_V_ERR_CERT_SIGNATURE_FAILURE:
		why(tls, FATAL_REFUSED, "the certificate of \"%s\" is by \"%s\", a CA unknown to %s", subject,
		    issuer,
		    tls->context->config->ca_file != NULL ? tls->context->config->ca_file : "this system");
		break;
	default:
		why(tls, FATAL_REFUSED, "the certificate of \"%s\" is not accepted: %s", subject,
		    X509_verify_cert_error_string(error));
	}
}

int
tls_on_verify(int good, X509_STORE_CTX *store)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *tls = SSL_get_app_data(ssl);

	/* Called with what is wrong even where nothing is to be verified. */
	if (!good && tls->context->config->verify)
		explain_certificate(tls, store);
	return good;
}

/* An alert of the peer: its number, or 0. */
static int
alert_of(unsigned long error)
{
	int code = ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0;

	return code > SSL_AD_REASON_OFFSET && code < SSL_AD_REASON_OFFSET + 256 ? code - SSL_AD_REASON_OFFSET
										: 0;
}

static int
explain_alert(struct tls *tls, int alert)
{
	const struct config_tls *config = tls->context->config;
	int wants_certificate = alert == SSL_AD_CERTIFICATE_REQUIRED ||
				((alert == SSL_AD_HANDSHAKE_FAILURE || alert == SSL_AD_BAD_CERTIFICATE) &&
				    config->cert_file == NULL);

	if (alert == SSL_AD_PROTOCOL_VERSION)
		return why(tls, FATAL_REFUSED, "the broker speaks no version of TLS from %s on",
		    config->min_version == TLS1_3_VERSION ? "1.3" : "1.2");
	return why(tls, FATAL_REFUSED, "the broker refuses: alert %d, %s%s", alert,
	    SSL_alert_desc_string_long(alert),
	    wants_certificate && config->cert_file == NULL ? "; the pool has no tls.cert_file" : "");
}

/* OpenSSL's error queue in words; the queue is emptied. Always returns -1. */
static int
explain(struct tls *tls, const char *during)
{
	unsigned long error = ERR_peek_error();
	const char *text = ERR_reason_error_string(error);
	int alert = alert_of(error);

	ERR_clear_error();
	if (alert != 0)
		return explain_alert(tls, alert);
	if (tls->sock_error != 0)
		return why(tls, FATAL_PROTOCOL, "%s: %s", during, strerrordesc_np(tls->sock_error));
	if (tls->eof)
		return why(tls, FATAL_CLOSED, "%s: closed by the broker", during);
	switch (ERR_GET_REASON(error)) {
	case SSL_R_WRONG_VERSION_NUMBER:
	case SSL_R_HTTP_REQUEST:
		return why(
		    tls, FATAL_REFUSED, "%s: what the broker says is no TLS; is this its TLS port?", during);
	case SSL_R_UNSUPPORTED_PROTOCOL:
	case SSL_R_VERSION_TOO_LOW:
		return why(tls, FATAL_REFUSED, "the broker speaks no version of TLS from %s on",
		    tls->context->config->min_version == TLS1_3_VERSION ? "1.3" : "1.2");
	}
	return why(tls, FATAL_PROTOCOL, "%s: %s", during, text != NULL ? text : "no reason given");
}

const char *
tls_why(const struct tls *tls)
{
	return tls->why;
}

enum driver_fatal
tls_why_kind(const struct tls *tls)
{
	return tls->kind;
}

/* ---- the socket, as OpenSSL sees it ---- */

static int
bio_write(BIO *bio, const char *bytes, int len)
{
	struct tls *tls = BIO_get_data(bio);
	size_t room = PENDING - tls->tail;
	size_t n = (size_t)len < room ? (size_t)len : room;

	BIO_clear_retry_flags(bio);
	if (n == 0 && len > 0) {
		BIO_set_retry_write(bio);
		return -1;
	}
	memcpy(tls->pending + tls->tail, bytes, n);
	tls->tail += n;
	return (int)n;
}

static int
bio_read(BIO *bio, char *bytes, int len)
{
	struct tls *tls = BIO_get_data(bio);
	size_t want = (size_t)len < tls->may_read ? (size_t)len : tls->may_read;

	BIO_clear_retry_flags(bio);
	if (tls->eof)
		return 0;
	if (want > 0 && tls->sock_error == 0) {
		ssize_t n = tls->sock->world->ops->read(tls->sock, bytes, want);
		if (n > 0) {
			tls->may_read -= (size_t)n;
			return (int)n;
		}
		if (n == 0) {
			tls->eof = 1;
			return 0;
		}
		if (errno != EAGAIN)
			tls->sock_error = errno;
	}
	if (tls->sock_error == 0)
		BIO_set_retry_read(bio);
	return -1;
}

static long
bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
	const struct tls *tls = BIO_get_data(bio);

	switch (command) {
	case BIO_CTRL_FLUSH:
		return 1;
	case BIO_CTRL_EOF:
		return tls->eof;
	default:
		return 0;
	}
}

static int
bio_create(BIO *bio)
{
	BIO_set_init(bio, 1);
	return 1;
}

BIO_METHOD *
tls_bio_method(void)
{
	BIO_METHOD *method = BIO_meth_new(BIO_TYPE_SOURCE_SINK, "tidegate link");

	if (method == NULL)
		return NULL;
	BIO_meth_set_write(method, bio_write);
	BIO_meth_set_read(method, bio_read);
	BIO_meth_set_ctrl(method, bio_ctrl);
	BIO_meth_set_create(method, bio_create);
	return method;
}

/* ---- sessions ---- */

static void
forget_sessions(struct tls_sessions *sessions)
{
	while (sessions->count > 0)
		SSL_SESSION_free(sessions->kept[--sessions->count]);
}

void
tls_sessions_fini(struct tls_sessions *sessions)
{
	forget_sessions(sessions);
}

int
tls_on_session(SSL *ssl, SSL_SESSION *session)
{
	struct tls *tls = SSL_get_app_data(ssl);
	struct tls_sessions *sessions = tls->sessions;

	if (sessions->generation != tls->context->generation || SSL_get_SSL_CTX(ssl) != tls->context->ctx ||
	    !SSL_SESSION_is_resumable(session))
		return 0;
	if (sessions->count == TLS_SESSIONS) {
		SSL_SESSION_free(sessions->kept[0]);
		memmove(sessions->kept, sessions->kept + 1, (TLS_SESSIONS - 1) * sizeof(sessions->kept[0]));
		sessions->count--;
	}
	sessions->kept[sessions->count++] = session;
	return 1; /* the reference is ours */
}

static void
offer_session(struct tls *tls)
{
	struct tls_sessions *sessions = tls->sessions;

	/* A session that was agreed under other certificates is not resumed. */
	if (sessions->generation != tls->context->generation) {
		forget_sessions(sessions);
		sessions->refused = 0;
		sessions->generation = tls->context->generation;
	}
	if (sessions->count == 0 || sessions->refused)
		return;
	SSL_SESSION *session = sessions->kept[sessions->count - 1];
	tls->offered = SSL_set_session(tls->ssl, session) == 1;
	/* Used twice, a TLS 1.3 ticket lets who listens tell that it is us again. */
	if (SSL_SESSION_get_protocol_version(session) >= TLS1_3_VERSION) {
		sessions->count--;
		SSL_SESSION_free(session);
	}
}

/* ---- life ---- */

/* Whom to ask for, and to accept. */
static int
set_name(struct tls *tls, const char *host)
{
	unsigned char address[sizeof(struct in6_addr)];
	X509_VERIFY_PARAM *param = SSL_get0_param(tls->ssl);

	if (host == NULL)
		return 1;
	snprintf(tls->name, sizeof(tls->name), "%s", host);
	/* The dot at an absolute name's end is for resolvers: certificates and SNI have none (RFC 6066, section 3). */
	size_t len = strlen(tls->name);
	if (len > 0 && tls->name[len - 1] == '.')
		tls->name[len - 1] = '\0';
	host = tls->name;
	if (inet_pton(AF_INET, host, address) == 1 || inet_pton(AF_INET6, host, address) == 1)
		return X509_VERIFY_PARAM_set1_ip_asc(param, host) == 1; /* SNI has names only */
	X509_VERIFY_PARAM_set_hostflags(param, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
	return X509_VERIFY_PARAM_set1_host(param, host, 0) == 1 &&
	       SSL_set_tlsext_host_name(tls->ssl, host) == 1;
}

struct tls *
tls_new(struct tls_context *context, struct tls_sessions *sessions, struct sock *sock, const char *host)
{
	struct tls *tls = malloc(sizeof(*tls));

	if (tls == NULL)
		return NULL;
	memset(tls, 0, offsetof(struct tls, pending));
	tls->context = context;
	tls->sessions = sessions;
	tls->sock = sock;
	tls->kind = FATAL_PROTOCOL;
	ERR_clear_error();
	tls->ssl = SSL_new(context->ctx);
	BIO *bio = tls->ssl != NULL ? BIO_new(context->method) : NULL;
	if (bio == NULL) {
		tls_free(tls);
		return NULL;
	}
	BIO_set_data(bio, tls);
	SSL_set_bio(tls->ssl, bio, bio);
	SSL_set_app_data(tls->ssl, tls);
	SSL_set_connect_state(tls->ssl);
	if (!set_name(tls, host)) {
		tls_free(tls);
		return NULL;
	}
	offer_session(tls);
	return tls;
}

void
tls_free(struct tls *tls)
{
	if (tls == NULL)
		return;
	/* Quietly: OpenSSL would hold a lost connection against the session. */
	if (tls->ssl != NULL)
		SSL_set_shutdown(tls->ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
	SSL_free(tls->ssl);
	ERR_clear_error();
	free(tls);
}

const char *
tls_word(const struct tls *tls, char *text, size_t size)
{
	snprintf(text, size, "%s%s", tls->secured ? SSL_get_version(tls->ssl) : "",
	    tls->secured && SSL_session_reused(tls->ssl) ? " resumed" : "");
	return text;
}

/* ---- out ---- */

size_t
tls_unsent(const struct tls *tls)
{
	return tls->tail - tls->head;
}

/* Hands ciphertext to the socket. *done grows by the plaintext of records that are whole in the
 * kernel. Returns 0 when nothing is pending, or -1 with errno. */
static int
send_pending(struct tls *tls, size_t *done)
{
	while (tls->head < tls->tail) {
		struct iovec iov = { .iov_base = tls->pending + tls->head, .iov_len = tls->tail - tls->head };
		ssize_t n = tls->sock->world->ops->writev(tls->sock, &iov, 1);
		if (n < 0)
			return -1;
		tls->head += (size_t)n;
		for (; tls->record_next < tls->record_count && tls->records[tls->record_next].end <= tls->head;
		     tls->record_next++)
			*done += tls->records[tls->record_next].plain;
	}
	tls->head = tls->tail = 0;
	tls->record_count = tls->record_next = 0;
	return 0;
}

/* Copies up to a record from behind the first `skip` bytes of the pieces. */
static size_t
gather(uint8_t *record, const struct iovec *iov, int count, size_t skip)
{
	size_t len = 0;

	for (int i = 0; i < count && len < TLS_RECORD; i++) {
		if (skip >= iov[i].iov_len) {
			skip -= iov[i].iov_len;
			continue;
		}
		size_t n = iov[i].iov_len - skip < TLS_RECORD - len ? iov[i].iov_len - skip : TLS_RECORD - len;
		memcpy(record + len, (const uint8_t *)iov[i].iov_base + skip, n);
		len += n;
		skip = 0;
	}
	return len;
}

/* Encrypts what lies behind the first `skip` bytes, a batch of records at most; nothing is pending.
 * Returns 0, or -1 with errno (EAGAIN: the peer must speak first). */
static int
encrypt(struct tls *tls, const struct iovec *iov, int count, size_t skip)
{
	uint8_t *record = tls->context->record;

	while (tls->record_count < TLS_RECORDS) {
		size_t taken = 0, len = gather(record, iov, count, skip);
		if (len == 0)
			return 0;
		ERR_clear_error();
		int rc = SSL_write_ex(tls->ssl, record, len, &taken);
		int error = rc == 1 ? SSL_ERROR_NONE : SSL_get_error(tls->ssl, rc);
		OPENSSL_cleanse(record, len);
		if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
			if (tls->tail > 0)
				return 0;
			errno = EAGAIN;
			return -1;
		}
		if (error != SSL_ERROR_NONE) {
			explain(tls, "write");
			errno = EPROTO;
			return -1;
		}
		tls->records[tls->record_count].end = tls->tail;
		tls->records[tls->record_count++].plain = taken;
		skip += taken;
	}
	return 0;
}

/* A broker that refuses us says why and hangs up: its alert may have come before the write failed. */
static int
explain_failed_write(struct tls *tls)
{
	int error = errno;
	uint8_t byte;
	size_t n;

	tls->may_read = TLS_RECORD;
	ERR_clear_error();
	if (SSL_peek_ex(tls->ssl, &byte, 1, &n) != 1 && alert_of(ERR_peek_error()) != 0) {
		explain(tls, "write");
		error = EPROTO;
	}
	ERR_clear_error();
	errno = error;
	return -1;
}

ssize_t
tls_writev(struct tls *tls, const struct iovec *iov, int count)
{
	size_t done = 0;

	if (!tls->secured) {
		errno = EAGAIN;
		return -1;
	}
	for (;;) {
		if (send_pending(tls, &done) != 0) {
			if (done > 0)
				return (ssize_t)done; /* whatever it is comes again */
			return errno == EAGAIN ? -1 : explain_failed_write(tls);
		}
		if (encrypt(tls, iov, count, done) != 0)
			return done > 0 ? (ssize_t)done : -1;
		if (tls->tail == 0)
			return (ssize_t)done;
	}
}

/* ---- in ---- */

void
tls_may_read(struct tls *tls, size_t bytes)
{
	tls->may_read = bytes;
}

int
tls_has_ended(const struct tls *tls)
{
	return tls->ended != 0;
}

/* Why OpenSSL gave nothing: tls->ended, unless it only waits. */
static void
note_end(struct tls *tls, int rc)
{
	int error = SSL_get_error(tls->ssl, rc);

	if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) {
		ERR_clear_error();
		return;
	}
	/* Without its goodbye an end may be a liar's; but every message is answered for by itself. */
	if (error == SSL_ERROR_ZERO_RETURN || (tls->eof && alert_of(ERR_peek_error()) == 0)) {
		ERR_clear_error();
		tls->ended = 1;
		return;
	}
	tls->ended = -1;
	tls->ended_errno = tls->sock_error != 0 && alert_of(ERR_peek_error()) == 0 ? tls->sock_error : EPROTO;
	explain(tls, "read");
}

ssize_t
tls_read(struct tls *tls, void *bytes, size_t len)
{
	size_t done = 0;

	while (!tls->ended && done < len) {
		size_t n = 0;
		ERR_clear_error();
		int rc = SSL_read_ex(tls->ssl, (uint8_t *)bytes + done, len - done, &n);
		if (rc != 1) {
			note_end(tls, rc);
			break;
		}
		done += n;
	}
	if (done > 0 || tls->ended > 0)
		return (ssize_t)done;
	errno = tls->ended < 0 ? tls->ended_errno : EAGAIN;
	return -1;
}

/* ---- beginning and end ---- */

int
tls_handshake(struct tls *tls)
{
	for (;;) {
		size_t none = 0;
		ERR_clear_error();
		int rc = SSL_do_handshake(tls->ssl);
		int error = rc == 1 ? SSL_ERROR_NONE : SSL_get_error(tls->ssl, rc);
		int full = tls->tail == PENDING;
		/* Before the reason is looked at: an alert of ours must leave, too. */
		if (send_pending(tls, &none) != 0 && errno != EAGAIN && tls->sock_error == 0)
			tls->sock_error = errno;
		if (error == SSL_ERROR_NONE) {
			ERR_clear_error();
			tls->secured = 1;
			return 1;
		}
		if ((error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE) && tls->sock_error == 0) {
			if (full && tls->tail == 0)
				continue;
			return 0;
		}
		int alert = alert_of(ERR_peek_error());
		explain(tls, "handshake");
		if (tls->offered) {
			/* Without what was offered it may go well: mosquitto that asks for certificates cannot resume. */
			forget_sessions(tls->sessions);
			tls->sessions->refused |= alert != 0;
			tls->kind = FATAL_PROTOCOL;
		}
		return -1;
	}
}

void
tls_goodbye(struct tls *tls)
{
	size_t none = 0;

	if (!tls->secured || tls->ended)
		return;
	ERR_clear_error();
	SSL_shutdown(tls->ssl);
	ERR_clear_error();
	(void)send_pending(tls, &none);
}
