/*
 * One simulated host: a shard of the real daemon code, brokers on a simulated network, producers
 * with real lanes, and a check of all promises at every step.
 *
 *   sim.c          the run: configuration, clock, steps
 *   broker_sim.c   the brokers' application
 *   driver_sim.c   their protocol, on the daemon's side
 *   producer_sim.c producers: the library's behaviour, and misbehaving applications
 *   check_sim.c    the promises
 *
 * The ledger has the fate of every record: given to a socket, stored, acknowledged, completed. A record is
 * `finished` when its completion is committed.
 *
 * One thread; no globals but the log's.
 */
#ifndef TG_TESTS_SIM_H
#define TG_TESTS_SIM_H

#include "world_sim.h"

#include "daemon/front/client.h"
#include "daemon/front/front.h"
#include "daemon/config/config.h"
#include "daemon/lane/lane.h"
#include "daemon/flow/pool.h"
#include "daemon/flow/shard.h"

#include <stdint.h>

#define SIM_BROKERS 4u
#define SIM_MS(n) ((uint64_t)(n)*NS_PER_MS)
#define SIM_S(n) SIM_MS((n)*1000)

struct sim;

/* ---- the ledger's entry for a record ---- */

struct entry {
	uint64_t position;
	uint64_t published_ns;
	uint64_t deadline_ns;
	uint64_t seen; /* on which connections it arrived: a bit for each, by id */
	uint64_t finished_ns;
	uint32_t size;
	uint32_t key;
	uint32_t expiry_ms; /* 0: none */
	uint32_t arrivals;  /* at any broker */
	uint32_t given;     /* attempts of which a socket got a byte, minus those the broker reported as not
	 * kept */
	uint8_t acked, nacked, refused, cancelled;
	uint8_t closed_over; /* connections that a broker closed because it came */
	uint8_t outcome;     /* 0: not finished */
	uint8_t broker;      /* which acknowledged it first */
};

/* ---- producers ---- */

struct producer {
	struct sim *sim;
	struct lane *lane; /* NULL: the daemon has let it go */
	uint64_t id;
	struct lane_map map;
	int bell;
	struct sq_producer sq;
	struct cq_consumer cq;
	struct wake_ringer ringer;
	struct wake_sleeper nap;
	uint64_t published; /* records, as in libclient */
	struct entry *ledger;
	uint32_t count, capacity;
	uint32_t found; /* index of the entry last looked for */
	uint32_t unfinished;
	uint32_t scribbled_to; /* index of the first entry whose bytes are not released */
	uint64_t audited;      /* completions looked at */
	uint64_t head_checked;
	int sleeping; /* until the bell rings */
	int closed;
	int unheard; /* missed that the daemon fell asleep, and does not ring */
	/* how it behaves */
	uint64_t every_ns; /* between bursts; 0: it only publishes by hand */
	uint32_t burst;
	uint32_t body_low, body_high;
	uint32_t keys; /* that its messages have in turn; 0: one */
	double cancel, own_timeout, large;
	const char *topic;       /* of what it publishes by itself */
	uint64_t reads_every_ns; /* completions; 0: whenever it is awake */
	uint64_t stop_ns;        /* publishes no more from then on */
	uint64_t generation;     /* of its timer */
	uint64_t wrong_times;    /* publishes that found no room */
	struct {
		uint64_t outcome[8];
	} done;
	uint64_t taken_upto; /* by a broker that acknowledges */
	uint64_t overtaken;  /* taken after a younger one */
};

/* ---- brokers ---- */

enum ack_mode { ACK_UPTO, ACK_SINGLE, ACK_SHUFFLED, ACK_NONE };

/* Topics that mean something. */
#define TOPIC_GOOD "t"
#define TOPIC_REFUSED "!"  /* the driver refuses it */
#define TOPIC_CLOSES "?"   /* a broker closes the connection, without a word */
#define TOPIC_WORDS "?!"   /* ... and says that it is because of a message */
#define TOPIC_SILENT "..." /* a broker never answers it */
#define TOPIC_LATE ".."    /* a broker answers it after SIM_LATE_NS */
#define SIM_LATE_NS SIM_S(1)

extern int driver_sim_in_input; /* the driver is being given bytes: its session must not go */

struct sim_broker {
	struct sim *sim;
	struct host *host;
	struct broker *broker; /* the daemon's */
	unsigned index;
	enum ack_mode ack_mode;
	uint64_t ack_ns;
	double nack, again;
	int frozen;         /* the application does nothing; its TCP lives */
	int blocked;        /* has said so, and does not read */
	int mute;           /* answers probes, acknowledges nothing */
	int leaves_at_once; /* its first frame asks the client to leave */
	uint64_t slow_ns;   /* reads one message per this time; 0: without delay */
	uint32_t window;    /* tells it to clients; 0: does not */
	uint32_t places;    /* connections it accepts; further ones are reset at their first bytes; 0: no
	 * limit */
	uint32_t tells;     /* hosts it announces to clients, a bit for each */
	int leaderless;     /* refuses every message for now, and says so */
	int refuses;        /* its protocol's rules allow nothing */
	TAILQ_HEAD(app_list, app) apps;
	struct app_list ending; /* over, and referred to by events */
	uint64_t stored;        /* messages that arrived */
	uint64_t firsts;        /* of them, those that no broker had received before */
	uint64_t accepted;      /* connections */
	uint64_t closed_over;   /* of them, those it closed because of a message */
};

