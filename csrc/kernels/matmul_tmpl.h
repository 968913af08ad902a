/* Matmuls over packed groups for one level: include a simd_*.h first. pack.c fixes the bytes, docs/numerics.md the order of float operations.
 *
 * Lanes are output rows. A register tile is ROWS rows by up to COLS activation rows. The loops are shared by all formats of unpack_tmpl.h. The
 * weight's zero point is taken off by starting the integer accumulator at -zero * sum(a), which is exact. */
#include "unpack_tmpl.h"

INLINE vi dot32(const format *f, const vi *q, const int8_t *a, int from, int to, int32_t start) {
    return dots(vi_set1(start), q + from, a + 4 * from, to - from, f->run, f->is_signed);
}

INLINE int32_t start_of(const format *f, int32_t sum) { return f->is_signed ? signed_start(sum) : -f->zero * sum; }

/* The registers of rows in a tile of M columns: what the sums leave room for. More of them share the loads of activations and give a chain of additions
   something to wait for. Levels with few lanes define it; with E rows of a group, a group is read from memory in GROUP / (E * ROWS) passes. */
#ifndef ROW_REGS
#define ROW_REGS(M) 1
#endif

INLINE void store_sums(vf sum[NV][COLS], int E, int M, float *y, int64_t ldy) {
    for (int e = 0; e < E; e++)
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + e * ROWS, sum[e][c]);
}
INLINE void zero_sums(vf sum[NV][COLS], int E, int M) {
    for (int e = 0; e < E; e++)
        for (int c = 0; c < M; c++) sum[e][c] = vf_set1(0);
}

