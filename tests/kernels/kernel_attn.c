/* KV pages and attention: every level against the reference, and the reference against double. */
#include "kernel_test.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char *const kv_names[KV_TYPES] = {"f32", "f16", "q8_0", "q4_0"};
static const int dims[] = {16, 32, 48, 64, 96, 128, 256};
enum { DIMS = sizeof dims / sizeof *dims, PAGES = CHUNK / PAGE };

/* Dims that q4_0 rotates together, of a multiple of 32. */
static int span(int dim) { return dim % 64 ? 32 : 64; }
static int fits(int type, int dim) { return !kv_quantized(type) || dim % 32 == 0; }

static const char *slot_of(const char *kernel, int type) {
    static char slot[64];
    snprintf(slot, sizeof slot, "%s_%s", kernel, kv_names[type]);
    return slot;
}

/* ---- storing ------------------------------------------------------------------------------------------------------------- */

static void store_case(int type, int is_v, int dim, int slot, int fill) {
    float *x = scratch(0, (size_t)dim * sizeof *x);
    size_t bytes = kv_page_bytes(type, dim);
    uint8_t *before = scratch(1, bytes);
    fill_floats(x, dim, fill);
    for (size_t i = 0; i < bytes; i++) before[i] = (uint8_t)rnd();
    for (case_begin(slot_of(is_v ? "kv_store_v" : "kv_store_k", type), "dim=%d slot=%d, %s", dim, slot, fill_names[fill]); run_next();) {
        uint8_t *page = guard_inout(before, bytes);
        (is_v ? run.k->kv_store_v : run.k->kv_store_k)[type](guard_in(x, (size_t)dim * sizeof *x), dim, page, slot);
        if (type == KV_F32) check_bytes("page", page, (int64_t)bytes);
        else {                  /* NaN as f16: one payload for all of them */
            uint16_t *h = (uint16_t *)page;
            int64_t n = type == KV_F16 ? (int64_t)bytes / 2 : 0, block = 16 + (type == KV_Q8_0 ? 256 : 128);
            for (int64_t i = 0; i < n; i++) h[i] = (h[i] & 0x7fff) > 0x7c00 ? 0x7e00 : h[i];
            for (int64_t b = 0; kv_quantized(type) && b < dim / 32; b++)
                for (int i = 0; i < 16; i++) {
                    uint16_t *d = is_v ? h + b * 16 + i : h + b * block + i;
                    *d = (*d & 0x7fff) > 0x7c00 ? 0x7e00 : *d;
                }
            check_bytes("page", page, (int64_t)bytes);
        }
    }
}

/* Values taken out of keys are those that would have been stored: every byte of a page that all slots of were written to. */
static void values_case(int type, int dim, int v_dim) {
    float x[256];
    size_t k_bytes = kv_page_bytes(type, dim), v_bytes = kv_page_bytes(type, v_dim);
    uint8_t *k = scratch(1, k_bytes), *want = scratch(2, v_bytes);
    for (int t = 0; t < PAGE; t++) {
        fill_floats(x, dim, FILL_NORMAL);
        levels[0]->kv_store_k[type](x, dim, k, t);
        levels[0]->kv_store_v[type](x, v_dim, want, t);
    }
    for (case_begin(slot_of("kv_store_v", type), "out of keys, dim=%d values=%d", dim, v_dim); run_ref();) {
        uint8_t *v = guard_out(v_bytes);
        kv_values_of_keys(type, v_dim, guard_in(k, k_bytes), v);
        check(!memcmp(v, want, v_bytes), "%s", "the pages differ");
    }
}

void test_kv_store(void) {
    for (int type = 0; type < KV_TYPES; type++)
        for (int i = 0; i < DIMS; i++)
            for (int j = 0; j <= i && fits(type, dims[i]); j++)
                if (fits(type, dims[j]) && (type != KV_Q4_0 || span(dims[i]) == span(dims[j]))) values_case(type, dims[i], dims[j]);
    for (int type = 0; type < KV_TYPES; type++)
        for (int i = 0; i < DIMS; i++)
            for (int slot = 0; slot < PAGE && fits(type, dims[i]); slot++)
                for (int fill = 0; fill < FILLS; fill++) {
                    store_case(type, 0, dims[i], slot, fill);
                    store_case(type, 1, dims[i], slot, fill);
                }
}

