/* Speed of the kernels of every level, one thread, as lines that tools/performance.py makes a table of. Weights of one row come from memory
 * (256 MB), those of 512 rows from the L2 cache (256 KB) while 64 panels of 8 rows pass over them. Shares are of what a plain read loop gets
 * from memory, and of the level's dot product alone, both measured beside each type. */
#include "kernel_test.h"

#include "../../csrc/base/bandwidth.h"
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

enum { K = 2304, MEMORY = 256 << 20, CACHE = 256 << 10, MANY = 512 };

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

/* MANY rows in panels of `panel`. */
static void many_rows(const kernels *k, uint32_t type, const uint8_t *w, int64_t groups, const void *a, int panel, size_t panel_bytes, float *y) {
    matmul_fn *mm = panel > PANEL ? k->matmul_wide[type] : k->matmul[type];
    for (int p = 0; p < MANY / panel; p++)
        mm(w, pack_group_bytes(type, K), groups, K, (const char *)a + (size_t)p * panel_bytes, K, panel, y, groups * GROUP);
}

static void bench_matmul(const kernels *k, uint32_t type, uint8_t *w) {
    size_t group = pack_group_bytes(type, K);
    int act = qtype_get(type)->act, panel = k->matmul_wide[type] ? WIDE_PANEL : PANEL;
    size_t panel_bytes = act == 1 ? PANEL * K * sizeof(float) : act_panel_bytes(K, panel);
    float *x = scratch(2, MANY * K * sizeof *x);
    char *panels = scratch(3, act_panel_bytes(K, MANY));
    fill_floats(x, MANY * K, FILL_NORMAL);
    double one, many, read = 0, peak;
    uint32_t sum;
    int8_t bytes[32] = {1, 2, 3, 4};
    int64_t n = fill_groups(type, w, k == levels[0] ? MEMORY / 64 : MEMORY), few = (int64_t)(CACHE / group) ? (int64_t)(CACHE / group) : 1;
    float *y = scratch(4, (size_t)(n * GROUP + panel * few * GROUP) * sizeof *y);
    if (act > 1) levels[0]->quantize_act(x, K, 1, K, act, (act_unit *)panels);
    BEST(one, k->matmul[type](w, group, n, K, act == 1 ? (void *)x : panels, K, 1, y, n * GROUP));
    read_bandwidth(1, MEMORY, &read, NULL);
    for (int p = 0; p < MANY / panel && act > 1; p++)
        levels[0]->quantize_act(x + p * panel * K, K, panel, K, act, (act_unit *)(panels + (size_t)p * panel_bytes));
    BEST(many, many_rows(k, type, w, few, act == 1 ? (void *)x : panels, panel, panel_bytes, y));
    int64_t products = k->dot_peak(1000, bytes, &sum);
    BEST(peak, k->dot_peak(1000, bytes, &sum));
    double rate = (double)group * (double)n / one, macs = (double)few * GROUP * K * MANY / many, most = (double)products / peak;
    printf("  %-10s 1 row %6.2f GB/s %3.0f %%   512 rows %7.2f GMAC/s %3.0f %%\n", qtype_get(type)->name, rate * 1e-9, 100 * rate / read, macs * 1e-9,
           100 * macs / most * (act == 1 ? 4 : 1));
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
    static const char *const names[KV_TYPES] = {"f32", "f16", "q8_0", "q4_0"};
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
            attn_args a = {.q = q, .ldq = group * DIM, .rows = 1, .group = group, .dim = DIM, .v_dim = DIM, .scale = 0.01f, .k_pages = pages, .v_pages = pages,
                           .next_pages = pages, .lo = &lo, .hi = &hi, .m = out, .l = out + ATTN_MAX, .o = out + 2 * ATTN_MAX,
                           .scratch = work + (64 - (uintptr_t)work % 64) % 64};
            snprintf(name, sizeof name, "attn_chunk %s 128 x %d", names[type], group);
            LINE(name, k->attn_chunk[type](&a));
        }
    }
}

void bench(void) {
    uint8_t *w = scratch(0, MEMORY + 64);
    w += (64 - (uintptr_t)w % 64) % 64;             /* as the engine's */
    memset(w, 1, MEMORY);
    for (int l = 0; l < n_levels; l++) {
        printf("%s\n", levels[l]->level);
        for (uint32_t type = 0; type < QTYPE_COUNT; type++) {
            char slot[64], wide[64];
            if (!qtype_get(type) || !qtype_get(type)->act || (only_type && strcmp(only_type, qtype_get(type)->name))) continue;
            snprintf(slot, sizeof slot, "matmul_%s", qtype_get(type)->name);
            snprintf(wide, sizeof wide, "matmul_wide_%s", qtype_get(type)->name);
            if (slot_own(levels[l], slot) || slot_own(levels[l], wide)) bench_matmul(levels[l], type, w);
        }
        if (only_type) continue;
        bench_vectors(levels[l]);
        bench_attention(levels[l]);
    }
}
