/* Packing of the codebook types (IQ1 to IQ3). Their blocks mix numbers of points, signs and scales bit by bit, so a block is first taken apart into
 * bytes, nibbles and 2-byte words, which are then laid out like the fields of other types: element after element, 16 rows side by side. The
 * nibbles of 16 rows make 64 bits, of which bit 4r+j is bit j of row r: the sign or the high bit of byte j of lane r of a register. */
#include "pack.h"

#include <string.h>

/* A block of 256 in parts. s: sub-block of 32, g: 8 values of it, all little-endian.
     index    numbers of points, their low 8 bits: 4 a sub-block (points of 8 values) or 8 (points of 4)
     nibble   all but IQ1: [8g + s] signs of the first 4 values of g, [32 + 8g + s] those of the others
              types whose eighth sign follows from the other seven: its bit holds bit g of the sub-block's scale (xxs) or the point's bit 8 (iq2_xs)
              iq2_xs  [64 + i] scales per 16
              iq2_s   [64 + s] bit 8 of the 4 numbers, [72 + s] their bit 9, [80 + i] scales per 16
              iq3_s   [64 + s] bit 8 of the first 4 numbers, [72 + s] of the others, [80 + s] scales
              iq1     [8b + s] bit 8+b of the 4 numbers; iq1_s [24 + s] scale and, on top, the offset's sign; iq1_m the 4 offsets' signs
     word     d; iq1_m: scales of 16-groups 0..3, 4..7, 8..11 in 12 bits each with the next 4 bits of those of 12..15 on top, then d */
typedef struct parts {
    uint8_t index[64], nibble[96];
    uint16_t word[4];
} parts;