/* ---- chunks ---------------------------------------------------------------------------------------------------------------- */

/* A chunk to attend to: what attn_args points at, in plain memory. */
typedef struct chunk {
    attn_args a;
    int type;
    int16_t lo[16], hi[16];
    uint8_t *k[PAGES], *v[PAGES];       /* NULL where no row sees the page */
    size_t q_bytes;
} chunk;

/* Which positions the rows see. */
enum view { VIEW_ALL, VIEW_CAUSAL, VIEW_WINDOW, VIEW_ONE, VIEW_EDGES, VIEW_RANDOM, VIEWS };
static const char *const view_names[VIEWS] = {"all", "causal", "window", "one", "edges", "random"};

static void make_view(chunk *c, int view) {
    static const int edges[] = {0, 1, 15, 16, 17, 31, 32, 127, 128, 129, 239, 240, 241, 255};
    int start = rnd_below(CHUNK), width = 1 + rnd_below(60);
    for (int i = 0; i < c->a.rows; i++) {
        int lo = 0, hi = CHUNK, first = rnd_below(CHUNK), last = rnd_below(CHUNK), end = start + i < CHUNK ? start + i + 1 : CHUNK;
        switch (view) {
            case VIEW_CAUSAL: hi = end; break;
            case VIEW_WINDOW: hi = end, lo = hi > width ? hi - width : 0; break;
            case VIEW_ONE: lo = edges[rnd_below(14)], hi = lo + 1; break;
            case VIEW_EDGES: first = edges[rnd_below(14)], last = edges[rnd_below(14)]; break;
            default: break;
        }
        if (view == VIEW_EDGES || view == VIEW_RANDOM) lo = first < last ? first : last, hi = (first < last ? last : first) + 1;
        c->lo[i] = (int16_t)lo;
        c->hi[i] = (int16_t)hi;
    }
}

/* Page p holds what ref stores of floats of a kind; slots that no row sees hold any bytes, mostly not numbers. */
static void make_page(chunk *c, int p, int fill, float size) {
    int seen[PAGE] = {0}, any = 0;
    for (int i = 0; i < c->a.rows; i++)
        for (int t = 0; t < PAGE; t++) any |= seen[t] |= p * PAGE + t >= c->lo[i] && p * PAGE + t < c->hi[i];
    c->k[p] = c->v[p] = NULL;
    if (!any) return;
    size_t k_bytes = kv_page_bytes(c->type, c->a.dim), bytes = k_bytes + kv_page_bytes(c->type, c->a.v_dim);
    float x[256];
    c->k[p] = (uint8_t *)scratch(2, PAGES * bytes) + (size_t)p * bytes;
    c->v[p] = c->k[p] + k_bytes;
    for (size_t i = 0; i < bytes; i++) c->k[p][i] = rnd_below(4) ? 0xff : (uint8_t)rnd();
    for (int t = 0; t < PAGE; t++)
        for (int v = 0; v < 2 && seen[t]; v++) {
            int n = v ? c->a.v_dim : c->a.dim;
            fill_floats(x, n, fill);
            for (int i = 0; i < n; i++) x[i] *= v ? 1 : size;
            (v ? levels[0]->kv_store_v : levels[0]->kv_store_k)[c->type](x, n, v ? c->v[p] : c->k[p], t);
        }
}

