/*
 * Which version a broker is spoken to in, where the pool leaves that open (version = "auto").
 *
 * MQTT 5 is asked for. A broker that speaks 3.1.1 alone may say so (CONNACK 0x84, or 1 in the older form), or
 * take the CONNECT for one of 3.1.1 and answer in the older form: then 3.1.1 it is. Others close without a word
 * or never answer, and that is also how a broker fails that starts, freezes or has none behind its proxy. A
 * message with headers is refused in 3.1.1 for good, so those are only taken for a broker of 3.1.1 once it has
 * answered 3.1.1 between two tries with 5:
 *
 *   NOTHING ── 5: no answer ──► TRY_4 ── 4: accepted ──► CONFIRM_5 ── 5: no answer ──► KNOWN_4
 *      ▲                          │                          │
 *      └── 4: no answer, refused ─┘                          └── 5: any answer ──► KNOWN_5
 *
 * A broker known to speak 5 is not asked in 3.1.1 when it fails. All this is forgotten when the broker cannot
 * be connected to (session_params.memory): it may have been upgraded.
 */
#include "mqtt.h"

#include "shm/error.h"

#define MQTT_PINNED "; version = 4 or \"auto\" in the pool's mqtt group speaks MQTT 3.1.1"

uint8_t
mqtt_version_choose(struct mqtt_session *mqtt, uint32_t pinned)
{
	mqtt->memory = mqtt->base.params->memory != NULL ? mqtt->base.params->memory : &mqtt->no_memory;
	mqtt->asked_knowing = mqtt->memory->known;
	mqtt->pinned = pinned != 0;
	if (pinned != 0)
		return (uint8_t)pinned;
	if (mqtt->base.params->replayed)
		return 5; /* its answer tells */
	return mqtt->memory->known == MQTT_TRY_4 || mqtt->memory->known == MQTT_KNOWN_4 ? 4 : 5;
}

int
mqtt_version_refused(struct mqtt_session *mqtt, uint8_t code, const char *words)
{
	mqtt->state = MQTT_CLOSED;
	if (mqtt->pinned)
		return driver_fatal(&mqtt->base, FATAL_SETTINGS, code,
		    "the broker does not speak MQTT 5: %s (%u)" MQTT_PINNED, words, code);
	mqtt->memory->known = MQTT_KNOWN_4;
	return driver_fatal(&mqtt->base, FATAL_AGAIN, code,
	    "the broker does not speak MQTT 5: %s (%u); it is spoken to in MQTT 3.1.1 from now on", words,
	    code);
}

int
mqtt_version_accepted(struct mqtt_session *mqtt)
{
	struct mqtt_memory *memory = mqtt->memory;

	if (mqtt->pinned || (mqtt->version == 4 && memory->known == MQTT_KNOWN_4))
		return 0;
	if (mqtt->version == 5 || mqtt->base.params->replayed) {
		memory->known = mqtt->version == 5 ? MQTT_KNOWN_5 : MQTT_KNOWN_4;
		return 0;
	}
	if (memory->known == MQTT_TRY_4)
		memory->known = MQTT_CONFIRM_5;
	mqtt->state = MQTT_CLOSED;
	return driver_fatal(&mqtt->base, FATAL_AGAIN, 0,
	    "the broker speaks MQTT 3.1.1; whether it speaks 5 is asked once more before that is believed");
}

void
mqtt_version_answered(struct mqtt_session *mqtt)
{
	if (mqtt->pinned)
		return;
	if (mqtt->version == 5)
		mqtt->memory->known = MQTT_KNOWN_5;
	else if (mqtt->memory->known == MQTT_TRY_4)
		mqtt->memory->known =
		    MQTT_NOTHING; /* it refuses for a reason of its own: 5 would be refused too */
}

const char *
mqtt_unheard(struct session *session)
{
	struct mqtt_session *mqtt = mqtt_session(session);
	struct mqtt_memory *memory = mqtt->memory;
	uint8_t before = memory->known;

	if (mqtt->pinned || before != mqtt->asked_knowing)
		return NULL; /* another link has found out more since */
	switch (before) {
	case MQTT_NOTHING:
		memory->known = MQTT_TRY_4;
		return "is MQTT 5 the reason? MQTT 3.1.1 is tried";
	case MQTT_TRY_4:
		memory->known = MQTT_NOTHING;
		return NULL;
	case MQTT_CONFIRM_5:
		memory->known = MQTT_KNOWN_4;
		return "it answers MQTT 3.1.1 alone, and is spoken to in that from now on";
	default:
		return NULL;
	}
}

const char *
mqtt_speaks(const struct session *session)
{
	const struct mqtt_session *mqtt = (const struct mqtt_session *)session;

	if (mqtt->state != MQTT_UP)
		return NULL;
	return mqtt->version == 5 ? "MQTT 5" : "MQTT 3.1.1";
}
