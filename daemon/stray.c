#include "stray.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define THREADS 4u
#define STACK (64u << 10)

struct stray {
	struct stray *next;
	int fd;
};

static struct {
	pthread_mutex_t lock;
	struct stray *first;
	unsigned threads;
} strays = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct stray *
take(void)
{
	pthread_mutex_lock(&strays.lock);
	struct stray *stray = strays.first;
	if (stray != NULL)
		strays.first = stray->next;
	else
		strays.threads--;
	pthread_mutex_unlock(&strays.lock);
	return stray;
}

static void *
close_all(void *arg)
{
	struct stray *stray;

	while ((stray = take()) != NULL) {
		close(stray->fd);
		free(stray);
	}
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

void
stray_close(int fd)
{
	struct stray *stray = malloc(sizeof(*stray));
	int wanted;

	if (stray == NULL)
		return; /* better open than held up */
	stray->fd = fd;
	pthread_mutex_lock(&strays.lock);
	stray->next = strays.first;
	strays.first = stray;
	wanted = strays.threads < THREADS;
	strays.threads += (unsigned)wanted;
	pthread_mutex_unlock(&strays.lock);
	if (wanted && !start_thread()) {
		pthread_mutex_lock(&strays.lock);
		strays.threads--;
		pthread_mutex_unlock(&strays.lock);
	}
}
