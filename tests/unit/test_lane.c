/* A lane's memory: accepted geometry, the memfd's properties, refused descriptors. */
#include "shm_test.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

#define ALL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static const struct lane_header plain_header = { .lane_id = 7, .nonce = 9, .pool = "events" };

static struct lane_geometry
smallest(void)
{
	struct lane_geometry geo;

	assert_int_equal(lane_geometry_make(&geo, 1, 1), 0);
	return geo;
}

/* A memfd as a client could forge it: our header or another, any size, any seals. */
static int
forge(const struct lane_header *header, uint64_t bytes, int seals)
{
	int fd = memfd_create("forged", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	if (bytes >= sizeof(*header))
		assert_int_equal(pwrite(fd, header, sizeof(*header), 0), sizeof(*header));
	if (seals != 0)
		assert_int_equal(fcntl(fd, F_ADD_SEALS, seals), 0);
	return fd;
}

static struct lane_header
good_header(const struct lane_geometry *geo)
{
	struct lane_header h = plain_header;

	h.magic = LANE_MAGIC;
	h.abi = LANE_ABI;
	h.sq_bytes = geo->sq_bytes;
	h.cq_entries = geo->cq_entries;
	h.max_record = lane_max_record(geo);
	return h;
}

/* Both functions must refuse: reading the header, and mapping with a geometry kept from before. */
static void
expect_broken(int fd, int rc, const struct lane_geometry *geo)
{
	struct lane_header h;
	struct lane_geometry got;
	struct lane_map map;

	assert_int_equal(lane_header_read(fd, &h, &got), rc);
	if (geo != NULL) {
		assert_int_equal(lane_ring_check(fd, geo), -TG_EBROKEN);
		assert_int_equal(lane_map_ring(&map, fd, geo, LANE_READ, 0), -TG_EBROKEN);
		assert_null(map.base);
		int ring = lane_ring_make(&map, geo);
		assert_true(ring >= 0);
		assert_int_equal(lane_map_answers(&map, fd, LANE_READ, 0), -TG_EBROKEN);
		assert_null(map.daemon);
		lane_map_fini(&map);
		lane_map_fini(&map); /* of a map that is no more */
		close(ring);
	}
	close(fd);
}

static void
geometry_defaults_rounds_and_limits(void **state)
{
	static const struct {
		uint64_t sq;
		uint32_t cq;
		int rc;
		uint64_t got_sq;
		uint32_t got_cq;
	} cases[] = {
		{ 0, 0, 0, LANE_SQ_DEFAULT, LANE_SQ_DEFAULT / LANE_SQ_PER_CQ },
		{ 1, 1, 0, LANE_SQ_MIN, LANE_CQ_MIN },
		{ LANE_SQ_MIN, 0, 0, LANE_SQ_MIN, LANE_CQ_MIN },
		{ LANE_SQ_MIN + 1, LANE_CQ_MIN + 1, 0, 2 * LANE_SQ_MIN, 2 * LANE_CQ_MIN },
		{ LANE_SQ_MAX - 1, 0, 0, LANE_SQ_MAX, LANE_CQ_MAX },
		{ LANE_SQ_MAX, LANE_CQ_MAX, 0, LANE_SQ_MAX, LANE_CQ_MAX },
		{ 0, LANE_CQ_MAX - 1, 0, LANE_SQ_DEFAULT, LANE_CQ_MAX },
		{ LANE_SQ_MAX + 1, 0, -TG_EINVAL, 0, 0 },
		{ UINT64_MAX, 0, -TG_EINVAL, 0, 0 },
		{ UINT64_C(1) << 63, 0, -TG_EINVAL, 0, 0 },
		{ 0, LANE_CQ_MAX + 1, -TG_EINVAL, 0, 0 },
		{ 0, UINT32_MAX, -TG_EINVAL, 0, 0 },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct lane_geometry geo = { 0 };

		assert_int_equal(lane_geometry_make(&geo, cases[i].sq, cases[i].cq), cases[i].rc);
		if (cases[i].rc != 0)
			continue;
		assert_int_equal(geo.sq_bytes, cases[i].got_sq);
		assert_int_equal(geo.cq_entries, cases[i].got_cq);
		assert_int_equal(lane_geometry_check(&geo), 0);
		assert_int_equal(
		    lane_memfd_bytes(&geo), 2 * 4096 + geo.sq_bytes + 32 * (uint64_t)geo.cq_entries);
		assert_true(lane_max_record(&geo) <= geo.sq_bytes / 2);
	}
}

static void
geometry_made_is_geometry_checked(void **state)
{
	struct random r = random_seeded("geometry_made_is_geometry_checked");

	for (unsigned i = 0; i < 100000; i++) {
		uint64_t sq = random_next(&r) >> random_below(&r, 64);
		uint32_t cq = (uint32_t)(random_next(&r) >> (32 + random_below(&r, 32)));
		struct lane_geometry geo;

		if (lane_geometry_make(&geo, sq, cq) == 0) {
			assert_int_equal(lane_geometry_check(&geo), 0);
			assert_true(geo.sq_bytes >= sq && geo.cq_entries >= cq);
		} else {
			assert_true(sq > LANE_SQ_MAX || cq > LANE_CQ_MAX);
		}
		geo = (struct lane_geometry){ sq, cq };
		int is_good = __builtin_popcountll(sq) == 1 && __builtin_popcount(cq) == 1 &&
			      sq >= LANE_SQ_MIN && sq <= LANE_SQ_MAX && cq >= LANE_CQ_MIN && cq <= LANE_CQ_MAX;
		assert_int_equal(lane_geometry_check(&geo), is_good ? 0 : -TG_EINVAL);
	}
}

static void
expect_memfd(int fd, uint64_t bytes)
{
	struct stat st;

	assert_true(fd >= 0);
	assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
	assert_int_equal(fstat(fd, &st), 0);
	assert_int_equal(st.st_size, bytes);
	assert_true((uint64_t)st.st_blocks * 512 >= bytes);
	assert_int_equal(ftruncate(fd, st.st_size / 2), -1);
	assert_int_equal(ftruncate(fd, st.st_size * 2), -1);
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
}

static void
answers_are_sized_sealed_allocated_and_described(void **state)
{
	struct lane_geometry geo = smallest(), got;
	struct lane_header h;
	int fd = lane_answers_create(&geo, &plain_header);

	expect_memfd(fd, lane_answers_bytes(&geo));
	assert_int_equal(fcntl(fd, F_GET_SEALS), ALL_SEALS);
	assert_int_equal(lane_header_read(fd, &h, &got), 0);
	assert_int_equal(got.sq_bytes, geo.sq_bytes);
	assert_int_equal(got.cq_entries, geo.cq_entries);
	assert_int_equal(h.lane_id, 7);
	assert_int_equal(h.nonce, 9);
	assert_int_equal(h.max_record, lane_max_record(&geo));
	assert_string_equal(h.pool, "events");
	close(fd);
}

/* The mapping that its client has stays writable; nothing else can change a page of it, or take one away. */
static void
ring_is_sealed_for_good(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_map map, other;
	int fd = lane_ring_make(&map, &geo);

	expect_memfd(fd, lane_ring_bytes(&geo));
	assert_int_equal(lane_ring_check(fd, &geo), 0);
	assert_int_equal(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LANE_PAGE), -1);
	assert_int_equal(errno, EPERM);
	assert_int_equal(madvise(map.sq, LANE_PAGE, MADV_REMOVE), -1);
	assert_int_equal(pwrite(fd, "x", 1, 0), -1);
	assert_int_equal(lane_map_ring(&other, fd, &geo, LANE_WRITE, 0), -TG_EBROKEN);
	assert_int_equal(lane_map_ring(&other, fd, &geo, LANE_READ, 0), 0);
	map.client->sq_tail = 5;
	assert_int_equal(other.client->sq_tail, 5);
	lane_map_fini(&other);
	lane_map_fini(&map);
	close(fd);
}

