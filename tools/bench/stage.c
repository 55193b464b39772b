#include "build_config.h"

#include "libclient/tidegate.h"
#include "tools/bench/process.h"
#include "tools/bench/stage.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define START_TIMEOUT_MS 15000
#define STOP_TIMEOUT_MS 5000
#define RETRY_NS (5 * CLOCK_NS_PER_MS)

static void
pause_ns(uint64_t ns)
{
	struct timespec t = clock_timespec(ns);

	nanosleep(&t, NULL);
}

static struct sockaddr_in
loopback(uint16_t port)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
	};
}

/* A port nobody has; it stays free unless someone takes it in the next milliseconds. */
static uint16_t
free_port(void)
{
	struct sockaddr_in address = loopback(0);
	socklen_t len = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint16_t port = 0;

	if (fd < 0)
		return 0;
	if (bind(fd, (struct sockaddr *)&address, len) == 0 &&
	    getsockname(fd, (struct sockaddr *)&address, &len) == 0)
		port = ntohs(address.sin_port);
	close(fd);
	return port;
}

static int
port_answers(uint16_t port)
{
	struct sockaddr_in address = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int answers = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

	if (fd >= 0)
		close(fd);
	return answers;
}

static int
open_log(const struct stage *stage, const char *name, char *path, size_t size)
{
	if ((size_t)snprintf(path, size, "%s/%s.log", stage->folder, name) >= size)
		return -1;
	return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
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

/* A file of this text in the folder. */
static int
write_file(const struct stage *stage, const char *name, char *path, size_t size, const char *text)
{
	FILE *file;
	int failed;

	if ((size_t)snprintf(path, size, "%s/%s", stage->folder, name) >= size)
		return -1;
	file = fopen(path, "we");
	if (file == NULL) {
		cli_error("%s: %s", path, strerror(errno));
		return -1;
	}
	failed = fputs(text, file) == EOF;
	failed |= fclose(file) != 0;
	if (failed)
		cli_error("%s: %s", path, strerror(errno));
	return failed ? -1 : 0;
}

/* Finds and starts a program; *log_path is where its words go. */
static int
start_program(
    struct stage *stage, const char *program, char *const argv[], pid_t *pid, char *log_path, size_t size)
{
	char path[PATH_MAX];
	int log_fd;

	if (process_find(program, path, sizeof(path)) != 0) {
		cli_error("--start: %s is neither beside this program nor in PATH", program);
		return -1;
	}
	log_fd = open_log(stage, program, log_path, size);
	if (log_fd < 0) {
		cli_error("--start: %s: %s", stage->folder, strerror(errno));
		return -1;
	}
	*pid = process_start(path, argv, log_fd);
	close(log_fd);
	if (*pid < 0) {
		*pid = 0;
		cli_error("--start: %s: %s", path, strerror(errno));
		return -1;
	}
	return 0;
}

/* Asks `ready` again and again until it says yes, the process has ended, or it takes too long. */
static int
await(struct stage *stage, const char *program, pid_t *pid, const char *log_path,
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
			show_log(log_path);
			return -1;
		}
		if (clock_now_ns() > deadline) {
			cli_error("--start: %s was not ready after %d ms; its last words:", program,
			    START_TIMEOUT_MS);
			show_log(log_path);
			return -1;
		}
		pause_ns(RETRY_NS);
	}
	return 0;
}

