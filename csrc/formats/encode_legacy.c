/* Blocks of 32: the layouts of decode_legacy.c, written. */
#include "encode.h"

#include <string.h>

static void nibbles(const uint8_t *q, uint8_t *dst) {
    for (int i = 0; i < 16; i++) dst[i] = (uint8_t)((q[i] & 15) | q[i + 16] << 4);
}

static void fifth_bits(const uint8_t *q, uint8_t *dst) {
    for (int i = 0; i < 4; i++) {
        unsigned bits = 0;
        for (int k = 0; k < 8; k++) bits |= (unsigned)(q[8 * i + k] >> 4 & 1) << k;
        dst[i] = (uint8_t)bits;
    }
}

void encode_q4_0(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    (void)m;
    for (int b = 0; b < n; b++, q += 32, dst += 18) {
        store_u16(dst, d[b]);
        nibbles(q, dst + 2);
    }
}

void encode_q4_1(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    for (int b = 0; b < n; b++, q += 32, dst += 20) {
        store_u16(dst, d[b]);
        store_u16(dst + 2, m[b]);
        nibbles(q, dst + 4);
    }
}

void encode_q5_0(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    (void)m;
    for (int b = 0; b < n; b++, q += 32, dst += 22) {
        store_u16(dst, d[b]);
        fifth_bits(q, dst + 2);
        nibbles(q, dst + 6);
    }
}

void encode_q5_1(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    for (int b = 0; b < n; b++, q += 32, dst += 24) {
        store_u16(dst, d[b]);
        store_u16(dst + 2, m[b]);
        fifth_bits(q, dst + 4);
        nibbles(q, dst + 8);
    }
}

void encode_q8_0(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    (void)m;
    for (int b = 0; b < n; b++, q += 32, dst += 34) {
        store_u16(dst, d[b]);
        memcpy(dst + 2, q, 32);
    }
}

void encode_mxfp4(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst) {
    (void)m;
    for (int b = 0; b < n; b++, q += 32, dst += 17) {
        dst[0] = (uint8_t)d[b];
        nibbles(q, dst + 1);
    }
}
