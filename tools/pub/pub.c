#include "tools/pub/pub.h"

#include "tools/common/cli.h"
#include "tools/common/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>

#define TICK_MS 200
#define AWAY_GRACE_MS 3000u                   /* past a deadline that a daemon would have kept */
#define AWAY_STOPPED_MS 1000u                 /* longer than a restart takes */
#define RATE_BURST_NS (100 * CLOCK_NS_PER_MS) /* a stalled run catches up this much, no more */

/*
 * A message's tag says when it was published and which it was: the time in units of 256 ns in the
 * upper 40 bits (it wraps after three days, far past any deadline), the low bits of its number in
 * the lower 24 (far more than a lane can hold unanswered).
 */
#define TAG_NUMBER_BITS 24
#define TAG_NUMBER_MASK ((UINT64_C(1) << TAG_NUMBER_BITS) - 1)
#define TAG_TIME_SHIFT 8
#define TAG_TIME_MASK ((UINT64_C(1) << (64 - TAG_NUMBER_BITS)) - 1)

volatile sig_atomic_t pub_stop;

static uint64_t
tag_make(uint64_t now_ns, uint64_t number)
{
	return (now_ns >> TAG_TIME_SHIFT & TAG_TIME_MASK) << TAG_NUMBER_BITS | (number & TAG_NUMBER_MASK);
}

static uint64_t
tag_age_ns(uint64_t now_ns, uint64_t tag)
{
	return (((now_ns >> TAG_TIME_SHIFT) - (tag >> TAG_NUMBER_BITS)) & TAG_TIME_MASK) << TAG_TIME_SHIFT;
}

/* The newest number below `next` with the tag's low bits. */
static uint64_t
tag_number(uint64_t next, uint64_t tag)
{
	return next - 1 - ((next - 1 - tag) & TAG_NUMBER_MASK);
}

int
pub_open(struct pub *pub, const struct pub_options *options)
{
	struct tg_client_options client_options = { .socket = options->socket };
	struct tg_lane_options lane_options = { .ring_bytes = options->ring_bytes };
	int error;

	memset(pub, 0, sizeof(*pub));
	pub->options = options;
	error = tg_client_open(&pub->client, &client_options);
	if (error != 0) {
		cli_error("%s", tg_client_detail(NULL));
		pub->client = NULL;
		return -1;
	}
	error = tg_lane_open(pub->client, &pub->lane, options->pool, &lane_options);
	if (error != 0) {
		cli_error("pool \"%s\": %s", options->pool, tg_client_detail(pub->client));
		pub_close(pub);
		return -1;
	}
	return 0;
}

void
pub_close(struct pub *pub)
{
	if (pub->lane != NULL)
		tg_lane_close(pub->lane, 0);
	tg_client_close(pub->client);
	pub->lane = NULL;
	pub->client = NULL;
}

uint64_t
pub_unanswered(const struct pub *pub)
{
	uint64_t answered = 0;
	size_t i;

	for (i = 0; i < sizeof(pub->outcomes) / sizeof(pub->outcomes[0]); i++)
		answered += pub->outcomes[i];
	return pub->accepted - answered;
}

static void
lane_failed(struct pub *pub, const char *what, int error)
{
	const char *detail = tg_client_detail(pub->client);

	cli_error(
	    "pool \"%s\": %s: %s", pub->options->pool, what, detail[0] != '\0' ? detail : tg_strerror(error));
	pub->broken = 1;
}

