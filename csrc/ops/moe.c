/* Mixtures of experts: route chooses experts for every row; moe_gated and moe_down multiply each row by the matrices of its experts, which lie
 * in stacks (expert e has rows [e*n, (e+1)*n)). headwise multiplies each head of every row by the head's own matrix.
 *
 * Pairs (row, choice) are sorted by expert, so that an expert's weights are read once a step, for all rows that chose it. Inputs are quantized row by
 * row, once; a work item gathers the rows of an expert into panels of PANEL. A work item of moe_gated is a block of one expert's output groups; one
 * of moe_down a block of columns, for which it adds all experts in ascending order; one of headwise a block of one head's output groups. */
#include "product.h"

enum { ROUTE_K, ROUTE_GATE, ROUTE_RENORM, ROUTE_SCALE, ROUTE_BIAS, ROUTE_GROUPS };
enum { MOE_W, MOE_BIAS, MOE_ACT, MOE_ADD = MOE_ACT };
enum { GATE_SOFTMAX, GATE_SIGMOID, GATE_CHOSEN, GATES };      /* softmax of all, sigmoid of each, softmax of those that are chosen */
enum { LIMIT_EXPERTS = 4096, LIMIT_CHOICES = 64 };
/* Rows of a panel and output groups of an item: where many rows share an expert and the level has a wide kernel, more rows and fewer groups. */
enum { WIDE_ROWS = 64, BLOCK_GROUPS = 32, WIDE_GROUPS = 8, TILE = PANEL * BLOCK_GROUPS > WIDE_ROWS * WIDE_GROUPS ? PANEL * BLOCK_GROUPS : WIDE_ROWS * WIDE_GROUPS };

/* ---- route --------------------------------------------------------------------------------------------------------------- */

int check_route(const op_check *c, step *s) {
    int64_t experts = c->values[s->in[0]].width, k = s->p[ROUTE_K].i[0];
    int32_t bias = s->p[ROUTE_BIAS].id[0];
    if (experts > LIMIT_EXPERTS || k < 1 || k > experts || k > LIMIT_CHOICES) return op_fail(c, s, "%lld of %lld experts", (long long)k, (long long)experts);
    if (s->p[ROUTE_GATE].i[0] >= GATES || s->p[ROUTE_RENORM].i[0] > 1) return op_fail(c, s, "gate and renorm are out of range");
    if (s->p[ROUTE_BIAS].n != 1 || (bias >= 0 && c->weights[bias].n != experts)) return op_fail(c, s, "the bias does not have the experts' number");
    const param *g = &s->p[ROUTE_GROUPS];
    if (g->n) {
        int64_t size = g->n == 3 && g->i[0] > 0 ? experts / g->i[0] : 0;
        if (!size || experts % g->i[0] || g->i[1] < 1 || g->i[1] > g->i[0] || g->i[1] * size < k || g->i[2] < 1 || g->i[2] > size)
            return op_fail(c, s, "groups are not a division of %lld experts from which %lld can be chosen", (long long)experts, (long long)k);
    }
    c->values[s->out[0]].width = 2 * k;
    return 0;
}

typedef struct route_job { const op_ctx *c; const step *s; } route_job;

/* Marks the k largest of n values that are not marked (ties: the lower number). */
static void mark_largest(const float *x, int64_t n, int64_t k, uint8_t *marked) {
    for (int64_t i = 0; i < k; i++) {
        int64_t best = 0;
        while (marked[best]) best++;
        for (int64_t e = best + 1; e < n; e++)
            if (!marked[e] && x[e] > x[best]) best = e;
        marked[best] = 1;
    }
}

/* Only experts of the best groups may be chosen: the others are marked. g: groups, how many may be chosen from, how many of a group's largest
   ranks make its own, as their sum. */
