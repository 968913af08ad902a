/* KV pages and attention for one level: include a simd_*.h first. docs/numerics.md fixes the order of operations.
 *
 * A chunk's scores for all queries go to the scratch first, [query][256]; then maximum, exponentials and sum a query; then the values. Queries are
 * taken QT at a time so that each key and value is loaded and widened once for QT of them. */
#include "../formats/formats.h"
#include "init.h"
#include "lanes.h"

#include <string.h>

enum { QT = COLS };                         /* queries of a register tile */

typedef struct work {
    float *s;                               /* [ATTN_MAX][CHUNK] scores, then probabilities */
    float *pd;                              /* [QT][CHUNK] probabilities times value scales (q8_0) */
    int8_t *q;                              /* [ATTN_MAX][dim] quantized queries (q8_0) */
    float *qd;                              /* [ATTN_MAX][dim/32] */
    int16_t *qsum;                          /* [ATTN_MAX][dim/32] */
} work;

INLINE work carve(const attn_args *a) {
    work w = {.s = a->scratch};
    w.pd = w.s + ATTN_MAX * CHUNK;
    w.qd = w.pd + QT * CHUNK;
    w.qsum = (int16_t *)(w.qd + ATTN_MAX * (a->dim / 32 + 1));
    w.q = (int8_t *)(w.qsum + ATTN_MAX * (a->dim / 32 + 1));
    return w;
}

INLINE const float *query(const attn_args *a, int s) { return a->q + s / a->group * a->ldq + s % a->group * a->dim; }

/* ---- quantizing 32 values -------------------------------------------------------------------------------------------------- */

/* d = amax/127 as f32; q in [-127, 127]. NaN and zero as in the matmul's activations. */
INLINE float quantize32(const float *x, int8_t *q) {
    fx u = fx_load(x), v = fx_load(x + 16), a = fx_max(fx_and(u, 0x7fffffff), fx_and(v, 0x7fffffff));
    float lanes[16], most = 0, nan = fx_sum(fx_add(fx_sub(u, u), fx_sub(v, v)));
    fx_store(lanes, a);
    for (int i = 0; i < 16; i++) most = max32(lanes[i], most);
    if (nan != nan || most < 1e-30f) {
        memset(q, 0, 32);
        return nan != nan ? bits_f32(0x7fc00000u) : 0;
    }
    fx inv = fx_set1(127.0f / most), magic = fx_set1(12582912.0f);
    u = fx_sub(fx_add(fx_mul(u, inv), magic), magic);
    v = fx_sub(fx_add(fx_mul(v, inv), magic), magic);
    EACH {
        vi_store_i8(q + i_ * ROWS, vi_from_vf(u.v[i_]));
        vi_store_i8(q + 16 + i_ * ROWS, vi_from_vf(v.v[i_]));
    }
    return most / 127.0f;
}

static void quantize_queries(const attn_args *a, const work *w) {
    int blocks = a->dim / 32;
    for (int s = 0; s < a->rows * a->group; s++)
        for (int b = 0; b < blocks; b++) {
            int8_t *q = w->q + (int64_t)s * a->dim + 32 * b;
            w->qd[s * blocks + b] = quantize32(query(a, s) + 32 * b, q);
            int sum = 0;
            for (int i = 0; i < 32; i++) sum += q[i];
            w->qsum[s * blocks + b] = (int16_t)sum;
        }
}

/* ---- storing ------------------------------------------------------------------------------------------------------------------ */

