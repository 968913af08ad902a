/* The tape as GPU commands: for each op the kernels (csrc/kernels/metal) that run it, and where commands must wait for others. */
#include "metal.h"

#include "../base/alloc.h"
#include "../kernels/metal/args.h"

#include <stdio.h>
#include <string.h>

enum { MATVEC_MAX = 8 };                /* rows up to which matrices are read for each row anew */
enum { LIVE_MAX = 128 };                /* ranges that are remembered between two barriers */
enum { HEAD_MAX = 256 };

typedef struct range {
    const metal_buffer *buffer;
    size_t begin, end;
    int writes;
} range;

typedef struct encoder {
    const pyllm_engine *e;
    const metal_engine *g;
    metal_plan *p;
    const step *s;
    metal_command *c;                   /* being made */
    range live[LIVE_MAX];               /* touched since the last barrier */
    int n_live, n_new;                  /* n_new: of the command being made, at the list's end */
    pyllm_error *err;
} encoder;

/* ---- what can run ---------------------------------------------------------------------------------------------------- */

static int is_op(const step *s, const char *name) { return !strcmp(s->op->name, name); }

static int has_type(uint32_t type) {
    static const uint8_t types[] = {QTYPE_F32, QTYPE_F16, QTYPE_BF16, QTYPE_Q4_0, QTYPE_Q4_1, QTYPE_Q5_0, QTYPE_Q5_1, QTYPE_Q8_0, QTYPE_Q4_K,
                                    QTYPE_Q5_K, QTYPE_Q6_K, QTYPE_IQ4_NL};
    for (size_t i = 0; i < sizeof types; i++)
        if (types[i] == type) return 1;
    return 0;
}

/* Ops that have kernels, and how many of their parameters these know: a step that has others cannot run. */
static const struct { const char *name; int known; } ops[] = {
    {"embed", 2}, {"angles", 2}, {"norm", 4}, {"layernorm", 4}, {"linear", 4}, {"rope", 7}, {"attn", ATTN_SINKS}, {"gated", 2}, {"glu", 1},
    {"act", 1}, {"rows", 0}, {"softcap", 1}, {"scale", 1}, {"add", 0},
};

int metal_refuses(const tape *t, const step *s, char *why, size_t bytes) {
    size_t op = 0;
    while (op < sizeof ops / sizeof *ops && !is_op(s, ops[op].name)) op++;
    *why = 0;
    if (op == sizeof ops / sizeof *ops) {
        snprintf(why, bytes, "there is no kernel for this op");
        return 1;
    }
    const char *key = s->op->params;                    /* "key:kind key?:kind ..." */
    for (int i = 0; i < PARAM_MAX && *key; i++, key += strcspn(key, " "), key += strspn(key, " "))
        if (i >= ops[op].known && s->p[i].n) snprintf(why, bytes, "no kernel knows its %.*s", (int)strcspn(key, "?:"), key);
    if (is_op(s, "rope") && s->n_in != 2) snprintf(why, bytes, "it turns queries alone");
    if (s->kv_stored) snprintf(why, bytes, "its keys and values are those of another layer");
    if (is_op(s, "attn") && s->p[ATTN_DIM].i[0] > HEAD_MAX) snprintf(why, bytes, "its heads have more than %d values", HEAD_MAX);
    for (int32_t i = 0; i < s->p[0].n && (is_op(s, "embed") || is_op(s, "linear") || is_op(s, "gated")); i++) {
        const weight *w = &t->weights[s->p[0].id[i]];
        if (!has_type(w->type)) snprintf(why, bytes, "there is no kernel for %s, the type of %.100s", qtype_get(w->type)->name, w->name);
        else if (w->k > INT32_MAX / 4 || w->n > INT32_MAX) snprintf(why, bytes, "%.100s is too large", w->name);
    }
    return *why != 0;
}

int32_t metal_commands(const step *s) {
    return is_op(s, "linear") ? s->n_out : is_op(s, "gated") || is_op(s, "attn") ? 3 : is_op(s, "rope") ? 2 : 1;
}

