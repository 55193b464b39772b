/* The configuration's keys: default, range, and the complaint about each wrong value. */
#include "config_scratch.h"

#include "certificates.h"
#include "daemon/config/config_keys.h"
#include "daemon/protocol/drivers.h"
#include "shm/error.h"

#include <stdio.h>
#include <string.h>

static void
defaults_match_the_table(void **state)
{
	struct config *config = load_good(POOL(""));
	const struct config_pool *pool = &config->pools[0];

	(void)state;
	assert_string_equal(config->socket, "/run/tidegate/tidegate.sock");
	assert_string_equal(config->admin, "/run/tidegate/admin.sock");
	assert_int_equal(config->socket_mode, 0666);
	assert_int_equal(config->spin_us, 50);
	assert_int_equal(config->drain_ms, 10000);
	assert_int_equal(config->limits.lanes, 4096);
	assert_int_equal(config->limits.lanes_per_client, 1024);
	assert_int_equal(config->limits.clients, 16384);
	assert_int_equal(config->limits.orphan_ms, 600000);
	assert_int_equal(config->limits.ring_bytes, 67108864);
	assert_int_equal(config->limits.memory_bytes, UINT64_C(4294967296));
	assert_int_equal(config->pool_count, 1);
	assert_string_equal(pool->name, "p");
	assert_ptr_equal(pool->driver, driver_find("mqtt"));
	assert_non_null(pool->driver_settings);
	assert_int_equal(pool->links, 1);
	assert_int_equal(pool->balance, BALANCE_WEIGHTED);
	assert_int_equal(pool->order, ORDER_BY_LANE);
	assert_int_equal(pool->on_failure, ON_FAILURE_RESEND);
	assert_int_equal(pool->message_timeout_ms, 30000);
	assert_int_equal(pool->high_bytes, 1048576);
	assert_int_equal(pool->low_bytes, 262144);
	assert_int_equal(pool->window_messages, 1000);
	assert_int_equal(pool->window_low, 500);
	assert_int_equal(pool->window_bytes, 16777216);
	assert_int_equal(pool->health.connect_timeout_ms, 2000);
	assert_int_equal(pool->health.probe_timeout_ms, 500);
	assert_int_equal(pool->health.idle_ms, 1000);
	assert_int_equal(pool->health.probe_misses, 3);
	assert_int_equal(pool->health.ack_timeout_ms, 3000);
	assert_int_equal(pool->health.stall_timeout_ms, 10000);
	assert_int_equal(pool->breaker.failures, 3);
	assert_int_equal(pool->breaker.retry_ms, 500);
	assert_int_equal(pool->breaker.retry_max_ms, 10000);
	assert_int_equal(pool->breaker.slow_start_ms, 5000);
	assert_int_equal(pool->breaker.share_cap, 50);
	assert_int_equal(pool->tls.enabled, 0);
	assert_int_equal(pool->broker_count, 1);
	assert_string_equal(pool->brokers[0].address.host, "h");
	assert_int_equal(pool->brokers[0].address.port, 1883);
	assert_int_equal(pool->brokers[0].weight, 1);
	assert_int_equal(pool->brokers[0].priority, 0);
	config_free(config);
}

