/* The encoders of one level: include a simd_*.h first. What is minimised is the sum of w * (x - decoded)^2 with every scale as the file holds
   it; how: quantize_scale.h, quantize_affine.h. The bytes of blocks are written by formats/encode_*.c. */
#include "../formats/decode.h"
#include "../formats/encode.h"
#include "../formats/iq_tables.h"
#include "quantize_affine.h"
#include "quantize_scale.h"

#define COUNT(list) (int)(sizeof(list) / sizeof *(list))

/* ---- alphabets ---- */

static const alphabet two_bits = {.high = 3}, four_bits = {.high = 15}, five_bits = {.high = 31};
static const alphabet signed_3 = {-4, 3, 4, 0, 0, 0, 0}, signed_4 = {-8, 7, 8, 0, 0, 0, 0}, signed_5 = {-16, 15, 16, 0, 0, 0, 0}, signed_6 = {-32, 31, 32, 0, 0, 0, 0};
static const alphabet signed_8 = {-128, 127, 0, 0, 0, 0, 0};
static const float counted[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const float iq4_floats[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float iq4_borders[15] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101};
static const alphabet iq4 = {-127, 113, 0, iq4_floats, iq4_borders, counted, 0};
/* 4-bit floats, doubled; zero stands twice in the list, as code 0. */
static const float fp4_floats[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12}, fp4_codes[16] = {15, 14, 13, 12, 11, 10, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7};
static const float fp4_borders[15] = {-10, -7, -5, -3.5f, -2.5f, -1.5f, -0.5f, 0, 0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};
static const alphabet fp4 = {-12, 12, 0, fp4_floats, fp4_borders, fp4_codes, 0};

/* ---- blocks of 32 ---- */

/* Writes up to 16 blocks: codes of x * inverse + offset. */
INLINE void write_small(const tile *t, fx inverse, fx offset, alphabet a, layout y, const uint16_t *d, const uint16_t *m, int64_t left,
                        encode_small_fn *encode, uint8_t *dst) {
    uint8_t q[16 * 32];
    tile_codes(t, inverse, offset, a, y, q);
    encode(q, d, m, left < 16 ? (int)left : 16, dst);
}

INLINE void small_scale(const pieces *s, int weighted, alphabet a, const float *top, int n, int turns, encode_small_fn *encode, int bytes, uint8_t *dst) {
    const layout y = {32, 1, weighted};
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t d[16];
        tile_load(&t, s, p, y);
        fx scale = refine_scale(&t, search_scale(&t, a, top, n, y), a, turns, y, d);
        write_small(&t, fx_inverse(scale), fx_set1(0), a, y, d, d, s->n - p, encode, dst + p * bytes);
    }
}

INLINE void small_affine(const pieces *s, int weighted, alphabet a, const float *steps, int n, int turns, encode_small_fn *encode, int bytes, uint8_t *dst) {
    const layout y = {32, 1, weighted};
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t d[16], m[16];
        affine_sums z;
        tile_load(&t, s, p, y);
        affine f = search_affine(&t, a, steps, n, turns, 0, y, &z);
        f = refine_affine(&t, f, a, 2, y, &z, d, m);
        fx inverse = fx_inverse(f.s);
        write_small(&t, inverse, fx_mul(f.m, inverse), a, y, d, m, s->n - p, encode, dst + p * bytes);
    }
}

static const float tops_q4_0[] = {-8, -7.6f, -8.4f, -7.2f, -8.8f, 7, 7.4f, -9.2f, 6.6f, -6.8f, 7.8f, -9.6f};
static const float tops_q5_0[] = {-16, -15.5f, -16.5f, -15, 15.5f, 15, -14.5f, 14.5f};
static const float tops_q8_0[] = {-128, -127, -126, -125};
static const float tops_iq4_nl[] = {-127, 113, -120, 106, -134, 120, -113, 100, -142, 127};
static const float steps_q4_1[] = {0, 0.5f, -0.5f, 1, -1, 1.5f, 2};
static const float steps_q5_1[] = {0, 0.5f, -0.5f, 1, -1};

