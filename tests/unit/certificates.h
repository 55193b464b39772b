/* Certificates for tests, made on the spot. Whatever fails ends the test. */
#ifndef TG_TESTS_CERTIFICATES_H
#define TG_TESTS_CERTIFICATES_H

/*
 * Writes a self-signed certificate for a DNS name, valid from now for `days` (negative: it has
 * expired), and its key. Both files are made anew.
 */
void certificate_write(const char *cert_path, const char *key_path, const char *name, int days);

#endif
