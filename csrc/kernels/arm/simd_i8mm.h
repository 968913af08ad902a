/* The vector vocabulary of the kernel templates, armv8.6 with FEAT_I8MM: one activation row by sdot, more by smmla, which multiplies 2 rows by 2 columns. */
#ifndef PYLLM_SIMD_I8MM_H
#define PYLLM_SIMD_I8MM_H
#define LEVEL i8mm
#define COLS 8                          /* activation rows of a register tile, 4 or 8 */
#define PAIRS
#include "simd_dotprod.h"

/* acc + 2 rows by 8 signed bytes times 2 columns by 8 signed bytes: [row column, row column', row' column, row' column']. */
static inline vi vi_mmla(vi acc, vi w, vi a) { return vmmlaq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a)); }
static inline vi vi_set2(const int32_t *p) { return vreinterpretq_s32_s64(vdupq_n_s64(*(const int64_t *)p)); }
static inline vi vi_zip_low32(vi a, vi b) { return vzip1q_s32(a, b); }
static inline vi vi_zip_high32(vi a, vi b) { return vzip2q_s32(a, b); }
static inline vi vi_even32(vi a, vi b) { return vuzp1q_s32(a, b); }
static inline vi vi_odd32(vi a, vi b) { return vuzp2q_s32(a, b); }
#endif
