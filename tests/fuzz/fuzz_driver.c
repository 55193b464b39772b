/*
 * Fuzzes every protocol driver through the rig of the conformance tests, which watches that a driver
 * keeps to driver.h whatever a broker sends. Each input (tests/conformance/record.h says how one is
 * made up) is played twice, with the broker's bytes whole and one by one: events and output must be
 * the same.
 *
 * With clang -fsanitize=fuzzer this is a libFuzzer target; with -DFUZZ_REPLAY a program that plays
 * the files and folders it is given. TG_FUZZ_DRIVER=name leaves out the other drivers.
 */
#include "tests/conformance/record.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX 200
#define PUBLISHES_MAX 2500 /* a full window of most brokers; wraps of ids are a unit test */

static struct variants variants;
static const struct driver *only;
static uint8_t filler[70000];

/* What is left of an input. */
struct tape {
	const uint8_t *at;
	size_t left;
};

static uint8_t
tape_byte(struct tape *tape)
{
	if (tape->left == 0)
		return 0;
	tape->left--;
	return *tape->at++;
}

static const uint8_t *
tape_bytes(struct tape *tape, size_t *len)
{
	const uint8_t *at = tape->at;

	if (*len > tape->left)
		*len = tape->left;
	tape->at += *len;
	tape->left -= *len;
	return at;
}

static const uint8_t *
tape_short(struct tape *tape, uint32_t *len)
{
	size_t n = tape_byte(tape);
	const uint8_t *at = tape_bytes(tape, &n);

	*len = (uint32_t)n;
	return at;
}

static void
feed(struct rig *rig, struct tape *tape, size_t arg, int bytewise)
{
	size_t len = arg;

	if (arg == 0) {
		len = tape_byte(tape);
		len |= (size_t)tape_byte(tape) << 8;
	}
	const uint8_t *bytes = tape_bytes(tape, &len);
	/* Byte by byte is quadratic in what a driver leaves: the end of a long piece is enough. */
	if (bytewise && len > 512) {
		rig_feed(rig, bytes, len - 512);
		bytes += len - 512;
		len = 512;
	}
	if (!bytewise && len > 0)
		rig_feed(rig, bytes, len);
	for (size_t i = 0; bytewise && i < len; i++)
		rig_feed(rig, bytes + i, 1);
}

static void
publish(struct rig *rig, const struct message *message)
{
	struct driver_rejection rejection;

	if (rig->next < PUBLISHES_MAX)
		rig_publish(rig, message, &rejection);
}

static const struct message plain = { .topic = (const uint8_t *)"t/1",
	.topic_len = 3,
	.body = (const uint8_t *)"body",
	.body_len = 4,
	.attempt = 1 };

static void
publish_message(struct rig *rig, struct tape *tape)
{
	struct message message = plain;
	uint8_t headers[4 + 2 * 255];
	uint8_t bits = tape_byte(tape);

	message.retain = (bits & MESSAGE_RETAIN) != 0;
	if (bits & MESSAGE_EXPIRY)
		message.expiry_ms = tape_byte(tape) * 500u;
	if (bits & MESSAGE_TOPIC)
		message.topic = tape_short(tape, &message.topic_len);
	if (bits & MESSAGE_KEY)
		message.key = tape_short(tape, &message.key_len);
	if (bits & MESSAGE_HEADERS) {
		uint32_t name_len, value_len;
		const uint8_t *name = tape_short(tape, &name_len);
		const uint8_t *value = tape_short(tape, &value_len);
		uint16_t lens[2] = { (uint16_t)name_len, (uint16_t)value_len };
		memcpy(headers, lens, sizeof(lens));
		memcpy(headers + 4, name, name_len);
		memcpy(headers + 4 + name_len, value, value_len);
		message.headers = headers;
		message.headers_len = 4 + name_len + value_len;
	}
	if (bits & MESSAGE_BODY)
		message.body = tape_short(tape, &message.body_len);
	if (bits & (MESSAGE_LARGE | MESSAGE_HUGE)) {
		message.body = filler;
		message.body_len = bits & MESSAGE_HUGE ? sizeof(filler) : 5000;
	}
	publish(rig, &message);
}

