/* Building a tokenizer from a GGUF's tokenizer.ggml.* keys. Everything in the file is checked: ids, types, lengths. */
#include "unicode.h"
#include "vocab.h"

#include "../base/alloc.h"

#include <stdio.h>
#include <string.h>

/* ---- tables ---- */

int32_t id_find(const pyllm_tokenizer *t, const id_table *h, const span *spans, const char *s, size_t n) {
    for (uint32_t i = (uint32_t)hash_bytes(t->key, s, n) & h->mask; h->slot[i] >= 0; i = (i + 1) & h->mask) {
        const span *x = &spans[h->slot[i]];
        if (x->len == n && !memcmp(t->arena + x->at, s, n)) return h->slot[i];
    }
    return -1;
}

int id_table_new(id_table *h, int64_t n) {
    uint32_t size = 16;
    while (size < 2 * n) size *= 2;
    h->slot = mem_alloc(size * sizeof *h->slot);
    if (!h->slot) return -1;
    memset(h->slot, 255, size * sizeof *h->slot);
    h->mask = size - 1;
    return 0;
}

void id_put(const pyllm_tokenizer *t, id_table *h, const span *spans, int32_t id) {
    const char *s = t->arena + spans[id].at;
    if (id_find(t, h, spans, s, spans[id].len) >= 0) return;        /* the first of equal texts wins */
    uint32_t i = (uint32_t)hash_bytes(t->key, s, spans[id].len) & h->mask;
    while (h->slot[i] >= 0) i = (i + 1) & h->mask;
    h->slot[i] = id;
}

const merge *merge_find(const pyllm_tokenizer *t, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return NULL;
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    for (uint32_t i = (uint32_t)hash_u64(t->key, pair) & t->merges_mask; t->merges[i].rank >= 0; i = (i + 1) & t->merges_mask)
        if (t->merges[i].pair == pair) return &t->merges[i];
    return NULL;
}

/* ---- keys ---- */

typedef struct source {
    const pyllm_gguf *g;
    pyllm_error *err;
} source;

static int no_memory(const source *s) { return err_set(s->err, PYLLM_ERR_MEMORY, "out of memory for the tokenizer of %s", gguf_path(s->g)); }

static int wrong(const source *s, const char *key, const char *what) {
    return err_set(s->err, PYLLM_ERR_FORMAT, "%s: %s %s\nhint: the file is damaged or not a language model", gguf_path(s->g), key, what);
}

/* An integer or bool key; `missing` if absent or of another type. Of u64 all 64 bits: negative from 2^63 on. */
static int64_t number(const source *s, const char *key, int64_t missing) {
    static const uint8_t bytes[13] = {1, 1, 2, 2, 4, 4, 0, 1, 0, 0, 8, 8, 0};
    pyllm_kv kv;
    if (gguf_kv(s->g, gguf_find_kv(s->g, key), &kv) || kv.type > 12 || !bytes[kv.type]) return missing;
    int64_t v = 0;
    memcpy(&v, kv.data, bytes[kv.type]);
    return kv.type == 1 ? (int8_t)v : kv.type == 3 ? (int16_t)v : kv.type == 5 ? (int32_t)v : v;
}

static const char *text(const source *s, const char *key, uint64_t *len) {
    pyllm_kv kv;
    int64_t i = gguf_find_kv(s->g, key);
    return gguf_kv(s->g, i, &kv) || kv.type != 8 ? NULL : gguf_string(s->g, i, 0, len);
}

/* ---- token texts ---- */

/* The printable alphabet of byte-level BPE: code point of a byte. Printable Latin-1 stands for itself, the rest follows from U+0100 on. */
static uint32_t byte_code(int b) {
    int printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    if (printable) return (uint32_t)b;
    return 256 + (uint32_t)(b < 33 ? b : b <= 160 ? b - 127 + 33 : 67);
}

/* Bytes of a token text in that alphabet; -1 if a character is outside of it. */
static int64_t bpe_bytes(const char *s, int64_t n, const int16_t *byte_of, char *out) {
    int64_t k = 0;
    for (int64_t i = 0; i < n;) {
        uint32_t cp;
        i += utf8_decode((const uint8_t *)s + i, n - i, &cp);
        if (cp >= 324 || byte_of[cp] < 0) return -1;
        out[k++] = (char)byte_of[cp];
    }
    return k;
}

