/*
 * Compares tidegate-protocols(7) with the drivers: its tables have exactly one row for each driver, its ports
 * are right, and every example is played to its driver.
 *
 * An example is lines of a word and the rest, in transcript.h's notation of messages and bytes:
 *
 *   with SETTINGS            of the pool's group, for the examples that follow
 *   .\" handshake BYTES      the broker's bytes until the session is up; hidden from readers
 *   message KEY=VALUE …      is published alone, in a new session
 *   sends BYTES              is part of the driver's output for it; lines add up
 *   answer BYTES             the broker's answer; lines add up
 *   outcome WORDS            is the beginning of its outcome
 */
#include "tests/conformance/transcript.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define LINES_MAX 4000

static const char *const tables[] = { "PROTOCOLS", "TOPICS", "KEYS AND HEADERS", "EXPIRY AND RETAIN",
	"OUTCOMES", "DUPLICATES", "LIMITS", "SECURITY", "BLOCKING" };
#define TABLES (sizeof(tables) / sizeof(tables[0]))

/* Each driver's examples must show all of these. */
enum shown {
	SHOWN_TAKEN = 1 << 0,          /* a message that is sent */
	SHOWN_TOPIC_REFUSED = 1 << 1,  /* REJECT_TOPIC */
	SHOWN_HEADER_REFUSED = 1 << 2, /* REJECT_HEADER */
	SHOWN_BYTES = 1 << 3,          /* the bytes of a message with a key, headers and an expiry */
	SHOWN_DONE = 1 << 4,           /* delivered or sent */
	SHOWN_DENIED = 1 << 5,         /* rejected by the broker */
	SHOWN_ALL = (1 << 6) - 1,
};

struct example {
	const struct driver *driver;
	unsigned line;
	char settings[400];
	char handshake[1000];
	char message[600];
	char sends[1000];
	char answer[1000];
	char outcome[300];
};

static char *lines[LINES_MAX];
static unsigned line_count;
static char scratch[] = "/tmp/test_protocols.XXXXXX";

/* Line breaks go, and \e becomes the backslash it prints. */
static int
page_load(void **state)
{
	FILE *file = fopen(PAGE, "re");
	size_t size = 0;
	char *line = NULL;

	if (file == NULL || mkdtemp(scratch) == NULL)
		return -1;
	while (line_count < LINES_MAX && getline(&line, &size, file) >= 0) {
		line[strcspn(line, "\n")] = '\0';
		for (char *at = line; (at = strstr(at, "\\e")) != NULL; at++)
			memmove(at + 1, at + 2, strlen(at + 2) + 1);
		lines[line_count] = strdup(line);
		if (lines[line_count++] == NULL)
			abort();
	}
	free(line);
	fclose(file);
	return line_count < LINES_MAX ? 0 : -1;
}

static int
page_free(void **state)
{
	while (line_count > 0)
		free(lines[--line_count]);
	return rmdir(scratch);
}

/* The rest of a line that begins with a word and a blank, or NULL. */
static const char *
after(const char *line, const char *word)
{
	size_t len = strlen(word);

	return strncmp(line, word, len) == 0 && line[len] == ' ' ? line + len + 1 : NULL;
}

static void
check_row(const char *section, unsigned number, unsigned rows[])
{
	char name[40] = "";

	snprintf(name, sizeof(name), "%.*s", (int)strcspn(lines[number], "\t"), lines[number]);
	for (unsigned i = 0; driver_list[i] != NULL; i++)
		if (strcmp(driver_list[i]->name, name) == 0) {
			rows[i]++;
			return;
		}
	if (strcmp(name, "driver") != 0)
		fail_msg(PAGE ":%u: %s: a row of \"%s\", which is no driver", number + 1, section, name);
}

static void
tables_have_a_row_for_each_driver(void **state)
{
	for (size_t t = 0; t < TABLES; t++) {
		unsigned rows[32] = { 0 };
		int here = 0, inside = 0;
		for (unsigned i = 0; i < line_count; i++) {
			const char *section = after(lines[i], ".Sh");
			if (section != NULL)
				here = strcmp(section, tables[t]) == 0;
			else if (strcmp(lines[i], ".TS") == 0 || strcmp(lines[i], ".TE") == 0)
				inside = lines[i][2] == 'S';
			else if (here && inside && strchr(lines[i], '\t') != NULL &&
				 strncmp(lines[i], "T}", 2) != 0)
				check_row(tables[t], i, rows);
		}
		for (unsigned i = 0; driver_list[i] != NULL; i++)
			if (rows[i] != 1)
				fail_msg(PAGE ": %s: %u rows of \"%s\", there must be one", tables[t], rows[i],
				    driver_list[i]->name);
	}
}

