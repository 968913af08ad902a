/* KV pages and attention chunks in plain C (kernels.h: layouts; docs/numerics.md: order of operations). */
#include "../../base/math.h"
#include "../init.h"
#include "../rotate.h"

#include <string.h>

enum { DIM_MAX = 1024 };

/* 32 values to int8 with an f16 scale. */
static uint16_t quantize_kv(const float *x, int8_t *q) {
    float amax = 0;
    int finite = 1;
    for (int i = 0; i < 32; i++) {
        float a = bits_f32(f32_to_bits(x[i]) & 0x7fffffffu);
        finite &= f32_to_bits(a) < 0x7f800000u;
        amax = a > amax ? a : amax;
    }
    memset(q, 0, 32);
    if (!finite) return 0x7e00;
    if (amax < 1e-30f) return 0;
    float inv = 127.0f / amax;
    for (int i = 0; i < 32; i++) q[i] = (int8_t)round32(x[i] * inv);
    return f32_to_f16(amax / 127.0f);
}

/* 32 values to codes in 0..15, 8 for zero, with an f16 scale: the value of largest magnitude gets code 0, the positive one if both signs have it. */
static uint16_t quantize_kv4(const float *x, uint8_t *q) {
    float amax = 0;
    int finite = 1, positive = 0;
    for (int i = 0; i < 32; i++) {
        float a = bits_f32(f32_to_bits(x[i]) & 0x7fffffffu);
        finite &= f32_to_bits(a) < 0x7f800000u;
        amax = a > amax ? a : amax;
    }
    memset(q, 8, 32);
    if (!finite) return 0x7e00;
    if (amax < 1e-30f) return 0;
    for (int i = 0; i < 32; i++) positive |= x[i] == amax;
    float most = positive ? amax : -amax, inv = -8.0f / most;
    for (int i = 0; i < 32; i++) {
        int32_t code = round32(x[i] * inv) + 8;
        q[i] = (uint8_t)(code < 15 ? code : 15);
    }
    return f32_to_f16(most / -8.0f);
}

static void kv_store_k_f32_ref(const float *x, int dim, uint8_t *page, int slot) {
    for (int i = 0; i < dim; i++) ((float *)page)[i * PAGE + slot] = x[i];
}
static void kv_store_v_f32_ref(const float *x, int dim, uint8_t *page, int slot) { memcpy(page + (size_t)slot * dim * 4, x, (size_t)dim * 4); }
static void kv_store_k_f16_ref(const float *x, int dim, uint8_t *page, int slot) {
    for (int i = 0; i < dim; i++) ((uint16_t *)page)[i * PAGE + slot] = f32_to_f16(x[i]);
}
static void kv_store_v_f16_ref(const float *x, int dim, uint8_t *page, int slot) {
    for (int i = 0; i < dim; i++) ((uint16_t *)page)[slot * dim + i] = f32_to_f16(x[i]);
}
static void kv_store_k_q8_0_ref(const float *x, int dim, uint8_t *page, int slot) {
    int8_t q[32];
    for (int b = 0; b < dim / 32; b++) {
        uint8_t *p = page + b * (PAGE * 2 + PAGE * 32);
        ((uint16_t *)p)[slot] = quantize_kv(x + 32 * b, q);
        for (int i = 0; i < 32; i++) p[PAGE * 2 + (i / 4 * PAGE + slot) * 4 + i % 4] = (uint8_t)q[i];
    }
}
static void kv_store_v_q8_0_ref(const float *x, int dim, uint8_t *page, int slot) {
    int blocks = dim / 32;
    for (int b = 0; b < blocks; b++)
        ((uint16_t *)page)[slot * blocks + b] = quantize_kv(x + 32 * b, (int8_t *)page + PAGE * 2 * blocks + slot * dim + 32 * b);
}

static void kv_store_k_q4_0_ref(const float *x, int dim, uint8_t *page, int slot) {
    float r[DIM_MAX];
    uint8_t q[32];
    memcpy(r, x, (size_t)dim * sizeof *x);
    rotate(r, dim);
    for (int b = 0; b < dim / 32; b++) {
        uint8_t *p = page + b * (PAGE * 2 + PAGE * 16);
        ((uint16_t *)p)[slot] = quantize_kv4(r + 32 * b, q);
        for (int i = 0; i < 16; i++) p[PAGE * 2 + (i / 4 * PAGE + slot) * 4 + i % 4] = (uint8_t)(q[i] | q[16 + i] << 4);
    }
}
static void kv_store_v_q4_0_ref(const float *x, int dim, uint8_t *page, int slot) {
    float r[DIM_MAX];
    uint8_t q[32];
    int blocks = dim / 32;
    memcpy(r, x, (size_t)dim * sizeof *x);
    rotate(r, dim);
    for (int b = 0; b < blocks; b++) {
        ((uint16_t *)page)[slot * blocks + b] = quantize_kv4(r + 32 * b, q);
        for (int i = 0; i < 16; i++) page[PAGE * 2 * blocks + slot * dim / 2 + 16 * b + i] = (uint8_t)(q[i] | q[16 + i] << 4);
    }
}

/* Query as int8 per 32 values, for q8_0 and q4_0 keys: the activation rule of the matmuls. */
typedef struct query { int8_t q[DIM_MAX]; float d[DIM_MAX / 32]; } query;

static void quantize_query(const float *x, int dim, query *out) {
    for (int b = 0; b < dim / 32; b++) {
        uint16_t h = quantize_kv(x + 32 * b, out->q + 32 * b);
        float amax = 0;
        for (int i = 0; i < 32; i++) {
            float a = bits_f32(f32_to_bits(x[32 * b + i]) & 0x7fffffffu);
            amax = a > amax ? a : amax;
        }
        out->d[b] = h == 0x7e00 ? bits_f32(0x7fc00000u) : amax < 1e-30f ? 0 : amax / 127.0f;
    }
}

