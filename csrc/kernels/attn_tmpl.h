/* KV pages and attention for one level: include a simd_*.h first. docs/numerics.md fixes the order of operations. With ONLY_QUANTIZED, for a level that
 * differs from the one below in integer dot products alone, just the kernels that have some.
 *
 * A chunk's scores for all queries go to the scratch first, [query][256]; then maximum, exponentials and sum a query; then the values. Queries are
 * taken QT at a time so that each key and value is loaded and widened once for QT of them. */
#include "../formats/formats.h"
#include "dots.h"
#include "init.h"
#include "rotate.h"

#include <string.h>

#define QT COLS                             /* queries of a register tile, 4 or 8 */
enum { TILE_REGS = ROWS == 8 ? 12 : 24 };   /* registers for its sums: of 16 with AVX2, of 32 elsewhere */

typedef struct work {
    float *s;                               /* [ATTN_MAX][CHUNK] scores, then probabilities */
    float *pd;                              /* [QT][CHUNK] probabilities times value scales (quantized values) */
    int8_t *q;                              /* [ATTN_MAX][dim] quantized queries (quantized keys) */
    float *qt;                              /* [dim][QT] queries of a tile (f32, f16), in the same place */
    float *qd;                              /* [ATTN_MAX][dim/32] */
    int16_t *qsum;                          /* [ATTN_MAX][dim/32] */
} work;

INLINE work carve(const attn_args *a) {
    work w = {.s = a->scratch};
    w.pd = w.s + ATTN_MAX * CHUNK;
    w.qd = w.pd + QT * CHUNK;
    w.qsum = (int16_t *)(w.qd + ATTN_MAX * (a->dim / 32 + 1));
    w.q = (int8_t *)(w.qsum + ATTN_MAX * (a->dim / 32 + 1));
    w.qt = (float *)w.q;
    return w;
}

INLINE const float *query(const attn_args *a, int s) { return a->q + s / a->group * a->ldq + s % a->group * a->dim; }

static void quantize_queries(int type, const attn_args *a, const work *w) {
    int blocks = a->dim / 32;
    for (int s = 0; s < a->rows * a->group; s++) {
        float *x = w->s;                    /* free until the scores */
        memcpy(x, query(a, s), (size_t)a->dim * sizeof *x);
        if (type == KV_Q4_0) rotate(x, a->dim);
        for (int b = 0; b < blocks; b++) {
            int16_t sum16[2];
            w->qd[s * blocks + b] = quantize_block(x + 32 * b, 32, w->q + (int64_t)s * a->dim + 32 * b, sum16);
            w->qsum[s * blocks + b] = (int16_t)(sum16[0] + sum16[1]);
        }
    }
}

/* ---- storing ------------------------------------------------------------------------------------------------------------------ */

#ifndef ONLY_QUANTIZED
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
#endif
static void NAME(kv_store_k_q8_0)(const float *x, int dim, uint8_t *page, int slot) {
    int8_t q[32];
    int16_t sum16[2];
    for (int b = 0; b < dim / 32; b++) {
        uint8_t *p = page + b * (PAGE * 2 + PAGE * 32);
        ((uint16_t *)p)[slot] = f32_to_f16(quantize_block(x + 32 * b, 32, q, sum16));
        for (int i = 0; i < 8; i++) memcpy(p + PAGE * 2 + (i * PAGE + slot) * 4, q + 4 * i, 4);
    }
}
static void NAME(kv_store_v_q8_0)(const float *x, int dim, uint8_t *page, int slot) {
    int blocks = dim / 32;
    int16_t sum16[2];
    for (int b = 0; b < blocks; b++)
        ((uint16_t *)page)[slot * blocks + b] =
            f32_to_f16(quantize_block(x + 32 * b, 32, (int8_t *)page + PAGE * 2 * blocks + slot * dim + 32 * b, sum16));
}

