#include "client.h"

#include "attach.h"
#include "front.h"
#include "inlet.h"
#include "daemon/base/log.h"
#include "daemon/flow/shard.h"
#include "stray.h"
#include "shm/frame.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FRAMES_A_TURN 8  /* bound of one client's requests in a turn */
#define LOOKS_A_TURN 64u /* lanes looked at for one ring of the doorbell */

/* Rings for nothing. */
#define RING_SHARE 32u                 /* one part in so many of the time */
#define RING_BURST_NS (10 * NS_PER_MS) /* a dozen at once, or one with a thousand lanes */
#define RING_NS 20000u                 /* the measured cost of one to other clients: it moves the loop about */
#define RING_LOOK_NS 250u              /* and each look at a lane that sleeps, a cache line or two of memory */
#define RING_REST_NS (2 * NS_PER_MS)   /* an ignored client stays ignored until it has earned so much */

static void on_control(uv_poll_t *poll, int status, int events);
static void on_doorbell(uv_poll_t *poll, int status, int events);
static void on_heard_again(struct timer *timer);

int
client_pid(const struct client *client)
{
	return (int)client->pid;
}

/* ---- life ---- */

static void
refund(struct client *client)
{
	account_refund(client->account, ACCOUNT_CLIENTS, 1);
	account_refund(client->account, ACCOUNT_DESCRIPTORS, CLIENT_DESCRIPTORS);
	account_drop(client->account);
}

/* The loop watches both descriptors, which are the client's from here on. */
static int
client_start(struct client *client, uv_loop_t *loop)
{
	struct shard *shard = client->shard;

	TAILQ_INIT(&client->asleep);
	TAILQ_INIT(&client->lanes);
	client->control_poll.data = client->doorbell_poll.data = client;
	client->unheard.fire = on_heard_again;
	if (timers_reserve(&shard->timers) != 0)
		return -TG_ENOMEM;
	if (uv_poll_init(loop, &client->control_poll, client->fd) != 0) {
		timers_unreserve(&shard->timers);
		return -TG_ENOMEM;
	}
	client->open_handles = 1;
	TAILQ_INSERT_TAIL(&client->front->clients, client, entry);
	client->front->client_count++;
	if (uv_poll_init(loop, &client->doorbell_poll, client->doorbell) != 0) {
		client_close(client);
		return 1;
	}
	client->open_handles = 2;
	uv_poll_start(&client->control_poll, UV_READABLE, on_control);
	uv_poll_start(&client->doorbell_poll, UV_READABLE, on_doorbell);
	laneless_look(client);
	shard->count.clients_attached++;
	return 0;
}

/* Tells a connection that cannot be had why, before it is closed. */
static void
say_no(int fd, int code, const char *text)
{
	struct frame frame;

	frame_init(&frame, FRAME_ERROR, 0);
	frame.u.error.code = code;
	snprintf(frame.u.error.text, sizeof(frame.u.error.text), "%s", text);
	frame_send(fd, &frame, NULL, 0);
}

void
client_turn_away(struct front *front, int fd)
{
	struct rlimit limit = { .rlim_cur = 0 };
	char text[FRAME_TEXT];

	getrlimit(RLIMIT_NOFILE, &limit);
	snprintf(text, sizeof(text),
	    "tidegated has no file descriptors left for another connection: LimitNOFILE= is %llu",
	    (unsigned long long)limit.rlim_cur);
	say_no(fd, TG_ELIMIT, text);
	front->shard->count.refused_for_descriptors++;
}

static int
refuse_client(struct shard *shard, int fd, struct account *account, const struct account_no *no, pid_t pid)
{
	char text[FRAME_TEXT];

	say_no(fd, TG_ELIMIT, account_no_text(account, no, text, sizeof(text)));
	account_no_log(account, no, pid);
	shard->count.refused++;
	inlet_close(fd, account);
	return -TG_ELIMIT;
}

/* Whether the user may have one more connection, if need be in the place of one that has no lane. */
static int
have_room(
    struct front *front, struct account *account, enum account_what what, uint64_t more, struct account_no *no)
{
	if (account_may(account, what, more, 0, no))
		return 1;
	struct account_no why = *no;
	return laneless_make_room(&front->laneless, no->of_all ? NULL : account, &why) &&
	       account_may(account, what, more, 0, no);
}

