/*
 * What a fuzz target has: the two functions libFuzzer calls, and two that replay.c calls beside them,
 * which plays files without libFuzzer.
 */
#ifndef TG_TESTS_FUZZ_FUZZ_H
#define TG_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Inputs of this folder of the corpus follow. Returns 0 if they are not for this target. */
int fuzz_folder(const char *name);
/* Frees what LLVMFuzzerInitialize() made. */
void fuzz_fini(void);

#endif