/* spread: standard deviation of the scores of normal inputs. */
static chunk chunk_new(int type, int dim, int view, int q_fill, int kv_fill, float spread, float softcap) {
    int group = 1 + rnd_below(8), most = ATTN_MAX / group < 16 ? ATTN_MAX / group : 16, few = rnd_below(3), v_dim = rnd_below(2) ? dim : dims[rnd_below(DIMS)];
    if (!fits(type, v_dim)) v_dim = dim;
    chunk c = {.type = type, .a = {.dim = dim, .v_dim = v_dim, .group = group, .rows = few ? 1 + rnd_below(most < 3 ? most : 3) : 1 + rnd_below(most)}};
    c.a.ldq = group * dim + rnd_below(40);
    c.a.scale = 1 / sqrtf((float)dim);
    c.a.softcap = softcap;
    c.q_bytes = (size_t)((c.a.rows - 1) * c.a.ldq + group * dim) * sizeof(float);
    float *q = scratch(3, c.q_bytes);
    fill_floats(q, (int64_t)(c.q_bytes / sizeof *q), q_fill);
    for (size_t i = 0; i < c.q_bytes / sizeof *q; i++) q[i] *= sqrtf(spread);
    c.a.q = q;
    make_view(&c, view);
    scratch(2, PAGES * (kv_page_bytes(type, dim) + kv_page_bytes(type, v_dim)));        /* whole before pages point into it */
    for (int p = 0; p < PAGES; p++) make_page(&c, p, kv_fill, sqrtf(spread));
    return c;
}

/* The chunk with all that it points at between guards, run; results stay in the returned arguments. */
static attn_args run_chunk(const chunk *c) {
    attn_args a = c->a;
    const uint8_t *k[PAGES], *v[PAGES], *next[PAGES];
    int states = a.rows * a.group;
    for (int p = 0; p < PAGES; p++) {
        k[p] = c->k[p] ? guard_in(c->k[p], kv_page_bytes(c->type, a.dim)) : NULL;
        v[p] = c->v[p] ? guard_in(c->v[p], kv_page_bytes(c->type, a.v_dim)) : NULL;
        next[p] = p % 3 ? v[p] : NULL;
    }
    a.q = guard_in(a.q, c->q_bytes);
    a.k_pages = guard_inout(k, sizeof k);
    a.v_pages = guard_inout(v, sizeof v);
    a.next_pages = guard_inout(next, sizeof next);
    a.lo = guard_in(c->lo, (size_t)a.rows * sizeof *a.lo);
    a.hi = guard_in(c->hi, (size_t)a.rows * sizeof *a.hi);
    a.m = guard_out((size_t)states * sizeof *a.m);
    a.l = guard_out((size_t)states * sizeof *a.l);
    a.o = guard_out((size_t)(states * a.v_dim) * sizeof *a.o);
    a.scratch = guard_out(attn_scratch_bytes(a.dim));
    run.k->attn_chunk[c->type](&a);
    return a;
}

static void chunk_case(int type, int dim, int view, int q_fill, int kv_fill, float spread, float softcap) {
    chunk c = chunk_new(type, dim, view, q_fill, kv_fill, spread, softcap);
    int states = c.a.rows * c.a.group;
    for (case_begin(slot_of("attn_chunk", type), "dim=%d values=%d rows=%d group=%d view=%s [%d,%d).., q %s, kv %s, spread %g, softcap %g", dim, c.a.v_dim, c.a.rows, c.a.group,
                    view_names[view], c.lo[0], c.hi[0], fill_names[q_fill], fill_names[kv_fill], (double)spread, (double)softcap); run_next();) {
        attn_args a = run_chunk(&c);
        check_floats("m", a.m, states);
        check_floats("l", a.l, states);
        check_floats("o", a.o, states * a.v_dim);
    }
}

static void merge_case(int dim, int fill) {
    float *o0 = scratch(0, (size_t)dim * sizeof *o0), *o1 = scratch(1, (size_t)dim * sizeof *o1), s[4];
    fill_floats(o0, dim, fill);
    fill_floats(o1, dim, fill);
    fill_floats(s, 4, fill);
    if (fill == FILL_NORMAL) s[0] *= 60, s[1] *= 60, s[2] = fabsf(s[2]), s[3] = fabsf(s[3]);
    for (case_begin("attn_merge", "dim=%d m=%g,%g l=%g,%g, %s", dim, (double)s[0], (double)s[1], (double)s[2], (double)s[3], fill_names[fill]);
         run_next();) {
        float *m = guard_inout(s, sizeof *s), *l = guard_inout(s + 2, sizeof *s), *o = guard_inout(o0, (size_t)dim * sizeof *o0);
        run.k->attn_merge(m, l, o, s[1], s[3], guard_in(o1, (size_t)dim * sizeof *o1), dim);
        check_floats("m", m, 1);
        check_floats("l", l, 1);
        check_floats("o", o, dim);
    }
    for (case_begin("attn_finish", "dim=%d l=%g, %s", dim, (double)s[2], fill_names[fill]); run_next();) {
        float *y = guard_out((size_t)dim * sizeof *y);
        run.k->attn_finish(guard_in(o0, (size_t)dim * sizeof *o0), s[2], y, dim);
        check_floats("y", y, dim);
    }
}

