/* Joining symbols pair by pair: byte-level BPE by rank, sentencepiece BPE by score. Both keep a linked list of symbols and a heap of
 * candidate joins, so a text of n symbols takes O(n log n). */
#include "unicode.h"
#include "vocab.h"

#include "../base/alloc.h"

#include <string.h>

static int better(const candidate *a, const candidate *b) { return a->score != b->score ? a->score > b->score : a->left < b->left; }

void heap_push(heap *h, candidate c) {
    int64_t i = h->n++;
    for (; i && better(&c, &h->c[(i - 1) / 2]); i = (i - 1) / 2) h->c[i] = h->c[(i - 1) / 2];
    h->c[i] = c;
}

candidate heap_pop(heap *h) {
    candidate top = h->c[0], last = h->c[--h->n];
    int64_t i = 0;
    for (int64_t k; (k = 2 * i + 1) < h->n; i = k) {
        if (k + 1 < h->n && better(&h->c[k + 1], &h->c[k])) k++;
        if (!better(&h->c[k], &last)) break;
        h->c[i] = h->c[k];
    }
    h->c[i] = last;
    return top;
}

typedef struct symbol {
    int32_t id;                 /* token, or -1 (sentencepiece: a piece that is not in the vocabulary) */
    int32_t prev, next;         /* -1 at the ends */
    uint32_t at, len;           /* bytes of the text; len 0: joined into its left neighbour */
} symbol;

typedef struct chain {
    const pyllm_tokenizer *t;
    const char *text;
    symbol *s;
    heap h;
} chain;

/* Proposes joining symbol a with its right neighbour. */
static void propose(chain *c, int32_t a) {
    int32_t b = a < 0 ? -1 : c->s[a].next;
    if (b < 0) return;
    symbol *x = &c->s[a], *y = &c->s[b];
    candidate n = {.left = a, .right = b, .size = x->len + y->len};
    if (c->t->kind == KIND_BPE) {
        const merge *m = merge_find(c->t, x->id, y->id);
        if (!m) return;
        n.score = -(float)m->rank;
        n.id = m->id;
    } else {
        n.id = id_find(c->t, &c->t->by_bytes, c->t->text, c->text + x->at, n.size);
        if (n.id < 0 || c->t->type[n.id] == TOKEN_CONTROL || c->t->type[n.id] == TOKEN_UNUSED) return;
        n.score = c->t->scores[n.id];
    }
    heap_push(&c->h, n);
}

static void join_all(chain *c, int32_t n) {
    for (int32_t i = 0; i < n; i++) propose(c, i);
    while (c->h.n) {
        candidate top = heap_pop(&c->h);
        symbol *x = &c->s[top.left], *y = &c->s[top.right];
        if (!x->len || !y->len || x->len + y->len != top.size || x->next != top.right) continue;     /* out of date */
        x->id = top.id;
        x->len = top.size;
        x->next = y->next;
        y->len = 0;
        if (y->next >= 0) c->s[y->next].prev = top.left;
        propose(c, x->prev);
        propose(c, top.left);
    }
}

static void link(symbol *s, int32_t n) {
    for (int32_t i = 0; i < n; i++) {
        s[i].prev = i - 1;
        s[i].next = i + 1 < n ? i + 1 : -1;
    }
}

/* ---- byte-level BPE ---- */

typedef struct bpe_job {
    chain c;
    const int64_t *at;
    id_list *out;
} bpe_job;

static void bpe_piece(bpe_job *j, const char *s, int64_t n) {
    const pyllm_tokenizer *t = j->c.t;
    int32_t whole = pretokenizer_ignores_merges(t->pre) ? id_find(t, &t->by_bytes, t->bytes, s, (size_t)n) : -1;
    if (whole >= 0) {
        id_add(j->out, whole);
        return;
    }
    int32_t count = 0;
    for (int64_t i = 0; i < n; i++) {
        int32_t id = t->byte_ids[(uint8_t)s[i]];
        if (id >= 0) j->c.s[count++] = (symbol){.id = id, .len = 1};    /* some vocabularies lack control characters: these are left out */
    }
    link(j->c.s, count);
    join_all(&j->c, count);
    for (int32_t i = count ? 0 : -1; i >= 0; i = j->c.s[i].next) id_add(j->out, j->c.s[i].id);
}

