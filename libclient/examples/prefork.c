/*
 * A pre-forking server: the parent publishes when it starts and when it ends, each worker publishes for its requests.
 *
 *     prefork POOL TOPIC WORKERS REQUESTS
 *
 * A worker must not use handles that its parent opened: every call on them returns TG_EFORKED. Each worker closes its
 * copy of the parent's client, which frees memory and leaves the parent's connection alone, and opens its own.
 *
 * Build: cc prefork.c -o prefork $(pkg-config --cflags --libs tidegate)
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <tidegate.h>
#include <unistd.h>

struct publisher {
	struct tg_client *client;
	struct tg_lane *lane;
};

static int
publisher_open(struct publisher *p, const char *pool)
{
	/* Many small lanes: 16 KiB each is enough for one message at a time. */
	struct tg_lane_options options = { .ring_bytes = 16384 };
	int rc = tg_client_open(&p->client, NULL);

	if (rc == 0)
		rc = tg_lane_open(p->client, &p->lane, pool, &options);
	if (rc != 0)
		fprintf(stderr, "prefork: %s: %s\n", tg_strerror(rc), tg_client_detail(p->client));
	return rc;
}

static void
publisher_close(struct publisher *p)
{
	if (p->lane != NULL)
		tg_lane_close(p->lane, 1000);
	tg_client_close(p->client);
	*p = (struct publisher){ .client = NULL };
}

/* Publishes one text and waits for its outcome. Returns whether it was delivered. */
static int
publish(struct publisher *p, const char *topic, const char *text, int len)
{
	struct tg_message message = {
		.topic = topic, .topic_len = TG_NUL, .body = text, .body_len = (size_t)len
	};
	struct tg_completion done;
	int rc = tg_publish_sync(p->lane, &message, 5000, &done);

	if (rc != 0)
		fprintf(stderr, "prefork: %s: %s\n", tg_strerror(rc), tg_client_detail(p->client));
	return rc == 0 && done.outcome == TG_DELIVERED;
}

static int
work(struct publisher *parent, char **argv, unsigned long worker)
{
	struct publisher own = { .client = NULL };
	unsigned long requests = strtoul(argv[4], NULL, 10), delivered = 0;
	char text[64];

	tg_client_close(parent->client); /* and its lane */
	if (publisher_open(&own, argv[1]) == 0)
		for (unsigned long i = 0; i < requests; i++) {
			int len = snprintf(text, sizeof(text), "worker %lu request %lu", worker, i);
			delivered += (unsigned long)publish(&own, argv[2], text, len);
		}
	publisher_close(&own);
	return delivered != requests;
}

int
main(int argc, char **argv)
{
	struct publisher parent = { .client = NULL };
	unsigned long workers, failed = 0;

	if (argc != 5) {
		fprintf(stderr, "usage: prefork POOL TOPIC WORKERS REQUESTS\n");
		return 2;
	}
	workers = strtoul(argv[3], NULL, 10);
	if (publisher_open(&parent, argv[1]) != 0 || !publish(&parent, argv[2], "started", 7)) {
		publisher_close(&parent);
		return 1;
	}
	for (unsigned long i = 0; i < workers; i++) {
		pid_t pid = fork();
		if (pid < 0) {
			perror("prefork: fork");
			failed++;
		} else if (pid == 0) {
			_exit(work(&parent, argv, i));
		}
	}
	int status;
	while (wait(&status) > 0)
		failed += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
	/* The parent's own lane still works. */
	failed += !publish(&parent, argv[2], "stopped", 7);
	publisher_close(&parent);
	printf("%lu workers, %lu failed\n", workers, failed);
	return failed > 0;
}