/* 32 values to 4 bits: 16 bytes with the halves of a block in their halves. Returns d. */
INLINE float quantize_block4(const float *x, uint8_t *q) {
    vi top = vi_set1(0);
    for (int i = 0; i < 32; i += ROWS) top = vi_max(top, vi_and(vi_load(x + i), vi_set1(0x7fffffff)));
    uint32_t bits = (uint32_t)vi_max_lanes(top);
    float most = bits_f32(bits);
    if (bits >= 0x7f800000u || most < 1e-30f) {
        memset(q, 0x88, 16);
        return bits >= 0x7f800000u ? bits_f32(0x7fc00000u) : 0;
    }
    int positive = 0;
    for (int i = 0; i < 32; i++) positive |= x[i] == most;
    most = positive ? most : -most;
    vf inv = vf_set1(-8.0f / most), magic = vf_set1(12582912.0f);
    int8_t codes[32];
    for (int i = 0; i < 32; i += ROWS)      /* -8 to 8, as 9 to -7: a minimum is a maximum of the opposite */
        vi_store_i8(codes + i, vi_max(vi_sub(vi_set1(0), vi_from_vf(vf_sub(vf_add(vf_mul(vf_load(x + i), inv), magic), magic))), vi_set1(-7)));
    for (int i = 0; i < 16; i++) q[i] = (uint8_t)((8 - codes[i]) | (8 - codes[16 + i]) << 4);
    return most / -8.0f;
}
INLINE const float *rotated(const float *x, int dim, float *r) {
    memcpy(r, x, (size_t)dim * sizeof *x);
    rotate(r, dim);
    return r;
}
static void NAME(kv_store_k_q4_0)(const float *x, int dim, uint8_t *page, int slot) {
    float r[1024];
    uint8_t q[16];
    x = rotated(x, dim, r);
    for (int b = 0; b < dim / 32; b++) {
        uint8_t *p = page + b * (PAGE * 2 + PAGE * 16);
        ((uint16_t *)p)[slot] = f32_to_f16(quantize_block4(x + 32 * b, q));
        for (int i = 0; i < 4; i++) memcpy(p + PAGE * 2 + (i * PAGE + slot) * 4, q + 4 * i, 4);
    }
}
static void NAME(kv_store_v_q4_0)(const float *x, int dim, uint8_t *page, int slot) {
    float r[1024];
    int blocks = dim / 32;
    x = rotated(x, dim, r);
    for (int b = 0; b < blocks; b++)
        ((uint16_t *)page)[slot * blocks + b] = f32_to_f16(quantize_block4(x + 32 * b, page + PAGE * 2 * blocks + slot * dim / 2 + 16 * b));
}

/* ---- scores --------------------------------------------------------------------------------------------------------------------- */

/* Pages lie anywhere in the pool, so no hardware prefetcher finds them: while the scores of a page are computed its values are fetched into L2,
   and with its values the keys that the next call reads, evenly, as memory has no more to give. fetch_step: lines for each of `parts` parts of a
   page, 16 binary places. */
INLINE size_t fetch_step(size_t bytes, size_t parts) { return ((bytes + 63) / 64 * 65536 + parts - 1) / parts; }
INLINE void fetch(const uint8_t *page, size_t step, size_t i) {
    for (size_t line = i * step / 65536; line < (i + 1) * step / 65536; line++) __builtin_prefetch(page + line * 64, 0, 2);
}

/* A tile is n queries by `pages` pages, constants after inlining: enough sums in flight to hide the latency of an fma, few enough for the
   registers. */
INLINE int pages_of(int n) { return n * NV * 2 > TILE_REGS ? 1 : n * NV * 4 > TILE_REGS ? 2 : 4; }

/* The tile's queries side by side, [dim][n]: one address serves all. */
INLINE void gather_queries(const attn_args *a, const work *w, int s0, int n) {
    for (int i = 0; i < n; i++) {
        const float *q = query(a, s0 + i);
        for (int d = 0; d < a->dim; d++) w->qt[d * n + i] = q[d];
    }
}

INLINE void scores_float(int type, const attn_args *a, const work *w, int n, int pages, int first, float *out) {
    enum { UNROLL = 4 };
    const uint8_t *const *page = a->k_pages + first, *const *next = a->v_pages + first;
    const float *q = w->qt;
    fx acc[QT][4];
    size_t row = type == KV_F32 ? PAGE * 4 : PAGE * 2;
    for (int i = 0; i < n; i++)
        for (int p = 0; p < pages; p++) acc[i][p] = fx_set1(0);
    for (size_t at = 0; at < a->dim * row; at += UNROLL * row)
#pragma GCC unroll 4
        for (int u = 0; u < UNROLL; u++, q += n) {
            fx k[4];
            for (int p = 0; p < pages; p++) {
                if (u * row % 64 == 0) __builtin_prefetch(next[p] + at + u * row, 0, 2);
                k[p] = type == KV_F32 ? fx_load((const float *)(page[p] + at + u * row)) : fx_f16(page[p] + at + u * row);
            }
#pragma GCC unroll 8
            for (int i = 0; i < n; i++)
                for (int p = 0; p < pages; p++) acc[i][p] = fx_fma1(k[p], q + i, acc[i][p]);
        }
    for (int i = 0; i < n; i++)
        for (int p = 0; p < pages; p++) fx_store(out + i * CHUNK + p * PAGE, fx_mul(acc[i][p], fx_set1(a->scale)));
}

