/*
 * Publishes lines of standard input from a poll(2) loop and never blocks in the library.
 *
 *     event_loop POOL TOPIC < lines
 *
 * The loop watches two descriptors: standard input and the lane's tg_fd(). While the ring is full the program does not
 * read its input, so back-pressure reaches whatever writes it. With epoll, libuv or another loop, use tg_fd() likewise.
 *
 * Build: cc event_loop.c -o event_loop $(pkg-config --cflags --libs tidegate)
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <tidegate.h>
#include <unistd.h>

struct input {
	char bytes[4096]; /* a longer line is published in pieces */
	size_t len;
	int ended;
};

static unsigned long outcomes[TG_CANCELLED + 1];

/* Takes all completions. tg_poll() has to return 0 before tg_fd() can become readable again. */
static int
collect(struct tg_lane *lane)
{
	struct tg_completion done[64];
	int count;

	while ((count = tg_poll(lane, done, 64)) > 0)
		for (int i = 0; i < count; i++)
			outcomes[done[i].outcome]++;
	return count;
}

static void
read_more(struct input *input)
{
	ssize_t n = read(STDIN_FILENO, input->bytes + input->len, sizeof(input->bytes) - input->len);

	if (n > 0)
		input->len += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		input->ended = 1;
}

/* Publishes the whole lines that were read. Returns 0, -TG_EAGAIN when the ring is full, or another error. */
static int
publish_lines(struct tg_lane *lane, const char *topic, struct input *input)
{
	while (input->len > 0) {
		char *end = memchr(input->bytes, '\n', input->len);
		size_t line = end != NULL ? (size_t)(end - input->bytes) : input->len;

		if (end == NULL && input->len < sizeof(input->bytes) && !input->ended)
			return 0; /* the rest of the line is still to come */
		struct tg_message message = {
			.topic = topic, .topic_len = TG_NUL, .body = input->bytes, .body_len = line
		};
		int rc = tg_publish(lane, &message, NULL);
		if (rc != 0)
			return rc;
		line += end != NULL;
		memmove(input->bytes, input->bytes + line, input->len - line);
		input->len -= line;
	}
	return 0;
}

static int
run(struct tg_lane *lane, const char *topic)
{
	struct input input = { .len = 0 };
	int full = 0, rc;

	while (!input.ended || input.len > 0 || tg_outstanding(lane) > 0) {
		struct pollfd fds[2] = {
			{ .fd = tg_fd(lane), .events = POLLIN },
			{ .fd = full || input.ended ? -1 : STDIN_FILENO, .events = POLLIN },
		};

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -TG_ESYSTEM;
		if (fds[1].revents != 0)
			read_more(&input);
		if ((rc = collect(lane)) < 0)
			return rc;
		rc = publish_lines(lane, topic, &input);
		full = rc == -TG_EAGAIN;
		if (rc != 0 && !full)
			return rc;
	}
	return 0;
}

int
main(int argc, char **argv)
{
	struct tg_client *client = NULL;
	struct tg_lane *lane = NULL;

	if (argc != 3) {
		fprintf(stderr, "usage: event_loop POOL TOPIC\n");
		return 2;
	}
	int rc = tg_client_open(&client, NULL);
	if (rc == 0)
		rc = tg_lane_open(client, &lane, argv[1], NULL);
	if (rc == 0)
		rc = run(lane, argv[2]);
	if (rc != 0)
		fprintf(stderr, "event_loop: %s: %s\n", tg_strerror(rc), tg_client_detail(client));
	for (unsigned i = TG_DELIVERED; i <= TG_CANCELLED; i++)
		if (outcomes[i] > 0)
			printf("%lu %s\n", outcomes[i], tg_outcome_name(i));
	if (lane != NULL)
		tg_lane_close(lane, 1000);
	tg_client_close(client);
	return rc != 0;
}
