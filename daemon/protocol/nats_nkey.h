/*
 * nkeys: NATS's Ed25519 identities. A user's seed is text that begins with SU; the server keeps the
 * public key (U...) and asks for a signature of a nonce.
 *
 *   seed text   = base32 [ 18 << 3 | type >> 5 ][ (type & 31) << 3 ][ 32 bytes of seed ][ crc16, low byte first
 * ] public text = base32 [ type ][ 32 bytes of public key ][ crc16 ]             type of a user: 20 << 3
 */
#ifndef TG_DAEMON_PROTOCOL_NATS_NKEY_H
#define TG_DAEMON_PROTOCOL_NATS_NKEY_H

#include <stddef.h>
#include <stdint.h>

#define NATS_SEED_TEXT 58u
#define NATS_PUBLIC_TEXT 56u
#define NATS_SIGNATURE_TEXT 86u

struct nats_nkey {
	uint8_t seed[32];
	char public_text[NATS_PUBLIC_TEXT + 1];
};

/* Reads a user's seed. Returns NULL, or what is wrong with it (static; nothing of it is shown). nats_nkey_fini() it
 * in either case. */
const char *nats_nkey_read(struct nats_nkey *nkey, const char *text);

/* Signs bytes; the signature is base64 for URLs, unpadded, terminated. Returns 0 or -TG_ESYSTEM. */
int nats_nkey_sign(
    const struct nats_nkey *nkey, const void *bytes, size_t len, char signature[NATS_SIGNATURE_TEXT + 1]);

/* Wipes it. */
void nats_nkey_fini(struct nats_nkey *nkey);

#endif
