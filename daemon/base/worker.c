#include "worker.h"

#include "log.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define STACK (256u << 10)

struct worker {
	struct world *world;
	uv_async_t wake;         /* a job is done, or is to be done on the loop */
	struct world_jobs given; /* the loop's: done() has not been called; in the order of doing */
	struct log_limit limit;

	int has_thread;
	pthread_t thread;
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t more;
	struct world_job *next; /* the first that is not done; NULL: all are */
	int quit;
};

/* ---- the thread ---- */

static void *
run(void *arg)
{
	struct worker *worker = arg;

	pthread_mutex_lock(&worker->lock);
	for (;;) {
		struct world_job *job = worker->next;
		if (job == NULL) {
			if (worker->quit)
				break;
			pthread_cond_wait(&worker->more, &worker->lock);
			continue;
		}
		pthread_mutex_unlock(&worker->lock);
		job->run(job);
		pthread_mutex_lock(&worker->lock);
		worker->next = STAILQ_NEXT(job, entry);
		uv_async_send(&worker->wake);
	}
	pthread_mutex_unlock(&worker->lock);
	return NULL;
}

/* Signals are the loop's. */
static int
start_thread(struct worker *worker)
{
	pthread_attr_t attr;
	sigset_t all, before;

	if (worker->has_thread)
		return 1;
	sigfillset(&all);
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int error = pthread_create(&worker->thread, &attr, run, worker);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	worker->has_thread = error == 0;
	if (error != 0)
		log_limited(&worker->limit, LOG_LEVEL_WARN, "no_thread",
		    "cause=\"%s: memory of large lanes is made on the loop; see pids.max, TasksMax= and RLIMIT_NPROC\"",
		    strerror(error));
	return worker->has_thread;
}

/* ---- the loop's side ---- */

/* Takes the oldest job off if it is done, else returns NULL. Without a thread it is done here. */
static struct world_job *
take_done(struct worker *worker)
{
	struct world_job *job = STAILQ_FIRST(&worker->given);
	int done;

	if (job == NULL)
		return NULL;
	if (!worker->has_thread) {
		job->run(job);
		worker->next = STAILQ_NEXT(job, entry);
	}
	pthread_mutex_lock(&worker->lock);
	done = worker->next != job;
	if (done)
		STAILQ_REMOVE_HEAD(&worker->given, entry);
	pthread_mutex_unlock(&worker->lock);
	if (STAILQ_EMPTY(&worker->given))
		uv_unref((uv_handle_t *)&worker->wake);
	return done ? job : NULL;
}

static void
on_wake(uv_async_t *wake)
{
	struct worker *worker = wake->data;
	struct world_job *job;

	while ((job = take_done(worker)) != NULL) {
		world_event(worker->world);
		job->done(job);
		if (!worker->has_thread) {
			uv_async_send(wake); /* the next one when the loop comes round */
			return;
		}
	}
}

void
worker_give(struct worker *worker, struct world_job *job)
{
	int threaded = start_thread(worker);

	uv_ref((uv_handle_t *)&worker->wake); /* a loop that is to end by itself waits for what was given */
	pthread_mutex_lock(&worker->lock);
	STAILQ_INSERT_TAIL(&worker->given, job, entry);
	if (worker->next == NULL)
		worker->next = job;
	pthread_cond_signal(&worker->more);
	pthread_mutex_unlock(&worker->lock);
	if (!threaded)
		uv_async_send(&worker->wake);
}

int
worker_is_busy(const struct worker *worker)
{
	return !STAILQ_EMPTY(&worker->given);
}

struct worker *
worker_new(uv_loop_t *uv, struct world *world)
{
	struct worker *worker = calloc(1, sizeof(*worker));

	if (worker == NULL)
		return NULL;
	worker->world = world;
	STAILQ_INIT(&worker->given);
	pthread_mutex_init(&worker->lock, NULL);
	pthread_cond_init(&worker->more, NULL);
	if (uv_async_init(uv, &worker->wake, on_wake) != 0) {
		free(worker);
		return NULL;
	}
	worker->wake.data = worker;
	uv_unref((uv_handle_t *)&worker->wake);
	start_thread(worker);
	return worker;
}

static void
on_closed(uv_handle_t *handle)
{
	free(handle->data);
}

void
worker_free(struct worker *worker)
{
	if (worker == NULL)
		return;
	if (worker->has_thread) {
		pthread_mutex_lock(&worker->lock);
		worker->quit = 1;
		pthread_cond_signal(&worker->more);
		pthread_mutex_unlock(&worker->lock);
		pthread_join(worker->thread, NULL);
	}
	pthread_cond_destroy(&worker->more);
	pthread_mutex_destroy(&worker->lock);
	uv_close((uv_handle_t *)&worker->wake, on_closed);
}
