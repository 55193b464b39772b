/*
 * The promises, checked.
 *
 *  K1  every accepted record gets exactly one completion, with its tag
 *  K2  DELIVERED: a broker acknowledged it; SENT: a socket got it; REJECTED: a broker or the driver
 *      refused it, or brokers closed over this very record more than once; EXPIRED, CANCELLED: no byte of it was ever given to a socket (but for what the
 *      broker gave back), and its deadline had passed, its producer had asked; UNKNOWN: a socket got
 *      it, and on_failure is "report" or its deadline had passed
 *  K3  sq_head never passes an unfinished record, and never goes back
 *  K4  a record is given only to a link that is READY and writable, below its marks
 *  K5  order "lane" or "key": when a record is given to a link, each older one (of its key) is finished or in flight on
 *      that very link. So a move sends again in order, and nothing newer overtakes
 *  K6  bodies arrive as they were published (broker_sim.c)
 *  K7  sq_sent has passed a record before a byte of it is written (driver_sim.c)
 *  K8  unsent bytes <= high + one record; outstanding <= window; slots <= completion slots
 *  K9  no attempt comes sooner after a failure than half of its back-off step, unless another link
 *      of the broker has proved it well again; with an open breaker one link alone tries
 *  K10 the share cap: while the pool works no breaker opens beyond it
 *  K11 the pool's word follows its links: up at once, down within WORD_LATE, and the lanes' words
 *      follow the pool's
 *  K12 a link is left only for a reason: blocked, silent for the whole detection time, or nothing
 *      acknowledged for ack_timeout
 */
#include "sim.h"

#include <string.h>

#define PROBE_SLACK 4096u /* probes are written past the mark */
#define WORD_LATE (40 * NS_PER_MS)

static void
fail_entry(struct producer *p, const struct entry *e, const char *why)
{
	sim_fail(p->sim,
	    "lane %llu: record %llu: %s (outcome %u, given %u times, %u arrivals, acked %u, nacked %u, "
	    "published at %.3f s, deadline %.3f s)",
	    (unsigned long long)p->id, (unsigned long long)e->position, why, e->outcome, e->given, e->arrivals,
	    e->acked, e->nacked, (double)(e->published_ns - SIM_START_NS) / 1e9,
	    (double)(e->deadline_ns - SIM_START_NS) / 1e9);
}

/* K1, K2 */
static void
on_completion(struct producer *p, const struct completion *c)
{
	struct sim *sim = p->sim;
	struct entry *e = producer_entry(p, c->position);
	int late = sim->w.now_ns >= e->deadline_ns;

	if (e->outcome != 0)
		fail_entry(p, e, "a second completion");
	e->outcome = c->outcome;
	e->finished_ns = sim->w.now_ns;
	p->unfinished--;
	p->done.outcome[c->outcome & 7]++;
	if (c->tag != (c->position ^ p->id << 48))
		fail_entry(p, e, "not its tag");
	switch (c->outcome) {
	case TG_DELIVERED:
		if (!e->acked)
			fail_entry(p, e, "delivered, and no broker has acknowledged it");
		break;
	case TG_SENT:
		if (e->given == 0)
			fail_entry(p, e, "sent, and no socket got it");
		break;
	case TG_REJECTED:
		if (!e->nacked && !e->refused && e->closed_over < 2)
			fail_entry(p, e, "rejected, and neither a broker nor the driver has");
		if (!e->nacked && e->closed_over == 0 && e->given != 0)
			fail_entry(p, e, "rejected by the driver, and a socket got it before");
		break;
	case TG_EXPIRED:
		if (e->given != 0 || !late)
			fail_entry(p, e, e->given != 0 ? "expired, and a socket got it" : "expired too early");
		break;
	case TG_UNKNOWN:
		/* A framed record past its deadline may still be written, so it cannot complete as EXPIRED. */
		if (e->given == 0 && e->arrivals == 0 && (!late || (c->info & COMPLETION_ATTEMPTS) == 0))
			fail_entry(p, e, "unknown, and no socket got it");
		if (sim->pool_config.on_failure != ON_FAILURE_REPORT && !late && !e->refused)
			fail_entry(p, e, "unknown before its deadline");
		break;
	case TG_CANCELLED:
		if (e->given != 0 || !e->cancelled)
			fail_entry(p, e,
			    e->given != 0 ? "cancelled, and a socket got it"
					  : "its producer did not cancel it");
		break;
	default:
		fail_entry(p, e, "no such outcome");
	}
}

