/* Encoders of the float types and of blocks of 32 with one scale, for one level: include a simd_*.h first.
 *
 * What is minimised is the sum of w * (x - decoded)^2 with the scale as the file holds it. Given codes q, the best scale is a quotient of sums:
 * d = sum(w x q) / sum(w q^2), and it lowers the error by sum(w x q)^2 / sum(w q^2). Given d, the best codes are the nearest. So: codes for a
 * few scales, the best of them by that measure, then turns of both steps (Lloyd, "Least squares quantization in PCM", 1982). */
#include "quantize_tile.h"

/* Codes nearest to x / d, between low and high. */
INLINE fx codes(fx x, fx inverse, float low, float high) { return fx_round(fx_clamp(fx_mul(x, inverse), low, high)); }

/* Tries the scales (largest x) / top[i]; returns the best, fitted to its codes. */
INLINE fx search_scale(const tile *t, float low, float high, const float *top, int n, int weighted) {
    fx largest = fx_set1(0), best_num = fx_set1(0), best_den = fx_set1(1);
    for (int e = 0; e < 32; e++) {
        fx x = tile_x(t, e);
        largest = fx_less(fx_abs(largest), fx_abs(x), x, largest);
    }
    fx inverse = fx_inverse(largest);
    for (int i = 0; i < n; i++) {
        fx num = fx_set1(0), den = fx_set1(0), inv = fx_mul(fx_set1(top[i]), inverse);
        for (int e = 0; e < 32; e++) {
            fx x = tile_x(t, e), q = codes(x, inv, low, high), wq = fx_mul(tile_w(t, e, weighted), q);
            num = fx_fma(wq, x, num);
            den = fx_fma(wq, q, den);
        }
        fx score = fx_mul(fx_mul(num, num), best_den), old = fx_mul(fx_mul(best_num, best_num), den);
        best_num = fx_less(old, score, num, best_num);
        best_den = fx_less(old, score, den, best_den);
    }
    return fx_div(best_num, best_den);
}

/* Turns of codes and scale from d on, as stored; the best d met and its f16 bits. */
INLINE fx refine_scale(const tile *t, fx d, float low, float high, int turns, int weighted, uint16_t *bits) {
    fx best = fx_set1(0), best_error = fx_set1(0x1p100f), best_raw = fx_set1(0);
    for (int i = 0; i < turns; i++) {
        fx stored = fx_stored(d, t, bits), inv = fx_inverse(stored), num = fx_set1(0), den = fx_set1(0), error = fx_set1(0);
        for (int e = 0; e < 32; e++) {
            fx x = tile_x(t, e), w = tile_w(t, e, weighted), q = codes(x, inv, low, high), r = fx_sub(x, fx_mul(stored, q));
            fx wq = fx_mul(w, q);
            num = fx_fma(wq, x, num);
            den = fx_fma(wq, q, den);
            error = fx_fma(fx_mul(w, r), r, error);
        }
        best = fx_less(error, best_error, stored, best);
        best_raw = fx_less(error, best_error, d, best_raw);
        best_error = fx_min(error, best_error);
        d = fx_mul(num, fx_inverse(den));
    }
    fx_stored(best_raw, t, bits);
    return best;
}

static const float tops_q4_0[] = {-8, -7.6f, -8.4f, -7.2f, -8.8f, 7, 7.4f, -9.2f, 6.6f, -6.8f, 7.8f, -9.6f};
static const float tops_q8_0[] = {-128, -127, -126, -125};

INLINE void q4_0(const blocks *s, uint8_t *dst, int weighted) {
    for (int64_t b = 0; b < s->n; b += 16) {
        tile t;
        uint16_t bits[16];
        int32_t words[4][16];
        tile_load(&t, s, b, 32, weighted);
        fx d = search_scale(&t, -8, 7, tops_q4_0, sizeof tops_q4_0 / sizeof *tops_q4_0, weighted);
        fx inv = fx_inverse(refine_scale(&t, d, -8, 7, 3, weighted, bits));
        for (int i = 0; i < 4; i++) {
            ix c[4];
            for (int k = 0; k < 4; k++) {
                ix low = ix_from(fx_add(codes(tile_x(&t, 4 * i + k), inv, -8, 7), fx_set1(8)));
                ix high = ix_from(fx_add(codes(tile_x(&t, 4 * i + k + 16), inv, -8, 7), fx_set1(8)));
                c[k] = ix_or_shl(low, high, 4);
            }
            ix_store(words[i], ix_bytes(c[0], c[1], c[2], c[3]));
        }
        for (int l = 0; l < 16 && b + l < s->n; l++, dst += 18) {
            memcpy(dst, &bits[l], 2);
            for (int i = 0; i < 4; i++) memcpy(dst + 2 + 4 * i, &words[i][l], 4);
        }
    }
}

INLINE void q8_0(const blocks *s, uint8_t *dst, int weighted) {
    for (int64_t b = 0; b < s->n; b += 16) {
        tile t;
        uint16_t bits[16];
        int32_t words[8][16];
        tile_load(&t, s, b, 32, weighted);
        fx d = search_scale(&t, -128, 127, tops_q8_0, sizeof tops_q8_0 / sizeof *tops_q8_0, weighted);
        fx inv = fx_inverse(refine_scale(&t, d, -128, 127, 2, weighted, bits));
        for (int i = 0; i < 8; i++) {
            ix c[4];
            for (int k = 0; k < 4; k++) c[k] = ix_and(ix_from(codes(tile_x(&t, 4 * i + k), inv, -128, 127)), 255);
            ix_store(words[i], ix_bytes(c[0], c[1], c[2], c[3]));
        }
        for (int l = 0; l < 16 && b + l < s->n; l++, dst += 34) {
            memcpy(dst, &bits[l], 2);
            for (int i = 0; i < 8; i++) memcpy(dst + 2 + 4 * i, &words[i][l], 4);
        }
    }
}

/* ENCODER(q4_0): quantize_q4_0_LEVEL, with and without weights. */
#define ENCODER(type) \
    static void NAME(quantize_##type)(const float *x, const float *w, int64_t n, int64_t first, int64_t per_row, uint8_t *dst) { \
        const blocks s = {x, w, n, first, per_row}; \
        if (w) type(&s, dst, 1); \
        else type(&s, dst, 0); \
    }
ENCODER(q4_0)
ENCODER(q8_0)

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
    SET_ENCODER(Q8_0, q8_0);
}
