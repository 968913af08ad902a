/* Operations: matrices and batches in, matrices out. Ops know no architecture and no tensor format; they call kernels.
 *
 * A value is f32 [T, width], row-major. Weights are packed matrices or f32 vectors. Sequences exist only inside attn and the recurrent ops,
 * through the batch's runs. */
#ifndef PYLLM_OPS_H
#define PYLLM_OPS_H
#include "../base/err.h"
#include "../base/threads.h"
#include "../formats/gguf.h"
#include "../kernels/kernels.h"

enum { OP_MAX = 6, PARAM_MAX = 10 };

/* A matrix (packed, n rows of k) or a vector (f32, n elements) that the tape names, possibly a slice of a tensor. */
typedef struct weight {
    char *name;                 /* of the tensor */
    int64_t row0, n, k;         /* first row (element) of the slice; rows (elements); row length (vectors: 0) */
    int64_t stack;              /* matrices of n/stack rows each, one after the other: 1, or the experts of a layer */
    int64_t slice_end;          /* as the tape says it; -1: the whole tensor */
    int64_t tensor;             /* index in the file */
    uint32_t type;
    int is_vector;
    int embed, multiply;        /* uses by row (embed, positions) and in products */
    int raw;                    /* rows lie in memory as in the file, not in packed groups: for a GPU */
    size_t group_bytes, bytes;  /* of a packed group (raw: of 16 rows); of all data in memory (0: rows are read from the file) */
    size_t offset;              /* in the model's weight memory */
    const uint8_t *packed;
    int is_own;                 /* packed is memory of its own, not part of the model's */
    const float *vec;
} weight;

typedef struct value {
    char name[32];
    int64_t width;
    int late;                   /* after `rows` or `pool`: only rows with logits */
    int32_t first, last;        /* steps that write it and read it last */
    size_t offset;              /* floats, in the activation buffer; SIZE_MAX: the caller's logits */
} value;

typedef struct table {
    char name[32];
    int64_t n;
    float *f;
} table;

typedef struct param {
    int32_t n;                  /* entries of a list; 0 = absent */
    int32_t id[OP_MAX];         /* weights (-1 absent), values or tables */
    int64_t i[OP_MAX];
    float f;
} param;

struct op_def;
typedef struct step {
    const struct op_def *op;
    int32_t line, n_out, n_in;
    int32_t out[OP_MAX], in[OP_MAX];
    param p[PARAM_MAX];
    int64_t state_floats;       /* of one sequence; ops without state: 0 */
    int32_t kv_stored;          /* attn: a step before it has stored these keys and values */
} step;

/* The KV cache as attn sees it. A layer's page: kv_heads times K then V (kernels.h), at `offset` of its group's page. v_bytes 0: the values are
   the first v_dim of each key and are not stored. */
typedef struct kv_layer {
    int32_t group;              /* layer group: layers with the same window */
    int32_t kv_heads, dim, v_dim;
    size_t offset, k_bytes, v_bytes;
} kv_layer;

typedef struct kv_group {
    int64_t window;             /* 0: every position */
    int recurrent;              /* a page is the state of all recurrent steps after one token; window is 2: a row sees that of the row before it */
    size_t page_bytes;
    int32_t n_pages;
    uint8_t *pool;
    int32_t *free_pages, n_free;
    int32_t *users;             /* [n_pages] sequences that hold the page; 0 and not kept: it is in free_pages */
    uint8_t *kept;              /* [n_pages] stays when no sequence holds it (pyllm_pages_keep) */
    int32_t n_idle;             /* pages that are kept and have no user */
} kv_group;

/* Consecutive batch rows of one sequence, at consecutive positions. */
typedef struct run {
    int32_t row, n;
    int64_t pos;
    const int32_t *const *pages;    /* [group][position/PAGE] -> page of the group's pool */
    int32_t from, to;               /* pages of the recurrent state before (-1: the sequence begins) and after the run */
} run;

typedef struct batch {
    int32_t n_rows, n_logits, n_runs;
    const int32_t *tokens;
    const int64_t *pos;
    const int32_t *logit_rows;      /* [n_logits] batch rows */
    const run *runs;
} batch;

/* Parameters in the order of their rows in ops.def, where others than the op look at them: the KV cache is laid out by attention's, other backends
   encode steps. */
