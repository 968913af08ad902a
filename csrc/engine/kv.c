/* The page pool. Layers with the same window form a group; a page holds 16 positions of all its layers. Recurrent steps form one, too: there a
   page holds the state of all of them after one token, the last that a sequence has of a page of positions. Rows never write over a state: a
   run of rows gets a new page, and the old one goes back when the step is over. */
#include "engine.h"

#include "../base/alloc.h"
#include "../kernels/rotate.h"

#include <string.h>

enum { KEPT_WINDOWS = 8, KEPT_STATES = 8 };

/* A sequence holds one state, in a step two; and some are kept for later. */
static kv_group layout_states(const tape *t, const pyllm_engine_params *p, size_t *state_at) {
    kv_group g = {.window = 2, .recurrent = 1, .n_pages = 2 * p->max_seqs + KEPT_STATES};
    for (int32_t i = 0; i < t->n_states; i++) {
        state_at[i] = g.page_bytes;
        g.page_bytes += ((size_t)t->steps[t->state_step[i]].state_floats * sizeof(float) + 63) / 64 * 64;
    }
    return g;
}

int kv_layout(const tape *t, const pyllm_engine_params *p, kv_layer *layers, kv_group *groups, size_t *state_at, int32_t *n_groups,
              pyllm_error *err) {
    *n_groups = 0;
    int64_t all = (p->n_positions + PAGE - 1) / PAGE + p->max_seqs;     /* every sequence may end in a partial page */
    for (int32_t l = 0; l < t->n_layers; l++) {
        const step *s = &t->steps[t->attn_step[l]];
        int64_t window = s->p[ATTN_WINDOW].i[0];
        int32_t g = 0, dim = (int32_t)s->p[ATTN_DIM].i[0], v_dim = (int32_t)attn_v_dim(s);
        if (kv_quantized(p->kv_type) && (dim % 32 || v_dim % 32))
            return err_set(err, PYLLM_ERR_UNSUPPORTED, "kv %s needs attention heads of a multiple of 32 values, these have %d\nhint: use kv f16",
                           p->kv_type == KV_Q8_0 ? "q8_0" : "q4_0", dim % 32 ? dim : v_dim);
        if (p->kv_type == KV_Q4_0 && attn_v_is_k(s) && rotate_span(dim) != rotate_span(v_dim))
            return err_set(err, PYLLM_ERR_UNSUPPORTED, "kv q4_0 cannot read values of %d out of keys of %d\nhint: use kv q8_0", v_dim, dim);
        while (g < *n_groups && groups[g].window != window) g++;
        if (g == *n_groups) {
            groups[g] = (kv_group){.window = window};
            ++*n_groups;
        }
        kv_layer *k = &layers[l];
        *k = (kv_layer){.group = g, .kv_heads = (int32_t)s->p[ATTN_KV_HEADS].i[0], .dim = dim, .v_dim = v_dim,
                        .offset = groups[g].page_bytes, .k_bytes = kv_page_bytes(p->kv_type, dim)};
        k->v_bytes = attn_v_is_k(s) ? 0 : kv_page_bytes(p->kv_type, v_dim);
        groups[g].page_bytes += (k->k_bytes + k->v_bytes) * (size_t)k->kv_heads;
    }
    for (int32_t g = 0; g < *n_groups; g++) {
        int64_t n = all;
        if (groups[g].window) {         /* a step may run the whole batch before pages behind the window go back; windows kept for later */
            int64_t live = ((groups[g].window + p->rewind + PAGE - 1) / PAGE + 2) * (p->max_seqs + KEPT_WINDOWS) + (p->max_rows + PAGE - 1) / PAGE + 1;
            if (live < n) n = live;
        }
        if (n > INT32_MAX) return err_set(err, PYLLM_ERR_ARG, "%lld pages are more than the cache can number", (long long)n);
        groups[g].n_pages = (int32_t)n;
    }
    if (t->n_states) groups[(*n_groups)++] = layout_states(t, p, state_at);
    for (int32_t g = 0; g < *n_groups; g++) {
        size_t bytes;
        if (__builtin_mul_overflow(groups[g].page_bytes, (size_t)groups[g].n_pages, &bytes) || bytes > (size_t)PTRDIFF_MAX / (size_t)*n_groups)
            return err_set(err, PYLLM_ERR_UNSUPPORTED, "%d cache pages of %zu bytes are more than memory can be", groups[g].n_pages, groups[g].page_bytes);
    }
    return 0;
}

