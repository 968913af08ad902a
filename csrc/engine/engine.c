#include "engine.h"

#include "../base/alloc.h"
#include "metal.h"

#include <string.h>
#include <time.h>

/* ---- creation --------------------------------------------------------------------------------------------------------- */

static int check_params(const pyllm_engine_params *p, pyllm_error *err) {
    if (p->n_threads < 1 || p->n_threads > 1024) return err_set(err, PYLLM_ERR_ARG, "n_threads is %d, must be 1 to 1024", p->n_threads);
    if (p->kv_type < 0 || p->kv_type >= KV_TYPES) return err_set(err, PYLLM_ERR_ARG, "kv_type %d does not exist", p->kv_type);
    if (p->max_rows < 1 || p->max_rows > 65536) return err_set(err, PYLLM_ERR_ARG, "max_rows is %d, must be 1 to 65536", p->max_rows);
    if (p->max_logits < 1 || p->max_logits > p->max_rows) return err_set(err, PYLLM_ERR_ARG, "max_logits is %d, must be 1 to max_rows", p->max_logits);
    if (p->max_seqs < 1 || p->max_seqs > 65536) return err_set(err, PYLLM_ERR_ARG, "max_seqs is %d, must be 1 to 65536", p->max_seqs);
    if (p->rewind < 0 || p->rewind > 1024) return err_set(err, PYLLM_ERR_ARG, "rewind is %d, must be 0 to 1024", p->rewind);
    if (p->n_positions < 1 || p->n_positions > (1 << 24))
        return err_set(err, PYLLM_ERR_ARG, "n_positions is %lld, must be 1 to %d", (long long)p->n_positions, 1 << 24);
    return 0;
}

/* Sizes of everything besides pages: activations, quantized inputs, scratch, attention states. */
typedef struct sizes { size_t act[2], scratch, activations; int64_t states, order; } sizes;

static int measure(tape *t, const pyllm_engine_params *p, sizes *z, pyllm_error *err) {
    memset(z, 0, sizeof *z);
    int64_t floats = tape_plan(t, p->max_rows, p->max_logits);
    if (floats < 0) return err_set(err, PYLLM_ERR_UNSUPPORTED, "the tape keeps too many values alive at once");
    z->activations = (size_t)floats * sizeof(float) + 256;
    for (int32_t i = 0; i < t->n_steps; i++) {
        const step *s = &t->steps[i];
        size_t scratch = op_scratch_bytes(t->weights, t->values, s);
        if (scratch > z->scratch) z->scratch = scratch;
        int64_t rows = s->n_in && t->values[s->in[0]].late ? p->max_logits : p->max_rows, single = op_single_rows(t->weights, t->values, s);
        int64_t order = op_order_ints(t->weights, t->values, s, rows);
        if (order > z->order) z->order = order;
        for (int32_t w = 0; w < s->p[0].n && s->n_in && !strncmp(s->op->params, "w:M", 3); w++) {
            const weight *x = &t->weights[s->p[0].id[w]];
            int act = qtype_get(x->type)->act;
            size_t bytes = act_panel_bytes(x->k, (int)(rows * (single ? single : 1)));
            if (act > 1 && bytes > z->act[act == 256]) z->act[act == 256] = bytes;
        }
        int64_t states = strcmp(s->op->name, "attn") ? 0 : attn_states_floats(s, p->n_positions, p->max_rows);
        if (states > z->states) z->states = states;
    }
    z->scratch = (z->scratch + 4095) / 4096 * 4096;
    return 0;
}

int engine_plan(const tape *t, const pyllm_engine_params *p, int64_t *kv, int64_t *act, pyllm_error *err) {
    TRY(check_params(p, err));
    tape copy = *t;
    sizes z;
    int32_t n_groups;
    kv_layer *layers = mem_array((size_t)t->n_layers + 1, sizeof *layers);
    kv_group *groups = mem_array((size_t)t->n_layers + 1, sizeof *groups);
    size_t *state_at = mem_array((size_t)t->n_states + 1, sizeof *state_at);
    int rc = layers && groups && state_at ? kv_layout(t, p, layers, groups, state_at, &n_groups, err) : err_set(err, PYLLM_ERR_MEMORY, "out of memory while planning");
    if (!rc) rc = measure(&copy, p, &z, err);
    if (!rc) {
        *kv = 0;
        for (int32_t g = 0; g < n_groups; g++) *kv += (int64_t)groups[g].page_bytes * groups[g].n_pages;
        *act = (int64_t)(z.activations + z.act[0] + z.act[1] + z.scratch * (size_t)p->n_threads) + (z.states + z.order) * 4;
    }
    mem_free(layers);
    mem_free(groups);
    mem_free(state_at);
    return rc;
}

