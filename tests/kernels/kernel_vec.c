/* Norms, activations, angles and rope: every level against the reference, and the reference against double. */
#include "kernel_test.h"

#include <math.h>

static const int long_lengths[] = {127, 128, 576, 1000, 2048, 4099};
enum { SHORT = 70, LENGTHS = SHORT + sizeof long_lengths / sizeof *long_lengths };
static int length(int i) { return i < SHORT ? i + 1 : long_lengths[i - SHORT]; }

/* A kernel that may work in place gets y separate or equal to x. */
static const float *input(const float *x, int64_t n, int in_place, float **y) {
    if (in_place) return *y = guard_inout(x, (size_t)n * sizeof *x);
    *y = guard_out((size_t)n * sizeof *x);
    return guard_in(x, (size_t)n * sizeof *x);
}

static float *random_floats(int which, int64_t n, int fill) {
    float *x = scratch(which, (size_t)n * sizeof *x);
    fill_floats(x, n, fill);
    return x;
}

static void rmsnorm_case(int n, int fill) {
    float *x = random_floats(0, n, fill), *w = random_floats(1, n, rnd_below(4) ? FILL_NORMAL : fill), *y;
    int in_place = rnd_below(2), weighted = rnd_below(4) != 0;
    float eps = rnd_below(2) ? 1e-6f : 1e-5f;
    for (case_begin("rmsnorm", "n=%d weighted=%d in_place=%d, %s", n, weighted, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y), *weight = weighted ? guard_in(w, (size_t)n * sizeof *w) : NULL;
        run.k->rmsnorm(in, weight, y, n, eps);
        check_floats("y", y, n);
    }
}

static void layernorm_case(int n, int fill) {
    float *x = random_floats(0, n, fill), *w = random_floats(1, n, rnd_below(4) ? FILL_NORMAL : fill), *b = random_floats(2, n, FILL_NORMAL), *y;
    int in_place = rnd_below(2), biased = rnd_below(2);
    float eps = rnd_below(2) ? 1e-6f : 1e-5f;
    for (case_begin("layernorm", "n=%d biased=%d in_place=%d, %s", n, biased, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y), *weight = guard_in(w, (size_t)n * sizeof *w);
        run.k->layernorm(in, weight, biased ? guard_in(b, (size_t)n * sizeof *b) : NULL, y, n, eps);
        check_floats("y", y, n);
    }
}

static void act_case(int act, int n, int fill) {
    float *x = random_floats(0, n, fill), *y;
    int in_place = rnd_below(2);
    for (int i = 0; i < n && fill == FILL_NORMAL; i++) x[i] *= rnd_below(2) ? 30 : 1;       /* into both tails */
    for (case_begin("act", "act=%d n=%d in_place=%d, %s", act, n, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y);
        run.k->act(act, in, y, n);
        check_floats("y", y, n);
    }
}

static void gated_case(int act, int n, int fill) {
    float *gate = random_floats(0, n, fill), *up = random_floats(1, n, rnd_below(4) ? FILL_NORMAL : fill), *y;
    int in_place = rnd_below(2);
    if (fill == FILL_NORMAL)
        for (int i = 0; i < n; i++) gate[i] *= 30;              /* into both tails */
    for (case_begin("gated", "act=%d n=%d in_place=%d, %s", act, n, in_place, fill_names[fill]); run_next();) {
        const float *g = input(gate, n, in_place, &y);
        run.k->gated(act, g, guard_in(up, (size_t)n * sizeof *up), y, n);
        check_floats("y", y, n);
    }
}

static void softmax_case(int n, int fill) {
    float *x = random_floats(0, n, fill), *y;
    int in_place = rnd_below(2);
    for (int i = 0; i < n && fill == FILL_NORMAL; i++) x[i] *= 20;
    for (case_begin("softmax", "n=%d in_place=%d, %s", n, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y);
        run.k->softmax(in, y, n);
        check_floats("y", y, n);
    }
}

static void softcap_case(int n, int fill) {
    static const float caps[] = {30, 50, 1, 1457, 1e-3f};
    float *x = random_floats(0, n, fill), *y, cap = caps[rnd_below(5)];
    int in_place = rnd_below(2);
    for (int i = 0; i < n && fill == FILL_NORMAL; i++) x[i] *= 2 * cap;
    for (case_begin("softcap", "n=%d cap=%g in_place=%d, %s", n, (double)cap, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y);
        run.k->softcap(in, y, n, cap);
        check_floats("y", y, n);
    }
}

