/* Canonical composition (Unicode's normalization form C), which some families apply to a text before it is split. */
#ifndef PYLLM_TOKENIZER_NFC_H
#define PYLLM_TOKENIZER_NFC_H
#include <stdint.h>

typedef struct nfc_parts { uint32_t cp, first, second; } nfc_parts;     /* canonical decomposition; second 0: of one code point */
typedef struct nfc_class { uint32_t first, last; uint8_t class; } nfc_class;    /* combining class, other than 0 */
extern const nfc_parts nfc_parts_table[];       /* by cp */
extern const int32_t nfc_parts_count;
extern const uint16_t nfc_composed[];           /* places in the table above of what is composed again, by (first, second) */
extern const int32_t nfc_composed_count;
extern const uint32_t nfc_seconds[];            /* second parts of what is composed that are no marks (class 0); few */
extern const int32_t nfc_seconds_count;
extern const nfc_class nfc_class_table[];
extern const int32_t nfc_class_count;

/* The composed form of s[0..n) as new bytes that the caller gives to mem_free, *len of them; bytes that are no UTF-8 stay as they are. s itself
   where nothing has to change. NULL: out of memory. */
char *nfc(const char *s, int64_t n, int64_t *len);
#endif
