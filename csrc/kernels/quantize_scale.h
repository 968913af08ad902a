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
INLINE void nearest_points(const tile *t, int e, fx inverse, const codebook *book, int weighted, int32_t *index) {
    float low[64][16], high[64][16];
    fx a[4], w[4], least = fx_set1(0x1p100f), best = fx_set1(0);
    for (int k = 0; k < 4; k++) {
        a[k] = fx_mul(tile_x(t, e + k), inverse);
        w[k] = tile_w(t, e + k, weighted);
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
INLINE scale_sums sum_points(const tile *t, fx scale, fx inverse, const codebook *book, layout y) {
    scale_sums s = {fx_set1(0), fx_set1(0), fx_set1(0)};
    for (int e = 0; e < y.elems; e += 4) {
        int32_t index[16];
        float q[4][16];
        nearest_points(t, e, inverse, book, y.weighted, index);
        for (int l = 0; l < 16; l++)
            for (int k = 0; k < 4; k++) q[k][l] = (float)(book->points[index[l]] >> 8 * k & 255);
        for (int k = 0; k < 4; k++) {
            fx x = tile_x(t, e + k), w = tile_w(t, e + k, y.weighted), v = fx_load(q[k]), wq = fx_mul(w, v), r = fx_sub(x, fx_mul(scale, v));
            s.num = fx_fma(wq, x, s.num);
            s.den = fx_fma(wq, v, s.den);
            s.error = fx_fma(fx_mul(w, r), r, s.error);
        }
    }
    return s;
}

INLINE scale_sums sum_scale(const tile *t, fx scale, fx inverse, alphabet a, layout y, int with_error) {
    if (a.book) return sum_points(t, scale, inverse, a.book, y);
    scale_sums s = {fx_set1(0), fx_set1(0), fx_set1(0)};
    for (int e = 0; e < y.elems; e++) {
        fx x = tile_x(t, e), w = tile_w(t, e, y.weighted), q = nearest(fx_mul(x, inverse), a), wq = fx_mul(w, q);
        s.num = fx_fma(wq, x, s.num);
        s.den = fx_fma(wq, q, s.den);
        if (with_error) {
            fx r = fx_sub(x, fx_mul(scale, q));
            s.error = fx_fma(fx_mul(w, r), r, s.error);
        }
    }
    return s;
}

/* The best of the scales (largest x) / top[i] for each piece, fitted to its codes. */
INLINE fx search_scale(const tile *t, alphabet a, const float *top, int n, layout y) {
    fx largest = fx_set1(0), num = fx_set1(0), den = fx_set1(1);
    for (int e = 0; e < y.elems; e++) {
        fx x = tile_x(t, e);
        largest = fx_less(fx_abs(largest), fx_abs(x), x, largest);
    }
    fx inverse = fx_inverse(largest);
    for (int i = 0; i < n; i++) {
        scale_sums s = sum_scale(t, fx_set1(0), fx_mul(fx_set1(top[i]), inverse), a, y, 0);
        fx score = fx_mul(fx_mul(s.num, s.num), den), best = fx_mul(fx_mul(num, num), s.den);
        num = fx_less(best, score, s.num, num);
        den = fx_less(best, score, s.den, den);
    }
    return fx_div(num, den);
}

/* Turns of codes and scale, from `scale` on. Returns the best as stored, its f16 in bits. */
INLINE fx refine_scale(const tile *t, fx scale, alphabet a, int turns, layout y, uint16_t *bits) {
    fx best = fx_set1(0), least = fx_set1(0x1p100f);
    for (int i = 0; i < turns; i++) {
        fx d = fx_stored(scale, t, bits);
        scale_sums s = sum_scale(t, d, fx_inverse(d), a, y, 1);
        best = fx_less(s.error, least, d, best);
        least = fx_min(s.error, least);
        scale = fx_mul(s.num, fx_inverse(s.den));
    }
    return fx_stored(best, t, bits);
}

/* What sub-scales can be: low, low + step ... high. */
typedef struct sub_range { float low, high, step; } sub_range;
INLINE fx fx_in_range(fx v, sub_range r) { return fx_clamp(v, r.low, r.high); }
/* A group's pieces share d. */
typedef struct sub_scales {
    fx sc, d;
    uint16_t bits[16];              /* of d, f16 */
} sub_scales;

/* For each piece the best of the sub-scales near s / d. */
INLINE fx choose_sub_scale(const tile *t, fx s, fx d, sub_range r, const float *steps, int n, alphabet a, layout y) {
    fx from_low = fx_sub(fx_in_range(fx_mul(s, fx_inverse(d)), r), fx_set1(r.low)), step = fx_set1(r.step);
    fx near = fx_fma(fx_round(fx_mul(from_low, fx_set1(1 / r.step))), step, fx_set1(r.low)), best = near, least = fx_set1(0x1p100f);
    for (int i = 0; i < n; i++) {
        fx sc = fx_in_range(fx_fma(fx_set1(steps[i]), step, near), r), scale = fx_mul(sc, d);
        scale_sums z = sum_scale(t, scale, fx_inverse(scale), a, y, 1);
        best = fx_less(z.error, least, sc, best);
        least = fx_min(z.error, least);
    }
    return best;
}

/* d and sub-scales of super-blocks from the pieces' own best scales s. top[i]: sub-scales that the largest |s| shall have, tried in turn. */
INLINE void fit_sub_scales(const tile *t, fx s, sub_range r, const float *top, int n_top, int turns, const float *steps, int n_steps, alphabet a,
                           layout y, sub_scales *out) {
    fx size = fx_group_max(fx_abs(s), y.group), up = fx_group_max(s, y.group);
    fx largest = fx_less(up, size, fx_sub(fx_set1(0), size), size), least = fx_set1(0x1p100f), best_d = fx_set1(0);
    out->sc = fx_set1(r.low < 0 ? 0 : r.low);
    for (int i = 0; i < n_top; i++) {
        fx want = fx_div(largest, fx_set1(top[i]));
        for (int k = 0; k < turns; k++) {
            fx d = fx_stored(want, t, out->bits), sc = choose_sub_scale(t, s, d, r, steps, n_steps, a, y);
            fx scale = fx_mul(sc, d);
            scale_sums z = sum_scale(t, scale, fx_inverse(scale), a, y, 1);
            fx error = fx_group_sum(z.error, y.group);
            best_d = fx_less(error, least, d, best_d);
            out->sc = fx_less(error, least, sc, out->sc);
            least = fx_min(error, least);
            fx num = fx_group_sum(fx_mul(sc, z.num), y.group), den = fx_group_sum(fx_mul(fx_mul(sc, sc), z.den), y.group);
            want = fx_mul(num, fx_inverse(den));
        }
    }
    out->d = fx_stored(best_d, t, out->bits);
}
#endif
