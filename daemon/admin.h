/*
 * The admin socket: one JSON object a line in, one a line out.
 *
 *   {"cmd":"status"}  →  {"ok":true,"status":{…}}
 *   {"cmd":"nonsense"} → {"ok":false,"error":"…"}
 *
 * Commands are admin_commands.def. Owner: main. One thread.
 */
#ifndef TG_DAEMON_ADMIN_H
#define TG_DAEMON_ADMIN_H

#include "shard.h"

#include <jansson.h>
#include <uv.h>

#define ADMIN_CONNECTIONS 64u
#define ADMIN_LINE 65536u       /* longest request */
#define ADMIN_QUEUED (64u << 20) /* most bytes of answers one admin may leave unread */

struct admin {
	struct shard *shard;
	uv_loop_t *loop;
	uint32_t connections;
};

/* Takes over an accepted socket. */
void admin_accept(struct admin *admin, int fd);

/* One command to its answer, a new reference; never NULL but without memory. admin_report.c */
json_t *admin_answer(struct shard *shard, const json_t *request);

#endif
