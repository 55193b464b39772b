/* struct out against a plain byte string. */
#include "daemon/protocol/out.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* malloc fails when its countdown ends; linked with --wrap=malloc. */
static long malloc_countdown = -1;
void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);

void *
__wrap_malloc(size_t size)
{
	if (malloc_countdown > 0 && --malloc_countdown == 0) {
		malloc_countdown = -1;
		return NULL;
	}
	return __real_malloc(size);
}

static uint64_t seed;

static uint32_t
roll(uint32_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (uint32_t)((seed >> 11) % below);
}

#define LENT_SIZE (256u << 10)
#define MODEL_SIZE (64u << 20)

/* The expected output: bytes [written, end) of a connection. */
struct model {
	uint8_t *bytes;
	size_t written, end, mark;
};

static uint8_t lent[LENT_SIZE];

static void
model_append(struct model *model, const void *bytes, size_t len)
{
	assert_true(model->end + len <= MODEL_SIZE);
	memcpy(model->bytes + model->end, bytes, len);
	model->end += len;
}

static void
same(const struct out *out, const struct model *model)
{
	struct iovec iov[4096];
	size_t at = model->written;

	assert_int_equal(out_end(out), model->end);
	assert_int_equal(out_written(out), model->written);
	assert_int_equal(out_unwritten(out), model->end - model->written);
	int n = out_iovec(out, iov, 4096);
	for (int i = 0; i < n; i++) {
		assert_true(iov[i].iov_len > 0);
		assert_true(iov[i].iov_len <= model->end - at);
		assert_memory_equal(iov[i].iov_base, model->bytes + at, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	assert_int_equal(at, model->end);
}

static uint32_t
some_len(void)
{
	switch (roll(8)) {
	case 0:
		return roll(3);
	case 1:
		return OUT_BLOCK - 2 + roll(5);
	case 2:
		return roll(3 * OUT_BLOCK);
	case 3:
		return OUT_REF_MIN - 2 + roll(5);
	default:
		return 1 + roll(300);
	}
}

/* One random append, to the struct out and to the model. */
static void
append(struct out *out, struct model *model)
{
	uint32_t len = some_len();
	const uint8_t *bytes = lent + roll(LENT_SIZE - 3 * OUT_BLOCK);

	switch (roll(4)) {
	case 0:
		out_copy(out, bytes, len);
		break;
	case 1:
		out_ref(out, bytes, len);
		break;
	case 2:
		out_body(out, bytes, len);
		break;
	default: {
		/* More than is needed in the end, as framing asks for. */
		uint32_t more = len > 0 && roll(2) ? roll(OUT_BLOCK) : 0;
		uint8_t *space = out_space(out, len + more);
		if (space == NULL)
			break;
		assert_ptr_equal(out_put(space, bytes, len), space + len);
		if (more > 0)
			out_trim(out, more);
		break;
	}
	}
	model_append(model, bytes, len);
}

static void
consume(struct out *out, struct model *model)
{
	size_t most = model->end - model->written;
	size_t n = roll(3) == 0 ? most : most == 0 ? 0 : roll((uint32_t)most + 1);

	out_consume(out, n);
	model->written += n;
}

static void
frame(struct out *out, struct model *model)
{
	out_mark(out);
	model->mark = model->end;
	for (uint32_t n = roll(4); n > 0; n--)
		append(out, model);
	if (roll(4) == 0) {
		out_rollback(out);
		model->end = model->mark;
	} else if (out_commit(out) != 0) {
		model->end = model->mark;
	}
}

static void
run_model(uint64_t start, int failures)
{
	struct out out;
	struct model model = { .bytes = malloc(MODEL_SIZE) };

	assert_non_null(model.bytes);
	seed = start * UINT64_C(0x9e3779b97f4a7c15) + 1;
	out_init(&out);
	for (int step = 0; step < 1500; step++) {
		if (model.end > MODEL_SIZE - 16 * 3 * OUT_BLOCK) {
			out_reset(&out);
			model.written = model.end = 0;
		}
		if (failures && roll(4) == 0)
			malloc_countdown = 1 + (long)roll(3);
		switch (roll(16)) {
		case 0:
			out_own(&out);
			break;
		case 1:
			if (roll(20) == 0) {
				out_reset(&out);
				model.written = model.end = 0;
			}
			break;
		case 2 ... 7:
			consume(&out, &model);
			break;
		default:
			frame(&out, &model);
		}
		malloc_countdown = -1;
		same(&out, &model);
	}
	out_fini(&out);
	free(model.bytes);
}

static void
out_yields_the_appended_bytes(void **state)
{
	for (uint64_t s = 1; s <= 40; s++)
		run_model(s, 0);
}

static void
out_of_memory_leaves_whole_frames(void **state)
{
	for (uint64_t s = 1; s <= 40; s++)
		run_model(s + 1000, 1);
}

static void
commit_reports_each_failing_allocation(void **state)
{
	int failed = 0;

	for (long nth = 1; nth < 8; nth++) {
		struct out out = { 0 };
		out_copy(&out, "before", 6);
		out_mark(&out);
		malloc_countdown = nth;
		for (int i = 0; i < 20; i++) {
			out_copy(&out, lent, OUT_BLOCK / 4);
			out_ref(&out, lent, OUT_REF_MIN);
		}
		int rc = out_commit(&out);
		int hit = malloc_countdown == -1;
		malloc_countdown = -1;
		assert_int_equal(rc, hit ? -TG_ENOMEM : 0);
		failed += hit;
		assert_int_equal(out_end(&out), hit ? 6 : 6 + 20 * (OUT_BLOCK / 4 + OUT_REF_MIN));
		out_mark(&out);
		out_copy(&out, "after", 5);
		assert_int_equal(out_commit(&out), 0);
		out_fini(&out);
	}
	assert_in_range(failed, 3, 7);
}

static void
owned_bytes_outlive_their_source(void **state)
{
	struct out out = { 0 };
	uint8_t *body = malloc(10000);
	struct iovec iov[4];

	assert_non_null(body);
	memset(body, 'b', 10000);
	out_copy(&out, "head", 4);
	out_body(&out, body, 10000);
	out_consume(&out, 6);
	assert_int_equal(out_own(&out), 0);
	memset(body, 'x', 10000);
	free(body);
	assert_int_equal(out_iovec(&out, iov, 4), 1);
	assert_int_equal(iov[0].iov_len, 9998);
	for (size_t i = 0; i < 9998; i++)
		assert_int_equal(((uint8_t *)iov[0].iov_base)[i], 'b');
	out_fini(&out);
}

static void
small_appends_share_one_iovec(void **state)
{
	struct out out = { 0 };
	struct iovec iov[4];

	for (int i = 0; i < 1000; i++)
		out_copy(&out, "0123456789012345", 16);
	assert_int_equal(out_iovec(&out, iov, 4), 1);
	assert_int_equal(iov[0].iov_len, 16000);
	out_fini(&out);
}

static void
large_bodies_are_not_copied(void **state)
{
	struct out out = { 0 };
	struct iovec iov[4];

	out_copy(&out, "h", 1);
	out_body(&out, lent, OUT_REF_MIN);
	out_copy(&out, "t", 1);
	out_body(&out, lent, OUT_REF_MIN - 1);
	assert_int_equal(out_iovec(&out, iov, 4), 3);
	assert_ptr_equal(iov[1].iov_base, lent);
	assert_int_equal(iov[2].iov_len, OUT_REF_MIN);
	out_fini(&out);
}

static void
secrets_are_wiped_when_written(void **state)
{
	struct out out = { 0 };
	struct iovec iov[4];

	out_copy(&out, "plain", 5);
	out_mark(&out);
	out_copy(&out, "secret", 6);
	out_secret(&out);
	assert_int_equal(out_commit(&out), 0);
	assert_int_equal(out_iovec(&out, iov, 4), 1);
	const uint8_t *bytes = iov[0].iov_base; /* its block stays with the out */
	out_consume(&out, 10);
	assert_memory_equal(bytes + 5, "secret", 6);
	out_consume(&out, 1);
	assert_memory_equal(bytes, "\0\0\0\0\0\0\0\0\0\0\0", 11);

	out_mark(&out);
	out_copy(&out, "secret", 6);
	out_secret(&out);
	out_iovec(&out, iov, 4);
	bytes = iov[0].iov_base;
	out_rollback(&out);
	assert_memory_equal(bytes, "\0\0\0\0\0\0", 6);
	out_fini(&out);
}

int
main(void)
{
	for (size_t i = 0; i < LENT_SIZE; i++)
		lent[i] = (uint8_t)(i * 2654435761u >> 13);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(out_yields_the_appended_bytes),
		cmocka_unit_test(out_of_memory_leaves_whole_frames),
		cmocka_unit_test(commit_reports_each_failing_allocation),
		cmocka_unit_test(owned_bytes_outlive_their_source),
		cmocka_unit_test(small_appends_share_one_iovec),
		cmocka_unit_test(large_bodies_are_not_copied),
		cmocka_unit_test(secrets_are_wiped_when_written),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
