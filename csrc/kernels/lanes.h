/* The 16 virtual lanes of docs/numerics.md over any simd_*.h, and the elementary functions of base/math.h lane by lane. */
#ifndef PYLLM_KERNELS_LANES_H
#define PYLLM_KERNELS_LANES_H
#include "../base/math.h"

#include <string.h>

#define INLINE static inline __attribute__((always_inline))
#define CAT_(a, b) a##_##b
#define CAT(a, b) CAT_(a, b)
#define NAME(x) CAT(x, LEVEL)       /* a function's symbol carries its level */

enum { NV = 16 / ROWS };            /* registers of 16 lanes */
typedef struct { vf v[NV]; } fx;

#define EACH for (int i_ = 0; i_ < NV; i_++)
INLINE fx fx_load(const float *p) { fx r; EACH r.v[i_] = vf_load(p + i_ * ROWS); return r; }
INLINE void fx_store(float *p, fx a) { EACH vf_store(p + i_ * ROWS, a.v[i_]); }
INLINE fx fx_set1(float x) { fx r; EACH r.v[i_] = vf_set1(x); return r; }
INLINE fx fx_add(fx a, fx b) { EACH a.v[i_] = vf_add(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_sub(fx a, fx b) { EACH a.v[i_] = vf_sub(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_mul(fx a, fx b) { EACH a.v[i_] = vf_mul(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_div(fx a, fx b) { EACH a.v[i_] = vf_div(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_max(fx a, fx b) { EACH a.v[i_] = vf_max(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_min(fx a, fx b) { EACH a.v[i_] = vf_min(a.v[i_], b.v[i_]); return a; }
INLINE fx fx_fma(fx a, fx b, fx c) { EACH c.v[i_] = vf_fma(a.v[i_], b.v[i_], c.v[i_]); return c; }
INLINE fx fx_fma1(fx a, const float *x, fx c) { EACH c.v[i_] = vf_fma1(a.v[i_], x, c.v[i_]); return c; }
INLINE fx fx_f16(const void *p) { fx r; EACH r.v[i_] = vf_f16((const uint16_t *)p + i_ * ROWS); return r; }
INLINE fx fx_i8(const void *p) { fx r; EACH r.v[i_] = vf_from_vi(vi_i8((const int8_t *)p + i_ * ROWS)); return r; }
INLINE fx fx_less(fx x, fx y, fx a, fx b) { EACH a.v[i_] = vf_less(x.v[i_], y.v[i_], a.v[i_], b.v[i_]); return a; }
INLINE fx fx_and(fx a, int32_t bits) { EACH a.v[i_] = vf_bits(vi_and(vi_bits(a.v[i_]), vi_set1(bits))); return a; }
INLINE fx fx_or(fx a, fx b) { EACH a.v[i_] = vf_bits(vi_or(vi_bits(a.v[i_]), vi_bits(b.v[i_]))); return a; }

/* Sum by halves: lane i + lane i+8, then +4, +2, +1. */
INLINE float fx_sum(fx a) {
    float s[16];
    fx_store(s, a);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] = s[i] + s[i + half];
    return s[0];
}

/* exp32 of base/math.h. */
INLINE vf vf_exp(vf x) {
    vf t = vf_less(x, vf_set1(EXP_MIN), vf_set1(EXP_MIN), vf_less(vf_set1(EXP_MAX), x, vf_set1(EXP_MAX), x));
    vf magic = vf_set1(12582912.0f), n = vf_sub(vf_add(vf_mul(t, vf_set1(EXP_LOG2E)), magic), magic);
    vf r = vf_fma(n, vf_set1(EXP_LN2_LO), vf_fma(n, vf_set1(EXP_LN2_HI), t));
    vf p = vf_fma(r, vf_set1(EXP_C6), vf_set1(EXP_C5));
    p = vf_fma(p, r, vf_set1(EXP_C4));
    p = vf_fma(p, r, vf_set1(EXP_C3));
    p = vf_fma(p, r, vf_set1(EXP_C2));
    p = vf_fma(p, r, vf_set1(1.0f));
    p = vf_fma(p, r, vf_set1(1.0f));
    vi k = vi_from_vf(n), half = vi_sra(k, 1);
    vf y = vf_mul(vf_mul(p, vf_bits(vi_shl(vi_add(half, vi_set1(127)), 23))), vf_bits(vi_shl(vi_add(vi_sub(k, half), vi_set1(127)), 23)));
    return vf_less(x, vf_set1(EXP_MIN), vf_set1(0), vf_less(vf_set1(EXP_MAX), x, vf_set1(bits_f32(0x7f800000u)), y));
}
INLINE fx fx_exp(fx x) { EACH x.v[i_] = vf_exp(x.v[i_]); return x; }

/* tanh32 of base/math.h. */
INLINE fx fx_tanh(fx x) {
    fx a = fx_and(x, 0x7fffffff), one = fx_set1(1.0f), t = fx_exp(fx_mul(fx_set1(-2.0f), a)), big = fx_div(fx_sub(one, t), fx_add(one, t));
    fx s = fx_mul(x, x), p = fx_fma(s, fx_set1(TANH_C11), fx_set1(TANH_C9));
    p = fx_fma(p, s, fx_set1(TANH_C7));
    p = fx_fma(p, s, fx_set1(TANH_C5));
    p = fx_fma(p, s, fx_set1(TANH_C3));
    fx small = fx_fma(fx_mul(x, s), p, x);
    return fx_less(a, fx_set1(0.5f), small, fx_or(big, fx_and(x, (int32_t)0x80000000u)));
}
INLINE fx fx_silu(fx x) { return fx_div(x, fx_add(fx_set1(1.0f), fx_exp(fx_sub(fx_set1(-0.0f), x)))); }
INLINE fx fx_gelu(fx x) {
    fx u = fx_mul(x, fx_fma(fx_mul(x, x), fx_set1(GELU_A), fx_set1(1.0f)));
    return fx_mul(fx_mul(fx_set1(0.5f), x), fx_add(fx_set1(1.0f), fx_tanh(fx_mul(fx_set1(GELU_B), u))));
}

/* erf32 of base/math.h. */
INLINE fx fx_erf(fx x) {
    fx a = fx_and(x, 0x7fffffff), four = fx_set1(4.0f), t = fx_less(four, a, four, a), s = fx_mul(x, x);
    fx p = fx_fma(s, fx_set1(ERF_A6), fx_set1(ERF_A5)), q = fx_fma(t, fx_set1(ERF_B6), fx_set1(ERF_B5));
    p = fx_fma(p, s, fx_set1(ERF_A4));
    p = fx_fma(p, s, fx_set1(ERF_A3));
    p = fx_fma(p, s, fx_set1(ERF_A2));
    p = fx_fma(p, s, fx_set1(ERF_A1));
    p = fx_fma(p, s, fx_set1(ERF_A0));
    q = fx_fma(q, t, fx_set1(ERF_B4));
    q = fx_fma(q, t, fx_set1(ERF_B3));
    q = fx_fma(q, t, fx_set1(ERF_B2));
    q = fx_fma(q, t, fx_set1(ERF_B1));
    q = fx_fma(q, t, fx_set1(ERF_B0));
    fx big = fx_sub(fx_set1(1.0f), fx_exp(q));
    return fx_less(a, fx_set1(0.9375f), fx_mul(x, p), fx_or(big, fx_and(x, (int32_t)0x80000000u)));
}
INLINE fx fx_gelu_erf(fx x) { return fx_mul(fx_mul(fx_set1(0.5f), x), fx_add(fx_set1(1.0f), fx_erf(fx_mul(x, fx_set1(SQRT_HALF))))); }
INLINE fx fx_relu(fx x) { return fx_less(x, fx_set1(0), fx_set1(0), x); }
INLINE fx fx_relu2_(fx x) { return fx_mul(fx_relu(x), fx_relu(x)); }
INLINE fx fx_sigmoid(fx x) { return fx_div(fx_set1(1.0f), fx_add(fx_set1(1.0f), fx_exp(fx_sub(fx_set1(-0.0f), x)))); }

INLINE fx fx_softplus(fx x) {
    fx two = fx_set1(2.0f), e = fx_exp(fx_or(x, fx_set1(-0.0f))), z = fx_div(e, fx_add(two, e)), q = fx_mul(z, z), zz = fx_add(z, z);
    fx p = fx_fma(q, fx_set1(SOFTPLUS_C(15)), fx_set1(SOFTPLUS_C(13)));
    p = fx_fma(p, q, fx_set1(SOFTPLUS_C(11)));
    p = fx_fma(p, q, fx_set1(SOFTPLUS_C(9)));
    p = fx_fma(p, q, fx_set1(SOFTPLUS_C(7)));
    p = fx_fma(p, q, fx_set1(SOFTPLUS_C(5)));
    p = fx_fma(p, q, fx_set1(SOFTPLUS_C(3)));
    return fx_add(fx_max(x, fx_set1(0)), fx_fma(fx_mul(zz, q), p, zz));
}

/* n (32 or 256) values to int8 by the rule of docs/numerics.md: returns d, q in [-127, 127], sums of each 16 q. Absolute values order like their
   bits, infinities and NaN last, so one integer maximum finds the largest and what is not finite. */
INLINE float quantize_block(const float *x, int n, int8_t *q, int16_t *sum16) {
    vi top = vi_set1(0);
    for (int i = 0; i < n; i += ROWS) top = vi_max(top, vi_and(vi_load(x + i), vi_set1(0x7fffffff)));
    uint32_t bits = (uint32_t)vi_max_lanes(top);
    float most = bits_f32(bits);
    if (bits >= 0x7f800000u || most < 1e-30f) {
        memset(q, 0, (size_t)n);
        memset(sum16, 0, (size_t)n / 8);
        return bits >= 0x7f800000u ? bits_f32(0x7fc00000u) : 0;
    }
    vf inv = vf_set1(127.0f / most), magic = vf_set1(12582912.0f);
    for (int i = 0; i < n; i += 16) {
        vi sum = vi_set1(0);
        for (int j = 0; j < 16; j += ROWS) {
            vi r = vi_from_vf(vf_sub(vf_add(vf_mul(vf_load(x + i + j), inv), magic), magic));
            vi_store_i8(q + i + j, r);
            sum = vi_add(sum, r);
        }
        sum16[i / 16] = (int16_t)vi_sum_lanes(sum);
    }
    return most / 127.0f;
}

/* The first n < 16 floats of p, the rest zero; and back. */
INLINE fx fx_load_part(const float *p, int64_t n) {
    float s[16] = {0};
    for (int64_t i = 0; i < n; i++) s[i] = p[i];
    return fx_load(s);
}
INLINE void fx_store_part(float *p, fx a, int64_t n) {
    float s[16];
    fx_store(s, a);
    for (int64_t i = 0; i < n; i++) p[i] = s[i];
}
#endif
