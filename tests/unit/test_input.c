/* tidegate-pub's reader against a plain split of the same bytes, however the reads cut them. */
#include "build_config.h"

#include "tools/pub/input.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static uint64_t random_state = 2463534242u;

static uint64_t
next_random(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state;
}

static char *
make_file(const void *bytes, size_t len)
{
	char *name = strdup("/tmp/tidegate-input.XXXXXX");
	int fd = mkstemp(name);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	close(fd);
	return name;
}

static void
drop_file(char *name)
{
	unlink(name);
	free(name);
}

/* The next result that is not "read more". */
static enum input_result
next(struct input *in, struct input_item *item)
{
	enum input_result result;

	while ((result = input_next(in, item)) == INPUT_MORE)
		input_fill(in);
	return result;
}

static void
expect(struct input *in, const char *text)
{
	struct input_item item;

	assert_int_equal(next(in, &item), INPUT_ITEM);
	assert_int_equal(item.len, strlen(text));
	assert_memory_equal(item.bytes, text, item.len);
}

static void
lines_of_several_files_come_in_order(void **state)
{
	char *names[3] = { make_file("a\n\nbc\n", 6), make_file("", 0), make_file("d\nlast", 6) };
	struct input in;
	struct input_item item;
	uint64_t line;

	(void)state;
	assert_int_equal(input_init(&in, (const char *const *)names, 3, INPUT_LINES, 100), 0);
	assert_int_equal(in.total_bytes, 12);
	expect(&in, "a");
	expect(&in, ""); /* an empty line is a message */
	expect(&in, "bc");
	expect(&in, "d");
	expect(&in, "last"); /* so is a line that the file's end cuts short */
	assert_int_equal(next(&in, &item), INPUT_END);
	assert_int_equal(next(&in, &item), INPUT_END);
	assert_string_equal(input_locate(&in, 2, &line), names[0]);
	assert_int_equal(line, 3);
	assert_string_equal(input_locate(&in, 3, &line), names[2]);
	assert_int_equal(line, 1);
	assert_string_equal(input_locate(&in, 4, &line), names[2]);
	assert_int_equal(line, 2);
	input_fini(&in);
	drop_file(names[0]);
	drop_file(names[1]);
	drop_file(names[2]);
}

static void
a_file_that_cannot_be_read_is_told_and_passed(void **state)
{
	char *good = make_file("x\n", 2);
	const char *names[] = { "/nonexistent/file", "/tmp", good };
	struct input in;
	struct input_item item;

	(void)state;
	assert_int_equal(input_init(&in, names, 3, INPUT_LINES, 100), 0);
	assert_int_equal(next(&in, &item), INPUT_ERROR);
	assert_string_equal(in.error, "/nonexistent/file: cannot open: No such file or directory");
	assert_int_equal(next(&in, &item), INPUT_ERROR);
	assert_string_equal(in.error, "/tmp: cannot read: Is a directory");
	expect(&in, "x");
	assert_int_equal(next(&in, &item), INPUT_END);
	input_fini(&in);
	drop_file(good);
}

static void
whole_files_are_one_message_each(void **state)
{
	char big[5000];
	char *names[3] = { make_file("a\nb\n", 4), make_file("", 0), NULL };
	struct input in;
	struct input_item item;

	(void)state;
	memset(big, 'x', sizeof(big));
	names[2] = make_file(big, sizeof(big));
	assert_int_equal(input_init(&in, (const char *const *)names, 3, INPUT_WHOLE, 4999), 0);
	expect(&in, "a\nb\n");
	expect(&in, "");
	assert_int_equal(next(&in, &item), INPUT_TOO_LONG);
	assert_int_equal(item.len, 5000);
	assert_int_equal(next(&in, &item), INPUT_END);
	input_fini(&in);
	assert_int_equal(input_init(&in, (const char *const *)&names[2], 1, INPUT_WHOLE, 5000), 0);
	assert_int_equal(next(&in, &item), INPUT_ITEM);
	assert_int_equal(item.len, 5000);
	input_fini(&in);
	drop_file(names[0]);
	drop_file(names[1]);
	drop_file(names[2]);
}

static void
a_text_is_one_message(void **state)
{
	struct input in;
	struct input_item item;

	(void)state;
	assert_int_equal(input_init_text(&in, "one\nmessage", 4), 0);
	expect(&in, "one\nmessage");
	assert_int_equal(next(&in, &item), INPUT_END);
	input_fini(&in);
	assert_int_equal(input_init_text(&in, "", 4), 0);
	expect(&in, "");
	assert_int_equal(next(&in, &item), INPUT_END);
	input_fini(&in);
}