static void NAME(kv_store_k_f32)(const float *x, int dim, uint8_t *page, int slot) {
    for (int i = 0; i < dim; i++) ((float *)page)[i * PAGE + slot] = x[i];
}
static void NAME(kv_store_v_f32)(const float *x, int dim, uint8_t *page, int slot) { memcpy(page + (size_t)slot * dim * 4, x, (size_t)dim * 4); }
static void NAME(kv_store_k_f16)(const float *x, int dim, uint8_t *page, int slot) {
    uint16_t h[16];
    for (int i = 0; i < dim; i += 16) {
        fx v = fx_load(x + i);
        EACH vf_store_f16(h + i_ * ROWS, v.v[i_]);
        for (int j = 0; j < 16; j++) ((uint16_t *)page)[(i + j) * PAGE + slot] = h[j];
    }
}
static void NAME(kv_store_v_f16)(const float *x, int dim, uint8_t *page, int slot) {
    for (int i = 0; i < dim; i += 16) {
        fx v = fx_load(x + i);
        EACH vf_store_f16((uint16_t *)page + slot * dim + i + i_ * ROWS, v.v[i_]);
    }
}
static void NAME(kv_store_k_q8_0)(const float *x, int dim, uint8_t *page, int slot) {
    int8_t q[32];
    for (int b = 0; b < dim / 32; b++) {
        uint8_t *p = page + b * (PAGE * 2 + PAGE * 32);
        ((uint16_t *)p)[slot] = f32_to_f16(quantize32(x + 32 * b, q));
        for (int i = 0; i < 8; i++) memcpy(p + PAGE * 2 + (i * PAGE + slot) * 4, q + 4 * i, 4);
    }
}
static void NAME(kv_store_v_q8_0)(const float *x, int dim, uint8_t *page, int slot) {
    int blocks = dim / 32;
    for (int b = 0; b < blocks; b++)
        ((uint16_t *)page)[slot * blocks + b] = f32_to_f16(quantize32(x + 32 * b, (int8_t *)page + PAGE * 2 * blocks + slot * dim + 32 * b));
}

/* ---- scores --------------------------------------------------------------------------------------------------------------------- */

/* Queries s0..s0+n-1 against the 16 keys of a page. */
INLINE void scores_float(int type, const attn_args *a, int s0, int n, const uint8_t *page, float *out) {
    const float *q[QT];
    fx acc[QT];
    for (int i = 0; i < n; i++) {
        q[i] = query(a, s0 + i);
        acc[i] = fx_set1(0);
    }
    for (int d = 0; d < a->dim; d++) {
        fx k = type == KV_F32 ? fx_load((const float *)page + d * PAGE) : fx_f16((const uint16_t *)page + d * PAGE);
        for (int i = 0; i < n; i++) acc[i] = fx_fma1(k, q[i] + d, acc[i]);
    }
    for (int i = 0; i < n; i++) fx_store(out + i * CHUNK, fx_mul(acc[i], fx_set1(a->scale)));
}

INLINE void scores_q8(const attn_args *a, const work *w, int s0, int n, const uint8_t *page, float *out) {
    int blocks = a->dim / 32;
    fx acc[QT];
    for (int i = 0; i < n; i++) acc[i] = fx_set1(0);
    for (int b = 0; b < blocks; b++) {
        const uint8_t *p = page + b * (PAGE * 2 + PAGE * 32);
        EACH {
            vf d = vf_f16(p + 2 * i_ * ROWS);
            vi k[8];
            for (int j = 0; j < 8; j++) k[j] = vi_signed(vi_load(p + PAGE * 2 + j * 64 + i_ * ROWS * 4));
            for (int i = 0; i < n; i++) {
                const int8_t *q = w->q + (int64_t)(s0 + i) * a->dim + 32 * b;
                vi dot = vi_set1(signed_start(w->qsum[(s0 + i) * blocks + b]));
                for (int j = 0; j < 8; j++) dot = dot_s(dot, k[j], q + 4 * j);
                acc[i].v[i_] = vf_fma(vf_from_vi(dot), vf_mul(d, vf_set1(w->qd[(s0 + i) * blocks + b])), acc[i].v[i_]);
            }
        }
    }
    for (int i = 0; i < n; i++) fx_store(out + i * CHUNK, fx_mul(acc[i], fx_set1(a->scale)));
}