void test_attention(void) {
    for (int type = 0; type < KV_TYPES; type++)
        for (int i = 0; i < DIMS; i++) {
            if (!fits(type, dims[i])) continue;
            for (int n = 0; n < repeat; n++) {
                for (int view = 0; view < VIEWS; view++) chunk_case(type, dims[i], view, FILL_NORMAL, FILL_NORMAL, 2, rnd_below(3) ? 0 : 50);
                chunk_case(type, dims[i], VIEW_RANDOM, FILL_NORMAL, FILL_NORMAL, 1457, 0);
                chunk_case(type, dims[i], VIEW_CAUSAL, FILL_NORMAL, FILL_NORMAL, 1457, 30);
            }
            for (int fill = FILL_NORMAL + 1; fill < FILLS; fill++) {
                chunk_case(type, dims[i], VIEW_RANDOM, fill, FILL_NORMAL, 1, 0);
                chunk_case(type, dims[i], VIEW_WINDOW, FILL_NORMAL, fill, 1, 0);
                chunk_case(type, dims[i], VIEW_RANDOM, fill, fill, 1, rnd_below(2) ? 0 : 50);
            }
        }
    for (int i = 0; i < DIMS; i++)
        for (int fill = 0; fill < FILLS; fill++)
            for (int n = 0; n < 8; n++) merge_case(dims[i], fill);
}

/* ---- the reference in double ------------------------------------------------------------------------------------------------ */

static const double U = 0x1p-24;        /* half a unit in the last place of f32, relative */

/* rotate.h in double. */
static void turn(int type, double *x, int dim) {
    int n = span(dim);
    for (int h = 1; h < n && type == KV_Q4_0; h *= 2)
        for (int i = 0; i < dim; i++)
            if (!(i & h)) {
                double a = x[i], b = x[i + h];
                x[i] = a + b, x[i + h] = a - b;
            }
    for (int i = 0; i < dim && type == KV_Q4_0; i++) x[i] /= sqrt((double)n);
}

/* How far rotate may be from that in any place, x what it is given: log2 n additions, a product and 1/sqrt(n) rounded once. */
static double turn_error(int type, const double *x, int dim) {
    int n = span(dim);
    double most = 0;
    for (int i = 0; i < dim && type == KV_Q4_0; i += n) {
        double sum = 0;
        for (int j = i; j < i + n; j++) sum += fabs(x[j]);
        most = fmax(most, sum);
    }
    return (log2((double)n) + 2) * U * most / sqrt((double)n);
}

/* Value i of the token in a slot, as kernels.h lays pages out; q4_0's are rotated. */
static double page_value(int type, int is_v, int dim, const uint8_t *page, int slot, int i) {
    int at = is_v ? slot * dim + i : i * PAGE + slot;
    if (type == KV_F32) return f32_from_bits(load_u32(page + 4 * at));
    if (type == KV_F16) return f16_to_f32(load_u16(page + 2 * at));
    if (type == KV_Q4_0) {
        const uint8_t *block = is_v ? page + 2 * (slot * (dim / 32) + i / 32) : page + i / 32 * (32 + 256) + 2 * slot;
        uint8_t byte = is_v ? page[dim + slot * dim / 2 + i / 32 * 16 + i % 16] : page[i / 32 * (32 + 256) + 32 + (i % 16 / 4 * PAGE + slot) * 4 + i % 4];
        return (double)f16_to_f32(load_u16(block)) * ((i % 32 < 16 ? byte & 15 : byte >> 4) - 8);
    }
    const uint8_t *block = page + i / 32 * (32 + 512);
    return is_v ? (double)f16_to_f32(load_u16(page + 2 * (slot * (dim / 32) + i / 32))) * (int8_t)page[dim + at]
                : (double)f16_to_f32(load_u16(block + 2 * slot)) * (int8_t)block[32 + (i % 32 / 4 * PAGE + slot) * 4 + i % 4];
}

