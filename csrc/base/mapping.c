#ifndef _WIN32
#define _GNU_SOURCE
#include "mapping.h"

#include "alloc.h"
#include "file.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- the guard: ranges whose missing pages become zeros ---- */

enum { SLOTS = 64 };

static struct { atomic_uintptr_t begin; atomic_size_t n; atomic_int lost; } slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int in_use, installed;               /* slots; whether our handler is the process's, or somewhere below it. Under the lock */
static struct sigaction before;             /* written when ours is installed */

/* What the process did with SIGBUS before us. */
static void pass_on(int sig, siginfo_t *info, void *context) {
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(sig, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(sig);
    } else {
        sigaction(sig, &before, NULL);
        if (info->si_code <= 0) pthread_kill(pthread_self(), sig);     /* sent; a fault comes again by itself */
    }
}

static void on_sigbus(int sig, siginfo_t *info, void *context) {
    int saved = errno;
    uintptr_t at = (uintptr_t)info->si_addr;
    for (int i = 0; i < SLOTS && info->si_code > 0; i++) {
        uintptr_t begin = atomic_load(&slots[i].begin);
        size_t n = atomic_load(&slots[i].n);
        if (!begin || at < begin || at - begin >= n) continue;
        atomic_store(&slots[i].lost, 1);
        /* All of it at once: page by page would be a signal each, and the results are worth nothing anyway. */
        void *zeros = mmap((void *)begin, n, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        errno = saved;
        if (zeros != MAP_FAILED) return;
    }
    pass_on(sig, info, context);
    errno = saved;
}

/* A slot, or -1 if all are in use. */
static int guard_add(const uint8_t *p, size_t n) {
    int slot = 0;
    pthread_mutex_lock(&lock);
    while (slot < SLOTS && atomic_load(&slots[slot].begin)) slot++;
    if (slot < SLOTS) {
        atomic_store(&slots[slot].lost, 0);
        atomic_store(&slots[slot].n, n);
        atomic_store(&slots[slot].begin, (uintptr_t)p);
        in_use++;
        struct sigaction ours = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_ONSTACK};
        sigemptyset(&ours.sa_mask);
        if (!installed) installed = !sigaction(SIGBUS, &ours, &before);
    }
    pthread_mutex_unlock(&lock);
    return slot < SLOTS ? slot : -1;
}

static void guard_remove(int slot) {
    struct sigaction now;
    pthread_mutex_lock(&lock);
    atomic_store(&slots[slot].begin, 0);
    if (!--in_use && installed && !sigaction(SIGBUS, NULL, &now) && now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_sigbus)
        installed = sigaction(SIGBUS, &before, NULL) != 0;      /* a later handler of somebody else stays, and may pass on to ours */
    pthread_mutex_unlock(&lock);
}

/* ---- mappings ---- */

/* Address space for n bytes, aligned so that huge pages of the file can be mapped as such; NULL if there is none. */
static uint8_t *reserve(size_t n) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), kept = (n + page - 1) / page * page, all = kept + MAPPING_ALIGN;
    uint8_t *p = fault_point() ? MAP_FAILED : mmap(NULL, all, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    size_t skip = (size_t)(-(uintptr_t)p % MAPPING_ALIGN);
    if (skip) munmap(p, skip);
    munmap(p + skip + kept, all - skip - kept);
    return p + skip;
}

int mapping_new(int fd, const char *path, size_t offset, size_t n, mapping *m, pyllm_error *err) {
    TRY(mapping_describe(fd, path, n, m, err));
    uint8_t *place = reserve(n);
    if (!place) {
        mem_free(m->path);
        return err_set(err, PYLLM_ERR_MEMORY, "no room in the address space for the %zu MB of %s", n >> 20, path);
    }
    if (mmap(place, n, PROT_READ, MAP_SHARED | MAP_FIXED, fd, (off_t)offset) == MAP_FAILED) {
        err_set(err, PYLLM_ERR_IO, "%s cannot be mapped: %s", path, strerror(errno));
    } else {
#if defined(MADV_HUGEPAGE)
        madvise(place, n, MADV_HUGEPAGE);       /* what has to be read from the disk comes in huge pages */
#endif
        m->slot = guard_add(place, n);
        if (m->slot < 0) err_set(err, PYLLM_ERR_IO, "%s: too many files are mapped already", path);
    }
    if (m->slot < 0) {
        munmap(place, n);
        mem_free(m->path);
        return PYLLM_ERR_IO;
    }
    m->p = place;
    return 0;
}

void mapping_free(mapping *m) {
    if (!m->p) return;
    munmap((void *)m->p, m->n);
    guard_remove(m->slot);
    file_close(m->fd);
    mem_free(m->path);
    m->p = NULL;
}

void mapping_fetch(const mapping *m, size_t at, size_t n) {
#if defined(MADV_POPULATE_READ)
    size_t page = (size_t)sysconf(_SC_PAGESIZE), begin = at / page * page;
    madvise((void *)(m->p + begin), at + n - begin, MADV_POPULATE_READ);    /* a refusal only means that pages come when they are read */
#else
    (void)m, (void)at, (void)n;
#endif
}

int mapping_check(const mapping *m, pyllm_error *err) { return mapping_compare(m, atomic_load(&slots[m->slot].lost), err); }
#endif
