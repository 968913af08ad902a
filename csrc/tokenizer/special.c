/* Special tokens in a text: control and user-defined ones, sorted by their bytes. A look-up is one binary search, whatever they are. The same finds
   the longest token of a greedy vocabulary. */
#include "vocab.h"

#include "../base/alloc.h"

#include <string.h>

/* Order of a special token's text against s[0..n), as memcmp; a beginning stands before what it begins. */
static int compare(const pyllm_tokenizer *t, const special *x, const char *s, uint64_t n) {
    int order = memcmp(t->arena + x->text.at, s, x->text.len < n ? x->text.len : n);
    return order ? order : (x->text.len > n) - (x->text.len < n);
}

/* Equal texts by id. */
static int before(const pyllm_tokenizer *t, const special *a, const special *b) {
    int order = compare(t, a, t->arena + b->text.at, b->text.len);
    return order ? order < 0 : a->id < b->id;
}

static void sift(const pyllm_tokenizer *t, special *x, int32_t i, int32_t n) {
    special last = x[i];
    for (int32_t k; (k = 2 * i + 1) < n; i = k) {
        if (k + 1 < n && before(t, &x[k], &x[k + 1])) k++;
        if (!before(t, &last, &x[k])) break;
        x[i] = x[k];
    }
    x[i] = last;
}

/* Heap sort: takes as long for every order in the file. */
static void sort(const pyllm_tokenizer *t, special *x, int32_t n) {
    for (int32_t i = n / 2 - 1; i >= 0; i--) sift(t, x, i, n);
    while (--n > 0) {
        special top = x[0];
        x[0] = x[n];
        x[n] = top;
        sift(t, x, 0, n);
    }
}

/* Of equal texts the first stays. */
static void link_beginnings(const pyllm_tokenizer *t, special_set *set) {
    int32_t n = 0;
    for (int32_t i = 0; i < set->n; i++) {
        special x = set->x[i];
        const char *s = t->arena + x.text.at;
        int32_t k = n - 1;
        if (n && !compare(t, &set->x[k], s, x.text.len)) continue;
        while (k >= 0 && (set->x[k].text.len > x.text.len || compare(t, &set->x[k], s, set->x[k].text.len))) k = set->x[k].shorter;
        x.shorter = k;
        set->x[n++] = x;
    }
    set->n = n;
}

static int in_set(const pyllm_tokenizer *t, int32_t id, int control) {
    int type = t->type[id], special = type == TOKEN_CONTROL || (type == TOKEN_UNKNOWN && t->kind == KIND_UNIGRAM);
    return (type == TOKEN_USER || (control && special)) && t->text[id].len <= SPECIAL_MAX && t->text[id].len;
}

int special_index(pyllm_tokenizer *t) {
    for (int control = 0; control < 2; control++) {
        special_set *set = &t->special[control];
        size_t room = 0;
        for (int32_t id = 0; id < t->n; id++) room += (size_t)in_set(t, id, control);
        set->x = mem_array(room, sizeof *set->x);
        if (!set->x) return -1;
        for (int32_t id = 0; id < t->n; id++)
            if (in_set(t, id, control)) set->x[set->n++] = (special){.text = t->text[id], .id = id};
        sort(t, set->x, set->n);
        link_beginnings(t, set);
    }
    if (t->kind == KIND_GREEDY || t->kind == KIND_UNIGRAM) {
        const span *spans = t->kind == KIND_GREEDY ? t->bytes : t->text;
        t->all.x = mem_array((size_t)t->n, sizeof *t->all.x);
        if (!t->all.x) return -1;
        for (int32_t id = 0; id < t->n; id++)
            if (t->type[id] == TOKEN_NORMAL && spans[id].len) t->all.x[t->all.n++] = (special){.text = spans[id], .id = id};
        sort(t, t->all.x, t->all.n);
        link_beginnings(t, &t->all);
    }
    for (int32_t i = 0; i < t->special[1].n; i++) {
        span x = t->special[1].x[i].text;
        const uint8_t *p = (const uint8_t *)t->arena + x.at;
        for (unsigned second = 0; second < 256; second++) {
            unsigned two = p[0] | (x.len > 1 ? p[1] : second) << 8;
            t->special_start[two / 8] |= (uint8_t)(1 << two % 8);
        }
    }
    return 0;
}

int32_t special_at(const pyllm_tokenizer *t, const char *s, int64_t n, int control) {
    unsigned two = (uint8_t)s[0] | (n > 1 ? (uint8_t)s[1] : 0u) << 8;
    if (!(t->special_start[two / 8] >> two % 8 & 1)) return -1;
    return longest_in(t, &t->special[control != 0], s, n);
}

int32_t longest_in(const pyllm_tokenizer *t, const special_set *set, const char *s, int64_t n) {
    int32_t i = longest_place(t, set, s, n);
    return i < 0 ? -1 : set->x[i].id;
}

int32_t longest_place(const pyllm_tokenizer *t, const special_set *set, const char *s, int64_t n) {
    int32_t i = 0, end = set->n;
    while (i < end) {
        int32_t mid = i + (end - i) / 2;
        if (compare(t, &set->x[mid], s, (uint64_t)n) <= 0) i = mid + 1;
        else end = mid;
    }
    if (!i--) return -1;
    /* A token that s begins with also begins all between the two: the last one before s is the longest such or begins with it. */
    span x = set->x[i].text;
    uint32_t common = 0;
    while (common < x.len && common < n && t->arena[x.at + common] == s[common]) common++;
    while (i >= 0 && set->x[i].text.len > common) i = set->x[i].shorter;
    return i;
}
