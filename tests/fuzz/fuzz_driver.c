/*
 * Fuzzes every protocol driver through the rig of the conformance tests, which checks that a driver keeps the
 * rules of driver.h whatever a broker sends. Each input (tests/conformance/record.h has the format) is played
 * twice, the second time with the broker's bytes cut finer; events and output must be the same. The second run
 * may also move the session to a successor at every possible point, which must make no difference for a driver
 * that saves its state.
 *
 * TG_FUZZ_DRIVER=name selects the driver; without it an input in a driver's folder is played to that driver,
 * and any other input names its own.
 */
#include "fuzz.h"
#include "tests/conformance/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bounds that keep an execution short: full windows need no more, and wraps of ids are a unit test. */
#define STEPS_MAX 100
#define PUBLISHES_MAX 160
#define FLOODS_MAX 3
#define BYTES_MAX 200 /* fed one by one at the end of a piece */

static struct variants variants;
static const struct driver *only;
static uint8_t filler[70000];
static struct rig rig = { .quiet = 1 }; /* its memory serves every session */

/* The rest of an input. */
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
	return n > 0 ? at : NULL;
}

/* One way to play an input. */
struct run {
	struct rig *rig;
	struct tape tape;
	int finer, move;
	enum script_cut cut;
	uint32_t random; /* where CUT_FEW and CUT_MANY cut */
	unsigned publishes, floods;
};

static size_t
cut_piece(struct run *run, size_t left)
{
	size_t n = left;

	if (!run->finer)
		return left;
	run->random = run->random * 1664525u + 1013904223u;
	switch (run->cut) {
	case CUT_BYTES:
		n = left > BYTES_MAX ? left - BYTES_MAX : 1;
		break;
	case CUT_FEW:
		n = left > 8 * BYTES_MAX ? left - 8 * BYTES_MAX : 1 + (run->random >> 16) % 8;
		break;
	case CUT_MANY:
		n = left > 64 * BYTES_MAX ? left - 64 * BYTES_MAX : 1 + (run->random >> 16) % 64;
		break;
	case CUT_ONCE:
		n = 1 + (run->random >> 8) % left;
		break;
	}
	return n < left ? n : left;
}

static void
feed(struct run *run, const uint8_t *bytes, size_t len)
{
	for (size_t n; len > 0; bytes += n, len -= n) {
		n = cut_piece(run, len);
		rig_feed(run->rig, bytes, n);
		if (run->finer && run->cut == CUT_ONCE && n < len) {
			rig_feed(run->rig, bytes + n, len - n);
			return;
		}
	}
}

static void
feed_tape(struct run *run, size_t arg)
{
	size_t len = arg;

	if (arg == 0) {
		len = tape_byte(&run->tape);
		len |= (size_t)tape_byte(&run->tape) << 8;
	}
	const uint8_t *bytes = tape_bytes(&run->tape, &len);
	feed(run, bytes, len);
}

static void
flood(struct run *run, size_t arg)
{
	static uint8_t bytes[32 * 2048];
	size_t len = 2048 * (1 + arg);

	memset(bytes, tape_byte(&run->tape), len);
	if (run->floods++ >= FLOODS_MAX)
		return;
	/* Only its end is cut finer, because the unconsumed rest is copied for each piece. */
	rig_feed(run->rig, bytes, len - 16);
	feed(run, bytes, 16);
}

/* Returns 0 once the session takes no more. */
static int
publish(struct run *run, const struct message *message)
{
	struct driver_rejection rejection;

	if (run->publishes >= PUBLISHES_MAX)
		return 0;
	int rc = rig_publish(run->rig, message, &rejection);
	run->publishes += rc != DRIVER_FULL;
	return rc != DRIVER_FULL;
}

static const struct message plain = { .topic = (const uint8_t *)"t/1",
	.topic_len = 3,
	.body = (const uint8_t *)"body",
	.body_len = 4,
	.attempt = 1 };

static void
publish_message(struct run *run)
{
	struct tape *tape = &run->tape;
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
		if (name_len > 0)
			memcpy(headers + 4, name, name_len);
		if (value_len > 0)
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
	publish(run, &message);
}

