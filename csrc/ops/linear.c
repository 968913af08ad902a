/* Matrix products: linear (1 to 3 matrices that share one input) and gated (act(gate x) * (up x)).
 *
 * The input is quantized once per block size that the weights ask for, in panels of PANEL rows, or of WIDE_PANEL where all those weights have
 * a kernel for that. A work item is a block of output groups for a few panels, or a wide one. Items of one block follow each other, so a worker's block stays in its L2 cache while panel after panel comes by:
 * the larger the block, the fewer times all panels are read. */
#include "product.h"

enum {
    WIDE_LEAST = 13,                /* rows from which a wide panel is faster than two others (docs/performance.md) */
    BLOCK_GROUPS_MAX = 32,
    WIDE_GROUPS_MAX = 8,            /* the same for wide panels */
    ITEM_PANELS = 4
};

int check_matrices(const op_check *c, const step *s, const param *w, int64_t width, int stacks) {
    for (int i = 0; i < w->n; i++) {
        if (w->id[i] < 0) return op_fail(c, s, "matrix %d is missing", i);
        const weight *m = &c->weights[w->id[i]];
        const qtype_info *t = qtype_get(m->type);
        if (m->k != width)
            return op_fail(c, s, "%s takes %lld values, its input has %lld", m->name, (long long)m->k, (long long)width);
        if (stacks ? m->stack != c->weights[w->id[0]].stack : m->stack != 1)
            return op_fail(c, s, "%s is a stack of %lld matrices", m->name, (long long)m->stack);
        if (!t || !t->act)
            return err_set(c->err, PYLLM_ERR_UNSUPPORTED, "tensor %s is %s, which cannot be multiplied\n"
                           "hint: requantize the model to a type with a matmul kernel, for example q4_k or q8_0",
                           m->name, t ? t->name : "of an unknown type");
    }
    return 0;
}

int check_linear(const op_check *c, step *s) {
    const param *w = &s->p[LINEAR_W], *bias = &s->p[LINEAR_BIAS], *add = &s->p[LINEAR_ADD];
    TRY(check_matrices(c, s, w, c->values[s->in[0]].width, 0));
    if (s->p[LINEAR_ACT].i[0] >= ACT_COUNT) return op_fail(c, s, "swiglu_oai needs two inputs");
    if (w->n != s->n_out || bias->n != s->n_out) return op_fail(c, s, "%d outputs, %d matrices, %d biases", s->n_out, w->n, bias->n);
    for (int i = 0; i < w->n; i++) {
        int64_t n = c->weights[w->id[i]].n;
        c->values[s->out[i]].width = n;
        if (bias->id[i] >= 0 && c->weights[bias->id[i]].n != n)
            return op_fail(c, s, "bias %s has %lld values, not %lld", c->weights[bias->id[i]].name,
                           (long long)c->weights[bias->id[i]].n, (long long)n);
    }
    if (add->n) {
        const value *z = &c->values[add->id[0]];
        if (w->n != 1 || z->width != c->values[s->out[0]].width || z->late != c->values[s->in[0]].late)
            return op_fail(c, s, "add=%s does not have the output's shape", z->name);
    }
    return 0;
}

int check_gated(const op_check *c, step *s) {
    const param *w = &s->p[GATED_W];
    TRY(check_matrices(c, s, w, c->values[s->in[0]].width, 0));
    if (w->n != 2 || c->weights[w->id[0]].n != c->weights[w->id[1]].n)
        return op_fail(c, s, "gate and up must be two matrices of one shape");
    c->values[s->out[0]].width = c->weights[w->id[0]].n;
    return 0;
}

/* ---- quantized inputs -------------------------------------------------------------------------------------------- */

/* Rows of a panel of the input of matrices w. */
static int panel_rows(const op_ctx *c, const param *w, int64_t rows) {
    int wide = rows >= WIDE_LEAST;
    for (int i = 0; i < w->n; i++) wide &= !!c->k->matmul_wide[c->weights[w->id[i]].type];
    return wide ? WIDE_PANEL : PANEL;
}

typedef struct quantize_job {
    const op_ctx *c;
    const float *x;
    int64_t k, rows, slices;    /* slices: items of a panel, each some units of all its rows */
    int block, panel;
    act_unit *dst;
} quantize_job;

