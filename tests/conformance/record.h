/*
 * Making transcripts and fuzzer inputs instead of checking them.
 *
 * A fuzzer input, which tests/fuzz/fuzz_driver.c plays:
 *
 *   [driver: 1] [settings: 1] [window, +8 tls_wanted, +16 * cut, +64 move: 1] op*
 *   op: [kind << 5 | arg: 1] …; see enum script_op
 *
 * driver counts in drivers.def, settings in the distinct ones of that driver's transcripts, in order
 * of file name; both modulo how many there are. An input is played twice: as it stands, and with
 * the bytes of each feed cut finer (enum script_cut), or, with move, in sessions that move to a
 * successor whenever they could.
 */
#ifndef TG_TESTS_CONFORMANCE_RECORD_H
#define TG_TESTS_CONFORMANCE_RECORD_H

#include "transcript.h"

enum script_op {
	SCRIPT_FEED = 0,    /* arg bytes follow and are fed; arg 0: a u16 length, little-endian, and as many */
	SCRIPT_PUBLISH = 1, /* 1 + arg small messages */
	SCRIPT_MESSAGE = 2, /* one message: [enum script_message: 1], what its bits add in their order */
	SCRIPT_PROBE = 3,
	SCRIPT_GOODBYE = 4, /* arg SCRIPT_AGAIN: the connection ends, and another session begins */
	SCRIPT_FLUSH = 5,
	SCRIPT_BULK = 6,  /* 1 + 64 * arg small messages */
	SCRIPT_FLOOD = 7, /* one byte follows and is fed 2048 * (1 + arg) times */
};

#define SCRIPT_AGAIN 1

enum script_cut {
	CUT_BYTES = 0, /* one by one, at the end of long pieces */
	CUT_FEW = 1,   /* into pieces of up to 8 */
	CUT_MANY = 2,  /* … up to 64 */
	CUT_ONCE = 3,
};

enum script_message {
	MESSAGE_RETAIN = 1 << 0,
	MESSAGE_EXPIRY = 1 << 1,  /* [u8]: times 500 ms */
	MESSAGE_TOPIC = 1 << 2,   /* [u8 len] bytes; else a plain one */
	MESSAGE_KEY = 1 << 3,     /* [u8 len] bytes */
	MESSAGE_HEADERS = 1 << 4, /* [u8 name_len] bytes [u8 value_len] bytes */
	MESSAGE_BODY = 1 << 5,    /* [u8 len] bytes */
	MESSAGE_LARGE = 1 << 6,   /* a body of 5000 bytes */
	MESSAGE_HUGE = 1 << 7,    /* a body of 70000 bytes */
};

#define SCRIPT_WINDOWS 8
extern const uint32_t script_windows[SCRIPT_WINDOWS];

/* Settings worth trying. */
struct variant {
	const struct driver *driver;
	char *text;
	void *settings;
};

struct variants {
	struct variant *list;
	size_t count;
};

/* The paths of a folder's transcripts in order; the caller frees them. Returns how many. */
size_t transcript_files(const char *folder, char **files, size_t max);

/* Returns 0, or -1 after saying on stderr what is wrong. */
int variants_load(struct variants *variants, char **files, size_t count);
void variants_fini(struct variants *variants);
/* The index-th of a driver, modulo its count; NULL: it has none. */
const struct variant *variants_pick(const struct variants *variants, const struct driver *driver, size_t index);

/* Both return a program's exit status. */
int record(const char *host, int port, const char *file);
int record_seeds(const char *folder, char **files, size_t count);

#endif
