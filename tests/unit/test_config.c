/* The configuration: what is read, what is refused and in which words, and the manual against both. */
#include "daemon/config.h"
#include "daemon/config_keys.h"
#include "daemon/config_node.h"
#include "daemon/config_source.h"
#include "daemon/protocol/driver.h"
#include "shm/error.h"
#include "certificates.h"

#include <ctype.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define FILE_NAME "t.conf"
#define BROKER "brokers = ( { address = \"h\"; } );"
#define POOL(more) "pools = ( { name = \"p\"; protocol = \"mqtt\"; " BROKER " " more " } );\n"

/* The allocation that fails, counted from 1; 0: none does. */
static unsigned long fail_at, allocations;

static int
fails(void)
{
	return fail_at != 0 && ++allocations == fail_at;
}

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t len);
void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t len);
int __wrap_asprintf(char **text, const char *format, ...) __attribute__((format(printf, 2, 3)));

void *
__wrap_malloc(size_t size)
{
	return fails() ? NULL : __real_malloc(size);
}

void *
__wrap_calloc(size_t count, size_t size)
{
	return fails() ? NULL : __real_calloc(count, size);
}

void *
__wrap_realloc(void *old, size_t size)
{
	return fails() ? NULL : __real_realloc(old, size);
}

char *
__wrap_strdup(const char *text)
{
	return fails() ? NULL : __real_strdup(text);
}

char *
__wrap_strndup(const char *text, size_t len)
{
	return fails() ? NULL : __real_strndup(text, len);
}

int
__wrap_asprintf(char **text, const char *format, ...)
{
	va_list args;

	if (fails())
		return -1;
	va_start(args, format);
	int n = vasprintf(text, format, args);
	va_end(args);
	return n;
}

/* libconfig 1.5 loses a string that is the very word a syntax error is about: 64 bytes a file. */
const char *__lsan_default_suppressions(void) __attribute__((visibility("default")));

const char *
__lsan_default_suppressions(void)
{
	return "leak:strbuf_append\n";
}

struct complaints {
	char text[65536];
	size_t used;
	unsigned lines;
};

static void
complain(void *owner, const char *line)
{
	struct complaints *complaints = owner;

	for (const char *at = line; *at != '\0'; at++)
		assert_false(iscntrl((unsigned char)*at));
	complaints->lines++;
	if (complaints->used + strlen(line) + 2 < sizeof(complaints->text))
		complaints->used += (size_t)sprintf(complaints->text + complaints->used, "%s\n", line);
}

static void
write_file(const char *name, const void *bytes, size_t len, mode_t mode)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, bytes, len), (ssize_t)len);
	assert_int_equal(fchmod(fd, mode), 0);
	close(fd);
}

static void
write_text(const char *name, const char *text)
{
	write_file(name, text, strlen(text), 0644);
}

/* The text of a file of the source tree; good until the next call. */
static char *
read_text(const char *name)
{
	static char text[65536];
	FILE *file = fopen(name, "re");

	assert_non_null(file);
	size_t len = fread(text, 1, sizeof(text), file);
	assert_true(len < sizeof(text));
	text[len] = '\0';
	fclose(file);
	return text;
}

static int
load(const char *file, struct config **config, struct complaints *complaints)
{
	struct config_report report = { .print = complain, .owner = complaints };

	memset(complaints, 0, sizeof(*complaints));
	*config = NULL;
	int error = config_load(config, file, &report);
	assert_int_equal(report.errors, complaints->lines);
	assert_true((error == 0) == (*config != NULL));
	if (error == 0)
		assert_int_equal(report.errors, 0);
	if (error == -TG_EINVAL)
		assert_true(report.errors > 0);
	return error;
}

static struct config *
load_good(const char *text)
{
	static struct complaints complaints;
	struct config *config = NULL;

	write_text(FILE_NAME, text);
	int error = load(FILE_NAME, &config, &complaints);
	if (error != 0)
		fail_msg("%s", complaints.text);
	return config;
}

