/* A model: a checked tape and its weights, packed for one CPU level. Immutable after loading, but for the fingerprint, made on first use,
 * and for what model_write changes. */
#ifndef PYLLM_ENGINE_MODEL_H
#define PYLLM_ENGINE_MODEL_H
#include "tape.h"

#include <stdatomic.h>

struct pyllm_model {
    tape t;
    const kernels *k;
    pyllm_gguf *file;           /* own handle when an embedding is read from the file, else NULL */
    uint8_t *memory;
    size_t memory_bytes;
    atomic_ullong fingerprint;  /* 0: not made yet */
    const char **kernel_names;  /* NULL-terminated */
};

int model_load(const pyllm_gguf *g, const char *text, int64_t len, const char *level, int n_threads,
               const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err);
void model_free(pyllm_model *m);
int model_plan(const pyllm_gguf *g, const char *text, int64_t len, int64_t *bytes, pyllm_error *err);
/* Overwrites rows of a matrix: pyllm_model_write. */
int model_write(pyllm_model *m, const char *tensor, int64_t first, int64_t n, const void *rows, pyllm_error *err);
/* A hash of tape and weights, the same for every level and number of threads; p helps. Fails where a weight in the file cannot be read. */
int model_fingerprint(pyllm_model *m, pool *p, uint64_t *out, pyllm_error *err);
/* 64 bits, every input word enters by a bijection of the state: one changed byte always changes the sum. */
uint64_t checksum(const uint8_t *p, size_t n);
#endif
