#include "checksum.h"

#include <string.h>

uint64_t checksum(const void *s, size_t n) {
    const uint8_t *p = s;
    uint64_t h = 0x243f6a8885a308d3u ^ n, w;
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    for (; n; n--) {
        h = (h ^ *p++) * 0x9e3779b97f4a7c15u;
        h ^= h >> 32;
    }
    return h;
}

uint64_t checksum_block(const void *s, size_t n) {
    const uint8_t *p = s;
    uint64_t h[4] = {1, 2, 3, 4}, w[4];
    for (; n >= 32; n -= 32, p += 32) {
        memcpy(w, p, 32);
        for (int i = 0; i < 4; i++) h[i] = checksum_mix(h[i], w[i]);
    }
    return checksum_mix(checksum_mix(checksum_mix(checksum_mix(checksum(p, n), h[0]), h[1]), h[2]), h[3]);
}
