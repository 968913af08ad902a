/* Matmuls over packed groups for one level: include a simd_*.h first. pack.c fixes the bytes, docs/numerics.md the order of float operations.
 *
 * Lanes are output rows. A register tile is ROWS rows by up to COLS activation rows. Each format supplies a loader that yields 32 k as 8
 * vectors (4 consecutive k a lane) and, for super-blocks, its sub-scales; the loops are shared. The weight's zero point is taken off by
 * starting the integer accumulator at -zero * sum(a), which is exact. */
#include "../base/math.h"
#include "../formats/decode.h"
#include "init.h"
#include "lanes.h"

#include <string.h>

/* Weights stream from memory: fetch a fixed distance ahead. A whole super-block at once into L2 (far) leaves the few miss buffers of L1 to
   the loads, which is worth up to a third; where unpacking leaves no slack for L2's latency, spreading into L1 is. Measured on Zen 4. */
enum { AHEAD = 4608 };
INLINE void prefetch(const uint8_t *p, size_t bytes, int far) {
    for (size_t i = 0; i < bytes; i += 64)
        if (far) __builtin_prefetch(p + AHEAD + i, 0, 2);
        else __builtin_prefetch(p + AHEAD + i, 0, 3);
}

/* Vector i of a half: file dword i of ROWS rows. */
INLINE vi dwords(const uint8_t *p, int i) { return vi_load(p + 64 * i); }
INLINE vi nibbles(vi v, int high) { return vi_and(high ? vi_shr(v, 4) : v, vi_set1(0x0f0f0f0f)); }

/* p: the block's dwords. Blocks of 32 and smaller ones in one file block: the 32 values number part. Super-blocks: see there. */
typedef void load_fn(const uint8_t *p, int64_t part, int i, vi *q);

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------------- */

