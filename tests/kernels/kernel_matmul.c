/* Matmuls and the quantization of activations: every level against the reference, and the reference against double. */
#include "kernel_test.h"

#include "../../csrc/kernels/pack.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const int64_t lengths[] = {32, 64, 96, 256, 288, 576, 2304};
enum { LENGTHS = sizeof lengths / sizeof *lengths };

/* A matrix product: file rows, packed groups, activations. */
typedef struct product {
    uint32_t type;
    int64_t k, n_groups, rows, row_bytes;
    size_t group_bytes;
    int m, lda, ldy;
    uint8_t *file, *packed;
    const void *a;              /* act panel or floats */
    size_t a_bytes;
} product;

/* 0 for types without a product, or that --type leaves out. */
static int act_of(uint32_t type) {
    const qtype_info *q = qtype_get(type);
    return q && (!only_type || !strcmp(only_type, q->name)) ? q->act : 0;
}

/* Sizes from which the buffers follow. The last group may have fewer than 16 rows, strides may be larger than needed. */
static product product_new(uint32_t type, int64_t k, int m, int n_groups) {
    product p = {.type = type, .k = k, .m = m, .n_groups = n_groups};
    p.rows = n_groups * GROUP - (rnd_below(2) ? rnd_below(GROUP) : 0);
    p.row_bytes = k / qtype_get(type)->elems * qtype_get(type)->bytes;
    p.group_bytes = pack_group_bytes(type, k) + (size_t)(64 * rnd_below(3));
    p.lda = (int)k + rnd_below(3);
    p.ldy = n_groups * GROUP + rnd_below(20);
    p.file = scratch(0, (size_t)(p.rows * p.row_bytes));
    p.packed = scratch(1, (size_t)n_groups * p.group_bytes);
    return p;
}

/* Packs the file's rows; each must come back as it was. */
static void pack_product(product *p) {
    uint8_t *back = scratch(2, (size_t)p->row_bytes);
    memset(p->packed, 0xee, (size_t)p->n_groups * p->group_bytes);
    for (int64_t g = 0; g < p->n_groups; g++) {
        int64_t left = p->rows - g * GROUP;
        int n = left < GROUP ? (int)left : GROUP;
        pack_group(p->type, p->file + g * GROUP * p->row_bytes, (size_t)p->row_bytes, n, p->k, p->packed + (size_t)g * p->group_bytes);
        for (int r = 0; r < n; r++) {
            unpack_row(p->type, p->packed + (size_t)g * p->group_bytes, r, p->k, back);
            if (!memcmp(back, p->file + (g * GROUP + r) * p->row_bytes, (size_t)p->row_bytes)) continue;
            for (case_begin("matmul_f32", "packing of %s, k=%lld", qtype_get(p->type)->name, (long long)p->k); run_ref();)
                check(0, "row %d of group %lld is not what was packed", r, (long long)g);
            return;
        }
    }
}

/* Activations as the type wants them. Quantized with ref from floats of a kind; -1: all codes +-127, which no floats need to be. */
static void activations(product *p, int fill) {
    int act = act_of(p->type);
    float *x = scratch(3, (size_t)(p->m * p->lda) * sizeof *x);
    fill_floats(x, (int64_t)p->m * p->lda, fill < 0 ? FILL_NORMAL : fill);
    for (int64_t i = 0; fill < 0 && i < (int64_t)p->m * p->lda; i++) x[i] = i & 1 && rnd_below(2) ? -3 : 3;
    p->a = x;
    p->a_bytes = (size_t)((p->m - 1) * p->lda + p->k) * sizeof *x;
    if (act == 1) return;
    p->a_bytes = act_panel_bytes(p->k, p->m);
    p->a = scratch(4, p->a_bytes);
    levels[0]->quantize_act(x, p->lda, p->m, p->k, act, scratch(4, p->a_bytes));
}

static void slot_name(uint32_t type, int m, char *slot, size_t n) { snprintf(slot, n, "matmul_%s%s", m > PANEL ? "wide_" : "", qtype_get(type)->name); }