static int alloc_groups(pyllm_engine *e) {
    for (int32_t g = 0; g < e->n_groups; g++) {
        kv_group *k = &e->groups[g];
        k->pool = mem_map(k->page_bytes * (size_t)k->n_pages);
        k->free_pages = mem_array((size_t)k->n_pages, sizeof *k->free_pages);
        k->users = mem_array((size_t)k->n_pages, sizeof *k->users);
        k->kept = mem_array((size_t)k->n_pages, sizeof *k->kept);
        if (!k->pool || !k->free_pages || !k->users || !k->kept) return -1;
        for (int32_t i = 0; i < k->n_pages; i++) k->free_pages[k->n_free++] = k->n_pages - 1 - i;
    }
    return 0;
}

static int alloc_sequences(pyllm_engine *e) {
    size_t n = (size_t)e->params.max_seqs, groups = (size_t)e->n_groups, pages = (size_t)e->max_pages;
    e->seqs = mem_array(n, sizeof *e->seqs);
    int64_t *freed = mem_array(n * groups, sizeof *freed);
    int32_t **tables = mem_array(n * groups, sizeof *tables);
    int32_t *entries = mem_map(n * groups * pages * sizeof *entries);    /* mostly untouched */
    if (!e->seqs || !freed || !tables || !entries) {
        mem_free(freed);
        mem_free(tables);
        mem_unmap(entries, n * groups * pages * sizeof *entries);
        return -1;
    }
    for (size_t i = 0; i < n * groups; i++) tables[i] = entries + i * pages;
    for (size_t i = 0; i < n; i++) {
        e->seqs[i].freed = freed + i * groups;
        e->seqs[i].pages = tables + i * groups;
    }
    return 0;
}

static int alloc_all(pyllm_engine *e, const sizes *z) {
    const pyllm_engine_params *p = &e->params;
    e->activation_bytes = z->activations;
    e->scratch_bytes = z->scratch;
    e->states_floats = z->states;
    e->activations = mem_map(z->activations);
    e->scratch = mem_map(z->scratch * (size_t)p->n_threads + 64);
    e->order = mem_array((size_t)z->order + 1, sizeof *e->order);
    e->states = mem_alloc((size_t)z->states * sizeof(float) + 64);
    for (int i = 0; i < 2; i++) {
        e->act_bytes[i] = z->act[i] + 64;
        e->act[i] = mem_map(e->act_bytes[i]);
    }
    e->pos = mem_array((size_t)p->max_rows, sizeof *e->pos);
    e->logit_rows = mem_array((size_t)p->max_rows, sizeof *e->logit_rows);
    e->runs = mem_array((size_t)p->max_rows, sizeof *e->runs);
    e->pool = pool_new(p->n_threads);
    e->l2_bytes = cache_l2_bytes();
    return e->activations && e->scratch && e->states && e->order && e->act[0] && e->act[1] && e->pos && e->logit_rows && e->runs && e->pool &&
           !alloc_groups(e) && !alloc_sequences(e) ? 0 : -1;
}

int engine_new(pyllm_model *m, const pyllm_engine_params *p, pyllm_engine **out, pyllm_error *err) {
    *out = NULL;
    TRY(check_params(p, err));
    pyllm_engine *e = mem_zalloc(sizeof *e);
    if (!e) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while making an engine");
    e->m = m;
    e->params = *p;
    e->max_pages = (p->n_positions + PAGE - 1) / PAGE;
    e->plan = m->t;
    e->plan.values = mem_array((size_t)m->t.n_values, sizeof *e->plan.values);
    e->layers = mem_array((size_t)m->t.n_layers + 1, sizeof *e->layers);
    e->groups = mem_array((size_t)m->t.n_layers + 1, sizeof *e->groups);
    e->state_at = mem_array((size_t)m->t.n_states + 1, sizeof *e->state_at);
    sizes z;
    int rc = 0;
    if (!e->plan.values || !e->layers || !e->groups || !e->state_at) {
        rc = err_set(err, PYLLM_ERR_MEMORY, "out of memory while making an engine");
    } else {
        memcpy(e->plan.values, m->t.values, sizeof *e->plan.values * (size_t)m->t.n_values);
        rc = kv_layout(&e->plan, p, e->layers, e->groups, e->state_at, &e->n_groups, err);
        if (!rc) rc = measure(&e->plan, p, &z, err);
        if (!rc && alloc_all(e, &z))
            rc = err_set(err, PYLLM_ERR_MEMORY, "out of memory or threads for an engine of %lld positions and %d threads\n"
                         "hint: a smaller context (ctx) or a smaller KV type needs less", (long long)p->n_positions, p->n_threads);
    }
    e->last_step = m->t.n_steps;
    if (!rc && m->metal) rc = metal_engine_new(e, err);
    if (rc) engine_free(e);
    else *out = e;
    return rc;
}

