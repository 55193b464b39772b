/*
 * The lane's shared memory: two sealed memfds that a client and the daemon both map. Each side makes the one
 * that it writes, and maps the other for reading.
 *
 *   the ring: made by the client; the daemon cannot write it
 *   0x0000  struct lane_client   the client's words
 *   0x1000  SQ                   sq_bytes, a power of two
 *
 *   the answers: made by the daemon; the client cannot write them
 *   0x0000  struct lane_header   written once, copied out at attach
 *   0x0400  struct lane_daemon   the daemon's words
 *   0x0a00  reason text          the broker's words for the last rejection (struct lane_reason)
 *   0x1000  CQ                   cq_entries (a power of two) struct completion of 32 bytes
 *
 *   in an address space: ring page | SQ | SQ once more | answers page | CQ
 *
 * The SQ is mapped twice in a row, so that a record is always contiguous, wherever it starts.
 *
 * The ring is sealed with F_SEAL_FUTURE_WRITE as soon as its client has mapped it: that mapping stays writable,
 * and from then on no process can map it for writing, write to it or punch holes into it. A hole that is being
 * punched holds up every page fault on it, in every process, until the kernel has walked all mappings of the
 * file: with 60,000 of them the daemon's loop stood still for more than a second. The daemon takes a ring only
 * when it is sealed so and has no holes (SEEK_HOLE), so that a read of it allocates nothing: all pages of a ring
 * are charged to the control group of its client, and a lack of memory is the client's error at attach, not a
 * SIGBUS of the daemon later.
 *
 * The answers are not sealed so, because a daemon that takes over has to map them for writing, and because
 * the daemon punches them when the lane is closed: their memory is charged to the daemon and comes back even if
 * the client keeps them mapped. They belong to the daemon's user, with mode 0400, and the client has a descriptor
 * that is open for reading. A client of the daemon's own user could open them for writing; it could as
 * well kill the daemon.
 *
 * A daemon that is handed a lane back after a crash has no descriptor of the answers that it could write to.
 * It makes new ones, copies what is in the old ones, and answers with a descriptor of them. The client maps them
 * in the place of the old ones, at the same addresses, and says so (FRAME_LANE_READY); not before that does
 * the daemon serve the lane. Until then the old answers are the truth, whichever daemon comes next.
 *
 * Owner: each side owns its own mapping; a memfd lives as long as either has it mapped or open.
 * Threads: a struct lane_map is used by one thread at a time, but for lane_map_answers (see there).
 * Version: LANE_ABI. Every offset below is asserted; changing one means a new LANE_ABI.
 */
#ifndef TG_SHM_LANE_H
#define TG_SHM_LANE_H

#include <stddef.h>
#include <stdint.h>

#define LANE_MAGIC UINT64_C(0x31656e616c676474) /* "tdglane1" */
#ifndef LANE_ABI                                /* tests build both sides one higher */
#define LANE_ABI 1u
#endif

#define LANE_PAGE 4096u
#define LANE_SQ_MIN (UINT64_C(16) << 10)      /* one-shot publishers: first touch of a page costs 3 us */
#define LANE_SQ_DEFAULT (UINT64_C(256) << 10) /* see DESIGN: a ring's size is its attach cost */
#define LANE_SQ_MAX (UINT64_C(1) << 30)
#define LANE_CQ_MIN 128u /* one page of completions */
#define LANE_CQ_MAX (1u << 20)
#define LANE_SQ_PER_CQ 128u /* default: one completion slot for this many bytes of SQ */
#define LANE_POOL_NAME 64u  /* bytes, terminator included */

struct lane_header {
	uint64_t magic;
	uint32_t abi;
	uint32_t flags; /* enum lane_flags */
	uint64_t lane_id;
	uint64_t sq_bytes;
	uint32_t cq_entries;
	uint32_t max_record; /* bytes of the largest record the daemon takes, header included */
	uint64_t nonce;      /* random, of this lane: a handed-back memfd is matched by it */
	char pool[LANE_POOL_NAME];
	uint64_t secret[2]; /* random, and never told: the ids of the lane's messages are made with it */
};

