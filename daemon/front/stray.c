#include "stray.h"

#include "daemon/lane/account.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

#define THREADS 4u
#define STACK (64u << 10)
#define LINGER_NS 50000000

struct stray {
	TAILQ_ENTRY(stray) entry;
	struct account *account; /* the loop's; NULL: it is gone */
	int fd;
};

TAILQ_HEAD(stray_list, stray);

/* A stray is on one of the lists. */
static struct {
	pthread_mutex_t lock;
	struct stray_list waiting, closing, closed;
	unsigned threads;
} strays = {
	.lock = PTHREAD_MUTEX_INITIALIZER,
	.waiting = TAILQ_HEAD_INITIALIZER(strays.waiting),
	.closing = TAILQ_HEAD_INITIALIZER(strays.closing),
	.closed = TAILQ_HEAD_INITIALIZER(strays.closed),
};

static struct stray *
take(void)
{
	pthread_mutex_lock(&strays.lock);
	struct stray *stray = TAILQ_FIRST(&strays.waiting);
	if (stray != NULL) {
		TAILQ_REMOVE(&strays.waiting, stray, entry);
		TAILQ_INSERT_TAIL(&strays.closing, stray, entry);
	} else {
		strays.threads--;
	}
	pthread_mutex_unlock(&strays.lock);
	return stray;
}

static void
on_signal(int signum)
{
	/* It has interrupted the wait. */
	(void)signum;
}

/* A timer that interrupts this thread alone. Without one, sockets linger as long as they like. */
static int
make_timer(timer_t *timer)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN };
	struct sigaction action = { .sa_handler = on_signal };
	sigset_t signals;

	event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
	sigaction(SIGRTMIN, &action, NULL);
	sigemptyset(&signals);
	sigaddset(&signals, SIGRTMIN);
	pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
	return timer_create(CLOCK_MONOTONIC, &event, timer) == 0;
}

static void *
close_all(void *arg)
{
	static const struct itimerspec often = { { 0, LINGER_NS }, { 0, LINGER_NS } }, never;
	struct stray *stray;
	timer_t timer;
	int timed = make_timer(&timer);

	(void)arg;
	while ((stray = take()) != NULL) {
		if (timed)
			timer_settime(timer, 0, &often, NULL);
		close(stray->fd); /* Linux has let go of it whatever this returns */
		if (timed)
			timer_settime(timer, 0, &never, NULL);
		pthread_mutex_lock(&strays.lock);
		TAILQ_REMOVE(&strays.closing, stray, entry);
		TAILQ_INSERT_TAIL(&strays.closed, stray, entry);
		pthread_mutex_unlock(&strays.lock);
	}
	if (timed)
		timer_delete(timer);
	return NULL;
}

/* Signals are the loop's. Returns whether there is a thread. */
static int
start_thread(void)
{
	pthread_attr_t attr;
	pthread_t thread;
	sigset_t all, before;

	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int rc = pthread_create(&thread, &attr, close_all, NULL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	return rc == 0;
}

/* One more, if there is work for it. */
static void
add_thread(void)
{
	pthread_mutex_lock(&strays.lock);
	int wanted = !TAILQ_EMPTY(&strays.waiting) && strays.threads < THREADS;
	strays.threads += (unsigned)wanted;
	pthread_mutex_unlock(&strays.lock);
	if (wanted && !start_thread()) {
		pthread_mutex_lock(&strays.lock);
		strays.threads--; /* stray_reap tries again */
		pthread_mutex_unlock(&strays.lock);
	}
}

void
stray_close(int fd, struct account *account)
{
	struct stray *stray = malloc(sizeof(*stray));

	account_charge(account, ACCOUNT_DESCRIPTORS, 1);
	if (stray == NULL)
		return; /* better open, and charged, than held up */
	*stray = (struct stray){ .fd = fd, .account = account_share(account) };
	pthread_mutex_lock(&strays.lock);
	TAILQ_INSERT_TAIL(&strays.waiting, stray, entry);
	pthread_mutex_unlock(&strays.lock);
	add_thread();
}

static void
refund(struct stray *stray)
{
	if (stray->account != NULL) {
		account_refund(stray->account, ACCOUNT_DESCRIPTORS, 1);
		account_drop(stray->account);
	}
	stray->account = NULL;
}

void
stray_reap(void)
{
	struct stray_list closed = TAILQ_HEAD_INITIALIZER(closed);
	struct stray *stray;

	pthread_mutex_lock(&strays.lock);
	TAILQ_CONCAT(&closed, &strays.closed, entry);
	pthread_mutex_unlock(&strays.lock);
	while ((stray = TAILQ_FIRST(&closed)) != NULL) {
		TAILQ_REMOVE(&closed, stray, entry);
		refund(stray);
		free(stray);
	}
	add_thread();
}

void
stray_leave(const struct accounts *accounts)
{
	struct stray_list *const lists[] = { &strays.waiting, &strays.closing, &strays.closed };
	struct stray *stray;

	pthread_mutex_lock(&strays.lock);
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		TAILQ_FOREACH (stray, lists[i], entry)
			if (stray->account != NULL && stray->account->accounts == accounts)
				refund(stray);
	pthread_mutex_unlock(&strays.lock);
	stray_reap();
}