enum { EMBED_W, EMBED_SCALE };
enum { ANGLES_TABLE, ANGLES_MSCALE };
enum { NORM_W, NORM_EPS, NORM_GROUPS, NORM_ADD };
enum { LAYERNORM_W, LAYERNORM_BIAS, LAYERNORM_EPS, LAYERNORM_GROUPS };
enum { STATE };                     /* of every op with state: its number */
enum { LINEAR_W, LINEAR_BIAS, LINEAR_ACT, LINEAR_ADD };
enum { ROPE_ANGLES, ROPE_HEADS, ROPE_DIM, ROPE_ROT, ROPE_NEOX, ROPE_NORM, ROPE_EPS };
enum { GATED_W, GATED_ACT };
enum { ATTN_LAYER, ATTN_HEADS, ATTN_KV_HEADS, ATTN_DIM, ATTN_SCALE, ATTN_WINDOW, ATTN_SOFTCAP, ATTN_SINKS, ATTN_CAUSAL, ATTN_VALUES };

/* All a runner needs for one step of one batch. */
typedef struct op_ctx {
    const kernels *k;
    pool *pool;
    size_t l2_bytes;                /* of a core */
    const volatile int32_t *cancel;
    const weight *weights;
    const value *values;
    const table *tables;
    float *activations, *logits;
    const batch *b;
    int kv_type;
    const kv_layer *layers;
    const kv_group *groups, *states_group;      /* the latter NULL: no recurrent steps */
    const size_t *state_at;         /* [states] bytes in a page of states_group */
    const pyllm_gguf *file;         /* embeddings that are not kept in memory */
    act_unit *act[2];               /* quantized input: blocks of 32, of 256 */
    uint8_t *scratch;               /* scratch_bytes a worker */
    size_t scratch_bytes;
    int32_t *order;                 /* of rows by expert: op_order_ints */
    float *states;                  /* attention states of split chunks */
    int64_t states_floats;
    pyllm_error *err;
} op_ctx;

/* What a checker sees: the parsed tape so far. Checkers set the widths of their outputs. */
typedef struct op_check {
    const weight *weights;
    value *values;
    const table *tables;
    pyllm_error *err;
} op_check;

typedef struct op_def {
    const char *name, *params;
    int max_out, n_in;
    int (*check)(const op_check *c, step *s);
    int (*run)(const op_ctx *c, const step *s);
} op_def;

const op_def *op_find(const char *name, size_t len);

/* Scratch that one worker may need for a step, and the floats of split attention states. */
size_t op_scratch_bytes(const weight *weights, const value *values, const step *s);
/* Rows that a step's products quantize for each row of the batch, one in a panel (0: panels of PANEL rows, or nothing); entries of op_ctx.order. */
int64_t op_single_rows(const weight *weights, const value *values, const step *s);
int64_t op_order_ints(const weight *weights, const value *values, const step *s, int64_t rows);
/* Width of the values of a kv head, and whether they are the keys' own first ones. */
int64_t attn_v_dim(const step *s);
int attn_v_is_k(const step *s);
int64_t attn_states_floats(const step *s, int64_t n_positions, int32_t max_rows);

/* Adds the squares of a step's input [rows, width] to sums [width]; where each row goes to some matrices of a stack, to sums
   [matrices][width of one + 1], whose last column counts the rows. */
void op_add_squares(const op_ctx *c, const step *s, double *sums);

/* Rows of the batch that a value has. */
static inline int32_t value_rows(const op_ctx *c, int32_t id) { return c->values[id].late ? c->b->n_logits : c->b->n_rows; }
static inline float *value_ptr(const op_ctx *c, int32_t id) {
    return c->values[id].offset == SIZE_MAX ? c->logits : c->activations + c->values[id].offset;
}
/* A recurrent step's state before a run, NULL where the sequence begins, and the place for that after it, which nobody else reads before the step
   is over. Runs of one sequence follow each other in the batch, each from where the one before it ended. */
static inline const float *state_before(const op_ctx *c, const step *s, const run *u) {
    if (u->from < 0) return NULL;
    return (const float *)(c->states_group->pool + (size_t)u->from * c->states_group->page_bytes + c->state_at[s->p[STATE].i[0]]);
}
static inline float *state_after(const op_ctx *c, const step *s, const run *u) {
    return (float *)(c->states_group->pool + (size_t)u->to * c->states_group->page_bytes + c->state_at[s->p[STATE].i[0]]);
}
int op_fail(const op_check *c, const step *s, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
#endif