enum lane_flags {
	/* The daemon raises the client's fence (membarrier) before it sleeps: publish needs none. */
	LANE_F_EXPEDITED = 1u << 0,
};

struct lane_client {
	uint64_t sq_tail; /* end of the committed records, a position */
	uint8_t pad0[120];
	uint64_t cq_head; /* completions consumed, a count */
	uint8_t pad1[120];
	uint32_t waiting; /* odd: the client sleeps, or is about to; it changes with every sleep */
	uint8_t pad2[124];
};

struct lane_daemon {
	uint64_t sq_head; /* start of the oldest unreleased record, a position */
	uint64_t sq_sent; /* every record that ever began to be handed to a socket starts below it */
	uint8_t pad0[112];
	uint64_t cq_tail; /* completions committed, a count */
	uint8_t pad1[120];
	uint32_t asleep;   /* odd: ring the doorbell after a publish; it changes with every sleep */
	uint32_t writable; /* 1: the pool has a link that takes records now */
	uint32_t closed;   /* 1: the daemon has quarantined this lane; nothing will come of it */
	uint8_t pad2[116];
};

/* The last rejection's words. A seqlock: seq is odd while the text is being written. */
#define LANE_REASON_BYTES 248u
struct lane_reason {
	uint32_t seq;
	uint32_t code; /* the broker's code of the completion the text belongs to */
	char text[LANE_REASON_BYTES];
};

#define LANE_HEADER_AT 0x0000u
#define LANE_CLIENT_AT 0x0000u /* in the ring */
#define LANE_DAEMON_AT 0x0400u
#define LANE_REASON_AT 0x0a00u

_Static_assert(offsetof(struct lane_header, lane_id) == 0x10, "lane ABI");
_Static_assert(offsetof(struct lane_header, sq_bytes) == 0x18, "lane ABI");
_Static_assert(offsetof(struct lane_header, cq_entries) == 0x20, "lane ABI");
_Static_assert(offsetof(struct lane_header, max_record) == 0x24, "lane ABI");
_Static_assert(offsetof(struct lane_header, nonce) == 0x28, "lane ABI");
_Static_assert(offsetof(struct lane_header, pool) == 0x30, "lane ABI");
_Static_assert(offsetof(struct lane_header, secret) == 0x70, "lane ABI");
_Static_assert(sizeof(struct lane_header) == 0x80, "lane ABI");
_Static_assert(offsetof(struct lane_client, cq_head) == 128, "lane ABI");
_Static_assert(offsetof(struct lane_client, waiting) == 256, "lane ABI");
_Static_assert(sizeof(struct lane_client) == 384, "lane ABI");
_Static_assert(offsetof(struct lane_daemon, sq_sent) == 8, "lane ABI");
_Static_assert(offsetof(struct lane_daemon, cq_tail) == 128, "lane ABI");
_Static_assert(offsetof(struct lane_daemon, asleep) == 256, "lane ABI");
_Static_assert(offsetof(struct lane_daemon, writable) == 260, "lane ABI");
_Static_assert(offsetof(struct lane_daemon, closed) == 264, "lane ABI");
_Static_assert(sizeof(struct lane_daemon) == 384, "lane ABI");
_Static_assert(LANE_REASON_AT + sizeof(struct lane_reason) <= LANE_PAGE, "lane ABI");

/* Geometry, copied out of the header (or computed) and checked; the header is not read again. */
struct lane_geometry {
	uint64_t sq_bytes;
	uint32_t cq_entries;
};

/* One side's view of a lane's memory. Zeroed: not mapped. */
struct lane_map {
	struct lane_geometry geo;
	void *base; /* the whole reservation */
	size_t bytes;
	struct lane_header *header;
	struct lane_client *client; /* the ring's first page */
	struct lane_daemon *daemon;
	struct lane_reason *reason;
	uint8_t *sq; /* sq_bytes, twice */
	struct completion *cq;
};

