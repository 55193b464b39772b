/*
 * Compares every driver with its transcripts (transcript.h has their format): each is
 * replayed whole, byte by byte, cut at every point and cut at random, and must give the same events
 * and the same bytes every time, in bounded processor time. If the driver saves its session's state, the same
 * holds for sessions that move to a successor at every possible point.
 *
 *   conformance                     runs every transcript of the folder
 *   conformance FILE…               runs these
 *   conformance --record HOST PORT FILE   plays FILE's steps to a real broker and prints the resulting
 * transcript
 *   conformance --seeds FOLDER      writes each transcript as an input of tests/fuzz/fuzz_driver
 */
#include "record.h"
#include "transcript.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#define RANDOM_CUTS 200
#define CPU_MAX_S 30 /* for one transcript: more than ten times what any takes under a sanitizer */

static char *files[1024];
static size_t file_count;

/* How a step's input is cut: at `at` of step `step`; or in pieces of `size` bytes; or by a seed. And whether
 * the session is moved behind each piece and step. */
struct cut {
	size_t step, at, size;
	uint64_t seed;
	int moves;
};

static unsigned moved[64]; /* how often, by the driver's place in the list */

static void
move(struct rig *rig, const struct cut *cut)
{
	unsigned place = 0;

	if (!cut->moves || rig_move(rig) != 0)
		return;
	while (driver_list[place] != rig->driver)
		place++;
	moved[place % 64]++;
}

static size_t
piece(struct cut *cut, size_t step, size_t done, size_t left)
{
	size_t n = left;

	if (cut->size > 0) {
		n = cut->size;
	} else if (cut->seed != 0) {
		cut->seed = cut->seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		uint32_t roll = (uint32_t)(cut->seed >> 33);
		n = 1 + (roll & 1 ? roll / 2 % 4 : roll / 2 % (left + 1));
	} else if (cut->at > 0 && cut->step == step && done < cut->at) {
		n = cut->at - done;
	}
	return n < left ? n : left;
}

static void
same_bytes(const struct transcript *transcript, const struct step *step, const char *what,
    const struct rig_bytes *got, const struct rig_bytes *want)
{
	size_t at = 0;

	if (got->len == want->len && (got->len == 0 || memcmp(got->bytes, want->bytes, got->len) == 0))
		return;
	while (at < got->len && at < want->len && got->bytes[at] == want->bytes[at])
		at++;
	print_error("%s:%u: %s differ at byte %zu (got %zu, want %zu)\n", transcript->name, step->line, what,
	    at, got->len, want->len);
	if (step->output.len == want->len && want != &step->events) {
		for (size_t i = 0; i < got->len && i < 400; i++)
			print_error("%02x ", got->bytes[i]);
		print_error("\n");
	} else {
		print_error("got:\n%.*s", (int)got->len, got->len > 0 ? (char *)got->bytes : "");
		print_error("want:\n%.*s", (int)want->len, want->len > 0 ? (char *)want->bytes : "");
	}
	fail();
}

static void
play_publish(struct rig *rig, const struct transcript *transcript, const struct step *step)
{
	struct driver_rejection rejection;
	struct message message;
	char result[300];

	step_message(step, &message);
	for (unsigned i = 0; i < step->repeat; i++) {
		step_result(result, sizeof(result), rig_publish(rig, &message, &rejection), &rejection);
		if (strlen(result) != step->result.len ||
		    memcmp(result, step->result.bytes, step->result.len) != 0)
			fail_msg("%s:%u: publish says: %s; want: %.*s", transcript->name, step->line, result,
			    (int)step->result.len, (char *)step->result.bytes);
	}
}

static void
play_step(struct rig *rig, const struct transcript *transcript, size_t index, struct cut *cut,
    const struct step *step)
{
	rig_forget(rig);
	switch (step->kind) {
	case STEP_START:
		rig_start(rig);
		break;
	case STEP_INPUT:
		for (size_t done = 0, n; done < step->input.len; done += n) {
			n = piece(cut, index, done, step->input.len - done);
			rig_feed(rig, step->input.bytes + done, n);
			move(rig, cut);
		}
		break;
	case STEP_PUBLISH:
		play_publish(rig, transcript, step);
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
	case STEP_UNHEARD:
		rig_unheard(rig);
		break;
	case STEP_AGAIN:
		rig_again(rig);
		break;
	}
	move(rig, cut);
	if (rig->broken[0] != '\0')
		fail_msg("%s:%u: the driver %s", transcript->name, step->line, rig->broken);
	same_bytes(transcript, step, "events", &rig->events, &step->events);
	same_bytes(transcript, step, "bytes sent", &rig->sent, &step->output);
}

