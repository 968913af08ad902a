/* Stand-ins for macOS's libSystem. Where the two systems agree in meaning and layout, Linux's own function is lent; where numbers or structures
 * differ, they are translated. Only what the library asks for is here, so that a new dependency is noticed. */
#define _GNU_SOURCE
#include "darwin.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- variable arguments: on arm64 macOS passes all of them on the stack, 8 bytes each, and a va_list points there ---- */

#if defined(__aarch64__)
typedef void *list_of_darwin;
#define STACKED(name, reg, to) __asm__(".text\n.globl " name "\n.hidden " name "\n" name ":\n" reg "\nb " to "\n");
STACKED("darwin_snprintf", "mov x3, sp", "darwin_vsnprintf")
STACKED("darwin_open", "ldr w2, [sp]", "open_translated")
STACKED("darwin_fcntl", "ldr w2, [sp]", "fcntl_translated")
void darwin_snprintf(void), darwin_open(void), darwin_fcntl(void);

__attribute__((visibility("hidden"), used)) int darwin_vsnprintf(char *out, size_t n, const char *format, list_of_darwin list) {
    va_list here;
    memset(&here, 0, sizeof here);          /* no registers are left to take from: everything is on the stack */
    __builtin_memcpy(&here, &list, sizeof list);
    return vsnprintf(out, n, format, here);
}
#else
#define darwin_snprintf snprintf
#define darwin_vsnprintf vsnprintf
#define darwin_open open_translated
#define darwin_fcntl fcntl_translated
#endif

/* ---- files ---- */

__attribute__((visibility("hidden"), used)) int open_translated(const char *path, int flags, int mode) {
    static const struct { int darwin, here; } names[] = {
        {0x4, O_NONBLOCK}, {0x200, O_CREAT}, {0x400, O_TRUNC}, {0x800, O_EXCL}, {0x1000000, O_CLOEXEC},
    };
    int to = flags & 3;
    flags &= ~3;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (flags & names[i].darwin) to |= names[i].here, flags &= ~names[i].darwin;
    if (flags) return errno = EINVAL, -1;
    return open(path, to, mode);
}

__attribute__((visibility("hidden"), used)) int fcntl_translated(int fd, int what, int value) {
    enum { DARWIN_F_DUPFD_CLOEXEC = 67 };
    return what == DARWIN_F_DUPFD_CLOEXEC ? fcntl(fd, F_DUPFD_CLOEXEC, value) : (errno = EINVAL, -1);
}

typedef struct {
    int32_t device;
    uint16_t mode, links;
    uint64_t inode;
    uint32_t user, group;
    int32_t special, pad;
    struct timespec accessed, modified, changed, born;
    int64_t size, blocks;
    int32_t block_size;
    uint32_t flags, generation;
    int32_t spare;
    int64_t more[2];
} darwin_stat;

static int darwin_fstat(int fd, darwin_stat *out) {
    struct stat st;
    if (fstat(fd, &st)) return -1;
    *out = (darwin_stat){.device = (int32_t)st.st_dev, .mode = (uint16_t)st.st_mode, .links = (uint16_t)st.st_nlink, .inode = st.st_ino,
                         .accessed = st.st_atim, .modified = st.st_mtim, .changed = st.st_ctim, .size = st.st_size, .blocks = st.st_blocks};
    return 0;
}

static int darwin_futimens(int fd, const struct timespec *t) {
    struct timespec here[2] = {t[0], t[1]};
    for (int i = 0; i < 2; i++) here[i].tv_nsec = t[i].tv_nsec == -1 ? UTIME_NOW : t[i].tv_nsec == -2 ? UTIME_OMIT : t[i].tv_nsec;
    return futimens(fd, here);
}

static void *darwin_mmap(void *at, size_t n, int protection, int flags, int fd, int64_t offset) {
    int to = (flags & (MAP_SHARED | MAP_PRIVATE | MAP_FIXED)) | (flags & 0x1000 ? MAP_ANONYMOUS : 0) | (flags & 0x40 ? MAP_NORESERVE : 0);
    return mmap(at, n, protection, to, fd, offset);
}

