/* The credentials of a pool's links: certificates and passwords, read again before each connection. */
#include "broker.h"

#include "daemon/base/log.h"
#include "daemon/config/config_secret.h"

#include <string.h>

int
peers_load_tls(struct peers *peers)
{
	struct tls_error error = { .why = "out of memory" };

	if (!peers->config->tls.enabled)
		return 0;
	int rc = tls_context_new(&peers->tls, &peers->config->tls, peers->config->driver->alpn, &error);
	if (rc != 0)
		log_event(LOG_LEVEL_ERROR, "tls_load_failed", "pool=%s key=%s cause=%s", peers->config->name,
		    error.key != NULL ? error.key : "-",
		    log_quote((char[320]){ 0 }, 320, error.why, strlen(error.why)));
	return rc;
}

void
peers_renew_tls(const struct peers *peers)
{
	struct tls_error error = { .why = "out of memory" };
	int rc = tls_context_reload(peers->tls, &error);

	if (rc > 0)
		log_event(LOG_LEVEL_INFO, "tls_renewed", "pool=%s", peers->config->name);
	else if (rc < 0)
		log_event(LOG_LEVEL_ERROR, "tls_renewal_failed",
		    "pool=%s key=%s cause=%s remedy=\"the old files stay in force\"", peers->config->name,
		    error.key != NULL ? error.key : "-",
		    log_quote((char[320]){ 0 }, 320, error.why, strlen(error.why)));
}

void
peers_renew_secrets(const struct peers *peers)
{
	const struct driver *driver = peers->config->driver;

	for (unsigned i = 0; i < driver->secret_count; i++) {
		struct config_secret *secret =
		    (void *)((char *)peers->config->driver_settings + driver->secrets[i]);
		int rc = config_secret_renew(secret);
		if (rc > 0)
			log_event(LOG_LEVEL_INFO, "secret_renewed", "pool=%s key=%s.%s", peers->config->name,
			    driver->name, secret->key);
		else if (rc < 0)
			log_event(LOG_LEVEL_ERROR, "secret_renewal_failed",
			    "pool=%s key=%s.%s cause=%s remedy=\"the old one stays in force\"",
			    peers->config->name, driver->name, secret->key,
			    log_quote((char[700]){ 0 }, 700, secret->failed, strlen(secret->failed)));
	}
}