static void
ring_that_could_be_punched_or_has_holes_is_refused(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_map map;
	int fd = lane_ring_create(&geo);

	assert_int_equal(lane_map_ring(&map, fd, &geo, LANE_WRITE, 1), 0);
	assert_int_equal(lane_ring_check(fd, &geo), -TG_EBROKEN); /* not sealed */
	assert_int_equal(
	    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 2 * LANE_PAGE, LANE_PAGE), 0);
	/* As many pages behind its end, so that a count of them shows nothing. */
	(void)fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)lane_ring_bytes(&geo), LANE_PAGE);
	assert_int_equal(lane_ring_seal(fd), 0);
	assert_int_equal(lane_ring_check(fd, &geo), -TG_EBROKEN);
	map.sq[LANE_PAGE] = 1;
	assert_int_equal(lane_ring_check(fd, &geo), 0);
	geo.sq_bytes *= 2;
	assert_int_equal(lane_ring_check(fd, &geo), -TG_EBROKEN);
	lane_map_fini(&map);
	close(fd);
}

static void
answers_can_be_read_by_a_client_and_punched_by_the_daemon(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_map map, other;
	struct stat st;
	int ring = lane_ring_make(&map, &geo);
	int answers = lane_answers_create(&geo, &plain_header);
	int shared = lane_answers_share(answers);

	assert_true(shared >= 0);
	assert_int_equal(lane_map_answers(&map, shared, LANE_WRITE, 0), -TG_EBROKEN);
	assert_int_equal(lane_map_answers(&map, shared, LANE_READ, 0), 0);
	assert_int_equal(fallocate(shared, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, LANE_PAGE), -1);
	assert_int_equal(fstat(answers, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0400);
	assert_int_equal(lane_map_ring(&other, ring, &geo, LANE_READ, 0), 0);
	assert_int_equal(lane_map_answers(&other, answers, LANE_WRITE, 0), 0);
	other.daemon->cq_tail = 4;
	assert_int_equal(map.daemon->cq_tail, 4);
	assert_true(lane_answers_are_shared(answers));
	lane_answers_punch(answers, &geo);
	assert_int_equal(fstat(answers, &st), 0);
	assert_int_equal(st.st_blocks, 0); /* though it is mapped */
	assert_int_equal(map.daemon->cq_tail, 0);
	close(shared);
	assert_true(lane_answers_are_shared(answers)); /* by a mapping */
	lane_map_fini(&map);
	assert_false(lane_answers_are_shared(answers));
	lane_map_fini(&other);
	close(answers);
	close(ring);
}

static void
answers_are_copied_and_replaced_in_place(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_map client, old, fresh;
	int ring = lane_ring_make(&client, &geo);
	int before = lane_answers_create(&geo, &plain_header), after = lane_answers_create(&geo, &plain_header);

	assert_int_equal(lane_map_answers(&client, before, LANE_READ, 0), 0);
	assert_int_equal(lane_map_ring(&old, ring, &geo, LANE_READ, 0), 0);
	assert_int_equal(lane_map_answers(&old, before, LANE_WRITE, 0), 0);
	assert_int_equal(lane_map_ring(&fresh, ring, &geo, LANE_READ, 0), 0);
	assert_int_equal(lane_map_answers(&fresh, after, LANE_WRITE, 0), 0);
	old.daemon->cq_tail = 3;
	old.daemon->sq_sent = 64;
	old.cq[geo.cq_entries - 1].tag = 5;
	old.reason->code = 6;
	assert_int_equal(lane_answers_copy(&fresh, before), 0);
	fresh.daemon->cq_tail = 7;
	assert_int_equal(client.daemon->cq_tail, 3);
	const struct lane_daemon *words = client.daemon;
	assert_int_equal(lane_map_answers(&client, after, LANE_READ, 0), 0);
	assert_ptr_equal(client.daemon, words);
	assert_int_equal(words->cq_tail, 7);
	assert_int_equal(words->sq_sent, 64);
	assert_int_equal(client.cq[geo.cq_entries - 1].tag, 5);
	assert_int_equal(client.reason->code, 6);
	lane_map_fini(&client);
	lane_map_fini(&old);
	lane_map_fini(&fresh);
	close(ring);
	close(before);
	close(after);
}

static void
mapping_shows_the_ring_twice(void **state)
{
	for (int populate = 0; populate <= 1; populate++) {
		struct lane_geometry geo = smallest();
		struct lane_map map, other;
		int ring = lane_ring_make(&map, &geo);
		int answers = lane_answers_create(&geo, &plain_header);

		assert_true(ring >= 0 && answers >= 0);
		assert_int_equal(lane_map_answers(&map, answers, LANE_WRITE, populate), 0);
		assert_int_equal(lane_map_ring(&other, ring, &geo, LANE_READ, populate), 0);
		assert_int_equal(lane_map_answers(&other, answers, LANE_READ, populate), 0);
		for (uint64_t i = 0; i < geo.sq_bytes; i += 8) {
			uint64_t value = i * 77 + 1;

			memcpy(map.sq + i, &value, 8);
			assert_memory_equal(map.sq + geo.sq_bytes + i, &value, 8);
			assert_memory_equal(other.sq + i, &value, 8);
		}
		/* The CQ is its own memory, a page behind the second image. */
		assert_ptr_equal(map.cq, map.sq + 2 * geo.sq_bytes + LANE_PAGE);
		map.cq[geo.cq_entries - 1].tag = 5;
		assert_int_equal(other.cq[geo.cq_entries - 1].tag, 5);
		assert_int_equal(map.header->nonce, 9);
		map.client->sq_tail = 3;
		map.daemon->cq_tail = 4;
		assert_int_equal(other.client->sq_tail, 3);
		assert_int_equal(other.daemon->cq_tail, 4);
		lane_map_fini(&other);
		lane_map_fini(&map);
		assert_null(map.base);
		lane_map_fini(&map);
		close(ring);
		close(answers);
	}
}

static void
unsealed_memfd_is_refused(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_header h = good_header(&geo);
	uint64_t bytes = lane_answers_bytes(&geo);

	for (int seals = 0; seals <= ALL_SEALS; seals++) {
		if ((seals & ALL_SEALS) != seals || seals == ALL_SEALS)
			continue;
		expect_broken(forge(&h, bytes, seals), -TG_EBROKEN, &geo);
	}
}

/* Reading from a descriptor that is no memfd can block for ever, so the function must not read it: if it did,
 * the error here would be about the ABI. */
static void
unsealed_memfd_is_not_even_read(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_header h = good_header(&geo);

	h.abi = LANE_ABI + 1;
	expect_broken(forge(&h, lane_answers_bytes(&geo), 0), -TG_EBROKEN, &geo);
}

static void
wrong_size_is_refused(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_header h = good_header(&geo);
	uint64_t bytes = lane_answers_bytes(&geo);
	const uint64_t sizes[] = { 0, 1, sizeof(h) - 1, sizeof(h), 4096, bytes - 4096, bytes - 1, bytes + 1,
		bytes + 4096, UINT64_C(1) << 40 };

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		expect_broken(forge(&h, sizes[i], ALL_SEALS), -TG_EBROKEN, &geo);
}

static void
wrong_magic_and_other_abi_are_told_apart(void **state)
{
	struct lane_geometry geo = smallest();
	struct lane_header h = good_header(&geo);
	uint64_t bytes = lane_answers_bytes(&geo);

	h.abi = LANE_ABI + 1;
	expect_broken(forge(&h, bytes, ALL_SEALS), -TG_EVERSION, NULL);
	h.magic ^= 1;
	expect_broken(forge(&h, bytes, ALL_SEALS), -TG_EBROKEN, NULL);
	h = good_header(&geo);
	h.max_record++;
	expect_broken(forge(&h, bytes, ALL_SEALS), -TG_EBROKEN, NULL);
}

static void
hostile_geometry_is_refused(void **state)
{
	struct random r = random_seeded("hostile_geometry_is_refused");
	struct lane_geometry geo = smallest(), got;

	for (unsigned i = 0; i < 2000; i++) {
		struct lane_header h = good_header(&geo);

		if (random_below(&r, 2) != 0)
			h.sq_bytes = random_next(&r) >> random_below(&r, 64);
		else
			h.sq_bytes = UINT64_C(1) << random_below(&r, 64);
		if (random_below(&r, 2) != 0)
			h.cq_entries = UINT32_C(1) << random_below(&r, 32);
		/* Another good size of the ring shows when the ring is looked at. */
		got = (struct lane_geometry){ h.sq_bytes, geo.cq_entries };
		if (h.cq_entries == geo.cq_entries && lane_geometry_check(&got) == 0)
			continue;
		expect_broken(forge(&h, lane_answers_bytes(&geo), ALL_SEALS), -TG_EBROKEN, NULL);
	}
}

static void
unterminated_pool_name_is_terminated(void **state)
{
	struct lane_geometry geo = smallest(), got;
	struct lane_header h = good_header(&geo);

	memset(h.pool, 'x', sizeof(h.pool));
	int fd = forge(&h, lane_answers_bytes(&geo), ALL_SEALS);
	assert_int_equal(lane_header_read(fd, &h, &got), 0);
	assert_int_equal(strlen(h.pool), LANE_POOL_NAME - 1);
	close(fd);
}

static void
descriptor_that_is_no_memfd_is_refused(void **state)
{
	struct lane_geometry geo = smallest();
	int p[2];

	expect_broken(eventfd(0, EFD_CLOEXEC), -TG_EBROKEN, &geo);
	expect_broken(open("/dev/zero", O_RDWR | O_CLOEXEC), -TG_EBROKEN, &geo);
	expect_broken(open("/", O_RDONLY | O_CLOEXEC), -TG_EBROKEN, &geo);
	assert_int_equal(pipe2(p, O_CLOEXEC), 0);
	expect_broken(p[0], -TG_EBROKEN, &geo);
	expect_broken(p[1], -TG_EBROKEN, &geo);
	expect_broken(-1, -TG_EBROKEN, &geo);
}

static void
bad_geometry_is_never_mapped(void **state)
{
	struct lane_geometry geo = smallest();
	int fd = lane_ring_create(&geo);
	const struct lane_geometry bad[] = { { 0, 0 }, { geo.sq_bytes, 0 }, { 0, geo.cq_entries },
		{ geo.sq_bytes * 2, geo.cq_entries }, { geo.sq_bytes + 1, geo.cq_entries },
		{ UINT64_MAX, UINT32_MAX } };

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct lane_map map;

		assert_int_equal(lane_map_ring(&map, fd, &bad[i], LANE_READ, 0), -TG_EBROKEN);
		assert_null(map.base);
	}
	close(fd);
}

