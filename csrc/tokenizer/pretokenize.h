/* Splitting text into words before byte-level BPE: the published pattern of each family, as scanners over code points. */
#ifndef PYLLM_TOKENIZER_PRETOKENIZE_H
#define PYLLM_TOKENIZER_PRETOKENIZE_H
#include <stdint.h>

/* A text as code points: class and value of each, and the byte at which it starts (n + 1 entries). */
typedef struct codepoints {
    const uint32_t *cp;
    const uint8_t *class;
    const int64_t *at;
    int64_t n;
} codepoints;

typedef struct pretokenizer pretokenizer;
/* By the value of tokenizer.ggml.pre; NULL if it is unknown. */
const pretokenizer *pretokenizer_find(const char *name, uint64_t len);
/* The whole word is taken from the vocabulary where it stands there, before any merge. */
int pretokenizer_ignores_merges(const pretokenizer *p);
/* The last stage looks for runs of numbers not in the text but in its bytes, written in the alphabet of the token texts. */
int pretokenizer_cuts_numbers(const pretokenizer *p);
/* The text is brought to its composed form (nfc.h) before. */
int pretokenizer_composes(const pretokenizer *p);
/* Families whose files may leave add_bos_token out and mean yes. */
int pretokenizer_adds_bos(const pretokenizer *p);
/* Calls word(ctx, first, end) for each word [first, end) of code points, in order; stops and returns its result when that is not 0. */
typedef int word_fn(void *ctx, int64_t first, int64_t end);
int pretokenize(const pretokenizer *p, const codepoints *t, word_fn *word, void *ctx);
#endif
