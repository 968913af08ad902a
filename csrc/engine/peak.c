#include "peak.h"

#include "../base/threads.h"

#include <stdatomic.h>
#include <time.h>

enum { PASSES = 7, ROUNDS = 1250, ITEMS = 16 };    /* ITEMS a worker and pass; an item takes well under a millisecond but with ref */

typedef struct job {
    const kernels *k;
    int8_t a[32];
    atomic_llong macs;
    atomic_uint sum;            /* what is summed must be used, or the compiler drops the work */
} job;

static void run(void *ctx, int64_t item, int worker) {
    (void)item, (void)worker;
    job *j = ctx;
    uint32_t sum;
    atomic_fetch_add(&j->macs, j->k->dot_peak(ROUNDS, j->a, &sum));
    atomic_fetch_add(&j->sum, sum);
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int dot_peak(const kernels *k, int n_threads, double *macs_per_s, pyllm_error *err) {
    double rates[PASSES];
    pool *p = pool_new(n_threads);
    if (!p) return err_set(err, PYLLM_ERR_MEMORY, "no memory or threads for measuring multiply-adds");
    for (int n = 0; n < PASSES; n++) {
        job j = {.k = k, .a = {1, 2, 3, 1}};
        double start = now_s();
        pool_run(p, run, &j, (int64_t)ITEMS * n_threads, 1, NULL);
        double rate = (double)j.macs / (now_s() - start);
        int at = n;
        for (; at > 0 && rates[at - 1] > rate; at--) rates[at] = rates[at - 1];
        rates[at] = rate;
    }
    pool_free(p);
    *macs_per_s = rates[PASSES / 2];
    return 0;
}
