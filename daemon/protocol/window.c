#include "window.h"

#include "shm/error.h"

#include <stdlib.h>

uint32_t
window_power_of_two(uint64_t least)
{
	uint32_t n = 64;

	while (n < least && n < UINT32_C(1) << 31)
		n *= 2;
	return n;
}

uint64_t
window_room(uint32_t messages)
{
	uint64_t room = UINT64_C(4) * messages;

	return room < DRIVER_SPAN ? DRIVER_SPAN : room;
}

int
window_init(struct window *window, struct session *session, uint8_t outcome, uint64_t room)
{
	uint32_t bits = window_power_of_two(room < WINDOW_ROOM_MAX ? room : WINDOW_ROOM_MAX);

	*window = (struct window){ .session = session, .outcome = outcome, .mask = bits - 1 };
	window->early_bits = calloc(bits / 64, sizeof(*window->early_bits));
	return window->early_bits != NULL ? 0 : -TG_ENOMEM;
}

void
window_fini(struct window *window)
{
	free(window->early_bits);
	window->early_bits = NULL;
}

void
window_flush_gathered(struct window *window)
{
	window->gathered = 0;
	driver_ack(window->session, EV_ACK_UPTO, window->oldest - 1, window->outcome, 0);
}

static uint64_t *
early_word(struct window *window, uint64_t seq, uint64_t *bit)
{
	uint64_t index = seq & window->mask;

	*bit = UINT64_C(1) << (index & 63);
	return &window->early_bits[index / 64];
}

int
window_set_early(struct window *window, uint64_t seq)
{
	uint64_t bit, *word = early_word(window, seq, &bit);

	if ((*word & bit) != 0)
		return 0;
	*word |= bit;
	window->early++;
	return 1;
}

void
window_skip_early(struct window *window)
{
	uint64_t bit;

	while (window->early > 0) {
		uint64_t *word = early_word(window, window->oldest, &bit);
		if ((*word & bit) == 0)
			break;
		*word &= ~bit;
		window->early--;
		window->oldest++;
	}
}

int
window_ack(struct window *window, uint64_t seq)
{
	if (seq == window->oldest && seq != window->next) {
		window_ack_oldest(window);
		return 1;
	}
	if (!window_take(window, seq))
		return 0;
	driver_ack(window->session, EV_ACK, seq, window->outcome, 0);
	return 1;
}