/* 32 dims of the keys of ROWS tokens, at a block's codes: 4 dims a lane. */
INLINE void load_keys(int type, const uint8_t *codes, vi *key) {
    if (type == KV_Q8_0)
        for (int j = 0; j < 8; j++) key[j] = vi_signed(vi_load(codes + j * 64));
    else
        for (int j = 0; j < 4; j++) {
            vi v = vi_load(codes + j * 64);
            key[j] = vi_and(v, vi_set1(0x0f0f0f0f));
            key[j + 4] = vi_high4(v);
        }
}

INLINE void scores_quantized(int type, const attn_args *a, const work *w, int s0, int n, int pages, int first, float *out) {
    const uint8_t *const *page = a->k_pages + first, *const *next = a->v_pages + first;
    int blocks = a->dim / 32;
    size_t step = fetch_step(kv_page_bytes(type, a->v_dim), (size_t)blocks), block_bytes = kv_page_bytes(type, 32);
    for (int p = 0; p < pages; p++) {
        fx acc[QT];
        for (int i = 0; i < n; i++) acc[i] = fx_set1(0);
        for (int b = 0; b < blocks; b++) {
            const uint8_t *k = page[p] + (size_t)b * block_bytes;
            fetch(next[p], step, (size_t)b);
            EACH {
                vf d = vf_f16(k + 2 * i_ * ROWS);
                vi key[8];
                load_keys(type, k + PAGE * 2 + i_ * ROWS * 4, key);
                for (int i = 0; i < n; i++) {
                    const int8_t *q = w->q + (int64_t)(s0 + i) * a->dim + 32 * b;
                    int32_t sum = w->qsum[(s0 + i) * blocks + b];
                    vi dot = type == KV_Q8_0 ? dots(vi_set1(signed_start(sum)), key, q, 8, 1, 1) : dots(vi_set1(-8 * sum), key, q, 8, 8, 0);
                    acc[i].v[i_] = vf_fma(vf_from_vi(dot), vf_mul(d, vf_set1(w->qd[(s0 + i) * blocks + b])), acc[i].v[i_]);
                }
            }
        }
        for (int i = 0; i < n; i++) fx_store(out + i * CHUNK + p * PAGE, fx_mul(acc[i], fx_set1(a->scale)));
    }
}