INLINE void tile32(const format *f, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    const int E = ROW_REGS(M);
    int parts = f->parts ? f->parts : 1;
    for (int h = 0; h < NV; h += E) {
        vf sum[NV][COLS], d[NV], min[NV];
        zero_sums(sum, E, M);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * f->scale_bytes;
        for (int64_t b = 0; b < k / 32; b += parts, p += f->bytes, sp += f->bytes) {
            const act_unit *u = a + b / 8 * m;
            if (!h) prefetch(p, (size_t)f->bytes);
            for (int e = 0; e < E && !f->each16; e++) {
                d[e] = f->scale(sp + e * ROWS * f->scale_bytes);
                if (f->has_min) min[e] = vf_f16(sp + 2 * GROUP + 2 * e * ROWS);
            }
            for (int part = 0; part < parts; part++)
#pragma GCC unroll 4
                for (int e = 0; e < E; e++) {
                    int i = (int)(b % 8) + part;
                    vi q[8];
                    vf d0, d1;
                    f->load(p + 4 * e * ROWS, part, 0, q);
                    if (f->each16) {
                        const uint8_t *at = sp + e * ROWS * f->scale_bytes + 2 * part * GROUP;
                        d0 = f->scale(at), d1 = f->scale(at + GROUP);
                    }
#pragma GCC unroll 8
                    for (int c = 0; c < M; c++) {
                        const int8_t *x = u[c].q + 32 * i;
                        vf da = vf_set1(u[c].d[i]), *z = &sum[e][c];
                        if (f->each16) {
                            vi lo = dot32(f, q, x, 0, 4, start_of(f, u[c].sum16[2 * i])), hi = dot32(f, q, x, 4, 8, start_of(f, u[c].sum16[2 * i + 1]));
                            *z = vf_fma(vf_from_vi(hi), vf_mul(d1, da), vf_fma(vf_from_vi(lo), vf_mul(d0, da), *z));
                            continue;
                        }
                        *z = vf_fma(vf_from_vi(dot32(f, q, x, 0, 8, start_of(f, u[c].sum32[i]))), vf_mul(d[e], da), *z);
                        if (f->has_min) *z = vf_fma(vf_set1((float)u[c].sum32[i]), vf_mul(min[e], da), *z);
                    }
                }
        }
        store_sums(sum, E, M, y + h * ROWS, ldy);
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------------ */

#ifdef DOTS_BY
/* isum plus the products of sub-block s with M rows times its sub-scale or its two, without the zero point. sc: of by_pairs, NULL = all 1. */
INLINE void add_scaled(const format *f, vi *isum, const vi *q, const act_unit *x, int M, int64_t s, const vi *sc) {
    int n = f->sub / 4, run = f->run * RUN < n ? f->run * RUN : n;
#pragma GCC unroll 8
    for (int c = 0; c < M; c++)
        for (int j = 0; j < 8; j += run) {
            const int8_t *a = x[c].q + 32 * s + 4 * j;
            vi by = sc ? sc[8 / n * s + j / n] : vi_set1(0x10001);
            isum[c] = f->is_signed ? dots_s_by(isum[c], q + j, a, run, by) : dots_u_by(isum[c], q + j, a, run, by);
        }
}
INLINE vi pairs16(vi a, vi b) { return vi_or(vi_and(a, vi_set1(0xffff)), vi_shl(b, 16)); }
/* Sub-scales as dots_u_by takes them, and for dots_pairs with the sums of the activations: less the zero point, at most 32 * 128. */
INLINE void by_pairs(const format *f, vi *sc, vi *zero) {
    int n = 256 / f->sub;
    for (int i = 0; i < n / 2 && f->zero; i++) {
        vi pair = pairs16(sc[2 * i], sc[2 * i + 1]);
        zero[i] = vi_sub16(vi_set1(0), vi_mul16(pair, f->zero));
    }
    for (int i = 0; i < n; i++) sc[i] = pairs16(sc[i], sc[i]);
}
INLINE vi start_block(const format *f, const act_unit *a, const vi *zero) {
    return f->zero ? dots_pairs(vi_set1(0), zero, f->sub == 32 ? a->sum32 : a->sum16, 128 / f->sub) : vi_set1(0);
}
#else
INLINE void add_scaled(const format *f, vi *isum, const vi *q, const act_unit *x, int M, int64_t s, const vi *sc) {
#pragma GCC unroll 8
    for (int c = 0; c < M; c++) {
        const int8_t *a = x[c].q + 32 * s;
        if (f->sub == 32) {
            vi dot = dot32(f, q, a, 0, 8, start_of(f, x[c].sum32[s]));
            isum[c] = vi_add(isum[c], sc ? vi_mul(dot, sc[s]) : dot);
        } else {
            vi lo = dot32(f, q, a, 0, 4, start_of(f, x[c].sum16[2 * s])), hi = dot32(f, q, a, 4, 8, start_of(f, x[c].sum16[2 * s + 1]));
            isum[c] = vi_add(isum[c], vi_add(vi_mul(lo, sc[2 * s]), vi_mul(hi, sc[2 * s + 1])));
        }
    }
}
INLINE void by_pairs(const format *f, vi *sc, vi *zero) { (void)f, (void)sc, (void)zero; }
INLINE vi start_block(const format *f, const act_unit *a, const vi *zero) { (void)f, (void)a, (void)zero; return vi_set1(0); }
#endif

/* What a super-block adds to a row's sum: its products, and less its minima times the activations' sums. */
INLINE vf add_block(const format *f, vf sum, vi isum, const act_unit *a, vf d, vf min, const vi *mn) {
    vf da = vf_set1(a->d[0]);
    sum = vf_fma(vf_from_vi(isum), vf_mul(d, da), sum);
    if (!f->has_min) return sum;
    vi msum = dots_pairs(vi_set1(0), mn, f->sub == 32 ? a->sum32 : a->sum16, 128 / f->sub);
    return vf_fnma(vf_from_vi(msum), vf_mul(min, da), sum);
}

INLINE void tile256(const format *f, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    const int E = ROW_REGS(M);
    for (int h = 0; h < NV; h += E) {
        vf sum[NV][COLS];
        zero_sums(sum, E, M);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * 2;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, sp += f->bytes, a += m) {
            vi sc[NV][16], mn[NV][8], zero[NV][8], isum[NV][COLS];
            for (int e = 0; e < E; e++) {
                if (f->scales) f->scales(p + 4 * e * ROWS, sp + 2 * e * ROWS, sc[e], mn[e]);
                else for (int i = 0; i < 8; i++) sc[e][i] = vi_set1(1);
                by_pairs(f, sc[e], zero[e]);
                for (int c = 0; c < M; c++) isum[e][c] = start_block(f, &a[c], zero[e]);
            }
            int subs = f->sub == 32 && f->scales ? 2 : 4;
            for (int64_t part = 0; part < 8 / subs; part++) {
                __asm__("" : "+r"(part));       /* a rolled loop: unrolled whole, the unpacking of all parts would be hoisted and spilled */
                for (int i = 0; i < subs; i++) {
                    int64_t s = part * subs + i;
                    if (!h) prefetch(p + s * (f->bytes / 8), (size_t)f->bytes / 8);
#pragma GCC unroll 4
                    for (int e = 0; e < E; e++) {
                        vi q[8];
                        f->load(p + 4 * e * ROWS, part, i, q);
add_scaled(f, isum[e], q, a, M, s, f->scales ? sc[e] : NULL);
                    }
                }
            }
            for (int e = 0; e < E; e++) {
                vf d = vf_f16(sp + 2 * e * ROWS), min = f->has_min ? vf_f16(sp + 2 * GROUP + 2 * e * ROWS) : d;
                for (int c = 0; c < M; c++) sum[e][c] = add_block(f, sum[e][c], isum[e][c], &a[c], d, min, mn[e]);
            }
        }
        a -= k / 256 * m;
        store_sums(sum, E, M, y + h * ROWS, ldy);
    }
}

/* ---- ternary numbers, five a byte ------------------------------------------------------------------------------------------ */

/* A byte x of TQ1_0 is a fraction x/256 in base 3: its first digit is t = 3x >> 8, the others are those of 3x mod 256. TQ1_0's digit n of dwords 0..7
   is values 32n..32n+31, of dwords 8..11 160+16n..160+16n+15, of dword 12 (4 digits) 240+4n..240+4n+3. */
INLINE void triple(vi *x, int n) {
    for (int j = 0; j < n; j++) x[j] = vi_add_u8(x[j], vi_add_u8(x[j], x[j]));
}

/* The digit is 1 from 86 and 2 from 171 on; two rounded means of z = max(x-1, 0) with itself and with 0, ((z+1)/2 + z + 1)/2, reach 64 and 128 just there. */
INLINE void next_trits(vi *x, vi *q, int n) {
    for (int j = 0; j < n; j++) {
        vi z = vi_subs_u8(x[j], vi_set1(0x01010101));
        q[j] = vi_and(vi_shr(vi_avg_u8(z, vi_avg_u8(z, vi_set1(0))), 6), vi_set1(0x03030303));
    }
    triple(x, n);
}

/* Sums of digit * a of a block, for M rows. */
INLINE void trits(const format *f, const uint8_t *p, const act_unit *a, int M, vi *isum) {
    vi x[8], q[8];
    for (int c = 0; c < M; c++) isum[c] = vi_set1(0);
    for (int j = 0; j < 8; j++) x[j] = dwords(p, j);
    for (int n = 0; n < 5; n++) {
        next_trits(x, q, 8);
#pragma GCC unroll 8
        for (int c = 0; c < M; c++) isum[c] = vi_add(isum[c], dot32(f, q, a[c].q + 32 * n, 0, 8, 0));
    }
    for (int j = 0; j < 5; j++) x[j] = dwords(p, 8 + j);
    for (int n = 0; n < 5; n++) {
        next_trits(x, q, 5);
#pragma GCC unroll 8
        for (int c = 0; c < M; c++) {
            isum[c] = vi_add(isum[c], dot32(f, q, a[c].q + 160 + 16 * n, 0, 4, 0));
            if (n < 4) isum[c] = dot_u(isum[c], q[4], a[c].q + 240 + 4 * n);
        }
    }
}

#ifdef WIDE_DOT
/* The same for one row without the digits: 3x = 256 t + x', where x' = 3x mod 256 holds the next digits, so 256 * sum(t*a) = 3 * sum(x*a) - sum(x'*a). Two
   products are less work than a digit. |3 * sum(x*a)| <= 3 * 256 * 255*127 = 24,871,680. */
INLINE void trits_1(const uint8_t *p, const int8_t *a, vi *isum) {
    vi x[8], now = vi_set1(0), next = vi_set1(0), zero = vi_set1(0);
    for (int j = 0; j < 8; j++) x[j] = dwords(p, j);
    for (int n = 0; n < 5; n++) {
        now = vi_add(now, dots_u(zero, x, a + 32 * n, 8));
        triple(x, 8);
        next = vi_add(next, dots_u(zero, x, a + 32 * n, 8));
    }
    for (int j = 0; j < 5; j++) x[j] = dwords(p, 8 + j);
    for (int n = 0; n < 5; n++) {
        now = vi_add(now, dots_u(zero, x, a + 160 + 16 * n, 4));
        if (n < 4) now = dot_u(now, x[4], a + 240 + 4 * n);
        triple(x, 5);
        next = vi_add(next, dots_u(zero, x, a + 160 + 16 * n, 4));
        if (n < 4) next = dot_u(next, x[4], a + 240 + 4 * n);
    }
    *isum = vi_sra(vi_sub(vi_add(now, vi_add(now, now)), next), 8);
}
#endif

INLINE void tile_tq1_0(const format *f, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    for (int h = 0; h < GROUP / ROWS; h++) {
        vf sum[COLS];
        for (int c = 0; c < M; c++) sum[c] = vf_set1(0);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * 2;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, sp += f->bytes, a += m) {
            vi isum[COLS];
            if (!h) prefetch(p, (size_t)f->bytes);
#ifdef WIDE_DOT
            if (M == 1) trits_1(p, a->q, isum);
            else
#endif
            trits(f, p, a, M, isum);
            vf d = vf_f16(sp);
            for (int c = 0; c < M; c++) {
                int32_t total = 0;
                for (int i = 0; i < 8; i++) total += a[c].sum32[i];
                sum[c] = vf_fma(vf_from_vi(vi_sub(isum[c], vi_set1(total))), vf_mul(d, vf_set1(a[c].d[0])), sum[c]);
            }
        }
        a -= k / 256 * m;
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + h * ROWS, sum[c]);
    }
}

