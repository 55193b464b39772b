#include "build_config.h"

#include "keeper.h"

#include "daemon/front/client.h"
#include "daemon/base/log.h"
#include "daemon/flow/blame.h"
#include "daemon/flow/pool.h"
#include "restore.h"
#include "daemon/flow/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifdef HAVE_SYSTEMD
#include <systemd/sd-daemon.h>
#endif

#define NAME_MAX_LEN 64
#define TEXT_MAX 128
#define LANE_FDS 2u /* ring and answers */

struct saying {
	TAILQ_ENTRY(saying) entry;
	int fds[2]; /* descriptors of its own, to be kept; -1: to be dropped */
	char name[NAME_MAX_LEN];
};

struct back {
	int ring, answers;
	uint64_t nonce;
	struct lane_owner owner;
};

struct keeper {
	struct lane_store store; /* first: the shard points at it */
	struct shard *shard;
	int fd;
	struct sockaddr_un to;
	socklen_t to_len;
	uint32_t room; /* of the store, UINT32_MAX: not known */
	uint32_t kept;
	TAILQ_HEAD(, saying) pending;
	uint32_t pending_count;
	struct timer retry, await;
	struct log_limit limit;
	struct back *back;
	int back_count;
};

/* ---- saying it ---- */

static void
name_make(char name[NAME_MAX_LEN], uint64_t nonce, const struct lane_owner *owner)
{
	snprintf(name, NAME_MAX_LEN, "lane-%016" PRIx64 "-%u-%d", nonce, (unsigned)owner->uid, (int)owner->pid);
}

/* fds: ring and answers, to be kept; NULL: to be dropped. Returns 0, or -TG_EAGAIN, or -TG_ESYSTEM: it will not have it. */
static int
say(const struct keeper *keeper, const char *name, const int *fds)
{
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(LANE_FDS * sizeof(int))];
	} control = { .bytes = { 0 } };
	char text[TEXT_MAX];
	/* No poll: it would only tell the manager that no other process has the memory, which is why it is
	 * kept. */
	int len = snprintf(text, sizeof(text),
	    fds != NULL ? "FDSTORE=1\nFDNAME=%s\nFDPOLL=0" : "FDSTOREREMOVE=1\nFDNAME=%s", name);
	struct iovec iov = { .iov_base = text, .iov_len = (size_t)len };
	struct msghdr msg = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_name = (void *)(uintptr_t)&keeper->to,
		.msg_namelen = keeper->to_len };
	ssize_t n;

	if (fds != NULL) {
		msg.msg_control = control.bytes;
		msg.msg_controllen = sizeof(control.bytes);
		control.head.cmsg_level = SOL_SOCKET;
		control.head.cmsg_type = SCM_RIGHTS;
		control.head.cmsg_len = CMSG_LEN(LANE_FDS * sizeof(int));
		memcpy(CMSG_DATA(&control.head), fds, LANE_FDS * sizeof(int));
	}
	do
		n = sendmsg(keeper->fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n >= 0)
		return 0;
	/* Too many descriptors under way to the manager: it has not read for a while. */
	return errno == EAGAIN || errno == ENOBUFS || errno == ETOOMANYREFS ? -TG_EAGAIN : -TG_ESYSTEM;
}

static int
is_to_keep(const struct saying *saying)
{
	return saying->fds[0] >= 0;
}

static void
saying_free(struct keeper *keeper, struct saying *saying)
{
	TAILQ_REMOVE(&keeper->pending, saying, entry);
	keeper->pending_count--;
	for (unsigned i = 0; i < LANE_FDS; i++)
		if (saying->fds[i] >= 0)
			close(saying->fds[i]);
	free(saying);
}

static void
complain(struct keeper *keeper, const char *name, const char *why)
{
	log_limited(&keeper->limit, LOG_LEVEL_WARN, "lane_not_kept", "name=%s cause=\"%s\"", name, why);
}

static void
say_pending(struct keeper *keeper)
{
	struct saying *saying;

	while ((saying = TAILQ_FIRST(&keeper->pending)) != NULL) {
		int rc = say(keeper, saying->name, is_to_keep(saying) ? saying->fds : NULL);
		if (rc == -TG_EAGAIN)
			return;
		if (rc != 0)
			complain(keeper, saying->name, strerror(errno));
		saying_free(keeper, saying);
	}
}

