#include "lane.h"

#include "order.h"

#include "error.h"
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIZE_SEALS (F_SEAL_SHRINK | F_SEAL_GROW)
#define ANSWERS_SEALS (SIZE_SEALS | F_SEAL_SEAL)
#define RING_SEALS (ANSWERS_SEALS | F_SEAL_FUTURE_WRITE)
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010 /* Linux 5.1 */
#endif

static uint64_t
round_up_power(uint64_t n)
{
	return n <= 1 ? 1 : UINT64_C(1) << (64 - __builtin_clzll(n - 1));
}

int
lane_geometry_make(struct lane_geometry *geo, uint64_t sq_bytes, uint32_t cq_entries)
{
	if (sq_bytes == 0)
		sq_bytes = LANE_SQ_DEFAULT;
	if (sq_bytes > LANE_SQ_MAX || cq_entries > LANE_CQ_MAX)
		return -TG_EINVAL;
	sq_bytes = round_up_power(sq_bytes);
	if (sq_bytes < LANE_SQ_MIN)
		sq_bytes = LANE_SQ_MIN;
	uint64_t entries = cq_entries != 0 ? round_up_power(cq_entries) : sq_bytes / LANE_SQ_PER_CQ;
	if (entries < LANE_CQ_MIN)
		entries = LANE_CQ_MIN;
	if (entries > LANE_CQ_MAX)
		entries = LANE_CQ_MAX;
	geo->sq_bytes = sq_bytes;
	geo->cq_entries = (uint32_t)entries;
	return 0;
}

int
lane_geometry_check(const struct lane_geometry *geo)
{
	uint64_t sq = geo->sq_bytes;
	uint32_t cq = geo->cq_entries;

	if (sq < LANE_SQ_MIN || sq > LANE_SQ_MAX || (sq & (sq - 1)) != 0)
		return -TG_EINVAL;
	if (cq < LANE_CQ_MIN || cq > LANE_CQ_MAX || (cq & (cq - 1)) != 0)
		return -TG_EINVAL;
	return 0;
}

uint64_t
lane_ring_bytes(const struct lane_geometry *geo)
{
	return LANE_PAGE + geo->sq_bytes;
}

uint64_t
lane_answers_bytes(const struct lane_geometry *geo)
{
	return LANE_PAGE + (uint64_t)geo->cq_entries * sizeof(struct completion);
}

uint64_t
lane_memfd_bytes(const struct lane_geometry *geo)
{
	return lane_ring_bytes(geo) + lane_answers_bytes(geo);
}

uint32_t
lane_max_record(const struct lane_geometry *geo)
{
	return (uint32_t)(geo->sq_bytes / 2);
}

static int
write_header(int fd, const struct lane_geometry *geo, const struct lane_header *header)
{
	struct lane_header h = *header;

	h.magic = LANE_MAGIC;
	h.abi = LANE_ABI;
	h.sq_bytes = geo->sq_bytes;
	h.cq_entries = geo->cq_entries;
	h.max_record = lane_max_record(geo);
	return pwrite(fd, &h, sizeof(h), LANE_HEADER_AT) == (ssize_t)sizeof(h) ? 0 : -TG_ESYSTEM;
}

/* Of so many bytes, all of them allocated. */
static int
memory_create(const char *name, uint64_t bytes)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int failed;

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE ? -TG_ELIMIT
		       : errno == ENOMEM                  ? -TG_ENOMEM
							  : -TG_ESYSTEM;
	/*
	 * fallocate sizes it and finds out now, not at a later touch, that memory has run out. A
	 * signal ends it with nothing done.
	 */
	do
		failed = fallocate(fd, 0, 0, (off_t)bytes);
	while (failed != 0 && errno == EINTR);
	if (failed == 0)
		return fd;
	int rc = errno == ENOSPC || errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
	close(fd);
	return rc;
}

int
lane_ring_create(const struct lane_geometry *geo)
{
	int fd = memory_create("tidegate-ring", lane_ring_bytes(geo));

	if (fd >= 0 && fcntl(fd, F_ADD_SEALS, SIZE_SEALS) != 0) {
		close(fd);
		return -TG_ESYSTEM;
	}
	return fd;
}

