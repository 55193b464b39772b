/* The end of every measurement: medians over rounds, and the figures as a JSON object. */
#include "build_config.h"

#include "tools/bench/bench.h"
#include "tools/common/cli.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

static int
compare_doubles(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return a < b ? -1 : a > b;
}

double
bench_median(double *values, size_t count)
{
	if (count == 0)
		return 0;
	qsort(values, count, sizeof(*values), compare_doubles);
	return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

int
bench_print_json(json_t *object)
{
	int failed = object == NULL || json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(9)) != 0 ||
		     fputc('\n', stdout) == EOF || fflush(stdout) != 0;

	json_decref(object);
	if (failed)
		cli_error("cannot write the JSON object");
	return failed ? CLI_FAILED : CLI_OK;
}
