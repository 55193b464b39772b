#include "timer.h"

#include "shm/error.h"

#include <stdlib.h>

int
timers_reserve(struct timers *timers)
{
	if (timers->reserved == timers->capacity) {
		uint32_t capacity = timers->capacity == 0 ? 64 : timers->capacity * 2;
		struct timer **heap = realloc(timers->heap, (capacity + 1) * sizeof(*heap));
		if (heap == NULL)
			return -TG_ENOMEM;
		timers->heap = heap;
		timers->capacity = capacity;
	}
	timers->reserved++;
	return 0;
}

void
timers_unreserve(struct timers *timers)
{
	timers->reserved--;
}

void
timers_fini(struct timers *timers)
{
	free(timers->heap);
	*timers = (struct timers){ 0 };
}

static void
put(struct timers *timers, uint32_t place, struct timer *timer)
{
	timers->heap[place] = timer;
	timer->place = place;
}

static void
sift_up(struct timers *timers, uint32_t place, struct timer *timer)
{
	while (place > 1 && timers->heap[place / 2]->at_ns > timer->at_ns) {
		put(timers, place, timers->heap[place / 2]);
		place /= 2;
	}
	put(timers, place, timer);
}

static void
sift_down(struct timers *timers, uint32_t place, struct timer *timer)
{
	for (;;) {
		uint32_t child = place * 2;
		if (child > timers->count)
			break;
		if (child < timers->count && timers->heap[child + 1]->at_ns < timers->heap[child]->at_ns)
			child++;
		if (timers->heap[child]->at_ns >= timer->at_ns)
			break;
		put(timers, place, timers->heap[child]);
		place = child;
	}
	put(timers, place, timer);
}

void
timer_set(struct timers *timers, struct timer *timer, uint64_t at_ns)
{
	uint64_t before = timer->at_ns;

	timer->at_ns = at_ns;
	if (timer->place == 0)
		sift_up(timers, ++timers->count, timer);
	else if (at_ns < before)
		sift_up(timers, timer->place, timer);
	else
		sift_down(timers, timer->place, timer);
}

void
timer_set_earlier(struct timers *timers, struct timer *timer, uint64_t at_ns)
{
	if (timer->place == 0 || timer->at_ns > at_ns)
		timer_set(timers, timer, at_ns);
}

void
timer_stop(struct timers *timers, struct timer *timer)
{
	uint32_t place = timer->place;

	if (place == 0)
		return;
	timer->place = 0;
	struct timer *last = timers->heap[timers->count--];
	if (last == timer)
		return;
	/* The last one may belong above or below the hole. */
	if (place > 1 && timers->heap[place / 2]->at_ns > last->at_ns)
		sift_up(timers, place, last);
	else
		sift_down(timers, place, last);
}

uint64_t
timers_next(const struct timers *timers)
{
	return timers->count == 0 ? TIMER_NEVER : timers->heap[1]->at_ns;
}

void
timers_run(struct timers *timers, uint64_t now_ns)
{
	/* As many as are set now: one that sets itself again for now does not keep us here. */
	for (uint32_t budget = timers->count; budget > 0 && timers_next(timers) <= now_ns; budget--) {
		struct timer *timer = timers->heap[1];
		timer_stop(timers, timer);
		timer->fire(timer);
	}
}