static void mark_other_groups(const param *g, const float *rank, int64_t n, uint8_t *chosen) {
    float value[LIMIT_EXPERTS];
    uint8_t best[LIMIT_EXPERTS] = {0};
    int64_t size = n / g->i[0];
    for (int64_t at = 0; at < n; at += size) {
        uint8_t counted[LIMIT_EXPERTS] = {0};
        value[at / size] = 0;
        mark_largest(rank + at, size, g->i[2], counted);
        for (int64_t e = 0; e < size; e++)
            if (counted[e]) value[at / size] += rank[at + e];
    }
    mark_largest(value, g->i[0], g->i[1], best);
    for (int64_t e = 0; e < n; e++) chosen[e] = !best[e / size];
}

/* out: the numbers of the k experts with the largest scores (ties: the lower number), ascending, then their weights. */
static void route_row(void *ctx, int64_t r, int worker) {
    const route_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int64_t n = c->values[s->in[0]].width;
    int k = (int)s->p[ROUTE_K].i[0], gate = (int)s->p[ROUTE_GATE].i[0];
    int32_t bias = s->p[ROUTE_BIAS].id[0];
    const float *x = value_ptr(c, s->in[0]) + r * n;
    float *out = value_ptr(c, s->out[0]) + r * 2 * k, *weights = out + k;
    float *score = (float *)(c->scratch + (size_t)worker * c->scratch_bytes), *rank = score + n;
    if (gate == GATE_SOFTMAX) c->k->softmax(x, score, n);
    else if (gate == GATE_SIGMOID) c->k->act(ACT_SIGMOID, x, score, n);
    else memcpy(score, x, (size_t)n * 4);
    for (int64_t e = 0; e < n; e++) rank[e] = bias < 0 ? score[e] : score[e] + c->weights[bias].vec[e];
    uint8_t barred[LIMIT_EXPERTS] = {0}, chosen[LIMIT_EXPERTS];
    if (s->p[ROUTE_GROUPS].n) mark_other_groups(&s->p[ROUTE_GROUPS], rank, n, barred);
    memcpy(chosen, barred, sizeof chosen);
    mark_largest(rank, n, k, chosen);
    int at = 0;
    for (int64_t e = 0; e < n; e++)
        if (chosen[e] > barred[e]) {
            out[at] = (float)e;
            weights[at++] = score[e];
        }
    if (gate == GATE_CHOSEN) c->k->softmax(weights, weights, k);
    float sum = 0, scale = s->p[ROUTE_SCALE].f;
    for (int i = 0; i < k; i++) sum += weights[i];
    for (int i = 0; i < k; i++) {
        if (s->p[ROUTE_RENORM].i[0]) weights[i] /= sum;
        weights[i] *= scale;
    }
}

int run_route(const op_ctx *c, const step *s) {
    route_job j = {c, s};
    return pool_run(c->pool, route_row, &j, value_rows(c, s->in[0]), 1, c->cancel);
}

/* ---- shared by moe_gated and moe_down ------------------------------------------------------------------------------------ */

/* in: x of `width` values for every pair (moe_down) or row (moe_gated), then the choices. */
static int check_moe(const op_check *c, const step *s, int64_t width, int n_matrices) {
    const param *w = &s->p[MOE_W], *bias = &s->p[MOE_BIAS];
    const value *x = &c->values[s->in[0]], *choices = &c->values[s->in[1]];
    TRY(check_matrices(c, s, w, width, 1));
    if (w->n != n_matrices || bias->n != n_matrices) return op_fail(c, s, "%d matrices and biases are needed", n_matrices);
    if (x->late != choices->late || choices->width % 2 || choices->width / 2 > LIMIT_CHOICES) return op_fail(c, s, "%s and %s do not belong together", x->name, choices->name);
    for (int i = 0; i < n_matrices; i++) {
        const weight *m = &c->weights[w->id[i]];
        if (m->n / m->stack % GROUP)
            return err_set(c->err, PYLLM_ERR_UNSUPPORTED, "tensor %s: experts of %lld rows cannot run, only of multiples of %d", m->name,
                           (long long)(m->n / m->stack), GROUP);
        if (bias->id[i] >= 0 && c->weights[bias->id[i]].n != m->n) return op_fail(c, s, "bias %d does not fit its matrix", i);
    }
    return 0;
}

