#include "pack.h"

#include <string.h>

/* kind: the width of an element, or that of 4-byte elements that are changed besides (to_packed and to_file below). */
enum { SPREAD_BITS = 5, CROSS_PAIRS = 6 };
typedef struct field { uint8_t offset, kind, count; } field;
static int width(const field *f) { return f->kind < 4 ? f->kind : 4; }

/* Fields of a file block in packed order (4-byte fields first where there are any); count 0 ends the list. */
static const field layouts[QTYPE_COUNT][5] = {
    [QTYPE_F32] = {{0, 4, 1}},
    [QTYPE_F16] = {{0, 2, 1}},
    [QTYPE_BF16] = {{0, 2, 1}},
    [QTYPE_Q4_0] = {{2, 4, 4}, {0, 2, 1}},                              /* qs, d */
    [QTYPE_Q4_1] = {{4, 4, 4}, {0, 2, 2}},                              /* qs, d and m */
    [QTYPE_Q5_0] = {{6, 4, 4}, {2, SPREAD_BITS, 1}, {0, 2, 1}},         /* qs, qh, d */
    [QTYPE_Q5_1] = {{8, 4, 4}, {4, SPREAD_BITS, 1}, {0, 2, 2}},         /* qs, qh, d and m */
    [QTYPE_Q8_0] = {{2, 4, 8}, {0, 2, 1}},                              /* qs, d */
    [QTYPE_IQ4_NL] = {{2, 4, 4}, {0, 2, 1}},                            /* qs, d */
    [QTYPE_MXFP4] = {{1, 4, 4}, {0, 1, 1}},                             /* qs, e */
    [QTYPE_Q2_K] = {{16, 4, 16}, {0, 4, 4}, {80, 2, 2}},                /* qs, scales, d and dmin */
    [QTYPE_Q3_K] = {{32, 4, 16}, {0, 4, 8}, {96, 4, 3}, {108, 2, 1}},   /* qs, hmask, scales, d */
    [QTYPE_Q4_K] = {{16, 4, 32}, {4, 4, 3}, {0, 2, 2}},                 /* qs, scales, d and dmin */
    [QTYPE_Q5_K] = {{48, 4, 32}, {16, 4, 8}, {4, 4, 3}, {0, 2, 2}},     /* qs, qh, scales, d and dmin */
    [QTYPE_Q6_K] = {{0, 4, 32}, {128, 4, 16}, {192, 4, 4}, {208, 2, 1}},/* ql, qh, scales, d */
    [QTYPE_IQ4_XS] = {{8, 4, 32}, {4, 4, 1}, {0, 2, 2}},                /* qs, scales_l, d and scales_h */
    [QTYPE_TQ1_0] = {{0, 4, 13}, {52, 2, 1}},                           /* qs and qh, d */
    [QTYPE_TQ2_0] = {{0, 4, 16}, {64, 2, 1}},                           /* qs, d */
    [QTYPE_NVFP4] = {{4, 4, 8}, {0, 1, 4}},                             /* qs, d */
    [QTYPE_Q1_0] = {{2, SPREAD_BITS, 4}, {0, 2, 1}},                    /* qs, d */
    [QTYPE_Q2_0] = {{2, CROSS_PAIRS, 4}, {0, 2, 1}},                    /* qs, d */
};

size_t pack_column_bytes(uint32_t type) {
    size_t n = (size_t)qtype_get(type)->bytes * GROUP;
    return qtype_get(type)->elems == 256 ? (n + 63) / 64 * 64 : n;
}

size_t pack_group_bytes(uint32_t type, int64_t k) { return (size_t)(k / qtype_get(type)->elems) * pack_column_bytes(type); }

#define BOTH(mask) ((uint64_t)(mask) << 32 | (mask))

/* Changes of elements, two dwords in one word: a shift and a mask then give four neighbours, one a byte. SPREAD_BITS, for bits of element e in bit e
   (fifth bits of Q5_0 and Q5_1, all of Q1_0): bit e moves to bit e/4 of byte e%4. CROSS_PAIRS, for 2-bit elements four to a byte: element e moves
   to bits 2*(e/4) of byte e%4, which twice done is undone. */

static uint64_t spread_bits(uint64_t x) {
    uint64_t out = 0;
    for (int b = 0; b < 4; b++) {
        uint64_t y = x >> b & BOTH(0x11111111u);
        y = (y | y >> 3) & BOTH(0x03030303u);
        y = (y | y >> 6) & BOTH(0x000f000fu);
        out |= ((y | y >> 12) & BOTH(0xffu)) << 8 * b;
    }
    return out;
}

static uint64_t gather_bits(uint64_t x) {
    uint64_t out = 0;
    for (int b = 0; b < 4; b++) {
        uint64_t y = x >> 8 * b & BOTH(0xffu);
        y = (y | y << 12) & BOTH(0x000f000fu);
        y = (y | y << 6) & BOTH(0x03030303u);
        out |= ((y | y << 3) & BOTH(0x11111111u)) << b;
    }
    return out;
}

static uint64_t cross_pairs(uint64_t x) {
    uint64_t t = (x ^ x >> 6) & BOTH(0x00cc00ccu);
    x ^= t ^ t << 6;
    t = (x ^ x >> 12) & BOTH(0x0000f0f0u);
    return x ^ t ^ t << 12;
}

typedef uint64_t change_fn(uint64_t two_dwords);
static change_fn *const to_packed[] = {[SPREAD_BITS] = spread_bits, [CROSS_PAIRS] = cross_pairs};
static change_fn *const to_file[] = {[SPREAD_BITS] = gather_bits, [CROSS_PAIRS] = cross_pairs};