/*
 * Fills geo from what was asked for; zero asks for the default. sq_bytes is rounded up to a
 * power of two. Returns 0, or -TG_EINVAL when either is past LANE_SQ_MAX / LANE_CQ_MAX.
 */
int lane_geometry_make(struct lane_geometry *geo, uint64_t sq_bytes, uint32_t cq_entries);

/* Returns 0 if geo is one that lane_geometry_make could have made, else -TG_EINVAL. */
int lane_geometry_check(const struct lane_geometry *geo);

/* Bytes of the two memfds of a lane of this geometry, and of both. */
uint64_t lane_ring_bytes(const struct lane_geometry *geo);
uint64_t lane_answers_bytes(const struct lane_geometry *geo);
uint64_t lane_memfd_bytes(const struct lane_geometry *geo);

/* The largest record that fits: half the ring, so that one record never has to wait for an empty ring. */
uint32_t lane_max_record(const struct lane_geometry *geo);

/*
 * A client's ring: created, mapped with all of its pages touched, and sealed for good. Touching them here makes a
 * lack of memory an error and not a signal. Returns the descriptor, the caller's, or as lane_ring_create.
 */
int lane_ring_make(struct lane_map *map, const struct lane_geometry *geo);

/*
 * Create one of the memfds: sized, its pages allocated, sealed against shrinking and growing. header gives
 * everything but magic, abi and geometry. Return the descriptor (close-on-exec, owned by the caller), or
 * -TG_ENOMEM, -TG_ELIMIT (descriptors), -TG_ESYSTEM with errno set.
 */
int lane_ring_create(const struct lane_geometry *geo);
int lane_answers_create(const struct lane_geometry *geo, const struct lane_header *header);

/* After the client has mapped it: seals the ring for good. Returns 0 or -TG_ESYSTEM. */
int lane_ring_seal(int ring);

/* A descriptor of the answers to read them by. Returns it, the caller's, or -TG_ELIMIT, -TG_ESYSTEM. */
int lane_answers_share(int answers);

/* Whether any process but ours may have the answers open or mapped for reading. */
int lane_answers_are_shared(int answers);

/* Whether a memfd is sealed as a ring is, which answers never are. */
int lane_is_ring(int memfd);

/* Whether a ring of this geometry may be taken: 0, or -TG_EBROKEN. */
int lane_ring_check(int ring, const struct lane_geometry *geo);

enum lane_access { LANE_READ, LANE_WRITE };

/*
 * Reserves the address space of a lane and maps its ring there. The memfd is checked first: sealed, and as
 * large as geo says; its content is not looked at. populate: bring in the pages now. Returns 0, -TG_EBROKEN for
 * a descriptor that is not such a memfd, -TG_ENOMEM or -TG_ESYSTEM. The descriptor stays the caller's.
 */
int lane_map_ring(
    struct lane_map *map, int ring, const struct lane_geometry *geo, enum lane_access access, int populate);

/*
 * Maps the answers behind the ring, in the place of those that are there: a thread that reads them meanwhile
 * reads the old or the new ones. Returns as lane_map_ring; on an error the map is as it was.
 */
int lane_map_answers(struct lane_map *map, int answers, enum lane_access access, int populate);

/* Unmaps all of it. */
void lane_map_fini(struct lane_map *map);

/*
 * Copies the answers' header out and checks it against the memfd. For the side that did not make it.
 * Returns 0, -TG_EVERSION or -TG_EBROKEN.
 */
int lane_header_read(int answers, struct lane_header *header, struct lane_geometry *geo);

/*
 * Copies into `map`, whose answers are new, what a daemon before wrote into `answers`: words, reason and
 * completions. Reads with pread(), which waits for no page of them. Returns 0, -TG_EBROKEN or -TG_ESYSTEM.
 */
int lane_answers_copy(struct lane_map *map, int answers);

/* Gives the memory of answers back, even if other processes have them mapped. */
void lane_answers_punch(int answers, const struct lane_geometry *geo);

#endif