static void
descriptor_limit_is_a_limit(void **state)
{
	struct lane_geometry geo = smallest();
	struct rlimit old, none;
	int fd;

	assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
	none = old;
	none.rlim_cur = 3;
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
	fd = lane_ring_create(&geo);
	assert_int_equal(lane_answers_create(&geo, &plain_header), -TG_ELIMIT);
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
	assert_int_equal(fd, -TG_ELIMIT);
}

static void
address_space_limit_is_memory(void **state)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	skip(); /* the sanitizer's own shadow is over any such limit */
#endif
	struct lane_geometry geo = { UINT64_C(64) << 20, LANE_CQ_MIN };
	struct rlimit old, none;
	struct lane_map map;
	unsigned before = count_fds();
	int fd = lane_ring_create(&geo);

	assert_true(fd >= 0);
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	none = old;
	none.rlim_cur = UINT64_C(64) << 20;
	assert_int_equal(setrlimit(RLIMIT_AS, &none), 0);
	int rc = lane_map_ring(&map, fd, &geo, LANE_READ, 0);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	assert_int_equal(rc, -TG_ENOMEM);
	assert_null(map.base);
	close(fd);
	assert_int_equal(count_fds(), before);
}

static volatile sig_atomic_t ticks;

static void
on_tick(int sig)
{
	ticks++;
}

