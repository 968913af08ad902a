/* What BERT's normalizer makes of a code point. */
#ifndef PYLLM_TOKENIZER_FOLD_H
#define PYLLM_TOKENIZER_FOLD_H
#include <stdint.h>

/* Dropped; white space; written apart from its neighbours, before folding (CJK ideographs) and after it (punctuation). */
enum fold_class { FOLD_OTHER, FOLD_GONE, FOLD_SPACE, FOLD_CJK, FOLD_PUNCT };
typedef struct fold_range { uint32_t first; uint8_t class; } fold_range;
extern const fold_range fold_class_table[];
extern const int32_t fold_ranges;

typedef struct fold_run { uint32_t first; uint16_t n; uint8_t step; uint32_t to; uint8_t to_step; } fold_run;  /* to 0: nothing */
typedef struct fold_many { uint32_t cp, to[3]; } fold_many;
extern const fold_run fold_strip_table[], fold_lower_table[];
extern const int32_t fold_strip_runs, fold_lower_runs;
extern const fold_many fold_strip_many_table[];
extern const int32_t fold_strip_many_count;

enum fold_class fold_class_of(uint32_t cp);
/* Canonical decomposition without nonspacing marks (strip), then lower case (lower): to out[0..3), returns how many. */
int fold(uint32_t cp, int strip, int lower, uint32_t *out);
#endif
