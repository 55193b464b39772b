#include "record.h"

#include <ctype.h>
#include <dirent.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER_MS 3000 /* the longest a broker on loopback may take */

const uint32_t script_windows[SCRIPT_WINDOWS] = { 100, 1, 2, 3, 20, 64, 8, 1000 };

static int
by_name(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

size_t
transcript_files(const char *folder, char **files, size_t max)
{
	DIR *dir = opendir(folder);
	struct dirent *entry;
	size_t count = 0;

	while (dir != NULL && count < max && (entry = readdir(dir)) != NULL) {
		size_t len = strlen(entry->d_name);
		if (len > 4 && strcmp(entry->d_name + len - 4, ".txt") == 0 &&
		    asprintf(&files[count], "%s/%s", folder, entry->d_name) > 0)
			count++;
	}
	if (dir != NULL)
		closedir(dir);
	qsort(files, count, sizeof(files[0]), by_name);
	return count;
}

int
variants_load(struct variants *variants, char **files, size_t count)
{
	int rc = 0;
	char why[300];

	variants->count = 0;
	variants->list = calloc(count + 1, sizeof(*variants->list));
	if (variants->list == NULL)
		return -1;
	for (size_t i = 0; i < count; i++) {
		struct transcript transcript;
		int known = 0;
		if (transcript_read(&transcript, files[i]) != 0) {
			fprintf(stderr, "%s\n", transcript.error);
			rc = -1;
		} else if (transcript.refused == NULL) {
			const char *text = (char *)transcript.settings.bytes;
			for (size_t j = 0; j < variants->count; j++)
				known |= variants->list[j].driver == transcript.driver &&
					 strcmp(variants->list[j].text, text) == 0;
			struct variant *variant = &variants->list[variants->count];
			if (!known) {
				variant->driver = transcript.driver;
				variant->text = strdup(text);
				variant->settings = rig_settings_new(
				    transcript.driver, text, transcript.folder, why, sizeof(why));
				variants->count++;
			}
			if (!known && variant->settings == NULL) {
				fprintf(stderr, "%s: %s\n", transcript.name, why);
				rc = -1;
			}
		}
		transcript_fini(&transcript);
	}
	return rc;
}

void
variants_fini(struct variants *variants)
{
	for (size_t i = 0; i < variants->count; i++) {
		rig_settings_free(variants->list[i].driver, variants->list[i].settings);
		free(variants->list[i].text);
	}
	free(variants->list);
	memset(variants, 0, sizeof(*variants));
}

const struct variant *
variants_pick(const struct variants *variants, const struct driver *driver, size_t index)
{
	size_t mine = 0;

	for (size_t i = 0; i < variants->count; i++)
		mine += variants->list[i].driver == driver;
	if (mine == 0)
		return NULL;
	index %= mine;
	for (size_t i = 0;; i++)
		if (variants->list[i].driver == driver && index-- == 0)
			return &variants->list[i];
}

/* Line ends belong to the text before them. */
static int
is_text(uint8_t byte, size_t before)
{
	return isprint(byte) || (before >= 3 && (byte == '\r' || byte == '\n'));
}

static void
print_char(char c)
{
	if (c == '\r' || c == '\n')
		printf(c == '\r' ? "\\r" : "\\n");
	else
		printf(c == '"' || c == '\\' ? "\\%c" : "%c", c);
}

/* As transcript.h's BYTES: printable runs become text. */
static void
print_bytes(const char *sign, const struct rig_bytes *bytes)
{
	size_t column = 0;

	for (size_t at = 0; at < bytes->len;) {
		size_t run = 0;
		while (at + run < bytes->len && run < 60 && is_text(bytes->bytes[at + run], run))
			run++;
		if (column == 0)
			printf("%s", sign);
		if (run >= 3) {
			printf(" \"");
			for (size_t i = 0; i < run; i++)
				print_char((char)bytes->bytes[at + i]);
			printf("\"");
			column += run + 3;
		} else {
			run = 1;
			printf(" %02x", bytes->bytes[at]);
			column += 3;
		}
		at += run;
		if (column > 76 || at == bytes->len) {
			printf("\n");
			column = 0;
		}
	}
}

/* "ack N word" lines that follow each other become one. */
static void
print_events(struct rig_bytes *events)
{
	char *save = NULL;

	rig_bytes_add(events, "", 1);
	char *line = strtok_r((char *)events->bytes, "\n", &save);
	while (line != NULL) {
		unsigned long first, last, next;
		char word[40], other[40];
		int run = sscanf(line, "ack %lu %39[^\n]", &first, word) == 2;
		char *after = strtok_r(NULL, "\n", &save);
		for (last = first = run ? first : 0; run && after != NULL;
		     after = strtok_r(NULL, "\n", &save)) {
			if (sscanf(after, "ack %lu %39[^\n]", &next, other) != 2 || next != last + 1 ||
			    strcmp(word, other) != 0)
				break;
			last = next;
		}
		if (run && last > first)
			printf("event ack %lu..%lu %s\n", first, last, word);
		else
			printf("event %s\n", line);
		line = after;
	}
}

static int
connect_to(const char *host, int port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *found = NULL;
	char service[12];
	int fd = -1;

	snprintf(service, sizeof(service), "%d", port);
	if (getaddrinfo(host, service, &hints, &found) != 0)
		return -1;
	for (struct addrinfo *at = found; at != NULL && fd < 0; at = at->ai_next) {
		fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC, 0);
		if (fd >= 0 && connect(fd, at->ai_addr, at->ai_addrlen) != 0) {
			close(fd);
			fd = -1;
		}
	}
	freeaddrinfo(found);
	return fd;
}