static void
note_rejection(struct pub *pub, const struct tg_completion *completion)
{
	struct pub_rejection *r;
	const char *name;
	uint64_t line;
	uint32_t code = 0;

	if (pub->rejection_count == PUB_REJECTIONS)
		return;
	r = &pub->rejections[pub->rejection_count++];
	name = input_locate(pub->in, tag_number(pub->in->number, completion->tag), &line);
	if (pub->in->mode == INPUT_WHOLE)
		snprintf(r->from, sizeof(r->from), "%s", name);
	else
		snprintf(r->from, sizeof(r->from), "%s:%" PRIu64, name, line);
	r->code = completion->code;
	/* The lane keeps the text of its last rejection only; it belongs to this one if the code matches. */
	if (tg_reason(pub->lane, r->reason, sizeof(r->reason), &code) <= 0 || code != r->code)
		r->reason[0] = '\0';
	cli_error("%s: rejected, code %" PRIu32 " (0x%02" PRIx32 ")%s%s", r->from, r->code, r->code,
	    r->reason[0] != '\0' ? ": " : "", r->reason);
}

/* Takes every completion there is. */
static void
collect(struct pub *pub)
{
	struct tg_completion completions[64];
	uint64_t now;
	int count, i;

	while ((count = tg_poll(pub->lane, completions, sizeof(completions) / sizeof(completions[0]))) > 0) {
		now = clock_now_ns();
		for (i = 0; i < count; i++) {
			const struct tg_completion *c = &completions[i];

			if (c->outcome > TG_CANCELLED)
				continue; /* of a newer library: it stays unanswered, and the run fails */
			pub->outcomes[c->outcome]++;
			if (c->attempts > 1)
				pub->resent++;
			if (c->outcome == TG_DELIVERED || c->outcome == TG_SENT)
				histogram_add(&pub->latency, tag_age_ns(now, c->tag));
			if (c->outcome == TG_REJECTED)
				note_rejection(pub, c);
		}
	}
	if (count < 0 && !pub->broken)
		lane_failed(pub, "reading completions", count);
}

static void
complain_too_long(struct pub *pub, uint64_t number, uint64_t len, const char *limit)
{
	const char *name;
	uint64_t line;

	name = input_locate(pub->in, number, &line);
	if (pub->in->mode == INPUT_WHOLE)
		cli_error("%s: %" PRIu64 " bytes: %s", name, len, limit);
	else
		cli_error("%s:%" PRIu64 ": %s of %" PRIu64 " bytes: %s", name, line,
		    pub->in->mode == INPUT_NUL ? "message" : "line", len, limit);
	pub->skipped++;
}

/* Fills the pending batch from what is in memory. Returns 1 if more input has to be read first. */
static int
gather(struct pub *pub)
{
	struct input_item item;
	char limit[128];

	pub->pending_first = pub->pending_count = 0;
	while (pub->pending_count < PUB_BATCH) {
		switch (input_next(pub->in, &item)) {
		case INPUT_ITEM:
			pub->numbers[pub->pending_count] = item.number;
			pub->pending[pub->pending_count++] = (struct tg_message){
				.topic = pub->options->topic,
				.topic_len = TG_NUL,
				.key = pub->options->key,
				.key_len = pub->options->key != NULL ? strlen(pub->options->key) : 0,
				.body = item.bytes,
				.body_len = item.len,
				.headers = pub->options->headers,
				.header_count = pub->options->header_count,
				.timeout_ms = pub->options->timeout_ms,
				.expiry_ms = pub->options->expiry_ms,
				.flags = pub->options->flags,
			};
			break;
		case INPUT_TOO_LONG:
			snprintf(limit, sizeof(limit),
			    "a ring of %" PRIu64 " bytes carries at most %zu (see --ring)",
			    pub->options->ring_bytes, pub->in->limit);
			complain_too_long(pub, item.number, item.len, limit);
			break;
		case INPUT_ERROR:
			cli_error("%s", pub->in->error);
			pub->skipped++;
			break;
		case INPUT_MORE:
			/* Reading moves the bytes of those already gathered: they go first. */
			return pub->pending_count == 0;
		case INPUT_END:
			pub->reading = 0;
			return 0;
		}
	}
	return 0;
}

