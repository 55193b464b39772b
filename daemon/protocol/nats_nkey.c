#include "nats_nkey.h"

#include "shm/error.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

#define TYPE_SEED (18u << 3)
#define TYPE_USER (20u << 3)

static const char base32[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
static const char base64url[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/* CRC-16/XMODEM. */
static uint16_t
crc16(const uint8_t *bytes, size_t len)
{
	uint32_t crc = 0;

	for (size_t i = 0; i < len; i++) {
		crc ^= (uint32_t)bytes[i] << 8;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc & 0x8000u) != 0 ? crc << 1 ^ 0x1021u : crc << 1;
	}
	return (uint16_t)crc;
}

/* Text of whole and rest bits; the rest is dropped. Returns 0, or -1 at a foreign character. */
static int
base32_decode(uint8_t *to, const char *text, size_t len)
{
	uint32_t bits = 0, count = 0;

	for (size_t i = 0; i < len; i++) {
		const char *at = memchr(base32, text[i], sizeof(base32) - 1);
		if (at == NULL)
			return -1;
		bits = (bits << 5 | (uint32_t)(at - base32)) & 0xfff;
		count += 5;
		if (count >= 8) {
			count -= 8;
			*to++ = (uint8_t)(bits >> count);
		}
	}
	OPENSSL_cleanse(&bits, sizeof(bits));
	return 0;
}

static void
encode(char *to, const uint8_t *bytes, size_t len, const char *alphabet, uint32_t width)
{
	uint32_t bits = 0, count = 0, mask = (1u << width) - 1;

	for (size_t i = 0; i < len; i++) {
		bits = (bits << 8 | bytes[i]) & 0xffff;
		for (count += 8; count >= width; count -= width)
			*to++ = alphabet[bits >> (count - width) & mask];
	}
	if (count > 0)
		*to++ = alphabet[bits << (width - count) & mask];
	*to = '\0';
}

static int
public_key(struct nats_nkey *nkey)
{
	uint8_t raw[1 + 32 + 2] = { TYPE_USER };
	size_t len = 32;
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, nkey->seed, sizeof(nkey->seed));
	int good = key != NULL && EVP_PKEY_get_raw_public_key(key, raw + 1, &len) == 1 && len == 32;

	EVP_PKEY_free(key);
	if (!good)
		return -TG_ESYSTEM;
	uint16_t crc = crc16(raw, 33);
	raw[33] = (uint8_t)crc;
	raw[34] = (uint8_t)(crc >> 8);
	encode(nkey->public_text, raw, sizeof(raw), base32, 5);
	return 0;
}

const char *
nats_nkey_read(struct nats_nkey *nkey, const char *text)
{
	uint8_t raw[36];
	const char *wrong = NULL;

	if (strlen(text) != NATS_SEED_TEXT)
		return "an nkey seed has 58 characters";
	if (base32_decode(raw, text, NATS_SEED_TEXT) != 0)
		wrong = "an nkey seed has the characters A to Z and 2 to 7";
	else if (crc16(raw, 34) != (raw[34] | raw[35] << 8))
		wrong = "the nkey seed's check sum is wrong";
	else if ((raw[0] & 0xf8) != TYPE_SEED || ((raw[0] & 7) << 5 | raw[1] >> 3) != TYPE_USER)
		wrong = "it is not the nkey seed of a user (they begin with SU)";
	if (wrong == NULL) {
		memcpy(nkey->seed, raw + 2, sizeof(nkey->seed));
		if (public_key(nkey) != 0)
			wrong = "OpenSSL has no Ed25519";
	}
	OPENSSL_cleanse(raw, sizeof(raw));
	return wrong;
}

int
nats_nkey_sign(
    const struct nats_nkey *nkey, const void *bytes, size_t len, char signature[NATS_SIGNATURE_TEXT + 1])
{
	uint8_t raw[64];
	size_t raw_len = sizeof(raw);
	EVP_PKEY *key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, nkey->seed, sizeof(nkey->seed));
	EVP_MD_CTX *context = EVP_MD_CTX_new();
	int good = key != NULL && context != NULL && EVP_DigestSignInit(context, NULL, NULL, NULL, key) == 1 &&
		   EVP_DigestSign(context, raw, &raw_len, bytes, len) == 1 && raw_len == sizeof(raw);

	EVP_MD_CTX_free(context);
	EVP_PKEY_free(key);
	if (!good)
		return -TG_ESYSTEM;
	encode(signature, raw, sizeof(raw), base64url, 6);
	return 0;
}

void
nats_nkey_fini(struct nats_nkey *nkey)
{
	OPENSSL_cleanse(nkey, sizeof(*nkey));
}
