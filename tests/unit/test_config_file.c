/* The configuration's files: includes, secrets, unreadable and damaged files, and running out of memory. */
#include "config_scratch.h"

#include "certificates.h"
#include "daemon/config/config_node.h"
#include "daemon/config/config_secret.h"
#include "daemon/config/config_source.h"
#include "shm/error.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
		{ " h\r\n", 4, 0600, " h", "" },
		{ "12345678\r\n", 10, 0600, "12345678", "" },
		{ "h\xc3\xbcsh \xff\n", 8, 0600, "h\xc3\xbcsh \xff", "" },
		{ "hush\n\n", 6, 0400, NULL, "pw:2: a second line: a secret is one line" },
		{ "hush\r\nx", 7, 0400, NULL, "pw:2: a second line: a secret is one line" },
		{ "hush\r", 5, 0400, NULL, "pw:1: byte 5 is a control character (0x0d)" },
		{ "hush\r\r\n", 7, 0400, NULL, "pw:1: byte 5 is a control character (0x0d)" },
		{ "\x7f", 1, 0400, NULL, "pw:1: byte 1 is a control character (0x7f)" },
		{ "12345678", 8, 0600, "12345678", "" },
		{ "12345678\n", 9, 0600, "12345678", "" },
		{ "123456789", 9, 0600, NULL, "pw is longer than 8 bytes" },
		{ "12345678\n\n", 10, 0600, NULL, "pw:2: a second line: a secret is one line" },
		{ "123456789abcdefgh", 17, 0600, NULL, "pw is longer than 8 bytes" },
		{ "", 0, 0600, NULL, "pw is empty" },
		{ "\n", 1, 0600, NULL, "pw is empty" },
		{ "\r\n", 2, 0600, NULL, "pw is empty" },
		{ "a\0b", 3, 0600, NULL, "pw:1: byte 2 is a control character (0x00)" },
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
	struct config_secret secret = { 0 };

	(void)state;
	parse_group(&tree, "pw = \"pw\"; none = \"none\"; dir = \"/\"; n = 3;\n", &node, &report);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char expected[200] = "";

		memset(&complaints, 0, sizeof(complaints));
		remove("pw");
		write_file("pw", cases[i].bytes, cases[i].len, cases[i].mode);
		int there = config_node_secret(&node, "pw", &secret, 8, NULL);
		if (cases[i].secret != NULL) {
			assert_int_equal(there, 1);
			assert_string_equal(secret.value, cases[i].secret);
		} else {
			assert_int_equal(there, -TG_EINVAL);
			assert_null(secret.value);
			snprintf(expected, sizeof(expected), "t.conf:1: g.pw: %s\n", cases[i].complaint);
		}
		assert_string_equal(complaints.text, expected);
		config_secret_fini(&secret);
	}
	memset(&complaints, 0, sizeof(complaints));
	assert_int_equal(config_node_secret(&node, "absent", &secret, 8, NULL), 0);
	assert_int_equal(config_secret_renew(&secret), 0); /* none that could be */
	assert_int_equal(config_node_secret(&node, "none", &secret, 8, NULL), -TG_EINVAL);
	config_secret_fini(&secret);
	assert_int_equal(config_node_secret(&node, "dir", &secret, 8, NULL), -TG_EINVAL);
	config_secret_fini(&secret);
	assert_int_equal(config_node_secret(&node, "n", &secret, 8, NULL), -TG_EINVAL);
	assert_string_equal(complaints.text,
	    "t.conf:1: g.none: none cannot be read: No such file or directory\n"
	    "t.conf:1: g.dir: / is not a regular file\n"
	    "t.conf:1: g.n: 3 is not allowed: a string of 1 to 4095 bytes\n");
	config_secret_fini(&secret);
	config_destroy(&tree);
}

/* A rule of a protocol's own. */
static const char *
check_no_x(const char *value, char *cause, size_t size)
{
	snprintf(cause, size, "there is an x");
	return strchr(value, 'x') == NULL ? NULL : cause;
}

static void
a_secret_is_read_again_and_a_bad_file_changes_nothing(void **state)
{
	static struct complaints complaints;
	struct config_report report = { .file = FILE_NAME, .print = complain, .owner = &complaints };
	struct config_secret secret = { 0 };
	struct config_node node;
	config_t tree;

	(void)state;
	parse_group(&tree, "pw = \"pw\";\n", &node, &report);
	write_file("pw", "one\n", 4, 0600);
	assert_int_equal(config_node_secret(&node, "pw", &secret, 8, check_no_x), 1);
	assert_int_equal(config_secret_renew(&secret), 0);
	/* As long as the one before, and in the same tick of the file system's clock. */
	write_file("pw", "two\n", 4, 0600);
	assert_int_equal(config_secret_renew(&secret), 1);
	assert_string_equal(secret.value, "two");
	assert_int_equal(config_secret_renew(&secret), 0);

	write_file("pw", "six\n", 4, 0600);
	assert_int_equal(config_secret_renew(&secret), -TG_EINVAL);
	assert_string_equal(secret.failed, "pw:1: there is an x");
	assert_int_equal(config_secret_renew(&secret), 0); /* said once */
	assert_string_equal(secret.value, "two");
	assert_int_equal(remove("pw"), 0);
	assert_int_equal(config_secret_renew(&secret), -TG_EINVAL);
	assert_string_equal(secret.failed, "pw cannot be read: No such file or directory");
	write_file("pw", "three", 5, 0600);
	fail_at = 1;
	allocations = 0;
	assert_int_equal(config_secret_renew(&secret), -TG_ENOMEM);
	fail_at = 0;
	assert_string_equal(secret.value, "two");
	assert_int_equal(config_secret_renew(&secret), 1);
	assert_string_equal(secret.value, "three");
	assert_string_equal(secret.failed, "");
	config_secret_fini(&secret);
	config_destroy(&tree);
	assert_string_equal(complaints.text, "");
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
	/* Both must happen, or the test tried nothing. */
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
	const struct CMUnitTest tests[] = {
		IN_SCRATCH(unreadable_file_names_path_and_cause),
		IN_SCRATCH(includes_are_found_beside_their_file_and_named_in_errors),
		IN_SCRATCH(secrets_come_from_private_files_only),
		IN_SCRATCH(a_secret_is_read_again_and_a_bad_file_changes_nothing),
		IN_SCRATCH(password_of_a_driver_is_never_shown),
		IN_SCRATCH(damaged_files_never_crash),
		IN_SCRATCH(out_of_memory_is_an_error_at_every_allocation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
