/* Matmuls of many rows in AMX tiles. A tile register holds 16 rows of up to 64 bytes; TDPBSSD multiplies a tile of activations (rows are
 * activation rows) with a tile of weights (row r: bytes 4r..4r+3 of 16 output rows, the layout that the loaders of unpack_tmpl.h yield) and adds
 * to a tile of int32, whose rows are then a register of 16 output rows each, as everywhere else. Sums of products are exact in any order, so the
 * bits are those of every level (docs/numerics.md).
 *
 * Weights are unpacked once to the stack, for two groups and a slab of the row length, and all activation rows pass over them.
 * - Blocks of 32: a product of 32 bytes, then each of its rows is scaled and added; that is what takes the time, not the tiles.
 * - Super-blocks: code times sub-scale has up to 14 bits. It is split in two bytes, and the tiles add up the whole super-block.
 * Source of the instructions: Intel Architecture Instruction Set Extensions Programming Reference, chapter 3 (AMX). */
#include "simd_avx512vnni.h"
#undef LEVEL
#define LEVEL amx

#include "../unpack_tmpl.h"

enum {
    TILE = 16,                  /* activation rows of a tile */
    PAIR = 2,                   /* groups whose weights are unpacked at a time */
    SLAB = 16,                  /* blocks of 32 of a slab */
    SCALE_BITS = 3,             /* of the low part of a sub-scale */
    PRODUCT_BITS = 6            /* of the low part of code * sub-scale */
};

/* Instructions on tiles by number, in place of the compiler's intrinsics: some versions of those (GCC 12) don't tell the compiler that the configuration is read
   beyond its first bytes, nor that a load reads memory at all, so that what is written there may be left out. */
#define TILE_ZERO(t) __asm__ volatile("tilezero %%tmm" #t : :)
#define TILE_LOAD(t, p, stride) __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t : : "r"(p), "r"((int64_t)(stride)) : "memory")
#define TILE_STORE(t, p, stride) __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" : : "r"(p), "r"((int64_t)(stride)) : "memory")
/* sums += a * w, rows of tile a times columns of tile w, signed bytes. */
#define TILE_DOT(sums, a, w) __asm__ volatile("tdpbssd %%tmm" #w ", %%tmm" #a ", %%tmm" #sums : :)
/* The same with unsigned bytes in w. */
#define TILE_DOT_UNSIGNED(sums, a, w) __asm__ volatile("tdpbsud %%tmm" #w ", %%tmm" #a ", %%tmm" #sums : :)

/* Tile registers: 0 to 3 sums, 4 and 5 activations, 6 and 7 weights. a_bytes: 32 or 64 k. */
static void configure(int rows, int a_bytes) {
    struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } c = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        c.row_bytes[t] = (uint16_t)(t == 4 || t == 5 ? a_bytes : 64);
        c.rows[t] = (uint8_t)(t < 6 ? rows : a_bytes / 4);
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(c));
}

/* Bytes of codes as signed numbers without zero point. */
INLINE vi plain(const format *f, vi q) {
    if (f->is_signed) return vi_signed(q);          /* takes off what the loader put on */
    return f->zero ? _mm512_sub_epi8(q, _mm512_set1_epi8((char)f->zero)) : q;
}

/* ---- blocks of 32 ---------------------------------------------------------------------------------------------------- */

typedef struct slab32 {
    _Alignas(64) int8_t q[SLAB][512];
    _Alignas(64) float d[SLAB][GROUP], min[SLAB][GROUP];
} slab32;

INLINE void unpack_32(const format *f, const uint8_t *w, int blocks, slab32 *s) {
    for (int b = 0; b < blocks; b++, w += f->bytes) {
        const uint8_t *scales = w + 64 * f->dwords;
        vi q[8];
        prefetch(w, (size_t)f->bytes);
        f->load(w, 0, 0, q);
        for (int j = 0; j < 8; j++) vi_store(s->q[b] + 64 * j, plain(f, q[j]));
        vf_store(s->d[b], f->scale(scales));
        if (f->has_min) vf_store(s->min[b], vf_f16(scales + 2 * GROUP));
    }
}

/* Adds block b of up to TILE activation rows to sum. c: the products. u: the rows' units, `rows` of them. */
INLINE void add_32(const format *f, const slab32 *s, int b, const act_unit *u, int i, int rows, const int32_t c[TILE][GROUP], vf *sum) {
    vf d = vf_load(s->d[b]), min = f->has_min ? vf_load(s->min[b]) : d;
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) {
        const act_unit *a = u + (r < rows ? r : 0);
        vf da = vf_set1(a->d[i]);
        sum[r] = vf_fma(vf_from_vi(vi_load(c[r])), vf_mul(d, da), sum[r]);
        if (f->has_min) sum[r] = vf_fma(vf_set1((float)a->sum32[i]), vf_mul(min, da), sum[r]);
    }
}