static char *darwin_strerror(int code) { return strerror(code == 35 ? EAGAIN : code == 63 ? ENAMETOOLONG : code); }

/* ---- the machine ---- */

static int darwin_clock_gettime(int clock, struct timespec *t) { return clock_gettime(clock == 6 ? CLOCK_MONOTONIC : CLOCK_REALTIME, t); }

static long darwin_sysconf(int name) { return name == 29 ? sysconf(_SC_PAGESIZE) : -1; }

static int darwin_sysctlbyname(const char *name, void *out, size_t *size, const void *new, size_t new_size) {
    int32_t value;
    (void)new, (void)new_size;
    if (!strcmp(name, "hw.logicalcpu") || !strcmp(name, "hw.physicalcpu")) value = (int32_t)sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__aarch64__)
    else if (!strcmp(name, "hw.optional.arm.FEAT_DotProd")) value = getauxval(AT_HWCAP) >> 20 & 1;
    else if (!strcmp(name, "hw.optional.arm.FEAT_I8MM")) value = getauxval(AT_HWCAP2) >> 13 & 1;
#endif
    else return errno = ENOENT, -1;
    if (*size < sizeof value) return errno = ENOMEM, -1;
    memcpy(out, &value, *size = sizeof value);
    return 0;
}

/* ---- threads. A mutex, a condition and a once of macOS begin with a number that says whether they are ready; what is behind it is zero at first,
 * as Linux's own are. A condition of Linux is too large for the place: it is kept elsewhere. ---- */

typedef struct { long ready; pthread_mutex_t mutex; } darwin_mutex;         /* 64 bytes there */
typedef struct { long ready; pthread_once_t once; } darwin_once;            /* 16 */
typedef struct { long ready; pthread_cond_t *cond; } darwin_cond;           /* 48 */
_Static_assert(sizeof(darwin_mutex) <= 64 && sizeof(darwin_once) <= 16 && sizeof(pthread_attr_t) <= 64, "what fits into macOS's");

static int darwin_mutex_init(darwin_mutex *m, const void *attr) { return attr ? EINVAL : pthread_mutex_init(&m->mutex, NULL); }
static int darwin_mutex_destroy(darwin_mutex *m) { return pthread_mutex_destroy(&m->mutex); }
static int darwin_mutex_lock(darwin_mutex *m) { return pthread_mutex_lock(&m->mutex); }
static int darwin_mutex_unlock(darwin_mutex *m) { return pthread_mutex_unlock(&m->mutex); }
static int darwin_pthread_once(darwin_once *o, void (*fn)(void)) { return pthread_once(&o->once, fn); }

static int darwin_cond_init(darwin_cond *c, const void *attr) {
    c->cond = malloc(sizeof *c->cond);
    return attr ? EINVAL : c->cond ? pthread_cond_init(c->cond, NULL) : ENOMEM;
}
static int darwin_cond_destroy(darwin_cond *c) {
    int rc = pthread_cond_destroy(c->cond);
    free(c->cond);
    return rc;
}
static int darwin_cond_wait(darwin_cond *c, darwin_mutex *m) { return pthread_cond_wait(c->cond, &m->mutex); }
static int darwin_cond_broadcast(darwin_cond *c) { return pthread_cond_broadcast(c->cond); }

/* The library blocks all signals and puts back what was: numbers of signals are not translated. */
static int darwin_sigmask(int how, const uint32_t *set, uint32_t *old) {
    enum { DARWIN_BLOCK = 1, DARWIN_SETMASK = 3 };
    static _Thread_local sigset_t before;
    if (how == DARWIN_SETMASK) return pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (how != DARWIN_BLOCK || *set != ~0u) return EINVAL;
    sigset_t all;
    sigfillset(&all);
    if (old) *old = 0;
    return pthread_sigmask(SIG_BLOCK, &all, &before);
}

