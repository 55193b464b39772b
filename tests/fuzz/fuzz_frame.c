/*
 * Fuzzes the reader of control frames with any packet and any descriptors: a refused packet leaves no
 * descriptor open, and an accepted frame has terminated strings.
 *
 * An input is packets: [descriptors and kind: 1] [length: u16, little-endian] bytes. The kind puts a
 * good head, or a good frame of the first byte's type, in front of bytes that then fill it.
 */
#include "fuzz.h"
#include "shm/error.h"
#include "shm/frame.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PACKETS_MAX 16

enum kind { KIND_RAW, KIND_HEAD, KIND_WHOLE, KIND_RAW_TOO };

static int ends[2], spare, lowest_free;

/* The lowest descriptor that is free: it rises if one is left open. */
static int
lowest(void)
{
	int fd = fcntl(spare, F_DUPFD_CLOEXEC, 0);

	close(fd);
	return fd;
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	spare = open("/dev/null", O_RDWR | O_CLOEXEC);
	fuzz_check(spare >= 0, "/dev/null");
	fuzz_check(
	    socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) == 0, "socketpair");
	return 0;
}

int
fuzz_folder(const char *name)
{
	(void)name;
	return 1;
}

void
fuzz_fini(void)
{
	close(ends[0]);
	close(ends[1]);
	close(spare);
}

static void
check_taken(const struct frame *frame)
{
	fuzz_check(frame->magic == FRAME_MAGIC && frame->abi == LANE_ABI, "its head is another's");
	switch (frame->type) {
	case FRAME_ERROR:
		fuzz_check(
		    memchr(frame->u.error.text, 0, sizeof(frame->u.error.text)) != NULL, "a text does not end");
		break;
	case FRAME_LANE_OPEN:
	case FRAME_LANE_RETURN:
		fuzz_check(
		    memchr(frame->u.open.pool, 0, sizeof(frame->u.open.pool)) != NULL, "a pool does not end");
		fuzz_check(
		    memchr(frame->u.open.name, 0, sizeof(frame->u.open.name)) != NULL, "a name does not end");
		break;
	}
}

static void
receive(unsigned nfds)
{
	struct frame frame;
	int fds[FRAME_FDS];
	unsigned came = 0;

	int rc = frame_recv(ends[1], &frame, fds);
	for (unsigned i = 0; i < FRAME_FDS; i++)
		came += fds[i] >= 0;
	if (rc == 0) {
		check_taken(&frame);
		fuzz_check(came == nfds, "not as many descriptors as were sent");
		packet_close_fds(fds);
	} else {
		fuzz_check(
		    rc == -TG_EPROTOCOL || rc == -TG_EVERSION || rc == -TG_ECLOSED, "an error of another kind");
		fuzz_check(came == 0, "what is refused keeps descriptors");
	}
	fuzz_check(lowest() == lowest_free, "a descriptor is left open");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	union {
		struct frame frame;
		uint8_t bytes[2 * sizeof(struct frame)];
	} packet;

	lowest_free = lowest();
	for (int i = 0; i < PACKETS_MAX && size >= 3; i++) {
		unsigned nfds = data[0] & 3;
		enum kind kind = data[0] >> 2 & 3;
		size_t len = data[1] | (size_t)data[2] << 8, at = 0, total;
		int fds[3] = { spare, spare, spare };

		data += 3, size -= 3;
		len = len < size ? len : size;
		memset(&packet, 0, sizeof(packet));
		if (kind == KIND_HEAD || kind == KIND_WHOLE) {
			frame_init(&packet.frame, len > 0 ? data[0] % 9 : 0, 7);
			at = offsetof(struct frame, u);
		}
		size_t room = kind == KIND_WHOLE ? sizeof(struct frame) - at : sizeof(packet) - at;
		size_t copied = len < room ? len : room;
		memcpy(packet.bytes + at, data, copied);
		total = kind == KIND_WHOLE ? sizeof(struct frame) : at + copied;
		data += len, size -= len;
		fuzz_check(packet_send(ends[0], packet.bytes, total, fds, nfds) == 0, "it cannot be sent");
		receive(nfds);
	}
	return 0;
}