static int half_byte(uint8_t byte, int high) { return high ? byte >> 4 : byte & 15; }

static float score(int type, const float *q, const query *qq, int dim, const uint8_t *page, int slot) {
    float s = 0;
    if (type == KV_F32)
        for (int i = 0; i < dim; i++) s = fma32(q[i], ((const float *)page)[i * PAGE + slot], s);
    if (type == KV_F16)
        for (int i = 0; i < dim; i++) s = fma32(q[i], f16_to_f32(((const uint16_t *)page)[i * PAGE + slot]), s);
    for (int b = 0; kv_quantized(type) && b < dim / 32; b++) {
        const uint8_t *p = page + (size_t)b * kv_page_bytes(type, 32);
        int32_t dot = 0;
        for (int i = 0; i < 32; i++)
            dot += qq->q[32 * b + i] * (type == KV_Q8_0 ? (int8_t)p[PAGE * 2 + (i / 4 * PAGE + slot) * 4 + i % 4]
                                                        : half_byte(p[PAGE * 2 + (i % 16 / 4 * PAGE + slot) * 4 + i % 4], i / 16) - 8);
        s = fma32((float)dot, f16_to_f32(((const uint16_t *)p)[slot]) * qq->d[b], s);
    }
    return s;
}

static void add_value(int type, float p, int dim, const uint8_t *page, int slot, float *o) {
    int blocks = dim / 32;
    for (int i = 0; i < dim; i++) {
        if (type == KV_F32) o[i] = fma32(p, ((const float *)page)[slot * dim + i], o[i]);
        if (type == KV_F16) o[i] = fma32(p, f16_to_f32(((const uint16_t *)page)[slot * dim + i]), o[i]);
        if (kv_quantized(type)) {
            float pd = p * f16_to_f32(((const uint16_t *)page)[slot * blocks + i / 32]);
            const uint8_t *codes = page + PAGE * 2 * blocks;
            int code = type == KV_Q8_0 ? (int8_t)codes[slot * dim + i] : half_byte(codes[slot * dim / 2 + i / 32 * 16 + i % 16], i / 16 % 2) - 8;
            o[i] = fma32(pd, (float)code, o[i]);
        }
    }
}

static float tree_sum(float *s) {
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) s[i] = s[i] + s[i + half];
    return s[0];
}

static void attn_chunk(int type, const attn_args *a) {
    query qq;
    for (int i = 0; i < a->rows; i++)
        for (int h = 0; h < a->group; h++) {
            const float *q = a->q + i * a->ldq + h * a->dim;
            int state = i * a->group + h;
            float s[CHUNK], l[16] = {0}, turned[DIM_MAX], m = -__builtin_inff(), *o = a->o + (int64_t)state * a->v_dim;
            if (type == KV_Q4_0) {
                memcpy(turned, q, (size_t)a->dim * sizeof *q);
                rotate(turned, a->dim);
                q = turned;
            }
            if (kv_quantized(type)) quantize_query(q, a->dim, &qq);
            for (int t = a->lo[i]; t < a->hi[i]; t++) {
                s[t] = score(type, q, &qq, a->dim, a->k_pages[t / PAGE], t % PAGE) * a->scale;
                if (a->softcap != 0) s[t] = a->softcap * tanh32(s[t] / a->softcap);
                m = max32(s[t], m);
            }
            memset(o, 0, (size_t)a->v_dim * sizeof *o);
            for (int t = a->lo[i]; t < a->hi[i]; t++) {
                float p = exp32(s[t] - m);
                l[t % 16] = l[t % 16] + p;
                add_value(type, p, a->v_dim, a->v_pages[t / PAGE], t % PAGE, o);
            }
            if (type == KV_Q4_0) rotate(o, a->v_dim);
            a->m[state] = m + 0.0f;             /* one zero, whatever order found it */
            a->l[state] = tree_sum(l);
        }
}

static void attn_chunk_f32_ref(const attn_args *a) { attn_chunk(KV_F32, a); }
static void attn_chunk_f16_ref(const attn_args *a) { attn_chunk(KV_F16, a); }
static void attn_chunk_q8_0_ref(const attn_args *a) { attn_chunk(KV_Q8_0, a); }
static void attn_chunk_q4_0_ref(const attn_args *a) { attn_chunk(KV_Q4_0, a); }

static void attn_merge_ref(float *m0, float *l0, float *o0, float m1, float l1, const float *o1, int dim) {
    float m = max32(*m0, m1), a = exp32(*m0 - m), b = exp32(m1 - m);
    *m0 = m;
    *l0 = fma32(*l0, a, l1 * b);
    for (int i = 0; i < dim; i++) o0[i] = fma32(o0[i], a, o1[i] * b);
}

static void attn_finish_ref(const float *o, float l, float *y, int dim) {
    float inv = 1.0f / l;
    for (int i = 0; i < dim; i++) y[i] = o[i] * inv;
}

void init_attn_ref(kernels *k) {
    KERNEL_KV(k, F32, f32, ref);
    KERNEL_KV(k, F16, f16, ref);
    KERNEL_KV(k, Q8_0, q8_0, ref);
    KERNEL_KV(k, Q4_0, q4_0, ref);
    KERNEL_SET(k, attn_merge, "attn_merge", attn_merge_ref);
    KERNEL_SET(k, attn_finish, "attn_finish", attn_finish_ref);
}
