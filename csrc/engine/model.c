/* Loading: weights are read with pread, packed in parallel by chunks of row groups, and never held twice. */
#include "model.h"

#include "../base/alloc.h"
#include "../kernels/pack.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LOAD_BYTES = 512 << 10 };    /* file bytes a worker holds at a time, at least one group of 16 rows */

static size_t row_bytes(const weight *w) {
    const qtype_info *q = qtype_get(w->type);
    return (size_t)(w->is_vector ? w->n : w->k) / (size_t)q->elems * (size_t)q->bytes;
}

/* Gives every weight its place; an embedding that no product reads stays in the file. Returns the bytes of all. */
static size_t layout(tape *t) {
    size_t at = 0;
    for (int32_t i = 0; i < t->n_weights; i++) {
        weight *w = &t->weights[i];
        if (w->is_vector) {
            w->bytes = (size_t)w->n * sizeof(float);
        } else if (w->multiply) {
            w->group_bytes = pack_group_bytes(w->type, w->k);
            w->bytes = (size_t)((w->n + GROUP - 1) / GROUP) * w->group_bytes;
        }
        w->offset = at;
        at += (w->bytes + 63) / 64 * 64;
    }
    return at + 8192;               /* kernels prefetch past the end */
}

int model_plan(const pyllm_gguf *g, const char *text, int64_t len, int64_t *bytes, pyllm_error *err) {
    tape t;
    TRY(tape_parse(text, len, g, &t, err));
    *bytes = (int64_t)layout(&t);
    tape_free(&t);
    return 0;
}

/* One piece of work: `groups` row groups of a matrix, or a whole vector (groups 0). */
typedef struct piece {
    int32_t weight;
    int64_t first, groups;
} piece;

typedef struct load_job {
    pyllm_model *m;
    const pyllm_gguf *g;
    const piece *pieces;
    uint8_t *buffers;
    size_t buffer_bytes;
    atomic_int rc;
    pyllm_error *errors;            /* one a worker */
} load_job;

static int load_piece(const load_job *j, const piece *p, uint8_t *buf, pyllm_error *err) {
    weight *w = &j->m->t.weights[p->weight];
    size_t row = row_bytes(w);
    uint8_t *dst = j->m->memory + w->offset;
    if (w->is_vector) {
        size_t elem = (size_t)qtype_get(w->type)->bytes;
        int64_t step = (int64_t)(j->buffer_bytes / elem);
        for (int64_t at = 0; at < w->n; at += step) {
            int64_t n = w->n - at < step ? w->n - at : step;
            TRY(gguf_read(j->g, w->tensor, (uint64_t)(w->row0 + at) * elem, (uint64_t)n * elem, buf, err));
            dequantize(w->type, buf, n, (float *)dst + at);
        }
        return 0;
    }
    int64_t first = p->first * GROUP, rows = p->groups * GROUP < w->n - first ? p->groups * GROUP : w->n - first;
    TRY(gguf_read(j->g, w->tensor, (uint64_t)(w->row0 + first) * row, (uint64_t)rows * row, buf, err));
    for (int64_t g = 0; g < p->groups; g++) {
        int64_t left = rows - g * GROUP;
        pack_group(w->type, buf + (size_t)(g * GROUP) * row, row, (int)(left < GROUP ? left : GROUP), w->k,
                   dst + (size_t)(p->first + g) * w->group_bytes);
    }
    return 0;
}

static void load_item(void *ctx, int64_t item, int worker) {
    load_job *j = ctx;
    if (atomic_load(&j->rc)) return;
    int rc = load_piece(j, &j->pieces[item], j->buffers + (size_t)worker * j->buffer_bytes, &j->errors[worker]);
    if (rc) atomic_store(&j->rc, rc);
}

/* The list of pieces; *max_bytes becomes the largest number of file bytes of one. */
static piece *list_pieces(const tape *t, int64_t *n, size_t *max_bytes) {
    int64_t count = 0;
    piece *p = NULL;
    for (int pass = 0; pass < 2; pass++) {
        if (pass && !(p = mem_array((size_t)count + 1, sizeof *p))) return NULL;
        count = 0;
        *max_bytes = 4096;
        for (int32_t i = 0; i < t->n_weights; i++) {
            const weight *w = &t->weights[i];
            if (!w->bytes) continue;
            int64_t groups = w->is_vector ? 1 : (w->n + GROUP - 1) / GROUP;
            int64_t step = w->is_vector ? 1 : (int64_t)(LOAD_BYTES / (row_bytes(w) * GROUP));
            if (step < 1) step = 1;
            if (!w->is_vector && (size_t)step * GROUP * row_bytes(w) > *max_bytes) *max_bytes = (size_t)step * GROUP * row_bytes(w);
            for (int64_t g = 0; g < groups; g += step, count++)
                if (p) p[count] = (piece){i, g, groups - g < step ? groups - g : step};
        }
    }
    *n = count;
    return p;
}