static void
play(const struct transcript *transcript, void *settings, struct cut cut)
{
	struct rig rig = { .garble = cut.moves ? 1 + cut.size : 0 };

	if (rig_open_with(&rig, transcript->driver, settings, &transcript->params) != 0)
		fail_msg("%s: %s", transcript->name, rig.broken);
	for (size_t i = 0; i < transcript->count; i++)
		play_step(&rig, transcript, i, &cut, &transcript->steps[i]);
	rig_close(&rig);
}

static void
play_every_cut(const struct transcript *transcript, void *settings)
{
	for (size_t i = 0; i < transcript->count; i++) {
		const struct step *step = &transcript->steps[i];
		for (size_t at = 1; step->kind == STEP_INPUT && at < step->input.len; at++)
			play(transcript, settings, (struct cut){ .step = i, .at = at });
	}
}

static void
transcript_gives_the_same_however_cut(void **state)
{
	struct transcript transcript;
	char why[300];
	clock_t begin = clock();

	if (transcript_read(&transcript, *state) != 0)
		fail_msg("%s", transcript.error);
	void *settings = rig_settings_new(
	    transcript.driver, (char *)transcript.settings.bytes, transcript.folder, why, sizeof(why));
	if (transcript.refused != NULL) {
		if (settings != NULL)
			fail_msg("%s: the settings are accepted", transcript.name);
		if (strstr(why, transcript.refused) == NULL)
			fail_msg("%s: the complaint is: %s", transcript.name, why);
	} else if (settings == NULL) {
		fail_msg("%s: %s", transcript.name, why);
	} else {
		if (transcript.count == 0)
			fail_msg("%s: it has no steps", transcript.name);
		play(&transcript, settings, (struct cut){ .size = 0 });
		play(&transcript, settings, (struct cut){ .size = 1 });
		play_every_cut(&transcript, settings);
		for (uint64_t seed = 1; seed <= RANDOM_CUTS; seed++)
			play(&transcript, settings, (struct cut){ .seed = seed });
		if (transcript.driver->save != NULL) {
			play(&transcript, settings, (struct cut){ .moves = 1 });
			play(&transcript, settings, (struct cut){ .moves = 1, .size = 1 });
		}
		/* Of processor time, so that a busy machine does not matter. */
		if ((clock() - begin) / CLOCKS_PER_SEC > CPU_MAX_S)
			fail_msg("%s: the driver takes %ld s: is it quadratic in something?", transcript.name,
			    (long)((clock() - begin) / CLOCKS_PER_SEC));
		rig_settings_free(transcript.driver, settings);
	}
	transcript_fini(&transcript);
}

static void
every_driver_has_a_transcript(void **state)
{
	for (unsigned i = 0; driver_list[i] != NULL; i++) {
		size_t len = strlen(driver_list[i]->name), found = 0;
		for (size_t j = 0; j < file_count; j++) {
			const char *base = strrchr(files[j], '/') + 1;
			found += strncmp(base, driver_list[i]->name, len) == 0 && base[len] == '-';
		}
		if (found == 0)
			fail_msg("driver \"%s\" has no transcript", driver_list[i]->name);
	}
}

/* Those before have moved them. */
static void
every_driver_that_saves_has_moved(void **state)
{
	for (unsigned i = 0; driver_list[i] != NULL; i++)
		if (driver_list[i]->save != NULL && moved[i % 64] < 100)
			fail_msg("sessions of driver \"%s\" have moved %u times", driver_list[i]->name,
			    moved[i % 64]);
}

int
main(int argc, char **argv)
{
	static struct CMUnitTest tests[1026];
	size_t count = 0;
	int all = 0;

	if (argc == 5 && strcmp(argv[1], "--record") == 0)
		return record(argv[2], atoi(argv[3]), argv[4]);
	for (int i = 1; i < argc && argv[1][0] != '-'; i++)
		files[file_count++] = strdup(argv[i]);
	if (file_count == 0) {
		all = 1;
		file_count = transcript_files(TRANSCRIPTS, files, sizeof(files) / sizeof(files[0]));
		tests[count++] = (struct CMUnitTest)cmocka_unit_test(every_driver_has_a_transcript);
	}
	if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
		return record_seeds(argv[2], files, file_count);
	for (size_t i = 0; i < file_count; i++) {
		const char *base = strrchr(files[i], '/');
		tests[count++] = (struct CMUnitTest){ .name = base != NULL ? base + 1 : files[i],
			.test_func = transcript_gives_the_same_however_cut,
			.initial_state = files[i] };
	}
	if (all)
		tests[count++] = (struct CMUnitTest)cmocka_unit_test(every_driver_that_saves_has_moved);
	int failed = _cmocka_run_group_tests("conformance", tests, count, NULL, NULL);
	for (size_t i = 0; i < file_count; i++)
		free(files[i]);
	return failed;
}