static int hex(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

/* Bytes of a sentencepiece token: "<0x41>" is a byte, U+2581 a space. */
static int64_t spm_bytes(const char *s, int64_t n, int type, char *out) {
    if (type == TOKEN_BYTE && n == 6 && hex(s[3]) >= 0 && hex(s[4]) >= 0) {
        out[0] = (char)(hex(s[3]) << 4 | hex(s[4]));
        return 1;
    }
    int64_t k = 0;
    for (int64_t i = 0; i < n; i++) {
        if (i + 2 < n && !memcmp(s + i, "\xe2\x96\x81", 3)) {
            out[k++] = ' ';
            i += 2;
        } else {
            out[k++] = s[i];
        }
    }
    return k;
}

static void set_bytes(pyllm_tokenizer *t, int32_t id, const int16_t *byte_of, uint32_t *at) {
    const span *x = &t->text[id];
    char *out = t->arena + *at;
    int64_t n = -1;
    if (t->type[id] == TOKEN_CONTROL || (t->kind == KIND_BPE && t->type[id] == TOKEN_USER)) n = -1;
    else if (t->kind == KIND_GREEDY) n = greedy_bytes(t->arena + x->at, x->len, out);
    else if (t->kind == KIND_BPE) n = bpe_bytes(t->arena + x->at, x->len, byte_of, out);
    else n = spm_bytes(t->arena + x->at, x->len, t->type[id], out);
    t->bytes[id] = n < 0 ? *x : (span){*at, (uint32_t)n};
    if (n > 0) *at += (uint32_t)n;
}

static int read_tokens(pyllm_tokenizer *t, const source *s) {
    pyllm_kv kv, types;
    int64_t tokens = gguf_find_kv(s->g, "tokenizer.ggml.tokens"), ti = gguf_find_kv(s->g, "tokenizer.ggml.token_type");
    if (gguf_kv(s->g, tokens, &kv) || kv.item_type != 8 || !kv.count || kv.count > (1 << 24)) return wrong(s, "tokenizer.ggml.tokens", "is missing or empty");
    t->n = (int32_t)kv.count;
    int typed = !gguf_kv(s->g, ti, &types);
    if (typed && (types.count != kv.count || (types.item_type != 5 && types.item_type != 4))) return wrong(s, "tokenizer.ggml.token_type", "does not fit the tokens");
    uint64_t total = 0, len;
    for (int32_t i = 0; i < t->n; i++) {
        gguf_string(s->g, tokens, (uint64_t)i, &len);
        total += len;
    }
    if (total > (1u << 30)) return wrong(s, "tokenizer.ggml.tokens", "is too long");
    t->arena = mem_alloc(2 * total + 16);
    t->text = mem_array((size_t)t->n, sizeof *t->text);
    t->bytes = mem_array((size_t)t->n, sizeof *t->bytes);
    t->type = mem_array((size_t)t->n, 1);
    t->is_end = mem_array((size_t)t->n, 1);
    if (!t->arena || !t->text || !t->bytes || !t->type || !t->is_end) return no_memory(s);
    uint32_t at = 0;
    for (int32_t i = 0; i < t->n; i++) {
        const char *p = gguf_string(s->g, tokens, (uint64_t)i, &len);
        memcpy(t->arena + at, p, len);
        t->text[i] = (span){at, (uint32_t)len};
        at += (uint32_t)len;
        int32_t type = TOKEN_NORMAL;
        if (typed) memcpy(&type, (const uint8_t *)types.data + 4 * i, 4);
        t->type[i] = (uint8_t)(type < TOKEN_NORMAL || type > TOKEN_BYTE ? TOKEN_NORMAL : type);
    }
    int16_t byte_of[324];
    memset(byte_of, 255, sizeof byte_of);
    for (int b = 0; b < 256; b++) byte_of[byte_code(b)] = (int16_t)b;
    for (int32_t i = 0; i < t->n; i++) set_bytes(t, i, byte_of, &at);
    return 0;
}

static int index_tokens(pyllm_tokenizer *t, const source *s) {
    int searched = t->kind == KIND_GREEDY || t->kind == KIND_UNIGRAM;       /* all tokens, at every byte of a text */
    for (int32_t i = 0; i < t->n; i++) {
        int special = t->type[i] == TOKEN_CONTROL || t->type[i] == TOKEN_USER;
        if ((special && t->text[i].len > SPECIAL_MAX) || (searched && t->bytes[i].len > SPECIAL_MAX))
            return wrong(s, "tokenizer.ggml.tokens", searched ? "has a token of more than 1024 bytes" : "has a special token of more than 1024 bytes");
    }
    if (id_table_new(&t->by_bytes, t->n) || special_index(t)) return no_memory(s);
    for (int32_t i = 0; i < t->n; i++) {
        if (t->kind == KIND_BPE && t->type[i] != TOKEN_CONTROL && t->type[i] != TOKEN_USER) id_put(t, &t->by_bytes, t->bytes, i);
        if (t->kind == KIND_SPM && t->type[i] != TOKEN_BYTE) id_put(t, &t->by_bytes, t->text, i);
        if (t->kind == KIND_UNIGRAM && t->text[i].len) id_put(t, &t->by_bytes, t->text, i);
        if (t->kind == KIND_WPM && t->type[i] != TOKEN_CONTROL && t->text[i].len) id_put(t, &t->by_bytes, t->text, i);
        if (t->text[i].len > t->longest) t->longest = t->text[i].len;
    }
    for (int b = 0; b < 256 && t->kind == KIND_GREEDY; b++)
        if (longest_in(t, &t->all, (const char *)&(uint8_t){(uint8_t)b}, 1) < 0) return wrong(s, "tokenizer.ggml.tokens", "lacks single bytes");
    for (int b = 0; b < 256; b++) t->byte_ids[b] = -1;
    for (int32_t i = t->n - 1; i >= 0; i--)
        if (t->bytes[i].len == 1 && (t->kind == KIND_BPE ? t->type[i] == TOKEN_NORMAL : t->type[i] == TOKEN_BYTE))
            t->byte_ids[(uint8_t)t->arena[t->bytes[i].at]] = i;
    return 0;
}

/* ---- merges and scores ---- */

static void put_merge(pyllm_tokenizer *t, merge m) {
    uint32_t i = (uint32_t)hash_u64(t->key, m.pair) & t->merges_mask;
    for (; t->merges[i].rank >= 0; i = (i + 1) & t->merges_mask)
        if (t->merges[i].pair == m.pair) return;
    t->merges[i] = m;
}

/* "left right" in the alphabet of the token texts. Pairs that name unknown tokens can never apply and are left out. */
static int read_merges(pyllm_tokenizer *t, const source *s) {
    int64_t k = gguf_find_kv(s->g, "tokenizer.ggml.merges");
    pyllm_kv kv;
    if (gguf_kv(s->g, k, &kv) || kv.item_type != 8 || kv.count > 1 << 28) return wrong(s, "tokenizer.ggml.merges", "is missing or too long");
    uint32_t size = 16;
    while (size < 2 * kv.count) size *= 2;
    t->merges = mem_alloc(size * sizeof *t->merges);
    char *buf = mem_alloc(1 << 16);
    int16_t byte_of[324];
    memset(byte_of, 255, sizeof byte_of);
    for (int b = 0; b < 256; b++) byte_of[byte_code(b)] = (int16_t)b;
    if (!t->merges || !buf) {
        mem_free(buf);
        return no_memory(s);
    }
    t->merges_mask = size - 1;
    for (uint32_t i = 0; i < size; i++) t->merges[i].rank = -1;
    for (uint64_t i = 0; i < kv.count; i++) {
        uint64_t len;
        const char *p = gguf_string(s->g, k, i, &len), *space = len > 2 ? memchr(p + 1, ' ', len - 1) : NULL;
        if (!space || len >= 1 << 15) continue;
        int64_t a = bpe_bytes(p, space - p, byte_of, buf), b = bpe_bytes(space + 1, (int64_t)len - (space - p) - 1, byte_of, buf + (a < 0 ? 0 : a));
        if (a <= 0 || b <= 0) continue;
        int32_t left = id_find(t, &t->by_bytes, t->bytes, buf, (size_t)a), right = id_find(t, &t->by_bytes, t->bytes, buf + a, (size_t)b);
        int32_t both = id_find(t, &t->by_bytes, t->bytes, buf, (size_t)(a + b));
        if (left >= 0 && right >= 0 && both >= 0) put_merge(t, (merge){(uint64_t)(uint32_t)left << 32 | (uint32_t)right, (int32_t)i, both});
    }
    mem_free(buf);
    return 0;
}

static int read_scores(pyllm_tokenizer *t, const source *s) {
    pyllm_kv kv;
    if (gguf_kv(s->g, gguf_find_kv(s->g, "tokenizer.ggml.scores"), &kv) || kv.item_type != 6 || kv.count != (uint64_t)t->n)
        return wrong(s, "tokenizer.ggml.scores", "is missing or does not fit the tokens");
    t->scores = mem_array((size_t)t->n, sizeof *t->scores);
    if (!t->scores) return no_memory(s);
    memcpy(t->scores, kv.data, (size_t)t->n * sizeof *t->scores);
    return 0;
}

/* Sizes of the trie (u32, bytes), the trie, strings that end with a NUL each. */
static int read_charsmap(pyllm_tokenizer *t, const source *s) {
    static const char key[] = "tokenizer.ggml.precompiled_charsmap";
    pyllm_kv kv;
    uint32_t size;
    if (gguf_kv(s->g, gguf_find_kv(s->g, key), &kv) || !kv.count) return 0;
    if (kv.type != 9 || kv.item_type > 1 || kv.count < 8 || kv.count > 1u << 28) return wrong(s, key, "is no table of bytes");
    const uint8_t *p = kv.data;
    memcpy(&size, p, 4);
    if (size % 4 || size < 4 || size > kv.count - 5) return wrong(s, key, "does not fit its size");
    t->charsmap.n_units = size / 4;
    t->charsmap.text_len = (uint32_t)(kv.count - 4 - size);
    t->charsmap.units = mem_alloc(size);
    t->charsmap.text = mem_alloc((size_t)t->charsmap.text_len + 1);
    if (!t->charsmap.units || !t->charsmap.text) return no_memory(s);
    memcpy(t->charsmap.units, p + 4, size);
    memcpy(t->charsmap.text, p + 4 + size, t->charsmap.text_len);
    t->charsmap.text[t->charsmap.text_len] = 0;
    return 0;
}

static int read_unigram(pyllm_tokenizer *t, const source *s) {
    if (!number(s, "tokenizer.ggml.remove_extra_whitespaces", 1))
        return err_set(s->err, PYLLM_ERR_UNSUPPORTED, "%s: a Unigram tokenizer that keeps runs of spaces is not supported\n"
                       "hint: those of T5 and XLM-R are", gguf_path(s->g));
    TRY(read_scores(t, s));
    float least = 0;
    for (int32_t i = 0; i < t->n; i++) {
        if (!(t->scores[i] > -1e30f && t->scores[i] < 1e30f)) return wrong(s, "tokenizer.ggml.scores", "holds a number out of range");
        if (t->type[i] == TOKEN_NORMAL && t->scores[i] < least) least = t->scores[i];
    }
    t->unknown_score = (double)least - 10;
    return read_charsmap(t, s);
}

/* ---- special ids ---- */

static void mark_ends(pyllm_tokenizer *t) {
    static const char *const names[] = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<|eom_id|>",
                                        "<EOT>", "<|END_OF_TURN_TOKEN|>", "<|return|>", "<|call|>", "<eos>", "</s>", "<turn|>",
                                        "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"};     /* what is filled in ends with those, too */
    for (int k = 1; k < 4; k++)
        if (t->ids[k] >= 0) t->is_end[t->ids[k]] = 1;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        size_t len = strlen(names[i]);
        int32_t id = special_at(t, names[i], (int64_t)len, 1);
        if (id >= 0 && t->text[id].len == len && t->type[id] == TOKEN_CONTROL) t->is_end[id] = 1;
    }
}

