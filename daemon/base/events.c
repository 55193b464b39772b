#include "events.h"

#include "shm/error.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static void
on_line(struct log_tap *tap, enum log_level level, const char *line, size_t len)
{
	struct events *events = (struct events *)(void *)((char *)tap - offsetof(struct events, tap));
	char *copy = malloc(len + 1);

	if (copy != NULL) {
		memcpy(copy, line, len);
		copy[len] = '\0';
	}
	pthread_mutex_lock(&events->lock);
	struct event *event = &events->kept[events->next % EVENTS_KEPT];
	free(event->line);
	*event = (struct event){ .seq = events->next++, .level = level, .line = copy };
	pthread_mutex_unlock(&events->lock);
	if (events->came != NULL)
		events->came(events);
}

void
events_init(struct events *events, void (*came)(struct events *events))
{
	memset(events, 0, sizeof(*events));
	pthread_mutex_init(&events->lock, NULL);
	events->next = 1;
	events->came = came;
	events->tap.line = on_line;
	log_set_tap(&events->tap);
}

void
events_fini(struct events *events)
{
	if (events->tap.line == NULL)
		return;
	log_set_tap(NULL);
	for (unsigned i = 0; i < EVENTS_KEPT; i++)
		free(events->kept[i].line);
	pthread_mutex_destroy(&events->lock);
	memset(events, 0, sizeof(*events));
}

uint64_t
events_next(struct events *events)
{
	pthread_mutex_lock(&events->lock);
	uint64_t next = events->next;
	pthread_mutex_unlock(&events->lock);
	return next;
}

uint64_t
events_first(struct events *events)
{
	uint64_t next = events_next(events);

	return next > EVENTS_KEPT ? next - EVENTS_KEPT : 1;
}

int
events_get(struct events *events, uint64_t seq, enum log_level *level, char *line)
{
	int rc = -TG_ENOTFOUND;

	pthread_mutex_lock(&events->lock);
	const struct event *event = &events->kept[seq % EVENTS_KEPT];
	if (event->seq == seq && event->line != NULL) {
		memcpy(line, event->line, strlen(event->line) + 1);
		*level = event->level;
		rc = 0;
	}
	pthread_mutex_unlock(&events->lock);
	return rc;
}
