#include "pretokenize.h"

#include "unicode.h"

#include <string.h>

/* A matcher returns where the match that begins at i ends, at most `end`; i itself if its pattern does not match there, ~k if it matches
 * nowhere from i to before k (that keeps looking for a match linear where a failure takes long to see). */
typedef int64_t match_fn(const codepoints *t, int64_t i, int64_t end);

static int is_letter(const codepoints *t, int64_t i) { return t->class[i] >= U_LU && t->class[i] <= U_LO; }
static int is_number(const codepoints *t, int64_t i) { return t->class[i] == U_N; }
static int is_space(const codepoints *t, int64_t i) { return t->class[i] == U_SPACE; }
static int is_newline(const codepoints *t, int64_t i) { return t->cp[i] == '\r' || t->cp[i] == '\n'; }
static int is_other(const codepoints *t, int64_t i) { return !is_letter(t, i) && !is_number(t, i) && !is_space(t, i); }
static int is_punct_or_symbol(const codepoints *t, int64_t i) { return t->class[i] == U_P || t->class[i] == U_S; }
static int is_letter_or_mark(const codepoints *t, int64_t i) { return is_letter(t, i) || t->class[i] == U_M; }

typedef int class_fn(const codepoints *t, int64_t i);
static int64_t run_of(const codepoints *t, int64_t i, int64_t end, class_fn *in) {
    while (i < end && in(t, i)) i++;
    return i;
}

/* ---- shared pieces of the patterns ---- */

