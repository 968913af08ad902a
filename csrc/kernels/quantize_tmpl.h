/* The encoders of one level: include a simd_*.h first. What is minimised is the sum of w * (x - decoded)^2 with every scale as the file holds
   it; how: quantize_scale.h, quantize_affine.h. The bytes of blocks are written by formats/encode_*.c. */
#include "../formats/decode.h"
#include "../formats/encode.h"
#include "../formats/iq_tables.h"
#include "quantize_affine.h"

#define LIST(...) {(const float[]){__VA_ARGS__}, (int)(sizeof(float[]){__VA_ARGS__} / sizeof(float))}

/* ---- alphabets ---- */

#define INTEGERS(low, high, zero) {low, high, zero, 0, 0, 0, 0}
#define TABLE(values, borders, codes) {0, 0, 0, values, borders, codes, 0}
static const float counted[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
static const float iq4_floats[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
static const float iq4_borders[16] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101};
/* 4-bit floats, doubled; zero stands twice in the list, as code 0. */
static const float fp4_floats[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12}, fp4_codes[16] = {15, 14, 13, 12, 11, 10, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7};
static const float fp4_borders[16] = {-10, -7, -5, -3.5f, -2.5f, -1.5f, -0.5f, 0, 0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};

/* ---- blocks of 32 ---- */

/* tries: what the largest value shall become before rounding (with a minimum: by how much the range is stretched), then `turns` of codes and fit. */
typedef struct small_type {
    alphabet a;
    list tries;
    int turns, bytes;
    encode_small_fn *encode;
} small_type;

static const small_type type_q4_0 = {INTEGERS(-8, 7, 8), LIST(-8, -7.6f, -8.4f, -7.2f, -8.8f, 7, 7.4f, -9.2f, 6.6f, -6.8f, 7.8f, -9.6f), 3, 18, encode_q4_0};
static const small_type type_q5_0 = {INTEGERS(-16, 15, 16), LIST(-16, -15.5f, -16.5f, -15, 15.5f, 15, -14.5f, 14.5f), 3, 22, encode_q5_0};
static const small_type type_q8_0 = {INTEGERS(-128, 127, 0), LIST(-128, -127, -126, -125), 2, 34, encode_q8_0};
static const small_type type_iq4_nl = {TABLE(iq4_floats, iq4_borders, counted), LIST(-127, 113, -120, 106, -134, 120, -113, 100, -142, 127), 4, 18, encode_q4_0};
static const small_type type_q4_1 = {INTEGERS(0, 15, 0), LIST(0, 0.5f, -0.5f, 1, -1, 1.5f, 2), 3, 20, encode_q4_1};
static const small_type type_q5_1 = {INTEGERS(0, 31, 0), LIST(0, 0.5f, -0.5f, 1, -1), 2, 24, encode_q5_1};
static const small_type type_mxfp4 = {TABLE(fp4_floats, fp4_borders, fp4_codes), {0, 0}, 0, 17, encode_mxfp4};

/* Writes up to 16 blocks from piece p on: codes of x * inverse + offset. */
static void write_small(const small_type *k, const tile *t, fx inverse, fx offset, const uint16_t *d, const uint16_t *m, const pieces *s, int64_t p, uint8_t *dst) {
    uint8_t q[16 * 32];
    tile_codes(t, &k->a, inverse, offset, q);
    k->encode(q, d, m, s->n - p < 16 ? (int)(s->n - p) : 16, dst + p * k->bytes);
}

static void small_scale(const small_type *k, const pieces *s, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t d[16];
        tile_load(&t, s, p, 32, 1);
        fx scale = refine_scale(&t, &k->a, search_scale(&t, &k->a, k->tries), k->turns, d);
        write_small(k, &t, fx_inverse(scale), fx_set1(0), d, d, s, p, dst);
    }
}

static void small_affine(const small_type *k, const pieces *s, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t d[16], m[16];
        affine_sums z;
        tile_load(&t, s, p, 32, 1);
        affine f = refine_affine(&t, &k->a, search_affine(&t, &k->a, k->tries, k->turns, 0, &z), 2, &z, d, m);
        fx inverse = fx_inverse(f.s);
        write_small(k, &t, inverse, fx_mul(f.m, inverse), d, m, s, p, dst);
    }
}

