#include "lane.h"

#include "error.h"
#include "ring.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

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
lane_memfd_bytes(const struct lane_geometry *geo)
{
	return LANE_PAGE + geo->sq_bytes + (uint64_t)geo->cq_entries * sizeof(struct completion);
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

int
lane_memfd_create(const struct lane_geometry *geo, const struct lane_header *header)
{
	int fd = memfd_create("tidegate-lane", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int rc = -TG_ESYSTEM;

	if (fd < 0)
		return errno == EMFILE || errno == ENFILE ? -TG_ELIMIT
		       : errno == ENOMEM                  ? -TG_ENOMEM
							  : -TG_ESYSTEM;
	/*
	 * fallocate sizes it and finds out now, not at a later touch, that memory has run out. A
	 * signal ends it with nothing done.
	 */
	int failed;
	do
		failed = fallocate(fd, 0, 0, (off_t)lane_memfd_bytes(geo));
	while (failed != 0 && errno == EINTR);
	if (failed != 0) {
		rc = errno == ENOSPC || errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
		goto fail;
	}
	if (write_header(fd, geo, header) != 0 || fcntl(fd, F_ADD_SEALS, SEALS) != 0)
		goto fail;
	return fd;
fail:
	close(fd);
	return rc;
}

/*
 * Only what is sealed is memory. It is asked before anything is read, since reading another kind
 * of file (FUSE, for one) takes as long as its owner likes.
 */
static int
is_sealed(int memfd)
{
	int seals = fcntl(memfd, F_GET_SEALS);

	return seals >= 0 && (seals & SEALS) == SEALS;
}

static int
memfd_check(int memfd, const struct lane_geometry *geo)
{
	struct stat st;

	if (!is_sealed(memfd))
		return -TG_EBROKEN;
	if (fstat(memfd, &st) != 0 || (uint64_t)st.st_size != lane_memfd_bytes(geo))
		return -TG_EBROKEN;
	return 0;
}

static int
map_part(uint8_t *at, uint64_t bytes, int memfd, uint64_t offset, int populate)
{
	int flags = MAP_SHARED | MAP_FIXED | (populate ? MAP_POPULATE : 0);
	void *p = mmap(at, bytes, PROT_READ | PROT_WRITE, flags, memfd, (off_t)offset);

	if (p != MAP_FAILED)
		return 0;
	if (errno == EPERM || errno == EACCES)
		return -TG_EBROKEN; /* sealed against writing, or opened for reading alone */
	return errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
}

int
lane_map_init(struct lane_map *map, int memfd, const struct lane_geometry *geo, int populate)
{
	uint64_t sq = geo->sq_bytes;
	uint64_t cq = (uint64_t)geo->cq_entries * sizeof(struct completion);
	int rc;

	memset(map, 0, sizeof(*map));
	if (lane_geometry_check(geo) != 0 || memfd_check(memfd, geo) != 0)
		return -TG_EBROKEN;
	size_t bytes = LANE_PAGE + 2 * sq + cq;
	uint8_t *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return errno == ENOMEM ? -TG_ENOMEM : -TG_ESYSTEM;
	map->base = base;
	map->bytes = bytes;
	map->geo = *geo;
	if ((rc = map_part(base, LANE_PAGE + sq, memfd, 0, populate)) != 0 ||
	    (rc = map_part(base + LANE_PAGE + sq, sq + cq, memfd, LANE_PAGE, 0)) != 0 ||
	    (rc = map_part(base + LANE_PAGE + 2 * sq, cq, memfd, LANE_PAGE + sq, populate)) != 0) {
		lane_map_fini(map);
		return rc;
	}
	map->header = (struct lane_header *)(void *)(base + LANE_HEADER_AT);
	map->client = (struct lane_client *)(void *)(base + LANE_CLIENT_AT);
	map->daemon = (struct lane_daemon *)(void *)(base + LANE_DAEMON_AT);
	map->reason = (struct lane_reason *)(void *)(base + LANE_REASON_AT);
	map->sq = base + LANE_PAGE;
	map->cq = (struct completion *)(void *)(base + LANE_PAGE + 2 * sq);
	return 0;
}

void
lane_map_fini(struct lane_map *map)
{
	if (map->base != NULL)
		munmap(map->base, map->bytes);
	memset(map, 0, sizeof(*map));
}

int
lane_header_read(int memfd, struct lane_header *header, struct lane_geometry *geo)
{
	if (!is_sealed(memfd))
		return -TG_EBROKEN;
	if (pread(memfd, header, sizeof(*header), LANE_HEADER_AT) != (ssize_t)sizeof(*header))
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
	return memfd_check(memfd, geo);
}
