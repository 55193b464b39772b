#include "admin.h"

#include "log.h"
#include "loop.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct session_admin {
	struct admin *admin;
	uv_pipe_t pipe;
	char *line;
	size_t len;
	size_t queued; /* bytes of answers not written yet */
};

struct reply {
	uv_write_t write;
	struct session_admin *session;
	size_t len;
	char *text;
};

static void
on_closed(uv_handle_t *handle)
{
	struct session_admin *s = handle->data;

	s->admin->connections--;
	free(s->line);
	free(s);
}

static void
hang_up(struct session_admin *s)
{
	if (!uv_is_closing((uv_handle_t *)&s->pipe))
		uv_close((uv_handle_t *)&s->pipe, on_closed);
}

static void
on_written(uv_write_t *write, int status)
{
	struct reply *reply = write->data;

	reply->session->queued -= reply->len;
	if (status < 0)
		hang_up(reply->session);
	free(reply->text);
	free(reply);
}

static void
send_answer(struct session_admin *s, json_t *answer)
{
	struct reply *reply = calloc(1, sizeof(*reply));
	char *text = answer != NULL ? json_dumps(answer, JSON_COMPACT) : NULL;

	json_decref(answer);
	if (reply == NULL || text == NULL || s->queued > ADMIN_QUEUED) {
		free(reply);
		free(text);
		hang_up(s);
		return;
	}
	reply->session = s;
	reply->text = text;
	reply->len = strlen(text) + 1;
	text[reply->len - 1] = '\n';
	reply->write.data = reply;
	s->queued += reply->len;
	uv_buf_t buf = uv_buf_init(text, (unsigned)reply->len);
	if (uv_write(&reply->write, (uv_stream_t *)&s->pipe, &buf, 1, on_written) != 0) {
		on_written(&reply->write, -1);
	}
}

static void
on_line(struct session_admin *s, const char *line, size_t len)
{
	json_error_t error;
	json_t *request = json_loadb(line, len, 0, &error);

	if (request == NULL) {
		send_answer(s, json_pack("{s:b, s:s}", "ok", 0, "error", error.text));
		return;
	}
	send_answer(s, admin_answer(s->admin->shard, request));
	json_decref(request);
}

static void
on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct session_admin *s = handle->data;

	*buf = uv_buf_init(s->line + s->len, (unsigned)(ADMIN_LINE - s->len));
}

static void
on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct session_admin *s = stream->data;
	char *end;

	if (n < 0) {
		hang_up(s);
		return;
	}
	loop_refresh_clock(s->admin->shard);
	s->len += (size_t)n;
	while ((end = memchr(s->line, '\n', s->len)) != NULL) {
		size_t used = (size_t)(end - s->line) + 1;
		on_line(s, s->line, used - 1);
		s->len -= used;
		memmove(s->line, s->line + used, s->len);
	}
	if (s->len == ADMIN_LINE) {
		send_answer(s, json_pack("{s:b, s:s}", "ok", 0, "error", "a request longer than 65536 bytes"));
		hang_up(s);
	}
}

void
admin_accept(struct admin *admin, int fd)
{
	struct session_admin *s = calloc(1, sizeof(*s));

	if (s == NULL || admin->connections >= ADMIN_CONNECTIONS || (s->line = malloc(ADMIN_LINE)) == NULL) {
		log_event(LOG_LEVEL_WARN, "admin_refused", "connections=%u limit=%u", admin->connections,
		    ADMIN_CONNECTIONS);
		free(s);
		close(fd);
		return;
	}
	s->admin = admin;
	s->pipe.data = s;
	uv_pipe_init(admin->loop, &s->pipe, 0);
	admin->connections++;
	if (uv_pipe_open(&s->pipe, fd) != 0) {
		close(fd);
		hang_up(s);
		return;
	}
	uv_read_start((uv_stream_t *)&s->pipe, on_alloc, on_read);
}
