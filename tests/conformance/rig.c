#include "rig.h"
#include "rig_events.h"

#include "daemon/config/config_node.h"
#include "shm/error.h"

#include <libconfig.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The lane's, of every message. */
static const struct siphash_key id_key = { { UINT64_C(0x0123456789abcdef), UINT64_C(0xfedcba9876543210) } };

#ifdef __has_feature
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
#include <sanitizer/asan_interface.h>

#else /* a compiler without sanitizers has no header of theirs */
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

/* A driver's replies are little longer than the broker's bytes, whatever those are. */
#define REPLY_HANDSHAKE (16u << 10)
#define REPLY_TIMES 8u
/* … and a message grows by no more than this, twice its words (escapes) and a part of its body (frames). */
#define FRAME_HEAD 2048u
#define FRAME_BODY_PART 64u
#define HELLO_MAX 4096u /* as the link's */
#define SAVED_MAX (32u << 10)

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

static int
session_open(struct rig *rig, void *settings)
{
	const struct driver *driver = rig->driver;

	rig->session = must(calloc(1, driver->session_size));
	*rig->session = (struct session){
		.driver = driver, .settings = settings, .params = &rig->params, .events = { rig_on_event, rig }
	};
	if (driver->open(rig->session) == 0)
		return 0;
	rig_broken(rig, "open failed");
	return -1;
}

static void
session_close(struct rig *rig)
{
	if (rig->session != NULL)
		rig->driver->close(rig->session);
	free(rig->session);
	rig->session = NULL;
}

int
rig_open_with(struct rig *rig, const struct driver *driver, void *settings, const struct session_params *params)
{
	rig->driver = driver;
	rig->params = *params;
	rig->params.memory = rig->memory =
	    driver->memory_size > 0 ? must(calloc(1, driver->memory_size)) : NULL;
	return session_open(rig, settings);
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
	session_close(rig);
	free(rig->memory);
	rig_settings_free(rig->driver, rig->settings);
	out_fini(&rig->out);
	free(rig->waits);
	free(rig->input[0]);
	free(rig->input[1]);
	rig_bytes_fini(&rig->hello);
	rig_bytes_fini(&rig->events);
	rig_bytes_fini(&rig->sent);
}

void
rig_renew(struct rig *rig)
{
	session_close(rig);
	free(rig->memory);
	rig_settings_free(rig->driver, rig->settings);
	out_reset(&rig->out);
	rig_forget(rig);
	rig->hello.len = 0;
	*rig = (struct rig){
		.quiet = rig->quiet,
		.out = rig->out,
		.waits = rig->waits,
		.waits_capacity = rig->waits_capacity,
		.input = { rig->input[0], rig->input[1] },
		.input_capacity = { rig->input_capacity[0], rig->input_capacity[1] },
		.hello = rig->hello,
		.events = rig->events,
		.sent = rig->sent,
	};
}

