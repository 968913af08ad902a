/* The vector vocabulary of the kernel templates, NEON of armv8.0: 8-bit dot products by widening multiplications. */
#ifndef PYLLM_SIMD_NEON_H
#define PYLLM_SIMD_NEON_H
#include "simd_128.h"

#define LEVEL neon
#define COLS 4                          /* activation rows of a register tile, 4 or 8 */
enum { RUN = 2 };                       /* an int16 gets one product of a vector, of which formats reckon two */

/* acc += products of n vectors of signed bytes with the 4n bytes at a, first added up in int16: at most 32767 in magnitude (run of the format). Codes
   below 128 are the same signed and unsigned. */
static inline vi dots_s(vi acc, const vi *w, const int8_t *a, int n) {
    int16x8_t low = vdupq_n_s16(0), high = low;
    for (int i = 0; i < n; i++) {
        int32_t four;
        memcpy(&four, a + 4 * i, 4);
        int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(four)), y = vreinterpretq_s8_s32(w[i]);
        low = i ? vmlal_s8(low, vget_low_s8(y), vget_low_s8(x)) : vmull_s8(vget_low_s8(y), vget_low_s8(x));
        high = i ? vmlal_high_s8(high, y, x) : vmull_high_s8(y, x);
    }
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
static inline vi dots_u(vi acc, const vi *w, const int8_t *a, int n) { return dots_s(acc, w, a, n); }
static inline vi dot_u(vi acc, vi w, const int8_t *a) { return dots_s(acc, &w, a, 1); }
#endif
