#include "tools/ctl/table.h"

#include "tools/common/cli.h"

#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define GAP 2u /* blanks between columns */

int
table_on_terminal(void)
{
	static int on = -1;

	if (on < 0)
		on = isatty(STDOUT_FILENO);
	return on;
}

static int
in_colour(void)
{
	static int on = -1;
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	if (on < 0)
		on = table_on_terminal() && (no == NULL || no[0] == '\0') && term != NULL &&
		     strcmp(term, "dumb") != 0;
	return on;
}

static size_t
terminal_width(void)
{
	struct winsize size;

	if (!table_on_terminal() || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0)
		return SIZE_MAX;
	return size.ws_col;
}

_Noreturn static void
no_memory(void)
{
	cli_error("out of memory");
	exit(CLI_FAILED);
}

/* The bytes of the character at s, which is UTF-8 (it came through a JSON reader). */
static size_t
char_bytes(const unsigned char *s)
{
	return s[0] < 0x80 ? 1 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
}

/* Characters that would move the cursor or reverse the text's direction. */
static int
is_harmful(const unsigned char *s)
{
	if (s[0] < 0x20 || s[0] == 0x7f)
		return 1;
	if (s[0] == 0xc2 && s[1] < 0xa0)
		return 1;
	return s[0] == 0xe2 && ((s[1] == 0x80 && s[2] >= 0xa8 && s[2] <= 0xae) ||
				   (s[1] == 0x81 && s[2] >= 0xa6 && s[2] <= 0xa9));
}

/* A harmless copy, and how many characters it has. */
static char *
copy_harmless(const char *text, size_t *width)
{
	const unsigned char *s = (const unsigned char *)text;
	char *copy = malloc(strlen(text) + 1);
	size_t at = 0;

	if (copy == NULL)
		no_memory();
	*width = 0;
	while (*s != '\0') {
		size_t bytes = char_bytes(s);
		if (strnlen((const char *)s, bytes) < bytes)
			break; /* cut in the middle of a character */
		if (is_harmful(s)) {
			copy[at++] = '?';
		} else {
			memcpy(copy + at, s, bytes);
			at += bytes;
		}
		s += bytes;
		(*width)++;
	}
	copy[at] = '\0';
	return copy;
}

void
table_init(struct table *table, const struct table_column *columns, size_t column_count)
{
	*table = (struct table){ .columns = columns, .column_count = column_count };
}

void
table_fini(struct table *table)
{
	for (size_t i = 0; i < table->cell_count; i++)
		free(table->cells[i].text);
	free(table->cells);
	*table = (struct table){ .columns = NULL };
}

void
table_cell(struct table *table, enum paint paint, const char *text)
{
	if (table->cell_count == table->cell_capacity) {
		size_t capacity = table->cell_capacity == 0 ? 256 : table->cell_capacity * 2;
		struct table_cell *cells = realloc(table->cells, capacity * sizeof(*cells));
		if (cells == NULL)
			no_memory();
		table->cells = cells;
		table->cell_capacity = capacity;
	}
	struct table_cell *cell = &table->cells[table->cell_count++];
	cell->paint = paint;
	cell->text = copy_harmless(text, &cell->width);
}

void
table_cellf(struct table *table, enum paint paint, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	table_cell(table, paint, text);
}

static void
paint_bytes(FILE *out, enum paint paint, const char *text, size_t bytes)
{
	static const char *const codes[] = {
		[PAINT_NONE] = "",
		[PAINT_GOOD] = "\033[32m",
		[PAINT_WARN] = "\033[33m",
		[PAINT_BAD] = "\033[1;31m",
		[PAINT_DIM] = "\033[2m",
		[PAINT_BOLD] = "\033[1m",
	};
	int coloured = paint != PAINT_NONE && bytes > 0 && in_colour();

	if (coloured)
		fputs(codes[paint], out);
	fwrite(text, 1, bytes, out);
	if (coloured)
		fputs("\033[0m", out);
}

void
table_paint(FILE *out, enum paint paint, const char *text)
{
	size_t width;
	char *copy = copy_harmless(text, &width);

	paint_bytes(out, paint, copy, strlen(copy));
	free(copy);
}

static void
blanks(FILE *out, size_t count)
{
	while (count-- > 0)
		fputc(' ', out);
}

/* One cell in its column; left: how many columns the terminal has from here on. */
static void
print_cell(FILE *out, const struct table_column *column, const struct table_cell *cell, size_t width, int last,
    size_t left)
{
	const char *text = cell->text;
	size_t bytes = strlen(text);

	if (column->right)
		blanks(out, width - cell->width);
	if (last && !column->right && cell->width > left && left > 1) {
		const unsigned char *s = (const unsigned char *)text;
		for (size_t i = 0; i + 1 < left; i++)
			s += char_bytes(s);
		paint_bytes(out, cell->paint, text, (size_t)((const char *)s - text));
		fputs("…", out);
		return;
	}
	paint_bytes(out, cell->paint, text, bytes);
	if (!column->right && !last)
		blanks(out, width - cell->width);
}

void
table_print(const struct table *table, FILE *out)
{
	size_t n = table->column_count, rows = table->cell_count / n, edge = terminal_width();
	size_t *widths = calloc(n, sizeof(*widths));

	if (widths == NULL)
		no_memory();
	for (size_t c = 0; c < n; c++) {
		widths[c] = strlen(table->columns[c].title);
		for (size_t r = 0; r < rows; r++)
			if (table->cells[r * n + c].width > widths[c])
				widths[c] = table->cells[r * n + c].width;
	}
	for (size_t r = 0; r <= rows; r++) {
		size_t at = 0;
		for (size_t c = 0; c < n; c++) {
			const struct table_column *column = &table->columns[c];
			struct table_cell title = { .paint = PAINT_BOLD, .width = strlen(column->title) };
			char text[64];
			snprintf(text, sizeof(text), "%s", column->title);
			title.text = text;
			const struct table_cell *cell = r == 0 ? &title : &table->cells[(r - 1) * n + c];
			print_cell(out, column, cell, widths[c], c + 1 == n, edge > at ? edge - at : 0);
			if (c + 1 < n)
				blanks(out, GAP);
			at += widths[c] + GAP;
		}
		fputc('\n', out);
	}
	free(widths);
}