typedef struct moe_job {
    const op_ctx *c;
    const weight *w[2];
    const float *bias[2];       /* or NULL */
    const float *x, *choices, *add;
    float *y;
    int k, act, per_pair;       /* choices a row; per_pair: x has a row for every pair */
    int panel;                  /* rows of a panel at most */
    int64_t rows, n;            /* rows of the batch; output values of an expert */
    int64_t n_active, block, blocks;
    const int32_t *active, *first, *pairs;      /* experts with pairs; expert -> where its pairs begin (one more entry); pairs by expert */
} moe_job;

static int32_t expert_of(const moe_job *j, int64_t row, int i, int64_t experts) {
    float e = j->choices[row * 2 * j->k + i];
    return e >= 0 && e < (float)experts ? (int32_t)e : 0;
}

/* Sorts the pairs by expert, within one by row. */
static void sort_pairs(moe_job *j, int64_t experts) {
    int32_t *first = j->c->order, *active = first + experts + 1, *pairs = active + experts;
    memset(first, 0, (size_t)(experts + 1) * sizeof *first);
    for (int64_t r = 0; r < j->rows; r++)
        for (int i = 0; i < j->k; i++) first[expert_of(j, r, i, experts) + 1]++;
    j->n_active = 0;
    for (int64_t e = 0; e < experts; e++) {
        if (first[e + 1]) active[j->n_active++] = (int32_t)e;
        first[e + 1] += first[e];
    }
    for (int64_t r = j->rows - 1; r >= 0; r--)          /* backwards, each expert from its end: first[e + 1] ends as where e's pairs begin */
        for (int i = j->k - 1; i >= 0; i--) pairs[--first[expert_of(j, r, i, experts) + 1]] = (int32_t)(r * j->k + i);
    memmove(first, first + 1, (size_t)experts * sizeof *first);
    first[experts] = (int32_t)(j->rows * j->k);
    j->first = first;
    j->active = active;
    j->pairs = pairs;
}

static moe_job begin(const op_ctx *c, const step *s, int per_pair) {
    const param *w = &s->p[MOE_W], *bias = &s->p[MOE_BIAS];
    const weight *m = &c->weights[w->id[0]];
    moe_job j = {.c = c, .x = value_ptr(c, s->in[0]), .choices = value_ptr(c, s->in[1]), .y = value_ptr(c, s->out[0]),
                 .k = (int)c->values[s->in[1]].width / 2, .per_pair = per_pair, .rows = value_rows(c, s->in[0]), .n = m->n / m->stack};
    for (int i = 0; i < w->n; i++) {
        j.w[i] = &c->weights[w->id[i]];
        j.bias[i] = bias->id[i] < 0 ? NULL : c->weights[bias->id[i]].vec;
    }
    sort_pairs(&j, m->stack);
    int wide = j.n_active && j.rows * j.k / j.n_active > PANEL;         /* that many rows an expert, in the mean */
    for (int i = 0; i < w->n; i++) wide &= !!c->k->matmul_wide[j.w[i]->type];
    j.panel = wide ? WIDE_ROWS : PANEL;
    return j;
}

/* About four items a worker at least, of STREAM_BYTES at most where nothing is read twice, of half the L2 cache elsewhere. */
static void plan(moe_job *j, int64_t experts_an_item, size_t matrices) {
    int64_t groups = j->n / GROUP, fair = groups * (j->n_active / experts_an_item) / (4 * pool_size(j->c->pool));
    size_t bytes = j->w[0]->group_bytes * matrices;
    int64_t fit = (int64_t)((j->rows > 1 ? j->c->l2_bytes / 2 : STREAM_BYTES) / bytes), b = fair < fit ? fair : fit;
    int64_t least = j->panel == PANEL ? 1 : 2, most = j->panel == PANEL ? BLOCK_GROUPS : WIDE_GROUPS;       /* wide kernels take two groups at a time */
    b = b / least * least;
    j->block = b < least ? least : b > most ? most : b;
    j->blocks = (groups + j->block - 1) / j->block;
}