int
lane_ring_seal(int ring)
{
	return fcntl(ring, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0 ? 0 : -TG_ESYSTEM;
}

int
lane_answers_create(const struct lane_geometry *geo, const struct lane_header *header)
{
	int fd = memory_create("tidegate-answers", lane_answers_bytes(geo));

	if (fd < 0)
		return fd;
	if (write_header(fd, geo, header) != 0 || fchmod(fd, S_IRUSR) != 0 ||
	    fcntl(fd, F_ADD_SEALS, ANSWERS_SEALS) != 0) {
		close(fd);
		return -TG_ESYSTEM;
	}
	return fd;
}

int
lane_answers_share(int answers)
{
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", answers);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	return errno == EMFILE || errno == ENFILE ? -TG_ELIMIT : -TG_ESYSTEM;
}

/*
 * A write lease is granted on a file that no other descriptor or mapping has open. The memfd itself does not count
 * as an open for writing, so it is asked for by a descriptor for reading, of which there may be this one alone.
 */
int
lane_answers_are_shared(int answers)
{
	int fd = lane_answers_share(answers);
	int alone = fd >= 0 && fcntl(fd, F_SETLEASE, F_WRLCK) == 0;

	if (fd >= 0)
		close(fd); /* and the lease goes */
	return !alone;
}

/*
 * Only what is sealed is memory. Seals are asked for before anything is read, since reading another kind
 * of file (FUSE, for one) takes as long as its owner likes.
 */
static int
has_seals(int memfd, int wanted)
{
	int seals = fcntl(memfd, F_GET_SEALS);

	return seals >= 0 && (seals & wanted) == wanted;
}

static int
memfd_check(int memfd, int seals, uint64_t bytes)
{
	struct stat st;

	if (!has_seals(memfd, seals))
		return -TG_EBROKEN;
	if (fstat(memfd, &st) != 0 || (uint64_t)st.st_size != bytes)
		return -TG_EBROKEN;
	return 0;
}

int
lane_is_ring(int memfd)
{
	return has_seals(memfd, RING_SEALS);
}

int
lane_ring_check(int ring, const struct lane_geometry *geo)
{
	uint64_t bytes = lane_ring_bytes(geo);

	if (lane_geometry_check(geo) != 0 || memfd_check(ring, RING_SEALS, bytes) != 0)
		return -TG_EBROKEN;
	/* Pages that are allocated and were never touched are holes, too: the kernel has yet to clear them. */
	return lseek(ring, 0, SEEK_HOLE) == (off_t)bytes ? 0 : -TG_EBROKEN;
}

/*
 * The client's library maps new answers, which hold the same, over those that its threads may be reading: each load sees
 * the one or the other. ThreadSanitizer takes mmap() for a write of all those bytes, so it is not shown this one.
 */
static void *
map_over(void *at, size_t bytes, int protection, int flags, int memfd, off_t offset)
{
#ifdef ORDER_TSAN
	return (void *)syscall(SYS_mmap, at, bytes, protection, flags, memfd, offset);
#else
	return mmap(at, bytes, protection, flags, memfd, offset);
#endif
}

static int
map_part(uint8_t *at, uint64_t bytes, int memfd, uint64_t offset, enum lane_access access, int populate)
{
	int flags = MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0);
	void *p = map_over(
	    at, bytes, access == LANE_WRITE ? PROT_READ | PROT_WRITE : PROT_READ, flags, memfd, (off_t)offset);

	if (p != MAP_FAILED)
		return 0;
	if (errno == EPERM || errno == EACCES)
		return -TG_EBROKEN; /* sealed against writing, or opened for reading alone */
	return errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
}

int
lane_map_ring(
    struct lane_map *map, int ring, const struct lane_geometry *geo, enum lane_access access, int populate)
{
	uint64_t sq = geo->sq_bytes;
	int rc;

	memset(map, 0, sizeof(*map));
	if (lane_geometry_check(geo) != 0 || memfd_check(ring, SIZE_SEALS, lane_ring_bytes(geo)) != 0)
		return -TG_EBROKEN;
	size_t bytes = LANE_PAGE + 2 * sq + lane_answers_bytes(geo);
	uint8_t *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
	map->base = base;
	map->bytes = bytes;
	map->geo = *geo;
	if ((rc = map_part(base, LANE_PAGE + sq, ring, 0, access, populate)) != 0 ||
	    (rc = map_part(base + LANE_PAGE + sq, sq, ring, LANE_PAGE, access, 0)) != 0) {
		lane_map_fini(map);
		return rc;
	}
	map->client = (struct lane_client *)(void *)(base + LANE_CLIENT_AT);
	map->sq = base + LANE_PAGE;
	return 0;
}

