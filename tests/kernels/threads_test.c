/* The thread pool under ThreadSanitizer and with failing allocations. Data that a job shares is plain memory on purpose: a
 * missing or double item, or a missing order between jobs, is then a race that the sanitizer reports. Built by
 * tests/unit/test_threads.py with -fsanitize=thread -DPYLLM_FAULTS; prints the first wrong line and returns 1. */
#define _GNU_SOURCE
#include "../../csrc/base/alloc.h"
#include "../../csrc/base/threads.h"

#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { printf("%s:%d: %s\n", __FILE__, __LINE__, #c); return 1; } } while (0)

void pyllm_fault_set(int64_t nth, int forever);
int64_t pyllm_fault_live(void);

enum { ITEMS = 5000, WORKERS = 8 };
static uint32_t value[2][ITEMS];
static int64_t done_by[WORKERS];
static volatile int32_t cancel;
static atomic_int started, wrong;

static double cpu_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Job k adds to what job k-1 left, also at a neighbour that another worker wrote. ctx: the number of items. */
static void step_even(void *ctx, int64_t i, int worker) {
    int64_t n = *(int64_t *)ctx;
    value[1][i] = value[0][i] + value[0][(i + 7) % n] + 1;
    done_by[worker]++;
}

static void step_odd(void *ctx, int64_t i, int worker) {
    int64_t n = *(int64_t *)ctx;
    value[0][i] = value[1][i] - value[1][(i + 3) % n];
    done_by[worker]++;
}

static int every_item_once_and_in_order(int workers) {
    static uint32_t want[2][ITEMS];
    pool *p = pool_new(workers);
    CHECK(p && pool_size(p) == workers);
    static const int64_t sizes[] = {0, 1, 2, 7, 64, 1000, ITEMS};
    memset(value, 0, sizeof value);
    memset(want, 0, sizeof want);
    memset(done_by, 0, sizeof done_by);
    int64_t total = 0, sum = 0;
    for (int round = 0; round < 60; round++)
        for (int k = 0; k < 7; k++) {
            int64_t n = sizes[k], grain = 1 + (round * 5 + k) % 40;
            pool_run(p, step_even, &n, n, grain, NULL);
            pool_run(p, step_odd, &n, n, grain + 3, &cancel);
            for (int64_t i = 0; i < n; i++) want[1][i] = want[0][i] + want[0][(i + 7) % n] + 1;
            for (int64_t i = 0; i < n; i++) want[0][i] = want[1][i] - want[1][(i + 3) % n];
            total += 2 * n;
            if (round % 20 == 9 && k == 3) usleep(3000);        /* helpers fall asleep */
        }
    CHECK(!memcmp(value, want, sizeof want));
    for (int w = 0; w < WORKERS; w++) {
        CHECK(w < workers || !done_by[w]);
        sum += done_by[w];
    }
    CHECK(sum == total);
    pool_free(p);
    return 0;
}

static double wall_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* Sleeping, so that four workers need no four CPUs. ctx: how many times slower worker 1 is. */
static void take_time(void *ctx, int64_t i, int worker) {
    (void)i;
    usleep(worker == 1 ? 200u * *(unsigned *)ctx : 200u);
}

/* One worker of four at a quarter of the others' speed: 4 / 3.25 = 1.23 times as long is the least that is possible. */
static int a_slow_worker_delays_the_others_little(void) {
    double best[2] = {1e9, 1e9};
    pool *p = pool_new(4);
    CHECK(p);
    for (int round = 0; round < 10; round++) {
        unsigned slower = round % 2 ? 4 : 1;
        double begin = wall_ms();
        pool_run(p, take_time, &slower, 400, 1, NULL);
        double taken = wall_ms() - begin;
        if (taken < best[round % 2]) best[round % 2] = taken;
    }
    pool_free(p);
    if (best[1] > 1.35 * best[0]) printf("one slow worker: %.1f ms instead of %.1f\n", best[1], best[0]);
    CHECK(best[1] <= 1.35 * best[0]);
    return 0;
}

static void count_then_cancel(void *ctx, int64_t i, int worker) {
    (void)i;
    (void)worker;
    if (atomic_fetch_add(&started, 1) + 1 >= *(int *)ctx) __atomic_store_n(&cancel, 1, __ATOMIC_RELAXED);
}

