/*
 * The control channel: one command a line, one line of answer each (`ok`, `error WHY` or JSON), and
 * the client that speaks to it. A control connection is a connection like any other whose protocol
 * is this one; behaviours pass it by.
 */
#include "build_config.h"

#include "sink.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define LINE_MAX_BYTES 8192
#define TELL_TIMEOUT_S 10

struct command {
	const char *name;
	const char *arguments;
	const char *help;
	/* argument is "" if there is none. Returns the answer, which the caller frees. */
	char *(*run)(struct sink *sink, char *argument);
};

static char *answer(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *
answer(const char *format, ...)
{
	va_list args;
	char *text;

	va_start(args, format);
	int n = vasprintf(&text, format, args);
	va_end(args);
	if (n < 0) {
		fprintf(stderr, "tidegate-sink: no memory for an answer\n");
		exit(1);
	}
	return text;
}

static char *
ok(void)
{
	return answer("ok");
}

/* --- statistics -------------------------------------------------------------------------------- */

static void
add_counters(json_t *object, const struct counters *counters)
{
	json_object_set_new(object, "messages", json_integer((json_int_t)counters->messages));
	json_object_set_new(object, "bytes", json_integer((json_int_t)counters->bytes));
	json_object_set_new(object, "acks", json_integer((json_int_t)counters->acks));
	json_object_set_new(object, "rejected", json_integer((json_int_t)counters->rejected));
	json_object_set_new(object, "pings", json_integer((json_int_t)counters->pings));
	json_object_set_new(object, "dups", json_integer((json_int_t)counters->dups));
}

static json_t *
conn_json(const struct conn *conn)
{
	uint32_t pending = conn->answers_tail - conn->answers_head;
	json_t *object = json_object();

	json_object_set_new(object, "conn", json_integer((json_int_t)conn->number));
	json_object_set_new(object, "peer", json_string(conn->peer));
	json_object_set_new(object, "client", conn->client ? json_string(conn->client) : json_null());
	add_counters(object, &conn->counters);
	json_object_set_new(object, "pending", json_integer((json_int_t)pending));
	json_object_set_new(object, "unsent", json_integer((json_int_t)(conn->out.len - conn->out.off)));
	json_object_set_new(object, "stalled", json_boolean(conn->stalled));
	json_object_set_new(object, "closing", json_boolean(conn->end != CONN_STAYS));
	return object;
}

char *
control_stats(const struct sink *sink, bool with_connections)
{
	json_t *object = json_object(), *array = json_array();
	const struct conn *conn;
	uint64_t pending = 0;

	TAILQ_FOREACH (conn, &sink->conns, all) {
		if (conn->control)
			continue;
		pending += conn->answers_tail - conn->answers_head;
		if (with_connections)
			json_array_append_new(array, conn_json(conn));
	}
	json_object_set_new(object, "protocol", json_string(sink->protocol->name));
	json_object_set_new(object, "uptime_s", json_real((double)(sink->now_ns - sink->start_ns) / 1e9));
	json_object_set_new(object, "connections", json_integer((json_int_t)sink->connections));
	json_object_set_new(object, "connections_ever", json_integer((json_int_t)sink->connections_ever));
	json_object_set_new(object, "connections_refused", json_integer((json_int_t)sink->connections_refused));
	add_counters(object, &sink->counters);
	json_object_set_new(object, "tls_handshakes", json_integer((json_int_t)sink->tls_handshakes));
	json_object_set_new(object, "tls_resumed", json_integer((json_int_t)sink->tls_resumed));
	json_object_set_new(object, "tls_failed", json_integer((json_int_t)sink->tls_failed));
	json_object_set_new(object, "faulted", json_integer((json_int_t)sink->faulted));
	json_object_set_new(object, "malformed", json_integer((json_int_t)sink->malformed));
	json_object_set_new(object, "pending", json_integer((json_int_t)pending));
	json_object_set_new(object, "recorded", json_integer((json_int_t)sink->record.lines));
	json_object_set_new(object, "record_error",
	    sink->record.error ? json_string(strerror(sink->record.error)) : json_null());
	if (with_connections)
		json_object_set(object, "per_connection", array);
	char *text = json_dumps(object, JSON_COMPACT | JSON_REAL_PRECISION(9));
	json_decref(array);
	json_decref(object);
	return text ? text : answer("error no memory for the statistics");
}

/* --- commands ---------------------------------------------------------------------------------- */

/* Applies a changed behaviour to existing connections. */
static void
changed(struct sink *sink, enum behaviour_id id)
{
	struct conn *conn;
	int which = id == BEHAVIOUR_stall_after   ? 0
		    : id == BEHAVIOUR_close_after ? 1
		    : id == BEHAVIOUR_reset_after ? 2
						  : -1;

	if (which >= 0)
		TAILQ_FOREACH (conn, &sink->conns, all)
			conn_rearm(conn, which);
	server_apply(sink);
}

static char *
command_set(struct sink *sink, char *argument)
{
	char *value = argument + strcspn(argument, " ");
	char why[BEHAVIOUR_WHY_MAX];

	if (*value)
		*value++ = '\0';
	else
		value = NULL;
	int id = behaviour_find(argument);
	if (id < 0)
		return answer("error no option \"%.100s\"; `get` shows them all", argument);
	if (behaviour_set(&sink->behaviour, (enum behaviour_id)id, value, why) < 0)
		return answer("error %s", why);
	changed(sink, (enum behaviour_id)id);
	return ok();
}

static json_t *
behaviour_json(const struct behaviour *behaviour, enum behaviour_id id)
{
	if (behaviour_list[id].type == BEHAVIOUR_TEXT) {
		const char *text = behaviour_text(behaviour, id);
		return text ? json_string(text) : json_null();
	}
	if (behaviour_list[id].type == BEHAVIOUR_CHOICE) {
		char word[64];
		behaviour_word(behaviour, id, word, sizeof(word));
		return json_string(word);
	}
	uint64_t number = behaviour_number(behaviour, id);
	return behaviour_list[id].type == BEHAVIOUR_FLAG ? json_boolean(number != 0)
							 : json_integer((json_int_t)number);
}

static char *
command_get(struct sink *sink, char *argument)
{
	json_t *value;
	int id;

	if (*argument) {
		id = behaviour_find(argument);
		if (id < 0)
			return answer("error no option \"%.100s\"; `get` shows them all", argument);
		value = behaviour_json(&sink->behaviour, (enum behaviour_id)id);
	} else {
		value = json_object();
		for (id = 0; id < BEHAVIOUR_COUNT; id++)
			json_object_set_new(value, behaviour_list[id].name,
			    behaviour_json(&sink->behaviour, (enum behaviour_id)id));
	}
	char *text = json_dumps(value, JSON_COMPACT | JSON_ENCODE_ANY);
	json_decref(value);
	return text ? text : answer("error the value is not UTF-8");
}

static char *
command_resume(struct sink *sink, char *argument)
{
	struct conn *conn;

	sink->behaviour.stall = sink->behaviour.freeze = sink->behaviour.mute = 0;
	TAILQ_FOREACH (conn, &sink->conns, all)
		conn_rearm(conn, 0);
	server_apply(sink);
	return ok();
}

static char *
command_listen(struct sink *sink, char *argument)
{
	const struct listener *listener;

	sink->behaviour.refuse = 0;
	server_apply(sink);
	TAILQ_FOREACH (listener, &sink->listeners, all)
		if (listener->fd < 0)
			return answer("error cannot listen on %s again", listener->name);
	return ok();
}

static char *
command_garbage(struct sink *sink, char *argument)
{
	const uint64_t most = behaviour_list[BEHAVIOUR_garbage].most;
	struct conn *conn;
	uint64_t bytes;

	if (behaviour_parse_number(argument, 1, most, &bytes) < 0)
		return answer("error garbage: \"%.100s\": want a number from 1 to %" PRIu64, argument, most);
	TAILQ_FOREACH (conn, &sink->conns, all)
		if (!conn->control && conn->end == CONN_STAYS)
			conn_garbage(conn, bytes);
	return ok();
}

static void
end_all(struct sink *sink, enum conn_end how)
{
	struct conn *conn;

	TAILQ_FOREACH (conn, &sink->conns, all)
		if (!conn->control)
			conn_end(conn, how);
}

static char *
command_disconnect(struct sink *sink, char *argument)
{
	struct conn *conn;
	uint64_t code = 0;

	if (*argument && behaviour_parse_number(argument, 0, 65535, &code) < 0)
		return answer("error disconnect: \"%.100s\": want a code from 0 to 65535", argument);
	TAILQ_FOREACH (conn, &sink->conns, all)
		if (!conn->control && conn->end == CONN_STAYS && conn->protocol->farewell)
			conn->protocol->farewell(conn, (uint32_t)code);
	end_all(sink, CONN_FLUSH);
	return ok();
}

static char *
command_close(struct sink *sink, char *argument)
{
	end_all(sink, CONN_FLUSH);
	return ok();
}

static char *
command_reset(struct sink *sink, char *argument)
{
	end_all(sink, CONN_RESET);
	return ok();
}

static char *
command_stats(struct sink *sink, char *argument)
{
	return control_stats(sink, true);
}

static char *
command_quit(struct sink *sink, char *argument)
{
	sink->quit = true;
	return ok();
}

static char *command_help(struct sink *sink, char *argument);

static const struct command commands[] = {
#define COMMAND(name, arguments, help) { #name, arguments, help, command_##name },
#include "command.def"
#undef COMMAND
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static char *
command_help(struct sink *sink, char *argument)
{
	char text[1024] = "";
	size_t len = 0;

	for (size_t i = 0; i < COMMANDS && len < sizeof(text); i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "%s%s%s%s", i ? ", " : "",
		    commands[i].name, commands[i].arguments[0] ? " " : "", commands[i].arguments);
	return answer("%s", text);
}

void
control_help(FILE *stream)
{
	char left[64];

	for (size_t i = 0; i < COMMANDS; i++) {
		snprintf(left, sizeof(left), "%s %s", commands[i].name, commands[i].arguments);
		fprintf(stream, "  %-26s%s\n", left, commands[i].help);
	}
}

static char *
run(struct sink *sink, char *line)
{
	char *argument = line + strcspn(line, " ");

	if (*argument)
		*argument++ = '\0';
	argument += strspn(argument, " ");
	for (size_t i = 0; i < COMMANDS; i++) {
		if (strcmp(commands[i].name, line) != 0)
			continue;
		if (*argument && !commands[i].arguments[0])
			return answer("error %s: \"%.100s\": takes no argument", line, argument);
		return commands[i].run(sink, argument);
	}
	return answer("error no command \"%.100s\"; `help` names them", line);
}

/* --- as a protocol ----------------------------------------------------------------------------- */

static void
say(struct conn *conn, char *text)
{
	size_t len = strlen(text);
	uint8_t *to = buf_room(&conn->out, len + 1);

	memcpy(to, text, len);
	to[len] = '\n';
	conn->out.len += len + 1;
	free(text);
	server_dirty(conn->sink, conn);
}

static ssize_t
control_input(struct conn *conn, const uint8_t *bytes, size_t len)
{
	size_t used = 0;
	char line[LINE_MAX_BYTES];

	while (used < len) {
		const uint8_t *end = memchr(bytes + used, '\n', len - used);
		size_t n = end ? (size_t)(end - (bytes + used)) : len - used;
		if (n >= sizeof(line)) {
			say(conn, answer("error a line has at most %zu bytes", sizeof(line) - 1));
			conn_end(conn, CONN_FLUSH);
			return -1;
		}
		if (!end)
			break;
		memcpy(line, bytes + used, n);
		line[n] = '\0';
		if (n > 0 && line[n - 1] == '\r')
			line[n - 1] = '\0';
		say(conn, run(conn->sink, line));
		used += n + 1;
	}
	return (ssize_t)used;
}

const struct protocol protocol_control = {
	.name = "control",
	.input = control_input,
};

/* --- the client -------------------------------------------------------------------------------- */

static int
tell_connect(const char *address)
{
	struct sockaddr_un local = { .sun_family = AF_UNIX };
	struct timeval limit = { .tv_sec = TELL_TIMEOUT_S };

	if (strncmp(address, "unix:/", 6) != 0 || strlen(address + 5) >= sizeof(local.sun_path)) {
		fprintf(stderr,
		    "tidegate-sink: --tell \"%s\": want unix:/PATH with at most %zu bytes of path\n", address,
		    sizeof(local.sun_path) - 1);
		return -2;
	}
	strcpy(local.sun_path, address + 5);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&local, sizeof(local)) < 0) {
		fprintf(stderr, "tidegate-sink: --tell \"%s\": %s\n", address, strerror(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	return fd;
}

int
control_tell(const char *address, char *const *words, int count)
{
	char line[LINE_MAX_BYTES], *text = NULL;
	size_t len = 0, size = 0;

	for (int i = 0; i < count; i++) {
		int n = snprintf(line + len, sizeof(line) - len, "%s%s", i ? " " : "", words[i]);
		if (n < 0 || (size_t)n >= sizeof(line) - len - 1 || strpbrk(words[i], "\r\n")) {
			fprintf(stderr, "tidegate-sink: --tell: a command is one line of at most %zu bytes\n",
			    sizeof(line) - 2);
			return 2;
		}
		len += (size_t)n;
	}
	line[len++] = '\n';
	int fd = tell_connect(address);
	if (fd < 0)
		return fd == -2 ? 2 : 1;
	FILE *stream = fdopen(fd, "r");
	if (!stream) {
		close(fd);
		return 1;
	}
	bool sent = send(fd, line, len, MSG_NOSIGNAL) == (ssize_t)len;
	ssize_t got = sent ? getline(&text, &size, stream) : -1;
	if (got > 0)
		fwrite(text, 1, (size_t)got, stdout);
	else
		fprintf(
		    stderr, "tidegate-sink: --tell \"%s\": no answer within %d s\n", address, TELL_TIMEOUT_S);
	int status = got > 0 && strncmp(text, "error", 5) != 0 ? 0 : 1;
	free(text);
	fclose(stream);
	return status;
}
