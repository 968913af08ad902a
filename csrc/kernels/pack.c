#include "pack.h"

#include <string.h>

typedef struct field { uint8_t offset, width, count; } field;

/* Fields of a file block in packed order (4-byte fields first where there are any); count 0 ends the list. */
static const field layouts[QTYPE_COUNT][5] = {
    [QTYPE_F32] = {{0, 4, 1}},
    [QTYPE_F16] = {{0, 2, 1}},
    [QTYPE_BF16] = {{0, 2, 1}},
    [QTYPE_Q4_0] = {{2, 4, 4}, {0, 2, 1}},                              /* qs, d */
    [QTYPE_Q4_1] = {{4, 4, 4}, {0, 2, 2}},                              /* qs, d and m */
    [QTYPE_Q5_0] = {{6, 4, 4}, {2, 4, 1}, {0, 2, 1}},                   /* qs, qh, d */
    [QTYPE_Q5_1] = {{8, 4, 4}, {4, 4, 1}, {0, 2, 2}},                   /* qs, qh, d and m */
    [QTYPE_Q8_0] = {{2, 4, 8}, {0, 2, 1}},                              /* qs, d */
    [QTYPE_IQ4_NL] = {{2, 4, 4}, {0, 2, 1}},                            /* qs, d */
    [QTYPE_MXFP4] = {{1, 4, 4}, {0, 1, 1}},                             /* qs, e */
    [QTYPE_Q2_K] = {{16, 4, 16}, {0, 4, 4}, {80, 2, 2}},                /* qs, scales, d and dmin */
    [QTYPE_Q3_K] = {{32, 4, 16}, {0, 4, 8}, {96, 4, 3}, {108, 2, 1}},   /* qs, hmask, scales, d */
    [QTYPE_Q4_K] = {{16, 4, 32}, {4, 4, 3}, {0, 2, 2}},                 /* qs, scales, d and dmin */
    [QTYPE_Q5_K] = {{48, 4, 32}, {16, 4, 8}, {4, 4, 3}, {0, 2, 2}},     /* qs, qh, scales, d and dmin */
    [QTYPE_Q6_K] = {{0, 4, 32}, {128, 4, 16}, {192, 4, 4}, {208, 2, 1}},/* ql, qh, scales, d */
    [QTYPE_IQ4_XS] = {{8, 4, 32}, {4, 4, 1}, {0, 2, 2}},                /* qs, scales_l, d and scales_h */
};

size_t pack_column_bytes(uint32_t type) {
    size_t n = (size_t)qtype_get(type)->bytes * GROUP;
    return qtype_get(type)->elems == 256 && layouts[type][0].width ? (n + 63) / 64 * 64 : n;
}

size_t pack_group_bytes(uint32_t type, int64_t k) { return (size_t)(k / qtype_get(type)->elems) * pack_column_bytes(type); }

/* Q5_0 and Q5_1 keep the fifth bit of element e in bit e of a dword. Packed, it is bit e/4 of byte e%4: a shift and a mask then give the fifth
   bits of four neighbours, as in Q5_K. */
static int is_fifth_bits(uint32_t type, const field *f) { return (type == QTYPE_Q5_0 || type == QTYPE_Q5_1) && f->width == 4 && f->count == 1; }

static uint32_t spread_bits(uint32_t x) {
    uint32_t out = 0;
    for (int b = 0; b < 4; b++) {
        uint32_t y = x >> b & 0x11111111u;
        y = (y | y >> 3) & 0x03030303u;
        y = (y | y >> 6) & 0x000f000fu;
        out |= ((y | y >> 12) & 0xffu) << 8 * b;
    }
    return out;
}

static uint32_t gather_bits(uint32_t x) {
    uint32_t out = 0;
    for (int b = 0; b < 4; b++) {
        uint32_t y = x >> 8 * b & 0xffu;
        y = (y | y << 12) & 0x000f000fu;
        y = (y | y << 6) & 0x03030303u;
        out |= ((y | y << 3) & 0x11111111u) << b;
    }
    return out;
}

static void copy_spread(uint8_t *dst, const uint8_t *src, uint32_t (*change)(uint32_t)) {
    uint32_t x;
    memcpy(&x, src, 4);
    x = change(x);
    memcpy(dst, &x, 4);
}

static void transpose(const uint8_t *const *rows, size_t at, const field *f, int fifth_bits, uint8_t *dst) {
    for (int e = 0; e < f->count; e++, at += f->width, dst += f->width * GROUP)
        for (int r = 0; r < GROUP; r++) switch (f->width) {
            case 4:
                if (fifth_bits) copy_spread(dst + 4 * r, rows[r] + at, spread_bits);
                else memcpy(dst + 4 * r, rows[r] + at, 4);
                break;
            case 2: memcpy(dst + 2 * r, rows[r] + at, 2); break;
            default: dst[r] = rows[r][at];
        }
}

void pack_group(uint32_t type, const uint8_t *src, size_t row_bytes, int n_rows, int64_t k, uint8_t *dst) {
    static const uint8_t zero[256];         /* any block of a row that does not exist */
    const qtype_info *q = qtype_get(type);
    size_t bytes = (size_t)q->bytes;
    const uint8_t *rows[GROUP];
    size_t column = pack_column_bytes(type);
    for (int64_t b = 0; b < k / q->elems; b++, dst += column) {
        uint8_t *at = dst;
        for (int r = 0; r < GROUP; r++) rows[r] = r < n_rows ? src + (size_t)r * row_bytes + (size_t)b * bytes : zero;
        if (!layouts[type][0].width)
            for (int r = 0; r < GROUP; r++, at += bytes) memcpy(at, rows[r], bytes);
        for (const field *f = layouts[type]; f->count; f++) {
            transpose(rows, f->offset, f, is_fifth_bits(type, f), at);
            at += (size_t)f->width * f->count * GROUP;
        }
        memset(at, 0, (size_t)(dst + column - at));
    }
}

void unpack_row(uint32_t type, const uint8_t *group, int r, int64_t k, uint8_t *dst) {
    const qtype_info *q = qtype_get(type);
    size_t bytes = (size_t)q->bytes;
    for (int64_t b = 0; b < k / q->elems; b++, dst += bytes, group += pack_column_bytes(type)) {
        const uint8_t *src = group;
        if (!layouts[type][0].width) memcpy(dst, group + (size_t)r * bytes, bytes);
        for (const field *f = layouts[type]; f->count; f++)
            for (int e = 0; e < f->count; e++, src += f->width * GROUP)
                if (is_fifth_bits(type, f)) copy_spread(dst + f->offset, src + r * 4, gather_bits);
                else memcpy(dst + f->offset + e * f->width, src + r * f->width, f->width);
    }
}
