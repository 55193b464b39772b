/*
 * tidegate-pub's run: messages from an input into a lane, completions counted.
 *
 *	input ──► pending (one batch) ──tg_publish_batch──► lane ──tg_poll──► counts
 *
 * The ring is kept full; when it is, tg_wait sleeps until the daemon has made room. Nothing is
 * read ahead of what the ring takes, but one batch.
 *
 * Owner: main; one thread.
 */
#ifndef TG_PUB_PUB_H
#define TG_PUB_PUB_H

#include "libclient/tidegate.h"
#include "tools/common/histogram.h"
#include "tools/pub/input.h"

#include <signal.h>

#define PUB_BATCH 32
#define PUB_REJECTIONS 5 /* shown in words; the rest is only counted */

struct pub_options {
	const char *socket;
	const char *pool;
	const char *topic;
	const char *key;
	struct tg_header *headers;
	size_t header_count;
	uint32_t flags;      /* enum tg_flags */
	uint32_t timeout_ms; /* of each message; 0: the pool's */
	uint32_t expiry_ms;  /* of each message; 0: none */
	uint64_t wait_ms;    /* of the whole run; 0: no limit */
	uint64_t rate;       /* messages a second; 0: no limit */
	uint64_t ring_bytes;
};

struct pub_rejection {
	char from[256]; /* file:line */
	char reason[256];
	uint32_t code;
};

struct pub {
	const struct pub_options *options;
	struct tg_client *client;
	struct tg_lane *lane;
	struct input *in; /* borrowed */

	struct tg_message pending[PUB_BATCH];
	uint64_t numbers[PUB_BATCH]; /* of the pending messages */
	size_t pending_first, pending_count;

	uint64_t start_ns, end_ns;
	uint64_t rate_base_ns, rate_count; /* rate_count messages since rate_base_ns */
	int reading;                       /* more input may come */
	int broken;                        /* the lane is of no more use */
	int timed_out;
	int stranded;         /* the daemon is away, and waiting for it is over */
	uint64_t away_ms;     /* for how long it was */
	uint64_t idle_ns;     /* since when there was nothing to do but to wait for it */
	int interrupted;      /* stopped by pub_stop before the input's end */
	uint64_t next_number; /* of the message after the last one accepted or skipped */

	uint64_t accepted, accepted_bytes;
	uint64_t accepted_ns; /* when the last one was */
	uint64_t outcomes[TG_CANCELLED + 1];
	uint64_t resent;  /* completed after more than one attempt */
	uint64_t skipped; /* input that never became a message: too long, unreadable file */
	struct pub_rejection rejections[PUB_REJECTIONS];
	size_t rejection_count;
	struct histogram latency; /* ns, publish to completion as this process saw it */
};

/* Set by the caller's signal handler: 1: stop reading, wait for what was accepted. 2: do not wait either. */
extern volatile sig_atomic_t pub_stop;

/* Connects and opens the lane. Complains and returns -1 if that fails. */
int pub_open(struct pub *pub, const struct pub_options *options);

/* Publishes all of in and waits. tick is called a few times a second while it runs; may be NULL. */
void pub_run(struct pub *pub, struct input *in, void (*tick)(const struct pub *));
void pub_close(struct pub *pub);

/* Accepted and not answered (yet). */
uint64_t pub_unanswered(const struct pub *pub);

#endif
