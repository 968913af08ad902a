#include "decode.h"

#include <string.h>

static decode_fn *const decoders[QTYPE_COUNT] = {
    [QTYPE_Q4_0] = decode_q4_0,       [QTYPE_Q4_1] = decode_q4_1,       [QTYPE_Q5_0] = decode_q5_0,   [QTYPE_Q5_1] = decode_q5_1,
    [QTYPE_Q8_0] = decode_q8_0,       [QTYPE_Q2_K] = decode_q2_k,       [QTYPE_Q3_K] = decode_q3_k,   [QTYPE_Q4_K] = decode_q4_k,
    [QTYPE_Q5_K] = decode_q5_k,       [QTYPE_Q6_K] = decode_q6_k,       [QTYPE_IQ2_XXS] = decode_iq2_xxs, [QTYPE_IQ2_XS] = decode_iq2_xs,
    [QTYPE_IQ2_S] = decode_iq2_s,     [QTYPE_IQ3_XXS] = decode_iq3_xxs, [QTYPE_IQ3_S] = decode_iq3_s, [QTYPE_IQ1_S] = decode_iq1_s,
    [QTYPE_IQ1_M] = decode_iq1_m,     [QTYPE_IQ4_NL] = decode_iq4_nl,   [QTYPE_IQ4_XS] = decode_iq4_xs, [QTYPE_TQ1_0] = decode_tq1_0,
    [QTYPE_TQ2_0] = decode_tq2_0,     [QTYPE_MXFP4] = decode_mxfp4,     [QTYPE_NVFP4] = decode_nvfp4, [QTYPE_Q1_0] = decode_q1_0,
    [QTYPE_Q2_0] = decode_q2_0,
};

void format_decode(uint32_t type, const uint8_t *block, int u, qunit *out) { decoders[type](block, u, out); }

static void dequantize_blocks(uint32_t type, const uint8_t *src, int64_t n, float *dst) {
    int elems = qtype_get(type)->elems, bytes = qtype_get(type)->bytes, units = format_units(type);
    qunit u;
    for (; n > 0; n -= elems, src += bytes)
        for (int i = 0; i < units; i++, dst += u.n) {
            format_decode(type, src, i, &u);
            for (int k = 0; k < u.n; k++) {
                float v = u.d * (float)u.sc[k / 16] * (float)u.q[k];     /* exact in any order, but for the sign of zero */
                dst[k] = v - u.m * (float)u.mn[k / 16];                  /* without a minimum: v - 0, which keeps the sign of a zero, too */
            }
        }
}

void dequantize(uint32_t type, const void *src, int64_t n, float *dst) {
    const uint8_t *p = src;
    switch (type) {
    case QTYPE_F32: memcpy(dst, src, (size_t)n * 4); return;
    case QTYPE_F16: for (int64_t i = 0; i < n; i++) dst[i] = f16_to_f32(load_u16(p + 2 * i)); return;
    case QTYPE_BF16: for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(load_u16(p + 2 * i)); return;
    case QTYPE_I8: for (int64_t i = 0; i < n; i++) dst[i] = (float)(int8_t)p[i]; return;
    case QTYPE_I16: for (int64_t i = 0; i < n; i++) dst[i] = (float)(int16_t)load_u16(p + 2 * i); return;
    case QTYPE_I32: for (int64_t i = 0; i < n; i++) dst[i] = (float)(int32_t)load_u32(p + 4 * i); return;
    case QTYPE_I64:
        for (int64_t i = 0; i < n; i++) {
            int64_t v;
            memcpy(&v, p + 8 * i, 8);
            dst[i] = (float)v;
        }
        return;
    case QTYPE_F64:
        for (int64_t i = 0; i < n; i++) {
            double v;
            memcpy(&v, p + 8 * i, 8);
            dst[i] = (float)v;
        }
        return;
    default: dequantize_blocks(type, p, n, dst);
    }
}