/* 's 't 're 've 'm 'll 'd; with fold in either case (the long s folds to s). */
static int64_t contraction(const codepoints *t, int64_t i, int64_t end, int fold) {
    static const char *const tails[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (t->cp[i] != '\'') return i;
    for (int k = 0; k < 7; k++) {
        int64_t n = (int64_t)strlen(tails[k]), j = 0;
        for (; j < n && i + 1 + j < end; j++) {
            uint32_t c = t->cp[i + 1 + j];
            if (fold && c >= 'A' && c <= 'Z') c += 32;
            if (fold && c == 0x17f) c = 's';
            if (c != (uint32_t)tails[k][j]) break;
        }
        if (j == n) return i + 1 + n;
    }
    return i;
}

/* \s+(?!\S)|\s+ : all of a run at the end, else all but its last character, else the one. */
static int64_t spaces(const codepoints *t, int64_t i, int64_t end) {
    int64_t e = run_of(t, i, end, is_space);
    return e == end || e - i <= 1 ? e : e - 1;
}

/* \s*[\r\n]+ : up to the last line break of a run of white space. */
static int64_t line_breaks(const codepoints *t, int64_t i, int64_t end) {
    int64_t last = i;
    for (int64_t j = i; j < end && is_space(t, j); j++)
        if (is_newline(t, j)) last = j + 1;
    return last;
}

/* " ?X+" : an optional space before a run. */
static int64_t spaced_run(const codepoints *t, int64_t i, int64_t end, class_fn *in) {
    int64_t s = i + (t->cp[i] == ' '), e = run_of(t, s, end, in);
    return e > s ? e : i;
}

static int64_t numbers(const codepoints *t, int64_t i, int64_t end, int64_t most) {
    return run_of(t, i, i + most < end ? i + most : end, is_number);
}

/* ---- families ---- */

static int64_t match_gpt2(const codepoints *t, int64_t i, int64_t end) {
    int64_t e = contraction(t, i, end, 0);
    if (e == i) e = spaced_run(t, i, end, is_letter);
    if (e == i) e = spaced_run(t, i, end, is_number);
    if (e == i) e = spaced_run(t, i, end, is_other);
    return e > i ? e : spaces(t, i, end);
}

/* [^\r\n\p{L}\p{N}]?\p{L}+ */
static int64_t prefixed_letters(const codepoints *t, int64_t i, int64_t end) {
    int64_t s = i + (!is_newline(t, i) && !is_letter(t, i) && !is_number(t, i)), e = run_of(t, s, end, is_letter);
    return e > s ? e : i;
}

/* " ?[^\s\p{L}\p{N}]+[\r\n]*", also with slashes at the end. */
static int is_newline_or_slash(const codepoints *t, int64_t i) { return is_newline(t, i) || t->cp[i] == '/'; }
static int64_t others(const codepoints *t, int64_t i, int64_t end, class_fn *tail) {
    int64_t e = spaced_run(t, i, end, is_other);
    return e > i ? run_of(t, e, end, tail) : i;
}

static int64_t llama3_like(const codepoints *t, int64_t i, int64_t end, int64_t digits) {
    int64_t e = contraction(t, i, end, 1);
    if (e == i) e = prefixed_letters(t, i, end);
    if (e == i) e = numbers(t, i, end, digits);
    if (e == i) e = others(t, i, end, is_newline);
    if (e == i) e = line_breaks(t, i, end);
    return e > i ? e : spaces(t, i, end);
}
static int64_t match_llama3(const codepoints *t, int64_t i, int64_t end) { return llama3_like(t, i, end, 3); }
static int64_t match_qwen2(const codepoints *t, int64_t i, int64_t end) { return llama3_like(t, i, end, 1); }

/* Words by case: U*L+ or U+L* with U = upper, title, modifier, other letters and marks, L = lower, modifier, other letters and marks. */
static int is_upper_like(const codepoints *t, int64_t i) { return is_letter_or_mark(t, i) && t->class[i] != U_LL; }
static int is_lower_like(const codepoints *t, int64_t i) { return is_letter_or_mark(t, i) && t->class[i] != U_LU && t->class[i] != U_LT; }

static int64_t upper_then_lower(const codepoints *t, int64_t s, int64_t end) {
    int64_t a = run_of(t, s, end, is_upper_like), e = run_of(t, a, end, is_lower_like);
    if (e > a) return e;
    for (int64_t p = a; p > s; p--)             /* give back until a character fits both */
        if (is_lower_like(t, p - 1)) return p;
    return s;
}

static int64_t case_words(const codepoints *t, int64_t i, int64_t end) {
    int prefix = !is_newline(t, i) && !is_letter(t, i) && !is_number(t, i);
    for (int p = prefix; p >= 0; p--) {
        int64_t e = upper_then_lower(t, i + p, end);
        if (e > i + p) return e;
    }
    for (int p = prefix; p >= 0; p--) {
        int64_t e = run_of(t, i + p, end, is_upper_like);
        if (e > i + p) return e;
    }
    return i;
}

static int64_t match_gpt4o(const codepoints *t, int64_t i, int64_t end) {
    int64_t e = case_words(t, i, end);
    if (e > i && e < end) e = contraction(t, e, end, 1);
    if (e == i) e = numbers(t, i, end, 3);
    if (e == i) e = others(t, i, end, is_newline_or_slash);
    if (e == i) e = line_breaks(t, i, end);
    return e > i ? e : spaces(t, i, end);
}

static int64_t match_tekken(const codepoints *t, int64_t i, int64_t end) {
    int64_t e = case_words(t, i, end);
    if (e == i) e = numbers(t, i, end, 1);
    if (e == i) e = others(t, i, end, is_newline_or_slash);
    if (e == i) e = line_breaks(t, i, end);
    return e > i ? e : spaces(t, i, end);
}

/* ---- matchers of the multi-stage families ---- */

static int64_t match_digit(const codepoints *t, int64_t i, int64_t end) { return numbers(t, i, end, 1); }
static int64_t match_digits3(const codepoints *t, int64_t i, int64_t end) { return numbers(t, i, end, 3); }
static int64_t match_newline(const codepoints *t, int64_t i, int64_t end) { return i + (i < end && is_newline(t, i)); }

static int64_t match_ascii3(const codepoints *t, int64_t i, int64_t end) {
    for (int64_t j = i; j < i + 3; j++)
        if (j >= end || t->cp[j] < '0' || t->cp[j] > '9') return i;
    return i + 3;
}

/* Falcon's published step knows the punctuation of Unicode 8. First and last code point of what became punctuation later. */
static const uint32_t later_punct[][2] = {
    {0x61d, 0x61d}, {0x9fd, 0x9fd}, {0xa76, 0xa76}, {0xc77, 0xc77}, {0xc84, 0xc84}, {0x1b4e, 0x1b4f}, {0x1b7d, 0x1b7f}, {0x2e43, 0x2e4f},
    {0x2e52, 0x2e5d}, {0x10d6e, 0x10d6e}, {0x10ead, 0x10ead}, {0x10f55, 0x10f59}, {0x10f86, 0x10f89}, {0x113d4, 0x113d8}, {0x1144b, 0x1144f},
    {0x1145a, 0x1145d}, {0x11660, 0x1166c}, {0x116b9, 0x116b9}, {0x1183b, 0x1183b}, {0x11944, 0x11946}, {0x119e2, 0x119e2}, {0x11a3f, 0x11a46},
    {0x11a9a, 0x11aa2}, {0x11b00, 0x11b09}, {0x11be1, 0x11be1}, {0x11c41, 0x11c45}, {0x11c70, 0x11c71}, {0x11ef7, 0x11ef8}, {0x11f43, 0x11f4f},
    {0x11fff, 0x11fff}, {0x12ff1, 0x12ff2}, {0x16d6d, 0x16d6f}, {0x16e97, 0x16e9a}, {0x16fe2, 0x16fe2}, {0x1e5ff, 0x1e5ff}, {0x1e95e, 0x1e95f}};

static int is_falcon_punct(const codepoints *t, int64_t i) {
    uint32_t c = t->cp[i];
    if (c == 0x166d || c == 0x111c9) return 1;          /* was punctuation then */
    for (size_t r = 0; c >= 0x61d && r < sizeof later_punct / sizeof *later_punct; r++)
        if (c >= later_punct[r][0] && c <= later_punct[r][1]) return 0;
    return t->class[i] == U_P || (t->cp[i] < 128 && t->class[i] == U_S);
}
static int64_t match_punct_run(const codepoints *t, int64_t i, int64_t end) { return run_of(t, i, end, is_falcon_punct); }

/* \s?X+ */
static int64_t any_spaced_run(const codepoints *t, int64_t i, int64_t end, class_fn *in) {
    int64_t s = i + is_space(t, i), e = run_of(t, s, end, in);
    return e > s ? e : i;
}
static int is_punct(const codepoints *t, int64_t i) { return t->class[i] == U_P; }
static int64_t match_spaced_letters(const codepoints *t, int64_t i, int64_t end) { return any_spaced_run(t, i, end, is_letter); }
static int64_t match_spaced_punct(const codepoints *t, int64_t i, int64_t end) { return any_spaced_run(t, i, end, is_punct); }

static int in(uint32_t c, uint32_t a, uint32_t b) { return c >= a && c <= b; }

/* The letters of deepseek-llm: a list of cased ones as of its day, small Armenian and Georgian letters left out. */
static const struct { uint32_t first, last; } deepseek_letters[] = {
    {0x41, 0x5a}, {0x61, 0x7a}, {0xb5, 0xb5}, {0xc0, 0xd6}, {0xd8, 0xf6}, {0xf8, 0x1ba}, {0x1bc, 0x1bf}, {0x1c4, 0x293}, {0x295, 0x2af},
    {0x370, 0x373}, {0x376, 0x377}, {0x37b, 0x37d}, {0x37f, 0x37f}, {0x386, 0x386}, {0x388, 0x38a}, {0x38c, 0x38c}, {0x38e, 0x3a1},
    {0x3a3, 0x3f5}, {0x3f7, 0x481}, {0x48a, 0x52f}, {0x531, 0x556}, {0x10a0, 0x10c5}, {0x13a0, 0x13f5}, {0x13f8, 0x13fd},
    {0x1c90, 0x1cba}, {0x1cbd, 0x1cbf}, {0x1d00, 0x1d2b}, {0x1d6b, 0x1d77}, {0x1d79, 0x1d9a}, {0x1e00, 0x1f15}, {0x1f18, 0x1f1d},
    {0x1f20, 0x1f45}, {0x1f48, 0x1f4d}, {0x1f50, 0x1f57}, {0x1f59, 0x1f59}, {0x1f5b, 0x1f5b}, {0x1f5d, 0x1f5d}, {0x1f5f, 0x1f7d},
    {0x1f80, 0x1fb4}, {0x1fb6, 0x1fbc}, {0x1fbe, 0x1fbe}, {0x1fc2, 0x1fc4}, {0x1fc6, 0x1fcc}, {0x1fd0, 0x1fd3}, {0x1fd6, 0x1fdb},
    {0x1fe0, 0x1fec}, {0x1ff2, 0x1ff4}, {0x1ff6, 0x1ffc}, {0x2102, 0x2102}, {0x2107, 0x2107}, {0x210a, 0x2113}, {0x2115, 0x2115},
    {0x2119, 0x211d}, {0x2124, 0x2124}, {0x2126, 0x2126}, {0x2128, 0x2128}, {0x212a, 0x212d}, {0x212f, 0x2134}, {0x2139, 0x2139},
    {0x213c, 0x213f}, {0x2145, 0x2149}, {0x214e, 0x214e}, {0x2183, 0x2184}, {0x2c00, 0x2c7b}, {0x2c7e, 0x2ce4}, {0x2ceb, 0x2cee},
    {0x2cf2, 0x2cf3}, {0xa640, 0xa66d}, {0xa680, 0xa69b}, {0xa722, 0xa76f}, {0xa771, 0xa787}, {0xa78b, 0xa78e}, {0xab70, 0xabbf},
    {0xfb00, 0xfb06}, {0xfb13, 0xfb17}, {0xff21, 0xff3a}, {0xff41, 0xff5a}, {0x10400, 0x1044f}, {0x104b0, 0x104d3}, {0x104d8, 0x104fb},
    {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943},
};
static int is_deepseek_letter(const codepoints *t, int64_t i) {
    size_t lo = 0, hi = sizeof deepseek_letters / sizeof *deepseek_letters - 1;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (t->cp[i] <= deepseek_letters[mid].last) hi = mid;
        else lo = mid + 1;
    }
    return in(t->cp[i], deepseek_letters[lo].first, deepseek_letters[lo].last);
}
static int64_t match_deepseek_letters(const codepoints *t, int64_t i, int64_t end) { return any_spaced_run(t, i, end, is_deepseek_letter); }

