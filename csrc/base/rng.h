/* Noise for sampling as a pure function of where it is used: no generator state, so slots, steps and drafts cannot change it. */
#ifndef PYLLM_BASE_RNG_H
#define PYLLM_BASE_RNG_H
#include "math.h"

/* The finalizer of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014). */
static inline uint64_t rng_mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

/* Uniform in (0, 1). token -1: a coin of the position itself. */
static inline double rng_uniform(uint64_t seed, int32_t choice, int64_t position, int32_t token) {
    uint64_t x = rng_mix(rng_mix(rng_mix(seed) ^ (uint64_t)position) ^ ((uint64_t)(uint32_t)choice << 32 | (uint32_t)token));
    return ((double)(x >> 12) + 0.5) * 0x1p-52;
}

/* argmax of (log-weight + this) over tokens is a draw from the distribution of the weights (Gumbel-max). */
static inline double rng_gumbel(uint64_t seed, int32_t choice, int64_t position, int32_t token) {
    return -math_log(-math_log(rng_uniform(seed, choice, position, token)));
}
#endif
