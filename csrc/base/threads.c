#define _GNU_SOURCE
#include "threads.h"

#include "alloc.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#if defined(__x86_64__)
#define PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

enum { STACK_BYTES = 512 << 10, SPIN_NS = 1000000 };    /* a spinning worker covers the gaps of one running step */

struct pool {
    int n;
    /* the job; written by the caller before `generation` moves */
    pool_fn fn;
    void *ctx;
    int64_t items, grain;
    const volatile int32_t *cancel;
    _Alignas(64) atomic_llong next;
    _Alignas(64) atomic_uint generation;
    _Alignas(64) atomic_int busy;
    _Alignas(64) atomic_int sleepers;
    int stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *threads;
    int started;
};

typedef struct start {
    pool *p;
    int worker;
} start;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void work(pool *p, int worker) {
    for (;;) {
        int64_t i = atomic_fetch_add_explicit(&p->next, p->grain, memory_order_relaxed);
        if (i >= p->items || (p->cancel && *p->cancel)) return;
        int64_t end = i + p->grain < p->items ? i + p->grain : p->items;
        for (; i < end; i++) p->fn(p->ctx, i, worker);
    }
}

/* Waits until the generation differs from `seen`: spins for SPIN_NS, yielding now and then, then sleeps. */
static unsigned await(pool *p, unsigned seen) {
    unsigned g;
    int64_t until = now_ns() + SPIN_NS;
    for (int spins = 0;; spins++) {
        if ((g = atomic_load_explicit(&p->generation, memory_order_acquire)) != seen) return g;
        PAUSE();
        if ((spins & 255) != 255) continue;
        if (now_ns() > until) break;
        if ((spins & 4095) == 4095) sched_yield();      /* more workers than cores: let the others run */
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while ((g = atomic_load(&p->generation)) == seen) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return g;
}

static void *worker_main(void *arg) {
    start s = *(start *)arg;
    mem_free(arg);
    fpenv_enter();
    for (unsigned seen = 0;;) {
        seen = await(s.p, seen);
        if (s.p->stop) return NULL;
        work(s.p, s.worker);
        atomic_fetch_sub_explicit(&s.p->busy, 1, memory_order_release);
    }
}

static int start_worker(pool *p, int worker) {
    pthread_attr_t attr;
    start *s = mem_alloc(sizeof *s);
    if (!s) return -1;
    *s = (start){p, worker};
    int rc = fault_point();
    if (!rc) {
        pthread_attr_init(&attr);
        pthread_attr_setstacksize(&attr, STACK_BYTES);
        rc = pthread_create(&p->threads[worker - 1], &attr, worker_main, s);
        pthread_attr_destroy(&attr);
    }
    if (rc) mem_free(s);
    return rc ? -1 : 0;
}

pool *pool_new(int n) {
    pool *p = mem_zalloc(sizeof *p);
    if (!p) return NULL;
    p->n = n;
    p->threads = mem_array((size_t)n, sizeof *p->threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    sigset_t all, old;              /* the host's signals stay with the host's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    for (int w = 1; p->threads && w < n && !start_worker(p, w); w++) p->started = w;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!p->threads || p->started < n - 1) {
        pool_free(p);
        return NULL;
    }
    return p;
}

static void post(pool *p) {
    atomic_fetch_add(&p->generation, 1);
    if (!atomic_load(&p->sleepers)) return;
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

void pool_free(pool *p) {
    if (!p) return;
    p->stop = 1;
    post(p);
    pthread_mutex_lock(&p->lock);       /* a worker between its check and its wait has the lock; then it sees the broadcast */
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
    for (int w = 0; w < p->started; w++) pthread_join(p->threads[w], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->threads);
    mem_free(p);
}

int pool_size(const pool *p) { return p->n; }

void pool_run(pool *p, pool_fn fn, void *ctx, int64_t n, int64_t grain, const volatile int32_t *cancel) {
    if (n <= grain || p->n == 1) {
        for (int64_t i = 0; i < n && !(cancel && *cancel); i++) fn(ctx, i, 0);
        return;
    }
    p->fn = fn;
    p->ctx = ctx;
    p->items = n;
    p->grain = grain;
    p->cancel = cancel;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->busy, p->n - 1, memory_order_relaxed);
    post(p);
    work(p, 0);
    for (int spins = 0; atomic_load_explicit(&p->busy, memory_order_acquire); spins++) {
        PAUSE();
        if ((spins & 4095) == 4095) sched_yield();
    }
}