static void
play_op(struct rig *rig, struct tape *tape, int bytewise)
{
	uint8_t op = tape_byte(tape);
	size_t arg = op & 31;

	if (rig->securing)
		rig_start(rig);
	switch (op >> 5) {
	case SCRIPT_PUBLISH:
		for (size_t i = 0; i < 1 + arg; i++)
			publish(rig, &plain);
		return;
	case SCRIPT_BULK:
		for (size_t i = 0; i < 1 + arg * 64; i++)
			publish(rig, &plain);
		return;
	case SCRIPT_MESSAGE:
		publish_message(rig, tape);
		return;
	case SCRIPT_PROBE:
		rig_probe(rig);
		return;
	case SCRIPT_GOODBYE:
		rig_goodbye(rig);
		return;
	case SCRIPT_FLUSH:
		rig_flush(rig);
		return;
	default:
		feed(rig, tape, arg, bytewise);
	}
}

static uint64_t
play(const struct variant *variant, uint8_t how, struct tape tape, int bytewise)
{
	struct session_params params = {
		.client_id = "c1",
		.host = "localhost",
		.keepalive_s = 10,
		.window = script_windows[how % SCRIPT_WINDOWS],
		.tls_wanted = how / SCRIPT_WINDOWS & 1,
	};
	struct rig rig = { .quiet = 1 };

	if (rig_open_with(&rig, variant->driver, variant->settings, &params) == 0)
		rig_start(&rig);
	for (int step = 0; step < STEPS_MAX && tape.left > 0 && !rig.dead && rig.broken[0] == '\0'; step++)
		play_op(&rig, &tape, bytewise);
	if (rig.broken[0] != '\0') {
		fprintf(stderr, "the %s driver %s\n", variant->driver->name, rig.broken);
		abort();
	}
	uint64_t digest = rig.said * 31 + rig.sent_digest;
	rig_close(&rig);
	return digest;
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char *files[1024];
	size_t count = transcript_files(TRANSCRIPTS, files, 1024);
	const char *name = getenv("TG_FUZZ_DRIVER");

	if (variants_load(&variants, files, count) != 0)
		exit(2);
	for (size_t i = 0; i < count; i++)
		free(files[i]);
	only = name != NULL && name[0] != '\0' ? driver_find(name) : NULL;
	if (name != NULL && name[0] != '\0' && only == NULL) {
		fprintf(stderr, "TG_FUZZ_DRIVER: there is no driver \"%s\"\n", name);
		exit(2);
	}
	memset(filler, 'b', sizeof(filler));
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t drivers = 0;

	if (size < 4)
		return 0;
	while (driver_list[drivers] != NULL)
		drivers++;
	const struct driver *driver = only != NULL ? only : driver_list[data[0] % drivers];
	const struct variant *variant = variants_pick(&variants, driver, data[1]);
	if (variant == NULL)
		return 0;
	struct tape tape = { data + 3, size - 3 };
	if (play(variant, data[2], tape, 0) != play(variant, data[2], tape, 1)) {
		fprintf(stderr, "the %s driver makes something else of the same bytes cut otherwise\n",
		    driver->name);
		abort();
	}
	return 0;
}

#ifdef FUZZ_REPLAY
static unsigned replayed;

static int
replay_file(const char *path)
{
	FILE *file = fopen(path, "re");
	static uint8_t data[1 << 20];

	if (file == NULL) {
		fprintf(stderr, "%s: %m\n", path);
		return 1;
	}
	size_t size = fread(data, 1, sizeof(data), file);
	fclose(file);
	/* In memory of its exact size, for the sanitizers. */
	uint8_t *copy = malloc(size + (size == 0));
	if (copy == NULL)
		abort();
	memcpy(copy, data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
	replayed++;
	return 0;
}

static int
replay(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	char inside[4096];
	int rc = 0;

	if (dir == NULL)
		return replay_file(path);
	while ((entry = readdir(dir)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(inside, sizeof(inside), "%s/%s", path, entry->d_name);
		rc |= replay(inside);
	}
	closedir(dir);
	return rc;
}

int
main(int argc, char **argv)
{
	char *corpus[] = { argv[0], (char[]){ CORPUS } };
	int rc = 0;

	LLVMFuzzerInitialize(&argc, &argv);
	if (argc < 2) {
		argv = corpus;
		argc = 2;
	}
	for (int i = 1; i < argc; i++)
		rc |= replay(argv[i]);
	variants_fini(&variants);
	if (replayed == 0)
		rc = 1;
	printf("%s %u inputs replayed\n", rc == 0 ? "ok" : "not ok", replayed);
	return rc;
}
#endif
