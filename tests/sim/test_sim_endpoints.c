/* Stories of brokers that announce other addresses of their cluster. check_sim.c has the conditions of all
 * stories. */
#include "story.h"

#include "daemon/link/endpoints.h"

/* The pool is configured with `brokers` of the `hosts`; the first announces the hosts in `tells`. */
static void
begin(struct sim *sim, uint64_t seed, unsigned hosts, unsigned brokers, uint32_t links, uint32_t tells)
{
	sim_init(sim, seed, hosts);
	sim->pool_config.broker_count = brokers;
	sim->pool_config.links = links;
	for (unsigned i = 0; i < hosts; i++)
		sim->brokers[i].tells = tells;
	sim_start(sim);
	assert_true(sim_run_until(sim, sim_all_ready, SIM_S(2)));
}

static void
publish(struct sim *sim)
{
	start_producers(sim, 3, SIM_MS(20), 4);
}

static void
end(struct sim *sim)
{
	assert_true(sim_published(sim) > 0);
	end_all_delivered(sim, SIM_S(2));
}

/* How many links of broker 0 are READY at an endpoint. */
static uint32_t
elsewhere(const struct sim *sim)
{
	const struct broker *broker = &sim->pool->peers.list[0];
	uint32_t n = 0;

	for (uint32_t i = 0; i < broker->link_count; i++)
		n += link_is_ready(&broker->links[i]) && endpoints_of(&broker->links[i]) != NULL;
	return n;
}

static int
all_are_elsewhere(struct sim *sim)
{
	return elsewhere(sim) == sim->pool->peers.list[0].link_count;
}

static int
all_are_home(struct sim *sim)
{
	return sim_all_ready(sim) && elsewhere(sim) == 0;
}

static void
an_endpoint_carries_while_the_own_address_is_gone(void **state)
{
	struct sim sim;

	begin(&sim, 1, 2, 1, 1, 1u << 1);
	publish(&sim);
	sim_run_for(&sim, SIM_S(10));
	assert_int_equal(sim.w.hosts[1].connects, 0);
	sim_broker_crash(&sim.brokers[0]);
	uint64_t home = sim.w.hosts[0].connects;
	assert_true(sim_run_until(&sim, all_are_elsewhere, SIM_S(8)));
	assert_string_equal(endpoints_of(sim_link(&sim, 0, 0)), "elsewhere:2");
	/* The lost connection is the first failure, two attempts make three. */
	assert_int_equal(sim.w.hosts[0].connects - home, 2);
	assert_int_equal(sim.w.hosts[1].connects, 1);
	sim_run_for(&sim, SIM_S(1));
	assert_true(sim.brokers[1].stored > 0);

	/* The own address is back: no link moves because of that. */
	sim_broker_start(&sim.brokers[0]);
	home = sim.w.hosts[0].connects;
	sim_run_for(&sim, SIM_S(60));
	assert_true(all_are_elsewhere(&sim));
	assert_int_equal(sim.w.hosts[0].connects, home);

	/* But a link that has to reconnect tries it first. */
	sim_broker_crash(&sim.brokers[1]);
	assert_true(sim_run_until(&sim, all_are_home, SIM_S(3)));
	assert_int_equal(sim.w.hosts[0].connects, home + 1);
	assert_int_equal(sim.w.hosts[1].connects, 1);
	end(&sim);
}

/* Once a link has lasted at the own address, earlier failures there are forgotten. */
static void
failures_of_the_own_address_are_forgotten(void **state)
{
	struct sim sim;

	begin(&sim, 2, 2, 1, 1, 1u << 1);
	for (int round = 0; round < 3; round++) {
		sim_broker_crash(&sim.brokers[0]);
		sim_broker_start(&sim.brokers[0]);
		assert_true(sim_run_until(&sim, all_are_home, SIM_S(8)));
		sim_run_for(&sim, SIM_S(8)); /* slow_start_ms is 5 s */
		assert_int_equal(sim.pool->peers.list[0].endpoints.own_failures, 0);
	}
	assert_int_equal(sim.w.hosts[1].connects, 0);
	publish(&sim);
	sim_run_for(&sim, SIM_S(1));
	end(&sim);
}

/* An address that always connects and never lasts counts as gone. */
static void
a_flapping_address_is_left_for_an_endpoint(void **state)
{
	struct sim sim;

	begin(&sim, 3, 2, 1, 1, 1u << 1);
	publish(&sim);
	for (int round = 0; round < 10 && elsewhere(&sim) == 0; round++) {
		sim_broker_crash(&sim.brokers[0]);
		sim_broker_start(&sim.brokers[0]);
		assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(8)));
		sim_run_for(&sim, SIM_MS(100));
	}
	assert_int_equal(elsewhere(&sim), 1);
	end(&sim);
}

