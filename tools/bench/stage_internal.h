/* Starting brokers: shared by stage.c and the files beside it. Owner and thread: main's. */
#ifndef TG_BENCH_STAGE_INTERNAL_H
#define TG_BENCH_STAGE_INTERNAL_H

#include "tools/bench/stage.h"

/* A free port, which another program could still take in the next milliseconds. 0 with a message shown. */
uint16_t stage_free_port(void);

/* A connection to 127.0.0.1, the caller's. -1: refused. */
int stage_connect(uint16_t port);

/* Where a file of the stage is. Returns 0, or -1 with a message shown. */
int stage_path(const struct stage *stage, const char *name, char path[PATH_MAX]);

/* Makes a file of this text. Returns 0, or -1 with a message shown. */
int stage_write(const struct stage *stage, const char *name, char path[PATH_MAX], const char *text);

/*
 * Starts a program, found as process_find() does unless it has a slash, with its words in stage->log.
 * environment: as process_start()'s. Returns 0, or -1 with a message shown.
 */
int
stage_run(struct stage *stage, const char *program, char *const argv[], char *const environment[], pid_t *pid);

/* Makes stage->cert, stage->key and stage->key_store, a certificate for 127.0.0.1 and localhost. Returns 0, or -1
 * with a message shown. */
#define STAGE_KEY_STORE_PASSWORD "bench" /* Java takes none without; the folder is ours alone */
int stage_make_certificate(struct stage *stage);

/*
 * Starting a broker on stage->port, with TLS if options->tls, and preparing it once the port answers: the topic
 * must have a destination, which keeps at most STAGE_KEEP_BYTES of messages in memory. Each returns
 * 0, or -1 with a message shown.
 */
#define STAGE_KEEP_BYTES (64u << 20)
#define BROKER(name, program, protocols) \
	int stage_start_##name(struct stage *stage, const struct bench_options *options);
#include "tools/bench/brokers.def"
#undef BROKER
int stage_make_stream(const struct stage *stage, const struct bench_options *options);

#endif
