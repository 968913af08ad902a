/* Keys that are values as well (kernels.h): a page holds them once, by dimension, and attention's second half wants them by token. */
#include "kernels.h"

#include <string.h>

typedef uint32_t u32x4 __attribute__((vector_size(16)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));

#ifdef __clang__
#define PICK(type, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(type, a, b, ...) __builtin_shuffle(a, b, (type){__VA_ARGS__})
#endif

/* src: u32 [n][PAGE], n a multiple of 4. dst: PAGE rows of n, ld bytes apart. Two rounds of interleaving turn a square of 4 over, three one of 8. */
static void turn32(const uint8_t *src, int n, uint8_t *dst, size_t ld) {
    for (int d = 0; d < n; d += 4)
        for (int t = 0; t < PAGE; t += 4) {
            u32x4 r[4], z[4];
            for (int i = 0; i < 4; i++) memcpy(&r[i], src + (size_t)((d + i) * PAGE + t) * 4, 16);
            for (int round = 0; round < 2; round++) {
                for (int i = 0; i < 2; i++) {
                    z[2 * i] = PICK(u32x4, r[i], r[i + 2], 0, 4, 1, 5);
                    z[2 * i + 1] = PICK(u32x4, r[i], r[i + 2], 2, 6, 3, 7);
                }
                memcpy(r, z, sizeof r);
            }
            for (int i = 0; i < 4; i++) memcpy(dst + (size_t)(t + i) * ld + (size_t)d * 4, &r[i], 16);
        }
}

/* The same for u16 [n][PAGE], n a multiple of 8. */
static void turn16(const uint8_t *src, int n, uint8_t *dst, size_t ld) {
    for (int d = 0; d < n; d += 8)
        for (int t = 0; t < PAGE; t += 8) {
            u16x8 r[8], z[8];
            for (int i = 0; i < 8; i++) memcpy(&r[i], src + (size_t)((d + i) * PAGE + t) * 2, 16);
            for (int round = 0; round < 3; round++) {
                for (int i = 0; i < 4; i++) {
                    z[2 * i] = PICK(u16x8, r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
                    z[2 * i + 1] = PICK(u16x8, r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
                }
                memcpy(r, z, sizeof r);
            }
            for (int i = 0; i < 8; i++) memcpy(dst + (size_t)(t + i) * ld + (size_t)d * 2, &r[i], 16);
        }
}

void kv_values_of_keys(int type, int v_dim, const uint8_t *k_page, uint8_t *v_page) {
    if (type == KV_F32) turn32(k_page, v_dim, v_page, (size_t)v_dim * 4);
    if (type == KV_F16) turn16(k_page, v_dim, v_page, (size_t)v_dim * 2);
    int blocks = v_dim / 32, bytes = type == KV_Q8_0 ? 32 : 16;        /* of a token's codes in a block, turned four at a time */
    for (int b = 0; kv_quantized(type) && b < blocks; b++, k_page += PAGE * (2 + bytes)) {
        for (int t = 0; t < PAGE; t++) memcpy(v_page + (size_t)(t * blocks + b) * 2, k_page + 2 * t, 2);
        turn32(k_page + PAGE * 2, bytes / 4, v_page + (size_t)(PAGE * 2 * blocks + bytes * b), (size_t)(bytes * blocks));
    }
}
