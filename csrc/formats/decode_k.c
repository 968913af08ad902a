/* Super-blocks of 256 with integer sub-scales: Q2_K to Q6_K, IQ4_XS, and the ternary types. */
#include "decode.h"

static void start(qunit *o, const uint8_t *d, const uint8_t *m) {
    o->n = 256;
    o->d = f16_to_f32(load_u16(d));
    o->m = m ? f16_to_f32(load_u16(m)) : 0;
    for (int i = 0; i < 16; i++) {
        o->sc[i] = 1;
        o->mn[i] = 0;
    }
}

/* scales[16] (low nibble scale, high nibble minimum), qs[64], d, dmin. */
void decode_q2_k(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b + 80, b + 82);
    for (int i = 0; i < 16; i++) {
        o->sc[i] = b[i] & 15;
        o->mn[i] = b[i] >> 4;
    }
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)(b[16 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3);
}

/* hmask[32], qs[64], scales[12] (6 bits, minus 32), d. A clear mask bit subtracts 4. */
void decode_q3_k(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b + 108, 0);
    const uint8_t *s = b + 96;
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? s[i] & 15 : s[i - 8] >> 4, high = s[8 + i % 4] >> 2 * (i / 4) & 3;
        o->sc[i] = (int16_t)((low | high << 4) - 32);
    }
    for (int i = 0; i < 256; i++) {
        int q = b[32 + i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3, bit = b[i % 32] >> i / 32 & 1;
        o->q[i] = (int8_t)(q - (bit ? 0 : 4));
    }
}

static void k_all_scales(const uint8_t *s, qunit *o) {
    for (int j = 0; j < 8; j++) {
        k_scales(s, j, &o->sc[2 * j], &o->mn[2 * j]);
        o->sc[2 * j + 1] = o->sc[2 * j];
        o->mn[2 * j + 1] = o->mn[2 * j];
    }
}

/* d, dmin, scales[12], qs[128]: 64 elements share 32 bytes, low nibbles first. */
void decode_q4_k(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b, b + 2);
    k_all_scales(b + 4, o);
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)(b[16 + i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15);
}

/* As Q4_K with a fifth bit: qh[32] between scales and qs, bit i/32 of byte i%32. */
void decode_q5_k(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b, b + 2);
    k_all_scales(b + 4, o);
    for (int i = 0; i < 256; i++)
        o->q[i] = (int8_t)((b[48 + i / 64 * 32 + i % 32] >> i % 64 / 32 * 4 & 15) | (b[16 + i % 32] >> i / 32 & 1) << 4);
}

/* ql[128], qh[64], int8 scales[16], d; codes minus 32. */
void decode_q6_k(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b + 208, 0);
    for (int i = 0; i < 16; i++) o->sc[i] = (int8_t)b[192 + i];
    for (int i = 0; i < 256; i++) {
        int half = i / 128, r = i % 128;
        int low = b[half * 64 + r % 64] >> r / 64 * 4 & 15, high = b[128 + half * 32 + r % 32] >> r / 32 * 2 & 3;
        o->q[i] = (int8_t)((low | high << 4) - 32);
    }
}

/* d, scales_h (2 bits each), scales_l (4 bits each), qs[128]: 32 elements share 16 bytes. */
void decode_iq4_xs(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b, 0);
    uint16_t h = load_u16(b + 2);
    for (int j = 0; j < 8; j++) {
        int s = (b[4 + j / 2] >> 4 * (j & 1) & 15) | (h >> 2 * j & 3) << 4;
        o->sc[2 * j] = o->sc[2 * j + 1] = (int16_t)(s - 32);
    }
    for (int i = 0; i < 256; i++) o->q[i] = iq4_values[b[8 + i / 32 * 16 + i % 16] >> i % 32 / 16 * 4 & 15];
}

/* qs[48] with 5 trits a byte, qh[4] with 4, d. A trit is the top of (byte * 3^n) mod 256 times 3. */
void decode_tq1_0(const uint8_t *b, int u, qunit *o) {
    (void)u;
    static const uint8_t pow3[5] = {1, 3, 9, 27, 81};
    start(o, b + 52, 0);
    int at = 0;
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 32; m++) o->q[at++] = (int8_t)(((uint8_t)(b[m] * pow3[n]) * 3 >> 8) - 1);
    for (int n = 0; n < 5; n++)
        for (int m = 0; m < 16; m++) o->q[at++] = (int8_t)(((uint8_t)(b[32 + m] * pow3[n]) * 3 >> 8) - 1);
    for (int n = 0; n < 4; n++)
        for (int m = 0; m < 4; m++) o->q[at++] = (int8_t)(((uint8_t)(b[48 + m] * pow3[n]) * 3 >> 8) - 1);
}

void decode_tq2_0(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, b + 64, 0);
    for (int i = 0; i < 256; i++) o->q[i] = (int8_t)((b[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) - 1);
}
