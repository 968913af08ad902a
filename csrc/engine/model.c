/* Loading: weights are read with pread, packed in parallel by chunks of row groups, and never held twice. */
#include "model.h"

#include "../base/alloc.h"
#include "../kernels/pack.h"
#include "metal.h"
#include "pack_cache.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { LOAD_BYTES = 512 << 10 };    /* file bytes a worker holds at a time, at least one group of 16 rows */

size_t weight_row_bytes(const weight *w) {
    const qtype_info *q = qtype_get(w->type);
    return (size_t)(w->is_vector ? 1 : w->k) / (size_t)q->elems * (size_t)q->bytes;
}

/* Gives every weight its place; packed, an embedding that no product reads stays in the file. Returns the bytes of all. */
static size_t layout(tape *t, int raw) {
    size_t at = 0;
    for (int32_t i = 0; i < t->n_weights; i++) {
        weight *w = &t->weights[i];
        if (w->is_vector) {
            w->bytes = (size_t)w->n * sizeof(float);
        } else if (raw) {
            w->raw = 1;
            w->group_bytes = GROUP * weight_row_bytes(w);
            w->bytes = (size_t)w->n * weight_row_bytes(w);
        } else if (w->multiply) {
            w->group_bytes = pack_group_bytes(w->type, w->k);
            w->bytes = (size_t)((w->n + GROUP - 1) / GROUP) * w->group_bytes;
        }
        w->offset = at;
        at += (w->bytes + 63) / 64 * 64;
    }
    return at + 8192;               /* kernels prefetch past the end */
}

int model_plan(const pyllm_gguf *g, const char *text, int64_t len, int64_t *bytes, uint64_t *key, pyllm_error *err) {
    tape t;
    TRY(tape_parse(text, len, g, &t, err));
    *bytes = (int64_t)layout(&t, 0);
    *key = pack_key(&t, (size_t)*bytes);
    tape_free(&t);
    return 0;
}

int weight_load(const pyllm_gguf *g, const weight *w, int64_t first, int64_t n, uint8_t *file, uint8_t *dst, pyllm_error *err) {
    size_t row = weight_row_bytes(w);
    if (w->is_vector) {
        TRY(gguf_read(g, w->tensor, (uint64_t)(w->row0 + first) * row, (uint64_t)n * row, file, err));
        dequantize(w->type, file, n, (float *)dst);
        return 0;
    }
    int64_t first_row = first * GROUP, rows = n * GROUP < w->n - first_row ? n * GROUP : w->n - first_row;
    if (w->raw) return gguf_read(g, w->tensor, (uint64_t)(w->row0 + first_row) * row, (uint64_t)rows * row, dst, err);
    TRY(gguf_read(g, w->tensor, (uint64_t)(w->row0 + first_row) * row, (uint64_t)rows * row, file, err));
    for (int64_t i = 0; i < n; i++) {
        int64_t left = rows - i * GROUP;
        pack_group(w->type, file + (size_t)(i * GROUP) * row, row, (int)(left < GROUP ? left : GROUP), w->k, dst + (size_t)i * w->group_bytes);
    }
    return 0;
}

/* One piece of work: units of a weight. */
typedef struct piece {
    int32_t weight;
    int64_t first, n;
} piece;

typedef struct load_job {
    const tape *t;
    uint8_t *memory;
    const pyllm_gguf *g;
    const piece *pieces;
    uint8_t *buffers;
    size_t buffer_bytes;
    atomic_int rc;
    pyllm_error *errors;            /* one a worker */
} load_job;

static void load_item(void *ctx, int64_t item, int worker) {
    load_job *j = ctx;
    const piece *p = &j->pieces[item];
    const weight *w = &j->t->weights[p->weight];
    if (atomic_load(&j->rc)) return;
    uint8_t *dst = j->memory + w->offset + (size_t)p->first * (w->is_vector ? sizeof(float) : w->group_bytes);
    int rc = weight_load(j->g, w, p->first, p->n, j->buffers + (size_t)worker * j->buffer_bytes, dst, &j->errors[worker]);
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
            size_t unit = weight_row_bytes(w) * (w->is_vector ? 1 : GROUP);
            int64_t units = weight_units(w), step = unit < LOAD_BYTES ? (int64_t)(LOAD_BYTES / unit) : 1;
            if ((size_t)step * unit > *max_bytes) *max_bytes = (size_t)step * unit;
            for (int64_t u = 0; u < units; u += step, count++)
                if (p) p[count] = (piece){i, u, units - u < step ? units - u : step};
        }
    }
    *n = count;
    return p;
}

