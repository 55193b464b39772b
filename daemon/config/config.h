/*
 * The configuration, read and checked: plain structs, no libconfig beyond config.c.
 *
 * Owner: main; read-only once loaded. Every field's default, range and meaning is in
 * tidegated.conf(5), which a test holds against this reader.
 */
#ifndef TG_DAEMON_CONFIG_H
#define TG_DAEMON_CONFIG_H

#include "daemon/base/address.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct driver;
struct config_report;

enum config_balance { BALANCE_WEIGHTED, BALANCE_LEAST, BALANCE_PRIORITY, BALANCE_KEY };
enum config_order { ORDER_BY_LANE, ORDER_BY_KEY, ORDER_BY_NONE };
enum config_on_failure { ON_FAILURE_RESEND, ON_FAILURE_REPORT };

struct config_broker {
	struct address address;
	uint32_t weight;   /* 1..1000; default 1 */
	uint32_t priority; /* 0..100, lower is preferred; default 0 */
};

struct config_health {
	uint32_t connect_timeout_ms; /* 2000; connection, TLS and protocol handshake together */
	uint32_t probe_timeout_ms;   /* 500 */
	uint32_t idle_ms;            /* 1000 */
	uint32_t probe_misses;       /* 3 */
	uint32_t ack_timeout_ms;     /* 3000 */
	uint32_t stall_timeout_ms;   /* 10000 */
};

struct config_breaker {
	uint32_t failures;      /* 3 */
	uint32_t retry_ms;      /* 500 */
	uint32_t retry_max_ms;  /* 10000 */
	uint32_t slow_start_ms; /* 5000 */
	uint32_t share_cap; /* percent of a pool's brokers that may be ejected while they still answer; 50 */
};

struct config_tls {
	int enabled;
	int verify; /* 1 */
	char *ca_file;
	char *cert_file;
	char *key_file;
	char *server_name;
	int min_version; /* 0x0303 TLS 1.2 or 0x0304 TLS 1.3 */
};

struct config_pool {
	char *name;
	const struct driver *driver;
	void *driver_settings; /* driver->settings_size bytes */
	uint32_t links;        /* for each broker; 1..64; 1 */
	enum config_balance balance;
	enum config_order order;
	enum config_on_failure on_failure;
	struct config_broker *brokers;
	uint32_t broker_count;
	uint32_t message_timeout_ms; /* 30000 */
	uint64_t high_bytes;         /* watermarks.high 1048576 */
	uint64_t low_bytes;          /* watermarks.low 262144 */
	uint32_t window_messages;    /* window.messages 1000 */
	uint32_t window_low;         /* window.low 500 */
	uint64_t window_bytes;       /* window.bytes 16777216: unanswered bytes */
	struct config_health health;
	struct config_breaker breaker;
	struct config_tls tls;
};

struct config_limits {
	uint32_t lanes;            /* 4096, of the daemon */
	uint32_t lanes_per_client; /* 1024 */
	uint32_t clients;          /* 16384 */
	uint32_t laneless_ms;      /* 30000: how long a client may be without a lane */
	uint32_t orphan_ms;        /* 600000: how long the records of a client that is gone may live */
	uint64_t ring_bytes;       /* 67108864: the largest ring a lane may have */
	uint64_t memory_bytes;     /* 4294967296: all lanes' shared memory together */
	/* Of one user; 0: as much as is left free (account.h). */
	uint32_t clients_per_user;
	uint32_t lanes_per_user;
	uint32_t orphans_per_user;
	uint64_t memory_per_user;
	uint32_t descriptors_per_user;
};

struct config {
	char *socket;         /* "/run/tidegate/tidegate.sock" */
	uint32_t socket_mode; /* 0666: the kernel checks on this file which users may publish */
	char *admin;          /* "/run/tidegate/admin.sock" */
	uint32_t spin_us;     /* idle.spin_us 50 */
	uint32_t drain_ms;    /* drain_timeout_ms 10000: how long SIGTERM waits for what is in the rings */
	struct config_limits limits;
	struct config_pool *pools;
	uint32_t pool_count;
};

#define CONFIG_POOLS 256u
#define CONFIG_BROKERS 64u /* of a pool */
#define CONFIG_NAME 63u    /* bytes of a pool's name: the room in a lane's header */

#endif