INLINE void q4_0(const pieces *s, int weighted, uint8_t *dst) {
    small_scale(s, weighted, signed_4, tops_q4_0, COUNT(tops_q4_0), 3, encode_q4_0, 18, dst);
}
INLINE void q5_0(const pieces *s, int weighted, uint8_t *dst) {
    small_scale(s, weighted, signed_5, tops_q5_0, COUNT(tops_q5_0), 3, encode_q5_0, 22, dst);
}
INLINE void q8_0(const pieces *s, int weighted, uint8_t *dst) {
    small_scale(s, weighted, signed_8, tops_q8_0, COUNT(tops_q8_0), 2, encode_q8_0, 34, dst);
}
INLINE void iq4_nl(const pieces *s, int weighted, uint8_t *dst) {
    small_scale(s, weighted, iq4, tops_iq4_nl, COUNT(tops_iq4_nl), 4, encode_q4_0, 18, dst);
}
INLINE void q4_1(const pieces *s, int weighted, uint8_t *dst) {
    small_affine(s, weighted, four_bits, steps_q4_1, COUNT(steps_q4_1), 3, encode_q4_1, 20, dst);
}
INLINE void q5_1(const pieces *s, int weighted, uint8_t *dst) {
    small_affine(s, weighted, five_bits, steps_q5_1, COUNT(steps_q5_1), 2, encode_q5_1, 24, dst);
}

/* The scale is a power of two, 2^(e - 128) for the doubled values: all that can be best are tried. */
INLINE void mxfp4(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {32, 1, weighted};
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t e[16];
        float exponents[16];
        tile_load(&t, s, p, y);
        fx unit = fx_load(t.unit), best = fx_set1(0), least = fx_set1(0x1p100f);
        for (int i = 0; i < 5; i++) {
            fx d = fx_div(fx_max(fx_mul(unit, fx_set1(bits_f32((uint32_t)(125 - i) << 23))), fx_set1(0x1p-128f)), unit);
            scale_sums z = sum_scale(&t, d, fx_inverse(d), fp4, y, 1);
            best = fx_less(z.error, least, d, best);
            least = fx_min(z.error, least);
        }
        fx_store(exponents, fx_mul(best, unit));
        for (int l = 0; l < 16; l++) {
            uint32_t u = f32_to_bits(exponents[l]);
            e[l] = (uint16_t)(u >> 23 ? (u >> 23) + 1 : u >> 22);
        }
        write_small(&t, fx_inverse(best), fx_set1(0), fp4, y, e, e, s->n - p, encode_mxfp4, dst + p * 17);
    }
}

/* ---- super-blocks of 256 ---- */

/* Writes the blocks of a tile: one of 16 pieces or two of 8. */
INLINE void write_super(const tile *t, fx inverse, fx offset, alphabet a, layout y, fx sc, fx mn, const uint16_t *d, const uint16_t *m, int64_t left,
                        encode_super_fn *encode, int bytes, uint8_t *dst) {
    uint8_t q[16 * 32], scales[16], mins[16];
    tile_codes(t, inverse, offset, a, y, q);
    ix_store_u8(scales, ix_from(sc));
    ix_store_u8(mins, ix_from(mn));
    for (int l = 0; l < 16 && l < left; l += y.group, dst += bytes) encode(q + l * y.elems, scales + l, mins + l, d[l], m[l], dst);
}

/* sc_zero: the zero point of sub-scales in the file. */
INLINE void super_scales(const pieces *s, layout y, alphabet a, const float *top, int n, sub_range r, float sc_zero, const float *d_top, int n_d, int turns, const float *steps, int n_steps, encode_super_fn *encode, int bytes, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        sub_scales z;
        tile_load(&t, s, p, y);
        fit_sub_scales(&t, search_scale(&t, a, top, n, y), r, d_top, n_d, turns, steps, n_steps, a, y, &z);
        fx inverse = fx_inverse(fx_mul(z.sc, z.d));
        write_super(&t, inverse, fx_set1(0), a, y, fx_add(z.sc, fx_set1(sc_zero)), fx_set1(0), z.bits, z.bits, s->n - p, encode, bytes, dst + p / y.group * bytes);
    }
}

