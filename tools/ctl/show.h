/*
 * The daemon's answers as people read them: tables with units. tidegatectl(1) explains each column,
 * and so does --help of each command.
 */
#ifndef TG_TOOLS_CTL_SHOW_H
#define TG_TOOLS_CTL_SHOW_H

#include <jansson.h>
#include <stdio.h>

/* Two answers to the same request, from which rates are computed. */
struct sample {
	const json_t *answer;
	const json_t *before; /* NULL: the first one, no rates */
	double seconds;       /* between them */
	int rates;            /* whether there will be more: rates have their columns */
};

typedef void show_answer(const struct sample *sample, FILE *out);

show_answer show_status, show_pools, show_brokers, show_links, show_lanes, show_users, show_stats, show_why;

/* One event: a line. */
void show_event(const json_t *event, FILE *out);

#endif
