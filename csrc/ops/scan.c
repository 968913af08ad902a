/* Recurrent ops: shift, conv, wkv, wkv7, ssm, ssd, delta. One work item is a head or a block of values: it takes the batch's runs one after the other, and
 * the rows of a run in time, so that several runs of one sequence follow each other. The state before a run is never changed. */
#include "ops.h"

#include "../base/math.h"

#include <string.h>

enum { CONV_W = 1, CONV_BIAS, CONV_ACT };
enum { WKV_HEADS = 1, WKV_U, WKV_W, WKV_BY };
enum { WKV7_HEADS = 1, WKV7_K_K, WKV7_K_A, WKV7_R_K };
enum { SSM_STATES = 1, SSM_A, SSM_D };
enum { SSD_HEADS = 1, SSD_GROUPS, SSD_STATES, SSD_A, SSD_D };
enum { DELTA_HEADS = 1, DELTA_GROUPS, DELTA_A, DELTA_BIAS };
enum { BLOCK = 64, KERNEL_MAX = 16 };

typedef struct scan_job {
    const op_ctx *c;
    const step *s;
} scan_job;

static int run_items(const op_ctx *c, const step *s, pool_fn fn, int64_t items) {
    scan_job j = {c, s};
    return pool_run(c->pool, fn, &j, items, 1, c->cancel);
}

static int64_t width_of(const op_ctx *c, int32_t id) { return c->values[id].width; }

/* Copies n values of a state from `at` on to the place of the next one, or zeroes them where a sequence begins; returns that place. */
static float *begin_state(const op_ctx *c, const step *s, const run *u, int64_t at, int64_t n) {
    const float *old = state_before(c, s, u);
    float *new = state_after(c, s, u) + at;
    if (old) memcpy(new, old + at, (size_t)n * sizeof *new);
    else memset(new, 0, (size_t)n * sizeof *new);
    return new;
}

static int check_early(const op_check *c, const step *s) {
    for (int i = 0; i < s->n_in; i++)
        if (c->values[s->in[i]].late) return op_fail(c, s, "a recurrent step cannot stand after rows");
    return 0;
}

/* A vector of n values, or with n2 of n2. */
static int check_vector(const op_check *c, const step *s, int p, int64_t n, int64_t n2) {
    const param *v = &s->p[p];
    if (v->n != 1 || v->id[0] < 0) return op_fail(c, s, "a vector is missing");
    const weight *w = &c->weights[v->id[0]];
    return w->n == n || w->n == n2 ? 0 : op_fail(c, s, "%s has %lld values, not %lld", w->name, (long long)w->n, (long long)n);
}

static int check_width(const op_check *c, const step *s, int i, int64_t width) {
    const value *v = &c->values[s->in[i]];
    return v->width == width ? 0 : op_fail(c, s, "%s has a width of %lld, not %lld", v->name, (long long)v->width, (long long)width);
}

static const float *vector(const op_ctx *c, const step *s, int p) { return c->weights[s->p[p].id[0]].vec; }

/* ---- shift: the row before; state: the last row ---------------------------------------------------------------------------- */
int check_shift(const op_check *c, step *s) {
    TRY(check_early(c, s));
    s->state_floats = c->values[s->out[0]].width = c->values[s->in[0]].width;
    return 0;
}

static void shift_item(void *ctx, int64_t item, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    int64_t width = width_of(c, j->s->in[0]), at = item * BLOCK, n = width - at < BLOCK ? width - at : BLOCK;
    size_t bytes = (size_t)n * sizeof(float);
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        const float *x = value_ptr(c, j->s->in[0]) + u->row * width + at;
        float *y = value_ptr(c, j->s->out[0]) + u->row * width + at, *state = begin_state(c, j->s, u, at, n);
        memcpy(y, state, bytes);
        for (int32_t r = 1; r < u->n; r++) memcpy(y + r * width, x + (r - 1) * width, bytes);
        memcpy(state, x + (u->n - 1) * width, bytes);
    }
}

int run_shift(const op_ctx *c, const step *s) { return run_items(c, s, shift_item, (width_of(c, s->in[0]) + BLOCK - 1) / BLOCK); }

