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

typedef struct range {
    _Alignas(64) atomic_ullong items;   /* written by its worker nearly always: on its own cache line */
} range;

struct pool {
    int n, started;
    int crowded;                        /* more workers than CPUs: yield at once, sleep soon */
    /* the job; written by the caller while the job is closed and nobody is inside */
    pool_fn fn;
    void *ctx;
    int64_t grain;
    const volatile int32_t *cancel;
    atomic_int left_out;                /* a worker saw *cancel */
    range *ranges;                      /* [n] */
    _Alignas(64) atomic_ullong state;   /* on its own cache line: helpers that wait read it all the time */
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

/* ---- items: every worker has a range of its own, first item in the high half of a word, end in the low half ---- */

static unsigned long long range_of(int64_t first, int64_t end) { return (unsigned long long)first << 32 | (unsigned long long)end; }
static int64_t range_first(unsigned long long r) { return (int64_t)(r >> 32); }
static int64_t range_end(unsigned long long r) { return (int64_t)(uint32_t)r; }

/* Takes up to `grain` items off the front of the worker's own range: [*first, returned end), or 0 if it is empty. What one worker takes in
   turn is contiguous in memory. */
static int64_t claim(pool *p, int worker, int64_t *first) {
    atomic_ullong *own = &p->ranges[worker].items;
    unsigned long long r = atomic_load_explicit(own, memory_order_relaxed);
    int64_t end;
    do {
        *first = range_first(r);
        if (*first >= range_end(r)) return 0;
        end = range_end(r) - *first > p->grain ? *first + p->grain : range_end(r);
    } while (!atomic_compare_exchange_weak_explicit(own, &r, range_of(end, range_end(r)), memory_order_relaxed, memory_order_relaxed));
    return end;
}

/* Moves the back half of the longest range to the worker's own, which is empty; 0 if nothing is left anywhere. So a slow worker, or one that
   the system has not scheduled, delays the others by the items that it is working on only. */
static int steal(pool *p, int worker) {
    for (;;) {
        int victim = -1;
        int64_t longest = 0;
        unsigned long long r = 0;
        for (int w = 0; w < p->n; w++) {
            unsigned long long x = atomic_load_explicit(&p->ranges[w].items, memory_order_relaxed);
            if (range_end(x) - range_first(x) > longest) longest = range_end(x) - range_first(x), victim = w, r = x;
        }
        if (victim < 0) return 0;
        int64_t middle = range_first(r) + longest / 2;
        if (atomic_compare_exchange_strong_explicit(&p->ranges[victim].items, &r, range_of(range_first(r), middle), memory_order_relaxed,
                                                    memory_order_relaxed)) {
            atomic_store_explicit(&p->ranges[worker].items, range_of(middle, range_end(r)), memory_order_relaxed);
            return 1;
        }
    }
}

static void work(pool *p, int worker) {
    do {
        for (int64_t i, end; (end = claim(p, worker, &i));)
            for (; i < end; i++) {
                if (cancelled(p->cancel)) {
                    atomic_store_explicit(&p->left_out, 1, memory_order_relaxed);
                    return;
                }
                p->fn(p->ctx, i, worker);
            }
    } while (steal(p, worker));
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
    p->ranges = mem_array((size_t)n, sizeof *p->ranges);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->wake, NULL);
#ifndef _WIN32
    sigset_t all, old;                  /* inherited by the helpers: the host's signals stay with the host's threads */
    sigfillset(&all);
    sigdelset(&all, SIGBUS);            /* a fault of the thread itself (mapping.h): blocked, it would end the process */
    pthread_sigmask(SIG_SETMASK, &all, &old);
#endif
    while (p->threads && p->ranges && p->started < n - 1 && !start_helper(p, p->started + 1)) p->started++;
#ifndef _WIN32
    pthread_sigmask(SIG_SETMASK, &old, NULL);
#endif
    if (!p->threads || !p->ranges || p->started < n - 1) {
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
    mem_free(p->ranges);
    mem_free(p->threads);
    mem_free(p);
}

int pool_size(const pool *p) { return p->n; }

static int result(pool *p) { return atomic_load_explicit(&p->left_out, memory_order_relaxed) ? PYLLM_ERR_CANCELLED : 0; }

int pool_run(pool *p, pool_fn fn, void *ctx, int64_t n, int64_t grain, const volatile int32_t *cancel) {
    p->fn = fn;
    p->ctx = ctx;
    p->grain = grain;
    p->cancel = cancel;
    int sharers = n <= grain ? 1 : p->n;
    for (int w = 0; w < p->n; w++) {
        unsigned long long r = w < sharers ? range_of(n * w / sharers, n * (w + 1) / sharers) : 0;
        atomic_store_explicit(&p->ranges[w].items, r, memory_order_relaxed);
    }
    atomic_store_explicit(&p->left_out, 0, memory_order_relaxed);
    if (sharers == 1) {
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
