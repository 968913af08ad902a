/* Matmuls of the codebook types, IQ1 to IQ3, for one level: include matmul_tmpl.h first. pack_codebook.c fixes the bytes.
 *
 * A sub-block of 32 values is 4 points of 8 values, or 8 points of 4, out of a table. Their numbers are 8 bits in bytes and up to 3 more in words of 64
 * bits, of which bit 4r+j belongs to byte j of lane r; signs are such words, too: one for the first 4 of 8 values of each row, one for the others. */
#include "../formats/iq_tables.h"

/* What is unpacked once a block. */
typedef struct side {
    vi sc[16];                  /* sub-scales */
    const uint8_t *words;       /* this half of the rows in the block's first word; words are 8 bytes apart */
    const uint8_t *high_signs;  /* the same of signs of the last 4 of 8 values, with all of them there */
    const uint8_t *ninth_bits;  /* the same of bit 8 of the numbers, where types hide it among the signs */
    uint64_t signs[32], rest[8];
    uint16_t numbers[16][4 * ROWS];     /* of 4 points a lane each, if they have more than 8 bits */
} side;

typedef struct codebook {
    void (*prepare)(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s);
    void (*points)(const uint8_t *p, const side *s, int64_t sub, vi *q);       /* 32 values of sub-block sub, without signs, through vi_signed */
    int has_signs;
} codebook;

/* Word i of the block. */
INLINE const uint8_t *word(const side *s, int64_t i) { return s->words + 8 * i; }

/* ---- sub-scales and hidden bits ------------------------------------------------------------------------------------------- */

/* 2x + 1 for a scale x of 4 bits, whose 16 rows fill a word. */
INLINE vi odd_scale(const uint8_t *p) {
    vi x = vi_nibbles(p);
    return vi_add(vi_add(x, x), vi_set1(1));
}

/* Words 32..63 hold three signs and another bit for each row. The eighth sign makes the number of minus signs even: it is put where the other bit was;
   of the other bits of a sub-block's four words comes a word with bit 4r+g for g = 0..3. */
INLINE void unhide(const uint8_t *words, int half, side *s) {
    vi three = vi_set1(0x77777777), top = vi_set1((int32_t)0x88888888u);
    for (int i = 0; i < 64; i += 4 * ROWS) {
        vi rest = vi_set1(0);
        for (int g = 0; g < 4; g++) {
            vi low = vi_load(words + 64 * g + i), high = vi_load(words + 256 + 64 * g + i), known = vi_and(high, three), x = vi_xor(low, known);
            x = vi_xor(x, vi_shl(x, 2));
            x = vi_xor(x, vi_shl(x, 1));
            vi_store((uint8_t *)s->signs + 64 * g + i, vi_or(known, vi_and(x, top)));
            rest = vi_or(rest, vi_and(vi_shr(high, 3 - g), vi_set1(0x11111111 << g)));
        }
        vi_store((uint8_t *)s->rest + i, rest);
    }
    s->high_signs = (const uint8_t *)s->signs + half;
}

/* Numbers of more than 8 bits, of 4 points a lane: bytes and `bits` words of higher bits, 8 words apart. They are written down well before they are read: loads
   of what a wide store has just written are slow. */
