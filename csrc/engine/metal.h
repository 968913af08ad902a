/* The Metal backend: a model's tape as lists of GPU commands. Weights lie in memory as in the file and are given to the GPU in place; so are
 * activations, KV pages and page tables, so that everything else about sequences is as on the CPU.
 *
 * For each shape of a batch (rows, logits, attention tiles, parts of the positions) the tape is encoded once: pipelines, buffers, offsets, grids and the places where
 * the GPU must wait. A step writes tokens, positions and sequences to a buffer and replays the list, with many rows a slice at a time. */
#ifndef PYLLM_ENGINE_METAL_H
#define PYLLM_ENGINE_METAL_H
#include "../kernels/metal/device.h"
#include "engine.h"

enum { METAL_PIPELINES = 96, METAL_PLANS = 8 };

typedef struct metal_window {           /* of the model's memory, as one buffer */
    size_t begin, end;
    metal_buffer *buffer;
} metal_window;

struct metal_model {
    metal_device *device;
    metal_window *windows;
    int32_t n_windows;
    const char *names[METAL_PIPELINES];
    metal_pipeline *pipelines[METAL_PIPELINES];
    int32_t n_pipelines;
};

typedef struct metal_shape {            /* of a batch */
    int32_t n_rows, n_logits;
    int32_t n_tiles;                    /* attention: rows by eights within runs; 0: every row is alone in its run */
    int32_t splits;                     /* of such a row's positions */
} metal_shape;

typedef struct metal_plan {
    metal_shape shape;
    uint64_t used;                      /* number of the step that used it last; 0: empty */
    int32_t n_commands;
    metal_command *commands;            /* [most_commands] */
} metal_plan;

struct metal_engine {
    metal_model *m;
    metal_buffer *activations, *tables, *pools[64];     /* tables: of pages */
    metal_buffer *input_buffer, *logits_buffer, *scratch_buffer;
    int32_t *inputs;                    /* tokens, positions, sequences, rows with logits [max_rows each], tiles [max_rows][2], then the tape's tables */
    float *logits, *scratch;            /* scratch: up products [max_rows][widest], then attention states */
    size_t input_bytes, logit_bytes, scratch_bytes, states_offset;
    int64_t table_offset[64];           /* of the tape's tables, in ints */
    int64_t state_floats;
    int32_t most_commands;
    uint64_t steps;
    metal_plan plans[METAL_PLANS];
};

/* Opens the GPU and checks that every step and weight of the tape can run there: PYLLM_ERR_UNSUPPORTED says which cannot. */
int metal_model_new(const tape *t, metal_model **out, pyllm_error *err);
/* Gives the GPU the weights, which lie at memory + their offsets. */
int metal_model_place(metal_model *m, const tape *t, void *memory, size_t bytes, pyllm_error *err);
void metal_model_free(metal_model *m);
/* e->metal, when everything else of e is there. */
int metal_engine_new(pyllm_engine *e, pyllm_error *err);
void metal_engine_free(metal_engine *g);
/* Runs the tape for a batch whose rows have pages; seqs: of each row. *cancel is polled a few times. */
int metal_step(pyllm_engine *e, const batch *b, const int32_t *seqs, float *logits, const volatile int32_t *cancel, pyllm_error *err);

/* metal_plan.c */
/* Whether the backend cannot run a step; why: the reason. */
int metal_refuses(const tape *t, const step *s, char *why, size_t bytes);
/* Commands of a step at most, floats of its scratch a row, and floats of a row's attention state in one part. */
int32_t metal_commands(const step *s);
int64_t metal_scratch_floats(const tape *t, const step *s);
int64_t metal_state_floats(const step *s);
/* Encodes the tape for p->shape. Takes memory only for pipelines that no plan has used before. */
int metal_encode(const pyllm_engine *e, metal_plan *p, pyllm_error *err);
#endif