INLINE void load_q4(const uint8_t *p, int64_t part, int i, vi *q) {
    (void)part, (void)i;
    for (int j = 0; j < 4; j++) {
        vi v = dwords(p, j);
        q[j] = nibbles(v, 0);
        q[j + 4] = nibbles(v, 1);
    }
}
/* Fifth bits of vector j (4 consecutive k a lane): bit j of each byte. */
INLINE vi bit5(vi qh, int j) { return vi_shl(vi_and(vi_shr(qh, j), vi_set1(0x01010101)), 4); }
INLINE void load_q5(const uint8_t *p, int64_t part, int i, vi *q) {
    load_q4(p, part, i, q);
    vi qh = dwords(p, 4);
    for (int j = 0; j < 8; j++) q[j] = vi_or(q[j], bit5(qh, j));
}
INLINE void load_q8_0(const uint8_t *p, int64_t part, int i, vi *q) {
    (void)part, (void)i;
    for (int j = 0; j < 8; j++) q[j] = vi_signed(dwords(p, j));
}
INLINE void load_table(const uint8_t *p, const int8_t *table, vi *q) {
    load_q4(p, 0, 0, q);
    for (int j = 0; j < 8; j++) q[j] = vi_signed(vi_lookup(q[j], table));
}
INLINE void load_iq4_nl(const uint8_t *p, int64_t part, int i, vi *q) { (void)part, (void)i; load_table(p, iq4_values, q); }
INLINE void load_mxfp4(const uint8_t *p, int64_t part, int i, vi *q) { (void)part, (void)i; load_table(p, fp4_values, q); }
/* NVFP4: 2 dwords for each 16, low nibbles first; the 4-bit floats plus 12, so that they are unsigned. */
static const int8_t fp4_codes[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
INLINE void load_nvfp4(const uint8_t *p, int64_t part, int i, vi *q) {
    (void)i;
    for (int j = 0; j < 8; j++) q[j] = vi_lookup(nibbles(dwords(p + part * 256, j / 4 * 2 + j % 2), j / 2 % 2), fp4_codes);
}
/* Q1_0: a dword for 32, of 4 neighbours a bit of each byte; twice the bit, with zero point 1, is +-1. Q2_0: 2 dwords, of 4 neighbours 2 bits of each byte. */
INLINE void load_q1_0(const uint8_t *p, int64_t part, int i, vi *q) {
    (void)i;
    vi v = vi_keep(dwords(p, (int)part));
    for (int j = 0; j < 8; j++) q[j] = vi_and(j ? vi_shr(v, j - 1) : vi_shl(v, 1), vi_set1(0x02020202));
}
INLINE void load_q2_0(const uint8_t *p, int64_t part, int i, vi *q) {
    (void)i;
    vi v[2] = {vi_keep(dwords(p, (int)part * 2)), vi_keep(dwords(p, (int)part * 2 + 1))};
    for (int j = 0; j < 8; j++) q[j] = vi_and(vi_shr(v[j / 4], j % 4 * 2), vi_set1(0x03030303));
}

typedef vf scale_fn(const uint8_t *p);
INLINE vf scale_f16(const uint8_t *p) { return vf_f16(p); }
INLINE vf scale_ue4m3(const uint8_t *p) { return vf_mul(vf_ue4m3(p), vf_set1(128)); }      /* ue4m3_half of decode.h, exact */
/* e8m0_half of decode.h: (e - 1) << 23 from 2 on, which is then the larger of the two; below, the subnormals. */
INLINE vf scale_e8m0(const uint8_t *p) {
    vi e = vi_u8(p), one = vi_set1(1);
    return vf_bits(vi_max(vi_mul(vi_set1(0x00200000), vi_add(e, one)), vi_shl(vi_sub(e, one), 23)));
}

/* What the loops need to know of a format; constant after inlining. */
typedef struct format {
    load_fn *load;
    int dwords;                 /* 4-byte fields of a block, before the shorter ones */
    int bytes;                  /* of a packed block column (pack_column_bytes) */
    int zero;                   /* zero point of unsigned codes */
    int is_signed;              /* codes are signed bytes instead */
    int run;                    /* vectors of codes, a power of 2 up to 8, whose products with 127 add up in int16: 32767 / (2 * 127 * largest) */
    int has_min;
    scale_fn *scale;            /* blocks of 32: the float scale, of scale_bytes a row */
    int scale_bytes;
    int parts;                  /* blocks of 32 in one file block, a divisor of 8; 0 as 1 */
    int each16;                 /* blocks of 32: a scale for each 16, not one for the file block */
    int words, d_at;            /* codebooks: 8-byte words of a block, behind the dwords; which of the 2-byte fields behind them is d */
    float factor;               /* codebooks: of d, a power of 2 */
    int sub;                    /* super-blocks: elements of a sub-scale, 16 or 32 */
    int near;                   /* super-blocks: prefetch into L1, spread over the sub-blocks */
    void (*scales)(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn);    /* super-blocks; NULL: all sub-scales are 1. sp: the 2-byte fields */
} format;

INLINE vi dot32(const format *f, const vi *q, const int8_t *a, int from, int to, int32_t start) {
    vi acc = vi_set1(start);
    int run = f->run < to - from ? f->run : to - from;
    for (int j = from; j < to; j += run) acc = f->is_signed ? dots_s(acc, q + j, a + 4 * j, run) : dots_u(acc, q + j, a + 4 * j, run);
    return acc;
}

INLINE int32_t start_of(const format *f, int32_t sum) { return f->is_signed ? signed_start(sum) : -f->zero * sum; }

INLINE void tile32(const format *f, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    int parts = f->parts ? f->parts : 1;
    for (int h = 0; h < GROUP / ROWS; h++) {
        vf sum[COLS];
        for (int c = 0; c < M; c++) sum[c] = vf_set1(0);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * f->scale_bytes;
        for (int64_t b = 0; b < k / 32; b += parts, p += f->bytes, sp += f->bytes) {
            const act_unit *u = a + b / 8 * m;
            if (!h) prefetch(p, (size_t)f->bytes, 0);
            vf d = f->each16 ? vf_set1(0) : f->scale(sp), min = f->has_min ? vf_f16(sp + 2 * GROUP) : d;
            for (int part = 0; part < parts; part++) {
                int i = (int)(b % 8) + part;
                vi q[8];
                f->load(p, part, 0, q);
                vf d0 = d, d1 = d;
                if (f->each16) d0 = f->scale(sp + 2 * part * GROUP), d1 = f->scale(sp + (2 * part + 1) * GROUP);
#pragma GCC unroll 8
                for (int c = 0; c < M; c++) {
                    const int8_t *x = u[c].q + 32 * i;
                    vf da = vf_set1(u[c].d[i]);
                    if (f->each16) {
                        vi lo = dot32(f, q, x, 0, 4, start_of(f, u[c].sum16[2 * i])), hi = dot32(f, q, x, 4, 8, start_of(f, u[c].sum16[2 * i + 1]));
                        sum[c] = vf_fma(vf_from_vi(hi), vf_mul(d1, da), vf_fma(vf_from_vi(lo), vf_mul(d0, da), sum[c]));
                        continue;
                    }
                    sum[c] = vf_fma(vf_from_vi(dot32(f, q, x, 0, 8, start_of(f, u[c].sum32[i]))), vf_mul(d, da), sum[c]);
                    if (f->has_min) sum[c] = vf_fma(vf_set1((float)u[c].sum32[i]), vf_mul(min, da), sum[c]);
                }
            }
        }
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + h * ROWS, sum[c]);
    }
}