/* One group, one slab of blocks [first, first + blocks) and `rows` activation rows; y: sums so far unless first is 0. m: units of a row in the panel. */
INLINE void rows_32(const format *f, const slab32 *s, int64_t first, int blocks, const act_unit *a, int m, int rows, float *y, int64_t ldy) {
    _Alignas(64) int32_t c[2][TILE][GROUP];
    vf sum[TILE];
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++) sum[r] = first && r < rows ? vf_load(y + r * ldy) : vf_set1(0);
/* n, at, wt: tiles, literal numbers. */
#define PRODUCT(n, at, wt, block) do { \
        int64_t b_ = first + (block); \
        TILE_ZERO(n); \
        TILE_LOAD(at, a[b_ / 8 * m].q + 32 * (b_ % 8), sizeof(act_unit)); \
        TILE_LOAD(wt, s->q[block], 64); \
        TILE_DOT(n, at, wt); \
        TILE_STORE(n, c[n], 64); \
    } while (0)
#define ADD(n, block) add_32(f, s, block, a + (first + (block)) / 8 * m, (int)((first + (block)) % 8), rows, c[n], sum)
    PRODUCT(0, 4, 6, 0);
    for (int b = 0; b < blocks; b += 2) {           /* the next block's products run while this one's are added */
        if (b + 1 < blocks) PRODUCT(1, 5, 7, b + 1);
        ADD(0, b);
        if (b + 1 == blocks) break;
        if (b + 2 < blocks) PRODUCT(0, 4, 6, b + 2);
        ADD(1, b + 1);
    }
#undef PRODUCT
#undef ADD
#pragma GCC unroll 16
    for (int r = 0; r < TILE; r++)
        if (r < rows) vf_store(y + r * ldy, sum[r]);
}

INLINE void panel_32(const format *f, const uint8_t *w, size_t group_bytes, int groups, int64_t k, const act_unit *a, int m, float *y, int64_t ldy) {
    slab32 s[PAIR];
    for (int64_t first = 0; first < k / 32; first += SLAB) {
        int blocks = k / 32 - first < SLAB ? (int)(k / 32 - first) : SLAB;
        for (int g = 0; g < groups; g++) unpack_32(f, w + (size_t)g * group_bytes + (size_t)(first * f->bytes), blocks, &s[g]);
        for (int r = 0; r < m; r += TILE) {
            int rows = m - r < TILE ? m - r : TILE;
            if (rows < TILE || !r) configure(rows, 32);
            for (int g = 0; g < groups; g++)
                if (rows == TILE) rows_32(f, &s[g], first, blocks, a + r, m, TILE, y + r * ldy + g * GROUP, ldy);
                else rows_32(f, &s[g], first, blocks, a + r, m, rows, y + r * ldy + g * GROUP, ldy);
        }
    }
}

/* ---- super-blocks of 256 ----------------------------------------------------------------------------------------------- */

typedef struct slab256 {
    _Alignas(64) int8_t low[4096], high[4096];
    vi mn[8];
    vf d, min;
} slab256;

/* Products in bytes of the codes of 4 rows' values, a lane each, with their sub-scales; scale: twice in a lane, as int16. In parts low and high, whose sum is
 * low + (high << bits).
 * Unsigned codes (k-quants with a minimum): the sub-scale is split, and one multiplication by 3 bits of it serves two codes, since no product leaves its byte.
 * Signed ones: the product is split. */
INLINE int is_unsigned(const format *f) { return !f->is_signed && !f->zero; }
INLINE int high_bits(const format *f) { return is_unsigned(f) ? SCALE_BITS : PRODUCT_BITS; }

INLINE void multiply_unsigned(vi q, vi scale, int parts, int8_t *low, int8_t *high) {
    const vi bits = vi_set1(0x00070007);
    vi_store(low, _mm512_mullo_epi16(q, parts > 1 ? vi_and(scale, bits) : scale));
    if (parts > 1) vi_store(high, _mm512_mullo_epi16(q, vi_and(_mm512_srli_epi32(scale, SCALE_BITS), bits)));
}

