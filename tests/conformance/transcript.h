/*
 * A transcript: the link's calls, the broker's bytes, and the driver's expected events and output. Line by
 * line:
 *
 *   # comment                    "# broker: …" is a line for record.py
 *   settings TEXT                libconfig text of the driver's group; lines add up
 *   file NAME BYTES              a private file beside the settings (passwords)
 *   params KEY=VALUE …           client_id host keepalive window random tls_wanted
 *   refused "TEXT"               the settings are refused with a complaint that contains TEXT; no steps follow
 *
 *   start                        steps: the link's call …
 *   < BYTES                      … or the broker's bytes; neighbouring lines are one step
 *   publish KEY=VALUE … [-> RESULT]
 *                                topic key body: BYTES; header=BYTES,BYTES; expiry=MS; retain; repeat=N
 *                                RESULT: published (default), no-ack, full, rejected CODE "TEXT"
 *   probe | flush | goodbye
 *   unheard                      the connection ends before the session is up
 *   again                        another session with the same broker begins; start comes next
 *
 *   > BYTES                      after a step: the driver's exact output; lines add up
 *   event EVENT                  and its events, in the form of rig.h; "ack 0..99 delivered" is a hundred lines
 *
 * BYTES are hex pairs and "strings" (\n \r \t \0 \xHH \" \\) separated by blanks, or after KEY=
 * by nothing; each may be followed by *N to repeat it.
 */
#ifndef TG_TESTS_CONFORMANCE_TRANSCRIPT_H
#define TG_TESTS_CONFORMANCE_TRANSCRIPT_H

#include "rig.h"

enum step_kind {
	STEP_START,
	STEP_INPUT,
	STEP_PUBLISH,
	STEP_PROBE,
	STEP_FLUSH,
	STEP_GOODBYE,
	STEP_UNHEARD,
	STEP_AGAIN
};

struct step {
	enum step_kind kind;
	unsigned line;
	char *text; /* as written, for the recorder; not of input */
	struct rig_bytes input;
	struct rig_bytes topic, key, headers, body; /* publish */
	uint32_t expiry_ms;
	unsigned repeat;
	int retain;
	struct rig_bytes result; /* "published", "rejected 0xff01 …" */
	struct rig_bytes output; /* expected */
	struct rig_bytes events;
};

struct transcript {
	char name[120]; /* the file's, without its folder */
	const struct driver *driver;
	struct rig_bytes settings; /* terminated */
	char folder[64];           /* where its files are; removed with it */
	char *refused;             /* expected complaint, or NULL */
	struct session_params params;
	char client_id[128], host[128];
	struct step *steps;
	size_t count;
	char error[400]; /* why reading failed */
};

/* Returns 0, or -1 with error set. transcript_fini in both cases. */
int transcript_read(struct transcript *transcript, const char *path);
void transcript_fini(struct transcript *transcript);

/* The message of a publish step, and publish()'s result as RESULT. */
void step_message(const struct step *step, struct message *message);
void step_result(char *text, size_t size, int rc, const struct driver_rejection *rejection);

#endif