/* In what is expected, DRIVERS stands for every driver's name, as complaints list choices. */
static void
expand_drivers(const char *from, char *to, size_t size)
{
	const char *at = strstr(from, "DRIVERS");
	size_t len = 0;

	if (at == NULL) {
		snprintf(to, size, "%s", from);
		return;
	}
	len += (size_t)snprintf(to, size, "%.*s", (int)(at - from), from);
	for (unsigned i = 0; driver_list[i] != NULL; i++)
		len += (size_t)snprintf(to + len, size - len, "%s\"%s\"", i == 0                     ? ""
		    : driver_list[i + 1] == NULL ? " or "
						 : ", ",
		    driver_list[i]->name);
	snprintf(to + len, size - len, "%s", at + strlen("DRIVERS"));
}

static void
expect(const char *text, const char *complaint)
{
	char expanded[4096];
	static struct complaints complaints;
	struct config *config = NULL;

	write_text(FILE_NAME, text);
	if (load(FILE_NAME, &config, &complaints) == 0) {
		config_free(config);
		fail_msg("accepted: %s", text);
	}
	expand_drivers(complaint, expanded, sizeof(expanded));
	assert_string_equal(complaints.text, expanded);
}

static int
enter_scratch(void **state)
{
	char *folder = strdup("/tmp/tidegate-config-XXXXXX");

	assert_non_null(folder);
	assert_non_null(mkdtemp(folder));
	assert_int_equal(chdir(folder), 0);
	*state = folder;
	return 0;
}

static int
leave_scratch(void **state)
{
	static const char *const names[] = { FILE_NAME, "a.conf", "sub/b.conf", "sub/c.conf", "pw", "ca.pem",
		"key.pem", "sub" };
	char *folder = *state;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		remove(names[i]);
	assert_int_equal(chdir("/"), 0);
	assert_int_equal(rmdir(folder), 0);
	free(folder);
	return 0;
}

static void
defaults_are_what_the_table_says(void **state)
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
	    "limits = { lanes = 2; lanes_per_client = 1; clients = 3; ring_bytes = 16384; memory_bytes = "
	    "99999999999; };\n"
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
	assert_int_equal(config->limits.ring_bytes, 16384);
	assert_int_equal(config->limits.memory_bytes, UINT64_C(99999999999));
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
defaults_follow_what_is_given(void **state)
{
	struct config *config = load_good("limits = { lanes = 7; memory_bytes = 1048576; };\n" POOL(
	    "watermarks = { high = 4096; }; window = { messages = 1; };"));

	(void)state;
	assert_int_equal(config->limits.lanes_per_client, 7);
	assert_int_equal(config->limits.ring_bytes, 1048576);
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

#define ROOT_KEYS "socket, socket_mode, admin, drain_timeout_ms, idle, limits, pools"
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
		/* What a value holds cannot forge a line. */
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
		    "version, qos, username, password_file, client_id_prefix\n" },

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

		/* Keys that do not go together. */
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
		{ "limits = { ring_bytes = 32768; memory_bytes = 24576; };\n" POOL(""),
		    "t.conf:1: limits.ring_bytes: 32768 is not allowed: at most memory_bytes, which is "
		    "24576\n" },
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
unreadable_file_names_path_and_cause(void **state)
{
	static struct complaints complaints;
	struct config *config = NULL;

	(void)state;
	assert_int_equal(load("none.conf", &config, &complaints), -TG_EINVAL);
	assert_string_equal(complaints.text, "none.conf: cannot be read: No such file or directory\n");
	assert_int_equal(load("/", &config, &complaints), -TG_EINVAL);
	assert_string_equal(complaints.text, "/: cannot be read: Is a directory\n");
	write_file(FILE_NAME, "a = 1;\n\0b = 2;\n", 16, 0644);
	assert_int_equal(load(FILE_NAME, &config, &complaints), -TG_EINVAL);
	assert_string_equal(complaints.text, "t.conf:2: a zero byte is not allowed: text only\n");
	char *big = malloc(CONFIG_SOURCE_MAX + 1);
	assert_non_null(big);
	memset(big, '\n', CONFIG_SOURCE_MAX + 1);
	write_file(FILE_NAME, big, CONFIG_SOURCE_MAX + 1, 0644);
	free(big);
	assert_int_equal(load(FILE_NAME, &config, &complaints), -TG_EINVAL);
	assert_string_equal(
	    complaints.text, "t.conf: cannot be read: the configuration is longer than 1048576 bytes\n");
}