static void
every_key_is_read(void **state)
{
	(void)state;
	certificate_write("ca.pem", "key.pem", "ca", 30);
	struct config *config = load_good(
	    "socket = \"/s\"; socket_mode = \"0660\"; admin = \"/a\"; drain_timeout_ms = 1L;\n"
	    "idle = { spin_us = 0; };\n"
	    "limits = { lanes = 2; lanes_per_client = 1; clients = 3; orphan_ms = 1000; ring_bytes = 16384; memory_bytes = "
	    "99999999999; clients_per_user = 4; lanes_per_user = 5; orphans_per_user = 6;\n"
	    " memory_per_user = 88888888888; descriptors_per_user = 7; };\n"
	    "pools = ( { name = \"A.b_c-9\"; protocol = \"mqtt\"; links = 0x10; balance = \"key\"; order = "
	    "\"none\";\n"
	    " on_failure = \"report\"; message_timeout_ms = 604800000;\n"
	    " brokers = ( { address = \"[::1]\"; weight = 1000; priority = 100; }, { address = \"unix:/b\"; } "
	    ");\n"
	    " watermarks = { high = 8192; low = 0; }; window = { messages = 2; low = 1; bytes = 1099511627776; "
	    "};\n"
	    " health = { connect_timeout_ms = 11; probe_timeout_ms = 12; idle_ms = 13; probe_misses = 4;\n"
	    "  ack_timeout_ms = 15; stall_timeout_ms = 61; };\n"
	    " breaker = { failures = 1; retry_ms = 10; retry_max_ms = 10; slow_start_ms = 0; share_cap = 100; "
	    "};\n"
	    " tls = { verify = false; ca_file = \"ca.pem\"; cert_file = \"ca.pem\"; key_file = \"key.pem\";\n"
	    "  server_name = \"mq.example.net\"; min_version = \"1.3\"; };\n"
	    " mqtt = { version = 4; qos = 0; }; } );\n");
	const struct config_pool *pool = &config->pools[0];

	assert_string_equal(config->socket, "/s");
	assert_string_equal(config->admin, "/a");
	assert_int_equal(config->socket_mode, 0660);
	assert_int_equal(config->drain_ms, 1);
	assert_int_equal(config->spin_us, 0);
	assert_int_equal(config->limits.lanes, 2);
	assert_int_equal(config->limits.lanes_per_client, 1);
	assert_int_equal(config->limits.clients, 3);
	assert_int_equal(config->limits.orphan_ms, 1000);
	assert_int_equal(config->limits.ring_bytes, 16384);
	assert_int_equal(config->limits.memory_bytes, UINT64_C(99999999999));
	assert_int_equal(config->limits.clients_per_user, 4);
	assert_int_equal(config->limits.lanes_per_user, 5);
	assert_int_equal(config->limits.orphans_per_user, 6);
	assert_int_equal(config->limits.memory_per_user, UINT64_C(88888888888));
	assert_int_equal(config->limits.descriptors_per_user, 7);
	assert_string_equal(pool->name, "A.b_c-9");
	assert_int_equal(pool->links, 16);
	assert_int_equal(pool->balance, BALANCE_KEY);
	assert_int_equal(pool->order, ORDER_BY_NONE);
	assert_int_equal(pool->on_failure, ON_FAILURE_REPORT);
	assert_int_equal(pool->message_timeout_ms, 604800000);
	assert_int_equal(pool->broker_count, 2);
	assert_string_equal(pool->brokers[0].address.text, "[::1]");
	assert_string_equal(pool->brokers[0].address.host, "::1");
	assert_int_equal(pool->brokers[0].address.port, 8883);
	assert_int_equal(pool->brokers[0].weight, 1000);
	assert_int_equal(pool->brokers[0].priority, 100);
	assert_null(pool->brokers[1].address.host);
	assert_string_equal(pool->brokers[1].address.path, "/b");
	assert_int_equal(pool->high_bytes, 8192);
	assert_int_equal(pool->low_bytes, 0);
	assert_int_equal(pool->window_messages, 2);
	assert_int_equal(pool->window_low, 1);
	assert_int_equal(pool->window_bytes, UINT64_C(1099511627776));
	assert_int_equal(pool->health.connect_timeout_ms, 11);
	assert_int_equal(pool->health.probe_timeout_ms, 12);
	assert_int_equal(pool->health.idle_ms, 13);
	assert_int_equal(pool->health.probe_misses, 4);
	assert_int_equal(pool->health.ack_timeout_ms, 15);
	assert_int_equal(pool->health.stall_timeout_ms, 61);
	assert_int_equal(pool->breaker.failures, 1);
	assert_int_equal(pool->breaker.retry_ms, 10);
	assert_int_equal(pool->breaker.retry_max_ms, 10);
	assert_int_equal(pool->breaker.slow_start_ms, 0);
	assert_int_equal(pool->breaker.share_cap, 100);
	assert_int_equal(pool->tls.enabled, 1);
	assert_int_equal(pool->tls.verify, 0);
	assert_string_equal(pool->tls.ca_file, "ca.pem");
	assert_string_equal(pool->tls.cert_file, "ca.pem");
	assert_string_equal(pool->tls.key_file, "key.pem");
	assert_string_equal(pool->tls.server_name, "mq.example.net");
	assert_int_equal(pool->tls.min_version, 0x0304);
	config_free(config);
}

static void
defaults_follow_the_given_values(void **state)
{
	struct config *config = load_good("limits = { lanes = 7; memory_bytes = 1048576; };\n" POOL(
	    "watermarks = { high = 4096; }; window = { messages = 1; }; message_timeout_ms = 3600000;"));

	(void)state;
	assert_int_equal(config->limits.lanes_per_client, 7);
	assert_int_equal(config->limits.ring_bytes, 1048576);
	assert_int_equal(config->limits.orphan_ms, 3600000);
	assert_int_equal(config->pools[0].low_bytes, 1024);
	assert_int_equal(config->pools[0].window_low, 0);
	config_free(config);
}

