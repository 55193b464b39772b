#include "config_node.h"

#include "config_source.h"
#include "shm/error.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LINE_SIZE 2048u
#define VALUE_SHOWN 60 /* bytes of a value that an error repeats */

static void
report_line(struct config_report *report, char *line)
{
	/* Text from the file must not forge a line or drive a terminal. */
	for (char *at = line; *at != '\0'; at++)
		if ((unsigned char)*at < 0x20 || *at == 0x7f)
			*at = '?';
	report->errors++;
	if (report->print != NULL)
		report->print(report->owner, line);
	else
		fprintf(stderr, "%s\n", line);
}

/* Bounded printf that goes on where the last one ended. */
static void __attribute__((format(printf, 3, 0)))
add_args(char *text, size_t size, const char *format, va_list args)
{
	size_t used = strlen(text);

	vsnprintf(text + used, size - used, format, args);
}

static void __attribute__((format(printf, 3, 4))) add(char *text, size_t size, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	add_args(text, size, format, args);
	va_end(args);
}

int
config_report_error(struct config_report *report, const char *file, unsigned line, const char *format, ...)
{
	char text[LINE_SIZE] = "";
	va_list args;

	add(text, sizeof(text), "%s:", file == NULL ? "configuration" : file);
	if (line > 0)
		add(text, sizeof(text), "%u:", line);
	add(text, sizeof(text), " ");
	va_start(args, format);
	add_args(text, sizeof(text), format, args);
	va_end(args);
	report_line(report, text);
	return -TG_EINVAL;
}

void
config_node_init(
    struct config_node *node, config_setting_t *setting, struct config_report *report, const char *path)
{
	memset(node, 0, sizeof(*node));
	node->setting = setting;
	node->report = report;
	snprintf(node->path, sizeof(node->path), "%s", path);
}

static int
is_group(const config_setting_t *setting)
{
	return setting != NULL && config_setting_is_group(setting);
}

static config_setting_t *
member(const struct config_node *node, const char *key)
{
	if (key == NULL)
		return node->setting;
	return is_group(node->setting) ? config_setting_get_member(node->setting, key) : NULL;
}

/* member(), and the key is known from now on. */
static config_setting_t *
ask(struct config_node *node, const char *key)
{
	unsigned i = 0;

	while (key != NULL && i < node->asked_count && strcmp(node->asked[i], key) != 0)
		i++;
	if (key != NULL && i == node->asked_count) {
		assert(node->asked_count < CONFIG_NODE_KEYS);
		node->asked[node->asked_count++] = key;
	}
	return member(node, key);
}

void
config_node_known(struct config_node *node, const char *key)
{
	ask(node, key);
}

int
config_node_has(const struct config_node *node, const char *key)
{
	return member(node, key) != NULL;
}

static int __attribute__((format(printf, 4, 0))) error_at(const struct config_node *node,
    const config_setting_t *setting, const char *key, const char *format, va_list args)
{
	const char *file = node->report->file;
	unsigned line = 0;
	char text[LINE_SIZE] = "";

	if (setting != NULL) {
		/* libconfig gives a list's element no line of its own when it is a plain value. */
		const config_setting_t *placed = setting;
		while (placed->line == 0 && placed->parent != NULL)
			placed = placed->parent;
		line = placed->line;
		if (placed->file != NULL)
			file = placed->file;
		if (node->report->source != NULL && line > 0)
			config_source_where(node->report->source, line, &file, &line);
	}
	add(text, sizeof(text), "%s", node->path);
	if (key != NULL)
		add(text, sizeof(text), "%s%s", node->path[0] != '\0' ? "." : "", key);
	if (text[0] != '\0')
		add(text, sizeof(text), ": ");
	add_args(text, sizeof(text), format, args);
	return config_report_error(node->report, file, line, "%s", text);
}

int
config_node_error(const struct config_node *node, const char *key, const char *format, ...)
{
	const config_setting_t *setting = member(node, key);
	va_list args;

	va_start(args, format);
	int error = error_at(node, setting != NULL ? setting : node->setting, key, format, args);
	va_end(args);
	return error;
}