/* ---- super-blocks of 256 ------------------------------------------------------------------------------------------------ */

/* A super-block is walked in parts: 4 of 2 sub-blocks of 32 where there are sub-scales per 32, else 2 of 4. part is a run-time number, i one of
   the compiler's, so that shifts are constants. */
/* Q4_K: qs 0..31, scales 32..34. Part: 8 dwords, low nibbles first. */
INLINE void load_q4_k(const uint8_t *p, int64_t part, int i, vi *q) {
    for (int j = 0; j < 8; j++) q[j] = nibbles(dwords(p + part * 512, j), i);
}
/* Q5_K: qs 0..31, qh 32..39 (bit s of byte k: element k of sub-block s), scales 40..42. */
INLINE void load_q5_k(const uint8_t *p, int64_t part, int i, vi *q) {
    load_q4_k(p, part, i, q);
    for (int j = 0; j < 8; j++)
        q[j] = vi_or(q[j], vi_shl(vi_and(vi_shr(dwords(p, 32 + j), (int)part * 2 + i), vi_set1(0x01010101)), 4));
}
/* IQ4_XS: qs 0..31 (4 a sub-block, low nibbles first), scales_l 32, then 2-byte d and scales_h. */
INLINE void load_iq4_xs(const uint8_t *p, int64_t part, int i, vi *q) { load_table(p + part * 512 + i * 256, iq4_values, q); }
/* Q6_K: ql 0..31, qh 32..47, scales 48..51. Part: 16 dwords of ql, 8 of qh. */
INLINE void load_q6_k(const uint8_t *p, int64_t part, int i, vi *q) {
    for (int j = 0; j < 8; j++) {
        vi h = dwords(p + 2048 + part * 512, j), high = vi_and(i < 2 ? vi_shl(h, 4 - 2 * i) : vi_shr(h, 2 * i - 4), vi_set1(0x30303030));
        q[j] = vi_or(nibbles(dwords(p + part * 1024, i % 2 * 8 + j), i / 2), high);
    }
}
/* Q2_K: qs 0..15, scales 16..19. Q3_K: qs 0..15, hmask 16..23, scales 24..26. */
INLINE void load_q2_k(const uint8_t *p, int64_t part, int i, vi *q) {
    for (int j = 0; j < 8; j++) q[j] = vi_and(vi_shr(dwords(p + part * 512, j), 2 * i), vi_set1(0x03030303));
}
INLINE void load_q3_k(const uint8_t *p, int64_t part, int i, vi *q) {
    load_q2_k(p, part, i, q);
    for (int j = 0; j < 8; j++)
        q[j] = vi_or(q[j], vi_shl(vi_and(vi_shr(dwords(p, 16 + j), (int)part * 4 + i), vi_set1(0x01010101)), 2));
}

INLINE vi byte_of(vi v, int i) { return vi_and(vi_shr(v, 8 * i), vi_set1(255)); }

