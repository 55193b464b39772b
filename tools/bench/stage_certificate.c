/* A certificate that signs itself, for as long as a bench takes. */
#include "build_config.h"

#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/pkcs12.h>
#include <openssl/x509v3.h>
#include <string.h>

#define LIFE_S (7 * 24 * 3600L)

static int
add_extension(X509 *certificate, int nid, const char *value)
{
	X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, nid, value);
	int added = extension != NULL && X509_add_ext(certificate, extension, -1) == 1;

	X509_EXTENSION_free(extension);
	return added;
}

static X509 *
make(EVP_PKEY *key)
{
	X509 *certificate = X509_new();
	X509_NAME *name = certificate != NULL ? X509_get_subject_name(certificate) : NULL;

	/* Clients have it as their CA and the broker as its own, so it must be both. */
	if (name != NULL && X509_set_version(certificate, 2) == 1 &&
	    ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1) == 1 &&
	    X509_gmtime_adj(X509_getm_notBefore(certificate), -3600) != NULL &&
	    X509_gmtime_adj(X509_getm_notAfter(certificate), LIFE_S) != NULL &&
	    X509_set_pubkey(certificate, key) == 1 &&
	    X509_NAME_add_entry_by_txt(
		name, "CN", MBSTRING_ASC, (const unsigned char *)"tidegate-bench", -1, -1, 0) == 1 &&
	    X509_set_issuer_name(certificate, name) == 1 &&
	    add_extension(certificate, NID_basic_constraints, "critical,CA:TRUE") &&
	    add_extension(certificate, NID_subject_alt_name, "IP:127.0.0.1,DNS:localhost") &&
	    X509_sign(certificate, key, EVP_sha256()) != 0)
		return certificate;
	X509_free(certificate);
	return NULL;
}

static int
write_key_store(struct stage *stage, EVP_PKEY *key, X509 *certificate)
{
	PKCS12 *store = PKCS12_create(STAGE_KEY_STORE_PASSWORD, "bench", key, certificate, NULL, 0, 0, 0, 0, 0);
	FILE *file = store != NULL ? fopen(stage->key_store, "we") : NULL;
	int failed = file == NULL || i2d_PKCS12_fp(file, store) != 1;

	if (file != NULL)
		failed |= fclose(file) != 0;
	PKCS12_free(store);
	return failed;
}

int
stage_make_certificate(struct stage *stage)
{
	EVP_PKEY *key = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
	X509 *certificate = key != NULL ? make(key) : NULL;
	FILE *file;
	int failed = -1;

	if (certificate == NULL) {
		cli_error("--tls: no certificate: %s", ERR_reason_error_string(ERR_get_error()));
		goto out;
	}
	if (stage_path(stage, "cert.pem", stage->cert) != 0 || stage_path(stage, "key.pem", stage->key) != 0 ||
	    stage_path(stage, "key.p12", stage->key_store) != 0)
		goto out;
	file = fopen(stage->cert, "we");
	failed = file == NULL || PEM_write_X509(file, certificate) != 1;
	if (file != NULL)
		failed |= fclose(file) != 0;
	/* The folder is ours alone, and so is the key. */
	file = fopen(stage->key, "we");
	failed |= file == NULL || PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) != 1;
	if (file != NULL)
		failed |= fclose(file) != 0;
	failed |= write_key_store(stage, key, certificate);
	if (failed)
		cli_error("--tls: %s: %s", stage->key, strerror(errno));
out:
	X509_free(certificate);
	EVP_PKEY_free(key);
	return failed ? -1 : 0;
}
