#include "build_config.h"

#include "behaviour.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

const struct behaviour_info behaviour_list[BEHAVIOUR_COUNT] = {
#define NUMBER(field, name_, argument_, least_, most_, preset_, help_)                             \
	[BEHAVIOUR_##field] = { name_, argument_, help_, BEHAVIOUR_NUMBER, least_, most_, preset_, \
		offsetof(struct behaviour, field) },
#define FLAG(field, name_, help_) \
	[BEHAVIOUR_##             \
	    field] = { name_, NULL, help_, BEHAVIOUR_FLAG, 0, 1, 0, offsetof(struct behaviour, field) },
#define TEXT(field, name_, argument_, help_) \
	[BEHAVIOUR_##                        \
	    field] = { name_, argument_, help_, BEHAVIOUR_TEXT, 0, 0, 0, offsetof(struct behaviour, field) },
#define CHOICE(field, name_, words_, help_) \
	[BEHAVIOUR_##                       \
	    field] = { name_, words_, help_, BEHAVIOUR_CHOICE, 0, 0, 0, offsetof(struct behaviour, field) },
#include "behaviour.def"
#undef NUMBER
#undef FLAG
#undef TEXT
#undef CHOICE
};

static uint64_t *
number_at(struct behaviour *behaviour, enum behaviour_id id)
{
	return (uint64_t *)(void *)((char *)behaviour + behaviour_list[id].offset);
}

static char **
text_at(struct behaviour *behaviour, enum behaviour_id id)
{
	return (char **)(void *)((char *)behaviour + behaviour_list[id].offset);
}

uint64_t
behaviour_number(const struct behaviour *behaviour, enum behaviour_id id)
{
	return *(const uint64_t *)(const void *)((const char *)behaviour + behaviour_list[id].offset);
}

const char *
behaviour_text(const struct behaviour *behaviour, enum behaviour_id id)
{
	return *(char *const *)(const void *)((const char *)behaviour + behaviour_list[id].offset);
}

void
behaviour_init(struct behaviour *behaviour)
{
	memset(behaviour, 0, sizeof(*behaviour));
	for (int id = 0; id < BEHAVIOUR_COUNT; id++)
		if (behaviour_list[id].type == BEHAVIOUR_NUMBER)
			*number_at(behaviour, (enum behaviour_id)id) = behaviour_list[id].preset;
}

static void
forget_auth(struct behaviour *behaviour)
{
	free(behaviour->user);
	if (behaviour->password)
		explicit_bzero(behaviour->password, behaviour->password_len);
	free(behaviour->password);
	behaviour->user = NULL;
	behaviour->password = NULL;
	behaviour->password_len = 0;
}

void
behaviour_fini(struct behaviour *behaviour)
{
	for (int id = 0; id < BEHAVIOUR_COUNT; id++) {
		if (behaviour_list[id].type != BEHAVIOUR_TEXT)
			continue;
		char **text = text_at(behaviour, (enum behaviour_id)id);
		free(*text);
		*text = NULL;
	}
	forget_auth(behaviour);
	faults_fini(&behaviour->rules);
}

int
behaviour_find(const char *name)
{
	for (int id = 0; id < BEHAVIOUR_COUNT; id++)
		if (strcmp(behaviour_list[id].name, name) == 0)
			return id;
	return -1;
}

int
behaviour_parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *value)
{
	int base = text[0] == '0' && (text[1] == 'x' || text[1] == 'X') ? 16 : 10;
	char *end;

	if (!isdigit((unsigned char)text[0])) /* strtoull would take "-1" and " 1" */
		return -1;
	errno = 0;
	unsigned long long n = strtoull(text, &end, base);
	if (errno || *end || n < least || n > most)
		return -1;
	*value = n;
	return 0;
}

static int
parse_flag(const char *text, uint64_t *value)
{
	static const char *const off[] = { "0", "off", "no", "false" };
	static const char *const on[] = { "1", "on", "yes", "true" };

	for (size_t i = 0; i < sizeof(on) / sizeof(on[0]); i++) {
		if (strcmp(text, on[i]) == 0)
			*value = 1;
		else if (strcmp(text, off[i]) == 0)
			*value = 0;
		else
			continue;
		return 0;
	}
	return -1;
}

/* Reads the password now, so that a wrong file is an error where it can still be answered. */
static int
set_auth(struct behaviour *behaviour, const char *value, char *why)
{
	const char *colon = strchr(value, ':');
	char line[1024];
	FILE *file;

	if (!colon || colon == value || !colon[1]) {
		snprintf(why, BEHAVIOUR_WHY_MAX, "auth: \"%.200s\": want USER:FILE", value);
		return -1;
	}
	file = fopen(colon + 1, "re");
	if (!file) {
		snprintf(
		    why, BEHAVIOUR_WHY_MAX, "auth: cannot read \"%.200s\": %s", colon + 1, strerror(errno));
		return -1;
	}
	line[0] = '\0';
	bool got = fgets(line, sizeof(line), file) != NULL;
	fclose(file);
	size_t len = strcspn(line, "\r\n");
	line[len] = '\0';
	if (!got || len == 0 || len == sizeof(line) - 1) {
		snprintf(why, BEHAVIOUR_WHY_MAX, "auth: \"%.200s\": want a first line of 1 to %zu bytes",
		    colon + 1, sizeof(line) - 2);
		return -1;
	}
	forget_auth(behaviour);
	behaviour->user = strndup(value, (size_t)(colon - value));
	behaviour->password = strdup(line);
	behaviour->password_len = len;
	explicit_bzero(line, sizeof(line));
	if (!behaviour->user || !behaviour->password)
		abort();
	return 0;
}