static void store_u16(uint8_t *p, unsigned v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static void store_u32(uint8_t *p, uint32_t v) {
    store_u16(p, v & 0xffff);
    store_u16(p + 2, v >> 16);
}

/* Signs and one more bit of 8 values. */
static void split_signs(parts *o, int g, int s, unsigned signs7, unsigned top) {
    o->nibble[8 * g + s] = signs7 & 15;
    o->nibble[32 + 8 * g + s] = (uint8_t)(signs7 >> 4 | top << 3);
}
static unsigned signs_of(const parts *o, int g, int s) { return o->nibble[8 * g + s] | (unsigned)o->nibble[32 + 8 * g + s] << 4; }

static void split_nibbles(uint8_t *nibble, const uint8_t *b, int bytes) {
    for (int i = 0; i < bytes; i++) {
        nibble[2 * i] = b[i] & 15;
        nibble[2 * i + 1] = b[i] >> 4;
    }
}
static void join_nibbles(const uint8_t *nibble, uint8_t *b, int bytes) {
    for (int i = 0; i < bytes; i++) b[i] = (uint8_t)(nibble[2 * i] | nibble[2 * i + 1] << 4);
}

/* 4 dwords of signs and a scale follow `points` bytes of numbers a sub-block; IQ2_XXS has them by turns. */
static void split_xxs(const uint8_t *numbers, const uint8_t *rest, int points, int stride, parts *o) {
    for (int s = 0; s < 8; s++, numbers += stride == 4 ? points : stride, rest += stride) {
        uint32_t x = load_u32(rest);
        memcpy(o->index + points * s, numbers, (size_t)points);
        for (int g = 0; g < 4; g++) split_signs(o, g, s, x >> 7 * g & 127, x >> (28 + g) & 1);
    }
}
static void join_xxs(const parts *o, uint8_t *numbers, uint8_t *rest, int points, int stride) {
    for (int s = 0; s < 8; s++, numbers += stride == 4 ? points : stride, rest += stride) {
        uint32_t x = 0;
        for (int g = 0; g < 4; g++) x |= (signs_of(o, g, s) & 127u) << 7 * g | signs_of(o, g, s) >> 7 << (28 + g);
        memcpy(numbers, o->index + points * s, (size_t)points);
        store_u32(rest, x);
    }
}
static void split_iq2_xxs(const uint8_t *b, parts *o) { split_xxs(b + 2, b + 6, 4, 8, o); }
static void join_iq2_xxs(const parts *o, uint8_t *b) { join_xxs(o, b + 2, b + 6, 4, 8); }
static void split_iq3_xxs(const uint8_t *b, parts *o) { split_xxs(b + 2, b + 66, 8, 4, o); }
static void join_iq3_xxs(const parts *o, uint8_t *b) { join_xxs(o, b + 2, b + 66, 8, 4); }

static void split_iq2_xs(const uint8_t *b, parts *o) {
    for (int i = 0; i < 32; i++) {
        o->index[i] = b[2 + 2 * i];
        split_signs(o, i % 4, i / 4, b[3 + 2 * i] >> 1, b[3 + 2 * i] & 1);
    }
    split_nibbles(o->nibble + 64, b + 66, 8);
}
static void join_iq2_xs(const parts *o, uint8_t *b) {
    for (int i = 0; i < 32; i++) {
        unsigned v = signs_of(o, i % 4, i / 4);
        b[2 + 2 * i] = o->index[i];
        b[3 + 2 * i] = (uint8_t)(v << 1 | v >> 7);
    }
    join_nibbles(o->nibble + 64, b + 66, 8);
}

static void split_full_signs(const uint8_t *b, parts *o) {
    for (int i = 0; i < 32; i++) split_signs(o, i % 4, i / 4, b[i] & 127, b[i] >> 7);
}
static void join_full_signs(const parts *o, uint8_t *b) {
    for (int i = 0; i < 32; i++) b[i] = (uint8_t)signs_of(o, i % 4, i / 4);
}

/* Bits 0, 2, 4, 6 to a nibble, and back. */
static unsigned even_bits(unsigned v) {
    v = (v & 0x55) | (v & 0x55) >> 1;
    return ((v & 0x33) | (v & 0x33) >> 2) & 15;
}
static unsigned spread_nibble(unsigned v) {
    v = (v | v << 2) & 0x33;
    return (v | v << 1) & 0x55;
}
static void split_iq2_s(const uint8_t *b, parts *o) {
    memcpy(o->index, b + 2, 32);
    split_full_signs(b + 34, o);
    for (int s = 0; s < 8; s++) {
        o->nibble[64 + s] = (uint8_t)even_bits(b[66 + s]);
        o->nibble[72 + s] = (uint8_t)even_bits(b[66 + s] >> 1);
    }
    split_nibbles(o->nibble + 80, b + 74, 8);
}
static void join_iq2_s(const parts *o, uint8_t *b) {
    memcpy(b + 2, o->index, 32);
    join_full_signs(o, b + 34);
    for (int s = 0; s < 8; s++) b[66 + s] = (uint8_t)(spread_nibble(o->nibble[64 + s]) | spread_nibble(o->nibble[72 + s]) << 1);
    join_nibbles(o->nibble + 80, b + 74, 8);
}

static void split_iq3_s(const uint8_t *b, parts *o) {
    memcpy(o->index, b + 2, 64);
    split_full_signs(b + 74, o);
    for (int s = 0; s < 8; s++) {
        o->nibble[64 + s] = b[66 + s] & 15;
        o->nibble[72 + s] = b[66 + s] >> 4;
    }
    split_nibbles(o->nibble + 80, b + 106, 4);
}
static void join_iq3_s(const parts *o, uint8_t *b) {
    memcpy(b + 2, o->index, 64);
    join_full_signs(o, b + 74);
    for (int s = 0; s < 8; s++) b[66 + s] = (uint8_t)(o->nibble[64 + s] | o->nibble[72 + s] << 4);
    join_nibbles(o->nibble + 80, b + 106, 4);
}

/* 4 nibbles of a word as a square of bits, mirrored: bit j of nibble b becomes bit b of nibble j. Twice done it is undone. */
static unsigned mirror(unsigned x) {
    unsigned t = (x ^ x >> 3) & 0x0a0a;
    x ^= t ^ t << 3;
    t = (x ^ x >> 6) & 0x00cc;
    return x ^ t ^ t << 6;
}
static void split_square(parts *o, int s, unsigned x) {
    for (int b = 0; b < 4; b++) o->nibble[8 * b + s] = x >> 4 * b & 15;
}
static unsigned square_of(const parts *o, int s) {
    unsigned x = 0;
    for (int b = 0; b < 4; b++) x |= (unsigned)o->nibble[8 * b + s] << 4 * b;
    return x;
}

static void split_iq1_s(const uint8_t *b, parts *o) {
    memcpy(o->index, b + 2, 32);
    for (int s = 0; s < 8; s++) {
        unsigned h = load_u16(b + 34 + 2 * s);
        split_square(o, s, mirror((h & 7) | (h & 0x38) << 1 | (h & 0x1c0) << 2 | (h & 0xe00) << 3) | (h & 0xf000));
    }
}
static void join_iq1_s(const parts *o, uint8_t *b) {
    memcpy(b + 2, o->index, 32);
    for (int s = 0; s < 8; s++) {
        unsigned x = square_of(o, s), h = mirror(x & 0x0fff);
        store_u16(b + 34 + 2 * s, (h & 7) | (h & 0x70) >> 1 | (h & 0x700) >> 2 | (h & 0x7000) >> 3 | (x & 0xf000));
    }
}

static void split_iq1_m(const uint8_t *b, parts *o) {
    unsigned last = load_u16(b + 54), d = 0;
    memcpy(o->index, b, 32);
    for (int s = 0; s < 8; s++) split_square(o, s, mirror(load_u16(b + 32 + 2 * s)));
    for (int i = 0; i < 4; i++) {
        unsigned v = load_u16(b + 48 + 2 * i);
        d |= v >> 12 << 4 * i;
        if (i < 3) o->word[i] = (uint16_t)((v & 0x0fff) | (last >> 4 * i & 15) << 12);
    }
    o->word[3] = (uint16_t)d;
}
static void join_iq1_m(const parts *o, uint8_t *b) {
    unsigned last = 0;
    memcpy(b, o->index, 32);
    for (int s = 0; s < 8; s++) store_u16(b + 32 + 2 * s, mirror(square_of(o, s)));
    for (int i = 0; i < 3; i++) {
        last |= (unsigned)(o->word[i] >> 12) << 4 * i;
        store_u16(b + 48 + 2 * i, (o->word[i] & 0x0fffu) | (o->word[3] >> 4 * i & 15u) << 12);
    }
    store_u16(b + 54, last | (o->word[3] & 0xf000u));
}

/* ---- sixteen blocks ------------------------------------------------------------------------------------------------------- */

static const struct codebook_layout {
    int indices, nibbles, words;
    void (*split)(const uint8_t *block, parts *o);
    void (*join)(const parts *o, uint8_t *block);
} layouts[QTYPE_COUNT] = {
    [QTYPE_IQ2_XXS] = {32, 64, 1, split_iq2_xxs, join_iq2_xxs}, [QTYPE_IQ2_XS] = {32, 80, 1, split_iq2_xs, join_iq2_xs},
    [QTYPE_IQ2_S] = {32, 96, 1, split_iq2_s, join_iq2_s},       [QTYPE_IQ3_XXS] = {64, 64, 1, split_iq3_xxs, join_iq3_xxs},
    [QTYPE_IQ3_S] = {64, 88, 1, split_iq3_s, join_iq3_s},       [QTYPE_IQ1_S] = {32, 32, 1, split_iq1_s, join_iq1_s},
    [QTYPE_IQ1_M] = {32, 32, 4, split_iq1_m, join_iq1_m},
};

int is_codebook(uint32_t type) { return layouts[type].split != NULL; }

void pack_codebook(uint32_t type, const uint8_t *const *rows, uint8_t *dst) {
    const struct codebook_layout *l = &layouts[type];
    parts p[GROUP];
    for (int r = 0; r < GROUP; r++) {
        if (l->words == 1) p[r].word[0] = load_u16(rows[r]);        /* all but iq1_m begin with d */
        l->split(rows[r], &p[r]);
    }
    for (int i = 0; i < l->indices; i += 4, dst += 4 * GROUP)
        for (int r = 0; r < GROUP; r++) memcpy(dst + 4 * r, p[r].index + i, 4);
    for (int i = 0; i < l->nibbles; i++, dst += GROUP / 2)
        for (int r = 0; r < GROUP; r += 2) dst[r / 2] = (uint8_t)(p[r].nibble[i] | p[r + 1].nibble[i] << 4);
    for (int i = 0; i < l->words; i++, dst += 2 * GROUP)
        for (int r = 0; r < GROUP; r++) memcpy(dst + 2 * r, &p[r].word[i], 2);
}

void unpack_codebook(uint32_t type, const uint8_t *src, int r, uint8_t *block) {
    const struct codebook_layout *l = &layouts[type];
    parts p;
    for (int i = 0; i < l->indices; i += 4, src += 4 * GROUP) memcpy(p.index + i, src + 4 * r, 4);
    for (int i = 0; i < l->nibbles; i++, src += GROUP / 2) p.nibble[i] = src[r / 2] >> 4 * (r % 2) & 15;
    for (int i = 0; i < l->words; i++, src += 2 * GROUP) memcpy(&p.word[i], src + 2 * r, 2);
    if (l->words == 1) store_u16(block, p.word[0]);
    l->join(&p, block);
}
