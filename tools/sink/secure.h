/*
 * TLS at the sink's end: the server's side of OpenSSL on the connection's own descriptor. The
 * handshake goes on by itself inside of the first reads and writes.
 *
 * Owner: the context is the sink's, an SSL its connection's. One thread.
 */
#ifndef TG_SINK_SECURE_H
#define TG_SINK_SECURE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct ssl_ctx_st;
struct ssl_st;

#define SECURE_RECORD 16384u /* plaintext of the largest record, which a read may return beyond its limit */

/* ca: whose certificates clients must have, or NULL. Returns NULL after a message on stderr. */
struct ssl_ctx_st *secure_context_new(const char *cert, const char *key, const char *ca);
void secure_context_free(struct ssl_ctx_st *context);

/* The server's end on fd, which stays the caller's. Returns NULL without memory. */
struct ssl_st *secure_new(struct ssl_ctx_st *context, int fd);
void secure_free(struct ssl_st *ssl);

/*
 * As recv and send: -1 with EAGAIN when it must wait, with EPROTO when TLS is broken. A read goes on
 * until the descriptor has nothing more or `want` bytes are there, and then takes what is left of the
 * last record, so that epoll tells all there is: bytes has room for want + SECURE_RECORD.
 * *wants_write is set when the descriptor must be writable before it can go on.
 */
ssize_t secure_read(struct ssl_st *ssl, void *bytes, size_t want, bool *wants_write);
ssize_t secure_write(struct ssl_st *ssl, const void *bytes, size_t len, bool *wants_write);

/* Says goodbye. */
void secure_shutdown(struct ssl_st *ssl);

/* Whether the handshake is over, and whether it resumed a session. */
bool secure_is_done(const struct ssl_st *ssl);
bool secure_is_resumed(const struct ssl_st *ssl);

/* OpenSSL's last error as text. */
const char *secure_why(void);

#endif
