/* Norms, activations, angles and rope in plain C, element by element as docs/numerics.md says. */
#include "../../base/math.h"
#include "../init.h"

#include <math.h>
#include <string.h>

/* Sum of 16 lanes by halves. */
static float tree_sum(float *s) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] = s[i] + s[i + half];
    return s[0];
}

static void rmsnorm_ref(const float *x, const float *w, float *y, int64_t n, float eps) {
    float s[16] = {0};
    for (int64_t i = 0; i < n; i++) s[i % 16] = fma32(x[i], x[i], s[i % 16]);
    float r = 1.0f / __builtin_sqrtf(tree_sum(s) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) y[i] = w ? (x[i] * r) * w[i] : x[i] * r;
}

static void layernorm_ref(const float *x, const float *w, const float *b, float *y, int64_t n, float eps) {
    float s[16] = {0}, d[16] = {0};
    for (int64_t i = 0; i < n; i++) s[i % 16] = s[i % 16] + x[i];
    float mean = tree_sum(s) / (float)n;
    for (int64_t i = 0; i < n; i++) d[i % 16] = fma32(x[i] - mean, x[i] - mean, d[i % 16]);
    float r = 1.0f / __builtin_sqrtf(tree_sum(d) / (float)n + eps);
    for (int64_t i = 0; i < n; i++) {
        float v = ((x[i] - mean) * r) * w[i];
        y[i] = b ? v + b[i] : v;
    }
}

static float activate(int act, float x) {
#define ACT_CASE(kind, name, fn) if (act == ACT_##kind) return fn##32(x);
    ACTS(ACT_CASE)
    return x;
}

static void act_ref(int act, const float *x, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = activate(act, x[i]);
}

static float swiglu_oai(float gate, float up) {
    float g = SWIGLU_LIMIT < gate ? SWIGLU_LIMIT : gate, u = SWIGLU_LIMIT < up ? SWIGLU_LIMIT : up < -SWIGLU_LIMIT ? -SWIGLU_LIMIT : up;
    return (g * sigmoid32(SWIGLU_ALPHA * g)) * (u + 1.0f);
}

static void gated_ref(int act, const float *gate, const float *up, float *y, int64_t n) {
    for (int64_t i = 0; i < n; i++) y[i] = act == ACT_SWIGLU_OAI ? swiglu_oai(gate[i], up[i]) : activate(act, gate[i]) * up[i];
}

static void softmax_ref(const float *x, float *y, int64_t n) {
    float s[16] = {0}, m = -INFINITY;
    for (int64_t i = 0; i < n; i++) m = max32(x[i], m);
    for (int64_t i = 0; i < n; i++) {
        y[i] = exp32(x[i] - m);
        s[i % 16] = s[i % 16] + y[i];
    }
    float sum = tree_sum(s);
    for (int64_t i = 0; i < n; i++) y[i] = y[i] / sum;
}

static void softcap_ref(const float *x, float *y, int64_t n, float cap) {
    for (int64_t i = 0; i < n; i++) y[i] = cap * tanh32(x[i] / cap);
}

static void angles_ref(const float *freq, int64_t n, int64_t pos, float mscale, float *out) {
    for (int64_t i = 0; i < n; i++) {
        double a = (double)pos * (double)freq[i];
        out[i] = (float)math_cos(a) * mscale;
        out[n + i] = (float)math_sin(a) * mscale;
    }
}

static void rope_ref(const float *x, const float *angles, float *y, int heads, int dim, int rot, int neox) {
    int half = rot / 2;
    for (int h = 0; h < heads; h++, x += dim, y += dim) {
        for (int i = 0; i < half; i++) {
            int a = neox ? i : 2 * i, b = neox ? i + half : 2 * i + 1;
            float xa = x[a], xb = x[b], cos = angles[i], sin = angles[half + i];
            y[a] = fma32(xa, cos, -(xb * sin));
            y[b] = fma32(xa, sin, xb * cos);
        }
        memmove(y + rot, x + rot, (size_t)(dim - rot) * sizeof *x);
    }
}

void init_vec_ref(kernels *k) {
    KERNEL_SET(k, rmsnorm, "rmsnorm", rmsnorm_ref);
    KERNEL_SET(k, layernorm, "layernorm", layernorm_ref);
    KERNEL_SET(k, act, "act", act_ref);
    KERNEL_SET(k, gated, "gated", gated_ref);
    KERNEL_SET(k, softmax, "softmax", softmax_ref);
    KERNEL_SET(k, softcap, "softcap", softcap_ref);
    KERNEL_SET(k, angles, "angles", angles_ref);
    KERNEL_SET(k, rope, "rope", rope_ref);
}
