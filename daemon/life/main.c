/* tidegated: reads its configuration, opens its sockets, runs the loop. */
#include "build_config.h"

#include "daemon/admin/admin.h"
#include "daemon/front/client.h"
#include "daemon/life/config_load.h"
#include "daemon/config/config_node.h"
#include "handover.h"
#include "keeper.h"
#include "daemon/front/listener.h"
#include "daemon/base/log.h"
#include "loop.h"
#include "signals.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#define EXIT_CONFIG 2
#define DESCRIPTORS_MIN 16

static const char usage[] =
    "usage: tidegated -c FILE [--check] [--log-level LEVEL]\n"
    "       tidegated --version | --help\n"
    "\n"
    "Keeps warm connections to message brokers and publishes for the processes of this host.\n"
    "\n"
    "  -c, --config FILE      configuration, see tidegated.conf(5)\n"
    "      --check            read and check the configuration, then exit\n"
    "      --log-level LEVEL  error, warn, info (default) or debug\n"
    "      --takeover FD      take over from the daemon at the other end of FD (used by upgrades)\n"
    "      --version          print the version\n"
    "  -h, --help             print this\n"
    "\n"
    "Exit status: 0 drained or checked, 1 stopped with messages left or failed, 2 wrong usage or\n"
    "configuration. SIGTERM, SIGINT and SIGQUIT drain and exit; a second one exits at once. SIGUSR2 upgrades:\n"
    "the binary that is installed now is started and takes everything over.\n";

struct options {
	const char *file;
	int check;
	int takeover; /* from a daemon that upgrades to us: its socket; -1: none */
};

/* Returns -1 to go on, else the exit status. */
static int
parse_options(int argc, char **argv, struct options *options)
{
	enum { OPT_CHECK = 256, OPT_VERSION, OPT_LEVEL, OPT_TAKEOVER };
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check", no_argument, NULL, OPT_CHECK },
		{ "log-level", required_argument, NULL, OPT_LEVEL },
		{ "takeover", required_argument, NULL, OPT_TAKEOVER },
		{ "version", no_argument, NULL, OPT_VERSION },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	enum log_level level;
	int c;

	while ((c = getopt_long(argc, argv, "c:h", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			options->file = optarg;
			break;
		case OPT_CHECK:
			options->check = 1;
			break;
		case OPT_LEVEL:
			if (log_level_parse(optarg, &level) != 0) {
				fprintf(stderr,
				    "tidegated: --log-level \"%s\" is not allowed: error, warn, info or debug\n",
				    optarg);
				return EXIT_CONFIG;
			}
			log_set_level(level);
			break;
		case OPT_TAKEOVER:
			options->takeover = atoi(optarg);
			break;
		case OPT_VERSION:
			printf("tidegated %s\n", PACKAGE_VERSION);
			return 0;
		case 'h':
			fputs(usage, stdout);
			return 0;
		default:
			fputs(usage, stderr);
			return EXIT_CONFIG;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "tidegated: unexpected argument \"%s\"\n%s", argv[optind], usage);
		return EXIT_CONFIG;
	}
	if (options->file == NULL) {
		fprintf(stderr, "tidegated: -c FILE is missing\n%s", usage);
		return EXIT_CONFIG;
	}
	return -1;
}

/* Who was started without them would have a socket take their place, and write its log into it. */
static int
have_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	return fd < 0 ? -1 : close(fd);
}

