/* Scans: every level against the reference, and the reference against double. */
#include "kernel_test.h"

#include <math.h>

static const double U = 0x1p-24;        /* half a unit in the last place of f32, relative */

static const float *random_in(int which, int64_t n, int fill) {
    float *x = scratch(which, (size_t)n * sizeof *x);
    fill_floats(x, n, fill);
    return x;
}

static const float *in(const float *x, int64_t n) { return guard_in(x, (size_t)n * sizeof *x); }

enum { R, K, V, P, D, A, B, C, S, ARRAYS };

/* Inputs 0 to S - 1 of n values and a state of n*p, all of one fill or the state of the usual one. */
static void inputs(const float **x, int n, int p, int fill) {
    int most = n > p ? n : p;
    for (int i = 0; i < S; i++) x[i] = random_in(i, most, rnd_below(4) ? fill : FILL_NORMAL);
    x[S] = random_in(S, (int64_t)n * p, rnd_below(2) ? fill : FILL_NORMAL);
}

static void wkv_case(int n, int fill) {
    const float *x[ARRAYS];
    inputs(x, n, n, fill);
    for (case_begin("wkv", "n=%d, %s", n, fill_names[fill]); run_next();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)n * sizeof *s), *y = guard_out((size_t)n * sizeof *y);
        run.k->wkv(s, n, in(x[R], n), in(x[K], n), in(x[V], n), in(x[P], n), in(x[D], n), y);
        check_floats("y", y, n);
        check_floats("s", s, (int64_t)n * n);
    }
}

static void wkv7_case(int n, int fill) {
    const float *x[ARRAYS];
    inputs(x, n, n, fill);
    for (case_begin("wkv7", "n=%d, %s", n, fill_names[fill]); run_next();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)n * sizeof *s), *y = guard_out((size_t)n * sizeof *y), *bonus = guard_out((size_t)n * sizeof *y);
        run.k->wkv7(&(wkv7_args){.s = s, .n = n, .r = in(x[R], n), .d = in(x[D], n), .k = in(x[K], n), .v = in(x[V], n), .a = in(x[A], n),
                                 .k_k = in(x[P], n), .k_a = in(x[B], n), .r_k = in(x[C], n), .y = y, .bonus = bonus});
        check_floats("y", y, n);
        check_floats("bonus", bonus, n);
        check_floats("s", s, (int64_t)n * n);
    }
}

static void ssm_case(int n, int p, int fill) {
    const float *x[ARRAYS], *a;
    inputs(x, n, p, fill);
    a = random_in(ARRAYS, (int64_t)n * p, FILL_NORMAL);
    for (case_begin("ssm", "n=%d p=%d, %s", n, p, fill_names[fill]); run_next();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)p * sizeof *s), *y = guard_out((size_t)p * sizeof *y);
        run.k->ssm(s, in(a, (int64_t)n * p), n, p, in(x[V], p), in(x[D], p), in(x[B], n), in(x[C], n), in(x[P], p), y);
        check_floats("y", y, p);
        check_floats("s", s, (int64_t)n * p);
    }
}

static void ssd_case(int n, int p, int fill) {
    const float *x[ARRAYS];
    inputs(x, n, p, fill);
    for (case_begin("ssd", "n=%d p=%d, %s", n, p, fill_names[fill]); run_next();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)p * sizeof *s), *y = guard_out((size_t)p * sizeof *y);
        run.k->ssd(s, n, p, in(x[V], p), x[D][0], x[A][0], in(x[B], n), in(x[C], n), x[P][0], y);
        check_floats("y", y, p);
        check_floats("s", s, (int64_t)n * p);
    }
}

static void delta_case(int n, int p, int fill) {
    const float *x[ARRAYS];
    inputs(x, n, p, fill);
    for (case_begin("delta", "n=%d p=%d, %s", n, p, fill_names[fill]); run_next();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)p * sizeof *s), *y = guard_out((size_t)p * sizeof *y);
        run.k->delta(s, n, p, in(x[R], n), in(x[K], n), in(x[V], p), x[D][0], x[A][0], y);
        check_floats("y", y, p);
        check_floats("s", s, (int64_t)n * p);
    }
}