/* How many may be published now under --rate; *due_ns is when the next may. */
static size_t
rate_allows(struct pub *pub, uint64_t now, uint64_t *due_ns)
{
	uint64_t rate = pub->options->rate;
	uint64_t earned;

	*due_ns = 0;
	if (rate == 0)
		return PUB_BATCH;
	earned = (uint64_t)((double)(now - pub->rate_base_ns) * (double)rate / (double)CLOCK_NS_PER_S) + 1;
	if (earned > pub->rate_count) {
		uint64_t behind_ns =
		    (uint64_t)((double)(earned - pub->rate_count) * (double)CLOCK_NS_PER_S / (double)rate);

		if (behind_ns > RATE_BURST_NS && earned - pub->rate_count > 1) {
			/* It could not keep up: missed messages are not sent in one burst. */
			pub->rate_base_ns = now - RATE_BURST_NS;
			pub->rate_count = 0;
			earned = (uint64_t)((double)RATE_BURST_NS * (double)rate / (double)CLOCK_NS_PER_S) + 1;
		}
		return (size_t)(earned - pub->rate_count);
	}
	*due_ns =
	    pub->rate_base_ns + (uint64_t)((double)pub->rate_count * (double)CLOCK_NS_PER_S / (double)rate);
	return 0;
}

/* Publishes up to `allowed` pending messages. Returns 1 if the ring was full. */
static int
publish(struct pub *pub, size_t allowed)
{
	struct tg_message *first = &pub->pending[pub->pending_first];
	size_t count = pub->pending_count - pub->pending_first;
	uint64_t now = clock_now_ns();
	size_t i;
	int accepted;

	if (count > allowed)
		count = allowed;
	for (i = 0; i < count; i++)
		first[i].tag = tag_make(now, pub->numbers[pub->pending_first + i]);
	accepted = tg_publish_batch(pub->lane, first, count, NULL);
	if (accepted == -TG_EAGAIN)
		return 1;
	if (accepted == -TG_ETOOBIG) {
		complain_too_long(
		    pub, pub->numbers[pub->pending_first], first->body_len, tg_client_detail(pub->client));
		pub->pending_first++;
		return 0;
	}
	if (accepted < 0) {
		lane_failed(pub, "publishing", accepted);
		return 0;
	}
	for (i = 0; i < (size_t)accepted; i++)
		pub->accepted_bytes += first[i].body_len;
	pub->accepted += (uint64_t)accepted;
	if (accepted > 0)
		pub->accepted_ns = now;
	if (accepted > 0)
		pub->next_number = pub->numbers[pub->pending_first + (size_t)accepted - 1] + 1;
	pub->rate_count += (uint64_t)accepted;
	pub->pending_first += (size_t)accepted;
	return 0;
}

/* Sleeps until the lane has something, the descriptor is readable, or the time has come. */
static void
wait_for(struct pub *pub, int fd, uint64_t until_ns)
{
	uint64_t now = clock_now_ns();
	struct pollfd fds[2] = { { .fd = tg_fd(pub->lane), .events = POLLIN }, { .fd = fd, .events = POLLIN } };
	struct timespec left = clock_timespec(until_ns > now ? until_ns - now : 0);

	/* Completions that came before the descriptor was created would not show on it. */
	collect(pub);
	if (!pub->broken && !pub_stop)
		ppoll(fds, fd >= 0 ? 2 : 1, &left, NULL);
}

static int
input_is_ready(const struct input *in)
{
	struct pollfd p = { .fd = input_wait_fd(in), .events = POLLIN };

	return p.fd < 0 || poll(&p, 1, 0) != 0;
}

static void
lane_wait(struct pub *pub)
{
	int error = tg_wait(pub->lane, TICK_MS);

	if (error != 0 && error != -TG_ETIMEOUT && !(error == -TG_ESYSTEM && errno == EINTR)) {
		collect(pub); /* completions come before the error */
		if (!pub->broken)
			lane_failed(pub, "waiting", error);
	}
}

