/* tidegated: reads its configuration, opens its sockets, runs the loop. */
#include "build_config.h"

#include "admin.h"
#include "client.h"
#include "config.h"
#include "config_node.h"
#include "listener.h"
#include "log.h"
#include "loop.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
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

static const char usage[] =
    "usage: tidegated -c FILE [--check] [--log-level LEVEL]\n"
    "       tidegated --version | --help\n"
    "\n"
    "Keeps warm connections to message brokers and publishes for the processes of this host.\n"
    "\n"
    "  -c, --config FILE      configuration, see tidegated.conf(5)\n"
    "      --check            read and check the configuration, then exit\n"
    "      --log-level LEVEL  error, warn, info (default) or debug\n"
    "      --version          print the version\n"
    "  -h, --help             print this\n"
    "\n"
    "Exit status: 0 drained or checked, 1 stopped with messages left or failed, 2 wrong usage or\n"
    "configuration. SIGTERM and SIGINT drain and exit; a second one exits at once.\n";

struct options {
	const char *file;
	int check;
};

/* Returns -1 to go on, else the exit status. */
static int
parse_options(int argc, char **argv, struct options *options)
{
	enum { OPT_CHECK = 256, OPT_VERSION, OPT_LEVEL };
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' },
		{ "check", no_argument, NULL, OPT_CHECK },
		{ "log-level", required_argument, NULL, OPT_LEVEL },
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
				fprintf(stderr, "tidegated: --log-level \"%s\" is not allowed: error, warn, info or debug\n", optarg);
				return EXIT_CONFIG;
			}
			log_set_level(level);
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

/* Each client costs two descriptors, each lane one. */
static void
raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
}

/* The control socket the service manager listens on for us, or -1. */
static int
inherited_socket(void)
{
#ifdef HAVE_SYSTEMD
	if (sd_listen_fds(1) >= 1 && sd_is_socket_unix(SD_LISTEN_FDS_START, SOCK_SEQPACKET, 1, NULL, 0) > 0)
		return SD_LISTEN_FDS_START;
#endif
	return -1;
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

	client_new(&loop->shard, &loop->uv, fd);
}

static void
on_admin(void *owner, int fd)
{
	admin_accept(owner, fd);
}

static int
run(const struct config *config)
{
	static struct loop loop;
	struct admin admin = { .started = 0 };
	struct listener control = { .fd = -1 }, admins = { .fd = -1 };
	int rc = loop_init(&loop, config);

	if (rc != 0) {
		log_event(LOG_LEVEL_ERROR, "start_failed", "cause=\"%s\"", error_text(rc));
		goto out;
	}
	rc = admin_init(&admin, &loop.shard, &loop.uv);
	if (rc != 0)
		goto out;
	rc = listener_init(&control, &loop.uv, config->socket, SOCK_SEQPACKET, (mode_t)config->socket_mode, NULL,
	    inherited_socket(), on_client, &loop);
	if (rc != 0)
		goto out;
	rc = listener_init(&admins, &loop.uv, config->admin, SOCK_STREAM, 0660, "tidegate", -1, on_admin, &admin);
	if (rc != 0)
		goto out;
	log_event(LOG_LEVEL_INFO, "started", "version=%s pid=%d socket=%s admin=%s pools=%u expedited=%s",
	    PACKAGE_VERSION, (int)getpid(), config->socket, config->admin, config->pool_count,
	    loop.shard.expedited ? "yes" : "no");
	tell_manager("READY=1");
	rc = loop_run(&loop);
	tell_manager("STOPPING=1");
out:
	listener_fini(&control);
	listener_fini(&admins);
	admin_fini(&admin);
	loop_fini(&loop);
	log_event(LOG_LEVEL_INFO, "stopped", "status=%d", rc != 0);
	return rc != 0;
}

int
main(int argc, char **argv)
{
	struct options options = { .file = NULL };
	struct config *config = NULL;
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
	signal(SIGPIPE, SIG_IGN);
	raise_descriptor_limit();
	rc = run(config);
	config_free(config);
	return rc;
}