/* ---- float weights -------------------------------------------------------------------------------------------------------- */

enum { KIND_F32, KIND_F16, KIND_BF16 };
INLINE vf load_float(int kind, const uint8_t *w, int64_t i) {
    return kind == KIND_F32 ? vf_load((const float *)w + i) : kind == KIND_F16 ? vf_f16(w + 2 * i) : vf_bf16(w + 2 * i);
}
INLINE void tile_float(int kind, const uint8_t *w, int64_t k, const float *a, int64_t lda, int M, float *y, int64_t ldy) {
    const int E = ROW_REGS(M);
    for (int h = 0; h < NV; h += E) {
        vf sum[NV][COLS];
        zero_sums(sum, E, M);
        for (int64_t i = 0; i < k; i++) {
            if (!h && !(i & 15)) prefetch(w + i * GROUP * (kind == KIND_F32 ? 4 : 2), GROUP * 16 * (kind == KIND_F32 ? 4 : 2));
#pragma GCC unroll 4
            for (int e = 0; e < E; e++) {
                vf v = load_float(kind, w, i * GROUP + (h + e) * ROWS);
#pragma GCC unroll 8
                for (int c = 0; c < M; c++) sum[e][c] = vf_fma1(v, a + c * lda + i, sum[e][c]);
            }
        }
        store_sums(sum, E, M, y + h * ROWS, ldy);
    }
}

