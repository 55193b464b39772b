/* Shared by tls.c and tls_context.c. */
#ifndef TG_DAEMON_TLS_INTERNAL_H
#define TG_DAEMON_TLS_INTERNAL_H

#include "tls.h"

#include <openssl/ssl.h>
#include <sys/stat.h>

#define TLS_RECORD 16384u /* plaintext of a full record */
#define TLS_RECORDS 4u    /* encrypted before the socket is asked: 64 KiB a write, as in the clear */
#define TLS_FILES 3u

struct tls_context {
	const struct config_tls *config;
	SSL_CTX *ctx;
	BIO_METHOD *method;  /* of all its connections */
	uint64_t generation; /* counts what was loaded */
	struct tls_stamp {
		dev_t dev;
		ino_t ino;
		off_t size;
		struct timespec mtime;
	} tried[TLS_FILES]; /* the files as they were when they were last read */
	/* Why they could not be used then, so that they are tried again; empty: they could. */
	char failed[sizeof(((struct tls_error *)0)->why)];
	unsigned char alpn[256]; /* as it goes over the wire */
	unsigned alpn_len;
	uint8_t record[TLS_RECORD]; /* plaintext about to be encrypted; wiped after each use */
};

/* tls.c: the connection's end of the BIO, and OpenSSL's calls back. */
BIO_METHOD *tls_bio_method(void);
int tls_on_verify(int good, X509_STORE_CTX *store);
int tls_on_session(SSL *ssl, SSL_SESSION *session);

#endif