/* With the kernel for p->m rows. ref has none for a wide panel: the rows go through narrow ones. */
static void multiply(const product *p, const uint8_t *w, const void *a, float *y) {
    if (p->m <= PANEL) run.k->matmul[p->type](w, p->group_bytes, p->n_groups, p->k, a, p->lda, p->m, y, p->ldy);
    else if (run.k->matmul_wide[p->type]) run.k->matmul_wide[p->type](w, p->group_bytes, p->n_groups, p->k, a, p->lda, p->m, y, p->ldy);
    else
        for (int first = 0; first < p->m; first += PANEL) {
            int n = p->m - first < PANEL ? p->m - first : PANEL;
            act_unit *part = scratch(6, act_panel_bytes(p->k, n));
            for (int64_t u = 0; u < (p->k + 255) / 256; u++) memcpy(part + u * n, (const act_unit *)a + u * p->m + first, (size_t)n * sizeof *part);
            run.k->matmul[p->type](w, p->group_bytes, p->n_groups, p->k, part, p->lda, n, y + first * p->ldy, p->ldy);
        }
}

static void compare_product(const product *p, const char *what) {
    static char slot[64];
    slot_name(p->type, p->m, slot, sizeof slot);
    int64_t wide = p->n_groups * GROUP, size = (p->m - 1) * (int64_t)p->ldy + wide;
    for (case_begin(slot, "k=%lld m=%d groups=%lld ldy=%d, %s", (long long)p->k, p->m, (long long)p->n_groups, p->ldy, what); run_next();) {
        size_t w_bytes = (size_t)(p->n_groups - 1) * p->group_bytes + pack_group_bytes(p->type, p->k);
        const uint8_t *w = guard_in(p->packed, w_bytes);
        const void *a = guard_in(p->a, p->a_bytes);
        float *y = guard_out((size_t)size * sizeof *y);
        multiply(p, w, a, y);
        for (int c = 0; c + 1 < p->m; c++) check_untouched("between rows of y", y + c * p->ldy + wide, (p->ldy - wide) * 4);
        float *dense = scratch(5, (size_t)(p->m * wide) * sizeof *dense);
        for (int c = 0; c < p->m; c++) memcpy(dense + c * wide, y + c * p->ldy, (size_t)wide * sizeof *y);
        check_floats("y", dense, p->m * wide);
    }
}

static void one(uint32_t type, int64_t k, int m, int groups, int code_byte, int scales, int fill) {
    char what[128];
    product p = product_new(type, k, m, groups);
    fill_weights(type, p.file, p.rows, k, code_byte, scales);
    pack_product(&p);
    activations(&p, fill);
    snprintf(what, sizeof what, "codes %d, scales %s, activations %s", code_byte, scale_names[scales], fill < 0 ? "+-127" : fill_names[fill]);
    compare_product(&p, what);
}

static void any_size(uint32_t type, int code_byte, int scales, int fill) {
    int64_t k;
    do k = lengths[rnd_below(LENGTHS)];
    while (k % qtype_get(type)->elems || k > 576);
    int m = 1 + rnd_below(PANEL), groups = 1 + rnd_below(2);
    one(type, k, m, groups, code_byte, scales, fill);
}

static int has_wide(uint32_t type) {
    int found = 0;
    for (int l = 0; l < n_levels; l++) found |= !!levels[l]->matmul_wide[type];
    return found;
}

static void matmul_wide_of(uint32_t type) {
    static const int rows[] = {PANEL + 1, 15, 16, 17, 31, 32, 33, WIDE_PANEL - 1, WIDE_PANEL};
    int n_rows = sizeof rows / sizeof *rows;
    for (int i = 0; i < LENGTHS; i++) {
        if (lengths[i] % qtype_get(type)->elems) continue;
        one(type, lengths[i], rows[i % n_rows], 1 + rnd_below(3), -1, SCALES_USUAL, FILL_NORMAL);
        one(type, lengths[i], PANEL + 1 + rnd_below(40), 1 + rnd_below(5), -1, SCALES_USUAL, FILL_NORMAL);
    }
    for (int i = 0; i < n_rows; i++) one(type, 512, rows[i], 2 + i % 2, -1, SCALES_USUAL, FILL_NORMAL);
    for (int n = 0; n < repeat; n++)
        for (int fill = -1; fill < FILLS; fill++) {
            static const int bytes[] = {-1, 0, 0x7f, 0x80, 0xff};
            one(type, rnd_below(2) ? 256 : 768, PANEL + 1 + rnd_below(25), 1 + rnd_below(2), bytes[rnd_below(5)], rnd_below(SCALES), fill);
        }
}

