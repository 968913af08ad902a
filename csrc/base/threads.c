/* The pool. One 64-bit word says what goes on: the generation of the job (odd while it is open) in the high half, the number
 * of helpers inside in the low half. A helper enters an open job by adding 1, the caller closes the job when the items are
 * handed out and then waits for those inside only. So a helper that the system has not scheduled yet delays nobody. */
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

enum {
    STACK_BYTES = 256 << 10,
    SPIN_NS = 1000000,              /* longer than the gaps between a step's jobs: waking a sleeper takes 20 us or more */
    SHORT_NS = 50000,               /* after that, spinning may be keeping a CPU from whoever is waited for: yield */
    SPINS_PER_LOOK = 64             /* pauses between looks at the clock, about 2 us */
};

struct pool {
    int n, started;
    int crowded;                        /* more workers than CPUs: yield at once, sleep soon */
    /* the job; written by the caller while the job is closed and nobody is inside */
    pool_fn fn;
    void *ctx;
    int64_t items, grain;
    const volatile int32_t *cancel;
    atomic_int left_out;                /* a worker saw *cancel */
    /* each on its own cache line: `next` is hammered while helpers that wait read `state` */
    _Alignas(64) atomic_llong next;
    _Alignas(64) atomic_ullong state;
    _Alignas(64) atomic_int sleepers;
    atomic_int stop;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t *threads;
};

typedef struct helper {
    pool *p;
    int worker;
} helper;

#define ONE_GENERATION (1ull << 32)

static uint32_t generation(unsigned long long state) { return (uint32_t)(state >> 32); }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

int cancelled(const volatile int32_t *flag) { return flag && __atomic_load_n(flag, __ATOMIC_RELAXED); }

/* Takes items [*first, returned end) off the job; 0 if none is left. The more there are, the more a worker takes: neighbours in memory then
   stream past without a gap, and the last pieces are small, so that a slow worker delays the others little. */
static int64_t claim(pool *p, int64_t *first) {
    long long i = atomic_load_explicit(&p->next, memory_order_relaxed), end;
    do {
        if (i >= p->items) return 0;
        int64_t n = (p->items - i) / (2 * p->n);
        if (n < p->grain) n = p->grain;
        end = p->items - i > n ? i + n : p->items;
    } while (!atomic_compare_exchange_weak_explicit(&p->next, &i, end, memory_order_relaxed, memory_order_relaxed));
    *first = i;
    return end;
}

static void work(pool *p, int worker) {
    for (int64_t i, end; (end = claim(p, &i));)
        for (; i < end; i++) {
            if (cancelled(p->cancel)) {
                atomic_store_explicit(&p->left_out, 1, memory_order_relaxed);
                return;
            }
            p->fn(p->ctx, i, worker);
        }
}

/* ---- helpers ---- */

/* Enters the open job, if there is one that this helper has not been in (*seen). */
static int enter(pool *p, uint32_t *seen) {
    unsigned long long s = atomic_load(&p->state);
    while ((generation(s) & 1) && generation(s) != *seen)
        if (atomic_compare_exchange_weak(&p->state, &s, s + 1)) {
            *seen = generation(s);
            return 1;
        }
    return 0;
}

/* Waits in the kernel. The caller opens a job and then looks for sleepers; a helper counts itself as one and then looks for
   a job. Both in sequentially consistent order, so that one of them sees the other. */
static int sleep_until_job(pool *p, uint32_t *seen) {
    int in;
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (!(in = enter(p, seen)) && !atomic_load(&p->stop)) pthread_cond_wait(&p->wake, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
    return in;
}

/* 1 inside a job, 0 when the pool ends. */
static int next_job(pool *p, uint32_t *seen) {
    int64_t start = now_ns(), waited = 0;
    while (!atomic_load(&p->stop) && waited < (p->crowded ? SHORT_NS : SPIN_NS)) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (enter(p, seen)) return 1;
            PAUSE();
        }
        if (p->crowded || waited > SHORT_NS) sched_yield();
        waited = now_ns() - start;
    }
    return sleep_until_job(p, seen);
}

static void *helper_main(void *arg) {
    helper h = *(helper *)arg;
    mem_free(arg);
    fpenv_enter();
    for (uint32_t seen = 0; next_job(h.p, &seen);) {
        work(h.p, h.worker);
        atomic_fetch_sub_explicit(&h.p->state, 1, memory_order_release);
    }
    return NULL;
}

static int start_helper(pool *p, int worker) {
    pthread_attr_t attr;
    helper *h = mem_alloc(sizeof *h);
    if (!h) return -1;
    *h = (helper){p, worker};
    int rc = fault_point();
    if (!rc) rc = pthread_attr_init(&attr);
    if (!rc) {
        rc = pthread_attr_setstacksize(&attr, STACK_BYTES);
        if (!rc) rc = pthread_create(&p->threads[worker - 1], &attr, helper_main, h);
        pthread_attr_destroy(&attr);
    }
    if (rc) mem_free(h);
    return rc ? -1 : 0;
}

/* ---- the caller ---- */

static void wake_sleepers(pool *p) {
    if (!atomic_load(&p->sleepers)) return;
    pthread_mutex_lock(&p->lock);       /* a helper between its last look and its wait holds it */
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
}

pool *pool_new(int n) {
    pool *p = mem_zalloc(sizeof *p);
    if (!p) return NULL;
    p->n = n;
    p->crowded = n > threads_allowed();
    p->threads = mem_array((size_t)n, sizeof *p->threads);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
    sigset_t all, old;                  /* inherited by the helpers: the host's signals stay with the host's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (p->threads && p->started < n - 1 && !start_helper(p, p->started + 1)) p->started++;
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (!p->threads || p->started < n - 1) {
        pool_free(p);
        return NULL;
    }
    return p;
}

void pool_free(pool *p) {
    if (!p) return;
    atomic_store(&p->stop, 1);
    wake_sleepers(p);
    for (int w = 0; w < p->started; w++) pthread_join(p->threads[w], NULL);
    pthread_cond_destroy(&p->wake);
    pthread_mutex_destroy(&p->lock);
    mem_free(p->threads);
    mem_free(p);
}

int pool_size(const pool *p) { return p->n; }

static int result(pool *p) { return atomic_load_explicit(&p->left_out, memory_order_relaxed) ? PYLLM_ERR_CANCELLED : 0; }

int pool_run(pool *p, pool_fn fn, void *ctx, int64_t n, int64_t grain, const volatile int32_t *cancel) {
    p->fn = fn;
    p->ctx = ctx;
    p->items = n;
    p->grain = grain;
    p->cancel = cancel;
    atomic_store_explicit(&p->next, 0, memory_order_relaxed);
    atomic_store_explicit(&p->left_out, 0, memory_order_relaxed);
    if (p->n == 1 || n <= grain) {      /* nothing to share */
        work(p, 0);
        return result(p);
    }
    atomic_fetch_add(&p->state, ONE_GENERATION);
    wake_sleepers(p);
    work(p, 0);
    unsigned long long s = atomic_fetch_add(&p->state, ONE_GENERATION) + ONE_GENERATION;
    for (int64_t start = now_ns(); (uint32_t)s;) {
        for (int i = 0; i < SPINS_PER_LOOK && (uint32_t)s; i++) {
            PAUSE();
            s = atomic_load_explicit(&p->state, memory_order_acquire);
        }
        if ((uint32_t)s && (p->crowded || now_ns() - start > SHORT_NS)) sched_yield();
    }
    return result(p);
}