static void
on_retry(struct timer *timer)
{
	struct keeper *keeper = (struct keeper *)(void *)((char *)timer - offsetof(struct keeper, retry));

	say_pending(keeper);
	if (!TAILQ_EMPTY(&keeper->pending))
		timer_set(&keeper->shard->timers, timer, keeper->shard->now_ns + KEEPER_RETRY_MS * NS_PER_MS);
}

/* Says it later, after what waits already. fds are copied. Returns 0 or why not. */
static const char *
say_later(struct keeper *keeper, const char *name, const int *fds)
{
	struct saying *saying = calloc(1, sizeof(*saying));

	if (saying == NULL)
		return "no memory";
	for (unsigned i = 0; i < LANE_FDS; i++) {
		saying->fds[i] = fds == NULL ? -1 : fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
		if (fds == NULL || saying->fds[i] >= 0)
			continue;
		while (i > 0)
			close(saying->fds[--i]);
		free(saying);
		return "no file descriptors left (LimitNOFILE)";
	}
	snprintf(saying->name, sizeof(saying->name), "%s", name);
	TAILQ_INSERT_TAIL(&keeper->pending, saying, entry);
	keeper->pending_count++;
	timer_set_earlier(
	    &keeper->shard->timers, &keeper->retry, keeper->shard->now_ns + KEEPER_RETRY_MS * NS_PER_MS);
	return NULL;
}

/* Returns NULL, or why not. */
static const char *
tell(struct keeper *keeper, const char *name, const int *fds)
{
	int rc = TAILQ_EMPTY(&keeper->pending) ? say(keeper, name, fds) : -TG_EAGAIN;

	if (rc == 0)
		return NULL;
	if (rc != -TG_EAGAIN)
		return strerror(errno);
	if (fds != NULL && keeper->pending_count >= KEEPER_PENDING)
		return "the service manager does not read";
	return say_later(keeper, name, fds);
}

/* The message that waits to be sent about a lane to keep, or NULL. */
static struct saying *
unsaid(const struct keeper *keeper, const char *name)
{
	struct saying *saying;

	TAILQ_FOREACH (saying, &keeper->pending, entry)
		if (is_to_keep(saying) && strcmp(saying->name, name) == 0)
			return saying;
	return NULL;
}

static void
forget(struct keeper *keeper, const char *name)
{
	struct saying *saying = unsaid(keeper, name);
	const char *why;

	/* A message that was never sent need not be revoked. */
	if (saying != NULL) {
		saying_free(keeper, saying);
		return;
	}
	if ((why = tell(keeper, name, NULL)) != NULL)
		complain(keeper, name, why);
}

static struct keeper *
keeper_of(const struct lane *lane)
{
	return (struct keeper *)lane->shard->store;
}

static void
keep_lane(struct lane_store *store, struct lane *lane)
{
	struct keeper *keeper = (struct keeper *)store;
	char name[NAME_MAX_LEN];
	const char *why;

	name_make(name, lane->nonce, &lane->owner);
	/* The manager's descriptors of a lane that its client brought instead are of no use. */
	if (lane->handed_back)
		forget(keeper, name);
	const int fds[LANE_FDS] = { lane->ring, lane->answers };
	if ((keeper->kept + 1) * LANE_FDS > keeper->room)
		why = "FileDescriptorStoreMax= is reached";
	else
		why = tell(keeper, name, fds);
	if (why != NULL) {
		complain(keeper, name, why);
		return;
	}
	lane->kept = 1;
	keeper->kept++;
}

void
keeper_keep_on(struct lane *lane)
{
	struct keeper *keeper = keeper_of(lane);

	if (keeper == NULL)
		return;
	lane->kept = 1;
	keeper->kept++;
}

int
keeper_has(const struct lane *lane)
{
	const struct keeper *keeper = keeper_of(lane);
	char name[NAME_MAX_LEN];

	if (keeper == NULL || !lane->kept)
		return 0;
	name_make(name, lane->nonce, &lane->owner);
	return unsaid(keeper, name) == NULL;
}

static void
forget_lane(struct lane_store *store, struct lane *lane)
{
	struct keeper *keeper = (struct keeper *)store;
	char name[NAME_MAX_LEN];

	lane->kept = 0;
	keeper->kept--;
	name_make(name, lane->nonce, &lane->owner);
	forget(keeper, name);
}

