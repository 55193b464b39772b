#include "admin.h"

#include "daemon/base/log.h"
#include "daemon/flow/shard.h"
#include "daemon/front/front.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct admin_session {
	struct admin *admin;
	TAILQ_ENTRY(admin_session) entry;
	uv_pipe_t pipe;
	char *line;
	size_t len;
	size_t queued;    /* bytes of answers and events not written yet */
	json_t *request;  /* being answered, page by page; NULL: none */
	int pages;        /* of it that were made */
	int answering;    /* an answer is not written yet: reading has stopped */
	int last;         /* hang up when it is */
	uint64_t follows; /* number of the next event to push; 0: does not follow */
};

struct reply {
	uv_write_t write;
	struct admin_session *session;
	size_t len;
	int is_answer; /* not an event */
	char *text;
};

static void next_step(struct admin_session *s);

static void
on_closed(uv_handle_t *handle)
{
	struct admin_session *s = handle->data;

	json_decref(s->request);
	free(s->line);
	free(s);
}

static void
hang_up(struct admin_session *s)
{
	if (uv_is_closing((uv_handle_t *)&s->pipe))
		return;
	TAILQ_REMOVE(&s->admin->sessions, s, entry);
	s->admin->connections--;
	uv_close((uv_handle_t *)&s->pipe, on_closed);
}

/* ---- out ---- */

static void
on_written(uv_write_t *write, int status)
{
	struct reply *reply = write->data;
	struct admin_session *s = reply->session;
	int is_answer = reply->is_answer;

	s->queued -= reply->len;
	free(reply->text);
	free(reply);
	if (uv_is_closing((uv_handle_t *)&s->pipe))
		return;
	if (status < 0) {
		hang_up(s);
		return;
	}
	if (!is_answer)
		return;
	s->answering = 0;
	shard_refresh_clock(s->admin->shard);
	next_step(s);
}

/* Takes text over (malloc). NULL, or more than may be left unread: the end of this admin. */
static void
send_text(struct admin_session *s, char *text, size_t len, int is_answer)
{
	struct reply *reply = calloc(1, sizeof(*reply));

	if (reply == NULL || text == NULL || s->queued + len > ADMIN_QUEUED) {
		log_event(LOG_LEVEL_WARN, "admin_cut_off", "queued=%zu limit=%u cause=\"%s\"", s->queued,
		    ADMIN_QUEUED, reply == NULL || text == NULL ? "out of memory" : "does not read");
		free(reply);
		free(text);
		hang_up(s);
		return;
	}
	reply->session = s;
	reply->text = text;
	reply->len = len;
	reply->is_answer = is_answer;
	reply->write.data = reply;
	s->queued += len;
	s->answering |= is_answer;
	uv_buf_t buf = uv_buf_init(text, (unsigned)len);
	int rc = uv_write(&reply->write, (uv_stream_t *)&s->pipe, &buf, 1, on_written);
	if (rc != 0)
		on_written(&reply->write, rc);
}

/*
 * A page as text. A report of several goes out as one line:
 *   {"ok":true,"links":[a,b    ,c,d    ,e]}
 * json: the first page, whose last member is the list, or the list of a later one.
 */
static char *
page_text(const json_t *json, int is_first, int is_last, size_t *len)
{
	char *text = json_dumps(json, JSON_COMPACT);
	size_t n;

	if (text == NULL)
		return NULL;
	n = strlen(text);
	if (!is_first && n == 2)
		text[0] = text[--n]; /* "[]": rows that were there when the last page was made */
	else if (!is_first)
		text[0] = ',';
	if (!is_last) {
		*len = n - (is_first ? 2 : 1);
		return text;
	}
	char *longer = realloc(text, n + 3);
	if (longer == NULL) {
		free(text);
		return NULL;
	}
	if (!is_first)
		longer[n++] = '}';
	longer[n++] = '\n';
	*len = n;
	return longer;
}

static void
begin_to_follow(struct admin_session *s, const json_t *answer)
{
	if (json_is_true(json_object_get(s->request, "follow")) &&
	    json_is_integer(json_object_get(answer, "seq")))
		s->follows = (uint64_t)json_integer_value(json_object_get(answer, "seq"));
}

/* Makes the next page of the request and sends it. */
static void
send_page(struct admin_session *s)
{
	json_t *page = admin_answer(s->admin, s->request);
	json_t *next = json_object_get(page, "next");
	int is_first = s->pages++ == 0, is_last = 1;
	size_t len = 0;

	if (next != NULL && json_object_get(s->request, "max") == NULL) {
		is_last = json_object_set(s->request, "from", next) != 0;
		json_object_del(page, "next");
	}
	const char *cmd = json_string_value(json_object_get(s->request, "cmd"));
	const json_t *json = is_first ? page : json_object_get(page, cmd);
	char *text = json != NULL ? page_text(json, is_first, is_last, &len) : NULL;
	begin_to_follow(s, page);
	json_decref(page);
	if (is_last) {
		json_decref(s->request);
		s->request = NULL;
	}
	send_text(s, text, len, 1);
}

static void
send_error(struct admin_session *s, const char *error)
{
	struct answer answer;
	size_t len = 0;

	answer_init(&answer);
	answer_truth(&answer, "ok", 0);
	answer_text(&answer, "error", error);
	json_t *json = answer_end(&answer);
	char *text = json != NULL ? page_text(json, 1, 1, &len) : NULL;
	json_decref(json);
	send_text(s, text, len, 1);
}