/* ---- entry points ------------------------------------------------------------------------------------------------------------ */

/* One function per type and tile width: sharing one body, the compiler keeps too many addresses alive. */
typedef void tile_fn(const uint8_t *w, int64_t k, const void *a, int64_t lda, int m, float *y, int64_t ldy);
#define TILE(type, M, call) \
    static __attribute__((noinline)) void type##_##M(const uint8_t *w, int64_t k, const void *a, int64_t lda, int m, float *y, int64_t ldy) { \
        (void)lda, (void)m; \
        call(type, M); \
    }
#define TILES_4(type, call) TILE(type, 1, call) TILE(type, 2, call) TILE(type, 3, call) TILE(type, 4, call)
#if COLS == 4
#define TILES(type, call) \
    TILES_4(type, call) \
    static tile_fn *const type##_tiles[COLS] = {type##_1, type##_2, type##_3, type##_4};
#else
#define TILES(type, call) \
    TILES_4(type, call) TILE(type, 5, call) TILE(type, 6, call) TILE(type, 7, call) TILE(type, 8, call) \
    static tile_fn *const type##_tiles[COLS] = {type##_1, type##_2, type##_3, type##_4, type##_5, type##_6, type##_7, type##_8};
#endif

/* m columns in steps of COLS. `step`: bytes from one activation row of the panel to the next. */
INLINE void columns(tile_fn *const *tiles, const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, size_t step, int64_t lda,
                    int m, float *y, int64_t ldy) {
    for (int64_t g = 0; g < n_groups; g++, w += group_bytes, y += GROUP)
        for (int c = 0; c < m; c += COLS) {
            int n = m - c < COLS ? m - c : COLS;
            tiles[n - 1](w, k, (const char *)a + (size_t)c * step, lda, m, y + c * ldy, ldy);
        }
}

