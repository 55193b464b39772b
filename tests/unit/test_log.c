/* daemon/base/log.h: one honest, bounded line an event, whatever the values are. */
#include "daemon/base/log.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

struct pipe_log {
	int fds[2];
	char text[16384];
};

static int
setup(void **state)
{
	struct pipe_log *log = calloc(1, sizeof(*log));

	assert_non_null(log);
	assert_int_equal(pipe2(log->fds, O_CLOEXEC | O_NONBLOCK), 0);
	log_set_fd(log->fds[1]);
	log_set_level(LOG_LEVEL_INFO);
	*state = log;
	return 0;
}

static int
teardown(void **state)
{
	struct pipe_log *log = *state;

	log_set_fd(STDERR_FILENO);
	close(log->fds[0]);
	close(log->fds[1]);
	free(log);
	return 0;
}

/* The lines written since the last call, without their time stamps. */
static const char *
written(struct pipe_log *log)
{
	char raw[sizeof(log->text)];
	size_t used = 0;
	ssize_t n = read(log->fds[0], raw, sizeof(raw) - 1);

	raw[n < 0 ? 0 : n] = '\0';
	log->text[0] = '\0';
	for (char *line = raw, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
		int year, month, day, hour, minute, second, ms, at = 0;

		*end = '\0';
		assert_int_equal(sscanf(line, "ts=%4d-%2d-%2dT%2d:%2d:%2d.%3dZ %n", &year, &month, &day, &hour,
				     &minute, &second, &ms, &at),
		    7);
		assert_true(at > 0 && year >= 2024 && month <= 12 && hour < 24 && second <= 60);
		used += (size_t)snprintf(log->text + used, sizeof(log->text) - used, "%s\n", line + at);
	}
	return log->text;
}

static void
event_is_one_logfmt_line(void **state)
{
	struct pipe_log *log = *state;

	log_event(LOG_LEVEL_INFO, "link_state", "pool=%s link=%d to=%s", "events", 3, "READY");
	assert_string_equal(written(log), "level=info event=link_state pool=events link=3 to=READY\n");
	log_event(LOG_LEVEL_ERROR, "stopped", "%s", "");
	assert_string_equal(written(log), "level=error event=stopped \n");
}

static void
levels_below_the_lowest_are_silent(void **state)
{
	struct pipe_log *log = *state;
	enum log_level level = LOG_LEVEL_ERROR;

	log_event(LOG_LEVEL_DEBUG, "noise", "a=1");
	assert_string_equal(written(log), "");
	log_set_level(LOG_LEVEL_DEBUG);
	log_event(LOG_LEVEL_DEBUG, "noise", "a=1");
	assert_string_equal(written(log), "level=debug event=noise a=1\n");
	log_set_level(LOG_LEVEL_ERROR);
	log_event(LOG_LEVEL_WARN, "noise", "a=1");
	assert_string_equal(written(log), "");
	for (enum log_level each = LOG_LEVEL_ERROR; each <= LOG_LEVEL_DEBUG; each++) {
		assert_int_equal(log_level_parse(log_level_word(each), &level), 0);
		assert_int_equal(level, each);
	}
	assert_int_equal(log_level_parse("loud", &level), -TG_EINVAL);
}

static void
no_value_forges_a_line(void **state)
{
	struct pipe_log *log = *state;

	log_event(LOG_LEVEL_WARN, "refused", "text=%s", "a\nts=1 level=info\x1b[2J\x7f");
	assert_string_equal(written(log), "level=warn event=refused text=a?ts=1 level=info?[2J?\n");
}

static void
line_is_bounded_and_cut_at_a_pair(void **state)
{
	struct pipe_log *log = *state;
	char long_text[LOG_LINE + 100], quoted[LOG_LINE + 200];

	memset(long_text, 'x', sizeof(long_text));
	long_text[1000] = ' ';
	long_text[sizeof(long_text) - 1] = '\0';
	log_quote(quoted, sizeof(quoted), long_text, strlen(long_text));
	log_event(LOG_LEVEL_WARN, "long", "a=1 b=\"two words\" c=%s d=4", quoted);
	assert_string_equal(written(log), "level=warn event=long a=1 b=\"two words\" cut=1\n");
	/* Up to the last byte that fits, nothing is cut. */
	for (size_t len = LOG_LINE - 80; len < LOG_LINE; len++) {
		memset(long_text, 'y', len);
		long_text[len] = '\0';
		log_event(LOG_LEVEL_WARN, "edge", "k=%s", long_text);
		const char *line = written(log);
		size_t prefix = strlen("ts=2026-11-21T20:00:00.123Z "),
		       whole = strlen("level=warn event=edge k=") + len + 1;
		if (prefix + whole <= LOG_LINE)
			assert_int_equal(strlen(line), whole);
		else
			assert_string_equal(line, "level=warn event=edge cut=1\n");
	}
}