/* The panel of m pairs: their quantized rows side by side (kernels.h), or their floats. `own` is scratch for it. */
static const void *gather(const moe_job *j, const weight *w, const int32_t *pairs, int m, uint8_t *own) {
    int act = qtype_get(w->type)->act;
    size_t row = act == 1 ? (size_t)w->k * sizeof(float) : act_panel_bytes(w->k, 1);
    const uint8_t *x = act == 1 ? (const uint8_t *)j->x : (const uint8_t *)j->c->act[act == 256];
    for (int i = 0; i < m; i++) {
        const uint8_t *from = x + (size_t)(j->per_pair ? pairs[i] : pairs[i] / j->k) * row;
        if (m == 1) return from;
        if (act == 1) {
            memcpy(own + (size_t)i * row, from, row);
        } else {
            const act_unit *units = (const act_unit *)from;
            for (int64_t u = 0; u < (w->k + 255) / 256; u++) ((act_unit *)own)[u * m + i] = units[u];
        }
    }
    return own;
}

static int kernel_panel(const moe_job *j, int m) { return j->panel > PANEL && m > PANEL ? WIDE_PANEL : PANEL; }

static void add_bias(float *y, const float *bias, int64_t n) {
    for (int64_t i = 0; i < n && bias; i++) y[i] += bias[i];
}

static uint8_t *scratch_of(const moe_job *j, int worker, float **tile) {
    uint8_t *own = j->c->scratch + (size_t)worker * j->c->scratch_bytes;
    *tile = (float *)own;
    return own + 2 * sizeof(float) * TILE * GROUP;
}

size_t moe_scratch_bytes(const weight *w) {
    size_t row = (size_t)w->k * sizeof(float), units = act_panel_bytes(w->k, 1);
    return 2 * sizeof(float) * TILE * GROUP + WIDE_ROWS * units + PANEL * row;
}

void headwise_add_squares(const op_ctx *c, const step *s, double *sums) {
    const weight *w = &c->weights[s->p[MOE_W].id[0]];
    const float *x = value_ptr(c, s->in[0]);
    for (int64_t p = 0; p < value_rows(c, s->in[0]) * w->stack; p++, x += w->k) {
        double *mine = sums + p % w->stack * (w->k + 1);
        for (int64_t i = 0; i < w->k; i++) mine[i] += (double)x[i] * x[i];
        mine[w->k]++;
    }
}

void moe_add_squares(const op_ctx *c, const step *s, double *sums) {
    moe_job j = begin(c, s, c->values[s->in[0]].width != c->weights[s->p[MOE_W].id[0]].k);
    int64_t width = j.w[0]->k;
    for (int64_t a = 0; a < j.n_active; a++)
        for (int32_t p = j.first[j.active[a]]; p < j.first[j.active[a] + 1]; p++) {
            const float *x = j.x + (j.per_pair ? j.pairs[p] : j.pairs[p] / j.k) * width;
            double *mine = sums + j.active[a] * (width + 1);
            for (int64_t i = 0; i < width; i++) mine[i] += (double)x[i] * x[i];
            mine[width]++;
        }
}

/* ---- moe_gated ----------------------------------------------------------------------------------------------------------- */

int check_moe_gated(const op_check *c, step *s) {
    TRY(check_moe(c, s, c->values[s->in[0]].width, 2));
    const weight *gate = &c->weights[s->p[MOE_W].id[0]], *up = &c->weights[s->p[MOE_W].id[1]];
    if (gate->n != up->n) return op_fail(c, s, "gate and up differ in shape");
    c->values[s->out[0]].width = c->values[s->in[1]].width / 2 * (gate->n / gate->stack);
    return 0;
}

