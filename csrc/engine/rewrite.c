/* Weights that change after loading: what a change of one tensor does to the results is measured without loading the model again. */
#include "model.h"

#include "../base/alloc.h"
#include "../kernels/pack.h"

#include <string.h>

static size_t row_bytes(const weight *w) {
    const qtype_info *q = qtype_get(w->type);
    return (size_t)(w->k / q->elems) * (size_t)q->bytes;
}

/* Packs file rows [first, first + n) of a matrix's slice; first is a multiple of GROUP. */
static void pack_rows(const weight *w, int64_t first, int64_t n, const uint8_t *rows, uint8_t *packed) {
    for (int64_t r = 0; r < n; r += GROUP)
        pack_group(w->type, rows + (size_t)r * row_bytes(w), row_bytes(w), (int)(n - r < GROUP ? n - r : GROUP), w->k,
                   packed + (size_t)((first + r) / GROUP) * w->group_bytes);
}

/* Moves an embedding that is read from the file into memory of its own (model_free gives that back). */
static int make_resident(const pyllm_model *m, weight *w, pyllm_error *err) {
    size_t group = pack_group_bytes(w->type, w->k), row = row_bytes(w), bytes = (size_t)((w->n + GROUP - 1) / GROUP) * group;
    uint8_t *packed = mem_alloc(bytes + 8192), *buf = mem_alloc(GROUP * row);      /* as in the model's own memory: kernels prefetch past the end */
    int rc = packed && buf ? 0 : err_set(err, PYLLM_ERR_MEMORY, "%zu MB for tensor %s cannot be had", bytes >> 20, w->name);
    w->group_bytes = group;
    for (int64_t r = 0; r < w->n && !rc; r += GROUP) {
        int64_t n = w->n - r < GROUP ? w->n - r : GROUP;
        rc = gguf_read(m->file, w->tensor, (uint64_t)(w->row0 + r) * row, (uint64_t)n * row, buf, err);
        if (!rc) pack_rows(w, r, n, buf, packed);
    }
    mem_free(buf);
    if (rc) {
        mem_free(packed);
        return rc;
    }
    w->packed = packed;
    w->bytes = bytes;
    w->is_own = 1;
    return 0;
}

/* Rows of a tensor as far as the tape reads it; 0: it reads no matrix of this name. */
static int64_t rows_of(const tape *t, const char *tensor) {
    int64_t rows = 0;
    for (int32_t i = 0; i < t->n_weights; i++) {
        const weight *w = &t->weights[i];
        if (!w->is_vector && !strcmp(w->name, tensor) && w->row0 + w->n > rows) rows = w->row0 + w->n;
    }
    return rows;
}

int model_write(pyllm_model *m, const char *tensor, int64_t first, int64_t n, const void *rows, pyllm_error *err) {
    int64_t all = rows_of(&m->t, tensor);
    if (m->metal) return err_set(err, PYLLM_ERR_UNSUPPORTED, "weights can be changed on the CPU only\nhint: load with backend=\"cpu\"");
    if (!all) return err_set(err, PYLLM_ERR_ARG, "the tape reads no matrix %s", tensor);
    if (first < 0 || n < 1 || n > all || first > all - n || first % GROUP || ((first + n) % GROUP && first + n != all))
        return err_set(err, PYLLM_ERR_ARG, "%lld rows from %lld on are not whole groups of %d out of tensor %s's %lld", (long long)n,
                       (long long)first, GROUP, tensor, (long long)all);
    int64_t end = first + n;
    for (int32_t i = 0; i < m->t.n_weights; i++) {
        weight *w = &m->t.weights[i];
        if (!w->is_vector && !w->packed && !strcmp(w->name, tensor)) TRY(make_resident(m, w, err));
    }
    for (int32_t i = 0; i < m->t.n_weights; i++) {
        weight *w = &m->t.weights[i];               /* a slice begins and ends with a group */
        int64_t from = first > w->row0 ? first : w->row0, to = end < w->row0 + w->n ? end : w->row0 + w->n;
        if (w->is_vector || from >= to || strcmp(w->name, tensor)) continue;
        pack_rows(w, from - w->row0, to - from, (const uint8_t *)rows + (size_t)(from - first) * row_bytes(w), (uint8_t *)w->packed);
    }
    atomic_store(&m->fingerprint, 0);
    return 0;
}