int64_t kv_first_page(const kv_group *g, int64_t length) {
    int64_t first = g->window ? length - g->window + 1 : 0;
    return first > 0 ? first / PAGE : 0;
}

int32_t kv_new_page(kv_group *g) {
    int32_t page = g->free_pages[--g->n_free];
    g->users[page] = 1;
    return page;
}

void kv_use(kv_group *g, int32_t page) {
    if (!g->users[page]++ && g->kept[page]) g->n_idle--;
}

void kv_leave(kv_group *g, int32_t page) {
    if (--g->users[page]) return;
    if (g->kept[page]) g->n_idle++;
    else g->free_pages[g->n_free++] = page;
}

static int shared(const kv_group *g, int32_t page) { return g->users[page] > 1 || g->kept[page]; }

/* The page that the next row of a sequence is written to, if it has begun and is not the sequence's alone; else NULL. */
static int32_t *shared_tail(const kv_group *g, int32_t *pages, int64_t length) {
    return length % PAGE && shared(g, pages[length / PAGE]) ? &pages[length / PAGE] : NULL;
}

int64_t kv_own_pages(const kv_group *g, const int32_t *pages, int64_t first, int64_t end) {
    int64_t n = 0;
    for (int64_t i = first; i < end; i++) n += pages[i] >= 0 && !shared(g, pages[i]);
    return n;
}

static void give_back(kv_group *g, int32_t *page) {
    if (*page >= 0) kv_leave(g, *page);
    *page = -1;
}

/* A place for the state after n more rows; the one before them stays until kv_commit or kv_undo. */
static void reserve_state(kv_group *k, int32_t *pages, int64_t n, run *u) {
    int64_t last = (u->pos + n - 1) / PAGE;
    u->from = u->pos ? pages[(u->pos - 1) / PAGE] : -1;
    u->to = kv_new_page(k);
    for (int64_t p = (u->pos + PAGE - 1) / PAGE; p < last; p++) pages[p] = -1;
    pages[last] = u->to;
}

int kv_reserve(pyllm_engine *e, sequence *s, int64_t n, run *u, pyllm_error *err) {
    int64_t begin = (s->length + PAGE - 1) / PAGE, end = (s->length + n + PAGE - 1) / PAGE;
    if (end > e->max_pages)
        return err_set(err, PYLLM_ERR_FULL, "a sequence of %lld tokens does not fit in a cache of %lld positions", (long long)(s->length + n),
                       (long long)(e->max_pages * PAGE));
    for (int32_t g = 0; g < e->n_groups; g++) {
        int64_t need = e->groups[g].recurrent ? 1 : end - begin + (shared_tail(&e->groups[g], s->pages[g], s->length) != NULL);
        if (e->groups[g].n_free < need)
            return err_set(err, PYLLM_ERR_FULL, "%lld more tokens need %lld cache pages, %d are free", (long long)n, (long long)need,
                           e->groups[g].n_free);
    }
    for (int32_t g = 0; g < e->n_groups; g++) {
        kv_group *k = &e->groups[g];
        if (k->recurrent) {
            reserve_state(k, s->pages[g], n, u);
            continue;
        }
        int32_t *tail = shared_tail(k, s->pages[g], s->length);
        if (tail) {
            int32_t mine = kv_new_page(k);
            memcpy(k->pool + (size_t)mine * k->page_bytes, k->pool + (size_t)*tail * k->page_bytes, k->page_bytes);
            give_back(k, tail);
            *tail = mine;
        }
        for (int64_t p = begin; p < end; p++) s->pages[g][p] = kv_new_page(k);
    }
    return 0;
}

void kv_release_from(pyllm_engine *e, sequence *s, int64_t n, int64_t end) {
    for (int32_t g = 0; g < e->n_groups; g++)
        for (int64_t p = (end + PAGE - 1) / PAGE - 1; p >= (n + PAGE - 1) / PAGE; p--) give_back(&e->groups[g], &s->pages[g][p]);
}