/* One turn: take completions, publish what can be, then sleep for whatever is missing. */
static void
turn(struct pub *pub, uint64_t now)
{
	uint64_t due_ns, tick_ns = now + TICK_MS * CLOCK_NS_PER_MS;
	size_t allowed;
	int need_input = 0;

	if (pub->reading && pub->pending_first == pub->pending_count)
		need_input = gather(pub);
	if (need_input && input_is_ready(pub->in)) {
		input_fill(pub->in);
		return;
	}
	if (need_input) {
		wait_for(pub, input_wait_fd(pub->in), tick_ns);
	} else if (pub->pending_first < pub->pending_count) {
		allowed = rate_allows(pub, now, &due_ns);
		if (allowed == 0)
			wait_for(pub, -1, due_ns < tick_ns ? due_ns : tick_ns);
		else if (publish(pub, allowed))
			lane_wait(pub);
	} else if (!pub->reading && pub_unanswered(pub) != 0) {
		lane_wait(pub);
	}
}

/* How long an answer may take, from the publish. */
static uint64_t
deadline_ns_of(const struct pub_options *options, const struct tg_lane_info *info)
{
	uint32_t ms = options->timeout_ms != 0 ? options->timeout_ms : info->timeout_ms;

	if (options->expiry_ms != 0 && options->expiry_ms < ms)
		ms = options->expiry_ms;
	return ms * CLOCK_NS_PER_MS;
}

/*
 * Whether there is nothing left but to wait for a daemon that is away, and that for long enough: past the deadline
 * of all it was given, or not to delay who wants us to end. With a full ring there is nothing else to do either.
 */
static int
is_stranded(struct pub *pub, uint64_t now)
{
	int has_input = pub->reading && pub->pending_first == pub->pending_count;
	struct tg_lane_info info;
	uint64_t over_ns;

	if (has_input || tg_lane_info(pub->lane, &info) != 0 || info.away_ms == 0) {
		pub->idle_ns = now;
		return 0;
	}
	pub->away_ms = info.away_ms;
	if (pub_stop)
		return info.away_ms >= AWAY_STOPPED_MS;
	over_ns = pub->accepted_ns + deadline_ns_of(pub->options, &info);
	if (over_ns <
	    pub->idle_ns) /* so that the end of the input does not end it while a daemon is about to answer */
		over_ns = pub->idle_ns;
	return now >= over_ns + AWAY_GRACE_MS * CLOCK_NS_PER_MS;
}

void
pub_run(struct pub *pub, struct input *in, void (*tick)(const struct pub *))
{
	uint64_t deadline_ns, now, next_tick_ns;

	pub->in = in;
	pub->reading = 1;
	pub->start_ns = pub->rate_base_ns = now = clock_now_ns();
	deadline_ns = pub->options->wait_ms != 0 ? now + pub->options->wait_ms * CLOCK_NS_PER_MS : UINT64_MAX;
	next_tick_ns = now + TICK_MS * CLOCK_NS_PER_MS;
	for (;;) {
		collect(pub);
		if (pub_stop && !pub->interrupted) {
			pub->interrupted = pub->reading || pub->pending_first < pub->pending_count;
			pub->reading = 0;
			pub->pending_first = pub->pending_count = 0;
		}
		if (pub->broken || pub_stop > 1)
			break;
		if (!pub->reading && pub->pending_first == pub->pending_count && pub_unanswered(pub) == 0)
			break;
		now = clock_now_ns();
		if (now >= deadline_ns) {
			pub->timed_out = 1;
			break;
		}
		if (now >= next_tick_ns) {
			next_tick_ns = now + TICK_MS * CLOCK_NS_PER_MS;
			pub->end_ns = now;
			if (tick != NULL)
				tick(pub);
			if (is_stranded(pub, now)) {
				pub->stranded = 1;
				break;
			}
		}
		turn(pub, now);
	}
	pub->end_ns = clock_now_ns();
}
