#include "transcript.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

__attribute__((format(printf, 3, 4))) static int
wrong(struct transcript *transcript, unsigned line, const char *format, ...)
{
	char what[200];
	va_list args;

	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	snprintf(transcript->error, sizeof(transcript->error), "%s:%u: %s", transcript->name, line, what);
	return -1;
}

static void
skip_blanks(const char **at)
{
	while (**at == ' ' || **at == '\t')
		(*at)++;
}

static int
hex_pair(const char *at)
{
	char text[3] = { at[0], at[0] != '\0' ? at[1] : '\0', '\0' };

	if (!isxdigit((unsigned char)text[0]) || !isxdigit((unsigned char)text[1]))
		return -1;
	return (int)strtol(text, NULL, 16);
}

/* "string", the cursor on the opening quote. Returns 0 or -1. */
static int
read_string(const char **at, struct rig_bytes *bytes)
{
	static const char from[] = "nrt0\"\\", to[] = "\n\r\t\0\"\\";
	const char *c = *at + 1;

	for (; *c != '"'; c++) {
		uint8_t byte = (uint8_t)*c;
		if (byte == '\0')
			return -1;
		if (byte == '\\') {
			c++;
			const char *known = *c != '\0' ? strchr(from, *c) : NULL;
			if (*c == 'x' && hex_pair(c + 1) >= 0) {
				byte = (uint8_t)hex_pair(c + 1);
				c += 2;
			} else if (known != NULL) {
				byte = (uint8_t)to[known - from];
			} else {
				return -1;
			}
		}
		rig_bytes_add(bytes, &byte, 1);
	}
	*at = c + 1;
	return 0;
}

/* One or more items; blanks separate them if they may. Returns 0 or -1. */
static int
read_bytes(const char **at, struct rig_bytes *bytes, int blanks)
{
	size_t items = 0;

	for (;; items++) {
		struct rig_bytes item = { 0 };
		if (blanks)
			skip_blanks(at);
		int pair = hex_pair(*at);
		if (**at == '"') {
			if (read_string(at, &item) != 0) {
				rig_bytes_fini(&item);
				return -1;
			}
		} else if (pair >= 0) {
			uint8_t byte = (uint8_t)pair;
			rig_bytes_add(&item, &byte, 1);
			*at += 2;
		} else {
			return items > 0 ? 0 : -1;
		}
		long times = 1;
		if (**at == '*') {
			char *end;
			times = strtol(*at + 1, &end, 10);
			*at = end;
		}
		for (; times > 0; times--)
			rig_bytes_add(bytes, item.bytes, item.len);
		rig_bytes_fini(&item);
	}
}

static int
is_word(const char **at, const char *word)
{
	size_t len = strlen(word);

	if (strncmp(*at, word, len) != 0 || ((*at)[len] != '\0' && (*at)[len] != ' '))
		return 0;
	*at += len;
	skip_blanks(at);
	return 1;
}

static int
is_key(const char **at, const char *key)
{
	size_t len = strlen(key);

	if (strncmp(*at, key, len) != 0 || (*at)[len] != '=')
		return 0;
	*at += len + 1;
	return 1;
}

static uint64_t
read_number(const char **at)
{
	char *end;
	uint64_t value = strtoull(*at, &end, 0);

	*at = end;
	return value;
}

static int
read_header(const char **at, struct rig_bytes *headers)
{
	struct rig_bytes name = { 0 }, value = { 0 };
	int rc = read_bytes(at, &name, 0);

	if (rc == 0 && **at == ',') {
		(*at)++;
		rc = read_bytes(at, &value, 0);
	}
	uint16_t lens[2] = { (uint16_t)name.len, (uint16_t)value.len };
	rig_bytes_add(headers, lens, sizeof(lens));
	rig_bytes_add(headers, name.bytes, name.len);
	rig_bytes_add(headers, value.bytes, value.len);
	rig_bytes_fini(&name);
	rig_bytes_fini(&value);
	return rc;
}

static int
read_publish(struct step *step, const char *at)
{
	step->repeat = 1;
	for (skip_blanks(&at); *at != '\0'; skip_blanks(&at)) {
		int rc = 0;
		if (is_word(&at, "->")) {
			rig_bytes_add(&step->result, at, strlen(at));
			return 0;
		}
		if (is_key(&at, "topic"))
			rc = read_bytes(&at, &step->topic, 0);
		else if (is_key(&at, "key"))
			rc = read_bytes(&at, &step->key, 0);
		else if (is_key(&at, "body"))
			rc = read_bytes(&at, &step->body, 0);
		else if (is_key(&at, "header"))
			rc = read_header(&at, &step->headers);
		else if (is_key(&at, "expiry"))
			step->expiry_ms = (uint32_t)read_number(&at);
		else if (is_key(&at, "repeat"))
			step->repeat = (unsigned)read_number(&at);
		else if (is_word(&at, "retain"))
			step->retain = 1;
		else
			rc = -1;
		if (rc != 0)
			return -1;
	}
	rig_bytes_add(&step->result, "published", 9);
	return 0;
}

