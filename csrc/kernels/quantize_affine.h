/* Encoders of types with scales and minima: value = s * q - m, with codes q from 0 to `high`.
 *
 * Given codes, the best s and m of a piece solve two linear equations; given both, the best codes are the nearest. Super-blocks hold s and m as
 * small integers times d and dmin: those are chosen near the pieces' own best and measured, and d and dmin solve two equations again. */
#ifndef PYLLM_KERNELS_QUANTIZE_AFFINE_H
#define PYLLM_KERNELS_QUANTIZE_AFFINE_H
#include "quantize_tile.h"

/* Sums over a piece: w, w x; w q^2, w q, w x q of its codes; error: w (x - s q + m)^2. */
typedef struct affine_sums { fx w, wx, qq, q, xq, error; } affine_sums;
typedef struct affine { fx s, m; } affine;

INLINE affine_sums sum_constants(const tile *t, layout y) {
    affine_sums z = {fx_set1(0), fx_set1(0), fx_set1(0), fx_set1(0), fx_set1(0), fx_set1(0)};
    for (int e = 0; e < y.elems; e++) {
        fx w = tile_w(t, e, y.weighted);
        z.w = fx_add(z.w, w);
        z.wx = fx_fma(w, tile_x(t, e), z.wx);
    }
    return z;
}

/* Codes of x * inverse + offset, and their sums. */
INLINE void sum_codes(const tile *t, fx inverse, fx offset, alphabet a, layout y, affine_sums *z) {
    z->qq = z->q = z->xq = fx_set1(0);
    for (int e = 0; e < y.elems; e++) {
        fx x = tile_x(t, e), q = nearest(fx_fma(x, inverse, offset), a), wq = fx_mul(tile_w(t, e, y.weighted), q);
        z->q = fx_add(z->q, wq);
        z->qq = fx_fma(wq, q, z->qq);
        z->xq = fx_fma(wq, x, z->xq);
    }
}
INLINE void sum_error(const tile *t, affine f, alphabet a, layout y, affine_sums *z) {
    fx inverse = fx_inverse(f.s), offset = fx_mul(f.m, inverse);
    z->qq = z->q = z->xq = z->error = fx_set1(0);
    for (int e = 0; e < y.elems; e++) {
        fx x = tile_x(t, e), w = tile_w(t, e, y.weighted), q = nearest(fx_fma(x, inverse, offset), a), wq = fx_mul(w, q);
        fx r = fx_sub(fx_add(x, f.m), fx_mul(f.s, q));
        z->q = fx_add(z->q, wq);
        z->qq = fx_fma(wq, q, z->qq);
        z->xq = fx_fma(wq, x, z->xq);
        z->error = fx_fma(fx_mul(w, r), r, z->error);
    }
}

/* The best s and m for the codes of z; m >= 0 if `floor`. Where the codes are all one value (nearly), the constant alone. */
INLINE affine solve(const affine_sums *z, int floor) {
    fx zero = fx_set1(0), det = fx_cross(z->w, z->qq, z->q, z->q), limit = fx_mul(fx_set1(1e-5f), fx_mul(z->w, z->qq));
    affine f;
    f.s = fx_less(limit, det, fx_div(fx_cross(z->w, z->xq, z->wx, z->q), det), zero);
    f.m = fx_div(fx_sub(fx_mul(f.s, z->q), z->wx), z->w);
    if (floor) {
        f.s = fx_less(f.m, zero, fx_mul(z->xq, fx_inverse(z->qq)), f.s);
        f.m = fx_max(f.m, zero);
    }
    return f;
}
/* By how much s and m, solved from z, lower the error below that of zeros. */
INLINE fx gain(const affine_sums *z, affine f) { return fx_cross(f.s, z->xq, f.m, z->wx); }

/* The best fit of each piece: codes over its range stretched by steps[i], then `turns` of codes and fit. On return z has the sums of w and w x. */
INLINE affine search_affine(const tile *t, alphabet a, const float *steps, int n, int turns, int floor, layout y, affine_sums *z) {
    fx low = tile_x(t, 0), high = low;
    for (int e = 1; e < y.elems; e++) {
        low = fx_min(low, tile_x(t, e));
        high = fx_max(high, tile_x(t, e));
    }
    if (floor) low = fx_min(low, fx_set1(0));
    *z = sum_constants(t, y);
    fx range = fx_inverse(fx_sub(high, low)), best_gain = fx_set1(-1);
    affine best = {fx_set1(0), fx_set1(0)};
    for (int i = 0; i < n + turns; i++) {
        fx inverse = i < n ? fx_mul(fx_set1(a.high + steps[i]), range) : fx_inverse(best.s);
        sum_codes(t, inverse, fx_mul(i < n ? fx_sub(fx_set1(0), low) : best.m, inverse), a, y, z);
        affine f = solve(z, floor);
        fx g = gain(z, f);
        best.s = fx_less(best_gain, g, f.s, best.s);
        best.m = fx_less(best_gain, g, f.m, best.m);
        best_gain = fx_max(best_gain, g);
    }
    return best;
}

/* As stored in f16 each: turns from f on; the best met. bits: f16 of s and of m. */
INLINE affine refine_affine(const tile *t, affine f, alphabet a, int turns, layout y, affine_sums *z, uint16_t *s_bits, uint16_t *m_bits) {
    affine best = {fx_set1(0), fx_set1(0)};
    fx least = fx_set1(0x1p100f);
    for (int i = 0; i < turns; i++) {
        affine stored = {fx_stored(f.s, t, s_bits), fx_stored(f.m, t, m_bits)};
        sum_error(t, stored, a, y, z);
        best.s = fx_less(z->error, least, stored.s, best.s);
        best.m = fx_less(z->error, least, stored.m, best.m);
        least = fx_min(z->error, least);
        f = solve(z, 0);
    }
    fx_stored(best.s, t, s_bits);
    fx_stored(fx_sub(fx_set1(0), best.m), t, m_bits);      /* the file adds it */
    return best;
}