/* The value as the file's author would recognise it. */
static void
describe(const config_setting_t *setting, char *text, size_t size)
{
	const char *string;

	switch (config_setting_type(setting)) {
	case CONFIG_TYPE_INT:
	case CONFIG_TYPE_INT64:
		snprintf(text, size, "%lld", config_setting_get_int64(setting));
		break;
	case CONFIG_TYPE_FLOAT:
		snprintf(text, size, "%#.15g", config_setting_get_float(setting));
		/* 1.50000000000000 reads worse than what was written. */
		if (strpbrk(text, "eEn") == NULL)
			for (char *end = text + strlen(text);
			     end - text > 2 && end[-1] == '0' && end[-2] != '.';)
				*--end = '\0';
		break;
	case CONFIG_TYPE_BOOL:
		snprintf(text, size, "%s", config_setting_get_bool(setting) ? "true" : "false");
		break;
	case CONFIG_TYPE_STRING:
		string = config_setting_get_string(setting);
		if (string == NULL)
			string = "";
		snprintf(
		    text, size, "\"%.*s%s\"", VALUE_SHOWN, string, strlen(string) > VALUE_SHOWN ? "..." : "");
		break;
	case CONFIG_TYPE_GROUP:
		snprintf(text, size, "a group {...}");
		break;
	case CONFIG_TYPE_ARRAY:
		snprintf(text, size, "an array [...]");
		break;
	case CONFIG_TYPE_LIST:
		snprintf(text, size, "a list (...)");
		break;
	default:
		snprintf(text, size, "this");
		break;
	}
}

int
config_node_refuse(const struct config_node *node, const char *key, const char *format, ...)
{
	char value[VALUE_SHOWN + 16], allowed[LINE_SIZE / 2] = "";
	va_list args;

	describe(member(node, key), value, sizeof(value));
	va_start(args, format);
	add_args(allowed, sizeof(allowed), format, args);
	va_end(args);
	return config_node_error(node, key, "%s is not allowed: %s", value, allowed);
}

int
config_node_int(struct config_node *node, const char *key, int64_t *value, int64_t min, int64_t max)
{
	const config_setting_t *setting = ask(node, key);

	if (setting == NULL)
		return 0;
	int type = config_setting_type(setting);
	long long found = config_setting_get_int64(setting);
	if ((type != CONFIG_TYPE_INT && type != CONFIG_TYPE_INT64) || found < min || found > max)
		return config_node_refuse(
		    node, key, "a whole number from %lld to %lld", (long long)min, (long long)max);
	*value = found;
	return 1;
}

int
config_node_u32(struct config_node *node, const char *key, uint32_t *value, uint32_t min, uint32_t max)
{
	int64_t found = 0;
	int there = config_node_int(node, key, &found, min, max);

	if (there > 0)
		*value = (uint32_t)found;
	return there;
}

int
config_node_bool(struct config_node *node, const char *key, int *value)
{
	const config_setting_t *setting = ask(node, key);

	if (setting == NULL)
		return 0;
	if (config_setting_type(setting) != CONFIG_TYPE_BOOL)
		return config_node_refuse(node, key, "true or false");
	*value = config_setting_get_bool(setting) != 0;
	return 1;
}

int
config_node_string(
    struct config_node *node, const char *key, const char **value, size_t min_len, size_t max_len)
{
	const config_setting_t *setting = ask(node, key);
	const char *found;

	if (setting == NULL)
		return 0;
	found = config_setting_get_string(setting);
	if (config_setting_type(setting) != CONFIG_TYPE_STRING || found == NULL || strlen(found) < min_len ||
	    strlen(found) > max_len)
		return config_node_refuse(node, key, "a string of %zu to %zu bytes", min_len, max_len);
	*value = found;
	return 1;
}

int
config_node_choice(struct config_node *node, const char *key, int *value, const struct config_choice *choices)
{
	const config_setting_t *setting = ask(node, key);
	char words[LINE_SIZE / 4] = "";

	if (setting == NULL)
		return 0;
	const char *found =
	    config_setting_type(setting) == CONFIG_TYPE_STRING ? config_setting_get_string(setting) : NULL;
	for (const struct config_choice *choice = choices; choice->word != NULL; choice++) {
		if (found != NULL && strcmp(choice->word, found) == 0) {
			*value = choice->value;
			return 1;
		}
		add(words, sizeof(words), "%s\"%s\"",
		    choice == choices        ? ""
		    : choice[1].word == NULL ? " or "
					     : ", ",
		    choice->word);
	}
	return config_node_refuse(node, key, "%s", words);
}

