/* The vector vocabulary of lanes.h in C alone (vectors of GCC and Clang, which they lower to what the target has): 4 lanes a register. What the
   encoders (quantize_tmpl.h) need on a CPU without a level of its own, and the same bits as the others. */
#ifndef PYLLM_SIMD_REF_H
#define PYLLM_SIMD_REF_H
#include "../../base/math.h"
#include "../../formats/formats.h"

#define LEVEL ref
enum { ROWS = 4 };                      /* lanes of a register */
typedef int32_t vi __attribute__((vector_size(16)));
typedef float vf __attribute__((vector_size(16)));
typedef uint32_t vu __attribute__((vector_size(16)));

#define LANES for (int l = 0; l < ROWS; l++)
static inline vi vi_load(const void *p) { vi r; __builtin_memcpy(&r, p, sizeof r); return r; }
static inline void vi_store(void *p, vi v) { __builtin_memcpy(p, &v, sizeof v); }
static inline vi vi_set1(int32_t x) { return (vi){x, x, x, x}; }
static inline vi vi_and(vi a, vi b) { return a & b; }
static inline vi vi_or(vi a, vi b) { return a | b; }
static inline vi vi_add(vi a, vi b) { return a + b; }
static inline vi vi_sub(vi a, vi b) { return a - b; }
static inline vi vi_max(vi a, vi b) { return (a & (a > b)) | (b & ~(a > b)); }
static inline int32_t vi_max_lanes(vi a) { int32_t m = a[0]; LANES m = a[l] > m ? a[l] : m; return m; }
static inline int32_t vi_sum_lanes(vi a) { return a[0] + a[1] + a[2] + a[3]; }
static inline vi vi_shl(vi a, int n) { return (vi)((vu)a << n); }
static inline vi vi_sra(vi a, int n) { return a >> n; }
static inline vf vf_load(const float *p) { vf r; __builtin_memcpy(&r, p, sizeof r); return r; }
static inline void vf_store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
static inline vf vf_set1(float x) { return (vf){x, x, x, x}; }
static inline vf vf_add(vf a, vf b) { return a + b; }
static inline vf vf_sub(vf a, vf b) { return a - b; }
static inline vf vf_mul(vf a, vf b) { return a * b; }
static inline vf vf_div(vf a, vf b) { return a / b; }
static inline vf vf_bits(vi a) { return (vf)a; }
static inline vi vi_bits(vf a) { return (vi)a; }
static inline vf vf_less(vf x, vf y, vf a, vf b) { return vf_bits((vi_bits(a) & (x < y)) | (vi_bits(b) & ~(x < y))); }
static inline vf vf_max(vf a, vf b) { return vf_less(b, a, a, b); }
static inline vf vf_min(vf a, vf b) { return vf_less(a, b, a, b); }
static inline vf vf_from_vi(vi a) { return __builtin_convertvector(a, vf); }
static inline vi vi_from_vf(vf a) { return __builtin_convertvector(a, vi); }
/* Long, so not inline: software where the target has no fma. */
static __attribute__((noinline)) vf vf_fma(vf a, vf b, vf c) { LANES c[l] = fma32(a[l], b[l], c[l]); return c; }
static inline vf vf_fma1(vf a, const float *x, vf c) { return vf_fma(a, vf_set1(*x), c); }
static inline vf vf_f16(const void *p) { vf r; LANES r[l] = f16_to_f32(load_u16((const uint8_t *)p + 2 * l)); return r; }
static __attribute__((noinline)) void vf_store_f16(uint16_t *p, vf v) { LANES p[l] = f32_to_f16(v[l]); }
static inline vf vf_table(vi index, const float *table) { vf r; LANES r[l] = table[index[l]]; return r; }
static inline vi vi_i8(const void *p) { vi r; LANES r[l] = ((const int8_t *)p)[l]; return r; }
static inline void vi_store_i8(int8_t *p, vi v) { LANES p[l] = (int8_t)v[l]; }
#endif