int64_t metal_scratch_floats(const tape *t, const step *s) { return is_op(s, "gated") ? t->weights[s->p[GATED_W].id[0]].n : 0; }

int64_t metal_state_floats(const step *s) { return is_op(s, "attn") ? s->p[ATTN_HEADS].i[0] * (s->p[ATTN_DIM].i[0] + 2) : 0; }

/* ---- commands ---------------------------------------------------------------------------------------------------------- */

/* The pipeline of a kernel: made when a plan first needs it, which engines do when they are made. */
static int pipeline(const encoder *n, const char *name, uint32_t threads, const metal_pipeline **out) {
    metal_model *m = n->g->m;
    int32_t i = 0;
    while (i < m->n_pipelines && strcmp(m->names[i], name)) i++;
    if (i == m->n_pipelines) {
        if (i == METAL_PIPELINES) return err_set(n->err, PYLLM_ERR_UNSUPPORTED, "the model needs more kernels than Metal plans hold");
        size_t bytes = strlen(name) + 1;
        char *copy = mem_alloc(bytes);
        if (!copy) return err_set(n->err, PYLLM_ERR_MEMORY, "out of memory while encoding the tape");
        memcpy(copy, name, bytes);
        int rc = metal_pipeline_new(m->device, name, threads, &m->pipelines[i], n->err);
        if (rc) {
            mem_free(copy);
            return rc;
        }
        m->names[m->n_pipelines++] = copy;
    }
    *out = m->pipelines[i];
    return 0;
}

/* Begins a command: kernel NAME or NAME_suffix. */
static int begin(encoder *n, const char *name, const char *suffix, uint32_t threads, const void *args, size_t bytes) {
    char full[64];
    snprintf(full, sizeof full, suffix ? "%s_%s" : "%s", name, suffix);
    n->c = &n->p->commands[n->p->n_commands];
    memset(n->c, 0, sizeof *n->c);
    n->c->threads = threads;
    n->c->argument_bytes = (int32_t)bytes;
    memcpy(n->c->arguments, args, bytes);
    n->n_new = 0;
    return pipeline(n, full, threads, &n->c->pipeline);
}

/* The next buffer of the command, bytes of it, and whether the kernel writes them. */
static void bind(encoder *n, const metal_buffer *b, size_t offset, size_t bytes, int writes) {
    n->c->buffers[n->c->n_buffers++] = (metal_bind){b, offset};
    if (b == n->g->input_buffer || b == n->g->tables) return;           /* no kernel writes these */
    if (n->n_live == LIVE_MAX) {                                         /* forget what was before this command */
        memmove(n->live, n->live + LIVE_MAX - n->n_new, (size_t)n->n_new * sizeof *n->live);
        n->n_live = n->n_new;
        n->c->barrier = 1;
    }
    n->live[n->n_live++] = (range){b, offset, offset + bytes, writes};
    n->n_new++;
}

/* Ends a command: it waits if it touches what one since the last barrier writes, or writes what one reads. */
static void end(encoder *n, int64_t x, int64_t y, int64_t z) {
    const range *mine = n->live + n->n_live - n->n_new;
    for (const range *a = n->live; a < mine; a++)
        for (const range *b = mine; b < n->live + n->n_live; b++)
            n->c->barrier |= a->buffer == b->buffer && a->begin < b->end && b->begin < a->end && (a->writes || b->writes);
    if (n->c->barrier) {
        memmove(n->live, mine, (size_t)n->n_new * sizeof *n->live);
        n->n_live = n->n_new;
    }
    n->c->grid[0] = (uint32_t)x;
    n->c->grid[1] = (uint32_t)y;
    n->c->grid[2] = (uint32_t)z;
    n->p->n_commands++;
}

static int64_t rows_of(const encoder *n, int32_t v) { return n->e->plan.values[v].late ? n->p->shape.n_logits : n->p->shape.n_rows; }

