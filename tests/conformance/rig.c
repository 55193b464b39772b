#include "rig.h"

#include "daemon/config_node.h"
#include "shm/error.h"

#include <libconfig.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((format(printf, 2, 3))) static void
broken(struct rig *rig, const char *format, ...)
{
	va_list args;

	if (rig->broken[0] != '\0')
		return;
	va_start(args, format);
	vsnprintf(rig->broken, sizeof(rig->broken), format, args);
	va_end(args);
}

static void *
must(void *memory)
{
	if (memory == NULL)
		abort();
	return memory;
}

void
rig_bytes_add(struct rig_bytes *to, const void *bytes, size_t len)
{
	if (len == 0)
		return;
	if (to->capacity - to->len < len) {
		to->capacity = (to->len + len) * 2;
		to->bytes = must(realloc(to->bytes, to->capacity));
	}
	memcpy(to->bytes + to->len, bytes, len);
	to->len += len;
}

void
rig_bytes_fini(struct rig_bytes *bytes)
{
	free(bytes->bytes);
	memset(bytes, 0, sizeof(*bytes));
}

static void
digest(uint64_t *sum, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	for (size_t i = 0; i < len; i++)
		*sum = (*sum ^ at[i]) * UINT64_C(0x100000001b3);
}

__attribute__((format(printf, 2, 3))) static void
say(struct rig *rig, const char *format, ...)
{
	char line[600];
	va_list args;

	va_start(args, format);
	int n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	size_t len = (size_t)n < sizeof(line) - 2 ? (size_t)n : sizeof(line) - 2;
	line[len++] = '\n';
	if (rig->quiet)
		digest(&rig->said, line, len);
	else
		rig_bytes_add(&rig->events, line, len);
}

/* One seq is answered. Returns 0 if none was due. */
static int
answered(struct rig *rig, uint64_t seq)
{
	if (seq >= rig->next || !rig->waits[seq])
		return 0;
	rig->waits[seq] = 0;
	rig->outstanding--;
	return 1;
}

static void
acked(struct rig *rig, const struct driver_event *event)
{
	uint64_t first = event->seq;
	int any = 0;

	if (event->outcome != TG_DELIVERED && event->outcome != TG_SENT)
		broken(rig, "an acknowledgement has outcome %u", event->outcome);
	while (rig->oldest < rig->next && !rig->waits[rig->oldest])
		rig->oldest++;
	if (event->type == EV_ACK_UPTO)
		first = rig->oldest;
	for (uint64_t seq = first; seq <= event->seq && seq < rig->next; seq++) {
		if (!answered(rig, seq))
			continue;
		any = 1;
		uint64_t what[3] = { seq, event->outcome, event->type == EV_ACK ? event->reference : 0 };
		if (rig->quiet)
			digest(&rig->said, what, sizeof(what));
		else if (what[2] != 0)
			say(rig, "ack %lu %s reference=%lu", seq, outcome_word(event->outcome),
			    event->reference);
		else
			say(rig, "ack %lu %s", seq, outcome_word(event->outcome));
	}
	if (!any || event->seq >= rig->next)
		broken(
		    rig, "acknowledged seq %lu, which waits for nothing (next is %lu)", event->seq, rig->next);
}

static void
one_answer(struct rig *rig, const struct driver_event *event)
{
	if (!answered(rig, event->seq))
		broken(rig, "answered seq %lu, which waits for nothing (next is %lu)", event->seq, rig->next);
}

