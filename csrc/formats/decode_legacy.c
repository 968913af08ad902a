/* Blocks of 32 with one f16 scale, and the 4-bit floats and 1- and 2-bit blocks that follow the same pattern. */
#include "decode.h"

#include <string.h>

const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static float f16_at(const uint8_t *p) { return f16_to_f32(load_u16(p)); }

/* One scale, and with a minimum value = d*q + min, that is m = -min, mn = 1. */
static void plain(qunit *o, int n, float d, float min, int has_min) {
    o->n = n;
    o->d = d;
    o->m = has_min ? -min : 0;
    for (int i = 0; i < (n + 15) / 16; i++) {
        o->sc[i] = 1;
        o->mn[i] = (int16_t)has_min;
    }
}

/* 16 bytes: low nibbles are elements 0..15, high nibbles 16..31. */
static void nibbles(qunit *o, const uint8_t *qs, int zero) {
    for (int i = 0; i < 16; i++) {
        o->q[i] = (int8_t)((qs[i] & 15) - zero);
        o->q[i + 16] = (int8_t)((qs[i] >> 4) - zero);
    }
}

void decode_q4_0(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), 0, 0);
    nibbles(o, b + 2, 8);
}

void decode_q4_1(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), f16_at(b + 2), 1);
    nibbles(o, b + 4, 0);
}

static void fifth_bits(qunit *o, uint32_t qh) {
    for (int i = 0; i < 32; i++) o->q[i] = (int8_t)(o->q[i] + (int)(qh >> i & 1) * 16);
}

void decode_q5_0(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), 0, 0);
    nibbles(o, b + 6, 16);
    fifth_bits(o, load_u32(b + 2));
}

void decode_q5_1(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), f16_at(b + 2), 1);
    nibbles(o, b + 8, 0);
    fifth_bits(o, load_u32(b + 4));
}

void decode_q8_0(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), 0, 0);
    memcpy(o->q, b + 2, 32);
}

static void lookup(qunit *o, const uint8_t *qs, const int8_t *values, int half) {
    for (int i = 0; i < half; i++) {
        o->q[i] = values[qs[i] & 15];
        o->q[i + half] = values[qs[i] >> 4];
    }
}

void decode_iq4_nl(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, f16_at(b), 0, 0);
    lookup(o, b + 2, iq4_values, 16);
}

float e8m0_half(uint8_t e) { return f32_from_bits(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

float ue4m3_half(uint8_t e) {
    int x = e >> 3 & 15, m = e & 7;
    if (e == 127) return 0;              /* the NaN code */
    return x ? f32_from_bits((uint32_t)(x + 119) << 23 | (uint32_t)m << 20) : (float)m * 0x1p-10f;
}

void decode_mxfp4(const uint8_t *b, int u, qunit *o) {
    (void)u;
    plain(o, 32, e8m0_half(b[0]), 0, 0);
    lookup(o, b + 1, fp4_values, 16);
}

void decode_nvfp4(const uint8_t *b, int u, qunit *o) {
    plain(o, 16, ue4m3_half(b[u]), 0, 0);
    lookup(o, b + 4 + 8 * u, fp4_values, 8);
}

void decode_q1_0(const uint8_t *b, int u, qunit *o) {
    plain(o, 32, f16_at(b), 0, 0);
    for (int i = 0; i < 32; i++) o->q[i] = b[2 + 4 * u + i / 8] >> (i & 7) & 1 ? 1 : -1;
}

void decode_q2_0(const uint8_t *b, int u, qunit *o) {
    plain(o, 32, f16_at(b), 0, 0);
    for (int i = 0; i < 32; i++) o->q[i] = (int8_t)((b[2 + 8 * u + i / 4] >> 2 * (i & 3) & 3) - 1);
}
