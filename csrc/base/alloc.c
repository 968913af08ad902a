#define _GNU_SOURCE
#include "alloc.h"

#include "../pyllm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#include <malloc.h>
#include <windows.h>
#define aligned_take(n) _aligned_malloc(n, 64)
#define aligned_resize(p, n) _aligned_realloc(p, n, 64)
#define aligned_give _aligned_free
#else
#include <sys/mman.h>
static void *aligned_take(size_t n) {
    void *p = NULL;
    return posix_memalign(&p, 64, n) ? NULL : p;
}
#define aligned_resize realloc              /* alignment beyond malloc's is not kept; callers of mem_realloc hold plain data */
#define aligned_give free
#endif

#ifdef PYLLM_FAULTS
static atomic_llong calls, live, fail_at, fail_forever;

int fault_point(void) {
    long long n = atomic_fetch_add(&calls, 1) + 1, at = atomic_load(&fail_at);
    return at > 0 && (n == at || (n > at && atomic_load(&fail_forever))) ? -1 : 0;
}
static void live_add(int d) { atomic_fetch_add(&live, d); }

PYLLM_API void pyllm_fault_set(int64_t nth, int forever) {
    atomic_store(&calls, 0);
    atomic_store(&fail_forever, forever);
    atomic_store(&fail_at, nth);
}
PYLLM_API int64_t pyllm_fault_calls(void) { return atomic_load(&calls); }
PYLLM_API int64_t pyllm_fault_live(void) { return atomic_load(&live); }
#else
int fault_point(void) { return 0; }
static void live_add(int d) { (void)d; }
#endif

void *mem_alloc(size_t n) {
    if (n > (size_t)PTRDIFF_MAX - 64 || fault_point()) return NULL;
    void *p = aligned_take(n ? n : 1);
    if (p) live_add(1);
    return p;
}

void *mem_zalloc(size_t n) {
    void *p = mem_alloc(n);
    if (p) memset(p, 0, n);
    return p;
}

void *mem_array(size_t count, size_t size) {
    size_t n;
    if (__builtin_mul_overflow(count, size, &n)) return NULL;
    return mem_zalloc(n);
}

void *mem_realloc(void *p, size_t n) {
    if (!p) return mem_alloc(n);
    if (n > (size_t)PTRDIFF_MAX - 64 || fault_point()) return NULL;
    return aligned_resize(p, n ? n : 1);
}

void mem_free(void *p) {
    if (!p) return;
    live_add(-1);
    aligned_give(p);
}

void *mem_map(size_t n) {
    if (n > (size_t)PTRDIFF_MAX - 4096 || fault_point()) return NULL;
#ifdef _WIN32
    void *p = VirtualAlloc(NULL, n ? n : 1, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (!p) return NULL;
#else
    void *p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (n >= (4u << 20)) madvise(p, n, MADV_HUGEPAGE);
#endif
#endif
    live_add(1);
    return p;
}

void mem_unmap(void *p, size_t n) {
    if (!p) return;
    live_add(-1);
#ifdef _WIN32
    (void)n;
    VirtualFree(p, 0, MEM_RELEASE);
#else
    munmap(p, n ? n : 1);
#endif
}