/* K1 to K3 of one lane. */
void
check_producer(struct producer *p)
{
	uint64_t tail = order_load_acquire_64(ORDER_D, &p->map.daemon->cq_tail);
	uint64_t head = order_load_acquire_64(ORDER_B, &p->map.daemon->sq_head);

	if (tail - p->audited > p->map.geo.cq_entries)
		sim_fail(p->sim, "lane %llu: cq_tail moved by %llu", (unsigned long long)p->id,
		    (unsigned long long)(tail - p->audited));
	for (; p->audited != tail; p->audited++)
		on_completion(p, &p->map.cq[p->audited & (p->map.geo.cq_entries - 1)]);
	if (head < p->head_checked)
		sim_fail(p->sim, "lane %llu: sq_head went back", (unsigned long long)p->id);
	for (; p->head_checked < head;) {
		const struct entry *e = producer_entry(p, p->head_checked);
		if (e->outcome == 0)
			fail_entry(p, e, "released and not finished");
		p->head_checked = e->position + e->size;
	}
	if (p->head_checked != head)
		sim_fail(p->sim, "lane %llu: sq_head %llu lies within a record", (unsigned long long)p->id,
		    (unsigned long long)head);
}

/* K4, K5 */
void
check_publish(struct sim *sim, struct link *link, const struct lane *lane, const struct message *message)
{
	uint64_t position = message->position;
	const struct entry *entry = producer_entry(sim_producer_of(sim, lane->id), position);
	uint64_t waited_ms = (link->shard->now_ns - entry->published_ns) / NS_PER_MS;

	if (message->expiry_ms != (entry->expiry_ms == 0 ? 0 : entry->expiry_ms - waited_ms))
		sim_fail(sim, "lane %llu: record %llu says %u ms to the broker, of %u ms and after %llu ms",
		    (unsigned long long)lane->id, (unsigned long long)position, message->expiry_ms,
		    entry->expiry_ms, (unsigned long long)waited_ms);
	if (!link_is_writable(link))
		sim_fail(sim, "link %u is given a record: %s, writable %d, blocked %d", link->id,
		    link_state_word(link->state), link->writable, link->conn.blocked);
	if (link_waited_for(link) >= link->window)
		sim_fail(sim, "link %u is given a record: %u outstanding, window %u", link->id,
		    link_waited_for(link), link->window);
	if (sim->pool_config.order == ORDER_BY_NONE)
		return;
	for (uint64_t n = lane->slot_head; n != lane->slot_tail; n++) {
		const struct slot *slot = lane_slot(lane, n);
		if (slot->position >= position)
			break;
		if (sim->pool_config.order == ORDER_BY_KEY &&
		    producer_entry(sim_producer_of(sim, lane->id), slot->position)->key != entry->key)
			continue;
		if (slot->state == SLOT_PENDING || (slot->state == SLOT_INFLIGHT && slot->link != link))
			sim_fail(sim, "lane %llu: record %llu overtakes record %llu, which is %s",
			    (unsigned long long)lane->id, (unsigned long long)position,
			    (unsigned long long)slot->position,
			    slot->state == SLOT_PENDING ? "pending" : "in flight on another link");
	}
}

static uint64_t
half_step_ns(const struct sim *sim, uint32_t failures)
{
	const struct config_breaker *breaker = &sim->pool_config.breaker;
	uint64_t ms = breaker->retry_ms, cap = breaker->retry_max_ms;

	if (cap > BROKER_LONELY_MAX_MS)
		cap = BROKER_LONELY_MAX_MS; /* the check does not know whether the pool was usable then */
	for (uint32_t i = 1; i < failures && ms < cap; i++)
		ms *= 2;
	return SIM_MS(ms < cap ? ms : cap) / 2;
}

