/* The matmul contract of docs/numerics.md in plain C, for every type; the base that all variants must equal bit for bit. */
#include "../../base/math.h"
#include "../init.h"
#include "../pack.h"

#include <string.h>

/* d = amax/127, q = nearest-even(x * (127/amax)); amax < 1e-30 gives zeros; any non-finite x gives d = NaN and q = 0. */
static float quantize_block(const float *x, int n, int8_t *q) {
    float amax = 0;
    int finite = 1;
    for (int i = 0; i < n; i++) {
        float a = bits_f32(f32_to_bits(x[i]) & 0x7fffffffu);
        finite &= f32_to_bits(a) < 0x7f800000u;
        amax = a > amax ? a : amax;
    }
    for (int i = 0; i < n; i++) q[i] = 0;
    if (!finite) return bits_f32(0x7fc00000u);
    if (amax < 1e-30f) return 0;
    float inv = 127.0f / amax;
    for (int i = 0; i < n; i++) q[i] = (int8_t)round32(x[i] * inv);
    return amax / 127.0f;
}

static void quantize_act_ref(const float *x, int64_t ldx, int m, int64_t k, int block, act_unit *dst) {
    for (int64_t u = 0; u < (k + 255) / 256; u++)
        for (int c = 0; c < m; c++) {
            act_unit *a = &dst[u * m + c];
            int64_t left = k - u * 256 < 256 ? k - u * 256 : 256;
            memset(a, 0, sizeof *a);
            for (int b = 0; b * block < left; b++) a->d[b] = quantize_block(x + c * ldx + u * 256 + b * block, block, a->q + b * block);
            for (int i = 0; i < 256; i++) {
                a->sum16[i / 16] = (int16_t)(a->sum16[i / 16] + a->q[i]);
                a->sum32[i / 32] = (int16_t)(a->sum32[i / 32] + a->q[i]);
            }
        }
}

/* One contract step: acc = fma(isum, d*da, acc), then for types with a minimum acc = fma(msum, -(m*da), acc). */
static float unit_dot(const qunit *w, const act_unit *a, int at, int has_min, float acc) {
    int32_t isum = 0, msum = 0;
    for (int s = 0; s < w->n / 16; s++) {
        int32_t dot = 0, sum = 0;
        for (int i = 16 * s; i < 16 * s + 16; i++) {
            dot += w->q[i] * a->q[at + i];
            sum += a->q[at + i];
        }
        isum += w->sc[s] * dot;
        msum += w->mn[s] * sum;
    }
    float da = a->d[w->n == 256 ? 0 : at / 32];
    acc = fma32((float)isum, w->d * da, acc);
    return has_min ? fma32((float)msum, -(w->m * da), acc) : acc;
}

static int has_min(uint32_t type) {
    return type == QTYPE_Q4_1 || type == QTYPE_Q5_1 || type == QTYPE_Q2_K || type == QTYPE_Q4_K || type == QTYPE_Q5_K;
}

static void matmul_quant(uint32_t type, const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const act_unit *a, int m, float *y,
                         int64_t ldy) {
    const qtype_info *q = qtype_get(type);
    int units = format_units(type), min = has_min(type);
    size_t column = pack_column_bytes(type);
    uint8_t block[256];
    qunit unit;
    for (int64_t g = 0; g < n_groups; g++)
        for (int r = 0; r < GROUP; r++) {
            float acc[PANEL] = {0};
            for (int64_t b = 0, at = 0; b < k / q->elems; b++) {
                unpack_row(type, w + (size_t)g * group_bytes + (size_t)b * column, r, q->elems, block);
                for (int u = 0; u < units; u++, at += unit.n) {
                    format_decode(type, block, u, &unit);
                    for (int c = 0; c < m; c++) acc[c] = unit_dot(&unit, &a[at / 256 * m + c], (int)(at % 256), min, acc[c]);
                }
            }
            for (int c = 0; c < m; c++) y[c * ldy + g * GROUP + r] = acc[c];
        }
}

static void matmul_float(uint32_t type, const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const float *a, int64_t lda, int m,
                         float *y, int64_t ldy) {
    size_t bytes = (size_t)qtype_get(type)->bytes;
    for (int64_t g = 0; g < n_groups; g++)
        for (int r = 0; r < GROUP; r++) {
            float acc[PANEL] = {0}, v;
            for (int64_t i = 0; i < k; i++) {
                dequantize(type, w + (size_t)g * group_bytes + ((size_t)i * GROUP + (size_t)r) * bytes, 1, &v);
                for (int c = 0; c < m; c++) acc[c] = fma32(v, a[c * lda + i], acc[c]);
            }
            for (int c = 0; c < m; c++) y[c * ldy + g * GROUP + r] = acc[c];
        }
}

#define QTYPE(NAME, name, id, elems, bytes, act) \
    static void matmul_##name##_ref(const uint8_t *w, size_t group_bytes, int64_t n_groups, int64_t k, const void *a, int64_t lda, int m, \
                                    float *y, int64_t ldy) { \
        if (act == 1) matmul_float(id, w, group_bytes, n_groups, k, a, lda, m, y, ldy); \
        else matmul_quant(id, w, group_bytes, n_groups, k, a, m, y, ldy); \
    }
#include "../../formats/qtypes.def"
#undef QTYPE

static int64_t dot_peak_ref(int64_t rounds, const int8_t *a, uint32_t *sum) {
    *sum = 0;
    for (int64_t r = 0; r < rounds * PEAK_CHAINS; r++)
        for (int i = 0; i < 32; i++) {
            __asm__("" : "+r"(a));          /* as in the templates: nothing may be hoisted */
            *sum += (uint32_t)(int32_t)a[i];
        }
    return rounds * PEAK_CHAINS * 32;
}

void init_matmul_ref(kernels *k) {
    KERNEL_SET(k, dot_peak, "dot_peak", dot_peak_ref);
    KERNEL_SET(k, quantize_act, "quantize_act", quantize_act_ref);
#define QTYPE(NAME, name, id, elems, bytes, act) \
    if (act) KERNEL_MATMUL(k, NAME, name, ref);
#include "../../formats/qtypes.def"
#undef QTYPE
}