/* Sub-scales and sub-minima, integers from 0 to `top`; a group's pieces share d and m. */
typedef struct sub_affine {
    fx sc, mn;
    affine f;                       /* what they stand for */
    uint16_t d[16], m[16];
} sub_affine;

/* For each piece the best sub-scale near f.s / d with its best sub-minimum, by the error that the sums give. */
INLINE void choose_sub_affine(const tile *t, affine f, affine d, float top, const float *steps, int n, alphabet a, layout y, affine_sums *z,
                              fx *sc, fx *mn) {
    fx near = fx_round(fx_clamp(fx_mul(f.s, fx_inverse(d.s)), 0, top)), inverse_m = fx_inverse(d.m), least = fx_set1(0x1p100f);
    fx middle = fx_mul(fx_add(f.m, fx_div(z->wx, z->w)), fx_inverse(f.s));          /* mean code */
    *sc = near;
    *mn = fx_round(fx_clamp(fx_mul(f.m, inverse_m), 0, top));
    for (int i = 0; i < n; i++) {
        fx c = fx_clamp(fx_add(near, fx_set1(steps[i])), 0, top), s = fx_mul(c, d.s), inverse = fx_inverse(s);
        fx guess = fx_max(fx_add(f.m, fx_mul(fx_sub(s, f.s), middle)), fx_set1(0));
        sum_codes(t, inverse, fx_mul(guess, inverse), a, y, z);
        fx n_min = fx_round(fx_clamp(fx_mul(fx_div(fx_sub(fx_mul(s, z->q), z->wx), z->w), inverse_m), 0, top)), m = fx_mul(n_min, d.m);
        /* w (s q - m)^2 - 2 w x (s q - m) */
        fx two = fx_set1(2), e = fx_mul(s, fx_sub(fx_cross(s, z->qq, two, z->xq), fx_mul(fx_mul(two, m), z->q)));
        e = fx_fma(m, fx_fma(m, z->w, fx_mul(two, z->wx)), e);
        *sc = fx_less(e, least, c, *sc);
        *mn = fx_less(e, least, n_min, *mn);
        least = fx_min(e, least);
    }
}

/* d, dmin and their multiples from the pieces' own best fits f. tops[i]: sub-scales that the largest shall have, tried in turn. */
INLINE void fit_sub_affine(const tile *t, affine f, float top, const float *tops, int n_tops, int turns, const float *steps, int n_steps, alphabet a,
                           layout y, affine_sums *z, sub_affine *out) {
    fx zero = fx_set1(0), least = fx_set1(0x1p100f);
    affine most = {fx_group_max(f.s, y.group), fx_group_max(f.m, y.group)}, best_d = {zero, zero};
    out->sc = out->mn = zero;
    for (int i = 0; i < n_tops; i++) {
        fx part = fx_set1(1 / tops[i]);
        affine want = {fx_mul(most.s, part), fx_mul(most.m, part)};
        for (int k = 0; k < turns; k++) {
            affine d = {fx_stored(want.s, t, out->d), fx_stored(want.m, t, out->m)};
            fx sc, mn;
            choose_sub_affine(t, f, d, top, steps, n_steps, a, y, z, &sc, &mn);
            sum_error(t, (affine){fx_mul(sc, d.s), fx_mul(mn, d.m)}, a, y, z);
            fx error = fx_group_sum(z->error, y.group);
            best_d.s = fx_less(error, least, d.s, best_d.s);
            best_d.m = fx_less(error, least, d.m, best_d.m);
            out->sc = fx_less(error, least, sc, out->sc);
            out->mn = fx_less(error, least, mn, out->mn);
            least = fx_min(error, least);
            if (k + 1 == turns) break;
            /* d * ss - dmin * sm = sx;  d * sm - dmin * mm = mx */
            fx ss = fx_group_sum(fx_mul(fx_mul(sc, sc), z->qq), y.group), sm = fx_group_sum(fx_mul(fx_mul(sc, mn), z->q), y.group);
            fx mm = fx_group_sum(fx_mul(fx_mul(mn, mn), z->w), y.group), sx = fx_group_sum(fx_mul(sc, z->xq), y.group);
            fx mx = fx_group_sum(fx_mul(mn, z->wx), y.group), det = fx_cross(ss, mm, sm, sm);
            fx regular = fx_mul(fx_set1(1e-5f), fx_mul(ss, mm)), alone = fx_mul(sx, fx_inverse(ss)), constant = fx_mul(fx_sub(zero, mx), fx_inverse(mm));
            want.s = fx_less(regular, det, fx_div(fx_cross(sx, mm, mx, sm), det), fx_less(zero, ss, alone, d.s));
            want.m = fx_less(regular, det, fx_div(fx_cross(sx, sm, mx, ss), det), fx_less(zero, ss, zero, constant));
            want.s = fx_max(want.s, zero);
            want.m = fx_max(want.m, zero);
        }
    }
    affine d = {fx_stored(best_d.s, t, out->d), fx_stored(best_d.m, t, out->m)};
    out->f.s = fx_mul(out->sc, d.s);
    out->f.m = fx_mul(out->mn, d.m);
}
#endif