static void
socket_mode_is_octal_however_it_is_written(void **state)
{
	static const char *const texts[] = { "\"0640\"", "\"640\"", "0640", "640", "640L" };

	(void)state;
	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		char text[200];
		snprintf(text, sizeof(text), "socket_mode = %s;\n%s", texts[i], POOL(""));
		struct config *config = load_good(text);
		assert_int_equal(config->socket_mode, 0640);
		config_free(config);
	}
}

#define HEALTH_KEYS \
	"connect_timeout_ms, probe_timeout_ms, idle_ms, probe_misses, ack_timeout_ms, stall_timeout_ms"
#define BROKER_KEYS "address, weight, priority"

static void
bad_input_is_told_exactly(void **state)
{
	static const struct {
		const char *text;
		const char *complaint;
	} cases[] = {
		/* Ranges and types. */
		{ POOL("\nhealth = {\nidle_ms = 5; };"), "t.conf:3: pools[0].health.idle_ms: 5 is not allowed: "
							 "a whole number from 10 to 3600000\n" },
		{ POOL("links = 65;"),
		    "t.conf:1: pools[0].links: 65 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = -1;"),
		    "t.conf:1: pools[0].links: -1 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = 4294967297;"),
		    "t.conf:1: pools[0].links: 4294967297 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = -4294967295;"),
		    "t.conf:1: pools[0].links: -4294967295 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = 0xffffffff01;"),
		    "t.conf:1: pools[0].links: 1099511627521 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = 18446744073709551617;"), "t.conf:1: 18446744073709551617 is not allowed: a "
							 "whole number from -9223372036854775808 to "
							 "9223372036854775807\n" },
		{ POOL("links = 1.5;"),
		    "t.conf:1: pools[0].links: 1.5 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = 1.0;"),
		    "t.conf:1: pools[0].links: 1.0 is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = \"4\";"),
		    "t.conf:1: pools[0].links: \"4\" is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = true;"),
		    "t.conf:1: pools[0].links: true is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = { };"),
		    "t.conf:1: pools[0].links: a group {...} is not allowed: a whole number from 1 to 64\n" },
		{ POOL("links = [ 1 ];"),
		    "t.conf:1: pools[0].links: an array [...] is not allowed: a whole number from 1 to 64\n" },
		{ POOL("tls = { verify = 1; };"),
		    "t.conf:1: pools[0].tls.verify: 1 is not allowed: true or false\n" },
		{ POOL("balance = \"leest\";"), "t.conf:1: pools[0].balance: \"leest\" is not allowed: "
						"\"weighted\", \"least\", \"priority\" or "
						"\"key\"\n" },
		{ POOL("order = 1;"),
		    "t.conf:1: pools[0].order: 1 is not allowed: \"lane\", \"key\" or \"none\"\n" },
		{ POOL("on_failure = \"retry\";"),
		    "t.conf:1: pools[0].on_failure: \"retry\" is not allowed: \"resend\" or \"report\"\n" },
		{ POOL("health = 3;"), "t.conf:1: pools[0].health: 3 is not allowed: a group in braces, as in "
				       "health = { ... };\n" },
		{ "pools = 3;\n",
		    "t.conf:1: pools: 3 is not allowed: a list in parentheses, as in pools = ( ..., ... );\n" },
		{ "pools = ( 3 );\n", "t.conf:1: pools[0]: 3 is not allowed: a group in braces\n" },
		{ "socket_mode = 0999;\n" POOL(""),
		    "t.conf:1: socket_mode: 999 is not allowed: an octal file mode from 0000 to 0777\n" },
		{ "socket_mode = \"01777\";\n" POOL(""),
		    "t.conf:1: socket_mode: \"01777\" is not allowed: an octal file mode from 0000 to 0777\n" },
		{ "socket_mode = true;\n" POOL(""),
		    "t.conf:1: socket_mode: true is not allowed: an octal file mode from 0000 to 0777\n" },
		{ "socket = \"run/s\";\n" POOL(""),
		    "t.conf:1: socket: \"run/s\" is not allowed: an absolute path\n" },
		{ "socket = \"\";\n" POOL(""),
		    "t.conf:1: socket: \"\" is not allowed: a string of 1 to 107 bytes\n" },
		{ "socket = \"/a\";\nadmin = \"/a\";\n" POOL(""),
		    "t.conf:2: admin: \"/a\" is not allowed: it is the same as socket\n" },
		/* A value cannot forge a line of the log. */
		{ POOL("balance = \"a\\nt.conf:1: fine\\x1b[2J\";"),
		    "t.conf:1: pools[0].balance: \"a?t.conf:1: fine?[2J\" is not allowed: \"weighted\", "
		    "\"least\", "
		    "\"priority\" or \"key\"\n" },

		/* Unknown keys. */
		{ "sokcet = \"/s\";\n" POOL(""),
		    "t.conf:1: sokcet: unknown key; did you mean socket? Allowed here: " ROOT_KEYS "\n" },
		{ POOL("\nhealth = {\nidle = 5; };"), "t.conf:3: pools[0].health.idle: unknown key; did you "
						      "mean idle_ms? Allowed here: " HEALTH_KEYS "\n" },
		{ POOL("health = { zzzzzzzzzz = 5; };"),
		    "t.conf:1: pools[0].health.zzzzzzzzzz: unknown key. Allowed here: " HEALTH_KEYS "\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\"; brokers = ( { address = \"h\"; wieght = 2; } "
		  "); } );\n",
		    "t.conf:1: pools[0].brokers[0].wieght: unknown key; did you mean weight? Allowed "
		    "here: " BROKER_KEYS "\n" },
		{ POOL("mqtt = { pasword_file = \"x\"; };"),
		    "t.conf:1: pools[0].mqtt.pasword_file: unknown key; did you mean password_file? Allowed "
		    "here: "
		    "version, qos, dollar_topics, username, password_file, client_id_prefix\n" },

		/* Missing. */
		{ "", "t.conf: pools: missing: a list of 1 to 256 pools\n" },
		{ "pools = ( );\n", "t.conf:1: pools: 0 pools are not allowed: 1 to 256\n" },
		{ "pools = ( { } );\n",
		    "t.conf:1: pools[0].name: missing: a string of 1 to 63 bytes\n"
		    "t.conf:1: pools[0].protocol: missing: the name of a driver, such as \"mqtt\"\n"
		    "t.conf:1: pools[0].brokers: missing: a list of 1 to 64 brokers\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\"; brokers = ( ); } );\n",
		    "t.conf:1: pools[0].brokers: 0 brokers are not allowed: 1 to 64\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\";\nbrokers = (\n{ weight = 2; } ); } );\n",
		    "t.conf:3: pools[0].brokers[0].address: missing: host:port, [v6]:port or unix:/path\n" },

		/* Names and protocols. */
		{ "pools = ( { name = \"a b\"; protocol = \"mqtt\"; " BROKER " } );\n",
		    "t.conf:1: pools[0].name: \"a b\" is not allowed: only the characters A-Z a-z 0-9 _ . - "
		    "stand in a "
		    "name\n" },
		{ "pools = ( { name = \"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\"; "
		  "protocol = "
		  "\"mqtt\"; " BROKER " } );\n",
		    "t.conf:1: pools[0].name: "
		    "\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa...\" is not "
		    "allowed: a string of 1 to 63 bytes\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\"; " BROKER
		  " },\n{ name = \"p\"; protocol = \"mqtt\"; " BROKER " } );\n",
		    "t.conf:2: pools[1].name: \"p\" is not allowed: pools[0] has this name\n" },

		/* Keys that contradict each other. */
		{ POOL("watermarks = { high = 4096;\nlow = 4096; };"),
		    "t.conf:2: pools[0].watermarks.low: 4096 is not allowed: less than high, which is 4096\n" },
		{ POOL("window = { messages = 9; low = 9; };"),
		    "t.conf:1: pools[0].window.low: 9 is not allowed: less than messages, which is 9\n" },
		{ POOL("window = { low = 1000; };"),
		    "t.conf:1: pools[0].window.low: 1000 is not allowed: less than messages, which is 1000\n" },
		{ POOL("breaker = { retry_ms = 10001; };"),
		    "t.conf:1: pools[0].breaker.retry_max_ms: 10000 is not allowed: at least retry_ms, which "
		    "is 10001\n" },
		{ POOL("health = { probe_misses = 19; };"), "t.conf:1: pools[0].health.stall_timeout_ms: 10000 "
							    "is not allowed: at least idle_ms + probe_misses "
							    "* probe_timeout_ms, which is 10500\n" },
		{ POOL("health = { ack_timeout_ms = 10001; };"),
		    "t.conf:1: pools[0].health.stall_timeout_ms: 10000 is not allowed: at least "
		    "ack_timeout_ms, which is "
		    "10001\n" },
		{ POOL("balance = \"key\";"), "t.conf:1: pools[0].balance: \"key\" is not allowed with order "
					      "\"lane\", where all records of a lane "
					      "ride one link\n" },
		{ "limits = { lanes = 5; lanes_per_client = 6; };\n" POOL(""),
		    "t.conf:1: limits.lanes_per_client: 6 is not allowed: at most lanes, which is 5\n" },
		{ "limits = { ring_bytes = 65536; memory_bytes = 36864; };\n" POOL(""),
		    "t.conf:1: limits.ring_bytes: 65536 is not allowed: at most memory_bytes, which is "
		    "36864\n" },
		{ POOL("tls = { cert_file = \"t.conf\"; };"),
		    "t.conf:1: pools[0].tls: cert_file and key_file are given together or not at all\n" },
		{ POOL("tls = { ca_file = \"none.pem\"; };"),
		    "t.conf:1: pools[0].tls.ca_file: none.pem cannot be read: No such file or directory\n" },
		{ POOL("tls = { ca_file = \"/\"; };"),
		    "t.conf:1: pools[0].tls.ca_file: / is not a regular file\n" },
		{ POOL("tls = { server_name = \"a b\"; };"),
		    "t.conf:1: pools[0].tls.server_name: \"a b\" is not allowed: a host name\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\"; brokers = ( { address = \"unix:/b\"; } ); "
		  "tls = { }; } );\n",
		    "t.conf:1: pools[0].brokers[0].address: \"unix:/b\" is not allowed with TLS unless "
		    "tls.server_name "
		    "says whose certificate to expect\n" },
		{ "pools = ( { name = \"p\"; protocol = \"mqtt\";\n"
		  "brokers = ( { address = \"h\"; },\n{ address = \"H:1883\"; } ); } );\n",
		    "t.conf:3: pools[0].brokers[1].address: \"H:1883\" is not allowed: brokers[0] has this "
		    "address\n" },

		/* Syntax. */
		{ "pools = (\n{ name = 3\n", "t.conf:3: syntax error\n" },
		{ "idle = { spin_us 5; };\n", "t.conf:1: syntax error at or before: idle = { spin_us 5; };\n" },
		{ "drain_timeout_ms = 1;\ndrain_timeout_ms = 2;\n",
		    "t.conf:2: duplicate setting name at or before: drain_timeout_ms = 2;\n" },
		{ "idle = { };\nsocket = \"abc;\nadmin = 1;\n", "t.conf:2: this string has no closing \"\n" },
		{ "idle = { };\n/* abc;\nadmin = 1;\n", "t.conf:2: this comment has no closing */\n" },
		{ "\n@include a.conf\n",
		    "t.conf:2: @include is not followed by a file name in double quotes\n" },
		{ "\n@include \"a\n\"\n",
		    "t.conf:2: @include is not followed by a file name in double quotes\n" },
		{ "\n@include \"none.conf\"\n",
		    "t.conf:2: @include: none.conf cannot be read: No such file or directory\n" },
		{ "# me\n@include \"t.conf\"\n",
		    "t.conf:2: @include \"t.conf\": files include each other more than 8 deep\n" },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		expect(cases[i].text, cases[i].complaint);
}

