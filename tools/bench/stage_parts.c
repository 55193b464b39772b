/* The parts of starting a broker: ports, files, programs. */
#include "build_config.h"

#include "tools/bench/process.h"
#include "tools/bench/stage_internal.h"
#include "tools/common/cli.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static struct sockaddr_in
loopback(uint16_t port)
{
	return (struct sockaddr_in){
		.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)
	};
}

uint16_t
stage_free_port(void)
{
	struct sockaddr_in address = loopback(0);
	socklen_t len = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	uint16_t port = 0;

	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, len) == 0 &&
	    getsockname(fd, (struct sockaddr *)&address, &len) == 0)
		port = ntohs(address.sin_port);
	else
		cli_error("--start: no free port on 127.0.0.1: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	return port;
}

int
stage_connect(uint16_t port)
{
	struct sockaddr_in address = loopback(port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
		close(fd);
		return -1;
	}
	return fd;
}

int
stage_path(const struct stage *stage, const char *name, char path[PATH_MAX])
{
	if (snprintf(path, PATH_MAX, "%s/%s", stage->folder, name) < PATH_MAX)
		return 0;
	cli_error("--start: %s: the path is too long", stage->folder);
	return -1;
}

int
stage_write(const struct stage *stage, const char *name, char path[PATH_MAX], const char *text)
{
	FILE *file;
	int failed;

	if (stage_path(stage, name, path) != 0)
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

/* Opens a program's log. */
static int
open_log(struct stage *stage, const char *name)
{
	char file[64];
	int fd;

	snprintf(file, sizeof(file), "%s.log", name);
	if (stage_path(stage, file, stage->log) != 0)
		return -1;
	fd = open(stage->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (fd < 0)
		cli_error("--start: %s: %s", stage->log, strerror(errno));
	return fd;
}

int
stage_run(struct stage *stage, const char *program, char *const argv[], char *const environment[], pid_t *pid)
{
	const char *name = strrchr(program, '/') != NULL ? strrchr(program, '/') + 1 : program;
	char path[PATH_MAX];
	int log_fd;

	if (name != program)
		snprintf(path, sizeof(path), "%s", program);
	if (name != program ? access(path, X_OK) != 0 : process_find(program, path, sizeof(path)) != 0) {
		cli_error(name != program ? "--start: %s is not installed"
					  : "--start: %s is neither beside this program nor in PATH",
		    program);
		return -1;
	}
	log_fd = open_log(stage, name);
	if (log_fd < 0)
		return -1;
	*pid = process_start(path, argv, environment, log_fd);
	close(log_fd);
	if (*pid < 0) {
		*pid = 0;
		cli_error("--start: %s: %s", path, strerror(errno));
		return -1;
	}
	return 0;
}