void test_scans(void) {
    for (int fill = 0; fill < FILLS; fill++)
        for (int n = 1; n <= 144; n += n < 36 ? 1 : 12) {
            wkv_case(n, fill);
            wkv7_case(n, fill);
            ssm_case(n, 1 + rnd_below(70), fill);
            ssd_case(n, 1 + rnd_below(70), fill);
            delta_case(n, 1 + rnd_below(70), fill);
        }
}

/* ---- the reference in double: every sum of m products is within (m + a few) roundings of the sum of their sizes; a decay, which has the errors of
   an exponential and its argument, adds those of its state ------------------------------------------------------------------------------------- */

/* w[i] is e^x and within 1 ulp (2 U) of e^x', x' within `off` of x. */
static double decay_error(double off) { return 1.01 * (off + 2 * U); }

static void near(const char *what, int j, double got, double want, double bound) {
    check(fabs(got - want) <= bound, "%s[%d] is %a, in double %a", what, j, got, want);
}

static void wkv_exact(int n) {
    const float *x[ARRAYS];
    inputs(x, n, n, FILL_NORMAL);
    for (case_begin("wkv", "in double, n=%d", n); run_ref();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)n * sizeof *s), *y = guard_out((size_t)n * sizeof *y);
        run.k->wkv(s, n, x[R], x[K], x[V], x[P], x[D], y);
        for (int j = 0; j < n; j++) {
            double sum = 0, size = 0;
            for (int i = 0; i < n; i++) {
                double kv = (double)x[K][i] * x[V][j], old = x[S][i * n + j], e = exp((double)x[D][i]), w = exp(-e);
                sum += x[R][i] * (x[P][i] * kv + old);
                size += fabs(x[R][i]) * (fabs(x[P][i] * kv) + fabs(old));
                near("s", i * n + j, s[i * n + j], w * old + kv, 2.01 * U * (fabs(w * old) + fabs(kv)) + decay_error(2 * U * e) * fabs(w * old) + 1e-37);
            }
            near("y", j, y[j], sum, 1.01 * (n + 3) * U * size);
        }
    }
}

static void wkv7_exact(int n) {
    const float *x[ARRAYS];
    inputs(x, n, n, FILL_NORMAL);
    double length = 0, products = 0, product_size = 0, lane = (n + 15) / 16 + 6;
    for (int i = 0; i < n; i++) {
        double e = (double)x[K][i] * x[P][i], xi = x[K][i] * (1 + ((double)x[A][i] - 1) * x[B][i]), size = 1 + (1 + fabs(x[A][i])) * fabs(x[B][i]);
        length += e * e;
        products += x[R][i] * xi * x[C][i];
        product_size += fabs(x[R][i] * x[C][i] * x[K][i]) * size;
    }
    length = sqrt(length);
    for (case_begin("wkv7", "in double, n=%d", n); run_ref();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)n * sizeof *s), *y = guard_out((size_t)n * sizeof *y), *bonus = guard_out((size_t)n * sizeof *y);
        run.k->wkv7(&(wkv7_args){.s = s, .n = n, .r = x[R], .d = x[D], .k = x[K], .v = x[V], .a = x[A], .k_k = x[P], .k_a = x[B], .r_k = x[C],
                                 .y = y, .bonus = bonus});
        for (int j = 0; j < n; j++) {
            double z = 0, z_size = 0, sum = 0, size = 0, v = x[V][j], relative = (2 * lane + n + 8) * U;
            for (int i = 0; i < n; i++) {
                double e = (double)x[K][i] * x[P][i] / length;
                z += e * x[S][i * n + j];
                z_size += fabs(e * x[S][i * n + j]);
            }
            for (int i = 0; i < n; i++) {
                double e = (double)x[K][i] * x[P][i] / length, a = x[A][i], w = exp(-0.606531 / (1 + exp(-(double)x[D][i])));
                double xi = x[K][i] * (1 + (a - 1) * x[B][i]), xi_size = fabs(x[K][i]) * (1 + (1 + fabs(a)) * fabs(x[B][i]));
                double want = w * x[S][i * n + j] - e * a * z + xi * v, terms = fabs(w * x[S][i * n + j]) + fabs(e * a) * z_size + xi_size * fabs(v);
                near("s", i * n + j, s[i * n + j], want, 1.01 * (relative + 12 * U) * terms);
                sum += x[R][i] * want;
                size += fabs(x[R][i]) * terms;
            }
            near("y", j, y[j], sum, 1.01 * (relative + (n + 14) * U) * size);
            near("bonus", j, bonus[j], products * v, 1.01 * (lane + 6) * U * product_size * fabs(v));
        }
    }
}

