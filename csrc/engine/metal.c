#include "metal.h"

#include "../base/alloc.h"

#include <string.h>

/* The shader source: csrc/kernels/metal's files, put together by setup.py. */
extern const char metal_source[];

enum { TILE = 8, DECODE_POSITIONS = 512, SPLIT_STATES = 32 };     /* positions of a part at least; rows times parts at most */
enum { FEW_ROWS = 8, SLICE = 32 };      /* a step of more rows is run so many commands at a time, and can be cancelled in between */

static size_t whole_pages(size_t bytes) { return (bytes + metal_page() - 1) / metal_page() * metal_page(); }

/* ---- the model ---------------------------------------------------------------------------------------------------------- */

int metal_model_new(const tape *t, metal_model **out, pyllm_error *err) {
    *out = NULL;
    for (int32_t i = 0; i < t->n_steps && metal_here(); i++) {
        const step *s = &t->steps[i];
        char why[256];
        if (metal_refuses(t, s, why, sizeof why))
            return err_set(err, PYLLM_ERR_UNSUPPORTED, "backend metal cannot run step %d of the tape, %s %s: %s\n"
                           "hint: backend=\"auto\" or \"cpu\" runs the model on the CPU", i, s->op->name, t->values[s->out[0]].name, why);
    }
    metal_model *m = mem_zalloc(sizeof *m);
    if (!m) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while opening the GPU");
    int rc = metal_open(metal_source, &m->device, err);
    if (rc) metal_model_free(m);
    else *out = m;
    return rc;
}

/* Windows of whole pages, as few as the largest buffer allows, so that every weight lies in one. */
static int place_windows(metal_model *m, const tape *t, size_t bytes, pyllm_error *err) {
    size_t page = metal_page(), most = metal_max_buffer(m->device) / page * page;
    for (int32_t i = 0; i < t->n_weights; i++) {
        const weight *w = &t->weights[i];
        metal_window *last = m->n_windows ? &m->windows[m->n_windows - 1] : NULL;
        size_t end = w->offset + w->bytes;
        if (!last || end - last->begin > most) {
            last = &m->windows[m->n_windows++];
            last->begin = w->offset / page * page;
            if (end - last->begin > most)
                return err_set(err, PYLLM_ERR_UNSUPPORTED, "tensor %s has %zu MB, the GPU %s takes %zu MB at a time\nhint: backend=\"cpu\" has no such limit",
                               w->name, w->bytes >> 20, metal_name(m->device), most >> 20);
        }
        last->end = whole_pages(end) < last->begin + most ? whole_pages(end) : last->begin + most;
    }
    return m->n_windows && m->windows[m->n_windows - 1].end > whole_pages(bytes) ? err_set(err, PYLLM_ERR_ARG, "weights do not fit their memory") : 0;
}

int metal_model_place(metal_model *m, const tape *t, void *memory, size_t bytes, pyllm_error *err) {
    m->windows = mem_array((size_t)t->n_weights + 1, sizeof *m->windows);
    if (!m->windows) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while giving the GPU the weights");
    TRY(place_windows(m, t, bytes, err));
    for (int32_t i = 0; i < m->n_windows; i++) {
        metal_window *w = &m->windows[i];
        TRY(metal_wrap(m->device, (char *)memory + w->begin, w->end - w->begin, 1, &w->buffer, err));
    }
    return 0;
}

void metal_model_free(metal_model *m) {
    if (!m) return;
    for (int32_t i = 0; i < m->n_windows; i++) metal_buffer_free(m->windows[i].buffer);
    for (int32_t i = 0; i < m->n_pipelines; i++) {
        metal_pipeline_free(m->pipelines[i]);
        mem_free((void *)m->names[i]);
    }
    metal_close(m->device);
    mem_free(m->windows);
    mem_free(m);
}

/* ---- the engine --------------------------------------------------------------------------------------------------------- */

static int wrap(const pyllm_engine *e, void *p, size_t bytes, metal_buffer **out, pyllm_error *err) {
    return metal_wrap(e->metal->m->device, p, whole_pages(bytes), 0, out, err);
}