/* Bytes that the alphabet of byte-level BPE writes as a number: digits, superscripts 1 to 3 and the fractions. */
static int is_number_byte(char c) {
    uint8_t b = (uint8_t)c;
    return (b >= '0' && b <= '9') || b == 0xb2 || b == 0xb3 || b == 0xb9 || (b >= 0xbc && b <= 0xbe);
}

static int bpe_word(void *ctx, int64_t first, int64_t end) {
    bpe_job *j = ctx;
    const char *s = j->c.text + j->at[first];
    int64_t n = j->at[end] - j->at[first];
    if (!pretokenizer_cuts_numbers(j->c.t->pre)) {
        bpe_piece(j, s, n);
        return 0;
    }
    for (int64_t i = 0, e; i < n; i = e) {
        for (e = i + 1; e < n && is_number_byte(s[e]) == is_number_byte(s[i]);) e++;
        bpe_piece(j, s + i, e - i);
    }
    return 0;
}

int bpe_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    uint32_t *cp = mem_alloc((size_t)n * sizeof *cp);
    uint8_t *class = mem_alloc((size_t)n + 1);
    int64_t *at = mem_alloc(((size_t)n + 1) * sizeof *at);
    bpe_job j = {.c = {.t = t, .text = s, .s = mem_alloc((size_t)n * sizeof(symbol)), .h = {.c = mem_alloc(3 * (size_t)n * sizeof(candidate))}},
                 .at = at, .out = out};
    int rc = 0;
    if (!cp || !class || !at || !j.c.s || !j.c.h.c) {
        rc = err_set(out->err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n);
    } else {
        codepoints c = {cp, class, at, 0};
        for (int64_t i = 0; i < n; c.n++) {
            at[c.n] = i;
            i += utf8_decode((const uint8_t *)s + i, n - i, &cp[c.n]);
            class[c.n] = unicode_class(cp[c.n]);
        }
        at[c.n] = n;
        rc = pretokenize(t->pre, &c, bpe_word, &j);
    }
    mem_free(j.c.h.c);
    mem_free(j.c.s);
    mem_free(at);
    mem_free(class);
    mem_free(cp);
    return rc;
}

/* ---- sentencepiece BPE ---- */

static void spm_emit(const chain *c, const symbol *x, id_list *out) {
    int32_t id = x->id >= 0 ? x->id : id_find(c->t, &c->t->by_bytes, c->t->text, c->text + x->at, x->len);
    if (id >= 0 && c->t->type[id] != TOKEN_CONTROL) {
        id_add(out, id);
        return;
    }
    int fallback = 1;
    for (uint32_t i = 0; i < x->len; i++) fallback &= c->t->byte_ids[(uint8_t)c->text[x->at + i]] >= 0;
    if (!fallback) {
        if (c->t->ids[4] >= 0) id_add(out, c->t->ids[4]);
        return;
    }
    for (uint32_t i = 0; i < x->len; i++) id_add(out, c->t->byte_ids[(uint8_t)c->text[x->at + i]]);
}

int spm_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    chain c = {.t = t, .text = s, .s = mem_alloc((size_t)n * sizeof(symbol)), .h = {.c = mem_alloc(3 * (size_t)n * sizeof(candidate))}};
    int rc = 0;
    if (!c.s || !c.h.c) {
        rc = err_set(out->err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n);
    } else {
        int32_t count = 0;
        uint32_t cp;
        for (int64_t i = 0; i < n; count++) {
            uint32_t len = (uint32_t)utf8_decode((const uint8_t *)s + i, n - i, &cp);
            c.s[count] = (symbol){.id = -1, .at = (uint32_t)i, .len = len};
            i += len;
        }
        link(c.s, count);
        join_all(&c, count);
        for (int32_t i = count ? 0 : -1; i >= 0; i = c.s[i].next) spm_emit(&c, &c.s[i], out);
    }
    mem_free(c.h.c);
    mem_free(c.s);
    return rc;
}