static void gated_item(void *ctx, int64_t item, int worker) {
    const moe_job *j = ctx;
    int32_t e = j->active[item / j->blocks], end = j->first[e + 1];
    int64_t at = item % j->blocks * j->block * GROUP, n = j->n - at < j->block * GROUP ? j->n - at : j->block * GROUP, row0 = e * j->n + at;
    float *gate;
    uint8_t *own = scratch_of(j, worker, &gate);
    float *up = gate + TILE * GROUP;
    for (int32_t p = j->first[e]; p < end; p += j->panel) {
        int m = end - p < j->panel ? end - p : j->panel;
        const void *a = gather(j, j->w[0], j->pairs + p, m, own);
        multiply(j->c, j->w[0], kernel_panel(j, m), a, m, row0, n / GROUP, gate, n);
        if (qtype_get(j->w[0]->type)->act != qtype_get(j->w[1]->type)->act) a = gather(j, j->w[1], j->pairs + p, m, own);
        multiply(j->c, j->w[1], kernel_panel(j, m), a, m, row0, n / GROUP, up, n);
        for (int i = 0; i < m; i++) {
            add_bias(gate + i * n, j->bias[0] ? j->bias[0] + row0 : NULL, n);
            add_bias(up + i * n, j->bias[1] ? j->bias[1] + row0 : NULL, n);
            j->c->k->gated(j->act, gate + i * n, up + i * n, j->y + j->pairs[p + i] * j->n + at, n);
        }
    }
}

int run_moe_gated(const op_ctx *c, const step *s) {
    moe_job j = begin(c, s, 0);
    j.act = (int)s->p[MOE_ACT].i[0];
    plan(&j, 1, 2);
    TRY(quantize_rows(c, &s->p[MOE_W], j.x, j.rows, j.w[0]->k, 1));
    return pool_run(c->pool, gated_item, &j, j.n_active * j.blocks, 1, c->cancel);
}

/* ---- moe_down ------------------------------------------------------------------------------------------------------------ */

int check_moe_down(const op_check *c, step *s) {
    const param *add = &s->p[MOE_ADD];
    int64_t k = c->values[s->in[1]].width / 2, width = c->values[s->in[0]].width;
    if (k < 1 || width % k) return op_fail(c, s, "the input is not one vector for each of %lld choices", (long long)k);
    TRY(check_moe(c, s, width / k, 1));
    const weight *w = &c->weights[s->p[MOE_W].id[0]];
    int64_t n = w->n / w->stack;
    if (add->n && (c->values[add->id[0]].width != n || c->values[add->id[0]].late != c->values[s->in[0]].late))
        return op_fail(c, s, "add=%s does not have the output's shape", c->values[add->id[0]].name);
    c->values[s->out[0]].width = n;
    return 0;
}

static void down_item(void *ctx, int64_t item, int worker) {
    const moe_job *j = ctx;
    int64_t at = item * j->block * GROUP, n = j->n - at < j->block * GROUP ? j->n - at : j->block * GROUP;
    float *tile;
    uint8_t *own = scratch_of(j, worker, &tile);
    for (int64_t r = 0; r < j->rows; r++) memset(j->y + r * j->n + at, 0, (size_t)n * 4);
    for (int64_t a = 0; a < j->n_active; a++) {
        int32_t e = j->active[a], end = j->first[e + 1];
        for (int32_t p = j->first[e]; p < end; p += j->panel) {
            int m = end - p < j->panel ? end - p : j->panel;
            const void *x = gather(j, j->w[0], j->pairs + p, m, own);
            multiply(j->c, j->w[0], kernel_panel(j, m), x, m, e * j->n + at, n / GROUP, tile, n);
            for (int i = 0; i < m; i++) {
                int32_t row = j->pairs[p + i] / j->k, choice = j->pairs[p + i] % j->k;
                float by = j->choices[row * 2 * j->k + j->k + choice], *y = j->y + row * j->n + at, *t = tile + i * n;
                add_bias(t, j->bias[0] ? j->bias[0] + e * j->n + at : NULL, n);
                for (int64_t o = 0; o < n; o++) y[o] += t[o] * by;
            }
        }
    }
    for (int64_t r = 0; r < j->rows && j->add; r++)
        for (int64_t o = at; o < at + n; o++) j->y[r * j->n + o] += j->add[r * j->n + o];
}

