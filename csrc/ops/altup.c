/* Row-wise ops of models that keep several versions of their hidden state (AltUp, arXiv:2301.13310) and cut weak activations off: blend, match,
   cutoff. One work item is one row; plain C, the same on every level. */
#include "ops.h"

#include <string.h>

enum { BLEND_PARTS, BLEND_PLUS, BLEND_FROM, BLEND_BY };
enum { LANES = 16 };

typedef struct row_job {
    const op_ctx *c;
    const step *s;
} row_job;

static int run_each_row(const op_ctx *c, const step *s, pool_fn fn) {
    row_job j = {c, s};
    return pool_run(c->pool, fn, &j, value_rows(c, s->in[0]), 1, c->cancel);
}

/* Sum of (x - m)^power in double, power 1 or 2: 16 partial sums, then by halves. */
static double sum_of(const float *x, int64_t n, double m, int power) {
    double s[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            double d = (double)x[i + l] - m;
            s[l] += power == 2 ? d * d : d;
        }
    for (int l = 0; i + l < n; l++) {
        double d = (double)x[i + l] - m;
        s[l] += power == 2 ? d * d : d;
    }
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) s[l] += s[l + half];
    return s[0];
}

/* ---- blend: of each part of x: x + the sum over the parts of z of (plus + by) * z ------------------------------------------ */
int check_blend(const op_check *c, step *s) {
    const value *x = &c->values[s->in[0]], *z = &c->values[s->in[1]];
    const param *from = &s->p[BLEND_FROM], *by = &s->p[BLEND_BY];
    int64_t parts = s->p[BLEND_PARTS].i[0];
    if (parts < 1 || x->width % parts || z->width % (x->width / parts) || x->late != z->late)
        return op_fail(c, s, "%s and %s are not parts of one width", x->name, z->name);
    if (from->n && from->i[0] >= parts) return op_fail(c, s, "there is no part %lld", (long long)from->i[0]);
    if (by->n && (c->values[by->id[0]].width != parts * (z->width / (x->width / parts)) || c->values[by->id[0]].late != x->late))
        return op_fail(c, s, "by is not one number for each part of both inputs");
    c->values[s->out[0]].width = x->width;
    return 0;
}

static void blend_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const step *s = j->s;
    int64_t parts = s->p[BLEND_PARTS].i[0], width = j->c->values[s->in[0]].width, n = width / parts, others = j->c->values[s->in[1]].width / n;
    const float *x = value_ptr(j->c, s->in[0]) + r * width, *z = value_ptr(j->c, s->in[1]) + r * others * n;
    const float *by = s->p[BLEND_BY].n ? value_ptr(j->c, s->p[BLEND_BY].id[0]) + r * parts * others : NULL;
    float *out = value_ptr(j->c, s->out[0]) + r * width;
    memcpy(out, x, (size_t)width * 4);
    for (int64_t i = s->p[BLEND_FROM].n ? s->p[BLEND_FROM].i[0] : 0; i < parts; i++)
        for (int64_t k = 0; k < others; k++) {
            float *restrict y = out + i * n, f = s->p[BLEND_PLUS].f;
            const float *restrict other = z + k * n;
            if (by) f = f + by[i * others + k];
            for (int64_t d = 0; d < n; d++) y[d] = y[d] + f * other[d];
        }
}

int run_blend(const op_ctx *c, const step *s) { return run_each_row(c, s, blend_row); }

/* ---- match: of each part of z, as wide as x: z times rms(x) / rms(z) ------------------------------------------------------- */
int check_match(const op_check *c, step *s) {
    const value *z = &c->values[s->in[0]], *x = &c->values[s->in[1]];
    if (z->width % x->width || z->late != x->late) return op_fail(c, s, "%s is not parts as wide as %s", z->name, x->name);
    c->values[s->out[0]].width = z->width;
    return 0;
}

static void match_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    const step *s = j->s;
    int64_t width = j->c->values[s->in[0]].width, n = j->c->values[s->in[1]].width;
    const float *z = value_ptr(j->c, s->in[0]) + r * width;
    float *y = value_ptr(j->c, s->out[0]) + r * width;
    double want = __builtin_sqrt(sum_of(value_ptr(j->c, s->in[1]) + r * n, n, 0, 2) / (double)n), least = (double)s->p[0].f;
    for (int64_t at = 0; at < width; at += n) {
        double square = sum_of(z + at, n, 0, 2) / (double)n;
        float f = (float)(want / __builtin_sqrt(square < least ? least : square));
        for (int64_t i = 0; i < n; i++) y[at + i] = z[at + i] * f;
    }
}

int run_match(const op_ctx *c, const step *s) { return run_each_row(c, s, match_row); }

/* ---- cutoff: max(x - (mean x + by * standard deviation of x), 0) -------------------------------------------------------------- */
int check_cutoff(const op_check *c, step *s) {
    c->values[s->out[0]].width = c->values[s->in[0]].width;
    return 0;
}

static void cutoff_row(void *ctx, int64_t r, int worker) {
    (void)worker;
    const row_job *j = ctx;
    int64_t n = j->c->values[j->s->in[0]].width;
    const float *x = value_ptr(j->c, j->s->in[0]) + r * n;
    float *y = value_ptr(j->c, j->s->out[0]) + r * n;
    double mean = sum_of(x, n, 0, 1) / (double)n;
    float least = (float)(mean + (double)j->s->p[0].f * __builtin_sqrt(sum_of(x, n, mean, 2) / (double)n));
    for (int64_t i = 0; i < n; i++) {
        float d = x[i] - least;
        y[i] = d < 0 ? 0 : d;
    }
}

int run_cutoff(const op_ctx *c, const step *s) { return run_each_row(c, s, cutoff_row); }
