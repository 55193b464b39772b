/*
 * An upgrade: the running daemon starts the new binary and hands everything over that a producer
 * or a broker could notice.
 *
 *   old                                     new (tidegated --takeover FD)
 *   starts it, goes on working
 *                                    <-     READY      configuration read, nothing touched
 *   pauses: nothing new is framed,
 *   what is in flight is answered
 *   LISTENER, CLIENT, LANE, LINK …   ->     keeps the descriptors
 *   DONE                             ->
 *                                    <-     TAKEN
 *   GO                               ->     from here on the rings are its own
 *   ends at once                            rebuilds lanes beside the loop, replays handshakes, probes, works
 *
 * Lanes are rebuilt from their memory, as after a crash (lane_return.c, restore.h); since nothing is in flight
 * nothing is sent twice. The new daemon maps the same answers, for which it has a descriptor to write by. A link is handed over when it is in the clear, READY and has nothing
 * outstanding, and its driver is DRIVER_F_REPLAYABLE: the new session is made by replaying the bytes of
 * the handshake, takes up what the old one saved of itself (delivery tags, numbers of answers, limits the
 * broker has changed), and is proven by a probe before it carries messages. One that cannot be handed over
 * just then, or that the new settings would have made otherwise, is closed, and a new one takes its place.
 * Pools that speak TLS have new links, which the new daemon has proven before it says READY, if that is
 * possible within HANDOVER_WARM_MS: for that moment the broker sees both. The old daemon's take their leave
 * after GO.
 *
 * Whatever goes wrong before GO (the new binary does not start, refuses its configuration, dies,
 * takes too long) it is killed and the old daemon goes on as if nothing had happened. Only GO, the old
 * one's last word, sets the new one to work: two never serve one ring, however late TAKEN comes.
 *
 * Owner: the loop. One thread.
 */
#ifndef TG_DAEMON_HANDOVER_H
#define TG_DAEMON_HANDOVER_H

#include "daemon/link/link.h"
#include "daemon/front/listener.h"
#include "loop.h"
#include "shm/packet.h"

#include <stdint.h>

/* How the daemon was started, so that it can start its successor in the same way. */
struct handover_start {
	const char *program; /* absolute path, of the file that replaces ours */
	const char *config;
	const char *log_level;
};

struct handover {
	struct loop *loop;
	struct listener *control, *admin;
	struct handover_start start;
	uv_process_t process;
	uv_poll_t poll;
	int fd;      /* to the new daemon; -1: no upgrade is under way */
	int handles; /* open handles of the above */
	struct timer timer;
	uint64_t until_ns;
	int waiting_ready; /* READY has not come yet */
	uint32_t links;    /* handed over */
};

/* Returns 0 or -TG_ENOMEM. */
int handover_init(struct handover *handover, struct loop *loop, struct listener *control,
    struct listener *admin, const struct handover_start *start);
void handover_fini(struct handover *handover);

/* Starts an upgrade. Returns the new daemon's pid, or -TG_EBUSY (one is under way), -TG_ESTOPPING,
 * -TG_ESYSTEM; *why, static, says which step. */
int handover_begin(struct handover *handover, const char **why);

/* The new daemon's side -------------------------------------------------------------------- */

struct handover_taken;

#define HANDOVER_WARM_MS 5000u

/* Says READY on fd and receives everything. Returns 0 with *taken the caller's, or a negative TG_E. Nothing is
 * touched yet: a successor that fails before handover_take() ends, and the old daemon goes on. */
int handover_receive(int fd, struct handover_taken **taken);

/* The last thing that may fail: says TAKEN and waits for GO. Returns 0, or a negative TG_E. */
int handover_take(int fd);

/* For one that gives up: the old daemon has all of it still. NULL is fine. */
void handover_free(struct handover_taken *taken);

/* The listening socket for a path, or -1; the caller's from then on. *owns_path: as struct listener has it. */
int handover_listener(struct handover_taken *taken, const char *path, int *owns_path);

/* Puts clients, lanes and links to work in a loop that has not begun. Frees taken, closes what has no use. */
void handover_adopt(struct handover_taken *taken, struct loop *loop);

/* The frames of both sides ------------------------------------------------------------------ */

#define HANDOVER_MAGIC UINT32_C(0x74646831)
/* Includes the version of the lanes: a successor that cannot read them must not take them over. */
#define HANDOVER_VERSION (3u << 16 | LANE_ABI)
#define HANDOVER_FDS PACKET_FDS

enum handover_type {
	HANDOVER_READY = 1,
	HANDOVER_LISTENER, /* path; fd */
	HANDOVER_CLIENT,   /* fds: control socket, doorbell */
	HANDOVER_LANE,     /* of the client before it, or of none; fds: ring, answers, bell if it has one */
	HANDOVER_LINK,     /* fd: socket */
	HANDOVER_DONE,
	HANDOVER_TAKEN,
	HANDOVER_GO,
};

struct handover_frame {
	uint32_t magic, version, type;
	uint32_t orphan; /* LANE: its client has gone */
	union {
		struct {
			char path[108];
			uint32_t owns_path;
		} listener;
		struct {
			int32_t pid;
			uint32_t uid, gid;
			char name[32];
		} client;
		struct {
			/* As the old one knows them: the client can write what the memfd says. */
			uint64_t id, nonce, secret[2];
			uint64_t orphaned_ns;
			uint32_t uid; /* its owner's, and whether the service manager keeps it */
			int32_t pid;
			uint32_t kept;
			uint32_t unready; /* its client has not said that it uses these answers */
		} lane;
		struct {
			char pool[64], broker[300], client_id[48];
			uint32_t index;
			uint32_t hello_len, saved_len; /* the bytes behind the frame, in this order */
			uint64_t random;
		} link;
	} u;
};

/* A frame and what is behind it, which only LINK has. */
struct handover_packet {
	struct handover_frame frame;
	uint8_t bytes[LINK_HELLO_MAX + LINK_SAVED_MAX];
};

/* Of a frame with what is behind it; more than a whole packet if it lies about that. */
static inline size_t
handover_size(const struct handover_frame *frame)
{
	return sizeof(*frame) +
	       (frame->type == HANDOVER_LINK ? (size_t)frame->u.link.hello_len + frame->u.link.saved_len : 0);
}

/* Return 0 or a negative TG_E; recv -TG_EVERSION for another daemon's frames. A frame to send that is LINK's
 * is the one in a packet. */
int handover_send(int fd, const struct handover_frame *frame, const int *fds, unsigned nfds);
int handover_recv(int fd, struct handover_packet *packet, int fds[HANDOVER_FDS]);

#endif