static void
on_event(void *owner, const struct driver_event *event)
{
	static const char *const kinds[] = { "protocol", "refused", "closed", "unusable", "message" };
	struct rig *rig = owner;
	char text[400] = "";
	int n = event->text_len < 300 ? (int)event->text_len : 300;

	if (rig->dead)
		broken(rig, "said event %d after the fatal one", event->type);
	if (!rig->allowed_events)
		broken(rig, "said event %d outside input()", event->type);
	if (event->text_len > 0)
		snprintf(text, sizeof(text), " \"%.*s\"", n, event->text);
	for (char *c = text; *c != '\0'; c++)
		if ((unsigned char)*c < ' ')
			*c = '?';
	switch (event->type) {
	case EV_UP:
		if (rig->up)
			broken(rig, "came up twice");
		rig->up = 1;
		say(rig, "up");
		return;
	case EV_ALIVE:
		say(rig, "alive");
		return;
	case EV_ACK:
	case EV_ACK_UPTO:
		acked(rig, event);
		return;
	case EV_NACK:
		one_answer(rig, event);
		if (event->code == 0 || event->code > 65535)
			broken(rig, "a rejection has code %u", event->code);
		say(rig, "nack %lu 0x%02x%s", event->seq, event->code, text);
		return;
	case EV_AGAIN:
		one_answer(rig, event);
		say(rig, "again %lu", event->seq);
		return;
	case EV_LOST:
		one_answer(rig, event);
		say(rig, "lost %lu", event->seq);
		return;
	case EV_UNSURE:
		one_answer(rig, event);
		if (event->code == 0 || event->code > 65535)
			broken(rig, "an unsure answer has code %u", event->code);
		say(rig, "unsure %lu 0x%02x reference=%lu", event->seq, event->code, event->reference);
		return;
	case EV_BLOCKED:
		say(rig, "blocked%s", text);
		return;
	case EV_UNBLOCKED:
		say(rig, "unblocked");
		return;
	case EV_WINDOW:
	case EV_MAX_BODY:
	case EV_KEEPALIVE:
		if (event->seq == 0 && event->type != EV_MAX_BODY)
			broken(rig, "a limit is 0");
		say(rig, "%s %lu",
		    event->type == EV_WINDOW     ? "window"
		    : event->type == EV_MAX_BODY ? "max-body"
						 : "keepalive",
		    event->seq);
		return;
	case EV_ENDPOINT:
		say(rig, "endpoint%s", text);
		return;
	case EV_LEAVING:
		say(rig, "leaving");
		return;
	case EV_TLS:
		rig->securing = 1;
		say(rig, "tls");
		return;
	case EV_FATAL:
		rig->dead = 1;
		if (event->text_len == 0)
			broken(rig, "the end has no text");
		say(rig, "fatal %s 0x%02x%s", event->fatal <= FATAL_MESSAGE ? kinds[event->fatal] : "?", event->code, text);
		return;
	}
	broken(rig, "said an event of no known type, %d", event->type);
}

struct complaint {
	char *why;
	size_t size;
};

static void
on_complaint(void *owner, const char *line)
{
	struct complaint *complaint = owner;

	if (complaint->why[0] == '\0')
		snprintf(complaint->why, complaint->size, "%s", line);
}

void *
rig_settings_new(
    const struct driver *driver, const char *settings, const char *folder, char *why, size_t why_size)
{
	struct complaint complaint = { why, why_size };
	char file[300];
	snprintf(file, sizeof(file), "%s/transcript", folder);
	struct config_report report = { .file = file, .print = on_complaint, .owner = &complaint };
	struct config_node group;
	config_t config;
	void *made = must(calloc(1, driver->settings_size + 1));

	why[0] = '\0';
	config_init(&config);
	if (config_read_string(&config, settings) != CONFIG_TRUE) {
		snprintf(why, why_size, "settings: %s", config_error_text(&config));
	} else {
		config_node_init(&group, config_root_setting(&config), &report, driver->name);
		int rc = driver->configure(made, &group);
		if (rc != 0 && why[0] == '\0')
			snprintf(why, why_size, "settings are refused without a reason (%d)", rc);
		if (rc == 0 && report.errors > 0)
			snprintf(why, why_size, "bad settings are accepted");
	}
	config_destroy(&config);
	if (why[0] == '\0')
		return made;
	rig_settings_free(driver, made);
	return NULL;
}

void
rig_settings_free(const struct driver *driver, void *settings)
{
	if (settings == NULL)
		return;
	driver->settings_free(settings);
	free(settings);
}

int
rig_open_with(struct rig *rig, const struct driver *driver, void *settings, const struct session_params *params)
{
	rig->driver = driver;
	rig->params = *params;
	rig->session = must(calloc(1, driver->session_size));
	*rig->session = (struct session){
		.driver = driver, .settings = settings, .params = &rig->params, .events = { on_event, rig }
	};
	out_init(&rig->out);
	rig->said = rig->sent_digest = UINT64_C(0xcbf29ce484222325);
	if (driver->open(rig->session) == 0)
		return 0;
	broken(rig, "open failed");
	return -1;
}

int
rig_open(struct rig *rig, const struct driver *driver, const char *settings, const char *folder,
    const struct session_params *params)
{
	memset(rig, 0, sizeof(*rig));
	rig->settings = rig_settings_new(driver, settings, folder, rig->broken, sizeof(rig->broken));
	if (rig->settings == NULL)
		return -1;
	return rig_open_with(rig, driver, rig->settings, params);
}

void
rig_close(struct rig *rig)
{
	if (rig->session != NULL)
		rig->driver->close(rig->session);
	free(rig->session);
	rig_settings_free(rig->driver, rig->settings);
	out_fini(&rig->out);
	free(rig->waits);
	rig_bytes_fini(&rig->events);
	rig_bytes_fini(&rig->sent);
	rig_bytes_fini(&rig->pending);
}

