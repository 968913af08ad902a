/* What binds saved states to a model: a hash of its tape and of every byte of its weights. Made when it is first asked for, with all threads. */
#include "model.h"

#include "../base/alloc.h"
#include "../base/checksum.h"

#include <stdatomic.h>
#include <string.h>

enum { BLOCK = 1 << 20 };           /* bytes of one work item */

typedef struct hash_job {
    const pyllm_model *m;
    const weight *w;
    uint8_t *buffers;               /* BLOCK bytes a worker, for weights that stay in the file; else NULL */
    uint64_t bytes;
    atomic_ullong sum;              /* of all blocks; their numbers go in, so that order counts though it is not kept */
    atomic_int rc;
    pyllm_error *err;               /* of worker 0: whoever else fails fails for the same reason */
} hash_job;

static void hash_item(void *ctx, int64_t item, int worker) {
    hash_job *j = ctx;
    uint64_t at = (uint64_t)item * BLOCK, n = j->bytes - at < BLOCK ? j->bytes - at : BLOCK;
    const uint8_t *p;
    if (j->buffers) {
        int rc = gguf_read(j->m->file, j->w->tensor, at, n, j->buffers + (size_t)worker * BLOCK, worker ? NULL : j->err);
        if (rc) atomic_store(&j->rc, rc);
        p = j->buffers + (size_t)worker * BLOCK;
    } else {
        p = (j->w->is_vector ? (const uint8_t *)j->w->vec : j->w->packed) + at;
    }
    if (!atomic_load(&j->rc)) atomic_fetch_add(&j->sum, checksum_mix(checksum_block(p, n), (uint64_t)item));
}

/* Adds one weight to *h. */
static int add_weight(const pyllm_model *m, pool *p, const weight *w, uint64_t *h, pyllm_error *err) {
    hash_job j = {.m = m, .w = w, .bytes = w->bytes, .err = err};
    if (!w->bytes) {
        pyllm_tensor t;
        gguf_tensor(m->file, w->tensor, &t);
        j.bytes = t.bytes;
        j.buffers = mem_alloc((size_t)pool_size(p) * BLOCK);
        if (!j.buffers) return err_set(err, PYLLM_ERR_MEMORY, "out of memory while a saved state is bound to its model");
    }
    pool_run(p, hash_item, &j, (int64_t)((j.bytes + BLOCK - 1) / BLOCK), 1, NULL);
    mem_free(j.buffers);
    if (j.rc) return err && err->code ? err->code : err_set(err, j.rc, "%s cannot be read any more\nhint: the file was changed while it was in use; "
                                                            "load the model again", gguf_path(m->file));
    *h = checksum_mix(checksum_mix(checksum_mix(checksum_mix(*h, w->type), (uint64_t)w->n), (uint64_t)w->k), j.sum);
    return 0;
}

int model_fingerprint(pyllm_model *m, pool *p, uint64_t *out, pyllm_error *err) {
    uint64_t h = atomic_load(&m->fingerprint);
    if (!h) {
        if (err) err->code = 0;
        h = m->t.hash;
        for (int32_t i = 0; i < m->t.n_weights; i++) TRY(add_weight(m, p, &m->t.weights[i], &h, err));
        TRY(model_check(m, err));
        h |= !h;                    /* 0: not made yet */
        atomic_store(&m->fingerprint, h);
    }
    *out = h;
    return 0;
}