/* The reader returns buffered lines before it reads again, so one thread can serve both ends of a pipe. */
static void
compare_with_split(const uint8_t *bytes, size_t len, enum input_mode mode, size_t limit)
{
	const char *const names[] = { "-" };
	uint8_t separator = mode == INPUT_NUL ? '\0' : '\n';
	struct input in;
	struct input_item item;
	enum input_result result;
	int ends[2], saved = dup(STDIN_FILENO);
	size_t written = 0, at = 0, count, cr;
	uint64_t number = 0;
	const uint8_t *end;

	assert_int_equal(pipe(ends), 0);
	assert_true(dup2(ends[0], STDIN_FILENO) == STDIN_FILENO);
	close(ends[0]);
	assert_int_equal(input_init(&in, names, 1, mode, limit), 0);
	assert_int_equal(in.total_bytes, 0);
	while ((result = input_next(&in, &item)) != INPUT_END) {
		if (result == INPUT_MORE) {
			count = 1 + (size_t)(next_random() % 700);
			count = count < len - written ? count : len - written;
			if (count != 0)
				assert_int_equal(write(ends[1], bytes + written, count), (ssize_t)count);
			written += count;
			if (written == len && ends[1] >= 0) {
				close(ends[1]);
				ends[1] = -1;
			}
			input_fill(&in);
			continue;
		}
		assert_true(at < len);
		end = memchr(bytes + at, separator, len - at);
		count = end != NULL ? (size_t)(end - bytes) - at : len - at;
		cr = mode == INPUT_LINES && end != NULL && count > 0 && end[-1] == '\r';
		assert_int_equal(item.len, count - cr);
		assert_int_equal(item.number, number++);
		assert_int_equal(result, count - cr <= limit ? INPUT_ITEM : INPUT_TOO_LONG);
		if (result == INPUT_ITEM)
			assert_memory_equal(item.bytes, bytes + at, count - cr);
		at += count + 1;
	}
	assert_true(at >= len);
	input_fini(&in);
	dup2(saved, STDIN_FILENO);
	close(saved);
}

static void
any_bytes_in_any_pieces_are_split_alike(void **state)
{
	static uint8_t bytes[300000];
	unsigned run;
	size_t i, len;

	(void)state;
	for (run = 0; run < 90; run++) {
		enum input_mode mode = (enum input_mode)(run % 3); /* lines of both kinds, NUL */
		uint8_t separator = mode == INPUT_NUL ? '\0' : '\n';
		uint64_t density = 1 + next_random() % 5000;

		len = (size_t)(next_random() % sizeof(bytes));
		for (i = 0; i < len; i++)
			bytes[i] =
			    next_random() % density == 0 ? separator : (uint8_t)(1 + next_random() % 200);
		for (i = 0; separator == '\0' && i < len; i++)
			if (bytes[i] == '\n')
				bytes[i] = 'n';
		for (i = 0; i + 1 < len; i++)
			if (bytes[i + 1] == '\n' && next_random() % 2 == 0)
				bytes[i] = '\r';
		compare_with_split(bytes, len, mode, 1 + (size_t)(next_random() % 3000));
	}
	/* One line longer than the whole buffer, and exactly the limit, and one more. */
	memset(bytes, 'x', sizeof(bytes));
	compare_with_split(bytes, sizeof(bytes), INPUT_LINES, 10);
	bytes[1000] = '\n';
	compare_with_split(bytes, 1001, INPUT_LINES, 1000);
	compare_with_split(bytes, 1001, INPUT_LINES, 999);
	bytes[999] = '\r'; /* not counted, if the LF is behind it */
	compare_with_split(bytes, 1001, INPUT_LINES, 999);
	compare_with_split(bytes, 1001, INPUT_LINES, 998);
	compare_with_split(bytes, 1000, INPUT_LINES, 999);
	compare_with_split(bytes, 1001, INPUT_LINES_RAW, 999);
	compare_with_split(bytes, 0, INPUT_LINES, 10);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lines_of_several_files_come_in_order),
		cmocka_unit_test(a_file_that_cannot_be_read_is_told_and_passed),
		cmocka_unit_test(whole_files_are_one_message_each),
		cmocka_unit_test(a_text_is_one_message),
		cmocka_unit_test(any_bytes_in_any_pieces_are_split_alike),
	};

	return cmocka_run_group_tests_name("input", tests, NULL, NULL);
}