static void
the_other_links_follow(void **state)
{
	struct sim sim;

	begin(&sim, 4, 3, 1, 4, 1u << 1 | 1u << 2);
	publish(&sim);
	sim_run_for(&sim, SIM_S(10));
	sim_broker_crash(&sim.brokers[0]);
	uint64_t home = sim.w.hosts[0].connects;
	assert_true(sim_run_until(&sim, all_are_elsewhere, SIM_S(8)));
	/* Four lost connections are enough to know; those that were lost first try their own address once more, at once. */
	assert_in_range(sim.w.hosts[0].connects - home, 1, 3);
	/* In turn: no endpoint has them all. */
	assert_int_equal(sim.w.hosts[1].connects, 2);
	assert_int_equal(sim.w.hosts[2].connects, 2);
	end(&sim);
}

/* Attempts of broker 0 in ten minutes in which nothing of its cluster can be had. */
static uint64_t
attempts_in_vain(struct sim *sim, uint64_t seed, uint32_t tells)
{
	begin(sim, seed, 3, 1, 2, tells);
	for (unsigned i = 0; i < 3; i++)
		sim_broker_crash(&sim->brokers[i]);
	uint64_t before = sim->pool->peers.list[0].count.attempts;
	sim_run_for(sim, SIM_S(600));
	return sim->pool->peers.list[0].count.attempts - before;
}

static void
attempts_alternate_and_are_no_more_than_before(void **state)
{
	struct sim sim;

	uint64_t alone = attempts_in_vain(&sim, 5, 0);
	assert_int_equal(sim.w.hosts[1].connects + sim.w.hosts[2].connects, 0);
	sim_fini(&sim);
	uint64_t with = attempts_in_vain(&sim, 5, 1u << 1 | 1u << 2);
	uint64_t home = sim.w.hosts[0].connects, first = sim.w.hosts[1].connects,
		 second = sim.w.hosts[2].connects;
	assert_true(with > alone * 9 / 10 && with < alone * 11 / 10);
	assert_true(home > first + second && home - (first + second) < 10);
	assert_true(first > second ? first - second <= 1 : second - first <= 1);
	sim_fini(&sim);
}

static void
broker_that_asks_to_leave_and_refuses_is_left_for_an_endpoint(void **state)
{
	struct sim sim;

	begin(&sim, 6, 2, 1, 1, 1u << 1);
	publish(&sim);
	sim_run_for(&sim, SIM_S(10));
	uint64_t home = sim.w.hosts[0].connects;
	sim.w.hosts[0].port = PORT_REFUSES;
	sim_broker_leave(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, all_are_elsewhere, SIM_S(4)));
	assert_int_equal(sim.w.hosts[0].connects - home, 1);
	end(&sim);
}

/* The broker announces other brokers of the pool by number: they have their own links and weight. */
static void
configured_brokers_are_no_endpoints(void **state)
{
	struct sim sim;

	sim_init(&sim, 7, 3);
	sim.pool_config.broker_count = 2;
	sim.tells_numbers = 1;
	sim.brokers[0].tells = sim.brokers[1].tells = sim.brokers[2].tells = 7;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	assert_int_equal(sim.pool->peers.list[0].endpoints.count, 3);
	publish(&sim);
	sim_broker_crash(&sim.brokers[0]);
	assert_true(sim_run_until(&sim, all_are_elsewhere, SIM_S(20)));
	assert_string_equal(endpoints_of(sim_link(&sim, 0, 0)), "0.0.0.0:3");
	assert_int_equal(sim.w.hosts[1].connects, 1);
	end(&sim);

	/* And without another host in the cluster its links stay. */
	sim_init(&sim, 8, 2);
	sim.tells_numbers = 1;
	sim.brokers[0].tells = sim.brokers[1].tells = 3;
	sim_start(&sim);
	assert_true(sim_run_until(&sim, sim_all_ready, SIM_S(2)));
	sim_broker_crash(&sim.brokers[0]);
	uint64_t home = sim.w.hosts[0].connects;
	sim_run_for(&sim, SIM_S(120));
	assert_int_equal(sim.w.hosts[1].connects, 1);
	assert_true(sim.w.hosts[0].connects - home > 10);
	sim_fini(&sim);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_endpoint_carries_while_the_own_address_is_gone),
		cmocka_unit_test(failures_of_the_own_address_are_forgotten),
		cmocka_unit_test(a_flapping_address_is_left_for_an_endpoint),
		cmocka_unit_test(the_other_links_follow),
		cmocka_unit_test(attempts_alternate_and_are_no_more_than_before),
		cmocka_unit_test(broker_that_asks_to_leave_and_refuses_is_left_for_an_endpoint),
		cmocka_unit_test(configured_brokers_are_no_endpoints),
	};

	story_prepare();
	return cmocka_run_group_tests_name("sim_endpoints", tests, NULL, NULL);
}
