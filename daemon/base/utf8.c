#include "utf8.h"

const char *
utf8_fault_text(enum utf8_fault fault)
{
	switch (fault) {
	case UTF8_PLAIN:
		return "is plain text";
	case UTF8_INVALID:
		return "is not valid UTF-8";
	case UTF8_CONTROL:
		return "has a control character";
	case UTF8_NONCHAR:
		return "has a Unicode non-character";
	case UTF8_FORBIDDEN:
		return "has a character that is not allowed";
	}
	return "is bad";
}

/* Decodes one character. Returns its length, or 0 when it is not valid UTF-8. */
static size_t
decode(const uint8_t *bytes, size_t len, uint32_t *character)
{
	uint32_t first = bytes[0], c, least;
	size_t need;

	if (first < 0x80) {
		*character = first;
		return 1;
	} else if (first >= 0xc2 && first < 0xe0) {
		need = 2, c = first & 0x1f, least = 0x80;
	} else if (first >= 0xe0 && first < 0xf0) {
		need = 3, c = first & 0x0f, least = 0x800;
	} else if (first >= 0xf0 && first < 0xf5) {
		need = 4, c = first & 0x07, least = 0x10000;
	} else {
		return 0;
	}
	if (len < need)
		return 0;
	for (size_t i = 1; i < need; i++) {
		if ((bytes[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (bytes[i] & 0x3fu);
	}
	if (c < least || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	*character = c;
	return need;
}

static enum utf8_fault
fault_of(uint32_t c, const char forbidden[2])
{
	if (c < 0x20 || (c >= 0x7f && c < 0xa0))
		return UTF8_CONTROL;
	if ((c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe)
		return UTF8_NONCHAR;
	if (c == (uint8_t)forbidden[0] || c == (uint8_t)forbidden[1])
		return UTF8_FORBIDDEN;
	return UTF8_PLAIN;
}

enum utf8_fault
utf8_check_slow(const uint8_t *bytes, size_t len, const char forbidden[2], size_t *offset)
{
	for (size_t at = 0; at < len;) {
		uint32_t c = 0;
		size_t n = decode(bytes + at, len - at, &c);
		enum utf8_fault fault = n == 0 ? UTF8_INVALID : fault_of(c, forbidden);
		if (fault != UTF8_PLAIN) {
			*offset = at;
			return fault;
		}
		at += n;
	}
	return UTF8_PLAIN;
}

size_t
utf8_clean(char *text, size_t size, const uint8_t *bytes, size_t len)
{
	size_t used = 0;

	if (size == 0)
		return 0;
	for (size_t at = 0; at < len;) {
		uint32_t c = 0;
		size_t n = decode(bytes + at, len - at, &c);
		int plain = n > 0 && fault_of(c, "\0") == UTF8_PLAIN;
		size_t need = plain ? n : 1;
		if (used + need >= size)
			break;
		if (plain)
			memcpy(text + used, bytes + at, n);
		else
			text[used] = '?';
		used += need;
		at += n == 0 ? 1 : n;
	}
	text[used] = '\0';
	return used;
}
