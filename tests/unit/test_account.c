/* Accounts of users: limits of all, of one, and the part that is kept free for others. */
#include "daemon/lane/account.h"
#include "daemon/config/config.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct config_limits
limits_of(uint32_t lanes, uint32_t lanes_per_user)
{
	return (struct config_limits){
		.lanes = lanes, .clients = 100, .memory_bytes = 1 << 20, .lanes_per_user = lanes_per_user
	};
}

/* Takes lanes until one is refused, and says how many it got. */
static uint64_t
take_all(struct account *account, int returned)
{
	struct account_no no;
	uint64_t n = 0;

	for (; account_may(account, ACCOUNT_LANES, 1, returned, &no); n++)
		account_charge(account, ACCOUNT_LANES, 1);
	return n;
}

static void
give_back(struct account *account)
{
	account_refund(account, ACCOUNT_LANES, account->used[ACCOUNT_LANES]);
	account_drop(account);
}

static void
user_gets_half_and_others_always_find_something(void **state)
{
	struct config_limits limits = limits_of(4096, 0);
	struct accounts accounts;

	(void)state;
	accounts_init(&accounts, &limits, 10);
	struct account *first = account_hold(&accounts, 1000), *second = account_hold(&accounts, 1001);
	struct account *third = account_hold(&accounts, 1002);
	assert_int_equal(take_all(first, 0), 2048);
	assert_int_equal(take_all(second, 0), 1024);
	assert_int_equal(take_all(third, 0), 512); /* and as many are free */
	assert_int_equal(accounts.used[ACCOUNT_LANES], 3584);
	assert_int_equal(accounts.refused[ACCOUNT_LANES], 3);
	give_back(first);
	assert_int_equal(take_all(third, 0), 1024);
	give_back(second);
	give_back(third);
	assert_int_equal(accounts.used[ACCOUNT_LANES], 0);
	assert_int_equal(accounts.count, 0);
}

static void
configured_limit_of_a_user_is_kept_exactly(void **state)
{
	struct config_limits limits = limits_of(10, 8);
	struct accounts accounts;
	struct account_no no;
	char text[240];

	(void)state;
	accounts_init(&accounts, &limits, 10);
	struct account *one = account_hold(&accounts, 65534), *two = account_hold(&accounts, 7);
	assert_int_equal(take_all(one, 0), 8);
	assert_false(account_may(one, ACCOUNT_LANES, 1, 0, &no));
	assert_string_equal(account_no_text(one, &no, text, sizeof(text)),
	    "user 65534 has 8 lanes and asks for 1 more: limits.lanes_per_user is 8");
	assert_int_equal(take_all(two, 0), 2);
	assert_false(account_may(two, ACCOUNT_LANES, 1, 0, &no));
	assert_string_equal(account_no_text(two, &no, text, sizeof(text)),
	    "all users have 10 lanes, user 7 asks for 1 more: limits.lanes is 10");
	give_back(one);
	give_back(two);
}

static void
refusal_of_a_share_names_what_is_free_and_fits_a_frame(void **state)
{
	struct config_limits limits = limits_of(4, 0);
	struct accounts accounts;
	struct account_no no;
	char text[240];

	(void)state;
	accounts_init(&accounts, &limits, 10);
	struct account *one = account_hold(&accounts, 1000);
	assert_int_equal(take_all(one, 0), 2);
	assert_false(account_may(one, ACCOUNT_LANES, 1, 0, &no));
	assert_string_equal(account_no_text(one, &no, text, sizeof(text)),
	    "user 1000 has 2 lanes and asks for 1 more; 2 of 4 (limits.lanes) are free: a user may have as much as is "
	    "left free unless limits.lanes_per_user is set");
	give_back(one);
	/* The longest there can be. */
	one = account_hold(&accounts, 4294967294u);
	for (int what = 0; what < ACCOUNT_KINDS; what++) {
		uint64_t total = account_total(&accounts, (enum account_what)what);
		no = (struct account_no){ .what = (enum account_what)what,
			.limit = "limits.memory_bytes",
			.value = UINT64_C(17592186044416),
			.used = UINT64_C(17592186044416),
			.more = UINT64_C(2147483648),
			.free = UINT64_C(17592186044416),
			.of_what_is_free = 1 };
		assert_true(total > 0);
		assert_true(strlen(account_no_text(one, &no, text, sizeof(text))) < sizeof(text) - 1);
	}
	account_drop(one);
}

/* They had these lanes already, and return in any order. */
static void
lanes_that_return_are_taken_beyond_the_limits_of_new_ones(void **state)
{
	struct config_limits limits = limits_of(4096, 0);
	struct accounts accounts;

	(void)state;
	accounts_init(&accounts, &limits, 10);
	struct account *first = account_hold(&accounts, 1), *second = account_hold(&accounts, 2);
	struct account *third = account_hold(&accounts, 3);
	assert_int_equal(take_all(first, 1), 2048);
	assert_int_equal(take_all(second, 1), 2048);
	assert_int_equal(take_all(third, 0), 0);
	assert_int_equal(take_all(third, 1), 2048);
	give_back(first);
	give_back(second);
	give_back(third);
	limits.lanes_per_user = 5;
	first = account_hold(&accounts, 1);
	assert_int_equal(take_all(first, 1), 2048);
	assert_int_equal(take_all(first, 0), 0);
	give_back(first);
}

static void
accounts_are_found_again_and_go_with_their_last_holder(void **state)
{
	struct config_limits limits = limits_of(10, 0);
	struct accounts accounts;
	struct account *held[1000];

	(void)state;
	accounts_init(&accounts, &limits, 10);
	for (uid_t i = 0; i < 1000; i++)
		held[i] = account_hold(&accounts, i * 65536u);
	assert_int_equal(accounts.count, 1000);
	for (uid_t i = 0; i < 1000; i++) {
		struct account *again = account_hold(&accounts, i * 65536u);
		assert_ptr_equal(again, held[i]);
		assert_int_equal(again->uid, i * 65536u);
		account_drop(again);
	}
	assert_int_equal(accounts.count, 1000);
	for (uid_t i = 0; i < 1000; i++)
		account_drop(held[i]);
	assert_int_equal(accounts.count, 0);
}

int
main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(user_gets_half_and_others_always_find_something),
		cmocka_unit_test(configured_limit_of_a_user_is_kept_exactly),
		cmocka_unit_test(refusal_of_a_share_names_what_is_free_and_fits_a_frame),
		cmocka_unit_test(lanes_that_return_are_taken_beyond_the_limits_of_new_ones),
		cmocka_unit_test(accounts_are_found_again_and_go_with_their_last_holder),
	};
	return cmocka_run_group_tests_name("account", tests, NULL, NULL);
}
