/* Unigram (Kudo, arXiv:1804.10959), as T5 and XLM-R have it: of all ways to cut a word into tokens the one with the greatest sum of scores.
 *
 * Before that a text is normalised by a table in the file, a double-array trie (Aoe, 1989) from byte strings to texts. Which strings are looked
 * up follows Hugging Face's tokenizers: a character with the marks on it as one if it has fewer than six bytes, of which the shortest
 * beginning in the table decides; else each code point. */
#include "unicode.h"
#include "vocab.h"

#include "../base/alloc.h"

#include <string.h>

#define MARK "\xe2\x96\x81"

enum { CLUSTER_BYTES = 5 };

typedef struct buffer {
    char *s;
    int64_t n, room;
} buffer;

/* Places in a word are int32: what rules make of a text may be longer than these, and is then too long. */
static int append(buffer *b, const char *s, int64_t n) {
    if (!n) return 0;
    if (n > INT32_MAX / 4 - b->n) return -1;
    if (b->n + n > b->room) {
        int64_t room = 2 * (b->n + n) + 64;
        char *grown = mem_realloc(b->s, (size_t)room);
        if (!grown) return -1;
        b->s = grown;
        b->room = room;
    }
    memcpy(b->s + b->n, s, (size_t)n);
    b->n += n;
    return 0;
}

/* ---- normalising ---- */

/* What the shortest beginning of s[0..n) that the table has becomes; NULL if it has none. */
static const char *replaced(const charsmap *m, const char *s, int64_t n) {
    if (!m->n_units) return NULL;
    uint32_t at = m->units[0] >> 10 << ((m->units[0] >> 9 & 1) * 8);
    for (int64_t i = 0; i < n; i++) {
        uint8_t c = (uint8_t)s[i];
        at ^= c;
        if (at >= m->n_units) return NULL;
        uint32_t unit = m->units[at];
        if ((unit & 0x800000ffu) != c) return NULL;
        at ^= unit >> 10 << ((unit >> 9 & 1) * 8);
        if (at >= m->n_units) return NULL;
        if (unit >> 8 & 1) {
            uint32_t value = m->units[at] & 0x7fffffff;
            return value < m->text_len ? m->text + value : NULL;
        }
    }
    return NULL;
}

static int is_control(uint32_t cp) {
    return cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || cp == 0xad || cp == 0x61c || cp == 0x180e || cp == 0x200b || cp == 0x200e || cp == 0x200f ||
           (cp >= 0x2028 && cp <= 0x202e) || (cp >= 0x2060 && cp <= 0x206f) || cp == 0xfeff || (cp >= 0xfff0 && cp <= 0xfffb);
}

static int is_mark(uint32_t cp) {
    return unicode_class(cp) == U_M || cp == 0x200c || cp == 0x200d || (cp >= 0x1f3fb && cp <= 0x1f3ff) || cp == 0xff9e || cp == 0xff9f ||
           cp == 0xe33 || cp == 0xeb3 || (cp >= 0xe0020 && cp <= 0xe007f);
}

static int is_prefix(uint32_t cp) {
    return (cp >= 0x600 && cp <= 0x605) || cp == 0x6dd || cp == 0x70f || cp == 0x890 || cp == 0x891 || cp == 0x8e2 || cp == 0xd4e;
}

static int is_pictographic(uint32_t cp) {
    return cp == 0xa9 || cp == 0xae || cp == 0x203c || cp == 0x2049 || cp == 0x2122 || cp == 0x2139 || (cp >= 0x2194 && cp <= 0x21aa) ||
           (cp >= 0x231a && cp <= 0x23ff) || cp == 0x24c2 || (cp >= 0x25aa && cp <= 0x27bf) || cp == 0x2934 || cp == 0x2935 ||
           (cp >= 0x2b05 && cp <= 0x2b55) || cp == 0x3030 || cp == 0x303d || cp == 0x3297 || cp == 0x3299 || (cp >= 0x1f000 && cp <= 0x1faff);
}

/* Bytes of the character with its marks at the begin of s[0..n), as far as it matters here. */
static int64_t cluster(const char *s, int64_t n) {
    const uint8_t *p = (const uint8_t *)s;
    uint32_t cp, next;
    int64_t i = utf8_decode(p, n, &cp);
    if (cp == '\r' && i < n && s[i] == '\n') return 2;
    if (is_control(cp)) return i;
    while (is_prefix(cp) && i < n) {
        int k = utf8_decode(p + i, n - i, &next);
        if (is_control(next)) return i;
        cp = next;
        i += k;
    }
    int picture = is_pictographic(cp), joined = 0;
    while (i < n) {
        int k = utf8_decode(p + i, n - i, &next);
        if (!is_mark(next) && !(joined && is_pictographic(next))) break;
        joined = picture && next == 0x200d;
        i += k;
    }
    return i;
}