int
lane_map_answers(struct lane_map *map, int answers, enum lane_access access, int populate)
{
	uint8_t *at = (uint8_t *)map->base + LANE_PAGE + 2 * map->geo.sq_bytes;
	uint64_t bytes = lane_answers_bytes(&map->geo);
	int rc;

	if (memfd_check(answers, ANSWERS_SEALS, bytes) != 0)
		return -TG_EBROKEN;
	if ((rc = map_part(at, bytes, answers, 0, access, populate)) != 0)
		return rc;
	if (map->daemon != NULL)
		return 0; /* and nothing is stored where another thread may be reading */
	map->header = (struct lane_header *)(void *)(at + LANE_HEADER_AT);
	map->daemon = (struct lane_daemon *)(void *)(at + LANE_DAEMON_AT);
	map->reason = (struct lane_reason *)(void *)(at + LANE_REASON_AT);
	map->cq = (struct completion *)(void *)(at + LANE_PAGE);
	return 0;
}

int
lane_ring_make(struct lane_map *map, const struct lane_geometry *geo)
{
	int ring = lane_ring_create(geo);
	int rc;

	if (ring < 0)
		return ring;
	rc = lane_map_ring(map, ring, geo, LANE_WRITE, 1);
	if (rc == 0)
		rc = lane_ring_seal(ring);
	if (rc == 0 && lane_ring_check(ring, geo) != 0)
		rc = -TG_ENOMEM; /* the kernel does not say so of pages that it could not bring in */
	if (rc == 0)
		return ring;
	int error = errno;
	lane_map_fini(map);
	close(ring);
	errno = error;
	return rc;
}

void
lane_map_fini(struct lane_map *map)
{
	if (map->base != NULL)
		munmap(map->base, map->bytes);
	memset(map, 0, sizeof(*map));
}

int
lane_header_read(int answers, struct lane_header *header, struct lane_geometry *geo)
{
	if (!has_seals(answers, ANSWERS_SEALS))
		return -TG_EBROKEN;
	if (pread(answers, header, sizeof(*header), LANE_HEADER_AT) != (ssize_t)sizeof(*header))
		return -TG_EBROKEN;
	if (header->magic != LANE_MAGIC)
		return -TG_EBROKEN;
	if (header->abi != LANE_ABI)
		return -TG_EVERSION;
	geo->sq_bytes = header->sq_bytes;
	geo->cq_entries = header->cq_entries;
	header->pool[LANE_POOL_NAME - 1] = '\0';
	if (lane_geometry_check(geo) != 0 || header->max_record > lane_max_record(geo))
		return -TG_EBROKEN;
	return memfd_check(answers, ANSWERS_SEALS, lane_answers_bytes(geo));
}

static int
read_all(int fd, void *to, uint64_t bytes, uint64_t at)
{
	for (uint64_t done = 0; done < bytes;) {
		ssize_t n = pread(fd, (uint8_t *)to + done, bytes - done, (off_t)(at + done));
		if (n == 0)
			return -TG_EBROKEN;
		if (n < 0 && errno != EINTR)
			return -TG_ESYSTEM;
		done += n > 0 ? (uint64_t)n : 0;
	}
	return 0;
}

int
lane_answers_copy(struct lane_map *map, int answers)
{
	int rc = memfd_check(answers, ANSWERS_SEALS, lane_answers_bytes(&map->geo));

	if (rc == 0)
		rc = read_all(answers, map->daemon, sizeof(*map->daemon), LANE_DAEMON_AT);
	if (rc == 0)
		rc = read_all(answers, map->reason, sizeof(*map->reason), LANE_REASON_AT);
	if (rc == 0)
		rc = read_all(
		    answers, map->cq, (uint64_t)map->geo.cq_entries * sizeof(struct completion), LANE_PAGE);
	return rc;
}

void
lane_answers_punch(int answers, const struct lane_geometry *geo)
{
	(void)fallocate(answers, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)lane_answers_bytes(geo));
}
