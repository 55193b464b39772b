/*
 * Text that may travel in a protocol: the driver refuses a bad string before it is framed, because
 * a broker answers a bad string by closing the connection, and the message would come round again.
 *
 * Plain text is valid UTF-8 (no surrogates, no overlong forms) without control characters
 * (U+0000..U+001F, U+007F..U+009F) and without non-characters.
 */
#ifndef TG_DAEMON_PROTOCOL_UTF8_H
#define TG_DAEMON_PROTOCOL_UTF8_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum utf8_fault {
	UTF8_PLAIN = 0,
	UTF8_INVALID,   /* not UTF-8 */
	UTF8_CONTROL,   /* a control character */
	UTF8_NONCHAR,   /* U+FDD0..U+FDEF, U+xxFFFE, U+xxFFFF */
	UTF8_FORBIDDEN, /* one of the two bytes that were forbidden */
};

/* The error in words: "is not valid UTF-8". Static. */
const char *utf8_fault_text(enum utf8_fault fault);

/*
 * Looks for the first fault; forbidden are two ASCII characters that are not allowed either (the
 * same twice, or 0 and 0 for none). *offset is where the fault lies.
 */
enum utf8_fault utf8_check_slow(const uint8_t *bytes, size_t len, const char forbidden[2], size_t *offset);

/* Copies at most size - 1 bytes of a peer's text, faults made '?', and terminates. Returns the length. */
size_t utf8_clean(char *text, size_t size, const uint8_t *bytes, size_t len);

#define UTF8_ONES UINT64_C(0x0101010101010101)
#define UTF8_HIGHS UINT64_C(0x8080808080808080)

/* Non-zero if a byte of an all-ASCII word equals c. */
static inline uint64_t
utf8_word_has(uint64_t word, uint8_t c)
{
	uint64_t x = word ^ (UTF8_ONES * c);
	return (x - UTF8_ONES) & ~x & UTF8_HIGHS;
}

/* Non-zero if a word may have a fault. */
static inline uint64_t
utf8_word_bad(uint64_t word, const char forbidden[2])
{
	return (word & UTF8_HIGHS) | ((word - UTF8_ONES * ' ') & ~word & UTF8_HIGHS) |
	       utf8_word_has(word, 0x7f) | utf8_word_has(word, (uint8_t)forbidden[0]) |
	       utf8_word_has(word, (uint8_t)forbidden[1]);
}

/* As utf8_check_slow, eight bytes at a time while they are plain ASCII. */
static inline enum utf8_fault
utf8_check(const uint8_t *bytes, size_t len, const char forbidden[2], size_t *offset)
{
	uint64_t word = UTF8_ONES * ' ', bad = 0;

	if (len >= sizeof(word)) {
		for (size_t at = 0; at < len - sizeof(word); at += sizeof(word)) {
			memcpy(&word, bytes + at, sizeof(word));
			bad |= utf8_word_bad(word, forbidden);
		}
		/* The last eight, some of them for the second time. */
		memcpy(&word, bytes + len - sizeof(word), sizeof(word));
	} else {
		for (size_t at = 0; at < len; at++)
			word = word << 8 | bytes[at];
	}
	bad |= utf8_word_bad(word, forbidden);
	if (__builtin_expect(bad == 0, 1))
		return UTF8_PLAIN;
	return utf8_check_slow(bytes, len, forbidden, offset);
}

#endif
