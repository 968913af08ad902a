/* What the vector vocabularies of all ARM levels have in common: 4 lanes a register, 16 as four of them; all but integer dot products. */
#ifndef PYLLM_SIMD_128_H
#define PYLLM_SIMD_128_H
#include <arm_neon.h>
#include <stdint.h>
#include <string.h>

enum { ROWS = 4 };                      /* lanes of a register */
/* Registers of rows in a tile of M columns: up to 16 sums, which with weights, activations and scales is what 32 registers hold. */
#define ROW_REGS(M) ((M) == 1 ? 4 : (M) <= 3 ? 2 : 1)
typedef int32x4_t vi;
typedef float32x4_t vf;

static inline vi vi_keep(vi v) { __asm__("" : "+w"(v)); return v; }
static inline vi vi_load(const void *p) { return vreinterpretq_s32_u8(vld1q_u8(p)); }
static inline void vi_store(void *p, vi v) { vst1q_u8(p, vreinterpretq_u8_s32(v)); }
static inline vi vi_set1(int32_t x) { return vdupq_n_s32(x); }
static inline vi vi_and(vi a, vi b) { return vandq_s32(a, b); }
static inline vi vi_or(vi a, vi b) { return vorrq_s32(a, b); }
static inline vi vi_xor(vi a, vi b) { return veorq_s32(a, b); }
static inline vi vi_add(vi a, vi b) { return vaddq_s32(a, b); }
static inline vi vi_sub(vi a, vi b) { return vsubq_s32(a, b); }
static inline vi vi_add_u8(vi a, vi b) { return vreinterpretq_s32_u8(vaddq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
static inline vi vi_subs_u8(vi a, vi b) { return vreinterpretq_s32_u8(vqsubq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
static inline vi vi_avg_u8(vi a, vi b) { return vreinterpretq_s32_u8(vrhaddq_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
static inline vi vi_mul(vi a, vi b) { return vmulq_s32(a, b); }
static inline vi vi_max(vi a, vi b) { return vmaxq_s32(a, b); }
static inline int32_t vi_max_lanes(vi a) { return vmaxvq_s32(a); }
static inline int32_t vi_sum_lanes(vi a) { return vaddvq_s32(a); }
/* Shifts by constants become immediate ones. */
static inline vi vi_shl(vi a, int n) { return (vi)((uint32x4_t)a << (uint32_t)n); }
static inline vi vi_shr(vi a, int n) { return (vi)((uint32x4_t)a >> (uint32_t)n); }
static inline vi vi_sra(vi a, int n) { return a >> n; }
/* The high nibbles of all bytes. */
static inline vi vi_high4(vi a) { return vreinterpretq_s32_u8(vshrq_n_u8(vreinterpretq_u8_s32(a), 4)); }
static inline vi vi_lookup(vi index, const int8_t *table) {
    return vreinterpretq_s32_s8(vqtbl1q_s8(vld1q_s8(table), vreinterpretq_u8_s32(index)));
}

static inline vi vi_signed(vi w) { return w; }
static inline int32_t signed_start(int32_t sum) { (void)sum; return 0; }

/* Unsigned bytes 2*half and 2*half + 1 of every lane as what dots_pairs takes: those of the four lanes in the four low int16, and in the four high ones. */
static inline vi vi_pairs(vi a, int half) {
    static const uint8_t order[2][16] = {{0, 255, 4, 255, 8, 255, 12, 255, 1, 255, 5, 255, 9, 255, 13, 255},
                                         {2, 255, 6, 255, 10, 255, 14, 255, 3, 255, 7, 255, 11, 255, 15, 255}};
    return vreinterpretq_s32_u8(vqtbl1q_u8(vreinterpretq_u8_s32(a), vld1q_u8(order[half])));
}
/* acc += n (a multiple of 4) vectors of pairs, of vi_pairs, times the 2n int16 at a. */
static inline vi dots_pairs(vi acc, const vi *w, const int16_t *a, int n) {
    for (int i = 0; i < n; i += 4, a += 8) {
        int16x8_t x = vld1q_s16(a);
#define PAIR(j) \
        acc = vmlal_laneq_s16(acc, vget_low_s16(vreinterpretq_s16_s32(w[i + (j)])), x, 2 * (j)); \
        acc = vmlal_high_laneq_s16(acc, vreinterpretq_s16_s32(w[i + (j)]), x, 2 * (j) + 1);
        PAIR(0) PAIR(1) PAIR(2) PAIR(3)
#undef PAIR
    }
    return acc;
}

/* Bytes of ones where bits are set: bit 4r+j is that of byte j of lane r. vi_negate: -v there, in what vi_signed makes of v, too. */
static inline vi vi_from_bits(const void *p) {
    const uint8_t *b = p;
    uint8x16_t v = vcombine_u8(vdup_n_u8(b[0]), vdup_n_u8(b[1])), bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    return vreinterpretq_s32_u8(vtstq_u8(v, bit));
}
static inline vi vi_negate(vi v, const void *bits) {
    int8x16_t m = vreinterpretq_s8_s32(vi_from_bits(bits));
    return vreinterpretq_s32_s8(vsubq_s8(veorq_s8(vreinterpretq_s8_s32(v), m), m));
}
/* ROWS numbers of 4 bits. */
static inline vi vi_nibbles(const void *p) {
    uint16_t four;
    memcpy(&four, p, 2);
    const int32_t shifts[4] = {0, -4, -8, -12};
    return vandq_s32(vshlq_s32(vdupq_n_s32(four), vld1q_s32(shifts)), vdupq_n_s32(15));
}
/* The bytes of every 4 lanes by turns: those of the first 2 lanes, and of the last. */
static inline vi vi_zip_low(vi a, vi b) { return vreinterpretq_s32_u8(vzip1q_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
static inline vi vi_zip_high(vi a, vi b) { return vreinterpretq_s32_u8(vzip2q_u8(vreinterpretq_u8_s32(a), vreinterpretq_u8_s32(b))); }
/* Entries of a table, one a lane; of 8 bytes: the first and the last 4. */
static inline void vi_table8(const uint64_t *table, const unsigned *index, vi *low, vi *high) {
    int32x4_t a = vreinterpretq_s32_u64(vcombine_u64(vld1_u64(table + index[0]), vld1_u64(table + index[1])));
    int32x4_t b = vreinterpretq_s32_u64(vcombine_u64(vld1_u64(table + index[2]), vld1_u64(table + index[3])));
    *low = vuzp1q_s32(a, b);
    *high = vuzp2q_s32(a, b);
}
static inline vi vi_table4(const uint32_t *table, const unsigned *index) {
    uint32x4_t v = vld1q_dup_u32(table + index[0]);
    v = vld1q_lane_u32(table + index[1], v, 1);
    v = vld1q_lane_u32(table + index[2], v, 2);
    return vreinterpretq_s32_u32(vld1q_lane_u32(table + index[3], v, 3));
}

static inline vf vf_load(const float *p) { return vld1q_f32(p); }
static inline void vf_store(float *p, vf v) { vst1q_f32(p, v); }
static inline vf vf_set1(float x) { return vdupq_n_f32(x); }
static inline vf vf_add(vf a, vf b) { return vaddq_f32(a, b); }
static inline vf vf_sub(vf a, vf b) { return vsubq_f32(a, b); }
static inline vf vf_mul(vf a, vf b) { return vmulq_f32(a, b); }
static inline vf vf_div(vf a, vf b) { return vdivq_f32(a, b); }
static inline vf vf_max(vf a, vf b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
static inline vf vf_min(vf a, vf b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
static inline vf vf_fma(vf a, vf b, vf c) { return vfmaq_f32(c, a, b); }
static inline vf vf_fnma(vf a, vf b, vf c) { return vfmsq_f32(c, a, b); }
static inline vf vf_fma1(vf a, const float *x, vf c) { return vfmaq_n_f32(c, a, *x); }
static inline vf vf_from_vi(vi a) { return vcvtq_f32_s32(a); }
static inline vi vi_from_vf(vf a) { return vcvtq_s32_f32(a); }
static inline vf vf_bits(vi a) { return vreinterpretq_f32_s32(a); }
static inline vi vi_bits(vf a) { return vreinterpretq_s32_f32(a); }
static inline vf vf_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
/* 4-bit exponents and 3-bit mantissas as f16 with that exponent: 2^-7 of the value, subnormals included; 127, which is none, gives 0. */
static inline vf vf_ue4m3(const void *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    uint16x4_t e = vget_low_u16(vmovl_u8(vcreate_u8(four))), h = vand_u16(vshl_n_u16(e, 7), vdup_n_u16(0x3f80));
    return vcvt_f32_f16(vreinterpret_f16_u16(vbic_u16(h, vceq_u16(e, vdup_n_u16(127)))));
}
static inline vi vi_u16(const void *p) { return vreinterpretq_s32_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(p)))); }
static inline vf vf_bf16(const void *p) { return vf_bits(vi_shl(vi_u16(p), 16)); }
static inline vi vi_u8(const void *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four)))));
}
static inline vi vi_i8(const void *p) {
    uint32_t four;
    memcpy(&four, p, 4);
    return vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four))));
}
static inline void vi_store_i8(int8_t *p, vi v) {
    int16x4_t h = vmovn_s32(v);
    uint32_t four = vget_lane_u32(vreinterpret_u32_s8(vmovn_s16(vcombine_s16(h, h))), 0);
    memcpy(p, &four, 4);
}
static inline void vf_store_f16(uint16_t *p, vf v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
static inline vf vf_table(vi index, const float *table) {
    float v[4] = {table[index[0]], table[index[1]], table[index[2]], table[index[3]]};
    return vld1q_f32(v);
}
static inline vf vf_less(vf x, vf y, vf a, vf b) { return vbslq_f32(vcltq_f32(x, y), a, b); }
#endif
