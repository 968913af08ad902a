#define _GNU_SOURCE
#include "bandwidth.h"

#include "alloc.h"
#include "threads.h"

#include <time.h>

enum {
    BLOCK = 1 << 20,                    /* bytes of one item: long enough for hardware prefetch, short enough to share fairly */
    LANES = 16,                         /* independent sums, so that additions hide behind loads */
    PASSES = 7
};

typedef struct job {
    uint64_t *data;
    uint64_t *sums;                     /* of each block: what is summed must be used, or the compiler drops the reads */
} job;

/* Fills, and so places, a block: pages come from the memory of the CPU that touches them first. */
static void fill(void *ctx, int64_t item, int worker) {
    (void)worker;
    uint64_t *p = ((job *)ctx)->data + item * (BLOCK / 8);
    for (int i = 0; i < BLOCK / 8; i++) p[i] = (uint64_t)i;
}

static void sum(void *ctx, int64_t item, int worker) {
    (void)worker;
    const job *j = ctx;
    const uint64_t *p = j->data + item * (BLOCK / 8);
    uint64_t lanes[LANES] = {0}, total = 0;
    for (int i = 0; i < BLOCK / 8; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += p[i + l];
    for (int l = 0; l < LANES; l++) total += lanes[l];
    j->sums[item] = total;
}

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Median of the passes: an interruption spoils one of them, and the first one still warms up. */
static double median_pass(pool *p, job *j, int64_t items) {
    double seconds[PASSES];
    for (int n = 0; n < PASSES; n++) {
        double start = now_s();
        pool_run(p, sum, j, items, 1, NULL);
        double taken = now_s() - start;
        int at = n;
        for (; at > 0 && seconds[at - 1] > taken; at--) seconds[at] = seconds[at - 1];
        seconds[at] = taken;
    }
    return seconds[PASSES / 2];
}

int read_bandwidth(int n_threads, int64_t bytes, double *bytes_per_s, pyllm_error *err) {
    int64_t items = bytes / BLOCK;
    size_t n = (size_t)items * BLOCK;
    pool *p = pool_new(n_threads);
    job j = {mem_map(n), mem_array((size_t)items, sizeof *j.sums)};
    int rc = 0;
    if (p && j.data && j.sums) {
        pool_run(p, fill, &j, items, 1, NULL);
        *bytes_per_s = (double)n / median_pass(p, &j, items);
        for (int64_t i = 1; i < items; i++)     /* equal blocks have equal sums; anything else is broken memory */
            if (j.sums[i] != j.sums[0]) rc = err_set(err, PYLLM_ERR_IO, "memory returned other values than were written\n"
                                                     "hint: this machine's memory is faulty");
    } else {
        rc = err_set(err, PYLLM_ERR_MEMORY, "no %lld MB for measuring memory bandwidth", (long long)(n >> 20));
    }
    mem_free(j.sums);
    mem_unmap(j.data, n);
    pool_free(p);
    return rc;
}
