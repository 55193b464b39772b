#include "tools/bench/group.h"

#include "tools/bench/client.h"
#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define READY_TIMEOUT_MS 30000

struct pipes {
	int ready[2], release[2], alive[2];
};

static void
fail_slot(struct group_slot *slot)
{
	snprintf(slot->error, sizeof(slot->error), "%s", client_error[0] != '\0' ? client_error : "failed");
}

/* A child: never returns. */
static _Noreturn void
child_main(struct group_slot *slot, const struct group_job *job, const void *context, const struct pipes *p,
    pid_t parent)
{
	void *object;
	char byte = 'r';

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1); /* it died before the line above */
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGHUP, SIG_DFL);
	close(p->ready[0]);
	close(p->release[1]);
	close(p->alive[0]);
	object = job->prepare(context);
	if (object == NULL)
		fail_slot(slot);
	else
		slot->ready = 1;
	if (write(p->ready[1], &byte, 1) != 1 || object == NULL)
		_exit(1);
	close(p->ready[1]);
	while (read(p->release[0], &byte, 1) < 0 && errno == EINTR)
		continue;
	slot->start_ns = clock_now_ns();
	slot->cpu_ns = clock_own_cpu_ns();
	if (job->work(object, context, slot) != 0)
		fail_slot(slot);
	slot->cpu_ns = clock_own_cpu_ns() - slot->cpu_ns;
	if (slot->end_ns == 0)
		slot->end_ns = clock_now_ns();
	slot->done = slot->error[0] == '\0';
	if (job->finish != NULL)
		job->finish(object, context);
	_exit(slot->done ? 0 : 1);
}

static void
close_pair(int pair[2])
{
	if (pair[0] >= 0)
		close(pair[0]);
	if (pair[1] >= 0)
		close(pair[1]);
}

static int
open_pipes(struct pipes *p)
{
	*p = (struct pipes){ { -1, -1 }, { -1, -1 }, { -1, -1 } };
	if (pipe2(p->ready, O_CLOEXEC) == 0 && pipe2(p->release, O_CLOEXEC) == 0 &&
	    pipe2(p->alive, O_CLOEXEC) == 0)
		return 0;
	cli_error("pipe: %s", strerror(errno));
	close_pair(p->ready);
	close_pair(p->release);
	close_pair(p->alive);
	return -1;
}

/* Reads from fd until want bytes or the end of the file came. Returns bytes, or -1: stopped or late. */
static ssize_t
read_until(int fd, size_t want, int timeout_ms)
{
	uint64_t deadline = clock_now_ns() + (uint64_t)(timeout_ms < 0 ? 0 : timeout_ms) * CLOCK_NS_PER_MS;
	struct pollfd p = { .fd = fd, .events = POLLIN };
	char bytes[256];
	size_t got = 0;

	while (got < want && !bench_stop) {
		int n = poll(&p, 1, 100); /* bounded: a signal may come just before it */
		ssize_t count;

		if (n > 0) {
			count = read(fd, bytes, want - got < sizeof(bytes) ? want - got : sizeof(bytes));
			if (count == 0)
				return (ssize_t)got;
			if (count > 0)
				got += (size_t)count;
		} else if (timeout_ms >= 0 && clock_now_ns() > deadline) {
			return -1;
		}
	}
	return bench_stop ? -1 : (ssize_t)got;
}

/* Shows the first error that a child has left. Returns 0 if there is none. */
static int
show_error(const struct group *group)
{
	size_t i;

	for (i = 0; i < group->count; i++) {
		if (group->slots[i].error[0] == '\0')
			continue;
		cli_error("process %zu of %zu: %s", i + 1, group->count, group->slots[i].error);
		return 1;
	}
	return 0;
}

static int
all_ready(struct group *group)
{
	ssize_t got = read_until(group->ready_fd, group->count, READY_TIMEOUT_MS);
	size_t i, ready = 0;

	for (i = 0; i < group->count; i++)
		ready += group->slots[i].ready != 0;
	if (got == (ssize_t)group->count && ready == group->count)
		return 0;
	if (!show_error(group) && !bench_stop)
		cli_error("%zu of %zu processes were ready after %d ms", ready, group->count, READY_TIMEOUT_MS);
	return -1;
}

int
group_start(struct group *group, size_t count, const struct group_job *job, const void *context)
{
	pid_t parent = getpid();
	struct pipes p;
	void *memory;
	size_t i;

	*group = (struct group){ .ready_fd = -1, .release_fd = -1, .alive_fd = -1 };
	memory = mmap(
	    NULL, count * sizeof(*group->slots), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	group->pids = calloc(count, sizeof(*group->pids));
	if (memory == MAP_FAILED || group->pids == NULL) {
		cli_error("out of memory for %zu processes", count);
		if (memory != MAP_FAILED)
			munmap(memory, count * sizeof(*group->slots));
		free(group->pids);
		group->pids = NULL;
		return -1;
	}
	group->slots = memory;
	group->count = count;
	if (open_pipes(&p) != 0) {
		group_fini(group);
		return -1;
	}
	fflush(NULL);
	for (i = 0; i < count; i++) {
		group->pids[i] = fork();
		if (group->pids[i] == 0)
			child_main(&group->slots[i], job, context, &p, parent);
		if (group->pids[i] < 0) {
			cli_error("fork: %s", strerror(errno));
			break;
		}
	}
	close(p.ready[1]);
	close(p.release[0]);
	close(p.alive[1]);
	group->ready_fd = p.ready[0];
	group->release_fd = p.release[1];
	group->alive_fd = p.alive[0];
	if (i < count || all_ready(group) != 0) {
		group_fini(group);
		return -1;
	}
	return 0;
}

int
group_run(struct group *group)
{
	size_t i;

	close(group->release_fd);
	group->release_fd = -1;
	if (read_until(group->alive_fd, 1, -1) < 0)
		return -1;
	if (show_error(group))
		return -1;
	for (i = 0; i < group->count; i++) {
		if (!group->slots[i].done) {
			cli_error("process %zu of %zu ended early", i + 1, group->count);
			return -1;
		}
	}
	return 0;
}

void
group_fini(struct group *group)
{
	size_t i;

	for (i = 0; group->pids != NULL && i < group->count; i++)
		if (group->pids[i] > 0)
			kill(group->pids[i], SIGKILL); /* not yet waited for, so the number is still its own */
	for (i = 0; group->pids != NULL && i < group->count; i++)
		if (group->pids[i] > 0)
			while (waitpid(group->pids[i], NULL, 0) < 0 && errno == EINTR)
				continue;
	if (group->slots != NULL) {
		munmap(group->slots, group->count * sizeof(*group->slots));
		if (group->ready_fd >= 0)
			close(group->ready_fd);
		if (group->release_fd >= 0)
			close(group->release_fd);
		if (group->alive_fd >= 0)
			close(group->alive_fd);
	}
	free(group->pids);
	*group = (struct group){ .ready_fd = -1, .release_fd = -1, .alive_fd = -1 };
}