static int
answered(const struct rig *rig, const struct step *step)
{
	if (rig->dead)
		return 1;
	switch (step->kind) {
	case STEP_START:
		return rig->up;
	case STEP_PROBE:
		return rig->events.len > 0 && memmem(rig->events.bytes, rig->events.len, "alive\n", 6) != NULL;
	case STEP_GOODBYE:
		return 0;
	default:
		return rig->outstanding == 0;
	}
}

static int
send_all(int fd, const struct rig_bytes *bytes, size_t from)
{
	for (size_t at = from; at < bytes->len;) {
		ssize_t n = send(fd, bytes->bytes + at, bytes->len - at, MSG_NOSIGNAL);
		if (n <= 0)
			return -1;
		at += (size_t)n;
	}
	return 0;
}

/* Reads until the step is answered. Returns 0, or -1 when the connection ended or time ran out. */
static int
listen_for(struct rig *rig, int fd, const struct step *step, struct rig_bytes *heard)
{
	uint8_t bytes[65536];

	while (!answered(rig, step)) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		if (poll(&ready, 1, ANSWER_MS) <= 0) {
			printf("# no answer within %d ms\n", ANSWER_MS);
			return -1;
		}
		ssize_t n = recv(fd, bytes, sizeof(bytes), 0);
		if (n <= 0)
			return -1;
		rig_bytes_add(heard, bytes, (size_t)n);
		size_t sent = rig->sent.len;
		rig_feed(rig, bytes, (size_t)n);
		if (send_all(fd, &rig->sent, sent) != 0)
			return -1;
	}
	return 0;
}

static int
record_step(struct rig *rig, int fd, const struct step *step, const struct step *next)
{
	struct rig_bytes heard = { 0 };
	struct driver_rejection rejection;
	struct message message;

	rig_forget(rig);
	switch (step->kind) {
	case STEP_START:
		rig_start(rig);
		break;
	case STEP_PUBLISH:
		step_message(step, &message);
		for (unsigned i = 0; i < step->repeat; i++)
			rig_publish(rig, &message, &rejection);
		break;
	case STEP_PROBE:
		rig_probe(rig);
		break;
	case STEP_FLUSH:
		rig_flush(rig);
		break;
	case STEP_GOODBYE:
		rig_goodbye(rig);
		break;
	case STEP_INPUT:
	case STEP_UNHEARD: /* of one connection alone is recorded */
	case STEP_AGAIN:
		return 0;
	}
	printf("\n%s\n", step->text);
	print_bytes(">", &rig->sent);
	int rc = send_all(fd, &rig->sent, 0);
	rig_forget(rig);
	/* Answers that a flush asks for come after it. */
	int silent = step->kind == STEP_PUBLISH && next != NULL && next->kind != STEP_INPUT &&
		     rig->driver->flush != NULL && next->kind != STEP_PROBE;
	if (rc == 0 && !silent)
		rc = listen_for(rig, fd, step, &heard);
	print_bytes("<", &heard);
	print_bytes(">", &rig->sent);
	print_events(&rig->events);
	rig_bytes_fini(&heard);
	return rc;
}

/* Lines before the first step are copied. */
static void
print_head(const char *file)
{
	char *line = NULL;
	size_t size = 0;
	FILE *from = fopen(file, "re");

	while (from != NULL && getline(&line, &size, from) > 0) {
		if (strcmp(line, "start\n") == 0)
			break;
		if (line[0] != '\n')
			printf("%s", line);
	}
	free(line);
	if (from != NULL)
		fclose(from);
}

int
record(const char *host, int port, const char *file)
{
	struct transcript transcript;
	struct rig rig = { 0 };
	int fd = -1, rc = 1;

	if (transcript_read(&transcript, file) != 0) {
		fprintf(stderr, "%s\n", transcript.error);
	} else if (rig_open(&rig, transcript.driver, (char *)transcript.settings.bytes, transcript.folder,
		       &transcript.params) != 0) {
		fprintf(stderr, "%s: %s\n", transcript.name, rig.broken);
	} else if ((fd = connect_to(host, port)) < 0) {
		fprintf(stderr, "%s port %d: %m\n", host, port);
	} else {
		print_head(file);
		for (size_t i = 0; i < transcript.count; i++)
			if (record_step(&rig, fd, &transcript.steps[i],
				i + 1 < transcript.count ? &transcript.steps[i + 1] : NULL) != 0)
				break;
		close(fd);
		rc = rig.broken[0] != '\0';
		if (rc != 0)
			fprintf(stderr, "%s: the driver %s\n", transcript.name, rig.broken);
	}
	if (rig.driver != NULL)
		rig_close(&rig);
	transcript_fini(&transcript);
	return rc;
}