static void
all_errors_are_told_in_one_run(void **state)
{
	(void)state;
	expect("socket = 5;\nidle = { spin_us = -1; };\nfoo = 1;\n"
	       "pools = ( { name = \"p\"; protocol = \"mqt\"; links = 0; " BROKER " mqtt = { }; },\n"
	       "{ name = \"q\"; protocol = \"mqtt\"; brokers = ( { address = \"h:0\"; }, \"x\" ); mqtt = { qos "
	       "= 2; }; } );\n",
	    "t.conf:1: socket: 5 is not allowed: a string of 1 to 107 bytes\n"
	    "t.conf:2: idle.spin_us: -1 is not allowed: a whole number from 0 to 10000\n"
	    "t.conf:4: pools[0].links: 0 is not allowed: a whole number from 1 to 64\n"
	    "t.conf:4: pools[0].protocol: \"mqt\" is not allowed: DRIVERS\n"
	    "t.conf:5: pools[1].brokers[0].address: \"h:0\" is not allowed: a port from 1 to 65535\n"
	    "t.conf:5: pools[1].brokers[1]: \"x\" is not allowed: a group in braces\n"
	    "t.conf:5: pools[1].mqtt.qos: 2 is not allowed: a whole number from 0 to 1\n"
	    "t.conf:3: foo: unknown key. Allowed here: " ROOT_KEYS "\n");
}

