/* Makes certificates for tests. A failure ends the test. */
#ifndef TG_TESTS_CERTIFICATES_H
#define TG_TESTS_CERTIFICATES_H

/*
 * Writes a self-signed certificate for a DNS name, valid from now for `days` (negative: it has
 * expired), and its key. Existing files are replaced.
 */
void certificate_write(const char *cert_path, const char *key_path, const char *name, int days);

#endif
