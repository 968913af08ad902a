/* The vector vocabulary of the kernel templates, AVX-512 with VNNI: 16 lanes in one register. See simd_avx2.h for the same in halves. */
#ifndef PYLLM_SIMD_AVX512VNNI_H
#define PYLLM_SIMD_AVX512VNNI_H
#include <immintrin.h>
#include <stdint.h>

#define LEVEL avx512vnni
enum { RUN = 1 };
#define WIDE_DOT                        /* dot_u is exact for all unsigned bytes */
enum { ROWS = 16 };                     /* lanes of a register */
#define COLS 8                          /* activation rows of a register tile, 4 or 8 */
typedef __m512i vi;                     /* int32 lanes, or their bytes */
typedef __m512 vf;

static inline vi vi_keep(vi v) { __asm__("" : "+v"(v)); return v; }
static inline vi vi_load(const void *p) { return _mm512_loadu_si512(p); }
static inline void vi_store(void *p, vi v) { _mm512_storeu_si512(p, v); }
static inline vi vi_set1(int32_t x) { return _mm512_set1_epi32(x); }
static inline vi vi_and(vi a, vi b) { return _mm512_and_si512(a, b); }
static inline vi vi_or(vi a, vi b) { return _mm512_or_si512(a, b); }
static inline vi vi_xor(vi a, vi b) { return _mm512_xor_si512(a, b); }
static inline vi vi_add(vi a, vi b) { return _mm512_add_epi32(a, b); }
static inline vi vi_sub(vi a, vi b) { return _mm512_sub_epi32(a, b); }
static inline vi vi_add_u8(vi a, vi b) { return _mm512_add_epi8(a, b); }
static inline vi vi_subs_u8(vi a, vi b) { return _mm512_subs_epu8(a, b); }
static inline vi vi_avg_u8(vi a, vi b) { return _mm512_avg_epu8(a, b); }
static inline vi vi_mul(vi a, vi b) { return _mm512_mullo_epi32(a, b); }
static inline vi vi_max(vi a, vi b) { return _mm512_max_epi32(a, b); }
static inline int32_t vi_max_lanes(vi a) { return _mm512_reduce_max_epi32(a); }
static inline int32_t vi_sum_lanes(vi a) { return _mm512_reduce_add_epi32(a); }
static inline vi vi_shl(vi a, int n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi vi_shr(vi a, int n) { return _mm512_srl_epi32(a, _mm_cvtsi32_si128(n)); }
static inline vi vi_sra(vi a, int n) { return _mm512_sra_epi32(a, _mm_cvtsi32_si128(n)); }
/* The high nibbles of all bytes. */
static inline vi vi_high4(vi a) { return vi_and(vi_shr(a, 4), vi_set1(0x0f0f0f0f)); }
/* Unsigned bytes 2*half and 2*half + 1 of every lane as what dots_pairs takes: a lane's two int16. */
static inline vi vi_pairs(vi a, int half) { return _mm512_shuffle_epi8(a, _mm512_broadcast_i32x4(_mm_add_epi8(_mm_setr_epi8(
    0, -128, 1, -128, 4, -128, 5, -128, 8, -128, 9, -128, 12, -128, 13, -128), _mm_set1_epi16((short)(2 * half))))); }
/* Bytes 0..15 -> table values. */
static inline vi vi_lookup(vi index, const int8_t *table) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), index);
}

/* acc += dot of 4 bytes a lane with the 4 signed bytes at a. dot_u: unsigned bytes. dots_s: signed bytes that went through vi_signed, with the
   accumulator started at signed_start(sum of all a): vpdpbusd wants unsigned, so the bytes carry an offset of 128. */
static inline vi dot_u(vi acc, vi w, const int8_t *a) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t *)a));
    return acc;
}
static inline vi vi_signed(vi w) { return _mm512_xor_si512(w, _mm512_set1_epi8((char)0x80)); }
/* The same of n vectors. */
static inline vi dots_u(vi acc, const vi *w, const int8_t *a, int n) {
    for (int i = 0; i < n; i++) acc = dot_u(acc, w[i], a + 4 * i);
    return acc;
}
static inline vi dots_s(vi acc, const vi *w, const int8_t *a, int n) { return dots_u(acc, w, a, n); }
static inline int32_t signed_start(int32_t sum) { return -128 * sum; }
/* acc += dot of 2 int16 a lane with the 2 at a. */
static inline vi dot_pairs(vi acc, vi w, const int16_t *a) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(w), "m"(*(const int32_t *)a));
    return acc;
}
/* acc += n vectors of pairs, of vi_pairs, times the 2n int16 at a. */
static inline vi dots_pairs(vi acc, const vi *w, const int16_t *a, int n) {
    for (int i = 0; i < n; i++) acc = dot_pairs(acc, w[i], a + 2 * i);
    return acc;
}