static int
read_params(struct transcript *transcript, const char *at)
{
	for (skip_blanks(&at); *at != '\0'; skip_blanks(&at)) {
		struct rig_bytes text = { 0 };
		int id = is_key(&at, "client_id"), rc = 0;
		if (id || is_key(&at, "host")) {
			rc = read_bytes(&at, &text, 0);
			snprintf(id ? transcript->client_id : transcript->host, sizeof(transcript->host),
			    "%.*s", (int)text.len, text.len > 0 ? (char *)text.bytes : "");
			rig_bytes_fini(&text);
		} else if (is_key(&at, "keepalive")) {
			transcript->params.keepalive_s = (uint32_t)read_number(&at);
		} else if (is_key(&at, "window")) {
			transcript->params.window = (uint32_t)read_number(&at);
		} else if (is_key(&at, "tls_wanted")) {
			transcript->params.tls_wanted = (int)read_number(&at);
		} else if (is_key(&at, "random")) {
			transcript->params.random = read_number(&at);
		} else {
			return -1;
		}
		if (rc != 0)
			return -1;
	}
	return 0;
}

static int
read_file_line(struct transcript *transcript, const char *at)
{
	char path[200];
	struct rig_bytes content = { 0 };
	int n = (int)strcspn(at, " ");

	snprintf(path, sizeof(path), "%s/%.*s", transcript->folder, n, at);
	at += n;
	int rc = read_bytes(&at, &content, 1);
	int fd = rc == 0 ? open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
	if (fd < 0 || write(fd, content.bytes, content.len) != (ssize_t)content.len)
		rc = -1;
	if (fd >= 0)
		close(fd);
	rig_bytes_fini(&content);
	return rc;
}

/* "ack 3..9 delivered" becomes seven lines. */
static void
add_events(struct rig_bytes *events, const char *at)
{
	unsigned long first, last;
	char word[40], line[80];

	if (sscanf(at, "ack %lu..%lu %39[^\n]", &first, &last, word) != 3) {
		rig_bytes_add(events, at, strlen(at));
		rig_bytes_add(events, "\n", 1);
		return;
	}
	for (; first <= last; first++) {
		int n = snprintf(line, sizeof(line), "ack %lu %s\n", first, word);
		rig_bytes_add(events, line, (size_t)n);
	}
}

static struct step *
step_add(struct transcript *transcript, enum step_kind kind, unsigned line, const char *text)
{
	struct step *steps = realloc(transcript->steps, (transcript->count + 1) * sizeof(*steps));

	if (steps == NULL)
		abort();
	transcript->steps = steps;
	struct step *step = &steps[transcript->count++];
	memset(step, 0, sizeof(*step));
	step->kind = kind;
	step->line = line;
	step->repeat = 1;
	step->text = strdup(text);
	return step;
}

static int
read_step(struct transcript *transcript, unsigned line, const char *text)
{
	static const struct {
		const char *word;
		enum step_kind kind;
	} plain[] = { { "start", STEP_START }, { "probe", STEP_PROBE }, { "flush", STEP_FLUSH },
		{ "goodbye", STEP_GOODBYE }, { "unheard", STEP_UNHEARD }, { "again", STEP_AGAIN } };
	struct step *last = transcript->count > 0 ? &transcript->steps[transcript->count - 1] : NULL;
	const char *at = text;

	for (size_t i = 0; i < sizeof(plain) / sizeof(plain[0]); i++)
		if (is_word(&at, plain[i].word)) {
			step_add(transcript, plain[i].kind, line, text);
			return *at != '\0';
		}
	if (is_word(&at, "publish"))
		return read_publish(step_add(transcript, STEP_PUBLISH, line, text), at);
	if (is_word(&at, "<")) {
		if (last == NULL || last->kind != STEP_INPUT || last->output.len > 0 || last->events.len > 0)
			last = step_add(transcript, STEP_INPUT, line, "");
		return read_bytes(&at, &last->input, 1) != 0 || *at != '\0';
	}
	if (last == NULL)
		return -1;
	if (is_word(&at, ">"))
		return read_bytes(&at, &last->output, 1) != 0 || *at != '\0';
	if (is_word(&at, "event")) {
		add_events(&last->events, at);
		return 0;
	}
	return -1;
}

