/* One decoder per type: a block's bytes to the integer form of formats.h. u is the unit within the block. */
#ifndef PYLLM_FORMATS_DECODE_H
#define PYLLM_FORMATS_DECODE_H
#include "formats.h"

typedef void decode_fn(const uint8_t *b, int u, qunit *out);
decode_fn decode_q4_0, decode_q4_1, decode_q5_0, decode_q5_1, decode_q8_0, decode_q2_k, decode_q3_k, decode_q4_k, decode_q5_k, decode_q6_k,
    decode_iq2_xxs, decode_iq2_xs, decode_iq2_s, decode_iq3_xxs, decode_iq3_s, decode_iq1_s, decode_iq1_m, decode_iq4_nl, decode_iq4_xs,
    decode_tq1_0, decode_tq2_0, decode_mxfp4, decode_nvfp4, decode_q1_0, decode_q2_0;

/* The 16 values of IQ4_NL and IQ4_XS, and of the 4-bit floats (doubled, so that they are integers). */
extern const int8_t iq4_values[16], fp4_values[16];

/* Sub-scales and minima of Q4_K and Q5_K: 8 of 6 bits each in 12 bytes. */
static inline void k_scales(const uint8_t *s, int j, int16_t *sc, int16_t *mn) {
    *sc = (int16_t)(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    *mn = (int16_t)(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4);
}
/* A 4-bit float scale of MXFP4 (E8M0: 2^(e-127), halved for fp4_values) and of NVFP4 (unsigned E4M3, halved). */
float e8m0_half(uint8_t e);
float ue4m3_half(uint8_t e);
#endif