static void
addresses_are_parsed_or_refused(void **state)
{
	static const struct {
		const char *text;
		const char *host;
		const char *path;
		unsigned port;
	} good[] = {
		{ "h", "h", NULL, 7 },
		{ "h:1", "h", NULL, 1 },
		{ "mq-1.example.net.:65535", "mq-1.example.net.", NULL, 65535 },
		{ "a_b:01883", "a_b", NULL, 1883 },
		{ "127.0.0.1:1883", "127.0.0.1", NULL, 1883 },
		{ "[::1]", "::1", NULL, 7 },
		{ "[fe80::1%eth0]:1883", "fe80::1%eth0", NULL, 1883 },
		{ "[::ffff:10.0.0.1]:9", "::ffff:10.0.0.1", NULL, 9 },
		{ "unix:/run/b.sock", NULL, "/run/b.sock", 0 },
	};
	static const struct {
		const char *text;
		const char *why;
	} bad[] = {
		{ "", "a host name or address before the port" },
		{ ":1883", "a host name or address before the port" },
		{ "h:", "a port from 1 to 65535 behind the colon" },
		{ "h:x", "a port from 1 to 65535 behind the colon, in digits" },
		{ "h:-1", "a port from 1 to 65535 behind the colon, in digits" },
		{ "h:18 83", "a port from 1 to 65535 behind the colon, in digits" },
		{ "h:0", "a port from 1 to 65535" },
		{ "h:70000", "a port from 1 to 65535" },
		{ "h:99999999999999999999999", "a port from 1 to 65535" },
		{ "::1", "an IPv6 address in brackets, as in [::1]:1883" },
		{ "::1:1883", "an IPv6 address in brackets, as in [::1]:1883" },
		{ "[::1", "an IPv6 address that ends in ], as in [::1]:1883" },
		{ "[::g]:1", "an IPv6 address in the brackets" },
		{ "[]:1", "an IPv6 address in the brackets" },
		{ "[::1%]:1", "an IPv6 address in the brackets" },
		{ "[127.0.0.1]:1", "an IPv6 address in the brackets" },
		{ "[::1]1883", "nothing or :port behind the ]" },
		{ "1883", "a host name of at most 253 letters, digits, - _ and ., or an IPv4 address" },
		{ "300.1.1.1:1", "a host name of at most 253 letters, digits, - _ and ., or an IPv4 address" },
		{ "a..b", "a host name of at most 253 letters, digits, - _ and ., or an IPv4 address" },
		{ "tcp://h:1", "host:port, without a scheme in front" },
		{ "a b:1", "a host name of at most 253 letters, digits, - _ and ., or an IPv4 address" },
		{ "unix:", "an absolute path behind unix:" },
		{ "unix:run/b", "an absolute path behind unix:" },
	};
	struct address address;
	const char *why = NULL;
	char long_path[120] = "unix:/";

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (address_parse(&address, good[i].text, 7, &why) != 0)
			fail_msg("%s: %s", good[i].text, why);
		assert_string_equal(address.text, good[i].text);
		assert_int_equal(address.port, good[i].port);
		assert_true((address.host == NULL) == (good[i].host == NULL));
		if (good[i].host != NULL)
			assert_string_equal(address.host, good[i].host);
		else
			assert_string_equal(address.path, good[i].path);
		address_fini(&address);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (address_parse(&address, bad[i].text, 7, &why) != -TG_EINVAL)
			fail_msg("accepted: %s", bad[i].text);
		assert_string_equal(why, bad[i].why);
		assert_null(address.text);
	}
	memset(long_path + 6, 'x', 107);
	assert_int_equal(address_parse(&address, long_path, 7, &why), -TG_EINVAL);
	assert_string_equal(why, "a path of at most 107 bytes behind unix:");
	long_path[5 + 107] = '\0';
	assert_int_equal(address_parse(&address, long_path, 7, &why), 0);
	address_fini(&address);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		IN_SCRATCH(defaults_match_the_table),
		IN_SCRATCH(every_key_is_read),
		IN_SCRATCH(defaults_follow_the_given_values),
		IN_SCRATCH(socket_mode_is_octal_however_it_is_written),
		IN_SCRATCH(bad_input_is_told_exactly),
		IN_SCRATCH(all_errors_are_told_in_one_run),
		IN_SCRATCH(addresses_are_parsed_or_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