static void
includes_are_found_beside_their_file_and_named_in_errors(void **state)
{
	char text[400], here[100];
	struct config *config;

	(void)state;
	assert_int_equal(mkdir("sub", 0755), 0);
	write_text("sub/b.conf", "# b\nidle = { spin_us = 9; };\n@include \"c.conf\" ;\nsocket = \"/b\";");
	write_text("sub/c.conf", "admin = \"/c\"");
	config = load_good("@include \"sub/b.conf\"\ndrain_timeout_ms = 3;\n" POOL(""));
	assert_int_equal(config->spin_us, 9);
	assert_string_equal(config->admin, "/c");
	assert_string_equal(config->socket, "/b");
	assert_int_equal(config->drain_ms, 3);
	config_free(config);

	write_text("sub/c.conf", "\nidlle = { }");
	expect("@include \"sub/b.conf\"\n\nlinks = 1;\n" POOL(""),
	    "sub/c.conf:2: idlle: unknown key; did you mean idle? Allowed here: " ROOT_KEYS "\n"
	    "t.conf:3: links: unknown key. Allowed here: " ROOT_KEYS "\n");
	write_text("sub/b.conf", "\nsocket \"/b\";\n");
	expect("\n\n@include \"sub/b.conf\"\n", "sub/b.conf:2: syntax error at or before: socket \"/b\";\n");
	write_text("sub/b.conf", "idle = { spin_us = 12345; };\n");
	expect("\n@include \"sub/b.conf\"\n" POOL(""),
	    "sub/b.conf:1: idle.spin_us: 12345 is not allowed: a whole number from 0 to 10000\n");

	/* Absolute, and not in the first column. */
	write_text("sub/b.conf", "drain_timeout_ms = 77;\n");
	assert_non_null(getcwd(here, sizeof(here)));
	snprintf(text, sizeof(text), "  @include \"%s/sub/b.conf\"\n%s", here, POOL(""));
	config = load_good(text);
	assert_int_equal(config->drain_ms, 77);
	config_free(config);

	/* In strings and comments it is text. */
	config = load_good(
	    "# \n#@include \"none\"\n/*\n@include \"none\"\n*/\nsocket = \"/ # /* \n@include \\\"\";\n" POOL(
		""));
	assert_string_equal(config->socket, "/ # /* \n@include \"");
	config_free(config);
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
	struct config_address address;
	const char *why = NULL;
	char long_path[120] = "unix:/";

	(void)state;
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (config_address_parse(&address, good[i].text, 7, &why) != 0)
			fail_msg("%s: %s", good[i].text, why);
		assert_string_equal(address.text, good[i].text);
		assert_int_equal(address.port, good[i].port);
		assert_true((address.host == NULL) == (good[i].host == NULL));
		if (good[i].host != NULL)
			assert_string_equal(address.host, good[i].host);
		else
			assert_string_equal(address.path, good[i].path);
		config_address_fini(&address);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (config_address_parse(&address, bad[i].text, 7, &why) != -TG_EINVAL)
			fail_msg("accepted: %s", bad[i].text);
		assert_string_equal(why, bad[i].why);
		assert_null(address.text);
	}
	memset(long_path + 6, 'x', 107);
	assert_int_equal(config_address_parse(&address, long_path, 7, &why), -TG_EINVAL);
	assert_string_equal(why, "a path of at most 107 bytes behind unix:");
	long_path[5 + 107] = '\0';
	assert_int_equal(config_address_parse(&address, long_path, 7, &why), 0);
	config_address_fini(&address);
}

