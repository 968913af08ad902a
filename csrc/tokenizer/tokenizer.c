/* From text to ids and back: special tokens are cut out first, the rest goes to BPE, sentencepiece, WordPiece or the longest match. */
#include "nfc.h"
#include "vocab.h"

#include "../base/alloc.h"

#include <string.h>

static int is_special(int type) { return type == TOKEN_CONTROL || type == TOKEN_USER || type == TOKEN_UNKNOWN; }

static int is_blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/* Sentencepiece wants U+2581 for spaces, and one in front of a text. */
static int spm_piece(const pyllm_tokenizer *t, const char *s, int64_t n, int prefix, id_list *out) {
    char *buf = mem_alloc((size_t)n * 3 + 3), *p = buf;
    if (!buf) return err_set(out->err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n);
    if (prefix) memcpy(p, "\xe2\x96\x81", 3), p += 3;
    for (int64_t i = 0; i < n; i++) {
        if (s[i] == ' ') memcpy(p, "\xe2\x96\x81", 3), p += 3;
        else *p++ = s[i];
    }
    int rc = spm_tokenize(t, buf, p - buf, out);
    mem_free(buf);
    return rc;
}

/* A text without special tokens: what byte-level families do to it before they split it. */
static int bpe_piece(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out) {
    if (!pretokenizer_composes(t->pre)) return bpe_tokenize(t, s, n, out);
    int64_t len;
    char *composed = nfc(s, n, &len);
    if (!composed) return err_set(out->err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n);
    int rc = bpe_tokenize(t, composed, len, out);
    if (composed != s) mem_free(composed);
    return rc;
}

/* Sentencepiece takes U+2581 in a text for a space, also in runs that are tokens. NULL: there is none (*len 0), or no memory (*len 1). */
static char *spm_spaces(const char *s, int64_t n, int64_t *len) {
    int64_t marks = 0, k = 0;
    for (int64_t i = 0; i + 2 < n; i++) marks += !memcmp(s + i, "\xe2\x96\x81", 3);
    char *out = marks ? mem_alloc((size_t)n) : NULL;
    *len = marks > 0;
    for (int64_t i = 0; i < n && out; i++) {
        int mark = i + 2 < n && !memcmp(s + i, "\xe2\x96\x81", 3);
        out[k++] = mark ? ' ' : s[i];
        i += 2 * mark;
    }
    if (out) *len = k;
    return out;
}

static int64_t tokenize_plain(const pyllm_tokenizer *t, const char *s, int64_t n, int add_special, int parse_special, int32_t *ids, int64_t max,
                              pyllm_error *err) {
    id_list out = {ids, 0, max, err};
    if (add_special && t->add_bos && t->ids[0] >= 0) id_add(&out, t->ids[0]);
    int after_special = 1;
    for (int64_t i = 0; i < n;) {
        int64_t e = i;
        int32_t id = -1;
        while (e < n && (id = special_at(t, s + e, n - e, parse_special)) < 0) e++;
        if (e > i) {
            if (t->kind == KIND_WPM) wordpiece_tokenize(t, s + i, e - i, &out);
            else if (t->kind == KIND_UNIGRAM) TRY(unigram_tokenize(t, s + i, e - i, &out));
            else TRY(t->kind == KIND_BPE ? bpe_piece(t, s + i, e - i, &out) : t->kind == KIND_GREEDY ? greedy_tokenize(t, s + i, e - i, &out)
                     : spm_piece(t, s + i, e - i, t->add_space_prefix && after_special, &out));
            after_special = 0;
        }
        if (id >= 0) {
            id_add(&out, id);
            e += t->text[id].len;
            after_special = 1;
            if (t->strip_after_special && t->type[id] == TOKEN_CONTROL)
                while (e < n && is_blank(s[e])) e++;
        }
        i = e;
    }
    if (add_special && t->add_eos && t->ids[1] >= 0) id_add(&out, t->ids[1]);
    return out.n;
}

int64_t tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, int add_special, int parse_special, int32_t *ids, int64_t max,
                 pyllm_error *err) {
    if (n > INT32_MAX / 4) return err_set(err, PYLLM_ERR_ARG, "a text of %lld bytes is too long to tokenize at once", (long long)n);
    int64_t len = 0;
    char *spaced = t->kind == KIND_SPM && t->special[0].n ? spm_spaces(s, n, &len) : NULL;
    if (!spaced && len) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for a text of %lld bytes", (long long)n);
    int64_t count = tokenize_plain(t, spaced ? spaced : s, spaced ? len : n, add_special, parse_special, ids, max, err);
    mem_free(spaced);
    return count;
}

/* ---- back to text ---- */

int32_t tokenizer_size(const pyllm_tokenizer *t) { return t->n; }

const char *token_bytes(const pyllm_tokenizer *t, int32_t id, int special, int64_t *len) {
    if (id < 0 || id >= t->n) return NULL;
    int hidden = (t->type[id] == TOKEN_CONTROL || t->type[id] == TOKEN_UNKNOWN) && !special;
    *len = hidden ? 0 : t->bytes[id].len;
    return t->arena + t->bytes[id].at;
}

int64_t detokenize(const pyllm_tokenizer *t, const int32_t *ids, int64_t n, int special, char *out, int64_t max, pyllm_error *err) {
    int64_t total = 0;
    int begun = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t len;
        const char *s = token_bytes(t, ids[i], special, &len);
        if (!s) return err_set(err, PYLLM_ERR_ARG, "token id %d is not in the vocabulary of %d", ids[i], t->n);
        if (!begun && len && t->add_space_prefix && !is_special(t->type[ids[i]]) && *s == ' ') s++, len--;
        begun |= t->type[ids[i]] != TOKEN_CONTROL;
        if (total + len <= max) memcpy(out + total, s, (size_t)len);
        else if (total < max) memcpy(out + total, s, (size_t)(max - total));
        total += len;
    }
    return total;
}

const char *token_text(const pyllm_tokenizer *t, int32_t id, int64_t *len) {
    if (id < 0 || id >= t->n) return NULL;
    *len = t->text[id].len;
    return t->arena + t->text[id].at;
}

int32_t token_type(const pyllm_tokenizer *t, int32_t id) { return id < 0 || id >= t->n ? 0 : t->type[id]; }
int32_t token_special(const pyllm_tokenizer *t, int kind) { return kind < 0 || kind > 7 ? -1 : t->ids[kind]; }
int token_is_end(const pyllm_tokenizer *t, int32_t id) { return id >= 0 && id < t->n && t->is_end[id]; }
