/* Plays the files and folders it is given, or the corpus, to a fuzz target. */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static unsigned replayed;

static int
replay_file(const char *path)
{
	FILE *file = fopen(path, "re");
	static uint8_t data[1 << 20];

	if (file == NULL) {
		fprintf(stderr, "%s: %m\n", path);
		return 1;
	}
	size_t size = fread(data, 1, sizeof(data), file);
	fclose(file);
	/* In memory of its exact size, for the sanitizers. */
	uint8_t *copy = malloc(size + (size == 0));
	if (copy == NULL)
		abort();
	memcpy(copy, data, size);
	LLVMFuzzerTestOneInput(copy, size);
	free(copy);
	replayed++;
	return 0;
}

static int
replay(const char *path)
{
	DIR *dir = opendir(path);
	const char *slash = strrchr(path, '/');
	struct dirent *entry;
	char inside[4096];
	int rc = 0;

	if (dir == NULL)
		return replay_file(path);
	int mine = fuzz_folder(slash != NULL ? slash + 1 : path);
	while (mine && (entry = readdir(dir)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		snprintf(inside, sizeof(inside), "%s/%s", path, entry->d_name);
		rc |= replay(inside);
	}
	closedir(dir);
	return rc;
}

int
main(int argc, char **argv)
{
	int rc = 0;

	LLVMFuzzerInitialize(&argc, &argv);
	if (argc < 2)
		rc |= replay(CORPUS);
	for (int i = 1; i < argc; i++)
		rc |= replay(argv[i]);
	fuzz_fini();
	if (replayed == 0)
		rc = 1;
	printf("%s %u inputs replayed\n", rc == 0 ? "ok" : "not ok", replayed);
	return rc;
}
