/* Questions about the links of one broker, and about all brokers of a pool. */
#include "broker.h"

int
broker_is_ready(const struct broker *broker)
{
	for (uint32_t i = 0; i < broker->link_count; i++)
		if (link_is_ready(&broker->links[i]))
			return 1;
	return 0;
}

struct link *
broker_pick_link(const struct broker *broker)
{
	struct link *best = NULL;

	for (uint32_t i = 0; i < broker->link_count; i++) {
		struct link *link = &broker->links[i];
		if (link_is_writable(link) && (best == NULL || link->outstanding_bytes + link->bound_count <
								   best->outstanding_bytes + best->bound_count))
			best = link;
	}
	return best;
}

int
peers_are_usable(const struct peers *peers)
{
	for (uint32_t i = 0; i < peers->count; i++)
		if (broker_is_ready(&peers->list[i]))
			return 1;
	return 0;
}

int
peers_have_other(const struct broker *broker)
{
	const struct peers *peers = broker->peers;

	for (uint32_t i = 0; i < peers->count; i++)
		if (&peers->list[i] != broker && broker_is_ready(&peers->list[i]))
			return 1;
	return 0;
}

int
peers_have_room_beside(const struct broker *broker)
{
	const struct peers *peers = broker->peers;

	for (uint32_t i = 0; i < peers->count; i++)
		if (&peers->list[i] != broker && broker_pick_link(&peers->list[i]) != NULL)
			return 1;
	return 0;
}