/* A root group read from text; the caller destroys the tree. */
static void
parse_group(config_t *tree, const char *text, struct config_node *node, struct config_report *report)
{
	config_init(tree);
	assert_int_equal(config_read_string(tree, text), CONFIG_TRUE);
	config_node_init(node, config_root_setting(tree), report, "g");
}

static void
secrets_come_from_private_files_only(void **state)
{
	static const struct {
		const char *bytes;
		size_t len;
		mode_t mode;
		const char *secret; /* NULL: refused */
		const char *complaint;
	} cases[] = {
		{ "hush", 4, 0600, "hush", "" },
		{ "hush\n", 5, 0640, "hush", "" },
		{ "hush\n\n", 6, 0400, "hush\n", "" },
		{ " h\r\n", 4, 0600, " h\r", "" },
		{ "12345678", 8, 0600, "12345678", "" },
		{ "12345678\n", 9, 0600, "12345678", "" },
		{ "123456789", 9, 0600, NULL, "pw is longer than 8 bytes" },
		{ "12345678\n\n", 10, 0600, NULL, "pw is longer than 8 bytes" },
		{ "123456789abcdefgh", 17, 0600, NULL, "pw is longer than 8 bytes" },
		{ "", 0, 0600, NULL, "pw is empty" },
		{ "\n", 1, 0600, NULL, "pw is empty" },
		{ "a\0b", 3, 0600, NULL, "pw holds a zero byte" },
		{ "hush", 4, 0604, NULL,
		    "pw has mode 0604, which lets every user at it: no rights for others are allowed (chmod o= "
		    "pw)" },
		{ "hush", 4, 0602, NULL,
		    "pw has mode 0602, which lets every user at it: no rights for others are allowed (chmod o= "
		    "pw)" },
	};
	static struct complaints complaints;
	struct config_report report = { .file = FILE_NAME, .print = complain, .owner = &complaints };
	struct config_node node;
	config_t tree;
	char *secret = NULL;

	(void)state;
	parse_group(&tree, "pw = \"pw\"; none = \"none\"; dir = \"/\"; n = 3;\n", &node, &report);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char expected[200] = "";

		memset(&complaints, 0, sizeof(complaints));
		remove("pw");
		write_file("pw", cases[i].bytes, cases[i].len, cases[i].mode);
		int there = config_node_secret_file(&node, "pw", &secret, 8);
		if (cases[i].secret != NULL) {
			assert_int_equal(there, 1);
			assert_string_equal(secret, cases[i].secret);
			config_secret_free(secret);
			secret = NULL;
		} else {
			assert_int_equal(there, -TG_EINVAL);
			assert_null(secret);
			snprintf(expected, sizeof(expected), "t.conf:1: g.pw: %s\n", cases[i].complaint);
		}
		assert_string_equal(complaints.text, expected);
	}
	memset(&complaints, 0, sizeof(complaints));
	assert_int_equal(config_node_secret_file(&node, "absent", &secret, 8), 0);
	assert_int_equal(config_node_secret_file(&node, "none", &secret, 8), -TG_EINVAL);
	assert_int_equal(config_node_secret_file(&node, "dir", &secret, 8), -TG_EINVAL);
	assert_int_equal(config_node_secret_file(&node, "n", &secret, 8), -TG_EINVAL);
	assert_string_equal(complaints.text,
	    "t.conf:1: g.none: none cannot be read: No such file or directory\n"
	    "t.conf:1: g.dir: / is not a regular file\n"
	    "t.conf:1: g.n: 3 is not allowed: a string of 1 to 4095 bytes\n");
	config_secret_free(NULL);
	config_destroy(&tree);
}

static void
password_of_a_driver_is_never_shown(void **state)
{
	static struct complaints complaints;
	struct config *config = NULL;

	(void)state;
	write_file("pw", "s3cr3t", 6, 0644);
	write_text(FILE_NAME, POOL("mqtt = { username = \"u\"; password_file = \"pw\"; };"));
	assert_int_equal(load(FILE_NAME, &config, &complaints), -TG_EINVAL);
	assert_null(strstr(complaints.text, "s3cr3t"));
	assert_int_equal(chmod("pw", 0600), 0);
	assert_int_equal(load(FILE_NAME, &config, &complaints), 0);
	config_free(config);
}

