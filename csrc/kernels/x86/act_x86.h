/* quantize_act with 256-bit registers, for every x86 level: the eight blocks of 32 of a unit go side by side through one tree of maxima and one of
 * sums, which a block by itself would wait for. Include a simd_*.h first. Rule and order of operations: docs/numerics.md, section 2. */
#include "../kernels.h"
#include "../lanes.h"

#define OWN_QUANTIZE_ACT

/* Lane b of either half: OP over the four lanes of that half of t[b], b < 4. */
#define TREE_4(OP, t, out) do { \
    __m256i a_ = OP(_mm256_unpacklo_epi32((t)[0], (t)[1]), _mm256_unpackhi_epi32((t)[0], (t)[1])); \
    __m256i b_ = OP(_mm256_unpacklo_epi32((t)[2], (t)[3]), _mm256_unpackhi_epi32((t)[2], (t)[3])); \
    *(out) = OP(_mm256_unpacklo_epi64(a_, b_), _mm256_unpackhi_epi64(a_, b_)); \
} while (0)

/* The largest |x| of 32 values in each of 8 lanes; absolute values order like their bits. */
INLINE __m256i largest_lanes(const float *x) {
    __m256i top = _mm256_setzero_si256(), magnitude = _mm256_set1_epi32(0x7fffffff);
    for (int i = 0; i < 32; i += 8) top = _mm256_max_epi32(top, _mm256_and_si256(_mm256_castps_si256(_mm256_loadu_ps(x + i)), magnitude));
    return top;
}

/* 32 values times inv, rounded to nearest even. */
INLINE __m256i codes_32(const float *x, __m256 inv) {
    __m256i v[4];
    for (int i = 0; i < 4; i++) v[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * i), inv));
    __m256i q = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
    return _mm256_permutevar8x32_epi32(q, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* sum16 and sum32 of four blocks of codes. */
INLINE void sums_of(const __m256i *q, int16_t *sum16, int16_t *sum32) {
    __m256i by4[4], r;
    for (int b = 0; b < 4; b++) by4[b] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q[b]), _mm256_set1_epi16(1));
    TREE_4(_mm256_add_epi32, by4, &r);          /* low half: the first 16 of each block, high half: the others */
    __m128i lo = _mm256_castsi256_si128(r), hi = _mm256_extracti128_si256(r, 1), both = _mm_add_epi32(lo, hi);
    __m128i order = _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15);
    _mm_storeu_si128((__m128i *)sum16, _mm_shuffle_epi8(_mm_packs_epi32(lo, hi), order));
    _mm_storel_epi64((__m128i *)sum32, _mm_packs_epi32(both, both));
}

/* The first `blocks` blocks of 32 of a unit, with a scale each or (block 256) all with one. */
static void quantize_unit(const float *x, int blocks, int block, act_unit *a) {
    __m256i top[8], most, q[8];
    for (int b = 0; b < 8; b++) top[b] = b < blocks ? largest_lanes(x + 32 * b) : _mm256_setzero_si256();
    if (block == 256) {
        for (int b = 1; b < 8; b++) top[0] = _mm256_max_epi32(top[0], top[b]);
        for (int b = 1; b < 8; b++) top[b] = top[0];
    }
    __m256i low, high;
    TREE_4(_mm256_max_epi32, top, &low);
    TREE_4(_mm256_max_epi32, top + 4, &high);
    most = _mm256_max_epi32(_mm256_permute2x128_si256(low, high, 0x20), _mm256_permute2x128_si256(low, high, 0x31));

    __m256 amax = _mm256_castsi256_ps(most), full = _mm256_set1_ps(127.0f);
    __m256 tiny = _mm256_cmp_ps(amax, _mm256_set1_ps(1e-30f), _CMP_LT_OQ);
    __m256 odd = _mm256_castsi256_ps(_mm256_cmpgt_epi32(most, _mm256_set1_epi32(0x7f7fffff)));     /* not finite */
    float inv[8];
    _mm256_storeu_ps(inv, _mm256_andnot_ps(_mm256_or_ps(tiny, odd), _mm256_div_ps(full, amax)));
    __m256 d = _mm256_blendv_ps(_mm256_andnot_ps(tiny, _mm256_div_ps(amax, full)), _mm256_set1_ps(bits_f32(0x7fc00000u)), odd);
    if (block == 256) d = _mm256_blend_ps(d, _mm256_setzero_ps(), 0xfe);
    _mm256_storeu_ps(a->d, d);

    int not_finite = _mm256_movemask_ps(odd);
    for (int b = 0; b < 8; b++) {
        q[b] = b < blocks && !(not_finite >> b & 1) ? codes_32(x + 32 * b, _mm256_set1_ps(inv[b])) : _mm256_setzero_si256();
        _mm256_storeu_si256((__m256i *)(a->q + 32 * b), q[b]);
    }
    sums_of(q, a->sum16, a->sum32);
    sums_of(q + 4, a->sum16 + 8, a->sum32 + 4);
}

static void NAME(quantize_act)(const float *x, int64_t ldx, int m, int64_t k, int block, act_unit *dst) {
    for (int64_t u = 0; u < (k + 255) / 256; u++) {
        int blocks = k - u * 256 < 256 ? (int)(k - u * 256) / 32 : 8;
        for (int c = 0; c < m; c++) quantize_unit(x + c * ldx + u * 256, blocks, block, &dst[u * m + c]);
    }
}