INLINE void multiply_signed(vi q, vi scale, int8_t *low, int8_t *high) {
    vi even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), scale), odd = _mm512_mullo_epi16(_mm512_srai_epi16(q, 8), scale);
    const vi bytes = vi_set1(0x00ff00ff);
    vi all = _mm512_ternarylogic_epi32(bytes, even, _mm512_slli_epi16(odd, 8), 0xca);      /* bytes ? even : odd << 8 */
    vi_store(low, vi_and(all, vi_set1(0x3f3f3f3f)));
    vi_store(high, _mm512_ternarylogic_epi32(bytes, _mm512_srai_epi16(even, PRODUCT_BITS), _mm512_slli_epi16(odd, 8 - PRODUCT_BITS), 0xca));
}

INLINE void unpack_256(const format *f, int parts, const uint8_t *w, slab256 *s) {
    const uint8_t *sp = w + 64 * f->dwords;
    vi sc[16];
    f->scales(w, sp, sc, s->mn);
    for (int i = 0; i < 256 / f->sub; i++) sc[i] = vi_or(vi_and(sc[i], vi_set1(0xffff)), vi_shl(sc[i], 16));
    int subs = f->sub == 32 ? 2 : 4;
    for (int64_t part = 0; part < 8 / subs; part++) {
        __asm__("" : "+r"(part));       /* rolled, as in matmul_tmpl.h */
        for (int i = 0; i < subs; i++) {
            int64_t b = part * subs + i;
            vi q[8];
            prefetch(w + b * (f->bytes / 8), (size_t)f->bytes / 8);
            f->load(w, part, i, q);
            for (int j = 0; j < 8; j++) {
                vi scale = sc[f->sub == 32 ? b : 2 * b + j / 4];
                int8_t *low = s->low + b * 512 + j * 64, *high = s->high + b * 512 + j * 64;
                if (is_unsigned(f)) multiply_unsigned(q[j], scale, parts, low, high);
                else multiply_signed(plain(f, q[j]), scale, low, high);
            }
        }
    }
    s->d = vf_f16(sp);
    if (f->has_min) s->min = vf_f16(sp + 2 * GROUP);
}

/* Adds a super-block of `rows` activation rows to y, or begins it. c: the products. */
INLINE void add_256(const format *f, int parts, const slab256 *s, const act_unit *a, int rows, int begin, const int32_t c[2][TILE][GROUP], float *y,
                    int64_t ldy) {
    for (int r = 0; r < rows; r++) {
        vf da = vf_set1(a[r].d[0]), sum = begin ? vf_set1(0) : vf_load(y + r * ldy);
        vi isum = vi_load(c[0][r]);
        if (parts > 1) isum = vi_add(isum, _mm512_slli_epi32(vi_load(c[1][r]), (unsigned)high_bits(f)));
        sum = vf_fma(vf_from_vi(isum), vf_mul(s->d, da), sum);
        if (f->has_min) {
            vi msum = vi_set1(0);
            for (int i = 0; i < 128 / f->sub; i++) msum = dot_pairs(msum, s->mn[i], (f->sub == 32 ? a[r].sum32 : a[r].sum16) + 2 * i);
            sum = vf_fnma(vf_from_vi(msum), vf_mul(s->min, da), sum);
        }
        vf_store(y + r * ldy, sum);
    }
}

/* Products of TILE rows with both groups' slabs: c[g][0] with the low bytes, c[g][1] with the high ones. */
INLINE void products_256(const format *f, int parts, const slab256 *s, const act_unit *a, int32_t c[PAIR][2][TILE][GROUP]) {
#define PRODUCT(n, wt, bytes) do { \
        TILE_LOAD(wt, bytes, 64); \
        if (is_unsigned(f)) TILE_DOT_UNSIGNED(n, 4, wt); \
        else TILE_DOT(n, 4, wt); \
    } while (0)
#define STEP(i) do { \
        TILE_LOAD(4, a->q + 64 * (i), sizeof(act_unit)); \
        PRODUCT(0, 6, s[0].low + 1024 * (i)); \
        PRODUCT(2, 7, s[1].low + 1024 * (i)); \
        if (parts < 2) break; \
        PRODUCT(1, 6, s[0].high + 1024 * (i)); \
        PRODUCT(3, 7, s[1].high + 1024 * (i)); \
    } while (0)
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    STEP(0);
    STEP(1);
    STEP(2);
    STEP(3);
    TILE_STORE(0, c[0][0], 64);
    TILE_STORE(2, c[1][0], 64);
    if (parts < 2) return;
    TILE_STORE(1, c[0][1], 64);
    TILE_STORE(3, c[1][1], 64);
#undef STEP
#undef PRODUCT
}

