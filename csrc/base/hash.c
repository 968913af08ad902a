#include "hash.h"

#include <string.h>
#include <time.h>

hash_key hash_key_new(const void *owner) {
    struct timespec now = {0};
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t moment = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    hash_key k;
    k.a = rng_mix(rng_mix(moment) ^ (uintptr_t)owner);
    k.b = rng_mix(rng_mix(k.a) ^ (uintptr_t)&now);
    return k;
}

/* ---- SipHash (Aumasson and Bernstein: "SipHash: a fast short-input PRF", 2012), 1 round a word and 3 at the end ---- */

typedef struct sip { uint64_t v0, v1, v2, v3; } sip;

static inline uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline void sip_round(sip *s) {
    s->v0 += s->v1;
    s->v2 += s->v3;
    s->v1 = rotate(s->v1, 13) ^ s->v0;
    s->v3 = rotate(s->v3, 16) ^ s->v2;
    s->v0 = rotate(s->v0, 32) + s->v3;
    s->v2 += s->v1;
    s->v3 = rotate(s->v3, 21) ^ s->v0;
    s->v1 = rotate(s->v1, 17) ^ s->v2;
    s->v2 = rotate(s->v2, 32);
}

static inline void sip_word(sip *s, uint64_t word) {
    s->v3 ^= word;
    sip_round(s);
    s->v0 ^= word;
}

uint64_t hash_bytes(hash_key k, const void *s, size_t n) {
    sip h = {k.a ^ 0x736f6d6570736575u, k.b ^ 0x646f72616e646f6du, k.a ^ 0x6c7967656e657261u, k.b ^ 0x7465646279746573u};
    const uint8_t *p = s;
    uint64_t word, last = (uint64_t)n << 56;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&word, p, 8);
        sip_word(&h, word);
    }
    for (size_t i = 0; i < n; i++) last |= (uint64_t)p[i] << 8 * i;
    sip_word(&h, last);
    h.v2 ^= 0xff;
    for (int i = 0; i < 3; i++) sip_round(&h);
    return h.v0 ^ h.v1 ^ h.v2 ^ h.v3;
}