/* K9: called when a link begins an attempt. */
void
check_on_resolve(void *watcher, void *owner)
{
	struct sim *sim = watcher;
	struct link *link = owner;
	struct broker *broker = link->broker;
	struct link_watch *watch = &sim->watch[link->id];
	uint64_t since = sim->w.now_ns - watch->failed_ns;

	watch->attempts++;
	if (broker->open && broker->prober != link)
		sim_fail(sim, "broker %u: link %u tries though its breaker is open and link %u probes",
		    broker_number(broker), link->id, broker->prober->id);
	if (watch->failed_ns != 0 && since < watch->wait_ns &&
	    sim->broker_ready_ns[broker_number(broker)] < watch->failed_ns)
		sim_fail(sim, "broker %u: link %u tries again %.3f ms after failure %u: at least %.3f",
		    broker_number(broker), link->id, (double)since / 1e6, broker->failures,
		    (double)watch->wait_ns / 1e6);
}

/* K12 */
static void
check_suspect(struct sim *sim, const struct link *link)
{
	const struct config_health *health = &sim->pool_config.health;
	uint64_t silent_ns = sim->w.now_ns - link->health.last_read_ns;
	uint64_t stuck_ns = sim->w.now_ns - link->health.last_progress_ns;

	sim->suspects++;
	/* A link whose broker unblocks at once is checked again all the same. */
	int blocked = strncmp(link->why, "the broker says", 15) == 0;
	int slow = strncmp(link->why, "slow:", 5) == 0 && link->outstanding > 0 &&
		   link->base < link->health.slow_mark &&
		   sim->w.now_ns - link->health.slow_ns >= SIM_MS(health->ack_timeout_ms) / 2;
	if (!blocked && !slow &&
	    silent_ns < SIM_MS(health->idle_ms + health->probe_misses * health->probe_timeout_ms) &&
	    (link->outstanding == 0 || stuck_ns < SIM_MS(health->ack_timeout_ms)))
		sim_fail(sim, "link %u is left after %.3f ms of silence and %.3f ms without progress: %s",
		    link->id, (double)silent_ns / 1e6, (double)stuck_ns / 1e6, link->why);
}

/* K8, K9 */
static void
check_link(struct sim *sim, struct link *link, uint32_t failed_now)
{
	const struct config_pool *config = &sim->pool_config;
	struct link_watch *watch = &sim->watch[link->id];

	if (out_unwritten(&link->out) > config->high_bytes + (LANE_SQ_DEFAULT / 2) + PROBE_SLACK)
		sim_fail(sim, "link %u: %llu bytes unsent, high is %llu", link->id,
		    (unsigned long long)out_unwritten(&link->out), (unsigned long long)config->high_bytes);
	if (link_waited_for(link) > config->window_messages)
		sim_fail(sim, "link %u: %u outstanding, window %u", link->id, link->outstanding,
		    config->window_messages);
	if (link->outstanding_bytes - link->late_bytes > config->window_bytes + LANE_SQ_DEFAULT / 2)
		sim_fail(sim, "link %u: %llu bytes outstanding", link->id,
		    (unsigned long long)link->outstanding_bytes);
	if (link->conn.ready_ns != 0 && link->conn.ready_ns > sim->broker_ready_ns[broker_number(link->broker)])
		sim->broker_ready_ns[broker_number(link->broker)] = link->conn.ready_ns;
	if (link->state == LINK_SUSPECT && !watch->suspect)
		check_suspect(sim, link);
	watch->suspect = link->state == LINK_SUSPECT;
	uint32_t counted = watch->counted;
	watch->counted = link->failed;
	if (link->count.failures == watch->failures)
		return;
	sim->failed += link->count.failures - watch->failures;
	watch->failures = link->count.failures;
	watch->failed_ns = sim->w.now_ns;
	/* It may have been the first of the links that failed in this step. */
	uint32_t before = failed_now > 0 ? failed_now - 1 : 0;
	/* A close over a message counts for nothing, and costs no wait (blame.h). */
	watch->wait_ns =
	    link->failed == counted || link->apart
		? 0
		: half_step_ns(sim, link->broker->failures > before ? link->broker->failures - before : 1);
}

static int
takes_records(const struct pool *pool)
{
	for (uint32_t b = 0; b < pool->peers.count; b++)
		for (uint32_t l = 0; l < pool->peers.list[b].link_count; l++)
			if (link_is_writable(&pool->peers.list[b].links[l]))
				return 1;
	return 0;
}

