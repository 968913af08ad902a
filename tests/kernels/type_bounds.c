/* What docs/numerics.md says of the quantized types, taken from their decoders: a line a type with the elements of a unit and the largest |q|, |sc|
 * and mn of random blocks, and whether there is a minimum. Compiled and read by tests/unit/test_docs.py. */
#include "../../csrc/base/rng.h"
#include "../../csrc/formats/formats.h"

#include <stdio.h>
#include <stdlib.h>

enum { BLOCKS = 20000 };

static void bounds(uint32_t type) {
    uint8_t block[256];
    qunit u;
    int q = 0, sc = 0, mn = 0;
    for (int b = 0; b < BLOCKS; b++) {
        for (int i = 0; i < qtype_get(type)->bytes; i++) block[i] = (uint8_t)rng_mix((uint64_t)b << 8 | (uint64_t)i);
        for (int j = 0; j < format_units(type); j++) {
            format_decode(type, block, j, &u);
            for (int i = 0; i < u.n; i++) {
                if (abs(u.q[i]) > q) q = abs(u.q[i]);
                if (abs(u.sc[i / 16]) > sc) sc = abs(u.sc[i / 16]);
                if (u.mn[i / 16] > mn) mn = u.mn[i / 16];
            }
        }
    }
    printf("%s %d %d %d %d\n", qtype_get(type)->name, u.n, q, sc, mn);
}

int main(void) {
    for (uint32_t type = 0; type < QTYPE_COUNT; type++)
        if (qtype_get(type) && qtype_get(type)->act > 1) bounds(type);
    return 0;
}
