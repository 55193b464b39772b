/*
 * One MQTT connection as its parts see it: mqtt.c (settings, connect, probe), mqtt_version.c (which version
 * it is of), mqtt_publish.c (framing) and mqtt_input.c (answers).
 *
 * Packet ids follow the sequence numbers (mqtt_id()), so that the id of an answer names its seq as long as
 * the span of unanswered ones is at most 65,535.
 */
#ifndef TG_DAEMON_PROTOCOL_MQTT_H
#define TG_DAEMON_PROTOCOL_MQTT_H

#include "driver.h"
#include "mqtt_packet.h"
#include "window.h"

enum mqtt_state { MQTT_CLOSED, MQTT_CONNECTING, MQTT_UP };

/* The known versions of a broker; see mqtt_version.c. */
enum mqtt_known { MQTT_NOTHING, MQTT_TRY_4, MQTT_CONFIRM_5, MQTT_KNOWN_4, MQTT_KNOWN_5 };

struct mqtt_memory {
	uint8_t known; /* enum mqtt_known */
};

struct mqtt_session {
	struct session base;
	struct window unanswered;
	uint32_t window;     /* unanswered messages stay at or below it, their span at or below MQTT_IDS */
	uint32_t max_packet; /* the most bytes of a PUBLISH */
	uint32_t probes;     /* unanswered */
	enum mqtt_state state;
	uint8_t version;
	uint8_t qos;
	uint8_t retain_available;
	uint8_t dollar_topics; /* topics that begin with $ are passed on */
	uint8_t refused; /* the last packet was a PUBACK with this reason, from 0x80 on; 0: it was another */
	uint8_t pinned;  /* the pool says which version */
	uint8_t asked_knowing;      /* the known versions when it began */
	struct mqtt_memory *memory; /* the broker's */
	struct mqtt_memory no_memory;
};

static inline struct mqtt_session *
mqtt_session(struct session *session)
{
	return (struct mqtt_session *)session;
}

static inline uint32_t
mqtt_id(uint64_t seq)
{
	return (uint32_t)(seq % MQTT_IDS) + 1;
}

/* struct driver's publish and input. */
int mqtt_publish(struct session *session, uint64_t seq, const struct message *message, struct out *out,
    struct driver_rejection *rejection);
ssize_t mqtt_input(struct session *session, const uint8_t *bytes, size_t len, struct out *out);

/* The version of a session that begins; pinned: the pool's, 0 for "auto". */
uint8_t mqtt_version_choose(struct mqtt_session *mqtt, uint32_t pinned);

/* The broker has said, with a code in words, that it does not speak MQTT 5. Returns -TG_EPROTOCOL after EV_FATAL. */
int mqtt_version_refused(struct mqtt_session *mqtt, uint8_t code, const char *words);

/* CONNACK accepts the session. Returns 0, or -TG_EPROTOCOL after EV_FATAL: another one is needed to be sure. */
int mqtt_version_accepted(struct mqtt_session *mqtt);

/* CONNACK refuses the session, but not for its version. */
void mqtt_version_answered(struct mqtt_session *mqtt);

/* struct driver's unheard and speaks. */
const char *mqtt_unheard(struct session *session);
const char *mqtt_speaks(const struct session *session);

#endif