/* ---- conv: each value with its own last k ones; state: the last k - 1 rows, oldest first ---------------------------------------- */
int check_conv(const op_check *c, step *s) {
    int64_t width = c->values[s->in[0]].width;
    const param *w = &s->p[CONV_W], *bias = &s->p[CONV_BIAS];
    TRY(check_early(c, s));
    if (w->n != 1 || w->id[0] < 0 || c->weights[w->id[0]].n % width) return op_fail(c, s, "one vector of some values for each of %lld is needed", (long long)width);
    int64_t k = c->weights[w->id[0]].n / width;
    if (k < 2 || k > KERNEL_MAX) return op_fail(c, s, "convolutions over %lld rows cannot run, 2 to %d can", (long long)k, KERNEL_MAX);
    if (bias->n != 1 || (bias->id[0] >= 0 && c->weights[bias->id[0]].n != width)) return op_fail(c, s, "bias does not have the input's width");
    if (s->p[CONV_ACT].n && s->p[CONV_ACT].i[0] >= ACT_COUNT) return op_fail(c, s, "swiglu_oai needs two inputs");
    s->state_floats = (k - 1) * width;
    c->values[s->out[0]].width = width;
    return 0;
}

/* A block of values lies apart from others in the state: [block][k - 1][values of the block]. */
static void conv_item(void *ctx, int64_t item, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    int64_t width = width_of(c, j->s->in[0]), at = item * BLOCK, n = width - at < BLOCK ? width - at : BLOCK, k = c->weights[j->s->p[CONV_W].id[0]].n / width;
    const float *given = vector(c, j->s, CONV_W) + at * k;
    const param *act = &j->s->p[CONV_ACT];
    float w[KERNEL_MAX][BLOCK] = {{0}}, bias[BLOCK] = {0};
    for (int64_t i = 0; i < n; i++)
        for (int64_t l = 0; l < k; l++) w[l][i] = given[i * k + l];
    if (j->s->p[CONV_BIAS].id[0] >= 0) memcpy(bias, vector(c, j->s, CONV_BIAS) + at, (size_t)n * sizeof *bias);
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        const float *x = value_ptr(c, j->s->in[0]) + u->row * width + at;
        float *y = value_ptr(c, j->s->out[0]) + u->row * width + at, *state = begin_state(c, j->s, u, at * (k - 1), n * (k - 1));
        for (int32_t r = 0; r < u->n; r++, x += width, y += width) {
            float sum[BLOCK];
            memcpy(sum, bias, sizeof sum);
            for (int64_t l = 0; l < k; l++) {
                const float *row = l < k - 1 ? state + l * n : x;
                for (int64_t e = 0; e < n; e++) sum[e] = sum[e] + w[l][e] * row[e];
            }
            memmove(state, state + n, (size_t)((k - 2) * n) * sizeof *state);
            memcpy(state + (k - 2) * n, x, (size_t)n * sizeof *state);
            if (act->n) c->k->act((int)act->i[0], sum, y, n);
            else memcpy(y, sum, (size_t)n * sizeof *y);
        }
    }
}

int run_conv(const op_ctx *c, const step *s) { return run_items(c, s, conv_item, (width_of(c, s->in[0]) + BLOCK - 1) / BLOCK); }

/* ---- wkv: RWKV 5 and 6 ----------------------------------------------------------------------------------------------------- */
static int check_heads(const op_check *c, const step *s, int64_t *dim) {
    int64_t width = c->values[s->in[0]].width, heads = s->p[WKV_HEADS].i[0];
    TRY(check_early(c, s));
    if (heads < 1 || width % heads || width / heads > SCAN_MAX)
        return op_fail(c, s, "a width of %lld is not %lld heads of at most %d", (long long)width, (long long)heads, SCAN_MAX);
    for (int i = 1; i < s->n_in; i++) TRY(check_width(c, s, i, width));
    *dim = width / heads;
    return 0;
}

int check_wkv(const op_check *c, step *s) {
    int64_t width = c->values[s->in[0]].width, dim;
    const param *by = &s->p[WKV_BY];
    TRY(check_heads(c, s, &dim));
    TRY(check_vector(c, s, WKV_U, width, width));
    TRY(check_vector(c, s, WKV_W, width, width));
    if (by->n && (c->values[by->id[0]].width != width || c->values[by->id[0]].late)) return op_fail(c, s, "by does not have the input's shape");
    c->values[s->out[0]].width = width;
    s->state_floats = width * dim;
    return 0;
}

static void wkv_item(void *ctx, int64_t head, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    const param *by = &j->s->p[WKV_BY];
    int64_t width = width_of(c, j->s->in[0]), n = width / j->s->p[WKV_HEADS].i[0], at = head * n;
    float d[SCAN_MAX];
    memcpy(d, vector(c, j->s, WKV_W) + at, (size_t)n * sizeof *d);
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        float *state = begin_state(c, j->s, u, at * n, n * n);
        for (int64_t row = (int64_t)u->row * width + at; row < (int64_t)(u->row + u->n) * width; row += width) {
            for (int64_t e = 0; e < n && by->n; e++) d[e] = vector(c, j->s, WKV_W)[at + e] + value_ptr(c, by->id[0])[row + e];
            c->k->wkv(state, (int)n, value_ptr(c, j->s->in[0]) + row, value_ptr(c, j->s->in[1]) + row, value_ptr(c, j->s->in[2]) + row,
                      vector(c, j->s, WKV_U) + at, d, value_ptr(c, j->s->out[0]) + row);
        }
    }
}