int run_moe_down(const op_ctx *c, const step *s) {
    moe_job j = begin(c, s, 1);
    if (s->p[MOE_ADD].n) j.add = value_ptr(c, s->p[MOE_ADD].id[0]);
    plan(&j, j.n_active, 1);
    TRY(quantize_rows(c, &s->p[MOE_W], j.x, j.rows * j.k, j.w[0]->k, 1));
    return pool_run(c->pool, down_item, &j, j.blocks, 1, c->cancel);
}

/* ---- headwise ------------------------------------------------------------------------------------------------------------ */

int check_headwise(const op_check *c, step *s) {
    const param *w = &s->p[MOE_W];
    if (w->n != 1 || w->id[0] < 0) return op_fail(c, s, "one stack of matrices is needed");
    const weight *m = &c->weights[w->id[0]];
    if (m->stack > LIMIT_EXPERTS) return op_fail(c, s, "%lld heads are more than %d", (long long)m->stack, LIMIT_EXPERTS);
    TRY(check_matrices(c, s, w, c->values[s->in[0]].width / m->stack, 1));
    if (c->values[s->in[0]].width != m->k * m->stack) return op_fail(c, s, "the input is not %lld heads of %lld", (long long)m->stack, (long long)m->k);
    if (m->n / m->stack % GROUP)
        return err_set(c->err, PYLLM_ERR_UNSUPPORTED, "tensor %s: heads of %lld rows cannot run, only of multiples of %d", m->name,
                       (long long)(m->n / m->stack), GROUP);
    c->values[s->out[0]].width = m->n;
    return 0;
}

static void headwise_item(void *ctx, int64_t item, int worker) {
    const moe_job *j = ctx;
    int64_t heads = j->n_active, e = item / j->blocks, at = item % j->blocks * j->block * GROUP;
    int64_t n = j->n - at < j->block * GROUP ? j->n - at : j->block * GROUP;
    float *tile;
    uint8_t *own = scratch_of(j, worker, &tile);
    for (int64_t r = 0; r < j->rows; r += j->panel) {
        int32_t pairs[WIDE_ROWS];
        int m = (int)(j->rows - r < j->panel ? j->rows - r : j->panel);
        for (int i = 0; i < m; i++) pairs[i] = (int32_t)((r + i) * heads + e);
        multiply(j->c, j->w[0], kernel_panel(j, m), gather(j, j->w[0], pairs, m, own), m, e * j->n + at, n / GROUP,
                 j->y + pairs[0] * j->n + at, heads * j->n);
    }
}

int run_headwise(const op_ctx *c, const step *s) {
    const weight *w = &c->weights[s->p[MOE_W].id[0]];
    moe_job j = {.c = c, .w = {w}, .x = value_ptr(c, s->in[0]), .y = value_ptr(c, s->out[0]), .per_pair = 1, .rows = value_rows(c, s->in[0]),
                 .n = w->n / w->stack, .n_active = w->stack};
    j.panel = j.rows > PANEL && c->k->matmul_wide[w->type] ? WIDE_ROWS : PANEL;
    plan(&j, 1, 1);
    TRY(quantize_rows(c, &s->p[MOE_W], j.x, j.rows * w->stack, w->k, 1));
    return pool_run(c->pool, headwise_item, &j, j.n_active * j.blocks, 1, c->cancel);
}