/* [!-/:-~ and their full-width forms, general quotation marks, ideographic stops] */
static int is_deepseek_punct(const codepoints *t, int64_t i) {
    uint32_t c = t->cp[i];
    return in(c, 0x21, 0x2f) || in(c, 0x3a, 0x7e) || in(c, 0xff01, 0xff0f) || in(c, 0xff1a, 0xff5e) || in(c, 0x2018, 0x201f) || in(c, 0x3000, 0x3002);
}
static int64_t match_deepseek_punct(const codepoints *t, int64_t i, int64_t end) { return any_spaced_run(t, i, end, is_deepseek_punct); }
static int64_t match_final_spaces(const codepoints *t, int64_t i, int64_t end) {
    int64_t e = run_of(t, i, end, is_space);
    return e == i || e == end ? e : ~e;
}
static int is_cjk_wide(const codepoints *t, int64_t i) { return in(t->cp[i], 0x800, 0x9fa5) || in(t->cp[i], 0xac00, 0xd7ff); }
static int64_t match_cjk_wide(const codepoints *t, int64_t i, int64_t end) { return run_of(t, i, end, is_cjk_wide); }
static int is_cjk_kana(const codepoints *t, int64_t i) { return in(t->cp[i], 0x4e00, 0x9fa5) || in(t->cp[i], 0x3040, 0x30ff); }
static int64_t match_cjk_kana(const codepoints *t, int64_t i, int64_t end) { return run_of(t, i, end, is_cjk_kana); }

