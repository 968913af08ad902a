/* Integer dot products of a level, of which formats say how many may be added up in 16 bits: include a simd_*.h first. */
#ifndef PYLLM_KERNELS_DOTS_H
#define PYLLM_KERNELS_DOTS_H
#include "lanes.h"

/* acc + products of n vectors with the 4n bytes at a, in runs of as many as may add up in int16; `run` is what a format allows. */
INLINE vi dots(vi acc, const vi *w, const int8_t *a, int n, int run, int is_signed) {
    run = run * RUN < n ? run * RUN : n;
    for (int j = 0; j < n; j += run) acc = is_signed ? dots_s(acc, w + j, a + 4 * j, run) : dots_u(acc, w + j, a + 4 * j, run);
    return acc;
}
#endif