static int special_id(const pyllm_tokenizer *t, const source *s, const char *kind, int32_t *out) {
    char key[64];
    snprintf(key, sizeof key, "tokenizer.ggml.%s_token_id", kind);
    int64_t id = number(s, key, -1);
    int absent = id == -1 || id == 0xffffffff;
    if (!absent && (id < 0 || id >= t->n)) return wrong(s, key, "is not in the vocabulary");
    *out = absent ? -1 : (int32_t)id;
    return 0;
}

/* BERT's texts begin with CLS and end with SEP, which files also name BOS and EOS. */
static int read_wordpiece(pyllm_tokenizer *t, const source *s) {
    if (t->ids[0] < 0) TRY(special_id(t, s, "cls", &t->ids[0]));
    if (t->ids[1] < 0) t->ids[1] = t->ids[5];
    t->lowercase = number(s, "tokenizer.ggml.normalizer.lowercase", 1) != 0;
    t->strip_accents = number(s, "tokenizer.ggml.normalizer.strip_accents", t->lowercase) != 0;
    return 0;
}

static int read_special(pyllm_tokenizer *t, const source *s) {
    static const char *const keys[8] = {"bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask"};
    for (int k = 0; k < 8; k++) TRY(special_id(t, s, keys[k], &t->ids[k]));
    uint64_t len;
    const char *arch = text(s, "general.architecture", &len);
    t->strip_after_special = arch && len == 4 && !memcmp(arch, "phi3", 4);      /* its published tokens strip the space behind them */
    if (t->kind == KIND_WPM) TRY(read_wordpiece(t, s));
    int adds_bos = t->kind == KIND_BPE ? pretokenizer_adds_bos(t->pre) : t->kind == KIND_SPM || t->kind == KIND_WPM;
    t->add_bos = number(s, "tokenizer.ggml.add_bos_token", adds_bos) != 0;
    t->add_eos = number(s, "tokenizer.ggml.add_eos_token", t->kind == KIND_WPM || t->kind == KIND_UNIGRAM) != 0;
    t->add_space_prefix = t->kind == KIND_WPM || ((t->kind == KIND_SPM || t->kind == KIND_UNIGRAM) && number(s, "tokenizer.ggml.add_space_prefix", 1) != 0);
    mark_ends(t);
    return 0;
}

