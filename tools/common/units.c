#include "tools/common/units.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct suffix {
	const char *text;
	uint64_t factor;
};

#define KIB UINT64_C(1024)

static const struct suffix count_suffixes[] = { { "", 1 }, { "k", 1000 }, { "K", 1000 }, { "M", 1000000 },
	{ "G", 1000000000 }, { NULL, 0 } };

static const struct suffix byte_suffixes[] = { { "", 1 }, { "B", 1 }, { "k", KIB }, { "K", KIB },
	{ "KiB", KIB }, { "M", KIB *KIB }, { "MiB", KIB *KIB }, { "G", KIB *KIB *KIB },
	{ "GiB", KIB *KIB *KIB }, { NULL, 0 } };

static const struct suffix ms_suffixes[] = { { "", 1 }, { "ms", 1 }, { "s", 1000 }, { "min", 60000 },
	{ NULL, 0 } };

static const struct suffix rate_suffixes[] = { { "", 1 }, { "/s", 1 }, { "k", 1000 }, { "k/s", 1000 },
	{ "K", 1000 }, { "K/s", 1000 }, { "M", 1000000 }, { "M/s", 1000000 }, { NULL, 0 } };

static const struct {
	const struct suffix *suffixes;
	const char *example;
} kinds[] = {
	[UNITS_COUNT] = { count_suffixes, "5000, 5k, 2M" },
	[UNITS_BYTES] = { byte_suffixes, "65536, 64k, 1MiB" },
	[UNITS_MS] = { ms_suffixes, "250, 250ms, 5s, 2min" },
	[UNITS_RATE] = { rate_suffixes, "500, 5k/s" },
};

int
units_parse(enum units kind, const char *text, uint64_t *value)
{
	const struct suffix *suffix;
	uint64_t number;
	char *end;

	/* strtoull takes a sign and leading blanks; a number here starts with a digit. */
	if (text[0] < '0' || text[0] > '9')
		return -1;
	errno = 0;
	number = strtoull(text, &end, 10);
	if (errno != 0)
		return -1;
	for (suffix = kinds[kind].suffixes; suffix->text != NULL; suffix++)
		if (strcmp(suffix->text, end) == 0)
			return __builtin_mul_overflow(number, suffix->factor, value) ? -1 : 0;
	return -1;
}

const char *
units_example(enum units kind)
{
	return kinds[kind].example;
}

char *
units_count(char *text, size_t size, uint64_t value)
{
	char digits[24];
	size_t len = (size_t)snprintf(digits, sizeof(digits), "%" PRIu64, value);
	size_t i, at = 0;

	if (size == 0)
		return text;
	for (i = 0; i < len && at + 1 < size; i++) {
		if (i != 0 && (len - i) % 3 == 0 && at + 2 < size)
			text[at++] = ',';
		text[at++] = digits[i];
	}
	text[at] = '\0';
	return text;
}

char *
units_bytes(char *text, size_t size, uint64_t bytes)
{
	static const char *const words[] = { "B", "KiB", "MiB", "GiB", "TiB" };
	double value = (double)bytes;
	size_t i = 0;

	while (value >= 1024 && i + 1 < sizeof(words) / sizeof(words[0])) {
		value /= 1024;
		i++;
	}
	snprintf(text, size, i == 0 ? "%.0f %s" : "%.1f %s", value, words[i]);
	return text;
}

char *
units_ns(char *text, size_t size, double ns)
{
	static const char *const words[] = { "ns", "us", "ms", "s" };
	size_t i = 0;

	while (ns >= 1000 && i + 1 < sizeof(words) / sizeof(words[0])) {
		ns /= 1000;
		i++;
	}
	snprintf(text, size, ns < 10 ? "%.2f %s" : ns < 100 ? "%.1f %s" : "%.0f %s", ns, words[i]);
	return text;
}