static int
set_text(struct behaviour *behaviour, enum behaviour_id id, const char *value, char *why)
{
	char **text = text_at(behaviour, id);

	if (!value || !*value) {
		if (id == BEHAVIOUR_auth)
			forget_auth(behaviour);
		if (id == BEHAVIOUR_faults)
			faults_fini(&behaviour->rules);
		free(*text);
		*text = NULL;
		return 0;
	}
	if (strlen(value) > 4096) {
		snprintf(why, BEHAVIOUR_WHY_MAX, "%s: %zu bytes are too long: at most 4096",
		    behaviour_list[id].name, strlen(value));
		return -1;
	}
	if (id == BEHAVIOUR_auth && set_auth(behaviour, value, why) < 0)
		return -1;
	if (id == BEHAVIOUR_faults && faults_parse(&behaviour->rules, value, why, BEHAVIOUR_WHY_MAX) < 0)
		return -1;
	free(*text);
	*text = strdup(value);
	if (!*text)
		abort();
	return 0;
}

/* The next of the words with | between them, and its length; NULL: there is none. */
static const char *
next_word(const char **at, size_t *len)
{
	const char *word = *at;

	if (*word == '\0')
		return NULL;
	*len = strcspn(word, "|");
	*at = word + *len + (word[*len] == '|');
	return word;
}

static int
parse_choice(const struct behaviour_info *info, const char *value, uint64_t *number)
{
	const char *at = info->argument, *word;
	size_t len;

	for (*number = 0; (word = next_word(&at, &len)) != NULL; ++*number)
		if (value && strlen(value) == len && memcmp(word, value, len) == 0)
			return 0;
	return -1;
}

void
behaviour_word(const struct behaviour *behaviour, enum behaviour_id id, char *word, size_t size)
{
	const char *at = behaviour_list[id].argument, *from = at;
	size_t len = 0;

	for (uint64_t left = behaviour_number(behaviour, id) + 1; left > 0; left--)
		from = next_word(&at, &len);
	snprintf(word, size, "%.*s", (int)len, from);
}

int
behaviour_set(struct behaviour *behaviour, enum behaviour_id id, const char *value, char *why)
{
	const struct behaviour_info *info = &behaviour_list[id];
	uint64_t number;

	switch (info->type) {
	case BEHAVIOUR_TEXT:
		if (set_text(behaviour, id, value, why) < 0)
			return -1;
		break;
	case BEHAVIOUR_FLAG:
		if (parse_flag(value ? value : "on", &number) < 0) {
			snprintf(why, BEHAVIOUR_WHY_MAX, "%s: \"%.100s\": want on or off", info->name, value);
			return -1;
		}
		*number_at(behaviour, id) = number;
		break;
	case BEHAVIOUR_CHOICE:
		if (parse_choice(info, value, &number) < 0) {
			snprintf(why, BEHAVIOUR_WHY_MAX, "%s: \"%.100s\": want %s", info->name,
			    value ? value : "", info->argument);
			return -1;
		}
		*number_at(behaviour, id) = number;
		break;
	case BEHAVIOUR_NUMBER:
		if (!value || behaviour_parse_number(value, info->least, info->most, &number) < 0) {
			snprintf(why, BEHAVIOUR_WHY_MAX,
			    "%s: \"%.100s\": want a number from %llu to %llu (decimal, or hexadecimal with 0x)",
			    info->name, value ? value : "", (unsigned long long)info->least,
			    (unsigned long long)info->most);
			return -1;
		}
		*number_at(behaviour, id) = number;
		break;
	}
	behaviour->rejects = behaviour->reject || behaviour->reject_every || behaviour->reject_topic;
	behaviour->counts = behaviour->stall_after || behaviour->close_after || behaviour->reset_after;
	return 0;
}

void
behaviour_help_line(FILE *stream, const char *name, const char *argument, const char *help)
{
	enum { COLUMN = 28, WIDTH = 96 };
	int at = fprintf(stream, "  --%s%s%s", name, argument ? " " : "", argument ? argument : "");

	if (at >= COLUMN) {
		fputc('\n', stream);
		at = 0;
	}
	at += fprintf(stream, "%*s", COLUMN - at, "");
	for (const char *word = help; *word;) {
		int len = (int)strcspn(word, " ");
		if (at > COLUMN && at + 1 + len > WIDTH)
			at = fprintf(stream, "\n%*s", COLUMN, "") - 1;
		else if (at > COLUMN)
			at += fprintf(stream, " ");
		at += fprintf(stream, "%.*s", len, word);
		word += len;
		word += strspn(word, " ");
	}
	fputc('\n', stream);
}

void
behaviour_help(FILE *stream)
{
	for (int id = 0; id < BEHAVIOUR_COUNT; id++)
		behaviour_help_line(
		    stream, behaviour_list[id].name, behaviour_list[id].argument, behaviour_list[id].help);
}
