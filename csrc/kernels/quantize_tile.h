/* The ground that all encoders stand on: tiles of 16 pieces (blocks, or sub-blocks of super-blocks) side by side, one piece a lane, over the
 * lanes of any simd_*.h.
 *
 * Every block of a tile is multiplied by a power of two (exact) so that its largest |x| lies in [1, 2), and its weights so that the largest lies
 * there too: squares neither overflow nor vanish, whatever the numbers. A scale found there times `unit` is the one for the file. */
#ifndef PYLLM_KERNELS_QUANTIZE_TILE_H
#define PYLLM_KERNELS_QUANTIZE_TILE_H
#include "init.h"
#include "lanes.h"

typedef struct tile {
    float x[32][16], w[32][16];     /* [element][lane]; w only if weighted */
    float unit[16];                 /* power of two that x was divided by */
    int elems, group, weighted;     /* elements of a piece: 16 or 32; pieces of a block, which share its unit: 1, 8 or 16 */
} tile;

/* What a call encodes, in pieces; see quantize_fn. */
typedef struct pieces {
    const float *x, *w;             /* w NULL: all 1 */
    int64_t n, first, per_row;
} pieces;

/* A pass over a tile: a function of its own, compiled once for each combination of constants that matters; everything above only calls passes. */
#define PASS static __attribute__((noinline)) void

#define F16_MAX 65504.0f

INLINE fx fx_abs(fx a) { return fx_and(a, 0x7fffffff); }
INLINE fx fx_round(fx a) { return fx_sub(fx_add(a, fx_set1(12582912.0f)), fx_set1(12582912.0f)); }
INLINE fx fx_clamp(fx a, float low, float high) { return fx_min(fx_max(a, fx_set1(low)), fx_set1(high)); }
/* a*b - c*d. */
INLINE fx fx_cross(fx a, fx b, fx c, fx d) { return fx_sub(fx_mul(a, b), fx_mul(c, d)); }
/* Largest power of two <= a, kept between 2^-126 and 2^126: so it and its reciprocal are exact. */
INLINE fx fx_power(fx a) { return fx_and(fx_clamp(a, 0x1p-126f, 0x1p126f), 0x7f800000); }
/* 1/a; 0 where a is 0. */
INLINE fx fx_inverse(fx a) { return fx_less(fx_set1(0), fx_abs(a), fx_div(fx_set1(1), a), fx_set1(0)); }
/* The nearest finite f16. */
INLINE fx fx_half(fx a, uint16_t *bits) {
    fx c = fx_clamp(a, -F16_MAX, F16_MAX);
    EACH vf_store_f16(bits + i_ * ROWS, c.v[i_]);
    return fx_f16(bits);
}
/* As stored in a file: d * unit as f16, back in the tile's measure. */
INLINE fx fx_stored(fx d, const tile *t, uint16_t *bits) {
    fx unit = fx_load(t->unit);
    return fx_div(fx_half(fx_mul(d, unit), bits), unit);
}
/* Every lane gets the sum, or the maximum, of its group of lanes. */
INLINE fx fx_group_sum(fx a, int group) {
    float s[16];
    fx_store(s, a);
    for (int g = 0; g < 16; g += group) {
        float sum = s[g];
        for (int i = 1; i < group; i++) sum += s[g + i];
        for (int i = 0; i < group; i++) s[g + i] = sum;
    }
    return fx_load(s);
}
INLINE fx fx_group_max(fx a, int group) {
    if (group == 1) return a;
    float s[16];
    fx_store(s, a);
    for (int g = 0; g < 16; g += group) {
        float top = s[g];
        for (int i = 1; i < group; i++) top = max32(s[g + i], top);
        for (int i = 0; i < group; i++) s[g + i] = top;
    }
    return fx_load(s);
}

INLINE fx tile_x(const tile *t, int e) { return fx_load(t->x[e]); }
INLINE fx tile_w(const tile *t, int e, int weighted) { return weighted ? fx_load(t->w[e]) : fx_set1(1); }

/* v[elems][16] from 16 pieces of p, of which n are there; `rest` instead of the others. */
INLINE void transpose(float (*v)[16], const float *const *p, int64_t n, int elems, float rest) {
    for (int l = 0; l < 16; l++)
        for (int e = 0; e < elems; e++) v[e][l] = l < n ? p[l][e] : rest;
}

/* Multiplies pieces by a power of two so that the largest |v| of each group lies in [1, 2); returns what divides it back. */
INLINE fx normalize(float (*v)[16], int elems, int group, fx *top) {
    *top = fx_set1(0);
    for (int e = 0; e < elems; e++) *top = fx_max(fx_abs(fx_load(v[e])), *top);
    *top = fx_group_max(*top, group);
    fx unit = fx_power(*top), scale = fx_div(fx_set1(1), unit);
    for (int e = 0; e < elems; e++) fx_store(v[e], fx_mul(fx_load(v[e]), scale));
    return unit;
}

