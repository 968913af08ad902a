/* Largest errors of the elementary functions of csrc/base/math, which docs/numerics.md quotes:
 *   cc -std=gnu11 -O2 -march=native -ffp-contract=off -o math_error tools/math_error.c csrc/base/math.c -lm && ./math_error 7 2000000
 * The f32 functions are compared with the C library's double ones on every STEP-th float from the first of a range on, the double functions with
 * its long double ones at SAMPLES pseudo-random arguments, so that a run with a multiple of STEP and fewer SAMPLES sees a part of the same
 * arguments. The long double functions must have more than 53 bits (x86). */
#include "../csrc/base/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct worst { double error, at; } worst;

static void see(worst *w, double error, double at) {
    if (error > w->error) *w = (worst){error, at};
}

static void report(const char *name, const char *unit, worst w) { printf("%-8s %8.4f %s at %a\n", name, w.error, unit, w.at); }

/* The distance of two f32 neighbours at a value. */
static double ulp32(double v) {
    int e;
    frexp(v, &e);
    return ldexp(1, e < -125 ? -149 : e - 24);
}

static double ulp64(long double v) {
    int e;
    frexpl(v, &e);
    return ldexp(1, e - 53);
}

/* ---- f32 ---------------------------------------------------------------------------------------------------------------- */

static double tanh_exact(double x) { return tanh(x); }
static double exp_exact(double x) { return exp(x); }
static double silu_exact(double x) { return x / (1 + exp(-x)); }
static double gelu_exact(double x) { return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

static double softplus_exact(double x) { return (x > 0 ? x : 0) + log1p(exp(-fabs(x))); }
static double gelu_erf_exact(double x) { return 0.5 * x * (1 + erf(x * sqrt(0.5))); }

/* Floats from `from` away from zero to `to`, both of one sign. half_x: the unit is 2^-24 |x|, for functions that lose all digits somewhere. */
static void scan(worst *w, float (*f)(float), double (*exact)(double), float from, float to, uint32_t step, int half_x) {
    for (uint64_t u = f32_to_bits(from); u <= f32_to_bits(to); u += step) {
        float x = bits_f32((uint32_t)u);
        double want = exact((double)x);
        see(w, fabs((double)f(x) - want) / (half_x ? 0x1p-24 * fabs((double)x) : ulp32(want)), (double)x);
    }
}

static void both_signs(const char *name, const char *unit, float (*f)(float), double (*exact)(double), float low, float high, uint32_t step, int half_x) {
    worst w = {0, 0};
    scan(&w, f, exact, 0x1p-60f, high, step, half_x);
    scan(&w, f, exact, -0x1p-60f, low, step, half_x);
    report(name, unit, w);
}

/* ---- double --------------------------------------------------------------------------------------------------------------- */

static double uniform(int which, int64_t i, double low, double high) { return low + (high - low) * rng_uniform(1, which, i, 0); }

static void doubles(int64_t samples) {
    worst e = {0, 0}, l = {0, 0}, p = {0, 0}, s = {0, 0}, c = {0, 0};
    for (int64_t i = 0; i < samples; i++) {
        double x = uniform(0, i, -700, 700), big = uniform(1, i, -0x1p20, 0x1p20), y;
        see(&e, (double)fabsl(math_exp(x) - expl(x)) / ulp64(expl(x)), x);
        y = exp(x);
        see(&l, (double)fabsl(math_log(y) - logl(y)) / ulp64(logl(y)), y);
        y = uniform(2, i, 0.5, 2);
        see(&l, (double)fabsl(math_log(y) - logl(y)) / ulp64(logl(y)), y);
        double base = exp(uniform(3, i, -30, 30)), power = uniform(4, i, -64, 64) / fabs(log(base));
        long double want = powl(base, power);
        see(&p, (double)(fabsl(math_pow(base, power) - want) / want) * 0x1p46, base);
        see(&s, (double)fabsl(math_sin(big) - sinl(big)) * 0x1p50, big);
        see(&c, (double)fabsl(math_cos(big) - cosl(big)) * 0x1p50, big);
    }
    report("exp", "ulp", e);
    report("log", "ulp", l);
    report("pow", "2^-46", p);
    report("sin", "2^-50", s);
    report("cos", "2^-50", c);
}

int main(int argc, char **argv) {
    int64_t step = argc > 1 ? atoll(argv[1]) : 7, samples = argc > 2 ? atoll(argv[2]) : 2000000;
    if (argc > 3 || step < 1 || step > 1 << 24 || samples < 1) {
        fputs("usage: math_error [STEP [SAMPLES]]\n", stderr);
        return 2;
    }
    both_signs("exp32", "ulp", exp32, exp_exact, -87, 88.72f, (uint32_t)step, 0);
    both_signs("tanh32", "ulp", tanh32, tanh_exact, -20, 20, (uint32_t)step, 0);
    both_signs("silu32", "ulp", silu32, silu_exact, -88, 1e10f, (uint32_t)step, 0);
    both_signs("gelu32", "2^-24|x|", gelu32, gelu_exact, -1e10f, 1e10f, (uint32_t)step, 1);
    both_signs("erf32", "ulp", erf32, erf, -10, 10, (uint32_t)step, 0);
    both_signs("softplus", "ulp", softplus32, softplus_exact, -87, 1e10f, (uint32_t)step, 0);
    both_signs("gelu_erf", "2^-24|x|", gelu_erf32, gelu_erf_exact, -1e10f, 1e10f, (uint32_t)step, 1);
    doubles(samples);
    return 0;
}