/* ---- lanes that the manager gives back ---- */

#ifdef HAVE_SYSTEMD
/* A lane's two descriptors come under one name, in any order. */
static void
back_add(struct keeper *keeper, const struct back *named, int fd)
{
	struct back *back = NULL;
	for (int i = 0; i < keeper->back_count && back == NULL; i++)
		if (keeper->back[i].nonce == named->nonce && keeper->back[i].owner.uid == named->owner.uid &&
		    keeper->back[i].owner.pid == named->owner.pid)
			back = &keeper->back[i];
	if (back == NULL) {
		back = &keeper->back[keeper->back_count++];
		*back = *named;
		back->ring = back->answers = -1;
	}
	int *place = lane_is_ring(fd) ? &back->ring : &back->answers;
	if (*place >= 0)
		close(*place);
	*place = fd;
}

/* Whether it is one of ours, and whose. */
static int
name_read(const char *name, struct back *back)
{
	char again[NAME_MAX_LEN];
	unsigned uid;
	int pid;

	if (sscanf(name, "lane-%16" SCNx64 "-%u-%d", &back->nonce, &uid, &pid) != 3)
		return 0;
	back->owner = (struct lane_owner){ .uid = uid, .pid = pid };
	name_make(again, back->nonce, &back->owner);
	return strcmp(again, name) == 0;
}
#endif

int
keeper_inherit(struct keeper *keeper)
{
	int control = -1;
#ifdef HAVE_SYSTEMD
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);
	struct back *back = n > 0 && keeper != NULL ? calloc((size_t)n, sizeof(*back)) : NULL;

	if (keeper != NULL)
		keeper->back = back;
	for (int i = 0; i < n; i++) {
		int fd = SD_LISTEN_FDS_START + i;
		struct back named = { .ring = -1 };
		if (control < 0 && sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) > 0)
			control = fd;
		else if (back != NULL && name_read(names[i], &named))
			back_add(keeper, &named, fd);
		else {
			log_event(LOG_LEVEL_WARN, "descriptor_not_known", "name=%s",
			    log_quote((char[128]){ 0 }, 128, names[i], strlen(names[i])));
			close(fd);
		}
	}
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
#endif
	return control;
}

/* No client has reclaimed these: they are orphans. */
static void
on_await(struct timer *timer)
{
	struct keeper *keeper = (struct keeper *)(void *)((char *)timer - offsetof(struct keeper, await));
	struct shard *shard = keeper->shard;
	struct lane *lane, *next;

	for (uint32_t i = 0; i < shard->pool_count; i++)
		for (lane = TAILQ_FIRST(&shard->pools[i].lanes); lane != NULL; lane = next) {
			next = TAILQ_NEXT(lane, pool_entry);
			if (!lane->unready)
				lane_forsake(lane);
		}
}

/* A pool may be configured again, the binary put back, memory be there: then the manager still has it. */
static void
not_restored(struct keeper *keeper, const char *name, int rc)
{
	log_event(LOG_LEVEL_WARN, "lane_not_restored", "name=%s cause=\"%s\"", name, error_text(rc));
	if (rc == -TG_EBROKEN)
		forget(keeper, name);
}

static void
on_restored(struct restored *restored)
{
	struct lane *lane = restored->lane;
	struct keeper *keeper = keeper_of(lane);
	char name[NAME_MAX_LEN];

	if (restored->rc == 0) {
		blame_begin(lane);
		lane_resume(lane);
		keeper_keep_on(lane);
		lane_await(lane);
		return;
	}
	name_make(name, lane->nonce, &lane->owner);
	close(lane->ring);
	close(lane->answers);
	lane_unmake(lane);
	not_restored(keeper, name, restored->rc);
}

