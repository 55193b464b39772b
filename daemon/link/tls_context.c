/* A pool's certificates and rules. */
#include "tls_internal.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- errors in words ---- */

/* The innermost of OpenSSL's complaints: a file's own, rather than that of what asked for it. */
static const char *
reason(void)
{
	unsigned long error = ERR_peek_error();
	const char *text = ERR_reason_error_string(error);

	if (error == 0)
		return "no reason given";
	if (ERR_SYSTEM_ERROR(error))
		return strerrordesc_np(ERR_GET_REASON(error));
	if (ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE)
		return "nothing of the kind in PEM form is in it";
	if (ERR_GET_REASON(error) == ERR_R_INTERRUPTED_OR_CANCELLED) /* the result of no_password() */
		return "it is encrypted, and nobody is there to give a password";
	return text != NULL ? text : "no reason given";
}

static int
complain(struct tls_error *error, const char *key, const char *what, const char *path)
{
	error->key = key;
	if (path != NULL)
		snprintf(error->why, sizeof(error->why), "%s %s: %s", path, what, reason());
	else
		snprintf(error->why, sizeof(error->why), "%s: %s", what, reason());
	ERR_clear_error();
	return -TG_EINVAL;
}

/* OpenSSL's own asks on the terminal. */
static int
no_password(char *buffer, int size, int writing, void *owner)
{
	return -1;
}

/* ---- reading the files ---- */

/* As the configuration demands of them: one that was renewed must not stop the loop, or the next start. */
static int
suits(const char *key, const char *path, int is_private, struct tls_error *error)
{
	struct stat about;

	if (stat(path, &about) != 0)
		return 0; /* opening it reports the error */
	error->key = key;
	if (!S_ISREG(about.st_mode))
		snprintf(error->why, sizeof(error->why), "%s is not a regular file", path);
	else if (is_private && (about.st_mode & S_IRWXO) != 0)
		snprintf(error->why, sizeof(error->why), CONFIG_NOT_PRIVATE, path,
		    (unsigned)about.st_mode & 07777u, path);
	else
		return 0;
	return -TG_EINVAL;
}

static int
load_trust(SSL_CTX *ctx, const struct config_tls *config, struct tls_error *error)
{
	if (!config->verify)
		return 0;
	if (config->ca_file == NULL) {
		if (SSL_CTX_set_default_verify_paths(ctx) != 1)
			return complain(
			    error, "ca_file", "missing, and the system's certificates cannot be used", NULL);
		return 0;
	}
	int rc = suits("ca_file", config->ca_file, 0, error);
	if (rc != 0)
		return rc;
	if (SSL_CTX_load_verify_file(ctx, config->ca_file) != 1)
		return complain(error, "ca_file", "is no list of certificates", config->ca_file);
	/* A listed certificate is trusted, whether or not its own issuer is listed too. */
	X509_VERIFY_PARAM_set_flags(SSL_CTX_get0_param(ctx), X509_V_FLAG_PARTIAL_CHAIN);
	return 0;
}

static int
load_identity(SSL_CTX *ctx, const struct config_tls *config, struct tls_error *error)
{
	if (config->cert_file == NULL || config->key_file == NULL)
		return 0;
	int rc = suits("cert_file", config->cert_file, 0, error);
	if (rc == 0)
		rc = suits("key_file", config->key_file, 1, error);
	if (rc != 0)
		return rc;
	if (SSL_CTX_use_certificate_chain_file(ctx, config->cert_file) != 1)
		return complain(error, "cert_file", "is no certificate chain", config->cert_file);
	if (SSL_CTX_use_PrivateKey_file(ctx, config->key_file, SSL_FILETYPE_PEM) == 1)
		return 0;
	/* The key is compared with the certificate as it is read. */
	if (ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_VALUES_MISMATCH ||
	    ERR_GET_REASON(ERR_peek_last_error()) == X509_R_KEY_TYPE_MISMATCH) {
		ERR_clear_error();
		error->key = "key_file";
		snprintf(error->why, sizeof(error->why), "%s is not the key of the certificate in %s",
		    config->key_file, config->cert_file);
		return -TG_EINVAL;
	}
	return complain(error, "key_file", "is no private key", config->key_file);
}

