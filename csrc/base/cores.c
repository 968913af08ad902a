/* How many threads pay: physical performance cores that the affinity mask and the cgroup quota allow. Linux: /proc and /sys. */
#ifdef __linux__
#define _GNU_SOURCE
#include "threads.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { PATH_ROOM = 1024, TEXT_ROOM = 512 };

/* The first bytes of a small file, terminated; -1 if there is none. */
static int read_text(const char *path, char *text) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, TEXT_ROOM - 1);
    close(fd);
    if (n < 0) return -1;
    text[n] = 0;
    return 0;
}

/* The number at *s, which moves behind it; -1 if there is none. */
static int64_t number(const char **s) {
    int64_t v = -1;
    for (; **s >= '0' && **s <= '9' && v < 1LL << 50; ++*s) v = (v < 0 ? 0 : v * 10) + (**s - '0');
    return v;
}

static int cpu_text(int cpu, const char *name, char *text) {
    char path[PATH_ROOM];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", cpu, name);
    return read_text(path, text);
}

/* ---- cgroup quota ---- */

/* The group's directory is root and the first `length` characters of path. */
static int group_text(const char *root, const char *path, int length, const char *name, char *text) {
    char full[PATH_ROOM];
    snprintf(full, sizeof full, "%s%.*s/%s", root, length, path, name);
    return read_text(full, text);
}

/* CPUs that one group's bandwidth pays for, rounded up; 0 = no limit there. v2 writes "quota period" or "max period" into
   cpu.max, v1 each into a file. */
static int64_t group_quota(const char *root, const char *path, int length) {
    char text[TEXT_ROOM];
    const char *s = text;
    int64_t quota = -1, period = -1;
    if (!group_text(root, path, length, "cpu.max", text)) {
        quota = number(&s);
        s += *s == ' ';
        period = number(&s);
    } else if (!group_text(root, path, length, "cpu.cfs_quota_us", text)) {
        quota = number(&s);
        s = text;
        if (!group_text(root, path, length, "cpu.cfs_period_us", text)) period = number(&s);
    }
    return quota > 0 && period > 0 ? (quota + period - 1) / period : 0;
}

/* Lowest limit of the group at root + path and of all its parents. In a container the path may be the host's and not
   exist; the root is then the container's own group. */
static int64_t quota_upward(const char *root, const char *path) {
    int64_t least = 0;
    for (int length = (int)strlen(path);; length--) {
        if (length && path[length] && path[length] != '/') continue;        /* ends of names only */
        int64_t q = group_quota(root, path, length);
        if (q && (!least || q < least)) least = q;
        if (!length) return least;
    }
}

/* /proc/self/cgroup has lines "0::/path" (v2) and "4:cpu,cpuacct:/path" (v1, one of them with the word cpu). */
static int64_t quota(void) {
    char text[TEXT_ROOM];
    if (read_text("/proc/self/cgroup", text)) return 0;
    int64_t least = 0;
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL;
        if (!path || (path != names + 1 && strncmp(names, ":cpu:", 5) && strncmp(names, ":cpu,", 5))) continue;
        int64_t q = quota_upward(path == names + 1 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu", path + 1);
        if (q && (!least || q < least)) least = q;
    }
    return least;
}

/* ---- cores ---- */

/* Size of a core in any unit that the system offers for all of them; 0 if unknown. */
static int64_t capacity(int cpu, const char *name) {
    char text[TEXT_ROOM];
    const char *s = text;
    int64_t v = cpu_text(cpu, name, text) ? 0 : number(&s);
    return v > 0 ? v : 0;
}

/* 1 if an allowed CPU with a lower number is a thread of the same core ("0,64" or "0-1"). */
static int is_second_thread(int cpu, const cpu_set_t *allowed) {
    char text[TEXT_ROOM];
    const char *s = text;
    if (cpu_text(cpu, "topology/thread_siblings_list", text)) return 0;
    while (*s >= '0' && *s <= '9') {
        int64_t first = number(&s), last = first;
        if (*s == '-') {
            s++;
            last = number(&s);
        }
        for (int64_t c = first; c <= last && c < cpu; c++)
            if (CPU_ISSET((size_t)c, allowed)) return 1;
        s += *s == ',';
    }
    return 0;
}

static int at_most_quota(int64_t n) {
    int64_t q = quota();
    if (q && q < n) n = q;
    return n < 1 ? 1 : (int)n;
}

int threads_allowed(void) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    return sched_getaffinity(0, sizeof allowed, &allowed) ? 1 : at_most_quota(CPU_COUNT(&allowed));
}

int threads_default(void) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
    const char *size = "cpu_capacity";
    int64_t best = 0, n = 0;
    for (int pass = 0; pass < 2 && !best; pass++) {             /* without capacities: the highest clock */
        if (pass) size = "cpufreq/cpuinfo_max_freq";
        for (int c = 0; c < CPU_SETSIZE; c++)
            if (CPU_ISSET((size_t)c, &allowed) && capacity(c, size) > best) best = capacity(c, size);
    }
    for (int c = 0; c < CPU_SETSIZE; c++) {
        if (!CPU_ISSET((size_t)c, &allowed) || is_second_thread(c, &allowed)) continue;
        if (best && capacity(c, size) * 5 < best * 4) continue; /* below 80 % of the best: an efficiency core */
        n++;
    }
    return at_most_quota(n);
}

size_t cache_l2_bytes(void) {
    long n = -1;
#ifdef _SC_LEVEL2_CACHE_SIZE
    n = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    return n >= 128 << 10 && n <= 64 << 20 ? (size_t)n : 512 << 10;
}
#endif