/* Scores -> probabilities in place; outside of [lo, hi) they become exactly 0. */
INLINE void softmax(const attn_args *a, int lo, int hi, float *s, float *m, float *l) {
    int first = lo / 16 * 16, end = (hi + 15) / 16 * 16;
    float lanes[16], most = -__builtin_inff();
    fx cap = fx_set1(a->softcap), top = fx_set1(most), sum = fx_set1(0);
    for (int t = first; t < end && a->softcap != 0; t += 16) fx_store(s + t, fx_mul(cap, fx_tanh(fx_div(fx_load(s + t), cap))));
    for (int t = first; t < lo; t++) s[t] = most;
    for (int t = hi; t < end; t++) s[t] = most;
    for (int t = first; t < end; t += 16) top = fx_max(fx_load(s + t), top);
    fx_store(lanes, top);
    for (int i = 0; i < 16; i++) most = max32(lanes[i], most);
    *m = most + 0.0f;
    fx shift = fx_set1(*m);
    for (int t = first; t < end; t += 16) {
        fx p = fx_exp(fx_sub(fx_load(s + t), shift));
        fx_store(s + t, p);
        sum = fx_add(sum, p);
    }
    *l = fx_sum(sum);
}

/* ---- values ----------------------------------------------------------------------------------------------------------------------- */

INLINE fx load_value(int type, const attn_args *a, int t, int d) {
    const uint8_t *page = a->v_pages[t / PAGE];
    int at = t % PAGE * a->dim + d;
    if (type == KV_F32) return fx_load((const float *)page + at);
    if (type == KV_F16) return fx_f16((const uint16_t *)page + at);
    return fx_i8(page + PAGE * 2 * (a->dim / 32) + at);
}

/* o[d..d+16) of n queries over positions [from, to): one load of V serves all. */
INLINE void accumulate(int type, const attn_args *a, const float *const *p, int n, int d, int from, int to, fx *acc) {
    for (int t = from; t < to; t++) {
        fx v = load_value(type, a, t, d);
        for (int i = 0; i < n; i++) acc[i] = fx_fma1(v, p[i] + t, acc[i]);
    }
}

INLINE void values(int type, const attn_args *a, const work *w, int s0, int n) {
    int lo[QT], hi[QT], from = 0, to = CHUNK, low = CHUNK, high = 0, blocks = a->dim / 32;
    const float *p[QT];
    for (int i = 0; i < n; i++) {
        lo[i] = a->lo[(s0 + i) / a->group];
        hi[i] = a->hi[(s0 + i) / a->group];
        from = lo[i] > from ? lo[i] : from;
        to = hi[i] < to ? hi[i] : to;
        low = lo[i] < low ? lo[i] : low;
        high = hi[i] > high ? hi[i] : high;
        p[i] = w->s + (int64_t)(s0 + i) * CHUNK;
    }
    for (int d = 0; d < a->dim; d += 16) {
        if (type == KV_Q8_0 && d % 32 == 0)
            for (int t = low; t < high; t++) {
                if (!a->v_pages[t / PAGE]) continue;
                float scale = f16_to_f32(((const uint16_t *)a->v_pages[t / PAGE])[t % PAGE * blocks + d / 32]);
                for (int i = 0; i < n; i++) w->pd[i * CHUNK + t] = w->s[(int64_t)(s0 + i) * CHUNK + t] * scale;
            }
        if (type == KV_Q8_0)
            for (int i = 0; i < n; i++) p[i] = w->pd + i * CHUNK;
        fx acc[QT];
        for (int i = 0; i < n; i++) acc[i] = fx_set1(0);
        if (from >= to) {           /* no position is common to all */
            for (int i = 0; i < n; i++) accumulate(type, a, p + i, 1, d, lo[i], hi[i], acc + i);
        } else {
            for (int i = 0; i < n; i++) accumulate(type, a, p + i, 1, d, lo[i], from, acc + i);
            accumulate(type, a, p, n, d, from, to, acc);
            for (int i = 0; i < n; i++) accumulate(type, a, p + i, 1, d, to, hi[i], acc + i);
        }
        for (int i = 0; i < n; i++) fx_store(a->o + (int64_t)(s0 + i) * a->dim + d, acc[i]);
    }
}