INLINE void numbers_of(const uint8_t *bytes, const uint8_t *high, int bits, uint16_t *n) {
    vi low = vi_load(bytes), top = vi_set1(0);
    for (int b = 0; b < bits; b++) top = vi_or(top, vi_and(vi_from_bits(high + 64 * b), vi_set1(0x01010101 << b)));
    vi_store(n, vi_zip_low(low, top));
    vi_store(n + 2 * ROWS, vi_zip_high(low, top));
}
INLINE void prepare_xxs(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)p, (void)sp;
    unhide(words, half, s);
    for (int i = 0; i < 8; i++) s->sc[i] = odd_scale((const uint8_t *)(s->rest + i) + half);
}
INLINE void prepare_iq2_xs(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)sp;
    unhide(words, half, s);
    s->ninth_bits = (const uint8_t *)s->rest + half;
    for (int i = 0; i < 16; i++) s->sc[i] = odd_scale(word(s, 64 + i));
    for (int i = 0; i < 8; i++) numbers_of(p + 64 * i, s->ninth_bits + 8 * i, 1, s->numbers[i]);
}
INLINE void prepare_iq2_s(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)sp;
    s->high_signs = words + 256 + half;
    for (int i = 0; i < 16; i++) s->sc[i] = odd_scale(word(s, 80 + i));
    for (int i = 0; i < 8; i++) numbers_of(p + 64 * i, word(s, 64 + i), 2, s->numbers[i]);
}
INLINE void prepare_iq3_s(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)sp;
    s->high_signs = words + 256 + half;
    for (int i = 0; i < 8; i++) s->sc[i] = odd_scale(word(s, 80 + i));
    for (int i = 0; i < 16; i++) numbers_of(p + 64 * i, word(s, 64 + i % 2 * 8 + i / 2), 1, s->numbers[i]);
}
/* IQ1_S: the scale's 3 bits stand under the offset's sign. */
INLINE void prepare_iq1_s(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)words, (void)half, (void)sp;
    for (int i = 0; i < 8; i++) s->sc[i] = vi_and(odd_scale(word(s, 24 + i)), vi_set1(15));
    for (int i = 0; i < 8; i++) numbers_of(p + 64 * i, word(s, i), 3, s->numbers[i]);
}
/* IQ1_M: 3-bit scales, 4 in each of 3 words and 4 more in the words' top nibbles. */
INLINE void prepare_iq1_m(const uint8_t *p, const uint8_t *words, int half, const uint8_t *sp, side *s) {
    (void)words, (void)half;
    vi x[4], low = vi_set1(0x0fff);
    for (int i = 0; i < 3; i++) x[i] = vi_u16(sp + 2 * GROUP * i);
    x[3] = vi_or(vi_or(vi_shr(x[0], 12), vi_and(vi_shr(x[1], 8), vi_set1(0xf0))), vi_and(vi_shr(x[2], 4), vi_set1(0xf00)));
    for (int i = 0; i < 3; i++) x[i] = vi_and(x[i], low);
    for (int i = 0; i < 16; i++) {
        vi v = vi_and(vi_shr(x[i / 4], i % 4 * 3), vi_set1(7));
        s->sc[i] = vi_add(vi_add(v, v), vi_set1(1));
    }
    for (int i = 0; i < 8; i++) numbers_of(p + 64 * i, word(s, i), 3, s->numbers[i]);
}

/* ---- points ---------------------------------------------------------------------------------------------------------------- */


/* Number j of every lane: zipping works on 4 lanes at a time, of which the first two go into the one half and the others into the other. */
INLINE void number_j(const uint16_t *n, int j, unsigned *index) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) index[r] = n[r / 2 % 2 * 2 * ROWS + r / 4 * 8 + r % 2 * 4 + j];
}
INLINE void byte_j(const uint8_t *bytes, int j, unsigned *index) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) index[r] = bytes[4 * r + j];
}

/* 4 points of 8 values a lane, by the numbers that were written down, or by bytes. */
INLINE void points8(const uint64_t *table, const uint16_t *n, const uint8_t *bytes, vi *q) {
    unsigned index[ROWS];
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
        if (n) number_j(n, j, index);
        else byte_j(bytes, j, index);
        vi_table8(table, index, &q[2 * j], &q[2 * j + 1]);
    }
}
/* 8 points of 4 values a lane. */
INLINE void points4(const uint32_t *table, const uint16_t *n, const uint8_t *bytes, vi *q) {
    unsigned index[ROWS];
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) {
        if (n) number_j(n + j / 4 * 4 * ROWS, j % 4, index);
        else byte_j(bytes + j / 4 * 64, j % 4, index);
        q[j] = vi_table4(table, index);
    }
}

