/* The tables, one per level: reference first, then upward, each level replacing what it does better. */
#include "init.h"

#include "../base/cpu.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define ALL_FAMILIES(level) {#level, {init_matmul_##level, init_attn_##level, init_vec_##level, init_quantize_##level, init_scan_##level}}
/* Levels that add integer dot products to the one below; the rest is inherited. */
#define DOT_FAMILIES(level) {#level, {init_matmul_##level, init_attn_##level}}
static const struct level {
    const char *name;
    kernels_init *init[5];
} levels[] = {
    ALL_FAMILIES(ref),
#if defined(__x86_64__) && !defined(PYLLM_NO_AVX2)
    ALL_FAMILIES(avx2),
#endif
#if defined(__x86_64__) && !defined(PYLLM_NO_AVXVNNI)
    DOT_FAMILIES(avxvnni),
#endif
#if defined(__x86_64__) && !defined(PYLLM_NO_AVX512VNNI)
    ALL_FAMILIES(avx512vnni),
#endif
#if defined(__x86_64__) && !defined(PYLLM_NO_AVX512VNNI) && !defined(PYLLM_NO_AMX)
    {"amx", {init_matmul_amx}},        /* the rest is that of avx512vnni */
#endif
#if defined(__aarch64__)
    ALL_FAMILIES(neon),
#endif
#if defined(__aarch64__) && !defined(PYLLM_NO_DOTPROD)
    DOT_FAMILIES(dotprod),
#endif
#if defined(__aarch64__) && !defined(PYLLM_NO_I8MM)
    {"i8mm", {init_matmul_i8mm}},
#endif
};
enum { LEVELS = sizeof levels / sizeof *levels };

static kernels tables[LEVELS];
static int supported[LEVELS];
static char names[128];
static pthread_once_t once = PTHREAD_ONCE_INIT;

void kernel_name(kernels *k, const char *name, int slot_len) {
    for (int i = 0; i < k->n_names; i++)
        if (!strncmp(k->names[i], name, (size_t)slot_len + 1)) {
            k->names[i] = name;
            return;
        }
    k->names[k->n_names++] = name;
}

static void build(void) {
    for (int l = 0; l < LEVELS; l++) {
        supported[l] = cpu_has(levels[l].name);
        if (!supported[l]) continue;
        for (int below = 0; below <= l; below++)
            for (int f = 0; f < 5; f++)
                if (supported[below] && levels[below].init[f]) levels[below].init[f](&tables[l]);
        tables[l].level = levels[l].name;
        if (*names) strcat(names, " ");
        strcat(names, levels[l].name);
    }
}

const kernels *kernels_get(const char *level) {
    pthread_once(&once, build);
    if (!level) level = getenv("PYLLM_CPU");
    for (int l = LEVELS - 1; l >= 0; l--)
        if (supported[l] && (!level || !*level || !strcmp(level, levels[l].name))) return &tables[l];
    return NULL;
}

const char *kernels_levels(void) {
    pthread_once(&once, build);
    return names;
}
