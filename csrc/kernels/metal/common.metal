// What all kernels share: activations, and where a thread is. Kernels take, in this order: their arguments, buffers, then
// `uint3 group` (of the grid), `ushort lane` (0..31) and `ushort sg` (simdgroup of the threadgroup).

enum { LANES = 32, PAGE = 16 };         // of a simdgroup; tokens of a KV page
constant float LOWEST = -3.4e38f;       // below every score: no position seen yet

enum { ACT_SILU, ACT_GELU_TANH, ACT_GELU_ERF, ACT_RELU, ACT_RELU2, ACT_SIGMOID, ACT_SWIGLU_OAI };

// Elementary functions as in csrc/base/math.h: e^x below 1 ulp, exactly 0 below -87.
inline float exp32(float x) {
    float t = clamp(x, -87.0f, 88.72f), n = rint(t * 0x1.715476p+0f);
    float r = fma(n, -0x1.7f7d1cp-20f, fma(n, -0x1.62e400p-1f, t));
    float p = fma(r, 0x1.6d9904p-10f, 0x1.123d88p-7f);
    p = fma(p, r, 0x1.55547cp-5f);
    p = fma(p, r, 0x1.55548cp-3f);
    p = fma(p, r, 0x1.000000p-1f);
    p = fma(p, r, 1.0f);
    p = fma(p, r, 1.0f);
    int k = isnan(x) ? 0 : int(n), h = k >> 1;
    float y = (p * as_type<float>(uint(h + 127) << 23)) * as_type<float>(uint(k - h + 127) << 23);
    return x < -87.0f ? 0.0f : x > 88.72f ? INFINITY : isnan(x) ? x : y;
}

// Below 0.5 by a polynomial, where the quotient would cancel.
inline float tanh32(float x) {
    float a = fabs(x), t = exp32(-2.0f * a), big = (1.0f - t) / (1.0f + t), s = x * x;
    float p = fma(s, -0x1.b386a4p-8f, 0x1.5cecbcp-6f);
    p = fma(p, s, -0x1.b98a1cp-5f);
    p = fma(p, s, 0x1.110f1ep-3f);
    p = fma(p, s, -0x1.555550p-2f);
    return a < 0.5f ? fma(x * s, p, x) : copysign(big, x);
}

inline float erf32(float x) {
    float a = fabs(x), t = min(a, 4.0f), s = x * x;
    float p = fma(s, 0x1.5bfc2cp-14f, -0x1.aa06bap-11f), q = fma(t, 0x1.98d53ep-13f, -0x1.8da1d4p-9f);
    p = fma(p, s, 0x1.54c2d0p-8f);
    p = fma(p, s, -0x1.b80e30p-6f);
    p = fma(p, s, 0x1.ce2e06p-4f);
    p = fma(p, s, -0x1.812742p-2f);
    p = fma(p, s, 0x1.20dd76p+0f);
    q = fma(q, t, 0x1.6b8eacp-6f);
    q = fma(q, t, -0x1.a9654ep-4f);
    q = fma(q, t, -0x1.4647b2p-1f);
    q = fma(q, t, -0x1.20ac30p+0f);
    q = fma(q, t, -0x1.b220d8p-13f);
    return a < 0.9375f ? x * p : copysign(1.0f - exp32(q), x);
}

inline float activate(int act, float x) {
    switch (act) {
    case ACT_SILU: return x / (1.0f + exp32(-x));
    case ACT_GELU_TANH: return (0.5f * x) * (1.0f + tanh32(0x1.988454p-1f * (x * fma(x * x, 0x1.6e4e26p-5f, 1.0f))));
    case ACT_GELU_ERF: return (0.5f * x) * (1.0f + erf32(x * 0x1.6a09e6p-1f));
    case ACT_RELU: return x < 0.0f ? 0.0f : x;
    case ACT_RELU2: return x < 0.0f ? 0.0f : x * x;
    case ACT_SIGMOID: return 1.0f / (1.0f + exp32(-x));
    default: return x;
    }
}

inline float activate_gated(int act, float gate, float up) {
    if (act != ACT_SWIGLU_OAI) return activate(act, gate) * up;
    float g = min(gate, 7.0f), u = clamp(up, -7.0f, 7.0f);
    return (g / (1.0f + exp32(-0x1.b3b646p+0f * g))) * (u + 1.0f);
}