INLINE void all_signed(vi *q) {
    for (int j = 0; j < 8; j++) q[j] = vi_signed(q[j]);
}
INLINE void points_iq2_xxs(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)s;
    points8(iq2_xxs_grid, NULL, p + 64 * sub, q);
    all_signed(q);
}
INLINE void points_iq2_xs(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)p;
    points8(iq2_xs_grid, s->numbers[sub], NULL, q);
    all_signed(q);
}
INLINE void points_iq3_xxs(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)s;
    points4(iq3_xxs_grid, NULL, p + 128 * sub, q);
    all_signed(q);
}
INLINE void points_iq3_s(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)p;
    points4(iq3_s_grid, s->numbers[2 * sub], NULL, q);
    all_signed(q);
}
INLINE void points_iq2_s(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)p;
    points8(iq2_s_grid, s->numbers[sub], NULL, q);
    all_signed(q);
}
/* IQ1: eightfold points of -1, 0 and 1 and an offset of 1 or -1, together 0..18 with zero point 9. A set bit is an offset of -1. */
INLINE vi offset_of(vi bit0) { return vi_sub(vi_set1(0x0a0a0a0a), vi_and(vi_sub(vi_set1(0), bit0), vi_set1(0x02020202))); }
INLINE void points_iq1_s(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)p;
    vi offset = offset_of(vi_shr(vi_nibbles(word(s, 24 + sub)), 3));
    points8(iq1_s_grid, s->numbers[sub], NULL, q);
    for (int j = 0; j < 8; j++) q[j] = vi_add_u8(q[j], offset);
}
INLINE void points_iq1_m(const uint8_t *p, const side *s, int64_t sub, vi *q) {
    (void)p;
    vi bits = vi_nibbles(word(s, 24 + sub));
    points8(iq1_s_grid, s->numbers[sub], NULL, q);
    for (int g = 0; g < 4; g++) {
        vi offset = offset_of(vi_and(vi_shr(bits, g), vi_set1(1)));
        q[2 * g] = vi_add_u8(q[2 * g], offset);
        q[2 * g + 1] = vi_add_u8(q[2 * g + 1], offset);
    }
}

/* ---- the tile ---------------------------------------------------------------------------------------------------------------- */

/* 32 values of sub-block sub with their signs, through vi_signed or with the format's zero point. */
INLINE void codebook_values(const codebook *book, const uint8_t *p, const side *s, int64_t sub, vi *q) {
    book->points(p, s, sub, q);
    for (int g = 0; g < 4 && book->has_signs; g++) {
        q[2 * g] = vi_negate(q[2 * g], word(s, 8 * g + sub));
        q[2 * g + 1] = vi_negate(q[2 * g + 1], s->high_signs + 8 * (8 * g + sub));
    }
}

INLINE vf codebook_scale(const format *f, const uint8_t *sp) { return vf_mul(vf_f16(sp + 2 * GROUP * f->d_at), vf_set1(f->factor)); }

INLINE void tile_codebook(const format *f, const codebook *book, const uint8_t *w, int64_t k, const act_unit *a, int m, int M, float *y, int64_t ldy) {
    for (int h = 0; h < GROUP / ROWS; h++) {
        vf sum[COLS];
        side s;
        int half = h * ROWS / 2;
        for (int c = 0; c < M; c++) sum[c] = vf_set1(0);
        const uint8_t *p = w + h * ROWS * 4, *base = w + 64 * f->dwords, *sp = base + 8 * f->words + h * ROWS * 2;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, base += f->bytes, sp += f->bytes, a += m) {
            vi isum[COLS], zero[8];
            if (!h) prefetch(p, (size_t)f->bytes);
            s.words = base + half;
            book->prepare(p, base, half, sp, &s);
            by_pairs(f, s.sc, zero);
            for (int c = 0; c < M; c++) isum[c] = start_block(f, &a[c], zero);
            for (int64_t sub = 0; sub < 8; sub++) {
                __asm__("" : "+r"(sub));        /* a rolled loop, as in tile256 */
                vi q[8];
                codebook_values(book, p, &s, sub, q);
add_scaled(f, isum, q, a, M, sub, s.sc);
            }
            vf d = codebook_scale(f, sp);
            for (int c = 0; c < M; c++) sum[c] = vf_fma(vf_from_vi(isum[c]), vf_mul(d, vf_set1(a[c].d[0])), sum[c]);
        }
        a -= k / 256 * m;
        for (int c = 0; c < M; c++) vf_store(y + c * ldy + h * ROWS, sum[c]);
    }
}