static double largest(const double *x, int n) {
    double most = 0;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    return most;
}

/* f16 is within 2^-11 of a normal value. q8_0 is within half a code, with 127 roundings of the scale to f16 on top; q4_0 within a code, as the largest one is
   cut, with 8 roundings. */
static void store_exact(int type, int is_v, int dim) {
    float *x = scratch(0, (size_t)dim * sizeof *x);
    double want[256], off;
    fill_floats(x, dim, FILL_NORMAL);
    for (int i = 0; i < dim; i++) want[i] = (double)x[i];
    off = turn_error(type, want, dim);
    turn(type, want, dim);
    for (case_begin(slot_of(is_v ? "kv_store_v" : "kv_store_k", type), "in double, dim=%d", dim); run_ref();) {
        int slot = rnd_below(PAGE);
        uint8_t *page = guard_out(kv_page_bytes(type, dim));
        (is_v ? run.k->kv_store_v : run.k->kv_store_k)[type](x, dim, page, slot);
        for (int i = 0; i < dim; i++) {
            double got = page_value(type, is_v, dim, page, slot, i), amax = largest(want + i / 32 * 32, 32) + off;
            double bound = type == KV_F32 ? 0 : type == KV_F16 ? fmax(fabs(want[i]) * 0x1p-11, 0x1p-25)
                         : type == KV_Q8_0 ? amax / 127 * (0.5 + 0x1p-15 + 127 * 0x1p-11) : amax / 8 * (1 + 0x1p-15 + 8 * 0x1p-11) + off;
            check(fabs(got - want[i]) <= bound, "value %d is %a, stored as %a", i, want[i], got);
        }
    }
}

/* One query over [lo, hi) in double: the weighted mean of the values, and how far the reference may be from it.
 *
 * A score sums dim products with one rounding each and one for the scale: error (dim + 2) U of the sum of magnitudes; q8_0 first replaces each q
 * by a code, which is at most 0.5 + 2^-15 codes off, and a code is 1/127 of the block's largest. Soft capping does not enlarge an error and adds
 * 10 U of the cap. A probability's exponent is off by twice the largest error of a score (the maximum has one too) and one rounding of at most
 * 87 (below, it is 0 and the exact value less than 2^-125); exp adds 2 U. Numerator and denominator add up to 257 roundings each, q8_0 one more
 * for the value's scale; the final product and the reciprocal two. q4_0: all that in the rotated space, where a query is off by its rotation, too; the result is turned
 * back, with the magnitudes of all dims that it is made of and its own error. */
static void exact_query(const chunk *c, int row, int head, double *mean, double *magnitude, double *error) {
    const attn_args *a = &c->a;
    double s[CHUNK], q[256], top = -INFINITY, worst = 0, total = 0, turned;
    for (int i = 0; i < a->dim; i++) q[i] = (double)a->q[row * a->ldq + head * a->dim + i];
    turned = turn_error(c->type, q, a->dim);
    turn(c->type, q, a->dim);
    for (int t = c->lo[row]; t < c->hi[row]; t++) {
        double dot = 0, size = 0, codes = 0;
        for (int i = 0; i < a->dim; i++) {
            double k = page_value(c->type, 0, a->dim, c->k[t / PAGE], t % PAGE, i);
            dot += q[i] * k;
            size += fabs(q[i] * k);
            if (kv_quantized(c->type)) codes += (turned + (largest(q + i / 32 * 32, 32) + turned) / 127 * (0.5 + 0x1p-15)) * fabs(k);
        }
        double off = a->scale * ((a->dim + 2) * U * (size + codes) + codes);
        s[t] = a->softcap != 0 ? a->softcap * tanh(dot * a->scale / a->softcap) : dot * a->scale;
        worst = fmax(worst, off + 10 * U * a->softcap);
        top = fmax(top, s[t]);
    }
    for (int i = 0; i < a->v_dim; i++) mean[i] = magnitude[i] = 0;
    for (int t = c->lo[row]; t < c->hi[row]; t++) {
        double p = exp(s[t] - top);
        total += p;
        for (int i = 0; i < a->v_dim; i++) {
            double v = page_value(c->type, 1, a->v_dim, c->v[t / PAGE], t % PAGE, i);
            mean[i] += p * v;
            magnitude[i] += p * fabs(v);
        }
    }
    for (int i = 0; i < a->v_dim; i++) mean[i] /= total, magnitude[i] /= total;
    int n = span(a->v_dim);
    for (int i = 0; i < a->v_dim && c->type == KV_Q4_0; i += n) {
        double sum = 0;
        for (int j = i; j < i + n; j++) sum += magnitude[j];
        for (int j = i; j < i + n; j++) magnitude[j] = sum / sqrt((double)n);
    }
    turn(c->type, mean, a->v_dim);
    *error = (c->type == KV_Q4_0 ? (log2((double)n) + 2) * U : 0) + expm1(2 * (2 * worst + 87 * U + 2 * U) + (2 * 257 + 3) * U);        /* of numerator and denominator together */
}

