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
    float x[32][16], w[32][16];     /* [element][lane] */
    float unit[16];                 /* power of two that x was divided by */
} tile;

/* What a call encodes, in pieces; see quantize_fn. */
typedef struct pieces {
    const float *x, *w;
    int64_t n, first, per_row;
} pieces;

/* How a type's pieces lie in a tile: constants, so that every encoder is compiled for its own. */
typedef struct layout {
    int elems;                      /* of a piece: 16 or 32 */
    int group;                      /* pieces of a block, which share its unit: 1, 8 or 16 */
    int weighted;
} layout;

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

/* 16 pieces from piece p on; past the end: zeros of weight 1. Weights that are all zero count as 1. */
INLINE void tile_load(tile *t, const pieces *s, int64_t p, layout y) {
    int64_t lanes = s->n - p < 16 ? s->n - p : 16;
    for (int l = 0; l < 16; l++) {
        const float *x = s->x + (p + l) * y.elems, *w = y.weighted ? s->w + (s->first + p + l) % s->per_row * y.elems : NULL;
        for (int e = 0; e < y.elems; e++) {
            t->x[e][l] = l < lanes ? x[e] : 0;
            if (y.weighted) t->w[e][l] = l < lanes ? w[e] : 1;
        }
    }
    fx top = fx_set1(0), heavy = fx_set1(0), one = fx_set1(1);
    for (int e = 0; e < y.elems; e++) {
        top = fx_max(fx_abs(tile_x(t, e)), top);
        if (y.weighted) heavy = fx_max(tile_w(t, e, 1), heavy);
    }
    fx unit = fx_power(fx_group_max(top, y.group)), scale = fx_div(one, unit);
    heavy = fx_group_max(heavy, y.group);
    fx weight_scale = fx_div(one, fx_power(heavy));
    fx_store(t->unit, unit);
    for (int e = 0; e < y.elems; e++) {
        fx_store(t->x[e], fx_mul(tile_x(t, e), scale));
        if (y.weighted) fx_store(t->w[e], fx_less(fx_set1(0), heavy, fx_mul(tile_w(t, e, 1), weight_scale), one));
    }
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
    const float *values, *borders, *codes;      /* [16]; the 15 midpoints; [16] the values' codes in the file. NULL: integers */
    const codebook *book;
} alphabet;

/* Steps down a binary tree of borders: the y[i] with borders[i-1] < v <= borders[i]. */
INLINE fx fx_choose(fx v, const float *borders, const float *y16) {
    fx t[15], y[16];
    for (int i = 0; i < 15; i++) t[i] = fx_set1(borders[i]);
    for (int i = 0; i < 16; i++) y[i] = fx_set1(y16[i]);
    for (int half = 8; half; half /= 2) {
        fx pivot = t[half - 1];
        for (int i = 0; i < half - 1; i++) t[i] = fx_less(pivot, v, t[i + half], t[i]);
        for (int i = 0; i < half; i++) y[i] = fx_less(pivot, v, y[i + half], y[i]);
    }
    return y[0];
}
/* The value nearest to v, and its code in the file. */
INLINE fx nearest(fx v, alphabet a) {
    return a.values ? fx_choose(v, a.borders, a.values) : fx_round(fx_clamp(v, a.low, a.high));
}
INLINE fx nearest_code(fx v, alphabet a) {
    return a.values ? fx_choose(v, a.borders, a.codes) : fx_add(fx_round(fx_clamp(v, a.low, a.high)), fx_set1(a.zero));
}

/* Integers, 16 lanes. */
typedef struct { vi v[NV]; } ix;
INLINE ix ix_from(fx a) { ix r; EACH r.v[i_] = vi_from_vf(a.v[i_]); return r; }
INLINE ix ix_and(ix a, int32_t mask) { EACH a.v[i_] = vi_and(a.v[i_], vi_set1(mask)); return a; }
INLINE ix ix_or_shl(ix a, ix b, int n) { EACH a.v[i_] = vi_or(a.v[i_], vi_shl(b.v[i_], n)); return a; }
INLINE void ix_store(int32_t *p, ix a) { EACH vi_store(p + i_ * ROWS, a.v[i_]); }
INLINE void ix_store_u8(uint8_t *p, ix a) { EACH vi_store_i8((int8_t *)p + i_ * ROWS, a.v[i_]); }

/* The file's codes of x * inverse + offset, piece after piece: out[16][elems]. */
INLINE void tile_codes(const tile *t, fx inverse, fx offset, alphabet a, layout y, uint8_t *out) {
    for (int e = 0; e < y.elems; e += 4) {
        int32_t words[16];
        ix c[4];
        for (int k = 0; k < 4; k++) c[k] = ix_and(ix_from(nearest_code(fx_fma(tile_x(t, e + k), inverse, offset), a)), 255);
        ix_store(words, ix_or_shl(ix_or_shl(ix_or_shl(c[0], c[1], 8), c[2], 16), c[3], 24));
        for (int l = 0; l < 16; l++) memcpy(out + l * y.elems + e, &words[l], 4);
    }
}
#endif