static int load_weights(pyllm_model *m, const pyllm_gguf *g, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    int64_t n;
    load_job j = {.m = m, .g = g};
    piece *pieces = list_pieces(&m->t, &n, &j.buffer_bytes);
    pool *pool = pool_new(n_threads);
    j.pieces = pieces;
    j.buffers = mem_alloc(j.buffer_bytes * (size_t)n_threads);
    j.errors = mem_array((size_t)n_threads, sizeof *j.errors);
    int rc = 0;
    if (!pieces || !pool || !j.buffers || !j.errors) {
        rc = err_set(err, PYLLM_ERR_MEMORY, "out of memory or threads while loading the weights");
    } else {
        int left_out = pool_run(pool, load_item, &j, n, 1, cancel);
        rc = atomic_load(&j.rc);
        for (int w = 0; rc && w < n_threads; w++)
            if (j.errors[w].code && err) *err = j.errors[w];
        if (!rc && left_out) rc = err_set(err, PYLLM_ERR_CANCELLED, "loading was cancelled");
    }
    mem_free(j.errors);
    mem_free(j.buffers);
    pool_free(pool);
    mem_free(pieces);
    return rc;
}

/* "slot=symbol" of the level's table for every slot that a run of the tape calls (attention: of every KV type). */
static int list_kernels(pyllm_model *m, pyllm_error *err) {
    static const char *const always[] = {"kv_store", "attn_"};
    int n = 0;
    m->kernel_names = mem_array((size_t)m->k->n_names + 1, sizeof *m->kernel_names);
    if (!m->kernel_names) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while loading the model");
    for (int i = 0; i < m->k->n_names; i++) {
        const char *name = m->k->names[i];
        size_t slot = strcspn(name, "=");
        int used = 0;
        for (size_t a = 0; a < 2; a++) used |= !strncmp(name, always[a], strlen(always[a]));
        for (int32_t s = 0; s < m->t.n_steps && !used; s++) {
            const char *op = m->t.steps[s].op->name;
            if (!strcmp(op, "glu")) op = "gated";
            used = !strncmp(name, "rmsnorm", slot) ? !strcmp(op, "norm") : strlen(op) == slot && !strncmp(name, op, slot);
        }
        for (int32_t w = 0; w < m->t.n_weights && !used; w++) {
            const weight *x = &m->t.weights[w];
            const qtype_info *q = qtype_get(x->type);
            if (!x->multiply) continue;
            used = !strncmp(name, "matmul_", 7) && strlen(q->name) == slot - 7 && !strncmp(name + 7, q->name, slot - 7);
            used |= q->act > 1 && !strncmp(name, "quantize_act", slot);
        }
        if (used) m->kernel_names[n++] = name;
    }
    return 0;
}

int model_load(const pyllm_gguf *g, const char *text, int64_t len, const char *level, int n_threads,
               const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err) {
    *out = NULL;
    if (n_threads < 1 || n_threads > 1024) return err_set(err, PYLLM_ERR_ARG, "n_threads is %d, must be 1 to 1024", n_threads);
    const kernels *k = kernels_get(level);
    if (!k) return err_set(err, PYLLM_ERR_ARG, "no kernels for CPU level '%s'%s on this machine\nhint: available: %s",
                           level ? level : getenv("PYLLM_CPU"), level ? "" : " (PYLLM_CPU)", kernels_levels());
    pyllm_model *m = mem_zalloc(sizeof *m);
    if (!m) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while loading the model");
    m->k = k;
    int rc = tape_parse(text, len, g, &m->t, err);
    if (!rc) rc = list_kernels(m, err);
    if (!rc) {
        m->memory_bytes = layout(&m->t);
        m->memory = mem_map(m->memory_bytes);
        if (!m->memory) rc = err_set(err, PYLLM_ERR_MEMORY, "%zu MB for the weights cannot be had", m->memory_bytes >> 20);
    }
    if (!rc) rc = load_weights(m, g, n_threads, cancel, err);
    int from_file = 0;
    for (int32_t i = 0; i < m->t.n_weights && !rc; i++) {
        weight *w = &m->t.weights[i];
        if (w->is_vector) w->vec = (const float *)(m->memory + w->offset);
        else if (w->bytes) w->packed = m->memory + w->offset;
        else from_file = 1;
        if (w->multiply && !k->matmul[w->type])
            rc = err_set(err, PYLLM_ERR_UNSUPPORTED, "tensor %s is %s, which has no matmul kernel", w->name, qtype_get(w->type)->name);
    }
    if (!rc && from_file) rc = gguf_reopen(g, &m->file, err);
    if (rc) {
        model_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

void model_free(pyllm_model *m) {
    if (!m) return;
    gguf_close(m->file);
    for (int32_t i = 0; i < m->t.n_weights; i++)
        if (m->t.weights[i].is_own) mem_free((void *)m->t.weights[i].packed);
    mem_unmap(m->memory, m->memory_bytes);
    mem_free(m->kernel_names);
    tape_free(&m->t);
    mem_free(m);
}