static int cancel_stops_at_the_next_chunk(void) {
    pool *p = pool_new(4);
    CHECK(p);
    for (int at = 1; at < 2000; at += 333) {
        atomic_store(&started, 0);
        pool_run(p, count_then_cancel, &at, ITEMS, 10, &cancel);
        int n = atomic_load(&started);
        CHECK(n >= at && n < at + 4 * 10);              /* every worker may finish the chunk that it is in */
        pool_run(p, count_then_cancel, &at, ITEMS, 10, &cancel);
        CHECK(atomic_load(&started) == n);              /* still set: nothing starts */
        __atomic_store_n(&cancel, 0, __ATOMIC_RELAXED);
    }
    pool_free(p);
    return 0;
}

/* To nearest, and subnormals are neither read nor written as zero. */
static int environment_is_ours(void) {
    volatile float third = 1.0f, small = 1e-38f;
    third /= 3;
    small *= 0.5f;
    return third == 0x1.555556p-2f && small > 0 && small < 1e-38f;
}

/* Holds workers until all of them are in the job, then looks at what each one inherited. */
static void look_around(void *ctx, int64_t i, int worker) {
    (void)i;
    atomic_fetch_add(&started, 1);
    while (atomic_load(&started) < *(int *)ctx) usleep(100);
    sigset_t blocked;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    if (worker && (!environment_is_ours() || !sigismember(&blocked, SIGINT) || !sigismember(&blocked, SIGTERM))) atomic_store(&wrong, 1);
}

static int helpers_have_their_own_environment(void) {
    int n = 5;
    fesetround(FE_DOWNWARD);
#if defined(__x86_64__)
    __builtin_ia32_ldmxcsr(__builtin_ia32_stmxcsr() | 0x8040);      /* FTZ, DAZ */
#endif
    uint64_t hostile = fpenv_enter();
    fpenv_restore(hostile);
    pool *p = pool_new(n);
    CHECK(p);
    atomic_store(&started, 0);
    pool_run(p, look_around, &n, n, 1, NULL);
    pool_free(p);
    CHECK(!atomic_load(&wrong));
    CHECK(!environment_is_ours());                                  /* the caller's own is as before */
    CHECK((fpenv_enter() | 0x3f) == (hostile | 0x3f));              /* the low bits note past exceptions */
    CHECK(environment_is_ours());
    fpenv_restore(hostile);
    CHECK(!environment_is_ours());
    fpenv_enter();
    return 0;
}

static int idle_costs_nothing(void) {
    int64_t n = 1000;
    pool *p = pool_new(4);
    CHECK(p);
    pool_run(p, step_even, &n, n, 1, NULL);
    usleep(50000);
    double before = cpu_ms();
    usleep(200000);
    double spent = cpu_ms() - before;
    if (spent > 20) printf("%.1f ms of CPU in 200 ms of idling\n", spent);
    CHECK(spent <= 20);                     /* one helper that did not sleep would take 200; the sanitizer's own thread a little */
    pool_run(p, step_odd, &n, n, 1, NULL);
    pool_free(p);
    return 0;
}

static int failures_leave_nothing_behind(void) {
    int64_t live = pyllm_fault_live();
    int failed = 0;
    for (int nth = 1;; nth++) {
        pyllm_fault_set(nth, 0);
        pool *p = pool_new(3);
        pyllm_fault_set(0, 0);
        failed += !p;
        pool_free(p);
        CHECK(pyllm_fault_live() == live);
        if (p) break;
    }
    CHECK(failed == 7);                     /* the pool, its two arrays, and for each of two helpers its start record and its thread */
    for (int i = 0; i < 30; i++) pool_free(pool_new(1 + i % 5));        /* freed before the helpers have looked for work */
    pool_free(NULL);
    return 0;
}

int main(void) {
    static const int workers[] = {1, 2, 3, WORKERS};
    for (int i = 0; i < 4; i++)
        if (every_item_once_and_in_order(workers[i])) return 1;
    if (a_slow_worker_delays_the_others_little()) return 1;
    if (cancel_stops_at_the_next_chunk() || helpers_have_their_own_environment() || idle_costs_nothing()) return 1;
    if (failures_leave_nothing_behind()) return 1;
    CHECK(threads_default() >= 1 && threads_allowed() >= threads_default());
    puts("ok");
    return 0;
}
