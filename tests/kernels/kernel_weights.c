/* Random weights in the file's format: codes are any bytes, scales are chosen, because random ones would mostly be out of range. */
#include "kernel_test.h"

#include <string.h>

const char *const scale_names[SCALES] = {"usual", "zero", "subnormal", "largest", "inf", "NaN", "mixed"};

/* Where a block keeps its float scales; all f16 unless the notes say otherwise. Source: the GGUF specification. */
enum note { F16_SCALES, FLOATS, E8M0, UE4M3, SPREAD };
static const struct { uint8_t note, count, at[2]; } scale_fields[QTYPE_COUNT] = {
    [QTYPE_F32] = {.note = FLOATS}, [QTYPE_F16] = {.note = FLOATS}, [QTYPE_BF16] = {.note = FLOATS},
    [QTYPE_Q4_0] = {.count = 1},
    [QTYPE_Q4_1] = {.count = 2, .at = {0, 2}},
    [QTYPE_Q5_0] = {.count = 1},
    [QTYPE_Q5_1] = {.count = 2, .at = {0, 2}},
    [QTYPE_Q8_0] = {.count = 1},
    [QTYPE_Q2_K] = {.count = 2, .at = {80, 82}},
    [QTYPE_Q3_K] = {.count = 1, .at = {108}},
    [QTYPE_Q4_K] = {.count = 2, .at = {0, 2}},
    [QTYPE_Q5_K] = {.count = 2, .at = {0, 2}},
    [QTYPE_Q6_K] = {.count = 1, .at = {208}},
    [QTYPE_IQ2_XXS] = {.count = 1}, [QTYPE_IQ2_XS] = {.count = 1}, [QTYPE_IQ2_S] = {.count = 1},
    [QTYPE_IQ3_XXS] = {.count = 1}, [QTYPE_IQ3_S] = {.count = 1}, [QTYPE_IQ1_S] = {.count = 1},
    [QTYPE_IQ4_NL] = {.count = 1}, [QTYPE_IQ4_XS] = {.count = 1},
    [QTYPE_IQ1_M] = {.note = SPREAD},               /* a nibble of the f16 on top of each of 4 words at 48 */
    [QTYPE_TQ1_0] = {.count = 1, .at = {52}},
    [QTYPE_TQ2_0] = {.count = 1, .at = {64}},
    [QTYPE_MXFP4] = {.note = E8M0},                 /* one byte at 0 */
    [QTYPE_NVFP4] = {.note = UE4M3},                /* four bytes at 0 */
    [QTYPE_Q1_0] = {.count = 1}, [QTYPE_Q2_0] = {.count = 1},
};

/* An f16 of a kind; NaN with any payload and sign. */
static uint16_t f16_scale(int kind) {
    uint16_t sign = (uint16_t)(rnd() & 0x8000);
    if (kind == SCALES_MIXED) kind = rnd_below(SCALES_MIXED);
    switch (kind) {
        case SCALES_ZERO: return sign;
        case SCALES_SUBNORMAL: return (uint16_t)(sign | (1 + rnd_below(1023)));
        case SCALES_LARGEST: return (uint16_t)(sign | 0x7bff);
        case SCALES_INF: return (uint16_t)(sign | 0x7c00);
        case SCALES_NAN: return (uint16_t)(sign | 0x7c00 | (1 + rnd_below(1023)));
        default: return f32_to_f16(rnd_float(0.01f));
    }
}

/* 2^(e-127): from the least through the usual to the largest; 255 is the NaN code, which the format's readers take as 2^128. */
static uint8_t e8m0_scale(int kind) {
    switch (kind) {
        case SCALES_ZERO: return 0;
        case SCALES_SUBNORMAL: return (uint8_t)rnd_below(3);
        case SCALES_LARGEST: return 254;
        case SCALES_INF: return 255;
        case SCALES_NAN: case SCALES_MIXED: return (uint8_t)rnd();
        default: return (uint8_t)(118 + rnd_below(6));
    }
}

static uint8_t ue4m3_scale(int kind) {
    static const uint8_t of[SCALES] = {[SCALES_ZERO] = 0, [SCALES_SUBNORMAL] = 3, [SCALES_LARGEST] = 126, [SCALES_INF] = 127, [SCALES_NAN] = 255};
    return kind == SCALES_MIXED ? (uint8_t)rnd() : kind == SCALES_USUAL ? (uint8_t)(8 + rnd_below(64)) : of[kind];
}

static float float_weight(int code_byte, int kind) {
    if (code_byte >= 0) return f32_from_bits((uint32_t)code_byte * 0x01010101u);
    if (kind == SCALES_USUAL) return rnd_float(1);
    return kind == SCALES_LARGEST ? rnd_float(1e38f) : f16_to_f32(f16_scale(kind));
}

static void float_block(uint32_t type, uint8_t *b, int code_byte, int kind) {
    float v = float_weight(code_byte, kind);
    uint16_t h = type == QTYPE_F16 ? f32_to_f16(v) : (uint16_t)(f32_bits(v) >> 16);
    if (kind == SCALES_SUBNORMAL && rnd_below(2)) {
        v = f32_from_bits((uint32_t)rnd() & 0x807fffffu);
        h = type == QTYPE_F16 ? (uint16_t)(rnd() & 0x83ff) : (uint16_t)(rnd() & 0x807f);
    }
    if (type == QTYPE_F32) memcpy(b, &v, 4);
    else memcpy(b, &h, 2);
}

static void scales_of_block(uint32_t type, uint8_t *b, int kind) {
    for (int i = 0; i < scale_fields[type].count; i++) {
        uint16_t h = f16_scale(kind);
        memcpy(b + scale_fields[type].at[i], &h, 2);
    }
    if (scale_fields[type].note == E8M0) b[0] = e8m0_scale(kind);
    if (scale_fields[type].note == UE4M3)
        for (int i = 0; i < 4; i++) b[i] = ue4m3_scale(kind);
    if (scale_fields[type].note == SPREAD)
        for (int i = 0, h = f16_scale(kind); i < 4; i++) b[49 + 2 * i] = (uint8_t)((b[49 + 2 * i] & 15) | (h >> 4 * i & 15) << 4);
}

void fill_weights(uint32_t type, uint8_t *dst, int64_t rows, int64_t k, int code_byte, int scales) {
    const qtype_info *q = qtype_get(type);
    for (int64_t b = 0; b < rows * (k / q->elems); b++, dst += q->bytes) {
        if (scale_fields[type].note == FLOATS) {
            float_block(type, dst, code_byte, scales);
            continue;
        }
        for (int i = 0; i < q->bytes; i++) dst[i] = code_byte < 0 ? (uint8_t)rnd() : (uint8_t)code_byte;
        scales_of_block(type, dst, scales);
    }
}