static void
put(FILE *to, size_t byte)
{
	fputc((int)(byte & 0xff), to);
}

static void
put_short(FILE *to, const struct rig_bytes *bytes)
{
	size_t len = bytes->len < 255 ? bytes->len : 255;

	put(to, len);
	fwrite(bytes->bytes, 1, len, to);
}

static void
seed_message(FILE *to, const struct step *step)
{
	unsigned bits = MESSAGE_TOPIC | (step->retain ? MESSAGE_RETAIN : 0) |
			(step->expiry_ms ? MESSAGE_EXPIRY : 0) | (step->key.len ? MESSAGE_KEY : 0) |
			(step->headers.len >= 4 ? MESSAGE_HEADERS : 0) |
			(step->body.len > 60000      ? MESSAGE_HUGE
			    : step->body.len >= 4096 ? MESSAGE_LARGE
						     : MESSAGE_BODY);

	put(to, SCRIPT_MESSAGE << 5);
	put(to, bits);
	if (bits & MESSAGE_EXPIRY)
		put(to, step->expiry_ms / 500);
	put_short(to, &step->topic);
	if (bits & MESSAGE_KEY)
		put_short(to, &step->key);
	if (bits & MESSAGE_HEADERS) {
		uint16_t lens[2];
		memcpy(lens, step->headers.bytes, sizeof(lens));
		put_short(to, &(struct rig_bytes){ .bytes = step->headers.bytes + 4, .len = lens[0] });
		put_short(
		    to, &(struct rig_bytes){ .bytes = step->headers.bytes + 4 + lens[0], .len = lens[1] });
	}
	if (bits & MESSAGE_BODY)
		put_short(to, &step->body);
}

static void
seed_step(FILE *to, const struct step *step)
{
	size_t repeat = step->repeat;

	switch (step->kind) {
	case STEP_START:
		break;
	case STEP_INPUT:
		for (size_t at = 0; at < step->input.len;) {
			size_t n = step->input.len - at < 65535 ? step->input.len - at : 65535;
			put(to, SCRIPT_FEED << 5);
			put(to, n);
			put(to, n >> 8);
			fwrite(step->input.bytes + at, 1, n, to);
			at += n;
		}
		break;
	case STEP_PUBLISH:
		if (repeat == 1)
			seed_message(to, step);
		for (; repeat > 1 && repeat > 64; repeat -= 64)
			put(to, SCRIPT_BULK << 5 | (repeat > 31 * 64 ? 31 : repeat / 64));
		for (; repeat > 1; repeat -= repeat < 32 ? repeat - 1 : 32)
			put(to, SCRIPT_PUBLISH << 5 | (repeat < 32 ? repeat - 1 : 31));
		break;
	case STEP_PROBE:
		put(to, SCRIPT_PROBE << 5);
		break;
	case STEP_FLUSH:
		put(to, SCRIPT_FLUSH << 5);
		break;
	case STEP_GOODBYE:
		put(to, SCRIPT_GOODBYE << 5);
		break;
	case STEP_UNHEARD:
		break;
	case STEP_AGAIN:
		put(to, SCRIPT_GOODBYE << 5 | SCRIPT_AGAIN);
		break;
	}
}

static size_t
settings_index(const struct variants *variants, const struct transcript *transcript)
{
	for (size_t i = 0;; i++)
		if (strcmp(variants_pick(variants, transcript->driver, i)->text,
			(char *)transcript->settings.bytes) == 0)
			return i;
}

static int
seed_write(const char *folder, const struct variants *variants, const struct transcript *transcript)
{
	char path[600];
	size_t driver = 0, window = 0;

	snprintf(path, sizeof(path), "%s/%s/%.*s", folder, transcript->driver->name,
	    (int)strlen(transcript->name) - 4, transcript->name);
	FILE *to = fopen(path, "we");
	if (to == NULL) {
		fprintf(stderr, "%s: %m\n", path);
		return 1;
	}
	while (driver_list[driver] != transcript->driver)
		driver++;
	for (size_t i = 0; i < SCRIPT_WINDOWS; i++)
		if (script_windows[i] == transcript->params.window)
			window = i;
	put(to, driver);
	put(to, settings_index(variants, transcript));
	put(to, window + (transcript->params.tls_wanted ? SCRIPT_WINDOWS : 0));
	for (size_t i = 0; i < transcript->count; i++)
		seed_step(to, &transcript->steps[i]);
	return fclose(to) != 0;
}

int
record_seeds(const char *folder, char **files, size_t count)
{
	struct variants variants;
	int rc = variants_load(&variants, files, count) != 0;

	for (size_t i = 0; i < count && rc == 0; i++) {
		struct transcript transcript;
		rc = transcript_read(&transcript, files[i]) != 0;
		if (rc == 0 && transcript.refused == NULL)
			rc = seed_write(folder, &variants, &transcript);
		transcript_fini(&transcript);
	}
	variants_fini(&variants);
	return rc;
}