static int read_kind(pyllm_tokenizer *t, const source *s) {
    uint64_t len;
    const char *model = text(s, "tokenizer.ggml.model", &len);
    if (!model) return err_set(s->err, PYLLM_ERR_UNSUPPORTED, "%s has no tokenizer (tokenizer.ggml.model)\nhint: the file is not a language model", gguf_path(s->g));
    if ((len == 5 && !memcmp(model, "llama", 5)) || (len == 4 && !memcmp(model, "bert", 4))) {
        t->kind = len == 5 ? KIND_SPM : KIND_WPM;
        return 0;
    }
    if (len == 2 && !memcmp(model, "t5", 2)) {
        t->kind = KIND_UNIGRAM;
        return 0;
    }
    if (len == 4 && !memcmp(model, "rwkv", 4)) {
        t->kind = KIND_GREEDY;
        return 0;
    }
    if (len != 4 || memcmp(model, "gpt2", 4))
        return err_set(s->err, PYLLM_ERR_UNSUPPORTED, "%s: tokenizer model '%.*s' is not supported\n"
                       "hint: byte-level BPE (gpt2), sentencepiece (llama), WordPiece (bert), Unigram (t5) and RWKV's (rwkv) are", gguf_path(s->g),
                       (int)(len < 60 ? len : 60), model);
    const char *pre = text(s, "tokenizer.ggml.pre", &len);
    if (!pre) return err_set(s->err, PYLLM_ERR_UNSUPPORTED, "%s does not name its pre-tokenizer (tokenizer.ggml.pre)\nhint: convert the model again", gguf_path(s->g));
    t->pre = pretokenizer_find(pre, len);
    return t->pre ? 0 : err_set(s->err, PYLLM_ERR_UNSUPPORTED, "%s: pre-tokenizer '%.*s' is not known\nhint: a newer version may know it",
                                gguf_path(s->g), (int)(len < 60 ? len : 60), pre);
}