/* Sizes of what the GPU needs beside the engine's own memory. */
static int measure(pyllm_engine *e, pyllm_error *err) {
    metal_engine *g = e->metal;
    const tape *t = &e->m->t;
    int64_t ints = 6 * (int64_t)e->params.max_rows, scratch = 0;
    if (t->n_tables > 64 || e->n_groups > 64) return err_set(err, PYLLM_ERR_UNSUPPORTED, "Metal plans hold 64 tables and 64 window sizes");
    for (int32_t i = 0; i < t->n_tables; i++) {
        g->table_offset[i] = ints;
        ints += t->tables[i].n;
    }
    for (int32_t i = 0; i < t->n_steps; i++) {
        int64_t up = metal_scratch_floats(t, &t->steps[i]), state = metal_state_floats(&t->steps[i]);
        if (up > scratch) scratch = up;
        if (state > g->state_floats) g->state_floats = state;
        g->most_commands += metal_commands(&t->steps[i]);
    }
    for (int32_t i = 0; i < e->n_groups; i++)
        if (e->groups[i].page_bytes > INT32_MAX) return err_set(err, PYLLM_ERR_UNSUPPORTED, "KV pages of more than 2 GB");
    g->input_bytes = (size_t)ints * sizeof(int32_t);
    g->logit_bytes = (size_t)e->params.max_logits * (size_t)t->values[t->n_values - 1].width * sizeof(float);
    g->states_offset = (size_t)(scratch * e->params.max_rows) * sizeof(float);
    g->scratch_bytes = g->states_offset + (size_t)(g->state_floats * SPLIT_STATES) * sizeof(float) + sizeof(float);
    return 0;
}

static int make_buffers(pyllm_engine *e, pyllm_error *err) {
    metal_engine *g = e->metal;
    g->inputs = mem_map(g->input_bytes);
    g->logits = mem_map(g->logit_bytes);
    g->scratch = mem_map(g->scratch_bytes);
    int ok = g->inputs && g->logits && g->scratch;
    for (int i = 0; i < METAL_PLANS; i++) {
        g->plans[i].commands = mem_array((size_t)g->most_commands, sizeof *g->plans[i].commands);
        ok &= g->plans[i].commands != NULL;
    }
    if (!ok) return err_set(err, PYLLM_ERR_MEMORY, "out of memory for the GPU's buffers\nhint: a smaller context (ctx) needs less");
    for (int32_t i = 0; i < e->m->t.n_tables; i++)
        memcpy(g->inputs + g->table_offset[i], e->m->t.tables[i].f, (size_t)e->m->t.tables[i].n * sizeof(float));
    TRY(wrap(e, g->inputs, g->input_bytes, &g->input_buffer, err));
    TRY(wrap(e, g->logits, g->logit_bytes, &g->logits_buffer, err));
    TRY(wrap(e, g->scratch, g->scratch_bytes, &g->scratch_buffer, err));
    TRY(wrap(e, e->activations, e->activation_bytes, &g->activations, err));
    TRY(wrap(e, e->seqs[0].pages[0], (size_t)e->params.max_seqs * (size_t)e->n_groups * (size_t)e->max_pages * sizeof(int32_t), &g->tables, err));
    for (int32_t i = 0; i < e->n_groups; i++)
        TRY(wrap(e, e->groups[i].pool, e->groups[i].page_bytes * (size_t)e->groups[i].n_pages, &g->pools[i], err));
    return 0;
}

/* The plan of a shape: kept, or encoded in place of the one that was used longest ago. */
static int plan_for(pyllm_engine *e, const metal_shape *shape, metal_plan **out, pyllm_error *err) {
    metal_engine *g = e->metal;
    metal_plan *p = g->plans;
    g->steps++;
    for (int i = 0; i < METAL_PLANS; i++) {
        if (g->plans[i].used && !memcmp(&g->plans[i].shape, shape, sizeof *shape)) {
            p = &g->plans[i];
            break;
        }
        if (g->plans[i].used < p->used) p = &g->plans[i];
    }
    if (!p->used || memcmp(&p->shape, shape, sizeof *shape)) {
        p->shape = *shape;
        p->used = 0;
        TRY(metal_encode(e, p, err));
    }
    p->used = g->steps;
    *out = p;
    return 0;
}

