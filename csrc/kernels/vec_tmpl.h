/* Norms, activations and rope for one level: include a simd_*.h first. docs/numerics.md fixes the order of operations. */
#include "init.h"
#include "lanes.h"

#include <string.h>

static void NAME(rmsnorm)(const float *x, const float *w, float *y, int64_t n, float eps) {
    fx s = fx_set1(0);
    int64_t i = 0, whole = n / 16 * 16;
    for (; i < whole; i += 16) s = fx_fma(fx_load(x + i), fx_load(x + i), s);
    if (i < n) {                    /* zeros add nothing to a lane */
        fx v = fx_load_part(x + i, n - i);
        s = fx_fma(v, v, s);
    }
    float r = 1.0f / __builtin_sqrtf(fx_sum(s) / (float)n + eps);
    fx rr = fx_set1(r);
    for (i = 0; i < whole; i += 16) {
        fx v = fx_mul(fx_load(x + i), rr);
        fx_store(y + i, w ? fx_mul(v, fx_load(w + i)) : v);
    }
    for (; i < n; i++) y[i] = w ? (x[i] * r) * w[i] : x[i] * r;
}

static void NAME(layernorm)(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    fx s = fx_set1(0), d = fx_set1(0);
    int64_t i = 0, whole = n / 16 * 16;
    for (; i < whole; i += 16) s = fx_add(s, fx_load(x + i));
    if (i < n) s = fx_add(s, fx_load_part(x + i, n - i));
    float mean = fx_sum(s) / (float)n, rest[16] = {0};
    fx mm = fx_set1(mean);
    for (i = 0; i < whole; i += 16) {
        fx v = fx_sub(fx_load(x + i), mm);
        d = fx_fma(v, v, d);
    }
    for (; i < n; i++) rest[i - whole] = x[i] - mean;
    fx left = fx_load(rest);        /* zeros add nothing to a lane */
    float r = 1.0f / __builtin_sqrtf(fx_sum(fx_fma(left, left, d)) / (float)n + eps);
    fx rr = fx_set1(r);
    for (i = 0; i < whole; i += 16) {
        fx v = fx_mul(fx_mul(fx_sub(fx_load(x + i), mm), rr), fx_load(w + i));
        fx_store(y + i, b ? fx_add(v, fx_load(b + i)) : v);
    }
    for (; i < n; i++) {
        float v = ((x[i] - mean) * r) * w[i];
        y[i] = b ? v + b[i] : v;
    }
}