int run_wkv(const op_ctx *c, const step *s) { return run_items(c, s, wkv_item, s->p[WKV_HEADS].i[0]); }

/* ---- wkv7: RWKV 7 ------------------------------------------------------------------------------------------------------------- */
int check_wkv7(const op_check *c, step *s) {
    int64_t width = c->values[s->in[0]].width, dim;
    TRY(check_heads(c, s, &dim));
    if (s->n_out != 2) return op_fail(c, s, "two outputs are needed");
    for (int p = WKV7_K_K; p <= WKV7_R_K; p++) TRY(check_vector(c, s, p, width, width));
    c->values[s->out[0]].width = c->values[s->out[1]].width = width;
    s->state_floats = width * dim;
    return 0;
}

static void wkv7_item(void *ctx, int64_t head, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int64_t width = width_of(c, s->in[0]), n = width / s->p[WKV7_HEADS].i[0], at = head * n;
    wkv7_args a = {.n = (int)n, .k_k = vector(c, s, WKV7_K_K) + at, .k_a = vector(c, s, WKV7_K_A) + at, .r_k = vector(c, s, WKV7_R_K) + at};
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        a.s = begin_state(c, s, u, at * n, n * n);
        for (int64_t row = (int64_t)u->row * width + at; row < (int64_t)(u->row + u->n) * width; row += width) {
            const float **in[] = {&a.r, &a.d, &a.k, &a.v, &a.a};
            for (int l = 0; l < 5; l++) *in[l] = value_ptr(c, s->in[l]) + row;
            a.y = value_ptr(c, s->out[0]) + row;
            a.bonus = value_ptr(c, s->out[1]) + row;
            c->k->wkv7(&a);
        }
    }
}

int run_wkv7(const op_ctx *c, const step *s) { return run_items(c, s, wkv7_item, s->p[WKV7_HEADS].i[0]); }

/* ---- ssm: Mamba; the state of a block of values: [states][values of the block] ----------------------------------------------------- */
int check_ssm(const op_check *c, step *s) {
    int64_t width = c->values[s->in[0]].width, n = s->p[SSM_STATES].i[0];
    TRY(check_early(c, s));
    if (n < 1 || n > SCAN_MAX) return op_fail(c, s, "%lld states cannot run, 1 to %d can", (long long)n, SCAN_MAX);
    TRY(check_width(c, s, 1, width));
    for (int i = 2; i < 4; i++) TRY(check_width(c, s, i, n));
    TRY(check_vector(c, s, SSM_A, width * n, width * n));
    TRY(check_vector(c, s, SSM_D, width, width));
    c->values[s->out[0]].width = width;
    s->state_floats = width * n;
    return 0;
}

size_t ssm_scratch_bytes(const step *s) { return sizeof(float) * BLOCK * (size_t)s->p[SSM_STATES].i[0]; }

static void ssm_item(void *ctx, int64_t item, int worker) {
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int64_t width = width_of(c, s->in[0]), n = s->p[SSM_STATES].i[0], at = item * BLOCK, p = width - at < BLOCK ? width - at : BLOCK;
    float *a = (float *)(c->scratch + (size_t)worker * c->scratch_bytes);
    const float *given = vector(c, s, SSM_A) + at * n;
    for (int64_t e = 0; e < p; e++)
        for (int64_t i = 0; i < n; i++) a[i * p + e] = given[e * n + i];
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        float *state = begin_state(c, s, u, at * n, p * n);
        for (int64_t r = u->row; r < u->row + u->n; r++) {
            int64_t row = r * width + at;
            c->k->ssm(state, a, (int)n, (int)p, value_ptr(c, s->in[0]) + row, value_ptr(c, s->in[1]) + row, value_ptr(c, s->in[2]) + r * n,
                      value_ptr(c, s->in[3]) + r * n, vector(c, s, SSM_D) + at, value_ptr(c, s->out[0]) + row);
        }
    }
}

int run_ssm(const op_ctx *c, const step *s) { return run_items(c, s, ssm_item, (width_of(c, s->in[0]) + BLOCK - 1) / BLOCK); }

