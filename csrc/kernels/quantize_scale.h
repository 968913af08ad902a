/* Encoders of types with scales and no minima: value = d * q, or d * sc * q with sub-scales.
 *
 * Given codes q, the best scale of a piece is a quotient of sums, s = sum(w x q) / sum(w q^2), and it lowers the error by
 * sum(w x q)^2 / sum(w q^2). Given the scale, the best codes are the nearest. So: codes for a few scales, the best of them by that
 * measure, then turns of both steps (Lloyd, "Least squares quantization in PCM", 1982) with the scale as the file will hold it. */
#ifndef PYLLM_KERNELS_QUANTIZE_SCALE_H
#define PYLLM_KERNELS_QUANTIZE_SCALE_H
#include "quantize_tile.h"

/* Sums over a piece: num = w x q, den = w q^2, error = w (x - scale q)^2. */
typedef struct scale_sums { fx num, den, error; } scale_sums;

/* Distances of one pair of elements from all pairs of values 1, 3 ... 15: w v^2 - 2 w a v, [8 * second + first]. */
INLINE void pair_costs(fx a0, fx w0, fx a1, fx w1, float (*cost)[16]) {
    fx u0 = fx_mul(fx_mul(fx_set1(-2), a0), w0), u1 = fx_mul(fx_mul(fx_set1(-2), a1), w1), first[8];
    for (int v = 0; v < 8; v++) first[v] = fx_mul(fx_set1((float)(2 * v + 1)), fx_fma(w0, fx_set1((float)(2 * v + 1)), u0));
    for (int v = 0; v < 8; v++) {
        fx second = fx_mul(fx_set1((float)(2 * v + 1)), fx_fma(w1, fx_set1((float)(2 * v + 1)), u1));
        for (int k = 0; k < 8; k++) fx_store(cost[8 * v + k], fx_add(first[k], second));
    }
}

/* The nearest points to elements e to e+3 of each piece, times inverse: their numbers. */
PASS nearest_points(const tile *t, int e, fx inverse, const codebook *book, int32_t *index) {
    float low[64][16], high[64][16];
    fx a[4], w[4], least = fx_set1(0x1p100f), best = fx_set1(0);
    for (int k = 0; k < 4; k++) {
        a[k] = fx_mul(tile_x(t, e + k), inverse);
        w[k] = tile_w(t, e + k, t->weighted);
    }
    pair_costs(a[0], w[0], a[1], w[1], low);
    pair_costs(a[2], w[2], a[3], w[3], high);
    for (int i = 0; i < 512; i++) {
        fx cost = fx_add(fx_load(low[book->first[i]]), fx_load(high[book->second[i]]));
        best = fx_less(cost, least, fx_set1((float)i), best);
        least = fx_min(cost, least);
    }
    ix_store(index, ix_from(best));
}

/* sum_scale where codes are points. */
PASS sum_points(const tile *t, const codebook *book, fx scale, fx inverse, scale_sums *s) {
    s->num = s->den = s->error = fx_set1(0);
    for (int e = 0; e < t->elems; e += 4) {
        int32_t index[16];
        float q[4][16];
        nearest_points(t, e, inverse, book, index);
        for (int l = 0; l < 16; l++)
            for (int k = 0; k < 4; k++) q[k][l] = (float)(book->points[index[l]] >> 8 * k & 255);
        for (int k = 0; k < 4; k++) {
            fx x = tile_x(t, e + k), w = tile_w(t, e + k, t->weighted), v = fx_load(q[k]), wq = fx_mul(w, v), r = fx_sub(x, fx_mul(scale, v));
            s->num = fx_fma(wq, x, s->num);
            s->den = fx_fma(wq, v, s->den);
            s->error = fx_fma(fx_mul(w, r), r, s->error);
        }
    }
}

INLINE void sum_scale_as(const tile *t, const alphabet *a, int table, int weighted, int with_error, fx scale, fx inverse, scale_sums *out) {
    scale_sums s = {fx_set1(0), fx_set1(0), fx_set1(0)};
    for (int e = 0; e < t->elems; e++) {
        fx x = tile_x(t, e), w = tile_w(t, e, weighted), q = nearest(fx_mul(x, inverse), a, table), wq = fx_mul(w, q);
        s.num = fx_fma(wq, x, s.num);
        s.den = fx_fma(wq, q, s.den);
        if (with_error) {
            fx r = fx_sub(x, fx_mul(scale, q));
            s.error = fx_fma(fx_mul(w, r), r, s.error);
        }
    }
    *out = s;
}
/* Sums for the codes nearest to x / scale. */
PASS sum_scale(const tile *t, const alphabet *a, fx scale, scale_sums *s) {
    fx inverse = fx_inverse(scale);
    if (a->book) sum_points(t, a->book, scale, inverse, s);
    else if (a->values && t->weighted) sum_scale_as(t, a, 1, 1, 1, scale, inverse, s);
    else if (a->values) sum_scale_as(t, a, 1, 0, 1, scale, inverse, s);
    else if (t->weighted) sum_scale_as(t, a, 0, 1, 1, scale, inverse, s);
    else sum_scale_as(t, a, 0, 0, 1, scale, inverse, s);
}
/* The same without the error, for the codes nearest to x * inverse. */
PASS sum_search(const tile *t, const alphabet *a, fx inverse, scale_sums *s) {
    if (a->book) sum_points(t, a->book, inverse, inverse, s);
    else if (a->values && t->weighted) sum_scale_as(t, a, 1, 1, 0, inverse, inverse, s);
    else if (a->values) sum_scale_as(t, a, 1, 0, 0, inverse, inverse, s);
    else if (t->weighted) sum_scale_as(t, a, 0, 1, 0, inverse, inverse, s);
    else sum_scale_as(t, a, 0, 0, 0, inverse, inverse, s);
}