/* one: the head's dt, a and d instead of each value's. */
static void mamba_exact(int n, int p, int one) {
    const float *x[ARRAYS], *a;
    inputs(x, n, p, FILL_NORMAL);
    a = random_in(ARRAYS, (int64_t)n * p, FILL_NORMAL);
    for (case_begin(one ? "ssd" : "ssm", "in double, n=%d p=%d", n, p); run_ref();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)p * sizeof *s), *y = guard_out((size_t)p * sizeof *y);
        if (one) run.k->ssd(s, n, p, x[V], x[D][0], a[0], x[B], x[C], x[P][0], y);
        else run.k->ssm(s, a, n, p, x[V], x[D], x[B], x[C], x[P], y);
        for (int j = 0; j < p; j++) {
            double dt = x[D][one ? 0 : j], d = x[P][one ? 0 : j], v = x[V][j], sum = d * v, size = fabs(sum);
            for (int i = 0; i < n; i++) {
                double g = dt * a[one ? 0 : i * p + j], old = exp(g) * x[S][i * p + j], new = x[B][i] * v * dt, off = decay_error(U * fabs(g)) * fabs(old);
                near("s", i * p + j, s[i * p + j], old + new, 1.01 * (off + 3 * U * (fabs(old) + fabs(new))));
                sum += x[C][i] * (old + new);
                size += fabs(x[C][i]) * (fabs(old) * (1 + off / (fabs(old) + 1e-300) / U / (n + 6)) + fabs(new));
            }
            near("y", j, y[j], sum, 1.01 * (n + 6) * U * size);
        }
    }
}

static void delta_exact(int n, int p) {
    const float *x[ARRAYS];
    inputs(x, n, p, FILL_NORMAL);
    for (case_begin("delta", "in double, n=%d p=%d", n, p); run_ref();) {
        float *s = guard_inout(x[S], (size_t)n * (size_t)p * sizeof *s), *y = guard_out((size_t)p * sizeof *y);
        run.k->delta(s, n, p, x[R], x[K], x[V], x[D][0], x[A][0], y);
        double w = exp((double)x[D][0]), beta = x[A][0];
        for (int j = 0; j < p; j++) {
            double z = 0, z_size = fabs(x[V][j]), sum = 0, size = 0;
            for (int i = 0; i < n; i++) {
                z += x[K][i] * w * x[S][i * p + j];
                z_size += fabs(x[K][i] * w * x[S][i * p + j]);
            }
            for (int i = 0; i < n; i++) {
                double old = w * x[S][i * p + j], new = x[K][i] * beta * (x[V][j] - z), terms = fabs(old) + fabs(x[K][i] * beta) * z_size;
                near("s", i * p + j, s[i * p + j], old + new, 1.01 * (n + 8) * U * terms);
                sum += x[R][i] * (old + new);
                size += fabs(x[R][i]) * terms;
            }
            near("y", j, y[j], sum, 1.01 * (2 * n + 10) * U * size);
        }
    }
}

void test_scans_exact(void) {
    for (int n = 1; n <= 128; n += n < 20 ? 1 : 12) {
        wkv_exact(n);
        wkv7_exact(n);
        mamba_exact(n, 1 + rnd_below(70), 0);
        mamba_exact(n, 1 + rnd_below(70), 1);
        delta_exact(n, 1 + rnd_below(70));
    }
}