#ifdef PAIRS
INLINE void pair_tile_codebook(const format *f, const codebook *book, const uint8_t *w, int64_t k, const act_pair *a, int P, int m, int more, float *y, int64_t ldy) {
    for (int h = 0; h < NV; h++, y += ROWS) {
        vf sum[PANEL / 2][2];
        side s;
        int half = h * ROWS / 2;
        load_columns(sum, P, m, more, y, ldy);
        const uint8_t *p = w + h * ROWS * 4, *base = w + 64 * f->dwords, *sp = base + 8 * f->words + h * ROWS * 2;
        const act_pair *u = a;
        for (int64_t b = 0; b < k / 256; b++, p += f->bytes, base += f->bytes, sp += f->bytes, u += P) {
            vi isum[PANEL / 2][2], zipped[16][2];
            if (!h) prefetch(p, (size_t)f->bytes);
            s.words = base + half;
            book->prepare(p, base, half, sp, &s);
            zip_scales(s.sc, 256 / f->sub, zipped);
            for (int c = 0; c < 2 * P; c++) isum[c / 2][c % 2] = vi_set1(0);
            for (int64_t sub = 0; sub < 8; sub++) {
                __asm__("" : "+r"(sub));        /* a rolled loop, as in tile256 */
                vi q[8];
                codebook_values(book, p, &s, sub, q);
                add_products(f, q, u, P, sub, zipped, isum);
            }
            add_pair_blocks(f, u, P, codebook_scale(f, sp), vf_set1(0), NULL, isum, sum);
        }
        store_columns(sum, P, m, y, ldy);
    }
}
#define PAIR_CALL_BOOK(type, P) pair_tile_codebook(&type##_format, &type##_book, w, k, a, P, m, more, y, ldy)
#endif

#define CALL_BOOK(type, M) tile_codebook(&type##_format, &type##_book, w, k, a, m, M, y, ldy)
#define CODEBOOK(type, prepare_, points_, signs_, ...) \
    static const codebook type##_book = {.prepare = prepare_, .points = points_, .has_signs = signs_}; \
    static const format type##_format = {__VA_ARGS__}; \
    MATMUL(type, BOOK)

CODEBOOK(iq3_s, prepare_iq3_s, points_iq3_s, 1, .run = 8, .dwords = 16, .words = 88, .bytes = 112 * 16, .factor = 1, .is_signed = 1, .sub = 32)
CODEBOOK(iq3_xxs, prepare_xxs, points_iq3_xxs, 1, .run = 2, .dwords = 16, .words = 64, .bytes = 100 * 16, .factor = 0.25f, .is_signed = 1, .sub = 32)
CODEBOOK(iq2_xxs, prepare_xxs, points_iq2_xxs, 1, .run = 2, .dwords = 8, .words = 64, .bytes = 68 * 16, .factor = 0.125f, .is_signed = 1, .sub = 32)
CODEBOOK(iq2_xs, prepare_iq2_xs, points_iq2_xs, 1, .run = 2, .dwords = 8, .words = 80, .bytes = 76 * 16, .factor = 0.125f, .is_signed = 1, .sub = 16)
CODEBOOK(iq2_s, prepare_iq2_s, points_iq2_s, 1, .run = 2, .dwords = 8, .words = 96, .bytes = 84 * 16, .factor = 0.125f, .is_signed = 1, .sub = 16)
CODEBOOK(iq1_s, prepare_iq1_s, points_iq1_s, 0, .run = 4, .dwords = 8, .words = 32, .bytes = 52 * 16, .factor = 0.125f, .zero = 9, .sub = 32)
CODEBOOK(iq1_m, prepare_iq1_m, points_iq1_m, 0, .run = 4, .dwords = 8, .words = 32, .bytes = 56 * 16, .factor = 0.125f, .zero = 9, .sub = 16, .d_at = 3)
