/* The vector vocabulary of the kernel templates, AVX2: simd_256.h and 8-bit dot products by vpmaddubsw. */
#ifndef PYLLM_SIMD_AVX2_H
#define PYLLM_SIMD_AVX2_H
#include "simd_256.h"

#define LEVEL avx2
enum { RUN = 1 };                       /* vectors of products that add up in int16 for each that a format's run allows */

/* vpmaddubsw adds two products in int16: bytes up to 127 cannot saturate (127*127*2 < 32768). Signed bytes go in as |w| (128 for -128, which
   fits: 128*127*2 = 32512) against a with w's sign; a is never -128. */
static inline vi dot_u(vi acc, vi w, const int8_t *a) {
    vi x = _mm256_set1_epi32(*(const int32_t *)a);
    return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
static inline vi vi_signed(vi w) { return w; }
/* The same of n vectors whose products add up in int16: the widening to int32 is paid once. */
static inline vi products_u(vi w, const int8_t *a) { return _mm256_maddubs_epi16(w, _mm256_set1_epi32(*(const int32_t *)a)); }
static inline vi products_s(vi w, const int8_t *a) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(_mm256_set1_epi32(*(const int32_t *)a), w));
}
#define DOTS_BY                         /* the widening multiplies: by 1, or as well by a sub-scale, given as a lane's two int16 */
static inline vi dots_u_by(vi acc, const vi *w, const int8_t *a, int n, vi by) {
    vi sum = products_u(w[0], a);
    for (int i = 1; i < n; i++) sum = _mm256_add_epi16(sum, products_u(w[i], a + 4 * i));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(sum, by));
}
static inline vi dots_s_by(vi acc, const vi *w, const int8_t *a, int n, vi by) {
    vi sum = products_s(w[0], a);
    for (int i = 1; i < n; i++) sum = _mm256_add_epi16(sum, products_s(w[i], a + 4 * i));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(sum, by));
}
static inline vi dots_u(vi acc, const vi *w, const int8_t *a, int n) { return dots_u_by(acc, w, a, n, _mm256_set1_epi16(1)); }
static inline vi dots_s(vi acc, const vi *w, const int8_t *a, int n) { return dots_s_by(acc, w, a, n, _mm256_set1_epi16(1)); }
static inline int32_t signed_start(int32_t sum) { (void)sum; return 0; }
static inline vi dot_pairs(vi acc, vi w, const int16_t *a) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(w, _mm256_set1_epi32(*(const int32_t *)a)));
}
/* acc += n vectors of pairs, of vi_pairs, times the 2n int16 at a. */
static inline vi dots_pairs(vi acc, const vi *w, const int16_t *a, int n) {
    for (int i = 0; i < n; i++) acc = dot_pairs(acc, w[i], a + 2 * i);
    return acc;
}
#endif
