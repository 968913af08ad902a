/* Encoders of types with scales and minima: value = s * q - m, with codes q from 0 to `high`.
 *
 * Given codes, the best s and m of a piece solve two linear equations; given both, the best codes are the nearest. Super-blocks hold s and m as
 * small integers times d and dmin: those are chosen near the pieces' own best and measured, and d and dmin solve two equations again. */
#ifndef PYLLM_KERNELS_QUANTIZE_AFFINE_H
#define PYLLM_KERNELS_QUANTIZE_AFFINE_H
#include "quantize_scale.h"

/* Sums over a piece: w, w x; w q^2, w q, w x q of its codes; error: w (x - s q + m)^2. */
typedef struct affine_sums { fx w, wx, qq, q, xq, error; } affine_sums;
typedef struct affine { fx s, m; } affine;

/* The sums that do not depend on codes. */
PASS sum_constants(const tile *t, affine_sums *z) {
    z->w = z->wx = fx_set1(0);
    for (int e = 0; e < t->elems; e++) {
        fx w = tile_w(t, e, t->weighted);
        z->w = fx_add(z->w, w);
        z->wx = fx_fma(w, tile_x(t, e), z->wx);
    }
}

INLINE void sum_codes_as(const tile *t, float high, int weighted, int with_error, affine f, fx inverse, fx offset, affine_sums *z) {
    fx qq = fx_set1(0), q1 = qq, xq = qq, error = qq;
    for (int e = 0; e < t->elems; e++) {
        fx x = tile_x(t, e), w = tile_w(t, e, weighted), q = fx_round(fx_clamp(fx_fma(x, inverse, offset), 0, high)), wq = fx_mul(w, q);
        q1 = fx_add(q1, wq);
        qq = fx_fma(wq, q, qq);
        xq = fx_fma(wq, x, xq);
        if (with_error) {
            fx r = fx_sub(fx_add(x, f.m), fx_mul(f.s, q));
            error = fx_fma(fx_mul(w, r), r, error);
        }
    }
    z->qq = qq;
    z->q = q1;
    z->xq = xq;
    z->error = error;
}
/* Sums for the codes of x * inverse + offset, without the error. */
PASS sum_codes(const tile *t, const alphabet *a, fx inverse, fx offset, affine_sums *z) {
    const affine unused = {inverse, offset};
    if (t->weighted) sum_codes_as(t, a->high, 1, 0, unused, inverse, offset, z);
    else sum_codes_as(t, a->high, 0, 0, unused, inverse, offset, z);
}
/* Sums for the codes nearest to (x + m) / s. */
PASS sum_affine(const tile *t, const alphabet *a, affine f, affine_sums *z) {
    fx inverse = fx_inverse(f.s), offset = fx_mul(f.m, inverse);
    if (t->weighted) sum_codes_as(t, a->high, 1, 1, f, inverse, offset, z);
    else sum_codes_as(t, a->high, 0, 1, f, inverse, offset, z);
}