static void matmul_of(uint32_t type) {
    static const int bytes[] = {-1, 0, 0x7f, 0x80, 0xff};
    for (int i = 0; i < LENGTHS; i++)
        for (int m = 1; m <= PANEL && lengths[i] % qtype_get(type)->elems == 0; m++)
            one(type, lengths[i], m, 1 + rnd_below(lengths[i] > 600 ? 2 : 5), -1, SCALES_USUAL, FILL_NORMAL);
    for (int n = 0; n < repeat; n++) {
        for (int b = 0; b < 5; b++)
            for (int fill = -1; fill <= FILL_NORMAL; fill++) any_size(type, bytes[b], SCALES_USUAL, fill);
        for (int s = 0; s < SCALES; s++) {
            int code_byte = bytes[rnd_below(5)];
            any_size(type, code_byte, s, rnd_below(FILLS + 1) - 1);
        }
        for (int fill = 0; fill < FILLS; fill++) any_size(type, -1, rnd_below(2) ? SCALES_USUAL : SCALES_MIXED, fill);
    }
}

void test_matmul(void) {
    for (uint32_t type = 0; type < QTYPE_COUNT; type++)
        if (act_of(type)) {
            matmul_of(type);
            if (has_wide(type)) matmul_wide_of(type);
        }
}

void test_dot_peak(void) {
    for (int i = 0; i < 8; i++) {
        int8_t a[32];
        int total = 0;
        for (int b = 0; b < 32; b++) total += a[b] = (int8_t)(rnd_below(255) - 127);
        int64_t rounds = 1 + rnd_below(1000);
        for (case_begin("dot_peak", "rounds=%lld", (long long)rounds); run_next();) {
            uint32_t sum = 1;
            int64_t macs = run.k->dot_peak(rounds, guard_in(a, sizeof a), &sum);
            check(macs >= rounds * PEAK_CHAINS * 32 && sum == (uint32_t)(macs / 32 * total), "%lld products, sum %u", (long long)macs, sum);
        }
    }
}

/* ---- activations ---------------------------------------------------------------------------------------------------------- */

static void quantize_case(int block, int64_t k, int m, int fill) {
    int64_t ldx = k + rnd_below(5);
    float *x = scratch(3, (size_t)(m * ldx) * sizeof *x);
    fill_floats(x, m * ldx, fill);
    int64_t units = (k + 255) / 256 * m;
    for (case_begin("quantize_act", "block=%d k=%lld m=%d, %s", block, (long long)k, m, fill_names[fill]); run_next();) {
        act_unit *dst = guard_out(act_panel_bytes(k, m));
        run.k->quantize_act(guard_in(x, (size_t)((m - 1) * ldx + k) * sizeof *x), ldx, m, k, block, dst);
        float *d = scratch(5, (size_t)units * sizeof dst->d);
        for (int64_t u = 0; u < units; u++) {
            memcpy(d + 8 * u, dst[u].d, sizeof dst->d);
            memset(dst[u].d, 0, sizeof dst->d);
        }
        check_bytes("codes and sums", dst, (int64_t)act_panel_bytes(k, m));
        check_floats("d", d, 8 * units);
    }
}

void test_quantize_act(void) {
    for (int fill = 0; fill < FILLS; fill++)
        for (int m = 1; m <= PANEL; m++)
            for (int i = 0; i < LENGTHS; i++) {
                quantize_case(32, lengths[i], m, fill);
                if (lengths[i] % 256 == 0) quantize_case(256, lengths[i], m, fill);
            }
}

/* ---- the reference in double ------------------------------------------------------------------------------------------------ */

/* One output in double, and the sum of the magnitudes that the reference adds up. Weights come from dequantize; its two products and
   their difference give the magnitude. Activations are the panel's own codes. */