static void
ports_are_those_of_the_drivers(void **state)
{
	for (unsigned d = 0; driver_list[d] != NULL; d++) {
		const struct driver *driver = driver_list[d];
		unsigned found = 0, port = 0, tls_port = 0;
		size_t len = strlen(driver->name);
		for (unsigned i = 0; i < line_count && found == 0; i++)
			found = strncmp(lines[i], driver->name, len) == 0 && lines[i][len] == '\t' &&
				sscanf(lines[i] + len + 1, "%*[^\t]\t%u\t%u", &port, &tls_port) == 2;
		assert_int_equal(found, 1);
		if (port != driver->default_port || tls_port != driver->tls_port)
			fail_msg(PAGE ": PROTOCOLS: %s has ports %u and %u, they are %u and %u", driver->name,
			    port, tls_port, driver->default_port, driver->tls_port);
	}
}

/* The example as a transcript; its steps are start, the handshake, the message and the answer. */
static void
read_example(const struct example *example, struct transcript *transcript)
{
	char path[200];

	snprintf(path, sizeof(path), "%s/%s-page.txt", scratch, example->driver->name);
	FILE *file = fopen(path, "we");
	assert_non_null(file);
	fprintf(file, "settings %s\nstart\n< %s\npublish %s\n", example->settings, example->handshake,
	    example->message);
	if (example->sends[0] != '\0')
		fprintf(file, "> %s\n", example->sends);
	if (example->answer[0] != '\0')
		fprintf(file, "< %s\n", example->answer);
	assert_int_equal(fclose(file), 0);
	int rc = transcript_read(transcript, path);
	unlink(path);
	if (rc != 0)
		fail_msg(PAGE ":%u: %s", example->line, transcript->error);
}

static void
begins_with(const struct example *example, const char *said, unsigned *found)
{
	size_t len = strlen(example->outcome);

	*found += strncmp(said, example->outcome, len) == 0 && (said[len] == '\0' || said[len] == ' ');
}

/* One event in the page's words: without the message's number, and codes in decimal. */
static void
check_event(const struct example *example, const char *event, unsigned *found)
{
	char said[700];
	unsigned code;
	int text = 0;

	if (sscanf(event, "nack 0 0x%x%n", &code, &text) == 1)
		snprintf(said, sizeof(said), "rejected %u%s", code, event + text);
	else if (sscanf(event, "unsure 0 0x%x%n", &code, &text) == 1)
		snprintf(said, sizeof(said), "unknown %u%s", code, event + text);
	else if (strncmp(event, "ack 0 ", 6) == 0)
		snprintf(said, sizeof(said), "%s", event + 6);
	else
		snprintf(said, sizeof(said), "%s", event);
	begins_with(example, said, found);
}

static void
check_outcome(const struct example *example, struct rig *rig, int rc, const struct driver_rejection *rejection)
{
	char said[300] = "no answer yet", *event, *rest = NULL;
	unsigned found = 0;

	if (rc == DRIVER_REJECTED)
		snprintf(said, sizeof(said), "rejected %u \"%s\"", rejection->code, rejection->text);
	else if (rc == DRIVER_PUBLISHED_NO_ACK)
		snprintf(said, sizeof(said), "sent");
	else if (rc != DRIVER_PUBLISHED)
		snprintf(said, sizeof(said), "nothing (%d)", rc);
	rig_bytes_add(&rig->events, "", 1);
	char *events = strdup((char *)rig->events.bytes);
	assert_non_null(events);
	if (events[0] == '\0')
		begins_with(example, said, &found);
	for (event = strtok_r(events, "\n", &rest); event != NULL; event = strtok_r(NULL, "\n", &rest))
		check_event(example, event, &found);
	free(events);
	if (found == 0)
		fail_msg(PAGE ":%u: outcome is: %s; the page says: %s", example->line,
		    rig->events.len > 1 ? (char *)rig->events.bytes : said, example->outcome);
}

static unsigned
what_is_shown(const struct example *example, int rc, const struct driver_rejection *rejection)
{
	unsigned code;

	if (rc == DRIVER_REJECTED)
		return rejection->code == REJECT_TOPIC    ? SHOWN_TOPIC_REFUSED
		       : rejection->code == REJECT_HEADER ? SHOWN_HEADER_REFUSED
							  : 0;
	unsigned shown = SHOWN_TAKEN;
	if (example->sends[0] != '\0' && strstr(example->message, "key=") != NULL &&
	    strstr(example->message, "header=") != NULL && strstr(example->message, "expiry=") != NULL)
		shown |= SHOWN_BYTES;
	if (strncmp(example->outcome, "delivered", 9) == 0 || strcmp(example->outcome, "sent") == 0)
		shown |= SHOWN_DONE;
	if (sscanf(example->outcome, "rejected %u", &code) == 1)
		shown |= SHOWN_DENIED;
	return shown;
}

