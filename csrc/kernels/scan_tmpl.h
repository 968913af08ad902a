/* Scans for one level: include a simd_*.h first. docs/numerics.md fixes the order of operations. The lanes are the values of a state's rows, 16 at a
 * time; what is left of a row goes through a copy. */
#include "init.h"
#include "lanes.h"

INLINE fx load_up_to(const float *p, int n) { return n >= 16 ? fx_load(p) : fx_load_part(p, n); }
INLINE void store_up_to(float *p, fx a, int n) {
    if (n >= 16) fx_store(p, a);
    else fx_store_part(p, a, n);
}

static void NAME(wkv)(float *s, int n, const float *r, const float *k, const float *v, const float *u, const float *d, float *y) {
    float w[SCAN_MAX + 16];
    for (int i = 0; i < n; i += 16) fx_store(w + i, fx_exp(fx_sub(fx_set1(-0.0f), fx_exp(load_up_to(d + i, n - i)))));
    for (int j = 0; j < n; j += 16) {
        fx vj = load_up_to(v + j, n - j), sum = fx_set1(0);
        float *at = s + j;
        for (int i = 0; i < n; i++, at += n) {
            fx kv = fx_mul(fx_set1(k[i]), vj), old = load_up_to(at, n - j);
            sum = fx_fma(fx_set1(r[i]), fx_fma(fx_set1(u[i]), kv, old), sum);
            store_up_to(at, fx_fma(fx_set1(w[i]), old, kv), n - j);
        }
        store_up_to(y + j, sum, n - j);
    }
}

static void NAME(wkv7)(const wkv7_args *a) {
    int n = a->n;
    float w[SCAN_MAX + 16], e[SCAN_MAX + 16], b[SCAN_MAX + 16], x[SCAN_MAX + 16];
    fx one = fx_set1(1.0f), squares = fx_set1(0), products = fx_set1(0);
    for (int i = 0; i < n; i += 16) {           /* zeros past the end add nothing to a lane */
        fx k = load_up_to(a->k + i, n - i), ek = fx_mul(k, load_up_to(a->k_k + i, n - i));
        fx xk = fx_mul(k, fx_fma(fx_sub(load_up_to(a->a + i, n - i), one), load_up_to(a->k_a + i, n - i), one));
        fx_store(e + i, ek);
        fx_store(x + i, xk);
        fx_store(w + i, fx_exp(fx_mul(fx_set1(WKV7_DECAY), fx_sigmoid(load_up_to(a->d + i, n - i)))));
        squares = fx_fma(ek, ek, squares);
        products = fx_fma(fx_mul(load_up_to(a->r + i, n - i), xk), load_up_to(a->r_k + i, n - i), products);
    }
    fx length = fx_set1(max32(__builtin_sqrtf(fx_sum(squares)), 1e-12f)), sum = fx_set1(fx_sum(products));
    for (int i = 0; i < n; i += 16) {
        fx ek = fx_div(fx_load(e + i), length);
        fx_store(e + i, ek);
        fx_store(b + i, fx_sub(fx_set1(-0.0f), fx_mul(ek, load_up_to(a->a + i, n - i))));
        store_up_to(a->bonus + i, fx_mul(sum, load_up_to(a->v + i, n - i)), n - i);
    }
    for (int j = 0; j < n; j += 16) {
        fx v = load_up_to(a->v + j, n - j), z = fx_set1(0), y = fx_set1(0);
        float *s = a->s + j;
        for (int i = 0; i < n; i++) z = fx_fma(fx_set1(e[i]), load_up_to(s + i * n, n - j), z);
        for (int i = 0; i < n; i++, s += n) {
            fx new = fx_fma(fx_set1(w[i]), load_up_to(s, n - j), fx_fma(fx_set1(b[i]), z, fx_mul(fx_set1(x[i]), v)));
            store_up_to(s, new, n - j);
            y = fx_fma(fx_set1(a->r[i]), new, y);
        }
        store_up_to(a->y + j, y, n - j);
    }
}

static void NAME(ssm)(float *s, const float *a, int n, int p, const float *x, const float *dt, const float *b, const float *c, const float *d, float *y) {
    for (int j = 0; j < p; j += 16) {
        fx xj = load_up_to(x + j, p - j), t = load_up_to(dt + j, p - j), xt = fx_mul(xj, t), sum = fx_set1(0);
        for (int i = 0; i < n; i++) {
            fx w = fx_exp(fx_mul(t, load_up_to(a + i * p + j, p - j)));
            fx new = fx_fma(w, load_up_to(s + i * p + j, p - j), fx_mul(fx_set1(b[i]), xt));
            store_up_to(s + i * p + j, new, p - j);
            sum = fx_fma(fx_set1(c[i]), new, sum);
        }
        store_up_to(y + j, fx_fma(load_up_to(d + j, p - j), xj, sum), p - j);
    }
}

static void NAME(ssd)(float *s, int n, int p, const float *x, float dt, float a, const float *b, const float *c, float d, float *y) {
    fx w = fx_set1(exp32(dt * a));
    for (int j = 0; j < p; j += 16) {
        fx xj = load_up_to(x + j, p - j), xt = fx_mul(xj, fx_set1(dt)), sum = fx_set1(0);
        float *at = s + j;
        for (int i = 0; i < n; i++, at += p) {
            fx new = fx_fma(w, load_up_to(at, p - j), fx_mul(fx_set1(b[i]), xt));
            store_up_to(at, new, p - j);
            sum = fx_fma(fx_set1(c[i]), new, sum);
        }
        store_up_to(y + j, fx_fma(fx_set1(d), xj, sum), p - j);
    }
}

static void NAME(delta)(float *s, int n, int p, const float *q, const float *k, const float *v, float g, float beta, float *y) {
    fx w = fx_set1(exp32(g));
    for (int j = 0; j < p; j += 16) {
        fx z = fx_set1(0), sum = fx_set1(0);
        float *at = s + j;
        for (int i = 0; i < n; i++) z = fx_fma(fx_set1(k[i]), fx_mul(w, load_up_to(at + i * p, p - j)), z);
        z = fx_mul(fx_set1(beta), fx_sub(load_up_to(v + j, p - j), z));
        for (int i = 0; i < n; i++, at += p) {
            fx new = fx_fma(fx_set1(k[i]), z, fx_mul(w, load_up_to(at, p - j)));
            store_up_to(at, new, p - j);
            sum = fx_fma(fx_set1(q[i]), new, sum);
        }
        store_up_to(y + j, sum, p - j);
    }
}

void NAME(init_scan)(kernels *k) {
    KERNEL_LEVEL(k, wkv, "wkv", wkv);
    KERNEL_LEVEL(k, wkv7, "wkv7", wkv7);
    KERNEL_LEVEL(k, ssm, "ssm", ssm);
    KERNEL_LEVEL(k, ssd, "ssd", ssd);
    KERNEL_LEVEL(k, delta, "delta", delta);
}
