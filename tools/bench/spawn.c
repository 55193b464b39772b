/*
 * Publishers that live for one message, one after the other: their number a second, relative to that of
 * /bin/true. "fork" is a process forked from this one, "exec" a
 * program started afresh, its libraries loaded.
 */
#include "build_config.h"

#include "tools/bench/client.h"
#include "tools/bench/process.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KINDS_MAX 17
#define RING_ONE (UINT64_C(16) << 10) /* of a publisher of one message: attaching costs less */

struct kind {
	char name[64];
	const struct load_client *client; /* NULL: /bin/true */
	int exec;
	char path[PATH_MAX];
	char targets[2][256];
	char size[24];
	double per_second[BENCH_ROUNDS_MAX];
};

static _Noreturn void
child(const struct kind *kind, const struct bench_options *o)
{
	char *argv[] = { (char *)kind->path, (char *)kind->targets[0], (char *)kind->targets[1],
		(char *)o->topic, (char *)kind->size,
		kind->client != NULL && kind->client->direct ? (char *)o->ca_file : NULL, NULL };
	char *argv_true[] = { (char *)kind->path, NULL };
	struct bench_options own = *o;
	void *self;

	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	if (kind->exec) {
		execv(kind->path, kind->client != NULL ? argv : argv_true);
		fprintf(stderr, "%s: %s\n", kind->path, strerror(errno));
		_exit(1);
	}
	own.ring_bytes = own.ring_bytes != 0 ? own.ring_bytes : RING_ONE;
	/* Opening includes a first message and its answer. */
	self = kind->client->open(&own);
	if (self == NULL) {
		fprintf(stderr, "%s: %s\n", kind->name, client_error);
		_exit(1);
	}
	kind->client->close(self);
	_exit(0);
}

static int
run_one(const struct kind *kind, const struct bench_options *o)
{
	pid_t pid = fork();
	int status;

	if (pid == 0)
		child(kind, o);
	if (pid < 0) {
		cli_error("fork: %s", strerror(errno));
		return -1;
	}
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	if (status != 0 && !bench_stop)
		cli_error("%s: a process ended with status 0x%x", kind->name, (unsigned)status);
	return status != 0 || bench_stop ? -1 : 0;
}

static int
measure(struct kind *kind, const struct bench_options *o, uint64_t round)
{
	uint64_t i, start;

	fflush(NULL);
	start = clock_now_ns();
	for (i = 0; i < o->count; i++)
		if (run_one(kind, o) != 0)
			return -1;
	kind->per_second[round] = (double)o->count * (double)CLOCK_NS_PER_S / (double)(clock_now_ns() - start);
	return 0;
}

/* /bin/true, then each client forked and, if its helper is there, started. Returns how many. */
static size_t
make_kinds(struct kind *kinds, const struct bench_options *o)
{
	const struct load_client *clients[(KINDS_MAX - 1) / 2];
	size_t count = bench_clients(o, clients, (KINDS_MAX - 1) / 2);
	size_t i, n = 0;

	snprintf(kinds[n].name, sizeof(kinds[n].name), "/bin/true, exec");
	snprintf(kinds[n].path, sizeof(kinds[n].path), "/bin/true");
	kinds[n++].exec = 1;
	for (i = 0; i < count; i++) {
		kinds[n].client = clients[i];
		snprintf(kinds[n++].name, sizeof(kinds[n].name), "%s, fork", clients[i]->name);
		if (clients[i]->helper == NULL)
			continue;
		if (process_find(clients[i]->helper, kinds[n].path, sizeof(kinds[n].path)) != 0) {
			cli_error("%s is not installed: no figure for \"%s, exec\"", clients[i]->helper,
			    clients[i]->name);
			continue;
		}
		kinds[n].client = clients[i];
		kinds[n].exec = 1;
		clients[i]->targets(o, kinds[n].targets);
		snprintf(kinds[n].size, sizeof(kinds[n].size), "%llu", (unsigned long long)o->size);
		snprintf(kinds[n++].name, sizeof(kinds[n].name), "%s, exec", clients[i]->name);
	}
	return n;
}

static int
report(struct kind *kinds, size_t count, const struct bench_options *o)
{
	double base = 0, median;
	json_t *list = json_array();
	char text[UNITS_TEXT];
	size_t i;

	if (!o->json)
		printf("processes that publish one message of %llu bytes and end, one after the other; medians "
		       "of %llu rounds of %llu\n",
		    (unsigned long long)o->size, (unsigned long long)o->rounds, (unsigned long long)o->count);
	for (i = 0; i < count; i++) {
		median = bench_median(kinds[i].per_second, (size_t)o->rounds);
		base = i == 0 ? median : base;
		json_array_append_new(list, json_pack("{s:s,s:f,s:f}", "what", kinds[i].name, "per_second",
						median, "part_of_true", median / base));
		if (!o->json)
			printf("  %-24s %8s/s  %5.1f %% of /bin/true\n", kinds[i].name,
			    units_count(text, sizeof(text), (uint64_t)median), 100 * median / base);
	}
	if (o->json)
		return bench_print_json(json_pack("{s:s,s:I,s:I,s:o}", "bench", "spawn", "processes",
		    (json_int_t)o->count, "rounds", (json_int_t)o->rounds, "results", list));
	json_decref(list);
	return CLI_OK;
}

int
bench_spawn(const struct bench_options *options)
{
	static struct kind kinds[KINDS_MAX];
	size_t count = make_kinds(kinds, options);
	uint64_t round;
	size_t i;

	for (round = 0; round < options->rounds; round++) {
		for (i = 0; i < count; i++) {
			cli_progress("round %llu of %llu: %s", (unsigned long long)round + 1,
			    (unsigned long long)options->rounds, kinds[i].name);
			if (measure(&kinds[i], options, round) != 0)
				return CLI_FAILED;
		}
	}
	cli_progress_end();
	return report(kinds, count, options);
}