INLINE void scores(int type, const attn_args *a, const work *w, int s0, int n, int pages, int page) {
    float *out = w->s + (int64_t)s0 * CHUNK + page * PAGE;
    if (kv_quantized(type)) scores_quantized(type, a, w, s0, n, pages, page, out);
    else scores_float(type, a, w, n, pages, page, out);
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

INLINE int spans_of(int n) { return n * NV * 2 > TILE_REGS ? 1 : n * NV * 4 > TILE_REGS ? 2 : 4; }

/* 16 codes of 4 bits less 8, in the low or the high halves of 16 bytes. */
INLINE fx fx_i4(const void *p, int high) {
    fx r;
    EACH {
        vi v = vi_u8((const uint8_t *)p + i_ * ROWS);
        r.v[i_] = vf_from_vi(vi_sub(high ? vi_shr(v, 4) : vi_and(v, vi_set1(15)), vi_set1(8)));
    }
    return r;
}
INLINE fx load_value(int type, const attn_args *a, const uint8_t *page, int slot, int d) {
    int at = slot * a->v_dim + d;
    if (type == KV_F32) return fx_load((const float *)page + at);
    if (type == KV_F16) return fx_f16((const uint16_t *)page + at);
    const uint8_t *codes = page + PAGE * 2 * (a->v_dim / 32);
    return type == KV_Q8_0 ? fx_i8(codes + at) : fx_i4(codes + slot * a->v_dim / 2 + d / 32 * 16, d / 16 % 2);
}

/* o[n][spans*16], v_dim floats apart, goes on over positions [from, to), ascending: one load of V serves all queries. p: probabilities,
   CHUNK floats apart. */
INLINE void accumulate(int type, const attn_args *a, const float *p, int n, int spans, int d, int from, int to, float *o) {
    size_t step = fetch_step(kv_page_bytes(type, a->dim), (size_t)(PAGE * a->v_dim / (16 * spans)));
    int first = d / (16 * spans) * PAGE;        /* part of the page that goes with this pass over the positions */
    fx acc[QT][4];
    if (from >= to) return;
    for (int i = 0; i < n; i++)
        for (int e = 0; e < spans; e++) acc[i][e] = fx_load(o + i * a->v_dim + 16 * e);
    for (int t = from; t < to;) {
        int end = (t / PAGE + 1) * PAGE < to ? (t / PAGE + 1) * PAGE : to;
        const uint8_t *page = a->v_pages[t / PAGE], *next = a->next_pages[t / PAGE];
        for (; t < end; t++) {
            fx v[4];
            if (next) fetch(next, step, (size_t)(first + t % PAGE));
            for (int e = 0; e < spans; e++) v[e] = load_value(type, a, page, t % PAGE, d + 16 * e);
#pragma GCC unroll 8
            for (int i = 0; i < n; i++)
                for (int e = 0; e < spans; e++) acc[i][e] = fx_fma1(v[e], p + i * CHUNK + t, acc[i][e]);
        }
    }
    for (int i = 0; i < n; i++)
        for (int e = 0; e < spans; e++) fx_store(o + i * a->v_dim + 16 * e, acc[i][e]);
}

/* What the queries of a tile see: each [lo, hi), all of them [from, to), nothing in common if from >= to. */
typedef struct view { int lo[QT], hi[QT], from, to; } view;

/* Values [d, d + 16*spans) of the tile's outputs. */
INLINE void values_span(int type, const attn_args *a, const view *v, const float *p, int s0, int n, int spans, int d) {
    float *o = a->o + (int64_t)s0 * a->v_dim + d;
    int common = v->from < v->to;
    for (int i = 0; i < n; i++) {
        memset(o + i * a->v_dim, 0, (size_t)spans * 64);
        accumulate(type, a, p + i * CHUNK, 1, spans, d, v->lo[i], common ? v->from : v->hi[i], o + i * a->v_dim);
    }
    if (!common) return;
    accumulate(type, a, p, n, spans, d, v->from, v->to, o);
    for (int i = 0; i < n; i++) accumulate(type, a, p + i * CHUNK, 1, spans, d, v->to, v->hi[i], o + i * a->v_dim);
}

/* Probabilities times the scales of V's block of 32 dims at 32*block, pages [first, end). */
INLINE void scale_probabilities(const attn_args *a, const work *w, int s0, int n, int block, int first, int end) {
    int blocks = a->v_dim / 32;
    for (int page = first; page < end; page++) {
        if (!a->v_pages[page]) continue;
        uint16_t half[PAGE];
        for (int t = 0; t < PAGE; t++) half[t] = ((const uint16_t *)a->v_pages[page])[t * blocks + block];
        fx scale = fx_f16(half);
        for (int i = 0; i < n; i++)
            fx_store(w->pd + i * CHUNK + page * PAGE, fx_mul(fx_load(w->s + (int64_t)(s0 + i) * CHUNK + page * PAGE), scale));
    }
}

INLINE void values(int type, const attn_args *a, const work *w, int s0, int n, int first, int end) {
    view v = {.from = 0, .to = CHUNK};
    for (int i = 0; i < n; i++) {
        v.lo[i] = a->lo[(s0 + i) / a->group];
        v.hi[i] = a->hi[(s0 + i) / a->group];
        v.from = v.lo[i] > v.from ? v.lo[i] : v.from;
        v.to = v.hi[i] < v.to ? v.hi[i] : v.to;
    }
    const float *p = kv_quantized(type) ? w->pd : w->s + (int64_t)s0 * CHUNK;
    int spans = spans_of(n), d = 0;
    if (kv_quantized(type) && spans > 2) spans = 2;     /* a block of 32 shares its scales */
    for (; d + 16 * spans <= a->v_dim; d += 16 * spans) {
        if (kv_quantized(type) && d % 32 == 0) scale_probabilities(a, w, s0, n, d / 32, first, end);
        values_span(type, a, &v, p, s0, n, spans, d);
    }
    for (; d < a->v_dim; d += 16) values_span(type, a, &v, p, s0, n, 1, d);
}

/* ---- a chunk ------------------------------------------------------------------------------------------------------------------------ */

/* n is a constant in each call, so that the accumulators of a tile are registers. */
INLINE void tile(int type, const attn_args *a, const work *w, int s0, int n) {
    int low = CHUNK, high = 0, pages = pages_of(n);
    for (int i = s0 / a->group; i <= (s0 + n - 1) / a->group; i++) {
        low = a->lo[i] < low ? a->lo[i] : low;
        high = a->hi[i] > high ? a->hi[i] : high;
    }
    int first = low / PAGE, end = (high + PAGE - 1) / PAGE;
    if (!kv_quantized(type)) gather_queries(a, w, s0, n);
    for (int page = first; page < end;) {
        int whole = page + pages <= end;        /* pages without a NULL among them: what lies between two rows' views may be absent */
        for (int p = 0; whole && p < pages; p++) whole = a->k_pages[page + p] != NULL;
        if (whole) scores(type, a, w, s0, n, pages, page);
        else if (a->k_pages[page]) scores(type, a, w, s0, n, 1, page);
        page += whole ? pages : 1;
    }
    for (int i = s0; i < s0 + n; i++) softmax(a, a->lo[i / a->group], a->hi[i / a->group], w->s + (int64_t)i * CHUNK, &a->m[i], &a->l[i]);
    values(type, a, w, s0, n, first, end);
}

/* One function per tile width: together they would be one body of hundreds of live registers. */
#define TILE_OF(type, n) \
    static __attribute__((noinline)) void tile_##type##_##n(const attn_args *a, const work *w, int s0) { tile(KV_##type, a, w, s0, n); }
#define TILES_4(type) TILE_OF(type, 1) TILE_OF(type, 2) TILE_OF(type, 3) TILE_OF(type, 4)
#if QT == 4
#define TILES_OF(type) \
    TILES_4(type) \
    static attn_tile_fn *const tiles_##type[QT] = {tile_##type##_1, tile_##type##_2, tile_##type##_3, tile_##type##_4};
#else
#define TILES_OF(type) \
    TILES_4(type) TILE_OF(type, 5) TILE_OF(type, 6) TILE_OF(type, 7) TILE_OF(type, 8) \
    static attn_tile_fn *const tiles_##type[QT] = {tile_##type##_1, tile_##type##_2, tile_##type##_3, tile_##type##_4, \
                                                   tile_##type##_5, tile_##type##_6, tile_##type##_7, tile_##type##_8};
#endif
typedef void attn_tile_fn(const attn_args *a, const work *w, int s0);
TILES_OF(Q8_0)
TILES_OF(Q4_0)

INLINE void attn_chunk(attn_tile_fn *const *tiles, const attn_args *a, const work *w) {
    int n = a->rows * a->group;
    for (int s = 0, left = (n + QT - 1) / QT; left; left--) {       /* tiles as equal as can be */
        int size = (n - s + left - 1) / left;
        tiles[size - 1](a, w, s);
        s += size;
    }
}

static void NAME(attn_chunk_q8_0)(const attn_args *a) {
    work w = carve(a);
    quantize_queries(KV_Q8_0, a, &w);
    attn_chunk(tiles_Q8_0, a, &w);
}
static void NAME(attn_chunk_q4_0)(const attn_args *a) {
    work w = carve(a);
    quantize_queries(KV_Q4_0, a, &w);
    attn_chunk(tiles_Q4_0, a, &w);
    for (int s = 0; s < a->rows * a->group; s++) rotate(a->o + (int64_t)s * a->v_dim, a->v_dim);
}

#define SET_KV(TYPE, type) \
    KERNEL_LEVEL(k, kv_store_k[KV_##TYPE], "kv_store_k_" #type, kv_store_k_##type); \
    KERNEL_LEVEL(k, kv_store_v[KV_##TYPE], "kv_store_v_" #type, kv_store_v_##type); \
    KERNEL_LEVEL(k, attn_chunk[KV_##TYPE], "attn_chunk_" #type, attn_chunk_##type);

#ifdef ONLY_QUANTIZED
void NAME(init_attn)(kernels *k) { SET_KV(Q8_0, q8_0) SET_KV(Q4_0, q4_0) }
#else
TILES_OF(F32)
TILES_OF(F16)
static void NAME(attn_chunk_f32)(const attn_args *a) {
    work w = carve(a);
    attn_chunk(tiles_F32, a, &w);
}
static void NAME(attn_chunk_f16)(const attn_args *a) {
    work w = carve(a);
    attn_chunk(tiles_F16, a, &w);
}

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

void NAME(init_attn)(kernels *k) {
    SET_KV(F32, f32)
    SET_KV(F16, f16)
    SET_KV(Q8_0, q8_0)
    SET_KV(Q4_0, q4_0)
    KERNEL_LEVEL(k, attn_merge, "attn_merge", attn_merge);
    KERNEL_LEVEL(k, attn_finish, "attn_finish", attn_finish);
}
#endif