void engine_free(pyllm_engine *e) {
    if (!e) return;
    metal_engine_free(e->metal);
    if (e->owner) e->owner->lent--;
    else pool_free(e->pool);
    for (int32_t g = 0; g < e->n_groups; g++) {
        mem_unmap(e->groups[g].pool, e->groups[g].page_bytes * (size_t)e->groups[g].n_pages);
        mem_free(e->groups[g].free_pages);
        mem_free(e->groups[g].users);
        mem_free(e->groups[g].kept);
    }
    if (e->seqs && e->seqs[0].pages) {
        mem_unmap(e->seqs[0].pages[0], (size_t)e->params.max_seqs * (size_t)e->n_groups * (size_t)e->max_pages * sizeof(int32_t));
        mem_free(e->seqs[0].pages);
        mem_free(e->seqs[0].freed);
    }
    mem_free(e->seqs);
    mem_unmap(e->activations, e->activation_bytes);
    mem_unmap(e->scratch, e->scratch_bytes * (size_t)e->params.n_threads + 64);
    mem_free(e->states);
    mem_free(e->order);
    for (int i = 0; i < 2; i++) mem_unmap(e->act[i], e->act_bytes[i]);
    mem_free(e->pos);
    mem_free(e->logit_rows);
    mem_free(e->runs);
    mem_free(e->layers);
    mem_free(e->groups);
    mem_free(e->state_at);
    mem_free(e->plan.values);
    mem_free(e);
}

int engine_share(pyllm_engine *e, pyllm_engine *other, pyllm_error *err) {
    if (e == other || e->params.n_threads != other->params.n_threads)
        return err_set(err, PYLLM_ERR_ARG, "an engine of %d threads cannot use the workers of one of %d", e->params.n_threads,
                       other->params.n_threads);
    pyllm_engine *owner = other->owner ? other->owner : other;
    if (e->pool == owner->pool) return 0;
    if (e->lent) return err_set(err, PYLLM_ERR_ARG, "an engine whose workers %d others use keeps them", e->lent);
    if (e->owner) e->owner->lent--;
    else pool_free(e->pool);
    e->owner = owner;
    e->pool = owner->pool;
    owner->lent++;
    return 0;
}

/* ---- one step ------------------------------------------------------------------------------------------------------------ */

static int check_rows(const pyllm_engine *e, int32_t n, const int32_t *tokens, const int32_t *seqs, pyllm_error *err) {
    if (n < 1 || n > e->params.max_rows) return err_set(err, PYLLM_ERR_ARG, "%d rows, this engine takes 1 to %d", n, e->params.max_rows);
    for (int32_t r = 0; r < n; r++) {
        if (tokens[r] < 0 || tokens[r] >= e->m->t.n_vocab)
            return err_set(err, PYLLM_ERR_ARG, "token id %d in row %d is not in the vocabulary of %lld", tokens[r], r, (long long)e->m->t.n_vocab);
        if (seqs[r] < 0 || seqs[r] >= e->params.max_seqs || !e->seqs[seqs[r]].alive)
            return err_set(err, PYLLM_ERR_ARG, "row %d names sequence %d, which does not exist", r, seqs[r]);
    }
    return 0;
}

/* Takes pages and sets positions, run by run (consecutive rows of one sequence). On error the lengths are what they were and no page is
   kept. A sequence's length already counts the rows of its earlier runs while later ones are placed. */
static int place_rows(pyllm_engine *e, int32_t n, const int32_t *seqs, int32_t *n_runs, pyllm_error *err) {
    *n_runs = 0;
    for (int32_t r = 0; r < n;) {
        sequence *s = &e->seqs[seqs[r]];
        int32_t end = r + 1;
        while (end < n && seqs[end] == seqs[r]) end++;
        run *u = &e->runs[*n_runs];
        *u = (run){.row = r, .n = end - r, .pos = s->length, .pages = (const int32_t *const *)s->pages};
        TRY(kv_reserve(e, s, u->n, u, err));
        ++*n_runs;
        for (; r < end; r++) e->pos[r] = s->length++;
    }
    return 0;
}

