/* The vocabulary shared by all tokenizer kinds, and what a tokenizer object is made of. */
#ifndef PYLLM_TOKENIZER_VOCAB_H
#define PYLLM_TOKENIZER_VOCAB_H
#include "pretokenize.h"
#include "tokenizer.h"

#include "../base/hash.h"

enum token_kind { TOKEN_NORMAL = 1, TOKEN_UNKNOWN, TOKEN_CONTROL, TOKEN_USER, TOKEN_UNUSED, TOKEN_BYTE };
enum tokenizer_kind { KIND_BPE, KIND_SPM, KIND_WPM, KIND_GREEDY, KIND_UNIGRAM };

typedef struct span { uint32_t at, len; } span;         /* of an arena */

/* Bytes to id: open addressing, ids, -1 empty. */
typedef struct id_table {
    int32_t *slot;
    uint32_t mask;
} id_table;

enum { SPECIAL_MAX = 1024 };    /* bytes of a special token's text: bounds the work at every byte of a text */
typedef struct special {
    span text;
    int32_t id, shorter;        /* shorter: place of the longest other one that this one begins with, -1 if none */
} special;
typedef struct special_set {    /* sorted by text; no two alike, none empty */
    special *x;
    int32_t n;
} special_set;

typedef struct merge { uint64_t pair; int32_t rank, id; } merge;     /* pair = left << 32 | right; rank -1: empty */

/* Unigram's table of replacements: a double-array trie whose values are places in a text of strings that end with a NUL. */
typedef struct charsmap {
    uint32_t *units, n_units, text_len;
    char *text;
} charsmap;

struct pyllm_tokenizer {
    int kind;
    int32_t n;
    char *arena;                /* texts, then bytes where they differ */
    span *text, *bytes;         /* [n] as in the file; as they appear in text */
    uint8_t *type, *is_end;     /* [n] */
    float *scores;              /* [n], sentencepiece, Unigram */
    hash_key key;
    id_table by_bytes;          /* byte-level BPE: all but special tokens, by bytes; sentencepiece: all but byte tokens, by text;
                                   WordPiece: all but control tokens, by text; Unigram: all, by text */
    special_set special[2];     /* user-defined tokens; these and control tokens */
    special_set all;            /* greedy: the others, by their bytes; Unigram: by text */
    charsmap charsmap;          /* Unigram */
    double unknown_score;
    uint8_t special_start[8192];    /* bit per first two bytes of a special token (one-byte ones set all) */
    int32_t byte_ids[256];
    merge *merges;              /* open addressing by pair */
    uint32_t merges_mask;
    const pretokenizer *pre;
    int32_t ids[8];             /* enum of pyllm_token_special */
    int add_bos, add_eos, add_space_prefix, strip_after_special;
    int lowercase, strip_accents;   /* WordPiece */
    uint32_t longest;           /* bytes of a token's text, at most */
};

/* Collects ids: counts all, keeps the first max. */
typedef struct id_list {
    int32_t *ids;
    int64_t n, max;
    pyllm_error *err;
} id_list;
static inline void id_add(id_list *l, int32_t id) {
    if (l->n < l->max) l->ids[l->n] = id;
    l->n++;
}

int32_t id_find(const pyllm_tokenizer *t, const id_table *h, const span *spans, const char *s, size_t n);
int id_table_new(id_table *h, int64_t n);
void id_put(const pyllm_tokenizer *t, id_table *h, const span *spans, int32_t id);
/* Rank and result of joining two tokens; NULL if they never join. */
const merge *merge_find(const pyllm_tokenizer *t, int32_t left, int32_t right);

/* Sorts the special tokens, once texts and types are read; -1 without memory. */
int special_index(pyllm_tokenizer *t);
/* The longest special token that s[0..n), n > 0, begins with; -1 if there is none. Control tokens only if asked for. */
int32_t special_at(const pyllm_tokenizer *t, const char *s, int64_t n, int control);

/* The id of the longest text of a set that s[0..n), n > 0, begins with; -1 if there is none. */
int32_t longest_in(const pyllm_tokenizer *t, const special_set *set, const char *s, int64_t n);
/* Its place in the set; those that it begins with follow by `shorter`. */
int32_t longest_place(const pyllm_tokenizer *t, const special_set *set, const char *s, int64_t n);

/* Bytes of a token text with escapes as in Python; no more than it has itself. */
int64_t greedy_bytes(const char *s, int64_t n, char *out);
/* Tokens of a text without special tokens. */
int greedy_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out);
int bpe_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out);
int spm_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out);
int unigram_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out);
void wordpiece_tokenize(const pyllm_tokenizer *t, const char *s, int64_t n, id_list *out);

/* A binary heap of candidate joins, best first: higher score, then lower position. Room for every join that a text of n symbols can propose
   is 3n: n - 1 at first and two for each of at most n - 1 joins. */
typedef struct candidate { float score; int32_t left, right, id; uint32_t size; } candidate;
typedef struct heap { candidate *c; int64_t n; } heap;
void heap_push(heap *h, candidate c);
candidate heap_pop(heap *h);
#endif