INLINE void panel_256(const format *f, int parts, const uint8_t *w, size_t group_bytes, int groups, int64_t k, const act_unit *a, int m, float *y,
                      int64_t ldy) {
    slab256 s[PAIR];
    _Alignas(64) int32_t c[2][PAIR][2][TILE][GROUP];
    for (int64_t b = 0; b < k / 256; b++, w += f->bytes, a += m) {
        unpack_256(f, parts, w, &s[0]);
        if (groups > 1) unpack_256(f, parts, w + group_bytes, &s[1]);
        else if (!b) memset(&s[1], 0, sizeof s[1]);
        for (int r = 0, turn = 0, before = 0; r < m + TILE; before = r, r += TILE, turn ^= 1) {
            int rows = m - r < TILE ? m - r : TILE, last = m - before < TILE ? m - before : TILE;
            if (r < m) {                /* the next rows' products run while the last ones' are added */
                if (rows < TILE || !r) configure(rows, 64);
                products_256(f, parts, s, a + r, c[turn]);
            }
            for (int g = 0; g < groups && r; g++)
                add_256(f, parts, &s[g], a + before, last, !b, c[turn ^ 1][g], y + before * ldy + g * GROUP, ldy);
        }
    }
}

/* ---- entry points ------------------------------------------------------------------------------------------------------------ */

#define MATMUL(type, call) \
    static __attribute__((noinline)) void type##_pair(const uint8_t *w, size_t group_bytes, int groups, int64_t k, const act_unit *a, int m, float *y, \
                                                      int64_t ldy) { \
        call; \
    } \
    static void NAME(matmul_wide_##type)(const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, int64_t lda, int m, float *y, \
                                         int64_t ldy) { \
        (void)lda; \
        for (int64_t g = 0; g < n_groups; g += PAIR, w += PAIR * group_bytes, y += PAIR * GROUP) \
            type##_pair(w, group_bytes, n_groups - g < PAIR ? (int)(n_groups - g) : PAIR, k, a, m, y, ldy); \
        __asm__ volatile("tilerelease"); \
    }
#define MATMUL_32(type) MATMUL(type, panel_32(&type##_format, w, group_bytes, groups, k, a, m, y, ldy))
#define MATMUL_256(type, parts) MATMUL(type, panel_256(&type##_format, parts, w, group_bytes, groups, k, a, m, y, ldy))
MATMUL_32(q4_0) MATMUL_32(q4_1) MATMUL_32(q5_0) MATMUL_32(q5_1) MATMUL_32(q8_0) MATMUL_32(iq4_nl) MATMUL_32(mxfp4)
MATMUL_256(q2_k, 1) MATMUL_256(q3_k, 2) MATMUL_256(q4_k, 2) MATMUL_256(q5_k, 2) MATMUL_256(q6_k, 2) MATMUL_256(iq4_xs, 2)

static int64_t NAME(dot_peak)(int64_t rounds, const int8_t *a, uint32_t *sum) {
    _Alignas(64) int8_t rows[TILE][64], ones[TILE][64];
    _Alignas(64) int32_t c[TILE][GROUP];
    for (int r = 0; r < TILE; r++) memcpy(rows[r], a, 32), memcpy(rows[r] + 32, a, 32);
    memset(ones, 1, sizeof ones);
    configure(TILE, 64);
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    TILE_LOAD(4, rows, 64);
    TILE_LOAD(6, ones, 64);
    for (int64_t r = 0; r < rounds; r++) {
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 6);
        TILE_DOT(2, 4, 6);
        TILE_DOT(3, 4, 6);
    }
    *sum = 0;
#define SUM(n) do { \
        TILE_STORE(n, c, 64); \
        for (int r = 0; r < TILE; r++) *sum += (uint32_t)vi_sum_lanes(vi_load(c[r])); \
    } while (0)
    SUM(0);
    SUM(1);
    SUM(2);
    SUM(3);
#undef SUM
    __asm__ volatile("tilerelease");
    return rounds * 4 * TILE * GROUP * 64;
}

void NAME(init_matmul)(kernels *k) {
    KERNEL_LEVEL(k, dot_peak, "dot_peak", dot_peak);
#define SET(TYPE, type) KERNEL_LEVEL(k, matmul_wide[QTYPE_##TYPE], "matmul_wide_" #type, matmul_wide_##type);
    SET(Q4_0, q4_0) SET(Q4_1, q4_1) SET(Q5_0, q5_0) SET(Q5_1, q5_1) SET(Q8_0, q8_0) SET(IQ4_NL, iq4_nl) SET(MXFP4, mxfp4)
    SET(Q2_K, q2_k) SET(Q3_K, q3_k) SET(Q4_K, q4_k) SET(Q5_K, q5_k) SET(Q6_K, q6_k) SET(IQ4_XS, iq4_xs)
#undef SET
}