/* To the most that we may have without asking. */
static void
raise_limit(__rlimit_resource_t which)
{
	struct rlimit limit;

	if (getrlimit(which, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(which, &limit);
}

/* libuv aborts without the few it needs to begin. */
static int
enough_descriptors(void)
{
	int fds[DESCRIPTORS_MIN], count = 0;
	struct rlimit limit = { .rlim_cur = 0 };

	while (count < DESCRIPTORS_MIN && (fds[count] = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0)
		count++;
	for (int i = 0; i < count; i++)
		close(fds[i]);
	if (count == DESCRIPTORS_MIN)
		return 1;
	getrlimit(RLIMIT_NOFILE, &limit);
	log_event(LOG_LEVEL_ERROR, "start_failed",
	    "cause=\"the start takes %d file descriptors, %d can be had: the limit (RLIMIT_NOFILE, LimitNOFILE=) is %llu\"",
	    DESCRIPTORS_MIN, count, (unsigned long long)limit.rlim_cur);
	return 0;
}

static void
tell_manager(const char *state)
{
#ifdef HAVE_SYSTEMD
	sd_notify(0, state);
#endif
}

static void
on_client(void *owner, int fd)
{
	struct loop *loop = owner;
	struct control *control = &loop->front.control;
	uint64_t began = control_begin(control);

	client_new(&loop->front, &loop->uv, fd);
	control_end(control, began);
}

static int
may_accept(void *owner)
{
	struct loop *loop = owner;

	if (control_may(&loop->front.control))
		return 1;
	shard_refresh_clock(&loop->shard);
	control_hold_listener(&loop->front.control);
	return 0;
}

static void
on_client_turned_away(void *owner, int fd)
{
	struct loop *loop = owner;

	client_turn_away(&loop->front, fd);
}

static void
on_admin_turned_away(void *owner, int fd)
{
	admin_turn_away(owner, fd);
}

static void
on_admin(void *owner, int fd)
{
	admin_accept(owner, fd);
}

/* The path of our own file, which a new version replaces. */
static const char *
own_program(void)
{
	static char path[4096];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);

	path[n < 0 ? 0 : n] = '\0';
	return path;
}

/* The listening socket for a path: of the daemon before us, of the service manager, or none (-1). */
static int
listening(struct handover_taken *taken, const char *path, struct keeper *keeper, int control, int *owns_path)
{
	if (taken != NULL)
		return handover_listener(taken, path, owns_path);
	return control ? keeper_inherit(keeper) : -1;
}

static int
run(const struct config *config, const struct options *options)
{
	static struct loop loop;
	struct admin admin = { .started = 0 };
	struct listener control = { .fd = -1, .spare = -1 }, admins = { .fd = -1, .spare = -1 };
	static struct handover handover = { .fd = -1 };
	struct handover_start start = { own_program(), options->file, log_level_word(log_get_level()) };
	struct handover_taken *taken = NULL;
	struct keeper *keeper = NULL;
	static struct signals signals;
	int owns_control = 0, owns_admin = 0; /* paths of the daemon before us */
	int rc = loop_init(&loop, config);

	if (rc != 0) {
		log_event(LOG_LEVEL_ERROR, "start_failed", "cause=\"%s\"", error_text(rc));
		goto out;
	}
	signals_init(&signals, &loop);
	rc = keeper_new(&keeper, &loop.shard);
	if (rc != 0)
		goto out;
	rc = admin_init(&admin, &loop.front, &loop.uv);
	if (rc != 0)
		goto out;
	if (options->takeover >= 0) {
		loop_warm(&loop, HANDOVER_WARM_MS);
		rc = handover_receive(options->takeover, &taken);
	}
	if (rc != 0)
		goto no_takeover;
	rc = listener_init(&control, &loop.uv, config->socket, SOCK_SEQPACKET, (mode_t)config->socket_mode,
	    NULL, listening(taken, config->socket, keeper, 1, &owns_control), on_client, &loop);
	if (rc != 0)
		goto out;
	rc = listener_init(&admins, &loop.uv, config->admin, SOCK_STREAM, 0660, "tidegate",
	    listening(taken, config->admin, NULL, 0, &owns_admin), on_admin, &admin);
	if (rc != 0)
		goto out;
	control.may_accept = may_accept;
	control.turned_away = on_client_turned_away;
	admins.turned_away = on_admin_turned_away;
	loop.front.control.listener = &control;
	loop.front.control.accept = listener_resume;
	rc = handover_init(&handover, &loop, &control, &admins, &start);
	if (rc != 0)
		goto out;
	/* Until here nothing was touched that the daemon before us uses; from here on it is ours. */
	if (options->takeover >= 0 && (rc = handover_take(options->takeover)) != 0)
		goto no_takeover;
	if (owns_control)
		listener_own_path(&control);
	if (owns_admin)
		listener_own_path(&admins);
	admin.handover = &handover;
	signals.handover = &handover;
	if (taken != NULL)
		handover_adopt(taken, &loop);
	taken = NULL;
	keeper_restore(keeper);
	log_event(LOG_LEVEL_INFO, "started", "version=%s pid=%d socket=%s admin=%s pools=%u expedited=%s",
	    PACKAGE_VERSION, (int)getpid(), config->socket, config->admin, config->pool_count,
	    loop.shard.expedited ? "yes" : "no");
	tell_manager("READY=1");
	rc = loop_run(&loop);
	tell_manager("STOPPING=1");
	goto out;
no_takeover:
	log_event(LOG_LEVEL_ERROR, "start_failed", "cause=\"taking over: %s\"", error_text(rc));
out:
	handover_free(taken);
	loop.front.control.listener = NULL;
	handover_fini(&handover);
	listener_fini(&control);
	listener_fini(&admins);
	admin_fini(&admin);
	/* What producers publish until the next daemon comes is in their lanes' memory alone: it stays kept. */
	loop.shard.store = NULL;
	loop_fini(&loop);
	keeper_free(keeper);
	log_event(LOG_LEVEL_INFO, "stopped", "status=%d", rc != 0);
	return rc != 0;
}

int
main(int argc, char **argv)
{
	struct options options = { .file = NULL, .takeover = -1 };
	struct config *config = NULL;

	signals_ignore();
	if (have_standard_descriptors() != 0)
		return 1; /* and nowhere to say why */
	int rc = parse_options(argc, argv, &options);
	if (rc >= 0)
		return rc;
	struct config_report report = { .file = options.file };
	rc = config_load(&config, options.file, &report);
	if (rc != 0)
		return EXIT_CONFIG;
	if (options.check) {
		printf("%s: good: %u pools\n", options.file, config->pool_count);
		config_free(config);
		return 0;
	}
	raise_limit(RLIMIT_NOFILE); /* each client costs two descriptors, each lane two */
	raise_limit(RLIMIT_FSIZE);  /* which holds for lanes' memory too */
	rc = enough_descriptors() ? run(config, &options) : 1;
	config_free(config);
	return rc;
}