#define MATMUL_(type, call, step) \
    TILES(type, call) \
    static void NAME(matmul_##type)(const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, int64_t lda, int m, float *y, \
                                    int64_t ldy) { \
        columns(type##_tiles, w, group_bytes, n_groups, k, a, step, lda, m, y, ldy); \
    }
#define MATMUL_ONE_BY_ONE(type, tile) MATMUL_(type, CALL_##tile, sizeof(act_unit))
#ifdef PAIRS
#include "matmul_pairs_tmpl.h"
#define MATMUL MATMUL_PAIRS
#else
#define MATMUL MATMUL_ONE_BY_ONE
#endif
#define CALL_32(type, M) tile32(&type##_format, w, k, a, m, M, y, ldy)
#define CALL_TQ1_0(type, M) tile_tq1_0(&type##_format, w, k, a, m, M, y, ldy)
#define CALL_256(type, M) tile256(&type##_format, w, k, a, m, M, y, ldy)

MATMUL(q4_0, 32) MATMUL(q4_1, 32) MATMUL(q5_0, 32) MATMUL(q5_1, 32) MATMUL(q8_0, 32) MATMUL(iq4_nl, 32)
MATMUL(mxfp4, 32) MATMUL(nvfp4, 32) MATMUL(q1_0, 32) MATMUL(q2_0, 32) MATMUL(q2_k, 256) MATMUL(q3_k, 256)
MATMUL(q4_k, 256) MATMUL(q5_k, 256) MATMUL(q6_k, 256) MATMUL(iq4_xs, 256) MATMUL_ONE_BY_ONE(tq1_0, TQ1_0) MATMUL(tq2_0, 256)

#include "matmul_codebook_tmpl.h"

#define CALL_FLOAT(kind, M) tile_float(kind, w, k, a, lda, M, y, ldy)
#define CALL_F32(type, M) CALL_FLOAT(KIND_F32, M)
#define CALL_F16(type, M) CALL_FLOAT(KIND_F16, M)
#define CALL_BF16(type, M) CALL_FLOAT(KIND_BF16, M)
MATMUL_(f32, CALL_F32, (size_t)lda * sizeof(float))
MATMUL_(f16, CALL_F16, (size_t)lda * sizeof(float))
MATMUL_(bf16, CALL_BF16, (size_t)lda * sizeof(float))

/* ---- activations ------------------------------------------------------------------------------------------------------------- */

#ifndef OWN_QUANTIZE_ACT
static void NAME(quantize_act)(const float *x, int64_t ldx, int m, int64_t k, int block, act_unit *dst) {
    for (int64_t u = 0; u < (k + 255) / 256; u++)
        for (int c = 0; c < m; c++) {
            act_unit *a = &dst[u * m + c];
            int64_t left = k - u * 256 < 256 ? k - u * 256 : 256;
            if (left < 256) memset(a, 0, sizeof *a);
            const float *p = x + c * ldx + u * 256;
            if (block == 32)
                for (int b = 0; b < left / 32; b++) a->d[b] = quantize_block(p + 32 * b, 32, a->q + 32 * b, a->sum16 + 2 * b);
            else {
                memset(a->d, 0, sizeof a->d);
                a->d[0] = quantize_block(p, 256, a->q, a->sum16);
            }
            for (int b = 0; b < 8; b++) a->sum32[b] = (int16_t)(a->sum16[2 * b] + a->sum16[2 * b + 1]);
        }
}
#endif

static int64_t NAME(dot_peak)(int64_t rounds, const int8_t *a, uint32_t *sum) {
    vi acc[PEAK_CHAINS], ones[8];
#pragma GCC unroll 10
    for (int i = 0; i < PEAK_CHAINS; i++) acc[i] = vi_set1(0);
    for (int i = 0; i < 8; i++) ones[i] = vi_set1(0x01010101);
    for (int64_t r = 0; r < rounds; r++)
#pragma GCC unroll 10
        for (int i = 0; i < PEAK_CHAINS; i++) {
            __asm__("" : "+r"(a));          /* another place, for all that the compiler knows: it must not hoist the products */
            acc[i] = dots_u(acc[i], ones, a, 8);
        }
    *sum = 0;
#pragma GCC unroll 10
    for (int i = 0; i < PEAK_CHAINS; i++) *sum += (uint32_t)vi_sum_lanes(acc[i]);
    return rounds * PEAK_CHAINS * ROWS * 32;
}

void NAME(init_matmul)(kernels *k) {
    KERNEL_LEVEL(k, dot_peak, "dot_peak", dot_peak);
    KERNEL_LEVEL(k, quantize_act, "quantize_act", quantize_act);
#define SET(TYPE, type) KERNEL_LEVEL(k, matmul[QTYPE_##TYPE], "matmul_" #type, matmul_##type);
    SET(F32, f32) SET(F16, f16) SET(BF16, bf16) SET(Q4_0, q4_0) SET(Q4_1, q4_1) SET(Q5_0, q5_0) SET(Q5_1, q5_1) SET(Q8_0, q8_0)
    SET(Q2_K, q2_k) SET(Q3_K, q3_k) SET(Q4_K, q4_k) SET(Q5_K, q5_k) SET(Q6_K, q6_k) SET(IQ4_NL, iq4_nl) SET(IQ4_XS, iq4_xs) SET(MXFP4, mxfp4)
    SET(IQ1_S, iq1_s) SET(IQ1_M, iq1_m) SET(IQ2_XXS, iq2_xxs) SET(IQ2_XS, iq2_xs) SET(IQ2_S, iq2_s) SET(IQ3_XXS, iq3_xxs) SET(IQ3_S, iq3_s)
    SET(TQ1_0, tq1_0) SET(TQ2_0, tq2_0) SET(NVFP4, nvfp4) SET(Q1_0, q1_0) SET(Q2_0, q2_0)
#undef SET
}
