#include "build_config.h"

#include "fault.h"

#include "behaviour.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

static const char *const words[FAULT_HOWS] = {
#define FAULT(name, word, help) word,
#include "fault.def"
#undef FAULT
};

bool
fault_topic_matches(const char *pattern, struct record_view topic)
{
	char name[65536];

	if (topic.len >= sizeof(name))
		return false;
	memcpy(name, topic.bytes, topic.len);
	name[topic.len] = '\0';
	return fnmatch(pattern, name, 0) == 0;
}

const struct fault *
faults_find(const struct faults *faults, const struct record_message *message)
{
	for (size_t i = 0; i < faults->count; i++) {
		const struct fault *fault = &faults->list[i];
		if (fault->pattern ? fault_topic_matches(fault->pattern, message->topic)
				   : message->body.len > fault->over)
			return fault;
	}
	return NULL;
}

void
faults_fini(struct faults *faults)
{
	for (size_t i = 0; i < faults->count; i++)
		free(faults->list[i].pattern);
	free(faults->list);
	memset(faults, 0, sizeof(*faults));
}

/* One rule, which is cut up. Returns what is wrong with it, or NULL. */
static const char *
parse_rule(struct fault *fault, char *rule)
{
	char *how = strrchr(rule, '='), *code;
	uint64_t number = 0;

	if (!how || how == rule)
		return "want PATTERN=HOW[:CODE] or >BYTES=HOW[:CODE]";
	*how++ = '\0';
	code = strchr(how, ':');
	if (code)
		*code++ = '\0';
	if (code && behaviour_parse_number(code, 1, 65535, &number) < 0)
		return "its code is no number from 1 to 65535";
	fault->code = (uint32_t)number;
	for (fault->how = 0; fault->how < FAULT_HOWS; fault->how++)
		if (strcmp(how, words[fault->how]) == 0)
			break;
	if (fault->how == FAULT_HOWS)
		return "unknown HOW; want close, reset, silent, reject, error, both or trail";
	if (rule[0] != '>') {
		fault->pattern = strdup(rule);
		if (!fault->pattern)
			abort();
	} else if (behaviour_parse_number(rule + 1, 0, UINT32_MAX, &fault->over) < 0) {
		return "no number of bytes behind >";
	}
	return NULL;
}

int
faults_parse(struct faults *faults, const char *text, char *why, size_t size)
{
	struct faults read = { 0 };
	char *copy = strdup(text), *rest = copy, *rule;

	read.list = calloc(strlen(text) + 1, sizeof(*read.list));
	if (!copy || !read.list)
		abort();
	while ((rule = strsep(&rest, ",")) != NULL) {
		char shown[100];
		snprintf(shown, sizeof(shown), "%s", rule);
		const char *wrong = parse_rule(&read.list[read.count++], rule);
		if (wrong) {
			snprintf(why, size, "faults: \"%s\": %s", shown, wrong);
			faults_fini(&read);
			free(copy);
			return -1;
		}
	}
	free(copy);
	faults_fini(faults);
	*faults = read;
	return 0;
}
