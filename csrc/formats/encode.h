/* The inverse of decode.h: codes and scales to the bytes of blocks. What the codes are is found elsewhere (kernels/quantize_tmpl.h). */
#ifndef PYLLM_FORMATS_ENCODE_H
#define PYLLM_FORMATS_ENCODE_H
#include "formats.h"

/* n blocks of 32. q: codes as in the file, [n][32]; d, m: f16 bits of scales and minima (m only where the type has one; MXFP4: d is the exponent). */
typedef void encode_small_fn(const uint8_t *q, const uint16_t *d, const uint16_t *m, int n, uint8_t *dst);
encode_small_fn encode_q4_0, encode_q4_1, encode_q5_0, encode_q5_1, encode_q8_0, encode_mxfp4;

/* One block of 256. q: codes as in the file, unsigned; sc, mn: sub-scales and minima as in the file (zero point added); d, m: f16 bits. */
typedef void encode_super_fn(const uint8_t *q, const uint8_t *sc, const uint8_t *mn, uint16_t d, uint16_t m, uint8_t *dst);
encode_super_fn encode_q2_k, encode_q3_k, encode_q4_k, encode_q5_k, encode_q6_k, encode_iq4_xs;

/* One block of IQ3_S. index: of the 64 grid points; signs: a bit for each element, 1 = negative; s: 8 of 4 bits. */
void encode_iq3_s(const uint16_t *index, const uint8_t *signs, const uint8_t *s, uint16_t d, uint8_t *dst);

static inline void store_u16(uint8_t *p, uint16_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
#endif