static int load_weights(const tape *t, uint8_t *memory, const pyllm_gguf *g, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    int64_t n;
    load_job j = {.t = t, .memory = memory, .g = g};
    piece *pieces = list_pieces(t, &n, &j.buffer_bytes);
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
    if (m->metal) return 0;         /* the CPU's kernels have no part in it */
    for (int i = 0; i < m->k->n_names; i++) {
        const char *name = m->k->names[i];
        size_t slot = strcspn(name, "=");
        int used = 0;
        for (size_t a = 0; a < 2; a++) used |= !strncmp(name, always[a], strlen(always[a]));
        for (int32_t s = 0; s < m->t.n_steps && !used; s++) {
            const char *op = m->t.steps[s].op->name;
            if (!strcmp(op, "glu") || !strcmp(op, "moe_gated")) op = "gated";
            if (!strcmp(op, "route")) op = "softmax";
            used = !strncmp(name, "rmsnorm=", slot + 1) ? !strcmp(op, "norm") : strlen(op) == slot && !strncmp(name, op, slot);
            used |= !strncmp(name, "act=", slot + 1) && !strcmp(op, "linear") && m->t.steps[s].p[LINEAR_ACT].n;
        }
        for (int32_t w = 0; w < m->t.n_weights && !used; w++) {
            const weight *x = &m->t.weights[w];
            const qtype_info *q = qtype_get(x->type);
            if (!x->multiply) continue;
            used = !strncmp(name, "matmul_", 7) && strlen(q->name) == slot - 7 && !strncmp(name + 7, q->name, slot - 7);
            used |= !strncmp(name, "matmul_wide_", 12) && strlen(q->name) == slot - 12 && !strncmp(name + 12, q->name, slot - 12);
            used |= q->act > 1 && !strncmp(name, "quantize_act", slot);
        }
        if (used) m->kernel_names[n++] = name;
    }
    return 0;
}

/* Gives the weights their place in memory; keeps the file open if one has none. */
static int place_weights(pyllm_model *m, const pyllm_gguf *g, pyllm_error *err) {
    int from_file = 0;
    for (int32_t i = 0; i < m->t.n_weights; i++) {
        weight *w = &m->t.weights[i];
        if (w->is_vector) w->vec = (const float *)(m->memory + w->offset);
        else if (w->bytes) w->packed = m->memory + w->offset;
        else from_file = 1;
        if (w->multiply && !w->raw && !m->k->matmul[w->type])
            return err_set(err, PYLLM_ERR_UNSUPPORTED, "tensor %s is %s, which has no matmul kernel", w->name, qtype_get(w->type)->name);
    }
    return from_file ? gguf_reopen(g, &m->file, err) : 0;
}

static int pack_weights(pyllm_model *m, const pyllm_gguf *g, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    uint8_t *memory = mem_map(m->memory_bytes);
    m->memory = memory;
    if (!memory) return err_set(err, PYLLM_ERR_MEMORY, "%zu MB for the weights cannot be had", m->memory_bytes >> 20);
    return load_weights(&m->t, memory, g, n_threads, cancel, err);
}

static int map_weights(pyllm_model *m, const char *pack, const pyllm_gguf *g, int n_threads, const volatile int32_t *cancel, pyllm_error *err) {
    TRY(pack_map(pack, g, &m->t, m->memory_bytes, n_threads, cancel, &m->map, err));
    m->memory = m->map.p;
    return 0;
}

int model_load(const pyllm_gguf *g, const char *text, int64_t len, const char *level, const char *pack, int n_threads,
               const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err) {
    *out = NULL;
    if (n_threads < 1 || n_threads > 1024) return err_set(err, PYLLM_ERR_ARG, "n_threads is %d, must be 1 to 1024", n_threads);
    int metal = level && !strcmp(level, "metal");
    const kernels *k = kernels_get(metal ? NULL : level);
    if (!k) return err_set(err, PYLLM_ERR_ARG, "no kernels for CPU level '%s'%s on this machine\nhint: available: %s",
                           level ? level : getenv("PYLLM_CPU"), level ? "" : " (PYLLM_CPU)", kernels_levels());
    pyllm_model *m = mem_zalloc(sizeof *m);
    if (!m) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while loading the model");
    m->k = k;
    int rc = tape_parse(text, len, g, &m->t, err);
    if (!rc && metal && pack) rc = err_set(err, PYLLM_ERR_UNSUPPORTED, "packed weights are for the CPU\nhint: load without the pack cache");
    if (!rc && metal) rc = metal_model_new(&m->t, &m->metal, err);
    if (!rc) rc = list_kernels(m, err);
    if (!rc) {
        m->memory_bytes = layout(&m->t, metal);
        rc = pack ? map_weights(m, pack, g, n_threads, cancel, err) : pack_weights(m, g, n_threads, cancel, err);
    }
    if (!rc) rc = place_weights(m, g, err);
    if (!rc && metal) rc = metal_model_place(m->metal, &m->t, (void *)m->memory, m->memory_bytes, err);
    if (rc) {
        model_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

void model_free(pyllm_model *m) {
    if (!m) return;
    metal_model_free(m->metal);
    gguf_close(m->file);
    for (int32_t i = 0; i < m->t.n_weights; i++)
        if (m->t.weights[i].is_own) mem_free((void *)m->t.weights[i].packed);
    if (m->map.p) mapping_free(&m->map);
    else mem_unmap((void *)m->memory, m->memory_bytes);
    mem_free(m->kernel_names);
    tape_free(&m->t);
    mem_free(m);
}

int model_check(const pyllm_model *m, pyllm_error *err) { return m->map.p ? mapping_check(&m->map, err) : 0; }