static int is_ascii_letter(const codepoints *t, int64_t i) { return in(t->cp[i] | 32, 'a', 'z') && t->cp[i] < 128; }
/* [ascii punctuation][A-Za-z]+ | [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ | " ?[\p{P}\p{S}]+[\r\n]*" | line breaks | spaces */
static int64_t match_deepseek3(const codepoints *t, int64_t i, int64_t end) {
    uint32_t c = t->cp[i];
    int64_t e = i;
    if (c > 32 && c < 127 && is_punct_or_symbol(t, i)) e = run_of(t, i + 1, end, is_ascii_letter);
    if (e > i + 1) return e;
    int prefix = !is_newline(t, i) && !is_letter(t, i) && !is_punct_or_symbol(t, i);
    for (int p = prefix; p >= 0; p--)
        if ((e = run_of(t, i + p, end, is_letter_or_mark)) > i + p) return e;
    e = spaced_run(t, i, end, is_punct_or_symbol);
    if (e > i) return run_of(t, e, end, is_newline);
    e = line_breaks(t, i, end);
    if (e > i) return e;
    return is_space(t, i) ? spaces(t, i, end) : i;
}

/* ---- the table ---- */

enum { STAGES = 6 };
struct pretokenizer {
    const char *names;              /* space-separated */
    match_fn *stages[STAGES + 1];   /* each splits the pieces of the one before; what it does not match stays whole */
    int ignore_merges, add_bos, cuts_numbers, composes;
};

