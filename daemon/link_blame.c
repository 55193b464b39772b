/*
 * Finding the message a broker closes over.
 *
 * Some brokers answer a message they do not want by saying why, without saying which they mean, and
 * closing the connection (FATAL_MESSAGE). Sent again with all the others, it would end every link
 * until its time is up. So:
 *
 *   several unanswered   the link is careful (L6): from its next connection on one message is
 *                        unanswered at a time, until as many were answered as were in doubt, and
 *                        one more for each lane
 *   one unanswered       it is the one: at the third time it is rejected in the broker's words
 *
 * Links that end in any other way, brokers that crash, vanish or stop among them, blame nobody.
 */
#include "link.h"

#include "broker.h"
#include "lane.h"
#include "pool.h"

#include <string.h>

#define BLAMES 3u /* a broker that closes over the same message so often means it */

void
link_set_window(struct link *link, uint64_t messages)
{
	const struct config_pool *config = link->broker->pool->config;

	if (messages == 0 || messages > config->window_messages)
		messages = config->window_messages;
	link->window_wide = (uint32_t)messages;
	link->window = link->careful > 0 ? 1 : link->window_wide;
	link->window_low = config->window_low < link->window / 2 ? config->window_low : link->window / 2;
}

void
link_answered_carefully(struct link *link)
{
	if (--link->careful == 0)
		link_set_window(link, link->window_wide);
}

struct inflight *
link_blame(struct link *link, uint32_t *code)
{
	struct inflight *entry;

	while (link->base != link->next && link->ring[link->base & link->ring_mask].lane == NULL)
		link->base++;
	if (link->outstanding == 0)
		return NULL;
	/* Lanes take turns: each has had one more before those in doubt have all had theirs. */
	if (link->careful < link->outstanding + link->bound_count)
		link->careful = link->outstanding + link->bound_count;
	entry = &link->ring[link->base & link->ring_mask];
	if (link->outstanding > 1 || entry->start >= out_written(&link->out) ||
	    lane_blame(entry->lane, entry->slot, link, link->base) < BLAMES)
		return NULL;
	*code = link->fatal_code > 0 && link->fatal_code <= UINT16_MAX ? link->fatal_code : REJECT_CLOSED;
	return entry;
}
