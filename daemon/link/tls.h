/*
 * TLS on a link, with OpenSSL doing the cryptography and nothing else: it never sees a socket.
 *
 *                 one turn's pieces                 up to TLS_RECORDS records
 *   struct out ──► gathered, 16 KiB ──► SSL_write ──► pending ──► world->writev ──► kernel
 *   driver     ◄── read buffer      ◄── SSL_read  ◄────────────── world->read
 *
 * Ciphertext is collected here and leaves in large writes, so SSL_write never waits and is never
 * repeated. Plaintext counts as written when the kernel has the last byte of its record: until then
 * it is unsent for the watermarks, for TG_SENT and for who may release what it refers to. It is read
 * exactly once and copied before it is encrypted, because a body in a ring can change at any time.
 *
 * A context belongs to a pool: certificates, rules and the buffer where plaintext is gathered. A
 * struct tls belongs to a link's one connection. Sessions to resume belong to a broker. One thread.
 */
#ifndef TG_DAEMON_TLS_H
#define TG_DAEMON_TLS_H

#include "daemon/config/config.h"
#include "daemon/protocol/driver.h"
#include "daemon/base/world.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ssl_session_st;
struct tls;
struct tls_context;

#define TLS_SESSIONS \
	4u /* kept for each broker: a TLS 1.3 ticket is good for one connection, a broker gives two */

/* Zeroed: none. */
struct tls_sessions {
	struct ssl_session_st *kept[TLS_SESSIONS]; /* the newest last */
	unsigned count;
	uint64_t generation; /* of the context they were made with */
	int refused;         /* the broker answered an offer of one with an alert: none is offered any more */
};

void tls_sessions_fini(struct tls_sessions *sessions);

struct tls_error {
	const char *key; /* of the tls group, e.g. "cert_file"; NULL: the group itself */
	char why[256];
};

/* tls_context.c --------------------------------------------------------------------------- */

/*
 * Reads the files. alpn may be NULL. config and alpn are borrowed. Returns 0, -TG_ENOMEM, or
 * -TG_EINVAL with *error filled in.
 */
int tls_context_new(
    struct tls_context **context, const struct config_tls *config, const char *alpn, struct tls_error *error);
void tls_context_free(struct tls_context *context);

/*
 * Reads the files again if one of them has changed since they were last tried, or if they could not be
 * used then. Connections that exist keep what they have. Returns 1 when what was read is in force, 0 when
 * nothing has changed, a failure that was reported included, or -TG_EINVAL with *error filled in and
 * everything as it was.
 */
int tls_context_reload(struct tls_context *context, struct tls_error *error);

/* tls.c ----------------------------------------------------------------------------------- */

/*
 * A client's end on a connected socket, which is borrowed. host: whom to ask for and to expect, a
 * name or an address; NULL only where nothing is verified. Returns NULL without memory.
 */
struct tls *
tls_new(struct tls_context *context, struct tls_sessions *sessions, struct sock *sock, const char *host);
void tls_free(struct tls *tls);

/* Goes on with the handshake. Returns 1 done, 0 waits for the peer (or, if tls_unsent(), for the
 * socket), -1 failed: tls_why(). */
int tls_handshake(struct tls *tls);

/*
 * As writev: how many of the bytes are with the kernel now, or -1 with errno; EPROTO: tls_why(). The
 * next call must begin behind exactly these. EAGAIN with nothing tls_unsent() waits for the peer.
 * Without pieces (count 0) it writes what TLS itself has to say.
 */
ssize_t tls_writev(struct tls *tls, const struct iovec *iov, int count);

/*
 * As read, and fills the buffer as far as it can. A shorter answer means that nothing is left inside
 * that the socket would not announce, unless tls_has_ended(). The amount is bounded by tls_may_read().
 */
ssize_t tls_read(struct tls *tls, void *bytes, size_t len);

/* Allows this many bytes to be taken off the socket. */
void tls_may_read(struct tls *tls, size_t bytes);

/* The end or an error was seen; the next tls_read() says which. */
int tls_has_ended(const struct tls *tls);

/* Bytes for the socket that the kernel has not taken. */
size_t tls_unsent(const struct tls *tls);

/* Says that nothing more will come (close_notify), as far as the kernel takes it at once. */
void tls_goodbye(struct tls *tls);

/* Why the handshake, a read or a write (EPROTO) failed, and what that means for trying again. */
const char *tls_why(const struct tls *tls);
enum driver_fatal tls_why_kind(const struct tls *tls);

/* "TLSv1.3", "TLSv1.3 resumed"; for people. */
const char *tls_word(const struct tls *tls, char *text, size_t size);

#endif
