/* Encoders: a level's blocks are the reference's, byte for byte, whatever the values, the weights, and where in a row a call begins. */
#include "kernel_test.h"

#include <stdio.h>
#include <string.h>

static void make_finite(float *p, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (p[i] - p[i] != 0) p[i] = 0;
}

/* Values of importance: usual ones, and with zeros, subnormals and the largest. */
static void fill_importance(float *w, int64_t n, int odd) {
    static const uint32_t odd_ones[] = {0, 0, 1, 0x00800000u, 0x7f7fffffu, 0x3f800000u};
    for (int64_t i = 0; i < n; i++) {
        float v = rnd_float(1);
        w[i] = odd && rnd_below(2) ? f32_from_bits(odd_ones[rnd_below(sizeof odd_ones / sizeof *odd_ones)]) : v * v + 1e-3f;
    }
}

/* Rows that searches have trouble with: all equal, one value alone, on the type's own grid. */
static void flatten(float *x, int64_t n, int how) {
    for (int64_t i = 1; i < n && how == 1; i++) x[i] = x[0];
    for (int64_t i = 0; i < n && how == 2; i++) x[i] = i % 37 ? 0 : x[i];
    for (int64_t i = 0; i < n && how == 3; i++) x[i] = (float)(rnd_below(16) - 8) * 0.25f;
}

static void encode_case(uint32_t type, const char *slot, int fill, int weighted, int how) {
    const qtype_info *q = qtype_get(type);
    int64_t n = 1 + rnd_below(q->elems < 32 ? 70 : 40), per_row = 1 + rnd_below(9), first = rnd_below(20), width = per_row * q->elems;
    float *x = scratch(0, (size_t)(n * q->elems) * sizeof *x), *w = scratch(1, (size_t)width * sizeof *w);
    fill_floats(x, n * q->elems, fill);
    make_finite(x, n * q->elems);
    flatten(x, n * q->elems, how);
    fill_importance(w, width, weighted == 2);
    size_t bytes = (size_t)n * q->bytes;
    for (case_begin(slot, "n=%lld per_row=%lld first=%lld weights %d, %s, form %d", (long long)n, (long long)per_row, (long long)first, weighted,
                    fill_names[fill], how);
         run_next();) {
        uint8_t *dst = guard_out(bytes);
        const float *weights = weighted ? guard_in(w, (size_t)width * sizeof *w) : NULL;
        run.k->quantize[type](guard_in(x, (size_t)(n * q->elems) * sizeof *x), weights, n, first, per_row, dst);
        check_bytes("blocks", dst, (int64_t)bytes);
    }
}

void test_encoders(void) {
    static const int fills[] = {FILL_NORMAL, FILL_HUGE, FILL_TINY, FILL_EXTREME, FILL_ANY_BITS};
    for (uint32_t type = 0; type < QTYPE_COUNT; type++) {
        if (!levels[0]->quantize[type]) continue;
        char slot[64] = "quantize_";
        for (int i = 9, c; (c = qtype_get(type)->name[i - 9]); i++) slot[i] = (char)c;
        check(slot_symbol(levels[0], slot) != NULL, "there is no slot %s", slot);
        for (int i = 0; i < repeat; i++)
            for (int weighted = 0; weighted < 3; weighted++) {
                for (int f = 0; f < 5; f++) encode_case(type, slot, fills[f], weighted, 0);
                for (int how = 1; how < 4; how++) encode_case(type, slot, FILL_NORMAL, weighted, how);
            }
    }
}