static void quantize_panel(void *ctx, int64_t item, int worker) {
    (void)worker;
    const quantize_job *j = ctx;
    int64_t r = item / j->slices * j->panel, units = (j->k + 255) / 256;
    int64_t unit = item % j->slices * units / j->slices, end = (item % j->slices + 1) * units / j->slices;
    int m = (int)(j->rows - r < j->panel ? j->rows - r : j->panel);
    int64_t n = (end * 256 < j->k ? end * 256 : j->k) - unit * 256;
    j->c->k->quantize_act(j->x + r * j->k + unit * 256, j->k, m, n, j->block, j->dst + r * units + unit * m);
}

int quantize_rows(const op_ctx *c, const param *w, const float *x, int64_t rows, int64_t k, int panel) {
    int done[2] = {0, 0};
    for (int i = 0; i < w->n; i++) {
        int act = qtype_get(c->weights[w->id[i]].type)->act;
        if (act == 1 || done[act == 256]) continue;
        done[act == 256] = 1;
        quantize_job j = {c, x, k, rows, panel == WIDE_PANEL ? (k + 255) / 256 : 1, act, panel, c->act[act == 256]};
        TRY(pool_run(c->pool, quantize_panel, &j, (rows + panel - 1) / panel * j.slices, panel < PANEL ? PANEL : 1, c->cancel));
    }
    return 0;
}

static int quantize_input(const op_ctx *c, const step *s, const param *w) {
    int64_t rows = value_rows(c, s->in[0]);
    return quantize_rows(c, w, value_ptr(c, s->in[0]), rows, c->values[s->in[0]].width, panel_rows(c, w, rows));
}

/* ---- products ---------------------------------------------------------------------------------------------------- */

typedef struct product {
    const weight *w;
    const float *bias;          /* or NULL */
    float *y;                   /* [rows, w->n] */
    int panel;                  /* rows of a panel of the input */
    int64_t block;              /* groups of a work item */
    int64_t parts, item_rows;   /* items of a block, each for so many rows */
    int64_t items;
} product;

typedef struct linear_job {
    const op_ctx *c;
    const float *x, *add;       /* add: [rows, n] or NULL */
    int64_t rows;
    int n, act;                 /* act: -1 = none */
    product p[OP_MAX];
} linear_job;

/* Groups of an item: about four items a worker at least; with several panels half of the L2 cache at most. Wide kernels take two at a time. */
static int64_t block_groups(const op_ctx *c, const product *p, int64_t rows) {
    int64_t groups = (p->w->n + GROUP - 1) / GROUP, fair = groups * p->parts / (4 * pool_size(c->pool));
    int64_t fit = (int64_t)((rows > PANEL ? c->l2_bytes / 2 : STREAM_BYTES) / p->w->group_bytes), b = fair < fit ? fair : fit;
    int64_t least = p->panel == PANEL ? 1 : 2, most = p->panel == PANEL ? BLOCK_GROUPS_MAX : WIDE_GROUPS_MAX;
    b = b / least * least;
    return b < least ? least : b > most ? most : b;
}

static void plan_product(product *p, const op_ctx *c, const step *s, int i, int64_t rows) {
    const param *w = &s->p[0];
    p->w = &c->weights[w->id[i]];
    p->panel = panel_rows(c, w, rows);
    p->item_rows = p->panel == PANEL ? ITEM_PANELS * PANEL : p->panel;
    p->parts = (rows + p->item_rows - 1) / p->item_rows;
    p->block = block_groups(c, p, rows);
    p->items = ((p->w->n + GROUP - 1) / GROUP + p->block - 1) / p->block * p->parts;
}

/* The panel of the input that begins with `row`: quantized, or as floats where the matrix wants these. */
static const void *panel_at(const op_ctx *c, const weight *w, const float *x, int64_t row) {
    int act = qtype_get(w->type)->act;
    return act == 1 ? (const void *)(x + row * w->k) : (const void *)(c->act[act == 256] + row * ((w->k + 255) / 256));
}

/* What an item computes: `n` output rows from `first` on, `groups` groups, for the input rows [row, end). */
typedef struct item_range { int64_t first, n, groups, row, end; } item_range;

static item_range item_of(const product *p, int64_t item, int64_t rows) {
    item_range t = {.first = item / p->parts * p->block * GROUP, .row = item % p->parts * p->item_rows};
    t.n = p->w->n - t.first < p->block * GROUP ? p->w->n - t.first : p->block * GROUP;
    t.groups = (t.n + GROUP - 1) / GROUP;
    t.end = rows - t.row < p->item_rows ? rows : t.row + p->item_rows;
    return t;
}