static void undo(pyllm_engine *e, const int32_t *seqs, int32_t n_runs) {
    for (int32_t i = n_runs - 1; i >= 0; i--) kv_undo(e, &e->seqs[seqs[e->runs[i].row]], &e->runs[i]);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int is_alive(const value *v, int32_t step) { return v->first < step && v->last >= step && v->offset != SIZE_MAX; }

int64_t engine_live(const pyllm_engine *e, int32_t step) {
    int64_t floats = 0;
    for (int32_t i = 0; i < e->plan.n_values; i++)
        if (is_alive(&e->plan.values[i], step)) floats += e->plan.values[i].width;
    return floats;
}

int engine_part(pyllm_engine *e, int32_t first, int32_t last, const float *before, float *after, pyllm_error *err) {
    if (e->metal && (first || last != e->m->t.n_steps))
        return err_set(err, PYLLM_ERR_UNSUPPORTED, "a tape is run in parts on the CPU only\nhint: load with backend=\"cpu\"");
    if (first < 0 || first >= last || last > e->m->t.n_steps || (first && !before) || (last < e->m->t.n_steps && !after))
        return err_set(err, PYLLM_ERR_ARG, "steps %d to %d are no part of a tape of %d, or there is no place for what crosses their ends", first, last,
                       e->m->t.n_steps);
    e->first_step = first;
    e->last_step = last;
    e->before = first ? before : NULL;
    e->after = last < e->m->t.n_steps ? after : NULL;
    return 0;
}

/* Between the activations and `saved`: the values that are alive at a step, one after the other. */
static void move_values(const op_ctx *c, int32_t n_values, int32_t step, const float *from, float *to) {
    size_t at = 0;
    for (int32_t i = 0; i < n_values; i++) {
        if (!is_alive(&c->values[i], step)) continue;
        size_t n = (size_t)value_rows(c, i) * (size_t)c->values[i].width;
        if (from) memcpy(value_ptr(c, i), from + at, n * sizeof *from);
        else memcpy(to + at, value_ptr(c, i), n * sizeof *to);
        at += n;
    }
}

int engine_step(pyllm_engine *e, int32_t n, const int32_t *tokens, const int32_t *seqs, const uint8_t *want, float *logits,
                const volatile int32_t *cancel, pyllm_error *err) {
    pyllm_error local;
    if (!err) err = &local;
    err->code = 0;
    TRY(check_rows(e, n, tokens, seqs, err));
    int32_t n_logits = 0, n_runs;
    for (int32_t r = 0; r < n; r++)
        if (want && want[r]) e->logit_rows[n_logits++] = r;
    if (n_logits > e->params.max_logits) return err_set(err, PYLLM_ERR_ARG, "logits of %d rows, this engine gives at most %d", n_logits, e->params.max_logits);
    if (n_logits && !logits) return err_set(err, PYLLM_ERR_ARG, "logits of %d rows are wanted, but there is no place for them", n_logits);
    int rc = place_rows(e, n, seqs, &n_runs, err);
    batch b = {.n_rows = n, .n_logits = n_logits, .n_runs = n_runs, .tokens = tokens, .pos = e->pos, .logit_rows = e->logit_rows, .runs = e->runs};
    op_ctx c = {.k = e->m->k, .pool = e->pool, .l2_bytes = e->l2_bytes, .cancel = cancel, .weights = e->m->t.weights, .values = e->plan.values, .tables = e->m->t.tables,
                .activations = e->activations, .logits = logits, .b = &b, .kv_type = e->params.kv_type, .layers = e->layers, .groups = e->groups,
                .states_group = e->plan.n_states ? &e->groups[e->n_groups - 1] : NULL, .state_at = e->state_at,
                .file = e->m->file, .act = {e->act[0], e->act[1]}, .scratch = e->scratch, .scratch_bytes = e->scratch_bytes,
                .order = e->order, .states = e->states, .states_floats = e->states_floats, .err = err};
    if (e->before && !rc) move_values(&c, e->plan.n_values, e->first_step, e->before, NULL);
    if (e->metal && !rc) rc = metal_step(e, &b, seqs, logits, cancel, err);
    if (e->metal && !rc && cancelled(cancel)) rc = PYLLM_ERR_CANCELLED;
    for (int32_t i = e->first_step; i < e->last_step && !rc && !e->metal; i++) {
        const step *s = &e->m->t.steps[i];
        if (!n_logits && e->plan.values[s->out[0]].late) continue;
        if (e->observe && e->observe[i] && s->n_in) op_add_squares(&c, s, e->observe[i]);
        double start = e->profile ? now_s() : 0;
        rc = s->op->run(&c, s);
        if (e->profile) e->profile[i] += now_s() - start;
        if (!rc && cancelled(cancel)) rc = PYLLM_ERR_CANCELLED;
    }
    if (e->after && !rc) move_values(&c, e->plan.n_values, e->last_step, NULL, e->after);
    if (!rc) rc = model_check(e->m, err);
    if (rc == PYLLM_ERR_CANCELLED) err_set(err, rc, "the step was cancelled; its sequences are as before it");
    if (rc) {
        undo(e, seqs, n_runs);
        return rc;
    }
    for (int32_t i = 0; i < n_runs; i++) kv_commit(e, &e->seqs[seqs[e->runs[i].row]], &e->runs[i]);
    for (int32_t i = 0; i < n_runs; i++) kv_release_behind(e, &e->seqs[seqs[e->runs[i].row]]);
    return 0;
}
