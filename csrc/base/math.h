/* Deterministic elementary functions on f32: the same bits on every CPU. Everything is + - * /, sqrt and fma in a written order;
 * fma is the instruction where the compilation unit has it, else an exact software version. SIMD variants (kernels/lanes.h)
 * repeat these formulas lane by lane. */
#ifndef PYLLM_BASE_MATH_H
#define PYLLM_BASE_MATH_H
#include <stdint.h>

static inline float bits_f32(uint32_t u) { union { uint32_t u; float f; } c = {u}; return c.f; }
static inline uint32_t f32_to_bits(float f) { union { float f; uint32_t u; } c = {f}; return c.u; }
static inline double bits_f64(uint64_t u) { union { uint64_t u; double f; } c = {u}; return c.f; }
static inline uint64_t f64_to_bits(double f) { union { double f; uint64_t u; } c = {f}; return c.u; }

/* a*b + c with one rounding. The product of two f32 is exact in double; the sum is rounded to odd there (Boldo and Melquiond,
   "Emulation of a FMA and correctly rounded sums", 2008), so that the second rounding to f32 is right, also for subnormals. */
static inline float fma32_soft(float a, float b, float c) {
    double p = (double)a * b, s = p + c, z = s - p, e = (p - (s - z)) + ((double)c - z);
    uint64_t u = f64_to_bits(s);
    if (e != 0 && !(u & 1) && (u >> 52 & 2047) != 2047) {      /* inexact with an even last bit: step towards the exact value */
        if ((e > 0) == (s > 0)) u++;
        else u--;
        s = bits_f64(u);
    }
    return (float)s;
}
#if defined(__FMA__) || defined(__aarch64__)
static inline float fma32(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
static inline float fma32(float a, float b, float c) { return fma32_soft(a, b, c); }
#endif

/* x > y ? x : y, as x86's maxps: y where either is NaN, y of two zeros. Chosen because every ISA can do it in two instructions. */
static inline float max32(float x, float y) { return x > y ? x : y; }

/* Nearest integer, ties to even, for |x| < 2^22: adding 1.5*2^23 rounds in the last bit. */
static inline float round32(float x) { return (x + 12582912.0f) - 12582912.0f; }

/* exp: x = n ln2 + r in two steps, 2^n by exponent bits, degree-6 polynomial of e^r on |r| <= ln2/2. Error below 1 ulp on [-87, 88.7].
   Exactly 0 below -87, +inf above 88.72; NaN gives NaN. */
#define EXP_LOG2E 0x1.715476p+0f
#define EXP_LN2_HI -0x1.62e400p-1f      /* 14 bits: n * this is exact */
#define EXP_LN2_LO -0x1.7f7d1cp-20f
#define EXP_C2 0x1.000000p-1f
#define EXP_C3 0x1.55548cp-3f
#define EXP_C4 0x1.55547cp-5f
#define EXP_C5 0x1.123d88p-7f
#define EXP_C6 0x1.6d9904p-10f
#define EXP_MIN -87.0f
#define EXP_MAX 88.72f
static inline float exp32(float x) {
    float t = x < EXP_MIN ? EXP_MIN : x > EXP_MAX ? EXP_MAX : x;
    float n = round32(t * EXP_LOG2E);
    float r = fma32(n, EXP_LN2_LO, fma32(n, EXP_LN2_HI, t));
    float p = fma32(r, EXP_C6, EXP_C5);
    p = fma32(p, r, EXP_C4);
    p = fma32(p, r, EXP_C3);
    p = fma32(p, r, EXP_C2);
    p = fma32(p, r, 1.0f);
    p = fma32(p, r, 1.0f);
    int32_t k = x != x ? 0 : (int32_t)n, half = k >> 1;         /* 2^n in two factors: n reaches 128 */
    float y = (p * bits_f32((uint32_t)(half + 127) << 23)) * bits_f32((uint32_t)(k - half + 127) << 23);
    return x < EXP_MIN ? 0.0f : x > EXP_MAX ? bits_f32(0x7f800000u) : y;
}

/* tanh by exp: t = e^(-2|x|), (1-t)/(1+t), with an odd polynomial below 0.5 where that would cancel. Error below 4 ulp. */
#define TANH_C3 -0x1.555550p-2f
#define TANH_C5 0x1.110f1ep-3f
#define TANH_C7 -0x1.b98a1cp-5f
#define TANH_C9 0x1.5cecbcp-6f
#define TANH_C11 -0x1.b386a4p-8f
static inline float tanh32(float x) {
    float a = bits_f32(f32_to_bits(x) & 0x7fffffffu), t = exp32(-2.0f * a), big = (1.0f - t) / (1.0f + t);
    float s = x * x, p = fma32(s, TANH_C11, TANH_C9);
    p = fma32(p, s, TANH_C7);
    p = fma32(p, s, TANH_C5);
    p = fma32(p, s, TANH_C3);
    float small = fma32(x * s, p, x);
    return a < 0.5f ? small : bits_f32(f32_to_bits(big) | (f32_to_bits(x) & 0x80000000u));
}

/* x * sigmoid(x) and the tanh form of gelu. */
static inline float silu32(float x) { return x / (1.0f + exp32(-x)); }
#define GELU_A 0x1.6e4e26p-5f           /* 0.044715 */
#define GELU_B 0x1.988454p-1f           /* sqrt(2/pi) */
static inline float gelu32(float x) {
    float u = x * fma32(x * x, GELU_A, 1.0f);
    return (0.5f * x) * (1.0f + tanh32(GELU_B * u));
}

/* erf: an odd polynomial below 0.9375, 1 - e^(a polynomial) above, 1 from 4 on. Error below 3 ulp. */
#define ERF_A0 0x1.20dd76p+0f
#define ERF_A1 -0x1.812742p-2f
#define ERF_A2 0x1.ce2e06p-4f
#define ERF_A3 -0x1.b80e30p-6f
#define ERF_A4 0x1.54c2d0p-8f
#define ERF_A5 -0x1.aa06bap-11f
#define ERF_A6 0x1.5bfc2cp-14f
#define ERF_B0 -0x1.b220d8p-13f
#define ERF_B1 -0x1.20ac30p+0f
#define ERF_B2 -0x1.4647b2p-1f
#define ERF_B3 -0x1.a9654ep-4f
#define ERF_B4 0x1.6b8eacp-6f
#define ERF_B5 -0x1.8da1d4p-9f
#define ERF_B6 0x1.98d53ep-13f
static inline float erf32(float x) {
    float a = bits_f32(f32_to_bits(x) & 0x7fffffffu), t = 4.0f < a ? 4.0f : a, s = x * x;
    float p = fma32(s, ERF_A6, ERF_A5), q = fma32(t, ERF_B6, ERF_B5);
    p = fma32(p, s, ERF_A4);
    p = fma32(p, s, ERF_A3);
    p = fma32(p, s, ERF_A2);
    p = fma32(p, s, ERF_A1);
    p = fma32(p, s, ERF_A0);
    q = fma32(q, t, ERF_B4);
    q = fma32(q, t, ERF_B3);
    q = fma32(q, t, ERF_B2);
    q = fma32(q, t, ERF_B1);
    q = fma32(q, t, ERF_B0);
    float big = 1.0f - exp32(q);
    return a < 0.9375f ? x * p : bits_f32(f32_to_bits(big) | (f32_to_bits(x) & 0x80000000u));
}

/* gelu itself; relu and its square (NaN stays NaN); the logistic function. */
#define SQRT_HALF 0x1.6a09e6p-1f
static inline float gelu_erf32(float x) { return (0.5f * x) * (1.0f + erf32(x * SQRT_HALF)); }
static inline float relu32(float x) { return x < 0.0f ? 0.0f : x; }
static inline float relu2_32(float x) { return relu32(x) * relu32(x); }
static inline float sigmoid32(float x) { return 1.0f / (1.0f + exp32(-x)); }

/* ln(1 + e^x) = max(x, 0) + ln(1 + e), e = e^-|x|, the logarithm as 2 artanh(e / (2 + e)) by its series. */
#define SOFTPLUS_C(n) (1.0f / (n))
static inline float softplus32(float x) {
    float e = exp32(-bits_f32(f32_to_bits(x) & 0x7fffffffu)), z = e / (2.0f + e), q = z * z;
    float p = fma32(q, SOFTPLUS_C(15), SOFTPLUS_C(13));
    p = fma32(p, q, SOFTPLUS_C(11));
    p = fma32(p, q, SOFTPLUS_C(9));
    p = fma32(p, q, SOFTPLUS_C(7));
    p = fma32(p, q, SOFTPLUS_C(5));
    p = fma32(p, q, SOFTPLUS_C(3));
    return max32(x, 0.0f) + fma32((z + z) * q, p, z + z);
}

/* gpt-oss's gate: both inputs are limited, the sigmoid is steeper. */
#define SWIGLU_LIMIT 7.0f
#define SWIGLU_ALPHA 0x1.b3b646p+0f     /* 1.702 */

/* Double versions for numbers on the tape, angles and sampling; exp and log within 2 ulp,
   pow within 2^-45 relative for |y log x| <= 64, sin and cos within 2^-50 absolute for |x| <= 2^20,
   less exact beyond it, NaN from |x| = 2^51 on. */
double math_exp(double x);
double math_log(double x);
double math_pow(double x, double y);    /* x > 0 */
double math_sin(double x);
double math_cos(double x);
#endif
