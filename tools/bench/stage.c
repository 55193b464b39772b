#include "build_config.h"

#include "libclient/tidegate.h"
#include "tools/bench/process.h"
#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define START_TIMEOUT_MS 60000 /* a RabbitMQ takes 13 s at times */
#define STOP_TIMEOUT_MS 5000
#define RETRY_NS (5 * CLOCK_NS_PER_MS)

static void
pause_ns(uint64_t ns)
{
	struct timespec t = clock_timespec(ns);

	nanosleep(&t, NULL);
}

/* The end of a log, for a program that did not start. */
static void
show_log(const char *path)
{
	char text[2048];
	FILE *file = fopen(path, "re");
	size_t len;

	if (file == NULL)
		return;
	if (fseek(file, -(long)sizeof(text) + 1, SEEK_END) != 0)
		rewind(file);
	len = fread(text, 1, sizeof(text) - 1, file);
	text[len] = '\0';
	fputs(text, stderr);
	fclose(file);
}

/* Polls `ready` until it succeeds, the process has ended, or the time is up. */
static int
await(struct stage *stage, const char *program, pid_t *pid,
    int (*ready)(struct stage *, const struct bench_options *), const struct bench_options *options)
{
	uint64_t deadline = clock_now_ns() + START_TIMEOUT_MS * CLOCK_NS_PER_MS;
	int status;

	while (!ready(stage, options)) {
		if (bench_stop)
			return -1;
		if (process_has_ended(*pid, &status)) {
			*pid = 0;
			cli_error("--start: %s ended at once (status 0x%x); its last words:", program,
			    (unsigned)status);
			show_log(stage->log);
			return -1;
		}
		if (clock_now_ns() > deadline) {
			cli_error("--start: %s was not ready after %d ms; its last words:", program,
			    START_TIMEOUT_MS);
			show_log(stage->log);
			return -1;
		}
		pause_ns(RETRY_NS);
	}
	return 0;
}

static int
broker_ready(struct stage *stage, const struct bench_options *options)
{
	int fd = stage_connect(stage->port);

	(void)options;
	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* A lane opens and its pool has a link that takes messages. */
static int
daemon_ready(struct stage *stage, const struct bench_options *options)
{
	struct tg_client_options client_options = { .socket = stage->socket, .name = "tidegate-bench" };
	struct tg_lane_options lane_options = { .ring_bytes = 16u << 10 };
	struct tg_client *client;
	struct tg_lane *lane;
	int ready = 0;

	if (tg_client_open(&client, &client_options) != 0)
		return 0;
	if (tg_lane_open(client, &lane, options->pool, &lane_options) == 0) {
		if (tg_writable(lane) == 0)
			tg_wait(lane, 100);
		ready = tg_writable(lane) == 1;
		tg_lane_close(lane, 0);
	}
	tg_client_close(client);
	return ready;
}

static int
start_daemon(struct stage *stage, const struct bench_options *options)
{
	char config[PATH_MAX], tls[PATH_MAX + 64] = "", text[4 * PATH_MAX];
	char *argv[] = { (char *)"tidegated", (char *)"-c", config, NULL };
	int len;

	if (options->tls)
		snprintf(tls, sizeof(tls), "  tls = { ca_file = \"%s\"; };\n", stage->cert);
	len = snprintf(text, sizeof(text),
	    "socket = \"%s\";\nadmin = \"%s/admin.sock\";\n"
	    "limits = { lanes = 20000; lanes_per_client = 20000; };\n"
	    "pools = ( {\n  name = \"%s\"; protocol = \"%s\";\n"
	    "  brokers = ( { address = \"127.0.0.1:%u\"; } ); links = %" PRIu64 ";\n%s  %s\n} );\n",
	    stage->socket, stage->folder, options->pool, options->protocol->name, stage->port, options->links,
	    tls, options->unconfirmed ? options->protocol->unconfirmed : options->protocol->settings);
	if (len < 0 || (size_t)len >= sizeof(text))
		return -1;
	if (stage_write(stage, "tidegated.conf", config, text) != 0)
		return -1;
	return stage_run(stage, "tidegated", argv, NULL, &stage->daemon);
}

static int
start_all(struct stage *stage, const struct bench_options *options)
{
	const struct stage_broker *broker = options->start;

	stage->port = stage_free_port();
	if (stage->port == 0 || (options->tls && stage_make_certificate(stage) != 0))
		return -1;
	if (broker->start(stage, options) != 0 ||
	    await(stage, broker->program, &stage->broker, broker_ready, options) != 0)
		return -1;
	/* It would take core messages too, and the server would be measured storing them. */
	if (strcmp(broker->name, "nats") == 0 && !options->unconfirmed &&
	    stage_make_stream(stage, options) != 0)
		return -1;
	if (start_daemon(stage, options) != 0)
		return -1;
	return await(stage, "tidegated", &stage->daemon, daemon_ready, options);
}

int
stage_start(struct stage *stage, struct bench_options *options)
{
	const char *parent = getenv("TMPDIR");

	memset(stage, 0, sizeof(*stage));
	snprintf(
	    stage->folder, sizeof(stage->folder), "%s/tidegate-bench.XXXXXX", parent != NULL ? parent : "/tmp");
	if (mkdtemp(stage->folder) == NULL) {
		cli_error("--start: %s: %s", stage->folder, strerror(errno));
		stage->folder[0] = '\0';
		return -1;
	}
	if ((size_t)snprintf(stage->socket, sizeof(stage->socket), "%.*s/tidegate.sock", PATH_MAX - 32,
		stage->folder) >= sizeof(stage->socket) ||
	    start_all(stage, options) != 0) {
		stage_stop(stage, options->keep);
		return -1;
	}
	options->socket = stage->socket;
	options->ca_file = options->tls ? stage->cert : NULL;
	options->broker_host = "127.0.0.1";
	options->broker_port = stage->port;
	options->broker_pid = stage->broker;
	options->daemon_pid = stage->daemon;
	return 0;
}

static int
remove_one(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
	(void)st;
	(void)kind;
	(void)walk;
	return remove(path);
}

void
stage_stop(struct stage *stage, int keep)
{
	process_end(&stage->daemon, STOP_TIMEOUT_MS);
	process_end(&stage->broker, STOP_TIMEOUT_MS);
	process_end(&stage->epmd, STOP_TIMEOUT_MS);
	if (stage->folder[0] == '\0')
		return;
	if (keep)
		cli_error("--keep: %s", stage->folder);
	else
		nftw(stage->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	stage->folder[0] = '\0';
}
