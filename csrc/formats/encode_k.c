/* Super-blocks of 256: layouts of decode_k.c and decode_iq.c, written. */
#include "encode.h"

#include <string.h>

/* 64 elements share 32 bytes, low nibbles first. */
static void nibbles(const uint8_t *q, uint8_t *dst) {
    for (int j = 0; j < 4; j++)
        for (int i = 0; i < 32; i++) dst[32 * j + i] = (uint8_t)((q[64 * j + i] & 15) | (q[64 * j + 32 + i] & 15) << 4);
}

/* 128 elements share 32 bytes, two bits each. `shift`: the lowest of the two. */
static void pairs(const uint8_t *q, int shift, uint8_t *dst) {
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *p = q + 128 * j + i;
            dst[32 * j + i] = (uint8_t)((p[0] >> shift & 3) | (p[32] >> shift & 3) << 2 | (p[64] >> shift & 3) << 4 | (p[96] >> shift & 3) << 6);
        }
}

/* One bit of each code: bit i/32 of byte i%32. */
static void single_bits(const uint8_t *q, int shift, uint8_t *dst) {
    memset(dst, 0, 32);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) dst[i] |= (uint8_t)((q[32 * j + i] >> shift & 1) << j);
}

/* 8 sub-scales and 8 minima of 6 bits in 12 bytes; the inverse of k_scales. */
static void pack_scales(const uint8_t *sc, const uint8_t *mn, uint8_t *dst) {
    for (int j = 0; j < 4; j++) {
        dst[j] = (uint8_t)(sc[j] | (sc[j + 4] >> 4) << 6);
        dst[j + 4] = (uint8_t)(mn[j] | (mn[j + 4] >> 4) << 6);
        dst[j + 8] = (uint8_t)((sc[j + 4] & 15) | (mn[j + 4] & 15) << 4);
    }
}

void encode_q2_k(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    for (int i = 0; i < 16; i++) dst[i] = (uint8_t)(sc[i] | mn[i] << 4);
    pairs(q, 0, dst + 16);
    store_u16(dst + 80, d);
    store_u16(dst + 82, m);
}

void encode_q3_k(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    (void)mn, (void)m;
    single_bits(q, 2, dst);
    pairs(q, 0, dst + 32);
    for (int i = 0; i < 8; i++) dst[96 + i] = (uint8_t)((sc[i] & 15) | (sc[i + 8] & 15) << 4);
    for (int i = 0; i < 4; i++) dst[104 + i] = (uint8_t)(sc[i] >> 4 | sc[i + 4] >> 4 << 2 | sc[i + 8] >> 4 << 4 | sc[i + 12] >> 4 << 6);
    store_u16(dst + 108, d);
}

void encode_q4_k(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    store_u16(dst, d);
    store_u16(dst + 2, m);
    pack_scales(sc, mn, dst + 4);
    nibbles(q, dst + 16);
}

void encode_q5_k(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    store_u16(dst, d);
    store_u16(dst + 2, m);
    pack_scales(sc, mn, dst + 4);
    single_bits(q, 4, dst + 16);
    nibbles(q, dst + 48);
}

void encode_q6_k(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    (void)mn, (void)m;
    for (int j = 0; j < 2; j++)
        for (int i = 0; i < 64; i++) dst[64 * j + i] = (uint8_t)((q[128 * j + i] & 15) | (q[128 * j + 64 + i] & 15) << 4);
    pairs(q, 4, dst + 128);
    memcpy(dst + 192, sc, 16);
    store_u16(dst + 208, d);
}

void encode_iq4_xs(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst) {
    (void)mn, (void)m;
    unsigned high = 0;
    store_u16(dst, d);
    for (int j = 0; j < 8; j++) high |= (unsigned)(sc[j] >> 4) << 2 * j;
    store_u16(dst + 2, (uint16_t)high);
    for (int j = 0; j < 4; j++) dst[4 + j] = (uint8_t)((sc[2 * j] & 15) | (sc[2 * j + 1] & 15) << 4);
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 16; i++) dst[8 + 16 * j + i] = (uint8_t)((q[32 * j + i] & 15) | (q[32 * j + 16 + i] & 15) << 4);
}

void encode_iq3_s(const uint16_t *index, const uint8_t *signs, const uint8_t *s, uint16_t d, uint8_t *dst) {
    store_u16(dst, d);
    memset(dst + 66, 0, 8);
    for (int i = 0; i < 64; i++) {
        dst[2 + i] = (uint8_t)index[i];
        dst[66 + i / 8] |= (uint8_t)((index[i] >> 8) << (i & 7));
    }
    memcpy(dst + 74, signs, 32);
    for (int j = 0; j < 4; j++) dst[106 + j] = (uint8_t)(s[2 * j] | s[2 * j + 1] << 4);
}
