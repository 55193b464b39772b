/*
 * A rig runs one session of a driver as a link does and checks the rules of driver.h: the first rule that a
 * driver breaks, on any input, is noted in `broken`.
 *
 * Events are kept as lines of text in a form that does not depend on how the input was cut: runs
 * of acknowledgements are spelled out one by one.
 *
 *   up | alive | blocked "…" | unblocked | leaving | tls | window N | max-body N | keepalive N |
 *   endpoint "…" | ack SEQ delivered|sent [reference=N] | nack SEQ CODE "…" | again SEQ | lost SEQ |
 *   unsure SEQ CODE reference=N |
 *   fatal protocol|refused|closed|unusable|settings|again|answered|message CODE "…" | unheard ["…"]
 */
#ifndef TG_TESTS_CONFORMANCE_RIG_H
#define TG_TESTS_CONFORMANCE_RIG_H

#include "daemon/protocol/drivers.h"

#include <stdint.h>

/* Bytes that grow. */
struct rig_bytes {
	uint8_t *bytes;
	size_t len, capacity;
};

void rig_bytes_add(struct rig_bytes *to, const void *bytes, size_t len);
void rig_bytes_fini(struct rig_bytes *bytes);

/* A sum of a stream of bytes, the same however the stream was cut. */
struct rig_digest {
	uint64_t sum, word;
	unsigned have; /* bytes of `word` not yet summed */
};

uint64_t rig_digest_value(const struct rig_digest *digest);

struct rig {
	const struct driver *driver;
	void *settings;
	struct session *session;
	struct session_params params;
	struct out out;
	struct rig_bytes events; /* lines, since the last rig_forget() */
	struct rig_bytes sent;   /* output, since the last rig_forget() */
	/* Input lies in one of two buffers in turn, and may be read only during input(), which ASan checks. */
	uint8_t *input[2];
	size_t input_capacity[2];
	unsigned turn;
	size_t left_at, left;   /* the driver's unconsumed rest in input[turn] */
	struct rig_bytes hello; /* input that came before the session was up, for rig_move() */
	const uint8_t *lent;    /* the body that out may refer to */
	size_t lent_len;
	uint64_t heard, replied; /* bytes in, and bytes that input() answered with */
	uint8_t *waits;          /* by seq: an answer is due */
	size_t waits_capacity;
	uint64_t next, oldest, outstanding;
	uint64_t base;                /* messages of the sessions before a move, added to reported seqs */
	uint64_t garble;              /* not 0: how rig_move() tries saved bytes with faults first */
	int moving;                   /* a session is being brought up: its events are not reported */
	uint64_t endpoints;           /* the number of the next in its list */
	int quiet;                    /* events and output are only digested, for the fuzzer's speed */
	struct rig_digest said, told; /* of events, of output: their interleaving depends on the cuts */
	int started, up, dead, allowed_events;
	void *memory; /* the broker's, of all its sessions; the driver's size */
	int probing;  /* a probe waits for its answer */
	int securing; /* EV_TLS was said: rig_start() comes next */
	char broken[300];
};

/*
 * Makes a session with the settings of a libconfig group's text ("version = 4;"); its files are in
 * folder. Returns 0, or -1 with broken set. Complaints about settings are in broken.
 */
int rig_open(struct rig *rig, const struct driver *driver, const char *settings, const char *folder,
    const struct session_params *params);
void rig_close(struct rig *rig);
/* As rig_close(), but the memory stays with the rig for the next rig_open_with(); rig_close() follows. */
void rig_renew(struct rig *rig);

/* As rig_open in two steps, so that one set of settings serves many sessions. */
void *rig_settings_new(
    const struct driver *driver, const char *settings, const char *folder, char *why, size_t why_size);
void rig_settings_free(const struct driver *driver, void *settings);
int rig_open_with(
    struct rig *rig, const struct driver *driver, void *settings, const struct session_params *params);

int rig_start(struct rig *rig);
/* Gives bytes to the driver, behind its unconsumed rest. */
void rig_feed(struct rig *rig, const uint8_t *bytes, size_t len);
/* Returns enum driver_published or a negative TG_E; *rejection says why. */
int rig_publish(struct rig *rig, const struct message *message, struct driver_rejection *rejection);
void rig_flush(struct rig *rig);
void rig_probe(struct rig *rig);
void rig_goodbye(struct rig *rig);
/* The connection ends, or its time is up, before the session is up: the driver is asked what else there is. */
void rig_unheard(struct rig *rig);
/* The next session with the same broker. */
void rig_again(struct rig *rig);
void rig_forget(struct rig *rig);
/*
 * Replaces the session as an upgrade does: a new session replays the handshake, restores the saved state and
 * continues, numbering messages from 0. With a driver that saves, events and output are the same as without the
 * move. Returns 0, or -1 if the
 * session is not one that moves now.
 */
int rig_move(struct rig *rig);

#endif
