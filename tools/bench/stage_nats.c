/* A JetStream stream for the bench's topic, made with the few commands that this needs. */
#include "build_config.h"

#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"

#include <errno.h>
#include <jansson.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#define ANSWER_S 10
#define ANSWER_MAX 65536u

struct peer {
	int fd;
	SSL *ssl;              /* NULL: in the clear */
	char text[ANSWER_MAX]; /* its last line */
};

static int
send_text(struct peer *peer, const char *text)
{
	int len = (int)strlen(text);

	return (peer->ssl != NULL ? SSL_write(peer->ssl, text, len)
				  : (int)send(peer->fd, text, (size_t)len, MSG_NOSIGNAL)) != len;
}

/* Reads until this text or an error arrives. Returns 0 or -1. */
static int
read_until(struct peer *peer, const char *text)
{
	size_t len = 0;
	int n, room;

	peer->text[0] = '\0';
	while (strstr(peer->text, text) == NULL) {
		room = (int)(sizeof(peer->text) - len - 1);
		if (room == 0 || strstr(peer->text, "-ERR") != NULL)
			return -1;
		n = peer->ssl != NULL ? SSL_read(peer->ssl, peer->text + len, room)
				      : (int)recv(peer->fd, peer->text + len, (size_t)room, 0);
		if (n <= 0)
			return -1;
		len += (size_t)n;
		peer->text[len] = '\0';
	}
	return 0;
}

/* TLS begins after INFO. Nothing is secret here, so the certificate is not verified.
 */
static int
begin_tls(struct peer *peer)
{
	SSL_CTX *context = SSL_CTX_new(TLS_client_method());

	peer->ssl = context != NULL ? SSL_new(context) : NULL;
	SSL_CTX_free(context);
	return peer->ssl == NULL || SSL_set_fd(peer->ssl, peer->fd) != 1 || SSL_connect(peer->ssl) != 1;
}

static int
create(struct peer *peer, int tls, const char *stream)
{
	static const struct timeval timeout = { .tv_sec = ANSWER_S };
	char *request;
	int failed;

	if (asprintf(&request,
		"CONNECT {\"verbose\":false}\r\nSUB bench.inbox 1\r\n"
		"PUB $JS.API.STREAM.CREATE.BENCH bench.inbox %zu\r\n%s\r\n",
		strlen(stream), stream) < 0)
		return -1;
	setsockopt(peer->fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	setsockopt(peer->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
	failed = read_until(peer, "\r\n") != 0 || (tls && begin_tls(peer) != 0) ||
		 send_text(peer, request) != 0 || read_until(peer, "stream_create_response") != 0 ||
		 strstr(peer->text, "\"error\"") != NULL;
	free(request);
	if (failed)
		cli_error("--start: nats-server did not make the stream: %s", peer->text);
	return failed ? -1 : 0;
}

int
stage_make_stream(const struct stage *stage, const struct bench_options *options)
{
	json_t *object = json_pack("{s:s,s:[s],s:s,s:I,s:s}", "name", "BENCH", "subjects", options->topic,
	    "storage", "memory", "max_bytes", (json_int_t)STAGE_KEEP_BYTES, "discard", "old");
	char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
	struct peer peer = { .fd = stage_connect(stage->port) };
	int failed = -1;

	if (text == NULL)
		cli_error("--topic: \"%s\" is not UTF-8", options->topic);
	else if (peer.fd < 0)
		cli_error("--start: nats-server: %s", strerror(errno));
	else
		failed = create(&peer, options->tls, text);
	SSL_free(peer.ssl);
	if (peer.fd >= 0)
		close(peer.fd);
	free(text);
	json_decref(object);
	return failed;
}