static void chunk_exact(int type, int dim, int view, float spread, float softcap) {
    chunk c = chunk_new(type, dim, view, FILL_NORMAL, FILL_NORMAL, spread, softcap);
    double mean[256], magnitude[256], error;
    float y[256];
    for (case_begin(slot_of("attn_chunk", type), "in double, dim=%d values=%d rows=%d group=%d view=%s spread=%g softcap=%g", dim, c.a.v_dim, c.a.rows, c.a.group, view_names[view],
                    (double)spread, (double)softcap); run_ref();) {
        attn_args a = run_chunk(&c);
        for (int s = 0; s < a.rows * a.group; s++) {
            exact_query(&c, s / a.group, s % a.group, mean, magnitude, &error);
            run.k->attn_finish(a.o + (int64_t)s * a.v_dim, a.l[s], y, a.v_dim);
            for (int i = 0; i < a.v_dim; i++)
                check(fabs(y[i] - mean[i]) <= error * magnitude[i] + 0x1p-100, "value %d of state %d is %g, in double %g: error %g, bound %g", i, s, (double)y[i],
                      mean[i], fabs(y[i] - mean[i]), error * magnitude[i]);
        }
    }
}

/* A chunk cut in two and merged must be what it is whole: the merge in double, with exp within 2 U of an exponent that is one rounding off. */
static void merge_exact(int dim) {
    float *o0 = scratch(0, (size_t)dim * sizeof *o0), *o1 = scratch(1, (size_t)dim * sizeof *o1), m0 = rnd_float(20), m1 = rnd_float(20);
    fill_floats(o0, dim, FILL_NORMAL);
    fill_floats(o1, dim, FILL_NORMAL);
    double top = fmax((double)m0, (double)m1), a = exp(m0 - top), b = exp(m1 - top), bound = (87 + 2 + 3) * U;
    for (case_begin("attn_merge", "in double, dim=%d m=%g,%g", dim, (double)m0, (double)m1); run_ref();) {
        float m = m0, l = 3, *o = guard_inout(o0, (size_t)dim * sizeof *o0);
        run.k->attn_merge(&m, &l, o, m1, 5, o1, dim);
        check(m == (float)top, "m is %g", (double)m);
        check(fabs(l - (3 * a + 5 * b)) <= bound * (3 * a + 5 * b), "l is %g, in double %g", (double)l, 3 * a + 5 * b);
        for (int i = 0; i < dim; i++) {
            double want = o0[i] * a + o1[i] * b;
            check(fabs(o[i] - want) <= bound * (fabs(o0[i] * a) + fabs(o1[i] * b)), "o[%d] is %g, in double %g", i, (double)o[i], want);
        }
    }
}

void test_attention_exact(void) {
    for (int type = 0; type < KV_TYPES; type++)
        for (int i = 0; i < DIMS; i++) {
            if (!fits(type, dims[i])) continue;
            store_exact(type, 0, dims[i]);
            store_exact(type, 1, dims[i]);
            for (int view = 0; view < VIEWS; view++) chunk_exact(type, dims[i], view, 2, view % 2 ? 50 : 0);
        }
    for (int i = 0; i < DIMS; i++) merge_exact(dims[i]);
}