/* MXFP4: the scale is a power of two, 2^(e - 128) for the doubled values; all that can be best are tried. */
static void small_power(const small_type *k, const pieces *s, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        uint16_t e[16];
        float exponents[16];
        tile_load(&t, s, p, 32, 1);
        fx unit = fx_load(t.unit), best = fx_set1(0), least = fx_set1(0x1p100f);
        for (int i = 0; i < 5; i++) {
            fx d = fx_div(fx_max(fx_mul(unit, fx_set1(bits_f32((uint32_t)(125 - i) << 23))), fx_set1(0x1p-128f)), unit);
            scale_sums z;
            sum_scale(&t, &k->a, d, &z);
            best = fx_less(z.error, least, d, best);
            least = fx_min(z.error, least);
        }
        fx_store(exponents, fx_mul(best, unit));
        for (int l = 0; l < 16; l++) {
            uint32_t u = f32_to_bits(exponents[l]);
            e[l] = (uint16_t)(u >> 23 ? (u >> 23) + 1 : u >> 22);
        }
        write_small(k, &t, fx_inverse(best), fx_set1(0), e, e, s, p, dst);
    }
}

/* ---- super-blocks of 256 ---- */

/* tries, turns: of the pieces' own fits. r, zero: sub-scales, and what the file adds to them. tops, super_turns: of the fit of d. */
typedef struct super_type {
    alphabet a;
    list tries;
    int turns, elems, group;
    sub_range r;
    float zero;
    list tops;
    int super_turns, bytes;
    encode_super_fn *encode;
} super_type;

static const super_type type_q2_k = {INTEGERS(0, 3, 0), LIST(0, -0.4f, 0.4f, -0.8f, 0.8f, 1.2f), 3, 16, 16, {0, 15, 1}, 0, LIST(15, 14, 13, 14.5f, 13.5f), 2, 84, encode_q2_k};
static const super_type type_q4_k = {INTEGERS(0, 15, 0), LIST(0, 0.6f, -0.6f, 1.2f, -1), 2, 32, 8, {0, 63, 1}, 0, LIST(63), 2, 144, encode_q4_k};
static const super_type type_q5_k = {INTEGERS(0, 31, 0), LIST(0, 0.7f, -0.7f), 2, 32, 8, {0, 63, 1}, 0, LIST(63), 2, 176, encode_q5_k};
static const super_type type_q3_k = {INTEGERS(-4, 3, 4), LIST(-4, -3.6f, -4.4f, 3, 3.4f, -4.8f, 2.7f, -3.2f), 0, 16, 16, {-32, 31, 1}, 32, LIST(-32, 31, -31, 30, -30), 2, 110, encode_q3_k};
static const super_type type_q6_k = {INTEGERS(-32, 31, 32), LIST(-32, -31, 31, 30.5f, -30), 0, 16, 16, {-128, 127, 1}, 0, LIST(-128), 2, 210, encode_q6_k};
static const super_type type_iq4_xs = {TABLE(iq4_floats, iq4_borders, counted), LIST(-127, 113, -120, 106, -134, 120, -113, 100), 0, 32, 8, {-32, 31, 1}, 32, LIST(-32, 31), 2, 136, encode_iq4_xs};

/* Writes the blocks of a tile: one of 16 pieces or two of 8. */
static void write_super(const super_type *k, const tile *t, fx inverse, fx offset, fx sc, fx mn, const uint16_t *d, const uint16_t *m, const pieces *s, int64_t p, uint8_t *dst) {
    uint8_t q[16 * 32], scales[16], mins[16];
    tile_codes(t, &k->a, inverse, offset, q);
    ix_store_u8(scales, ix_from(sc));
    ix_store_u8(mins, ix_from(mn));
    for (int l = 0; l < 16 && p + l < s->n; l += k->group)
        k->encode(q + l * k->elems, scales + l, mins + l, d[l], m[l], dst + (p + l) / k->group * k->bytes);
}

