#include "certificates.h"

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void
need(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "certificate for the test: %s\n", what);
	abort();
}

static FILE *
create(const char *path)
{
	unlink(path);
	FILE *file = fopen(path, "we");
	need(file != NULL, path);
	return file;
}

void
certificate_write(const char *cert_path, const char *key_path, const char *name, int days)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *certificate = X509_new();
	static long serial;
	char names[300];

	need(key != NULL && certificate != NULL, "key");
	X509_set_version(certificate, X509_VERSION_3);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
	X509_gmtime_adj(X509_getm_notBefore(certificate), -2L * 86400);
	X509_gmtime_adj(X509_getm_notAfter(certificate), days * 86400L);
	X509_set_pubkey(certificate, key);
	X509_NAME_add_entry_by_txt(
	    X509_get_subject_name(certificate), "CN", MBSTRING_ASC, (const unsigned char *)name, -1, -1, 0);
	X509_set_issuer_name(certificate, X509_get_subject_name(certificate));
	snprintf(names, sizeof(names), "DNS:%s", name);
	X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, names);
	need(extension != NULL && X509_add_ext(certificate, extension, -1) == 1, "names");
	X509_EXTENSION_free(extension);
	need(X509_sign(certificate, key, EVP_sha256()) > 0, "signature");

	FILE *file = create(cert_path);
	need(PEM_write_X509(file, certificate) == 1 && fclose(file) == 0, cert_path);
	file = create(key_path);
	need(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL) == 1 && fclose(file) == 0, key_path);
	need(chmod(key_path, 0600) == 0, key_path);
	X509_free(certificate);
	EVP_PKEY_free(key);
}
