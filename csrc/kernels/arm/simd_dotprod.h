/* The vector vocabulary of the kernel templates, armv8.2 with FEAT_DotProd: four products a lane by sdot, whose second operand is a lane of activations. */
#ifndef PYLLM_SIMD_DOTPROD_H
#define PYLLM_SIMD_DOTPROD_H
#include "simd_128.h"

#ifndef LEVEL
#define LEVEL dotprod
#define COLS 4                          /* activation rows of a register tile, 4 or 8 */
#endif
enum { RUN = 8 };                       /* nothing is added up in int16 */

static inline vi dot_u(vi acc, vi w, const int8_t *a) {
    int32_t four;
    memcpy(&four, a, 4);
    return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(vdupq_n_s32(four)));
}
/* acc += products of n vectors of signed bytes with the 4n bytes at a, of which one load serves four. */
static inline vi dots_s(vi acc, const vi *w, const int8_t *a, int n) {
    for (; n >= 4; n -= 4, w += 4, a += 16) {
        int8x16_t x = vld1q_s8(a);
        acc = vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w[0]), x, 0);
        acc = vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w[1]), x, 1);
        acc = vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w[2]), x, 2);
        acc = vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w[3]), x, 3);
    }
    for (int i = 0; i < n; i++) acc = dot_u(acc, w[i], a + 4 * i);
    return acc;
}
static inline vi dots_u(vi acc, const vi *w, const int8_t *a, int n) { return dots_s(acc, w, a, n); }
#endif