/* A list of numbers to try. */
typedef struct list { const float *at; int n; } list;

/* The best of the scales (largest x) / top for each piece, fitted to its codes. */
static fx search_scale(const tile *t, const alphabet *a, list top) {
    fx largest = fx_set1(0), num = fx_set1(0), den = fx_set1(1);
    for (int e = 0; e < t->elems; e++) {
        fx x = tile_x(t, e);
        largest = fx_less(fx_abs(largest), fx_abs(x), x, largest);
    }
    fx inverse = fx_inverse(largest);
    for (int i = 0; i < top.n; i++) {
        scale_sums s;
        sum_search(t, a, fx_mul(fx_set1(top.at[i]), inverse), &s);
        fx score = fx_mul(fx_mul(s.num, s.num), den), best = fx_mul(fx_mul(num, num), s.den);
        num = fx_less(best, score, s.num, num);
        den = fx_less(best, score, s.den, den);
    }
    return fx_div(num, den);
}

/* Turns of codes and scale, from `scale` on. Returns the best as stored, its f16 in bits. */
static fx refine_scale(const tile *t, const alphabet *a, fx scale, int turns, uint16_t *bits) {
    fx best = fx_set1(0), least = fx_set1(0x1p100f);
    for (int i = 0; i < turns; i++) {
        fx d = fx_stored(scale, t, bits);
        scale_sums s;
        sum_scale(t, a, d, &s);
        best = fx_less(s.error, least, d, best);
        least = fx_min(s.error, least);
        scale = fx_mul(s.num, fx_inverse(s.den));
    }
    return fx_stored(best, t, bits);
}

/* What sub-scales can be: low, low + step ... high. */
typedef struct sub_range { float low, high, step; } sub_range;
/* A group's pieces share d. */
typedef struct sub_scales {
    fx sc, d;
    uint16_t bits[16];              /* of d, f16 */
} sub_scales;

/* For each piece the best of three sub-scales around s / d. */
static fx choose_sub_scale(const tile *t, const alphabet *a, fx s, fx d, sub_range r) {
    fx low = fx_set1(r.low), step = fx_set1(r.step), from_low = fx_sub(fx_clamp(fx_mul(s, fx_inverse(d)), r.low, r.high), low);
    fx near = fx_fma(fx_round(fx_mul(from_low, fx_set1(1 / r.step))), step, low), best = near, least = fx_set1(0x1p100f);
    for (int i = 0; i < 3; i++) {
        fx sc = fx_clamp(fx_fma(fx_set1(i < 2 ? (float)-i : 1), step, near), r.low, r.high);
        scale_sums z;
        sum_scale(t, a, fx_mul(sc, d), &z);
        best = fx_less(z.error, least, sc, best);
        least = fx_min(z.error, least);
    }
    return best;
}

/* d and sub-scales of super-blocks from the pieces' own best scales s. tops: sub-scales that the largest |s| shall have, tried in turn; each with
   turns of sub-scales and d. */
static void fit_sub_scales(const tile *t, const alphabet *a, fx s, sub_range r, list tops, int turns, sub_scales *out) {
    fx size = fx_group_max(fx_abs(s), t->group), up = fx_group_max(s, t->group);
    fx largest = fx_less(up, size, fx_sub(fx_set1(0), size), size), least = fx_set1(0x1p100f), best_d = fx_set1(0);
    out->sc = fx_set1(max32(r.low, 0));
    for (int i = 0; i < tops.n; i++) {
        fx want = fx_div(largest, fx_set1(tops.at[i]));
        for (int k = 0; k < turns; k++) {
            fx d = fx_stored(want, t, out->bits), sc = choose_sub_scale(t, a, s, d, r);
            scale_sums z;
            sum_scale(t, a, fx_mul(sc, d), &z);
            fx error = fx_group_sum(z.error, t->group);
            best_d = fx_less(error, least, d, best_d);
            out->sc = fx_less(error, least, sc, out->sc);
            least = fx_min(error, least);
            fx num = fx_group_sum(fx_mul(sc, z.num), t->group), den = fx_group_sum(fx_mul(fx_mul(sc, sc), z.den), t->group);
            want = fx_mul(num, fx_inverse(den));
        }
    }
    out->d = fx_stored(best_d, t, out->bits);
}
#endif