static const int64_t positions[] = {0, 1, 2, 511, 4096, 131071, 1000000, (1 << 20)};

static float *frequencies(int n) {
    float *freq = scratch(0, (size_t)n * sizeof *freq);
    double f = 1;
    for (int i = 0; i < n; i++, f *= 0.87) freq[i] = (float)f;
    return freq;
}

static void angles_case(int n, int64_t pos) {
    float *freq = frequencies(n), mscale = rnd_below(2) ? 1 : 1.2079f;
    for (case_begin("angles", "n=%d pos=%lld mscale=%g", n, (long long)pos, (double)mscale); run_next();) {
        float *out = guard_out((size_t)n * 2 * sizeof *out);
        run.k->angles(guard_in(freq, (size_t)n * sizeof *freq), n, pos, mscale, out);
        check_floats("out", out, 2 * n);
    }
}

static void rope_case(int heads, int dim, int rot, int neox, int fill) {
    int64_t n = (int64_t)heads * dim;
    float *x = random_floats(0, n, fill), *angles = random_floats(1, rot, rnd_below(4) ? FILL_NORMAL : fill), *y;
    int in_place = rnd_below(2);
    for (case_begin("rope", "heads=%d dim=%d rot=%d neox=%d in_place=%d, %s", heads, dim, rot, neox, in_place, fill_names[fill]); run_next();) {
        const float *in = input(x, n, in_place, &y);
        run.k->rope(in, guard_in(angles, (size_t)rot * sizeof *angles), y, heads, dim, rot, neox);
        check_floats("y", y, n);
    }
}

void test_vectors(void) {
    for (int fill = 0; fill < FILLS; fill++)
        for (int i = 0; i < LENGTHS; i++) {
            rmsnorm_case(length(i), fill);
            layernorm_case(length(i), fill);
            for (int act = 0; act < ACT_COUNT; act++) act_case(act, length(i), fill);
            for (int act = 0; act <= ACT_SWIGLU_OAI; act++) gated_case(act, length(i), fill);
            softmax_case(length(i), fill);
            softcap_case(length(i), fill);
            int rot = 2 * (1 + i % SHORT);
            for (int neox = 0; neox < 2; neox++) {
                int heads = 1 + rnd_below(4);
                rope_case(heads, rot, rot, neox, fill);
                rope_case(heads, rot + 1 + rnd_below(40), rot, neox, fill);
            }
        }
    for (int n = 1; n <= 128; n += n < 20 ? 1 : 12) angles_case(n, positions[rnd_below(8)]);
}

/* ---- the reference in double ---------------------------------------------------------------------------------------------------- */

static const double U = 0x1p-24;        /* half a unit in the last place of f32, relative */

/* The sum of squares takes one rounding per element of a lane and 4 of the tree, the division and eps 2 more; the root halves what there
   is; root, reciprocal and two products follow. */
static void rmsnorm_exact(int n) {
    float *x = random_floats(0, n, FILL_NORMAL), *w = random_floats(1, n, FILL_NORMAL), eps = 1e-5f;
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * x[i];
    double r = 1 / sqrt(sum / n + eps), roundings = ((n + 15) / 16 + 6) / 2.0 + 4;
    for (case_begin("rmsnorm", "in double, n=%d", n); run_ref();) {
        float *y = guard_out((size_t)n * sizeof *y);
        run.k->rmsnorm(x, w, y, n, eps);
        for (int i = 0; i < n; i++) {
            double want = x[i] * r * w[i];
            check(fabs(y[i] - want) <= 1.001 * roundings * U * fabs(want), "y[%d] is %a, in double %a", i, (double)y[i], want);
        }
    }
}

/* The mean takes one rounding per element of a lane, 4 of the tree and the division, of the mean of |x|; it moves x - mean, whose own rounding
   follows. To the variance it adds its square alone, since the differences sum to nothing; otherwise the bound is rmsnorm's. */