static int
read_line(struct transcript *transcript, unsigned line, const char *text)
{
	const char *at = text;

	skip_blanks(&at);
	if (*at == '\0' || *at == '#')
		return 0;
	if (is_word(&at, "settings")) {
		rig_bytes_add(&transcript->settings, at, strlen(at));
		rig_bytes_add(&transcript->settings, "\n", 1);
		return 0;
	}
	if (is_word(&at, "file"))
		return read_file_line(transcript, at);
	if (is_word(&at, "params"))
		return read_params(transcript, at);
	if (is_word(&at, "refused")) {
		struct rig_bytes why = { 0 };
		int rc = read_bytes(&at, &why, 1);
		rig_bytes_add(&why, "", 1);
		free(transcript->refused);
		transcript->refused = (char *)why.bytes;
		return rc;
	}
	return read_step(transcript, line, at);
}

int
transcript_read(struct transcript *transcript, const char *path)
{
	char *text = NULL, driver[40];
	size_t size = 0;
	ssize_t n;
	unsigned line = 0;
	const char *base = strrchr(path, '/');

	memset(transcript, 0, sizeof(*transcript));
	base = base != NULL ? base + 1 : path;
	snprintf(transcript->name, sizeof(transcript->name), "%s", base);
	snprintf(driver, sizeof(driver), "%.*s", (int)strcspn(base, "-."), base);
	snprintf(transcript->client_id, sizeof(transcript->client_id), "c1");
	snprintf(transcript->host, sizeof(transcript->host), "localhost");
	transcript->params = (struct session_params){
		.client_id = transcript->client_id, .host = transcript->host, .keepalive_s = 10, .window = 1000
	};
	transcript->driver = driver_find(driver);
	if (transcript->driver == NULL)
		return wrong(transcript, 0, "its name must begin with a driver's; there is no \"%s\"", driver);
	const char *tmp = getenv("TMPDIR");
	snprintf(transcript->folder, sizeof(transcript->folder), "%.40s/transcript.XXXXXX",
	    tmp != NULL ? tmp : "/tmp");
	if (mkdtemp(transcript->folder) == NULL)
		return wrong(transcript, 0, "cannot make %s", transcript->folder);
	FILE *file = fopen(path, "re");
	if (file == NULL)
		return wrong(transcript, 0, "cannot be opened");
	while ((n = getline(&text, &size, file)) > 0) {
		line++;
		if (text[n - 1] == '\n')
			text[n - 1] = '\0';
		if (read_line(transcript, line, text) != 0) {
			wrong(transcript, line, "not understood: %.100s", text);
			break;
		}
	}
	free(text);
	fclose(file);
	rig_bytes_add(&transcript->settings, "", 1);
	return transcript->error[0] != '\0' ? -1 : 0;
}

static void
folder_remove(const char *folder)
{
	char path[400];
	struct dirent *entry;
	DIR *dir = folder[0] != '\0' ? opendir(folder) : NULL;

	if (dir == NULL)
		return;
	while ((entry = readdir(dir)) != NULL) {
		snprintf(path, sizeof(path), "%s/%s", folder, entry->d_name);
		if (entry->d_name[0] != '.')
			unlink(path);
	}
	closedir(dir);
	rmdir(folder);
}

void
transcript_fini(struct transcript *transcript)
{
	for (size_t i = 0; i < transcript->count; i++) {
		struct step *step = &transcript->steps[i];
		struct rig_bytes *all[] = { &step->input, &step->topic, &step->key, &step->headers, &step->body,
			&step->result, &step->output, &step->events };
		for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++)
			rig_bytes_fini(all[j]);
		free(step->text);
	}
	free(transcript->steps);
	free(transcript->refused);
	rig_bytes_fini(&transcript->settings);
	folder_remove(transcript->folder);
	memset(transcript, 0, sizeof(*transcript));
}

void
step_message(const struct step *step, struct message *message)
{
	*message = (struct message){ .topic = step->topic.bytes,
		.key = step->key.bytes,
		.headers = step->headers.bytes,
		.body = step->body.bytes,
		.topic_len = (uint32_t)step->topic.len,
		.key_len = (uint32_t)step->key.len,
		.headers_len = (uint32_t)step->headers.len,
		.body_len = (uint32_t)step->body.len,
		.expiry_ms = step->expiry_ms,
		.wall_ms = 4102444800000, /* 2100-01-01: dates that a real broker does not find past */
		.attempt = 1,
		.retain = step->retain };
}

void
step_result(char *text, size_t size, int rc, const struct driver_rejection *rejection)
{
	switch (rc) {
	case DRIVER_PUBLISHED:
		snprintf(text, size, "published");
		return;
	case DRIVER_PUBLISHED_NO_ACK:
		snprintf(text, size, "no-ack");
		return;
	case DRIVER_FULL:
		snprintf(text, size, "full");
		return;
	case DRIVER_REJECTED:
		snprintf(text, size, "rejected 0x%x \"%s\"", rejection->code, rejection->text);
		return;
	default:
		snprintf(text, size, "error %d", rc);
	}
}
