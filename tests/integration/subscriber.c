/*
 * subscriber: receives all messages of a topic filter from a real broker and records them (record.h). It uses
 * libmosquitto, so that no code of tidegate judges tidegate. It reconnects by itself to the same persistent session.
 */
#include "tests/integration/record.h"

#include <fcntl.h>
#include <mosquitto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct subscriber {
	struct record_subscriber *record;
	struct record_arrival *arrivals;
	uint64_t room;
	const char *filter;
	int qos;
};

static void
on_connect(struct mosquitto *m, void *owner, int code)
{
	struct subscriber *s = owner;

	if (code == 0)
		mosquitto_subscribe(m, NULL, s->filter, s->qos);
}

static void
on_subscribe(struct mosquitto *m, void *owner, int id, int count, const int *granted)
{
	struct subscriber *s = owner;

	(void)m, (void)id, (void)count, (void)granted;
	__atomic_fetch_add(&s->record->subscribed, 1, __ATOMIC_RELEASE);
}

static void
on_disconnect(struct mosquitto *m, void *owner, int code)
{
	struct subscriber *s = owner;

	(void)m, (void)code;
	__atomic_fetch_add(&s->record->disconnected, 1, __ATOMIC_RELEASE);
}

static int
intact(const struct mosquitto_message *message, const struct record_arrival *a, size_t from)
{
	const uint8_t *bytes = message->payload;

	for (size_t i = from; i < (size_t)message->payloadlen; i++) {
		if (bytes[i] != record_filler(a->producer, a->lane, a->sequence, i))
			return 0;
	}
	return 1;
}

static void
on_message(struct mosquitto *m, void *owner, const struct mosquitto_message *message)
{
	struct subscriber *s = owner;
	struct record_arrival a = { .body_len = (uint32_t)message->payloadlen, .retained = message->retain };
	char head[RECORD_BODY_MIN];
	unsigned long long sequence = 0;
	int used = 0;
	size_t len =
	    (size_t)message->payloadlen < sizeof(head) - 1 ? (size_t)message->payloadlen : sizeof(head) - 1;

	(void)m;
	if (len != 0)
		memcpy(head, message->payload, len);
	head[len] = 0;
	if (sscanf(head, "%u %u %llu%n", &a.producer, &a.lane, &sequence, &used) != 3) {
		s->record->strangers++;
		return;
	}
	a.sequence = sequence;
	if ((size_t)used < (size_t)message->payloadlen)
		used++; /* the blank */
	a.intact = (uint8_t)intact(message, &a, (size_t)used);
	if (s->record->count == s->room) {
		fprintf(stderr, "subscriber: more than %llu messages\n", (unsigned long long)s->room);
		exit(3);
	}
	s->arrivals[s->record->count] = a;
	__atomic_store_n(&s->record->count, s->record->count + 1, __ATOMIC_RELEASE);
}

static void
map_file(struct subscriber *s, const char *name)
{
	size_t size = sizeof(*s->record) + s->room * sizeof(*s->arrivals);
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0 || ftruncate(fd, (off_t)size) != 0) {
		perror(name);
		exit(2);
	}
	s->record = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (s->record == MAP_FAILED) {
		perror(name);
		exit(2);
	}
	s->arrivals = (struct record_arrival *)(s->record + 1);
	close(fd);
}

int
main(int argc, char **argv)
{
	struct subscriber s = { .room = 4000000 };
	struct timespec pause = { .tv_nsec = 20000000 }; /* between attempts to reach a broker that is down */
	struct mosquitto *m;

	if (argc != 7 || (strcmp(argv[6], "0") != 0 && strcmp(argv[6], "1") != 0)) {
		fprintf(stderr, "usage: subscriber HOST PORT CLIENT-ID FILTER FILE QOS\n");
		return 2;
	}
	s.filter = argv[4];
	s.qos = argv[6][0] - '0';
	map_file(&s, argv[5]);
	mosquitto_lib_init();
	m = mosquitto_new(argv[3], false, &s);
	if (m == NULL)
		return 2;
	mosquitto_connect_callback_set(m, on_connect);
	mosquitto_subscribe_callback_set(m, on_subscribe);
	mosquitto_disconnect_callback_set(m, on_disconnect);
	mosquitto_message_callback_set(m, on_message);
	mosquitto_int_option(m, MOSQ_OPT_TCP_NODELAY, 1);
	if (mosquitto_connect(m, argv[1], atoi(argv[2]), 60) != MOSQ_ERR_SUCCESS)
		fprintf(stderr, "subscriber: %s:%s does not answer yet\n", argv[1], argv[2]);
	for (;;) {
		if (mosquitto_loop(m, 1000, 1) == MOSQ_ERR_SUCCESS)
			continue;
		nanosleep(&pause, NULL);
		mosquitto_reconnect(m);
	}
}
