/*
 * tidegate-bench: the cost of a message with tidegate and without it.
 *
 * A measurement is a number of rounds; in each, every client of the table (clients.def) does the
 * same work in turn: A B A B. The result is medians over rounds, and ratios of medians.
 *
 *	main ─► a subcommand ─► group (P forked processes, one client each) ─► outcome of a round
 *	             └── stage (--start: a daemon and a broker of its own)
 *
 * The parent never has a client open while it forks; a process of a group is one client's life.
 */
#ifndef TG_BENCH_BENCH_H
#define TG_BENCH_BENCH_H

#include "tools/common/histogram.h"

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define BENCH_ROUNDS_MAX 101

struct load_client;
struct stage_broker;

/* A line of protocols.def. */
struct bench_protocol {
	const char *name, *topic, *settings, *unconfirmed, *package;
};

struct bench_options {
	const char *socket; /* NULL: the library's default */
	const char *pool;
	const char *topic;
	const char *broker_host; /* of the direct clients; NULL: none given */
	uint16_t broker_port;
	pid_t daemon_pid, broker_pid; /* 0: not known */
	const struct bench_protocol *protocol;
	const struct stage_broker *start; /* NULL: use the running daemon */
	const char *ca_file;              /* that the broker's certificate is checked with; NULL: no TLS */
	uint64_t size;                    /* of a body, bytes */
	uint64_t count;                   /* messages of each process and round */
	uint64_t processes;
	uint64_t rounds;
	uint64_t batch;
	uint64_t window;     /* unanswered messages of a direct client; 0: each client's own */
	uint64_t ring_bytes; /* 0: the library's default */
	uint64_t spin_us;    /* of a waiting tidegate client; 0: the library's default */
	uint64_t pace_ms;
	uint64_t rate; /* messages a second of each process */
	uint64_t lanes;
	uint64_t duration_ms;
	uint64_t links; /* of the daemon that is started */
	int direct, json, keep;
	int tls;         /* the broker that is started wants it */
	int unconfirmed; /* messages that the broker does not answer for */
};

/* Set by SIGINT, SIGTERM and SIGHUP: clean up and exit. */
extern volatile sig_atomic_t bench_stop;
void bench_catch_signals(void);

/* The clients that take part: tidegate first, then, with --direct, those that were built in. */
size_t bench_clients(const struct bench_options *options, const struct load_client *clients[], size_t max);

/* The subcommands: each returns an exit code. */
int bench_enqueue(const struct bench_options *options);
int bench_throughput(const struct bench_options *options);
int bench_latency(const struct bench_options *options);
int bench_paced(const struct bench_options *options);
int bench_spawn(const struct bench_options *options);
int bench_idle(const struct bench_options *options);
int bench_compare(const struct bench_options *options);

/* The protocol of that name, or NULL. */
const struct bench_protocol *bench_protocol(const char *name);

/* Median of values, which are sorted in place; 0 for none. */
double bench_median(double *values, size_t count);

/* Prints the object on one line and drops it. Returns an exit code. */
int bench_print_json(json_t *object);

#endif