#define ACT_LOOP(kind, name, fn) \
    case ACT_##kind: \
        for (; i + 16 <= n; i += 16) fx_store(y + i, fx_##fn(fx_load(x + i))); \
        if (i < n) fx_store_part(y + i, fx_##fn(fx_load_part(x + i, n - i)), n - i); \
        return;
#define GATED_LOOP(kind, name, fn) \
    case ACT_##kind: \
        for (; i + 16 <= n; i += 16) fx_store(y + i, fx_mul(fx_##fn(fx_load(gate + i)), fx_load(up + i))); \
        if (i < n) fx_store_part(y + i, fx_mul(fx_##fn(fx_load_part(gate + i, n - i)), fx_load_part(up + i, n - i)), n - i); \
        return;

static void NAME(act)(int act, const float *x, float *y, int64_t n) {
    int64_t i = 0;
    switch (act) { ACTS(ACT_LOOP) }
}

INLINE fx NAME(swiglu_oai)(fx gate, fx up) {
    fx limit = fx_set1(SWIGLU_LIMIT), least = fx_set1(-SWIGLU_LIMIT);
    fx g = fx_less(limit, gate, limit, gate), u = fx_less(limit, up, limit, fx_less(up, least, least, up));
    return fx_mul(fx_mul(g, fx_sigmoid(fx_mul(fx_set1(SWIGLU_ALPHA), g))), fx_add(u, fx_set1(1.0f)));
}

static void NAME(gated)(int act, const float *gate, const float *up, float *y, int64_t n) {
    int64_t i = 0;
    switch (act) {
        ACTS(GATED_LOOP)
    case ACT_SWIGLU_OAI:
        for (; i + 16 <= n; i += 16) fx_store(y + i, NAME(swiglu_oai)(fx_load(gate + i), fx_load(up + i)));
        if (i < n) fx_store_part(y + i, NAME(swiglu_oai)(fx_load_part(gate + i, n - i), fx_load_part(up + i, n - i)), n - i);
    }
}

static void NAME(softmax)(const float *x, float *y, int64_t n) {
    int64_t i = 0, whole = n / 16 * 16;
    float most[16], m = -__builtin_inff();
    fx mm = fx_set1(m), s = fx_set1(0);
    for (; i < whole; i += 16) mm = fx_max(fx_load(x + i), mm);
    fx_store(most, mm);
    for (int j = 0; j < 16; j++) m = max32(most[j], m);
    for (; i < n; i++) m = max32(x[i], m);
    mm = fx_set1(m);
    for (i = 0; i < whole; i += 16) {
        fx e = fx_exp(fx_sub(fx_load(x + i), mm));
        fx_store(y + i, e);
        s = fx_add(s, e);
    }
    if (i < n) {
        float rest[16];
        fx_store(rest, fx_exp(fx_sub(fx_load_part(x + i, n - i), mm)));
        for (int64_t j = 0; j < 16; j++) {
            if (i + j < n) y[i + j] = rest[j];
            else rest[j] = 0;           /* adds nothing to a lane */
        }
        s = fx_add(s, fx_load(rest));
    }
    fx sum = fx_set1(fx_sum(s));
    for (i = 0; i < whole; i += 16) fx_store(y + i, fx_div(fx_load(y + i), sum));
    if (i < n) fx_store_part(y + i, fx_div(fx_load_part(y + i, n - i), sum), n - i);
}

static void NAME(softcap)(const float *x, float *y, int64_t n, float cap) {
    fx c = fx_set1(cap);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) fx_store(y + i, fx_mul(c, fx_tanh(fx_div(fx_load(x + i), c))));
    if (i < n) fx_store_part(y + i, fx_mul(c, fx_tanh(fx_div(fx_load_part(x + i, n - i), c))), n - i);
}

static void NAME(rope)(const float *x, const float *angles, float *y, int heads, int dim, int rot, int neox) {
    int half = rot / 2;
    const float *cos = angles, *sin = angles + half;
    for (int h = 0; h < heads; h++, x += dim, y += dim) {
        int i = 0;
        for (; neox && i + 16 <= half; i += 16) {
            fx a = fx_load(x + i), b = fx_load(x + i + half), c = fx_load(cos + i), s = fx_load(sin + i);
            fx_store(y + i, fx_fma(a, c, fx_sub(fx_set1(-0.0f), fx_mul(b, s))));
            fx_store(y + i + half, fx_fma(a, s, fx_mul(b, c)));
        }
        for (; i < half; i++) {
            int ia = neox ? i : 2 * i, ib = neox ? i + half : 2 * i + 1;
            float a = x[ia], b = x[ib];
            y[ia] = fma32(a, cos[i], -(b * sin[i]));
            y[ib] = fma32(a, sin[i], b * cos[i]);
        }
        memmove(y + rot, x + rot, (size_t)(dim - rot) * sizeof *x);
    }
}

void NAME(init_vec)(kernels *k) {
    KERNEL_LEVEL(k, rmsnorm, "rmsnorm", rmsnorm);
    KERNEL_LEVEL(k, layernorm, "layernorm", layernorm);
    KERNEL_LEVEL(k, act, "act", act);
    KERNEL_LEVEL(k, gated, "gated", gated);
    KERNEL_LEVEL(k, softmax, "softmax", softmax);
    KERNEL_LEVEL(k, softcap, "softcap", softcap);
    KERNEL_LEVEL(k, rope, "rope", rope);
}
