/* WordPiece (Devlin et al., arXiv:1810.04805): words are cut into the longest tokens from left to right; those inside of a word are others than
 * those that begin one. GGUF writes the latter with U+2581 in front and the former bare. */
#include "fold.h"
#include "unicode.h"
#include "vocab.h"

#include <string.h>

enum { WORD_CHARS = 100, WORD_BYTES = 3 + 4 * WORD_CHARS };     /* longer words are unknown as a whole, as in the published tokenizers */

#define MARK "\xe2\x96\x81"

typedef struct word {
    char s[WORD_BYTES];         /* MARK, then the word */
    int32_t len, chars;         /* chars counts on when there is no more room */
} word;

static void add_char(word *w, uint32_t cp) {
    if (w->chars++ >= WORD_CHARS) return;
    w->len += utf8_encode(cp, w->s + w->len);
}

static void end_word(const pyllm_tokenizer *t, word *w, id_list *out) {
    int64_t begin = out->n;
    int32_t at = 0, room = (int32_t)t->longest;
    int known = w->chars <= WORD_CHARS;
    while (known && w->chars && at < w->len) {
        int32_t end = w->len - at > room ? at + room : w->len, least = at ? at : 3, id = -1;
        if (at && w->len - at >= 3 && !memcmp(w->s + at, MARK, 3)) least = end;     /* a mark of the text's own: here it would begin a word */
        for (; end > least && (id = id_find(t, &t->by_bytes, t->text, w->s + at, (size_t)(end - at))) < 0;) end--;
        if (id < 0) known = 0;
        else id_add(out, id);
        at = end;
    }
    if (!known) {
        out->n = begin;
        if (t->ids[4] >= 0) id_add(out, t->ids[4]);
    }
    w->len = 3;
    w->chars = 0;
}

static void apart(const pyllm_tokenizer *t, word *w, uint32_t cp, id_list *out) {
    end_word(t, w, out);
    add_char(w, cp);
    end_word(t, w, out);
}

void wordpiece_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    word w = {.s = MARK, .len = 3};
    for (int64_t i = 0; i < n;) {
        uint32_t cp, to[4];
        i += utf8_decode((const uint8_t *)s + i, n - i, &cp);
        enum fold_class class = fold_class_of(cp);
        if (class == FOLD_GONE) continue;
        if (class == FOLD_SPACE || class == FOLD_CJK) end_word(t, &w, out);
        if (class == FOLD_SPACE) continue;
        int count = fold(cp, t->strip_accents, t->lowercase, to);
        for (int k = 0; k < count; k++) {
            if (fold_class_of(to[k]) == FOLD_PUNCT) apart(t, &w, to[k], out);
            else add_char(&w, to[k]);
        }
        if (class == FOLD_CJK) end_word(t, &w, out);
    }
    end_word(t, &w, out);
}