int
client_new(struct front *front, uv_loop_t *loop, int fd)
{
	struct shard *shard = front->shard;
	struct ucred cred = { .pid = 0 };
	socklen_t len = sizeof(cred);
	struct account_no no;

	getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	struct account *account = account_hold(&shard->accounts, cred.uid);
	int doorbell = -1, rc = 0;
	stray_reap();
	if (!have_room(front, account, ACCOUNT_CLIENTS, 1, &no) ||
	    !have_room(front, account, ACCOUNT_DESCRIPTORS, CLIENT_DESCRIPTORS, &no)) {
		rc = refuse_client(shard, fd, account, &no, cred.pid);
	} else if ((doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
		rc = -TG_ELIMIT;
		log_limited(&front->turned_away_limit, LOG_LEVEL_ERROR, "no_descriptors",
		    "for=client pid=%d uid=%u", (int)cred.pid, cred.uid);
		client_turn_away(front, fd);
		inlet_close(fd, account);
	} else if (client_adopt(front, loop, fd, doorbell, cred.pid, cred.uid, cred.gid, "") == NULL) {
		rc = -TG_ENOMEM;
		say_no(fd, TG_ENOMEM, "tidegated has no memory for another connection");
		inlet_close(fd, account);
		close(doorbell);
	}
	account_drop(account);
	return rc;
}

struct client *
client_adopt(struct front *front, uv_loop_t *loop, int fd, int doorbell, pid_t pid, uid_t uid, gid_t gid,
    const char *name)
{
	struct shard *shard = front->shard;
	struct client *client = calloc(1, sizeof(*client));

	if (client == NULL)
		return NULL;
	client->front = front;
	client->shard = shard;
	client->idle_rings.free_ns =
	    world_now(shard->world); /* nothing saved up: connecting anew gains nothing */
	client->fd = fd;
	client->doorbell = doorbell;
	client->pid = pid;
	client->uid = uid;
	client->gid = gid;
	snprintf(client->name, sizeof(client->name), "%.31s", name);
	client->account = account_hold(&shard->accounts, uid);
	account_charge(client->account, ACCOUNT_CLIENTS, 1);
	account_charge(client->account, ACCOUNT_DESCRIPTORS, CLIENT_DESCRIPTORS);
	if (client_start(client, loop) < 0) {
		refund(client);
		free(client);
		return NULL;
	}
	return client;
}

static void
on_closed(uv_handle_t *handle)
{
	struct client *client = handle->data;

	if (--client->open_handles == 0)
		free(client);
}

static int
is_unheard(const struct client *client)
{
	return client->unheard.place != 0;
}

static void
abandon_restored(struct client *client)
{
	struct lane *lane;

	TAILQ_FOREACH (lane, &client->shard->making, place_entry)
		if (lane->client == client)
			lane->client = NULL;
	client->restoring = 0;
}

void
client_close(struct client *client)
{
	int handles = client->open_handles;

	if (uv_is_closing((uv_handle_t *)&client->control_poll))
		return;
	while (!TAILQ_EMPTY(&client->lanes))
		lane_orphan(TAILQ_FIRST(&client->lanes));
	if (client->to_look > 0)
		TAILQ_REMOVE(&client->front->looking, client, looking_entry);
	client->to_look = 0;
	if (is_unheard(client))
		client->front->unheard--;
	timer_stop(&client->shard->timers, &client->unheard);
	timers_unreserve(&client->shard->timers);
	control_gone(&client->front->control, client);
	if (client->attach != NULL)
		attach_abandon(client->attach);
	client->attach = NULL;
	if (client->restoring > 0)
		abandon_restored(client);
	laneless_gone(client);
	TAILQ_REMOVE(&client->front->clients, client, entry);
	client->front->client_count--;
	uv_close((uv_handle_t *)&client->control_poll, on_closed);
	if (handles > 1)
		uv_close((uv_handle_t *)&client->doorbell_poll, on_closed);
	/* The loop no longer looks at these lanes, and a client may be waiting for their bells. */
	inlet_close(client->fd, client->account);
	if (handles > 1)
		close(client->doorbell);
	refund(client);
}

void
client_lane_gone(struct client *client, struct lane *lane)
{
	TAILQ_REMOVE(&client->lanes, lane, client_entry);
	client->lane_count--;
	laneless_look(client);
	if (client->rings_owed > client->lane_count + 1)
		client->rings_owed = client->lane_count + 1;
}

/* ---- answers ---- */

int
client_answer(struct client *client, const struct frame *frame, const int *fds, unsigned nfds)
{
	return frame_send(client->fd, frame, fds, nfds);
}

int
client_refuse(struct client *client, uint32_t serial, int code, const char *format, ...)
{
	struct frame frame;
	va_list args;

	frame_init(&frame, FRAME_ERROR, serial);
	frame.u.error.code = code;
	va_start(args, format);
	vsnprintf(frame.u.error.text, sizeof(frame.u.error.text), format, args);
	va_end(args);
	client->shard->count.refused++;
	return client_answer(client, &frame, NULL, 0);
}

int
client_refuse_limit(struct client *client, uint32_t serial, const struct account_no *no)
{
	char text[FRAME_TEXT];

	account_no_log(client->account, no, client->pid);
	return client_refuse(
	    client, serial, TG_ELIMIT, "%s", account_no_text(client->account, no, text, sizeof(text)));
}

void
client_dismiss(struct client *client, int code, const char *text)
{
	say_no(client->fd, code, text);
	client_close(client);
}

void
client_set_attach(struct client *client, struct attach *attach)
{
	client->attach = attach;
	laneless_look(client);
}

/* ---- lanes ---- */

void
client_add_lane(struct client *client, struct lane *lane)
{
	TAILQ_INSERT_TAIL(&client->lanes, lane, client_entry);
	client->lane_count++;
	laneless_look(client);
	client_owe_ring(client); /* a client rings once for a lane that another daemon served */
	if (lane->kept)
		return; /* under the name it has */
	lane_own(lane, &(struct lane_owner){ .uid = client->uid, .pid = client->pid });
	lane_keep(lane);
}

static struct lane *
lane_of(struct client *client, uint64_t id)
{
	struct lane *lane;

	TAILQ_FOREACH (lane, &client->lanes, client_entry)
		if (lane->id == id)
			break;
	return lane;
}

/* It has no answer; a lane that is not there was closed since. */
static int
ready_lane(struct client *client, const struct frame *frame)
{
	struct lane *lane = lane_of(client, frame->u.lane.lane_id);

	if (lane != NULL)
		lane_ready(lane);
	return 0;
}

static int
close_lane(struct client *client, const struct frame *request)
{
	struct lane *lane = lane_of(client, request->u.lane.lane_id);
	struct frame frame;

	if (lane == NULL)
		return client_refuse(client, request->serial, TG_ENOTFOUND,
		    "lane %llu is not one of process %d", (unsigned long long)request->u.lane.lane_id,
		    client_pid(client));
	frame_init(&frame, FRAME_LANE_CLOSED, request->serial);
	frame.u.lane.lane_id = lane->id;
	lane_ready(lane); /* a client that closes it does not come back for it */
	lane_orphan(lane);
	return client_answer(client, &frame, NULL, 0);
}

static int
serve(struct client *client, const struct frame *frame, int fds[INLET_FDS])
{
	switch (frame->type) {
	case FRAME_LANE_RETURN:
		return attach_return(client, frame, fds);
	case FRAME_LANE_OPEN:
		return attach_open(client, frame, fds);
	case FRAME_LANE_READY:
		return ready_lane(client, frame);
	case FRAME_LANE_CLOSE:
		return close_lane(client, frame);
	default:
		return client_refuse(client, frame->serial, TG_EPROTOCOL,
		    "frame type %u is not a request this daemon knows", frame->type);
	}
}

/* ---- events ---- */

/* Serves one request. Returns 0, or a negative TG_E: -TG_EAGAIN when there is none, the others end the client. */
static int
serve_next(struct client *client)
{
	struct frame frame;
	int fds[INLET_FDS];

	stray_reap(); /* descriptors that were closed meanwhile count no longer */
	int rc = inlet_recv(client->fd, &frame, fds, client->account);

	if (rc == 0) {
		rc = serve(client, &frame, fds);
		for (unsigned i = 0; i < INLET_FDS; i++)
			if (fds[i] >= 0)
				stray_close(fds[i], client->account);
	} else if (rc == INLET_UNWANTED) {
		rc = -TG_EPROTOCOL;
		client->shard->count.refused_strays++;
		client_refuse(client, frame.serial, TG_EPROTOCOL,
		    "user %u, process %d: descriptors came with a request of type %u that are not the memory of a lane",
		    client->uid, client_pid(client), frame.type);
	} else if (rc == -TG_ELIMIT) {
		struct rlimit limit = { .rlim_cur = 0 };
		getrlimit(RLIMIT_NOFILE, &limit);
		client_refuse(client, 0, TG_ELIMIT,
		    "tidegated has no file descriptors left for a lane's memory: LimitNOFILE= is %llu",
		    (unsigned long long)limit.rlim_cur);
	} else if (rc == -TG_EVERSION) {
		client_refuse(client, frame.serial, TG_EVERSION,
		    "the library speaks ABI %u, this daemon %u: install matching versions", frame.abi,
		    LANE_ABI);
	} else if (rc == -TG_EPROTOCOL) {
		client_refuse(client, frame.serial, TG_EPROTOCOL, "%s", error_text(rc));
	}
	return rc;
}

/* Serves up to so many requests; a client may be gone afterwards. */
static void
serve_some(struct client *client, int most)
{
	struct control *control = &client->front->control;

	for (int i = 0; i < most && client->attach == NULL && client->restoring == 0; i++) {
		if (!control_may(control)) {
			control_hold(control, client);
			client_watch(client);
			return;
		}
		uint64_t began = control_begin(control);
		int rc = serve_next(client);
		if (rc != 0 && rc != -TG_EAGAIN)
			client_end(client, rc);
		control_end(control, began);
		if (rc != 0)
			return;
	}
}

void
client_serve_held(struct client *client)
{
	client_watch(client);
	serve_some(client, 1);
}

void
client_restore(struct client *client, int step)
{
	client->restoring += (uint32_t)step;
	client_watch(client);
}

void
client_watch(struct client *client)
{
	if (client->attach != NULL || client->held || client->restoring > 0)
		uv_poll_stop(&client->control_poll);
	else
		uv_poll_start(&client->control_poll, UV_READABLE, on_control);
}

void
client_end(struct client *client, int why)
{
	log_limited(&client->front->gone_limit, why == -TG_ECLOSED ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN,
	    "client_gone", "pid=%d uid=%u lanes=%u cause=%s", client_pid(client), client->uid,
	    client->lane_count, log_quote((char[160]){ 0 }, 160, error_text(why), strlen(error_text(why))));
	client_close(client);
}

static void
on_control(uv_poll_t *poll, int status, int events)
{
	struct client *client = poll->data;

	struct control *control = &client->front->control;

	shard_refresh_clock(client->shard);
	if (status >= 0) {
		serve_some(client, FRAMES_A_TURN);
		return;
	}
	uint64_t began = control_begin(control);
	client_end(client, -TG_ECLOSED);
	control_end(control, began);
}

static void
on_heard_again(struct timer *timer)
{
	struct client *client = (struct client *)(void *)((char *)timer - offsetof(struct client, unheard));

	client->front->unheard--;
	uv_poll_start(&client->doorbell_poll, UV_READABLE, on_doorbell);
}

/* It has rung for nothing, and so many lanes were looked at. */
static void
charge_idle_ring(struct client *client, uint32_t looks)
{
	struct shard *shard = client->shard;
	uint64_t now_ns = world_now(shard->world);

	allowance_charge(&client->idle_rings, now_ns, RING_NS + looks * RING_LOOK_NS,
	    RING_SHARE * (1 + client->front->unheard), RING_BURST_NS);
	if (client->idle_rings.free_ns <= now_ns)
		return;
	log_limited(&client->front->unheard_limit, LOG_LEVEL_WARN, "client_unheard",
	    "pid=%d uid=%u lanes=%u ms=%llu cause=\"rings for nothing\"", client_pid(client), client->uid,
	    client->lane_count,
	    (unsigned long long)((client->idle_rings.free_ns + RING_REST_NS - now_ns) / NS_PER_MS));
	shard->count.clients_unheard++;
	client->front->unheard++;
	uv_poll_stop(&client->doorbell_poll);
	timer_set(&shard->timers, &client->unheard, client->idle_rings.free_ns + RING_REST_NS);
}

/* Looks at some of the lanes that a ring has left to be looked at. */
static void
look(struct client *client)
{
	for (uint32_t looks = 0; looks < LOOKS_A_TURN; looks++) {
		struct lane *lane = TAILQ_FIRST(&client->asleep);
		if (lane == NULL || --client->to_look == 0) {
			client->to_look = 0;
			TAILQ_REMOVE(&client->front->looking, client, looking_entry);
			return;
		}
		if (lane_hear(lane) == 0 && lane->place == LANE_ASLEEP) {
			TAILQ_REMOVE(&client->asleep, lane, place_entry);
			TAILQ_INSERT_TAIL(&client->asleep, lane, place_entry);
		}
	}
}

void
client_owe_ring(struct client *client)
{
	if (client->rings_owed <= client->lane_count)
		client->rings_owed++;
}

void
client_look(struct client *client)
{
	look(client);
	if (client->to_look > 0)
		return;
	if (client->rings_owed > 0)
		client->rings_owed--;
	else
		charge_idle_ring(client, client->looks);
}

/*
 * A ring says only that some sleeping lane of this client has a record. They are looked at a few a
 * turn, and the next ring is taken when that has come to its end.
 */
static void
on_doorbell(uv_poll_t *poll, int status, int events)
{
	struct client *client = poll->data;
	uint64_t rings;
	struct iovec iov = { .iov_base = &rings, .iov_len = sizeof(rings) };

	if (client->to_look > 0)
		return;
	shard_refresh_clock(client->shard);
	/* Taken before the lanes are looked at: a ring that comes while we look is not lost. Never blocks,
	 * even if the client has taken O_NONBLOCK off the description it shares with us, and emptied it. */
	if (preadv2(client->doorbell, &iov, 1, -1, RWF_NOWAIT) < 0) {
		charge_idle_ring(client, 0);
		return;
	}
	client->shard->count.doorbells++;
	TAILQ_INSERT_TAIL(&client->front->looking, client, looking_entry);
	client->looks = client->asleep_count;
	client->to_look = client->looks + 1;
	client_look(client);
}