/* A body by reference is known by where it lies; a copy is compared. */
static void
digest_output(struct rig *rig, const uint8_t *bytes, size_t len)
{
	uintptr_t at = (uintptr_t)bytes - (uintptr_t)rig->lent;

	if (rig->lent == NULL || at >= rig->lent_len || len > rig->lent_len - at) {
		rig_digest_add(&rig->told, bytes, len);
		return;
	}
	uint64_t what[2] = { at, len };
	rig_digest_add(&rig->told, what, sizeof(what));
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
			if (rig->moving)
				; /* its broker has it, or will never get it */
			else if (rig->quiet)
				digest_output(rig, iov[i].iov_base, iov[i].iov_len);
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
		rig_broken(rig, "%s failed: %s", name, error_text(rc));
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
	if (!rig->up)
		return;
	rig->probing = 1;
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

/* The unconsumed rest and len bytes more, at the very end of the other buffer. Returns their number. */
static size_t
input_join(struct rig *rig, const uint8_t *bytes, size_t len)
{
	const uint8_t *left = rig->left > 0 ? rig->input[rig->turn] + rig->left_at : NULL;
	unsigned other = rig->turn ^ 1;
	size_t given = rig->left + len;

	if (rig->input[other] == NULL || rig->input_capacity[other] < given) {
		free(rig->input[other]);
		rig->input_capacity[other] = given * 2 + 4096;
		rig->input[other] = must(malloc(rig->input_capacity[other]));
		ASAN_POISON_MEMORY_REGION(rig->input[other], rig->input_capacity[other]);
	}
	ASAN_UNPOISON_MEMORY_REGION(rig->input[other], given);
	if (rig->left > 0) {
		ASAN_UNPOISON_MEMORY_REGION(left, rig->left);
		memcpy(rig->input[other], left, rig->left);
		ASAN_POISON_MEMORY_REGION(left, rig->left);
	}
	if (len > 0)
		memcpy(rig->input[other] + rig->left, bytes, len);
	rig->turn = other;
	return given;
}

void
rig_feed(struct rig *rig, const uint8_t *bytes, size_t len)
{
	if (rig->dead)
		return;
	size_t given = input_join(rig, bytes, len);
	uint8_t *buffer = rig->input[rig->turn];
	uint64_t end = out_end(&rig->out);
	int greeting = !rig->up;
	rig->allowed_events = 1;
	ssize_t n = rig->driver->input(rig->session, buffer, given, &rig->out);
	rig->allowed_events = 0;
	rig->heard += len;
	rig->replied += out_end(&rig->out) - end;
	take_output(rig);
	if (n < 0 && !rig->dead)
		rig_broken(rig, "input failed with %zd and said nothing", n);
	else if (n >= 0 && rig->dead)
		rig_broken(rig, "input said that the session is over and did not fail");
	else if (n > 0 && (size_t)n > given)
		rig_broken(rig, "input consumed %zd of %zu bytes", n, given);
	if (rig->replied > REPLY_HANDSHAKE + REPLY_TIMES * rig->heard)
		rig_broken(rig, "input answered %lu bytes with %lu", rig->heard, rig->replied);
	if (greeting && n > 0 && rig->broken[0] == '\0')
		rig_bytes_add(&rig->hello, buffer, (size_t)n);
	ASAN_POISON_MEMORY_REGION(buffer, given);
	if (n < 0 || rig->broken[0] != '\0')
		return;
	rig->left_at = (size_t)n;
	rig->left = given - (size_t)n;
	if (rig->left > DRIVER_INPUT_MAX)
		rig_broken(rig, "input leaves %zu bytes, more than %u", rig->left, DRIVER_INPUT_MAX);
}

/* Bytes in memory that ends where they do. */
static uint8_t *
exactly(const uint8_t *bytes, size_t len)
{
	uint8_t *copy = must(malloc(len + !len));

	if (len > 0)
		memcpy(copy, bytes, len);
	return copy;
}

/* A session that is brought up as a successor's. Returns restore()'s result, or -1 with broken set. */
static int
session_restore(struct rig *rig, void *settings, const uint8_t *saved, size_t len)
{
	int rc = 0;

	rig->up = rig->dead = 0;
	rig->params.replayed = 1;
	if (session_open(rig, settings) != 0)
		return -1;
	action(rig, "start", rig->driver->start);
	uint8_t *hello = exactly(rig->hello.bytes, rig->hello.len), *bytes = exactly(saved, len);
	rig->allowed_events = 1;
	ssize_t n = rig->driver->input(rig->session, hello, rig->hello.len, &rig->out);
	int up = n == (ssize_t)rig->hello.len && !rig->dead && rig->up;
	if (!up)
		rig_broken(
		    rig, "does not come up from the %zu bytes of its handshake (%zd)", rig->hello.len, n);
	uint64_t end = out_end(&rig->out);
	if (up && rig->driver->restore != NULL)
		rc = rig->driver->restore(rig->session, bytes, len);
	rig->allowed_events = 0;
	if (out_end(&rig->out) != end)
		rig_broken(rig, "sends something while it restores");
	free(hello);
	free(bytes);
	take_output(rig);
	return up ? rc : -1;
}

/* Damaged saved bytes: restore() refuses them or makes a session that works. */
static void
try_garbled(struct rig *rig, void *settings, const uint8_t *saved, size_t len)
{
	uint64_t seed = rig->garble * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	struct message message = {
		.topic = (const uint8_t *)"t/1", .topic_len = 3, .attempt = 1, .id_key = &id_key
	};
	struct driver_rejection rejection = { 0 };
	uint8_t *bytes = must(calloc(1, len + 1));

	rig->garble = seed | 1;
	if (len > 0)
		memcpy(bytes, saved, len);
	size_t at = (size_t)(seed >> 33) % (len + 1);
	switch (seed >> 30 & 3) {
	case 0:
		len = at;
		break;
	case 1:
		len++;
		break;
	default:
		bytes[at < len ? at : 0] ^= (uint8_t)(1 + (seed >> 20) % 255);
	}
	int rc = session_restore(rig, settings, bytes, len);
	if (rc != 0 && rc != -TG_EINVAL && rc != -TG_ENOMEM)
		rig_broken(rig, "restores nothing from garbled bytes, and says %d", rc);
	if (rc == 0 && rig->driver->publish(rig->session, 0, &message, &rig->out, &rejection) == DRIVER_FULL)
		rig_broken(rig, "restores a session from garbled bytes that is full from the beginning");
	if (rc == 0)
		action(rig, "probe", rig->driver->probe);
	take_output(rig);
	session_close(rig);
	free(bytes);
}

int
rig_move(struct rig *rig)
{
	const struct driver *driver = rig->driver;
	uint8_t saved[SAVED_MAX], again[SAVED_MAX];

	if ((driver->flags & DRIVER_F_REPLAYABLE) == 0 || !rig->up || rig->dead || rig->outstanding > 0 ||
	    rig->left > 0 || rig->probing || rig->params.tls || rig->hello.len > HELLO_MAX ||
	    rig->broken[0] != '\0')
		return -1;
	ssize_t len = driver->save != NULL ? driver->save(rig->session, saved, sizeof(saved)) : 0;
	if (len == -TG_EAGAIN || len == -TG_ELIMIT)
		return -1;
	if (len < 0 || len > SAVED_MAX) {
		rig_broken(rig, "saves %zd bytes", len);
		return -1;
	}
	if (len > 0 && driver->save(rig->session, again, (size_t)len - 1) != -TG_ELIMIT)
		rig_broken(rig, "saves %zd bytes in less room", len);
	void *settings = (void *)(uintptr_t)rig->session->settings;
	session_close(rig);
	rig->moving = 1;
	rig->base += rig->next;
	rig->next = rig->oldest = 0;
	if (driver->restore != NULL && rig->garble != 0)
		try_garbled(rig, settings, saved, (size_t)len);
	if (rig->broken[0] == '\0' && session_restore(rig, settings, saved, (size_t)len) != 0)
		rig_broken(rig, "does not restore the %zd bytes that it saved", len);
	rig->moving = 0;
	if (rig->broken[0] == '\0' && driver->save != NULL &&
	    (driver->save(rig->session, again, sizeof(again)) != len || memcmp(saved, again, (size_t)len) != 0))
		rig_broken(rig, "saves something else than it has restored");
	return 0;
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
	record.position = (rig->base + rig->next) * 64;
	record.id_key = &id_key;
	int rc = rig->driver->publish(rig->session, rig->next, &record, &rig->out, rejection);
	if (rc != DRIVER_PUBLISHED && rc != DRIVER_PUBLISHED_NO_ACK) {
		if (out_end(&rig->out) != end)
			rig_broken(rig, "publish returned %d and appended bytes", rc);
		if (rc == DRIVER_REJECTED && (rejection->text == NULL || rejection->code == 0))
			rig_broken(rig, "rejected without a reason");
		if (rc == DRIVER_FULL && rig->outstanding == 0)
			rig_broken(rig, "full with nothing outstanding: nothing would end that");
		if (rc < 0 || rc > DRIVER_FULL)
			rig_broken(rig, "publish returned %d", rc);
		return rc;
	}
	uint64_t size = out_end(&rig->out) - end;
	if (size == 0)
		rig_broken(rig, "publish appended nothing");
	if (size > FRAME_HEAD + 2 * ((uint64_t)message->topic_len + message->key_len + message->headers_len) +
		       message->body_len + message->body_len / FRAME_BODY_PART)
		rig_broken(rig, "publish made %lu bytes of a body of %u", size, message->body_len);
	if (rig->next == rig->waits_capacity) {
		rig->waits_capacity = rig->waits_capacity * 2 + 64;
		rig->waits = must(realloc(rig->waits, rig->waits_capacity));
	}
	rig->waits[rig->next++] = rc == DRIVER_PUBLISHED;
	rig->outstanding += rc == DRIVER_PUBLISHED;
	rig->lent = message->body;
	rig->lent_len = message->body_len;
	take_output(rig);
	rig->lent = NULL;
	return rc;
}

void
rig_unheard(struct rig *rig)
{
	if (rig->up || rig->dead || rig->driver->unheard == NULL)
		return;
	const char *other = rig->driver->unheard(rig->session);
	rig->dead = 1;
	if (other != NULL)
		rig_say(rig, "unheard \"%s\"", other);
	else
		rig_say(rig, "unheard");
}

void
rig_again(struct rig *rig)
{
	void *settings = (void *)(uintptr_t)rig->session->settings;

	session_close(rig);
	out_reset(&rig->out);
	rig->hello.len = rig->left = 0;
	rig->base += rig->next;
	rig->next = rig->oldest = rig->outstanding = 0;
	rig->started = rig->up = rig->dead = rig->probing = rig->securing = 0;
	rig->params.tls = rig->params.replayed = 0;
	session_open(rig, settings);
}

void
rig_forget(struct rig *rig)
{
	rig->events.len = 0;
	rig->sent.len = 0;
}
