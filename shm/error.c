#include "error.h"

const char *
error_text(int code)
{
	switch (code < 0 ? -code : code) {
	case 0:
		return "success";
#define X(name, value, text) \
	case value:          \
		return text;
#include "error.def"
#undef X
	default:
		return "unknown error";
	}
}

const char *
outcome_word(unsigned outcome)
{
	switch (outcome) {
#define X(name, value, word, text) \
	case value:                \
		return word;
#include "outcome.def"
#undef X
	default:
		return "none";
	}
}