/* ---- ssd: Mamba 2 ---------------------------------------------------------------------------------------------------------------- */
int check_ssd(const op_check *c, step *s) {
    int64_t heads = s->p[SSD_HEADS].i[0], groups = s->p[SSD_GROUPS].i[0], n = s->p[SSD_STATES].i[0], width = c->values[s->in[0]].width - 2 * groups * n;
    TRY(check_early(c, s));
    if (heads < 1 || heads > 65536 || groups < 1 || heads % groups || n < 1 || n > SCAN_MAX || width < 1 || width % heads || width / heads > SCAN_MAX)
        return op_fail(c, s, "%lld heads, %lld groups and %lld states do not fit a width of %lld", (long long)heads, (long long)groups, (long long)n,
                       (long long)c->values[s->in[0]].width);
    TRY(check_width(c, s, 1, heads));
    TRY(check_vector(c, s, SSD_A, heads, heads));
    TRY(check_vector(c, s, SSD_D, heads, heads));
    c->values[s->out[0]].width = width;
    s->state_floats = width * n;
    return 0;
}

static void ssd_item(void *ctx, int64_t head, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int64_t heads = s->p[SSD_HEADS].i[0], groups = s->p[SSD_GROUPS].i[0], n = s->p[SSD_STATES].i[0];
    int64_t all = width_of(c, s->in[0]), width = width_of(c, s->out[0]), p = width / heads, group = head / (heads / groups);
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        float *state = begin_state(c, s, u, head * p * n, p * n);
        for (int64_t r = u->row; r < u->row + u->n; r++) {
            const float *x = value_ptr(c, s->in[0]) + r * all, *b = x + width + group * n;
            c->k->ssd(state, (int)n, (int)p, x + head * p, value_ptr(c, s->in[1])[r * heads + head], vector(c, s, SSD_A)[head], b, b + groups * n,
                      vector(c, s, SSD_D)[head], value_ptr(c, s->out[0]) + r * width + head * p);
        }
    }
}

int run_ssd(const op_ctx *c, const step *s) { return run_items(c, s, ssd_item, s->p[SSD_HEADS].i[0]); }

/* ---- delta: gated delta nets; groups of heads share q and k ----------------------------------------------------------------------- */
int check_delta(const op_check *c, step *s) {
    int64_t heads = s->p[DELTA_HEADS].i[0], groups = s->p[DELTA_GROUPS].i[0], keys = c->values[s->in[0]].width, width = c->values[s->in[2]].width;
    TRY(check_early(c, s));
    if (heads < 1 || heads > 65536 || groups < 1 || heads % groups || keys % groups || keys / groups > SCAN_MAX || width % heads || width / heads > SCAN_MAX)
        return op_fail(c, s, "%lld heads and %lld groups do not fit widths of %lld and %lld", (long long)heads, (long long)groups, (long long)keys,
                       (long long)width);
    TRY(check_width(c, s, 1, keys));
    for (int i = 3; i < 5; i++) TRY(check_width(c, s, i, heads));
    TRY(check_vector(c, s, DELTA_A, heads, heads));
    TRY(check_vector(c, s, DELTA_BIAS, heads, heads));
    c->values[s->out[0]].width = width;
    s->state_floats = width * (keys / groups);
    return 0;
}

static void delta_item(void *ctx, int64_t head, int worker) {
    (void)worker;
    const scan_job *j = ctx;
    const op_ctx *c = j->c;
    const step *s = j->s;
    int64_t heads = s->p[DELTA_HEADS].i[0], groups = s->p[DELTA_GROUPS].i[0], keys = width_of(c, s->in[0]), width = width_of(c, s->in[2]);
    int64_t n = keys / groups, p = width / heads, at = head / (heads / groups) * n;
    float a = vector(c, s, DELTA_A)[head], bias = vector(c, s, DELTA_BIAS)[head];
    for (int32_t i = 0; i < c->b->n_runs; i++) {
        const run *u = &c->b->runs[i];
        float *state = begin_state(c, s, u, head * p * n, p * n);
        for (int64_t r = u->row; r < u->row + u->n; r++) {
            float g = a * softplus32(value_ptr(c, s->in[3])[r * heads + head] + bias), beta = sigmoid32(value_ptr(c, s->in[4])[r * heads + head]);
            c->k->delta(state, (int)n, (int)p, value_ptr(c, s->in[0]) + r * keys + at, value_ptr(c, s->in[1]) + r * keys + at,
                        value_ptr(c, s->in[2]) + r * width + head * p, g, beta, value_ptr(c, s->out[0]) + r * width + head * p);
        }
    }
}

int run_delta(const op_ctx *c, const step *s) { return run_items(c, s, delta_item, s->p[DELTA_HEADS].i[0]); }
