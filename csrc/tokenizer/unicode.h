/* Code points and their classes. */
#ifndef PYLLM_TOKENIZER_UNICODE_H
#define PYLLM_TOKENIZER_UNICODE_H
#include <stdint.h>

/* General categories, folded: letters by case, marks, numbers, punctuation, symbols; white space by its property. */
enum unicode_class { U_OTHER, U_LU, U_LL, U_LT, U_LM, U_LO, U_M, U_N, U_P, U_S, U_SPACE };
typedef struct unicode_range { uint32_t first; uint8_t class; } unicode_range;
extern const unicode_range unicode_table[];
extern const int32_t unicode_ranges;

uint8_t unicode_class(uint32_t cp);
/* Decodes one code point of s[0..n), n > 0; a byte that is not valid UTF-8 counts alone, as U+FFFD. Returns the bytes used. */
int utf8_decode(const uint8_t *s, int64_t n, uint32_t *cp);
/* UTF-8 of a code point to out; returns the bytes, at most 4. */
int utf8_encode(uint32_t cp, char *out);
#endif
