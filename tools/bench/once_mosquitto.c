/*
 * tidegate-once's counterpart without tidegate: connect to the broker, publish one message at QoS
 * 1, see it confirmed, disconnect, exit.
 *
 *	tidegate-once-mosquitto HOST PORT TOPIC SIZE [CAFILE]
 */
#include <mosquitto.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define TIMEOUT_S 10

struct once {
	const char *topic;
	void *body;
	int size;
	int confirmed, error;
};

static void
on_connect(struct mosquitto *mosq, void *self, int code)
{
	struct once *o = self;

	o->error = code != 0 ? MOSQ_ERR_CONN_REFUSED
			     : mosquitto_publish(mosq, NULL, o->topic, o->size, o->body, 1, false);
}

static void
on_publish(struct mosquitto *mosq, void *self, int id)
{
	struct once *o = self;

	(void)mosq;
	(void)id;
	o->confirmed = 1;
}

int
main(int argc, char **argv)
{
	struct once o = { 0 };
	struct mosquitto *mosq;
	time_t end = time(NULL) + TIMEOUT_S;

	if (argc != 5 && argc != 6) {
		fprintf(stderr, "usage: tidegate-once-mosquitto HOST PORT TOPIC SIZE [CAFILE]\n");
		return 1;
	}
	mosquitto_lib_init();
	o.topic = argv[3];
	o.size = atoi(argv[4]);
	o.body = calloc(1, (size_t)o.size + 1);
	mosq = mosquitto_new(NULL, true, &o);
	if (mosq == NULL || o.body == NULL)
		return 1;
	mosquitto_connect_callback_set(mosq, on_connect);
	mosquitto_publish_callback_set(mosq, on_publish);
	mosquitto_int_option(mosq, MOSQ_OPT_TCP_NODELAY, 1);
	if (argc == 6)
		o.error = mosquitto_tls_set(mosq, argv[5], NULL, NULL, NULL, NULL);
	if (o.error == MOSQ_ERR_SUCCESS)
		o.error = mosquitto_connect(mosq, argv[1], atoi(argv[2]), 60);
	while (o.error == MOSQ_ERR_SUCCESS && !o.confirmed && time(NULL) <= end) {
		int error = mosquitto_loop(mosq, 1000, 1);

		if (error != MOSQ_ERR_SUCCESS)
			o.error = error;
	}
	if (o.error != MOSQ_ERR_SUCCESS)
		fprintf(stderr, "tidegate-once-mosquitto: %s port %s: %s\n", argv[1], argv[2],
		    mosquitto_strerror(o.error));
	mosquitto_disconnect(mosq);
	mosquitto_destroy(mosq);
	mosquitto_lib_cleanup();
	free(o.body);
	return o.confirmed ? 0 : 1;
}