INLINE void super_affine(const pieces *s, layout y, alphabet a, const float *search, int n, int search_turns, float top, const float *tops, int n_tops,
                         int turns, const float *steps, int n_steps, encode_super_fn *encode, int bytes, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        affine_sums z;
        sub_affine u;
        tile_load(&t, s, p, y);
        affine f = search_affine(&t, a, search, n, search_turns, 1, y, &z);
        fit_sub_affine(&t, f, top, tops, n_tops, turns, steps, n_steps, a, y, &z, &u);
        fx inverse = fx_inverse(u.f.s);
        write_super(&t, inverse, fx_mul(u.f.m, inverse), a, y, u.sc, u.mn, u.d, u.m, s->n - p, encode, bytes, dst + p / y.group * bytes);
    }
}

static const float near3[] = {0, -1, 1};
static const float tops_q3_k[] = {-4, -3.6f, -4.4f, 3, 3.4f, -4.8f, 2.7f, -3.2f}, d_q3_k[] = {-32, 31, -31, 30, -30};
static const float tops_q6_k[] = {-32, -31, 31, 30.5f, -30}, d_q6_k[] = {-128};
static const float tops_iq4_xs[] = {-127, 113, -120, 106, -134, 120, -113, 100}, d_iq4_xs[] = {-32, 31};
static const float steps_q2_k[] = {0, -0.4f, 0.4f, -0.8f, 0.8f, 1.2f}, tops_q2_k[] = {15, 14, 13, 14.5f, 13.5f};
static const float steps_q4_k[] = {0, 0.6f, -0.6f, 1.2f, -1}, tops_q4_k[] = {63};
static const float steps_q5_k[] = {0, 0.7f, -0.7f}, tops_q5_k[] = {63};

INLINE void q2_k(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {16, 16, weighted};
    super_affine(s, y, two_bits, steps_q2_k, COUNT(steps_q2_k), 3, 15, tops_q2_k, COUNT(tops_q2_k), 2, near3, 3, encode_q2_k, 84, dst);
}
INLINE void q4_k(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {32, 8, weighted};
    super_affine(s, y, four_bits, steps_q4_k, COUNT(steps_q4_k), 2, 63, tops_q4_k, COUNT(tops_q4_k), 2, near3, 3, encode_q4_k, 144, dst);
}
INLINE void q5_k(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {32, 8, weighted};
    super_affine(s, y, five_bits, steps_q5_k, COUNT(steps_q5_k), 2, 63, tops_q5_k, COUNT(tops_q5_k), 2, near3, 3, encode_q5_k, 176, dst);
}
INLINE void q3_k(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {16, 16, weighted};
    super_scales(s, y, signed_3, tops_q3_k, COUNT(tops_q3_k), (sub_range){-32, 31, 1}, 32, d_q3_k, COUNT(d_q3_k), 2, near3, 3, encode_q3_k, 110, dst);
}
INLINE void q6_k(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {16, 16, weighted};
    super_scales(s, y, signed_6, tops_q6_k, COUNT(tops_q6_k), (sub_range){-128, 127, 1}, 0, d_q6_k, COUNT(d_q6_k), 2, near3, 3, encode_q6_k, 210, dst);
}
INLINE void iq4_xs(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {32, 8, weighted};
    super_scales(s, y, iq4, tops_iq4_xs, COUNT(tops_iq4_xs), (sub_range){-32, 31, 1}, 32, d_iq4_xs, COUNT(d_iq4_xs), 2, near3, 3, encode_iq4_xs, 136, dst);
}

/* ---- points with free signs ---- */

static const float tops_iq3_s[] = {15, 13.5f, 16.5f, 12, 10.5f}, d_iq3_s[] = {31};

/* Takes the signs off a tile: a byte of 8 elements, [piece][4]. */
INLINE void take_signs(tile *t, uint8_t *signs) {
    memset(signs, 0, 64);
    for (int e = 0; e < 32; e++)
        for (int l = 0; l < 16; l++) {
            signs[4 * l + e / 8] |= (uint8_t)((t->x[e][l] < 0) << (e & 7));
            t->x[e][l] = t->x[e][l] < 0 ? -t->x[e][l] : t->x[e][l];
        }
}