static double exact_dot(const product *p, int64_t row, int c, double *magnitude, int *steps) {
    const qtype_info *q = qtype_get(p->type);
    const uint8_t *b = p->file + row * p->row_bytes;
    float *w = scratch(6, (size_t)p->k * sizeof *w);
    double sum = 0;
    qunit u;
    dequantize(p->type, b, p->k, w);
    *magnitude = 0;
    *steps = (int)p->k;
    if (q->act == 1) {
        const float *a = (const float *)p->a + c * p->lda;
        for (int64_t i = 0; i < p->k; i++) {
            sum += (double)w[i] * a[i];
            *magnitude += fabs((double)w[i] * a[i]);
        }
        return sum;
    }
    const act_unit *panel = p->a;
    int64_t at = 0;
    for (; at < p->k; b += q->bytes)
        for (int j = 0; j < format_units(p->type); j++) {
            format_decode(p->type, b, j, &u);
            *steps = (int)(p->k / u.n);
            for (int i = 0; i < u.n; i++, at++) {
                const act_unit *a = &panel[at / 256 * p->m + c];
                double x = (double)a->q[at % 256] * (double)a->d[q->act == 256 ? 0 : at % 256 / 32];
                sum += w[at] * x;
                *magnitude += (fabs((double)u.d * u.sc[i / 16] * u.q[i]) + fabs((double)u.m * u.mn[i / 16])) * fabs(x);
            }
        }
    return sum;
}

/* A step of a block rounds the integer sum, the scale and the fma, and the same for a minimum; every later fma rounds what came before once
   more. With at most two fma a block that is 2 * blocks + 4 roundings of 2^-24 of at most the sum of magnitudes, also counting the one
   with which dequantize subtracts the minimum. */
static void exact_product(uint32_t type, int64_t k, int m) {
    static char slot[64];
    slot_name(type, m, slot, sizeof slot);
    product p = product_new(type, k, m, 2);
    fill_weights(type, p.file, p.rows, k, -1, SCALES_USUAL);
    pack_product(&p);
    activations(&p, FILL_NORMAL);
    for (case_begin(slot, "in double, k=%lld m=%d", (long long)k, m); run_ref();) {
        float *y = guard_out((size_t)(m * p.ldy) * sizeof *y);
        run.k->matmul[type](p.packed, p.group_bytes, 2, k, p.a, p.lda, m, y, p.ldy);
        for (int c = 0; c < m; c++)
            for (int64_t r = 0; r < 2 * GROUP; r++) {
                double magnitude = 0, want = 0;
                int steps = 0;
                if (r < p.rows) want = exact_dot(&p, r, c, &magnitude, &steps);
                double error = fabs((double)y[c * p.ldy + r] - want), bound = 2.0 * (steps + 2) * 0x1p-24 * magnitude;
                check(error <= bound, "y[%d][%lld] is %a, in double %a: error %g, bound %g", c, (long long)r, (double)y[c * p.ldy + r], want, error, bound);
            }
    }
}

/* A code is the nearest integer to x * 127/amax, whose two roundings move it by at most 127 * 2^-23; d has one of its own. */
static void exact_quantize(int block, int64_t k) {
    float *x = scratch(3, (size_t)k * sizeof *x);
    fill_floats(x, k, FILL_NORMAL);
    for (case_begin("quantize_act", "in double, block=%d k=%lld", block, (long long)k); run_ref();) {
        act_unit *a = guard_out(act_panel_bytes(k, 1));
        run.k->quantize_act(guard_in(x, (size_t)k * sizeof *x), k, 1, k, block, a);
        for (int64_t i = 0; i < k; i++) {
            double d = a[i / 256].d[i % 256 / block], most = 0;
            for (int64_t j = i / block * block; j < i / block * block + block; j++) most = fmax(most, fabs((double)x[j]));
            check(fabs(d - most / 127) <= d * 0x1p-24, "d of value %lld is %g, largest value / 127 is %g", (long long)i, d, most / 127);
            double off = x[i] / d - a[i / 256].q[i % 256];
            check(fabs(off) <= 0.5 + 0x1p-15, "value %lld is %g codes off", (long long)i, off);
        }
    }
}

void test_matmul_exact(void) {
    for (int i = 0; i < LENGTHS; i++) {
        exact_quantize(32, lengths[i]);
        if (lengths[i] % 256 == 0) exact_quantize(256, lengths[i]);
    }
    for (uint32_t type = 0; type < QTYPE_COUNT; type++)
        for (int i = 0; i < LENGTHS && act_of(type); i++)
            if (lengths[i] % qtype_get(type)->elems == 0) exact_product(type, lengths[i], 1 + rnd_below(3));
}