static uint64_t load_u64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

static void store_u64(uint8_t *p, uint64_t x) { memcpy(p, &x, 8); }

/* ---- 16 rows of `count` elements to `count` times 16 neighbours; as many elements at a time as fill a word ---- */

static void transpose_dwords(const uint8_t *const *rows, size_t at, int64_t count, uint8_t *dst) {
    const uint64_t low = 0xffffffffu;
    int64_t e = 0;
    for (; e + 2 <= count; e += 2, at += 8, dst += 8 * GROUP)
        for (int r = 0; r < GROUP; r += 2) {
            uint64_t a = load_u64(rows[r] + at), b = load_u64(rows[r + 1] + at);
            store_u64(dst + 4 * r, (a & low) | b << 32);
            store_u64(dst + 4 * (GROUP + r), a >> 32 | (b & ~low));
        }
    for (int r = 0; e < count && r < GROUP; r++) memcpy(dst + 4 * r, rows[r] + at, 4);
}

static void transpose_words(const uint8_t *const *rows, size_t at, int64_t count, uint8_t *dst) {
    const uint64_t low = 0xffffffffu, even = 0x0000ffff0000ffffu;
    int64_t e = 0;
    for (; e + 4 <= count; e += 4, at += 8, dst += 8 * GROUP)
        for (int r = 0; r < GROUP; r += 4) {
            uint64_t a = load_u64(rows[r] + at), b = load_u64(rows[r + 1] + at), c = load_u64(rows[r + 2] + at), d = load_u64(rows[r + 3] + at);
            uint64_t ab02 = (a & even) | (b & even) << 16, ab13 = (a >> 16 & even) | (b & ~even);
            uint64_t cd02 = (c & even) | (d & even) << 16, cd13 = (c >> 16 & even) | (d & ~even);
            store_u64(dst + 2 * r, (ab02 & low) | cd02 << 32);
            store_u64(dst + 2 * (GROUP + r), (ab13 & low) | cd13 << 32);
            store_u64(dst + 2 * (2 * GROUP + r), ab02 >> 32 | (cd02 & ~low));
            store_u64(dst + 2 * (3 * GROUP + r), ab13 >> 32 | (cd13 & ~low));
        }
    for (; e < count; e++, at += 2, dst += 2 * GROUP)
        for (int r = 0; r < GROUP; r += 4) {
            uint64_t four = 0;
            for (int i = 0; i < 4; i++) four |= (uint64_t)load_u16(rows[r + i] + at) << 16 * i;
            store_u64(dst + 2 * r, four);
        }
}

static void transpose_bytes(const uint8_t *const *rows, size_t at, int64_t count, uint8_t *dst) {
    for (int64_t e = 0; e < count; e++, at++, dst += GROUP)
        for (int r = 0; r < GROUP; r++) dst[r] = rows[r][at];
}

static void transpose(int width, const uint8_t *const *rows, size_t at, int64_t count, uint8_t *dst) {
    (width == 4 ? transpose_dwords : width == 2 ? transpose_words : transpose_bytes)(rows, at, count, dst);
}

/* One block column: the blocks at rows[0..15]. */
static void pack_column(uint32_t type, const uint8_t *const *rows, uint8_t *dst, size_t column) {
    const uint8_t *end = dst + column;
    if (is_codebook(type)) {
        pack_codebook(type, rows, dst);
        dst += (size_t)qtype_get(type)->bytes * GROUP;
    }
    for (const field *f = layouts[type]; f->count; f++) {
        size_t n = (size_t)width(f) * f->count * GROUP;
        transpose(width(f), rows, f->offset, f->count, dst);
        for (size_t i = 0; f->kind > 4 && i < n; i += 8) store_u64(dst + i, to_packed[f->kind](load_u64(dst + i)));
        dst += n;
    }
    memset(dst, 0, (size_t)(end - dst));
}

void pack_group(uint32_t type, const uint8_t *src, size_t row_bytes, int n_rows, int64_t k, uint8_t *dst) {
    static const uint8_t zero[256];         /* any block of a row that does not exist */
    const qtype_info *q = qtype_get(type);
    const uint8_t *rows[GROUP];
    size_t column = pack_column_bytes(type);
    if (q->elems == 1 && n_rows == GROUP) {     /* all columns are one run of elements */
        for (int r = 0; r < GROUP; r++) rows[r] = src + (size_t)r * row_bytes;
        transpose(layouts[type][0].kind, rows, 0, k, dst);
        return;
    }
    for (int64_t b = 0; b < k / q->elems; b++, dst += column) {
        for (int r = 0; r < GROUP; r++) rows[r] = r < n_rows ? src + (size_t)r * row_bytes + (size_t)b * (size_t)q->bytes : zero;
        pack_column(type, rows, dst, column);
    }
}

void unpack_row(uint32_t type, const uint8_t *group, int r, int64_t k, uint8_t *dst) {
    const qtype_info *q = qtype_get(type);
    size_t bytes = (size_t)q->bytes;
    for (int64_t b = 0; b < k / q->elems; b++, dst += bytes, group += pack_column_bytes(type)) {
        const uint8_t *src = group;
        if (is_codebook(type)) unpack_codebook(type, group, r, dst);
        for (const field *f = layouts[type]; f->count; f++)
            for (int e = 0; e < f->count; e++, src += width(f) * GROUP)
                if (f->kind > 4) {
                    uint32_t element = (uint32_t)to_file[f->kind](load_u32(src + r * 4));
                    memcpy(dst + f->offset + e * 4, &element, 4);
                } else {
                    memcpy(dst + f->offset + e * f->kind, src + r * f->kind, f->kind);
                }
    }
}