static void
example_is_good_and_has_every_default(void **state)
{
	char *example = read_text(TG_SOURCE "/daemon/tidegated.conf.example");
	char form[400];

	(void)state;
	config_free(load_good(example));
	for (const struct config_key *key = config_keys; key->name != NULL; key++) {
		char line[120];
		int plain = key->kind == KIND_U32 || key->kind == KIND_U64;

		/* weight and priority differ between brokers, and that is what they are there for. */
		if (plain && key->scope != SCOPE_BROKER)
			snprintf(line, sizeof(line), "%s = %llu;", key->name, (unsigned long long)key->value);
		else if (key->kind == KIND_WORD)
			snprintf(line, sizeof(line), "%s = \"%s\";", key->name, key->text);
		else
			snprintf(line, sizeof(line), "%s = ", key->name);
		if (strstr(example, line) == NULL)
			fail_msg("the example lacks: %s (%s)", line, config_key_form(key, form, sizeof(form)));
	}
}

/* Runs of blanks and newlines become one blank, so that lines may be filled in the source. */
static void
squeeze(char *text)
{
	char *to = text;

	for (const char *from = text; *from != '\0'; from++)
		if (!isspace((unsigned char)*from))
			*to++ = *from;
		else if (to > text && to[-1] != ' ')
			*to++ = ' ';
	*to = '\0';
}

static void
manual_has_every_key_with_range_and_default_and_nothing_else(void **state)
{
	char *page = read_text(TG_SOURCE "/daemon/man/tidegated.conf.5");
	unsigned items = 0, documented = 0;

	(void)state;
	for (const char *at = page; (at = strstr(at, "\n.It Ic ")) != NULL; at++)
		items++;
	squeeze(page);
	for (const struct config_key *key = config_keys; key->name != NULL; key++) {
		char form[400], item[600];

		snprintf(item, sizeof(item), " .It Ic %s%s %s. ", config_scope_path(key->scope), key->name,
		    config_key_form(key, form, sizeof(form)));
		if (strstr(page, item) == NULL)
			fail_msg("tidegated.conf(5) lacks:%s", item);
		documented++;
	}
	for (unsigned i = 0; driver_list[i] != NULL; i++) {
		static struct complaints complaints;
		const struct driver *driver = driver_list[i];
		struct config_report report = { .print = complain, .owner = &complaints };
		struct config_node group;
		void *settings = calloc(1, driver->settings_size + 1);

		assert_non_null(settings);
		config_node_init(&group, NULL, &report, driver->name);
		driver->configure(settings, &group);
		driver->settings_free(settings);
		free(settings);
		for (unsigned j = 0; j < group.asked_count; j++) {
			char item[200];
			snprintf(item, sizeof(item), " .It Ic pools[].%s.%s ", driver->name, group.asked[j]);
			if (strstr(page, item) == NULL)
				fail_msg("tidegated.conf(5) lacks:%s", item);
			documented++;
		}
	}
	assert_int_equal(items, documented);
}

static void
examples_of_the_manual_are_good(void **state)
{
	char *page = read_text(TG_SOURCE "/daemon/man/tidegated.conf.5");
	char *at = strstr(page, ".Sh EXAMPLES");
	unsigned examples = 0;

	(void)state;
	certificate_write("ca.pem", "key.pem", "ca", 30);
	write_file("pw", "x", 1, 0600);
	assert_non_null(at);
	for (char *next; (next = strstr(at, ".Bd -literal")) != NULL;) {
		char *start = strchr(next, '\n') + 1, *end = strstr(start, ".Ed"), *path;

		assert_non_null(end);
		*end = '\0';
		/* The files it names exist under other names here. */
		if ((path = strstr(start, "/etc/tidegate/ca.pem")) != NULL)
			memmove(
			    path, path + strlen("/etc/tidegate/"), strlen(path + strlen("/etc/tidegate/")) + 1);
		if ((path = strstr(start, "events.pw")) != NULL) {
			memmove(path + 2, path + 9, strlen(path + 9) + 1);
			memcpy(path, "pw", 2);
		}
		config_free(load_good(start));
		examples++;
		at = end + 1;
	}
	assert_int_equal(examples, 2);
}

