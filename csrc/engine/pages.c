/* Pages that outlive their sequences: a host keeps them and maps them into other sequences that begin with the same tokens. */
#include "engine.h"

#include "../base/checksum.h"
#include "../base/file.h"

#include <stdatomic.h>
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
    if (!s || first < 0 || n < 0 || n > (s->length + PAGE - 1) / PAGE || first > (s->length + PAGE - 1) / PAGE - n)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d has no %lld pages from %lld on", id, (long long)n, (long long)first);
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t i = 0; i < n; i++) pages[g * n + i] = first + i < s->freed[g] ? -1 : s->pages[g][first + i];
    return 0;
}

int seq_attach(pyllm_engine *e, int32_t id, int64_t length, const int32_t *pages, pyllm_error *err) {
    sequence *s = seq_find(e, id);
    int64_t n = length / PAGE + (length % PAGE > 0);
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
    if (!s || first < 0 || n < 0 || n > s->length / PAGE || first > s->length / PAGE - n)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d has no %lld full pages from %lld on", id, (long long)n, (long long)first);
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

/* ---- pages and files ---- */

const void *seq_page(pyllm_engine *e, int32_t id, int32_t group, int64_t i, int64_t *bytes) {
    const sequence *s = seq_find(e, id);
    if (!s || group < 0 || group >= e->n_groups || i < s->freed[group] || i >= (s->length + PAGE - 1) / PAGE) return NULL;
    kv_group *k = &e->groups[group];
    int32_t number = s->pages[group][i];
    uint8_t *page = k->pool + (size_t)number * k->page_bytes;
    if (i == s->length / PAGE && !k->recurrent && k->users[number] == 1 && !k->kept[number]) kv_clear_page(e, group, page, (int)(s->length % PAGE));
    *bytes = (int64_t)k->page_bytes;
    return page;
}

typedef struct load_job {
    const pyllm_engine *e;
    const sequence *s;
    int fd;
    int64_t n;                  /* pages of a group, those behind its window included */
    const int64_t *offsets;
    const uint64_t *sums;
    atomic_int rc;
} load_job;

static void load_page(void *ctx, int64_t item, int worker) {
    (void)worker;
    load_job *j = ctx;
    int32_t g = (int32_t)(item / j->n);
    int64_t i = item % j->n, done = 0;
    if (i < j->s->freed[g] || atomic_load(&j->rc)) return;
    const kv_group *k = &j->e->groups[g];
    int64_t size = (int64_t)k->page_bytes;
    uint8_t *page = k->pool + (size_t)j->s->pages[g][i] * k->page_bytes;
    while (done < size) {
        int64_t got = file_read(j->fd, page + done, (size_t)(size - done), j->offsets[g] + i * size + done);
        if (got <= 0) {
            atomic_store(&j->rc, got < 0 ? PYLLM_ERR_IO : PYLLM_ERR_STATE);
            return;
        }
        done += got;
    }
    if (checksum_block(page, k->page_bytes) != j->sums[item]) atomic_store(&j->rc, PYLLM_ERR_STATE);
}

int seq_load(pyllm_engine *e, int32_t id, int64_t length, const char *path, const int64_t *offsets, const uint64_t *sums, pyllm_error *err) {
    sequence *s = seq_find(e, id);
    if (!s || s->length || length < 1 || length > e->max_pages * PAGE)
        return err_set(err, PYLLM_ERR_ARG, "sequence %d cannot begin with %lld tokens of a file", id, (long long)length);
    load_job j = {.e = e, .s = s, .fd = file_open(path), .n = (length + PAGE - 1) / PAGE, .offsets = offsets, .sums = sums};
    if (j.fd < 0) return err_set(err, PYLLM_ERR_IO, "%s cannot be read", path);
    int rc = 0;
    for (int32_t g = 0; g < e->n_groups && !rc; g++)
        if (e->groups[g].n_free < j.n - kv_first_page(&e->groups[g], length))
            rc = err_set(err, PYLLM_ERR_FULL, "%lld tokens of a file need more cache pages than are free", (long long)length);
    if (!rc) {
        for (int32_t g = 0; g < e->n_groups; g++) {
            s->freed[g] = kv_first_page(&e->groups[g], length);
            for (int64_t i = 0; i < j.n; i++) s->pages[g][i] = i < s->freed[g] ? -1 : kv_new_page(&e->groups[g]);
        }
        s->length = length;
        pool_run(e->pool, load_page, &j, j.n * e->n_groups, 1, NULL);
        if (j.rc == PYLLM_ERR_IO) rc = err_set(err, PYLLM_ERR_IO, "%s cannot be read", path);
        else if (j.rc) rc = err_set(err, PYLLM_ERR_STATE, "%s is damaged: a checksum does not match", path);
        if (rc) seq_truncate(e, id, 0, NULL);
    }
    file_close(j.fd);
    return rc;
}
