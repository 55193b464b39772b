/* The new daemon's side of an upgrade: it uses nothing before the old daemon has sent GO. */
#include "daemon/life/handover.h"
#include "daemon/lane/lane.h"
#include "daemon/protocol/driver.h"

#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

static void
say(int fd, enum handover_type type)
{
	struct handover_frame frame = { .magic = HANDOVER_MAGIC, .version = HANDOVER_VERSION, .type = type };
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);

	assert_true(null >= 0);
	assert_int_equal(handover_send(fd, &frame, &null, type == HANDOVER_LISTENER), 0);
	close(null);
}

static int
receive(const enum handover_type *types, unsigned count)
{
	struct handover_taken *taken = NULL;
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	for (unsigned i = 0; i < count; i++)
		say(pair[0], types[i]);
	shutdown(pair[0], SHUT_WR);
	int rc = handover_receive(pair[1], &taken);
	if (rc == 0)
		rc = handover_take(pair[1]);
	handover_free(taken);
	close(pair[0]);
	close(pair[1]);
	return rc;
}

static void
only_go_sets_it_to_work(void **state)
{
	const enum handover_type whole[] = { HANDOVER_LISTENER, HANDOVER_DONE, HANDOVER_GO };
	const enum handover_type wrong[] = { HANDOVER_LISTENER, HANDOVER_DONE, HANDOVER_TAKEN };

	assert_int_equal(receive(whole, 0), -TG_ECLOSED);
	assert_int_equal(receive(whole, 1), -TG_ECLOSED);
	assert_int_equal(receive(whole, 2), -TG_ECLOSED);
	assert_int_equal(receive(wrong, 3), -TG_EPROTOCOL);
	assert_int_equal(receive(whole, 3), 0);
}

static int
same_key(const struct lane *x, const struct lane *y)
{
	return memcmp(&x->id_key, &y->id_key, sizeof(x->id_key)) == 0;
}

static void
key_of_ids_is_the_secrets_and_the_users(void **state)
{
	struct lane mine = { .nonce = 1, .secret = { 2, 3 } }, again = mine, copied = mine, other = mine;

	other.secret[1]++;
	lane_own(&mine, &(struct lane_owner){ .uid = 1000, .pid = 7 });
	lane_own(&again, &(struct lane_owner){ .uid = 1000, .pid = 8 });
	lane_own(&copied, &(struct lane_owner){ .uid = 1001, .pid = 7 });
	lane_own(&other, &(struct lane_owner){ .uid = 1000, .pid = 7 });
	assert_true(same_key(&mine, &again));
	assert_false(same_key(&mine, &copied));
	assert_false(same_key(&mine, &other));
}

/* Against OpenSSL's SipHash-2-4. */
static void
id_is_a_siphash_of_the_position(void **state)
{
	const struct siphash_key key = { { UINT64_C(0x0706050403020100), UINT64_C(0x0f0e0d0c0b0a0908) } };
	struct message message = { .id_key = &key };
	EVP_MAC *mac = EVP_MAC_fetch(NULL, "SIPHASH", NULL);
	size_t size = 16;
	const OSSL_PARAM params[] = { OSSL_PARAM_construct_size_t("size", &size), OSSL_PARAM_construct_end() };

	assert_non_null(mac);
	for (int i = 0; i < 64; i++) {
		message.position = (UINT64_C(1) << i) - 48;
		EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
		struct siphash mine = message_id(&message), theirs;
		size_t len;
		assert_int_equal(EVP_MAC_init(ctx, (const uint8_t *)&key, sizeof(key), params), 1);
		assert_int_equal(
		    EVP_MAC_update(ctx, (const uint8_t *)&message.position, sizeof(message.position)), 1);
		assert_int_equal(EVP_MAC_final(ctx, (uint8_t *)&theirs, &len, sizeof(theirs)), 1);
		assert_int_equal(len, sizeof(theirs));
		assert_memory_equal(&mine, &theirs, sizeof(mine));
		EVP_MAC_CTX_free(ctx);
	}
	EVP_MAC_free(mac);
}

static void
id_is_written_in_hexadecimal(void **state)
{
	const struct siphash id = { { UINT64_C(0x0123456789abcdef), UINT64_C(0xf00000000000000a) } };
	uint8_t text[MESSAGE_ID_LEN];

	assert_ptr_equal(message_id_put(text, &id), text + sizeof(text));
	assert_memory_equal(text, "0123456789abcdef-f00000000000000a", sizeof(text));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(only_go_sets_it_to_work),
		cmocka_unit_test(key_of_ids_is_the_secrets_and_the_users),
		cmocka_unit_test(id_is_a_siphash_of_the_position),
		cmocka_unit_test(id_is_written_in_hexadecimal),
	};

	return cmocka_run_group_tests_name("handover", tests, NULL, NULL);
}
