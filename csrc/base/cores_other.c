/* What base/cores.c tells, on other systems than Linux. */
#ifndef __linux__
#include "threads.h"

enum { L2_UNKNOWN = 512 << 10 };

#if defined(__APPLE__)
#include <sys/sysctl.h>

/* 0 if the system has no such number. */
static int64_t number(const char *name) {
    int64_t v = 0;
    size_t size = sizeof v;
    return sysctlbyname(name, &v, &size, NULL, 0) || v < 0 ? 0 : size == 4 ? (int64_t)(int32_t)v : v;
}

int threads_allowed(void) {
    int64_t n = number("hw.logicalcpu");
    return n < 1 ? 1 : (int)n;
}

/* Performance level 0 are the fastest cores; Macs with Intel CPUs have one level, without a number. */
int threads_default(void) {
    int64_t n = number("hw.perflevel0.physicalcpu");
    if (!n) n = number("hw.physicalcpu");
    return n < 1 ? 1 : (int)n;
}

size_t cache_l2_bytes(void) {
    int64_t n = number("hw.perflevel0.l2cachesize"), cores = number("hw.perflevel0.cpusperl2");
    if (!n) n = number("hw.l2cachesize");
    return n ? (size_t)(n / (cores ? cores : 1)) : L2_UNKNOWN;
}

#elif defined(_WIN32)
#include <windows.h>

enum { ROOM = 64 << 10 };
typedef SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX record;

/* Calls fn with every record of a kind. */
static void each_record(LOGICAL_PROCESSOR_RELATIONSHIP kind, void (*fn)(const record *r, int64_t *out), int64_t *out) {
    static _Thread_local _Alignas(16) char room[ROOM];
    DWORD bytes = ROOM;
    if (!GetLogicalProcessorInformationEx(kind, (record *)room, &bytes)) return;
    for (DWORD at = 0; at < bytes;) {
        const record *r = (const record *)(room + at);
        fn(r, out);
        at += r->Size;
    }
}

/* out: the best efficiency class so far, cores that have it. */
static void count_core(const record *r, int64_t *out) {
    int64_t class = r->Processor.EfficiencyClass + 1;       /* higher is faster */
    if (class > out[0]) out[0] = class, out[1] = 0;
    out[1] += class == out[0];
}

/* out: the smallest second-level cache. */
static void note_cache(const record *r, int64_t *out) {
    if (r->Cache.Level == 2 && (!*out || r->Cache.CacheSize < *out)) *out = r->Cache.CacheSize;
}

int threads_allowed(void) {
    DWORD_PTR mine = 0, all = 0;
    int n = 0;
    if (GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
        for (; mine; mine &= mine - 1) n++;
    return n ? n : (int)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
}

int threads_default(void) {
    int64_t cores[2] = {0, 0};
    int allowed = threads_allowed();
    each_record(RelationProcessorCore, count_core, cores);
    return cores[1] < 1 || cores[1] > allowed ? allowed : (int)cores[1];
}

size_t cache_l2_bytes(void) {
    int64_t n = 0;
    each_record(RelationCache, note_cache, &n);
    return n ? (size_t)n : L2_UNKNOWN;
}

#else
int threads_allowed(void) { return 1; }
int threads_default(void) { return 1; }
size_t cache_l2_bytes(void) { return L2_UNKNOWN; }
#endif
#endif
