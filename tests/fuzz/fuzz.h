/*
 * A fuzz target's functions: two that libFuzzer calls, and two more for replay.c, which plays files without
 * libFuzzer.
 */
#ifndef TG_TESTS_FUZZ_FUZZ_H
#define TG_TESTS_FUZZ_FUZZ_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Inputs of this folder of the corpus follow. Returns 0 if they are not for this target. */
int fuzz_folder(const char *name);
/* Frees what LLVMFuzzerInitialize() made. */
void fuzz_fini(void);

/* Reports a fault and ends the run; libFuzzer keeps the input. */
static inline void
fuzz_check(int good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "%s: %s\n", program_invocation_short_name, what);
	abort();
}

#endif
