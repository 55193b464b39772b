/*
 * One way to publish, so that the same work can be done through tidegate and without it.
 *
 * Owner: the process that opened it; one thread. Every function that can fail writes the reason into
 * client_error and returns NULL or -1. A message is finished when the broker has confirmed it (or, where the
 * protocol has no confirmation, when it was sent). Any other outcome is a failure.
 */
#ifndef TG_BENCH_CLIENT_H
#define TG_BENCH_CLIENT_H

#include "tools/bench/bench.h"

struct load_client {
	const char *name;     /* as shown */
	const char *protocol; /* that a direct client speaks */
	/* Program that publishes one message and exits: HELPER TARGET TARGET TOPIC SIZE [CAFILE]. NULL: none.
	 */
	const char *helper;
	uint64_t window; /* of a direct client: messages under way with which it was fastest */
	int direct;      /* needs the broker's address */
	int clear_only;  /* speaks no TLS */

	/* Connects, and returns once messages can be published. */
	void *(*open)(const struct bench_options *options);

	/* Publishes up to count messages. Returns how many were taken now, 0 if collect() must come first. */
	int64_t (*publish)(void *self, uint64_t count);

	/*
	 * Returns how many more messages are finished. Waits for the first up to timeout_ms; 0: does
	 * not wait. A return of 0 after a wait is no error.
	 */
	int64_t (*collect)(void *self, int timeout_ms);

	void (*close)(void *self);

	/*
	 * A descriptor that is readable when collect() may have something. NULL: a thread of the library's takes
	 * the answers and calls client_answered.
	 */
	int (*fd)(void *self);

	/* Sends what publish() has only noted. NULL: publish() sends. */
	int (*flush)(void *self);

	/* With a helper: its two TARGET arguments, written into text. */
	void (*targets)(const struct bench_options *options, char text[2][256]);
};

#define CLIENT(name) extern const struct load_client client_##name;
#include "tools/bench/clients.def"
#undef CLIENT

extern char client_error[512];

/* Called, if it is set, by the thread that takes the answers, for each count of messages that are finished. */
extern void (*client_answered)(uint64_t count);

/* Writes client_error. Returns -1. */
int client_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* How many messages a direct client has under way at most. */
uint64_t client_window(const struct load_client *client, const struct bench_options *options);

/* A body of so many bytes: printable, the same every time. Freed by the caller; NULL without memory. */
void *client_body(uint64_t size);

#endif
