#include "cpu.h"

#include <string.h>

int cpu_has(const char *level) {
    if (!strcmp(level, "ref")) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();           /* checks the operating system's register state too */
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!strcmp(level, "avx2")) return avx2;
    if (!strcmp(level, "avx512vnni"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
    if (!strcmp(level, "neon")) return 1;       /* part of the base architecture */
#endif
    return 0;
}
