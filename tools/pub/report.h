/* tidegate-pub's output: the progress line, the summary, the JSON object. */
#ifndef TG_PUB_REPORT_H
#define TG_PUB_REPORT_H

#include "tools/pub/pub.h"

#include <stdio.h>

/* Writes the progress line over the last one. For pub_run's tick. */
void report_progress(const struct pub *pub);

/* accepted=N delivered=N sent=N rejected=N expired=N unknown=N cancelled=N … */
void report_summary(FILE *out, const struct pub *pub);

/* Latency percentiles in words. */
void report_latency(FILE *out, const struct pub *pub);

/* One object on one line. Returns 0, -1 if it could not be made or written. */
int report_json(FILE *out, const struct pub *pub, int success);

/* 1 if every message was delivered or sent and all input became messages. */
int report_success(const struct pub *pub);

#endif
