/* Pages that outlive their sequences: a host keeps them and maps them into other sequences that begin with the same tokens. */
#include "engine.h"

#include <string.h>

/* Whether every page of a list is -1 or one of its group that is not free. */
static int check_pages(const pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err) {
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++) {
            int32_t p = pages[g * n + i];
            if (p < -1 || p >= e->groups[g].n_pages || (p >= 0 && !e->groups[g].users[p] && !e->groups[g].kept[p]))
                return err_set(err, PYLLM_ERR_ARG, "page %d of group %d holds nothing", p, g);
        }
    return 0;
}

int seq_pages(const pyllm_engine *e, int32_t id, int64_t first, int64_t n, int32_t *pages, pyllm_error *err) {
    const sequence *s = seq_find(e, id);
    if (!s || first < 0 || n < 0 || first + n > (s->length + PAGE - 1) / PAGE)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d has no pages %lld to %lld", id, (long long)first, (long long)(first + n));
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++) pages[g * n + i] = first + i < s->freed[g] ? -1 : s->pages[g][first + i];
    return 0;
}

int seq_attach(pyllm_engine *e, int32_t id, int64_t length, const int32_t *pages, pyllm_error *err) {
    sequence *s = seq_find(e, id);
    int64_t n = (length + PAGE - 1) / PAGE;
    if (!s || s->length || length < 0 || n > e->max_pages)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d cannot begin with %lld tokens of other pages", id, (long long)length);
    TRY(check_pages(e, pages, n, err));
    for (int32_t g = 0; g < e->n_groups; g++) {
        for (int64_t i = kv_first_page(&e->groups[g], length); i < n; i++)
            if (pages[g * n + i] < 0) return err_set(err, PYLLM_ERR_ARG, "page %lld of group %d is missing", (long long)i, g);
        if (length % PAGE && !e->groups[g].recurrent && !e->groups[g].n_free) return err_set(err, PYLLM_ERR_FULL, "no cache page is free to copy one to");
    }
    for (int32_t g = 0; g < e->n_groups; g++) {
        kv_group *k = &e->groups[g];
        int64_t first = kv_first_page(k, length);
        s->freed[g] = first;
        for (int64_t i = 0; i < n; i++) {
            s->pages[g][i] = i < first ? -1 : pages[g * n + i];
            if (i >= first) kv_use(k, s->pages[g][i]);
        }
        if (length % PAGE == 0 || k->recurrent) continue;
        int32_t theirs = s->pages[g][n - 1], mine = kv_new_page(k);
        memcpy(k->pool + (size_t)mine * k->page_bytes, k->pool + (size_t)theirs * k->page_bytes, k->page_bytes);
        kv_leave(k, theirs);
        s->pages[g][n - 1] = mine;
    }
    s->length = length;
    return 0;
}

int seq_adopt(pyllm_engine *e, int32_t id, int64_t first, int64_t n, const int32_t *pages, pyllm_error *err) {
    sequence *s = seq_find(e, id);
    if (!s || first < 0 || n < 0 || (first + n) * PAGE > s->length)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d has no full pages %lld to %lld", id, (long long)first, (long long)(first + n));
    TRY(check_pages(e, pages, n, err));
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++) {
            int32_t theirs = pages[g * n + i], *mine = &s->pages[g][first + i];
            if (theirs < 0 || first + i < s->freed[g] || theirs == *mine) continue;
            kv_use(&e->groups[g], theirs);
            kv_leave(&e->groups[g], *mine);
            *mine = theirs;
        }
    return 0;
}

int pages_keep(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err) {
    TRY(check_pages(e, pages, n, err));
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++)
            if (pages[g * n + i] >= 0) e->groups[g].kept[pages[g * n + i]] = 1;
    return 0;
}

int pages_drop(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err) {
    TRY(check_pages(e, pages, n, err));
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++) {
            kv_group *k = &e->groups[g];
            int32_t p = pages[g * n + i];
            if (p < 0 || !k->kept[p]) continue;
            k->kept[p] = 0;
            if (k->users[p]) continue;
            k->n_idle--;
            k->free_pages[k->n_free++] = p;
        }
    return 0;
}

int64_t pages_idle(const pyllm_engine *e, int32_t group, const int32_t *pages, int64_t n) {
    if (group < 0 || group >= e->n_groups) return 0;
    const kv_group *k = &e->groups[group];
    int64_t idle = 0;
    for (int64_t i = 0; i < n; i++) idle += pages[i] >= 0 && pages[i] < k->n_pages && k->kept[pages[i]] && !k->users[pages[i]];
    return idle;
}
