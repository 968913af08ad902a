/* Speed of the kernels of every level, one thread. Weights at m = 1 come from memory (256 MB), at m = 8 from L2 (256 KB). */
#include "kernel_test.h"

#include "../../csrc/kernels/pack.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Best of 5 rounds that last at least 20 ms each: seconds of one call. */
#define BEST(result, call) do { \
    double best_ = 1e9; \
    for (int round_ = 0, calls_ = 1; round_ < 5;) { \
        double start_ = seconds(); \
        for (int i_ = 0; i_ < calls_; i_++) call; \
        double spent_ = seconds() - start_; \
        if (spent_ < 0.02) { calls_ *= 2; continue; } \
        if (spent_ / calls_ < best_) best_ = spent_ / calls_; \
        round_++; \
    } \
    result = best_; \
} while (0)

enum { K = 2304, MEMORY = 256 << 20, CACHE = 256 << 10 };

/* As many groups as fit in the bytes; every group is the same random one. */
static int64_t fill_groups(uint32_t type, uint8_t *w, size_t bytes) {
    size_t group = pack_group_bytes(type, K);
    uint8_t *rows = scratch(1, (size_t)K * 4 * GROUP);
    int64_t n = (int64_t)(bytes / group) ? (int64_t)(bytes / group) : 1;
    fill_weights(type, rows, GROUP, K, -1, SCALES_USUAL);
    pack_group(type, rows, (size_t)K / (size_t)qtype_get(type)->elems * (size_t)qtype_get(type)->bytes, GROUP, K, w);
    for (int64_t g = 1; g < n; g++) memcpy(w + (size_t)g * group, w, group);
    return n;
}

static void bench_matmul(const kernels *k, uint32_t type, uint8_t *w) {
    size_t group = pack_group_bytes(type, K);
    float *x = scratch(2, (size_t)PANEL * K * sizeof *x);
    void *panel = scratch(3, act_panel_bytes(K, PANEL));
    fill_floats(x, (int64_t)PANEL * K, FILL_NORMAL);
    double one, eight;
    int64_t n = fill_groups(type, w, k == levels[0] ? MEMORY / 64 : MEMORY), few = (int64_t)(CACHE / group) ? (int64_t)(CACHE / group) : 1;
    float *y = scratch(4, (size_t)(n * GROUP + PANEL * few * GROUP) * sizeof *y);
    const void *a = qtype_get(type)->act == 1 ? (void *)x : panel;
    if (a == panel) levels[0]->quantize_act(x, K, 1, K, qtype_get(type)->act, panel);
    BEST(one, k->matmul[type](w, group, n, K, a, K, 1, y, n * GROUP));
    if (a == panel) levels[0]->quantize_act(x, K, PANEL, K, qtype_get(type)->act, panel);
    BEST(eight, k->matmul[type](w, group, few, K, a, K, PANEL, y, few * GROUP));
    printf("  %-10s m=1 %7.2f GB/s   m=8 %8.2f GMAC/s\n", qtype_get(type)->name, (double)group * (double)n / one * 1e-9,
           (double)few * GROUP * K * PANEL / eight * 1e-9);
}

static void bench_vectors(const kernels *k) {
    enum { N = 4096 };
    double t;
    float *x = scratch(2, N * 2 * sizeof *x), *y = scratch(4, N * 2 * sizeof *y);
    fill_floats(x, 2 * N, FILL_NORMAL);
    act_unit *panel = scratch(3, act_panel_bytes(N, 1));
#define LINE(name, call) do { BEST(t, call); printf("  %-24s %10.0f ns\n", name, t * 1e9); } while (0)
    LINE("quantize_act 32, 4096", k->quantize_act(x, N, 1, N, 32, panel));
    LINE("quantize_act 256, 4096", k->quantize_act(x, N, 1, N, 256, panel));
    LINE("rmsnorm 4096", k->rmsnorm(x, x + N, y, N, 1e-5f));
    LINE("gated silu 4096", k->gated(ACT_SILU, x, x + N, y, N));
    LINE("gated gelu 4096", k->gated(ACT_GELU_TANH, x, x + N, y, N));
    LINE("softcap 4096", k->softcap(x, y, N, 30));
    LINE("angles 64", k->angles(x, 64, 1000, 1, y));
    LINE("rope 32 x 128", k->rope(x, x + N, y, 32, 128, 128, 1));
    LINE("rope 32 x 128 pairs", k->rope(x, x + N, y, 32, 128, 128, 0));
}

static void bench_attention(const kernels *k) {
    static const char *const names[KV_TYPES] = {"f32", "f16", "q8_0"};
    enum { DIM = 128, HEADS = 8 };
    static const int16_t lo = 0, hi = CHUNK;
    float *q = scratch(2, HEADS * DIM * sizeof *q), *out = scratch(4, (HEADS * DIM + 2 * ATTN_MAX) * sizeof *out);
    uint8_t *work = scratch(5, attn_scratch_bytes(DIM) + 64);
    const uint8_t *pages[CHUNK / PAGE];
    fill_floats(q, HEADS * DIM, FILL_NORMAL);
    for (int type = 0; type < KV_TYPES; type++) {
        double t;
        char name[64];
        size_t bytes = kv_page_bytes(type, DIM);
        uint8_t *page = scratch(6, CHUNK / PAGE * bytes);
        for (int p = 0; p < CHUNK / PAGE; p++) {
            pages[p] = page + (size_t)p * bytes;
            for (int s = 0; s < PAGE; s++) k->kv_store_k[type](q, DIM, page + (size_t)p * bytes, s);
        }
        snprintf(name, sizeof name, "kv_store_k %s 128", names[type]);
        LINE(name, k->kv_store_k[type](q, DIM, page, 3));
        snprintf(name, sizeof name, "kv_store_v %s 128", names[type]);
        LINE(name, k->kv_store_v[type](q, DIM, page, 3));
        for (int s = 0; s < PAGE; s++) k->kv_store_k[type](q, DIM, page, s);
        for (int group = 1; group <= HEADS; group *= 8) {
            attn_args a = {.q = q, .ldq = group * DIM, .rows = 1, .group = group, .dim = DIM, .scale = 0.01f, .k_pages = pages, .v_pages = pages,
                           .lo = &lo, .hi = &hi, .m = out, .l = out + ATTN_MAX, .o = out + 2 * ATTN_MAX,
                           .scratch = work + (64 - (uintptr_t)work % 64) % 64};
            snprintf(name, sizeof name, "attn_chunk %s 128 x %d", names[type], group);
            LINE(name, k->attn_chunk[type](&a));
        }
    }
}

void bench(void) {
    uint8_t *w = scratch(0, MEMORY);
    memset(w, 1, MEMORY);
    for (int l = 0; l < n_levels; l++) {
        printf("%s\n", levels[l]->level);
        for (uint32_t type = 0; type < QTYPE_COUNT; type++) {
            char slot[64];
            if (!qtype_get(type) || !qtype_get(type)->act) continue;
            snprintf(slot, sizeof slot, "matmul_%s", qtype_get(type)->name);
            if (slot_own(levels[l], slot)) bench_matmul(levels[l], type, w);
        }
        bench_vectors(levels[l]);
        bench_attention(levels[l]);
    }
}