int metal_engine_new(pyllm_engine *e, pyllm_error *err) {
    metal_engine *g = e->metal = mem_zalloc(sizeof *g);
    if (!g) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while making an engine");
    g->m = e->m->metal;
    TRY(measure(e, err));
    TRY(make_buffers(e, err));
    const metal_shape kinds[] = {{1, 1, 0, 1}, {1, 1, 0, 2}, {e->params.max_rows, e->params.max_logits, (e->params.max_rows + TILE - 1) / TILE, 1},
                                 {1, 1, 1, 1}};         /* between them, every kernel of the model */
    metal_plan *p;
    for (int i = 0; i < 4; i++) TRY(plan_for(e, &kinds[i], &p, err));
    return 0;
}

void metal_engine_free(metal_engine *g) {
    if (!g) return;
    metal_buffer *const all[] = {g->activations, g->tables, g->input_buffer, g->logits_buffer, g->scratch_buffer};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) metal_buffer_free(all[i]);
    for (int i = 0; i < 64; i++) metal_buffer_free(g->pools[i]);
    for (int i = 0; i < METAL_PLANS; i++) mem_free(g->plans[i].commands);
    mem_unmap(g->inputs, g->input_bytes);
    mem_unmap(g->logits, g->logit_bytes);
    mem_unmap(g->scratch, g->scratch_bytes);
    mem_free(g);
}

/* ---- one step ------------------------------------------------------------------------------------------------------------- */

static int32_t write_tiles(const batch *b, int32_t *tiles) {
    int32_t n = 0;
    for (int32_t r = 0; r < b->n_runs; r++)
        for (int32_t at = 0; at < b->runs[r].n; at += TILE, n++) {
            tiles[2 * n] = b->runs[r].row + at;
            tiles[2 * n + 1] = b->runs[r].n - at < TILE ? b->runs[r].n - at : TILE;
        }
    return n;
}

int metal_step(pyllm_engine *e, const batch *b, const int32_t *seqs, float *logits, const volatile int32_t *cancel, pyllm_error *err) {
    metal_engine *g = e->metal;
    int32_t max = e->params.max_rows, *pos = g->inputs + max;
    int64_t longest = 0;
    memcpy(g->inputs, b->tokens, (size_t)b->n_rows * sizeof(int32_t));
    for (int32_t r = 0; r < b->n_rows; r++) {
        pos[r] = (int32_t)b->pos[r];
        if (b->pos[r] > longest) longest = b->pos[r];
    }
    memcpy(g->inputs + 2 * max, seqs, (size_t)b->n_rows * sizeof(int32_t));
    memcpy(g->inputs + 3 * max, b->logit_rows, (size_t)b->n_logits * sizeof(int32_t));
    metal_shape shape = {b->n_rows, b->n_logits, write_tiles(b, g->inputs + 4 * max), 1};
    if (b->n_runs == b->n_rows) {
        shape.n_tiles = 0;
        while (2 * shape.splits * b->n_rows <= SPLIT_STATES && shape.splits * DECODE_POSITIONS < longest) shape.splits *= 2;
    }
    metal_plan *p;
    TRY(plan_for(e, &shape, &p, err));
    int32_t slice = b->n_rows > FEW_ROWS ? SLICE : p->n_commands;
    for (int32_t i = 0; i < p->n_commands; i += slice) {
        if (cancelled(cancel)) return PYLLM_ERR_CANCELLED;
        TRY(metal_run(g->m->device, p->commands + i, p->n_commands - i < slice ? p->n_commands - i : slice, err));
    }
    if (b->n_logits) memcpy(logits, g->logits, (size_t)b->n_logits * (size_t)e->m->t.values[e->m->t.n_values - 1].width * sizeof(float));
    return 0;
}