static void bind_value(encoder *n, int32_t id, int writes) {
    const value *v = &n->e->plan.values[id];
    size_t bytes = (size_t)(rows_of(n, id) * v->width) * sizeof(float);
    if (v->offset == SIZE_MAX) bind(n, n->g->logits_buffer, 0, bytes, writes);
    else bind(n, n->g->activations, v->offset * sizeof(float), bytes, writes);
}

/* The weight's window; NULL weight (-1): anything, which the kernel does not read. */
static void bind_weight(encoder *n, int32_t id) {
    if (id < 0) {
        bind(n, n->g->input_buffer, 0, 0, 0);
        return;
    }
    const weight *w = &n->e->m->t.weights[id];
    const metal_window *win = n->g->m->windows;
    while (w->offset < win->begin || w->offset + w->bytes > win->end) win++;
    n->c->buffers[n->c->n_buffers++] = (metal_bind){win->buffer, w->offset - win->begin};
}

/* Ints of the batch: 0 tokens, 1 positions, 2 sequences, 3 rows with logits, 4 tiles. */
static void bind_input(encoder *n, int which) {
    bind(n, n->g->input_buffer, (size_t)which * (size_t)n->e->params.max_rows * sizeof(int32_t), 0, 0);
}

static int64_t parts(int64_t n, int64_t size) { return (n + size - 1) / size; }

/* ---- ops --------------------------------------------------------------------------------------------------------------- */

/* One product into a value (out), or into scratch (-1). */
static int product(encoder *n, int32_t w, int32_t bias, int act, int32_t add, int32_t out) {
    const weight *m = &n->e->m->t.weights[w];
    int64_t rows = rows_of(n, n->s->in[0]);
    int few = rows <= MATVEC_MAX;
    metal_linear_args a = {.n = (int)m->n, .k = (int)m->k, .rows = (int)rows, .row_bytes = (int)weight_row_bytes(m), .has_bias = bias >= 0,
                           .has_add = add >= 0, .act = act};
    TRY(begin(n, few ? "matvec" : "matmul", qtype_get(m->type)->name, 128, &a, sizeof a));
    bind_weight(n, w);
    bind_value(n, n->s->in[0], 0);
    bind_weight(n, bias);
    if (add >= 0) bind_value(n, add, 0);
    else bind_weight(n, -1);
    if (out >= 0) bind_value(n, out, 1);
    else bind(n, n->g->scratch_buffer, 0, (size_t)(rows * m->n) * sizeof(float), 1);
    end(n, few ? parts(m->n, 16) : parts(m->n, 64), few ? rows : parts(rows, 32), 1);
    return 0;
}

static int encode_linear(encoder *n) {
    const param *p = n->s->p;
    for (int32_t i = 0; i < n->s->n_out; i++)
        TRY(product(n, p[LINEAR_W].id[i], p[LINEAR_BIAS].id[i], p[LINEAR_ACT].n ? (int)p[LINEAR_ACT].i[0] : -1,
                    p[LINEAR_ADD].n ? p[LINEAR_ADD].id[0] : -1, n->s->out[i]));
    return 0;
}

static int encode_gated(encoder *n) {
    const param *p = n->s->p;
    int32_t out = n->s->out[0];
    int64_t width = n->e->plan.values[out].width, all = rows_of(n, out) * width;
    TRY(product(n, p[GATED_W].id[0], -1, -1, -1, out));
    TRY(product(n, p[GATED_W].id[1], -1, -1, -1, -1));
    metal_map_args a = {.n = (int)all, .act = (int)p[GATED_ACT].i[0], .width = (int)width, .gate_width = (int)width};
    TRY(begin(n, "glu", NULL, 256, &a, sizeof a));
    bind_value(n, out, 0);
    bind(n, n->g->scratch_buffer, 0, (size_t)all * sizeof(float), 0);
    bind_value(n, out, 1);
    end(n, parts(all, 256), 1, 1);
    return 0;
}