static const pretokenizer table[] = {
    {"gpt-2 gpt2 jais trillion granite-docling phi-2 jina-v2-en jina-v2-es jina-v2-de jina-v2-code roberta-bpe exaone4 gigachat "
     "a.x-4.0", {match_gpt2}, 0, 0, 0, 0},
    {"olmo mpt", {match_gpt2}, 0, 0, 0, 1},
    {"command-r", {match_digit, match_gpt2}, 0, 0, 0, 1},
    {"smollm starcoder refact codeshell exaone minerva-7b mellum2", {match_digit, match_gpt2}, 0, 0, 0, 0},
    {"llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral lfm2 midm-2.0", {match_llama3}, 1, 1, 0, 0},
    {"dbrx smaug-bpe glm4 chatglm-bpe", {match_llama3}, 0, 0, 0, 0},
    {"qwen2 deepseek-r1-qwen", {match_qwen2}, 0, 0, 0, 1},
    {"stablelm2 hunyuan solar-open megrez kormo grok-2", {match_qwen2}, 0, 0, 0, 0},
    {"tekken", {match_tekken}, 1, 1, 0, 0},
    {"gpt-4o llama4 kanana2 minimax-m2 talkie", {match_gpt4o}, 0, 0, 0, 0},
    {"falcon", {match_punct_run, match_gpt2, match_ascii3}, 0, 0, 1, 0},
    {"deepseek-coder", {match_newline, match_spaced_letters, match_spaced_punct, match_cjk_wide, match_digit}, 0, 0, 0, 0},
    {"deepseek-llm", {match_newline, match_deepseek_letters, match_deepseek_punct, match_final_spaces, match_cjk_wide, match_digit}, 0, 0, 0, 0},
    {"deepseek-v3 hunyuan-dense joyai-llm", {match_digits3, match_cjk_kana, match_deepseek3}, 0, 0, 0, 0},
};

const pretokenizer *pretokenizer_find(const char *name, uint64_t len) {
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (const char *s = table[i].names; *s;) {
            size_t n = strcspn(s, " ");
            if (n == len && !memcmp(s, name, n)) return &table[i];
            s += n + (s[n] == ' ');
        }
    return NULL;
}

int pretokenizer_ignores_merges(const pretokenizer *p) { return p->ignore_merges; }
int pretokenizer_cuts_numbers(const pretokenizer *p) { return p->cuts_numbers; }
int pretokenizer_composes(const pretokenizer *p) { return p->composes; }
int pretokenizer_adds_bos(const pretokenizer *p) { return p->add_bos; }

/* Splits [i, end) by the stages from `stage` on. */
static int split(const pretokenizer *p, int stage, const codepoints *t, int64_t i, int64_t end, word_fn *word, void *ctx) {
    match_fn *match = p->stages[stage];
    if (!match) return word(ctx, i, end);
    for (int rc; i < end;) {
        int64_t e = i, m = i;
        while (e < end && (m = match(t, e, end)) <= e) e = m < 0 ? ~m : e + 1;
        if (e == i) e = m;
        if ((rc = split(p, stage + 1, t, i, e, word, ctx))) return rc;
        i = e;
    }
    return 0;
}

int pretokenize(const pretokenizer *p, const codepoints *t, word_fn *word, void *ctx) { return split(p, 0, t, 0, t->n, word, ctx); }
