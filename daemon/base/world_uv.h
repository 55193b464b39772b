/*
 * The real world, on a libuv loop. Owner: the loop (daemon/life/loop.h). One thread.
 */
#ifndef TG_DAEMON_WORLD_UV_H
#define TG_DAEMON_WORLD_UV_H

#include "world.h"

#include <uv.h>

/*
 * event(owner) is called before each handler of a socket, look-up or job: the loop may have slept since the clock was
 * read. NULL: nothing is called. Returns NULL without memory. Free the world before closing the loop.
 */
struct world *world_uv_new(uv_loop_t *uv, void (*event)(void *owner), void *owner);
void world_uv_free(struct world *world);

/* The descriptor of a broker socket, still its; and a socket made of a connected one, which it owns on success. */
int world_uv_sock_fd(const struct sock *sock);
struct sock *world_uv_adopt(struct world *world, int fd, const struct sock_handlers *handlers, void *owner);

#endif