static void layernorm_exact(int n) {
    float *x = random_floats(0, n, FILL_NORMAL), *w = random_floats(1, n, FILL_NORMAL), *b = random_floats(2, n, FILL_NORMAL), eps = 1e-5f;
    double sum = 0, size = 0, squares = 0;
    for (int i = 0; i < n; i++) {
        x[i] += 3;
        sum += x[i];
        size += fabs(x[i]);
    }
    double mean = sum / n, off = ((n + 15) / 16 + 5) * U * size / n;
    for (int i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
    double r = 1 / sqrt(squares / n + eps), roundings = ((n + 15) / 16 + 8) / 2.0 + 6;
    for (case_begin("layernorm", "in double, n=%d", n); run_ref();) {
        float *y = guard_out((size_t)n * sizeof *y);
        run.k->layernorm(x, w, b, y, n, eps);
        for (int i = 0; i < n; i++) {
            double d = x[i] - mean, want = d * r * w[i] + b[i];
            double bound = fabs(w[i]) * r * (1.01 * off + fabs(d) * (1.001 * roundings * U + off * off * r * r)) + 1.01 * U * fabs(want);
            check(fabs(y[i] - want) <= bound, "y[%d] is %a, in double %a", i, (double)y[i], want);
        }
    }
}

/* The activations in double and what f32 may lose, of act(x) * up.
   silu: exp within 1 ulp (2 U), then sum, quotient and product: 5 U relative, where the result does not vanish; sigmoid has no quotient's product.
   gelu: 1 + tanh cancels for negative x, so the bound is absolute: tanh within 4 ulp (8 U), its argument within 4 U of itself, which moves
   tanh by at most 4 U * max(z / cosh(z)^2) < 2 U, the sum U, the products 2 U of at most 2: 16 U of |x/2 * up|.
   swiglu_oai: the sigmoid's argument is rounded once and is at most 12 in size where the product counts: 20 U.
   tanh: within 4 ulp (8 U). softplus: ln(1 + e) by its series, whose e is within 1 ulp and moves it by no more than itself: 8 U of either summand.
   gelu_erf: erf within 3 ulp (6 U) instead, its argument within 2 U. relu is exact, its square and the product one rounding each. */
static double act_exact(int act, double x, double *bound) {
    double r = x < 0 ? 0 : x, s = 1 / (1 + exp(-x));
    switch (act) {
    case ACT_SILU: return *bound = 5.01 * U * fabs(x * s), x * s;
    case ACT_SIGMOID: return *bound = 5.01 * U * s, s;
    case ACT_GELU_TANH: return *bound = 16 * U * fabs(x / 2), 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case ACT_GELU_ERF: return *bound = 16 * U * fabs(x / 2), 0.5 * x * (1 + erf(x * sqrt(0.5)));
    case ACT_TANH: return *bound = 9 * U * fabs(tanh(x)), tanh(x);
    case ACT_SOFTPLUS: return *bound = 9 * U * (log1p(exp(-fabs(x))) + r), r + log1p(exp(-fabs(x)));
    default: return *bound = 2.01 * U * (act == ACT_RELU ? r : r * r), act == ACT_RELU ? r : r * r;
    }
}

static void gated_exact(int act, int n) {
    float *gate = random_floats(0, n, FILL_NORMAL), *up = random_floats(1, n, FILL_NORMAL);
    for (int i = 0; i < n; i++) gate[i] *= 5;
    for (case_begin("gated", "in double, act=%d n=%d", act, n); run_ref();) {
        float *y = guard_out((size_t)n * sizeof *y);
        run.k->gated(act, gate, up, y, n);
        for (int i = 0; i < n; i++) {
            double g = gate[i], u = up[i], bound, want;
            if (act == ACT_SWIGLU_OAI) {
                double limited = g > 7 ? 7 : g;
                u = (u > 7 ? 7 : u < -7 ? -7 : u) + 1;
                want = limited / (1 + exp(-(double)1.702f * limited)) * u;
                bound = fabs(want) > 0 ? (20 + fabs(1.702 * limited)) * U * fabs(want / u) + U * fabs(want / u / u) : 1e-30;
            } else {
                want = act_exact(act, g, &bound) * u;
            }
            check(fabs(y[i] - want) <= bound * fabs(u), "y[%d] of %a is %a, in double %a", i, g, (double)y[i], want);
        }
    }
}

/* Each is exp within 1 ulp (2 U) of an argument that was rounded once, which moves it by U |x - max| of itself; the sum takes one rounding per
   element of a lane and 4 of the tree, and has these errors in the mean; the quotient one. */
static void softmax_exact(int n) {
    float *x = random_floats(0, n, FILL_NORMAL);
    double most = x[0], sum = 0, off = 0;
    for (int i = 0; i < n; i++) {
        x[i] *= 5;
        if (i == 0 || x[i] > most) most = x[i];
    }
    for (int i = 0; i < n; i++) {
        double e = exp(x[i] - most);
        sum += e;
        off += e * (2 + fabs(x[i] - most));
    }
    for (case_begin("softmax", "in double, n=%d", n); run_ref();) {
        float *y = guard_out((size_t)n * sizeof *y);
        run.k->softmax(x, y, n);
        for (int i = 0; i < n; i++) {
            double want = exp(x[i] - most) / sum, bound = 1.001 * U * (2 + fabs(x[i] - most) + off / sum + (n + 15) / 16 + 4 + 1);
            check(fabs(y[i] - want) <= bound * want, "y[%d] is %a, in double %a", i, (double)y[i], want);
        }
    }
}

/* tanh within 4 ulp (8 U); its argument's rounding counts at most once, the product once. */
static void softcap_exact(int n, float cap) {
    float *x = random_floats(0, n, FILL_NORMAL);
    for (int i = 0; i < n; i++) x[i] *= 2 * cap;
    for (case_begin("softcap", "in double, n=%d cap=%g", n, (double)cap); run_ref();) {
        float *y = guard_out((size_t)n * sizeof *y);
        run.k->softcap(x, y, n, cap);
        for (int i = 0; i < n; i++) {
            double want = cap * tanh((double)x[i] / cap);
            check(fabs(y[i] - want) <= 10.01 * U * fabs(want), "y[%d] of %a is %a, in double %a", i, (double)x[i], (double)y[i], want);
        }
    }
}

/* The product of 21 and 24 bits is exact in double, the sines are within 2^-50; two roundings to f32 remain. */
static void angles_exact(int n, int64_t pos) {
    float *freq = frequencies(n), mscale = 1.2079f;
    for (case_begin("angles", "in double, n=%d pos=%lld", n, (long long)pos); run_ref();) {
        float *out = guard_out((size_t)n * 2 * sizeof *out);
        run.k->angles(freq, n, pos, mscale, out);
        for (int i = 0; i < 2 * n; i++) {
            double a = (double)pos * freq[i % n], want = mscale * (i < n ? cos(a) : sin(a)), bound = mscale * (2 * U * fabs(want) + 0x1p-49);
            check(fabs(out[i] - want) <= bound, "out[%d] is %a, in double %a", i, (double)out[i], want);
        }
    }
}

/* Each value is one product and one fma. */
static void rope_exact(int heads, int dim, int rot, int neox) {
    float *x = random_floats(0, (int64_t)heads * dim, FILL_NORMAL), *angles = random_floats(1, rot, FILL_NORMAL);
    for (case_begin("rope", "in double, heads=%d dim=%d rot=%d neox=%d", heads, dim, rot, neox); run_ref();) {
        float *y = guard_out((size_t)(heads * dim) * sizeof *y);
        run.k->rope(x, angles, y, heads, dim, rot, neox);
        for (int h = 0; h < heads; h++)
            for (int i = 0; i < dim; i++) {
                const float *v = x + h * dim;
                int half = rot / 2, pair = neox ? i % half : i / 2, second = neox ? i >= half : i % 2;
                double want = v[i], bound = 0;
                if (i < rot) {
                    double a = v[neox ? pair : 2 * pair], b = v[neox ? pair + half : 2 * pair + 1], c = angles[pair], s = angles[half + pair];
                    want = second ? a * s + b * c : a * c - b * s;
                    bound = 2 * U * (second ? fabs(a * s) + fabs(b * c) : fabs(a * c) + fabs(b * s));
                }
                check(fabs(y[h * dim + i] - want) <= bound, "y[%d][%d] is %a, in double %a", h, i, (double)y[h * dim + i], want);
            }
    }
}

void test_vectors_exact(void) {
    for (int i = 0; i < LENGTHS; i++) {
        rmsnorm_exact(length(i));
        layernorm_exact(length(i));
        for (int act = 0; act <= ACT_SWIGLU_OAI; act++) gated_exact(act, length(i));
        softmax_exact(length(i));
        softcap_exact(length(i), i % 2 ? 30 : 50);
        rope_exact(1 + i % 3, 2 * (i % SHORT) + 2 + i % 5, 2 * (i % SHORT) + 2, i % 2);
    }
    for (int i = 0; i < 8; i++) angles_exact(1 + rnd_below(128), positions[i]);
}