int tokenizer_new(const pyllm_gguf *g, pyllm_tokenizer **out, pyllm_error *err) {
    source s = {g, err};
    *out = NULL;
    pyllm_tokenizer *t = mem_zalloc(sizeof *t);
    if (!t) return no_memory(&s);
    t->key = hash_key_new(t);
    int rc = read_kind(t, &s);
    if (!rc) rc = read_tokens(t, &s);
    if (!rc) rc = index_tokens(t, &s);
    if (!rc && t->kind == KIND_BPE) rc = read_merges(t, &s);
    if (!rc && t->kind == KIND_SPM) rc = read_scores(t, &s);
    if (!rc && t->kind == KIND_UNIGRAM) rc = read_unigram(t, &s);
    if (!rc) rc = read_special(t, &s);
    if (rc) tokenizer_free(t);
    else *out = t;
    return rc;
}

void tokenizer_free(pyllm_tokenizer *t) {
    if (!t) return;
    mem_free(t->arena);
    mem_free(t->text);
    mem_free(t->bytes);
    mem_free(t->type);
    mem_free(t->is_end);
    mem_free(t->scores);
    mem_free(t->by_bytes.slot);
    mem_free(t->special[0].x);
    mem_free(t->special[1].x);
    mem_free(t->all.x);
    mem_free(t->merges);
    mem_free(t->charsmap.units);
    mem_free(t->charsmap.text);
    mem_free(t);
}
