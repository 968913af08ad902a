/* A parsed and checked tape (docs/tape.md): steps over values, with the weights that they name. */
#ifndef PYLLM_ENGINE_TAPE_H
#define PYLLM_ENGINE_TAPE_H
#include "../ops/ops.h"

typedef struct tape {
    step *steps;
    value *values;
    table *tables;
    weight *weights;            /* resolved against the file: type, n, k, tensor, row0 */
    int32_t n_steps, n_values, n_tables, n_weights;
    int32_t n_layers;           /* of the KV cache; layer numbers are 0..n_layers-1 */
    int32_t *attn_step;         /* [n_layers] the first of each, which stores */
    int32_t n_states, *state_step;  /* recurrent steps; state numbers are 0..n_states-1 */
    int64_t n_vocab, n_ctx_train;
    uint64_t hash;              /* of the text */
} tape;

/* Parses text and checks every name, shape and type against the file. On error *t is empty and nothing is kept. */
int tape_parse(const char *text, int64_t len, const pyllm_gguf *g, tape *t, pyllm_error *err);
void tape_free(tape *t);
/* Assigns activation offsets by liveness for batches of max_rows rows, max_late of them with logits; returns floats needed. */
int64_t tape_plan(tape *t, int64_t max_rows, int64_t max_late);
#endif
