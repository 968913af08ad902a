/* The ground that all encoders stand on: tiles of 16 blocks side by side, one block a lane, over the lanes of any simd_*.h.
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

/* Where the blocks of a call are and which weights are theirs; see quantize_fn. */
typedef struct blocks {
    const float *x, *w;
    int64_t n, first, per_row;
} blocks;

#define F16_MAX 65504.0f

INLINE fx fx_abs(fx a) { return fx_and(a, 0x7fffffff); }
INLINE fx fx_round(fx a) { return fx_sub(fx_add(a, fx_set1(12582912.0f)), fx_set1(12582912.0f)); }
INLINE fx fx_clamp(fx a, float low, float high) { return fx_min(fx_max(a, fx_set1(low)), fx_set1(high)); }
/* Largest power of two <= a, kept between 2^-126 and 2^126: so it and its reciprocal are exact. */
INLINE fx fx_power(fx a) { return fx_and(fx_clamp(a, 0x1p-126f, 0x1p126f), 0x7f800000); }
/* 1/a; 0 where |a| is 0. */
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

/* 16 blocks of `elems` from block b on; past the end: zeros of weight 1. Every lane has its own unit. */
INLINE void tile_load(tile *t, const blocks *s, int64_t b, int elems, int weighted) {
    int64_t lanes = s->n - b < 16 ? s->n - b : 16;
    for (int l = 0; l < 16; l++) {
        const float *x = s->x + (b + l) * elems, *w = weighted ? s->w + (s->first + b + l) % s->per_row * elems : NULL;
        for (int e = 0; e < elems; e++) {
            t->x[e][l] = l < lanes ? x[e] : 0;
            if (weighted) t->w[e][l] = l < lanes ? w[e] : 1;
        }
    }
    fx top = fx_set1(0), heavy = fx_set1(0);
    for (int e = 0; e < elems; e++) {
        top = fx_max(fx_abs(fx_load(t->x[e])), top);
        if (weighted) heavy = fx_max(fx_load(t->w[e]), heavy);
    }
    fx unit = fx_power(top), scale = fx_div(fx_set1(1), unit), one = fx_set1(1), zero = fx_set1(0);
    fx weight_scale = fx_div(one, fx_power(heavy));
    fx_store(t->unit, unit);
    for (int e = 0; e < elems; e++) {
        fx_store(t->x[e], fx_mul(fx_load(t->x[e]), scale));
        if (weighted) fx_store(t->w[e], fx_less(zero, heavy, fx_mul(fx_load(t->w[e]), weight_scale), one));
    }
}
INLINE fx tile_x(const tile *t, int e) { return fx_load(t->x[e]); }
INLINE fx tile_w(const tile *t, int e, int weighted) { return weighted ? fx_load(t->w[e]) : fx_set1(1); }

/* Codes as integers, 16 lanes. */
typedef struct { vi v[NV]; } ix;
INLINE ix ix_from(fx a) { ix r; EACH r.v[i_] = vi_from_vf(a.v[i_]); return r; }
INLINE ix ix_and(ix a, int32_t mask) { EACH a.v[i_] = vi_and(a.v[i_], vi_set1(mask)); return a; }
INLINE ix ix_or_shl(ix a, ix b, int n) { EACH a.v[i_] = vi_or(a.v[i_], vi_shl(b.v[i_], n)); return a; }
INLINE void ix_store(int32_t *p, ix a) { EACH vi_store(p + i_ * ROWS, a.v[i_]); }
/* Four bytes a lane, the first lowest. */
INLINE ix ix_bytes(ix a, ix b, ix c, ix d) { return ix_or_shl(ix_or_shl(ix_or_shl(a, b, 8), c, 16), d, 24); }
#endif