static int encode_embed(encoder *n) {
    const weight *w = &n->e->m->t.weights[n->s->p[EMBED_W].id[0]];
    metal_embed_args a = {.width = (int)w->k, .row_bytes = (int)weight_row_bytes(w), .scale = n->s->p[EMBED_SCALE].f};
    TRY(begin(n, "embed", qtype_get(w->type)->name, 32, &a, sizeof a));
    bind_weight(n, n->s->p[EMBED_W].id[0]);
    bind_input(n, 0);
    bind_value(n, n->s->out[0], 1);
    end(n, parts(w->k, 512), n->p->shape.n_rows, 1);
    return 0;
}

static int encode_angles(encoder *n) {
    int32_t t = n->s->p[ANGLES_TABLE].id[0];
    metal_angles_args a = {.n = (int)n->e->m->t.tables[t].n, .mscale = n->s->p[ANGLES_MSCALE].f};
    TRY(begin(n, "angles", NULL, 32, &a, sizeof a));
    bind(n, n->g->input_buffer, (size_t)n->g->table_offset[t] * sizeof(float), 0, 0);
    bind_input(n, 1);
    bind_value(n, n->s->out[0], 1);
    end(n, parts(a.n, 32), n->p->shape.n_rows, 1);
    return 0;
}

static int encode_norm(encoder *n) {
    int layer = is_op(n->s, "layernorm");
    const param *p = n->s->p, *groups = &p[layer ? LAYERNORM_GROUPS : NORM_GROUPS];
    int64_t width = n->e->plan.values[n->s->in[0]].width, count = groups->n ? groups->i[0] : 1;
    int32_t bias = layer ? p[LAYERNORM_BIAS].id[0] : -1, add = !layer && p[NORM_ADD].n ? p[NORM_ADD].id[0] : -1;
    metal_norm_args a = {.n = (int)(width / count), .parts = (int)count, .shared = n->e->m->t.weights[p[0].id[0]].n != width || count == 1,
                         .has_bias = bias >= 0, .has_add = add >= 0, .eps = p[layer ? LAYERNORM_EPS : NORM_EPS].f};
    TRY(begin(n, n->s->op->name, NULL, 128, &a, sizeof a));
    bind_value(n, n->s->in[0], 0);
    bind_weight(n, p[0].id[0]);
    if (add >= 0) bind_value(n, add, 0);
    else bind_weight(n, bias);
    bind_value(n, n->s->out[0], 1);
    end(n, count, rows_of(n, n->s->in[0]), 1);
    return 0;
}

static int encode_rope(encoder *n) {
    const param *p = n->s->p;
    for (int i = 0; i < 2; i++) {
        metal_rope_args a = {.heads = (int)p[ROPE_HEADS].i[i], .dim = (int)p[ROPE_DIM].i[0], .rot = (int)p[ROPE_ROT].i[0],
                             .neox = (int)p[ROPE_NEOX].i[0], .has_norm = p[ROPE_NORM].id[i] >= 0, .eps = p[ROPE_EPS].f};
        TRY(begin(n, "rope", NULL, 32, &a, sizeof a));
        bind_value(n, n->s->in[i], 0);
        bind_value(n, p[ROPE_ANGLES].id[0], 0);
        bind_weight(n, p[ROPE_NORM].id[i]);
        bind_value(n, n->s->out[i], 1);
        end(n, a.heads, n->p->shape.n_rows, 1);
    }
    return 0;
}

static const char *kv_name(const encoder *n) { return n->e->params.kv_type == KV_F32 ? "f32" : n->e->params.kv_type == KV_F16 ? "f16" : "q8_0"; }

static void bind_pool(encoder *n, const kv_layer *l, int writes) {
    const kv_group *k = &n->e->groups[l->group];
    bind(n, n->g->tables, 0, 0, 0);
    bind(n, n->g->pools[l->group], 0, k->page_bytes * (size_t)k->n_pages, writes);
}

