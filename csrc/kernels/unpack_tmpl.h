/* What the loops of a matmul need to know of every format: include a simd_*.h first. pack.c fixes the bytes.
 *
 * Each format supplies a loader that yields 32 k as 8 vectors (4 consecutive k a lane, lanes are output rows) and, for super-blocks, its
 * sub-scales. */
#include "../base/math.h"
#include "../formats/decode.h"
#include "dots.h"
#include "init.h"

#include <string.h>

/* Weights stream from memory: fetch a fixed distance ahead, into L2, which leaves the few miss buffers of L1 to the loads, and spread over the work,
   not a super-block at once. Against 4608 bytes in bursts, on a Xeon with AMX (DDR5, 17 GB/s a core): tokens of 1.5 B weights 1.18x as fast, four
   at a time 1.25x. */
enum { AHEAD = 6144 };
INLINE void prefetch(const uint8_t *p, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(p + AHEAD + i, 0, 2);
}

/* Vector i of a half: file dword i of ROWS rows. */
INLINE vi dwords(const uint8_t *p, int i) { return vi_load(p + 64 * i); }
INLINE vi nibbles(vi v, int high) { return high ? vi_high4(v) : vi_and(v, vi_set1(0x0f0f0f0f)); }

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
    void (*scales)(const uint8_t *p, const uint8_t *sp, vi *sc, vi *mn);    /* super-blocks; NULL: all sub-scales are 1. sp: the 2-byte fields */
} format;

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

/* 6-bit scales and minima of Q4_K and Q5_K: sc[8] int32; mn[4] for dots_pairs. */
INLINE void scales_k4(const uint8_t *p, int first, vi *sc, vi *mn) {
    vi a = dwords(p, first), b = dwords(p, first + 1), c = dwords(p, first + 2), six = vi_set1(0x3f3f3f3f), low = vi_set1(0x0f0f0f0f), top = vi_set1(0x30303030);
    vi s[2] = {vi_and(a, six), vi_or(vi_and(c, low), vi_and(vi_shr(a, 2), top))};
    vi m[2] = {vi_and(b, six), vi_or(vi_and(vi_shr(c, 4), low), vi_and(vi_shr(b, 2), top))};
    for (int i = 0; i < 8; i++) sc[i] = byte_of(s[i / 4], i % 4);
    for (int i = 0; i < 4; i++) mn[i] = vi_pairs(m[i / 2], i % 2);
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
    for (int i = 0; i < 8; i++) mn[i] = vi_pairs(nibbles(dwords(p, 16 + i / 2), 1), i % 2);
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

#define FORMAT(type, ...) static const format type##_format = {__VA_ARGS__};
FORMAT(q4_0, .load = load_q4, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 8, .scale = scale_f16, .scale_bytes = 2)
FORMAT(q4_1, .load = load_q4, .run = 8, .dwords = 4, .bytes = 20 * 16, .has_min = 1, .scale = scale_f16, .scale_bytes = 2)
FORMAT(q5_0, .load = load_q5, .run = 4, .dwords = 5, .bytes = 22 * 16, .zero = 16, .scale = scale_f16, .scale_bytes = 2)
FORMAT(q5_1, .load = load_q5, .run = 4, .dwords = 5, .bytes = 24 * 16, .has_min = 1, .scale = scale_f16, .scale_bytes = 2)
FORMAT(q8_0, .load = load_q8_0, .run = 1, .dwords = 8, .bytes = 34 * 16, .is_signed = 1, .scale = scale_f16, .scale_bytes = 2)
FORMAT(iq4_nl, .load = load_iq4_nl, .run = 1, .dwords = 4, .bytes = 18 * 16, .is_signed = 1, .scale = scale_f16, .scale_bytes = 2)
FORMAT(mxfp4, .load = load_mxfp4, .run = 8, .dwords = 4, .bytes = 17 * 16, .is_signed = 1, .scale = scale_e8m0, .scale_bytes = 1)
FORMAT(nvfp4, .load = load_nvfp4, .run = 4, .dwords = 8, .bytes = 36 * 16, .zero = 12, .scale = scale_ue4m3, .scale_bytes = 1, .parts = 2, .each16 = 1)
FORMAT(q1_0, .load = load_q1_0, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 1, .scale = scale_f16, .scale_bytes = 2, .parts = 4)
FORMAT(q2_0, .load = load_q2_0, .run = 8, .dwords = 4, .bytes = 18 * 16, .zero = 1, .scale = scale_f16, .scale_bytes = 2, .parts = 2)
FORMAT(q2_k, .load = load_q2_k, .run = 8, .dwords = 20, .bytes = 84 * 16, .has_min = 1, .sub = 16, .scales = scales_q2_k)
FORMAT(q3_k, .load = load_q3_k, .run = 8, .dwords = 27, .bytes = 112 * 16, .zero = 4, .sub = 16, .scales = scales_q3_k)
FORMAT(q4_k, .load = load_q4_k, .run = 8, .dwords = 35, .bytes = 144 * 16, .has_min = 1, .sub = 32, .scales = scales_q4_k)
FORMAT(q5_k, .load = load_q5_k, .run = 4, .dwords = 43, .bytes = 176 * 16, .has_min = 1, .sub = 32, .scales = scales_q5_k)
FORMAT(q6_k, .load = load_q6_k, .run = 2, .dwords = 52, .bytes = 212 * 16, .zero = 32, .sub = 16, .scales = scales_q6_k)
FORMAT(iq4_xs, .load = load_iq4_xs, .run = 1, .dwords = 33, .bytes = 136 * 16, .is_signed = 1, .sub = 32, .scales = scales_iq4_xs)
FORMAT(tq1_0, .run = 8, .dwords = 13, .bytes = 56 * 16)
FORMAT(tq2_0, .load = load_q2_k, .run = 8, .dwords = 16, .bytes = 68 * 16, .zero = 1, .sub = 32)
#undef FORMAT
