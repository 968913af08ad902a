/* The engine: sequences over a paged KV cache, run in ragged batches. All memory is taken at creation. */
#ifndef PYLLM_ENGINE_ENGINE_H
#define PYLLM_ENGINE_ENGINE_H
#include "model.h"

typedef struct metal_engine metal_engine;   /* metal.h */

typedef struct sequence {
    int alive;
    int64_t length;             /* tokens stored */
    int64_t *freed;             /* [groups] pages before this index went back behind the window */
    int32_t **pages;            /* [groups][max pages]: page of the group's pool, by position/PAGE */
} sequence;

struct pyllm_engine {
    pyllm_model *m;
    pyllm_engine_params params;
    pool *pool;
    pyllm_engine *owner;        /* whose pool this is; NULL: its own */
    int32_t lent;               /* engines that work with its pool */
    size_t l2_bytes;
    kv_layer *layers;           /* [n_layers] */
    kv_group *groups;           /* [n_groups] */
    int32_t n_groups;
    size_t *state_at;           /* [n_states] bytes in a page of the recurrent group */
    int64_t max_pages;          /* of one sequence */
    sequence *seqs;             /* [max_seqs] */
    float *activations;
    size_t activation_bytes;
    act_unit *act[2];
    size_t act_bytes[2];
    uint8_t *scratch;
    size_t scratch_bytes;
    int32_t *order;
    float *states;
    int64_t states_floats;
    double *profile;            /* caller's: seconds of each step of the tape; NULL: not wanted */
    double *const *observe;     /* caller's: sums of squares of each step's input; NULL: not wanted */
    int32_t first_step, last_step;  /* batches run [first_step, last_step) of the tape */
    const float *before;        /* caller's: values that are alive at first_step; NULL: first_step is 0 */
    float *after;               /* caller's: place for those at last_step; NULL: last_step is the tape's end */
    /* one batch */
    int64_t *pos;
    int32_t *logit_rows;
    run *runs;
    metal_engine *metal;        /* NULL: the CPU runs it */
    tape plan;                  /* the model's tape with this engine's activation offsets (values are its own) */
};

int engine_new(pyllm_model *m, const pyllm_engine_params *p, pyllm_engine **out, pyllm_error *err);
void engine_free(pyllm_engine *e);
int engine_share(pyllm_engine *e, pyllm_engine *other, pyllm_error *err);
int engine_plan(const tape *t, const pyllm_engine_params *p, int64_t *kv, int64_t *act, pyllm_error *err);
int32_t seq_new(pyllm_engine *e, pyllm_error *err);
void seq_free(pyllm_engine *e, int32_t s);
int64_t seq_length(const pyllm_engine *e, int32_t s);
int seq_truncate(pyllm_engine *e, int32_t s, int64_t n, pyllm_error *err);
int64_t engine_free_positions(const pyllm_engine *e);
int engine_step(pyllm_engine *e, int32_t n, const int32_t *tokens, const int32_t *seqs, const uint8_t *want, float *logits,
                const volatile int32_t *cancel, pyllm_error *err);
int engine_part(pyllm_engine *e, int32_t first, int32_t last, const float *before, float *after, pyllm_error *err);
int64_t engine_live(const pyllm_engine *e, int32_t step);
int64_t seq_save(const pyllm_engine *e, int32_t s, void *out, int64_t max, pyllm_error *err);
int seq_restore(pyllm_engine *e, int32_t s, const void *data, int64_t n, pyllm_error *err);

/* kv.c, with page lists as in pyllm.h */
/* layers, groups, state_at: [n_layers], [n_layers + 1], [n_states] places. */
int kv_layout(const tape *t, const pyllm_engine_params *p, kv_layer *layers, kv_group *groups, size_t *state_at, int32_t *n_groups,
              pyllm_error *err);
/* Pages for a run, positions [length, length + n) of a sequence in every group, or PYLLM_ERR_FULL and no change. The page that the first of them
   is written to is copied before if others hold it too. Sets from and to of the run, which begins at position `length`. */
int kv_reserve(pyllm_engine *e, sequence *s, int64_t n, run *u, pyllm_error *err);
/* The step of a run did not happen: the sequence is as before kv_reserve. Of several runs of a sequence the last one first. */
void kv_undo(pyllm_engine *e, sequence *s, const run *u);
/* It did: the state before the run is no longer needed. */
void kv_commit(pyllm_engine *e, sequence *s, const run *u);
/* Gives pages of positions >= n back. */
void kv_release_from(pyllm_engine *e, sequence *s, int64_t n, int64_t end);
/* Gives back the pages that no later position of a windowed group can see, nor one of the last `rewind`. */
void kv_release_behind(pyllm_engine *e, sequence *s);
/* Index of the first page that the next position still sees in a group. */
int64_t kv_first_page(const kv_group *g, int64_t length);
/* A free page, which now has one user. */
int32_t kv_new_page(kv_group *g);
/* One more, one less sequence holds a page that is not free. */
void kv_use(kv_group *g, int32_t page);
void kv_leave(kv_group *g, int32_t page);
/* NULL if there is no such sequence. */
sequence *seq_find(const pyllm_engine *e, int32_t s);
/* Free pages that a sequence leaves behind when it gives up its own, in one group. */
int64_t kv_own_pages(const kv_group *g, const int32_t *pages, int64_t first, int64_t end);

/* Zeroes a page's slots [from, PAGE). */
void kv_clear_page(const pyllm_engine *e, int32_t group, uint8_t *page, int from);

/* pages.c */
int seq_pages(const pyllm_engine *e, int32_t s, int64_t first, int64_t n, int32_t *pages, pyllm_error *err);
int seq_attach(pyllm_engine *e, int32_t s, int64_t length, const int32_t *pages, pyllm_error *err);
int seq_adopt(pyllm_engine *e, int32_t s, int64_t first, int64_t n, const int32_t *pages, pyllm_error *err);
int pages_keep(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err);
int pages_drop(pyllm_engine *e, const int32_t *pages, int64_t n, pyllm_error *err);
const void *seq_page(pyllm_engine *e, int32_t s, int32_t group, int64_t i, int64_t *bytes);
int seq_load(pyllm_engine *e, int32_t s, int64_t length, const char *path, const int64_t *offsets, const uint64_t *sums, pyllm_error *err);
int64_t pages_idle(const pyllm_engine *e, int32_t group, const int32_t *pages, int64_t n);
#endif