static void
play_op(struct run *run)
{
	uint8_t op = tape_byte(&run->tape);
	size_t arg = op & 31, count = 0;

	if (run->rig->securing)
		rig_start(run->rig);
	switch (op >> 5) {
	case SCRIPT_PUBLISH:
		count = 1 + arg;
		break;
	case SCRIPT_BULK:
		count = 1 + arg * 64;
		break;
	case SCRIPT_MESSAGE:
		publish_message(run);
		break;
	case SCRIPT_PROBE:
		rig_probe(run->rig);
		break;
	case SCRIPT_GOODBYE:
		if (arg == SCRIPT_AGAIN) {
			rig_unheard(run->rig);
			rig_again(run->rig);
			rig_start(run->rig);
			break;
		}
		rig_goodbye(run->rig);
		run->move = 0;
		break;
	case SCRIPT_FLUSH:
		rig_flush(run->rig);
		break;
	case SCRIPT_FLOOD:
		flood(run, arg);
		break;
	default:
		feed_tape(run, arg);
	}
	while (count > 0 && publish(run, &plain))
		count--;
	if (run->move)
		rig_move(run->rig);
}

/* Plays an input that begins behind the byte how; twice, the second time finer. Returns its result. */
static uint64_t
play(const struct variant *variant, uint8_t how, struct tape tape, int second)
{
	struct session_params params = {
		.client_id = "c1",
		.host = "localhost",
		.keepalive_s = 10,
		.window = script_windows[how % SCRIPT_WINDOWS],
		.tls_wanted = how / SCRIPT_WINDOWS & 1,
	};
	struct run run = { .rig = &rig, .tape = tape, .finer = second, .cut = how >> 4 & 3, .random = how };

	run.move = second && (how >> 6 & 1) && (variant->driver->flags & DRIVER_F_REPLAYABLE) != 0;
	rig.garble = run.move ? 1u + how : 0;
	if (rig_open_with(&rig, variant->driver, variant->settings, &params) == 0)
		rig_start(&rig);
	for (int step = 0; step < STEPS_MAX && run.tape.left > 0 && rig.broken[0] == '\0'; step++) {
		if (rig.dead && *run.tape.at != (SCRIPT_GOODBYE << 5 | SCRIPT_AGAIN))
			break;
		play_op(&run);
	}
	if (rig.broken[0] != '\0') {
		fprintf(stderr, "the %s driver %s\n", variant->driver->name, rig.broken);
		abort();
	}
	uint64_t digest = rig_digest_value(&rig.said) * 31 + rig_digest_value(&rig.told);
	rig_renew(&rig);
	return digest;
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	static char *files[1024];
	size_t count = transcript_files(TRANSCRIPTS, files, 1024);
	const char *name = getenv("TG_FUZZ_DRIVER");

	if (variants_load(&variants, files, count) != 0)
		exit(2);
	/* Inputs that begin where the transcripts do. */
	if (getenv("TG_FUZZ_SEEDS") != NULL && record_seeds(getenv("TG_FUZZ_SEEDS"), files, count) != 0)
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
fuzz_folder(const char *name)
{
	if (strcmp(name, "frame") == 0 || strcmp(name, "config") == 0)
		return 0;
	const struct driver *named = driver_find(name);

	/* A folder in a driver's folder is that driver's. */
	if (getenv("TG_FUZZ_DRIVER") == NULL && named != NULL)
		only = named;
	return 1;
}

void
fuzz_fini(void)
{
	rig_close(&rig);
	variants_fini(&variants);
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
	uint64_t first = play(variant, data[2], tape, 0), second = play(variant, data[2], tape, 1);
	int renumbered =
	    (data[2] >> 6 & 1) && (driver->flags & DRIVER_F_REPLAYABLE) != 0 && driver->save == NULL;
	if (!renumbered && first != second) {
		fprintf(stderr,
		    "the %s driver makes something else of the same bytes cut otherwise, or moved\n",
		    driver->name);
		abort();
	}
	return 0;
}
