/* The only source of memory in the C core, so that a test build (-DPYLLM_FAULTS) can count calls and make the Nth fail.
   Thread creation passes through fault_point() too. All functions are thread-safe. */
#ifndef PYLLM_BASE_ALLOC_H
#define PYLLM_BASE_ALLOC_H
#include <stddef.h>
#include <stdint.h>

/* 64-byte aligned, uninitialised; NULL when out of memory or n overflows. mem_alloc(0) returns a unique pointer. */
void *mem_alloc(size_t n);
void *mem_zalloc(size_t n);                     /* zeroed */
void *mem_array(size_t count, size_t size);     /* zeroed, overflow-checked product */
void *mem_realloc(void *p, size_t n);           /* keeps old contents; on failure p stays valid */
void mem_free(void *p);                         /* NULL is fine */

/* Large buffers (weights, KV pages): zeroed pages straight from the system, huge pages advised. */
void *mem_map(size_t n);
void mem_unmap(void *p, size_t n);

/* 0 to go on, -1 when the test build wants this call to fail. In normal builds always 0. */
int fault_point(void);
#endif