/* The socket takes everything at once. */
static void
take_output(struct rig *rig)
{
	struct iovec iov[64];
	int n;

	while ((n = out_iovec(&rig->out, iov, 64)) > 0) {
		size_t len = 0;
		for (int i = 0; i < n; i++) {
			if (rig->quiet)
				digest(&rig->sent_digest, iov[i].iov_base, iov[i].iov_len);
			else
				rig_bytes_add(&rig->sent, iov[i].iov_base, iov[i].iov_len);
			len += iov[i].iov_len;
		}
		out_consume(&rig->out, len);
	}
}

static void
action(struct rig *rig, const char *name, int (*call)(struct session *, struct out *))
{
	if (rig->dead || call == NULL)
		return;
	int rc = call(rig->session, &rig->out);
	if (rc != 0)
		broken(rig, "%s failed: %s", name, error_text(rc));
	take_output(rig);
}

int
rig_start(struct rig *rig)
{
	rig->started = 1;
	rig->params.tls |= rig->securing;
	rig->securing = 0;
	action(rig, "start", rig->driver->start);
	return rig->broken[0] != '\0' ? -1 : 0;
}

void
rig_probe(struct rig *rig)
{
	if (rig->up)
		action(rig, "probe", rig->driver->probe);
}

void
rig_flush(struct rig *rig)
{
	if (rig->up)
		action(rig, "flush", rig->driver->flush);
}

void
rig_goodbye(struct rig *rig)
{
	if (rig->up)
		action(rig, "goodbye", rig->driver->goodbye);
}

void
rig_feed(struct rig *rig, const uint8_t *bytes, size_t len)
{
	if (rig->dead)
		return;
	rig_bytes_add(&rig->pending, bytes, len);
	/* In memory of exactly its size, so that a sanitizer sees a read past it. */
	size_t given = rig->pending.len;
	uint8_t *copy = must(malloc(given > 0 ? given : 1));
	if (given > 0)
		memcpy(copy, rig->pending.bytes, given);
	rig->allowed_events = 1;
	ssize_t n = rig->driver->input(rig->session, copy, given, &rig->out);
	rig->allowed_events = 0;
	free(copy);
	take_output(rig);
	if (n < 0 && !rig->dead)
		broken(rig, "input failed with %zd and said nothing", n);
	else if (n >= 0 && rig->dead)
		broken(rig, "input said that the session is over and did not fail");
	else if (n > 0 && (size_t)n > given)
		broken(rig, "input consumed %zd of %zu bytes", n, given);
	if (n < 0 || rig->broken[0] != '\0')
		return;
	rig->pending.len -= (size_t)n;
	if (rig->pending.len > 0)
		memmove(rig->pending.bytes, rig->pending.bytes + n, rig->pending.len);
	if (rig->pending.len > DRIVER_INPUT_MAX)
		broken(rig, "input leaves %zu bytes, more than %u", rig->pending.len, DRIVER_INPUT_MAX);
}

int
rig_publish(struct rig *rig, const struct message *message, struct driver_rejection *rejection)
{
	if (!rig->up || rig->dead)
		return DRIVER_FULL;
	uint64_t end = out_end(&rig->out);
	memset(rejection, 0, sizeof(*rejection));
	/* Each is a record of its own; positions are a lane's, rising. */
	struct message record = *message;
	record.position = rig->next * 64;
	int rc = rig->driver->publish(rig->session, rig->next, &record, &rig->out, rejection);
	if (rc != DRIVER_PUBLISHED && rc != DRIVER_PUBLISHED_NO_ACK) {
		if (out_end(&rig->out) != end)
			broken(rig, "publish returned %d and appended bytes", rc);
		if (rc == DRIVER_REJECTED && (rejection->text == NULL || rejection->code == 0))
			broken(rig, "rejected without a reason");
		if (rc == DRIVER_FULL && rig->outstanding == 0)
			broken(rig, "full with nothing outstanding: nothing would end that");
		if (rc < 0 || rc > DRIVER_FULL)
			broken(rig, "publish returned %d", rc);
		return rc;
	}
	if (out_end(&rig->out) == end)
		broken(rig, "publish appended nothing");
	if (rig->next == rig->waits_capacity) {
		rig->waits_capacity = rig->waits_capacity * 2 + 64;
		rig->waits = must(realloc(rig->waits, rig->waits_capacity));
	}
	rig->waits[rig->next++] = rc == DRIVER_PUBLISHED;
	rig->outstanding += rc == DRIVER_PUBLISHED;
	take_output(rig);
	return rc;
}

void
rig_forget(struct rig *rig)
{
	rig->events.len = 0;
	rig->sent.len = 0;
}
