/* Tensor types: what the bytes of a block mean. No SIMD here. */
#ifndef PYLLM_FORMATS_H
#define PYLLM_FORMATS_H
#include <stddef.h>
#include <stdint.h>

enum qtype {
#define QTYPE(NAME, name, id, elems, bytes, act) QTYPE_##NAME = id,
#include "qtypes.def"
#undef QTYPE
    QTYPE_COUNT = 43            /* one past the largest id */
};

typedef struct qtype_info {
    const char *name;           /* "q4_k"; NULL for ids that do not exist */
    int16_t elems, bytes;       /* of one block */
    int16_t act;                /* see qtypes.def */
} qtype_info;

/* NULL if the id is unknown or was removed from the format. */
const qtype_info *qtype_get(uint32_t type);

/* The integer form that every quantized type has: value[i] = d * sc[i/16] * q[i]  -  m * mn[i/16].
   All products d*sc*q are exact in f32, so every order of multiplication gives the same bits.
   One qunit is one step of the matmul contract (docs/numerics.md): n elements that share d and m. */
typedef struct qunit {
    int32_t n;                  /* 16, 32 or 256 elements */
    float d, m;                 /* m = 0 and mn = 0 for types without a minimum */
    int8_t q[256];
    int16_t sc[16], mn[16];     /* per 16 elements */
} qunit;

/* Units per block: 1, except NVFP4 4 (one per 16), Q1_0 4 and Q2_0 2 (one per 32). */
int format_units(uint32_t type);
/* Decodes unit u of one block (its file bytes). Quantized types only (act 32 or 256). */
void format_decode(uint32_t type, const uint8_t *block, int u, qunit *out);

/* n elements (whole blocks) to f32. Types of every row of qtypes.def. */
void dequantize(uint32_t type, const void *src, int64_t n, float *dst);

/* Half and brain floats, exact; f32 -> f16 rounds to nearest even, with subnormals, overflow to infinity, NaN to NaN. */
static inline float f32_from_bits(uint32_t u) { union { uint32_t u; float f; } c = {u}; return c.f; }
static inline uint32_t f32_bits(float f) { union { float f; uint32_t u; } c = {f}; return c.u; }
static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, m = h & 1023;
    if (e == 31) return f32_from_bits(sign | 0x7f800000u | (m << 13) | (m ? 0x400000u : 0));
    if (e) return f32_from_bits(sign | ((e + 112) << 23) | (m << 13));
    float v = (float)m * 0x1p-24f;                      /* zero and subnormals, exact */
    return sign ? -v : v;
}
static inline uint16_t f32_to_f16(float f) {
    uint32_t u = f32_bits(f), sign = (u >> 16) & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((a >> 13) & 0x1ff));
    if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);            /* >= 65520 rounds to infinity */
    if (a >= 0x38800000u) {                                              /* normal */
        uint32_t r = a - 0x38000000u;
        return (uint16_t)(sign | ((r + 0xfffu + ((r >> 13) & 1)) >> 13));
    }
    if (a < 0x33000000u) return (uint16_t)sign;                          /* below half of the least subnormal */
    uint32_t e = a >> 23, m = (a & 0x7fffffu) | 0x800000u, s = 126 - e;  /* subnormal: shift by 14..24 */
    uint32_t q = m >> s, rest = m & ((1u << s) - 1), half = 1u << (s - 1);
    return (uint16_t)(sign | (q + (rest > half || (rest == half && (q & 1)))));
}
static inline float bf16_to_f32(uint16_t h) { return f32_from_bits((uint32_t)h << 16); }
static inline uint16_t load_u16(const void *p) { const uint8_t *b = p; return (uint16_t)(b[0] | b[1] << 8); }
static inline uint32_t load_u32(const void *p) { const uint8_t *b = p; return b[0] | b[1] << 8 | b[2] << 16 | (uint32_t)b[3] << 24; }
#endif
