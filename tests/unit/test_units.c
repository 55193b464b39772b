/* Parsing and printing numbers with units. */
#include "build_config.h"

#include "tools/common/units.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static void
numbers_are_read_with_their_units(void **state)
{
	static const struct {
		enum units kind;
		const char *text;
		uint64_t value;
	} good[] = {
		{ UNITS_COUNT, "0", 0 },
		{ UNITS_COUNT, "5000", 5000 },
		{ UNITS_COUNT, "5k", 5000 },
		{ UNITS_COUNT, "2M", 2000000 },
		{ UNITS_COUNT, "18446744073709551615", UINT64_MAX },
		{ UNITS_BYTES, "64k", 65536 },
		{ UNITS_BYTES, "64KiB", 65536 },
		{ UNITS_BYTES, "1M", 1048576 },
		{ UNITS_MS, "250", 250 },
		{ UNITS_MS, "250ms", 250 },
		{ UNITS_MS, "5s", 5000 },
		{ UNITS_MS, "2min", 120000 },
		{ UNITS_RATE, "500/s", 500 },
		{ UNITS_RATE, "5k/s", 5000 },
	};
	uint64_t value;
	size_t i;

	(void)state;
	for (i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		value = ~good[i].value;
		assert_int_equal(units_parse(good[i].kind, good[i].text, &value), 0);
		assert_true(value == good[i].value);
	}
}

static void
text_that_is_no_number_is_refused(void **state)
{
	static const char *const bad[] = { "", " 1", "-1", "+1", "k", "1x", "1 k", "1kk", "0x10", "1.5k",
		"18446744073709551616", "18446744073709551615k" };
	enum units kind;
	uint64_t value;
	size_t i;

	(void)state;
	for (kind = UNITS_COUNT; kind <= UNITS_RATE; kind++)
		for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
			assert_int_equal(units_parse(kind, bad[i], &value), -1);
	assert_int_equal(units_parse(UNITS_COUNT, "1ms", &value), -1);
	assert_int_equal(units_parse(UNITS_MS, "1k", &value), -1);
}

static void
numbers_are_written_for_people(void **state)
{
	char text[UNITS_TEXT], small[6];

	(void)state;
	assert_string_equal(units_count(text, sizeof(text), 0), "0");
	assert_string_equal(units_count(text, sizeof(text), 999), "999");
	assert_string_equal(units_count(text, sizeof(text), 1000), "1,000");
	assert_string_equal(units_count(text, sizeof(text), 1234567), "1,234,567");
	assert_string_equal(units_count(text, sizeof(text), UINT64_MAX), "18,446,744,073,709,551,615");
	units_count(small, sizeof(small), 1234567); /* must stay inside */
	assert_true(small[5] == '\0');
	assert_string_equal(units_bytes(text, sizeof(text), 1023), "1023 B");
	assert_string_equal(units_bytes(text, sizeof(text), 1536), "1.5 KiB");
	assert_string_equal(units_ns(text, sizeof(text), 7.5), "7.50 ns");
	assert_string_equal(units_ns(text, sizeof(text), 64100), "64.1 us");
	assert_string_equal(units_ns(text, sizeof(text), 250e6), "250 ms");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(numbers_are_read_with_their_units),
		cmocka_unit_test(text_that_is_no_number_is_refused),
		cmocka_unit_test(numbers_are_written_for_people),
	};

	return cmocka_run_group_tests_name("units", tests, NULL, NULL);
}