/* Bytes of ones where bits are set: bit 4r+j is that of byte j of lane r. vi_negate: -v there, in what vi_signed makes of v, too. */
static inline vi vi_from_bits(const void *p) { return _mm512_movm_epi8(*(const __mmask64 *)p); }
static inline vi vi_negate(vi v, const void *bits) { return _mm512_mask_sub_epi8(v, *(const __mmask64 *)bits, _mm512_setzero_si512(), v); }
/* ROWS numbers of 4 bits. */
static inline vi vi_nibbles(const void *p) {
    const int32_t *half = p;
    vi v = _mm512_mask_set1_epi32(_mm512_set1_epi32(half[0]), 0xff00, half[1]);
    v = _mm512_srlv_epi32(v, _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28));
    return _mm512_and_si512(v, _mm512_set1_epi32(15));
}
/* The bytes of every 4 lanes by turns: those of the first 2 lanes, and of the last. */
static inline vi vi_zip_low(vi a, vi b) { return _mm512_unpacklo_epi8(a, b); }
static inline vi vi_zip_high(vi a, vi b) { return _mm512_unpackhi_epi8(a, b); }
/* Entries of a table, one a lane; of 8 bytes: the first and the last 4. */
static inline __m128i two_entries(const uint64_t *table, unsigned a, unsigned b) {
    return _mm_castps_si128(_mm_loadh_pi(_mm_castsi128_ps(_mm_loadl_epi64((const __m128i *)(table + a))), (const __m64 *)(table + b)));
}
/* Pairs at, at+4, at+8 and at+12 of neighbouring lanes. */
static inline __m512 pairs_of_entries(const uint64_t *table, const unsigned *index, int at) {
    __m256i a = _mm256_set_m128i(two_entries(table, index[at + 4], index[at + 5]), two_entries(table, index[at], index[at + 1]));
    __m256i b = _mm256_set_m128i(two_entries(table, index[at + 12], index[at + 13]), two_entries(table, index[at + 8], index[at + 9]));
    return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
}
static inline void vi_table8(const uint64_t *table, const unsigned *index, vi *low, vi *high) {
    __m512 a = pairs_of_entries(table, index, 0), b = pairs_of_entries(table, index, 2);
    *low = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88));
    *high = _mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd));
}
static inline __m128i four_entries(const uint32_t *table, const unsigned *index) {
    __m128i v = _mm_cvtsi32_si128((int)table[index[0]]);
    v = _mm_insert_epi32(v, (int)table[index[1]], 1);
    v = _mm_insert_epi32(v, (int)table[index[2]], 2);
    return _mm_insert_epi32(v, (int)table[index[3]], 3);
}
static inline vi vi_table4(const uint32_t *table, const unsigned *index) {
    __m256i a = _mm256_set_m128i(four_entries(table, index + 4), four_entries(table, index));
    __m256i b = _mm256_set_m128i(four_entries(table, index + 12), four_entries(table, index + 8));
    return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1);
}

static inline vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
static inline vf vf_set1(float x) { return _mm512_set1_ps(x); }
static inline vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
static inline vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
static inline vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
static inline vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
static inline vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }         /* a > b ? a : b */
static inline vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }         /* a < b ? a : b */
static inline vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
static inline vf vf_fnma(vf a, vf b, vf c) { return _mm512_fnmadd_ps(a, b, c); }
/* c + a * x with x broadcast from memory. */
static inline vf vf_fma1(vf a, const float *x, vf c) {
    __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(c) : "v"(a), "m"(*x));
    return c;
}
static inline vf vf_from_vi(vi a) { return _mm512_cvtepi32_ps(a); }
static inline vi vi_from_vf(vf a) { return _mm512_cvttps_epi32(a); }
static inline vf vf_bits(vi a) { return _mm512_castsi512_ps(a); }
static inline vi vi_bits(vf a) { return _mm512_castps_si512(a); }
static inline vf vf_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* 4-bit exponents and 3-bit mantissas as f16 with that exponent: 2^-7 of the value, subnormals included; 127, which is none, gives 0. */
static inline vf vf_ue4m3(const void *p) {
    __m256i e = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)), h = _mm256_and_si256(_mm256_slli_epi16(e, 7), _mm256_set1_epi16(0x3f80));
    return _mm512_maskz_cvtph_ps(_mm256_cmpneq_epi16_mask(e, _mm256_set1_epi16(127)), h);
}
static inline vf vf_bf16(const void *p) { return vf_bits(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16)); }
static inline vi vi_u16(const void *p) { return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)); }
static inline vi vi_u8(const void *p) { return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline vi vi_i8(const void *p) { return _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }
static inline void vi_store_i8(int8_t *p, vi v) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(v)); }
static inline void vf_store_f16(uint16_t *p, vf v) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
/* table[index], 16 floats. */
static inline vf vf_table(vi index, const float *table) { return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table)); }
/* x < y ? a : b, false for NaN. */
static inline vf vf_less(vf x, vf y, vf a, vf b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a); }
#endif