INLINE void iq3_s(const pieces *s, int weighted, uint8_t *dst) {
    const layout y = {32, 8, weighted};
    codebook book = {.points = iq3_s_grid};
    for (int i = 0; i < 512; i++) {
        const uint32_t p = iq3_s_grid[i];
        book.first[i] = (uint8_t)((p & 255) / 2 + 8 * ((p >> 8 & 255) / 2));
        book.second[i] = (uint8_t)((p >> 16 & 255) / 2 + 8 * ((p >> 24) / 2));
    }
    const alphabet a = {.book = &book};
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        sub_scales z;
        uint8_t signs[64], scales[16];
        uint16_t points[16 * 8];
        tile_load(&t, s, p, y);
        take_signs(&t, signs);
        fit_sub_scales(&t, search_scale(&t, a, tops_iq3_s, COUNT(tops_iq3_s), y), (sub_range){1, 31, 2}, d_iq3_s, COUNT(d_iq3_s), 2, near3, 3, a, y, &z);
        fx inverse = fx_inverse(fx_mul(z.sc, z.d));
        for (int e = 0; e < 32; e += 4) {
            int32_t index[16];
            nearest_points(&t, e, inverse, &book, weighted, index);
            for (int l = 0; l < 16; l++) points[8 * l + e / 4] = (uint16_t)index[l];
        }
        ix_store_u8(scales, ix_from(fx_mul(z.sc, fx_set1(0.5f))));
        for (int l = 0; l < 16 && p + l < s->n; l += 8) encode_iq3_s(points + 8 * l, signs + 4 * l, scales + l, z.bits[l], dst + (p + l) / 8 * 110);
    }
}

/* ---- the table ---- */

/* ENCODER(q4_k, 8): quantize_q4_k_LEVEL from q4_k, whose blocks are 8 pieces; with and without weights. */
#define ENCODER(type, group) \
    static void NAME(quantize_##type)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) { \
        const pieces s = {x, w, n * group, first * group, per_row * group}; \
        if (w) type(&s, 1, dst); \
        else type(&s, 0, dst); \
    }
ENCODER(q4_0, 1)
ENCODER(q4_1, 1)
ENCODER(q5_0, 1)
ENCODER(q5_1, 1)
ENCODER(q8_0, 1)
ENCODER(iq4_nl, 1)
ENCODER(mxfp4, 1)
ENCODER(q2_k, 16)
ENCODER(q3_k, 16)
ENCODER(q4_k, 8)
ENCODER(q5_k, 8)
ENCODER(q6_k, 16)
ENCODER(iq4_xs, 8)
ENCODER(iq3_s, 8)

static void NAME(quantize_f32)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) {
    (void)w, (void)first, (void)per_row;
    memcpy(dst, x, (size_t)n * 4);
}

static void NAME(quantize_f16)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) {
    (void)w, (void)first, (void)per_row;
    for (int64_t i = 0; i < n; i += 16) {
        uint16_t bits[16];
        fx_half(n - i < 16 ? fx_load_part(x + i, n - i) : fx_load(x + i), bits);
        memcpy(dst + 2 * i, bits, (size_t)(n - i < 16 ? n - i : 16) * 2);
    }
}

static void NAME(quantize_bf16)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) {
    (void)w, (void)first, (void)per_row;
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = f32_to_bits(x[i]), r = (u + 0x7fff + (u >> 16 & 1)) >> 16;
        uint16_t h = (uint16_t)((r & 0x7fff) == 0x7f80 ? r - 1 : r);         /* the largest finite one instead of infinity */
        memcpy(dst + 2 * i, &h, 2);
    }
}

#define SET_ENCODER(TYPE, type) KERNEL_LEVEL(k, quantize[QTYPE_##TYPE], "quantize_" #type, quantize_##type)
void NAME(init_quantize)(kernels *k) {
    SET_ENCODER(F32, f32);
    SET_ENCODER(F16, f16);
    SET_ENCODER(BF16, bf16);
    SET_ENCODER(Q4_0, q4_0);
    SET_ENCODER(Q4_1, q4_1);
    SET_ENCODER(Q5_0, q5_0);
    SET_ENCODER(Q5_1, q5_1);
    SET_ENCODER(Q8_0, q8_0);
    SET_ENCODER(Q2_K, q2_k);
    SET_ENCODER(Q3_K, q3_k);
    SET_ENCODER(Q4_K, q4_k);
    SET_ENCODER(Q5_K, q5_k);
    SET_ENCODER(Q6_K, q6_k);
    SET_ENCODER(IQ4_NL, iq4_nl);
    SET_ENCODER(IQ4_XS, iq4_xs);
    SET_ENCODER(IQ3_S, iq3_s);
    SET_ENCODER(MXFP4, mxfp4);
}
