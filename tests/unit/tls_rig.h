/*
 * The client's end of TLS against OpenSSL's server, over a socket in memory. A failure in here fails the
 * calling test. One rig, one thread; every pointer is the rig's.
 */
#ifndef TG_TESTS_TLS_RIG_H
#define TG_TESTS_TLS_RIG_H

#include "daemon/link/tls.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#define NAME "broker.test"

struct pipe_sock {
	struct sock sock;
	BIO *to_server, *to_client;
	size_t write_room, read_room; /* before it says EAGAIN */
	size_t step;                  /* most bytes of one call */
	int broken;                   /* errno of all calls; 0: none */
	int eof;                      /* once everything was read */
};

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

extern struct rig rig;

/* Of the group of tests: a folder of its own, which is the working directory. */
int enter_folder(void **state);
int leave_folder(void **state);

/* Both ends' contexts, a new certificate for NAME in server.pem; newest: "1.2" or "1.3". */
void start(const char *newest);
void stop(void);

/* One connection: rig.tls to rig.server, over rig.sock. */
void connect_rig(const char *host);
void disconnect_rig(void);

/* Both ends take turns until the client's is done or failed, or neither can go on. */
int shake(void);
/* … and until the server's is done, too. */
void finish_shaking(void);

size_t least(size_t a, size_t b);

#endif
