#include "cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* CPUID and XCR0 themselves: what compilers offer for it has not all names everywhere, and answers 0 with zig's run-time library. */
static int bits(unsigned word, unsigned wanted) { return (word & wanted) == wanted; }

/* The registers that the system saves: 6 AVX's, 0xe0 AVX-512's. */
static int saved(unsigned wanted) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bits(c, bit_OSXSAVE)) return 0;
    __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return bits(a, wanted);
}

static int has_avx2(void) {
    unsigned a, b, c, d;
    return saved(6) && __get_cpuid(1, &a, &b, &c, &d) && bits(c, bit_AVX | bit_FMA | bit_F16C) && __get_cpuid_count(7, 0, &a, &b, &c, &d) &&
           bits(b, bit_AVX2);
}

static int has_avx512vnni(void) {
    unsigned a, b, c, d;
    return saved(0xe6) && __get_cpuid_count(7, 0, &a, &b, &c, &d) && bits(b, bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL) &&
           bits(c, bit_AVX512VNNI);
}

/* What simd_avxvnni.h was built for. Leaf 7 names its last sub-leaf in eax; compilers learned the feature's name late. */
static int has_avxvnni(void) {
#ifdef PYLLM_AVXVNNI_EVEX
    return has_avx512vnni();
#else
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
#endif
}

/* AMX tiles and their 8-bit products. Linux hands out the registers on demand, for good and to the whole process: signal frames of threads that use them
   take 8 KB more, and the request fails where a thread's alternate signal stack is too small for that. */
static int has_amx(void) {
#if defined(__linux__)
    enum { TILE_BITS = 1 << 24 | 1 << 25, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & TILE_BITS) == TILE_BITS && !syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA);
#else
    return 0;
#endif
}
#endif

#if defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return getauxval(AT_HWCAP) >> 20 & 1; }      /* HWCAP_ASIMDDP */
static int has_i8mm(void) { return getauxval(AT_HWCAP2) >> 13 & 1; }        /* HWCAP2_I8MM */
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int feature(const char *name) {
    int on = 0;
    size_t size = sizeof on;
    return !sysctlbyname(name, &on, &size, NULL, 0) && on;
}
static int has_dotprod(void) { return feature("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
#include <windows.h>
static int has_dotprod(void) { return IsProcessorFeaturePresent(43); }      /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
static int has_i8mm(void) { return IsProcessorFeaturePresent(66); }         /* PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE */
#else
static int has_dotprod(void) { return 0; }
static int has_i8mm(void) { return 0; }
#endif
#endif

int cpu_has(const char *level) {
    if (!strcmp(level, "ref")) return 1;
#if defined(__x86_64__)
    int avx2 = has_avx2();
    if (!strcmp(level, "avx2")) return avx2;
    if (!strcmp(level, "avxvnni")) return avx2 && has_avxvnni();
    if (!strcmp(level, "avx512vnni")) return avx2 && has_avx512vnni();
    if (!strcmp(level, "amx")) return avx2 && has_avx512vnni() && has_amx();
#elif defined(__aarch64__)
    if (!strcmp(level, "neon")) return 1;       /* part of the base architecture */
    if (!strcmp(level, "dotprod")) return has_dotprod();
    if (!strcmp(level, "i8mm")) return has_dotprod() && has_i8mm();
#endif
    return 0;
}