/* The best s and m for the codes of z; m >= 0 if `floor`. Where the codes are all one value (nearly), the constant alone. */
static affine solve(const affine_sums *z, int floor) {
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

/* The best fit of each piece: codes over its range stretched by each of steps, then `turns` of codes and fit. z gets the sums of w and w x. */
static affine search_affine(const tile *t, const alphabet *a, list steps, int turns, int floor, affine_sums *z) {
    fx low = tile_x(t, 0), high = low, best_gain = fx_set1(-1);
    for (int e = 1; e < t->elems; e++) {
        low = fx_min(low, tile_x(t, e));
        high = fx_max(high, tile_x(t, e));
    }
    if (floor) low = fx_min(low, fx_set1(0));
    sum_constants(t, z);
    fx range = fx_inverse(fx_sub(high, low));
    affine best = {fx_set1(0), fx_set1(0)};
    for (int i = 0; i < steps.n + turns; i++) {
        fx inverse = i < steps.n ? fx_mul(fx_set1(a->high + steps.at[i]), range) : fx_inverse(best.s);
        sum_codes(t, a, inverse, fx_mul(i < steps.n ? fx_sub(fx_set1(0), low) : best.m, inverse), z);
        affine f = solve(z, floor);
        fx g = gain(z, f);
        best.s = fx_less(best_gain, g, f.s, best.s);
        best.m = fx_less(best_gain, g, f.m, best.m);
        best_gain = fx_max(best_gain, g);
    }
    return best;
}

/* As stored in f16 each: turns from f on; the best met. bits: f16 of s and of -m, which the file adds. */
static affine refine_affine(const tile *t, const alphabet *a, affine f, int turns, affine_sums *z, uint16_t *s_bits, uint16_t *m_bits) {
    affine best = {fx_set1(0), fx_set1(0)};
    fx least = fx_set1(0x1p100f);
    for (int i = 0; i < turns; i++) {
        affine stored = {fx_stored(f.s, t, s_bits), fx_stored(f.m, t, m_bits)};
        sum_affine(t, a, stored, z);
        best.s = fx_less(z->error, least, stored.s, best.s);
        best.m = fx_less(z->error, least, stored.m, best.m);
        least = fx_min(z->error, least);
        f = solve(z, 0);
    }
    fx_stored(best.s, t, s_bits);
    fx_stored(fx_sub(fx_set1(0), best.m), t, m_bits);
    return best;
}

/* Sub-scales and sub-minima, integers from 0 to `top`; a group's pieces share d and m. */
typedef struct sub_affine {
    fx sc, mn;
    affine f;                       /* what they stand for */
    uint16_t d[16], m[16];
} sub_affine;

/* For each piece the best of three sub-scales around f.s / d with its best sub-minimum, by the error that the sums give. */
static void choose_sub_affine(const tile *t, const alphabet *a, affine f, affine d, float top, affine_sums *z, fx *sc, fx *mn) {
    fx near = fx_round(fx_clamp(fx_mul(f.s, fx_inverse(d.s)), 0, top)), inverse_m = fx_inverse(d.m), least = fx_set1(0x1p100f), two = fx_set1(2);
    fx middle = fx_mul(fx_add(f.m, fx_div(z->wx, z->w)), fx_inverse(f.s));          /* mean code */
    *sc = near;
    *mn = fx_round(fx_clamp(fx_mul(f.m, inverse_m), 0, top));
    for (int i = 0; i < 3; i++) {
        fx c = fx_clamp(fx_add(near, fx_set1(i < 2 ? (float)-i : 1)), 0, top), s = fx_mul(c, d.s), inverse = fx_inverse(s);
        fx guess = fx_max(fx_add(f.m, fx_mul(fx_sub(s, f.s), middle)), fx_set1(0));
        sum_codes(t, a, inverse, fx_mul(guess, inverse), z);
        fx n = fx_round(fx_clamp(fx_mul(fx_div(fx_sub(fx_mul(s, z->q), z->wx), z->w), inverse_m), 0, top)), m = fx_mul(n, d.m);
        /* w (s q - m)^2 - 2 w x (s q - m) */
        fx e = fx_mul(s, fx_sub(fx_cross(s, z->qq, two, z->xq), fx_mul(fx_mul(two, m), z->q)));
        e = fx_fma(m, fx_fma(m, z->w, fx_mul(two, z->wx)), e);
        *sc = fx_less(e, least, c, *sc);
        *mn = fx_less(e, least, n, *mn);
        least = fx_min(e, least);
    }
}

/* d and dmin for given sub-scales, sub-minima and codes: d * ss - dmin * sm = sx and d * sm - dmin * mm = mx. Where these are (nearly) one equation,
   d alone; `old` where nothing depends on it. */
static affine solve_super(const tile *t, const affine_sums *z, fx sc, fx mn, affine old) {
    fx zero = fx_set1(0);
    fx ss = fx_group_sum(fx_mul(fx_mul(sc, sc), z->qq), t->group), sm = fx_group_sum(fx_mul(fx_mul(sc, mn), z->q), t->group);
    fx mm = fx_group_sum(fx_mul(fx_mul(mn, mn), z->w), t->group), sx = fx_group_sum(fx_mul(sc, z->xq), t->group);
    fx mx = fx_group_sum(fx_mul(mn, z->wx), t->group), det = fx_cross(ss, mm, sm, sm), limit = fx_mul(fx_set1(1e-5f), fx_mul(ss, mm));
    fx alone = fx_less(zero, ss, fx_mul(sx, fx_inverse(ss)), old.s), constant = fx_less(zero, ss, zero, fx_mul(fx_sub(zero, mx), fx_inverse(mm)));
    affine f = {fx_less(limit, det, fx_div(fx_cross(sx, mm, mx, sm), det), alone), fx_less(limit, det, fx_div(fx_cross(sx, sm, mx, ss), det), constant)};
    f.s = fx_max(f.s, zero);
    f.m = fx_max(f.m, zero);
    return f;
}

/* d, dmin and their multiples from the pieces' own best fits f. tops: sub-scales that the largest shall have, tried in turn; each with turns of
   multiples and d, dmin. */
static void fit_sub_affine(const tile *t, const alphabet *a, affine f, float top, list tops, int turns, affine_sums *z, sub_affine *out) {
    fx zero = fx_set1(0), least = fx_set1(0x1p100f), sc, mn;
    affine most = {fx_group_max(f.s, t->group), fx_group_max(f.m, t->group)}, best = {zero, zero};
    out->sc = out->mn = zero;
    for (int i = 0; i < tops.n; i++) {
        fx part = fx_set1(1 / tops.at[i]);
        affine want = {fx_mul(most.s, part), fx_mul(most.m, part)};
        for (int k = 0; k < turns; k++) {
            affine d = {fx_stored(want.s, t, out->d), fx_stored(want.m, t, out->m)};
            choose_sub_affine(t, a, f, d, top, z, &sc, &mn);
            sum_affine(t, a, (affine){fx_mul(sc, d.s), fx_mul(mn, d.m)}, z);
            fx error = fx_group_sum(z->error, t->group);
            best.s = fx_less(error, least, d.s, best.s);
            best.m = fx_less(error, least, d.m, best.m);
            out->sc = fx_less(error, least, sc, out->sc);
            out->mn = fx_less(error, least, mn, out->mn);
            least = fx_min(error, least);
            want = solve_super(t, z, sc, mn, d);
        }
    }
    best.s = fx_stored(best.s, t, out->d);
    best.m = fx_stored(best.m, t, out->m);
    out->f.s = fx_mul(out->sc, best.s);
    out->f.m = fx_mul(out->mn, best.m);
}
#endif
