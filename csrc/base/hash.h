/* Keyed hashes, for tables of what stands in a file: its writer does not know the key, so he cannot choose names that share a slot. Tables
   only find what was put into them, so no result depends on the key. */
#ifndef PYLLM_BASE_HASH_H
#define PYLLM_BASE_HASH_H
#include "rng.h"

#include <stddef.h>

typedef struct hash_key { uint64_t a, b; } hash_key;

/* Another key for every owner (an allocated object) and every moment. */
hash_key hash_key_new(const void *owner);

/* SipHash-1-3 of s[0..n). */
uint64_t hash_bytes(hash_key k, const void *s, size_t n);

/* Of one number: multiplied by an odd key, then mixed. */
static inline uint64_t hash_u64(hash_key k, uint64_t x) { return rng_mix((x ^ k.a) * (k.b | 1)); }
#endif
