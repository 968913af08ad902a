#define _GNU_SOURCE
#include "alloc.h"

#include "../pyllm.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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
    void *p = NULL;
    if (n > (size_t)PTRDIFF_MAX - 64 || fault_point()) return NULL;
    if (posix_memalign(&p, 64, n ? n : 1)) return NULL;
    live_add(1);
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
    return realloc(p, n ? n : 1);   /* alignment beyond malloc's is not kept; callers of mem_realloc hold plain data */
}

void mem_free(void *p) {
    if (!p) return;
    live_add(-1);
    free(p);
}

void *mem_map(size_t n) {
    if (n > (size_t)PTRDIFF_MAX - 4096 || fault_point()) return NULL;
    void *p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return NULL;
#ifdef MADV_HUGEPAGE
    if (n >= (4u << 20)) madvise(p, n, MADV_HUGEPAGE);
#endif
    live_add(1);
    return p;
}

void mem_unmap(void *p, size_t n) {
    if (!p) return;
    live_add(-1);
    munmap(p, n ? n : 1);
}
