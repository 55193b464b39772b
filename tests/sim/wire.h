/* The test protocol's frames, in the host's byte order. Requests: struct wire, topic, body. */
#ifndef TG_TESTS_WIRE_H
#define TG_TESTS_WIRE_H

#include <stdint.h>

enum wire_type { WIRE_HELLO = 1, WIRE_PROBE, WIRE_PUBLISH, WIRE_BYE };

struct wire {
	uint8_t type;
	uint8_t pad;
	uint16_t topic_len;
	uint32_t body_len;
	uint64_t seq;
	uint64_t lane;
	uint64_t position;
};

_Static_assert(sizeof(struct wire) == 32, "no holes");

enum reply_type {
	REPLY_UP = 1,
	REPLY_ALIVE,
	REPLY_ACK,
	REPLY_ACK_UPTO, /* count: how many it answers */
	REPLY_NACK,
	REPLY_AGAIN,
	REPLY_BLOCKED,
	REPLY_UNBLOCKED,
	REPLY_WINDOW,
	REPLY_LEAVING,
	REPLY_UNUSABLE, /* refuses a message, and the connection is of no use */
	REPLY_CLOSING,  /* closes over a message, and does not say which */
	REPLY_ENDPOINT, /* value: a port of its cluster; count: its index in the list */
};

struct reply {
	uint32_t type;
	uint32_t count;
	uint64_t value;
};

/* driver_sim.c: the world's on_written. */
void driver_sim_written(void *watcher, void *owner, uint64_t written);

#endif