int
config_node_path(struct config_node *node, const char *key, char **value)
{
	const char *written = NULL;
	int there = config_node_string(node, key, &written, 1, 4095);

	if (there <= 0)
		return there;
	char *path = config_path_beside(node->report->file == NULL ? "" : node->report->file, written);
	if (path == NULL)
		return -TG_ENOMEM;
	*value = path;
	return 1;
}

int
config_node_check_private(const struct config_node *node, const char *key, const char *path, mode_t mode)
{
	if ((mode & S_IRWXO) == 0)
		return 0;
	return config_node_error(node, key, CONFIG_NOT_PRIVATE, path, (unsigned)mode & 07777u, path);
}

static void
child_init(
    struct config_node *child, const struct config_node *node, config_setting_t *setting, const char *key)
{
	char path[sizeof(node->path)] = ""; /* cut when too long: it is only shown */

	add(path, sizeof(path), "%s%s%s", node->path, node->path[0] != '\0' ? "." : "", key);
	config_node_init(child, setting, node->report, path);
}

int
config_node_group(struct config_node *node, const char *key, struct config_node *child)
{
	config_setting_t *setting = ask(node, key);
	int there = setting != NULL;

	if (there && !is_group(setting)) {
		there = config_node_refuse(node, key, "a group in braces, as in %s = { ... };", key);
		setting = NULL;
	}
	child_init(child, node, setting, key);
	return there;
}

int
config_node_list(struct config_node *node, const char *key, struct config_node *list)
{
	config_setting_t *setting = ask(node, key);
	int length = 0;

	if (setting != NULL && !config_setting_is_list(setting) && !config_setting_is_array(setting)) {
		length = config_node_refuse(node, key, "a list in parentheses, as in %s = ( ..., ... );", key);
		setting = NULL;
	} else if (setting != NULL) {
		length = config_setting_length(setting);
	}
	child_init(list, node, setting, key);
	return length;
}

void
config_node_element(const struct config_node *list, unsigned index, struct config_node *element)
{
	char path[sizeof(list->path)] = "";
	config_setting_t *setting =
	    list->setting == NULL ? NULL : config_setting_get_elem(list->setting, index);

	add(path, sizeof(path), "%s[%u]", list->path, index);
	config_node_init(element, setting, list->report, path);
}

/* Levenshtein; a word that only lacks its end is as near as one typing mistake. */
static unsigned
distance(const char *from, const char *to)
{
	unsigned row[80];
	size_t from_len = strlen(from), to_len = strlen(to);

	if (from_len >= 80 || to_len >= 80)
		return ~0u;
	if (from_len >= 3 && to_len >= 3 && strncmp(from, to, from_len < to_len ? from_len : to_len) == 0)
		return 1;
	for (unsigned j = 0; j <= to_len; j++)
		row[j] = j;
	for (unsigned i = 1; i <= from_len; i++) {
		unsigned diagonal = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= to_len; j++) {
			unsigned above = row[j], best = diagonal + (from[i - 1] != to[j - 1]);
			if (above + 1 < best)
				best = above + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			diagonal = above;
			row[j] = best;
		}
	}
	return row[to_len];
}

static void
unknown_key(const struct config_node *node, const char *key)
{
	char allowed[LINE_SIZE / 2] = "";
	const char *nearest = NULL;
	unsigned least = (unsigned)strlen(key) / 3 + 1;

	for (unsigned i = 0; i < node->asked_count; i++) {
		unsigned far = distance(key, node->asked[i]);
		if (far < least || (far == least && nearest == NULL)) {
			least = far;
			nearest = node->asked[i];
		}
		add(allowed, sizeof(allowed), "%s%s", i == 0 ? "" : ", ", node->asked[i]);
	}
	if (nearest != NULL)
		config_node_error(
		    node, key, "unknown key; did you mean %s? Allowed here: %s", nearest, allowed);
	else
		config_node_error(
		    node, key, "unknown key. Allowed here: %s", allowed[0] != '\0' ? allowed : "none");
}

int
config_node_done(struct config_node *node)
{
	int error = 0;

	if (node->setting == NULL)
		return 0;
	if (!is_group(node->setting))
		return config_node_refuse(node, NULL, "a group in braces");
	for (int i = 0; i < config_setting_length(node->setting); i++) {
		const char *key = config_setting_name(config_setting_get_elem(node->setting, (unsigned)i));
		unsigned known = 0;

		while (known < node->asked_count && strcmp(node->asked[known], key) != 0)
			known++;
		if (known == node->asked_count) {
			unknown_key(node, key);
			error = -TG_EINVAL;
		}
	}
	return error;
}