static int put(buffer *b, const char *s, int64_t n, const char *to) { return to ? append(b, to, (int64_t)strlen(to)) : append(b, s, n); }

static int normalise(const charsmap *m, const char *s, int64_t n, buffer *out) {
    for (int64_t i = 0; i < n;) {
        int64_t whole = cluster(s + i, n - i), end = i + whole;
        const char *to = whole <= CLUSTER_BYTES ? replaced(m, s + i, whole) : NULL;
        if (to) {
            if (put(out, NULL, 0, to)) return -1;
            i = end;
            continue;
        }
        while (i < end) {
            uint32_t cp;
            int k = utf8_decode((const uint8_t *)s + i, n - i, &cp);
            if (put(out, s + i, k, replaced(m, s + i, k))) return -1;
            i += k;
        }
    }
    return 0;
}

/* ---- the best way ---- */

typedef struct node {
    double score;
    int32_t start, id;          /* of the last token of the best way to here; id -1: none yet, -2: an unknown character */
    int32_t end;                /* of the token that begins here, on the best way to the end */
} node;

static void better(node *to, double score, int32_t start, int32_t id) {
    if (to->id == -1 || score > to->score) *to = (node){score, start, id, 0};
}

/* A token by its text, or its bytes, or the unknown one. */
static void emit(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    int32_t id = id_find(t, &t->by_bytes, t->text, s, (size_t)n);
    int bytes = 1;
    for (int64_t i = 0; i < n && id < 0 && bytes; i++) bytes = t->byte_ids[(uint8_t)s[i]] >= 0;
    if (id >= 0) id_add(out, id);
    else if (bytes)
        for (int64_t i = 0; i < n; i++) id_add(out, t->byte_ids[(uint8_t)s[i]]);
    else if (t->ids[4] >= 0) id_add(out, t->ids[4]);
}

/* Emits the tokens of s[0..n) on the best way. Neighbours that are unknown count as one. */
static void follow(const pyllm_tokenizer *t, const char *s, int32_t n, node *best, id_list *out) {
    for (int32_t at = n; at > 0; at = best[at].start) best[best[at].start].end = at;
    for (int32_t from = 0, end; from < n; from = end) {
        end = best[from].end;
        int32_t id = best[end].id;
        if (id != -2 && id != t->ids[4]) {
            id_add(out, id);
            continue;
        }
        while (end < n && (best[best[end].end].id == -2 || best[best[end].end].id == t->ids[4])) end = best[end].end;
        emit(t, s + from, end - from, out);
    }
}

static void cut(const pyllm_tokenizer *t, const char *s, int64_t n, node *best, id_list *out) {
    for (int64_t i = 0; i <= n; i++) best[i] = (node){0, 0, -1, 0};
    uint32_t cp;
    for (int64_t i = 0; i < n;) {
        int k = utf8_decode((const uint8_t *)s + i, n - i, &cp), single = 0;
        double here = best[i].score;
        for (int32_t x = longest_place(t, &t->all, s + i, n - i); x >= 0; x = t->all.x[x].shorter) {
            const special *token = &t->all.x[x];
            better(&best[i + token->text.len], here + (double)t->scores[token->id], (int32_t)i, token->id);
            single |= (int)token->text.len == k;
        }
        if (!single) better(&best[i + k], here + t->unknown_score, (int32_t)i, -2);
        i += k;
    }
    follow(t, s, (int32_t)n, best, out);
}

int unigram_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    buffer text = {0}, word = {0};
    node *best = NULL;
    int rc = normalise(&t->charsmap, s, n, &text);
    if (!rc && text.n) {
        best = mem_array((size_t)text.n + 8, sizeof *best);
        rc = best ? 0 : -1;
    }
    uint32_t cp;
    for (int64_t i = 0, e; i < text.n && !rc; i = e) {
        int k = utf8_decode((const uint8_t *)text.s + i, text.n - i, &cp);
        e = i + k;
        if (unicode_class(cp) == U_SPACE) continue;
        while (e < text.n) {
            k = utf8_decode((const uint8_t *)text.s + e, text.n - e, &cp);
            if (unicode_class(cp) == U_SPACE) break;
            e += k;
        }
        word.n = 0;
        if (t->add_space_prefix && (e - i < 3 || memcmp(text.s + i, MARK, 3))) rc = append(&word, MARK, 3);
        if (!rc) rc = append(&word, text.s + i, e - i);
        for (int64_t a = 0, b; a < word.n && !rc; a = b) {       /* a mark begins a piece of its own */
            for (b = a + 1; b < word.n && (word.n - b < 3 || memcmp(word.s + b, MARK, 3));) b++;
            cut(t, word.s + a, b - a, best, out);
        }
    }
    mem_free(best);
    mem_free(word.s);
    mem_free(text.s);
    return rc ? err_set(out->err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n) : 0;
}
