/*
 * Tables for people: columns as wide as their content, numbers to the right, colour and cutting
 * only on a terminal. Foreign text is made harmless: control characters and characters that reverse the text's
 * direction become '?'.
 */
#ifndef TG_TOOLS_CTL_TABLE_H
#define TG_TOOLS_CTL_TABLE_H

#include <stddef.h>
#include <stdio.h>

enum paint { PAINT_NONE, PAINT_GOOD, PAINT_WARN, PAINT_BAD, PAINT_DIM, PAINT_BOLD };

struct table_column {
	const char *title;
	int right; /* numbers */
};

struct table_cell {
	char *text;
	size_t width;
	enum paint paint;
};

/* Zeroed, then table_init. Running out of memory ends the program: it has nothing to lose. */
struct table {
	const struct table_column *columns;
	size_t column_count;
	struct table_cell *cells;
	size_t cell_count, cell_capacity;
};

void table_init(struct table *table, const struct table_column *columns, size_t column_count);
void table_fini(struct table *table);

/* The next cell, row by row; text is copied. */
void table_cell(struct table *table, enum paint paint, const char *text);
void table_cellf(struct table *table, enum paint paint, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Heading and rows; only rows that are whole. On a terminal the last column is cut at its edge. */
void table_print(const struct table *table, FILE *out);

/* Text in a colour, harmless, without a line break. */
void table_paint(FILE *out, enum paint paint, const char *text);

/* Whether standard output is a terminal, and whether it gets colour (NO_COLOR, TERM=dumb). */
int table_on_terminal(void);

#endif
