/* A model: a checked tape and its weights, packed for one CPU level. Immutable after loading. */
#ifndef PYLLM_ENGINE_MODEL_H
#define PYLLM_ENGINE_MODEL_H
#include "tape.h"

struct pyllm_model {
    tape t;
    const kernels *k;
    pyllm_gguf *file;           /* own handle when an embedding is read from the file, else NULL */
    uint8_t *memory;
    size_t memory_bytes;
    uint64_t fingerprint;       /* of tape and weights: binds saved states to this model */
    const char **kernel_names;  /* NULL-terminated */
};

int model_load(const pyllm_gguf *g, const char *text, int64_t len, const char *level, int n_threads,
               const volatile int32_t *cancel, pyllm_model **out, pyllm_error *err);
void model_free(pyllm_model *m);
int model_plan(const pyllm_gguf *g, const char *text, int64_t len, int64_t *bytes, pyllm_error *err);
#endif
