/* The cost of idle attached lanes: CPU and memory of the daemon, CPU of the client. */
#include "build_config.h"

#include "libclient/tidegate.h"
#include "tools/bench/client.h"
#include "tools/bench/process.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#define LANES_PER_CLIENT 1000
#define RING_IDLE (UINT64_C(16) << 10)
#define SETTLE_MS 1000 /* after the last attach, before measuring */

struct crowd {
	struct tg_client **clients;
	size_t client_count, lane_count;
};

static void
allow_files(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		setrlimit(RLIMIT_NOFILE, &limit);
	}
}

/* Sleeps; returns -1 if a signal ended it. */
static int
rest(uint64_t ms)
{
	uint64_t end = clock_now_ns() + ms * CLOCK_NS_PER_MS;
	struct timespec t = clock_timespec(end);

	while (clock_now_ns() < end) {
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
		if (bench_stop)
			return -1;
	}
	return 0;
}

static int
open_crowd(struct crowd *crowd, const struct bench_options *o)
{
	struct tg_client_options client_options = { .socket = o->socket, .name = "tidegate-bench" };
	struct tg_lane_options lane_options = { .ring_bytes = o->ring_bytes != 0 ? o->ring_bytes : RING_IDLE };
	struct tg_client *client = NULL;
	struct tg_lane *lane;
	int error;

	crowd->clients = calloc((size_t)o->lanes / LANES_PER_CLIENT + 1, sizeof(*crowd->clients));
	if (crowd->clients == NULL) {
		cli_error("out of memory");
		return -1;
	}
	while (crowd->lane_count < o->lanes && !bench_stop) {
		if (crowd->lane_count % LANES_PER_CLIENT == 0) {
			error = tg_client_open(&client, &client_options);
			if (error != 0) {
				cli_error("client %zu: %s", crowd->client_count + 1, tg_client_detail(NULL));
				return -1;
			}
			crowd->clients[crowd->client_count++] = client;
		}
		if (tg_lane_open(client, &lane, o->pool, &lane_options) != 0) {
			cli_error("lane %zu of %llu: %s", crowd->lane_count + 1, (unsigned long long)o->lanes,
			    tg_client_detail(client));
			return -1;
		}
		crowd->lane_count++;
		if (crowd->lane_count % 100 == 0)
			cli_progress("%zu lanes attached", crowd->lane_count);
	}
	return bench_stop ? -1 : 0;
}

static void
close_crowd(struct crowd *crowd)
{
	size_t i;

	for (i = 0; i < crowd->client_count; i++)
		tg_client_close(crowd->clients[i]);
	free(crowd->clients);
}

static int
measure(const struct bench_options *o, uint64_t memory_before)
{
	uint64_t daemon_ns, own_ns, start, memory;
	double seconds, per_lane;
	char text[UNITS_TEXT];

	cli_progress(
	    "%llu lanes rest for %llu ms", (unsigned long long)o->lanes, (unsigned long long)o->duration_ms);
	if (rest(SETTLE_MS) != 0)
		return CLI_FAILED;
	memory = process_private_bytes(o->daemon_pid);
	daemon_ns = process_cpu_ns(o->daemon_pid);
	own_ns = clock_own_cpu_ns();
	start = clock_now_ns();
	if (rest(o->duration_ms) != 0)
		return CLI_FAILED;
	seconds = (double)(clock_now_ns() - start) / (double)CLOCK_NS_PER_S;
	daemon_ns = process_cpu_ns(o->daemon_pid) - daemon_ns;
	own_ns = clock_own_cpu_ns() - own_ns;
	per_lane = memory > memory_before ? (double)(memory - memory_before) / (double)o->lanes : 0;
	cli_progress_end();
	if (o->json)
		return bench_print_json(json_pack("{s:s,s:I,s:f,s:f,s:f,s:f}", "bench", "idle", "lanes",
		    (json_int_t)o->lanes, "seconds", seconds, "daemon_cpu_percent",
		    (double)daemon_ns / 1e7 / seconds, "client_cpu_percent", (double)own_ns / 1e7 / seconds,
		    "daemon_bytes_per_lane", per_lane));
	printf("%llu lanes, idle for %.1f s\n", (unsigned long long)o->lanes, seconds);
	printf("  tidegated  %.3f %% CPU, %s of its own memory for each lane beside the ring\n",
	    (double)daemon_ns / 1e7 / seconds, units_bytes(text, sizeof(text), (uint64_t)per_lane));
	printf("  client     %.3f %% CPU\n", (double)own_ns / 1e7 / seconds);
	return CLI_OK;
}

int
bench_idle(const struct bench_options *options)
{
	struct crowd crowd = { 0 };
	uint64_t memory = process_private_bytes(options->daemon_pid);
	int status = CLI_FAILED;

	if (options->daemon_pid == 0) {
		cli_error("idle: which process is the daemon? (--daemon-pid, or --start)");
		return CLI_USAGE;
	}
	allow_files();
	if (open_crowd(&crowd, options) == 0)
		status = measure(options, memory);
	close_crowd(&crowd);
	return status;
}