/* 6-bit scales and minima of Q4_K and Q5_K: sc[8] int32; mn[4] pairs of int16. */
INLINE void scales_k4(const uint8_t *p, int first, vi *sc, vi *mn) {
    vi a = dwords(p, first), b = dwords(p, first + 1), c = dwords(p, first + 2), six = vi_set1(0x3f3f3f3f), low = vi_set1(0x0f0f0f0f), top = vi_set1(0x30303030);
    vi s[2] = {vi_and(a, six), vi_or(vi_and(c, low), vi_and(vi_shr(a, 2), top))};
    vi m[2] = {vi_and(b, six), vi_or(vi_and(vi_shr(c, 4), low), vi_and(vi_shr(b, 2), top))};
    for (int i = 0; i < 8; i++) sc[i] = byte_of(s[i / 4], i % 4);
    for (int i = 0; i < 4; i++) mn[i] = vi_or(byte_of(m[i / 2], i % 2 * 2), vi_shl(byte_of(m[i / 2], i % 2 * 2 + 1), 16));
}
INLINE void scales_q4_k(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) { (void)sp; scales_k4(p, 32, sc, mn); }
INLINE void scales_q5_k(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) { (void)sp; scales_k4(p, 40, sc, mn); }
INLINE void scales_q6_k(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) {
    (void)sp, (void)mn;
    for (int i = 0; i < 16; i++) sc[i] = vi_sra(vi_shl(dwords(p, 48 + i / 4), 24 - 8 * (i % 4)), 24);
}
INLINE void scales_q2_k(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) {
    (void)sp;
    for (int i = 0; i < 16; i++) sc[i] = vi_and(byte_of(dwords(p, 16 + i / 4), i % 4), vi_set1(15));
    for (int i = 0; i < 8; i++) {
        vi v = dwords(p, 16 + i / 2);
        mn[i] = vi_or(vi_shr(byte_of(v, i % 2 * 2), 4), vi_shl(vi_shr(byte_of(v, i % 2 * 2 + 1), 4), 16));
    }
}
INLINE void scales_q3_k(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) {
    (void)sp, (void)mn;
    for (int i = 0; i < 16; i++) {
        vi low = vi_and(vi_shr(dwords(p, 24 + i / 4 % 2), 8 * (i % 4) + i / 8 * 4), vi_set1(15));
        vi high = vi_and(vi_shr(dwords(p, 26), 8 * (i % 4) + i / 4 * 2), vi_set1(3));
        sc[i] = vi_sub(vi_or(low, vi_shl(high, 4)), vi_set1(32));
    }
}
/* scales_h follows d as a 2-byte field. */
INLINE void scales_iq4_xs(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn) {
    (void)mn;
    vi l = dwords(p, 32), h = vi_u16(sp + 2 * GROUP);
    for (int i = 0; i < 8; i++)
        sc[i] = vi_sub(vi_or(vi_and(vi_shr(l, 4 * i), vi_set1(15)), vi_shl(vi_and(vi_shr(h, 2 * i), vi_set1(3)), 4)), vi_set1(32));
}

/* Products of sub-block s with row x, times its sub-scale or its two. */
INLINE vi scaled_dots(const format *f, const vi *q, const act_unit *x, int64_t s, const vi *sc) {
    if (f->sub == 32) return vi_mul(dot32(f, q, x->q + 32 * s, 0, 8, start_of(f, x->sum32[s])), sc[s]);
    vi lo = dot32(f, q, x->q + 32 * s, 0, 4, start_of(f, x->sum16[2 * s])), hi = dot32(f, q, x->q + 32 * s, 4, 8, start_of(f, x->sum16[2 * s + 1]));
    return vi_add(vi_mul(lo, sc[2 * s]), vi_mul(hi, sc[2 * s + 1]));
}

