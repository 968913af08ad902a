/* Codebook types: groups of 8 or 4 elements are points of a grid, with signs and small integer scales. */
#include "decode.h"
#include "iq_tables.h"

/* The eighth sign makes the number of minus signs even. */
static unsigned even_signs(unsigned s) { return s | (unsigned)(__builtin_popcount(s) & 1) << 7; }

static void put8(int8_t *q, uint64_t point, unsigned signs) {
    for (int i = 0; i < 8; i++) {
        int v = (int8_t)(point >> 8 * i);
        q[i] = (int8_t)(signs >> i & 1 ? -v : v);
    }
}

static void put4(int8_t *q, uint32_t point, unsigned signs) {
    for (int i = 0; i < 4; i++) {
        int v = (int8_t)(point >> 8 * i);
        q[i] = (int8_t)(signs >> i & 1 ? -v : v);
    }
}

static void start(qunit *o, float d) {
    o->n = 256;
    o->d = d;
    o->m = 0;
    for (int i = 0; i < 16; i++) o->mn[i] = 0;
}

static float f16_at(const uint8_t *p) { return f16_to_f32(load_u16(p)); }

/* d, then 8 x (4 grid indices, 4 x 7 sign bits and a 4-bit scale s): d/8 * (2s+1). */
void decode_iq2_xxs(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b) * 0.125f);
    for (int g = 0; g < 8; g++) {
        const uint8_t *p = b + 2 + 8 * g;
        uint32_t rest = load_u32(p + 4);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (rest >> 28) + 1);
        for (int i = 0; i < 4; i++) put8(o->q + 32 * g + 8 * i, iq2_xxs_grid[p[i]], even_signs(rest >> 7 * i & 127));
    }
}

/* d, 32 x (9-bit index, 7 sign bits), 4-bit scales per 16. */
void decode_iq2_xs(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b) * 0.125f);
    for (int g = 0; g < 16; g++) {
        o->sc[g] = (int16_t)(2 * (b[66 + g / 2] >> 4 * (g & 1) & 15) + 1);
        for (int i = 0; i < 2; i++) {
            unsigned v = load_u16(b + 2 + 2 * (2 * g + i));
            put8(o->q + 16 * g + 8 * i, iq2_xs_grid[v & 511], even_signs(v >> 9));
        }
    }
}

/* d, 32 low index bytes, 32 sign bytes, qh (2 bits each), scales. */
void decode_iq2_s(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b) * 0.125f);
    for (int g = 0; g < 16; g++) {
        o->sc[g] = (int16_t)(2 * (b[74 + g / 2] >> 4 * (g & 1) & 15) + 1);
        for (int i = 2 * g; i < 2 * g + 2; i++)
            put8(o->q + 8 * i, iq2_s_grid[b[2 + i] | (b[66 + i / 4] >> 2 * (i & 3) & 3) << 8], b[34 + i]);
    }
}

/* d, 64 grid indices, 8 x (4 x 7 sign bits and a 4-bit scale s): d/4 * (2s+1). */
void decode_iq3_xxs(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b) * 0.25f);
    for (int g = 0; g < 8; g++) {
        uint32_t rest = load_u32(b + 66 + 4 * g);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (rest >> 28) + 1);
        for (int i = 0; i < 8; i++) {
            unsigned signs = even_signs(rest >> 7 * (i / 2) & 127);
            put4(o->q + 32 * g + 4 * i, iq3_xxs_grid[b[2 + 8 * g + i]], signs >> 4 * (i & 1));
        }
    }
}

/* d, 64 low index bytes, qh (1 bit each), 32 sign bytes, 4-bit scales per 32: d * (2s+1). */
void decode_iq3_s(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b));
    for (int g = 0; g < 8; g++) {
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (b[106 + g / 2] >> 4 * (g & 1) & 15) + 1);
        for (int i = 0; i < 8; i++) {
            unsigned index = b[2 + 8 * g + i] | (unsigned)(b[66 + g] >> i & 1) << 8;
            put4(o->q + 32 * g + 4 * i, iq3_s_grid[index], b[74 + 4 * g + i / 2] >> 4 * (i & 1));
        }
    }
}

/* d, 32 low index bytes, 8 x u16 (4 x 3 index bits, 3-bit scale s, sign of the offset): d * (2s+1) * (grid +- 1/8). */
void decode_iq1_s(const uint8_t *b, int u, qunit *o) {
    (void)u;
    start(o, f16_at(b) * 0.125f);
    for (int g = 0; g < 8; g++) {
        unsigned h = load_u16(b + 34 + 2 * g);
        o->sc[2 * g] = o->sc[2 * g + 1] = (int16_t)(2 * (h >> 12 & 7) + 1);
        for (int i = 0; i < 4; i++) {
            int8_t *q = o->q + 32 * g + 8 * i;
            put8(q, iq1_s_grid[b[2 + 4 * g + i] | (h >> 3 * i & 7) << 8], 0);
            for (int k = 0; k < 8; k++) q[k] = (int8_t)(q[k] + (h & 0x8000 ? -1 : 1));
        }
    }
}

/* 32 low index bytes, qh (3 index bits and an offset sign per 8 elements), 4 x u16 scales (4 x 3 bits per 16 elements); the f16 scale d is the four
   top nibbles of the scales. */
void decode_iq1_m(const uint8_t *b, int u, qunit *o) {
    (void)u;
    unsigned s[4];
    for (int i = 0; i < 4; i++) s[i] = load_u16(b + 48 + 2 * i);
    start(o, f16_to_f32((uint16_t)(s[0] >> 12 | (s[1] >> 12) << 4 | (s[2] >> 12) << 8 | (s[3] >> 12) << 12)) * 0.125f);
    for (int g = 0; g < 16; g++) {
        o->sc[g] = (int16_t)(2 * (s[g / 4] >> 3 * (g & 3) & 7) + 1);
        for (int i = 2 * g; i < 2 * g + 2; i++) {
            unsigned h = b[32 + i / 2] >> 4 * (i & 1);
            int8_t *q = o->q + 8 * i;
            put8(q, iq1_s_grid[b[i] | (h & 7) << 8], 0);
            for (int k = 0; k < 8; k++) q[k] = (int8_t)(q[k] + (h & 8 ? -1 : 1));
        }
    }
}