static int
set_rules(SSL_CTX *ctx, const struct tls_context *context)
{
	/* Sessions are kept with their broker, and reused only there. */
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
	SSL_CTX_sess_set_new_cb(ctx, tls_on_session);
	SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_mode(ctx,
	    SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
	/* One read of the socket for several records. */
	SSL_CTX_set_read_ahead(ctx, 1);
	SSL_CTX_set_default_read_buffer_len(ctx, 64u << 10);
	SSL_CTX_set_verify(ctx, context->config->verify ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, tls_on_verify);
	SSL_CTX_set_default_passwd_cb(ctx, no_password);
	if (SSL_CTX_set_min_proto_version(ctx, context->config->min_version) != 1)
		return 0;
	return context->alpn_len == 0 || SSL_CTX_set_alpn_protos(ctx, context->alpn, context->alpn_len) == 0;
}

static int
build(const struct tls_context *context, SSL_CTX **made, struct tls_error *error)
{
	int rc;

	ERR_clear_error();
	SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
	if (ctx == NULL || !set_rules(ctx, context))
		rc = complain(error, NULL, "OpenSSL refuses these settings", NULL);
	else
		rc = load_trust(ctx, context->config, error);
	if (rc == 0)
		rc = load_identity(ctx, context->config, error);
	if (rc != 0) {
		SSL_CTX_free(ctx);
		return rc;
	}
	*made = ctx;
	return 0;
}

/* ---- noticing that they were renewed ---- */

static void
stamp(const struct config_tls *config, struct tls_stamp stamps[TLS_FILES])
{
	const char *const files[TLS_FILES] = { config->ca_file, config->cert_file, config->key_file };
	struct stat about;

	memset(stamps, 0, TLS_FILES * sizeof(*stamps)); /* compared with its padding */
	for (unsigned i = 0; i < TLS_FILES; i++) {
		if (files[i] == NULL || stat(files[i], &about) != 0)
			continue;
		stamps[i].dev = about.st_dev;
		stamps[i].ino = about.st_ino;
		stamps[i].size = about.st_size;
		stamps[i].mtime = about.st_mtim;
	}
}

int
tls_context_reload(struct tls_context *context, struct tls_error *error)
{
	struct tls_stamp now[TLS_FILES];
	SSL_CTX *ctx;

	stamp(context->config, now);
	int changed = memcmp(now, context->tried, sizeof(now)) != 0;
	if (!changed && context->failed[0] == '\0')
		return 0;
	memcpy(context->tried, now, sizeof(now));
	int rc = build(context, &ctx, error);
	if (rc != 0) {
		int said = !changed && strcmp(context->failed, error->why) == 0;
		memcpy(context->failed, error->why, sizeof(context->failed));
		return said ? 0 : rc;
	}
	context->failed[0] = '\0';
	SSL_CTX_free(context->ctx);
	context->ctx = ctx;
	context->generation++;
	return 1;
}

/* ---- life ---- */

int
tls_context_new(
    struct tls_context **made, const struct config_tls *config, const char *alpn, struct tls_error *error)
{
	struct tls_context *context = calloc(1, sizeof(*context));

	if (context == NULL)
		return -TG_ENOMEM;
	context->config = config;
	context->generation = 1;
	if (alpn != NULL) {
		context->alpn[0] = (unsigned char)strlen(alpn);
		memcpy(context->alpn + 1, alpn, context->alpn[0]);
		context->alpn_len = context->alpn[0] + 1u;
	}
	stamp(config, context->tried);
	int rc = build(context, &context->ctx, error);
	if (rc == 0 && (context->method = tls_bio_method()) == NULL)
		rc = -TG_ENOMEM;
	if (rc != 0) {
		tls_context_free(context);
		return rc;
	}
	*made = context;
	return 0;
}

void
tls_context_free(struct tls_context *context)
{
	if (context == NULL)
		return;
	SSL_CTX_free(context->ctx);
	BIO_meth_free(context->method);
	free(context);
}