static int
broker_ready(struct stage *stage, const struct bench_options *options)
{
	(void)options;
	return port_answers(stage->port);
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
start_sink(struct stage *stage, const char *protocol, char *log_path, size_t size)
{
	char listen_on[64];
	char *argv[] = { (char *)"tidegate-sink", (char *)"--protocol", (char *)protocol, (char *)"--listen",
		listen_on, (char *)"--no-record", NULL };

	snprintf(listen_on, sizeof(listen_on), "127.0.0.1:%u", stage->port);
	return start_program(stage, "tidegate-sink", argv, &stage->broker, log_path, size);
}

static int
start_mosquitto(struct stage *stage, char *log_path, size_t size)
{
	char config[PATH_MAX], text[512];
	char *argv[] = { (char *)"mosquitto", (char *)"-c", config, NULL };

	/*
	 * As it comes, but for what a bench needs: no disk, and more than the default of 20 messages
	 * under way, which MQTT 5 clients (but not 3.1.1 ones) would be held to.
	 */
	snprintf(text, sizeof(text),
	    "listener %u 127.0.0.1\nallow_anonymous true\npersistence false\nmax_inflight_messages 0\n"
	    "log_dest stderr\nlog_type error\nlog_type warning\n%s",
	    stage->port, geteuid() == 0 ? "user root\n" : "");
	if (write_file(stage, "mosquitto.conf", config, sizeof(config), text) != 0)
		return -1;
	return start_program(stage, "mosquitto", argv, &stage->broker, log_path, size);
}

static int
start_redis(struct stage *stage, char *log_path, size_t size)
{
	char config[PATH_MAX], text[PATH_MAX + 200];
	char *argv[] = { (char *)"redis-server", config, NULL };

	/* No disk; the stream is trimmed by the pool. */
	snprintf(text, sizeof(text), "bind 127.0.0.1\nport %u\nsave \"\"\nappendonly no\ndir %s\n", stage->port,
	    stage->folder);
	if (write_file(stage, "redis.conf", config, sizeof(config), text) != 0)
		return -1;
	return start_program(stage, "redis-server", argv, &stage->broker, log_path, size);
}

/* What a protocol's group says that its defaults do not. */
static const char *
protocol_settings(const char *protocol)
{
	return strcmp(protocol, "redis") == 0 ? "  redis = { maxlen = 100000; };\n" : "";
}

static int
start_daemon(struct stage *stage, const struct bench_options *options, char *log_path, size_t size)
{
	char config[PATH_MAX], text[2 * PATH_MAX];
	char *argv[] = { (char *)"tidegated", (char *)"-c", config, NULL };
	int len;

	len = snprintf(text, sizeof(text),
	    "socket = \"%s\";\nadmin = \"%s/admin.sock\";\n"
	    "limits = { lanes = 20000; lanes_per_client = 20000; };\n"
	    "pools = ( {\n  name = \"%s\"; protocol = \"%s\";\n"
	    "  brokers = ( { address = \"127.0.0.1:%u\"; } );\n%s} );\n",
	    stage->socket, stage->folder, options->pool, options->protocol, stage->port,
	    protocol_settings(options->protocol));
	if (len < 0 || (size_t)len >= sizeof(text))
		return -1;
	if (write_file(stage, "tidegated.conf", config, sizeof(config), text) != 0)
		return -1;
	return start_program(stage, "tidegated", argv, &stage->daemon, log_path, size);
}

static int
start_all(struct stage *stage, const struct bench_options *options)
{
	char log_path[PATH_MAX];
	const char *program;
	int failed;

	stage->port = free_port();
	if (stage->port == 0) {
		cli_error("--start: no free port on 127.0.0.1: %s", strerror(errno));
		return -1;
	}
	program = "tidegate-sink";
	if (strcmp(options->start, "sink") == 0)
		failed = start_sink(stage, options->protocol, log_path, sizeof(log_path));
#define BROKER(name, protocol, file)                                \
	else if (strcmp(options->start, #name) == 0)                \
	{                                                           \
		program = file;                                     \
		failed = start_##name(stage, log_path, sizeof(log_path)); \
	}
#include "tools/bench/brokers.def"
#undef BROKER
	else
		return -1;
	if (failed || await(stage, program, &stage->broker, log_path, broker_ready, options) != 0)
		return -1;
	if (start_daemon(stage, options, log_path, sizeof(log_path)) != 0)
		return -1;
	return await(stage, "tidegated", &stage->daemon, log_path, daemon_ready, options);
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
	if (stage->folder[0] == '\0')
		return;
	if (keep)
		cli_error("--keep: %s", stage->folder);
	else
		nftw(stage->folder, remove_one, 8, FTW_DEPTH | FTW_PHYS);
	stage->folder[0] = '\0';
}
