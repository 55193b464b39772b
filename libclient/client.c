/* A client from its opening to its end. Nothing is said to the daemon until the first lane is asked for. */
#include "internal.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "build_config.h"

static const char *
socket_path(const struct tg_client_options *options)
{
	const char *path = options->socket;

	if (path == NULL)
		path = secure_getenv("TIDEGATE_SOCKET");
	return path != NULL && (path[0] != '\0' || options->socket != NULL) ? path : TG_DEFAULT_SOCKET;
}

static int
options_apply(struct tg_client *client, const struct tg_client_options *options)
{
	const char *path = socket_path(options);
	const char *name = options->name != NULL ? options->name : program_invocation_short_name;
	size_t len = strlen(path);

	if (len == 0 || len >= sizeof(client->path))
		return detail_fail(-TG_EINVAL, "socket \"%s\": the path has %zu bytes, 1 to %zu are possible",
		    path, len, sizeof(client->path) - 1);
	if (options->timeout_ms > INT_MAX)
		return detail_fail(-TG_EINVAL, "timeout_ms = %u: at most %d", options->timeout_ms, INT_MAX);
	memcpy(client->path, path, len + 1);
	strncpy(client->name, name, sizeof(client->name) - 1);
	client->timeout_ms = options->timeout_ms != 0 ? options->timeout_ms : CLIENT_TIMEOUT_MS;
	return 0;
}

int
tg_client_open(struct tg_client **out, const struct tg_client_options *options)
{
	static const struct tg_client_options defaults;
	struct tg_client *client;
	int rc;

	if (out == NULL)
		return detail_fail(-TG_EINVAL, "tg_client_open: client is NULL");
	*out = NULL;
	client = calloc(1, sizeof(*client));
	if (client == NULL)
		return detail_fail(-TG_ENOMEM, "no memory for a client (%zu bytes)", sizeof(*client));
	client->fd = -1;
	pthread_mutex_init(&client->control, NULL); /* never fails with these attributes */
	if ((rc = options_apply(client, options != NULL ? options : &defaults)) != 0)
		goto fail;
	if ((rc = fork_mark_get(&client->mark)) != 0) {
		detail_fail(rc, "fork detection (MADV_WIPEONFORK): %s", strerror(errno));
		goto fail;
	}
	if ((rc = client_connect(client)) != 0)
		goto fail;
	client->registered = wake_register() == 0;
	*out = client;
	return 0;
fail:
	free(client);
	return rc;
}

void
tg_client_close(struct tg_client *client)
{
	if (client == NULL)
		return;
	while (client->lanes != NULL)
		lane_free(client->lanes);
	if (fork_is_child(&client->mark))
		close(client->fd); /* the parent is not disturbed */
	else
		client_hang_up(client);
	free(client);
}

const char *
tg_version(void)
{
	return PACKAGE_VERSION;
}