/* Events go between the lines of answers, never into one. */
static void
push_events(struct admin_session *s)
{
	uint64_t next = events_next(&s->admin->events), first = events_first(&s->admin->events);

	if (s->follows == 0 || s->request != NULL)
		return;
	if (s->follows < first)
		s->follows = first;
	while (s->follows < next && !uv_is_closing((uv_handle_t *)&s->pipe)) {
		struct answer event, outer;
		size_t len = 0;
		if (admin_event(&event, &s->admin->events, s->follows++) != 0)
			continue;
		answer_init(&outer);
		answer_json(&outer, "event", answer_end(&event));
		json_t *line = answer_end(&outer);
		char *text = line != NULL ? page_text(line, 1, 1, &len) : NULL;
		json_decref(line);
		send_text(s, text, len, 0);
	}
}

/* From any thread. */
static void
on_event(struct events *events)
{
	struct admin *admin = (struct admin *)(void *)((char *)events - offsetof(struct admin, events));

	uv_async_send(&admin->came);
}

static void
on_came(uv_async_t *async)
{
	struct admin *admin = async->data;
	struct admin_session *s, *next;

	for (s = TAILQ_FIRST(&admin->sessions); s != NULL; s = next) {
		next = TAILQ_NEXT(s, entry);
		push_events(s);
	}
}

/* ---- in ---- */

static void
on_line(struct admin_session *s, const char *line, size_t len)
{
	json_error_t error;
	json_t *request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);

	if (request == NULL) {
		char text[JSON_ERROR_TEXT_LENGTH + 32];
		snprintf(text, sizeof(text), "not a JSON object: %s", error.text);
		send_error(s, text);
		return;
	}
	s->request = request;
	s->pages = 0;
	TAILQ_REMOVE(&s->admin->sessions, s, entry);
	TAILQ_INSERT_TAIL(&s->admin->sessions, s, entry);
	send_page(s);
}

static void
on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf)
{
	struct admin_session *s = handle->data;

	*buf = uv_buf_init(s->line + s->len, (unsigned)(ADMIN_LINE - s->len));
}

static void
on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
	struct admin_session *s = stream->data;

	if (n < 0) {
		hang_up(s);
		return;
	}
	shard_refresh_clock(s->admin->shard);
	s->len += (size_t)n;
	next_step(s);
}

/* The next page, or the next request, or what else comes. */
static void
next_step(struct admin_session *s)
{
	char *end;

	if (s->answering)
		return;
	if (s->last) {
		hang_up(s);
		return;
	}
	if (s->request != NULL) {
		send_page(s);
		return;
	}
	push_events(s);
	if (uv_is_closing((uv_handle_t *)&s->pipe))
		return;
	if ((end = memchr(s->line, '\n', s->len)) != NULL) {
		size_t used = (size_t)(end - s->line) + 1;
		uv_read_stop((uv_stream_t *)&s->pipe);
		on_line(s, s->line, used - 1);
		s->len -= used;
		memmove(s->line, s->line + used, s->len);
	} else if (s->len == ADMIN_LINE) {
		uv_read_stop((uv_stream_t *)&s->pipe);
		s->last = 1;
		send_error(s, "a request longer than 65536 bytes");
	} else {
		uv_read_start((uv_stream_t *)&s->pipe, on_alloc, on_read);
	}
}

/* ---- life ---- */

/* All places are taken: closes the longest-idle connection of those that follow no events. */
static void
make_room(struct admin *admin)
{
	struct admin_session *s;

	TAILQ_FOREACH (s, &admin->sessions, entry)
		if (s->request == NULL && !s->answering && s->follows == 0) {
			hang_up(s);
			return;
		}
}

void
admin_accept(struct admin *admin, int fd)
{
	struct admin_session *s = calloc(1, sizeof(*s));

	if (admin->connections >= ADMIN_CONNECTIONS)
		make_room(admin);
	if (s == NULL || admin->connections >= ADMIN_CONNECTIONS || (s->line = malloc(ADMIN_LINE)) == NULL) {
		log_limited(&admin->refused_limit, LOG_LEVEL_WARN, "admin_refused", "connections=%u limit=%u",
		    admin->connections, ADMIN_CONNECTIONS);
		free(s);
		close(fd);
		return;
	}
	s->admin = admin;
	s->pipe.data = s;
	uv_pipe_init(admin->loop, &s->pipe, 0);
	TAILQ_INSERT_TAIL(&admin->sessions, s, entry);
	admin->connections++;
	if (uv_pipe_open(&s->pipe, fd) != 0) {
		close(fd);
		hang_up(s);
		return;
	}
	next_step(s);
}

int
admin_init(struct admin *admin, struct front *front, uv_loop_t *loop)
{
	memset(admin, 0, sizeof(*admin));
	admin->front = front;
	admin->shard = front->shard;
	admin->loop = loop;
	TAILQ_INIT(&admin->sessions);
	if (uv_async_init(loop, &admin->came, on_came) != 0)
		return -TG_ENOMEM;
	admin->came.data = admin;
	/* It alone keeps no loop going. */
	uv_unref((uv_handle_t *)&admin->came);
	events_init(&admin->events, on_event);
	admin->started = 1;
	return 0;
}

void
admin_fini(struct admin *admin)
{
	if (!admin->started)
		return;
	events_fini(&admin->events);
	while (!TAILQ_EMPTY(&admin->sessions))
		hang_up(TAILQ_FIRST(&admin->sessions));
	uv_close((uv_handle_t *)&admin->came, NULL);
	admin->started = 0;
}

void
admin_turn_away(struct admin *admin, int fd)
{
	static const char line[] =
	    "{\"ok\":false,\"error\":\"tidegated has no file descriptors left (LimitNOFILE=) for another connection\"}\n";

	admin->shard->count.refused_for_descriptors++;
	if (send(fd, line, sizeof(line) - 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		return; /* it has gone */
}