/* Returns enum shown. */
static unsigned
play(const struct example *example)
{
	struct transcript transcript;
	struct driver_rejection rejection = { 0 };
	struct message message;
	struct rig rig;

	read_example(example, &transcript);
	assert_true(transcript.count >= 3);
	const struct step *publish = &transcript.steps[2];
	if (rig_open(&rig, example->driver, (char *)transcript.settings.bytes, transcript.folder,
		&transcript.params) != 0)
		fail_msg(PAGE ":%u: %s", example->line, rig.broken);
	rig_start(&rig);
	rig_feed(&rig, transcript.steps[1].input.bytes, transcript.steps[1].input.len);
	if (!rig.up)
		fail_msg(PAGE ":%u: the handshake does not bring it up: %.*s", example->line,
		    (int)rig.events.len, (char *)rig.events.bytes);
	rig_forget(&rig);
	step_message(publish, &message);
	int rc = rig_publish(&rig, &message, &rejection);
	rig_flush(&rig);
	if (publish->output.len > 0 &&
	    (rig.sent.len == 0 ||
		memmem(rig.sent.bytes, rig.sent.len, publish->output.bytes, publish->output.len) == NULL))
		fail_msg(PAGE ":%u: what it sends is not in: %.*s", example->line, (int)rig.sent.len,
		    (char *)rig.sent.bytes);
	if (transcript.count > 3)
		rig_feed(&rig, transcript.steps[3].input.bytes, transcript.steps[3].input.len);
	if (rig.broken[0] != '\0')
		fail_msg(PAGE ":%u: the driver %s", example->line, rig.broken);
	check_outcome(example, &rig, rc, &rejection);
	unsigned shown = what_is_shown(example, rc, &rejection);
	rig_close(&rig);
	transcript_fini(&transcript);
	return shown;
}

static void
add(char *to, size_t size, const char *text)
{
	size_t len = strlen(to);

	if (len + strlen(text) + 2 > size)
		fail_msg(PAGE ": too long for the test: %s", text);
	snprintf(to + len, size - len, "%s%s", len > 0 ? " " : "", text);
}

/* Takes one line of an example. Returns 0 if it is none. */
static int
take_line(struct example *example, const char *line)
{
	const struct {
		const char *word;
		char *to;
		size_t size;
	} parts[] = {
		{ "with", example->settings, sizeof(example->settings) },
		{ ".\\\" handshake", example->handshake, sizeof(example->handshake) },
		{ "message", example->message, sizeof(example->message) },
		{ "sends", example->sends, sizeof(example->sends) },
		{ "answer", example->answer, sizeof(example->answer) },
		{ "outcome", example->outcome, sizeof(example->outcome) },
	};

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		const char *rest = after(line, parts[i].word);
		if (rest == NULL)
			continue;
		if (i == 0)
			example->settings[0] = example->handshake[0] = '\0';
		add(parts[i].to, parts[i].size, rest);
		return 1;
	}
	return 0;
}

/* Plays the examples of a driver's subsection, each when its outcome has been read. Returns enum shown. */
static unsigned
play_examples(const struct driver *driver)
{
	struct example example = { .driver = driver };
	unsigned shown = 0;
	int section = 0, here = 0, literal = 0;

	for (unsigned i = 0; i < line_count; i++) {
		const char *name = after(lines[i], ".Sh"), *sub = after(lines[i], ".Ss");
		if (name != NULL)
			section = strcmp(name, "EXAMPLES") == 0;
		if (name != NULL || sub != NULL)
			here = section && sub != NULL && strcmp(sub, driver->name) == 0;
		if (strncmp(lines[i], ".Bd", 3) == 0 || strncmp(lines[i], ".Ed", 3) == 0) {
			literal = lines[i][1] == 'B';
			continue;
		}
		if (!here || !literal || lines[i][0] == '\0')
			continue;
		if (example.message[0] != '\0' && after(lines[i], "message") != NULL)
			fail_msg(PAGE ":%u: the message before has no outcome", i + 1);
		if (!take_line(&example, lines[i]))
			fail_msg(PAGE ":%u: not understood: %s", i + 1, lines[i]);
		if (example.outcome[0] == '\0')
			continue;
		example.line = i + 1;
		shown |= play(&example);
		example.message[0] = example.sends[0] = example.answer[0] = example.outcome[0] = '\0';
	}
	if (example.message[0] != '\0')
		fail_msg(PAGE ": EXAMPLES: the last message of %s has no outcome", driver->name);
	return shown;
}

static void
examples_match_the_drivers(void **state)
{
	for (unsigned i = 0; driver_list[i] != NULL; i++) {
		unsigned shown = play_examples(driver_list[i]);
		if (shown != SHOWN_ALL)
			fail_msg(PAGE ": EXAMPLES: %s lacks some (0x%x of enum shown)", driver_list[i]->name,
			    SHOWN_ALL & ~shown);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tables_have_a_row_for_each_driver),
		cmocka_unit_test(ports_are_those_of_the_drivers),
		cmocka_unit_test(examples_match_the_drivers),
	};

	return cmocka_run_group_tests(tests, page_load, page_free);
}