/* Has a lane rebuilt. Returns 0, its descriptors taken, or why not. */
static int
take_back(struct keeper *keeper, struct restore *restore, const struct back *back)
{
	struct shard *shard = keeper->shard;
	struct restored restored = { .owner = back->owner, .kept = 1, .orphan = 1, .done = on_restored };
	struct lane_memory memory = {
		.ring = back->ring, .answers = back->answers, .old_answers = -1, .bell = -1
	};
	int rc = back->ring < 0 || back->answers < 0
		     ? -TG_EBROKEN
		     : lane_header_read(back->answers, &restored.header, &memory.geo);

	if (rc != 0)
		return rc;
	struct pool *pool = shard_pool(shard, restored.header.pool);
	if (pool == NULL)
		return -TG_ENOPOOL;
	if (shard_lane_of(shard, back->nonce, back->ring) != NULL)
		return -TG_EBUSY;
	restored.header.nonce = back->nonce;
	restored.header.lane_id = shard_lane_id(shard, restored.header.lane_id);
	return restore_add(restore, &restored, pool, NULL, &memory, 0);
}

void
keeper_restore(struct keeper *keeper)
{
	uint32_t restored = 0;

	if (keeper == NULL || keeper->back_count == 0)
		return;
	struct restore *restore = restore_new(keeper->shard);
	for (int i = 0; i < keeper->back_count; i++) {
		const struct back *back = &keeper->back[i];
		char name[NAME_MAX_LEN];
		int rc = restore != NULL ? take_back(keeper, restore, back) : -TG_ENOMEM;
		if (rc == 0) {
			restored++;
			continue;
		}
		name_make(name, back->nonce, &back->owner);
		if (back->ring >= 0)
			close(back->ring);
		if (back->answers >= 0)
			close(back->answers);
		not_restored(keeper, name, rc);
	}
	log_event(LOG_LEVEL_INFO, "lanes_restored", "lanes=%u of=%d", restored, keeper->back_count);
	keeper->back_count = 0;
	if (restore != NULL)
		restore_begin(restore);
	timer_set(&keeper->shard->timers, &keeper->await, keeper->shard->now_ns + KEEPER_AWAIT_MS * NS_PER_MS);
}

/* ---- life ---- */

/* As sd_notify(3) has it: a path, or a name of the abstract space. */
static int
address_make(struct keeper *keeper, const char *text)
{
	size_t len = strlen(text);

	keeper->to.sun_family = AF_UNIX;
	if ((text[0] != '/' && text[0] != '@') || len >= sizeof(keeper->to.sun_path))
		return 0;
	memcpy(keeper->to.sun_path, text, len);
	if (text[0] == '@')
		keeper->to.sun_path[0] = '\0';
	keeper->to_len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (text[0] == '/'));
	return 1;
}

int
keeper_new(struct keeper **out, struct shard *shard)
{
#ifdef HAVE_SYSTEMD
	const char *text = getenv("NOTIFY_SOCKET");
#else
	const char *text = NULL; /* why a kept lane could not be restored */
#endif
	const char *room = getenv("FDSTORE");
	struct keeper *keeper;

	*out = NULL;
	if (text == NULL || text[0] == '\0')
		return 0;
	keeper = calloc(1, sizeof(*keeper));
	if (keeper == NULL)
		return -TG_ENOMEM;
	keeper->store = (struct lane_store){ .keep = keep_lane, .forget = forget_lane };
	keeper->shard = shard;
	keeper->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	keeper->room = room != NULL ? (uint32_t)strtoul(room, NULL, 10) : UINT32_MAX;
	keeper->retry.fire = on_retry;
	keeper->await.fire = on_await;
	TAILQ_INIT(&keeper->pending);
	if (keeper->fd < 0 || !address_make(keeper, text)) {
		log_event(LOG_LEVEL_WARN, "store_not_used", "NOTIFY_SOCKET=%s",
		    log_quote((char[128]){ 0 }, 128, text, strlen(text)));
		if (keeper->fd >= 0)
			close(keeper->fd);
		free(keeper);
		return 0;
	}
	if (timers_reserve(&shard->timers) != 0 || timers_reserve(&shard->timers) != 0) {
		close(keeper->fd);
		free(keeper);
		return -TG_ENOMEM;
	}
	shard->store = &keeper->store;
	*out = keeper;
	return 0;
}

void
keeper_free(struct keeper *keeper)
{
	if (keeper == NULL)
		return;
	say_pending(keeper);
	while (!TAILQ_EMPTY(&keeper->pending))
		saying_free(keeper, TAILQ_FIRST(&keeper->pending));
	for (int i = 0; i < keeper->back_count; i++) {
		close(keeper->back[i].ring);
		close(keeper->back[i].answers);
	}
	free(keeper->back);
	close(keeper->fd);
	free(keeper);
}
