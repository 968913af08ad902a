/* The vector vocabulary of the kernel templates, AVX-VNNI (Alder Lake and later): simd_256.h and 8-bit dot products by the 256-bit vpdpbusd.
 *
 * The instruction has two encodings: VEX, which AVX-VNNI CPUs have, and EVEX, which those with AVX512-VNNI and AVX512-VL have. The kernel test
 * builds this file with PYLLM_AVXVNNI_EVEX to run it on the latter; nothing else in it depends on the encoding. */
#ifndef PYLLM_SIMD_AVXVNNI_H
#define PYLLM_SIMD_AVXVNNI_H
#include "simd_256.h"

#define LEVEL avxvnni
enum { RUN = 1 };
#define WIDE_DOT                        /* dot_u is exact for all unsigned bytes */
#ifdef PYLLM_AVXVNNI_EVEX
#define VNNI(name) "%{evex%} " name " %2, %1, %0"
#else
#define VNNI(name) "%{vex%} " name " %2, %1, %0"
#endif

/* acc += dot of 4 bytes a lane with the 4 signed bytes at a. dot_u: unsigned bytes. dots_s: signed bytes that went through vi_signed, with the
   accumulator started at signed_start(sum of all a): vpdpbusd wants unsigned, so the bytes carry an offset of 128. */
static inline vi dot_u(vi acc, vi w, const int8_t *a) {
    __asm__(VNNI("vpdpbusd") : "+x"(acc) : "x"(w), "x"(_mm256_set1_epi32(*(const int32_t *)a)));
    return acc;
}
static inline vi vi_signed(vi w) { return _mm256_xor_si256(w, _mm256_set1_epi8((char)0x80)); }
/* The same of n vectors, in two chains: an instruction waits five cycles for the one before it. */
static inline vi dots_u(vi acc, const vi *w, const int8_t *a, int n) {
    vi odd = _mm256_setzero_si256();
    for (int i = 0; i < n; i++)
        if (i % 2) odd = dot_u(odd, w[i], a + 4 * i);
        else acc = dot_u(acc, w[i], a + 4 * i);
    return n > 1 ? _mm256_add_epi32(acc, odd) : acc;
}
static inline vi dots_s(vi acc, const vi *w, const int8_t *a, int n) { return dots_u(acc, w, a, n); }
static inline int32_t signed_start(int32_t sum) { return -128 * sum; }
/* acc += dot of 2 int16 a lane with the 2 at a. */
static inline vi dot_pairs(vi acc, vi w, const int16_t *a) {
    __asm__(VNNI("vpdpwssd") : "+x"(acc) : "x"(w), "x"(_mm256_set1_epi32(*(const int32_t *)a)));
    return acc;
}
/* acc += n vectors of pairs, of vi_pairs, times the 2n int16 at a. */
static inline vi dots_pairs(vi acc, const vi *w, const int16_t *a, int n) {
    for (int i = 0; i < n; i++) acc = dot_pairs(acc, w[i], a + 2 * i);
    return acc;
}
#endif
