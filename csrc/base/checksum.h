/* Checksums against damage, not against intent: 64 bits, every input word enters by a bijection of the state, so one changed word always
   changes the sum. The same on every machine (little-endian). */
#ifndef PYLLM_BASE_CHECKSUM_H
#define PYLLM_BASE_CHECKSUM_H
#include <stddef.h>
#include <stdint.h>

/* Of p[0..n). */
uint64_t checksum(const void *p, size_t n);
/* Another sum, for large blocks: four streams side by side, since a single one waits for its multiplications. */
uint64_t checksum_block(const void *p, size_t n);
/* h with v mixed in. */
static inline uint64_t checksum_mix(uint64_t h, uint64_t v) {
    h = (h ^ v) * 0x9e3779b97f4a7c15u;
    return h ^ h >> 29;
}
#endif