/* ---- the whole ---- */

struct link_watch {
	uint64_t failures;
	uint64_t failed_ns;
	uint64_t wait_ns; /* the least the back-off allows after that failure */
	uint64_t attempts;
	uint32_t counted; /* link->failed, a step ago */
	int suspect;
};

struct sim {
	struct sim_world w;
	struct chance chance; /* the producers' and the schedule's */
	uint64_t seed;
	int trace;
	struct config config;
	struct config_pool pool_config;
	struct config_broker broker_configs[SIM_BROKERS];
	char names[SIM_BROKERS][32];
	struct sim *settings; /* the driver's */
	struct shard shard;
	struct front front;
	struct pool *pool;
	struct sim_broker brokers[SIM_BROKERS];
	struct client client;
	struct producer **producers;
	uint32_t producer_count;
	uint32_t live_from; /* producers before this one are done and checked */
	uint64_t bells;
	int doorbell_posted;
	uint32_t credit; /* the driver's own window; 0: none */
	int sums_up;     /* the driver says EV_ACK_UPTO for the oldest unanswered message, as most drivers do */
	int tells_numbers; /* brokers tell of others by number, not by name */
	struct link_watch watch[SIM_BROKERS * 64];
	uint64_t broker_ready_ns[SIM_BROKERS];
	uint64_t broker_opened[SIM_BROKERS];
	int was_usable;
	uint64_t suspects, failed; /* transitions seen */
	uint64_t turns;
};

/* Everything with defaults: brokers, one link each; change sim->pool_config, then sim_start. */
void sim_init(struct sim *sim, uint64_t seed, unsigned brokers);
void sim_start(struct sim *sim);
/* Ends it and checks that nothing is left. */
void sim_fini(struct sim *sim);

/* Runs until then, checking. */
void sim_run_for(struct sim *sim, uint64_t ns);
/* Runs until cond holds; returns whether it did within ns. */
int sim_run_until(struct sim *sim, int (*cond)(struct sim *sim), uint64_t ns);
/* Every record finished? Runs until then, and is an error if it takes longer. */
void sim_settle(struct sim *sim, uint64_t ns);

/* A promise is broken: prints which one and how to replay, and aborts. */
void sim_fail(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void sim_trace(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

struct link *sim_link(struct sim *sim, unsigned broker, unsigned link);
int sim_all_ready(struct sim *sim);

/* driver_sim.c */
extern const struct driver driver_sim;

/* broker_sim.c */
/* Its place among its pool's brokers. */
static inline unsigned
broker_number(const struct broker *broker)
{
	return (unsigned)(broker - broker->peers->list);
}

void sim_broker_init(struct sim_broker *broker, struct sim *sim, unsigned index);
void sim_broker_fini(struct sim_broker *broker);
void sim_broker_crash(struct sim_broker *broker); /* the port is closed; connections are reset */
void sim_broker_start(struct sim_broker *broker);
void sim_broker_freeze(struct sim_broker *broker, int frozen);
void sim_broker_block(struct sim_broker *broker, int blocked);
void sim_broker_mute(struct sim_broker *broker, int mute);
void sim_broker_slow(struct sim_broker *broker, uint64_t ns);
void sim_broker_leave(struct sim_broker *broker); /* asks its clients to go */

/* producer_sim.c */
struct producer *sim_producer(struct sim *sim, uint64_t sq_bytes);
void producer_free(struct producer *producer);
/* Publishes by itself from now on. */
void producer_go(struct producer *producer, uint64_t every_ns, uint32_t burst);
/* As another process's, of another user: each is its own when it begins (uid and pid 1000 + id). */
void producer_own(struct producer *producer, uid_t uid, pid_t pid);
/* Publishes one to that topic, with the pool's timeout. Returns 0 or -TG_EAGAIN. */
int producer_publish_to(struct producer *producer, const char *topic);
/* Publishes one. Returns 0 or -TG_EAGAIN. timeout_ms: 0: the pool's. */
int producer_publish(struct producer *producer, uint32_t body_len, uint32_t timeout_ms);

/* … that is of use for so long. 0: for ever. */
int producer_publish_for(struct producer *producer, uint32_t body_len, uint32_t timeout_ms, uint32_t expiry_ms);
/* Its publish is over: rings if the daemon sleeps. */
void producer_ring(struct producer *producer);
void producer_close(struct producer *producer);
void producer_read(struct producer *producer); /* consumes its completions */
void producers_on_bells(struct sim *sim);
struct entry *producer_entry(struct producer *producer, uint64_t position);
struct producer *sim_producer_of(struct sim *sim, uint64_t lane_id);
/* Fills in the expected body. */
void body_fill(uint8_t *body, uint32_t len, uint64_t lane_id, uint64_t position);
int body_is_right(const uint8_t *body, uint32_t len, uint64_t lane_id, uint64_t position);
uint64_t sim_done(const struct sim *sim, uint8_t outcome);
uint64_t sim_published(const struct sim *sim);

/* check_sim.c */
void check_step(struct sim *sim);
void check_publish(struct sim *sim, struct link *link, const struct lane *lane, const struct message *message);
void check_producer(struct producer *producer);
void check_on_resolve(void *sim, void *link);
void check_end(struct sim *sim);

#endif
