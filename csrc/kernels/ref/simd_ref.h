/* The vector vocabulary of lanes.h in plain C, 16 lanes: what the encoders (quantize_tmpl.h) need on a CPU without a level of its own, and
   the same bits as the others. */
#ifndef PYLLM_SIMD_REF_H
#define PYLLM_SIMD_REF_H
#include "../../base/math.h"
#include "../../formats/formats.h"

#define LEVEL ref
enum { ROWS = 16 };                     /* lanes of a register */
typedef struct { int32_t l[ROWS]; } vi;
typedef struct { float l[ROWS]; } vf;

#define LANES for (int l = 0; l < ROWS; l++)
static inline vi vi_load(const void *p) { vi r; __builtin_memcpy(&r, p, sizeof r); return r; }
static inline void vi_store(void *p, vi v) { __builtin_memcpy(p, &v, sizeof v); }
static inline vi vi_set1(int32_t x) { vi r; LANES r.l[l] = x; return r; }
static inline vi vi_and(vi a, vi b) { LANES a.l[l] &= b.l[l]; return a; }
static inline vi vi_or(vi a, vi b) { LANES a.l[l] |= b.l[l]; return a; }
static inline vi vi_add(vi a, vi b) { LANES a.l[l] += b.l[l]; return a; }
static inline vi vi_sub(vi a, vi b) { LANES a.l[l] -= b.l[l]; return a; }
static inline vi vi_max(vi a, vi b) { LANES a.l[l] = a.l[l] > b.l[l] ? a.l[l] : b.l[l]; return a; }
static inline int32_t vi_max_lanes(vi a) { int32_t m = a.l[0]; LANES m = a.l[l] > m ? a.l[l] : m; return m; }
static inline int32_t vi_sum_lanes(vi a) { int32_t s = 0; LANES s += a.l[l]; return s; }
static inline vi vi_shl(vi a, int n) { LANES a.l[l] = (int32_t)((uint32_t)a.l[l] << n); return a; }
static inline vi vi_sra(vi a, int n) { LANES a.l[l] >>= n; return a; }
static inline vf vf_load(const float *p) { vf r; __builtin_memcpy(&r, p, sizeof r); return r; }
static inline void vf_store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
static inline vf vf_set1(float x) { vf r; LANES r.l[l] = x; return r; }
static inline vf vf_add(vf a, vf b) { LANES a.l[l] += b.l[l]; return a; }
static inline vf vf_sub(vf a, vf b) { LANES a.l[l] -= b.l[l]; return a; }
static inline vf vf_mul(vf a, vf b) { LANES a.l[l] *= b.l[l]; return a; }
static inline vf vf_div(vf a, vf b) { LANES a.l[l] /= b.l[l]; return a; }
static inline vf vf_max(vf a, vf b) { LANES a.l[l] = a.l[l] > b.l[l] ? a.l[l] : b.l[l]; return a; }
static inline vf vf_min(vf a, vf b) { LANES a.l[l] = a.l[l] < b.l[l] ? a.l[l] : b.l[l]; return a; }
static inline vf vf_fma(vf a, vf b, vf c) { LANES c.l[l] = fma32(a.l[l], b.l[l], c.l[l]); return c; }
static inline vf vf_fma1(vf a, const float *x, vf c) { return vf_fma(a, vf_set1(*x), c); }
static inline vf vf_from_vi(vi a) { vf r; LANES r.l[l] = (float)a.l[l]; return r; }
static inline vi vi_from_vf(vf a) { vi r; LANES r.l[l] = (int32_t)a.l[l]; return r; }
static inline vf vf_bits(vi a) { vf r; __builtin_memcpy(&r, &a, sizeof r); return r; }
static inline vi vi_bits(vf a) { vi r; __builtin_memcpy(&r, &a, sizeof r); return r; }
static inline vf vf_f16(const void *p) { vf r; LANES r.l[l] = f16_to_f32(load_u16((const uint8_t *)p + 2 * l)); return r; }
static inline vi vi_i8(const void *p) { vi r; LANES r.l[l] = ((const int8_t *)p)[l]; return r; }
static inline void vi_store_i8(int8_t *p, vi v) { LANES p[l] = (int8_t)v.l[l]; }
static inline void vf_store_f16(uint16_t *p, vf v) { LANES p[l] = f32_to_f16(v.l[l]); }
static inline vf vf_less(vf x, vf y, vf a, vf b) { LANES b.l[l] = x.l[l] < y.l[l] ? a.l[l] : b.l[l]; return b; }
#endif