static void
damaged_files_never_crash(void **state)
{
	static struct complaints complaints;
	static const char tokens[][12] = { "\"", "{", "}", "(", ")", "[", "]", ";", "=", ",", "/*", "*/", "#",
		"\n@include \"", "L", "0x", "-", "1e999", "99999999", "\\x", "\xff", "true", "pools" };
	struct config *config = NULL;
	char *example = read_text(TG_SOURCE "/daemon/tidegated.conf.example");
	size_t len = strlen(example);
	char *bytes = malloc(len + 64);
	uint64_t random = UINT64_C(0x9e3779b97f4a7c15);
	unsigned refused = 0, taken = 0;

	(void)state;
	assert_non_null(bytes);
	for (size_t cut = 0; cut < len; cut++) {
		write_file(FILE_NAME, example, cut, 0600);
		refused += load(FILE_NAME, &config, &complaints) != 0;
		taken += config != NULL;
		config_free(config);
	}
	for (unsigned i = 0; i < 5000; i++) {
		memcpy(bytes, example, len);
		for (unsigned changes = 1 + i % 4; changes > 0; changes--) {
			random ^= random << 13;
			random ^= random >> 7;
			random ^= random << 17;
			size_t at = (size_t)(random >> 20) % len;
			const char *token = tokens[random % (sizeof(tokens) / sizeof(tokens[0]))];
			if (random & 0x10000)
				memcpy(bytes + at, token, strlen(token));
			else
				bytes[at] = (char)(random >> 8);
		}
		write_file(FILE_NAME, bytes, len, 0600);
		refused += load(FILE_NAME, &config, &complaints) != 0;
		taken += config != NULL;
		config_free(config);
	}
	/* Both must happen, or nothing was tried. */
	assert_true(refused > len / 2 && taken > 100);
	free(bytes);
}

static void
out_of_memory_is_an_error_at_every_allocation(void **state)
{
	static struct complaints complaints;
	struct config *config = NULL;
	unsigned long failed = 0;
	int error;

	(void)state;
	write_file("pw", "x", 1, 0600);
	certificate_write("ca.pem", "key.pem", "ca", 30);
	write_text("a.conf", "idle = { };");
	write_text(FILE_NAME, "@include \"a.conf\"\nsocket = \"/s\";\n" POOL(
				  "tls = { ca_file = \"ca.pem\"; server_name = \"x\"; }; mqtt = { username = "
				  "\"u\"; password_file = \"pw\"; };"));
	do {
		allocations = 0;
		fail_at = ++failed;
		error = load(FILE_NAME, &config, &complaints);
		fail_at = 0;
		if (error != 0 && error != -TG_ENOMEM)
			fail_msg("allocation %lu: %d: %s", failed, error, complaints.text);
	} while (error != 0);
	assert_true(failed > 20);
	config_free(config);
}

int
main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, enter_scratch, leave_scratch)
	const struct CMUnitTest tests[] = {
		TEST(defaults_are_what_the_table_says),
		TEST(every_key_is_read),
		TEST(defaults_follow_what_is_given),
		TEST(socket_mode_is_octal_however_it_is_written),
		TEST(bad_input_is_told_exactly),
		TEST(all_errors_are_told_in_one_run),
		TEST(unreadable_file_names_path_and_cause),
		TEST(includes_are_found_beside_their_file_and_named_in_errors),
		TEST(addresses_are_parsed_or_refused),
		TEST(secrets_come_from_private_files_only),
		TEST(password_of_a_driver_is_never_shown),
		TEST(example_is_good_and_has_every_default),
		TEST(manual_has_every_key_with_range_and_default_and_nothing_else),
		TEST(examples_of_the_manual_are_good),
		TEST(damaged_files_never_crash),
		TEST(out_of_memory_is_an_error_at_every_allocation),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
