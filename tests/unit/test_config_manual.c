/* Compares the configuration's manual page and example with the reader. */
#include "config_scratch.h"

#include "certificates.h"
#include "daemon/config/config_keys.h"
#include "daemon/config/config_node.h"
#include "daemon/protocol/drivers.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

		/* weight and priority differ between brokers by design. */
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

int
main(void)
{
	const struct CMUnitTest tests[] = {
		IN_SCRATCH(example_is_good_and_has_every_default),
		IN_SCRATCH(manual_has_every_key_with_range_and_default_and_nothing_else),
		IN_SCRATCH(examples_of_the_manual_are_good),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
