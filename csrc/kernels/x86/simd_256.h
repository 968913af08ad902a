/* The vector vocabulary that the 256-bit levels share, AVX2 with FMA and F16C: 8 lanes a register, 16 as two of them. The 8-bit dot products are the level's own. */
#ifndef PYLLM_SIMD_256_H
#define PYLLM_SIMD_256_H
#include <immintrin.h>
#include <stdint.h>

enum { ROWS = 8 };                      /* lanes of a register */
#define COLS 4                          /* activation rows of a register tile, 4 or 8 */
typedef __m256i vi;
typedef __m256 vf;

static inline vi vi_keep(vi v) { __asm__("" : "+x"(v)); return v; }
static inline vi vi_load(const void *p) { return _mm256_loadu_si256(p); }
static inline void vi_store(void *p, vi v) { _mm256_storeu_si256(p, v); }
static inline vi vi_set1(int32_t x) { return _mm256_set1_epi32(x); }
static inline vi vi_and(vi a, vi b) { return _mm256_and_si256(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm256_or_si256(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm256_xor_si256(a, b); }
static inline vi vi_add(vi a, vi b) { return _mm256_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm256_sub_epi32(a, b); }
static inline vi vi_sub16(vi a, vi b) { return _mm256_sub_epi16(a, b); }
static inline vi vi_mul16(vi a, int n) { return _mm256_mullo_epi16(a, _mm256_set1_epi16((short)n)); }
static inline vi vi_add_u8(vi a, vi b) { return _mm256_add_epi8(a, b); }
static inline vi vi_subs_u8(vi a, vi b) { return _mm256_subs_epu8(a, b); }
static inline vi vi_avg_u8(vi a, vi b) { return _mm256_avg_epu8(a, b); }
static inline vi vi_mul(vi a, vi b) { return _mm256_mullo_epi32(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm256_max_epi32(a, b); }
static inline int32_t vi_max_lanes(vi a) {
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
static inline int32_t vi_sum_lanes(vi a) {
    __m128i m = _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
static inline vi vi_shl(vi a, int n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi vi_shr(vi a, int n) { return _mm256_srl_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi vi_sra(vi a, int n) { return _mm256_sra_epi32(a, _mm_cvtsi32_si128(n)); }
/* The high nibbles of all bytes. */
static inline vi vi_high4(vi a) { return vi_and(vi_shr(a, 4), vi_set1(0x0f0f0f0f)); }
/* Unsigned bytes 2*half and 2*half + 1 of every lane as what dots_pairs takes: a lane's two int16. */
static inline vi vi_pairs(vi a, int half) { return _mm256_shuffle_epi8(a, _mm256_broadcastsi128_si256(_mm_add_epi8(_mm_setr_epi8(
    0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13, -128), _mm_set1_epi16((short)(2 * half))))); }
static inline vi vi_lookup(vi index, const int8_t *table) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}

/* Bytes of ones where bits are set: bit 4r+j is that of byte j of lane r. vi_negate: -v there, in what vi_signed makes of v, too. */
static inline vi vi_from_bits(const void *p) {
    const vi byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const vi bit = _mm256_set1_epi64x((long long)0x8040201008040201u);
    vi v = _mm256_shuffle_epi8(_mm256_set1_epi32(*(const int32_t *)p), byte);
    return _mm256_cmpeq_epi8(_mm256_and_si256(v, bit), bit);
}
static inline vi vi_negate(vi v, const void *bits) {
    vi m = vi_from_bits(bits);
    return _mm256_sub_epi8(_mm256_xor_si256(v, m), m);
}
/* ROWS numbers of 4 bits. */
static inline vi vi_nibbles(const void *p) {
    vi v = _mm256_srlv_epi32(_mm256_set1_epi32(*(const int32_t *)p), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    return _mm256_and_si256(v, _mm256_set1_epi32(15));
}
/* The bytes of every 4 lanes by turns: those of the first 2 lanes, and of the last. */
static inline vi vi_zip_low(vi a, vi b) { return _mm256_unpacklo_epi8(a, b); }
static inline vi vi_zip_high(vi a, vi b) { return _mm256_unpackhi_epi8(a, b); }
/* Entries of a table, one a lane; of 8 bytes: the first and the last 4. */
static inline __m128i two_entries(const uint64_t *table, unsigned a, unsigned b) {
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(table + a))), (const __m64 *)(table + b)));
}
static inline void vi_table8(const uint64_t *table, const unsigned *index, vi *low, vi *high) {
    vi a = _mm256_set_m128i(two_entries(table, index[4], index[5]), two_entries(table, index[0], index[1]));
    vi b = _mm256_set_m128i(two_entries(table, index[6], index[7]), two_entries(table, index[2], index[3]));
    *low = _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
    *high = _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xdd));
}
static inline __m128i four_entries(const uint32_t *table, const unsigned *index) {
    __m128i v = _mm_cvtsi32_si128((int)table[index[0]]);
    v = _mm_insert_epi32(v, (int)table[index[1]], 1);
    v = _mm_insert_epi32(v, (int)table[index[2]], 2);
    return _mm_insert_epi32(v, (int)table[index[3]], 3);
}
static inline vi vi_table4(const uint32_t *table, const unsigned *index) {
    return _mm256_set_m128i(four_entries(table, index + 4), four_entries(table, index));
}

static inline vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
static inline vf vf_set1(float x) { return _mm256_set1_ps(x); }
static inline vf vf_add(vf a, vf b) { return _mm256_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm256_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
static inline vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm256_fnmadd_ps(a, b, c); }
static inline vf vf_fma1(vf a, const float *x, vf c) { return _mm256_fmadd_ps(a, _mm256_broadcast_ss(x), c); }
static inline vf vf_from_vi(vi a) { return _mm256_cvtepi32_ps(a); }
static inline vi vi_from_vf(vf a) { return _mm256_cvttps_epi32(a); }
static inline vf vf_bits(vi a) { return _mm256_castsi256_ps(a); }
static inline vi vi_bits(vf a) { return _mm256_castps_si256(a); }
static inline vf vf_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
/* 4-bit exponents and 3-bit mantissas as f16 with that exponent: 2^-7 of the value, subnormals included; 127, which is none, gives 0. */
static inline vf vf_ue4m3(const void *p) {
    __m128i e = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p)), h = _mm_and_si128(_mm_slli_epi16(e, 7), _mm_set1_epi16(0x3f80));
    return _mm256_cvtph_ps(_mm_andnot_si128(_mm_cmpeq_epi16(e, _mm_set1_epi16(127)), h));
}
static inline vf vf_bf16(const void *p) { return vf_bits(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16)); }
static inline vi vi_u16(const void *p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline vi vi_u8(const void *p) { return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
static inline vi vi_i8(const void *p) { return _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)); }
static inline void vi_store_i8(int8_t *p, vi v) {
    __m128i w = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64((__m128i *)p, _mm_packs_epi16(w, w));
}
static inline void vf_store_f16(uint16_t *p, vf v) { _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
static inline vf vf_table(vi index, const float *table) {
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index), high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
}
static inline vf vf_less(vf x, vf y, vf a, vf b) { return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ)); }
#endif