static void
quoting_is_exact(void **state)
{
	static const struct {
		const char *text;
		size_t len;
		const char *value;
	} cases[] = {
		{ "plain", 5, "plain" },
		{ "10.0.0.5:1883", 13, "10.0.0.5:1883" },
		{ "", 0, "\"\"" },
		{ NULL, 7, "\"\"" },
		{ "two words", 9, "\"two words\"" },
		{ "a=b", 3, "\"a=b\"" },
		{ "say \"no\"", 8, "\"say \\\"no\\\"\"" },
		{ "back\\slash", 10, "\"back\\\\slash\"" },
		{ "a\nb\rc\td", 7, "\"a\\nb\\rc\\td\"" },
		{ "nul\0in", 6, "\"nul\\x00in\"" },
		{ "\x1b[31m", 5, "\"\\x1b[31m\"" },
		{ "gr\xc3\xbc\xc3\x9f", 6, "\"gr\xc3\xbc\xc3\x9f\"" },
		{ "\xe2\x82\xac \xf0\x9f\x8c\x8a", 8, "\"\xe2\x82\xac \xf0\x9f\x8c\x8a\"" },
		{ "\xc3", 1, "\"\\xc3\"" },
		{ "\xc0\xaf", 2, "\"\\xc0\\xaf\"" },
		{ "\xe0\x80\x80", 3, "\"\\xe0\\x80\\x80\"" },
		{ "\xed\xa0\x80", 3, "\"\\xed\\xa0\\x80\"" },
		{ "\xc2\x85", 2, "\"\\xc2\\x85\"" },
		{ "\xe2\x80\xae", 3, "\"\\xe2\\x80\\xae\"" },
		{ "\xf5\x80\x80\x80", 4, "\"\\xf5\\x80\\x80\\x80\"" },
	};
	char buffer[64];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		assert_string_equal(
		    log_quote(buffer, sizeof(buffer), cases[i].text, cases[i].len), cases[i].value);
}

static void
quoting_never_passes_its_buffer(void **state)
{
	static const char text[] = "a b\xe2\x82\xac\x01\"\\\n\xf0\x9f\x8c\x8a long enough to be cut";
	char whole[128];

	(void)state;
	log_quote(whole, sizeof(whole), text, sizeof(text) - 1);
	for (size_t size = 8; size < sizeof(whole); size++) {
		char *buffer = malloc(size); /* exact, for the sanitizer */
		assert_non_null(buffer);
		log_quote(buffer, size, text, sizeof(text) - 1);
		size_t len = strlen(buffer);
		assert_true(len < size);
		assert_true(buffer[0] == '"' && buffer[len - 1] == '"');
		if (strlen(whole) < size) {
			assert_string_equal(buffer, whole);
		} else {
			assert_true(len >= 5 && memcmp(buffer + len - 4, "...", 3) == 0);
			assert_memory_equal(buffer, whole, len - 4);
		}
		free(buffer);
	}
}

static void
flood_is_held_back_and_counted(void **state)
{
	struct pipe_log *log = *state;
	struct log_limit limit = { 0 };
	unsigned lines = 0;

	for (int i = 0; i < 1000; i++)
		log_limited(&limit, LOG_LEVEL_WARN, "bad_frame", "client=%d", 7);
	for (const char *at = written(log); (at = strchr(at, '\n')) != NULL; at++)
		lines++;
	assert_in_range(lines, LOG_BURST, LOG_BURST + 2);
	assert_int_equal(limit.suppressed, 1000 - lines);
	char expected[80];
	snprintf(expected, sizeof(expected), "level=warn event=bad_frame suppressed=%u\n", 1000 - lines);
	log_limit_flush(&limit, LOG_LEVEL_WARN, "bad_frame");
	assert_string_equal(written(log), expected);
	log_limit_flush(&limit, LOG_LEVEL_WARN, "bad_frame");
	assert_string_equal(written(log), "");
}

static void
limit_lets_one_line_a_second_through_for_ever(void **state)
{
	struct log_limit limit = { 0 };
	unsigned passed = 0;

	(void)state;
	/* An hour of one attempt a millisecond. */
	for (uint64_t ms = 0; ms < 3600000; ms++)
		passed += log_limit_take(&limit, 5 + ms * 1000000) != 0;
	assert_in_range(passed, 3600 + LOG_BURST - 1, 3600 + LOG_BURST);
	assert_int_equal(limit.suppressed, 3600000 - passed);
	/* After silence the burst is whole again. */
	passed = 0;
	for (int i = 0; i < 100; i++)
		passed += log_limit_take(&limit, UINT64_C(7200000000000)) != 0;
	assert_int_equal(passed, LOG_BURST);
}

static void
next_line_counts_suppressed_lines(void **state)
{
	struct pipe_log *log = *state;
	struct log_limit limit = { .suppressed = 41 };

	log_limited(&limit, LOG_LEVEL_WARN, "bad_frame", "client=%d", 7);
	assert_string_equal(written(log), "level=warn event=bad_frame suppressed=41 client=7\n");
	assert_int_equal(limit.suppressed, 0);
}

static void
full_pipe_does_not_block_and_is_told(void **state)
{
	struct pipe_log *log = *state;
	char junk[4096], drain[8192];

	memset(junk, 'x', sizeof(junk));
	while (write(log->fds[1], junk, sizeof(junk)) > 0)
		;
	errno = ENOENT;
	log_event(LOG_LEVEL_WARN, "unheard", "a=1");
	assert_int_equal(errno, ENOENT);
	log_event(LOG_LEVEL_WARN, "unheard", "a=2");
	while (read(log->fds[0], drain, sizeof(drain)) > 0)
		;
	log_event(LOG_LEVEL_WARN, "heard", "a=3");
	assert_string_equal(written(log), "level=warn event=heard lost=2 a=3\n");
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(event_is_one_logfmt_line),
		TEST(levels_below_the_lowest_are_silent),
		TEST(no_value_forges_a_line),
		TEST(line_is_bounded_and_cut_at_a_pair),
		TEST(quoting_is_exact),
		TEST(quoting_never_passes_its_buffer),
		TEST(flood_is_held_back_and_counted),
		TEST(limit_lets_one_line_a_second_through_for_ever),
		TEST(next_line_counts_suppressed_lines),
		TEST(full_pipe_does_not_block_and_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
