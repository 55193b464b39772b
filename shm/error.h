/* Error and outcome numbers as both sides know them; the lists are error.def and outcome.def. */
#ifndef TG_SHM_ERROR_H
#define TG_SHM_ERROR_H

/* The public header spells the same two enums out (a test holds them against the lists). */
#ifndef TIDEGATE_H
enum tg_error {
#define X(name, value, text) TG_E##name = value,
#include "error.def"
#undef X
};

enum tg_outcome {
#define X(name, value, word, text) TG_##name = value,
#include "outcome.def"
#undef X
};
#endif

/* The text of an error: its number may have either sign. Never NULL; static. */
const char *error_text(int code);

/* "delivered", "sent" ...: the word used by every tool. "none" for what is no outcome; static. */
const char *outcome_word(unsigned outcome);

#endif