void kv_undo(pyllm_engine *e, sequence *s, const run *u) {
    for (int32_t g = 0; g < e->n_groups; g++) {
        if (!e->groups[g].recurrent) continue;
        give_back(&e->groups[g], &s->pages[g][(u->pos + u->n - 1) / PAGE]);
        if (u->from >= 0) s->pages[g][(u->pos - 1) / PAGE] = u->from;
    }
    kv_release_from(e, s, u->pos, s->length);
    s->length = u->pos;
}

void kv_commit(pyllm_engine *e, sequence *s, const run *u) {
    for (int32_t g = 0; g < e->n_groups; g++) {
        if (!e->groups[g].recurrent || u->from < 0) continue;
        int32_t *old = &s->pages[g][(u->pos - 1) / PAGE];
        if (*old == u->from) *old = -1;
        kv_leave(&e->groups[g], u->from);
    }
}

void kv_release_behind(pyllm_engine *e, sequence *s) {
    for (int32_t g = 0; g < e->n_groups; g++) {
        kv_group *k = &e->groups[g];
        int64_t first = kv_first_page(k, s->length - (k->recurrent ? 0 : e->params.rewind));
        for (; s->freed[g] < first; s->freed[g]++) give_back(k, &s->pages[g][s->freed[g]]);
    }
}

int64_t engine_free_positions(const pyllm_engine *e) {
    const kv_group *k = NULL;
    for (int32_t g = 0; g < e->n_groups; g++)
        if (!e->groups[g].recurrent && (!k || (k->window && !e->groups[g].window))) k = &e->groups[g];
    return k ? (int64_t)(k->n_free + k->n_idle) * PAGE : e->params.max_seqs * e->max_pages * PAGE;
}

/* ---- sequences ------------------------------------------------------------------------------------------------------ */

sequence *seq_find(const pyllm_engine *e, int32_t s) {
    return s >= 0 && s < e->params.max_seqs && e->seqs[s].alive ? &e->seqs[s] : NULL;
}

int32_t seq_new(pyllm_engine *e, pyllm_error *err) {
    for (int32_t i = 0; i < e->params.max_seqs; i++) {
        sequence *s = &e->seqs[i];
        if (s->alive) continue;
        s->alive = 1;
        s->length = 0;
        memset(s->freed, 0, sizeof *s->freed * (size_t)e->n_groups);
        return i;
    }
    return err_set(err, PYLLM_ERR_FULL, "%d sequences are alive, the most that this engine holds", e->params.max_seqs);
}

void seq_free(pyllm_engine *e, int32_t id) {
    sequence *s = seq_find(e, id);
    if (!s) return;
    kv_release_from(e, s, 0, s->length);
    s->alive = 0;
    s->length = 0;
}

int64_t seq_length(const pyllm_engine *e, int32_t id) {
    const sequence *s = seq_find(e, id);
    return s ? s->length : -1;
}

int seq_truncate(pyllm_engine *e, int32_t id, int64_t n, pyllm_error *err) {
    sequence *s = seq_find(e, id);
    if (!s || n < 0 || n > s->length) return err_set(err, PYLLM_ERR_ARG, "sequence %d cannot be cut to %lld tokens", id, (long long)n);
    for (int32_t g = 0; g < e->n_groups && n && n < s->length; g++)
        if (e->groups[g].recurrent)
            return err_set(err, PYLLM_ERR_ARG, "sequence %d cannot be cut to %lld of %lld tokens: its recurrent state has no way back\n"
                           "hint: cut to 0 and run the tokens again", id, (long long)n, (long long)s->length);
        else if (kv_first_page(&e->groups[g], n) < s->freed[g])
            return err_set(err, PYLLM_ERR_ARG, "sequence %d cannot be cut to %lld of %lld tokens: pages behind the window of %lld are gone\n"
                           "hint: cut to 0 and run the tokens again", id, (long long)n, (long long)s->length, (long long)e->groups[g].window);
    kv_release_from(e, s, n, s->length);
    s->length = n;
    if (!n) memset(s->freed, 0, sizeof *s->freed * (size_t)e->n_groups);
    return 0;
}