/* K11 */
static void
check_words(struct sim *sim)
{
	const struct pool *pool = sim->pool;

	/* A link that fills up in the turn in which it has emptied has taken records. */
	if (takes_records(pool) != pool->writable)
		sim_fail(sim, "%s takes records, and the pool thinks otherwise",
		    pool->writable ? "no link" : "a link");
	if (pool->writable && !pool->writable_shown)
		sim_fail(sim, "a link takes records, and the pool's word says no");
	if (!pool->writable && pool->writable_shown && sim->w.now_ns - pool->unwritable_ns > WORD_LATE)
		sim_fail(sim, "no link has taken records for %.3f ms, and the pool's word says yes",
		    (double)(sim->w.now_ns - pool->unwritable_ns) / 1e6);
	for (uint32_t i = sim->live_from; i < sim->producer_count; i++) {
		const struct producer *p = sim->producers[i];
		if (!p->closed && p->map.daemon->writable != (uint32_t)pool->writable_shown)
			sim_fail(sim, "lane %llu: its word says %u, the pool's %d", (unsigned long long)p->id,
			    p->map.daemon->writable, pool->writable_shown);
	}
}

/* K10 */
static void
check_breakers(struct sim *sim)
{
	const struct pool *pool = sim->pool;
	int usable = peers_are_usable(&pool->peers);
	uint32_t open = 0, opened = 0;

	for (uint32_t b = 0; b < pool->peers.count; b++) {
		const struct broker *broker = &pool->peers.list[b];
		open += (uint32_t)broker->open;
		opened += broker->count.opened != sim->broker_opened[b];
		sim->broker_opened[b] = broker->count.opened;
	}
	if (opened > 0 && open > 1 && usable && sim->was_usable &&
	    open * 100 > pool->peers.count * pool->config->breaker.share_cap)
		sim_fail(sim, "%u of %u breakers are open, the cap is %u %%", open, pool->peers.count,
		    pool->config->breaker.share_cap);
	sim->was_usable = usable;
}

void
check_step(struct sim *sim)
{
	const struct pool *pool = sim->pool;
	uint64_t outstanding = 0;

	for (uint32_t i = sim->live_from; i < sim->producer_count; i++) {
		struct producer *p = sim->producers[i];
		if (p->audited != p->map.daemon->cq_tail || p->head_checked != p->map.daemon->sq_head)
			check_producer(p);
	}
	while (sim->live_from < sim->producer_count) {
		const struct producer *p = sim->producers[sim->live_from];
		if (!p->closed || p->unfinished > 0)
			break;
		sim->live_from++;
	}
	for (uint32_t b = 0; b < pool->peers.count; b++) {
		struct broker *broker = &pool->peers.list[b];
		uint32_t failed_now = 0;
		struct link *link;
		for (uint32_t l = 0; l < broker->link_count; l++)
			failed_now +=
			    broker->links[l].count.failures != sim->watch[broker->links[l].id].failures;
		for (uint32_t l = 0; (link = broker_link(broker, l)) != NULL; l++) {
			check_link(sim, link, failed_now);
			outstanding += link_waited_for(link);
		}
	}
	if (outstanding != sim->shard.outstanding)
		sim_fail(sim, "%llu messages outstanding, the shard counts %llu",
		    (unsigned long long)outstanding, (unsigned long long)sim->shard.outstanding);
	if (sim->shard.count.lanes_quarantined != 0)
		sim_fail(sim, "a lane was quarantined");
	check_breakers(sim);
	check_words(sim);
}

void
check_end(struct sim *sim)
{
	for (uint32_t i = 0; i < sim->producer_count; i++) {
		struct producer *p = sim->producers[i];
		check_producer(p);
		for (uint32_t k = 0; k < p->count; k++)
			if (p->ledger[k].outcome == 0)
				fail_entry(p, &p->ledger[k], "no completion");
		if (p->head_checked != p->sq.tail)
			sim_fail(sim, "lane %llu: all is finished, and sq_head is not sq_tail",
			    (unsigned long long)p->id);
	}
	if (sim->shard.outstanding != 0)
		sim_fail(
		    sim, "%llu messages are still outstanding", (unsigned long long)sim->shard.outstanding);
}
