#include "build_config.h"

#include "tools/bench/process.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

uint64_t
process_cpu_ns(pid_t pid)
{
	clockid_t id;

	/* The scheduler's own sum, in ns; /proc/PID/stat has it in ticks of 10 ms only. */
	if (pid <= 0 || clock_getcpuclockid(pid, &id) != 0)
		return 0;
	return clock_read_ns(id);
}

uint64_t
process_private_bytes(pid_t pid)
{
	char path[64], line[256];
	unsigned long long kib = 0, sum = 0;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%ld/smaps_rollup", (long)pid);
	file = fopen(path, "re");
	if (file == NULL)
		return 0;
	while (fgets(line, sizeof(line), file) != NULL)
		if (sscanf(line, "Private_Dirty: %llu kB", &kib) == 1 ||
		    sscanf(line, "Private_Clean: %llu kB", &kib) == 1)
			sum += kib;
	fclose(file);
	return (uint64_t)sum << 10;
}

pid_t
process_of_socket(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	struct ucred peer = { 0 };
	socklen_t len = sizeof(peer);
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return 0;
	memcpy(address.sun_path, path, strlen(path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return 0;
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) != 0)
		peer.pid = 0;
	close(fd);
	return peer.pid;
}

/* The folders of programs, relative to the running one: installed, or in the build tree. */
static const char *const places[] = { ".", "../sbin", "../libexec/tidegate", "../pub", "../sink", "../bench",
	"../ctl", "../../daemon", "..", "../daemon" };

static int
find_in(const char *folder, const char *program, char *path, size_t size)
{
	/* In the build tree libtool keeps programs in .libs, and starts them with a script that is not to be
	 * timed. */
	static const char *const parts[] = { ".libs/", "" };
	size_t i;

	for (i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		int len = snprintf(path, size, "%s/%s%s", folder, parts[i], program);

		if (len > 0 && (size_t)len < size && access(path, X_OK) == 0)
			return 0;
	}
	return -1;
}

static int
find_beside(const char *program, char *path, size_t size)
{
	char self[4096], folder[4200];
	ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;
	size_t i;

	if (len <= 0)
		return -1;
	self[len] = '\0';
	slash = strrchr(self, '/');
	if (slash == NULL)
		return -1;
	*slash = '\0';
	len = (ssize_t)strlen(self);
	if (len > 6 && strcmp(self + len - 6, "/.libs") == 0)
		self[len - 6] = '\0';
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		snprintf(folder, sizeof(folder), "%s/%s", self, places[i]);
		if (find_in(folder, program, path, size) == 0)
			return 0;
	}
	return -1;
}

int
process_find(const char *program, char *path, size_t size)
{
	const char *search = getenv("PATH");
	char folders[4096], *folder, *rest;

	if (find_beside(program, path, size) == 0 || find_in(PKGLIBEXECDIR, program, path, size) == 0)
		return 0;
	/* Brokers live in sbin, which a user's PATH may lack. */
	snprintf(folders, sizeof(folders), "%s:/usr/local/sbin:/usr/sbin:/sbin",
	    search != NULL ? search : "/usr/bin");
	for (folder = strtok_r(folders, ":", &rest); folder != NULL; folder = strtok_r(NULL, ":", &rest))
		if (find_in(folder, program, path, size) == 0)
			return 0;
	return -1;
}

static _Noreturn void
run(const char *path, char *const argv[], char *const environment[], int log_fd, pid_t parent)
{
	struct rlimit files;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	/* Its own session: Ctrl-C is for us, and we end it in order. If we cannot, it goes with us. */
	setsid();
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(127);
	if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	dup2(null, STDIN_FILENO);
	dup2(log_fd >= 0 ? log_fd : null, STDOUT_FILENO);
	dup2(log_fd >= 0 ? log_fd : null, STDERR_FILENO);
	for (; environment != NULL && *environment != NULL; environment++)
		putenv(*environment);
	execv(path, argv);
	_exit(127);
}

pid_t
process_start(const char *path, char *const argv[], char *const environment[], int log_fd)
{
	pid_t parent = getpid();
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		run(path, argv, environment, log_fd, parent);
	return pid;
}

int
process_has_ended(pid_t pid, int *status)
{
	return waitpid(pid, status, WNOHANG) == pid;
}

void
process_end(pid_t *pid, int timeout_ms)
{
	struct pollfd p = { .events = POLLIN };

	if (*pid <= 0)
		return;
	p.fd = (int)syscall(SYS_pidfd_open, *pid, 0);
	kill(*pid, SIGTERM);
	if (p.fd < 0 || poll(&p, 1, timeout_ms) <= 0)
		kill(*pid, SIGKILL);
	while (waitpid(*pid, NULL, 0) < 0 && errno == EINTR)
		continue;
	if (p.fd >= 0)
		close(p.fd);
	*pid = 0;
}