/* On kernels where any signal ends an allocation (EINTR), and not only a deadly one. */
static void
lane_is_made_under_signals(void **state)
{
	struct lane_geometry geo = { UINT64_C(64) << 20, LANE_CQ_MIN };
	struct sigaction old, sa = { .sa_handler = on_tick };

	assert_int_equal(sigaction(SIGALRM, &sa, &old), 0);
	ticks = 0;
	for (int tries = 0; tries < 20; tries++) {
		struct itimerval once = { .it_value = { .tv_usec = 500 + 250 * tries } };

		assert_int_equal(setitimer(ITIMER_REAL, &once, NULL), 0);
		int fd = lane_ring_create(&geo);
		assert_true(fd >= 0);
		close(fd);
	}
	struct itimerval off = { 0 };
	assert_int_equal(setitimer(ITIMER_REAL, &off, NULL), 0);
	assert_int_equal(sigaction(SIGALRM, &old, NULL), 0);
	assert_true(ticks > 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(geometry_defaults_rounds_and_limits),
		cmocka_unit_test(geometry_made_is_geometry_checked),
		cmocka_unit_test(answers_are_sized_sealed_allocated_and_described),
		cmocka_unit_test(ring_is_sealed_for_good),
		cmocka_unit_test(ring_that_could_be_punched_or_has_holes_is_refused),
		cmocka_unit_test(answers_can_be_read_by_a_client_and_punched_by_the_daemon),
		cmocka_unit_test(answers_are_copied_and_replaced_in_place),
		cmocka_unit_test(mapping_shows_the_ring_twice),
		cmocka_unit_test(unsealed_memfd_is_refused),
		cmocka_unit_test(unsealed_memfd_is_not_even_read),
		cmocka_unit_test(wrong_size_is_refused),
		cmocka_unit_test(wrong_magic_and_other_abi_are_told_apart),
		cmocka_unit_test(hostile_geometry_is_refused),
		cmocka_unit_test(unterminated_pool_name_is_terminated),
		cmocka_unit_test(descriptor_that_is_no_memfd_is_refused),
		cmocka_unit_test(bad_geometry_is_never_mapped),
		cmocka_unit_test(descriptor_limit_is_a_limit),
		cmocka_unit_test(address_space_limit_is_memory),
		cmocka_unit_test(lane_is_made_under_signals),
	};

	return cmocka_run_group_tests_name("lane", tests, NULL, NULL);
}
