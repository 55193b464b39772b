#include "story.h"

#include <stdlib.h>
#include <sys/resource.h>

void
start_producers(struct sim *sim, unsigned count, uint64_t every_ns, uint32_t burst)
{
	for (unsigned i = 0; i < count; i++)
		producer_go(sim_producer(sim, 0), every_ns, burst);
}

void
stop_producers(struct sim *sim)
{
	for (uint32_t i = 0; i < sim->producer_count; i++)
		sim->producers[i]->stop_ns = 0;
}

void
end_all_delivered(struct sim *sim, uint64_t within_ns)
{
	stop_producers(sim);
	sim_settle(sim, within_ns);
	assert_int_equal(sim_done(sim, TG_DELIVERED), sim_published(sim));
	sim_fini(sim);
}

uint64_t
stored(const struct sim *sim)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < sim->pool_config.broker_count; i++)
		sum += sim->brokers[i].stored;
	return sum;
}

uint64_t
duplicates(const struct sim *sim)
{
	uint64_t firsts = 0;

	for (unsigned i = 0; i < sim->pool_config.broker_count; i++)
		firsts += sim->brokers[i].firsts;
	return stored(sim) - firsts;
}

int
is_0_ready(struct sim *sim)
{
	return broker_is_ready(&sim->pool->peers.list[0]);
}

int
is_0_left(struct sim *sim)
{
	return !is_0_ready(sim);
}

void
story_prepare(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	if (getenv("SIM_TEST") != NULL)
		cmocka_set_test_filter(getenv("SIM_TEST"));
}
