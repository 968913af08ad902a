/* A model: a checked tape and its weights, packed for one CPU level. Immutable after loading, but for the fingerprint, made on first use,
 * and for what model_write changes. */
#ifndef PYLLM_ENGINE_MODEL_H
#define PYLLM_ENGINE_MODEL_H
#include "../base/mapping.h"
#include "tape.h"

#include <stdatomic.h>

typedef struct metal_model metal_model;     /* metal.h */

struct pyllm_model {
    tape t;
    const kernels *k;
    pyllm_gguf *file;           /* own handle when an embedding is read from the file, else NULL */
    const uint8_t *memory;      /* packed weights: of its own, or map.p */
    size_t memory_bytes;
    mapping map;
    atomic_ullong fingerprint;  /* 0: not made yet */
    const char **kernel_names;  /* NULL-terminated */
    metal_model *metal;         /* NULL: the CPU runs it. Else weights are raw and no CPU kernel sees them */
};

/* Packs the weights, or maps the file at `pack` that model_store has written (pack_cache.h). */
int model_load(const pyllm_gguf *g, const char *tape, int64_t len, const char *level, const char *pack, int n_threads,
               const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err);
void model_free(pyllm_model *m);
int model_plan(const pyllm_gguf *g, const char *text, int64_t len, int64_t *bytes, uint64_t *key, pyllm_error *err);
/* Overwrites rows of a matrix: pyllm_model_write. */
int model_write(pyllm_model *m, const char *tensor, int64_t first, int64_t n, const void *rows, pyllm_error *err);
/* After its weights were read: 0, or PYLLM_ERR_IO if they may not have been what they should be, since they are mapped and the file was changed. */
int model_check(const pyllm_model *m, pyllm_error *err);
/* A hash of tape and weights, the same for every level and number of threads; p helps. Fails where a weight in the file cannot be read. */
int model_fingerprint(pyllm_model *m, pool *p, uint64_t *out, pyllm_error *err);

/* A weight in units: row groups of a matrix, elements of a vector. */
static inline int64_t weight_units(const weight *w) { return w->is_vector ? w->n : (w->n + GROUP - 1) / GROUP; }
/* Bytes of a row in the file; of an element of a vector. */
size_t weight_row_bytes(const weight *w);
/* Reads units [first, first + n) from the file to `file` (as long as these are there) and packs them to dst. */
int weight_load(const pyllm_gguf *g, const weight *w, int64_t first, int64_t n, uint8_t *file, uint8_t *dst, pyllm_error *err);
#endif
