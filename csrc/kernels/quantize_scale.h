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

INLINE scale_sums sum_scale(const tile *t, fx scale, fx inverse, alphabet a, layout y, int with_error) {
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

/* Sub-scales: integers from sc_low to sc_high; a group's pieces share d. */
typedef struct sub_scales {
    fx sc, d;
    uint16_t bits[16];              /* of d, f16 */
} sub_scales;

/* For each piece the best of the sub-scales near s / d. */
INLINE fx choose_sub_scale(const tile *t, fx s, fx d, fx inverse_d, float sc_low, float sc_high, const float *steps, int n, alphabet a, layout y) {
    fx nearest_sc = fx_round(fx_clamp(fx_mul(s, inverse_d), sc_low, sc_high)), best = nearest_sc, least = fx_set1(0x1p100f);
    for (int i = 0; i < n; i++) {
        fx sc = fx_clamp(fx_add(nearest_sc, fx_set1(steps[i])), sc_low, sc_high), scale = fx_mul(sc, d);
        scale_sums z = sum_scale(t, scale, fx_inverse(scale), a, y, 1);
        best = fx_less(z.error, least, sc, best);
        least = fx_min(z.error, least);
    }
    return best;
}

/* d and sub-scales of super-blocks from the pieces' own best scales s. top[i]: sub-scales that the largest |s| shall have, tried in turn. */
INLINE void fit_sub_scales(const tile *t, fx s, float sc_low, float sc_high, const float *top, int n_top, int turns, const float *steps, int n_steps,
                           alphabet a, layout y, sub_scales *out) {
    fx size = fx_group_max(fx_abs(s), y.group), up = fx_group_max(s, y.group);
    fx largest = fx_less(up, size, fx_sub(fx_set1(0), size), size), least = fx_set1(0x1p100f), best_d = fx_set1(0);
    out->sc = fx_set1(0);
    for (int i = 0; i < n_top; i++) {
        fx want = fx_div(largest, fx_set1(top[i]));
        for (int k = 0; k < turns; k++) {
            fx d = fx_stored(want, t, out->bits), sc = choose_sub_scale(t, s, d, fx_inverse(d), sc_low, sc_high, steps, n_steps, a, y);
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