INLINE void tile256(const format *f, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    for (int h = 0; h < GROUP / ROWS; h++) {
        vf sum[COLS];
        for (int c = 0; c < M; c++) sum[c] = vf_set1(0);
        const uint8_t *p = w + h * ROWS * 4, *sp = w + 64 * f->dwords + h * ROWS * 2;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, sp += f->bytes, a += m) {
            vi sc[16], mn[8], isum[COLS];
            if (!h && !f->near) prefetch(p, (size_t)f->bytes, 1);
            if (f->scales) f->scales(p, sp, sc, mn);
            for (int c = 0; c < M; c++) isum[c] = vi_set1(0);
            int subs = f->sub == 32 && f->scales ? 2 : 4;
            for (int64_t part = 0; part < 8 / subs; part++) {
                __asm__("" : "+r"(part));       /* a rolled loop: unrolled whole, the unpacking of all parts would be hoisted and spilled */
                for (int i = 0; i < subs; i++) {
                    int64_t s = part * subs + i;
                    vi q[8];
                    if (!h && f->near) prefetch(p + s * (f->bytes / 8), (size_t)f->bytes / 8, 0);
                    f->load(p, part, i, q);
#pragma GCC unroll 8
                    for (int c = 0; c < M; c++)
                        isum[c] = vi_add(isum[c], f->scales ? scaled_dots(f, q, &a[c], s, sc)
                                                            : dot32(f, q, a[c].q + 32 * s, 0, 8, start_of(f, a[c].sum32[s])));
                }
            }
            vf d = vf_f16(sp), min = f->has_min ? vf_f16(sp + 2 * GROUP) : d;
            for (int c = 0; c < M; c++) {
                vf da = vf_set1(a[c].d[0]);
                sum[c] = vf_fma(vf_from_vi(isum[c]), vf_mul(d, da), sum[c]);
                if (!f->has_min) continue;
                vi msum = vi_set1(0);
                for (int i = 0; i < 128 / f->sub; i++) msum = dot_pairs(msum, mn[i], (f->sub == 32 ? a[c].sum32 : a[c].sum16) + 2 * i);
                sum[c] = vf_fnma(vf_from_vi(msum), vf_mul(min, da), sum[c]);
            }
        }
        a -= k / 256 * m;
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + h * ROWS, sum[c]);
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
            if (!h) prefetch(p, (size_t)f->bytes, 1);
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
    for (int h = 0; h < GROUP / ROWS; h++) {
        vf sum[COLS];
        for (int c = 0; c < M; c++) sum[c] = vf_set1(0);
        for (int64_t i = 0; i < k; i++) {
            if (!h && !(i & 15)) prefetch(w + i * GROUP * (kind == KIND_F32 ? 4 : 2), GROUP * 16 * (kind == KIND_F32 ? 4 : 2), 0);
            vf v = load_float(kind, w, i * GROUP + h * ROWS);
#pragma GCC unroll 8
            for (int c = 0; c < M; c++) sum[c] = vf_fma1(v, a + c * lda + i, sum[c]);
        }
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + h * ROWS, sum[c]);
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
#define MATMUL(type, tile, ...) \
    static const format type##_format = {__VA_ARGS__}; \
    MATMUL_(type, CALL_##tile, sizeof(act_unit))
#define CALL_32(type, M) tile32(&type##_format, w, k, a, m, M, y, ldy)
#define CALL_TQ1_0(type, M) tile_tq1_0(&type##_format, w, k, a, m, M, y, ldy)
#define CALL_256(type, M) tile256(&type##_format, w, k, a, m, M, y, ldy)

MATMUL(q4_0, 32, .load = load_q4, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 8, .scale = scale_f16, .scale_bytes = 2)
MATMUL(q4_1, 32, .load = load_q4, .run = 8, .dwords = 4, .bytes = 20 * 16, .has_min = 1, .scale = scale_f16, .scale_bytes = 2)
MATMUL(q5_0, 32, .load = load_q5, .run = 4, .dwords = 5, .bytes = 22 * 16, .zero = 16, .scale = scale_f16, .scale_bytes = 2)
MATMUL(q5_1, 32, .load = load_q5, .run = 4, .dwords = 5, .bytes = 24 * 16, .has_min = 1, .scale = scale_f16, .scale_bytes = 2)
MATMUL(q8_0, 32, .load = load_q8_0, .run = 1, .dwords = 8, .bytes = 34 * 16, .is_signed = 1, .scale = scale_f16, .scale_bytes = 2)
MATMUL(iq4_nl, 32, .load = load_iq4_nl, .run = 1, .dwords = 4, .bytes = 18 * 16, .is_signed = 1, .scale = scale_f16, .scale_bytes = 2)
MATMUL(mxfp4, 32, .load = load_mxfp4, .run = 8, .dwords = 4, .bytes = 17 * 16, .is_signed = 1, .scale = scale_e8m0, .scale_bytes = 1)
MATMUL(nvfp4, 32, .load = load_nvfp4, .run = 4, .dwords = 8, .bytes = 36 * 16, .zero = 12, .scale = scale_ue4m3, .scale_bytes = 1, .parts = 2, .each16 = 1)
MATMUL(q1_0, 32, .load = load_q1_0, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 1, .scale = scale_f16, .scale_bytes = 2, .parts = 4)
MATMUL(q2_0, 32, .load = load_q2_0, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 1, .scale = scale_f16, .scale_bytes = 2, .parts = 2)
MATMUL(q2_k, 256, .load = load_q2_k, .run = 8, .dwords = 20, .bytes = 84 * 16, .has_min = 1, .sub = 16, .scales = scales_q2_k)
MATMUL(q3_k, 256, .load = load_q3_k, .run = 8, .dwords = 27, .bytes = 112 * 16, .zero = 4, .sub = 16, .near = 1, .scales = scales_q3_k)
MATMUL(q4_k, 256, .load = load_q4_k, .run = 8, .dwords = 35, .bytes = 144 * 16, .has_min = 1, .sub = 32, .scales = scales_q4_k)
MATMUL(q5_k, 256, .load = load_q5_k, .run = 4, .dwords = 43, .bytes = 176 * 16, .has_min = 1, .sub = 32, .near = 1, .scales = scales_q5_k)
MATMUL(q6_k, 256, .load = load_q6_k, .run = 2, .dwords = 52, .bytes = 212 * 16, .zero = 32, .sub = 16, .scales = scales_q6_k)
MATMUL(iq4_xs, 256, .load = load_iq4_xs, .run = 1, .dwords = 33, .bytes = 136 * 16, .is_signed = 1, .sub = 32, .scales = scales_iq4_xs)
MATMUL(tq1_0, TQ1_0, .run = 8, .dwords = 13, .bytes = 56 * 16)
MATMUL(tq2_0, 256, .load = load_q2_k, .run = 8, .dwords = 16, .bytes = 68 * 16, .zero = 1, .sub = 32)

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