/* 16 pieces from piece p on; past the end: zeros of weight 1. Weights of a block that are all zero count as 1. */
PASS tile_load(tile *t, const pieces *s, int64_t p, int elems, int group) {
    int64_t n = s->n - p < 16 ? s->n - p : 16;
    const float *x[16], *w[16];
    fx top;
    t->elems = elems;
    t->group = group;
    t->weighted = s->w != NULL;
    for (int l = 0; l < n; l++) x[l] = s->x + (p + l) * elems;
    transpose(t->x, x, n, elems, 0);
    fx_store(t->unit, normalize(t->x, elems, group, &top));
    if (!s->w) return;
    for (int l = 0; l < n; l++) w[l] = s->w + (s->first + p + l) % s->per_row * elems;
    transpose(t->w, w, n, elems, 1);
    normalize(t->w, elems, group, &top);
    for (int e = 0; e < elems; e++) fx_store(t->w[e], fx_less(fx_set1(0), top, fx_load(t->w[e]), fx_set1(1)));
}

/* ---- codes ---- */

/* A codebook of points of 4 elements (IQ3_S), all positive and odd up to 15. The sum of a point's squared distances is one of 64 for its first
   two elements plus one of 64 for the others. */
typedef struct codebook {
    const uint32_t *points;         /* [512], a byte an element */
    uint8_t first[512], second[512];
} codebook;

/* The values that codes stand for: the integers from low to high, which are value + zero in the file; 16 values in ascending order; or points. */
typedef struct alphabet {
    float low, high, zero;
    const float *values, *borders, *codes;      /* [16]; the 15 midpoints and one unused; the values' codes in the file. NULL: integers */
    const codebook *book;
} alphabet;

/* y[i] with borders[i-1] < v <= borders[i], i < 16: a search by halves. */
INLINE fx fx_choose(fx v, const float *borders, const float *y) {
    fx r;
    EACH {
        vi index = vi_set1(0);
        for (int half = 8; half; half /= 2) {
            vf border = vf_table(vi_add(index, vi_set1(half - 1)), borders);
            index = vi_add(index, vi_bits(vf_less(border, v.v[i_], vf_bits(vi_set1(half)), vf_set1(0))));
        }
        r.v[i_] = vf_table(index, y);
    }
    return r;
}
/* The value nearest to v, and its code in the file. table: whether a->values is set, a constant where this is called. */
INLINE fx nearest(fx v, const alphabet *a, int table) {
    return table ? fx_choose(v, a->borders, a->values) : fx_round(fx_clamp(v, a->low, a->high));
}
INLINE fx nearest_code(fx v, const alphabet *a, int table) {
    return table ? fx_choose(v, a->borders, a->codes) : fx_add(fx_round(fx_clamp(v, a->low, a->high)), fx_set1(a->zero));
}

/* Integers, 16 lanes. */
typedef struct { vi v[NV]; } ix;
INLINE ix ix_from(fx a) { ix r; EACH r.v[i_] = vi_from_vf(a.v[i_]); return r; }
INLINE ix ix_and(ix a, int32_t mask) { EACH a.v[i_] = vi_and(a.v[i_], vi_set1(mask)); return a; }
INLINE ix ix_or_shl(ix a, ix b, int n) { EACH a.v[i_] = vi_or(a.v[i_], vi_shl(b.v[i_], n)); return a; }
INLINE void ix_store(int32_t *p, ix a) { EACH vi_store(p + i_ * ROWS, a.v[i_]); }
INLINE void ix_store_u8(uint8_t *p, ix a) { EACH vi_store_i8((int8_t *)p + i_ * ROWS, a.v[i_]); }

INLINE void codes_of(const tile *t, fx inverse, fx offset, const alphabet *a, int table, uint8_t *out) {
    for (int e = 0; e < t->elems; e += 4) {
        int32_t words[16];
        ix c[4];
        for (int k = 0; k < 4; k++) c[k] = ix_and(ix_from(nearest_code(fx_fma(tile_x(t, e + k), inverse, offset), a, table)), 255);
        ix_store(words, ix_or_shl(ix_or_shl(ix_or_shl(c[0], c[1], 8), c[2], 16), c[3], 24));
        for (int l = 0; l < 16; l++) memcpy(out + l * t->elems + e, &words[l], 4);
    }
}
/* The file's codes of x * inverse + offset, piece after piece: out[16][elems]. */
PASS tile_codes(const tile *t, const alphabet *a, fx inverse, fx offset, uint8_t *out) {
    if (a->values) codes_of(t, inverse, offset, a, 1, out);
    else codes_of(t, inverse, offset, a, 0, out);
}
#endif
