/*
 * Parsing and printing of numbers with units.
 *
 *	UNITS_COUNT   5000  5k  2M  1G          powers of 1,000
 *	UNITS_BYTES   65536  64k  64KiB  1M     powers of 1,024
 *	UNITS_MS      250  250ms  5s  2min      milliseconds
 *	UNITS_RATE    500  5k  5k/s             a count each second
 */
#ifndef TG_TOOLS_UNITS_H
#define TG_TOOLS_UNITS_H

#include <stddef.h>
#include <stdint.h>

enum units { UNITS_COUNT, UNITS_BYTES, UNITS_MS, UNITS_RATE };

/* Reads a whole text as a number of the kind. Returns 0, or -1: not a number, or past 64 bits. */
int units_parse(enum units kind, const char *text, uint64_t *value);

/* An example of the kind, for an error message. Static. */
const char *units_example(enum units kind);

/* Each writes at most size bytes, terminated, and returns text. 32 bytes are enough for any. */
char *units_count(char *text, size_t size, uint64_t value); /* 1,234,567 */
char *units_bytes(char *text, size_t size, uint64_t bytes); /* 1.2 MiB */
char *units_ns(char *text, size_t size, double ns);         /* 64.1 us */

#define UNITS_TEXT 32

#endif
