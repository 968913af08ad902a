/* Scans in plain C, element by element as docs/numerics.md says. */
#include "../../base/math.h"
#include "../init.h"

static float tree_sum(float *s) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] = s[i] + s[i + half];
    return s[0];
}

static void wkv_ref(float *s, int n, const float *r, const float *k, const float *v, const float *u, const float *d, float *y) {
    for (int j = 0; j < n; j++) y[j] = 0;
    for (int i = 0; i < n; i++, s += n) {
        float w = exp32(-exp32(d[i]));
        for (int j = 0; j < n; j++) {
            float kv = k[i] * v[j];
            y[j] = fma32(r[i], fma32(u[i], kv, s[j]), y[j]);
            s[j] = fma32(w, s[j], kv);
        }
    }
}

static void wkv7_ref(const wkv7_args *a) {
    int n = a->n;
    float e[SCAN_MAX], x[SCAN_MAX], z[SCAN_MAX], squares[16] = {0}, products[16] = {0};
    for (int i = 0; i < n; i++) {
        e[i] = a->k[i] * a->k_k[i];
        x[i] = a->k[i] * fma32(a->a[i] - 1.0f, a->k_a[i], 1.0f);
        squares[i % 16] = fma32(e[i], e[i], squares[i % 16]);
        products[i % 16] = fma32(a->r[i] * x[i], a->r_k[i], products[i % 16]);
        z[i] = a->y[i] = 0;
    }
    float length = max32(__builtin_sqrtf(tree_sum(squares)), 1e-12f), sum = tree_sum(products);
    for (int i = 0; i < n; i++) {
        e[i] = e[i] / length;
        a->bonus[i] = sum * a->v[i];
    }
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) z[j] = fma32(e[i], a->s[i * n + j], z[j]);
    for (int i = 0; i < n; i++) {
        float w = exp32(WKV7_DECAY * sigmoid32(a->d[i])), b = -(e[i] * a->a[i]);
        for (int j = 0; j < n; j++) {
            float *s = &a->s[i * n + j];
            *s = fma32(w, *s, fma32(b, z[j], x[i] * a->v[j]));
            a->y[j] = fma32(a->r[i], *s, a->y[j]);
        }
    }
}

static void ssm_ref(float *s, const float *a, int n, int p, const float *x, const float *dt, const float *b, const float *c, const float *d, float *y) {
    for (int j = 0; j < p; j++) {
        float xt = x[j] * dt[j], sum = 0;
        for (int i = 0; i < n; i++) {
            float *at = &s[i * p + j];
            *at = fma32(exp32(dt[j] * a[i * p + j]), *at, b[i] * xt);
            sum = fma32(c[i], *at, sum);
        }
        y[j] = fma32(d[j], x[j], sum);
    }
}

static void ssd_ref(float *s, int n, int p, const float *x, float dt, float a, const float *b, const float *c, float d, float *y) {
    float w = exp32(dt * a);
    for (int j = 0; j < p; j++) {
        float xt = x[j] * dt, sum = 0;
        for (int i = 0; i < n; i++) {
            s[i * p + j] = fma32(w, s[i * p + j], b[i] * xt);
            sum = fma32(c[i], s[i * p + j], sum);
        }
        y[j] = fma32(d, x[j], sum);
    }
}

static void delta_ref(float *s, int n, int p, const float *q, const float *k, const float *v, float g, float beta, float *y) {
    float w = exp32(g);
    for (int j = 0; j < p; j++) {
        float z = 0, sum = 0;
        for (int i = 0; i < n; i++) {
            s[i * p + j] = w * s[i * p + j];
            z = fma32(k[i], s[i * p + j], z);
        }
        z = beta * (v[j] - z);
        for (int i = 0; i < n; i++) {
            s[i * p + j] = fma32(k[i], z, s[i * p + j]);
            sum = fma32(q[i], s[i * p + j], sum);
        }
        y[j] = sum;
    }
}

void init_scan_ref(kernels *k) {
    KERNEL_SET(k, wkv, "wkv", wkv_ref);
    KERNEL_SET(k, wkv7, "wkv7", wkv7_ref);
    KERNEL_SET(k, ssm, "ssm", ssm_ref);
    KERNEL_SET(k, ssd, "ssd", ssd_ref);
    KERNEL_SET(k, delta, "delta", delta_ref);
}