static void linear_item(void *ctx, int64_t item, int worker) {
    (void)worker;
    const linear_job *j = ctx;
    int i = 0;
    while (item >= j->p[i].items) item -= j->p[i++].items;
    const product *p = &j->p[i];
    item_range t = item_of(p, item, j->rows);
    int64_t ld = p->w->n;
    for (int64_t r = t.row; r < t.end; r += p->panel) {
        int m = (int)(t.end - r < p->panel ? t.end - r : p->panel);
        float *y = p->y + r * ld + t.first;
        multiply(j->c, p->w, p->panel, panel_at(j->c, p->w, j->x, r), m, t.first, t.groups, y, ld);
        for (int q = 0; q < m && (p->bias || j->act >= 0 || j->add); q++) {
            float *yq = y + q * ld;
            if (p->bias)
                for (int64_t o = 0; o < t.n; o++) yq[o] += p->bias[t.first + o];
            if (j->act >= 0) j->c->k->act(j->act, yq, yq, t.n);
            if (j->add) {
                const float *z = j->add + (r + q) * ld + t.first;
                for (int64_t o = 0; o < t.n; o++) yq[o] += z[o];
            }
        }
    }
}

int run_linear(const op_ctx *c, const step *s) {
    const param *w = &s->p[LINEAR_W];
    linear_job j = {.c = c, .x = value_ptr(c, s->in[0]), .rows = value_rows(c, s->in[0]), .n = w->n,
                    .act = s->p[LINEAR_ACT].n ? (int)s->p[LINEAR_ACT].i[0] : -1};
    if (s->p[LINEAR_ADD].n) j.add = value_ptr(c, s->p[LINEAR_ADD].id[0]);
    int64_t items = 0;
    for (int i = 0; i < w->n; i++) {
        int32_t bias = s->p[LINEAR_BIAS].id[i];
        j.p[i].bias = bias < 0 ? NULL : c->weights[bias].vec;
        j.p[i].y = value_ptr(c, s->out[i]);
        plan_product(&j.p[i], c, s, i, j.rows);
        items += j.p[i].items;
    }
    TRY(quantize_input(c, s, w));
    return pool_run(c->pool, linear_item, &j, items, 1, c->cancel);
}

static void gated_item(void *ctx, int64_t item, int worker) {
    const linear_job *j = ctx;
    const op_ctx *c = j->c;
    const product *p = &j->p[0];
    item_range t = item_of(p, item, j->rows);
    int64_t ld = p->w->n;
    float *up = (float *)(c->scratch + (size_t)worker * c->scratch_bytes);      /* [panel, groups*16] */
    for (int64_t r = t.row; r < t.end; r += p->panel) {
        int m = (int)(t.end - r < p->panel ? t.end - r : p->panel);
        float *y = p->y + r * ld + t.first;
        multiply(c, p->w, p->panel, panel_at(c, p->w, j->x, r), m, t.first, t.groups, y, ld);
        multiply(c, j->p[1].w, p->panel, panel_at(c, j->p[1].w, j->x, r), m, t.first, t.groups, up, t.groups * GROUP);
        for (int q = 0; q < m; q++) c->k->gated(j->act, y + q * ld, up + q * t.groups * GROUP, y + q * ld, t.n);
    }
}

int run_gated(const op_ctx *c, const step *s) {
    const param *w = &s->p[GATED_W];
    linear_job j = {.c = c, .x = value_ptr(c, s->in[0]), .rows = value_rows(c, s->in[0]), .n = 2, .act = (int)s->p[GATED_ACT].i[0]};
    j.p[0].y = value_ptr(c, s->out[0]);
    for (int i = 0; i < 2; i++) plan_product(&j.p[i], c, s, i, j.rows);
    product *p = &j.p[0];                   /* the two matrices of an item share the cache */
    int64_t groups = (p->w->n + GROUP - 1) / GROUP;
    p->block = p->block < j.p[1].block ? p->block : j.p[1].block;
    if (p->panel == PANEL && j.rows > PANEL && p->block > 1) p->block /= 2;
    p->items = (groups + p->block - 1) / p->block * p->parts;
    TRY(quantize_input(c, s, w));
    return pool_run(c->pool, gated_item, &j, j.p[0].items, 1, c->cancel);
}

size_t gated_scratch_bytes(void) {
    int narrow = PANEL * BLOCK_GROUPS_MAX, wide = WIDE_PANEL * WIDE_GROUPS_MAX;
    return (size_t)(narrow > wide ? narrow : wide) * GROUP * sizeof(float);
}