/* ---- a chunk ------------------------------------------------------------------------------------------------------------------------ */

/* n is a constant in each call, so that the accumulators of a tile are registers. */
INLINE void tile(int type, const attn_args *a, const work *w, int s0, int n) {
    int low = CHUNK, high = 0;
    for (int i = s0 / a->group; i <= (s0 + n - 1) / a->group; i++) {
        low = a->lo[i] < low ? a->lo[i] : low;
        high = a->hi[i] > high ? a->hi[i] : high;
    }
    for (int page = low / PAGE; page * PAGE < high; page++) {
        if (!a->k_pages[page]) continue;        /* between what two rows see */
        float *out = w->s + (int64_t)s0 * CHUNK + page * PAGE;
        if (type == KV_Q8_0) scores_q8(a, w, s0, n, a->k_pages[page], out);
        else scores_float(type, a, s0, n, a->k_pages[page], out);
    }
    for (int i = s0; i < s0 + n; i++) softmax(a, a->lo[i / a->group], a->hi[i / a->group], w->s + (int64_t)i * CHUNK, &a->m[i], &a->l[i]);
    values(type, a, w, s0, n);
}

INLINE void attn_chunk(int type, const attn_args *a) {
    work w = carve(a);
    int n = a->rows * a->group, s = 0;
    if (type == KV_Q8_0) quantize_queries(a, &w);
    for (; s + QT <= n; s += QT) tile(type, a, &w, s, QT);
    for (; s + 3 <= n; s += 3) tile(type, a, &w, s, 3);
    for (; s < n; s++) tile(type, a, &w, s, 1);
}

static void NAME(attn_chunk_f32)(const attn_args *a) { attn_chunk(KV_F32, a); }
static void NAME(attn_chunk_f16)(const attn_args *a) { attn_chunk(KV_F16, a); }
static void NAME(attn_chunk_q8_0)(const attn_args *a) { attn_chunk(KV_Q8_0, a); }

static void NAME(attn_merge)(float *m0, float *l0, float *o0, float m1, float l1, const float *o1, int dim) {
    float m = max32(*m0, m1), a = exp32(*m0 - m), b = exp32(m1 - m);
    fx fa = fx_set1(a), fb = fx_set1(b);
    *m0 = m;
    *l0 = fma32(*l0, a, l1 * b);
    for (int i = 0; i < dim; i += 16) fx_store(o0 + i, fx_fma(fx_load(o0 + i), fa, fx_mul(fx_load(o1 + i), fb)));
}

static void NAME(attn_finish)(const float *o, float l, float *y, int dim) {
    fx inv = fx_set1(1.0f / l);
    for (int i = 0; i < dim; i += 16) fx_store(y + i, fx_mul(fx_load(o + i), inv));
}

#define SET_KV(TYPE, type) \
    KERNEL_LEVEL(k, kv_store_k[KV_##TYPE], "kv_store_k_" #type, kv_store_k_##type); \
    KERNEL_LEVEL(k, kv_store_v[KV_##TYPE], "kv_store_v_" #type, kv_store_v_##type); \
    KERNEL_LEVEL(k, attn_chunk[KV_##TYPE], "attn_chunk_" #type, attn_chunk_##type);
void NAME(init_attn)(kernels *k) {
    SET_KV(F32, f32)
    SET_KV(F16, f16)
    SET_KV(Q8_0, q8_0)
    KERNEL_LEVEL(k, attn_merge, "attn_merge", attn_merge);
    KERNEL_LEVEL(k, attn_finish, "attn_finish", attn_finish);
}