static void super_scales(const super_type *k, const pieces *s, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        sub_scales z;
        tile_load(&t, s, p, k->elems, k->group);
        fit_sub_scales(&t, &k->a, search_scale(&t, &k->a, k->tries), k->r, k->tops, k->super_turns, &z);
        fx inverse = fx_inverse(fx_mul(z.sc, z.d));
        write_super(k, &t, inverse, fx_set1(0), fx_add(z.sc, fx_set1(k->zero)), fx_set1(0), z.bits, z.bits, s, p, dst);
    }
}

static void super_affine(const super_type *k, const pieces *s, uint8_t *dst) {
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        affine_sums z;
        sub_affine u;
        tile_load(&t, s, p, k->elems, k->group);
        affine f = search_affine(&t, &k->a, k->tries, k->turns, 1, &z);
        fit_sub_affine(&t, &k->a, f, k->r.high, k->tops, k->super_turns, &z, &u);
        fx inverse = fx_inverse(u.f.s);
        write_super(k, &t, inverse, fx_mul(u.f.m, inverse), u.sc, u.mn, u.d, u.m, s, p, dst);
    }
}

/* ---- points with free signs ---- */

/* Takes the signs off a tile: a byte of 8 elements, [piece][4]. */
static void take_signs(tile *t, uint8_t *signs) {
    memset(signs, 0, 64);
    for (int e = 0; e < 32; e++)
        for (int l = 0; l < 16; l++) {
            signs[4 * l + e / 8] |= (uint8_t)((t->x[e][l] < 0) << (e & 7));
            t->x[e][l] = t->x[e][l] < 0 ? -t->x[e][l] : t->x[e][l];
        }
}

static codebook open_book(const uint32_t *points) {
    codebook book = {.points = points};
    for (int i = 0; i < 512; i++) {
        const uint32_t p = points[i];
        book.first[i] = (uint8_t)((p & 255) / 2 + 8 * ((p >> 8 & 255) / 2));
        book.second[i] = (uint8_t)((p >> 16 & 255) / 2 + 8 * ((p >> 24) / 2));
    }
    return book;
}

static void super_points(const pieces *s, uint8_t *dst) {
    const codebook book = open_book(iq3_s_grid);
    const alphabet a = {.book = &book};
    const list tries = LIST(15, 13.5f, 16.5f, 12, 10.5f), tops = LIST(31);
    for (int64_t p = 0; p < s->n; p += 16) {
        tile t;
        sub_scales z;
        uint8_t signs[64], scales[16];
        uint16_t points[16 * 8];
        tile_load(&t, s, p, 32, 8);
        take_signs(&t, signs);
        fit_sub_scales(&t, &a, search_scale(&t, &a, tries), (sub_range){1, 31, 2}, tops, 2, &z);
        fx inverse = fx_inverse(fx_mul(z.sc, z.d));
        for (int e = 0; e < 32; e += 4) {
            int32_t index[16];
            nearest_points(&t, e, inverse, &book, index);
            for (int l = 0; l < 16; l++) points[8 * l + e / 4] = (uint16_t)index[l];
        }
        ix_store_u8(scales, ix_from(fx_mul(z.sc, fx_set1(0.5f))));
        for (int l = 0; l < 16 && p + l < s->n; l += 8) encode_iq3_s(points + 8 * l, signs + 4 * l, scales + l, z.bits[l], dst + (p + l) / 8 * 110);
    }
}

/* ---- the table ---- */

/* quantize_TYPE_LEVEL: a block is `group` pieces. */
#define ENCODER(type, group, call) \
    static void NAME(quantize_##type)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) { \
        const pieces s = {x, w, n * group, first * group, per_row * group}; \
        call; \
    }
#define SMALL(type, how) ENCODER(type, 1, how(&type_##type, &s, dst))
#define SUPER(type, how) ENCODER(type, type_##type.group, how(&type_##type, &s, dst))
SMALL(q4_0, small_scale)
SMALL(q5_0, small_scale)
SMALL(q8_0, small_scale)
SMALL(iq4_nl, small_scale)
SMALL(q4_1, small_affine)
SMALL(q5_1, small_affine)
SMALL(mxfp4, small_power)
SUPER(q3_k, super_scales)
SUPER(q6_k, super_scales)
SUPER(iq4_xs, super_scales)
SUPER(q2_k, super_affine)
SUPER(q4_k, super_affine)
SUPER(q5_k, super_affine)
ENCODER(iq3_s, 8, super_points(&s, dst))

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