static int attend(encoder *n, const kv_layer *l, metal_attn_args *a) {
    int32_t *in = (int32_t *)n->s->in, out = n->s->out[0], tiles = n->p->shape.n_tiles, splits = n->p->shape.splits;
    char suffix[32];
    snprintf(suffix, sizeof suffix, "%s_%d", kv_name(n), l->dim <= 64 ? 64 : l->dim <= 128 ? 128 : 256);
    size_t states = (size_t)n->p->shape.n_rows * (size_t)splits * (size_t)metal_state_floats(n->s) * sizeof(float);
    TRY(begin(n, tiles ? "attn_prefill" : "attn_decode", suffix, 128, a, sizeof *a));
    bind_value(n, in[0], 0);
    bind_input(n, 1);
    bind_input(n, 2);
    if (tiles) bind_input(n, 4);
    bind_pool(n, l, 0);
    if (splits > 1) bind(n, n->g->scratch_buffer, n->g->states_offset, states, 1);
    else bind_value(n, out, 1);
    end(n, a->heads, tiles ? tiles : n->p->shape.n_rows, splits);
    if (splits == 1) return 0;
    TRY(begin(n, "attn_merge", NULL, 32, a, sizeof *a));
    bind(n, n->g->scratch_buffer, n->g->states_offset, states, 0);
    bind_value(n, out, 1);
    end(n, a->heads, n->p->shape.n_rows, 1);
    return 0;
}

static int encode_attn(encoder *n) {
    const param *p = n->s->p;
    const kv_layer *l = &n->e->layers[p[ATTN_LAYER].i[0]];
    const kv_group *k = &n->e->groups[l->group];
    metal_attn_args a = {.heads = (int)p[ATTN_HEADS].i[0], .kv_heads = l->kv_heads, .dim = l->dim, .page_bytes = (int)k->page_bytes,
                         .layer_offset = (int)l->offset, .k_bytes = (int)l->k_bytes, .max_pages = (int)n->e->max_pages,
                         .n_groups = n->e->n_groups, .group = l->group, .window = (int)p[ATTN_WINDOW].i[0], .splits = n->p->shape.splits,
                         .scale = p[ATTN_SCALE].f, .softcap = p[ATTN_SOFTCAP].f};
    TRY(begin(n, "kv_store", kv_name(n), 32, &a, sizeof a));
    bind_value(n, n->s->in[1], 0);
    bind_value(n, n->s->in[2], 0);
    bind_input(n, 1);
    bind_input(n, 2);
    bind_pool(n, l, 1);
    end(n, a.kv_heads, n->p->shape.n_rows, 1);
    return attend(n, l, &a);
}

/* rows, and all that is element by element. */
static int encode_map(encoder *n) {
    const step *s = n->s;
    int64_t width = n->e->plan.values[s->out[0]].width, all = rows_of(n, s->out[0]) * width;
    metal_map_args a = {.n = (int)all, .width = (int)width, .gate_width = (int)n->e->plan.values[s->in[0]].width};
    if (is_op(s, "glu") || is_op(s, "act")) a.act = (int)s->p[0].i[0];
    if (is_op(s, "scale") || is_op(s, "softcap")) a.by = s->p[0].f;
    TRY(begin(n, s->op->name, NULL, 256, &a, sizeof a));
    for (int32_t i = 0; i < s->n_in; i++) bind_value(n, s->in[i], 0);
    if (is_op(s, "rows")) bind_input(n, 3);
    bind_value(n, s->out[0], 1);
    end(n, parts(all, 256), 1, 1);
    return 0;
}

int metal_encode(const pyllm_engine *e, metal_plan *p, pyllm_error *err) {
    encoder n = {.e = e, .g = e->metal, .p = p, .err = err};
    p->n_commands = 0;
    for (int32_t i = 0; i < e->m->t.n_steps; i++) {
        const step *s = n.s = &e->m->t.steps[i];
        if (!p->shape.n_logits && e->plan.values[s->out[0]].late) continue;
        TRY(is_op(s, "linear") ? encode_linear(&n) : is_op(s, "gated") ? encode_gated(&n) : is_op(s, "embed") ? encode_embed(&n)
            : is_op(s, "angles") ? encode_angles(&n) : is_op(s, "norm") || is_op(s, "layernorm") ? encode_norm(&n)
            : is_op(s, "rope") ? encode_rope(&n) : is_op(s, "attn") ? encode_attn(&n) : encode_map(&n));
    }
    return 0;
}