/* A file that is cut off while it is mapped: Linux's handlers look different, so none is installed. */
static int darwin_sigaction(int signal, const void *action, void *old) {
    (void)signal, (void)action;
    if (old) memset(old, 0, 16);
    return 0;
}

static void darwin_memset_pattern16(void *to, const void *pattern, size_t n) {
    for (size_t at = 0; at < n; at += 16) memcpy((char *)to + at, pattern, n - at < 16 ? n - at : 16);
}

/* Frameworks: Metal, for one. There are none. */
static void *darwin_dlopen(const char *path, int mode) { return (void)path, (void)mode, NULL; }
static void *darwin_dlsym(void *from, const char *name) { return (void)from, (void)name, NULL; }

static void never(void) { __builtin_trap(); }      /* dyld's lazy binder: everything is bound already; a signal that nobody sends */

extern int *__errno_location(void);
extern void *__memmove_chk(void *, const void *, size_t, size_t);
extern void *__memcpy_chk(void *, const void *, size_t, size_t);
extern char *__strcat_chk(char *, const char *, size_t);

void *darwin_symbol(const char *name) {
#define SAME(f) {"_" #f, (void *)f}
#define OWN(symbol, f) {"_" symbol, (void *)f}
    static const struct { const char *name; void *function; } table[] = {
        SAME(__memcpy_chk), SAME(__memmove_chk), SAME(__strcat_chk), SAME(strncpy), SAME(bzero), SAME(close), SAME(flock), SAME(free), SAME(fsync), SAME(getenv), SAME(getpid),
        SAME(memchr), SAME(memcmp), SAME(memcpy), SAME(memmove), SAME(memset), SAME(munmap), SAME(posix_memalign), SAME(pread), SAME(pwrite),
        SAME(realloc), SAME(rename), SAME(sched_yield), SAME(strchr), SAME(strcmp), SAME(strcspn), SAME(strlen), SAME(strncmp), SAME(strrchr),
        SAME(strspn), SAME(unlink), SAME(pthread_attr_destroy), SAME(pthread_attr_init), SAME(pthread_attr_setstacksize), SAME(pthread_create),
        SAME(pthread_join), SAME(pthread_self),
        OWN("__bzero", bzero), OWN("__error", __errno_location), OWN("realpath$DARWIN_EXTSN", realpath), OWN("clock_gettime", darwin_clock_gettime),
        OWN("fcntl", darwin_fcntl), OWN("fstat", darwin_fstat), OWN("fstat$INODE64", darwin_fstat), OWN("futimens", darwin_futimens),
        OWN("memset_pattern16", darwin_memset_pattern16), OWN("mmap", darwin_mmap), OWN("open", darwin_open), OWN("snprintf", darwin_snprintf),
        OWN("vsnprintf", darwin_vsnprintf), OWN("strerror", darwin_strerror), OWN("sysconf", darwin_sysconf),
        OWN("sysctlbyname", darwin_sysctlbyname), OWN("sigaction", darwin_sigaction), OWN("pthread_sigmask", darwin_sigmask),
        OWN("pthread_once", darwin_pthread_once), OWN("pthread_mutex_init", darwin_mutex_init), OWN("pthread_mutex_destroy", darwin_mutex_destroy),
        OWN("pthread_mutex_lock", darwin_mutex_lock), OWN("pthread_mutex_unlock", darwin_mutex_unlock), OWN("pthread_cond_init", darwin_cond_init),
        OWN("pthread_cond_destroy", darwin_cond_destroy), OWN("pthread_cond_wait", darwin_cond_wait),
        OWN("pthread_cond_broadcast", darwin_cond_broadcast), OWN("dlopen", darwin_dlopen), OWN("dlsym", darwin_dlsym),
        OWN("pthread_kill", never), {"dyld_stub_binder", (void *)never},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, name)) return table[i].function;
    return NULL;
}
