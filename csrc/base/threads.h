/* A persistent pool: the caller is worker 0, n-1 threads help. Between jobs of one running step the helpers spin (bounded);
   when no job comes they sleep on a condition variable, so an idle pool costs no CPU. */
#ifndef PYLLM_BASE_THREADS_H
#define PYLLM_BASE_THREADS_H
#include "err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct pool pool;

/* n >= 1 workers in all. NULL when memory or threads run out (nothing is leaked). */
pool *pool_new(int n);
void pool_free(pool *p);
int pool_size(const pool *p);

/* Calls fn(ctx, item, worker) once for every item in [0, n), n < 2^32, and returns when all are done. Every worker walks through n/workers
   neighbouring items of its own, `grain` at a time; who is done early takes half of what another has left. Items must be independent.
   Returns 0, or PYLLM_ERR_CANCELLED when *cancel was seen to be non-zero and items were left out (cancel may be NULL; the flag may have
   changed again meanwhile, so only this result tells). Called by one thread at a time. The float environment of every worker is
   nearest-even, no FTZ/DAZ. */
typedef void (*pool_fn)(void *ctx, int64_t item, int worker);
int pool_run(pool *p, pool_fn fn, void *ctx, int64_t n, int64_t grain, const volatile int32_t *cancel);
/* Reads a flag that another thread may be setting (pyllm_cancel_set); NULL is never set. */
int cancelled(const volatile int32_t *flag);

/* Float environment: sets round-to-nearest with subnormals kept, returns the previous state for fpenv_restore. */
uint64_t fpenv_enter(void);
void fpenv_restore(uint64_t saved);

/* Physical performance cores that this process may use: affinity mask and cgroup quota, at least 1. */
int threads_default(void);
/* CPUs (hardware threads) that it may use: more workers than these would wait for each other. */
int threads_allowed(void);
/* Second-level data cache of a core, in bytes; 512 KB where the system does not tell. Slow: ask once. */
size_t cache_l2_bytes(void);
#endif
